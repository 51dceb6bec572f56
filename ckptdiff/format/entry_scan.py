"""Entries in the form that nearly all of them have, read by one regular expression, which takes much less time than the strict reader.

It reads a table whose every entry is plain: a tensor compared with the base tensor of its own name and dtype, or a new one, with a name of
printable ASCII. It takes nothing that :meth:`~ckptdiff.format.entry.Entry.read` would refuse, so that all rules and errors have their room
there; ``tests/format/test_entry_scan.py`` compares both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ckptdiff.format.columns import Columns
from ckptdiff.format.entry import CODEC_NAMES, MAX_CODED_BLOCK, Entry, Kind
from ckptdiff.format.header_scan import INTEGER, INTEGERS, NAME
from ckptdiff.format.tensor_type import MAX_TENSORS, TensorType, integers, types_of

BEGIN = '{"removed":[],"tensors":['
ENTRY = re.compile(
    rf'(\{{(?:"blocks":\[{INTEGERS}\],(?:"changed":{INTEGER},)?"codec":"([a-z]+)",)?"dtype":"([A-Z0-9_]+)","kind":"([a-z]+)",'
    rf'"name":{NAME},"shape":\[{INTEGERS}\]\}}(?:,(?=\{{)|\](?=\}}\Z)))'
)
"""An entry in canonical JSON, with the comma before the next one, or the end of the array."""

FORMS: set[tuple[str, str, bool]] = {("same", "", False), ("new", "raw", False), *(("delta", codec, True) for codec in CODEC_NAMES)}
"""Kind and codec of the entries that are taken, and whether they have changed units."""
DIGESTS = {"same": (16, 0, 0), "delta": (16, 16, 8), "new": (16, 0, 8)}
"""By kind: bytes of the digests of tensor, adapted base and payload, which stand behind the table's JSON in this order."""


@dataclass(frozen=True, slots=True)
class PlainEntries:
    """The entries of a table, all of them plain, as columns."""

    names: Sequence[str]
    types: Sequence[TensorType]
    kinds: Sequence[Kind]
    codecs: Sequence[str]
    """Empty where there is none."""
    changed: Sequence[int]
    blocks: Sequence[tuple[int, ...]]

    @property
    def digest_size(self) -> int:
        """Bytes of all their digests."""
        return sum(sum(DIGESTS[kind]) * self.kinds.count(kind) for kind in DIGESTS)

    def columns(self, content: bytes, start: int) -> Columns:
        """The columns of the entries, whose digests stand in ``content`` from ``start`` on."""
        begins = list(itertools.accumulate((STRIDES[kind] for kind in self.kinds), initial=start))[:-1]
        payloads = {coded: sum(coded) for coded in set(self.blocks)}
        digests = [content[at : at + 16] for at in begins]
        ends = (at + STRIDES[kind] if kind != "same" else 0 for at, kind in zip(begins, self.kinds, strict=True))
        payload_digests = [content[end - 8 : end] if end else b"" for end in ends]
        return Columns(
            names=self.names,
            types=self.types,
            kinds=self.kinds,
            codecs=[codec or None for codec in self.codecs],
            changed=self.changed,
            payloads=[payloads[coded] for coded in self.blocks],
            digests=digests,
            payload_digests=payload_digests,
            are_plain=True,
            make_entries=partial(self._entries, content, begins, digests, payload_digests),
        )

    def _entries(
        self, content: bytes, begins: Sequence[int], digests: Sequence[bytes], payload_digests: Sequence[bytes]
    ) -> Iterable[Entry]:
        columns = (self.names, self.types, self.kinds, self.codecs, self.changed, self.blocks, begins, digests, payload_digests)
        for name, (dtype, shape, *_), kind, codec, changed, blocks, at, digest, payload in zip(*columns, strict=True):
            if kind == "same":
                yield Entry(name, dtype, shape, kind, dtype, digest=digest, base_digest=digest)
                continue
            base_dtype, base_digest = (dtype, content[at + 16 : at + 32]) if kind == "delta" else (None, b"")
            yield Entry(name, dtype, shape, kind, base_dtype, (), codec, changed, blocks, None, True, digest, base_digest, payload)


STRIDES = {kind: sum(sizes) for kind, sizes in DIGESTS.items()}
"""Bytes of all digests of an entry."""


def plain_entries(text: bytes, most_blocks: int) -> PlainEntries | None:
    """The entries of a table's JSON; None unless all are plain and as the spec wants them.

    Args:
        text: the JSON.
        most_blocks: how many blocks the target file has room for.
    """
    if not text.isascii() or text.count(b'"dtype"') > MAX_TENSORS:
        return None
    json = text.decode("ascii")
    rows = ENTRY.findall(json, len(BEGIN)) if json.startswith(BEGIN) else []
    if not rows:
        return None
    found, coded, changed, codecs, dtypes, kinds, names, shapes = zip(*rows, strict=True)
    if len(BEGIN) + sum(map(len, found)) != len(json) - 1 or not FORMS.issuperset(zip(kinds, codecs, map(bool, changed), strict=True)):
        return None  # they leave out a part of the text, or are of another form
    types = types_of(list(zip(dtypes, shapes, strict=True)))
    blocks = {text: integers(text) for text in set(coded)}
    if types is None or any(type_.blocks > most_blocks + 1 for type_ in set(types)):
        return None
    if any(sizes and max(sizes) > MAX_CODED_BLOCK for sizes in blocks.values()):
        return None
    plain = PlainEntries(names, types, kinds, codecs, [int(count or 0) for count in changed], [blocks[text] for text in coded])
    return plain if _agree(plain) else None


def _agree(plain: PlainEntries) -> bool:
    """Whether changed units and blocks are as many as the tensors' types and kinds want."""
    rows = zip(plain.types, plain.kinds, plain.changed, plain.blocks, strict=True)
    return all(
        (not changed and not blocks) if kind == "same" else len(blocks) == type_.blocks and (kind == "new" or 1 <= changed <= type_.units)
        for type_, kind, changed, blocks in rows
    )
