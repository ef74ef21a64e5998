"""Spec: what is written down about an ensemble and its bundle, as typed values.

ensemble  what people write: the ensemble TOML and its rules
parts     its members and stackers, some with classes of their own; attached: files in other datasets
groups    its groups of members and of classes, and the CSV files that are read into them
windows   its table of windows: their length, their names, what lies around them; dry_run: what is tried
manifest  what the builder writes: the bundle's manifest.json
strict    the loaders of both: an unknown, missing or mistyped key is an error that names it

In: text. Out: frozen dataclasses. Builds nothing: those who build from a table check its own keys.
"""
from ..errors import SpecError
from .attached import Attached, Origin, mounts_of
from .class_maps import ClassMap
from .dry_run import DryRun
from .ensemble import (
    LEAST_PROBABILITY,
    MEAN_SCOPES,
    MEANS,
    NAME,
    ROW_DEPENDENT_MEANS,
    Ensemble,
    Output,
    check,
    load_ensemble,
    parse_ensemble,
)
from .groups import Group
from .manifest import FILE_NAME, Cost, FileEntry, Manifest, Net, Wheel, load_manifest
from .parts import Input, Member, Part, Stacker, net_ids
from .strict import dumps_json, load, loads_json, read_toml
from .windows import Windows

__all__ = [
    "FILE_NAME",
    "LEAST_PROBABILITY",
    "MEANS",
    "MEAN_SCOPES",
    "NAME",
    "ROW_DEPENDENT_MEANS",
    "Attached",
    "ClassMap",
    "Cost",
    "DryRun",
    "Ensemble",
    "FileEntry",
    "Group",
    "Input",
    "Manifest",
    "Member",
    "Net",
    "Origin",
    "Output",
    "Part",
    "SpecError",
    "Stacker",
    "Wheel",
    "Windows",
    "check",
    "dumps_json",
    "load",
    "load_ensemble",
    "load_manifest",
    "loads_json",
    "mounts_of",
    "net_ids",
    "parse_ensemble",
    "read_toml",
]
