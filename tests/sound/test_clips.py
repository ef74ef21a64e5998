"""Which file an id means: folders, names, ambiguity and links."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernel.errors import ClipUnreadable
from kernel.sound.clips import _tail_start, find_clips
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


def test_a_folder_named_like_a_clip_is_listed_and_one_that_is_not_is_none(tmp_path: Path) -> None:
    plant(tmp_path, ["test/2.wav"])
    (tmp_path / "test/1.wav").mkdir()
    (tmp_path / "test/notes").mkdir()
    index = find_clips(tmp_path, ["1.wav", "2.wav", "notes"])
    assert index.files == ("test/1.wav", "test/2.wav")
    assert index.path("1.wav") == tmp_path / "test/1.wav" and index.path("notes") is None
    assert index.extra == 0 and find_clips(tmp_path, ["2.wav"]).extra == 1


def test_among_equals_the_folder_with_most_ids_directly_in_it_is_meant(tmp_path: Path) -> None:
    plant(tmp_path, ["z/1.wav", "z/2.wav", "test/deep/1.wav", "test/other/2.wav"])
    assert find_clips(tmp_path, ["1.wav", "2.wav"]).folder == tmp_path / "z"


def test_among_equals_the_deepest_is_meant_then_the_first_by_name(tmp_path: Path) -> None:
    plant(tmp_path, ["b/1.wav", "a/1.wav"])
    assert find_clips(tmp_path, ["1.wav"]).folder == tmp_path / "a"
    plant(tmp_path, ["c/deep/1.wav"])
    assert find_clips(tmp_path, ["1.wav"]).folder == tmp_path / "c/deep"
    plant(tmp_path, ["d/TEST/1.wav", "e/f/g/1.wav"])
    assert find_clips(tmp_path, ["1.wav"]).folder == tmp_path / "d/TEST"
    assert find_clips(tmp_path, ["none"]).folder == tmp_path


def test_a_folder_resolves_an_id_by_stem_only_where_no_file_has_its_name(tmp_path: Path) -> None:
    """In b, one name beside two stems; in c, two stems; in d, one stem."""
    plant(tmp_path, ["b/1", "b/1.wav", "b/1.mp3", "c/1.wav", "c/1.mp3", "d/1.wav"])
    index = find_clips(tmp_path, ["1"])
    assert index.folder == tmp_path / "b" and index.path("1") == tmp_path / "b/1"
    (tmp_path / "b/1").unlink()
    index = find_clips(tmp_path, ["1"])
    assert index.folder == tmp_path / "d" and index.path("1") == tmp_path / "d/1.wav"
    plant(tmp_path, ["e/x/1", "e/y/1"])
    assert find_clips(tmp_path, ["1"]).folder == tmp_path / "e/x"  # from e both are meant


def test_where_the_last_parts_of_a_path_begin() -> None:
    assert [_tail_start("a/bb/c.wav", depth) for depth in (1, 2, 3, 4, 5)] == [5, 2, 0, None, None]
    assert [_tail_start("c.wav", depth) for depth in (1, 2)] == [0, None]
    assert [_tail_start("/c", depth) for depth in (1, 2, 3)] == [1, 0, None]


def test_an_ambiguity_names_three_files_and_how_many_there_are(tmp_path: Path) -> None:
    plant(tmp_path, ["t/0.wav", *(f"t/{folder}/1.wav" for folder in "abcd")])
    told = str(find_clips(tmp_path, ["0.wav", "1.wav", "a/1.wav", "b/1.wav"]).error("1.wav"))
    assert "could mean 4 files" in told and "'a/1.wav', 'b/1.wav', 'c/1.wav';" in told


def test_other_ids_of_the_same_listing(tmp_path: Path) -> None:
    plant(tmp_path, ["t/1.wav", "t/2.wav"])
    other = find_clips(tmp_path, ["1.wav"]).of_ids(["2", "3"])
    assert set(other.paths) == {"2"} and other.extra == 1 and other.files == ("t/1.wav", "t/2.wav")


def test_links_inside_and_around_the_listing_are_not_followed_and_deeper_ones_never(tmp_path: Path) -> None:
    outside, second = plant(tmp_path / "one", ["1.wav"]), plant(tmp_path / "two", ["3.wav"])
    root = plant(tmp_path / "input", ["own/2.wav"])
    (root / "own/deep").symlink_to(outside, target_is_directory=True)
    assert find_clips(root, ["1.wav", "2.wav"]).roots == (root,)
    (root / "around").symlink_to(tmp_path, target_is_directory=True)
    (root / "inside").symlink_to(root / "own", target_is_directory=True)
    assert find_clips(root, ["2.wav"]).roots == (root,)
    for name, target in (("a", outside), ("b", second)):
        (root / name).symlink_to(target, target_is_directory=True)
    index = find_clips(root, ["1.wav", "2.wav", "3.wav"])
    assert set(index.roots) == {root, outside, second} and len(index.paths) == 3


def test_every_folder_and_entry_beats(tmp_path: Path) -> None:
    plant(tmp_path, ["a/1.wav", "a/2.wav", "b/3.wav"])
    beats = []
    find_clips(tmp_path, ["1.wav"], lambda: beats.append(1))
    assert len(beats) == 3 + 5  # three folders; two of them and three files are entries
