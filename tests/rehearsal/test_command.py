"""Rehearsals and reruns as a user meets them: whole runs, in processes of their own."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from builder import assembly
from kernel.errors import SpecError
from kernel.rehearsal import command, fake_kaggle
from kernel.report.contents import Report, encode_report, load_report
from tests.helpers import TESTS
from tests.helpers.bundles import TINY, order
from tests.helpers.guard_runs import KERNEL, GuardRun, run_guard

LENGTHS_S = (0.4, 0.7, 1.1, 0.5, 0.9, 1.6)


def fill(folder: Path, names: list[str]) -> None:
    """Rendered clips under these names; the same name always sounds the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        number = int("".join(filter(str.isdigit, name)) or 0)
        rng = np.random.default_rng(number)
        wave = (
            0.3 * np.sin(np.arange(int(22_050 * LENGTHS_S[number % 6])) / (3 + number))
            + 0.05 * rng.standard_normal()
        )
        soundfile.write(folder / name, wave, 22_050)


def rehearse(tmp_path: Path, kernel: Path, bundle: Path, *arguments: str) -> tuple[int, str]:
    """(exit code, output) of a rehearsal on six clips, in tmp_path/working."""
    if not (tmp_path / "clips").exists():
        fill(tmp_path / "clips", [f"c{i}.wav" for i in range(6)])
    done = subprocess.run(
        [
            sys.executable,
            str(kernel),
            "--rehearse",
            "--bundle",
            str(bundle),
            "--clips",
            str(tmp_path / "clips"),
            "--working",
            str(tmp_path / "working"),
            "--limits",
            "fat2019",
            "--device",
            "cpu",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=110,
    )
    return done.returncode, done.stdout + done.stderr


def read_report(tmp_path: Path) -> Report:
    """The report of that rehearsal, which has been loaded strictly and would be written as it is."""
    text = (tmp_path / "working/report.json").read_bytes()
    report = load_report(text)
    assert isinstance(report, Report) and json.loads(encode_report(report)) == json.loads(text)
    return report


def test_a_hidden_set_too_large_fails_the_rehearsal(tmp_path: Path, tiny_bundle: Path) -> None:
    """The repository's own kernel file and a bundle without its push folder: the pushed form runs."""
    bundle = Path(shutil.copytree(tiny_bundle / "bundle", tmp_path / "elsewhere"))
    code, out = rehearse(tmp_path, KERNEL, bundle, "--expect-clips", "3000000", "--expect-hours", "9000")
    assert code == 1, out
    report = read_report(tmp_path)
    assert report.guard is not None and report.rehearsal is not None
    assert "UNPINNED" not in out and report.guard.pinned
    assert "FAIL  time of everything" in out and "x 1.3 slower" in out
    failed = [line for line in report.rehearsal.verdict if not line.passed]
    assert {"time of everything", "spill to disk"} <= {line.what for line in failed}
    assert failed[0].margin < 0
    for word in ("network:", "input:", "memory:", "disk:", "cores:"):
        assert word in out, "every limit has its line, enforced or not"
    page = (tmp_path / "working/report.html").read_text()
    assert ">FAIL<" in page and "3,000,000" in page and page.count("<img") >= 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clips", "elsewhere", "working"], (
        "the fake /kaggle is gone"
    )


@pytest.mark.faults
def test_a_full_rehearsal(tmp_path: Path, tiny_bundle: Path) -> None:
    """Save Version with an empty test folder, then 20 rows out of 6 clips, scored against labels."""
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "fname,labels\n" + "".join(f"c{i}.wav,{('bark', 'meow', 'hiss')[i % 3]}\n" for i in range(6))
    )
    code, out = rehearse(
        tmp_path,
        tiny_bundle / "push/infer_kernel.py",
        tiny_bundle / "bundle",
        "--simulate-commit",
        "--repeat-to",
        "20",
        "--expect-clips",
        "20",
        "--expect-hours",
        "0.01",
        "--labels",
        str(labels),
    )
    assert code == 0, out
    assert "no clip of the sample is there" in out and "valid submission of three prior rows" in out
    report = read_report(tmp_path)
    assert report.rehearsal is not None and report.rehearsal.lwlrap is not None and report.worst is not None
    assert report.rows == 20 and report.seconds_of_audio == pytest.approx(36, rel=0.01)
    assert 0 < report.rehearsal.lwlrap <= 1 and len(report.worst) == 8
    assert all(row.truth for row in report.worst)
    forecast = report.rehearsal.verdict[0].raw
    assert forecast == pytest.approx(report.wall_s, rel=0.15), "the very set that ran takes its own time"
    assert "Worst predictions" in (tmp_path / "working/report.html").read_text()


