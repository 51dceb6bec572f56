"""Entries in the form that nearly all of them have, read by one regular expression, which takes much less time than the strict reader.

It reads a table whose every entry is plain: a tensor compared with the base tensor of its own name and dtype, or a new one, with a name of
printable ASCII. It takes nothing that :meth:`~ckptdiff.format.entry.Entry.read` would refuse, so that all rules and errors have their room
there; ``tests/format/test_entry_scan.py`` compares both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ckptdiff.format.columns import Columns
from ckptdiff.format.entry import CODEC_NAMES, MAX_CODED_BLOCK, Entry, Kind
from ckptdiff.format.header_scan import INTEGER, NAME
from ckptdiff.format.tensor_type import MAX_TENSORS, TensorType, integers, type_of

BEGIN = '{"removed":[],"tensors":['
ENTRY = re.compile(
    rf'\{{(?:"blocks":\[([0-9,]*)\],(?:"changed":{INTEGER},)?)?((?:"codec":"[a-z]+",)?"dtype":"[A-Z0-9_]+","kind":"[a-z]+"),'
    rf'"name":{NAME},"shape":\[([0-9,]*)\]\}}(?:,(?=\{{)|\](?=\}}\Z))'
)
"""An entry in canonical JSON, with the comma before the next one, or the end of the array. Much of it is checked where it is new."""
FORM = re.compile(r'(?:"codec":"([a-z]+)",)?"dtype":"([A-Z0-9_]+)","kind":"([a-z]+)"')
"""The third group of an entry."""

CODECS: dict[str, Collection[str | None]] = {"same": (None,), "delta": CODEC_NAMES, "new": ("raw",)}
"""The kinds of the entries that are taken, and their codecs."""
DIGESTS = {"same": (16, 0, 0), "delta": (16, 16, 8), "new": (16, 0, 8)}
"""By kind: bytes of the digests of tensor, adapted base and payload, which stand behind the table's JSON in this order."""
STRIDES = {kind: sum(sizes) for kind, sizes in DIGESTS.items()}
"""Bytes of all digests of an entry."""
LAYOUTS = {kind: "".join(f"{size}s" for size in sizes) for kind, sizes in DIGESTS.items()}
"""How :mod:`struct` takes them apart."""


class Form(NamedTuple):
    """What many entries share."""

    type: TensorType
    kind: Kind
    codec: str | None


@dataclass(frozen=True, slots=True)
class PlainEntries:
    """The entries of a table, all of them plain, as columns."""

    names: Sequence[str]
    forms: Sequence[Form]
    changed: Sequence[int]
    blocks: Sequence[tuple[int, ...]]

    @property
    def kinds(self) -> list[Kind]:
        """Their kinds."""
        return [form.kind for form in self.forms]

    @property
    def digest_size(self) -> int:
        """Bytes of all their digests."""
        return sum(STRIDES[kind] for kind in self.kinds)

    def columns(self, content: bytes, start: int) -> Columns:
        """The columns of the entries, whose digests stand in ``content`` from ``start`` on."""
        kinds = self.kinds
        found = struct.Struct("<" + "".join([LAYOUTS[kind] for kind in kinds])).unpack_from(content, start)
        digests, stated, payload_digests = found[::3], found[1::3], found[2::3]
        before = [digest if kind == "same" else base for kind, digest, base in zip(kinds, digests, stated, strict=True)]
        return Columns(
            names=self.names,
            types=[form.type for form in self.forms],
            kinds=kinds,
            codecs=[form.codec for form in self.forms],
            changed=self.changed,
            blocks=self.blocks,
            payloads=list(map(sum, self.blocks)),
            digests=digests,
            base_digests=before,
            payload_digests=payload_digests,
            are_plain=True,
            make_entries=partial(self._entries, digests, before, payload_digests),
        )

    def _entries(self, digests: Sequence[bytes], before: Sequence[bytes], payload_digests: Sequence[bytes]) -> Iterable[Entry]:
        columns = self.names, self.forms, self.changed, self.blocks, digests, before, payload_digests
        for name, ((dtype, shape, *_), kind, codec), changed, blocks, digest, base_digest, payload in zip(*columns, strict=True):
            base_dtype = None if kind == "new" else dtype
            yield Entry(name, dtype, shape, kind, base_dtype, (), codec, changed, blocks, None, True, digest, base_digest, payload)


def plain_entries(text: bytes, most_blocks: int) -> PlainEntries | None:
    """The entries of a table's JSON; None unless all are plain and as the spec wants them.

    Args:
        text: the JSON.
        most_blocks: how many blocks the target file has room for.
    """
    if not text.isascii() or text.count(b'"dtype"') > MAX_TENSORS:
        return None
    parts: list[Any] = ENTRY.split(text.decode("ascii"))
    between, coded, counts, forms, names, shapes = (parts[k :: 1 + ENTRY.groups] for k in range(1 + ENTRY.groups))
    if len(between) < 2 or (between[0], between[-1]) != (BEGIN, "}") or any(between[1:-1]):
        return None  # the entries leave out a part of the text
    known, sizes = _known_forms(set(zip(forms, shapes, strict=True)), most_blocks), _known_sizes(set(coded))
    if known is None or sizes is None:
        return None
    found = [known[pair] for pair in zip(forms, shapes, strict=True)]
    plain = PlainEntries(names, found, [int(count) if count else 0 for count in counts], [sizes[text] for text in coded])
    return plain if _agree(plain, coded, counts) else None


def _known_forms(pairs: Collection[tuple[str, str]], most_blocks: int) -> dict[tuple[str, str], Form] | None:
    """The forms of entries by the two groups that tell; None if one is not as the spec wants it."""
    known = dict[tuple[str, str], Form]()
    for text, shape in pairs:
        codec, dtype, kind = FORM.findall(text)[0]
        type_ = type_of(dtype, shape)
        if type_ is None or type_.blocks > most_blocks + 1 or (codec or None) not in CODECS.get(kind, ()):
            return None
        known[text, shape] = Form(type_, kind, codec or None)
    return known


def _known_sizes(texts: Collection[str | None]) -> dict[str | None, tuple[int, ...]] | None:
    """The sizes of coded blocks by their text; None if one is not as the spec wants it."""
    known = dict[str | None, tuple[int, ...]]()
    for text in texts:
        sizes = integers(text or "")
        if sizes is None or (sizes and max(sizes) > MAX_CODED_BLOCK):
            return None
        known[text] = sizes
    return known


def _agree(plain: PlainEntries, coded: Sequence[str | None], counts: Sequence[str | None]) -> bool:
    """Whether entries have blocks and changed units if their kind wants them, and as many as it wants."""
    for (type_, kind, _), changed, blocks, text, count in zip(plain.forms, plain.changed, plain.blocks, coded, counts, strict=True):
        if (text is None) != (kind == "same") or (count is None) != (kind != "delta"):
            return False
        if (kind != "same" and len(blocks) != type_.blocks) or (kind == "delta" and not 1 <= changed <= type_.units):
            return False
    return True
