"""Entries in the form that nearly all of them have, read by one regular expression, which takes much less time than the strict reader.

It reads a table whose every entry is plain: a tensor compared with the base tensor of its own name and dtype, or a new one, with a name of
printable ASCII. It takes nothing that :meth:`~ckptdiff.format.entry.Entry.read` would refuse, so that all rules and errors have their room
there; ``tests/format/test_entry_scan.py`` compares both.
"""

from __future__ import annotations

import re

from ckptdiff.format.digests import block_count
from ckptdiff.format.dtypes import DTYPES, MAX_SIZE
from ckptdiff.format.entry import CODEC_NAMES, MAX_CODED_BLOCK, Entry
from ckptdiff.format.safetensors import MAX_NAME, MAX_RANK, MAX_TENSORS

BEGIN = b'{"removed":[],"tensors":['
INTEGER = rb"(?:0|[1-9][0-9]{0,14})"
INTEGERS = rb"((?:%s(?:,%s)*)?)" % (INTEGER, INTEGER)
ENTRY = re.compile(
    rb'\{(?:"blocks":\[%s\],(?:"changed":(%s),)?"codec":"([a-z]+)",)?"dtype":"([A-Z0-9_]+)","kind":"([a-z]+)",'
    rb'"name":"([ !#-\[\]-~]{1,%d})","shape":\[%s\]\}(?:,(?=\{)|\](?=\}\Z))' % (INTEGERS, INTEGER, MAX_NAME, INTEGERS)
)
"""An entry in canonical JSON, with the comma before the next one, or the end of the array."""

CODECS = {name.encode(): name for name in CODEC_NAMES}
Size = tuple[str, tuple[int, ...], int, int]
"""Dtype and shape of a tensor, how many units it has, and how many blocks."""


def plain_entries(text: bytes, most_blocks: int) -> list[Entry] | None:
    """The entries of a table's JSON, without their digests; None unless all are plain and as the spec wants them.

    Args:
        text: the JSON.
        most_blocks: how many blocks the target file has room for.
    """
    if not text.startswith(BEGIN):
        return None
    entries, at = list[Entry](), len(BEGIN)
    sizes: dict[tuple[bytes, bytes], Size | None] = {}
    for match in ENTRY.finditer(text, at):
        blocks, changed, codec, dtype, kind, name, shape = match.groups()
        if match.start() != at:
            return None
        at = match.end()
        if (dtype, shape) not in sizes:
            sizes[dtype, shape] = _size(dtype.decode(), _integers(shape))
        size = sizes[dtype, shape]
        if size is None or size[3] > most_blocks + 1:
            return None
        name_, (dtype_, shape_, units, count) = name.decode(), size
        if kind == b"same" and blocks is None:
            entries.append(Entry(name_, dtype_, shape_, "same", dtype_))
            continue
        if blocks is None or len(coded := _integers(blocks)) != count or (count and max(coded) > MAX_CODED_BLOCK):
            return None
        if kind == b"delta" and changed is not None and 1 <= int(changed) <= units and (codec_ := CODECS.get(codec)):
            entries.append(Entry(name_, dtype_, shape_, "delta", dtype_, (), codec_, int(changed), coded))
        elif kind == b"new" and changed is None and codec == b"raw":
            entries.append(Entry(name_, dtype_, shape_, "new", None, (), "raw", 0, coded))
        else:
            return None
    return entries if at == len(text) - 1 and len(entries) <= MAX_TENSORS else None


def _integers(text: bytes) -> tuple[int, ...]:
    return tuple(map(int, text.split(b","))) if text else ()


def _size(dtype: str, shape: tuple[int, ...]) -> Size | None:
    """A tensor's size; None if there is no such tensor."""
    known = DTYPES.get(dtype)
    if known is None or len(shape) > MAX_RANK or any(dim > MAX_SIZE for dim in shape):
        return None
    nbytes = known.nbytes(shape)
    return None if nbytes is None else (known.name, shape, nbytes // known.carrier, block_count(nbytes))
