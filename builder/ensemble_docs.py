"""The tables of docs/ensembles.md, made from the code they describe: `python -m builder.ensemble_docs`.

Owns the tables and their places in the page, between `<!-- table NAME -->` and `<!-- end -->`. The prose
around them is the page's own. A key without a description in its docstring is an error here, so that no key
can be added and forgotten.
"""
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from kernel import spec
from kernel.errors import SpecError
from kernel.inference import finish, views
from kernel.models import FAMILIES
from kernel.scores.means import MEANS
from kernel.scores.own_step import OwnStep
from kernel.scores.steps import STEPS
from kernel.sound.front_end_keys import FrontEndKeys
from kernel.sound.own import OwnFrontEnd
from kernel.sound.presets import PRESETS
from kernel.spec import LEAST_PROBABILITY, MEAN_SCOPES
from training.text_formats import markdown_table, toml_value

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ensembles.md"
PLACE = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", re.DOTALL)
ENTRY = re.compile(r"^( *)((?:\w+, )*\w+) {2,}(\S.*)$")
TYPES = (  # How an annotation begins, and what it is to a TOML author.
    ("Output", "table [output]"),
    ("Windows", "table [windows]"),
    ("Origin", "table source"),
    ("DryRun", "table [dry_run]"),
    ("Small", "table [small]"),
    ("ClassMap", "CSV file"),
    ("dict[str, tuple[float", "CSV file"),
    ("float | str", "number or text"),
    ("tuple[MemberRecipe", "tables [[members]]"),
    ("tuple[StackerRecipe", "tables [[stackers]]"),
    ("tuple[dict", "list of tables"),
    ("dict[str, Embedding]", "tables [embeddings.NAME]"),
    ("dict[str, Input]", "table of inputs"),
    ("tuple[str", "list of texts"),
    ("tuple[float", "list of numbers"),
    ("tuple[int", "list of whole numbers"),
    ("tuple[Any", "list of steps"),
    ("tuple", "list of tables"),
    ("dict", "table"),
    ("bool", "true or false"),
    ("float", "number"),
    ("int", "whole number"),
    ("str", "text"),
)


def describe_keys(documented: Any) -> dict[str, str]:
    """Key -> meaning, from the two columns in a docstring; an indented line continues a meaning."""
    found: dict[str, str] = {}
    keys: list[str] = []
    for line in (inspect.getdoc(documented) or "").splitlines():
        entry = ENTRY.match(line)
        if entry and not entry[1]:
            keys = entry[2].split(", ")
            found |= dict.fromkeys(keys, entry[3])
        elif keys and line.startswith("  "):
            found |= {key: f"{found[key]} {line.strip()}" for key in keys}
        else:
            keys = []
    return found


def toml(value: Any) -> str:
    """A default as TOML would write it; None as a dash, since TOML has no null."""
    if value is None or value is MISSING:
        return "-"
    return toml_value(float(f"{value:.6g}") if isinstance(value, float) else value)


def type_name(kind: Any) -> str:
    """A field's type in a TOML author's words; the name of a table of its own in brackets."""
    annotation = re.sub(r"[a-z_.]+\.(?=[A-Z])", "", inspect.formatannotation(kind))
    return next((name for start, name in TYPES if annotation.startswith(start)), "number or text")


def default_of(field: Field[Any]) -> str:
    """The default as text, or that there is none."""
    if field.default_factory is not MISSING:
        made = field.default_factory()
        return "-" if is_dataclass(made) else toml(made)
    return "**required**" if field.default is MISSING else toml(field.default)


def key_table(documented: type, leave_out: Sequence[str] = ()) -> str:
    """Every key of a dataclass with type, default and meaning.

    Raises  SpecError for a key without a meaning
    """
    meanings = describe_keys(documented)
    rows = []
    for field in fields(documented):
        if field.name in leave_out:
            continue
        if field.name not in meanings:
            raise SpecError(
                f"{documented.__name__}.{field.name}: no line in the docstring; "
                f"add `{field.name}  what it means`"
            )
        rows.append((f"`{field.name}`", type_name(field.type), default_of(field), meanings[field.name]))
    return markdown_table(("key", "type", "default", "meaning"), rows)


def whole_text(documented: Any) -> str:
    """The docstring on one line."""
    return " ".join((inspect.getdoc(documented) or "").split())


def settings(pairs: Iterable[tuple[str, Any]]) -> str:
    """`key = default` of each pair, or a dash."""
    return (
        ", ".join(f"`{key}`" if value is MISSING else f"`{key} = {toml(value)}`" for key, value in pairs)
        or "-"
    )


