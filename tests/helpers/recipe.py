"""Deterministic weights, inputs and waves for the goldens: two machines agree on a checkpoint without a file.

All numbers come from np.random.RandomState (numpy keeps its streams frozen), seeded by the CRC-32 of a key or
name.
"""
from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def _rng(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def fill_state_dict(state_dict: Mapping[str, Any], gain: float = 1.4) -> dict[str, torch.Tensor]:
    """Key -> tensor, of a state dict of tensors or shapes.

    A value depends on its key, its shape, its sibling keys and `gain` only.
    """
    shapes = {key: tuple(getattr(value, "shape", value)) for key, value in state_dict.items()}
    out = {}
    for key, shape in shapes.items():
        short = key.removeprefix("base_model.")  # OsciiArt ResNet: one tensor under two keys, filled alike
        name = short if shapes.get(short) == shape else key
        stem, _, leaf = name.rpartition(".")
        rng = _rng(name)
        if leaf == "running_var":
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) >= 2:  # convolutions, linears and recurrent matrices
            own_gain = 1.0 if "_l0" in leaf else gain
            value = rng.standard_normal(shape) * own_gain / np.sqrt(np.prod(shape[1:]))
        elif leaf == "weight":  # batch/layer norm has a bias beside it, PReLU has none
            value = rng.uniform(0.8, 1.2, shape) if stem + ".bias" in shapes else rng.uniform(0.1, 0.4, shape)
        else:  # biases and running means
            value = rng.uniform(-0.1, 0.1, shape)
        out[key] = torch.as_tensor(value, dtype=torch.float32).reshape(shape)
        if leaf == "num_batches_tracked":
            out[key] = torch.zeros(shape, dtype=torch.int64)
    return out


def make_input(name: str, channels: int, bins: int, frames: int) -> np.ndarray:
    """f32[channels, bins, frames] of about zero mean and unit spread: a tilted, humming spectrogram."""
    m = np.arange(bins)[:, None] / bins
    t = np.arange(frames)[None, :]
    layers = []
    for channel in range(channels):
        rng = _rng(f"{name}/{channel}")
        level, tilt, hum, beat, pitch, pace = rng.uniform(-1, 1, 6)
        x = 0.5 * level + 2.0 * tilt * (0.5 - m) + hum * np.sin(40 * (1.2 + pitch) * m)
        x = x + beat * np.sin(t / (5 + 4 * pace) + 9 * m)
        for centre, height in rng.uniform(0, 1, (4, 2)):
            x = x + 3.0 * np.exp(-(((t - centre * frames) / 12.0) ** 2) - ((m - height) / 0.1) ** 2)
        layers.append(x + rng.uniform(0.2, 0.8) * rng.standard_normal((bins, frames)))
    return np.stack(layers).astype(np.float32)


def make_probs(name: str, rows: int, features: int) -> np.ndarray:
    """f32[rows, features] in (0, 1), mostly small, like class probabilities."""
    return (_rng(name).uniform(0.001, 0.999, (rows, features)) ** 3).astype(np.float32)


def make_wave(name: str, seconds: float, rate: int, begin: float = 0.1, end: float = 0.85) -> np.ndarray:
    """f32[round(seconds * rate)] of peak 0.5: hiss, with chirps and bursts between two shares of it."""
    rng = _rng(name)
    n = int(round(seconds * rate))
    t = np.arange(n) / rate
    span = (end - begin) * seconds
    wave = np.zeros(n)
    u = (t - begin * seconds) / span
    for k in range(4):
        f0, f1, amp, lag = rng.uniform((80, 80, 0.2, 0), (3000, 7000, 1, 6))
        chirp = np.sin(2 * np.pi * (f0 * t + (f1 - f0) * t * t / (2 * seconds)) + lag)
        wave += amp * chirp * (0.6 + 0.4 * np.sin(5 * (k + 1) * u))
    for centre, width, amp in rng.uniform((0.1, 0.02, 0.5), (0.9, 0.1, 2.0), (3, 3)):
        wave += amp * np.exp(-(((u - centre) / width) ** 2)) * rng.standard_normal(n)
    wave *= np.clip(np.minimum(u, 1 - u) * span / 0.02, 0, 1)  # 20 ms ramps, silence outside
    return (0.5 * wave / np.abs(wave).max() + 1e-5 * rng.standard_normal(n)).astype(np.float32)
