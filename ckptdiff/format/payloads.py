"""The payloads of a patch file (spec section 5): where they lie, and their digests."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from ckptdiff.errors import IntegrityError, cut
from ckptdiff.format.columns import Columns
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import READ_BYTES
from ckptdiff.io.source import ByteSource, read_bytes


class _Payload(NamedTuple):
    """Where the payload of an entry lies in the file, and its digest."""

    name: str
    begin: int
    size: int
    digest: bytes


class Payloads:
    """The payloads of an open patch file. They stay on the disk until they are asked for.

    Args:
        source: the file.
        columns: the entries of its table.
        start: where in the file the first payload begins.
    """

    def __init__(self, source: ByteSource, columns: Columns, start: int) -> None:
        self.source, self.columns, self.start = source, columns, start
        self._begins: dict[str, npt.NDArray[np.int64]] = {}

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where in the file the payload of each entry begins, by name."""
        return dict(zip(self.columns.names, itertools.accumulate(self.columns.payloads, initial=self.start), strict=False))

    def read_blocks(self, entry: Entry, first: int, last: int) -> list[memoryview]:
        """The coded forms of blocks ``first`` to ``last`` - 1 of an entry."""
        sizes = entry.blocks[first:last]
        begin = self.offsets[entry.name]
        if first:
            begins = self._begins.get(entry.name)
            if begins is None:
                begins = self._begins[entry.name] = np.cumsum([0, *entry.blocks], dtype=np.int64)
            begin += int(begins[first])
        data = memoryview(np.empty(sum(sizes), np.uint8))
        self.source.readinto(begin, data)
        views, position = [], 0
        for size in sizes:
            views.append(data[position : position + size])
            position += size
        return views

    def read(self, entries: Sequence[Entry]) -> list[memoryview]:
        """The payloads of entries, in the table's order; those that lie one behind the other are read at once."""
        return self._read_ranges([(self.offsets[entry.name], entry.payload_size) for entry in entries])

    def _read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Ranges of the file, each of a begin and a size, in the order in which they lie; neighbours are read at once."""
        views, data, filled, first = list[memoryview](), memoryview(np.empty(sum(size for _, size in ranges), np.uint8)), 0, 0
        for k, (begin, size) in enumerate(ranges):
            views.append(data[filled : filled + size])
            filled += size
            if k + 1 == len(ranges) or ranges[k + 1][0] != begin + size:
                self.source.readinto(ranges[first][0], data[filled - (begin + size - ranges[first][0]) : filled])
                first = k + 1
        return views

    def error_of(self, entry: Entry) -> IntegrityError | None:
        """The error to raise if an entry's payload does not have the digest that the table states; None if it does."""
        payload = _Payload(entry.name, self.offsets[entry.name], entry.payload_size, entry.payload_digest)
        return self._digest_error(payload, self._digest_of(payload))

    def check(self, only: Collection[str] | None = None) -> Iterator[int]:
        """Check the digests of all payloads, or of those of some entries by their names; several small ones are read at once.

        Yields:
            After some payloads, how many bytes they have.

        Raises:
            IntegrityError: one does not have the digest that the table states.
        """
        batch, size = list[_Payload](), 0
        for payload in self._chosen(only):
            if batch and size + payload.size > READ_BYTES:
                yield self._check_batch(batch)
                batch, size = [], 0
            batch.append(payload)
            size += payload.size
        yield self._check_batch(batch)

    def size(self, only: Collection[str] | None = None) -> int:
        """Bytes of all payloads, or of those of some entries by their names."""
        return sum(payload.size for payload in self._chosen(only))

    def _chosen(self, only: Collection[str] | None) -> Iterator[_Payload]:
        """The payloads, or those of some entries by their names."""
        columns = self.columns
        begins = itertools.accumulate(columns.payloads, initial=self.start)
        payloads = map(_Payload, columns.names, begins, columns.payloads, columns.payload_digests)
        return (payload for payload in payloads if payload.digest and (only is None or payload.name in only))

    def _check_batch(self, batch: Sequence[_Payload]) -> int:
        """Check payloads, of which only one alone may have more than READ_BYTES; returns how many bytes they have."""
        if len(batch) == 1:
            digests = [self._digest_of(batch[0])]
        else:
            digests = [xxhash.xxh3_64_digest(data) for data in self._read_ranges([(p.begin, p.size) for p in batch])]
        for payload, digest in zip(batch, digests, strict=True):
            error = self._digest_error(payload, digest)
            if error is not None:
                raise error
        return sum(payload.size for payload in batch)

    def _digest_of(self, payload: _Payload) -> bytes:
        hasher, done = xxhash.xxh3_64(), 0
        while done < payload.size:
            count = min(READ_BYTES, payload.size - done)
            hasher.update(read_bytes(self.source, payload.begin + done, count))
            done += count
        return hasher.digest()

    def _digest_error(self, payload: _Payload, found: bytes) -> IntegrityError | None:
        if found == payload.digest:
            return None
        return IntegrityError(
            f"{self.source.name}: tensor {cut(payload.name)}: its payload has the digest {found.hex()}, "
            f"expected {payload.digest.hex()}: corrupted? fetch the patch again"
        )
