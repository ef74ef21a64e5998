"""Uploads as users live them: the command itself, the real `kaggle` client, a fake Kaggle beside them.

Each story looks at the exit code, at what the server has, and at what the user reads.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernel.pin import read_constant
from tests.helpers.fake_kaggle import KEY, REFRESH, TOKEN, USER
from tests.helpers.uploads import NAME, Place, check_failure, check_success, make_version, needs_client

TRY_AGAIN: dict[str, Any] = {"status": 429, "message": "Too Many Requests", "headers": {"Retry-After": "0"}}
pytestmark = needs_client

# The twelve stories


def test_new(place: Place) -> None:
    done = place.upload()
    check_success(place, done)
    assert f"{NAME}: version 1 is ready" in done.stdout and f"{NAME}: version 1 is pushed" in done.stdout
    assert "Upload successful: manifest.json" in done.stdout and "B/s" not in done.stdout + done.stderr


@pytest.mark.faults
def test_version(place: Place) -> None:
    make_version(place)
    place.server.processing = ["READY", "BLOBS_RECEIVED", "READY"]  # At first the old version is shown.
    check_success(place, place.upload(), number=4)


@pytest.mark.faults
def test_title_taken(place: Place) -> None:
    place.server.taken.add("Hourglass tiny")
    done = place.upload()
    check_failure(place, done, 'The requested title "Hourglass tiny" is already in use', "--slug")
    assert NAME not in place.server.datasets and "or try again" not in done.stderr


@pytest.mark.faults
def test_a_state_that_could_not_be_read_never_replaces_a_dataset(place: Place) -> None:
    make_version(place)
    place.server.fail("GetDatasetStatus", times=2, status=500, message="An error occurred")
    check_failure(place, place.upload(), "is already in use", "or try again", "An error occurred")
    assert len(place.server.datasets[NAME].versions) == 3


@pytest.mark.faults
def test_quota(place: Place) -> None:
    reason = "Maximum weekly GPU quota of 30.00 hours reached. Quota hours are renewed on Saturday."
    place.server.fail("SaveKernel", body={"error": reason, "url": "", "ref": ""})
    done = place.upload()
    check_failure(place, done, f"Kernel push error: {reason}", "kaggle quota", "kernels push -p")
    assert place.server.datasets[NAME].versions == [place.files()]


@pytest.mark.faults
def test_full_storage(place: Place) -> None:
    reason = "Dataset creation failed: your private storage of 200 GB is exceeded"
    place.server.fail("CreateDataset", status=400, message=reason)
    check_failure(place, place.upload(), reason, "kaggle.com/settings")


@pytest.mark.faults
@pytest.mark.parametrize("login", ["key", "token", "auth login"])
def test_bad_token(place: Place, login: str) -> None:
    shutil.rmtree(place.home / ".kaggle")
    environment = {}
    if login == "key":
        place.log_in(username=USER, key="1" * 32)
    elif login == "token":
        environment = {"KAGGLE_API_TOKEN": "KGAT_revoked"}
    else:
        place.log_in("credentials.json", refresh_token="revoked", username=USER)
    done = place.upload(**environment)
    expected = {
        "key": "Kaggle does not take the login of someone",
        "token": "access token in KAGGLE_API_TOKEN is unknown to Kaggle",
        "auth login": "what `kaggle auth login` left is no longer valid",
    }[login]
    check_failure(place, done, expected, "`kaggle auth login`")
    assert "KGAT_revoked" not in done.stdout + done.stderr and not place.server.datasets


@pytest.mark.faults
def test_too_many_requests_for_a_while(place: Place) -> None:
    place.server.fail("GetDatasetStatus", **TRY_AGAIN)
    place.server.fail("StartBlobUpload", times=2, **TRY_AGAIN)
    place.server.fail("CreateDataset", times=2, **TRY_AGAIN)
    check_success(place, place.upload())


@pytest.mark.faults
def test_too_many_requests_for_long(place: Place) -> None:
    place.server.fail("CreateDataset", times=99, **TRY_AGAIN)
    check_failure(place, place.upload(), "Too Many Requests", "wait some minutes")
    assert NAME not in place.server.datasets


@pytest.mark.faults
def test_too_many_requests_at_the_first_question(place: Place) -> None:
    place.server.fail("GetDatasetStatus", times=99, **TRY_AGAIN)
    check_failure(place, place.upload(), "Too Many Requests", "wait some minutes")
    assert place.server.calls == ["GetDatasetStatus"] * 4


@pytest.mark.faults
def test_dropped_connection_before_the_request_is_read(place: Place) -> None:
    place.server.fail("GetDatasetStatus")
    place.server.fail("StartBlobUpload")
    place.server.fail("upload")
    place.server.fail("CreateDataset")
    done = place.upload()
    check_success(place, done)
    assert "ConnectionResetError" in done.stdout + done.stderr  # Said by the client, and no reason to stop.


@pytest.mark.faults
def test_dropped_connection_after_the_request_was_served(place: Place) -> None:
    place.server.fail("CreateDataset", after=True)
    done = place.upload()
    check_success(place, done)
    assert "had arrived" in done.stdout


@pytest.mark.faults
def test_dropped_connection_at_the_push(place: Place) -> None:
    place.server.fail("SaveKernel")
    done = place.upload()
    check_failure(place, done, "ConnectionResetError", "the dataset is up", "kernels push -p")
    assert place.server.datasets[NAME].versions == [place.files()]


@pytest.mark.faults
def test_a_file_that_does_not_arrive(place: Place) -> None:
    place.server.fail("upload", status=400)
    check_failure(place, place.upload(), "Upload unsuccessful: ")


@pytest.mark.faults
def test_processing_failed(place: Place) -> None:
    place.server.processing = ["BLOBS_RECEIVED", "FAILED"]
    done = place.upload()
    check_failure(place, done, "could not process", "status failed", f"kaggle.com/datasets/{NAME}")
    assert place.server.calls.count("GetDatasetStatus") == 4  # Two before the upload, and two after it.


@pytest.mark.faults
def test_slug_with_error_in_it(place: Place) -> None:
    done = place.upload("--slug", "terror-sounds")
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.server.datasets["someone/terror-sounds"].versions == [place.files()]
    (kernel,) = place.server.kernels["someone/terror-sounds"]
    assert kernel["datasetDataSources"] == ["someone/terror-sounds"]
    assert read_constant(kernel["text"])["slug"] == "terror-sounds"  # type: ignore[index]


@pytest.mark.faults
def test_spaces_in_the_path(tmp_path: Path, place: Place) -> None:
    out = place.out.rename(tmp_path / "my own; $(touch no) 'out'")
    moved = Place(server=place.server, out=out, home=place.home)
    check_success(moved, moved.upload())


def test_missing_login(place: Place) -> None:
    shutil.rmtree(place.home / ".kaggle")
    done = place.upload()
    check_failure(place, done, "the kaggle client has no login", "`kaggle auth login`")
    assert not place.server.datasets


def test_missing_client(tmp_path: Path, place: Place) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    done = place.upload(python=str(python), PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    check_failure(place, done, "the kaggle client is not installed", "pip install kaggle")
    assert "kaggle datasets create" in done.stdout and place.server.calls == []


# Logins that the client takes


@pytest.mark.faults
@pytest.mark.parametrize(
    "login",
    ["access_token", "access_token.txt", "KAGGLE_API_TOKEN", "auth login", "folder", "XDG", "KAGGLE_KEY"],
)
def test_every_login_of_the_client_is_taken(place: Place, login: str) -> None:
    shutil.rmtree(place.home / ".kaggle")
    environment = {}
    if login.startswith("access_token"):
        place.log_in(login, text=TOKEN)
    elif login == "auth login":
        place.log_in("credentials.json", refresh_token=REFRESH, username=USER)
    elif login == "KAGGLE_API_TOKEN":
        environment = {"KAGGLE_API_TOKEN": TOKEN}
    elif login == "KAGGLE_KEY":
        environment = {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}
    else:
        place.log_in(folder="elsewhere/kaggle")
        where = str(place.home / "elsewhere")
        folder = {"KAGGLE_CONFIG_DIR": f"{where}/kaggle"}
        environment = {"XDG_CONFIG_HOME": where} if login == "XDG" else folder
    check_success(place, place.upload(**environment))


# What else a user does


def run_client(place: Place, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kaggle", *words], env=place.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.faults
def test_an_update_of_the_metadata_does_not_publish(place: Place) -> None:
    make_version(place)
    run_client(place, "datasets", "metadata", NAME, "--update", "-p", str(place.out / "bundle"))
    dataset = place.server.datasets[NAME]
    assert dataset.is_private and dataset.settings["isPrivate"] is True


@pytest.mark.faults
def test_a_file_of_datasets_metadata_is_completed_and_taken(place: Place) -> None:
    make_version(place)
    run_client(place, "datasets", "metadata", NAME, "-p", str(place.out / "bundle"))
    done = place.upload()
    check_success(place, done, number=4)
    assert f"completed with id {NAME}" in done.stdout


@pytest.mark.faults
def test_another_address_is_checked_before_anything_is_written(place: Place) -> None:
    before = {path: path.read_bytes() for path in place.out.rglob("*") if path.is_file()}
    for words in (("--slug", "short"), ("--owner", "so me"), ("--title", "x"), ("--competition", "a/b")):
        check_failure(place, place.upload(*words), "UploadError: ")
    assert {path: path.read_bytes() for path in place.out.rglob("*") if path.is_file()} == before
    assert not place.server.calls


@pytest.mark.faults
def test_a_log_of_the_client_shows_no_key(place: Place) -> None:
    done = place.upload(VERBOSE="true")
    check_success(place, done)
    assert "Authorization" not in done.stdout + done.stderr


@pytest.mark.faults
def test_a_dataset_that_is_not_shown_at_once(place: Place) -> None:
    place.server.fail("CreateDataset", status=403, message="Permission 'datasets.create' was denied")
    check_failure(place, place.upload(), "Permission 'datasets.create' was denied", "kaggle config view")
    for _ in range(2):  # The client asks for itself before it creates.
        place.server.fail("GetDatasetStatus", status=403, message="Permission 'datasets.get' was denied")
    check_success(place, place.upload())
