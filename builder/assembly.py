"""One ensemble TOML -> DIR/bundle and DIR/push, complete or not at all.

Owns the order of a build: everything that can be refused is refused first, then all is written to a folder
beside the target, checked as an upload, and moved into place. Does not know Kaggle's rules (metadata,
bundle_check) or formats of weights (weights).
"""
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import nn

import kernel
from kernel import models
from kernel.errors import ModelLoadFailed, SpecError, UploadError
from kernel.limits import PROFILES, limits
from kernel.pin import SCRIPT, constant, fill_constant
from kernel.scores.submission import check_form
from kernel.spec import Cost, Ensemble, FileEntry, Manifest, Part, Stacker, dumps_json, load_ensemble, net_ids

from . import (
    bundle_check,
    code_wheel,
    compare,
    dry_run,
    embeddings,
    graph_members,
    measured_costs,
    metadata,
    mounts,
    notebook,
    own_fronts,
    random_weights,
    watched,
    weights,
)
from .metadata import PLACEHOLDER_OWNER
from .staging import check_replaceable, put_in_place, staging

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1
GPU_MACHINE = "NvidiaTeslaT4"  # The default GPU machine (two cards).
COMPETITIONS = {"fat2019": "freesound-audio-tagging-2019"}  # Profile -> competition to attach.
OTHER_FILES = 3  # The wheel, the manifest and the metadata, beside nets, graphs and wheels of a back end.
Modules = Mapping[str, nn.Module]  # By member or stacker; a member that is a graph already has none.


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What is to be built; the command line's values.

    weights         folder of checkpoints; None: `weights/` beside the TOML, the TOML's folder, `weights/`
                    beside that folder (where training puts them), `weights/` of the repository
    costs           report.json of a rehearsal: measured seconds enter the manifest
    back_end        "openvino" or "onnxruntime" wheels ride along
    sample          the competition's sample submission, which must want what the ensemble writes
    machine         accelerator of the kernel, "cpu", or None: by the profile
    compare         .npz of what the training code gave; beyond the tolerance (None: the usual ones) the build
                    fails, unless compare_allow
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
    compare: Path | None = None
    compare_tolerance: float | None = None
    compare_allow: bool = False
    sample: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Papers:
    """Both metadata files of an upload, already checked against Kaggle's rules."""

    slug: str
    competition: str | None
    dataset: dict[str, Any]
    kernel: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build left behind."""

    manifest: Manifest
    papers: Papers
    filled: tuple[str, ...]


def weights_folders(request: BuildRequest) -> list[Path]:
    """Folders searched for checkpoints, in order."""
    if request.weights is not None:
        if not request.weights.is_dir():
            raise SpecError(f"--weights {request.weights}: no such folder")
        return [request.weights]
    beside = request.ensemble.resolve().parent
    return list(dict.fromkeys([beside / "weights", beside, beside.parent / "weights", ROOT / "weights"]))


def _find_sources(
    parts: Sequence[Part], modules: Modules, request: BuildRequest
) -> tuple[list[weights.Source], list[str]]:
    """Sources of all nets in order, and the ids of those to be filled with random values.

    Raises  ModelLoadFailed listing every checkpoint that is missing
    """
    folders = weights_folders(request)
    sources: list[weights.Source] = []
    missing: list[str] = []
    filled: list[str] = []
    by_name = {part.name: part for part in parts}

    @lru_cache(maxsize=1)  # The folds of a member are alike and follow each other.
    def fill(name: str) -> weights.Blob:
        state = random_weights.draw_state(modules[name], by_name[name].family, by_name[name].params)
        return weights.Blob(weights.to_blob(state, name))

    for part in parts:
        module = modules.get(part.name)
        for fold, net_id in zip(part.folds, net_ids(part), strict=True):
            name = part.weights_file(fold)  # type: ignore[misc]  # One function that both classes share.
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise SpecError(f"{part.name}.weights: {name!r}; a name below the weights folder")
            path = weights.find_weights(name, folders)
            if path is not None:
                read = partial(weights.load_blob, path, part.family, part.params, module, part)
            elif request.random_weights and module is not None:
                filled.append(net_id)
                read = partial(fill, part.name)
            else:
                missing.append(f"{net_id}: {name}")
                continue
            kind = "onnx" if module is None else "safetensors"
            sources.append(weights.Source(member=part.name, fold=fold, kind=kind, read=read))
    if missing:
        raise ModelLoadFailed(
            "no checkpoint for\n  " + "\n  ".join(missing) + "\nin " + ", ".join(map(str, folders))
            + "\ngive --weights DIR, or --random-weights to time the ensemble without them"
        )
    return sources, filled


def _try_parts(ensemble: Ensemble, modules: Modules, sources: list[weights.Source],
               seconds: dict[str, tuple[float, float]], graphs: embeddings.Graphs) -> dict[str, Cost]:
    """Cost of each member and stacker, after the first fold of each ran once."""
    connect = embeddings.open_here(ensemble, graphs).connect
    costs: dict[str, Cost] = {}
    for part in ensemble.parts:
        blob = next(source for source in sources if source.member == part.name).read()
        with watched.limited(f"the trial of {part.name!r} on {dry_run.SECONDS:g} s of sound"):
            if isinstance(part, Stacker):
                cost = dry_run.try_stacker(part, len(ensemble.classes), blob, modules[part.name])
            elif part.family == dry_run.ONNX:
                cost = dry_run.try_onnx(ensemble, part, blob)
            else:
                cost = dry_run.try_member(ensemble, part, blob, modules[part.name], connect)
        if part.name in seconds:
            cost = replace(cost, seconds_a=seconds[part.name][0], seconds_b=seconds[part.name][1])
        costs[part.name] = cost
    return costs


def _identify(manifest: Manifest) -> Manifest:
    """The manifest with its bundle id: the same content has the same id on every machine."""
    plain = {k: v for k, v in asdict(manifest).items() if k not in ("format", "bundle")}
    return replace(manifest, bundle=hashlib.sha256(dumps_json(plain)).hexdigest()[:16])


def _find_own_files(request: BuildRequest, say: Callable[[str], None]) -> code_wheel.OwnFiles:
    """The ensemble with its own files, tried; refused where OUT is not ours or the sample wants another form.
    """
    check_replaceable(request.out)
    found = code_wheel.find_own_files(load_ensemble(request.ensemble), request.ensemble.resolve().parent)
    if request.sample is not None:
        check_form(request.sample, found.here.output, found.here.classes)
    dry_run.warn_empty_filters(found.here, say)
    return replace(found, shipped=own_fronts.try_all(request.ensemble, found.here, found.shipped, say))


def build(request: BuildRequest, say: Callable[[str], None] = print) -> Built:
    """`bundle/` and `push/` below `request.out`, replaced together at the end; on an error the old ones stay.

    Raises  SpecError, LimitError, ModelLoadFailed, UploadError, OutputUnwritable: each names the key or file
            and the rule
    """
    found = _find_own_files(request, say)
    ensemble = found.here
    papers = _make_papers(request, ensemble)
    seconds, frontend_seconds = measured_costs.read(request.costs)
    parts, classes = ensemble.parts, len(ensemble.classes)
    with watched.limited("the building of the nets, your own files among them,"):
        modules = {p.name: models.build(p.family, dict(p.params), classes).eval()
                   for p in parts if p.family != dry_run.ONNX}
    dry_run.check_back_end(ensemble, request.back_end)
    sources, filled = _find_sources(parts, modules, request)
    found, held = _settle_graphs(request, found, sources, say)
    ensemble = found.here
    costs = _try_parts(ensemble, modules, sources, seconds, held)
    _compare(request, ensemble, modules, sources, say)
    say(f"{len(sources)} nets of {len(parts)} members and stackers fit; writing {request.out}")
    with staging(request.out) as folder:
        bundle = folder / "bundle"
        bundle.mkdir()
        shipped = embeddings.ship(found.shipped, ensemble, held, bundle)
        extra, graphs = _write_back_ends(request, bundle, ensemble, modules, sources)
        most = min(weights.MAX_SINGLE_FILES, bundle_check.MAX_FILES - len(extra) - OTHER_FILES)
        nets, files = weights.write_nets(bundle, sources, packed=len(sources) > most)
        weights.say_conversions(nets, say)
        code = {**code_wheel.kernel_files(ROOT), **found.code}
        manifest = _identify(Manifest(
            format=FORMAT,
            bundle="",
            version=kernel.__version__,
            ensemble=shipped,
            wheel=code_wheel.write_wheel(bundle, kernel.__version__, code),
            files={**files, **extra},
            nets=tuple(nets),
            prior=ensemble.prior or (1.0 / classes,) * classes,
            profiles=PROFILES,
            costs=costs,
            graphs=graphs,
            frontend_seconds=frontend_seconds,
            random_weights=bool(filled),
        ))
        _write_papers(folder, manifest, papers)
        bundle_check.check_bundle(bundle)
        mounts.confirm(folder)
        put_in_place(folder, request.out)
    return Built(manifest=manifest, papers=papers, filled=tuple(filled))


def _settle_graphs(request: BuildRequest, found: code_wheel.OwnFiles, sources: Sequence[weights.Source],
                   say: Callable[[str], None]) -> tuple[code_wheel.OwnFiles, embeddings.Graphs]:
    """The ensemble with what follows from the graphs of members and embeddings; the latter's bytes."""
    graphs = embeddings.read_graphs(found.here, weights_folders(request))
    found = graph_members.settle(found, sources, say)
    return replace(found, here=embeddings.settle(found.here, graphs, say)), graphs


