"""One ensemble TOML -> DIR/bundle and DIR/push, complete or not at all.

Owns the order of a build: everything that can be refused is refused first, then all is written to a folder
beside the target, checked as an upload, and moved into place. Does not know Kaggle's rules (metadata,
bundle_check) or formats of weights (weights).
"""
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import kernel
from kernel import models
from kernel.errors import UploadError
from kernel.inference.onnx import RUNTIMES
from kernel.limits import PROFILES, limits
from kernel.pin import SCRIPT, constant, fill_constant
from kernel.scores.submission import check_form
from kernel.spec import (
    Attached,
    Cost,
    Ensemble,
    FileEntry,
    Manifest,
    Net,
    Stacker,
    dumps_json,
    load_ensemble,
)

from . import (
    attached,
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
    own_steps,
    sources,
    watched,
    weights,
)
from .metadata import PLACEHOLDER_OWNER
from .sources import ROOT, Modules
from .staging import WEIGHTS, check_replaceable, put_in_place, staging

FORMAT = 1
GPU_MACHINE = "NvidiaTeslaT4"  # The default GPU machine (two cards).
COMPETITIONS = {"fat2019": "freesound-audio-tagging-2019"}  # Profile -> competition to attach.
OTHER_FILES = 3  # The wheel, the manifest and the metadata, beside nets, graphs and wheels of a back end.


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What is to be built; the command line's values.

    weights         folder of checkpoints; None: `weights/` beside the TOML, the TOML's folder, `weights/`
                    beside that folder (where training puts them), `weights/` of the repository
    costs           report.json of a rehearsal: measured seconds enter the manifest
    split           code and weights become two datasets
    back_end        "openvino" or "onnxruntime" wheels ride along, or those of "both"
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
    split: bool = False


@dataclass(frozen=True, kw_only=True)
class Papers:
    """The metadata files of an upload, already checked against Kaggle's rules.

    weights  of the dataset of weights, where the build is split
    """

    slug: str
    competition: str | None
    dataset: dict[str, Any]
    kernel: dict[str, Any]
    weights: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build left behind."""

    manifest: Manifest
    papers: Papers
    filled: tuple[str, ...]


def _try_parts(ensemble: Ensemble, modules: Modules, found: list[weights.Source],
               seconds: dict[str, tuple[float, float]], graphs: embeddings.Graphs) -> dict[str, Cost]:
    """Cost of each member and stacker, after the first fold of each ran once."""
    connect = embeddings.open_here(ensemble, graphs).connect
    costs: dict[str, Cost] = {}
    for part in ensemble.parts:
        blob = next(source for source in found if source.member == part.name).read()
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
    dry_run.check_back_end(found.here, request.back_end)
    dry_run.tell_classes(found.here, say)
    found = replace(found, shipped=attached.without_copies(found.shipped))
    with watched.limited("the trial of the steps on scores"):
        own_steps.try_all(request.ensemble, found.here, say)
    found = replace(found, shipped=own_fronts.try_all(request.ensemble, found.here, found.shipped, say))
    dry_run.warn_empty_filters(found.here, say)
    return found


def _build_modules(ensemble: Ensemble) -> Modules:
    """The nets of members and stackers, without weights."""
    with watched.limited("the building of the nets, your own files among them,"):
        return {p.name: models.build(p.family, dict(p.params), p.outputs(len(ensemble.classes))).eval()
                for p in ensemble.parts if p.family != dry_run.ONNX}


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
    modules = _build_modules(ensemble)
    read, filled = sources.find_sources(parts, modules, request.ensemble, request.weights,
                                        request.random_weights)
    found, vectors = _settle_graphs(request, found, read, say)
    ensemble = found.here
    costs = _try_parts(ensemble, modules, read, seconds, vectors)
    _compare(request, ensemble, modules, read, say)
    say(f"{len(read)} nets of {len(parts)} members and stackers fit; writing {request.out}")
    with staging(request.out) as folder:
        bundle = folder / "bundle"
        shipped = embeddings.ship(found.shipped, ensemble, vectors, bundle)
        extra, graphs = _write_back_ends(request, bundle, ensemble, modules, read)
        elsewhere = embeddings.find_attached(ensemble, *_graph_folders(request))
        nets, files, held = _write_nets(request, folder, read, extra, elsewhere)
        weights.say_conversions(nets, say)
        code = {**code_wheel.kernel_files(ROOT), **found.code}
        manifest = _identify(Manifest(
            format=FORMAT,
            bundle="",
            version=kernel.__version__,
            ensemble=shipped,
            wheel=code_wheel.write_wheel(bundle, kernel.__version__, code),
            files=files,
            nets=nets,
            attached=held,
            prior=ensemble.prior or (1.0 / classes,) * classes,
            profiles=PROFILES,
            costs=costs,
            graphs=graphs,
            frontend_seconds=frontend_seconds,
            random_weights=bool(filled),
        ))
        papers = replace(papers, kernel=attached.attach(papers.kernel, manifest))
        _write_papers(folder, manifest, papers)
        put_in_place(folder, request.out)
    return Built(manifest=manifest, papers=papers, filled=tuple(filled))


def _settle_graphs(request: BuildRequest, found: code_wheel.OwnFiles, read: Sequence[weights.Source],
                   say: Callable[[str], None]) -> tuple[code_wheel.OwnFiles, embeddings.Graphs]:
    """The ensemble with what follows from the graphs of members and embeddings; the latter's bytes."""
    graphs = embeddings.read_graphs(found.here, *_graph_folders(request))
    found = graph_members.settle(found, read, say)
    return replace(found, here=embeddings.settle(found.here, graphs, say)), graphs


