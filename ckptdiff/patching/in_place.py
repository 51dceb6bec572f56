"""``apply --in-place``: a base turned into the target where it lies (spec section 10, but for the output place).

First everything is checked: the patch, the base, and what each tensor will be, by building all of it once without writing it. Then the
journal is written (:mod:`ckptdiff.patching.in_place_journal`), and only then the first byte of the base is changed. From here on there is
one direction, to the target, and a run that is killed is gone on with by the next one. While that lasts, the first eight bytes of each
weight file are zeros, which no reader of safetensors accepts, and the configurations and indexes are away.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.errors import IntegrityError
from ckptdiff.format.digests import leaves_of, tensor_digest
from ckptdiff.io import unit_log
from ckptdiff.io.durable import sync
from ckptdiff.io.parallel import Progress, Work, run_plan
from ckptdiff.io.unit_log import UnitLog, in_units
from ckptdiff.io.work_folder import discard
from ckptdiff.patching.build import RangeBuilder, TensorCheck, build, no_sink, plan
from ckptdiff.patching.file_sink import write_at
from ckptdiff.patching.in_place_journal import STAGED, ChangedRange, Plan, RangesWriter, read_units
from ckptdiff.patching.in_place_plan import is_hidden, path_in
from ckptdiff.patching.rebuild import Rebuilder
from ckptdiff.patching.rebuild_files import RangeReader, TensorPlace
from ckptdiff.patching.recipes import PatchedTensor, Recipe, steps_of
from ckptdiff.patching.target_files import OutputFile, outputs_of, write_files

ELSEWHERE = "take the checkpoint from elsewhere"
NO_HEAD = bytes(8)
"""What stands in place of a header's length while a file is neither base nor target: a safetensors file cannot have a header of 0 bytes."""


def outputs_in_place(rebuilder: Rebuilder) -> list[OutputFile]:
    """The target's weight files; one that is not in a folder has the path of the base's."""
    outputs = outputs_of(rebuilder)
    return [replace(outputs[0], path=rebuilder.base.weights[0].path)] if rebuilder.base.is_file else outputs


# --- the first pass ---


def check_all(rebuilder: Rebuilder, outputs: Sequence[OutputFile], changed: Sequence[str], journal: Path, progress: Progress) -> None:
    """Build and check every tensor without writing it, and write down which ranges change of the ``changed`` files."""
    recipes = [recipe for output in outputs for _, recipe in output.tensors]
    listed = [output.path in changed for output in outputs for _ in output.tensors]
    done, total, writer = 0, sum(output.size for output in outputs), RangesWriter(journal)

    def ranges() -> Generator[ChangedRange, None, None]:
        nonlocal done
        check: TensorCheck | None = None
        with closing(run_plan(rebuilder.execute, RangeBuilder(recipes, no_sink), plan(recipes))) as results:
            for job, result in results:
                check = check or TensorCheck(recipes[job.tensor])
                check.add(job.start, result.leaves, result.changed)
                if job.last:
                    check.finish(rebuilder.checked)
                    check = None
                done += job.nbytes
                progress("checking the base", done, total)
                old = _leaves_before(recipes[job.tensor], result.leaves)
                if listed[job.tensor] and job.nbytes and old != result.leaves[-1]:
                    yield ChangedRange(job.tensor, job.start, job.stop, old, result.leaves[-1])

    with closing(writer):
        for _, some in in_units(ranges()):
            writer.add(some)


def _leaves_before(recipe: Recipe, leaves: Sequence[list[bytes]]) -> list[bytes] | None:
    """The leaves of what lies at a tensor's place in the base; None of a new tensor, which does not need it."""
    return None if isinstance(steps_of(recipe)[0], PatchedTensor) else leaves[0]


# --- the second pass ---


