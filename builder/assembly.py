"""One ensemble TOML -> DIR/bundle and DIR/push, complete or not at all.

Owns the order of a build: everything that can be refused is refused first, then all is written to a folder
beside the target, checked as an upload, and moved into place. Does not know Kaggle's rules (metadata,
contents) or formats (weights).
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import kernel
from kernel.bundle import parse_state
from kernel.errors import ModelLoadFailed, SpecError
from kernel.limits import PROFILES, limits
from kernel.pin import SCRIPT, constant, fill_constant
from kernel.sound import frontends
from kernel.spec import Cost, Ensemble, FileEntry, Manifest, Member, Stacker, Wheel, dumps_json, load_ensemble

from . import contents, metadata, push, recipe, trial, weights, wheel

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1
PLACEHOLDER_OWNER = "your-kaggle-name"
GPU_MACHINE = "NvidiaTeslaT4"  # the default GPU machine (two cards)
COMPETITIONS = {"fat2019": "freesound-audio-tagging-2019"}  # profile -> competition to attach
PREFIX = ".building-"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be built; the command line's values.

    weights         folder of checkpoints; None: `weights/` beside the TOML, the TOML's folder, `weights/` of
                    the repository
    costs           report.json of a rehearsal: measured seconds enter the manifest
    back_end        "openvino" or "onnxruntime" wheels ride along
    machine         accelerator of the kernel, "cpu", or None: by the profile
    """

    ensemble: Path
    out: Path
    owner: str = PLACEHOLDER_OWNER
    slug: str | None = None
    title: str | None = None
    licence: str = "other"
    competition: str | None = None
    machine: str | None = None
    weights: Path | None = None
    random_weights: bool = False
    costs: Path | None = None
    back_end: str | None = None
    export_onnx: bool = False
    notebook: bool = False


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build left behind."""

    out: Path
    manifest: Manifest
    slug: str
    competition: str | None
    filled: tuple[str, ...]


def weights_folders(order: Order) -> list[Path]:
    """Folders searched for checkpoints, in order."""
    if order.weights is not None:
        if not order.weights.is_dir():
            raise SpecError(f"--weights {order.weights}: no such folder")
        return [order.weights]
    beside = order.ensemble.resolve().parent
    return [beside / "weights", beside, ROOT / "weights"]


def _find_sources(
    parts: list[Member | Stacker], modules: dict[str, Any], order: Order
) -> tuple[list[weights.Source], list[str]]:
    """Sources of all nets in order, and the ids of those to be filled with random values.

    Raises  ModelLoadFailed listing every checkpoint that is missing
    """
    folders, sources, missing, filled = weights_folders(order), [], [], []
    families = {part.name: part for part in parts}

    @lru_cache(maxsize=1)  # the folds of a member are alike and follow each other
    def fill(name: str) -> bytes:
        gain = recipe.gain_of(families[name].family, families[name].params)
        return weights.to_blob(recipe.random_state(modules[name], gain), name)

    for part in parts:
        for fold in part.folds:
            name, module = part.weights_file(fold), modules[part.name]  # type: ignore[misc]  # one function, two classes
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise SpecError(f"{part.name}.weights: {name!r}; a name below the weights folder")
            path = weights.find_weights(name, folders)
            kind = "onnx" if part.family == trial.ONNX else "safetensors"
            if path is None and not (order.random_weights and module is not None):
                missing.append(f"{part.name}.{fold}: {name}")
                continue
            if path is None:
                filled.append(f"{part.name}.{fold}")
            read = _reader(path, part, module, fill)
            sources.append(weights.Source(member=part.name, fold=fold, kind=kind, read=read))
    if missing:
        raise ModelLoadFailed(
            "no checkpoint for\n  "
            + "\n  ".join(missing)
            + "\nin "
            + ", ".join(map(str, folders))
            + "\ngive --weights DIR, or --random-weights to time the ensemble without them"
        )
    return sources, filled


def _reader(
    path: Path | None, part: Member | Stacker, module: Any, fill: Callable[[str], bytes]
) -> Callable[[], bytes]:
    """How to get the bytes of one net: filled, as they are, or checked against the net."""
    if path is None:
        return lambda: fill(part.name)
    if part.family == trial.ONNX:
        return path.read_bytes
    return lambda: weights.load_blob(path, part.family, part.params, module)


def _measured(path: Path | None) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """(member -> seconds (a, b per frame), front end -> seconds per second of audio) of a rehearsal's
    report.json.

    Raises  SpecError when the file holds no costs
    """
    if path is None:
        return {}, {}
    try:
        costs = json.loads(path.read_bytes())["costs"]
        members = {
            str(k): (float(v["seconds_a"]), float(v["seconds_b"])) for k, v in costs["members"].items()
        }
        return members, {str(k): float(v) for k, v in costs["frontends"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"--costs {path}: no measured costs ({type(error).__name__}: {error}); give the report.json of a "
            "rehearsal"
        ) from error


def _try_parts(ensemble: Ensemble, modules: dict[str, Any], sources: list[weights.Source],
               seconds: dict[str, tuple[float, float]]) -> dict[str, Cost]:
    """Cost of each member and stacker, after the first fold of each ran once."""
    costs: dict[str, Cost] = {}
    parts: list[Member | Stacker] = [*ensemble.members, *ensemble.stackers]
    for part in parts:
        blob, module = next(s for s in sources if s.member == part.name).read(), modules[part.name]
        if isinstance(part, Stacker):
            cost = trial.try_stacker(part, len(ensemble.classes), parse_state(blob, part.name), module)
        elif part.family == trial.ONNX:
            cost = trial.try_onnx(ensemble, part, blob)
        else:
            cost = trial.try_member(ensemble, part, parse_state(blob, part.name), module)
        if part.name in seconds:
            cost = replace(cost, seconds_a=seconds[part.name][0], seconds_b=seconds[part.name][1])
        costs[part.name] = cost
    return costs


def make_manifest(*, ensemble: Ensemble, wheel: Wheel, files: dict[str, FileEntry], nets: tuple[Any, ...],
                  **more: Any) -> Manifest:
    """The manifest with its bundle id: the same content has the same id on every machine."""
    classes = len(ensemble.classes)
    manifest = Manifest(
        format=FORMAT,
        bundle="",
        version=kernel.__version__,
        ensemble=ensemble,
        wheel=wheel,
        files=files,
        nets=nets,
        prior=ensemble.prior or (1.0 / classes,) * classes,
        profiles=PROFILES,
        **more,
    )
    plain = {k: v for k, v in asdict(manifest).items() if k not in ("format", "bundle")}
    return replace(manifest, bundle=hashlib.sha256(dumps_json(plain)).hexdigest()[:16])


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside the results; gone afterwards, and so are those that dead builds left."""
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(PREFIX + "*"):
        process = left.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def put_in_place(folder: Path, out: Path) -> None:
    """Swap the finished `bundle` and `push` of `folder` with those of `out`."""
    for name in ("bundle", "push"):
        if (out / name).exists():
            os.rename(out / name, folder / f"old-{name}")
        os.rename(folder / name, out / name)


