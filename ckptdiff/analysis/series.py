"""The checkpoints of a run, read as patches that follow each other: one pass, in which each block goes on from that of the step before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ckptdiff.analysis.cast_on_read import cast_dtype
from ckptdiff.analysis.notebook import ShownChain
from ckptdiff.analysis.overlap import CountArray, StepRow, step_rows
from ckptdiff.analysis.pairs import Pair, Source, source_of_patch
from ckptdiff.io.parallel import Threads
from ckptdiff.patching.build import Latest
from ckptdiff.patching.chain import check_order
from ckptdiff.patching.output import check_space
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import Rebuilder, ScratchTensors, check_stored, open_base, scratch_size


@dataclass(frozen=True, slots=True)
class TensorSeries:
    """What K steps of a run changed in one tensor of the base, in numbers of elements; the fields are those of
    :class:`~ckptdiff.analysis.overlap.TensorOverlap`."""

    scope: str
    name: str
    elements: int
    changed: CountArray
    since_last: CountArray
    ever: CountArray
    back: CountArray


@dataclass(frozen=True, slots=True, repr=False)
class ChainReport(ShownChain):
    """The result of :func:`ckptdiff.chain_report`."""

    chain: str
    base: str
    """Name of the base."""
    atol: float
    """An element counts as changed if |d| exceeds this; at 0, if its bits differ."""
    numbers: tuple[int, ...]
    """The K steps."""
    tensors: tuple[TensorSeries, ...]
    left_out: tuple[str, ...]
    """Names of tensors that not all steps have, made from the same part of the base and in one dtype."""
    cast: str | None = None
    """The dtype that tensors of F16, BF16 and F32 were cast to before they were compared."""

    @property
    def elements(self) -> int:
        """All elements of the tensors."""
        return sum(t.elements for t in self.tensors)

    @property
    def steps(self) -> tuple[StepRow, ...]:
        """Shares of all elements, by step."""
        return step_rows(self.tensors, list(map(str, self.numbers)), self.elements)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as ``spec/chain-report.schema.json`` describes them."""
        shares = [{"step": number, **asdict(row)} for number, row in zip(self.numbers, self.steps, strict=True)]
        for row in shares:
            del row["name"]
        return {
            "schema": "ckptdiff-chain-report/1",
            "chain": self.chain,
            "base": self.base,
            "atol": self.atol,
            "as": self.cast,
            "elements": self.elements,
            "steps": shares,
            "tensors": [{key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in asdict(t).items()} for t in self.tensors],
            "left_out": list(self.left_out),
        }


def tensor_series(group: Sequence[Pair], blocks: Iterator[list[CountArray]]) -> TensorSeries:
    """Add up what :func:`~ckptdiff.analysis.overlap.count_steps` returned for a tensor's blocks; those of other tensors may follow."""
    elements, *counts = (np.sum(part, axis=0) for part in zip(*(next(blocks) for _ in group[0].starts), strict=True))
    for pair in group:
        pair.finish()
    first, old = group[0], group[0].old
    return TensorSeries(first.base_scope, old.name if old is not None else first.name, int(elements), *counts)


@dataclass(frozen=True, slots=True)
class Segment:
    """Patches that follow each other from the base, and which of their targets are wanted."""

    patches: Sequence[str | os.PathLike[str]]
    wanted: Sequence[tuple[int, str]]
    """The number of each such patch, rising, and a name for what it gives."""


@contextmanager
def open_series(base: str | os.PathLike[str], segments: Sequence[Segment], as_dtype: Any = None) -> Iterator[list[Source]]:
    """The wanted steps of a run, in order, as :func:`ckptdiff.analysis.pairs.open_source` has one.

    Blocks are to be read of each source in turn: then each patch is decoded once. ``as_dtype``: as of the same function.

    Raises:
        FormatError, UnsupportedError, IntegrityError: a patch is broken. BaseMismatchError: a patch does not follow, or the base is
            another one. CheckpointError: the base cannot be read. OutputError: there is no room for tensors that are built on the way.
    """
    dtype = cast_dtype(as_dtype)
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="ckptdiff-")))
        sources = list[Source]()
        for number, segment in enumerate(segments):
            chain = [stack.enter_context(open_patch(patch)) for patch in segment.patches]
            check_order(chain)
            for patch in chain:
                check_stored(patch)
            old = stack.enter_context(open_base(base, chain, only_weights=True))
            stack.callback(old.check_unchanged)
            check_space(work / "tensors", scratch_size(chain))
            scratch = stack.enter_context(closing(ScratchTensors(work / f"tensors-{number}")))
            rebuilder, latest = Rebuilder(old, chain, Threads(1), scratch), Latest()
            stack.enter_context(rebuilder.explained())
            name = Path(base).name or str(base)
            sources += [source_of_patch(rebuilder, depth, name, target, latest=latest, dtype=dtype) for depth, target in segment.wanted]
        yield sources
