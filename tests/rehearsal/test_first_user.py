"""The commands as a first user types them: as printed, from another folder, with an ensemble of their own."""
from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.torch import save_file

import build_dataset
from builder import random_weights
from kernel import models
from kernel.limits import limits
from kernel.rehearsal import command
from kernel.rehearsal.forecast import forecast
from kernel.report.contents import Report, load_report
from kernel.report.terminal import run_table, verdict_table
from kernel.spec import load_ensemble
from tests.helpers import REPOSITORY
from tests.helpers.bundles import built_once
from tests.helpers.sample_report import make_json, make_report

OWN = """
name = "mine"
classes = ["bark", "meow"]
profile = "code-cpu"
[frontends.mel]
preset = "argus"
[[members]]
name = "plain"
family = "simple_cnn"
params = { base = 4, channels = 1 }
frontend = "mel"
weights = "fold_{fold}.pth"
folds = [0, 1]
"""
FIGURE = re.compile(r"peak RAM (\d+\.\d+ GB)|memory with the cache +(\d+\.\d+ GB)")


def printed_commands() -> list[str]:
    """The two commands of README's step 'Build and rehearse'."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("Build and rehearse")[2]
    return [line.strip() for line in text.split("```")[1].splitlines() if line.strip()]


def lay_first_user(folder: Path) -> None:
    """Own checkpoints, clips and ensemble, where README's commands look for them."""
    (folder / "ensembles").mkdir()
    (folder / "ensembles" / "mine.toml").write_text(OWN, encoding="utf-8")
    member = load_ensemble(folder / "ensembles" / "mine.toml").members[0]
    module = models.build(member.family, member.params, 2)
    (folder / "my_checkpoints").mkdir()
    for fold in (0, 1):
        state = random_weights.draw_state(module, member.family, member.params)
        save_file(state, folder / "my_checkpoints" / f"fold_{fold}.safetensors")
    (folder / "my_clips").mkdir()
    for number in range(4):
        wave = 0.1 * np.random.default_rng(number).standard_normal(22_050)
        soundfile.write(folder / "my_clips" / f"{number}.wav", wave, 22_050)


def test_the_printed_commands_leave_their_results_where_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_first_user(tmp_path)
    monkeypatch.chdir(tmp_path)
    build, rehearse = printed_commands()
    assert build_dataset.main(shlex.split(build)[2:]) == 0, capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, *shlex.split(rehearse)[1:]], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    where = tmp_path / "out/rehearsal"
    assert f"\nPASS: submission.csv, report.html and report.json in {where}\n" in done.stdout
    names = ["report.html", "report.json", "submission.csv"]
    assert sorted(p.name for p in (tmp_path / "out/rehearsal").iterdir()) == names
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bundle", "push", "rehearsal"]
    counts = re.findall(r"(\d+)/8 by all nets", done.stdout)
    assert counts[0] == "0" and counts[-1] == "8"