def build(order: Order, say: Callable[[str], None] = print) -> Built:
    """`bundle/` and `push/` below `order.out`, replaced together at the end; on any error they stay as they
    were.

    Raises  SpecError, ModelLoadFailed, UploadError: each names the key, file or field and the rule
    """
    local = trial.resolve_custom(load_ensemble(order.ensemble), order.ensemble.resolve().parent)
    ensemble = local.near
    if ensemble.profile not in PROFILES:
        raise SpecError(
            f"{order.ensemble}: profile {ensemble.profile!r} is unknown; choose one of: {', '.join(PROFILES)}"
        )
    slug, title = metadata.name_dataset(ensemble.name, order.slug, order.title)
    papers = _papers(order, slug, title, ensemble)
    seconds, frontend_seconds = _measured(order.costs)
    parts: list[Member | Stacker] = [*ensemble.members, *ensemble.stackers]
    modules = {
        p.name: None if p.family == trial.ONNX else trial.build_module(p, len(ensemble.classes))
        for p in parts
    }
    trial.check_back_end(ensemble, order.back_end)
    sources, filled = _find_sources(parts, modules, order)
    costs = _try_parts(ensemble, modules, sources, seconds)
    for name, keys in ensemble.frontends.items():
        fe = frontends.build(keys)
        if fe.empty_filters:
            say(
                f"front end {name}: {fe.empty_filters} of {fe.mels} mel filters lie between two FFT bins and give nothing; right "
                "only if the checkpoints were trained so, else raise n_fft or fmin, or lower mels"
            )
    say(f"{len(sources)} nets of {len(parts)} members and stackers fit; writing {order.out}")
    with staging(order.out) as folder:
        (folder / "bundle").mkdir()
        extra, graphs = _write_back_ends(order, folder / "bundle", ensemble, modules, sources)
        packed = len(sources) > weights.MAX_SINGLE_FILES or \
            weights.count_files(sources, False) + len(extra) + 3 > contents.MAX_FILES
        nets, files = weights.write_nets(folder / "bundle", sources, packed)
        code = {**wheel.kernel_files(ROOT), **wheel.custom_files(local.custom)}
        manifest = make_manifest(
            ensemble=local.shipped,
            wheel=wheel.write_wheel(folder / "bundle", kernel.__version__, code),
            files={**files, **extra},
            nets=tuple(nets),
            costs=costs,
            graphs=graphs,
            frontend_seconds=frontend_seconds,
            random_weights=bool(filled),
        )
        _write_papers(folder, manifest, papers, slug, order.notebook)
        contents.check_bundle(folder / "bundle")
        put_in_place(folder, order.out)
    return Built(
        out=order.out, manifest=manifest, slug=slug, competition=papers["competition"], filled=tuple(filled)
    )


