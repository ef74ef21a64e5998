"""Views: which parts of a clip's array a net sees, and how the scores of the parts become one row.

Owns where passes begin, what is mirrored, masked or warped, and the merge of the passes; carrying that out
is `cuts` on the host and `staging` on a device. Does not compute spectra (sound) and does not know nets.
Everything random is drawn from blake2b(row id, seed, pass), never from order: any worker, batch or restart
gives the same cuts.
"""
import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace

import numpy as np

from ..errors import SpecError, did_you_mean
from ..sound.frontends import FrontEnd
from ..sound.own import OwnFrontEnd
from ..sound.source import Source
from ..spec import load
from .answers import MERGES, Activate, flat
from .cuts import Cuts, draw_warps, pad_time, pad_value
from .streams import Streams

__all__ = ["MERGES", "VIEWS", "View", "build", "keys", "pad_time", "pad_value"]

SIDES = ("centre", "right", "left", "random")
# Numbers of a view -> the least they may be.
LEAST = {"frames": 1, "step": 1, "passes": 1, "stride": 0, "bins": 0}


@dataclass(frozen=True, kw_only=True)
class View:
    """Base of all views; a view is a value bound to one front end.

    merge         "mean" of probabilities, "logit_mean" (mean of logits, then the activation), "max" of
                  probabilities, "attention" (mean in which a pass counts as much as its own probability)
    pass_weights  weight of each pass in a mean, in order; empty = all alike
    flip          chance 0..1 that a pass is mirrored in time
    domain        "frames" = cut the front end's array; "wave" = cut the waveform before the front end,
                  lengths in samples
    """

    fe: Source = FrontEnd()
    merge_rule: str = "mean"
    pass_weights: tuple[float, ...] = ()
    flip: float = 0.0
    domain: str = "frames"

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name, least) < least:
                raise SpecError(f"view.{name}: {getattr(self, name)} is too small; give at least {least}")
        first_is_zero = bool(self.pass_weights) and not self.pass_weights[0]
        if not 0 <= self.flip <= 1 or first_is_zero or any(w < 0 for w in self.pass_weights):
            raise SpecError("view: flip lies in 0..1, pass_weights are not negative and the first is above 0")
        for name, choices in (("domain", ("frames", "wave")), ("short", SIDES)):
            value = getattr(self, name, choices[0])
            if value not in choices:
                raise SpecError(f"view.{name}: {value!r} is unknown; {did_you_mean(value, choices)}")

    @property
    def cut_frames(self) -> int | None:
        """Length of every cut in the view's domain; None = the clip's own."""
        return getattr(self, "frames", None)

    @property
    def fixed(self) -> int | None:
        """Frames of every cut as the finish sees it; None = each clip's own length."""
        length = self.cut_frames
        if length is None or not self.fe.time:
            return self.fe.fixed
        if self.domain == "frames":
            return length
        return None if isinstance(self.fe, OwnFrontEnd) else self.fe.max_frames(length)

    @property
    def key(self) -> str:
        """Name of the class and a hash of its values, the front end aside: equal keys cut alike."""
        values = repr([(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "fe"])
        return f"{type(self).__name__.lower()}-{hashlib.sha256(values.encode()).hexdigest()[:12]}"

    def count(self, frames: int) -> int:
        """Upper bound of P for a clip of `frames` frames (domain "wave": samples)."""
        return getattr(self, "passes", 1)

    def plan(self, x: np.ndarray, row_id: str, seed: int = 0, streams: Streams | None = None) -> Cuts:
        """The passes over a clip's array[C, M, T]; the same for the same (row id, seed), prepared or not."""
        if not self.fe.time:
            return Cuts(starts=np.zeros(1, np.int64), length=x.shape[2])
        streams = streams or Streams(row_id=row_id, seed=seed)
        cuts = self._plan(x, streams)
        if self.flip:
            turned = [streams.of(-1 - p).random() < self.flip for p in range(len(cuts))]
            cuts = replace(cuts, flips=np.array(turned))
        return cuts

    def cut(self, x: np.ndarray, row_id: str, seed: int = 0) -> np.ndarray:
        """array[P, C, M, t] of a clip's array[C, M, T], same dtype."""
        cuts = self.plan(x, row_id, seed)
        return np.stack(cuts.apply(x, self._pad(x) if cuts.padded(x.shape[2]) else 0.0))

    def cut_wave(self, wave: np.ndarray, row_id: str, seed: int = 0) -> list[np.ndarray]:
        """Waves f32[S'] cut from a wave f32[S] at the front end's rate."""
        cuts = self._plan(wave[None, None], Streams(row_id=row_id, seed=seed))
        return [part[0, 0] for part in cuts.apply(wave[None, None], self._pad(wave[None, None]))]

    def _plan(self, x: np.ndarray, streams: Streams) -> Cuts:
        return Cuts(starts=np.zeros(1, np.int64), length=x.shape[2])

    def _weights(self, passes: int) -> np.ndarray:
        return np.asarray(self.pass_weights[:passes] or np.ones(passes), np.float64)

    def _pad(self, x: np.ndarray) -> float:
        return 0.0 if self.domain == "wave" else pad_value(x, self.fe)

    def merge(self, logits: np.ndarray, activate: Activate) -> np.ndarray:
        """f64[K] probabilities of one row from logits f[P, K], or f[P, n, K] where each pass has n answers;
        `activate` makes logits [n, K] probabilities.

        Raises  SpecError when pass_weights has fewer values than passes
        """
        weights = self._checked_weights(len(logits))
        return MERGES[self.merge_rule](*flat(np.asarray(logits, np.float64), weights), activate)

    def shares(self, passes: int) -> np.ndarray:
        """f64[passes], the share of each pass in a mean. Raises SpecError when pass_weights has too few."""
        weights = self._checked_weights(passes)
        shares: np.ndarray = weights / weights.sum()
        return shares

    def _checked_weights(self, passes: int) -> np.ndarray:
        weights = self._weights(passes)
        if len(weights) != passes:
            raise SpecError(f"view.pass_weights: {len(weights)} for {passes} passes; give one per pass")
        return weights


@dataclass(frozen=True, kw_only=True)
class Full(View):
    """The whole clip at its own length, one pass."""


@dataclass(frozen=True, kw_only=True)
class Tiles(View):
    """Overlapping tiles that cover the clip exactly: max(1, ceil((T - (frames - step)) / step)) of them.

    The clip is first padded to fit, left floor(extra / 2), with the front end's pad value. Source: argus
    src/tiles.py.
    """

    frames: int = 256
    step: int = 128

    def count(self, frames: int) -> int:
        return max(1, -(-(frames - (self.frames - self.step)) // self.step))

    def _plan(self, x: np.ndarray, streams: Streams) -> Cuts:
        count = self.count(x.shape[2])
        extra = (count - 1) * self.step + self.frames - x.shape[2]
        return Cuts(starts=np.arange(count) * self.step - extra // 2, length=self.frames)


@dataclass(frozen=True, kw_only=True)
class _Cuts(View):
    """Cuts of one length; a clip that is shorter is padded on the side `short` (random: drawn per pass)."""

    frames: int = 256
    short: str = "centre"

    def _left(self, frames: int, rng: np.random.Generator) -> int:
        """Frames of padding before a clip of `frames` frames; 0 where the clip is long enough."""
        missing = self.frames - frames
        if missing <= 0:
            return 0
        random = int(rng.integers(missing + 1)) if self.short == "random" else 0
        return {"centre": missing // 2, "right": 0, "left": missing, "random": random}[self.short]


@dataclass(frozen=True, kw_only=True)
class Chunks(_Cuts):
    """Cuts at regular intervals from the first to the last frame; one where the clip is no longer than a cut.

    passes = 8 fixed (Viel), or stride > 0: ceil((T - frames) / stride) + 1 (ebouteillon: 128 every 48).
    """

    passes: int = 8
    stride: int = 0

    def count(self, frames: int) -> int:
        if frames <= self.frames:
            return 1
        return -(-(frames - self.frames) // self.stride) + 1 if self.stride else self.passes

    def _plan(self, x: np.ndarray, streams: Streams) -> Cuts:
        frames = x.shape[2]
        left = self._left(frames, streams.of(0)) if frames < self.frames else 0
        last = max(frames, self.frames) - self.frames
        starts = np.linspace(0, last, self.count(frames)).round().astype(np.int64) - left
        return Cuts(starts=starts, length=self.frames)


@dataclass(frozen=True, kw_only=True)
class Positions(_Cuts):
    """Start, middle and end (qrfaction; of a shorter clip the left pad); or the middle moved by each of
    `shifts`: with a context around windows `shifts = [0]` is the row's own window, for a member without one.
    """

    frames: int = 220500
    passes: int = 3
    shifts: tuple[int, ...] = ()

    def count(self, frames: int) -> int:
        return len(self.shifts) or self.passes

    def _plan(self, x: np.ndarray, streams: Streams) -> Cuts:
        spare = x.shape[2] - self.frames
        places = abs(spare) * np.arange(self.passes) // max(1, self.passes - 1) * (1 if spare >= 0 else -1)
        return Cuts(starts=spare // 2 + np.array(self.shifts) if self.shifts else places, length=self.frames)


@dataclass(frozen=True, kw_only=True)
class Crops(_Cuts):
    """Random cuts, one per pass; mask_bins and mask_frames blank one band each (ERC2019: 12 and 12)."""

    frames: int = 128
    passes: int = 5
    mask_bins: int = 0
    mask_frames: int = 0

    def _chances(self, x: np.ndarray) -> np.ndarray | None:
        """f64[T - frames + 1], cumulated chance of each start of a cut; None = all alike."""
        return None

    def _start(self, spare: int, chances: np.ndarray | None, rng: np.random.Generator) -> int:
        """Where a cut begins, 0 to `spare`."""
        return int(rng.integers(spare + 1))

    def _plan(self, x: np.ndarray, streams: Streams) -> Cuts:
        return self._draw(x, [streams.of(p) for p in range(self.passes)])

    def _draw(self, x: np.ndarray, rngs: list[np.random.Generator]) -> Cuts:
        frames = x.shape[2]
        spare = max(0, frames - self.frames)
        chances = self._chances(x)
        masked = self.mask_bins or self.mask_frames
        starts = np.zeros(len(rngs), np.int64)
        masks = np.zeros((len(rngs), 4), np.int64)
        for p, rng in enumerate(rngs):
            left = self._left(frames, rng)
            starts[p] = self._start(spare, chances, rng) - left
            if masked:
                row = int(rng.integers(max(1, x.shape[1] - self.mask_bins + 1)))
                column = int(rng.integers(max(1, self.frames - self.mask_frames + 1)))
                masks[p] = row, row + self.mask_bins, column, column + self.mask_frames
        return Cuts(starts=starts, length=self.frames, masks=masks if masked else None)


@dataclass(frozen=True, kw_only=True)
class StrengthCrops(Crops):
    """Random cuts where the clip is strong; start 0 in a clip of constant strength.

    The chance of a start is the cut's sum over rows below `bins`, less the least such sum. It is summed in
    float64 on the host: a sum in float32 would move some starts.
    Source: FAT2019's 7th place (Shirogane): 128 frames, rows 0..83, 20 passes, flip 0.5.
    """

    passes: int = 20
    bins: int = 84

    def _chances(self, x: np.ndarray) -> np.ndarray | None:
        if x.shape[2] <= self.frames:
            return None
        energy = np.concatenate([[0.0], x[:, : self.bins].sum(axis=(0, 1), dtype=np.float64).cumsum()])
        strength = energy[self.frames :] - energy[: -self.frames]
        chances: np.ndarray = (strength - strength.min()).cumsum()
        return None if chances[-1] <= 1e-9 * max(1.0, abs(energy[-1])) else chances

    def _start(self, spare: int, chances: np.ndarray | None, rng: np.random.Generator) -> int:
        if chances is None:
            return 0
        return int(np.searchsorted(chances, rng.random() * chances[-1], side="right"))


@dataclass(frozen=True, kw_only=True)
class Zoom(Crops):
    """One plain random cut, then `passes` - 1 that are zoomed at the four corners in turn and warped.

    The merge gives the plain pass the share `plain`, the others the rest. Source: simongrest (fastai v1 TTA
    without flips): 1 + 8 passes, zoom 1.1, symmetric warp within 0.05 at chance 0.9, shares 0.4 and 0.6.
    Bilinear, mirrored at the edges.
    """

    frames: int = 256
    short: str = "random"
    passes: int = 9
    zoom: float = 1.1
    warp: float = 0.05
    warp_chance: float = 0.9
    plain: float = 0.4

    def _plan(self, x: np.ndarray, streams: Streams) -> Cuts:
        rngs = [streams.of(p) for p in range(self.passes)]
        return replace(self._draw(x, rngs), warps=draw_warps(rngs, self.zoom, self.warp, self.warp_chance))

    def _weights(self, passes: int) -> np.ndarray:
        rest = (1 - self.plain) / max(1, passes - 1)
        return np.array([self.plain if passes > 1 else 1.0] + [rest] * (passes - 1))


VIEWS: dict[str, type[View]] = {
    "full": Full,
    "tiles": Tiles,
    "chunks": Chunks,
    "positions": Positions,
    "crops": Crops,
    "strength_crops": StrengthCrops,
    "zoom": Zoom,
}


def keys(kind: str) -> dict[str, object]:
    """TOML key -> default of a view kind, beside `kind` itself."""
    found = {f.name: None if f.default is MISSING else f.default for f in fields(VIEWS[kind])}
    del found["fe"]
    return {"merge": found.pop("merge_rule"), **found}


def build(spec: Mapping[str, object], fe: Source) -> View:
    """View of {kind = "tiles", frames = 256, step = 128, merge = "mean"} bound to the front end.

    For a front end without a time axis (statistics, length) every kind gives one pass: the caller repeats it
    for every pass of the input that has one.

    Raises  SpecError naming the unknown kind, key or value
    """
    own = {"kind": "full", "merge": "mean", **spec}
    kind = str(own.pop("kind"))
    if kind not in VIEWS:
        raise SpecError(f"view.kind: {kind!r} is unknown; {did_you_mean(kind, VIEWS)}")
    known = keys(kind)
    for key in own:
        if key not in known:
            raise SpecError(f"view.{key}: unknown key of kind {kind!r}; {did_you_mean(key, known)}")
    merge = own.pop("merge")
    if not isinstance(merge, str) or merge not in MERGES:
        raise SpecError(f"view.merge: {merge!r} is unknown; {did_you_mean(str(merge), MERGES)}")
    view = replace(load(VIEWS[kind], {**own, "merge_rule": merge}, "view"), fe=fe)
    if view.domain == "wave" and fe.time and (fe.uneven or view.cut_frames is None):
        raise SpecError('view.domain: "wave" wants a kind with `frames`, and cuts of one length: a front end '
                        f'without trim_db, of scope "window"; {fe.name} is not such a one')
    return view
