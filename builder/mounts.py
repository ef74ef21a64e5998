"""What Kaggle does to an upload, and the proof that the pushed kernel still finds its bundle afterwards.

Owns the simulated mounts: every layout of /kaggle/input in use, every change seen on mounted files, next to a
competition of 50,000 clips. The finder tried is the one in OUT/push/infer_kernel.py itself. Source of layouts
and changes: Kaggle's documentation and public kernels of 2026. Does not change OUT.
"""
import gzip
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kernel.bundle import open_bundle
from kernel.errors import HourglassError, UploadError
from kernel.pin import SCRIPT
from kernel.spec import load_manifest

from .attached import SUFFIX
from .bundle_check import METADATA
from .staging import ATTACHED, WEIGHTS, staging

CLIPS = 50_000  # As many as the test folder of a large competition.
COMPETITION = "some-competition"
LAYOUTS = {  # Name -> folder below /kaggle/input, from owner and slug.
    "datasets": "datasets/{owner}/{slug}",
    "legacy": "{slug}",
    "notebooks": "notebooks/{owner}/{slug}",
    "models": "models/{owner}/{slug}/other/default/1",
    "other slug": "datasets/{owner}/renamed-{slug}",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One mount: how long the finder took, and what was lost (empty: nothing)."""

    layout: str
    change: str
    seconds: float
    lost: str


def leave(_folder: Path) -> None:
    """As uploaded."""


def wrap(folder: Path) -> None:
    """Everything one folder deeper, as after an upload as one archive."""
    inner = folder / folder.name
    entries = list(folder.iterdir())
    inner.mkdir()
    for entry in entries:
        entry.rename(inner / entry.name)


def unpack(folder: Path) -> None:
    """Archives unpacked to folders of their names, wheels too."""
    for path in [p for p in folder.rglob("*") if p.is_file() and zipfile.is_zipfile(p)]:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.with_suffix(""))
        path.unlink()


def unpack_twice(folder: Path) -> None:
    """Archives unpacked to x/x."""
    unpack(folder)
    for path in [p for p in folder.iterdir() if p.is_dir()]:
        wrap(path)


def rename(folder: Path) -> None:
    """Every file but the manifest under another name."""
    for path in [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]:
        path.rename(path.with_name(path.name.replace(".", "_", 1) + ".bin"))


def gunzip(folder: Path) -> None:
    """Every .gz replaced by its content under the shorter name; a bundle of ours has none."""
    for path in folder.rglob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def change_all(folder: Path) -> None:
    """Gunzipped, renamed, wrapped, and the wheel unpacked, at once."""
    gunzip(folder)
    unpack(folder)
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    wrap(folder)


CHANGES: dict[str, Callable[[Path], None]] = {
    "as uploaded": leave, "wrapper folder": wrap, "wheel unpacked": unpack, "unpacked to x/x": unpack_twice,
    "files renamed": rename, "gunzipped": gunzip, "all at once": change_all,
}


def load_kernel(path: Path) -> ModuleType:
    """The pushed kernel as a module; nothing of it runs.

    Raises  UploadError when there is none
    """
    if not path.is_file():
        raise UploadError(f"{path}: no kernel; build first")
    module = ModuleType("pushed_kernel")
    module.__file__ = str(path)
    # An import would leave __pycache__ in push/.
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


def confirm(folder: Path) -> None:
    """Nothing, when the kernel in `folder`/push takes manifest and code of the bundle in `folder`/bundle.

    Raises  UploadError with the kernel's own words: it would leave the prior in every row
    """
    kernel = load_kernel(folder / "push" / SCRIPT)
    try:
        _open_bundle(kernel, "--bundle", folder / "bundle", folder)
    except kernel.Fault as fault:
        raise UploadError(f"the kernel refuses this bundle: {fault.code}: {fault}") from fault


def _open_bundle(kernel: ModuleType, option: str, place: Path, working: Path) -> Any:
    """The kernel's own run once it has found and verified manifest and code; raises the kernel's Fault."""
    run = kernel.Run(kernel.make_parser().parse_args([option, str(place), "--working", str(working)]))
    run.input = str(place)
    kernel.open_bundle(run)
    return run


def make_competition(folder: Path, clips: int) -> None:
    """A competition's data: sample_submission.csv and a folder of `clips` empty clips."""
    (folder / "test").mkdir(parents=True)
    (folder / "sample_submission.csv").write_text("fname,a,b\n0.wav,0,0\n")
    for i in range(clips):
        os.close(os.open(folder / "test" / f"{i}.wav", os.O_CREAT | os.O_WRONLY))


def _mount(bundle: Path, target: Path) -> None:
    """The bundle as Kaggle mounts it: hard links, without the metadata that is never uploaded."""
    target.mkdir(parents=True)
    for path in bundle.iterdir():
        if path.name != METADATA:
            os.link(path, target / path.name)


def _mount_others(out: Path, root: Path, layout: str, slug: str) -> list[Path]:
    """What lies beside the bundle of `out`, mounted as well; gives the folders that were made.

    Its own weights have the bundle's layout, attached files that of their datasets and models.
    """
    made: list[Path] = []
    if (out / WEIGHTS).is_dir():
        made.append(root / LAYOUTS[layout].format(owner="someone", slug=slug + SUFFIX))
        _mount(out / WEIGHTS, made[-1])
    place = out / ATTACHED
    older = {"datasets": 2, "models": 2} if layout == "legacy" else {}  # datasets/OWNER/ was not there
    for path in place.rglob("*"):
        parts = path.relative_to(place).parts
        if path.is_symlink():
            target = root.joinpath(*parts[older.get(parts[0], 0):])
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), target)
            except OSError:  # It lies on another disk.
                target.symlink_to(path.resolve())
            made.append(target.parent)
    return list(dict.fromkeys(made))


