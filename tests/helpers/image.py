"""The Kaggle image as far as it can be had here, and a bundle run in it: `python -m tests.helpers.image`.

Owns TABLE, the closure of what it brings, a virtual environment with its versions, and the comparison of the
submission with the one of this environment. What could not be had (another Python, another torch) is printed,
never hidden.
"""
from __future__ import annotations

import argparse
import csv
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# Source: Kaggle's docker-python at its Colab base of 14 May 2026 (backend-info 6f38803): Python 3.12.
PYTHON = "3.12"
TABLE = {
    "torch": "2.10.0",
    "numpy": "2.0.2",
    "scipy": "1.16.3",
    "pandas": "2.2.2",
    "librosa": "0.11.0",
    "soundfile": "0.13.1",
    "soxr": "1.0.0",
    "audioread": "3.1.0",
    "psutil": "5.9.5",
    "joblib": "1.5.3",
    "timm": "1.0.26",
    "safetensors": "0.7.0",
    "tqdm": "4.67.3",
    "scikit-learn": "1.6.1",
    "numba": "0.60.0",
    "llvmlite": "0.43.0",
    "matplotlib": "3.10.0",
}
# Torch comes first, for CPUs; timm wants torchvision, which would replace that torch.
LEFT_OUT = ("torch", "timm")
AGREEMENT = 1e-5  # between environments, as between back ends: largest difference of a score


def closure(names: list[str]) -> set[str]:
    """Distributions that installing `names` brings, extras left out; normalised names."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        needed = [need for need in needs if "extra ==" not in need]
        pending += [re.split(r"[\s\[<>=!~;(]", need, maxsplit=1)[0] for need in needed]
    return found


def importable(names: list[str]) -> set[str]:
    """Top-level modules that the closure of `names` provides here."""
    inside = closure(names)
    return {module for module, owners in importlib.metadata.packages_distributions().items()
            if any(re.sub(r"[-_.]+", "-", owner).lower() in inside for owner in owners)}


def pip(python: Path, *arguments: str) -> bool:
    """True when `pip install` with these arguments worked."""
    command = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *arguments]
    return subprocess.run(command, capture_output=True).returncode == 0


def find_python() -> str:
    """An interpreter of the image's version that really starts, else this one."""
    found = shutil.which(f"python{PYTHON}")
    works = found is not None and subprocess.run([found, "-c", "pass"], capture_output=True).returncode == 0
    return str(found) if works else sys.executable


def make_environment(folder: Path, base: str) -> Path:
    """The interpreter of a new environment with the table's versions, or the nearest that the index has.

    A torch for CPUs is wanted (the plain one brings gigabytes): where the index has none for `base`, this
    interpreter serves.
    """
    subprocess.run([base, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    versions = (f"{TABLE['torch']}+cpu", importlib.metadata.version("torch"))
    if not any(pip(python, f"torch=={version}") for version in versions):
        if base == sys.executable:
            raise SystemExit("no torch for CPUs can be installed: see the README, Two commands")
        print(f"the index has no torch for CPUs and {base}: starting from this interpreter", flush=True)
        shutil.rmtree(folder)
        return make_environment(folder, sys.executable)
    pins = [f"{name}=={version}" for name, version in TABLE.items() if name not in LEFT_OUT]
    if not pip(python, *pins):
        for pin in pins:
            if not pip(python, pin):
                pip(python, pin.split("==")[0])
    return python


def installed(python: Path) -> dict[str, str]:
    """Distribution -> version in an environment, and "python"."""
    code = ("import importlib.metadata as m, platform\nprint('python', platform.python_version())\n"
            "for d in m.distributions(): print(d.metadata['Name'].lower().replace('_', '-'), d.version)")
    out = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    return {name: version for name, _, version in (line.partition(" ") for line in out.splitlines())}


def print_differences(found: dict[str, str]) -> None:
    """The table beside what is there."""
    print(f"{'package':<14}{'image':>10}{'here':>16}")
    for name, version in {"python": PYTHON, **TABLE}.items():
        here = found.get(name, "absent")
        same = here == version or here.startswith((version + ".", version + "+"))
        print(f"{name:<14}{version:>10}{here:>16}{'' if same else '   differs'}")


def run(python: Path, kernel: Path, bundle: Path, place: Path, working: Path) -> dict[str, list[float]]:
    """Row id -> scores of a run of the pushed kernel by that interpreter, which must be clean."""
    places = ["--bundle", bundle, "--input", place, "--working", working]
    command = [python, kernel, *places, "--seconds", "300", "--strict", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        log = done.stdout[-3000:] + done.stderr[-3000:]
        raise SystemExit(f"FAIL: exit code {done.returncode} under {python}\n{log}")
    with open(working / "submission.csv", newline="") as file:
        return {row[0]: [float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]}


def main() -> None:
    """Build the environment, run the bundle in it and here, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, help="where to make it and keep it (default: nowhere)")
    parser.add_argument("--python", default=find_python(), help="interpreter to start from")
    chosen = parser.parse_args()
    from tests.helpers.bundles import built_once
    from tests.helpers.whole_runs import make_place

    with tempfile.TemporaryDirectory(prefix="image-") as temporary:
        folder = Path(temporary)
        environment = chosen.environment or folder / "environment"
        python = environment / "bin" / "python"
        if not environment.exists():
            python = make_environment(environment, chosen.python)
        print_differences(installed(python))
        clips = make_place(folder / "place").folder / "in"
        kernel = built_once() / "push" / "infer_kernel.py"
        bundle = built_once() / "bundle"
        here = run(Path(sys.executable), kernel, bundle, clips, folder / "here")
        there = run(python, kernel, bundle, clips, folder / "there")
    worst = max(float(np.abs(np.subtract(here[id], there[id])).max()) for id in here)
    verdict = "PASS" if worst <= AGREEMENT else "FAIL"
    print(f"{verdict}: {len(there)} rows, largest difference to this environment {worst:.1e}")
    if worst > AGREEMENT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
