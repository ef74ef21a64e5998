"""Front ends against their peers on the same clips: librosa, torch.stft, and a torchaudio-style dense mel.

    python -m benchmarks.frontends [--rounds 7] [--seconds 120] [--threads 2] [--quick]

Rounds are interleaved; medians and ratios are printed, nothing is asserted. Clips are synthetic, 0.5 to 15 s.
Every method runs with one intra-op thread; the last block runs whole clips on several Python threads.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.rounds import Seconds, describe_machine, median, race, ratio

import librosa  # isort: skip
import numpy as np  # isort: skip
import torch  # isort: skip

from kernel.inference import finish

from kernel.sound import filter_banks, frontends, scales, spectra, waves  # isort: skip

Method = Callable[[np.ndarray], np.ndarray]


def make_clips(rate: int, seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Noisy chirps of 0.5 to 15 s, `seconds` in all."""
    rng = np.random.default_rng(seed)
    clips = []
    total = 0.0
    while total < seconds:
        length = float(rng.uniform(0.5, 15))
        t = np.arange(int(length * rate)) / rate
        chirp = np.sin(2 * np.pi * (200 * t + rng.uniform(10, 300) * t * t))
        wave = 0.3 * chirp + 0.01 * rng.standard_normal(len(t))
        clips.append(wave.astype(np.float32))
        total += length
    return clips


Times = dict[str, list[Seconds]]


def show(title: str, peer: str, times: Times, frames: int) -> None:
    """Prints microseconds per frame and ratios to `peer`; the CPU columns hold on a shared machine, too."""
    print(f"\n{title}\n  {'':46}{'wall us':>9}{'x':>7}{'CPU us':>9}{'x':>7}")
    for name, values in times.items():
        cells = (
            f"{median(values, kind) / frames * 1e6:9.2f}{ratio(times[peer], values, kind):7.2f}"
            for kind in (0, 1)
        )
        print(f"  {name:46}{''.join(cells)}", flush=True)


def mel_methods(fe: frontends.FrontEnd) -> dict[str, Method]:
    """Log-mel of one wave f32[S] -> dB [M, T], by us and by each peer, edges and clip included."""
    shape = {"n_fft": fe.n_fft, "hop_length": fe.hop}
    window = torch.hann_window(fe.n_fft)
    dense = torch.from_numpy(
        librosa.filters.mel(sr=fe.rate, n_fft=fe.n_fft, n_mels=fe.mels, fmin=fe.fmin, fmax=fe.rate / 2)
    )

    def by_librosa(wave: np.ndarray) -> np.ndarray:
        mel = librosa.feature.melspectrogram(
            y=wave, sr=fe.rate, n_mels=fe.mels, fmin=fe.fmin, fmax=fe.rate / 2, pad_mode="reflect", **shape
        )
        return librosa.power_to_db(mel)

    def by_torch(wave: np.ndarray, root: bool) -> np.ndarray:
        stft = torch.stft(
            torch.from_numpy(wave), window=window, return_complex=True, pad_mode="reflect", **shape
        )
        parts = torch.view_as_real(stft)
        power = stft.abs() ** 2 if root else parts[..., 0] ** 2 + parts[..., 1] ** 2
        decibels = 10 * torch.log10(torch.clamp(dense @ power, min=1e-10))
        return torch.clamp(decibels, min=float(decibels.max()) - 80).numpy()

    return {"librosa": by_librosa, "torch.stft, abs ** 2": lambda wave: by_torch(wave, True),
            "torchaudio style, dense": lambda wave: by_torch(wave, False), "ours": lambda wave: fe(wave)[0]}


def compare_mel(rate: int, n_fft: int, hop: int, seconds: float, rounds: int, threads: int) -> None:
    fe = frontends.build({"rate": rate, "n_fft": n_fft, "hop": hop, "mels": 128, "fmin": 20.0})
    clips = make_clips(rate, seconds)
    methods = mel_methods(fe)
    frames = sum(fe.max_frames(len(clip)) for clip in clips)
    worst = max(float(np.abs(methods["librosa"](clip) - methods["ours"](clip)).max()) for clip in clips)
    times = race(
        {name: lambda m=method: [m(clip) for clip in clips] for name, method in methods.items()}, rounds
    )
    show(f"log-mel {rate} Hz, n_fft {n_fft}, hop {hop}, 128 mels: {len(clips)} clips, {frames} frames; "
         f"ours - librosa: {worst:.1e} dB", "librosa", times, frames)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        spread = {f"{name}, {threads} threads": lambda m=method: list(pool.map(m, clips))
                  for name, method in methods.items()}
        both = race({"librosa": lambda: [methods["librosa"](clip) for clip in clips], **spread}, rounds)
    show(f"the same over {threads} threads against serial librosa", "librosa", both, frames)