@dataclass(frozen=True, slots=True)
class InPlace:
    """A checkpoint that is being changed, with its journal."""

    path: Path
    journal: Path
    plan: Plan
    log: UnitLog
    rebuilder: Rebuilder
    outputs: Sequence[OutputFile]
    progress: Progress

    def place(self, path: str) -> Path:
        """Where a file is."""
        return path_in(self.path, self.plan.is_file, path)

    def change(self) -> None:
        """Turn the checkpoint into the target, from wherever an earlier run was killed."""
        self._hide()
        self._move()
        self._change_units()
        self._check_result()
        self._show()

    @property
    def base(self) -> Checkpoint:
        """The base as it was."""
        return self.rebuilder.base

    # --- what readers see meanwhile ---

    def _hide(self) -> None:
        """Let no reader take the checkpoint for whole."""
        for path in {*(file.path for file in self.base.weights), *(output.path for output in self.outputs)}:
            if self.place(path).exists():
                _write_durably_at(self.place(path), NO_HEAD)
        for name in (*self.plan.others, *self.plan.removed):
            if is_hidden(name) and (name in self.plan.removed or (self.journal / STAGED / name).exists()):
                self.place(name).unlink(missing_ok=True)

    def _show(self) -> None:
        """Give the weight files their heads, and put the other files in their places."""
        for output in self.outputs:
            _write_durably_at(self.place(output.path), output.head)
        for name in self.plan.others:
            if (self.journal / STAGED / name).exists():
                self.place(name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.journal / STAGED / name, self.place(name))
        for name in self.plan.removed:
            self.place(name).unlink(missing_ok=True)
        written = {self.place(path).parent for path in (*self.plan.others, *(output.path for output in self.outputs))}
        for folder in {*written, self.journal.parent}:
            sync(folder)

    # --- files that are written anew ---

    def _move(self) -> None:
        """Build the files of which more than blocks change, one by one; base files go as soon as nothing more is built from them."""
        moves = self.plan.as_moves
        built = {record.content["built"] for record in self.log.records() if "built" in record.content}
        self._settle(built)
        for path in moves.rebuilt:
            if path in built:
                continue
            output = next(output for output in self.outputs if output.path == path)
            staged = self.journal / STAGED / path
            discard(staged)
            write_files(self.rebuilder, staged, [replace(output, path="")], self.progress)
            _write_durably_at(staged, NO_HEAD)
            self.log.note({"built": path})
            built.add(path)
            self._settle(built)

    def _settle(self, built: set[str]) -> None:
        """Put built files in their places, and remove base files that nothing is built from any more."""
        moves = self.plan.as_moves
        free = moves.free(built)
        for path in built:
            staged = self.journal / STAGED / path
            if staged.exists() and (path in free or path not in moves.gone):
                self.place(path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged, self.place(path))
                sync(self.place(path).parent)
        for path in free:
            if path not in built:
                self.place(path).unlink(missing_ok=True)

    # --- files of which blocks change ---

    def _change_units(self) -> None:
        """Change all units that no earlier run has changed; what is changed is checked."""
        places: list[TensorPlace] = [(self.place(output.path), offset) for output in self.outputs for offset, _ in output.tensors]
        recipes = [recipe for output in self.outputs for _, recipe in output.tensors]
        committed = {record.content["committed"] for record in self.log.records() if "committed" in record.content}
        done = {record.content["done"] for record in self.log.finished()}
        total = 0
        for unit, ranges in read_units(self.journal):
            total += sum(one.nbytes for one in ranges)
            if unit in done:
                self._check_done(ranges, places)
            elif unit in committed:
                self._copy(unit, ranges, places)
        self.log.note_resumed(len(done | committed) * unit_log.UNIT_BYTES)
        left = (one for unit, ranges in read_units(self.journal) if unit not in done | committed for one in ranges)
        self._build(left, RedoWriter(self.journal, recipes, places), places, total)

    def _build(self, left: Generator[ChangedRange, None, None], writer: RedoWriter, places: Sequence[TensorPlace], total: int) -> None:
        some = list[ChangedRange]()

        def begun() -> Generator[ChangedRange, None, None]:
            for one in left:
                self.log.begin(one.unit)
                writer.open(one.unit)
                yield one

        changed = 0
        with closing(writer), closing(run_plan(self.rebuilder.execute, writer, begun())) as results:
            for one, _ in results:
                if some and some[0].unit != one.unit:
                    self._commit(some, writer, places)
                    some = []
                some.append(one)
                changed += one.nbytes
                self.progress("changing", changed, total)
            if some:
                self._commit(some, writer, places)

    def _commit(self, ranges: Sequence[ChangedRange], writer: RedoWriter, places: Sequence[TensorPlace]) -> None:
        """Flush the new bytes of a unit, and copy them to their places."""
        unit = ranges[0].unit
        writer.flush(unit)
        self.log.note({"committed": unit})
        self._copy(unit, ranges, places)

    def _copy(self, unit: int, ranges: Sequence[ChangedRange], places: Sequence[TensorPlace]) -> None:
        """Copy the new bytes of a unit, which are on the disk, to their places."""
        redo, touched = redo_of(self.journal, unit), set[Path]()
        with open(redo, "rb") as file:
            for one in ranges:
                file.seek(one.at)
                data = bytearray(one.nbytes)
                if file.readinto(data) != one.nbytes or leaves_of(memoryview(data)) != one.new:  # type: ignore[arg-type]
                    raise IntegrityError(f"{redo}: is damaged, so that {self.path} cannot be gone on with: {ELSEWHERE}")
                path, offset = places[one.tensor]
                with open(path, "r+b", buffering=0) as target:
                    write_at(target.fileno(), data, offset + one.start)  # type: ignore[arg-type]
                touched.add(path)
        for path in touched:
            sync(path)
        self.log.done(unit, {})
        redo.unlink()

    def _check_done(self, ranges: Sequence[ChangedRange], places: Sequence[TensorPlace]) -> None:
        """Raise IntegrityError unless a unit that an earlier run has changed is as it left it."""
        with closing(self.rebuilder.execute(RangeReader(places), [one.job for one in ranges])) as found:
            for one, leaves in zip(ranges, found, strict=True):
                if leaves != one.new:
                    raise IntegrityError(
                        f"{places[one.tensor][0]}: was changed by another program, or damaged, after apply --in-place was interrupted: "
                        f"it can be neither gone on with nor taken back: {ELSEWHERE}"
                    )

    # --- the end ---

    def _check_result(self) -> None:
        """Raise IntegrityError unless every tensor has its digest in its file."""
        rows = [(self.place(output.path), offset, recipe) for output in self.outputs for offset, recipe in output.tensors]
        done, total = 0, sum(recipe.nbytes for _, _, recipe in rows)
        reader = RangeReader([(path, offset) for path, offset, _ in rows])
        leaves = list[bytes]()
        with closing(run_plan(self.rebuilder.execute, reader, plan([recipe for _, _, recipe in rows]))) as results:
            for job, found in results:
                leaves += found or [b""]
                if job.last:
                    path, _, recipe = rows[job.tensor]
                    if recipe.nbytes and tensor_digest(leaves) != recipe.digest:
                        raise IntegrityError(f"{path}: tensor {job.tensor} is not what was written: a fault of the disk? run again")
                    leaves = []
                done += job.nbytes
                self.progress("checking the result", done, total)


