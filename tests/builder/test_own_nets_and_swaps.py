"""A build is all or nothing: odd own nets, folders that refuse, and the swap with the build before."""
from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import build_dataset
import infer_kernel
from builder import assembly, code_wheel, dry_run, mounts, staging
from kernel.errors import OutputUnwritable, SpecError, UploadError
from tests.helpers.bundles import TINY, copy_of_build, order

NET = """
from torch import nn
class MyNet(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        BUILD
        self.head = nn.Linear(1, classes)
    def forward(self, x):
        out = self.head(x.mean((1, 2, 3))[:, None])
        return OUT
"""


def own_ensemble(folder: Path, text: str, name: str = "my_net.py") -> Path:
    """The tiny ensemble with an own net in a file called `name`."""
    (folder / name).write_text(text, encoding="utf-8")
    toml = TINY.read_text(encoding="utf-8").replace('"simple_cnn"', repr_toml(f"{name}:MyNet"))
    for params in ("{ base = 4, channels = 1 }", "{ base = 4 }"):
        toml = toml.replace(params, "{ width = 5 }")
    (folder / "own.toml").write_text(toml, encoding="utf-8")
    return folder / "own.toml"


def repr_toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace("\n", "\\n") + '"'


def read_all(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# Own nets

NAMES = ("m\u00fc net.py", "my\u00a0net.py", "my\\net.py", "my\nnet.py", "\u202egnp.py")


@pytest.mark.parametrize("name", [*NAMES, "my_net.py", "a\x7f.py", "", ".", "..", "a/b.py"])
def test_the_builder_takes_the_names_that_the_guard_takes(name: str) -> None:
    assert code_wheel.is_shippable(name) == infer_kernel.is_safe(name) or "/" in name


@pytest.mark.parametrize("name", NAMES)
def test_an_own_file_is_refused_or_reaches_the_kernel(name: str, tmp_path: Path) -> None:
    toml = own_ensemble(tmp_path, NET.replace("BUILD", "pass").replace("OUT", "out"), name)
    if infer_kernel.is_safe(name):
        assembly.build(order(tmp_path / "o", ensemble=toml), say=lambda _: None)
        mounts.confirm(tmp_path / "o")
    else:
        with pytest.raises(SpecError, match="characters that the kernel refuses; rename it"):
            assembly.build(order(tmp_path / "o", ensemble=toml), say=lambda _: None)
        assert not (tmp_path / "o").exists()


def test_a_bundle_that_the_kernel_refuses_is_no_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_wheel, "is_shippable", lambda name: True)
    toml = own_ensemble(tmp_path, NET.replace("BUILD", "pass").replace("OUT", "out"), "my\u00a0net.py")
    with pytest.raises(UploadError, match="the kernel refuses this bundle: BundleInvalid"):
        assembly.build(order(tmp_path / "o", ensemble=toml), say=lambda _: None)
    assert not list((tmp_path / "o").iterdir())


@pytest.mark.parametrize(
    "build, out, message",
    [
        ("raise SystemExit(0)", "out", "SystemExit: 0"),
        ("self.width.size", "out", "AttributeError"),
        ("pass", '{"scores": out}', "its forward gives a dict; let it return one tensor"),
        ("pass", "[out]", "gives a list"),
        ("pass", "None", "gives a NoneType"),
        ("pass", "out.to(int)", "gives torch.int64"),
        ("pass", "out + 1j", "gives torch.complex64"),
        ("pass", "out / 0 * 0", "gave values that are not finite"),
        ("pass", "out[:, :1]", r"gave \[1, 1\], expected one tensor or array \[1, 3\]"),
        ("pass", "1 / 0", "ZeroDivisionError"),
        ("pass", "exit(0)", "SystemExit"),
        ("raise GeneratorExit", "out", "GeneratorExit"),
        ("pass", '(_ for _ in ()).throw(BaseException("boo"))', "BaseException: boo"),
    ],
)
def test_a_net_that_gives_something_else_is_one_sentence(
    build: str, out: str, message: str, tmp_path: Path
) -> None:
    toml = own_ensemble(tmp_path, NET.replace("BUILD", build).replace("OUT", out))
    with pytest.raises(SpecError, match=message) as caught:
        assembly.build(order(tmp_path / "o", ensemble=toml), say=lambda _: None)
    assert "plain" in str(caught.value) or "my_net.py" in str(caught.value)


