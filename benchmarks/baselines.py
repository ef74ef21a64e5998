"""The two ways everyone else would run the same nets on the same clips, each in a process of its own.

    python -m benchmarks.baselines tiles|padded --bundle DIR --clips DIR --out scores.npy

`tiles`: the loop of the 1st-place FAT2019 kernel: log-mels of all clips first (librosa, worker processes),
then net by net, clip by clip: tiles with deltas (librosa), batches of at most 16 tiles, torch eager.
`padded`: the everyday DataLoader: librosa log-mels by worker processes, kept in memory, then net by net in
batches of 16 padded to the longest, torch eager. Both read the weights from the bundle and use the families
of kernel.models: every run computes the same nets. Nothing is slow on purpose.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
import torch
from torch import nn

RATE = 44_100
HOP = 690
N_FFT = 2560
MELS = 128
FMIN = 20
TILE = 256
STEP = 128
BATCH = 16
FLOOR = 1e-30


def log_mel(path: str) -> np.ndarray:
    """f32[128, T] as the 1st place computes it. Source: lRomul/argus-freesound src/audio.py."""
    wave, _ = librosa.load(path, sr=RATE)
    wave, _ = librosa.effects.trim(wave)
    if len(wave) < RATE // 2:
        wave = np.pad(wave, (RATE // 2 - len(wave) + 1) // 2)
    mel = librosa.feature.melspectrogram(
        y=wave,
        sr=RATE,
        n_fft=N_FFT,
        hop_length=HOP,
        n_mels=MELS,
        fmin=FMIN,
        fmax=RATE // 2,
        pad_mode="reflect",
    )
    return librosa.power_to_db(mel).astype(np.float32)


def cut_tiles(mel: np.ndarray) -> np.ndarray:
    """f32[P, 3, 128, 256]: padded with the clip's minimum, deltas per tile, everything / 100."""
    count = max(1, -(-(mel.shape[1] - (TILE - STEP)) // STEP))
    missing = max(0, STEP * (count - 1) + TILE - mel.shape[1])
    mel = np.pad(mel, ((0, 0), (missing // 2, missing - missing // 2)), constant_values=mel.min())
    tiles = [mel[:, k * STEP:k * STEP + TILE] for k in range(count)]
    stacked = [np.stack([t, librosa.feature.delta(t), librosa.feature.delta(t, order=2)]) for t in tiles]
    return np.stack(stacked) / 100


def load_nets(bundle: Path) -> list[nn.Module]:
    from kernel import models, spec
    from kernel.bundle import open_bundle

    manifest = spec.load_manifest((bundle / "manifest.json").read_bytes())
    opened = open_bundle(bundle, manifest)
    nets = []
    for entry in manifest.nets:
        member = next(m for m in manifest.ensemble.members if m.name == entry.member)
        net = models.build(member.family, dict(member.params), member.outputs(len(manifest.ensemble.classes)))
        net.load_state_dict(models.rename(member.family, dict(member.params), opened.load_state(entry)))
        nets.append(net.eval())
    return nets


@torch.no_grad()
def predict_tiles(bundle: Path, paths: Sequence[str]) -> np.ndarray:
    """f64[nets, N, K]: mean over a clip's tiles."""
    with multiprocessing.Pool(os.cpu_count()) as pool:  # Forked before torch has run anything.
        mels = pool.map(log_mel, paths, chunksize=4)
    scores = []
    for net in load_nets(bundle):
        rows = []
        for mel in mels:
            parts = torch.from_numpy(cut_tiles(mel)).split(BATCH)
            answers = torch.cat([torch.sigmoid(net(part)) for part in parts])
            rows.append(answers.double().mean(0).numpy())
        scores.append(np.stack(rows))
    return np.stack(scores)


class Clips(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(log_mel(self.paths[i]))


@torch.no_grad()
def predict_padded(bundle: Path, paths: Sequence[str]) -> np.ndarray:
    """f64[nets, N, K], padding included in every mean: what this schedule gives."""
    loader = torch.utils.data.DataLoader(
        Clips(paths), batch_size=BATCH, num_workers=os.cpu_count() or 1, collate_fn=list
    )
    batches = []
    for mels in loader:
        longest = max(mel.shape[1] for mel in mels)
        padded = [nn.functional.pad(mel, (0, longest - mel.shape[1]), value=float(mel.min())) for mel in mels]
        batches.append(torch.stack(padded))
    scores = []
    for net in load_nets(bundle):
        scores.append(torch.cat([torch.sigmoid(net(x[:, None])) for x in batches]).double().numpy())
    return np.stack(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schedule", choices=("tiles", "padded"))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    paths = [str(path) for path in sorted(given.clips.iterdir())]
    scores = (predict_tiles if given.schedule == "tiles" else predict_padded)(given.bundle, paths)
    np.save(given.out, np.exp(np.log(np.maximum(scores, FLOOR)).mean(0)))


if __name__ == "__main__":
    main()
