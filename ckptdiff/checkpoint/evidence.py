"""Base tensors for target tensors whose names say nothing, or something wrong: found by keys of their content, and confirmed on a sample.

Each step takes what those before have left: tensors of one size, by content; tensors without a key, such as norms, by the names that
their siblings had; parts of tensors; rows of tables. Everything is linear in the tensors that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckptdiff.checkpoint.adapt import AdaptedBase, adapt, fits, joined
from ckptdiff.checkpoint.contents import Tensor, TensorKey
from ckptdiff.checkpoint.keys import MOST_ALIKE, MOST_COMPARED, Keys, SampleIndex, keys_along, says_something
from ckptdiff.checkpoint.names import LayerMap, closeness, common_parts, is_within, numbered_prefixes, numbers
from ckptdiff.checkpoint.parts import Part, StartIndex, row_units
from ckptdiff.checkpoint.rows import SAMPLED_ROWS, RowIndex, RowTables, is_table, pieces_of_rows, row_count, row_keys, sampled_keys
from ckptdiff.checkpoint.samples import Relation, cast_units, compare, relation, sample_of
from ckptdiff.format.entry import Piece

TALL = 3
"""How many times more rows than columns a tall table has at least."""
UNRELATED = Relation(0, 0, False, False)
"""What is said of a tensor without a base of its name."""
LEAST_SHARE = 16
"""A tensor must stand against units of base tensors at least in this part of it: one in so many."""
MOST_PIECES = 1 << 17
"""Pieces of one tensor: their table takes some megabytes."""


@dataclass(frozen=True, slots=True)
class Found:
    """A base that was found for a target tensor."""

    base: AdaptedBase
    means: str
    bits: int
    """How far apart their samples are (:class:`~ckptdiff.checkpoint.samples.Relation`)."""
    related: bool | None
    everywhere: bool


class Evidence:
    """Looks for bases of the tensors of a target scope.

    Args:
        known: the tensors of the base scope, by name.
        tensors: all tensors of the target scope.
        named: what those are compared with that have been paired by name.
        doubtful: those of these pairs that the samples do not bear out, and how far apart they are.
    """

    def __init__(
        self,
        known: Mapping[str, Tensor],
        tensors: Sequence[Tensor],
        named: Mapping[TensorKey, AdaptedBase],
        doubtful: Mapping[TensorKey, Relation],
    ) -> None:
        self.known, self.tensors, self.named, self.doubtful = known, tensors, named, doubtful
        self.limits = {key: found.bits for key, found in doubtful.items()}
        self.found: dict[TensorKey, Found] = {}

    def find(self, left: Sequence[Tensor]) -> dict[TensorKey, Found]:
        """The bases that can be found for some tensors, and better ones of others."""
        self._by_content(left)
        self._by_similar_names([tensor for tensor in left if tensor.key not in self.found])
        self._as_joined([tensor for tensor in left if tensor.key not in self.found])
        self._as_split([tensor for tensor in left if tensor.key not in self.found])
        shapes = {(row_count(base), row_units(base)) for base in self.known.values() if is_table(base)}
        self._by_rows([tensor for tensor in left if is_table(tensor) and self._may_have_moved_rows(tensor, shapes)])
        return self.found

    def _offer(self, tensor: Tensor, base: AdaptedBase, means: str, compared: Relation | None = None) -> None:
        """Take a base, unless its sample shows no relation, or that of the one that the tensor has is as near."""
        compared = compared or compare(base, tensor)
        if compared.related is False:
            return
        limit = self.found[tensor.key].bits if tensor.key in self.found else self.limits.get(tensor.key)
        if limit is None or compared.bits < limit:
            self.found[tensor.key] = Found(base, means, compared.bits, compared.related, compared.everywhere)

    # --- tensors of one size ---

    def _by_content(self, left: Sequence[Tensor]) -> None:
        sizes = {tensor.units for tensor in left}
        index = SampleIndex([base for base in self.known.values() if base.units in sizes])
        for tensor in left:
            found = _nearest(index, tensor)
            if found is not None:
                compared, base = found
                self._offer(tensor, adapt(base, tensor), "content", compared)

    # --- tensors whose names are alike ---

    def _by_similar_names(self, left: Sequence[Tensor]) -> None:
        """Tensors without a key, or whose keys training has changed: by what the names of their siblings have become."""
        whole = [(t, self.found[t.key].base if t.key in self.found else self.named.get(t.key)) for t in self.tensors]
        layers = LayerMap(
            [(t.name, next(iter(base.tensors))) for t, base in whole if base is not None and self._is_settled(t) and base.tensors]
        )
        tensors = [*left, *self._moved(layers)]
        sizes = {tensor.units for tensor in tensors}
        by_layer: dict[tuple[int, str | tuple[int, ...]], list[Tensor]] = {}
        for base in self.known.values():
            if base.units in sizes:
                for before in numbered_prefixes(base.name):
                    by_layer.setdefault((base.units, before), []).append(base)
                by_layer.setdefault((base.units, numbers(base.name)), []).append(base)
        for tensor in tensors:
            prefix = layers.prefix(tensor.name)
            rows = by_layer.get((tensor.units, numbers(tensor.name) if prefix is None else prefix), [])
            self._choose_similar(tensor, rows[:MOST_ALIKE], prefix is not None or (bool(layers) and not numbers(tensor.name)))

    def _is_settled(self, tensor: Tensor) -> bool:
        """Whether a tensor has a base that its content has shown, or its name and no doubt."""
        return tensor.key in self.found or (tensor.key in self.named and tensor.key not in self.limits)

    def _moved(self, layers: LayerMap) -> list[Tensor]:
        """Tensors without a key that are paired by name, while their siblings came from another layer."""
        moved = list[Tensor]()
        for tensor in self.tensors:
            own, prefix = next(numbered_prefixes(tensor.name), None), layers.prefix(tensor.name)
            if tensor.key in self.named and tensor.key not in self.limits and prefix not in (None, own):
                if not says_something(keys_along(sample_of(tensor), tensor.dtype)):
                    self.limits[tensor.key] = compare(self.named[tensor.key], tensor).bits
                    moved.append(tensor)
        return moved

    def _choose_similar(self, tensor: Tensor, candidates: Iterable[Tensor], has_siblings: bool) -> None:
        """Take the candidate whose sample is the nearest, and of those that cannot tell the one whose name is."""
        fitting = (base for base in candidates if fits(base, tensor))
        near = sorted(fitting, key=lambda base: closeness(base.name, tensor.name), reverse=True)[:MOST_COMPARED]
        rows = [(compare(adapt(base, tensor), tensor), base) for base in near]
        confirmed = [(row, base) for row, base in rows if row.related]
        alike = [(row, base) for row, base in rows if is_within(base.name, tensor.name) or (has_siblings and _are_alike(base, tensor))]
        unclear = [(row, base) for row, base in alike if row.related is None]
        if confirmed or unclear:
            row, base = min(confirmed, key=lambda pair: pair[0].bits) if confirmed else unclear[0]
            self._offer(tensor, adapt(base, tensor), "similar name", row)

    def _used(self) -> set[str]:
        """Names of the base tensors that a target tensor stands against, without a doubt."""
        bases = [base for key, base in self.named.items() if key not in self.limits]
        return {name for base in (*bases, *(found.base for found in self.found.values())) for name in base.tensors}

    # --- parts ---

    def _as_joined(self, left: Sequence[Tensor]) -> None:
        """Tensors that were joined from several of the base."""
        longest = max((tensor.units for tensor in left), default=0)
        index = StartIndex([base for base in self.known.values() if base.units < longest])
        for tensor in left:
            if index.may_have_parts(tensor):
                parts = index.parts_of(tensor, long_is_base=False)
                self._offer_pieces(tensor, _pieces_of_parts(parts), "parts")

    def _as_split(self, left: Sequence[Tensor]) -> None:
        """Tensors that are parts of one of the base."""
        index, rows = StartIndex(left), {row_units(tensor) for tensor in left}
        missing = {tensor.key: tensor for tensor in left}
        used = self._used()
        for long in self.known.values():
            fits = len(long.shape) < 2 or row_units(long) in rows
            if not missing or not fits or long.name in used or not index.may_have_parts(long):
                continue
            for part in index.parts_of(long, long_is_base=True):
                if missing.pop(part.tensor.key, None) is not None:
                    self._offer_pieces(part.tensor, [Piece(long.name, part.first, part.units)], "parts")

    def _offer_pieces(self, tensor: Tensor, pieces: Sequence[Piece], means: str) -> None:
        """Take pieces of base tensors of one dtype, if they are enough, and not too many."""
        dtypes = Counter[str]()
        for piece in pieces:
            if piece.name is not None:
                dtypes[self.known[piece.name].dtype] += piece.units
        if not dtypes:
            return
        ((dtype, units),) = dtypes.most_common(1)
        kept = [p if p.name is None or self.known[p.name].dtype == dtype else Piece(None, 0, p.units) for p in pieces]
        if LEAST_SHARE * units >= tensor.units and len(kept) <= MOST_PIECES:
            self._offer(tensor, joined(kept, self.known.__getitem__, tensor), means)

    # --- rows ---

    def _may_have_moved_rows(self, tensor: Tensor, shapes: Collection[tuple[int, int]]) -> bool:
        """Whether to look at every row of a table: it has a base that its sample does not bear out everywhere; or it has none, and is
        tall or a stack, or no table of the base has as many rows, which are those that it would have been found by."""
        if tensor.key in self.found:
            return not self.found[tensor.key].everywhere
        if self.doubtful.get(tensor.key, UNRELATED).related:
            return True
        if row_count(tensor) < SAMPLED_ROWS:  # such as a head for scores: looking takes longer than storing it
            return False
        is_tall = row_count(tensor) >= TALL * row_units(tensor) or len(tensor.shape) > 2
        return is_tall or (row_count(tensor), row_units(tensor)) not in shapes

    def _by_rows(self, left: Sequence[Tensor]) -> None:
        """Tables whose rows were moved, cut or added."""
        widths = {row_units(tensor) for tensor in left}
        tables = [base for base in self.known.values() if is_table(base) and row_units(base) in widths]
        used = self._used()
        for width in widths:
            alike = [base for base in tables if row_units(base) == width]
            finder = _TableFinder(alike, [base for base in alike if base.name not in used])
            for tensor in left:
                if row_units(tensor) == width:
                    keys = row_keys(tensor)
                    chosen = finder.find(tensor, keys)
                    if chosen:
                        self._offer_pieces(tensor, finder.pieces(chosen, keys), "rows")


ScopeFound = tuple[str, Sequence[Tensor], list[Tensor | None]]
"""A scope, its tensors, and for each of them the base tensor that was found."""


def found_by_content(known: Sequence[Tensor], by_scope: Mapping[str, Sequence[Tensor]]) -> Iterator[ScopeFound]:
    """For the tensors of each of some scopes the known ones of their size and content; None where there is none."""
    sizes = {tensor.units for tensors in by_scope.values() for tensor in tensors}
    index = SampleIndex([base for base in known if base.units in sizes])
    for scope, tensors in by_scope.items():
        found = [_nearest(index, tensor) for tensor in tensors]
        yield scope, tensors, [base[1] if base is not None else None for base in found]


def _nearest(index: SampleIndex, tensor: Tensor) -> tuple[Relation, Tensor] | None:
    """Of the tensors that have a key of a target's the one whose sample is the nearest, and related; of equals the closest by name."""
    sample = sample_of(tensor)
    found = index.find(tensor, keys_along(sample, tensor.dtype))
    near = sorted((base for base in found if fits(base, tensor)), key=lambda base: closeness(base.name, tensor.name), reverse=True)
    compared = [
        (relation(cast_units(sample_of(base), base.dtype, tensor.dtype), sample, tensor.dtype), base) for base in near[:MOST_COMPARED]
    ]
    confirmed = [(row, base) for row, base in compared if row.related]
    return min(confirmed, key=lambda pair: pair[0].bits) if confirmed else None