def _compare(request: BuildRequest, ensemble: Ensemble, modules: Modules, sources: Sequence[weights.Source],
             say: Callable[[str], None]) -> None:
    """The comparison with what the training code gave, where one was asked for. Raises SpecError."""
    if request.compare is not None:
        tolerance, allowed = request.compare_tolerance, request.compare_allow
        compare.check(request.compare, ensemble, modules, sources, tolerance, allowed, say)


def _make_papers(request: BuildRequest, ensemble: Ensemble) -> Papers:
    """Both metadata files, checked before anything is written."""
    slug, title = _choose_names(request, ensemble.name)
    machine = request.machine or (GPU_MACHINE if limits(ensemble.profile).gpu else None)
    competition = request.competition or COMPETITIONS.get(ensemble.profile)
    papers = Papers(
        slug=slug,
        competition=competition,
        dataset=metadata.dataset_metadata(
            owner=request.owner, slug=slug, title=title, licence=request.licence, about=ensemble.about
        ),
        kernel=metadata.kernel_metadata(
            owner=request.owner,
            slug=slug,
            title=title,
            code_file=notebook.FILE if request.notebook else SCRIPT,
            machine=None if machine == "cpu" else machine,
            competition=competition,
        ),
    )
    metadata.check_dataset(papers.dataset)
    metadata.check_kernel(papers.kernel)
    return papers