def _graph_folders(request: BuildRequest) -> tuple[list[Path], Path]:
    """Where graphs of embeddings are looked for, and the TOML's folder."""
    return sources.weights_folders(request.ensemble, request.weights), request.ensemble.resolve().parent


def _compare(request: BuildRequest, ensemble: Ensemble, modules: Modules, read: Sequence[weights.Source],
             say: Callable[[str], None]) -> None:
    """Tells how far the ensemble is from --compare. Raises SpecError where that is too far."""
    if request.compare is not None:
        compare.check(request.compare, ensemble, modules, read, request.compare_tolerance,
                      request.compare_allow, say)


def _write_nets(
    request: BuildRequest, folder: Path, read: list[weights.Source], extra: dict[str, FileEntry],
    elsewhere: list[weights.Source],
) -> tuple[tuple[Net, ...], dict[str, FileEntry], dict[str, Attached]]:
    """The nets, the files of the bundle, and those that lie elsewhere; `extra` is written already.

    elsewhere  graphs of embeddings in other datasets or models
    """
    held = sources.list_attached(read)
    most = min(weights.MAX_SINGLE_FILES, bundle_check.MAX_FILES - len(extra) - OTHER_FILES)
    nets, files = weights.write_nets(folder / "bundle", read, packed=len(read) - len(held) > most)
    files |= extra
    held |= {source.member + embeddings.SUFFIX: source.attached for source in elsewhere if source.attached}
    if request.split:
        held |= attached.split(folder, files)
        files = {}
    sources.lay_links(folder, [*read, *elsewhere])
    return tuple(nets), files, held


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
    return replace(papers, weights=attached.describe_weights(papers.dataset)) if request.split else papers


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
    """Manifest, metadata and the files to push, checked as an upload."""
    text = dumps_json(manifest)
    (folder / "bundle" / "manifest.json").write_bytes(text)
    (folder / "bundle" / bundle_check.METADATA).write_bytes(dumps_json(papers.dataset))
    if papers.weights is not None:
        (folder / WEIGHTS / bundle_check.METADATA).write_bytes(dumps_json(papers.weights))
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
    _check_upload(folder, manifest)


def _check_upload(folder: Path, manifest: Manifest) -> None:
    """Nothing, when all that was written can be uploaded and the kernel takes it. Raises UploadError."""
    bundle_check.check_bundle(folder / "bundle")
    if attached.is_split(manifest):
        attached.check_weights(folder, manifest)
    mounts.confirm(folder)


def _write_back_ends(request: BuildRequest, folder: Path, ensemble: Ensemble, modules: Modules,
                     read: list[weights.Source]) -> tuple[dict[str, FileEntry], dict[str, dict[str, str]]]:
    """Files of optional back ends (wheels and exported graphs), and which graph belongs to which net."""
    graphs: dict[str, dict[str, str]] = {}
    if request.back_end:
        from . import backend_wheels

        for name in RUNTIMES if request.back_end == "both" else (request.back_end,):
            backend_wheels.collect(name, folder)
    if request.export_onnx:
        from . import onnx_export

        graphs = onnx_export.export(folder, ensemble, modules, read)
    return {path.name: FileEntry(bytes=path.stat().st_size, sha256=bundle_check.file_sha256(path))
            for path in sorted(folder.iterdir())}, graphs
