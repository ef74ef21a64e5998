"""Values as text: TOML, which Python's standard library only reads, and Markdown tables."""
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def toml_value(value: Any) -> str:
    """`value` as TOML: strings, numbers, booleans, lists and inline tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return "[" + ", ".join(toml_value(v) for v in value) + "]"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


SUBTABLES = ("frontends", "embeddings")  # Tables of tables, each with a heading of its own.


def dumps_toml(data: Mapping[str, Any]) -> str:
    """TOML text of plain values, then tables, then lists of tables; deeper tables are written inline."""
    def is_list_of_tables(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, Mapping) for v in value)

    def lines(table: Mapping[str, Any]) -> str:
        return "".join(f"{_key(k)} = {toml_value(v)}\n" for k, v in table.items())

    tables = {k: v for k, v in data.items() if isinstance(v, Mapping)}
    lists = {k: v for k, v in data.items() if is_list_of_tables(v)}
    parts = [lines({k: v for k, v in data.items() if k not in tables and k not in lists})]
    for name, table in tables.items():
        inner = {k: v for k, v in table.items() if isinstance(v, Mapping)} if name in SUBTABLES else {}
        plain = {k: v for k, v in table.items() if k not in inner}
        parts += [f"[{_key(name)}]\n" + lines(plain)] if plain else []
        parts += [f"[{_key(name)}.{_key(k)}]\n" + lines(v) for k, v in inner.items()]
    parts += [f"[[{_key(name)}]]\n" + lines(table) for name, rows in lists.items() for table in rows]
    return "\n".join(parts)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table of anything that has a text."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
