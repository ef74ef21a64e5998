"""Changes of one operator, constant or condition in a module's syntax tree, drawn by a seed.

Owns what a change is and which are drawn. Running tests against them is `mutants`.
"""
from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

SHOWN = 90  # characters of a change that are printed

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.MatMult: (ast.Mult,),
    ast.LShift: (ast.RShift,), ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,), ast.BitXor: (ast.BitAnd,),
    ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
NEGATED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # a swap says the opposite already


@dataclass(frozen=True, kw_only=True)
class Change:
    """`new` in place of what `holder` has in `field` (in its place `index`, where that is a list)."""

    holder: ast.AST
    field: str
    index: int | None
    new: Any
    line: int
    shown: ast.AST  # what is printed before and after

    def swap(self, new: Any) -> Any:
        """Put `new` there and give what was there."""
        if self.index is None:
            old = getattr(self.holder, self.field)
            setattr(self.holder, self.field, new)
        else:
            there = getattr(self.holder, self.field)
            old, there[self.index] = there[self.index], new
        return old


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A changed module, and what was changed in it."""

    code: CodeType
    line: int
    before: str
    after: str


def parts(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(holder, field, index, child) of everything below `node` that a change may touch."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            yield node, field, index, child
            yield from parts(child)


def values(value: object) -> tuple[object, ...]:
    """Other values of a constant."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1)
    if isinstance(value, float):
        return (value * 2 or 1.0, value / 2 or -1.0)
    return ()


def changes(tree: ast.Module) -> Iterator[list[Change]]:
    """For every place in the tree that may be changed, the changes of it."""
    line = 1
    for holder, field, index, node in parts(tree):
        line = getattr(node, "lineno", line)

        def change(
            new: Any, at: tuple[Any, str, int | None], shown: ast.AST, line: int = line
        ) -> Change:
            return Change(holder=at[0], field=at[1], index=at[2], new=new, line=line, shown=shown)

        here = (holder, field, index)
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
            yield [change(new(), (node, "op", None), node) for new in SWAPS.get(type(node.op), ())]
        elif isinstance(node, ast.Compare):
            for number, op in enumerate(node.ops):
                yield [change(new(), (node, "ops", number), node) for new in SWAPS[type(op)]]
        elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
            yield [change(node.operand, here, node)]
        elif isinstance(node, ast.Constant):
            yield [change(ast.Constant(value), here, holder) for value in values(node.value)]
        test = isinstance(holder, ast.If | ast.IfExp | ast.While) and field == "test" or field == "ifs"
        if test and not (isinstance(node, ast.UnaryOp) or isinstance(node, ast.Compare)
                         and isinstance(node.ops[0], NEGATED)):
            yield [change(ast.UnaryOp(ast.Not(), node), here, node)]  # type: ignore[arg-type]


def around(text: str, other: str) -> str:
    """As much of `text` as fits into a line, round its first difference from `other`."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(text))
    begin = text.rfind("\n", 0, same) + 1
    end = text.find("\n", same)
    line = text[begin:end if end >= 0 else len(text)].strip()
    at = max(0, same - begin - SHOWN // 2) if len(line) > SHOWN else 0
    return f"{'...' if at else ''}{line[at:at + SHOWN]}{'...' if len(line) > at + SHOWN else ''}"


def mutants(source: str, path: str, unseen: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """`count` of the module's mutants, drawn by `seed`: one of each place, then the further changes of each.

    unseen  pieces of lines that are not touched
    """
    tree = ast.parse(source)
    lines = source.splitlines()
    places = [found for found in changes(tree) if found]
    places = [p for p in places if not any(piece in lines[p[0].line - 1] for piece in unseen)]
    draw = random.Random(seed)
    draw.shuffle(places)
    for place in places:
        draw.shuffle(place)
    deepest = max((len(place) for place in places), default=0)
    drawn = [place[turn] for turn in range(deepest) for place in places if turn < len(place)]
    made = []
    for change in drawn[:count]:
        before = ast.unparse(change.shown)
        old = change.swap(change.new)
        shown = change.new if isinstance(change.new, ast.UnaryOp) or change.shown is old else change.shown
        after = ast.unparse(ast.fix_missing_locations(shown))
        code = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        change.swap(old)
        told = {"before": around(before, after), "after": around(after, before)}
        made.append(Mutant(code=code, line=change.line, **told))
    return made
