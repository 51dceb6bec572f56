"""Base tensors for target tensors whose names say nothing, or something wrong: found by keys of their content, and confirmed on a sample.

Each step takes what those before have left: tensors of one size, by content; tensors without a key, such as norms, by the names that
their siblings had; parts of tensors; rows of tables. Everything is linear in the tensors that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.adapt import AdaptedBase, adapt, joined
from ckptdiff.checkpoint.contents import Tensor, TensorKey
from ckptdiff.checkpoint.keys import NO_KEYS, SampleIndex, sample_keys
from ckptdiff.checkpoint.names import LayerMap, closeness, is_within, numbered_prefixes, numbers
from ckptdiff.checkpoint.parts import Part, StartIndex, fill_gaps, row_units
from ckptdiff.checkpoint.rows import RowIndex, is_table, pieces_of_rows, row_count, row_keys, sampled_rows
from ckptdiff.checkpoint.samples import Relation, cast_units, compare, relation, sample_of
from ckptdiff.format.dtypes import is_castable
from ckptdiff.format.entry import Piece

MOST_COMPARED = 8
"""Candidates of one tensor whose samples are compared."""
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
        self.known, self.tensors, self.named = known, tensors, named
        self.limits = {key: found.bits for key, found in doubtful.items()}
        self.found: dict[TensorKey, Found] = {}
        self.keyless: list[Tensor] = []

    def find(self, left: Sequence[Tensor]) -> dict[TensorKey, Found]:
        """The bases that can be found for some tensors, and better ones of others."""
        self._by_content(left)
        self._by_similar_names()
        self._as_joined([tensor for tensor in left if tensor.key not in self.found])
        self._as_split([tensor for tensor in left if tensor.key not in self.found])
        self._by_rows(
            [tensor for tensor in left if is_table(tensor) and not (tensor.key in self.found and self.found[tensor.key].everywhere)]
        )
        return self.found

    def _offer(self, tensor: Tensor, base: AdaptedBase, means: str, compared: Relation | None = None) -> None:
        """Take a base, unless the sample of the one that the tensor has is as near."""
        compared = compared or compare(base, tensor)
        limit = self.found[tensor.key].bits if tensor.key in self.found else self.limits.get(tensor.key)
        if limit is None or compared.bits < limit:
            self.found[tensor.key] = Found(base, means, compared.bits, compared.related, compared.everywhere)

    # --- tensors of one size ---

    def _by_content(self, left: Sequence[Tensor]) -> None:
        sizes = {tensor.units for tensor in left}
        index = SampleIndex(base for base in self.known.values() if base.units in sizes)
        for tensor in left:
            sample = sample_of(tensor)
            keys = sample_keys(sample, tensor.dtype)
            if not set(keys).difference(NO_KEYS):
                self.keyless.append(tensor)
                continue
            found = index.find(tensor.units, keys)
            near = sorted((base for base in found if _fits(base, tensor)), key=lambda base: closeness(base.name, tensor.name), reverse=True)
            compared = [
                (relation(cast_units(sample_of(base), base.dtype, tensor.dtype), sample, tensor.dtype), base)
                for base in near[:MOST_COMPARED]
            ]
            confirmed = [(row, base) for row, base in compared if row.related]
            if confirmed:
                row, base = min(confirmed, key=lambda pair: pair[0].bits)
                self._offer(tensor, adapt(base, tensor), "content", row)

    # --- tensors without a key ---

    def _by_similar_names(self) -> None:
        whole = [(t, self.found[t.key].base if t.key in self.found else self.named.get(t.key)) for t in self.tensors]
        layers = LayerMap(
            [(t.name, next(iter(base.tensors))) for t, base in whole if base is not None and self._is_settled(t) and base.tensors]
        )
        if not layers and not self.keyless:
            return
        by_layer: dict[str | tuple[int, ...], list[Tensor]] = {}
        for base in self.known.values():
            by_layer.setdefault(next(numbered_prefixes(base.name), ""), []).append(base)
            by_layer.setdefault(numbers(base.name), []).append(base)
        for tensor in (*self.keyless, *self._moved(layers)):
            prefix = layers.prefix(tensor.name)
            rows = by_layer.get(numbers(tensor.name) if prefix is None else prefix, ())
            self._choose_similar(tensor, rows, prefix is not None or (bool(layers) and not numbers(tensor.name)))

    def _is_settled(self, tensor: Tensor) -> bool:
        """Whether a tensor has a base that its content has shown, or its name and no doubt."""
        return tensor.key in self.found or (tensor.key in self.named and tensor.key not in self.limits)

    def _moved(self, layers: LayerMap) -> list[Tensor]:
        """Tensors without a key that are paired by name, while their siblings came from another layer."""
        moved = list[Tensor]()
        for tensor in self.tensors:
            own, prefix = next(numbered_prefixes(tensor.name), None), layers.prefix(tensor.name)
            if tensor.key in self.named and tensor.key not in self.limits and prefix not in (None, own):
                sample = sample_of(tensor)
                if not set(sample_keys(sample, tensor.dtype)).difference(NO_KEYS):
                    self.limits[tensor.key] = compare(self.named[tensor.key], tensor).bits
                    moved.append(tensor)
        return moved

    def _choose_similar(self, tensor: Tensor, candidates: Iterable[Tensor], has_siblings: bool) -> None:
        """Take the candidate whose sample is the nearest, and of those that cannot tell the one whose name is."""
        fitting = (base for base in candidates if base.units == tensor.units and _fits(base, tensor))
        near = sorted(fitting, key=lambda base: closeness(base.name, tensor.name), reverse=True)[:MOST_COMPARED]
        rows = [(compare(adapt(base, tensor), tensor), base) for base in near]
        confirmed = [(row, base) for row, base in rows if row.related]
        unclear = [(row, base) for row, base in rows if row.related is None and (has_siblings or is_within(base.name, tensor.name))]
        if confirmed or unclear:
            row, base = min(confirmed, key=lambda pair: pair[0].bits) if confirmed else unclear[0]
            self._offer(tensor, adapt(base, tensor), "similar name", row)

    # --- parts ---

    def _as_joined(self, left: Sequence[Tensor]) -> None:
        """Tensors that were joined from several of the base."""
        longest = max((tensor.units for tensor in left), default=0)
        index = StartIndex(base for base in self.known.values() if base.units < longest)
        for tensor in left:
            if index.shortest and tensor.units > index.shortest:
                parts = index.parts_of(tensor, long_is_base=False)
                if parts and len(tensor.shape) < 2:
                    parts = fill_gaps(parts, tensor, self.known.values(), long_is_base=False)
                self._offer_pieces(tensor, _pieces_of_parts(parts), "parts")

    def _as_split(self, left: Sequence[Tensor]) -> None:
        """Tensors that are parts of one of the base."""
        index, rows = StartIndex(left), {row_units(tensor) for tensor in left}
        missing = {tensor.key: tensor for tensor in left}
        for long in self.known.values():
            is_flat = len(long.shape) < 2
            if not missing or not index.shortest or long.units <= index.shortest or not (is_flat or row_units(long) in rows):
                continue
            parts = index.parts_of(long, long_is_base=True)
            if parts and is_flat:
                parts = fill_gaps(parts, long, missing.values(), long_is_base=True)
            for part in parts:
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

    def _by_rows(self, left: Sequence[Tensor]) -> None:
        """Tables whose rows were moved, cut or added."""
        tables: dict[int, list[Tensor]] = {}
        for base in self.known.values():
            if is_table(base):
                tables.setdefault(row_units(base), []).append(base)
        used = {name for key, base in self.named.items() if key not in self.limits for name in base.tensors}
        indexes: dict[str, RowIndex] = {}
        for tensor in left:
            fitting = [base for base in tables.get(row_units(tensor), ()) if _fits(base, tensor)]
            table = self._table_with_rows_of(tensor, fitting, used, indexes)
            if table is not None:
                rows = _row_index(table, indexes).align(row_keys(tensor))
                self._offer_pieces(tensor, list(pieces_of_rows(rows, table)), "rows")

    def _table_with_rows_of(self, tensor: Tensor, tables: Sequence[Tensor], used: set[str], indexes: dict[str, RowIndex]) -> Tensor | None:
        """The table of the base that has the most rows in common with a target's, told by some rows of each."""
        if not tables:
            return None
        rows, best = RowIndex(tensor), list[tuple[int, tuple[int, int], Tensor]]()
        for base in tables:
            hits = int((rows.find(row_keys(base, sampled_rows(base))) >= 0).sum())
            best += [(hits, closeness(base.name, tensor.name), base)] * bool(hits)
        if not best:  # few of a table's rows may be left
            some = row_keys(tensor, sampled_rows(tensor))
            for base in tables:
                if row_count(base) > row_count(tensor) and (base.name == tensor.name or base.name not in used):
                    hits = int((_row_index(base, indexes).find(some) >= 0).sum())
                    best += [(hits, closeness(base.name, tensor.name), base)] * bool(hits)
        return max(best, key=lambda row: row[:2])[2] if best else None


def _row_index(base: Tensor, indexes: dict[str, RowIndex]) -> RowIndex:
    """The rows of a table of the base by their keys, which are read once."""
    if base.name not in indexes:
        indexes[base.name] = RowIndex(base)
    return indexes[base.name]


def _fits(base: Tensor, target: Tensor) -> bool:
    """Whether a base tensor has the target's dtype, or one that can be cast to it."""
    return base.dtype == target.dtype or is_castable(base.dtype, target.dtype)


def _pieces_of_parts(parts: Sequence[Part]) -> list[Piece]:
    """The pieces of a tensor that was joined from parts, with zeros between them where none is known."""
    pieces, at = list[Piece](), 0
    for part in parts:
        pieces += [Piece(None, 0, part.first - at)] * (part.first > at) + [Piece(part.tensor.name, 0, part.units)]
        at = part.first + part.units
    return pieces
