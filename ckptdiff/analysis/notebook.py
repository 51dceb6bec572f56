"""How results look in a notebook: a line as text, a small table as HTML, and DataFrames. These are the parents of the results' classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from ckptdiff.analysis.frames import (
    Table,
    counted_pair,
    expert_table,
    exponent_table,
    frame_of,
    layer_table,
    matrix_table,
    step_table,
    tensor_step_table,
    tensor_table,
)
from ckptdiff.errors import CheckpointError
from ckptdiff.units import percent, percent_of, shape_text

MAX_HTML_ROWS = 30
"""Rows of a table in a notebook; of more the last line says how many there are."""


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table, in which no name can be markup."""
    cells = [list(row) for row in rows]
    shown = cells if len(cells) <= MAX_HTML_ROWS else cells[: MAX_HTML_ROWS - 1]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown]
    if len(shown) < len(cells):
        lines.append(f'<tr><td colspan="{len(columns)}">… and {len(cells) - len(shown):,} more: see to_frame()</td></tr>')
    body = "".join(lines)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Framed:
    """A result that has tables."""

    __slots__ = ()

    def to_frame(self, table: str | None = None) -> Any:
        """A table as a pandas DataFrame. Counts and ``layer`` are nullable integers (``Int64``); ``changed`` are the elements whose bits
        differ, and ``sparsity`` is bit-identical elements / elements.

        Args:
            table: its name; None for the first of these. Of a report: ``tensors``, a row each, with means of ranks over the matrices that
                changed; ``matrices``, a row for each whose rank was taken; ``layers``, a row for each layer and kind of module;
                ``experts``, a row for each expert of each tensor, also of those that are stacked in one; ``exponents``, a row for each
                binary exponent of each tensor, none for zeros and subnormals, with P(changed | exponent). Of an overlap: ``pairs``, a row
                for every two updates, over all tensors; ``tensors``, a row for every two in each tensor. Of an overlap and of a chain:
                ``steps``, a row for each update as a checkpoint of one run, in shares of all elements; ``series``, the same in each
                tensor, in numbers of elements. Of a chain, ``steps`` is the first.

        Raises:
            CheckpointError: there is no such table. ImportError: pandas is not installed.
        """
        return frame_of(self.table(table))

    def table(self, name: str | None = None) -> Table:
        """The rows of :meth:`to_frame`, as plain values.

        Raises:
            CheckpointError: there is no such table.
        """
        tables = self._tables()
        if name is not None and name not in tables:
            raise CheckpointError(f"table: expected one of {', '.join(tables)}, found {name!r:.80}")
        return tables[next(iter(tables)) if name is None else name]()

    def _tables(self) -> dict[str, Callable[[], Table]]:
        """What makes each table, by its name."""
        raise NotImplementedError


class ShownTensor:
    """The text of a :class:`~ckptdiff.analysis.report_model.TensorReport`."""

    __slots__ = ()

    def __repr__(self: Any) -> str:
        counts = self.counts
        return f"<TensorReport {self.label}: {self.dtype} {shape_text(self.shape)}, {percent_of(counts.changed, counts.elements)} changed>"


class ShownReport(Framed):
    """What a notebook shows of a :class:`~ckptdiff.analysis.report_model.Report`."""

    __slots__ = ()

    def __repr__(self: Any) -> str:
        totals, rank = self.totals, self.rank
        shares = [f"{percent_of(totals.bit_identical, totals.elements)} bit-identical"]
        if self.complete:
            shares.append(f"{percent_of(totals.within_atol, totals.elements)} within {self.tolerance.atol:g}")
        if rank is not None:
            shares.append(f"mean rank {percent(rank.rank_share)} of {rank.matrices:,} matrices")
        sides = f"{self.base} -> {self.target}" if self.base else self.target
        cast = f" as {self.cast}" if self.cast else ""
        return f"<ckptdiff.Report {sides}{cast}: {totals.elements:,} elements in {len(self.tensors):,} tensors, {', '.join(shares)}>"

    def _repr_html_(self: Any) -> str:
        groups = [*self.modules.items(), ("all", self.totals)]
        rows = []
        for name, counts in groups:
            shares = [counts.changed, *([counts.elements - counts.within_atol, counts.one_ulp, counts.up] if self.complete else [])]
            wholes = (counts.elements, counts.elements, counts.changed, counts.changed)
            rows.append([name, f"{counts.elements:,}", *(percent_of(n, whole) for n, whole in zip(shares, wholes, strict=False))])
        columns = ["module", "elements", "changed", *([f"|d| > {self.tolerance.atol:g}", "one ulp", "up"] if self.complete else [])]
        return html_table(repr(self).strip("<>"), columns, rows)

    def _tables(self: Any) -> dict[str, Callable[[], Table]]:
        return {
            "tensors": lambda: tensor_table(self.tensors, self.complete),
            "matrices": lambda: matrix_table(self.tensors),
            "layers": lambda: layer_table(self.tensors, self.complete),
            "experts": lambda: expert_table(self.tensors),
            "exponents": lambda: exponent_table(self.tensors),
        }