def redo_of(journal: Path, unit: int) -> Path:
    """Where the new bytes of a unit are."""
    return journal / f"redo-{unit}"


class RedoWriter(Work[ChangedRange, None]):
    """Builds ranges on any thread, and writes them into the redo files of their units, which are opened before."""

    def __init__(self, journal: Path, recipes: Sequence[Recipe], places: Sequence[TensorPlace]) -> None:
        self._journal, self._recipes, self._places, self._files = journal, recipes, places, dict[int, int]()

    def open(self, unit: int) -> None:
        """Open the file of a unit, if it is not open."""
        if unit not in self._files:
            self._files[unit] = os.open(redo_of(self._journal, unit), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def __call__(self, one: ChangedRange) -> None:
        built = build(self._recipes[one.tensor], one.start, one.stop)
        if built.leaves[-1] != one.new:
            raise IntegrityError(f"{self._places[one.tensor][0]}: was changed by another program after it was checked: {ELSEWHERE}")
        write_at(self._files[one.unit], built.data, one.at)

    def about(self, one: ChangedRange) -> str:
        """As of :class:`Work`."""
        return f"{self._places[one.tensor][0]}, from byte {self._places[one.tensor][1] + one.start} on"

    def flush(self, unit: int) -> None:
        """Flush and close the file of a unit."""
        fd = self._files.pop(unit)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        sync(self._journal)

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])


def _write_durably_at(path: Path, data: bytes) -> None:
    """Overwrite the beginning of a file, flushed to the disk."""
    with open(path, "r+b", buffering=0) as file:
        write_at(file.fileno(), data, 0)  # type: ignore[arg-type]
        os.fsync(file.fileno())