def view_table() -> str:
    """Every view kind with its own keys."""
    shared = {field.name for field in fields(views.View)} | {"merge"}
    return markdown_table(
        ("kind", "what it cuts", "own keys and defaults"),
        (
            (
                f"`{kind}`",
                whole_text(made),
                settings((k, v) for k, v in views.keys(kind).items() if k not in shared),
            )
            for kind, made in views.VIEWS.items()
        ),
    )


def shared_view_table() -> str:
    """The keys that every view has."""
    meanings = describe_keys(views.View)
    defaults = views.keys("full")
    rows = ((f"`{key}`", toml(defaults[key]), meanings[key])
            for key in ("merge", "pass_weights", "flip", "domain"))
    return markdown_table(("key", "default", "meaning"), rows)


def defaults(operation: Any) -> list[tuple[str, Any]]:
    """(key, default) of each field of an operation, which is a dataclass."""
    return [(field.name, field.default) for field in fields(operation)]


def finish_table() -> str:
    """Every operation of a finish with its keys."""
    return markdown_table(("operation", "what it does", "keys and defaults"), (
        (f"`{kind}`", whole_text(made), settings(defaults(made)))
        for kind, made in finish.OPERATIONS.items()))


def mean_table() -> str:
    """Every mean with its scope."""
    return markdown_table(("mean", "what it is", "scope"), (
        (f"`{name}`", MEAN_WORDS.get(name) or whole_text(made), MEAN_SCOPES[name])
        for name, made in MEANS.items()))


def step_table() -> str:
    """Every step on a table of scores with formula, scope, source and keys."""
    return markdown_table(("step", "what it is for", "formula", "scope", "keys and defaults", "source"), (
        (f"`{kind}`", first_sentences(made), f"`{made.formula}`", made.scope,
         settings(defaults(made)), made.source)
        for kind, made in STEPS.items()))


def step_key_table() -> str:
    """What the keys of the steps mean."""
    rows = []
    for kind, made in STEPS.items():
        meanings = describe_keys(made)
        for field in fields(made):
            if field.name not in meanings:
                raise SpecError(f"{made.__name__}.{field.name}: no line in the docstring; add one")
            rows.append((f"`{kind}`", f"`{field.name}`", meanings[field.name]))
    return markdown_table(("step", "key", "meaning"), rows)


def first_sentences(documented: Any) -> str:
    """A docstring up to its first empty line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


MEAN_WORDS = {
    "geometric": f"exp of the mean log; values below {LEAST_PROBABILITY:g} count as that. The default."
}


def family_table() -> str:
    """Every family with its parameters."""
    rows = []
    for name, family in FAMILIES.items():
        known = [p for p in inspect.signature(family.build).parameters.values() if p.name != "classes"]
        rows.append(
            (
                f"`{name}`",
                family.about,
                settings(
                    (p.name, MISSING if p.default is inspect.Parameter.empty else p.default) for p in known
                ),
            )
        )
    return markdown_table(("family", "what it is", "`params` and defaults"), rows)


def preset_table() -> str:
    """Every front-end preset with what it changes of the defaults."""
    return markdown_table(
        ("preset", "keys it sets"), ((f"`{name}`", settings(keys.items())) for name, keys in PRESETS.items())
    )


TABLES: dict[str, Callable[[], str]] = {
    "ensemble": lambda: key_table(spec.Ensemble),
    "member": lambda: key_table(spec.Member),
    "input": lambda: key_table(spec.Input),
    "embedding": lambda: key_table(spec.Embedding),
    "stacker": lambda: key_table(spec.Stacker),
    "origin": lambda: key_table(spec.Origin),
    "output": lambda: key_table(spec.Output),
    "windows": lambda: key_table(spec.Windows),
    "dry_run": lambda: key_table(spec.DryRun),
    "frontend": lambda: key_table(FrontEndKeys, leave_out=("name",)),
    "own_frontend": lambda: key_table(OwnFrontEnd, leave_out=("name",)),
    "presets": preset_table,
    "shared_views": shared_view_table,
    "views": view_table,
    "finish": finish_table,
    "means": mean_table,
    "group": lambda: key_table(spec.Group),
    "steps": step_table,
    "step_keys": step_key_table,
    "own_step": lambda: key_table(OwnStep),
    "families": family_table,
}


def fill(
    page: str, tables: Mapping[str, Callable[[], str]] = TABLES, name: str = "docs/ensembles.md"
) -> str:
    """The page with every table made anew.

    Raises  SpecError for a place that names no table, or a table without a place
    """
    named = PLACE.findall(page)
    if sorted(named) != sorted(tables):
        raise SpecError(
            f"{name} has places for {sorted(named)}, the tables are {sorted(tables)}; give each one place"
        )
    return PLACE.sub(lambda place: f"<!-- table {place[1]} -->\n{tables[place[1]]()}\n<!-- end -->", page)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}: {len(TABLES)} tables")


if __name__ == "__main__":
    main()
