"""What a checkpoint holds of the mel layer that `mel_in_net` computes: batch norm, kernels, filter bank.

Owns giving the batch norm to the finish, and comparing the layer's kernels with what the finish computes:
they are left out only where both are the same. Does not compute spectra (kernel.sound.keras_mel).
"""
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kernel.errors import ModelLoadFailed
from kernel.inference.finish import InNetMel
from kernel.inference.recipe import constant_key
from kernel.models.keras_weights import WAVE_NORM
from kernel.sound.filter_banks import mel_weights
from kernel.sound.spectra import hann
from kernel.spec import Member, Part, load

# Names of kapre 0.1 and its copies.
LAYER = re.compile(r"((?:mel|power_mel)?(?:spectrogram|spectrum|melgram)(?:_\d+)?)\.")
NORM_EPS = 1e-3  # Keras BatchNormalization's default epsilon
KERNEL_TOLERANCE = 1e-4  # of cosines whose largest is 1
BANK_TOLERANCE = 1e-4  # of the bank's largest weight


def take(
    rest: Mapping[str, Tensor], part: Part, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """Numbers for the finish, what is still not taken, and what was done, a sentence each.

    rest  the tensors that the net itself does not take
    Raises  ModelLoadFailed when the layer's kernels differ from what the finish computes, or no finish takes
            the batch norm
    """
    rest = dict(rest)
    places = _find_layers(part)
    if len(places) != 1:
        if any(key.startswith(WAVE_NORM + ".") for key in rest):
            raise ModelLoadFailed(
                f"{where}: a batch norm over the waveform, which only mel_in_net takes; "
                f"{part.name} needs one "
                f'such finish and has {len(places)} (or leave it out: drop = ["{WAVE_NORM}.*"])'
            )
        return {}, rest, ()
    (name, index, mel), = places
    constants: dict[str, Tensor] = {}
    said: list[str] = []
    norm = {key.partition(".")[2]: key for key in rest if key.startswith(WAVE_NORM + ".")}
    if norm:
        scale, offset = _as_line({leaf: rest.pop(key) for leaf, key in norm.items()})
        constants = {constant_key(name, index, "wave_scale"): scale,
                     constant_key(name, index, "wave_offset"): offset}
        line = f"x {float(scale):.6g}, {float(offset):+.3g}"
        said.append(f"batch norm over the wave given to mel_in_net: {line}")
    for layer in sorted({match[1] for key in rest if (match := LAYER.match(key))}):
        arrays = {key: rest.pop(key).numpy() for key in list(rest) if key.startswith(layer + ".")}
        rest |= {key: torch.from_numpy(value) for key, value in _compare(arrays, mel, where).items()}
        said.append(f"{layer}: its kernels are those that mel_in_net computes")
    return constants, rest, tuple(said)


def _find_layers(part: Part) -> list[tuple[str, int, InNetMel]]:
    """(input, place in its finish, the operation) of every `mel_in_net` of a member."""
    found = []
    for name, entry in part.named_inputs().items() if isinstance(part, Member) else ():
        for index, step in enumerate(entry.finish):
            if isinstance(step, Mapping) and step.get("kind") == "mel_in_net":
                keys = {key: value for key, value in step.items() if key != "kind"}
                found.append((name, index, load(InNetMel, keys, f"{part.name}.finish[{index}]")))
    return found


def _as_line(norm: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """f32[1] factor and offset of a batch norm in use, as TensorFlow multiplies them out."""
    values = {leaf: value.double() for leaf, value in norm.items()}
    scale = values["weight"] / torch.sqrt(values["running_var"] + NORM_EPS)
    return scale.float(), (values["bias"] - values["running_mean"] * scale).float()


def _compare(arrays: Mapping[str, np.ndarray], mel: InNetMel, where: str) -> dict[str, np.ndarray]:
    """The arrays that are neither DFT kernels nor the filter bank.

    Raises  ModelLoadFailed when one of these differs from what the finish computes
    """
    bins = mel.n_fft // 2 + 1
    angles = 2 * np.pi / mel.n_fft * np.outer(np.arange(mel.n_fft), np.arange(bins))
    window = hann(mel.n_fft).numpy()[:, None]
    bank = mel_weights(mel.rate, mel.n_fft, mel.mels, mel.fmin, mel.fmax or mel.rate / 2).T
    others: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        if value.ndim == 4 and value.shape[1:3] == (1, 1):
            wanted = [np.cos(angles) * window, np.sin(angles) * window, -np.sin(angles) * window]
            found, tolerance = value[:, 0, 0], KERNEL_TOLERANCE
        elif value.ndim == 2:
            wanted, found, tolerance = [bank], value, BANK_TOLERANCE * float(bank.max())
        else:
            others[key] = value
            continue
        if not any(w.shape == found.shape and np.abs(w - found).max() <= tolerance for w in wanted):
            raise ModelLoadFailed(
                f"{where}: {key} {list(value.shape)} is not what mel_in_net computes with rate "
                f"{mel.rate}, n_fft "
                f"{mel.n_fft}, mels {mel.mels}, fmin {mel.fmin:g}: correct these keys; a layer "
                "that was trained "
                "is not supported"
            )
    return others