class _TableFinder:
    """Finds the table of a base that has the rows of a target's; all have rows of one width."""

    def __init__(self, tables: Sequence[Tensor], unused: Sequence[Tensor]) -> None:
        self._samples, self._unused = RowTables(tables), unused
        self._indexes: dict[str, RowIndex] = {}

    def index(self, table: Tensor) -> RowIndex:
        """All rows of a table by their keys; those of the last few tables are kept."""
        if table.name not in self._indexes:
            if len(self._indexes) == MOST_COMPARED:  # some hundred bytes a row
                del self._indexes[next(iter(self._indexes))]
            self._indexes[table.name] = RowIndex(row_keys(table))
        return self._indexes[table.name]

    def find(self, tensor: Tensor, keys: Keys) -> list[Tensor]:
        """The tables with the most rows in common, told by some of their rows; or of which few rows are left, by some of the target's."""
        votes = self._samples.votes(keys)
        hits = {int(k): int(votes[k]) for k in np.flatnonzero(votes)}
        tables = self._samples.tables
        if not hits:
            some, tables = sampled_keys(tensor), [base for base in self._unused if row_count(base) > row_count(tensor)][:MOST_COMPARED]
            counts = {k: int((self.index(base).candidates(some) >= 0).any(axis=0).sum()) for k, base in enumerate(tables)}
            hits = {k: count for k, count in counts.items() if count}
        best = [(count, closeness(tables[k].name, tensor.name), tables[k]) for k, count in hits.items() if fits(tables[k], tensor)]
        return [table for *_, table in sorted(best, key=lambda row: row[:2], reverse=True)[:MOST_COMPARED]]

    def pieces(self, tables: Sequence[Tensor], keys: Keys) -> list[Piece]:
        """Each row of a target as the row of some tables that it is nearest to."""
        rows = [self.index(table).align(keys) for table in tables]
        distances = np.array([self.index(table).distances(found, keys) for table, found in zip(tables, rows, strict=True)])
        which = np.argmin(distances, axis=0)
        return list(pieces_of_rows(np.array(rows)[which, np.arange(len(keys))], which, tables))


def _are_alike(base: Tensor, target: Tensor) -> bool:
    """Whether two tensors have more than half of the shorter name in common."""
    return 2 * common_parts(base.name, target.name) > min(base.name.count("."), target.name.count(".")) + 1


def _pieces_of_parts(parts: Sequence[Part]) -> list[Piece]:
    """The pieces of a tensor that was joined from parts, with zeros between them where none is known."""
    pieces, at = list[Piece](), 0
    for part in parts:
        pieces += [Piece(None, 0, part.first - at)] * (part.first > at) + [Piece(part.tensor.name, 0, part.units)]
        at = part.first + part.units
    return pieces
