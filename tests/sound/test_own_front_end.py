"""A front end of the user's own: its call, its checks, what rides along, and whole runs with it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest

from builder import assembly, own_fronts
from kernel import own_files, spec
from kernel.bundle import open_bundle
from kernel.errors import ClipEmpty, ClipError, ClipUnreadable, SpecError
from kernel.inference import views
from kernel.inference.devices import Device
from kernel.inference.member import load_net, predict_alone
from kernel.inference.recipe import CutFirst, build_recipe
from kernel.sound.decode import Clip
from kernel.sound.own import OwnFrontEnd, open_front_end
from kernel.sound.rows import Row
from kernel.spec import load_manifest
from tests.helpers import REPOSITORY
from tests.helpers.bundles import order
from tests.helpers.ensemble_runs import make_input, read_scores, run_clean, write_sample
from tests.helpers.guard_runs import run_guard
from tests.helpers.stores import GB, Producer, RiggedStore, row_of

EXAMPLES = REPOSITORY / "ensembles" / "examples"
RATE = 8000
PLAIN = """
import numpy as np

def mel(wave):
    frames = 1 + len(wave) // 100
    return np.resize(wave, (4, frames)) + np.arange(4, dtype=np.float32)[:, None]
"""


def own(folder: Path, text: str = PLAIN, **keys: Any) -> OwnFrontEnd:
    """The front end of a file mine.py with this text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(text)
    fe = open_front_end({"file": f"{folder / 'mine.py'}:mel", "rate": RATE, "bins": 4, **keys}, "mine")
    assert isinstance(fe, OwnFrontEnd)
    return fe


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).standard_normal(samples).astype(np.float32)


# One call


@pytest.mark.parametrize(
    "tail, channels, shape",
    [
        ("return x", 1, (1, 4, 41)),
        ("return np.stack([x, x, x])", 3, (3, 4, 41)),
        ("import torch; return torch.from_numpy(x).requires_grad_() * 2", 1, (1, 4, 41)),
        ("return x.astype(np.float64)", 1, (1, 4, 41)),
        ("return (x > 0).astype(int)", 1, (1, 4, 41)),
        ("wave[:] = 0; return x", 1, (1, 4, 41)),
    ],
)
def test_arrays_and_tensors_are_taken(
    tmp_path: Path, tail: str, channels: int, shape: tuple[int, ...]
) -> None:
    text = PLAIN.replace("return np", "x = np").rstrip() + f"\n    {tail}\n"
    fe = own(tmp_path, text, channels=channels)
    wave = noise(4000)
    before = wave.copy()
    array = fe(wave)
    assert array.shape == shape and array.dtype == np.float32 == fe.dtype and array.flags.c_contiguous
    assert np.array_equal(wave, before)


@pytest.mark.parametrize(
    "tail, message",
    [
        ("return x[:3]", r"gave \[3, 41\] for 4000 samples, expected \[4, T\]"),
        ("return x.T", r"gave \[41, 4\]"),
        ("return x[:, :0]", r"gave \[4, 0\]"),
        ("return x[0, 0]", r"gave \[\]"),
        ("return None", r"gave \[\]"),
        ("return np.log(x * 0)", "NaN or infinity"),
        ("return x + 1j", "complex"),
        ("return x.astype('U4')", "U"),
    ],
)
def test_wrong_arrays_cost_the_clip_and_say_what_was_wrong(tmp_path: Path, tail: str, message: str) -> None:
    fe = own(tmp_path, PLAIN.replace("return np", "x = np").rstrip() + f"\n    {tail}\n")
    with pytest.raises(ClipUnreadable, match=message), np.errstate(all="ignore"):
        fe(noise(4000))
    with pytest.raises(ClipEmpty):
        fe(np.zeros(0, np.float32))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"bin": 3}, "frontends.mine.bin: unknown key; did you mean 'bins'"),
        ({"rate": "8000"}, "frontends.mine.rate"),
        ({"bins": 0}, "positive"),
        ({"file": "mine.py"}, 'write "my_frontend.py:function"'),
        ({"file": "mine:mel"}, "my_frontend.py:function"),
        ({"stored": "float64"}, "stored"),
        ({"pad_value": "min"}, "clip_min"),
        ({"frames_per_second": 0.0}, "leave it out"),
        ({"hop": 512}, "unknown key"),
    ],
)
def test_wrong_keys_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        open_front_end({"file": "mine.py:mel", "rate": RATE, "bins": 4, **keys}, "mine")