def _try(kernel: ModuleType, root: Path, layout: str, change: str) -> Case:
    """Let the kernel find and verify manifest and code below `root`, then read every net."""
    began = time.monotonic()
    try:
        run = _open_bundle(kernel, "--input", root, root)
    except kernel.Fault as fault:
        return Case(
            layout=layout, change=change, seconds=time.monotonic() - began, lost=f"{fault.code}: {fault}"
        )
    seconds = time.monotonic() - began
    lost = []
    manifest = load_manifest(run.manifest_text)
    bundle = open_bundle(Path(run.bundle), manifest, root)
    for net in manifest.nets:
        try:
            bundle.read_net(net)
        except HourglassError as error:
            lost.append(f"{net.id}: {error}")
    for name, embedding in manifest.ensemble.embeddings.items():
        try:
            bundle.read_file(embedding.graph)
        except HourglassError as error:
            lost.append(f"embeddings.{name}: {error}")
    return Case(layout=layout, change=change, seconds=seconds, lost="; ".join(lost))


def simulate(out: Path, clips: int = CLIPS, layouts: Sequence[str] = tuple(LAYOUTS),
             changes: Sequence[str] = tuple(CHANGES)) -> list[Case]:
    """One case per layout and change, of the build in `out`.

    Raises  UploadError when there is no build
    """
    if not (out / "bundle" / "manifest.json").is_file():
        raise UploadError(f"{out}: no bundle; build first")
    kernel = load_kernel(out / "push" / SCRIPT)
    cases = []
    slug = str(kernel.CONSTANT["slug"])
    with staging(out) as folder:
        root = folder / "input"
        make_competition(root / "competitions" / COMPETITION, clips)
        for layout in layouts:
            if layout == "legacy":
                (root / "competitions" / COMPETITION).rename(root / COMPETITION)
            for change in changes:
                target = root / LAYOUTS[layout].format(owner="someone", slug=slug)
                _mount(out / "bundle", target)
                mounted = [target, *_mount_others(out, root, layout, slug)]
                for place in mounted:
                    CHANGES[change](place)
                cases.append(_try(kernel, root, layout, change))
                for place in mounted:
                    shutil.rmtree(place)
            if layout == "legacy":
                (root / COMPETITION).rename(root / "competitions" / COMPETITION)
    return cases


def table(cases: Sequence[Case]) -> str:
    """The cases for people, slowest finder named last."""
    lines = [f"{'layout':<12}{'change':<18}{'found in':>10}  result"]
    lines += [
        f"{case.layout:<12}{case.change:<18}{case.seconds:>8.3f} s  "
        + (case.lost or "manifest, code and every net verified")
        for case in cases
    ]
    worst = max(cases, key=lambda c: c.seconds)
    lines.append(
        f"{sum(not c.lost for c in cases)} of {len(cases)} mounts verified; slowest {worst.seconds:.3f} s "
        f"({worst.layout}, {worst.change})"
    )
    return "\n".join(lines)


def check(cases: Sequence[Case]) -> None:
    """Nothing, when nothing was lost on any mount.

    Raises  UploadError naming the first loss
    """
    for case in cases:
        if case.lost:
            raise UploadError(f"mount {case.layout!r}, {case.change!r}: {case.lost}")
