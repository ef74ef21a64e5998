"""A rehearsal: the very kernel that is pushed, in a fake /kaggle tree, under the competition's limits.

Owns the run inside its sandbox and the verdict. The command line is options', the tree is fake_kaggle's, the
limits around the kernel are sandbox's, the figures of the hidden test set are forecast's. Started by the
guard (`infer_kernel.py --rehearse`). Does not predict anything itself: the pushed kernel does, in its own
process. Linux only.
"""
import argparse
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .. import pin, spec
from ..errors import HourglassError, SpecError
from ..files import write_atomically
from ..limits import Limits, limits
from ..report.contents import RehearsalReport, Report, VerdictLine, encode_report, load_report
from ..report.page import encode_page, page
from ..report.pictures import draw_rows
from ..report.terminal import show, verdict_table
from ..scores.submission import check_form
from ..sound.rows import window_ids
from . import fake_kaggle
from .forecast import forecast, unmeasured
from .labels import Score, score_submission
from .options import read_arguments
from .sandbox import build_sandbox, make_environment, private_tree, read_outside

KERNEL_FAREWELL_S = 2.5  # the kernel's own exit takes less (WATCHED_EXIT_S), the guard around us waits longer
STUB_ROWS = 3  # what the public test set of many code competitions holds when a version is saved
LIGHTER = "fewer or lighter nets; without a GPU also build_dataset.py --export onnx --wheels onnxruntime"


def find_pushed(kernel_file: Path, bundle: Path, manifest: spec.Manifest, digest: str, tree: Path) -> Path:
    """The pushed form of the kernel: the file itself, or a copy of the repository's own, filled in `tree`.

    digest  sha256 of the bundle's manifest.json

    Raises  SpecError when the file was built for another bundle
    """
    source = kernel_file.read_text(encoding="utf-8")
    known = pin.read_constant(source)
    if known is None:
        value = pin.constant(manifest, digest, asdict(limits(manifest.ensemble.profile)), "rehearsal")
        target = tree / pin.SCRIPT
        target.write_text(pin.fill_constant(source, value), encoding="utf-8")
        return target
    if known["manifest_sha256"] != digest:
        raise SpecError(
            f"{kernel_file} was built for bundle {known['bundle']}, not for {bundle} ({manifest.bundle}); "
            "use the push folder that was built with it"
        )
    return kernel_file


def kernel_command(script: Path, chosen: argparse.Namespace, run_limits: Limits) -> list[str]:
    """The words that start the kernel under these limits; where it reads and writes is not among them."""
    options = {
        "--limits": run_limits.name,
        "--seconds": run_limits.seconds,
        "--offset": 0,
        "--ram": run_limits.ram_bytes,
        "--disk": run_limits.disk_bytes,
        "--device": chosen.device,
        "--backend": chosen.backend,
        "--loaders": chosen.loaders,
        "--first": chosen.first,
    }
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return [sys.executable, "-I", "-u", str(script), *given]


def run_kernel(
    command: Sequence[str], root: Path, working: Path, run_limits: Limits
) -> tuple[int, tuple[str, ...]]:
    """Exit code of the kernel in a sandbox around its input `root`, and the sandbox in words.

    The kernel's lines appear as they come.
    """
    place = root.parent
    working.mkdir(parents=True, exist_ok=True)
    script = Path(command[command.index("-u") + 1])
    sandbox = build_sandbox(root, run_limits.ram_bytes, run_limits.cores, (place, working), script.parent)
    print(f"[rehearsal] profile {run_limits.name}: " + "; ".join(sandbox.lines), flush=True)
    places = ["--input", str(root), "--working", str(working)]
    try:
        process = subprocess.Popen([*sandbox.prefix, *command, *places], preexec_fn=sandbox.enter,
                                   env=make_environment(place), cwd=place)
        try:
            code = process.wait()
        except BaseException:
            end_kernel(process)
            raise
    finally:
        sandbox.leave()
    return code, sandbox.lines


