"""What is printed to be pasted, and `make upload`, run as they stand: the real client, a fake Kaggle."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import upload
from kernel.spec import load_ensemble, load_manifest
from tests.helpers import REPOSITORY
from tests.helpers.bundles import TINY
from tests.helpers.uploads import NAME, Place, make_version, needs_client

pytestmark = needs_client
COMPETITION = "freesound-audio-tagging-2019"


def paste(place: Place, block: str, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    """The block as a shell reads it from its prompt; `sleep` takes no time."""
    tools = place.home / "tools"
    tools.mkdir()
    (tools / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.05\n")
    (tools / "sleep").chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    return subprocess.run(
        [shell],
        input=f"{block}\necho code $?\n",
        env=place.environment(PATH=path),
        cwd=place.home,
        capture_output=True,
        text=True,
        timeout=60,
    )


def block_of(place: Place) -> str:
    return "\n".join(upload.list_commands(upload.check(place.out, say=lambda _: None)))


@pytest.mark.faults
@pytest.mark.parametrize("shell", ["sh", "bash", "zsh"])
def test_the_printed_block_does_everything(place: Place, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    place.server.processing = ["BLOBS_RECEIVED", "BLOBS_DECOMPRESSED"]
    place.server.kernel_states = ["QUEUED", "RUNNING", "COMPLETE"]
    done = paste(place, block_of(place), shell)
    assert "code 0" in done.stdout, done.stdout + done.stderr
    assert place.server.datasets[NAME].versions == [place.files()]
    (kernel,) = place.server.kernels[NAME]
    assert kernel["saw"] == {NAME: 1}
    (sent,) = place.server.submissions
    assert (sent["competitionName"], sent["kernelVersion"]) == (COMPETITION, 1)
    assert (sent["kernelSlug"], sent["fileName"]) == ("hourglass-tiny", "submission.csv")


@pytest.mark.faults
def test_the_printed_block_waits_for_the_new_version(place: Place, tmp_path: Path) -> None:
    make_version(place)
    place.server.processing = ["READY", "READY", "BLOBS_RECEIVED"]
    out = place.out.rename(tmp_path / "my 'own' $out")
    moved = Place(server=place.server, out=out, home=place.home)
    done = paste(moved, block_of(moved))
    assert "code 0" in done.stdout, done.stdout + done.stderr
    assert place.server.kernels[NAME][0]["saw"] == {NAME: 4}


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["taken", "version", "upload", "processing", "push", "sources", "kernel"])
def test_the_printed_block_stops_at_the_first_failure(place: Place, fault: str) -> None:
    server = place.server
    if fault == "taken":
        server.taken.add("Hourglass tiny")
    elif fault == "version":
        make_version(place)
        server.fail("CreateDatasetVersion", status=403, message="Permission was denied")
    elif fault == "upload":
        server.fail("upload", status=400)
    elif fault == "processing":
        server.processing = ["FAILED"]
    elif fault == "push":
        server.fail("SaveKernel", body={"error": "Maximum weekly GPU quota reached", "url": "", "ref": ""})
    elif fault == "sources":
        server.fail("SaveKernel", body={"versionNumber": 1, "invalidDatasetSources": [NAME], "url": ""})
    else:
        server.kernel_states = ["RUNNING", "ERROR"]
    done = paste(place, block_of(place))
    assert "code 1" in done.stdout, done.stdout + done.stderr
    assert not server.submissions and bool(server.kernels) == (fault == "kernel")
    assert "CreateDataset" not in server.calls or fault != "version"


def make_upload(place: Place, *variables: str) -> subprocess.CompletedProcess[str]:
    """`make upload` with a ready environment, from another folder."""
    ready = place.home / "ready"
    ready.write_text("")
    return subprocess.run(
        ["make", "-C", str(REPOSITORY), "upload", f"READY={ready}", f"PY={sys.executable}",
         f"OUT={place.out}", *variables],
        env=place.environment(),
        cwd=place.home,
        capture_output=True,
        text=True,
    )


@pytest.mark.faults
def test_make_upload_sends_what_lies_there(place: Place) -> None:
    done = make_upload(place, "OWNER=someone", "SLUG=mine-alone", "COMPETITION=birdclef-2026")
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.server.datasets["someone/mine-alone"].versions == [place.files()]
    (kernel,) = place.server.kernels["someone/mine-alone"]
    assert kernel["competitionDataSources"] == ["birdclef-2026"]
    assert "submit birdclef-2026 -k someone/mine-alone" in done.stdout


@pytest.mark.faults
def test_make_upload_builds_the_ensemble_that_is_named(place: Place, tmp_path: Path) -> None:
    text = TINY.read_text(encoding="utf-8").replace('name = "tiny"', 'name = "own"')
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    (tmp_path / "w e").mkdir()
    for path in (place.out / "bundle").glob("*.safetensors"):
        name = path.name.replace(".safetensors", "")
        member, fold = name.split(".")
        shutil.copy(path, tmp_path / "w e" / weights_name(member, int(fold)))
    variables = (f"ENSEMBLE={tmp_path / 'own.toml'}", f"WEIGHTS={tmp_path / 'w e'}", "OWNER=someone")
    done = make_upload(place, *variables)
    assert done.returncode == 0, done.stdout + done.stderr
    sent = place.server.datasets["someone/hourglass-own"].versions[0]
    assert load_manifest(sent["manifest.json"]).ensemble.name == "own" and "RANDOM" not in done.stdout


def weights_name(member: str, fold: int) -> str:
    part = next(each for each in load_ensemble(TINY).parts if each.name == member)
    return str(part.weights_file(fold))


def test_make_upload_needs_the_ensemble_of_weights(place: Place) -> None:
    done = make_upload(place, "WEIGHTS=somewhere")
    assert done.returncode != 0 and "WEIGHTS= needs ENSEMBLE=" in done.stderr and not place.server.calls


@pytest.mark.faults
def test_what_a_build_prints_names_competition_and_machine(tmp_path: Path) -> None:
    def build(*arguments: str, profile: str = "fat2019") -> str:
        text = TINY.read_text(encoding="utf-8")
        text = text.replace("[frontends", f'profile = "{profile}"\n\n[frontends', 1)
        (tmp_path / "my.toml").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "build_dataset.py"), "my.toml", "--out", "my out",
             "--random-weights", "--owner", "someone", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = build()
    assert f"competition {COMPETITION} is attached" in text and "--competition SLUG" in text
    assert f"'{tmp_path / 'my out' / 'bundle'}'" in text and "gated" not in text
    text = build("--machine", "NvidiaL4", profile="birdclef-cpu90")
    assert "NO COMPETITION is attached" in text and "NvidiaL4 is gated" in text and " submit " not in text
    text = build("--competition", "birdclef-2026", profile="birdclef-cpu90")
    assert "is attached" not in text and re.search(r"submit birdclef-2026 -k someone/hourglass-tiny", text)


