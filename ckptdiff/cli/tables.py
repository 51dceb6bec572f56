"""Text on standard output in columns: laid out by rich where a person watches a terminal, elsewhere in plain padded rows.

On a terminal no line is wider than it is, and lines break between words; only paths and names of tensors are folded. Columns that do not
fit are left out, the least important ones first. Elsewhere each row is one line that has everything but the bars, and rich, which takes
long to import, is not needed.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import click

from ckptdiff.errors import visible
from ckptdiff.lazy import rich

if TYPE_CHECKING:
    from rich.bar import Bar
    from rich.console import Console
    from rich.text import Text

GAP = 2
"""Spaces between two columns."""
BAR_WIDTH = 20
"""Characters of a full bar."""
LEAST_NAME = 16
"""Characters to which a column of names may be narrowed, or to a third of a terminal that is wide, before other columns are left out."""
DIGEST_DIGITS = 12
"""Digits of a digest that a terminal shows."""

BEFORE_UNIT = r"(?<=\d) (?=(?:%|[kMGTPE]?B|s|times)(?!\w))"
"""The space between a number and its unit, where no line is broken."""
NO_BREAK = "\u00a0"
"""Stands for that space while lines are broken; :func:`visible` leaves no other one."""

Cell: TypeAlias = str | float
"""A text, or the length of a bar as a share of a full one."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    head: str
    kind: Literal["text", "name", "number", "bar"] = "text"
    """Names may be folded, numbers stand at the right; bars are drawn on a terminal only, as they repeat a number beside them."""
    order: int = 0
    """Columns of the highest order are the first to be left out where not all fit. The first column of a table always stays."""


def watched() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def digest(digits: str) -> str:
    """A digest in hexadecimal: whole, but its beginning on a terminal."""
    return f"{digits[:DIGEST_DIGITS]}…" if watched() and len(digits) > DIGEST_DIGITS else digits


def print_text(text: str = "", style: str = "") -> None:
    """Print a paragraph, or an empty line; on a terminal in a style of rich's."""
    if watched() and text:
        out = _console()
        out.print(rich.text.Text(_wrapped(visible(text), out.width), style, overflow="fold"))
    else:
        click.echo(visible(text))


