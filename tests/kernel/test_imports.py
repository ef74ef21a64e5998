"""Who may import whom: one direction inside kernel/, only what the Kaggle image has, and nothing that can
unpickle.
"""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

KERNEL = REPOSITORY / "kernel"
# Lowest first: a room, or a module beside the rooms, imports only from itself and from lower floors
FLOORS = (
    ("errors",),
    ("units", "files"),
    ("spec", "memory"),
    ("limits", "bundle", "pin"),
    ("order",),
    ("sound", "models"),
    ("cache", "inference", "scores"),
    ("report",),
    ("engine",),
    ("rehearsal", "run"),
    ("library",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
LIGHT = (
    "spec",
    "limits",
    "order",
    "engine.plan",
    "engine.length_groups",
    "scores.blend",
    "scores.levels",
    "scores.submission",
)
# Source: the image table of Kaggle's notebooks (Python 3.12, May 2026), of which these alone are used.
# librosa, which the image has, stays out: its import costs a run 0.13 GB and 0.7 s
# (kernel/sound/filter_banks.py).
IMAGE = {"torch", "numpy", "pandas", "soundfile", "soxr", "joblib", "psutil", "safetensors", "scipy"}
# Inside functions only: absent from the image, or slow
OPTIONAL = {"timm", "openvino", "onnxruntime", "matplotlib", "tqdm"}
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


PACKAGES = {path.parent.name for path in KERNEL.glob("*/__init__.py")}


def dotted(path: Path) -> str:
    """Name below kernel: "errors", "sound.decode"; a folder's own module has the folder's name."""
    parts = path.relative_to(KERNEL).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def sources() -> dict[str, ast.Module]:
    """Module name below kernel -> syntax tree."""
    return {
        dotted(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(KERNEL.rglob("*.py"))
    }


def imports(tree: ast.Module) -> Iterator[tuple[str, int, list[str], bool]]:
    """(module, relative level, names, at import time) of every import; those under TYPE_CHECKING never
    run.
    """
    late = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
        for n in ast.walk(f)
    }
    never = {id(n) for f in ast.walk(tree) if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.unparse(f.test)
             for n in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in never:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0, [], id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, [alias.name for alias in node.names], id(node) not in late


def kernel_imports(name: str, tree: ast.Module) -> set[str]:
    """Modules of kernel/ that module `name` imports, dotted."""
    package = name.split(".") if name in PACKAGES else name.split(".")[:-1]
    found = set()
    for module, level, names, _ in imports(tree):
        if level:
            base = package[:len(package) - (level - 1)]
        elif module.split(".")[0] == "kernel":
            base, module = [], module.removeprefix("kernel").removeprefix(".")
        else:
            continue
        whole = ".".join([*base, *([module] if module else [])])
        inside = {f"{whole}.{n}" if whole else n for n in names} & set(sources())
        found |= inside or {whole}
    return found & set(sources())


def test_every_room_has_its_floor() -> None:
    present = {name.split(".")[0] for name in sources()} - {"__init__"}
    assert present == set(FLOOR), "put the new room into FLOORS"


@pytest.mark.parametrize("name", sorted(sources()))
def test_imports_point_one_way(name: str) -> None:
    own = name.split(".")[0]
    wrong = {other for other in kernel_imports(name, sources()[name])
             if other.split(".")[0] != own and FLOOR[other.split(".")[0]] >= FLOOR.get(own, len(FLOORS))}
    assert not wrong, f"kernel.{name} imports {sorted(wrong)}, which do not lie below it"


def test_no_module_imports_itself_round_a_corner() -> None:
    """Inside a room, too, imports have a first and a last."""
    needs = {name: kernel_imports(name, tree) - {name} for name, tree in sources().items()}
    while needs:
        free = {name for name, below in needs.items() if not below & set(needs)}
        assert free, f"these import each other in a circle: {sorted(needs)}"
        needs = {name: below for name, below in needs.items() if name not in free}


def test_kernel_imports_neither_builder_nor_training() -> None:
    for name, tree in sources().items():
        tops = {module.split(".")[0] for module, level, _, _ in imports(tree) if not level}
        assert not tops & {
            "builder",
            "training",
            "tests",
            "benchmarks",
            "build_dataset",
            "infer_kernel",
            "train",
        }, name


def test_only_packages_of_the_image() -> None:
    for name, tree in sources().items():
        for module, level, _, at_import in imports(tree):
            top = module.split(".")[0]
            if level or top in sys.stdlib_module_names or top in ("kernel", *IMAGE):
                continue
            assert top in OPTIONAL, f"kernel.{name} imports {module}, which the image lacks"
            assert not at_import, f"kernel.{name} imports the optional {module} outside a function"


def test_the_guard_is_standard_library_alone() -> None:
    tree = ast.parse((REPOSITORY / "infer_kernel.py").read_text(encoding="utf-8"))
    tops = {module.split(".")[0] for module, _, _, at_import in imports(tree) if at_import}
    assert tops <= set(sys.stdlib_module_names), tops - set(sys.stdlib_module_names)


def test_nothing_can_unpickle() -> None:
    for name, tree in sources().items():
        for module, _, names, _ in imports(tree):
            assert not {module.split(".")[0], *names} & UNPICKLING, f"kernel.{name} imports {module}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "joblib.load", "pandas.read_pickle", "pd.read_pickle"), (
                    f"kernel.{name}"
                )
                assert not any(
                    k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords
                ), name


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)


def test_planning_modules_load_neither_torch_nor_librosa() -> None:
    code = "import sys\n" + "".join(f"import kernel.{name}\n" for name in LIGHT) + \
        "print(sorted({'torch', 'librosa', 'pandas'} & set(sys.modules)))"
    done = run(code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


HOOK = """
import sys
ALLOWED = set(sys.stdlib_module_names) | {allowed!r} | {{"kernel"}}
class OnlyTheImage:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame and frame.f_globals.get("__name__", "").startswith(("importlib", "_frozen_importlib")):
            frame = frame.f_back
        asker = frame.f_globals.get("__name__", "") if frame else ""
        if asker.split(".")[0] == "kernel" and name.split(".")[0] not in ALLOWED:
            raise ImportError(f"{{asker}} imports {{name}}, which the image lacks")
sys.meta_path.insert(0, OnlyTheImage())
import importlib, pkgutil, kernel
for info in pkgutil.walk_packages(kernel.__path__, "kernel."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
from kernel import models
from kernel.sound import frontends
import numpy as np
frontends.build({{"preset": "argus"}})(np.zeros(44100, np.float32))
for name, family in models.FAMILIES.items():
    if name not in {optional!r}:
        models.build(name, family.tiny, 3)
try:
    exec("import openvino", {{"__name__": "kernel.probe"}})
except ImportError:
    print("hook works")
"""


def test_every_module_loads_with_the_image_alone() -> None:
    done = run(HOOK.format(allowed=IMAGE, optional=("timm", "sed")))
    assert done.returncode == 0 and done.stdout.strip().endswith("hook works"), done.stderr[-2000:]
