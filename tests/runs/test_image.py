"""A whole run in an environment that has the Kaggle image's packages and nothing else."""
from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.guard_runs import run_guard
from tests.helpers.image import TABLE, closure, importable
from tests.helpers.whole_runs import make_place

# Runs before anything else in that environment, in the guard and in the engine alike. What the image lacks is
# not there, and whoever in kernel/ asked for it is written down.
CUSTOMISE = """
import sys
ALLOWED = set(sys.stdlib_module_names) | {allowed!r} | {{"kernel", "sitecustomize", "usercustomize"}}
class OnlyTheImage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ALLOWED or name.startswith("_sysconfigdata"):
            return None
        frame = sys._getframe(1)
        while frame and frame.f_globals.get("__name__", "").startswith(("importlib", "_frozen_importlib")):
            frame = frame.f_back
        asker = frame.f_globals.get("__name__", "") if frame else ""
        with open({log!r}, "a") as log:
            log.write(asker + " " + name + "\\n")
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, OnlyTheImage())
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Interpreter with this one's packages behind the hook; tmp_path/asked.txt names who asked for what."""
    root = tmp_path / "image"
    site = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    (root / "bin").mkdir()
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (root / "bin" / "python").symlink_to(base if base.exists() else Path(sys.executable).resolve())
    (root / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    own = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "packages.pth").write_text("\n".join(own) + "\n")
    (site / "sitecustomize.py").write_text(
        CUSTOMISE.format(allowed=importable(list(TABLE)), log=str(tmp_path / "asked.txt"))
    )
    return root / "bin" / "python"


def test_a_whole_run_needs_nothing_but_the_image(tmp_path: Path, image: Path, tiny_bundle: Path) -> None:
    place = make_place(tmp_path / "place", 4)
    other_python = ("/bin/sh", "-c", 'shift; exec "$0" "$@"', str(image))  # in the place of this interpreter
    run = run_guard(place.folder, tiny_bundle / "bundle", seconds=40, prefix=other_python)
    assert run.code == 0 and run.report["faults"] == [] and run.report["prior_rows"] == 0, run.out[-3000:]
    assert (run.working / "report.html").exists()
    asked = (tmp_path / "asked.txt").read_text().splitlines() if (tmp_path / "asked.txt").exists() else []
    assert not [line for line in asked if line.split()[0].split(".")[0] == "kernel"], (
        "the kernel asked for what the image lacks"
    )


def test_the_hook_hides_what_the_image_lacks(tmp_path: Path, image: Path) -> None:
    code = "import numpy, torch\ntry:\n    import hypothesis\nexcept ImportError:\n    print('hidden')"
    done = subprocess.run([image, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "hidden", done.stderr
    assert "hypothesis" in (tmp_path / "asked.txt").read_text()


def test_the_closure_follows_requirements() -> None:
    found = closure(["librosa"])
    assert {"librosa", "numpy", "soundfile", "soxr"} <= found
    assert not {"pytest", "torch"} & found
    assert {"librosa", "soundfile", "numba", "sklearn"} <= importable(["librosa"])