def _papers(order: Order, slug: str, title: str, ensemble: Ensemble) -> dict[str, Any]:
    """Both metadata, checked before anything is written."""
    gpu = bool(asdict(limits(ensemble.profile))["gpu"])
    machine = None if order.machine == "cpu" else order.machine or (GPU_MACHINE if gpu else None)
    competition = order.competition or COMPETITIONS.get(ensemble.profile)
    code = push.NOTEBOOK if order.notebook else SCRIPT
    dataset = metadata.dataset_metadata(
        owner=order.owner, slug=slug, title=title, licence=order.licence, about=ensemble.about
    )
    kernel_data = metadata.kernel_metadata(
        owner=order.owner, slug=slug, title=title, code_file=code, machine=machine, competition=competition
    )
    metadata.check_dataset(dataset)
    metadata.check_kernel(kernel_data)
    return {"dataset": dataset, "kernel": kernel_data, "competition": competition}


def _write_papers(
    folder: Path, manifest: Manifest, papers: dict[str, Any], slug: str, notebook: bool
) -> None:
    """Manifest, metadata and the files to push."""
    text = dumps_json(manifest)
    (folder / "bundle" / "manifest.json").write_bytes(text)
    (folder / "bundle" / contents.METADATA).write_bytes(dumps_json(papers["dataset"]))
    value = constant(
        manifest, hashlib.sha256(text).hexdigest(), asdict(limits(manifest.ensemble.profile)), slug
    )
    source = fill_constant((ROOT / SCRIPT).read_text(encoding="utf-8"), value)
    contents.check_secrets(SCRIPT, source.encode())
    target = folder / "push"
    target.mkdir()
    (target / SCRIPT).write_bytes(source.encode())
    if notebook:
        (target / push.NOTEBOOK).write_bytes(push.notebook(source))
        contents.check_notebook(target / push.NOTEBOOK)
    (target / "kernel-metadata.json").write_bytes(dumps_json(papers["kernel"]))
    metadata.check_kernel(papers["kernel"], target)


def _write_back_ends(order: Order, folder: Path, ensemble: Ensemble, modules: dict[str, Any],
                     sources: list[weights.Source]) -> tuple[dict[str, FileEntry], dict[str, dict[str, str]]]:
    """Files of optional back ends (wheels and exported graphs), and which graph belongs to which net."""
    graphs: dict[str, dict[str, str]] = {}
    if order.back_end:
        from . import wheels

        wheels.collect(order.back_end, folder)
    if order.export_onnx:
        from . import graphs as exporter

        graphs = exporter.export(folder, ensemble, modules, sources)
    return {path.name: FileEntry(bytes=path.stat().st_size, sha256=contents.file_sha256(path))
            for path in sorted(folder.iterdir())}, graphs