def test_the_key_knows_the_code_and_all_that_it_imports(tmp_path: Path) -> None:
    text = "import settings\n" + PLAIN
    (tmp_path / "settings.py").write_text("GAIN = 1\n")
    key = own(tmp_path, text).key
    assert own(tmp_path, text).key == key == own(tmp_path, text, frames_per_second=3.0).key
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    assert own(tmp_path / "elsewhere", text).key == key  # where it lies is nobody's business
    assert own(tmp_path, text, stored="float16").key != key
    (tmp_path / "settings.py").write_text("GAIN = 2\n")
    assert own(tmp_path, text).key != key
    assert own(tmp_path, text + "# changed\n").key != key


# Files beside it


def test_a_view_may_cut_the_wave_before_it(tmp_path: Path) -> None:
    fe = own(tmp_path)
    view = views.build({"kind": "tiles", "frames": 4000, "step": 4000, "domain": "wave"}, fe)
    assert view.fixed is None and CutFirst(fe, view).of_row(noise(9000), "x").shape == (3, 4, 41)


def test_a_build_names_file_table_and_key(tmp_path: Path) -> None:
    text = (EXAMPLES / "by_keys.toml").read_text()
    for old, new, message in (
        ("hop =", "hop_length =", "bad.toml: frontends.mine.hop_length: .*did you mean 'hop'"),
        ('"zeros"', '"zero"', "bad.toml: frontends.mine: edges = 'zero' is unknown"),
        ("n_fft = 2048", "n_fft = 2048\nwin_length = 4096", "bad.toml: frontends.mine: win_"),
    ):
        (tmp_path / "bad.toml").write_text(text.replace(old, new))
        with pytest.raises(SpecError, match=message):
            assembly.build(order(tmp_path / "o", ensemble=tmp_path / "bad.toml"), say=lambda _: None)


def test_siblings_and_packages_ride_along(tmp_path: Path) -> None:
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    (tmp_path / "parts" / "__init__.py").write_text("from .bank import BANK\n")
    (tmp_path / "parts" / "bank.py").write_text("BANK = 5.0\n")
    (tmp_path / "parts" / "deep" / "more.py").write_text("")
    (tmp_path / "settings.py").write_text("import bystander\nGAIN = 2.0\n")
    (tmp_path / "bystander.py").write_text("")
    (tmp_path / "stranger.py").write_text("")
    text = "from parts import BANK\nimport settings\n" + PLAIN.replace(
        "return ", "return BANK * settings.GAIN * "
    )
    fe = own(tmp_path, text)
    assert list(own_files.with_siblings(tmp_path / "mine.py")) == [
        "bystander.py",
        "mine.py",
        "parts/__init__.py",
        "parts/bank.py",
        "parts/deep/more.py",
        "settings.py",
    ]
    assert fe(noise(4000)).shape == (1, 4, 41)


def test_two_files_with_siblings_of_one_name_each_get_their_own(tmp_path: Path) -> None:
    text = "import settings\n" + PLAIN.replace("return ", "return settings.GAIN * ")
    means = []
    for gain in (1, 100):
        folder = tmp_path / str(gain)
        folder.mkdir()
        (folder / "settings.py").write_text(f"GAIN = {gain}\n")
        means.append(float(np.abs(own(folder, text)(noise(4000))).mean()))
    assert means[1] > 20 * means[0]


@pytest.mark.parametrize(
    "line, message",
    [
        ("import essentia", "mine.py imports 'essentia', which Kaggle's notebooks lack"),
        ("from . import settings", "write `import name`"),
        ("def broken(:", "cannot be read as Python"),
        ("import torch as t; import nnAudio.features", "'nnAudio'"),
    ],
)
def test_imports_that_kaggle_lacks_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(line + "\n")
    with pytest.raises(SpecError, match=message):
        own_fronts.check_imports(tmp_path / "mine.py", "frontends.mine.file")


