"""Labelled clips: every layout that is read, and the folds they are split into."""
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kernel.errors import SpecError
from training import data, folds

CLASSES = ("high", "low", "noise")


@pytest.fixture
def folder(tmp_path):
    """24 clips of three kinds in 12 takes; the last has no label."""
    rows = [{"fname": f"{i}.wav", "labels": CLASSES[i % 3] if i != 23 else "", "take": f"t{i // 6}{i % 3}"}
            for i in range(24)]
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def test_csv_adapter_reads_labels_groups_and_negatives(folder):
    clips = data.read_clips({"adapter": "csv", "group_column": "take"}, folder, CLASSES)
    assert len(clips) == 24 and clips.targets.sum() == 23 and not clips.targets[23].any()
    assert clips.groups[0] == "t00"


def test_unknown_label_is_named(folder):
    with pytest.raises(SpecError, match="nois"):
        data.read_clips({"adapter": "csv"}, folder, ("high", "low", "nois"))


def test_unknown_adapter_key_is_named(folder):
    with pytest.raises(SpecError, match="group_column"):
        data.read_clips({"adapter": "csv", "group_colum": "take"}, folder, CLASSES)


def test_fat2019_layout_marks_noisy_clips_and_drops_known_bad_ones(tmp_path):
    (tmp_path / "train_curated.csv").write_text('fname,labels\na.wav,"high,low"\nf76181c4.wav,low\n')
    (tmp_path / "train_noisy.csv").write_text("fname,labels\nb.wav,noise\n")
    clips = data.read_clips({"adapter": "fat2019"}, tmp_path, CLASSES)
    assert clips.ids == ("train_curated/a.wav", "train_noisy/b.wav")
    assert clips.noisy.tolist() == [False, True] and clips.targets.tolist() == [[1, 1, 0], [0, 0, 1]]


def test_single_label_csv_and_folder_layouts(tmp_path):
    (tmp_path / "train.csv").write_text("File,Label\nx.wav,low\n")
    adapter = {"adapter": "csv", "csv": "train.csv", "id_column": "File", "label_column": "Label",
               "separator": ""}
    clips = data.read_clips(adapter, tmp_path, CLASSES)
    assert clips.targets.tolist() == [[0, 1, 0]]
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "n.wav").write_bytes(b"")
    assert data.read_clips({"adapter": "folders"}, tmp_path, CLASSES).ids == ("noise/n.wav",)


def test_labelled_layout_keeps_licences_and_leaves_out_unsure_negatives(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "fname,labels,licence,licence_class,label_quality,group,fold,emotion\n"
        "a/1.wav,high,CC0,permissive,mapped_class,g1,2,\na/2.wav,,CC0,permissive,out_of_vocabulary,g2,,\n"
        "kitchen20/3.wav,,CC0,permissive,out_of_vocabulary,g3,,\na/4.wav,low,?,unrecorded,mapped_class,g4,,\n"
    )
    clips = data.read_clips({}, tmp_path, CLASSES)
    assert clips.ids == ("a/1.wav", "a/2.wav") and clips.fixed.tolist() == [1, -1]


def made_clips(rng, groups=40, per_group=4):
    names = [f"g{i // per_group}" for i in range(groups * per_group)]
    kinds = rng.integers(0, 5, groups)
    targets = np.zeros((len(names), 5), np.float32)
    targets[np.arange(len(names)), kinds[np.arange(len(names)) // per_group]] = 1
    targets[rng.random(len(names)) < 0.2, 0] = 1
    n = len(names)
    return data.Clips(
        folder=None,
        classes=tuple("abcde"),
        ids=tuple(map(str, range(n))),
        targets=targets,
        groups=tuple(names),
        fixed=np.full(n, -1),
        source=("",) * n,
        quality=("",) * n,
        noisy=np.zeros(n, bool),
    )


@pytest.mark.parametrize("seed", range(5))
def test_folds_keep_groups_together_and_classes_spread(seed):
    clips = made_clips(np.random.default_rng(seed))
    fold = folds.split(clips, 5, seed)
    for name in set(clips.groups):
        assert len({f for f, group in zip(fold, clips.groups, strict=True) if group == name}) == 1
    share = np.array([clips.targets[fold == f].sum(axis=0) for f in range(5)])
    ideal = clips.targets.sum(axis=0) / 5
    assert (np.abs(share - ideal) <= 8).all()  # Two groups of four clips.
    assert np.bincount(fold, minlength=5).min() >= 16


def test_folds_do_not_depend_on_the_order_and_follow_the_source():
    clips = made_clips(np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(len(clips))
    assert (folds.split(clips.take(order), 5, 3) == folds.split(clips, 5, 3)[order]).all()
    clips.fixed[:4] = 4
    assert set(folds.split(clips, 5, 3)[:4]) == {4}
