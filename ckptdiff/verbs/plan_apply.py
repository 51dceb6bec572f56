"""``apply --dry-run``: what ``apply`` would read, write and need, from headers and tables alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.selection import matches
from ckptdiff.errors import CheckpointError
from ckptdiff.format.entry import Entry
from ckptdiff.hub.ids import parse_id
from ckptdiff.io.parallel import default_threads
from ckptdiff.io.places import Place, place_of
from ckptdiff.patching.chain import check_chain, check_length, explained_order
from ckptdiff.patching.destination import check_destination
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import open_base, scratch_size
from ckptdiff.patching.rebuild_plan import PlannedRebuilder, rebuilding_work
from ckptdiff.patching.target_files import outputs_of, subset_of
from ckptdiff.patching.work_plan import Work, free_space, peak_memory


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """What :func:`ckptdiff.apply` would do. Sizes are in bytes."""

    out: Place
    """What would be written."""
    kinds: dict[str, int]
    """Number of the target's tensors by how the last patch gives them: ``same``, ``delta``, ``new``, ``copy``."""
    removed: int
    """Tensors of the base that the last patch lists as removed."""
    work: Work
    """The jobs, and what they read."""
    threads: int
    patches_size: int
    """All patches together."""
    out_size: int
    """What is written: the weight files and the other files."""
    scratch_size: int
    """Tensors that are written beside the output on the way, where a patch of a chain takes pieces of what the one before it gives."""
    disk_needed: int
    disk_free: int | None
    memory: int
    """About the most memory that a run takes."""
    weight_files: tuple[str, ...]
    files: tuple[str, ...]
    """Files without weights that would be written."""


def plan_apply(
    base: str | os.PathLike[str],
    patches: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    threads: int | None = None,
    overwrite: bool = False,
) -> ApplyPlan:
    """Say what :func:`ckptdiff.apply` would do with these arguments. Nothing is written, and no tensor or payload is read.

    So neither the payloads nor the content of the base are checked, which ``apply`` does.

    Raises:
        FormatError, UnsupportedError, IntegrityError, BaseMismatchError, OutputError: as :func:`ckptdiff.apply`, as far as headers and
            tables tell; there are more than 64 patches, which ``apply`` takes in parts.
        CheckpointError: the base cannot be read, or is on the Hub, from which a dry run fetches nothing.
    """
    names, out, count = [patches] if isinstance(patches, (str, os.PathLike)) else list(patches), place_of(out), threads or default_threads()
    check_length(len(names))
    with _open(base, names) as (old, chain):
        last, folder = chain[-1], chain[-1].index is not None and not only
        inputs = [*old.paths, *(path for patch in chain for path in patch.paths)]
        new = [file.metadata.target_path for file in last.files] + [other.path for other in last.others]
        check_destination(out, inputs, folder=folder, overwrite=overwrite, files=new, mend=False)
        check_chain(chain)
        rebuilder = PlannedRebuilder(old, chain)
        outputs = [subset_of(rebuilder, only)] if only else outputs_of(rebuilder)
        stored = sum(e.payload_size for patch in chain for e in _wanted(patch, only) if e.has_payload)
        work = rebuilding_work([recipe for output in outputs for _, recipe in output.tensors], rebuilder, stored)
        others = last.others if folder else ()
        size, scratch = sum(output.size for output in outputs) + sum(other.size for other in others), scratch_size(chain, only)
        return ApplyPlan(
            out=out,
            kinds=dict(Counter(entry.kind for entry in _wanted(last, only))),
            removed=sum(len(file.table.removed) for file in last.files),
            work=work,
            threads=count,
            patches_size=sum(patch.stored_size for patch in chain),
            out_size=size,
            scratch_size=scratch,
            disk_needed=size + scratch,
            disk_free=free_space(out),
            memory=peak_memory(work, count),
            weight_files=tuple(output.path or out.name for output in outputs),
            files=tuple(other.path for other in others),
        )


@contextmanager
def _open(base: str | os.PathLike[str], names: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[Checkpoint, list[OpenPatch]]]:
    if parse_id(base) is not None:
        raise CheckpointError(f"{base}: a dry run fetches nothing from the Hub: give a checkpoint on this machine")
    with ExitStack() as stack, explained_order(base, names):
        chain = [stack.enter_context(open_patch(name, by_ranges=True)) for name in names]
        yield stack.enter_context(open_base(base, chain, only_weights=True)), chain


def _wanted(patch: OpenPatch, only: Sequence[str]) -> Iterator[Entry]:
    """The entries of a patch, or those whose names match a glob."""
    return (entry for file in patch.files for entry in file.table.entries if not only or matches(entry.name, only))