def test_a_sample_of_another_form_is_refused_before_the_run(tmp_path: Path) -> None:
    toml = tmp_path / "label.toml"
    toml.write_text(TINY.read_text() + '\n[output]\nformat = "label"\n')
    assembly.build(order(tmp_path / "build", ensemble=toml), say=lambda _: None)
    fill(tmp_path / "clips", ["c0.wav"])
    (tmp_path / "mine.csv").write_text("fname,bark,meow,hiss\nc0.wav,0,0,0\n")
    words = ["--sample", str(tmp_path / "mine.csv")]
    code, out = rehearse(tmp_path, KERNEL, tmp_path / "build" / "bundle", *words)
    assert code == 2 and "mine.csv: output.format" in out and "[hourglass]" not in out
    assert not (tmp_path / "working").exists()


def test_the_competitions_sample_is_found_with_the_clips_or_beside_them(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    assert fake_kaggle.find_sample(clips) is None
    for folder in (tmp_path, clips):
        (folder / "sample_submission.csv").touch()
        assert fake_kaggle.find_sample(clips) == folder / "sample_submission.csv"


def test_a_bundle_that_is_not_the_kernels_own(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle / "bundle", tmp_path / "bundle"))
    manifest = bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    code, out = rehearse(tmp_path, tiny_bundle / "push/infer_kernel.py", bundle)
    assert code == 2 and "BundleHashMismatch" in out


def test_the_forecast_names_the_competition(tmp_path: Path) -> None:
    kernel, beside = tmp_path / "infer_kernel.py", tmp_path / "kernel-metadata.json"
    assert command.name_competition(kernel) is None
    beside.write_text('{"competition_sources": ["birdclef-2026"]}')
    assert "the competition birdclef-2026" in str(command.name_competition(kernel))
    beside.write_text('{"competition_sources": []}')
    assert "NO COMPETITION" in str(command.name_competition(kernel))
    beside.write_text("[]")
    with pytest.raises(SpecError, match="kernel-metadata.json: cannot be read"):
        command.name_competition(kernel)


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = command.main(["--bundle", "b", "--clips", "c", "--ram", "1 elephant"], str(KERNEL))
    except SystemExit as error:  # argparse's own way to refuse an argument
        code = int(error.code or 0)
    assert code == 2 and "'1 elephant' is no amount of memory" in capsys.readouterr().err


# -- the rerun's traps


def rerun(place: Path, bundle: Path, header: str, ids: list[str], clips: list[str]) -> GuardRun:
    fill(place / "in/test", clips)
    (place / "in/test").mkdir(parents=True, exist_ok=True)
    (place / "in/sample_submission.csv").write_text(
        "\n".join([header, *(f"{id},0,0,0" for id in ids)]) + "\n"
    )
    return run_guard(place, bundle, seconds=40)


def cells(run: GuardRun) -> dict[str, dict[str, str]]:
    """Row id -> column -> cell."""
    header, *rows = (line.split(",") for line in run.submission.splitlines())
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_the_rerun_is_another_set(tmp_path: Path, tiny_bundle: Path) -> None:
    """The rerun has more rows, another order of rows and columns, clips missing, clips nobody asked for."""
    ids = [f"c{i}.wav" for i in range(3)]
    commit = rerun(tmp_path / "commit", tiny_bundle / "bundle", "fname,bark,meow,hiss", ids, ids)
    hidden = ["c7.wav", "c1.wav", "gone1.wav", "c2.wav", "c5.wav", "c0.wav", "gone2.wav"]
    run = rerun(tmp_path / "rerun", tiny_bundle / "bundle", "fname,hiss,bark,meow", hidden,
                [*(id for id in hidden if "gone" not in id), "extra1.wav", "extra2.wav"])
    assert commit.code == run.code == 0
    before, after = cells(commit), cells(run)
    assert list(after) == hidden and {id: after[id] for id in ids} == before, (
        "by name, whatever stands around it"
    )
    assert run.report["prior_rows"] == 2 and set(run.report["broken_rows"]) == {"gone1.wav", "gone2.wav"}
    assert run.report["extra_clips"] == 2 and run.submission.startswith("fname,hiss,bark,meow\n")
    assert len({*after["gone1.wav"].values()}) == 1


