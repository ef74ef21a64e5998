"""Slow mounts: folders that take long to list."""
import time
from pathlib import Path

import pytest

import infer_kernel
from tests.helpers.guard_runs import GuardRun
from tests.helpers.hung_mount import hung_mount, needs_fuse
from tests.helpers.whole_runs import check, faulty_build, make_place, prior_rows, run_whole


@pytest.mark.faults
@pytest.mark.fault(
    row=89,
    injection="eight folders that take 1 s each to list, longer in all than an engine may be silent",
    outcome="no hang, no restart: the same bytes as without the fault",
)
def test_a_long_listing_is_no_hang(tmp_path: Path, unharmed: GuardRun) -> None:
    place = make_place(tmp_path)
    names = [f"slow{i}" for i in range(8)]
    for name in names:
        (tmp_path / "in" / name).mkdir()
    run = run_whole(place, faulty_build() / "bundle", seconds=24,
                    plan=[{"at": "list", "id": name, "do": "sleep", "seconds": 1} for name in names])
    check(run, reference=unharmed)
    assert run.report["guard"]["attempts"] == 1


@pytest.mark.faults
@pytest.mark.fault(
    row=89,
    injection="each header takes 1 s to be read, in all far longer than headers may take",
    outcome="lengths are guessed and that is said; the same bytes as without the fault",
)
def test_slow_headers_cost_the_plan_not_the_rows(tmp_path: Path, unharmed: GuardRun) -> None:
    slow = {"at": "probe", "do": "sleep", "seconds": 1, "times": 1}
    plan = [{**slow, "id": f"c{i:02d}.wav"} for i in range(1, 12)]
    run = run_whole(make_place(tmp_path), faulty_build() / "bundle", seconds=40, plan=plan)
    check(run, "SlowMount", reference=unharmed)
    assert run.report["guard"]["attempts"] == 1


@pytest.mark.fault(
    row=89,
    injection="a dataset before the competition that takes longer to list than a search may take",
    outcome="the competition's sample is found all the same",
)
@pytest.mark.parametrize("folder", ["", "zoo", "competitions/zoo", "zoo/data"])
def test_a_slow_dataset_hides_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "a_dataset" / "below").mkdir(parents=True)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "sample_submission.csv").write_text("fname,bark\na.wav,0\n")
    list_folder = infer_kernel.list_folder

    def list_slowly(path: str, *found: list[str]) -> None:
        time.sleep(0.2 * (Path(path).name == "a_dataset"))
        list_folder(path, *found)

    monkeypatch.setattr(infer_kernel, "SEARCH_S", 0.1)
    monkeypatch.setattr(infer_kernel, "list_folder", list_slowly)
    arguments = ["--input", str(tmp_path), "--working", str(tmp_path / "out")]
    sample = infer_kernel.find_sample(infer_kernel.Run(infer_kernel.make_parser().parse_args(arguments)))
    assert sample is not None and sample.ids == ["a.wav"]


@needs_fuse
@pytest.mark.faults
@pytest.mark.fault(
    row=92,
    injection="a clip that is never read to its end (a real FUSE server), in every life of the engine",
    outcome="two engines that cannot be killed are left behind, the clip is quarantined, the others scored",
)
def test_a_clip_that_never_comes_costs_its_row(tmp_path: Path, unharmed: GuardRun) -> None:
    place = make_place(tmp_path)
    place.clips.rename(tmp_path / "source")
    bundle = faulty_build() / "bundle"
    with hung_mount(tmp_path / "source", place.clips, "read", "c05.wav"):
        run = run_whole(place, bundle, seconds=60)
    check(run, "EngineStuck", reference=unharmed, affected={"c05.wav"})
    assert prior_rows(run) == {"c05.wav"} and "ClipQuarantined" in run.report["fault_counts"]