def torchaudio_method(fe: frontends.FrontEnd) -> tuple[str, Method]:
    """MelSpectrogram and AmplitudeToDB of torchaudio, or the same operations where it is not installed."""
    try:
        from torchaudio import transforms
    except ImportError:
        window = torch.hann_window(fe.n_fft)
        weights = filter_banks.mel_weights(fe.rate, fe.n_fft, fe.mels, fe.fmin, fe.fmax or fe.rate / 2,
                                           fe.mel_scale, fe.mel_norm)
        bank = torch.from_numpy(weights).T.contiguous()

        def by_hand(wave: np.ndarray) -> np.ndarray:
            stft = torch.stft(torch.from_numpy(wave), fe.n_fft, fe.hop, fe.n_fft, window, True, "reflect",
                              return_complex=True)
            mel = torch.matmul(stft.abs().pow(2.0).transpose(-1, -2), bank).transpose(-1, -2)
            decibels = 10 * torch.log10(torch.clamp(mel, min=1e-10))
            if fe.top_db is not None:
                decibels = torch.max(decibels, decibels.max() - fe.top_db)
            return decibels.numpy()

        return "torchaudio 2.11's operations", by_hand
    mel = transforms.MelSpectrogram(fe.rate, fe.n_fft, fe.n_fft, fe.hop, fe.fmin, fe.fmax, n_mels=fe.mels)
    decibels = transforms.AmplitudeToDB(top_db=fe.top_db)
    return "torchaudio", lambda wave: decibels(mel(torch.from_numpy(wave))).numpy()


def compare_torchaudio(preset: str, seconds: float, rounds: int) -> None:
    fe = frontends.build({"preset": preset})
    clips = make_clips(fe.rate, seconds)
    peer, by_peer = torchaudio_method(fe)
    worst = max(float(np.abs(by_peer(clip) - fe(clip)[0]).max()) for clip in clips)
    methods = {peer: by_peer, "ours": fe}
    times = race(
        {name: lambda m=method: [m(clip) for clip in clips] for name, method in methods.items()}, rounds
    )
    show(f"{preset}: {fe.rate} Hz, n_fft {fe.n_fft}, hop {fe.hop}, {fe.mels} mels; ours: {worst:.1e} dB off",
         peer, times, sum(fe.max_frames(len(clip)) for clip in clips))


def compare_pcen(clips: list[np.ndarray], rounds: int) -> None:
    fe = frontends.build({"preset": "simongrest", "trim_db": None, "scale": "linear"})
    power = [fe(clip)[0] for clip in clips]
    settings = {"sr": 44100, "hop_length": 689, "gain": 0.6, "bias": 0.1, "power": 0.2, "time_constant": 0.4,
                "eps": 1e-9, "zi": np.zeros((256, 1), np.float32)}
    methods = {
        "librosa": lambda: [librosa.pcen(p, **settings) for p in power],
        "ours": lambda: [scales.pcen(p, frames_per_second=44100 / 689) for p in power],
    }
    show("PCEN, 256 mels", "librosa", race(methods, rounds), sum(p.shape[1] for p in power))


def compare_delta(rounds: int) -> None:
    tiles = torch.randn(32, 1, 128, 256)
    methods = {
        "librosa": lambda: [
            librosa.feature.delta(tile[0].numpy(), order=o) for tile in tiles for o in (1, 2)
        ],
        "ours": lambda: [finish.delta(tiles, 9, o) for o in (1, 2)],
    }
    show("delta and delta-delta, tiles of 256 frames", "librosa", race(methods, rounds), 32 * 256)


def compare_trim(clips: list[np.ndarray], rounds: int) -> None:
    methods = {
        "librosa": lambda: [librosa.effects.trim(clip) for clip in clips],
        "ours": lambda: [waves.trim_bounds(clip) for clip in clips],
    }
    show("trim (per 512-sample frame)", "librosa", race(methods, rounds), sum(len(c) // 512 for c in clips))


def compare_chroma(clips: list[np.ndarray], rounds: int) -> None:
    stft = [np.abs(librosa.stft(clip, n_fft=2048, hop_length=512)) ** 2 for clip in clips]
    turned = [torch.from_numpy(np.ascontiguousarray(s.T)) for s in stft]
    bank = filter_banks.chroma_bank(44100, 2048)
    methods = {
        "librosa": lambda: [librosa.feature.chroma_stft(S=s, sr=44100, tuning=0) for s in stft],
        "librosa with its tuning estimate": lambda: [
            librosa.feature.chroma_stft(S=s, sr=44100) for s in stft
        ],
        "ours": lambda: [spectra.chroma(p, bank) for p in turned],
    }
    show("chroma from a power STFT", "librosa", race(methods, rounds), sum(s.shape[1] for s in stft))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=120.0, help="audio per set of clips")
    parser.add_argument("--threads", type=int, default=2, help="Python threads of the clip-parallel rows")
    parser.add_argument("--quick", action="store_true", help="30 s of audio, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 30.0
        options.rounds = 3
    torch.set_num_threads(1)
    print(f"{describe_machine('torch', 'librosa', 'numpy')}; medians of {options.rounds} rounds")
    for rate, n_fft, hop in ((44100, 2560, 690), (16000, 1024, 250)):
        compare_mel(rate, n_fft, hop, options.seconds, options.rounds, options.threads)
    for preset in ("torchaudio_htk_none", "torchaudio_db80", "torchaudio_default_db"):
        compare_torchaudio(preset, options.seconds, options.rounds)
    clips = make_clips(44100, options.seconds, 1)
    compare_pcen(clips, options.rounds)
    compare_delta(options.rounds)
    compare_trim(clips, options.rounds)
    compare_chroma(clips, options.rounds)


if __name__ == "__main__":
    main()
