"""Do the tests of a module notice when it changes? One operator, constant or condition at a time.

`python -m tests.helpers.mutants kernel/engine/plan.py --count 60 --seed 1` draws that many changes of the
module's syntax tree, runs the module's tests against each, and prints which changes they noticed. The tests
are the mirrored file (kernel/engine/plan.py: tests/engine/test_plan.py) and what `tests/mutants.toml` adds.

Each change runs in a fork of this process, which has imported the libraries but nothing of the repository:
every import there gets the changed module; tests that look at it in a process of their own do not see the
change. A change that brings no answer within the time limit counts as noticed, as it would be.

Not drawn: texts (strings, f-strings, what a `raise` says), annotations, decorators (`frozen`, `maxsize`),
`strict` of `zip`, and lines that `tests/mutants.toml` lists with the reason why no behaviour depends on them.

Exit code 0: every module's share is at least `--least`; 1: it is not; 2: nothing can be said, and why.
"""
from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.util
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tests.helpers.changes import mutants

TABLE = Path(__file__).resolve().parent.parent / "mutants.toml"
LEAST_LIMIT_S = 10.0
LIMIT_FACTOR = 5.0  # of the unchanged module's time: a machine that others use is not steady
MEMORY_BYTES = 6 << 30  # beyond what the process has mapped: a change may ask for anything
POLL_S = 0.01


class Unmeasurable(Exception):
    """Nothing can be said about the module: no such file, no tests, tests that fail or do not import it."""


class InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives `code` to whoever imports the module, and says so on the file descriptor `told`."""

    def __init__(self, name: str, path: Path, code: CodeType, told: int) -> None:
        self.name, self.path, self.code, self.told = name, path, code, told

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        package = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=package
        )

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        os.write(self.told, b"ran\n")
        exec(self.code, module.__dict__)


def run_tests(tests: Sequence[str], folder: str) -> int:
    """pytest's exit code, in this process."""
    import hypothesis
    import pytest

    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # what is found is not made smaller
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutants")
    return int(pytest.main([
        "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/tests",
        "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests,
    ]))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """passed: exit code 0 in time;  ran: the module was imported;  loaded: other modules that were"""

    passed: bool
    ran: bool
    timed_out: bool
    seconds: float
    output: str
    loaded: tuple[str, ...]