def test_imports_inside_try_and_siblings_are_fine_but_none_may_hide_a_library(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "try:\n    import essentia\nexcept ImportError:\n    essentia = None\nimport scipy, mine_too\n"
    )
    (tmp_path / "mine_too.py").write_text("import os\n")
    own_fronts.check_imports(path, "x")
    path.write_text("import random\n")
    (tmp_path / "random.py").write_text("")
    with pytest.raises(SpecError, match="hides the module 'random'"):
        own_fronts.check_imports(path, "x")


# The builder's trial


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "def mel(w): raise ValueError('no hay')",
            r"fails on silence \(24000 samples at 8000 Hz\): ValueError: no hay",
        ),
        ("import numpy as np\ndef mel(w): return np.random.rand(4, 9)", "another array a second time"),
        (
            "import numpy as np, threading as t\n"
            "def mel(w): return np.full((4, 9), float(t.current_thread() is t.main_thread()))",
            "another array in a second thread",
        ),
        ("def mel(w): return w[:24000].reshape(4, 6000)", r"on 0.1 s"),
        ("import numpy as np\ndef mel(w): return np.log(np.zeros((4, 9)))", "on silence: .*NaN"),
        ("def mel(w): raise SystemExit(3)", "SystemExit: 3"),
        ("mel = 3", "no function 'mel'"),
        ("def melt(w): return w", "did you mean 'melt'"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_the_trial_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message), np.errstate(all="ignore"):
        own_fronts.try_own(own(tmp_path, text))


def test_the_trial_measures_frames_and_names_a_function_that_holds_the_interpreter(tmp_path: Path) -> None:
    trial = own_fronts.try_own(own(tmp_path))
    assert trial.frames_per_second == pytest.approx(80.0) and trial.seconds > 0
    fe = own(tmp_path, frames_per_second=trial.frames_per_second)
    for samples in (1, 800, 123_456):
        assert fe(noise(samples)).shape[2] <= fe.max_frames(samples) <= 1.01 * (3 + samples / 100)
    held = own_fronts.Trial(seconds=0.5, held_s=9.0, frames_per_second=80.0).tell("mine")
    assert "0.5000 s per second" in held and "holds the interpreter for up to 9.0 s" in held


def test_the_store_keeps_it_as_any_other(tmp_path: Path) -> None:
    class Calls(Producer):
        def __call__(self, fe: Any, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray | ClipError]]:
            for row in rows:
                self.clock.now += self.seconds
                self.made.append(row.id)
                yield row, fe.of_row(noise(row.clip.channels), row.id)

    rows = [row_of(i, 400 + 100 * i) for i in range(6)]
    found = []
    for name, (ram, disk) in {"ram": (GB, 0), "disk": (0, GB), "none": (0, 0)}.items():
        for frames in (None, 80.0):  # unknown: the store reserves once the array is there
            store = RiggedStore(tmp_path / f"{name}{frames}", ram, disk, producer=Calls())
            fe = own(tmp_path, **({} if frames is None else {"frames_per_second": frames}))
            store.warm(fe, rows)
            found.append([store.get(fe, row).tobytes() for row in rows])
            assert len(store.producer.made) == len(rows) or name == "none"
            store.check_books()
            store.close()
    assert all(arrays == found[0] for arrays in found)


# Whole runs


def example(name: str, out: Path) -> tuple[spec.Ensemble, Path, list[str]]:
    """Ensemble, bundle and the build's output of an example."""
    said: list[str] = []
    path = EXAMPLES / f"{name}.toml"
    assembly.build(order(out, ensemble=path), say=said.append)
    return spec.load_ensemble(path), out / "bundle", said


class Waves:
    """A store without memory: noise of each row's own length."""

    def get(self, fe: Any, row: Row) -> np.ndarray:
        return fe.of_row(noise(int(float(row.id) * fe.rate)), row.id)