def _choose_names(request: BuildRequest, ensemble: str) -> tuple[str, str]:
    """Slug and title, as given or made of each other.

    Raises  UploadError naming the option that the user typed, or should
    """
    slug, title = metadata.name_dataset(ensemble, request.slug, request.title)
    if request.slug is not None:
        try:
            metadata.check_id(f"{request.owner}/{slug}")
        except UploadError as error:
            raise UploadError(f"--owner {request.owner} --slug {slug}: {error}") from error
    elif request.title is None and len(title) > metadata.TITLE_CHARACTERS[1]:
        raise UploadError(
            f"title: {title!r}, made of the ensemble's name, has {len(title)} characters; give --title with "
            f"{metadata.TITLE_CHARACTERS[0]} to {metadata.TITLE_CHARACTERS[1]}"
        )
    return slug, title


def _write_papers(folder: Path, manifest: Manifest, papers: Papers) -> None:
    """Manifest, metadata and the files to push."""
    text = dumps_json(manifest)
    (folder / "bundle" / "manifest.json").write_bytes(text)
    (folder / "bundle" / bundle_check.METADATA).write_bytes(dumps_json(papers.dataset))
    profile = asdict(limits(manifest.ensemble.profile))
    value = constant(manifest, hashlib.sha256(text).hexdigest(), profile, papers.slug)
    source = fill_constant((ROOT / SCRIPT).read_text(encoding="utf-8"), value)
    bundle_check.check_secrets(SCRIPT, source.encode())
    target = folder / "push"
    target.mkdir()
    (target / SCRIPT).write_bytes(source.encode())
    if papers.kernel["code_file"] == notebook.FILE:
        (target / notebook.FILE).write_bytes(notebook.make_notebook(source))
    (target / "kernel-metadata.json").write_bytes(dumps_json(papers.kernel))
    metadata.check_kernel(papers.kernel, target)


def _write_back_ends(request: BuildRequest, folder: Path, ensemble: Ensemble, modules: Modules,
                     sources: list[weights.Source]) -> tuple[dict[str, FileEntry], dict[str, dict[str, str]]]:
    """Files of optional back ends (wheels and exported graphs), and which graph belongs to which net."""
    graphs: dict[str, dict[str, str]] = {}
    if request.back_end:
        from . import backend_wheels

        backend_wheels.collect(request.back_end, folder)
    if request.export_onnx:
        from . import onnx_export

        graphs = onnx_export.export(folder, ensemble, modules, sources)
    return {path.name: FileEntry(bytes=path.stat().st_size, sha256=bundle_check.file_sha256(path))
            for path in sorted(folder.iterdir())}, graphs