def print_grid(rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns: a label, and its value."""
    if not watched():
        width = max(len(label) for label, _ in rows)
        click.echo("\n".join(f"{label:>{width}}  {visible(value)}" for label, value in rows))
        return
    out = _console()
    grid = rich.table.Table.grid()
    width = _least_width([label for label, _ in rows], out.width // 3)
    grid.add_column(justify="right", style="bold", width=width)
    grid.add_column(width=GAP)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(label, "", rich.text.Text(_wrapped(visible(value), out.width - width - GAP)))
    out.print(grid)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table; on a terminal with a line that names the columns that do not fit."""
    shown = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    if not watched():
        _print_plain(columns, shown)
        return
    out = _console()
    widths = _widths(columns, shown, out.width)
    table = rich.table.Table(box=None, pad_edge=False, padding=0)  # before 14.3 rich took the width of padding for that of columns
    for k, width in widths.items():
        justify: Literal["left", "right"] = "right" if columns[k].kind == "number" else "left"
        if table.columns:
            table.add_column(width=GAP)
        table.add_column(columns[k].head, width=width, overflow="fold", justify=justify)
    for row in shown:
        table.add_row(*[cell for k, width in widths.items() for cell in ("", _drawn(columns[k], row[k], width))][1:])
    out.print(table)
    left = [column.head for k, column in enumerate(columns) if k not in widths and column.head]
    if left:
        print_text(
            f"{len(left)} column{'s do' if len(left) > 1 else ' does'} not fit: {', '.join(dict.fromkeys(left))} (--json has all)", "dim"
        )


def fits(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> bool:
    """Whether all columns of a table have room where it is printed, and no name is folded."""
    return not watched() or sum(_natural_widths(columns, rows, "word")) + GAP * (len(columns) - 1) <= _console().width


def _console() -> Console:
    return rich.console.Console(highlight=False, emoji=False)


def _drawn(column: Column, cell: Cell, width: int) -> Text | Bar:
    """What rich shows of a cell."""
    if not isinstance(cell, str):
        return rich.bar.Bar(1, 0, cell, width=width)
    return rich.text.Text(_folded(cell, width) if column.kind == "name" else cell)


def _wrapped(text: str, width: int) -> str:
    """A text in lines, broken between words, but not before a unit; what begins the text stays. Words longer than a line are cut."""
    indent = text[: len(text) - len(text.lstrip())]
    room = max(width - 2 * len(indent), 1)
    long_word = re.compile(rf"\S{{{room}}}(?=\S)")  # what is as wide as a line stands alone in it, so that no space shows behind it
    glued = long_word.sub(r"\g<0> ", re.sub(BEFORE_UNIT, NO_BREAK, text.lstrip()))
    wrapper = textwrap.TextWrapper(max(width, 1), indent, 2 * indent, break_on_hyphens=False)
    return "\n".join(wrapper.wrap(glued)).replace(NO_BREAK, " ")


def _folded(name: str, width: int) -> str:
    """A path or the name of a tensor in lines that end, where possible, behind a slash, a dot or a hyphen."""
    lines = [""]
    for part in re.split(r"(?<=[./-])", name):
        for piece in (part[k : k + width] for k in range(0, len(part), width)):
            if lines[-1] and rich.cells.cell_len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


def _print_plain(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    kept = [k for k, column in enumerate(columns) if column.kind != "bar"]
    lines = [[columns[k].head for k in kept], *([str(row[k]) for k in kept] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    signs = [">" if columns[k].kind == "number" else "<" for k in kept]
    padded = ((f"{cell:{sign}{width}}" for cell, sign, width in zip(line, signs, widths, strict=True)) for line in lines)
    click.echo("\n".join((" " * GAP).join(cells).rstrip() for cells in padded))


# --- widths on a terminal ---


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], room: int) -> dict[int, int]:
    """The columns that have room, and their widths.

    Names are narrowed first, and headings broken between words; then columns are left out. What room is left goes to the names, then to
    the headings.
    """
    words, whole = (_natural_widths(columns, rows, unit) for unit in ("word", "head"))
    widths = {k: min(words[k], max(LEAST_NAME, room // 3)) if column.kind == "name" else words[k] for k, column in enumerate(columns)}
    while len(widths) > 1 and sum(widths.values()) + GAP * (len(widths) - 1) > room:
        del widths[max(list(widths)[1:], key=lambda k: (columns[k].order, k))]
    spare = room - sum(widths.values()) - GAP * (len(widths) - 1)
    for k, width in list(widths.items()):
        more = max(min(words[k] - width, spare), 0)
        widths[k], spare = width + more, spare - more
    for k, width in list(widths.items()):
        more = whole[k] - width if whole[k] - width <= spare else 0
        widths[k], spare = width + more, spare - more
    return {k: min(width, room) for k, width in widths.items()}


def _natural_widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], unit: str) -> list[int]:
    """Widths at which no cell is broken, and no heading, or no word of it."""
    widths = []
    for k, column in enumerate(columns):
        heads = [column.head] if unit == "head" else column.head.split()
        cells = (_cell_width(row[k]) for row in rows)
        widths.append(max((*map(rich.cells.cell_len, heads), *cells), default=0))
    return widths


def _cell_width(cell: Cell) -> int:
    return rich.cells.cell_len(cell) if isinstance(cell, str) else BAR_WIDTH


def _least_width(labels: Sequence[str], wanted: int) -> int:
    """The width of labels, at most ``wanted`` where no word is broken by it."""
    longest = max(len(label) for label in labels)
    return min(longest, max(wanted, *(len(word) for label in labels for word in label.split())))