@pytest.mark.parametrize(("shape", "fits"), [((1, 7, 3), True), ((1, 3), False), ((1, 7, 4), False),
                                              ((2, 7, 3), False), ((1, 7, 3, 1), False)])
def test_a_net_whose_rows_are_made_of_frames_gives_them(shape: tuple[int, ...], fits: bool) -> None:
    if fits:
        dry_run._check_answer("net", torch.zeros(shape), 3, framed=True)
        return
    with pytest.raises(SpecError, match=r"expected one tensor or array \[1, frames, 3\]"):
        dry_run._check_answer("net", torch.zeros(shape), 3, framed=True)


def test_a_file_that_leaves_the_process_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, words in (
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        ("raise GeneratorExit\n", "GeneratorExit: "),
        ("import asyncio\nraise asyncio.CancelledError('x')\n", "CancelledError: x"),
    ):
        toml = own_ensemble(tmp_path, text)
        assert build_dataset.main([str(toml), "--out", str(tmp_path / "o")]) == 1
        assert f"my_net.py: {words}" in capsys.readouterr().err
        assert not (tmp_path / "o").exists()


# The swap


def refuse(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The system refuses to rename whatever has `part` in its path, once it was asked for the first time."""
    rename = os.rename
    refused = []

    def refusing(source: Path, target: Path) -> None:
        if part in f"{source} {target}" and not refused:
            refused.append(source)
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        rename(source, target)

    monkeypatch.setattr(staging.os, "rename", refusing)


@pytest.mark.parametrize("part", ["old-bundle", "old-push", "/push ", "/bundle "])
def test_a_swap_that_is_refused_leaves_the_build_before(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of_build(tmp_path / "out")
    before = read_all(out)
    refuse(monkeypatch, part)
    with pytest.raises(OutputUnwritable, match=r"out: Permission denied.*--out.*untouched"):
        with staging.staging(out) as folder:
            for name in staging.NAMES:
                (folder / name).mkdir()
            staging.put_in_place(folder, out)
    assert read_all(out) == before and sorted(p.name for p in out.iterdir()) == ["bundle", "push"]


def test_what_cannot_be_put_back_is_kept_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = copy_of_build(tmp_path / "out")
    before = read_all(out)
    rename = os.rename

    def refusing(source: Path, target: Path) -> None:
        if Path(source).name == "push" or Path(target) == out / "bundle" and "old" in Path(source).name:
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        rename(source, target)

    monkeypatch.setattr(staging.os, "rename", refusing)
    with pytest.raises(OutputUnwritable, match="lie in .*building.* as old-bundle"):
        with staging.staging(out) as folder:
            for name in staging.NAMES:
                (folder / name).mkdir()
            staging.put_in_place(folder, out)
    monkeypatch.undo()
    kept = out / folder.name
    kept.rename(out / f"{staging.PREFIX}999999999-x")  # Its build is dead.
    with staging.staging(out):
        pass
    assert read_all(out) == before and sorted(p.name for p in out.iterdir()) == ["bundle", "push"]


@pytest.mark.parametrize("part", ["/push ", "/bundle "])
def test_a_first_build_that_is_refused_leaves_nothing(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, part)
    with pytest.raises(OutputUnwritable):
        assembly.build(order(tmp_path / "out"), say=lambda _: None)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    assembly.build(order(tmp_path / "out"), say=lambda _: None)
    mounts.confirm(tmp_path / "out")


@pytest.mark.parametrize("moves", range(5))
def test_a_build_killed_in_the_swap_is_undone_by_the_next(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of_build(tmp_path / "out")
    before = read_all(out)
    dead = out / f"{staging.PREFIX}999999999-x"
    dead.mkdir()
    for name in staging.NAMES:
        (dead / name).mkdir()
        (dead / name / "new").touch()
    done: list[Path] = []
    rename = os.rename

    class Killed(BaseException):
        pass

    def counted(source: Path, target: Path) -> None:
        if len(done) == moves:
            raise Killed
        done.append(source)
        rename(source, target)

    monkeypatch.setattr(staging.os, "rename", counted)
    with contextlib.suppress(Killed):
        staging.put_in_place(dead, out)
    monkeypatch.undo()
    with staging.staging(out):
        pass
    after = {"bundle/new": b"", "push/new": b""} if moves == 4 else before
    assert read_all(out) == after and not dead.exists()


def dead_build(out: Path, name: str) -> Path:
    """What a build leaves that was killed between the first move of its swap and the second."""
    dead = out / name
    for each in staging.NAMES:
        (dead / each).mkdir(parents=True)
    (out / "bundle").rename(dead / "old-bundle")
    return dead


def test_a_dead_build_is_undone_although_its_process_id_lives(tmp_path: Path) -> None:
    out = copy_of_build(tmp_path / "out")
    before = read_all(out)
    dead = dead_build(out, f"{staging.PREFIX}1-abcdefgh")
    (out / f"{staging.PREFIX}materials").mkdir()  # No build made it.
    with staging.staging(out):
        assert not dead.exists() and read_all(out).keys() >= before.keys()
    assert read_all(out) == before
    assert sorted(p.name for p in out.iterdir()) == [".building-materials", "bundle", "push"]


def test_a_build_that_lives_is_not_swept(tmp_path: Path) -> None:
    with staging.staging(tmp_path) as first, staging.staging(tmp_path) as second:
        staging.sweep(tmp_path)
        assert first.exists() and second.exists() and first != second
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_still_takes_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(staging.fcntl, "flock", none)
    with staging.staging(tmp_path) as first, staging.staging(tmp_path):
        assert first.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_in_the_swap_leaves_the_build_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of_build(tmp_path / "out")
    before = read_all(out)
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == "old-push":
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(staging.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staging.staging(out) as folder:
        for name in staging.NAMES:
            (folder / name).mkdir()
        staging.put_in_place(folder, out)
    assert read_all(out) == before and sorted(p.name for p in out.iterdir()) == ["bundle", "push"]


# Folders that refuse


@pytest.mark.parametrize("name", ["bundle", "push"])
@pytest.mark.parametrize("kind", ["thesis.txt", "manifest.json", "a file", "a link"])
def test_a_folder_that_no_build_wrote_is_not_replaced(name: str, kind: str, tmp_path: Path) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir()
    place = tmp_path / "elsewhere" if kind == "a link" else mine
    if kind == "a file":
        mine.write_text("years")
    else:
        place.mkdir()
        (place / ("thesis.txt" if kind == "a link" else kind)).write_text('{"name": "years"}')
    if kind == "a link":
        mine.symlink_to(place)
    before = read_all(tmp_path)
    with pytest.raises(OutputUnwritable, match=f"out/{name}: is there, and no earlier build wrote it"):
        assembly.build(order(tmp_path / "out"), say=lambda _: None)
    with pytest.raises(OutputUnwritable, match="move it away"):  # Also when it came during the build.
        staging.put_in_place(tmp_path, tmp_path / "out")
    assert read_all(tmp_path) == before


@pytest.mark.parametrize("broken", ["bundle/manifest.json", "push/kernel-metadata.json", None])
def test_a_build_that_was_damaged_or_is_empty_is_replaced(broken: str | None, tmp_path: Path) -> None:
    out = copy_of_build(tmp_path / "out") if broken else tmp_path / "out"
    if broken:
        (out / broken).write_text("junk")
    else:
        for name in staging.NAMES:
            (out / name).mkdir(parents=True)
    staging.check_replaceable(out)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A file system of 1 MB at `folder`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system of a fixed size may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["a file", "below a file", "a dangling link"])
def test_an_out_that_is_no_folder_is_one_sentence(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "a dangling link":
        out.symlink_to(tmp_path / "nowhere" / "x")
    else:
        out.write_text("mine")
    with pytest.raises(OutputUnwritable, match="give --out a folder that can be written"):
        assembly.build(order(out / "deeper" if kind == "below a file" else out), say=lambda _: None)
    assert kind == "a dangling link" or out.read_text() == "mine"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(tmp_path / "small"):
        (tmp_path / "small" / "filler").write_bytes(bytes(1_000_000))
        with pytest.raises(OutputUnwritable, match=r"No space left on device"):
            assembly.build(order(tmp_path / "small"), say=lambda _: None)
        assert [p.name for p in (tmp_path / "small").iterdir()] == ["filler"]


def test_the_command_says_what_the_system_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_dataset.main([str(TINY), "--random-weights", "--out", "/dev/null"]) == 1
    assert capsys.readouterr().err.startswith("OutputUnwritable: /dev/null: ")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))  # Where foreign checkpoints are read.
    (tmp_path / "plain_0.pth").write_bytes(b"x")
    weights = ["--weights", str(tmp_path), "--random-weights"]
    assert build_dataset.main([str(TINY), *weights, "--out", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("FileNotFoundError: ") and "absent" in error and error.count("\n") == 1


@pytest.mark.parametrize("slug", ["abc", "a" * 51, "Upper-Case", "two--hyphens"])
def test_a_refused_slug_is_named_as_it_was_typed(
    slug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(TINY), "--random-weights", "--out", str(tmp_path / "o"), "--owner", "me", "--slug", slug]
    assert build_dataset.main(words) == 1
    assert capsys.readouterr().err.startswith(f"UploadError: --owner me --slug {slug}: ")


def test_a_name_too_long_for_a_title_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(TINY.read_text(encoding="utf-8").replace('"tiny"', f'"{"m" * 64}"'))
    with pytest.raises(UploadError, match="made of the ensemble's name, has 74 characters; give --title"):
        assembly.build(order(tmp_path / "o", ensemble=tmp_path / "long.toml"), say=lambda _: None)


@pytest.mark.parametrize("costs", ['{"costs": NUMBERS}', "[" * 100_000])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", '"x"'])
def test_costs_that_are_no_seconds_are_one_sentence(costs: str, number: str, tmp_path: Path) -> None:
    numbers = f'{{"members": {{"plain": {{"seconds_a": {number}, "seconds_b": 0}}}}, "frontends": {{}}}}'
    (tmp_path / "report.json").write_text(costs.replace("NUMBERS", numbers))
    with pytest.raises(SpecError, match="--costs .*give the report.json of a rehearsal"):
        assembly.build(order(tmp_path / "o", costs=tmp_path / "report.json"), say=lambda _: None)


@pytest.mark.parametrize("old, new, names", [
    ('finish = ["delta"]', "finish = [-1]", r"finish\[0\]: -1; give a name"),
    ('finish = ["delta"]', 'finish = [["x"]]', r"finish\[0\]: \['x'\]; give a name"),
    ('finish = ["delta"]', "finish = [{ kind = [] }]", r"finish\[0\].kind: \[\] is unknown"),
    ('preset = "argus"', "preset = []", r"frontends.mel.preset: \[\] is unknown"),
    ("step = 128 }", "step = 128, merge = [0] }", r"view.merge: \[0\] is unknown"),
])
def test_values_of_another_kind_are_one_sentence(old: str, new: str, names: str, tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text(TINY.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(SpecError, match=names):
        assembly.build(order(tmp_path / "o", ensemble=tmp_path / "odd.toml"), say=lambda _: None)
