"""Headers in the form that nearly all writers give them, read by a regular expression, which takes much less time than the strict parser.

It reads a header without white space whose tensors have names of printable ASCII and stand in the order of their data. It takes nothing
that :func:`~ckptdiff.format.safetensors.parse_header` would refuse, so that all rules and errors have their room there;
``tests/format/test_header_scan.py`` compares both.
"""

from __future__ import annotations

import itertools
import re

from ckptdiff.format import canonical
from ckptdiff.format.tensor_type import MAX_NAME, MAX_TENSORS, TensorInfo, types_of

INTEGERS = r"((?:(?:0|[1-9][0-9]{0,14})(?:,(?:0|[1-9][0-9]{0,14}))*)?)"
"""Integers of JSON with commas between them, or none."""
INTEGER = r"(0|[1-9][0-9]{0,14})"
NAME = rf'"([ !#-\[\]-~]{{1,{MAX_NAME}}})"'
"""A string of printable ASCII without escapes."""
TEXT = r'"[^"\\]*(?:\\.[^"\\]*)*"'
METADATA = re.compile(rf'\{{"__metadata__":(\{{(?:{TEXT}:{TEXT}(?:,(?=")|(?=\}})))*\}})(?:,(?=")|(?=\}}\Z))')
"""How a header begins that has metadata."""
MEMBER = re.compile(
    rf'{NAME}:\{{"dtype":"([A-Z0-9_]+)","shape":\[{INTEGERS}\],"data_offsets":\[{INTEGER},{INTEGER}\]\}}(?:,(?=")|(?=\}}\Z))'
)
"""A tensor, with the comma before the next one."""
MARKS = len('"":{"dtype":"","shape":[],"data_offsets":[,]},')
"""Bytes of a tensor's member that no group holds."""
MAX_METADATA_NODES = 1 << 12
"""Up to so many braces, brackets and commas, metadata is read here."""
PlainHeader = tuple[dict[str, str] | None, tuple[TensorInfo, ...]]
"""The metadata of a header, if it has any, and its tensors."""


def plain_header(text: bytes, data_size: int) -> PlainHeader | None:
    """What a header's JSON says; None unless it is plain and as the spec wants it.

    Args:
        text: the JSON, without padding.
        data_size: bytes of the file's data, within the limit.
    """
    if not text.startswith(b"{") or not text.isascii() or text.count(b'"dtype"') > MAX_TENSORS:
        return None
    json, metadata, start = text.decode("ascii"), None, 1
    match = METADATA.match(json)
    if match:
        start = match.end()
        try:
            metadata = canonical.loads(match[1].encode(), nodes=MAX_METADATA_NODES)
        except ValueError:
            return None
    tensors = _tensors(json, start, data_size)
    return None if tensors is None else (metadata, tensors)


def _tensors(json: str, start: int, data_size: int) -> tuple[TensorInfo, ...] | None:
    """The tensors of a header, whose members begin at ``start``."""
    rows = MEMBER.findall(json, start)
    if not rows:
        return None
    columns = list(zip(*rows, strict=True))
    if start + sum(sum(map(len, column)) for column in columns) + MARKS * len(rows) != len(json):
        return None  # they leave out a part of the text; a brace stands where the last one has no comma
    names, dtypes, shapes = columns[:3]
    begins, ends = (list(map(int, column)) for column in columns[3:])
    types = types_of(list(zip(dtypes, shapes, strict=True)))
    if types is None or "__metadata__" in names or len(set(names)) != len(names):
        return None
    expected = list(itertools.accumulate((type_.nbytes for type_ in types), initial=0))
    if begins != expected[:-1] or ends != expected[1:] or data_size != expected[-1]:
        return None
    rows_ = zip(names, types, begins, ends, strict=True)
    return tuple([TensorInfo(name, type_.dtype, type_.shape, begin, end) for name, type_, begin, end in rows_])
