"""`make pythons`: the suite, and a rehearsal of the pushed file, under each Python that this machine has.

Owns which interpreters are looked for, one environment for each, and the table at the end. For every Python
from 3.11 on: `make test` in an environment of its own; then a bundle with the wheels of ONNX Runtime,
rehearsed in a second environment that holds only what the kernel needs, once with NumPy 2.0.2 (which Kaggle's
image has had) and once with the newest. What pip cannot install is said; it is no failure of ours.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "pythons"
MINORS = (11, 12, 13)  # README promises these
KERNEL_PACKAGES = ("torch==2.13.0", "pandas", "psutil", "joblib", "soundfile", "soxr", "safetensors", "scipy")
NUMPYS = ("2.0.2", "newest")
ABSENT = "not on this machine"


@dataclass(kw_only=True)
class Outcome:
    """What came of one Python: "ok", "FAILED ..." or why it was not tried, for each thing that was."""

    python: str
    results: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(result.startswith("FAILED") for result in self.results.values())


def find_python(minor: int) -> str | None:
    """An interpreter of 3.`minor` that starts: on the path, or among pyenv's versions."""
    name = f"python3.{minor}"
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for found in (*sorted(map(str, versions.glob(f"3.{minor}.*/bin/{name}"))), shutil.which(name)):
        if found and run([found, "-c", "import venv, ensurepip"], capture=True).returncode == 0:
            return found
    return None


def run(command: Sequence[str | Path], capture: bool = False) -> subprocess.CompletedProcess[str]:
    """One command in the repository; its output is shown as it comes, or kept."""
    if not capture:
        print("+", " ".join(map(str, command)), flush=True)
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=capture)


def test_suite(python: str, environment: Path) -> str:
    """`make test` as printed, in an environment of this Python's own."""
    done = run(["make", "test", f"PYTHON={python}", f"VENV={environment}"])
    return "ok" if done.returncode == 0 else f"FAILED: make test ended with {done.returncode}"


def build_bundle(environment: Path, out: Path) -> bool:
    """A bundle with wheels, the pushed file and clips below `out`; True when all are there."""
    python = environment / "bin" / "python"
    built = run([python, "build_dataset.py", "ensembles/default.toml", "--out", out, "--owner", "pythons",
                 "--slug", "hourglass-pythons", "--wheels", "onnxruntime", "--export", "onnx"])
    return built.returncode == 0 and run(
        [python, "-m", "training.demo_clips", "--out", out / "clips"]).returncode == 0


def rehearse(python: str, out: Path, numpy: str) -> str:
    """The bundle in `out`, rehearsed with this NumPy and the kernel's packages alone."""
    bare = out.with_name(f"{out.name}-numpy-{numpy}")
    run([python, "-m", "venv", "--clear", bare])
    wanted = "numpy" if numpy == "newest" else f"numpy=={numpy}"
    done = run([bare / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", wanted,
                *KERNEL_PACKAGES], capture=True)
    if done.returncode:
        return f"not tried: {(done.stderr.strip().splitlines() or ['pip failed'])[-1][:80]}"
    done = run([bare / "bin" / "python", out / "push" / "infer_kernel.py", "--rehearse", "--bundle",
                out / "bundle", "--clips", out / "clips", "--working", out / f"rehearsal-{numpy}", "--limits",
                "fat2019"])
    return "ok" if done.returncode == 0 else f"FAILED: the rehearsal ended with {done.returncode}"


def try_python(minor: int) -> Outcome:
    """Everything under one Python."""
    outcome = Outcome(python=f"3.{minor}")
    python = find_python(minor)
    if python is None:
        outcome.results["suite"] = ABSENT
        return outcome
    version = run([python, "-c", "import sys; print(sys.version)"], capture=True).stdout
    outcome.python = re.split(r"\s", version)[0]
    environment = PLACE / f"3.{minor}"
    outcome.results["suite"] = test_suite(python, environment)
    out = environment.with_name(f"{environment.name}-out")
    there = build_bundle(environment, out)
    for numpy in NUMPYS:
        result = rehearse(python, out, numpy) if there else "FAILED: no bundle"
        outcome.results[f"rehearsal, numpy {numpy}"] = result
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as lines of text."""
    columns = ["suite", *(f"rehearsal, numpy {numpy}" for numpy in NUMPYS)]
    lines = [["python", *columns]]
    lines += [[o.python, *(o.results.get(column, "-") for column in columns)] for o in outcomes]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.pythons", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minors", nargs="*", metavar="3.X", help="these only (default: 3.11, 3.12 and 3.13)")
    asked = [int(text.partition(".")[2]) for text in parser.parse_args(arguments).minors] or MINORS
    outcomes = [try_python(minor) for minor in asked]
    print(table(outcomes))
    tried = [o for o in outcomes if o.results.get("suite") != ABSENT]
    return int(not tried or any(o.failed for o in tried))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
