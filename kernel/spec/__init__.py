"""Spec: what is written down about an ensemble and its bundle, as typed values.

ensemble  what people write: the ensemble TOML and its rules
parts, embeddings  its members and stackers; what a graph makes of a row, and the heads that read it
windows   its table of windows: their length, their names, what lies around them
manifest  what the builder writes: the bundle's manifest.json
strict    the loaders of both: an unknown, missing or mistyped key is an error that names it

In: text. Out: frozen dataclasses. Builds nothing: front ends, views, finishes and families check their own
keys.
"""
from ..errors import SpecError
from .embeddings import Embedding, check_embeddings, with_heads
from .ensemble import (
    LEAST_PROBABILITY,
    MEANS,
    NAME,
    ROW_DEPENDENT_MEANS,
    Ensemble,
    Output,
    check,
    load_ensemble,
    parse_ensemble,
)
from .manifest import FILE_NAME, Cost, FileEntry, Manifest, Net, Wheel, load_manifest
from .parts import Input, Member, Part, Stacker, net_ids
from .strict import dumps_json, load, loads_json, read_toml
from .windows import Windows

__all__ = [
    "FILE_NAME",
    "LEAST_PROBABILITY",
    "MEANS",
    "NAME",
    "ROW_DEPENDENT_MEANS",
    "Cost",
    "Embedding",
    "Ensemble",
    "FileEntry",
    "Input",
    "Manifest",
    "Member",
    "Net",
    "Output",
    "Part",
    "SpecError",
    "Stacker",
    "Wheel",
    "Windows",
    "check",
    "check_embeddings",
    "dumps_json",
    "load",
    "load_ensemble",
    "load_manifest",
    "loads_json",
    "net_ids",
    "parse_ensemble",
    "read_toml",
    "with_heads",
]