def end_kernel(process: subprocess.Popen[bytes]) -> None:
    """End a kernel under rehearsal in order, so that it removes what is its own; kill it when it does not."""
    process.terminate()
    try:
        process.wait(KERNEL_FAREWELL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_commit(
    tree: Path,
    command: Sequence[str],
    chosen: argparse.Namespace,
    run_limits: Limits,
    ensemble: spec.Ensemble,
) -> str:
    """A note on what the kernel leaves when a version is saved: three rows in the sample, no clips.

    Raises  SpecError when that is no valid submission
    """
    root = tree / "commit/input"
    working = tree / "commit/working"
    fake_kaggle.lay_bundle(root, chosen.bundle, chosen.attached)
    if ensemble.windows is None:
        ids = [f"clip{i}.wav" for i in range(STUB_ROWS)]
    else:
        ids = window_ids("clip", STUB_ROWS * ensemble.windows.seconds, ensemble.windows)
    competition = root / fake_kaggle.COMPETITION
    fake_kaggle.write_sample(competition, ids, ensemble)
    (competition / "test").mkdir()
    if ensemble.dry_run is not None:
        fake_kaggle.lay_training(competition / ensemble.dry_run.clips, chosen.clips)
    print("[rehearsal] as at 'Save Version': three rows in the sample, an empty test folder", flush=True)
    code, _ = run_kernel(command, root, working, run_limits)
    path = working / "submission.csv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [line.split(",")[0] for line in lines[1:]]
    if code != 0 or found != ids:
        raise SpecError(
            f"at 'Save Version' the kernel ended with exit code {code} and rows {found}: do not push it"
        )
    return (
        "'Save Version': with an empty test folder the kernel left a valid submission of three prior rows. "
        "Kaggle shows the hidden test set to the rerun only, so this rehearsal ran on the clips of --clips "
        "instead"
    )


def find_problems(report: Report, code: int, lines: Sequence[VerdictLine]) -> list[str]:
    """Why the rehearsal fails; empty when it passes."""
    problems = [_explain(line) for line in lines if not line.passed]
    if code != 0:
        problems.append(f"the kernel ended with exit code {code}")
    if report.guard is None or not report.guard.finished:
        problems.append("the engine did not finish; the last published submission stayed")
    failed = [net.id for member in report.members for net in member.nets if net.failed]
    if failed:
        problems.append(f"{len(failed)} nets failed: {', '.join(failed[:5])}; see the faults")
    if report.partial_rows:
        problems.append(f"{report.partial_rows} rows were scored by a part of the ensemble only")
    unknown = unmeasured(report)
    if unknown:
        problems.append(f"no forecast for {', '.join(unknown)}: no net of it ran here; see the faults")
    return problems


def find_concerns(report: Report) -> list[str]:
    """What to look at before a push although every limit holds; empty for a clean run."""
    concerns = []
    guard = report.guard
    if guard is not None and guard.deaths:
        why = "; ".join(dict.fromkeys(death.why for death in guard.deaths))
        concerns.append(
            f"the engine was restarted {len(guard.deaths)} times ({why}), which may cost more on the hidden "
            "test set: look at 'What went wrong' in report.html and at guard.stacks in report.json"
        )
    if report.prior_rows:
        concerns.append(
            f"{report.prior_rows} of {report.rows} rows hold only the prior: broken_rows in report.json "
            "names each and why"
        )
    if report.fault_counts:
        counts = ", ".join(f"{code} x{count}" for code, count in sorted(report.fault_counts.items()))
        concerns.append(f"{counts}: look at 'What went wrong' in report.html")
    return concerns


def _explain(line: VerdictLine) -> str:
    """What is wrong with a limit that does not hold, and what helps."""
    cure = LIGHTER if line.unit == "s" else "fewer or smaller arrays and nets"
    return (
        f"{line.what}: {show(line.scaled, line.unit)} forecast on a slower machine, "
        f"{show(line.allowed, line.unit)} allowed; {cure}"
    )


def judge(
    report: Report,
    code: int,
    chosen: argparse.Namespace,
    run_limits: Limits,
    enforced: tuple[str, ...],
    asked: Sequence[str] = (),
) -> RehearsalReport:
    """The rehearsal's section: the forecast for the hidden test set, and whether it passes.

    asked  files and hosts that the kernel asked for and Kaggle does not have
    """
    seen = max(1, report.rows)
    clips = chosen.expect_clips or seen
    hours = chosen.expect_hours or report.seconds_of_audio / 3600 * clips / seen
    lines = forecast(report, clips, hours, run_limits, chosen.slowdown)
    problems = find_problems(report, code, lines)
    if asked:
        problems.append(
            f"asked for what is not there on Kaggle: {', '.join(asked[:5])}{' ...' if asked[5:] else ''}; "
            "put it into the weights, or into a Python file beside the ensemble"
        )
    notes = [f"longest clip here: {report.longest_s:g} s; longer hidden clips need more memory and time each"]
    return RehearsalReport(
        walls=enforced,
        clips=clips,
        hours=hours,
        slowdown=chosen.slowdown,
        passed=not problems,
        problems=tuple(problems),
        notes=tuple(notes),
        verdict=tuple(lines),
        concerns=tuple(find_concerns(report)),
    )


def name_competition(kernel_file: Path) -> str | None:
    """A note on the competition that the metadata beside a pushed kernel attaches; None where there is none.

    Raises  SpecError when that file cannot be read
    """
    path = kernel_file.with_name("kernel-metadata.json")
    if not path.is_file():
        return None
    try:
        attached = json.loads(path.read_bytes()).get("competition_sources")
    except (OSError, ValueError, AttributeError) as error:
        raise SpecError(f"{path}: cannot be read ({error}); build again") from error
    if attached:
        return f"on Kaggle it runs for the competition {attached[0]} (--competition of the build)"
    return "NO COMPETITION is attached, so that it finds no test set on Kaggle: build with --competition SLUG"


def lay_kaggle(root: Path, chosen: argparse.Namespace, ensemble: spec.Ensemble) -> fake_kaggle.FakeKaggle:
    """The bundle as an attached dataset and the user's clips as a competition, below `root`."""
    fake_kaggle.lay_bundle(root, chosen.bundle, chosen.attached)
    kaggle = fake_kaggle.lay_clips(root, chosen.clips, ensemble, chosen.repeat_to, chosen.expect_hours)
    print("; ".join([f"[rehearsal] {len(kaggle.ids)} rows", *kaggle.notes]), flush=True)
    return kaggle


def draw_shown(report: Report, kaggle: fake_kaggle.FakeKaggle, ensemble: spec.Ensemble) -> dict[str, str]:
    """Pictures of the rows that the page shows."""
    shown = {row.row for row in [*report.uncertain, *(report.worst or ())]}
    rows = fake_kaggle.find_rows(kaggle, ensemble, shown)
    return draw_rows(rows, ensemble.longest_s, stop=lambda: False)


def publish(report: Report, rehearsal: RehearsalReport, pictures: dict[str, str], working: Path) -> None:
    """The report with its verdict, as files and on the terminal."""
    write_atomically(working / "report.json", encode_report(report))
    write_atomically(working / "report.html", encode_page(page(report, pictures)))
    print("\n" + verdict_table(rehearsal))
    for problem in rehearsal.problems:
        print(f"FAIL  {problem}")
    for concern in rehearsal.concerns:
        print(f"LOOK  {concern}")
    print(f"\n{rehearsal.word}: submission.csv, report.html and report.json in {working}")


def rehearse(chosen: argparse.Namespace, kernel_file: Path) -> int:
    """Exit code: 0 every limit passes, 1 one fails or the run was not clean.

    Raises  HourglassError when there is nothing to rehearse
    """
    text = (chosen.bundle / "manifest.json").read_bytes()
    manifest = spec.load_manifest(text)
    ensemble = manifest.ensemble
    run_limits = limits(chosen.limits or ensemble.profile, chosen.seconds, chosen.ram, chosen.disk)
    sample = chosen.sample or fake_kaggle.find_sample(chosen.clips)
    if sample is not None:
        check_form(sample, ensemble.output, ensemble.classes)
    working = chosen.working
    if working.resolve().is_relative_to(chosen.bundle.resolve()):
        raise SpecError(f"--working {working} lies in the bundle, which is uploaded whole; give another")
    working.mkdir(parents=True, exist_ok=True)
    with private_tree(working.parent) as tree:
        script = find_pushed(kernel_file, chosen.bundle, manifest, hashlib.sha256(text).hexdigest(), tree)
        command = kernel_command(script, chosen, run_limits)
        competition = name_competition(kernel_file)
        notes = [competition] if competition else []
        if chosen.simulate_commit:
            notes.append(run_commit(tree, command, chosen, run_limits, ensemble))
        kaggle = lay_kaggle(tree / "input", chosen, ensemble)
        command += ["--strict"] if chosen.strict else []
        code, enforced = run_kernel(command, tree / "input", working, run_limits)
        report = load_report((working / "report.json").read_bytes())
        if code not in (0, 1) or not isinstance(report, Report):
            where = working / "report.json"
            print(f"[rehearsal] FAIL: exit code {code} of the kernel, without a full report; see {where}")
            return 1
        rehearsal = judge(report, code, chosen, run_limits, enforced, read_outside(tree))
        score = Score()
        if chosen.labels is not None:
            score = score_submission(working / "submission.csv", chosen.labels, ensemble, report.broken_rows)
        notes += [*kaggle.notes, *rehearsal.notes, *score.notes]
        rehearsal = replace(rehearsal, notes=tuple(notes), lwlrap=score.lwlrap,
                            macro_auc=score.macro_auc, padded_cmap=score.padded_cmap)
        report = replace(report, rehearsal=rehearsal, worst=score.worst)
        pictures = draw_shown(report, kaggle, ensemble)
    publish(report, rehearsal, pictures, working)
    return 0 if rehearsal.passed else 1


def _leave(number: int, _frame: object) -> None:
    """An end in order, which removes the tree and the control group."""
    signal.signal(number, signal.SIG_IGN)  # once
    sys.exit(128 + number)


def main(arguments: Sequence[str], kernel_file: str) -> int:
    """Exit code of a rehearsal: 0 PASS, 1 FAIL, 2 nothing to rehearse."""
    if not sys.platform.startswith("linux"):
        print(
            "[rehearsal] a rehearsal needs Linux: its sandbox is made of Linux's own means; use a container",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, _leave)
    try:
        return rehearse(read_arguments(arguments), Path(kernel_file))
    except (HourglassError, OSError) as error:
        print(f"[rehearsal] {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