def child(name: str, path: Path, code: CodeType, tests: Sequence[str], folder: str) -> None:
    """The life of a fork: never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out = os.open(f"{folder}/output", os.O_WRONLY | os.O_CREAT)
        told = os.open(f"{folder}/told", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = io.TextIOWrapper(io.FileIO(1, "w")), io.TextIOWrapper(io.FileIO(2, "w"))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES,) * 2)
        sys.meta_path.insert(0, InPlace(name, path, code, told))
        status = run_tests(tests, folder)
        Path(folder, "loaded").write_text("\n".join(foreign()))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # whatever a change does to this process is an answer
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(min(255, status))


def foreign() -> list[str]:
    """Imported modules that are not of this repository."""
    root, libraries = f"{Path.cwd()}{os.sep}", (sys.prefix, sys.base_prefix)
    files = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    return [name for name, file in files.items() if not file.startswith(root) or file.startswith(libraries)]


def ask(name: str, path: Path, code: CodeType, tests: Sequence[str], limit_s: float) -> Answer:
    """What the tests say to the module as `code`, in a fork."""
    folder = tempfile.mkdtemp(prefix="mutant-")
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(name, path, code, tests, folder)
    timed_out, status = False, None
    try:
        while status is None:
            time.sleep(POLL_S)
            timed_out = time.monotonic() - begun > limit_s
            ended, answered = os.waitpid(pid, os.WNOHANG)
            status = answered if ended else None
            if timed_out:
                break
    finally:
        end(pid, waited=status is not None)

    def read(file: str) -> str:
        found = Path(folder, file)
        return found.read_text(errors="replace") if found.exists() else ""

    answer = Answer(
        passed=status == 0 and not timed_out, ran=bool(read("told")), timed_out=timed_out,
        seconds=time.monotonic() - begun, output=read("output"), loaded=tuple(read("loaded").split()),
    )
    shutil.rmtree(folder, ignore_errors=True)
    return answer


def end(pid: int, waited: bool) -> None:
    """End a fork, where it has not ended, and what its tests have left behind."""
    for kill in (os.killpg, os.kill):
        try:
            if kill is os.killpg or not waited:
                kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if not waited:
        os.waitpid(pid, 0)


def settle(name: str, path: Path, tests: Sequence[str]) -> float:
    """Import here what the tests import from elsewhere; seconds of the unchanged module's tests after that.

    Raises:
        Unmeasurable: the tests fail as it is, or do not import the module.
    """
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
    for library in ask(name, path, code, tests, 600.0).loaded:
        try:
            importlib.import_module(library)
        except Exception:  # a plug-in's part that can only be imported in its turn
            continue
    if name in sys.modules:
        raise Unmeasurable(f"{name} is imported by a library: its changes would not be seen")
    answer = ask(name, path, code, tests, 600.0)
    if not answer.passed:
        raise Unmeasurable(f"the tests of {name} fail without any change:\n{answer.output[-3000:]}")
    if not answer.ran:
        raise Unmeasurable(f"{' '.join(tests)}: these tests do not import {name}")
    return answer.seconds


def dotted(module: str) -> tuple[str, Path]:
    """Name and file of a module that was given as either.

    Raises:
        Unmeasurable: there is no such file.
    """
    name = module.removesuffix(".py").replace("/", ".").strip(".")
    path = Path(*name.split(".")).with_suffix(".py")
    if not path.is_file():
        raise Unmeasurable(f"{module}: no file {path} here; give a module as kernel/engine/plan.py")
    return name, path


def files_of(name: str, also: Sequence[str]) -> list[str]:
    """The mirrored file, where there is one, and `also`.

    Raises:
        Unmeasurable: there is neither.
    """
    *room, last = name.split(".")[1:]
    mirrored = Path("tests", *(room or ["kernel"]), f"test_{last}.py")
    found = [*([str(mirrored)] if mirrored.is_file() else []), *also]
    missing = [file for file in found if not Path(file).is_file()]
    if missing or not found:
        told = ", ".join(missing) or str(mirrored)
        raise Unmeasurable(f"{name}: no tests {told}; name them with --tests, or in {TABLE.name}")
    return found


def measure(module: str, tests: Sequence[str], count: int, seed: int) -> tuple[int, int]:
    """(noticed, tried); prints a line for each."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    name, path = dotted(module)
    tests = list(tests) or files_of(name, table["tests"].get(name, ()))
    plain_s = settle(name, path, tests)
    limit_s = LEAST_LIMIT_S + LIMIT_FACTOR * plain_s
    print(f"{name}: {' '.join(tests)}: {plain_s:.1f} s as it is, seed {seed}", flush=True)
    unseen = tuple(table["unseen"].get(name, {}))
    drawn = mutants(path.read_text(encoding="utf-8"), str(path), unseen, count, seed)
    if not drawn:
        raise Unmeasurable(f"{name}: nothing in it can be changed")
    noticed = 0
    for mutant in drawn:
        answer = ask(name, path, mutant.code, tests, limit_s)
        if answer.passed and not answer.ran:
            raise Unmeasurable(f"{name}: the change in line {mutant.line} was not run")
        noticed += not answer.passed
        said = "SURVIVED" if answer.passed else "hung    " if answer.timed_out else "caught  "
        print(f"{said} {path}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
    print(f"{name}: {noticed} of {len(drawn)} noticed", flush=True)
    return noticed, len(drawn)


def main(arguments: Sequence[str] | None = None) -> int:
    told = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.mutants", description=told)
    parser.add_argument("modules", nargs="*", metavar="MODULE",
                        help="files or dotted names (default: all that tests/mutants.toml lists as pure)")
    parser.add_argument("--count", type=int, default=60, help="changes of each module (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="which changes are drawn (default: 0)")
    parser.add_argument("--tests", nargs="+", default=[], metavar="FILE",
                        help="these instead of the mirrored file")
    parser.add_argument("--least", type=float, default=0.9, help="share that must be noticed (default: 0.9)")
    given = parser.parse_args(arguments)
    if given.count < 1:
        parser.error(f"--count {given.count}: give at least 1")
    modules = given.modules or tomllib.loads(TABLE.read_text(encoding="utf-8"))["pure"]["modules"]
    enough = True
    for module in modules:
        try:
            noticed, tried = measure(module, given.tests, given.count, given.seed)
        except Unmeasurable as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        enough = enough and noticed >= given.least * tried
    return 0 if enough else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # the fork that runs is ended, too
    sys.path.insert(0, os.getcwd())
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
