"""Tensors rebuilt into files, and the log of the ranges that are finished: what an earlier run has written is checked, not built again."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptdiff.errors import CheckpointError
from ckptdiff.format.digests import leaves_of
from ckptdiff.io.durable import sync
from ckptdiff.io.parallel import Executor, Work, run_plan
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import LocalFile
from ckptdiff.io.unit_log import UnitLog, in_units
from ckptdiff.patching.build import CheckCache, RangeBuilder, TensorCheck, plan
from ckptdiff.patching.file_sink import FileSink
from ckptdiff.patching.recipes import RebuildJob, Recipe

TensorPlace = tuple[Path, int]
"""Where a tensor lies: the path of its file, and its offset there in bytes."""


@dataclass(frozen=True, slots=True)
class RangeFacts:
    """What is known of a finished range; as of :class:`~ckptdiff.patching.build.BuiltRange`."""

    leaves: list[list[bytes]]
    changed: list[int]

    def to_json(self) -> list[Any]:
        """As values of JSON."""
        return [[[leaf.hex() for leaf in leaves] for leaves in self.leaves], self.changed]

    @classmethod
    def from_json(cls, value: list[Any]) -> RangeFacts:
        """The facts that :meth:`to_json` gave."""
        return cls([[bytes.fromhex(leaf) for leaf in leaves] for leaves in value[0]], value[1])


class RangeReader(Work[RebuildJob, list[bytes] | None]):
    """Tells, on any thread, the leaves (spec 3.2) of ranges of tensors as they lie in files now; None where they cannot be read."""

    def __init__(self, places: Sequence[TensorPlace]) -> None:
        self._places = places

    def __call__(self, job: RebuildJob) -> list[bytes] | None:
        path, offset = self._places[job.tensor]
        data = scratch("read", job.nbytes, np.uint8)
        try:
            with closing(LocalFile(path)) as file:
                file.readinto(offset + job.start, data)
        except CheckpointError:
            return None
        return leaves_of(data)

    def about(self, job: RebuildJob) -> str:
        """As of :class:`Work`."""
        return f"{self._places[job.tensor][0]}, from byte {self._places[job.tensor][1] + job.start} on"


def rebuild_files(
    recipes: Sequence[Recipe], places: Sequence[TensorPlace], execute: Executor, cache: CheckCache, log: UnitLog | None
) -> Generator[RebuildJob, None, None]:
    """As :func:`~ckptdiff.patching.build.rebuild`, into files that exist; ``log`` gets all units, and those that it has are not built.

    Yields:
        The jobs, in order.
    """
    check: TensorCheck | None = None
    with closing(FileSink(places)) as sink, closing(_Units(recipes, places, sink, execute, log).facts()) as results:
        for job, facts in results:
            check = check or TensorCheck(recipes[job.tensor])
            check.add(job.start, facts.leaves, facts.changed)
            if job.last:
                check.finish(cache)
                check = None
            yield job


class _Units:
    """The units of :func:`rebuild_files`."""

    def __init__(
        self, recipes: Sequence[Recipe], places: Sequence[TensorPlace], sink: FileSink, execute: Executor, log: UnitLog | None
    ) -> None:
        self.recipes, self.places, self.execute, self.log = recipes, places, execute, log
        self.builder = RangeBuilder(recipes, sink)

    def facts(self) -> Generator[tuple[RebuildJob, RangeFacts], None, None]:
        """Each job, in order, with what is known of its range, which is in its file by then."""
        if self.log is None:
            with closing(run_plan(self.execute, self.builder, plan(self.recipes))) as results:
                yield from ((job, RangeFacts(result.leaves, result.changed)) for job, result in results)
        else:
            first = yield from self._finished(self.log)
            yield from self._built(self.log, first)

    def _finished(self, log: UnitLog) -> Generator[tuple[RebuildJob, RangeFacts], None, int]:
        """The jobs of those units that the log has, if what was written is still there; returns the number of the first other unit."""
        nbytes, count, written = 0, 0, itertools.islice(in_units(plan(self.recipes)), log.units)
        with closing(self.execute(RangeReader(self.places), (job for _, jobs in written for job in jobs))) as leaves:
            for record, (unit, jobs) in zip(log.finished(), in_units(plan(self.recipes)), strict=False):
                known = list(map(RangeFacts.from_json, record.content["ranges"]))
                found = list(itertools.islice(leaves, len(jobs)))
                if record.content["done"] != unit or found != [facts.leaves[-1] for facts in known]:
                    log.cut(record)
                    break
                yield from zip(jobs, known, strict=True)
                nbytes += sum(job.nbytes for job in jobs)
                count += 1
        log.note_resumed(nbytes)
        return count

    def _built(self, log: UnitLog, first: int) -> Generator[tuple[RebuildJob, RangeFacts], None, None]:
        """The jobs of all units from a number on. The last unit, which is not whole, is not logged."""
        finished: tuple[int, list[RebuildJob], list[RangeFacts]] | None = None
        with closing(run_plan(self.execute, self.builder, self._begun(log, first))) as results:
            for unit, jobs in itertools.islice(in_units(plan(self.recipes)), first, None):
                if finished is not None:
                    self._log(log, *finished)
                known = list[RangeFacts]()
                for _, (job, result) in zip(jobs, results, strict=False):
                    known.append(RangeFacts(result.leaves, result.changed))
                    yield job, known[-1]
                finished = unit, jobs, known

    def _begun(self, log: UnitLog, first: int) -> Generator[RebuildJob, None, None]:
        for unit, jobs in itertools.islice(in_units(plan(self.recipes)), first, None):
            for job in jobs:
                log.begin(unit)
                yield job

    def _log(self, log: UnitLog, unit: int, jobs: Sequence[RebuildJob], known: Sequence[RangeFacts]) -> None:
        """Flush what was written of a unit, and log it."""
        for path in {self.places[job.tensor][0] for job in jobs if job.nbytes}:
            sync(path)
        log.done(unit, {"ranges": [facts.to_json() for facts in known]})