def test_librosa_in_a_file_of_one_s_own_scores_as_the_keys_do(tmp_path: Path) -> None:
    scores = {}
    for name in ("own_frontend", "by_keys"):
        ensemble, bundle, said = example(name, tmp_path / f"built_{name}")
        manifest = load_manifest((bundle / "manifest.json").read_bytes())
        if name == "own_frontend":
            assert any("front end mine: own function" in line for line in said)
            front = manifest.ensemble.frontends["mine"]
            assert front["file"] == "librosa_mel.py:mel" and front["frames_per_second"] == pytest.approx(62.5)
            shipped = {"kernel/custom/librosa_mel.py", "kernel/custom/mel_settings.py"}
            assert shipped <= set(manifest.wheel.files)
            front = {**front, "file": f"{EXAMPLES / 'librosa_mel.py'}:mel"}
            ensemble = replace(ensemble, frontends={"mine": front})
        state = open_bundle(bundle, manifest).load_state(manifest.nets[0])
        member = ensemble.members[0]
        device = Device(name="cpu", about="test")
        net = load_net(build_recipe(ensemble, member), state, 3, device, spec.Cost())
        rows = [Row(id=seconds, clip=Clip(id=seconds)) for seconds in ("0.3", "2", "5.5")]
        scores[name] = np.stack([predict_alone(net, Waves(), row) for row in rows])
    assert np.abs(scores["own_frontend"] - scores["by_keys"]).max() <= 1e-5
    assert np.abs(np.diff(scores["by_keys"], axis=0)).max() > 1e-4


@pytest.mark.whole  # librosa compiles itself anew in every engine: some ten seconds
def test_whole_runs_by_librosa_and_by_keys_give_the_same_submission(tmp_path: Path) -> None:
    scores = {}
    for name in ("own_frontend", "by_keys"):
        ensemble, bundle, _ = example(name, tmp_path / f"built_{name}")
        make_input(tmp_path / name, ensemble, [0.3, 2.0, 5.5])
        scores[name] = read_scores(run_clean(tmp_path / name, bundle, seconds=400.0))
    for id, row in scores["own_frontend"].items():
        assert np.abs(row - scores["by_keys"][id]).max() <= 1e-5


def test_killed_restarted_and_shuffled_runs_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "bank.py").write_text("BANK = 1.0\n")
    text = "import os\nfrom parts.bank import BANK\n" + PLAIN.replace("4", "16").replace(
        "def mel(wave):",
        """def mel(wave):
    mark = os.environ.get("STRIKE")
    if mark and not os.path.exists(mark):
        open(mark, "w").close()
        os._exit(9)""",
    )
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "x.toml").write_text("""name = "x"
classes = ["a", "b"]
[frontends.mine]
file = "mine.py:mel"
rate = 8000
bins = 16
[[members]]
name = "plain"
family = "simple_cnn"
params = { base = 4, channels = 1 }
frontend = "mine"
""")
    assembly.build(order(tmp_path / "o", ensemble=tmp_path / "x.toml"), say=lambda _: None)
    ensemble = spec.load_ensemble(tmp_path / "x.toml")
    ids = make_input(tmp_path / "plain", ensemble, [0.5, 3.0, 1.0])
    plain = run_clean(tmp_path / "plain", tmp_path / "o" / "bundle")
    shutil.copytree(tmp_path / "plain" / "in", tmp_path / "struck" / "in")
    write_sample(tmp_path / "struck" / "in", ["fname", *ensemble.classes], ids[::-1])
    struck = run_guard(
        tmp_path / "struck",
        tmp_path / "o" / "bundle",
        "--device",
        "cpu",
        "--loaders",
        "2",
        seconds=100.0,
        STRIKE=str(tmp_path / "mark"),
    )
    assert struck.code == 0 and (tmp_path / "mark").exists() and struck.faults
    assert sorted(struck.submission.splitlines()) == sorted(plain.submission.splitlines())


def test_the_example_s_function_is_librosa_s() -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        fe = open_front_end({"file": f"{EXAMPLES / 'librosa_mel.py'}:mel", "rate": 32000, "bins": 64}, "mine")
        wave = noise(20_000)
        power = librosa.feature.melspectrogram(
            y=wave, sr=32000, n_fft=2048, hop_length=512, n_mels=64, fmin=50, fmax=14000, htk=True, norm=None
        )
        want = librosa.power_to_db(power, ref=np.max)
        assert np.array_equal(fe.of_row(wave, "x")[0], want)
    finally:
        sys.path.remove(str(EXAMPLES))
