"""Embeddings and the heads that read them, as data: what [embeddings.NAME] and [[heads]] mean.

Owns `Embedding`, its rules, and how a head becomes a member: every part above reads members only. What a
graph's vectors are and how they are made is `inference.embeddings`.
"""
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SpecError, did_you_mean
from .attached import Origin, check_origin
from .parts import Member
from .strict import load, require, require_choice

STORED = ("float32", "float16")
NOT_OF_A_HEAD = ("frontend", "inputs", "frames")  # a member's keys that say what a head's `embedding` says


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What a graph says of every piece of a row, as vectors: computed once per row, kept like a spectrogram.

    graph       the ONNX file with its weights, found where a member's weights are
    frontend    name in [frontends] of what the graph reads
    output      name of the graph's output; a list = several, whose values stand one after the other; left
                out = its first output
    finish      steps between front end and graph, as of a member
    view        how a row is cut for the graph, as of a member: every cut gives one vector, or one per patch
    stored      dtype in which the vectors are kept: "float32" or "float16"
    values      of a vector; left out = found by the builder
    per_second  vectors of a second of audio, for planning; left out = measured by the builder
    sha256      of the graph, in hex; left out = found by the builder
    source      another dataset or model of Kaggle's that holds the graph, instead of the bundle: a table with
                the keys of a member's
    bytes_a, bytes_b  memory that the graph takes for a row of s seconds beside its answer, a + b x s; left
                out = measured by the builder
    """

    graph: str
    frontend: str
    output: tuple[str, ...] = ()
    finish: tuple[Any, ...] = ()
    view: dict[str, Any] = field(default_factory=lambda: {"kind": "full"})
    stored: str = "float32"
    values: int | None = None
    per_second: float | None = None
    sha256: str | None = None
    bytes_a: float | None = None
    bytes_b: float | None = None
    source: Origin | None = None


def with_heads(data: Mapping[str, Any], form: type = Member) -> dict[str, Any]:
    """The tables of an ensemble with every [[heads]] as one more of [[members]], after the others.

    form    the dataclass whose keys a member has: a recipe's members have others

    Raises  SpecError naming the key of the head
    """
    named = dict(data)
    heads = named.pop("heads", [])
    named = _with_output_lists(named)
    if not heads:
        return named
    embeddings = named.get("embeddings", {})
    require(isinstance(heads, list), "heads: expected tables [[heads]]")
    require(isinstance(embeddings, Mapping), "embeddings: expected tables [embeddings.NAME]")
    named["members"] = [*named.get("members", []), *(
        _as_member(head, embeddings, form, f"heads[{i}]") for i, head in enumerate(heads))]
    return named


def _with_output_lists(data: dict[str, Any]) -> dict[str, Any]:
    """The tables with every embedding's `output` as a list: one name may stand alone."""
    tables = data.get("embeddings")
    if not isinstance(tables, Mapping):
        return data
    read = {}
    for name, table in tables.items():
        alone = isinstance(table, Mapping) and isinstance(table.get("output"), str)
        read[name] = {**table, "output": [table["output"]]} if alone else table
    return {**data, "embeddings": read}


def _as_member(head: Any, embeddings: Collection[str], form: type, where: str) -> dict[str, Any]:
    """The table of a member that reads the head's embedding."""
    if not isinstance(head, Mapping):
        raise SpecError(f"{where}: expected a table, got {head!r}")
    for key in NOT_OF_A_HEAD:
        require(key not in head, f"{where}.{key}: a head reads an embedding; name it in `embedding`")
    require("embedding" in head, f"{where}.embedding: missing; name a table of [embeddings]")
    if head["embedding"] not in embeddings:
        near = did_you_mean(str(head["embedding"]), embeddings) if embeddings else "there is none"
        raise SpecError(f"{where}.embedding: {head['embedding']!r} is not in [embeddings]; {near}")
    table = {key: value for key, value in head.items() if key != "embedding"}
    plain = {**table, "classes_from": []} if isinstance(table.get("classes_from"), str) else table
    if isinstance(table.get("classes_map"), str):  # files, read later
        plain = {key: value for key, value in plain.items() if key != "classes_map"}
    load(form, {**plain, "frontend": head["embedding"]}, where)  # its messages name the head
    return {**table, "frontend": head["embedding"]}


def check_embeddings(embeddings: Mapping[str, Embedding], frontends: Collection[str]) -> None:
    """Raises SpecError naming the key that breaks a rule."""
    for name, embedding in embeddings.items():
        where = f"embeddings.{name}"
        require(name not in frontends, f"{where}: [frontends] has this name, too; give one of them another")
        if embedding.frontend not in frontends:
            raise SpecError(f"{where}.frontend: {embedding.frontend!r} is not in [frontends]; "
                            + did_you_mean(embedding.frontend, frontends))
        require_choice(embedding.stored, STORED, f"{where}.stored")
        if embedding.source is not None:
            check_origin(embedding.source, (0,), f"{where}.source")
        twice = [out for out in embedding.output if embedding.output.count(out) > 1]
        require(not twice, f"{where}.output: {twice[:1]} stands twice")
        numbers = (embedding.values, embedding.per_second, embedding.bytes_a, embedding.bytes_b)
        require(all(number is None or number >= 0 for number in numbers) and embedding.values != 0,
                f"{where}: values, per_second, bytes_a and bytes_b are numbers above 0, or left out")
