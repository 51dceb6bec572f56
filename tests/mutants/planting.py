"""Mutants of a module: where a fault can be planted, and the module with it.

A fault is one small change of the syntax tree, as a slip of the hand makes it: a constant off by one, another comparison or operator,
operands or arguments swapped, ``and`` for ``or``, a slice that begins or ends elsewhere, a check or an early return left out.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Change = Callable[[Any], ast.AST | None]
"""Makes of a node, a copy, the one that takes its place; None where it changed the node itself."""

COMPARE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATOR: dict[type, type] = {
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
ORDERED = (ast.LShift, ast.RShift, ast.Sub, ast.FloorDiv, ast.Mod)
"""Operators whose operands cannot be swapped."""
ENDS = {"min": "max", "max": "min"}


@dataclass(frozen=True)
class Fault:
    """One fault that a module can have."""

    key: str
    """Its name: module, function, text before and after, and a number where there are several alike."""
    node: int
    """Number of the node in the order of :func:`ast.walk`."""
    change: Change
    lines: range
    """Of the statement that it is in: a test that executes none of them cannot find it. Empty: at the top of the module."""


def faults(source: str, module: str, wanted: Callable[[str, ast.stmt], bool]) -> list[Fault]:
    """All faults of a module, in order; ``wanted`` is asked for each function or class, and each other statement at the top ("")."""
    tree = ast.parse(source)
    number = {id(node): k for k, node in enumerate(ast.walk(tree))}
    found, alike = [], Counter[str]()
    for top in tree.body:
        name = getattr(top, "name", "")
        if not wanted(name, top):
            continue
        for node, parent, function, lines in _inside(top, tree, name):
            for change in _changes(node, parent):
                key = f"{module}.{function}: {_texts(node, parent, change)}"
                alike[key] += 1
                key += f" #{alike[key]}" if alike[key] > 1 else ""
                found.append(Fault(key, number[id(node)], change, lines))
    return found


def planted(source: str, fault: Fault) -> ast.Module:
    """The module with the fault."""
    tree = ast.parse(source)
    node = next(node for k, node in enumerate(ast.walk(tree)) if k == fault.node)
    return ast.fix_missing_locations(_replaced(tree, node, fault.change))


def _replaced(tree: Any, node: ast.AST, change: Change) -> Any:
    new = change(node)
    if new is None:
        return tree

    class Swap(ast.NodeTransformer):
        def visit(self, here: ast.AST) -> Any:
            return ast.copy_location(new, node) if here is node else self.generic_visit(here)

    return Swap().visit(tree)


def _texts(node: ast.AST, parent: ast.AST, change: Change) -> str:
    """The text before and after; of the parent where a node alone says little."""
    whole = parent if isinstance(node, ast.Constant) and isinstance(parent, ast.expr | ast.Slice) else node
    before, k = ast.unparse(whole), next(k for k, inner in enumerate(ast.walk(whole)) if inner is node)
    again = ast.parse(before if isinstance(node, ast.stmt) else f"x[{before}]").body[0]
    copy: Any = again if isinstance(node, ast.stmt) else again.value.slice  # type: ignore[attr-defined]
    inner = next((inner for n, inner in enumerate(ast.walk(copy)) if n == k), None)
    if inner is None or type(inner) is not type(node):
        return f"{_cut(before)} -> (changed)"
    return f"{_cut(before)} -> {_cut(ast.unparse(ast.fix_missing_locations(_replaced(copy, inner, change))))}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 110 else text[:107] + "..."


def _inside(top: ast.stmt, tree: ast.AST, name: str) -> Iterator[tuple[ast.AST, ast.AST, str, range]]:
    """Nodes below a statement with their parents, the function, and the lines of their statement; but for texts that only people read."""

    def below(node: ast.AST, parent: ast.AST, function: str, lines: range) -> Iterator[tuple[ast.AST, ast.AST, str, range]]:
        inner = function
        if isinstance(node, ast.stmt):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                inner = function if parent is tree else f"{function}.{node.name}"
                lines = range(0)
            elif lines or parent is not tree:
                body = getattr(node, "body", None)
                lines = range(node.lineno, body[0].lineno if body else (node.end_lineno or node.lineno) + 1)
                lines = lines or range(node.lineno, node.lineno + 1)
        yield node, parent, inner, lines
        for child in _children(node):
            yield from below(child, node, inner, lines)

    yield from below(top, tree, name, range(0))


def _children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.JoinedStr | ast.Raise):
        return
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":
        yield node.args[0]
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "args") and not isinstance(node, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.expr_context):
                yield child


def _changes(node: ast.AST, parent: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        for step in (1, -1):
            yield lambda n, step=step: ast.Constant(n.value + step)
    elif isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            yield lambda n, k=k, op=op: n.ops.__setitem__(k, COMPARE[type(op)]())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATOR:
        yield lambda n: setattr(n, "op", OPERATOR[type(n.op)]())
        if isinstance(node, ast.BinOp) and isinstance(node.op, ORDERED):
            yield lambda n: ast.BinOp(n.right, n.op, n.left)
    elif isinstance(node, ast.BoolOp):
        yield lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And())
        if len(node.values) > 1:
            yield lambda n: n.values.pop()
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield lambda n: n.operand
    elif isinstance(node, ast.IfExp):
        yield lambda n: n.body
        yield lambda n: n.orelse
    elif isinstance(node, ast.Slice):
        if node.lower:
            yield lambda n: setattr(n, "lower", ast.BinOp(n.lower, ast.Add(), ast.Constant(1)))
        if node.upper:
            yield lambda n: setattr(n, "upper", ast.BinOp(n.upper, ast.Sub(), ast.Constant(1)))
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in ENDS:
            yield lambda n: setattr(n.func, "id", ENDS[n.func.id])
        elif len(node.args) > 1 and getattr(node.func, "id", "") != "need" and not any(isinstance(a, ast.Starred) for a in node.args):
            yield lambda n: setattr(n, "args", [n.args[1], n.args[0], *n.args[2:]])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not isinstance(parent, ast.Module):
        yield lambda n: ast.Pass()  # above all ``need(...)``
    elif isinstance(node, ast.Raise | ast.Continue | ast.Break):
        yield lambda n: ast.Pass()
    elif isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Return):
        yield lambda n: setattr(n, "test", ast.Constant(False))
