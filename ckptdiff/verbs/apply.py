"""``apply`` rebuilds the target from a base and patches (spec section 10)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ckptdiff.errors import OutputError
from ckptdiff.io.leftovers import WORK_PREFIX
from ckptdiff.io.parallel import Progress, Workers, no_progress
from ckptdiff.io.places import Place, place_of
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_traffic import TRAFFIC, Traffic
from ckptdiff.io.work_folder import discard, work_folder
from ckptdiff.io.workers import check_no_ray_with_stores, open_workers
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.patching.chain import MAX_CHAIN, check_chain, check_length, check_order, explained_order
from ckptdiff.patching.destination import check_destination
from ckptdiff.patching.output import check_space, explain_write_errors, told_of_unfinished
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import Rebuilder, ScratchTensors, check_stored, open_base, scratch_size
from ckptdiff.patching.target_files import drop_unfinished, outputs_of, subset_of, write_files, write_others
from ckptdiff.patching.traffic_plan import planned_apply
from ckptdiff.patching.unfinished import apply_log
from ckptdiff.units import byte_size


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """The result of :func:`apply`."""

    out: Place
    """The folder or file that was written."""
    files: tuple[str, ...]
    """Paths of the files in that folder, or the name of the file."""
    tensors: int
    """Number of tensors that were rebuilt."""
    size: int
    """Bytes of all files."""
    seconds: float
    """Wall time."""
    traffic: Traffic
    """Requests to stores, and bytes both ways."""
    planned: Traffic
    """What was to be expected of them, given headers and tables, where all tensors of the base are needed."""


def apply(
    base: str | os.PathLike[str],
    patches: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    threads: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    progress: Progress = no_progress,
    listed: Callable[[list[str]], None] = lambda paths: None,
    noted: Callable[[str], None] = lambda text: None,
) -> ApplyResult:
    """Rebuild the target of one patch, or of a chain of them, byte for byte.

    The patches, the base and the result are checked; ``out`` appears only when it is whole and right. Of more than 64 patches, the most
    that a chain has (spec section 11), the checkpoint after each 64 is written beside ``out`` on the way, and removed when the next is.
    If a run is killed or interrupted, the next one with the same arguments goes on after the units of 64 MiB that are finished; their bytes
    are checked.

    Args:
        base: the checkpoint that the first patch was made from: a path, a URL that fsspec knows, or an id on the Hub.
        patches: one patch, or several in order.
        out: the file or folder to write: a path, or a URL.
        only: globs of tensor names; only these tensors are rebuilt, into one safetensors file.
        threads, ray: who does the work, as in :func:`ckptdiff.make`.
        overwrite: replace an existing ``out``.
        fresh: start over, where an earlier run was killed.
        progress: called with what is being done, how much is done, and how much there is.
        listed: called before anything is written with the paths of the files, beside the weights, that the last patch adds or changes.
        noted: called with a line that says so where checkpoints are written on the way, and where the run goes on from an earlier one.

    Raises:
        FormatError, UnsupportedError, IntegrityError: a patch is broken.
        BaseMismatchError: the base or the order of the chain is wrong, or the base is the target already.
        CheckpointError: the base cannot be read. OutputError: ``out`` cannot be written. StoreError: a store cannot be read or written.
    """
    watch, out = Stopwatch(), place_of(out)
    names = [patches] if isinstance(patches, (str, os.PathLike)) else list(patches)
    if not names:
        check_length(0)
    check_no_ray_with_stores(ray, base, out, *names)
    with told_of_unfinished(out), open_workers(threads, ray) as workers:
        return apply_steps(Step(watch, workers, progress, fresh, noted), base, names, out, only, overwrite, listed)


def apply_steps(
    step: Step,
    base: str | os.PathLike[str],
    names: Sequence[str | os.PathLike[str]],
    out: Place,
    only: Sequence[str],
    overwrite: bool,
    listed: Callable[[list[str]], None],
) -> ApplyResult:
    """As :func:`apply`: in one step, or in as many as a long chain takes."""
    if len(names) <= MAX_CHAIN:
        return step.run(base, names, out, only, overwrite, listed)
    if isinstance(out, StorePath):
        raise OutputError(
            f"{out}: {len(names):,} patches are more than the {MAX_CHAIN} that are applied into a store at once: compose some first"
        )
    step.noted(_check_parts(base, names, out, only, overwrite))
    last = replace(step, goes_on=False)  # its base is one of the checkpoints in between, which a later run would write anew
    with explain_write_errors(out), work_folder(out.absolute().parent, WORK_PREFIX) as work:
        before, start = None, base
        while len(names) > MAX_CHAIN:
            part = work.path / f"before-{len(names) - MAX_CHAIN}.safetensors"
            replace(last, check=no_check).run(start, names[:MAX_CHAIN], part)
            if before is not None:
                discard(before)
            before, start, names = part, part, names[MAX_CHAIN:]
        return last.run(start, names, out, only, overwrite, listed)


class Noted(NamedTuple):
    """What is kept of each patch of a long chain."""

    path: Place
    base_identity: bytes
    target_identity: bytes
    size: int
    """Bytes of its target."""


def _check_parts(
    base: str | os.PathLike[str], names: Sequence[str | os.PathLike[str]], out: Path, only: Sequence[str], overwrite: bool
) -> str:
    """Check what can be checked of a chain of any length before anything is rebuilt; returns a line that says what will be.

    Raises:
        BaseMismatchError: a patch does not follow. OutputError: ``out`` cannot be written, or there is no room for it and for what is
            written on the way. FormatError, UnsupportedError, IntegrityError: a patch is broken.
    """
    noted, inputs = list[Noted](), list[Place]([Path(base)] if os.path.exists(base) else [])
    with explained_order(base, names):
        for name in names:
            with open_patch(name) as patch:
                noted.append(Noted(patch.path, patch.base_identity, patch.target_identity, patch.output_size))
                inputs += patch.paths
    with open_patch(names[-1]) as last:
        new = [file.metadata.target_path for file in last.files] + [other.path for other in last.others]
        check_destination(out, inputs, folder=last.index is not None and not only, overwrite=overwrite, files=new)
    check_order(noted)
    sizes = [patch.size for patch in noted[MAX_CHAIN - 1 : -1 : MAX_CHAIN]]
    after = [*sizes[1:], 0 if only else noted[-1].size]
    needed = max(map(sum, zip(sizes, after, strict=True)))
    check_space(out, needed)
    times = "once" if len(sizes) == 1 else f"{len(sizes)} times"
    return (
        f"{len(names):,} patches: {MAX_CHAIN} are applied at a time, and the checkpoint in between is written {times} on the way: that "
        f"takes up to {byte_size(needed)} beside {out}, the output included"
    )


def no_check(patch: OpenPatch, built: Place) -> None:
    """A check of a rebuilt target that finds nothing: the digests of its tensors and files were compared already."""


@dataclass(frozen=True, slots=True)
class Step:
    """Chains of at most 64 patches are applied."""

    watch: Stopwatch
    workers: Workers
    progress: Progress
    fresh: bool
    noted: Callable[[str], None]
    check: Callable[[OpenPatch, Place], None] = no_check
    """Checks a whole target, which the last patch gives, before it is moved to its place; raises CkptdiffError."""
    goes_on: bool = True
    """Whether a later run may go on where this one was killed."""

    def run(
        self,
        base: str | os.PathLike[str],
        names: Sequence[str | os.PathLike[str]],
        out: Place,
        only: Sequence[str] = (),
        overwrite: bool = False,
        listed: Callable[[list[str]], None] = lambda paths: None,
    ) -> ApplyResult:
        """Rebuild the target of a chain; the arguments, and what is raised, are those of :func:`apply`."""
        before = TRAFFIC.total()
        with ExitStack() as stack:
            with explained_order(base, names):
                chain = [stack.enter_context(open_patch(name, by_ranges=bool(only))) for name in names]
            if not only:
                listed([other.path for other in chain[-1].others if other.kind != "same"])
            old = stack.enter_context(open_base(base, chain, only_weights=bool(only), by_ranges=isinstance(out, StorePath)))
            last, folder = chain[-1], chain[-1].index is not None and not only
            others = last.others if folder else ()
            inputs = [*old.paths, *(path for patch in chain for path in patch.paths)]
            new = [file.metadata.target_path for file in last.files] + [other.path for other in last.others]
            planned = TRAFFIC.total() - before + planned_apply(old, chain, out)
            destination = check_destination(out, inputs, folder=folder, overwrite=overwrite, files=new)
            for patch in chain:
                check_stored(patch, only, self.progress)
            check_chain(chain)
            destination.check_space((0 if only else last.output_size) + scratch_size(chain, only))
            log = apply_log(old, chain, only, self.fresh, self.noted) if isinstance(out, Path) and self.goes_on else None
            with destination.building(log) as built, closing(ScratchTensors(built.work / "tensors")) as scratch:
                if isinstance(built.place, Path):
                    drop_unfinished(built.place, [file.metadata.target_path for file in last.files] if folder else [])
                rebuilder = Rebuilder(old, chain, self.workers.executor(last.output_size), scratch)
                with rebuilder.explained():
                    outputs = [subset_of(rebuilder, only)] if only else outputs_of(rebuilder)
                    if only:
                        destination.check_space(sum(output.size for output in outputs))
                    if folder and isinstance(built.place, Path):
                        built.place.mkdir(exist_ok=True)  # a target without files is an empty folder
                    write_files(rebuilder, built.place, outputs if folder else [replace(outputs[0], path="")], self.progress, log)
                    if folder:
                        write_others(rebuilder, built.place, built.work / "scratch")
                old.check_unchanged()
                if not only:
                    self.check(last, built.place)
            files = [output.path or out.name for output in outputs] + [other.path for other in others]
            size = sum(output.size for output in outputs) + sum(other.size for other in others)
            count, traffic = sum(len(o.tensors) for o in outputs), TRAFFIC.total() - before
            return ApplyResult(out, tuple(files), count, size, self.watch.seconds(), traffic, planned)
