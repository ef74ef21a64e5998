"""Render docs/gallery.md: one picture per front end, of one rendered clip.

    python -m benchmarks.gallery [--docs docs]

Runs over PRESETS, so that a new preset appears by itself. The clip is synthetic (a bell, a bird, a voice and
rain between two silent ends), the same on every machine.
"""
from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import numpy as np

from kernel.sound.frontends import FrontEnd, build
from kernel.sound.presets import PRESETS
from training import demo_clips

SECONDS = 5.0
SILENCE = 0.6
WIDTH = 480  # Pixels of the largest picture.
HEIGHT = 256
HEAD = (
    "# Gallery of front ends\n\n"
    "One clip, {seconds:g} s (a bell, a bird, a voice and rain between two silent ends; rendered, "
    "no recording), as every preset stores\n"
    "it: low frequencies at the bottom, each picture scaled to its own range. `python -m benchmarks.gallery` "
    "makes this page and\n"
    "`python -m kernel.sound` prints the table with bytes and cost. What a net wants after the crop "
    "(deltas, /255, channel\n"
    "repeat, the in-net mel of the wave presets) is its finish and is not shown.\n\n"
)


def make_scene(rate: int) -> np.ndarray:
    """f32[SECONDS x rate] of the gallery's clip at `rate` Hz."""
    inner = SECONDS - 2 * SILENCE
    parts = (
        (demo_clips.bell, 0.5),
        (demo_clips.bird, 0.25),
        (demo_clips.vowel, 0.3),
        (demo_clips.rain, 0.05),
    )
    mixed = sum(gain * demo_clips.render(3, sound, inner, rate, 1)[:, 0] for sound, gain in parts)
    edge = np.zeros(round(SILENCE * rate), np.float32)
    return np.concatenate([edge, np.asarray(mixed, np.float32), edge])


def shrink(x: np.ndarray, width: int) -> np.ndarray:
    """array[..., <= width]: means over equal spans of the last axis."""
    if x.shape[-1] <= width:
        return x
    edges = np.linspace(0, x.shape[-1], width + 1).astype(int)
    return np.stack([x[..., a:b].mean(axis=-1) for a, b in zip(edges[:-1], edges[1:], strict=True)], axis=-1)


def draw_wave(wave: np.ndarray) -> np.ndarray:
    """f64[96, WIDTH], 1 inside the envelope."""
    edges = np.linspace(0, len(wave), WIDTH + 1).astype(int)
    peak = max(float(np.abs(wave).max()), 1e-9)
    rows = np.linspace(1, -1, 96)[:, None] * peak
    top = np.array([wave[a:b].max() for a, b in zip(edges[:-1], edges[1:], strict=True)])
    bottom = np.array([wave[a:b].min() for a, b in zip(edges[:-1], edges[1:], strict=True)])
    return ((rows <= top + peak / 96) & (rows >= bottom - peak / 96)).astype(float)


def to_levels(x: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 over the array's own range."""
    low = float(x.min())
    high = float(x.max())
    return np.rint(255 * (x - low) / max(high - low, 1e-9)).astype(np.uint8)


def picture(fe: FrontEnd, array: np.ndarray) -> np.ndarray:
    """uint8[H, W] or [H, W, 3] of a stored array."""
    x = array.astype(np.float64)
    if fe.spectrum == "wave":
        return to_levels(draw_wave(x[0, 0]))
    if fe.spectrum == "statistics":
        rows = np.stack([to_levels(row) for row in x[0].T])
        return np.kron(rows, np.ones((8, 3), np.uint8))
    x = shrink(x, WIDTH)
    if x.shape[1] > HEIGHT:
        x = shrink(x.swapaxes(1, 2), HEIGHT).swapaxes(1, 2)
    levels = np.stack([to_levels(channel) for channel in x])[:, ::-1]
    return np.moveaxis(levels, 0, 2) if len(levels) == 3 else levels[0]


def save(levels: np.ndarray, path: Path) -> None:
    """A palette PNG of 64 colours, or RGB for three channels."""
    import matplotlib
    from PIL import Image

    if levels.ndim == 3:
        Image.fromarray(levels).quantize(64).save(path, optimize=True)
        return
    image = Image.fromarray(levels // 4, mode="P")
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, 64))[:, :3]
    image.putpalette((colours * 255).astype(np.uint8).ravel().tolist())
    image.save(path, optimize=True, bits=8)


def describe(name: str, fe: FrontEnd, array: np.ndarray, image: str | None) -> str:
    """The Markdown section of one preset."""
    default = FrontEnd()
    values = [
        f"{f.name} {getattr(fe, f.name)}"
        for f in fields(fe)
        if f.name not in ("name", "stored", "pad_value") and getattr(fe, f.name) != getattr(default, f.name)
    ]
    shape = " x ".join(str(n) for n in array.shape)
    shown = f"![{name}](gallery/{image})" if image else f"Value: {float(array.ravel()[0]):.4f}"
    return (
        f"## {name}\n\n{shown}\n\n"
        f"`[{shape}]` {fe.stored}, {fe.rate} Hz, {array.nbytes / SECONDS / 1e3:.1f} kB per second, "
        f"pad {fe.pad}" + (f". {', '.join(values)}" if values else "") + ".\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    folder = parser.parse_args().docs
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    text = HEAD.format(seconds=SECONDS)
    for name in PRESETS:
        fe = build({"preset": name})
        array = fe(make_scene(fe.rate))
        image = f"{name}.png" if array.size > 1 else None
        if image:
            save(picture(fe, array), folder / "gallery" / image)
        text += describe(name, fe, array, image)
    (folder / "gallery.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in (folder / "gallery").glob("*.png"))
    print(f"{folder / 'gallery.md'}: {len(PRESETS)} front ends, pictures {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
