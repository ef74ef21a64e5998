"""Augmentation of one clip's array: cuts and changes in time and frequency.

Owns `crop` and the table AUGMENTATIONS, whose functions map array f32[C, M, T] to one of the same shape;
everything random comes from the generator they are given. Does not mix clips (mixers) and does not change
waveforms (effects).
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from . import lookup

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SHORT = ("centre", "right", "left", "random", "wrap")


def crop(x: np.ndarray, frames: int, pad: float, short: str, rng: np.random.Generator) -> np.ndarray:
    """f32[C, M, frames], a random cut of x[C, M, T].

    short  a shorter clip is filled with `pad` so that it stands there (one of SHORT), or repeated ("wrap")
    """
    missing = frames - x.shape[-1]
    if missing <= 0:
        start = int(rng.integers(-missing + 1))
        return x[..., start : start + frames].astype(np.float32)
    if short == "wrap":
        places = np.arange(frames) + int(rng.integers(x.shape[-1]))
        return np.take(x, places % x.shape[-1], axis=-1).astype(np.float32)
    anywhere = int(rng.integers(missing + 1))
    left = {"centre": missing // 2, "right": 0, "left": missing, "random": anywhere}[short]
    return np.pad(x.astype(np.float32), ((0, 0), (0, 0), (left, missing - left)), constant_values=pad)


def spec_augment(
    x: np.ndarray,
    rng: np.random.Generator,
    *,
    masks: tuple[int, int] = (1, 2),
    bins: float = 0.15,
    frames: float = 0.2,
    fill: str = "min",
) -> np.ndarray:
    """Bands of bins and bands of frames blanked, masks[0]..masks[1] of each. Source: Park et al. 2019.

    bins, frames  largest band, as a share of all bins or frames; fill: "min", "mean" or "zero"
    The defaults are those of lRomul/argus-freesound.
    """
    x = x.copy()
    value = {"min": x.min(), "mean": x.mean(), "zero": 0.0}[fill]
    for _ in range(int(rng.integers(masks[0], masks[1] + 1))):
        high = int(rng.integers(int(bins * x.shape[1]) + 1))
        row = int(rng.integers(x.shape[1] - high + 1))
        x[:, row : row + high] = value
        wide = int(rng.integers(int(frames * x.shape[2]) + 1))
        column = int(rng.integers(x.shape[2] - wide + 1))
        x[:, :, column : column + wide] = value
    return x


def _resize(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(x))[None], (rows, columns), mode="bilinear", align_corners=False
    )[0].numpy()


def _cut(x: np.ndarray, high: int, wide: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of `high` bins and `wide` frames."""
    row = int(rng.integers(x.shape[1] - high + 1))
    column = int(rng.integers(x.shape[2] - wide + 1))
    return x[:, row : row + high, column : column + wide]


def resized_crop(x: np.ndarray, rng: np.random.Generator, *, scale: tuple[float, float] = (0.8, 1.0),
                 ratio: tuple[float, float] = (1.7, 2.3)) -> np.ndarray:
    """A random part of `scale` of the area and width / height in `ratio`, resized back.

    Source of the defaults: lRomul/argus-freesound src/transforms.py.
    """
    _, rows, columns = x.shape
    for _ in range(10):
        area = rng.uniform(*scale) * rows * columns
        shape = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        high = round(np.sqrt(area / shape))
        wide = round(np.sqrt(area * shape))
        if 0 < wide <= columns and 0 < high <= rows:
            return _resize(_cut(x, high, wide, rng), rows, columns)
    return x


def zoom(x: np.ndarray, rng: np.random.Generator, *, most: float = 1.1) -> np.ndarray:
    """A random corner-free zoom by 1..most in both axes."""
    _, rows, columns = x.shape
    factor = rng.uniform(1.0, most)
    part = _cut(x, max(1, round(rows / factor)), max(1, round(columns / factor)), rng)
    return _resize(part, rows, columns)


def warp(x: np.ndarray, rng: np.random.Generator, *, most: float = 0.1) -> np.ndarray:
    """Time bent about a random point, which moves by up to `most` of the width. Source: Park et al. 2019."""
    columns = x.shape[2]
    place = rng.uniform(0.25, 0.75)
    moved = np.clip(place + rng.uniform(-most, most), 0.05, 0.95)
    source = np.interp(np.linspace(0, 1, columns), [0, moved, 1], [0, place, 1]) * (columns - 1)
    low = np.minimum(source.astype(int), max(0, columns - 2))
    share = (source - low).astype(np.float32)
    return x[..., low] * (1 - share) + x[..., np.minimum(low + 1, columns - 1)] * share


def chunk_shuffle(x: np.ndarray, rng: np.random.Generator, *, frames: int = 32) -> np.ndarray:
    """Pieces of `frames` frames in random order (ex4sperans/freesound-classification: 0.5 s)."""
    pieces = np.array_split(np.arange(x.shape[2]), max(1, x.shape[2] // frames))
    return x[..., np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])]


def flip(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored in time."""
    return x[..., ::-1].copy()


def gain(x: np.ndarray, rng: np.random.Generator, *, most: float = 6.0) -> np.ndarray:
    """One random offset in -most..most added to all values: a level change where values are decibels."""
    return x + np.float32(rng.uniform(-most, most))


def equalise(x: np.ndarray, rng: np.random.Generator, *, most: float = 6.0, knots: int = 5) -> np.ndarray:
    """A smooth random curve over frequency in -most..most added: another microphone, where values are dB."""
    heights = rng.uniform(-most, most, knots)
    curve = np.interp(np.linspace(0, 1, x.shape[1]), np.linspace(0, 1, knots), heights)
    return x + curve[None, :, None].astype(np.float32)


def roll_bins(x: np.ndarray, rng: np.random.Generator, *, most: int = 3) -> np.ndarray:
    """All rows moved up or down by 0..most bins, the edge row repeated: a pitch change on a mel axis."""
    rows = np.clip(np.arange(x.shape[1]) + int(rng.integers(-most, most + 1)), 0, x.shape[1] - 1)
    return x[:, rows]


def noise(x: np.ndarray, rng: np.random.Generator, *, most: float = 0.05) -> np.ndarray:
    """Gaussian noise of a random spread up to `most` of the array's own."""
    return x + rng.normal(0, 1, x.shape).astype(np.float32) * np.float32(rng.uniform(0, most) * x.std())


AUGMENTATIONS: dict[str, Callable[..., np.ndarray]] = {
    "spec_augment": spec_augment,
    "resized_crop": resized_crop,
    "zoom": zoom,
    "warp": warp,
    "chunk_shuffle": chunk_shuffle,
    "flip": flip,
    "gain": gain,
    "equalise": equalise,
    "roll_bins": roll_bins,
    "noise": noise,
}


def build(entries: Sequence[Mapping[str, Any]]) -> Augmentation:
    """One function of [{kind = "spec_augment", chance = 0.5, ...}, ...]; each happens with its own chance.

    Raises  SpecError naming the unknown kind or key
    """
    chosen = lookup.find_all(AUGMENTATIONS, entries, "augment")

    def apply(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for chance, change in chosen:
            if rng.random() < chance:
                x = change(x, rng)
        return x

    return apply