def page_commands() -> list[str]:
    """Commands of docs/options.md that need neither labelled clips nor Kaggle: others run those."""
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith(("python ", "hourglass "))]
    return [line for line in lines if "train" not in line.split()[1] and line.split()[1] != "upload"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first user's folder with a build in it, labels, and an input as a competition has it."""
    folder = tmp_path_factory.mktemp("user")
    lay_first_user(folder)
    names = sorted(path.name for path in (folder / "my_clips").iterdir())
    labels = "".join(f"{name},{'bark' if number % 2 else 'meow'}\n" for number, name in enumerate(names))
    (folder / "my_labels.csv").write_text("fname,labels\n" + labels)
    shutil.copytree(folder / "my_clips", folder / "my_input" / "test")
    rows = "".join(f"{name},0,0\n" for name in names)
    (folder / "my_input" / "sample_submission.csv").write_text("fname,bark,meow\n" + rows)
    words = ["build", "ensembles/mine.toml", "--weights", "my_checkpoints", "--out", "out"]
    done = subprocess.run([sys.executable, str(REPOSITORY / "hourglass.py"), *words], cwd=folder, timeout=110,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("line", page_commands())
def test_every_command_of_the_page_runs_as_printed(user: Path, line: str) -> None:
    """But for the size of the hidden test set: eight rows are enough to be rehearsed."""
    word, *words = shlex.split(line.replace("3361", "8").replace("9.7", "0.01"))
    script = "hourglass.py" if word == "hourglass" else words.pop(0)
    place = user if (user / script).is_file() else REPOSITORY
    done = subprocess.run([sys.executable, str(place / script), *words], cwd=user, timeout=250,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if "--notebook" in words:
        assert (user / "out" / "push" / "infer_kernel.ipynb").is_file()
    if "score" in words:
        assert (user / "scores.csv").read_text(encoding="utf-8").startswith("fname,bark,meow\n0.wav,")


def read_arguments(*words: str) -> Any:
    return command.read_arguments(["--clips", "c", *words])


def test_paths_begin_in_the_caller_s_folder() -> None:
    chosen = read_arguments("--folder", "/somewhere", "--bundle", "out/bundle", "--lab", "l.csv")
    assert chosen.bundle == Path("/somewhere/out/bundle")
    assert chosen.working == Path("/somewhere/out/rehearsal")
    assert (chosen.clips, chosen.labels) == (Path("/somewhere/c"), Path("/somewhere/l.csv"))
    assert read_arguments("--folder", "/somewhere", "--bundle=/b", "--wor=/w").working == Path("/w")
    assert read_arguments("--bundle", "b").bundle == Path.cwd() / "b"


@pytest.mark.faults
def test_the_folder_above_the_bundle_and_short_options_do(tmp_path: Path) -> None:
    shutil.copytree(built_once(), tmp_path / "out")
    lay_first_user(tmp_path)
    words = "out/push/infer_kernel.py --rehearse --bundle out --cli=my_clips --work results"
    command = [sys.executable, *words.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = load_report((tmp_path / "results" / "report.json").read_bytes())
    assert isinstance(report, Report) and report.rehearsal is not None and report.rehearsal.word == "PASS"
    peaks = {first or second for first, second in FIGURE.findall(done.stdout)}
    assert len(peaks) == 1, "the run's peak and its forecast for the same clips are one figure"


# The verdict


def test_the_peak_is_the_same_figure_in_report_and_forecast() -> None:
    data = make_json()
    data["store"]["stored_bytes"] = data["store"]["ram_peak_bytes"]
    report = make_report(**data)
    lines = forecast(report, report.rows, report.seconds_of_audio / 3600, limits("fat2019"))
    cache = next(line for line in lines if line.what == "memory with the cache")
    assert cache.raw == report.peak_own_bytes
    assert "peak RAM 0.50 GB" in run_table(report)


def death(why: str) -> dict[str, Any]:
    return {"attempt": 1, "why": why, "status": -9, "oom": False, "life_s": 40.0, "scored_rows": 3}


def hung_report(**more: Any) -> Report:
    guard = {
        "prior_s": 0.04, "attempts": 3, "deaths": [death("no progress for 30 s")] * 2, "faults": [],
        "finished": True, "pinned": True, "bundle": "abc", "offset_s": 0.0, "peak_bytes": 15_000_000,
        "sample": "s.csv", "stacks": "", "signal": 0, "exit_code": 0,
    }
    return make_report(guard=guard, **more)


def judged(report: Report, *words: str) -> Any:
    chosen = read_arguments("--bundle", "b", *words)
    return command.judge(report, 0, chosen, limits("fat2019"), ("network: off",))


def test_a_run_whose_engine_hung_is_no_plain_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = hung_report(fault_counts={"EngineHung": 2})
    rehearsal = judged(report)
    assert rehearsal.passed and rehearsal.word == "PASS, degraded" and not rehearsal.problems
    command.publish(replace(report, rehearsal=rehearsal), rehearsal, {}, tmp_path)
    out = capsys.readouterr().out
    assert f"\nPASS, degraded: submission.csv, report.html and report.json in {tmp_path}\n" in out
    assert "LOOK  the engine was restarted 2 times (no progress for 30 s)" in out and "guard.stacks" in out
    assert "LOOK  EngineHung x2: look at 'What went wrong'" in out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<span class="badge mid">PASS, degraded</span>' in page and "restarted 2 times" in page


def test_rows_without_a_prediction_are_no_plain_pass() -> None:
    rehearsal = judged(make_report(guard=vars(hung_report().guard) | {"deaths": []}, prior_rows=3))
    assert rehearsal.word == "PASS, degraded"
    assert [text.partition(":")[0] for text in rehearsal.concerns] == ["3 of 100 rows hold only the prior"]


def test_a_clean_run_passes_and_a_failed_one_fails() -> None:
    clean = make_report(guard=vars(hung_report().guard) | {"deaths": []})
    assert judged(clean).word == "PASS" and judged(clean).concerns == ()
    assert judged(hung_report(), "--expect-clips", "9999999").word == "FAIL"
    assert "PASS  time of everything" in verdict_table(judged(clean))


def test_a_rehearsal_without_its_bundle_names_the_option() -> None:
    words = [sys.executable, str(built_once() / "push/infer_kernel.py"), "--rehearse", "--clips", "c"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--bundle: give the folder that build_dataset.py wrote" in done.stderr
