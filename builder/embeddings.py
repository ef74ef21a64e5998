"""The graphs behind an ensemble's embeddings: found, tried, measured, and shipped under flat names.

Owns what the builder fills in of [embeddings.NAME], and the open graphs on this machine. How a graph is tried
is embedding_trial's, what vectors are is kernel.inference's.
"""
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from kernel.errors import ModelLoadFailed, SpecError
from kernel.inference import graph_net
from kernel.inference.embeddings import Embeddings
from kernel.inference.graph_file import describe
from kernel.inference.recipe import build_recipe, graph_member
from kernel.spec import Embedding, Ensemble

from . import dry_run, embedding_trial, graph_members, sources, weights
from .graph_files import read_graph

TRIALS_S = (3.0, 20.0)  # seconds of sound on which a graph is tried, the shortest first
SUFFIX = ".embedding.onnx"  # of a graph's file in the bundle, behind the embedding's name
Graphs = Mapping[str, bytes]  # embedding -> its graph


def read_graphs(ensemble: Ensemble, folders: Sequence[Path], beside: Path | None = None) -> dict[str, bytes]:
    """The graph of every embedding, its weights inside; `beside` is the folder of the TOML.

    Raises  ModelLoadFailed naming the file that is missing, SpecError for a name outside the folders
    """
    graphs = {source.member: source.read() for source in find_attached(ensemble, folders, beside)}
    for name, embedding in ensemble.embeddings.items():
        if embedding.source is not None:
            continue
        if Path(embedding.graph).is_absolute() or ".." in Path(embedding.graph).parts:
            raise SpecError(
                f"embeddings.{name}.graph: {embedding.graph!r}; a name below the weights folder")
        path = weights.find_weights(embedding.graph, folders)
        if path is None:
            raise ModelLoadFailed(f"embeddings.{name}.graph: no {embedding.graph} in "
                                  + ", ".join(map(str, folders)) + "; give --weights DIR")
        graphs[name] = read_graph(path)[0]
    return graphs


def find_attached(
    ensemble: Ensemble, folders: Sequence[Path], beside: Path | None = None
) -> list[weights.Source]:
    """The graphs that lie in other datasets or models, each with its local copy.

    Raises  ModelLoadFailed naming the copy that is missing, or that has weights outside; SpecError
    """
    places = [*([beside] if beside is not None else []), *folders]
    found = []
    for name, embedding in ensemble.embeddings.items():
        if embedding.source is None:
            continue
        part = replace(graph_member(name, embedding), name=f"embeddings.{name}", source=embedding.source)
        path = sources.find_copy(part, embedding.source, 0, places)
        if path is None:
            told = sources.explain_missing(part, 0)
            raise ModelLoadFailed(f"{part.name}: {told}; not in " + ", ".join(map(str, places)))
        found.append(weights.Source(
            member=name, fold=0, kind="onnx", read=partial(_read_as_it_is, path, part.name),
            attached=sources.describe_copy(part, embedding.source, 0, path), copy=path))
    return found


def _read_as_it_is(path: Path, where: str) -> bytes:
    """An attached graph. Raises ModelLoadFailed where the kernel could not run these very bytes."""
    graph, changes = read_graph(path)
    if changes:
        raise ModelLoadFailed(f"{where}: {changes[0]}, but the kernel reads an attached file as it is; "
                              "attach a graph of one file, or leave `source` out")
    return graph


def settle(ensemble: Ensemble, graphs: Graphs, say: Callable[[str], None]) -> Ensemble:
    """The ensemble with the view, the values, the vectors per second and the memory of each embedding.

    What the TOML says stays, once the trial has shown that it is so.

    Raises  SpecError, ModelLoadFailed naming the embedding
    """
    if not ensemble.embeddings:
        return ensemble
    try:
        import onnxruntime  # noqa: F401  It runs in a process of its own.
    except ImportError as error:
        raise SpecError("embeddings: install onnxruntime here, so that their graphs can be tried: pip "
                        "install onnxruntime") from error
    return replace(ensemble, embeddings={
        name: _settle_one(ensemble, name, embedding, graphs[name], say)
        for name, embedding in ensemble.embeddings.items()})


def _settle_one(ensemble: Ensemble, name: str, embedding: Embedding, graph: bytes,
                say: Callable[[str], None]) -> Embedding:
    where = f"embeddings.{name}"
    facts = describe(graph, where)
    digest = hashlib.sha256(graph).hexdigest()
    if embedding.sha256 not in (None, digest):
        raise SpecError(f"{where}.sha256: {embedding.sha256[:12]}..., but {embedding.graph} has "
                        f"{digest[:12]}...; take the right file, or leave the key out")
    for output in embedding.output:
        facts.output(output, where)
    member = graph_members.settle_member(ensemble, graph_member(name, embedding), facts)
    recipe = build_recipe(ensemble, member)
    inputs = [dry_run.make_inputs(recipe, nn.Identity(), seconds, passes=None)["x"].numpy()
              for seconds in TRIALS_S]
    trial = embedding_trial.measure(graph, inputs, embedding.output, where)
    if embedding.values not in (None, trial.values):
        raise SpecError(f"{where}.values: {embedding.values}, but the graph gives vectors of {trial.values}; "
                        "leave it out, or name another output")
    short_s, long_s = TRIALS_S
    per_s = max((count - 1) / seconds for count, seconds in zip(trial.vectors, TRIALS_S, strict=True))
    slope = max(0.0, (trial.bytes[1] - trial.bytes[0]) / (long_s - short_s))
    say(f"embedding {name}: vectors of {trial.values} values, {trial.vectors[1]} of {long_s:g} s of sound in "
        f"{trial.seconds[1]:.2f} s on one thread")
    return replace(
        embedding,
        view=member.view,
        values=trial.values,
        sha256=digest,
        per_second=embedding.per_second or round(max(per_s, 1 / long_s), 3),
        bytes_a=embedding.bytes_a or float(max(0, round(trial.bytes[0] - slope * short_s))),
        bytes_b=embedding.bytes_b or float(round(slope)),
    )


def open_here(ensemble: Ensemble, graphs: Graphs, callers: int = 1) -> Embeddings:
    """The embeddings of a settled ensemble, run in this process by up to `callers` threads."""
    by_file = {embedding.graph: graphs[name] for name, embedding in ensemble.embeddings.items()}

    def open_graph(file: str, use: graph_net.GraphUse) -> graph_net.GraphNet:
        import onnxruntime

        return graph_net.load_net(by_file[file], onnxruntime, callers=callers, use=use)

    return Embeddings(ensemble, open_graph)


def ship(ensemble: Ensemble, settled: Ensemble, graphs: Graphs, folder: Path) -> Ensemble:
    """`ensemble` with the settled embeddings, their graphs written to the bundle's new folder but for those
    that lie elsewhere.
    """
    folder.mkdir()
    shipped = {}
    for name, embedding in settled.embeddings.items():
        if embedding.source is None:
            (folder / f"{name}{SUFFIX}").write_bytes(graphs[name])
        origin = replace(embedding.source, local=None) if embedding.source else None
        shipped[name] = replace(embedding, graph=f"{name}{SUFFIX}", source=origin)
    return replace(ensemble, embeddings=shipped)
