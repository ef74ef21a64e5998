"""An ensemble's own front end: a function of the user's Python file that makes an array of a wave.

Owns its keys, its call and the checks of what it gives. Finding and importing the file is `kernel.own_files`;
which front end a table means (own, preset or keys) is `open_front_end`.
"""
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .. import own_files
from ..errors import ClipEmpty, ClipUnreadable, SpecError, did_you_mean
from ..spec import load
from . import frontends
from .spectra import one_thread

STORED = ("float32", "float16", "uint8")
SPARE_FRAMES = 2  # beside frames_per_second x seconds: what centring and rounding add
Function = Callable[[np.ndarray], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnFrontEnd:
    """The user's function `mel(wave f32[S]) -> array[M, T] or [C, M, T]`; it may use torch tensors.

    file               "my_frontend.py:mel": the file beside the TOML, and the function in it
    rate               Hz of the wave it wants
    bins               M of its array
    channels           C of its array; 1 also for [M, T]
    frames_per_second  frames of a second of audio, for planning; left out = measured by the builder
    stored             dtype name: "float32", "float16", or "uint8" where the function gives that
    pad_value          what a later pad along time writes: a number, or "clip_min" = the least value of that
                       clip
    name               what messages call it
    """

    file: str
    rate: int
    bins: int
    channels: int = 1
    frames_per_second: float | None = None
    stored: str = "float32"
    pad_value: Any = "clip_min"
    name: str = "own"

    time = True
    fixed = None
    uneven = False

    def __post_init__(self) -> None:
        name, colon, function = self.file.rpartition(":")
        wrong = None
        if not (colon and name.endswith(".py") and function.isidentifier()):
            wrong = f'file = {self.file!r}; write "my_frontend.py:function"'
        elif min(self.rate, self.bins, self.channels) < 1:
            wrong = "rate, bins and channels must be positive"
        elif self.stored not in STORED:
            wrong = f"stored = {self.stored!r} is unknown; {did_you_mean(self.stored, STORED)}"
        elif self.frames_per_second is not None and self.frames_per_second <= 0:
            wrong = f"frames_per_second = {self.frames_per_second}; leave it out to have it measured"
        elif isinstance(self.pad_value, bool) or not (
            self.pad_value == "clip_min" or isinstance(self.pad_value, (int, float))
        ):
            wrong = f'pad_value = {self.pad_value!r}; give a number or "clip_min"'
        if wrong:
            raise SpecError(f"frontend {self.name}: {wrong}")

    @functools.cached_property
    def path(self) -> Path:
        """Where the file lies: in the bundle's wheel, or where the builder found it."""
        return own_files.find(self.file.rpartition(":")[0], f"frontend {self.name}, file = {self.file!r}")

    @functools.cached_property
    def key(self) -> str:
        """A hash of the keys and of all its code: equal keys mean equal arrays."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("file", "name")}
        told |= {"function": self.file.rpartition(":")[2], "code": own_files.digest(self.path)}
        del told["frames_per_second"]  # for planning alone
        return f"own-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]}"

    @functools.cached_property
    def function(self) -> Function:
        """The function itself; the file is imported when it is first asked for.

        Raises  SpecError
        """
        return load_function(self.path, own_files.digest(self.path), self.file.rpartition(":")[2])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.stored)

    @property
    def pad(self) -> float | Literal["clip_min"]:
        return self.pad_value

    def max_frames(self, samples: int) -> int:
        """About T of a wave of `samples` samples; where there are more, the store reserves the rest."""
        return math.ceil((self.frames_per_second or 0.0) * max(1, samples) / self.rate) + SPARE_FRAMES

    def max_bytes(self, samples: int) -> int:
        """Bytes to expect of the stored array of such a wave."""
        return self.channels * self.bins * self.max_frames(samples) * self.dtype.itemsize

    def of_row(self, wave: np.ndarray, row_id: str) -> np.ndarray:
        """The front end's array; the function hears nothing of the row's id."""
        return self(wave)

    @torch.inference_mode()
    @one_thread()
    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """array[C, M, T], C-contiguous, in the stored dtype, of a mono wave f32[S] at `rate`.

        Raises  ClipEmpty for no samples, ClipUnreadable for an array of another shape or not finite
        """
        if wave.ndim != 1 or len(wave) == 0:
            raise ClipEmpty(f"front end {self.name}: wave of shape {wave.shape}; give it one sample or more")
        given = self.function(np.array(wave, np.float32))  # a copy of its own, which it may change
        given = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        array = given[None] if given.ndim == 2 else given
        wanted = f"[{self.bins}, T]" if self.channels == 1 else f"[{self.channels}, {self.bins}, T]"
        if array.ndim != 3 or array.shape[:2] != (self.channels, self.bins) or array.shape[2] < 1:
            raise ClipUnreadable(
                f"front end {self.name}: {self.file} gave {list(given.shape)} for {len(wave)} samples, "
                f"expected {wanted}; correct the function, bins or channels"
            )
        if array.dtype.kind not in "fiu" or (self.stored == "uint8" and array.dtype != np.uint8):
            raise ClipUnreadable(f"front end {self.name}: {self.file} gave {array.dtype}, stored = "
                                 f"{self.stored!r}; correct one of them")
        stored = np.array(array, dtype=self.dtype, order="C")
        if not np.isfinite(stored).all():
            raise ClipUnreadable(
                f"front end {self.name}: {self.file} gave NaN or infinity (as {self.stored}) for {len(wave)} "
                "samples; add a floor before the logarithm or division"
            )
        return stored


@functools.lru_cache(maxsize=32)
def load_function(path: Path, digest: str, name: str) -> Function:
    """The function `name` of the file at `path`, whose code has this digest.

    Raises  SpecError when the file fails to import or has no such function
    """
    module = own_files.load(path)
    value = getattr(module, name, None)
    if not callable(value):
        held = [key for key, held in vars(module).items() if callable(held) and not key.startswith("_")]
        near = did_you_mean(name, held) if held else "it has none"
        raise SpecError(f"{path}: no function {name!r}; {near}")
    return value


AnyFrontEnd = frontends.FrontEnd | OwnFrontEnd


def open_front_end(table: Mapping[str, Any], name: str) -> AnyFrontEnd:
    """The front end of the table [frontends.NAME]: the user's own where it has `file`.

    Raises  SpecError naming the key
    """
    where = f"frontends.{name}"
    if "file" not in table:
        return frontends.build(table, where)
    return load(OwnFrontEnd, {"name": name, **table}, where)