def test_an_empty_test_folder_at_save_version(tmp_path: Path, tiny_bundle: Path) -> None:
    run = rerun(tmp_path, tiny_bundle / "bundle", "fname,bark,meow,hiss", ["a.wav", "b.wav", "c.wav"], [])
    assert run.code == 0 and run.report["prior_rows"] == 3 and len(cells(run)) == 3
    assert "no clip of the sample is there" in run.out and "--simulate-commit" in run.out
    assert "Save Version" in (run.working / "report.html").read_text()


@pytest.mark.faults
def test_a_split_bundle_with_an_attached_file_is_rehearsed_whole(tmp_path: Path, tiny_bundle: Path) -> None:
    """Code, weights and a file out of a model, each where Kaggle mounts it; then without the model."""
    source = 'source = { model = "o/m/PyTorch/v/1", local = "copy.safetensors" }'
    toml = TINY.read_text(encoding="utf-8").replace('name = "tiled"\n', f'name = "tiled"\n{source}\n')
    (tmp_path / "apart.toml").write_text(toml, encoding="utf-8")
    shutil.copyfile(tiny_bundle / "bundle/tiled.0.safetensors", tmp_path / "copy.safetensors")
    out = tmp_path / "out"
    assembly.build(order(out, ensemble=tmp_path / "apart.toml", split=True), say=lambda _: None)
    code, said = rehearse(tmp_path, out / "push/infer_kernel.py", out / "bundle")
    assert code == 0 and "\nPASS:" in said, said
    apart = (tmp_path / "working/submission.csv").read_bytes()
    rehearse(tmp_path, tiny_bundle / "push/infer_kernel.py", tiny_bundle / "bundle")
    assert apart == (tmp_path / "working/submission.csv").read_bytes()
    (tmp_path / "nothing").mkdir()
    code, said = rehearse(tmp_path, out / "push/infer_kernel.py", out / "bundle",
                          "--attached", str(tmp_path / "nothing"))
    assert code == 1 and "1 nets failed: tiled.0" in said and "out of the model o/m/PyTorch/v/1" in said


@pytest.mark.faults
@pytest.mark.fault(row=97, injection="a net that opens a file of this machine when it is built",
                   outcome="the build passes, the rehearsal names the file and fails")
def test_a_net_that_depends_on_this_machine_fails_the_rehearsal(tmp_path: Path) -> None:
    (tmp_path / "stats.txt").write_text("1.0")
    text = (TESTS / "ensembles" / "my_net.py").read_text(encoding="utf-8")
    stats = repr(str(tmp_path / "stats.txt"))
    text += f"\n\nfrom pathlib import Path\nSCALE = float(Path({stats}).read_text())\n"
    (tmp_path / "my_net.py").write_text(text, encoding="utf-8")
    toml = TINY.read_text(encoding="utf-8").replace('"simple_cnn"', '"my_net.py:MyNet"') \
        .replace("{ base = 4, channels = 1 }", "{}")
    (tmp_path / "own.toml").write_text(toml, encoding="utf-8")
    assembly.build(order(tmp_path / "out", ensemble=tmp_path / "own.toml"), say=lambda _: None)
    code, said = rehearse(tmp_path, tmp_path / "out/push/infer_kernel.py", tmp_path / "out/bundle")
    named = f"asked for what is not there on Kaggle: {tmp_path / 'stats.txt'}; put it"
    assert code == 1 and named in said, said
    assert "2 nets failed: plain.0, plain.1" in said
