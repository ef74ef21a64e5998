"""Which file an id means: folders, names, ambiguity and links."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernel.errors import ClipUnreadable
from kernel.sound.clips import find_clips
from kernel.sound.rows import list_rows
from tests.helpers.sounds import plant, sound, write


@pytest.mark.parametrize("folder", ["test", "audio_test", "test_soundscapes", "competition/data/test", ""])
def test_the_clip_folder_is_the_one_that_resolves_most_ids(tmp_path: Path, folder: str) -> None:
    names = [f"{i}.wav" for i in range(5)]
    plant(tmp_path, [f"{folder}/{n}".lstrip("/") for n in names])
    plant(tmp_path, ["train/0.wav", "train/1.wav", "train/x.wav", "notes.txt"])
    index = find_clips(tmp_path, [*names, "missing.wav"])
    assert index.folder == tmp_path / folder
    assert [index.path(n) for n in names] == [tmp_path / folder / n for n in names]
    assert index.path("missing.wav") is None and "missing.wav" in str(index.error("missing.wav"))


def test_the_same_names_in_train_and_test_mean_the_test_clips(tmp_path: Path) -> None:
    plant(tmp_path, ["a_train/1.wav", "b_test/1.wav", "c_other/1.wav"])
    assert find_clips(tmp_path, ["1.wav"]).folder == tmp_path / "b_test"


def test_ids_are_paths_else_base_names_else_stems(tmp_path: Path) -> None:
    plant(
        tmp_path,
        ["clips/a/1.wav", "clips/a/2.wav", "clips/b/1.wav", "clips/b/3.ogg", "clips/4.flac", "clips/4.txt"],
    )
    index = find_clips(tmp_path, ["a/1.wav", "b/1.wav", "2.wav", "3", "4", "b/3"])
    found = {id: path.relative_to(tmp_path / "clips").as_posix() for id, path in index.paths.items()}
    assert found == {
        "a/1.wav": "a/1.wav",
        "b/1.wav": "b/1.wav",
        "2.wav": "a/2.wav",
        "3": "b/3.ogg",
        "4": "4.flac",
        "b/3": "b/3.ogg",
    }
    assert index.extra == 0


def test_an_id_that_could_mean_several_files_is_a_named_error_for_that_id_alone(tmp_path: Path) -> None:
    plant(tmp_path, ["test/a/1.wav", "test/b/1.wav", "test/c/2.wav", "test/5.wav", "test/5.flac"])
    index = find_clips(tmp_path, ["1.wav", "c/2.wav", "5", "2.wav"])
    assert index.path("1.wav") is None and index.ambiguous["1.wav"] == ("a/1.wav", "b/1.wav")
    assert index.path("5") is None and index.path("c/2.wav") is not None
    rows = list_rows(["1.wav"], index, None)
    assert isinstance(rows[0].clip.error, ClipUnreadable) and "'a/1.wav', 'b/1.wav'" in str(
        rows[0].clip.error
    )


def test_a_file_right_in_the_folder_is_meant_before_deeper_ones(tmp_path: Path) -> None:
    plant(tmp_path, ["test/1.wav", "test/old/1.wav", "test/2.wav"])
    index = find_clips(tmp_path, ["1.wav", "2.wav"])
    assert index.path("1.wav") == tmp_path / "test/1.wav" and index.extra == 1


def test_extra_audio_is_counted_in_the_clip_folder_only(tmp_path: Path) -> None:
    plant(tmp_path, ["test/1.wav", "test/2.wav", "test/3.mp3", "test/readme.md", "train/9.wav"])
    assert find_clips(tmp_path, ["1.wav"]).extra == 2


def test_thousands_of_neighbours_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for i in range(3000):
        os.close(os.open(tmp_path / "train" / f"{i}.wav", os.O_CREAT | os.O_WRONLY))
    plant(tmp_path, [f"test/t{i}.wav" for i in range(20)])
    index = find_clips(tmp_path, [f"t{i}.wav" for i in range(20)])
    assert len(index.paths) == 20 and index.folder == tmp_path / "test" and index.extra == 0


def test_a_dataset_may_be_a_link_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    outside = plant(tmp_path / "mount", ["sub/1.wav", "2.wav"])
    root = tmp_path / "input"
    root.mkdir()
    (root / "data").symlink_to(outside, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (outside / "up").symlink_to(tmp_path, target_is_directory=True)
    write(outside / "sub/1.wav", sound(0.1))
    index = find_clips(root, ["sub/1.wav", "2.wav"])
    assert len(index.paths) == 2
    assert list_rows(["sub/1.wav"], index, None)[0].clip.error is None
