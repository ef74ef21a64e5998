"""The trial of an ensemble's own front ends, and of what own files may import.

Owns what the user's function is tried on before a bundle is written, and how many seconds and frames it then
takes per second of audio. How it is called is kernel.sound.own's.
"""
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kernel.errors import ClipError, SpecError, text_of
from kernel.sound.own import OwnFrontEnd, open_front_end
from kernel.spec import Ensemble
from kernel.spec.own_files import imports_of, with_siblings

from . import watched

TRIALS = (("silence", 3.0), ("0.1 s", 0.1), ("3 s", 3.0), ("20 s", 20.0))
HOLD_S = 1.0  # a call that keeps the interpreter longer is named
TICK_S = 0.005
# What can be imported in Kaggle's notebooks, by its name in code. Source: docker-python at its Colab base of
# 14 May 2026 (backend-info 6f38803) and its requirements.
IMAGE = frozenset(
    "torch torchaudio torchvision torchcodec triton numpy scipy pandas librosa soundfile soxr audioread "
    "psutil joblib timm safetensors tqdm sklearn numba llvmlite transformers tokenizers huggingface_hub "
    "tensorflow keras jax jaxlib flax matplotlib pyarrow h5py lightgbm xgboost polars yaml PIL cv2 skimage "
    "einops networkx sympy requests packaging kernel".split()
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the trial of a front end has shown.

    seconds            of computing per second of audio, on one thread
    held_s             longest time for which one call kept the interpreter to itself
    frames_per_second  most frames per second of audio, the first one of each array aside
    """

    seconds: float
    held_s: float
    frames_per_second: float

    def tell(self, name: str) -> str:
        """One line for the build's output."""
        held = ""
        if self.held_s > HOLD_S:
            held = (f"; it holds the interpreter for up to {self.held_s:.1f} s of 20 s of audio, so loaders "
                    "wait for each other (no hang)")
        return (f"front end {name}: own function, {self.seconds:.4f} s per second of audio on one thread, "
                f"{self.frames_per_second:.2f} frames per second{held}")


def make_wave(kind: str, seconds: float, rate: int) -> np.ndarray:
    """f32[S]: a chirp in noise, or silence."""
    samples = int(seconds * rate)
    if kind == "silence":
        return np.zeros(samples, np.float32)
    t = np.arange(samples) / rate
    noise = np.random.RandomState(0).standard_normal(samples)
    return (0.4 * np.sin(2 * np.pi * (200 * t + 100 * t * t)) + 0.05 * noise).astype(np.float32)


class _Ticks:
    """Measures the longest time for which a thread that only wants to wake up could not."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(TICK_S):
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - before - TICK_S)
            before = now

    def __enter__(self) -> "_Ticks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _call(fe: OwnFrontEnd, kind: str, wave: np.ndarray) -> np.ndarray:
    """The front end's array. Raises SpecError."""
    before = wave.copy()
    try:
        array = fe(wave)
    except (MemoryError, KeyboardInterrupt):
        raise
    except ClipError as error:
        raise SpecError(f"frontends.{fe.name}: on {kind}: {error}") from error
    except BaseException as error:  # A user's function may raise anything.
        raise SpecError(
            f"frontends.{fe.name}: {fe.file} fails on {kind} ({len(wave)} samples at {fe.rate} Hz): "
            f"{type(error).__name__}: {text_of(error)}; every length from 0.1 s on has to give an array"
        ) from error
    assert np.array_equal(wave, before)
    return array


def _in_thread(call: Callable[[], np.ndarray]) -> np.ndarray:
    """What `call` gives in another thread."""
    results: list[np.ndarray] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def try_own(fe: OwnFrontEnd) -> Trial:
    """What a front end costs, after it gave the same finite arrays of the right shape three times.

    Raises  SpecError naming the front end, the sound and what was wrong
    """
    seconds = 0.0
    frames = 0.0
    with _Ticks() as ticks:
        for kind, length in TRIALS:
            wave = make_wave(kind, length, fe.rate)
            first = _call(fe, kind, wave)
            ticks.longest_s = 0.0  # Imports and first calls compile; they are paid once.
            began = time.perf_counter()
            again = _call(fe, kind, wave)
            seconds = (time.perf_counter() - began) / length  # That of the longest counts: it comes last.
            other = _in_thread(lambda k=kind, w=wave: _call(fe, k, w))  # type: ignore[misc]
            for array, where in ((again, "a second time"), (other, "in a second thread")):
                if array.shape != first.shape or not np.array_equal(array, first):
                    raise SpecError(
                        f"frontends.{fe.name}: {fe.file} gives another array {where} for the same {kind}; "
                        "seed what is random, and keep nothing between calls"
                    )
            frames = max(frames, (first.shape[2] - 1) / length)
        return Trial(seconds=seconds, held_s=ticks.longest_s, frames_per_second=max(frames, 1.0))


def try_all(path: Path, here: Ensemble, shipped: Ensemble, say: Callable[[str], None]) -> Ensemble:
    """`shipped` with the frames per second of its own front ends, once all front ends are known to be right.

    path  of the TOML, for messages;  here: the ensemble with own files where they lie on this machine

    Raises  SpecError naming file, table and key
    """
    known = dict(shipped.frontends)
    for name, table in here.frontends.items():
        try:
            fe = open_front_end(table, name)
            if isinstance(fe, OwnFrontEnd):
                with watched.limited(f"the trial of front end {name!r}"):
                    trial = try_own(fe)
                say(trial.tell(name))
                known[name] = {"frames_per_second": round(trial.frames_per_second, 3), **known[name]}
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from error
    return replace(shipped, frontends=known)


def check_imports(path: Path, where: str) -> None:
    """Nothing, when Kaggle's notebooks have all that the file, and what it imports beside it, imports.

    Imports inside `try` may fail, and are not asked about.

    where  the key that names the file, for the message

    Raises  SpecError
    """
    held = with_siblings(path)
    own = {Path(name).parts[0].removesuffix(".py") for name in held}
    for name, file in held.items():
        top = Path(name).parts[0].removesuffix(".py")
        if name != path.name and (top in IMAGE or top in sys.stdlib_module_names):
            raise SpecError(f"{where}: {name} beside it hides the module {top!r}; rename it")
        for module, guarded in imports_of(file):
            wanted = module.split(".")[0]
            if guarded or not wanted or wanted in own | IMAGE or wanted in sys.stdlib_module_names:
                continue
            raise SpecError(
                f"{where}: {name} imports {wanted!r}, which Kaggle's notebooks lack; put its Python files "
                f"beside {path.name} (they ride along), or import it inside `try`"
            )
