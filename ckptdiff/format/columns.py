"""The entries of a table (spec section 6) as columns: what is asked of all tensors at once is told without an object for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ckptdiff.format.entry import KINDS, Entry, Kind, Totals
from ckptdiff.format.tensor_type import TensorType


@dataclass(frozen=True, slots=True)
class Columns:
    """One sequence a member, each with an item for every entry, in the table's order."""

    names: Sequence[str]
    types: Sequence[TensorType]
    kinds: Sequence[Kind]
    codecs: Sequence[str | None]
    changed: Sequence[int]
    """Units of ``delta`` entries that differ from the adapted base."""
    blocks: Sequence[tuple[int, ...]]
    """Sizes of the coded blocks in bytes; none where there is no payload."""
    payloads: Sequence[int]
    """Bytes of payload."""
    digests: Sequence[bytes]
    """Tensor digests; empty for a ``copy``."""
    base_digests: Sequence[bytes]
    """Tensor digests of the adapted bases; empty where there is none."""
    payload_digests: Sequence[bytes]
    """Digests of payloads; empty where there is none."""
    are_plain: bool
    """Whether none is a copy, stands uncounted, or has a base but the whole tensor of its own name and dtype."""
    make_entries: Callable[[], Iterable[Entry]]
    """Makes the entries; like the rest, it can be pickled, as machines send tables to each other."""

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Columns:
        """The columns of entries that have been made."""
        return cls(
            names=[entry.name for entry in entries],
            types=[entry.type for entry in entries],
            kinds=[entry.kind for entry in entries],
            codecs=[entry.codec for entry in entries],
            changed=[entry.changed for entry in entries],
            blocks=[entry.blocks for entry in entries],
            payloads=[entry.payload_size for entry in entries],
            digests=[entry.digest for entry in entries],
            base_digests=[entry.base_digest for entry in entries],
            payload_digests=[entry.payload_digest for entry in entries],
            are_plain=not any(
                entry.of is not None or not entry.counts or entry.pieces or (entry.has_base and entry.base_dtype != entry.dtype)
                for entry in entries
            ),
            make_entries=partial(tuple, entries),
        )

    @property
    def nbytes(self) -> list[int]:
        """Sizes of the tensors in bytes."""
        return [type_.nbytes for type_ in self.types]

    def totals(self, removed: int) -> Totals:
        """The sums of the entries (spec 5.1), given how many removed tensors the table lists."""
        counts = Counter(self.kinds)
        units = sum(type_.units for type_ in self.types)
        return Totals(**{kind: counts[kind] for kind in KINDS}, removed=removed, units=units, changed=sum(self.changed))