class ShownOverlap(Framed):
    """What a notebook shows of an :class:`~ckptdiff.analysis.overlap.OverlapResult`."""

    __slots__ = ()

    def __repr__(self: Any) -> str:
        changed = ", ".join(f"{step.name} changes {percent(1 - step.sparsity)}" for step in self.steps[:3])
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        cast = f" as {self.cast}" if self.cast else ""
        sizes = f"{self.elements:,} elements in {len(self.tensors):,} tensors"
        return f"<ckptdiff.OverlapResult of {self.base}{cast}: {sizes}, {changed}{more}>"

    def _repr_html_(self: Any) -> str:
        keys = ("o1", "o1_by_size", "random_o1", "o2", "o2_by_size", "random_o2", "jaccard", "same_direction")
        pairs = [(pair, pair.to_json()) for pair in self.pairs]
        rows = [[self.names[pair.first], self.names[pair.second], *(percent(values[key]) for key in keys)] for pair, values in pairs]
        return html_table(repr(self).strip("<>"), ["first", "second", *(key.replace("_", " ") for key in keys)], rows)

    def _tables(self: Any) -> dict[str, Callable[[], Table]]:
        numbers = range(len(self.names))

        def pairs(groups: Iterable[tuple[dict[str, str], Sequence[Any]]]) -> Table:
            rows = [
                place
                | {"first_name": self.names[pair.first], "second_name": self.names[pair.second]}
                | counted_pair(tensors, pair.first, pair.second)
                | self.pair(pair.first, pair.second, tensors).to_json()
                for place, tensors in groups
                for pair in self.pairs
            ]
            return Table(tuple(rows[0]) if rows else ("first_name", "second_name", "elements"), rows)

        return {
            "pairs": lambda: pairs([({}, self.tensors)]),
            "tensors": lambda: pairs([({"scope": t.scope, "name": t.name}, [t]) for t in self.tensors]),
            "steps": lambda: step_table(numbers, self.steps),
            "series": lambda: tensor_step_table(numbers, self.tensors),
        }


class ShownChain(Framed):
    """What a notebook shows of a :class:`~ckptdiff.analysis.series.ChainReport`."""

    __slots__ = ()

    def __repr__(self: Any) -> str:
        last = f", the last changes {percent(1 - self.steps[-1].sparsity)}" if self.numbers else ""
        cast = f" as {self.cast}" if self.cast else ""
        sizes = f"{self.elements:,} elements in {len(self.tensors):,} tensors"
        return f"<ckptdiff.ChainReport {self.chain}{cast}: {sizes}, {len(self.numbers):,} steps{last}>"

    def _repr_html_(self: Any) -> str:
        rows = [[s.name, *map(percent, (1 - s.sparsity, s.since_last, s.ever, s.back))] for s in self.steps]
        return html_table(repr(self).strip("<>"), ["step", "changed", "since the last", "ever changed", "changed and back"], rows)

    def _tables(self: Any) -> dict[str, Callable[[], Table]]:
        return {
            "steps": lambda: step_table(self.numbers, self.steps),
            "series": lambda: tensor_step_table(self.numbers, self.tensors),
        }
