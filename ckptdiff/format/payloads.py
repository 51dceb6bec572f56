"""The payloads of a patch file (spec section 5): where they lie, and their digests."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from ckptdiff.errors import IntegrityError, cut
from ckptdiff.format.columns import Columns
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import READ_BYTES
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import ByteSource


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
        return dict(zip(self.columns.names, self._all_begins, strict=True))

    @cached_property
    def _all_begins(self) -> list[int]:
        return list(itertools.accumulate(self.columns.payloads, initial=self.start))[:-1]

    def begin_of(self, entry: Entry, block: int) -> int:
        """Where in the file the coded form of a block of an entry begins."""
        begin = self.offsets[entry.name]
        if not block:
            return begin
        begins = self._begins.get(entry.name)
        if begins is None:
            begins = self._begins[entry.name] = np.cumsum([0, *entry.blocks], dtype=np.int64)
        return begin + int(begins[block])

    def read_blocks(self, entry: Entry, first: int, last: int) -> list[memoryview]:
        """The coded forms of blocks ``first`` to ``last`` - 1 of an entry."""
        sizes = entry.blocks[first:last]
        data = memoryview(np.empty(sum(sizes), np.uint8))
        self.source.readinto(self.begin_of(entry, first), data)
        views, position = [], 0
        for size in sizes:
            views.append(data[position : position + size])
            position += size
        return views

    def read(self, entries: Sequence[Entry]) -> list[memoryview]:
        """The payloads of entries, in the table's order; those that lie one behind the other are read at once."""
        offsets = self.offsets
        return list(self._read_ranges([offsets[entry.name] for entry in entries], [entry.payload_size for entry in entries]))

    def coded_blocks(self, numbers: Sequence[int]) -> list[bytes]:
        """Coded blocks by their numbers, which rise, among those of all entries. Bytes are nothing that Python's garbage collector looks
        at, which takes longer the more there are."""
        begins, sizes = self._all_blocks
        return list(map(bytes, self._read_ranges([begins[k] for k in numbers], [sizes[k] for k in numbers])))

    @cached_property
    def _all_blocks(self) -> tuple[list[int], list[int]]:
        """Where in the file each coded block begins, and its bytes."""
        sizes = list(itertools.chain.from_iterable(self.columns.blocks))
        return list(itertools.accumulate(sizes, initial=self.start)), sizes

    def _read_ranges(self, begins: Sequence[int], sizes: Sequence[int]) -> Iterator[memoryview]:
        """Ranges of the file in the order in which they lie; neighbours are read at once, and all before the first is given."""
        ends = list(itertools.accumulate(sizes, initial=0))
        data, first = memoryview(np.empty(ends[-1], np.uint8)), 0
        for k in (k for k in range(1, len(ends)) if k == len(begins) or begins[k] != begins[k - 1] + sizes[k - 1]):
            self.source.readinto(begins[first], data[ends[first] : ends[k]])
            first = k
        return (data[begin:end] for begin, end in itertools.pairwise(ends))

    def error_of(self, entry: Entry) -> IntegrityError | None:
        """The error to raise if an entry's payload does not have the digest that the table states; None if it does."""
        found = self._digest_of(self.offsets[entry.name], entry.payload_size)
        return None if found == entry.payload_digest else self._digest_error(entry.name, found, entry.payload_digest)

    def check(self, only: Collection[str] | None = None) -> Iterator[int]:
        """Check the digests of all payloads, or of those of some entries by their names; several small ones are read at once.

        Yields:
            After some payloads, how many bytes they have.

        Raises:
            IntegrityError: one does not have the digest that the table states.
        """
        batch, size, sizes = list[int](), 0, self.columns.payloads
        for number in self._chosen(only):
            if batch and size + sizes[number] > READ_BYTES:
                yield self._check_batch(batch)
                batch, size = [], 0
            batch.append(number)
            size += sizes[number]
        yield self._check_batch(batch)

    def size(self, only: Collection[str] | None = None) -> int:
        """Bytes of all payloads, or of those of some entries by their names."""
        sizes = self.columns.payloads
        return sum(sizes) if only is None else sum(sizes[number] for number in self._chosen(only))

    def _chosen(self, only: Collection[str] | None) -> list[int]:
        """The numbers of the entries that have a payload, or of some of these by their names."""
        names, digests = self.columns.names, self.columns.payload_digests
        return [number for number, digest in enumerate(digests) if digest and (only is None or names[number] in only)]

    def _check_batch(self, batch: Sequence[int]) -> int:
        """Check payloads, of which only one alone may have more than READ_BYTES; returns how many bytes they have."""
        columns, begins = self.columns, self._all_begins
        sizes, expected = [columns.payloads[number] for number in batch], [columns.payload_digests[number] for number in batch]
        if len(batch) == 1:
            found = [self._digest_of(begins[batch[0]], sizes[0])]
        else:
            found = list(map(xxhash.xxh3_64_digest, self._read_ranges([begins[number] for number in batch], sizes)))
        if found != expected:
            wrong = next(k for k in range(len(batch)) if found[k] != expected[k])
            raise self._digest_error(columns.names[batch[wrong]], found[wrong], expected[wrong])
        return sum(sizes)

    def _digest_of(self, begin: int, size: int) -> bytes:
        hasher, memory = xxhash.xxh3_64(), scratch("payload", min(size, READ_BYTES), np.uint8)
        for done in range(0, size, READ_BYTES):
            part = memory[: size - done]
            self.source.readinto(begin + done, part)
            hasher.update(part)
        return hasher.digest()

    def _digest_error(self, name: str, found: bytes, expected: bytes) -> IntegrityError:
        return IntegrityError(
            f"{self.source.name}: tensor {cut(name)}: its payload has the digest {found.hex()}, "
            f"expected {expected.hex()}: corrupted? fetch the patch again"
        )
