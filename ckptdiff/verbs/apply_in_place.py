"""``apply --in-place`` turns a base into the target where it lies, for disks that hold one copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.errors import CheckpointError, OutputError
from ckptdiff.format.index import OtherFile
from ckptdiff.hub.ids import parse_id
from ckptdiff.io import unit_log
from ckptdiff.io.durable import sync, sync_tree
from ckptdiff.io.in_place import BEGUN, LOCK, is_begun, journal_lock
from ckptdiff.io.parallel import Executor, Progress, default_threads, no_progress, threads_for
from ckptdiff.io.places import place_of
from ckptdiff.io.signals import held
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_traffic import TRAFFIC
from ckptdiff.io.unit_log import UnitLog
from ckptdiff.io.work_folder import discard
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.patching import other_files
from ckptdiff.patching.in_place import InPlace, check_all, outputs_in_place
from ckptdiff.patching.in_place_journal import STAGED, Plan, base_rows, write_durably
from ckptdiff.patching.in_place_plan import check_layout, is_hidden, lies_in_place, moves_of, peak_size
from ckptdiff.patching.output import explain_write_errors
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import Rebuilder, check_stored, open_base
from ckptdiff.patching.target_files import OutputFile
from ckptdiff.patching.traffic_plan import planned_apply
from ckptdiff.verbs.apply import ApplyResult

GO_ON = "run the same command again to go on"
UNITS_AT_ONCE = 4
"""Units whose new bytes may be in the journal at once."""


def apply_in_place(
    base: str | os.PathLike[str],
    patch: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress = no_progress,
    listed: Callable[[list[str]], None] = lambda paths: None,
    noted: Callable[[str], None] = lambda text: None,
) -> ApplyResult:
    """Turn a base into the target of a patch where it lies.

    Everything is checked before the first byte is changed: the patch, the base, and what each tensor will be. From there on there is one
    direction: a run that is killed or interrupted is gone on with by the next one with the same arguments, and until one has ended the base
    is neither base nor target, and every other function refuses it. Blocks that do not change are not written. A file in which data moves
    is built anew beside the base, one after the other.

    Args:
        base: a file or a folder on this machine, with nothing that links to it or from it.
        patch: the patch, of a file for a file and of a folder for a folder.
        threads, progress, listed, noted: as of :func:`ckptdiff.apply`.

    Raises:
        OutputError: the base cannot be changed in place, or there is no room for what is written beside it.
        IntegrityError: what an interrupted run has left is damaged, or was changed by another program. Others as of
            :func:`ckptdiff.apply`.
    """
    watch, before, path = Stopwatch(), TRAFFIC.total(), _checked_path(base)
    with ExitStack() as stack:
        opened = stack.enter_context(open_patch(patch))
        listed([other.path for other in opened.others if other.kind != "same"])
        check_stored(opened, (), progress)
        execute = threads_for(threads or default_threads(), opened.output_size)
        journal = stack.enter_context(_journal(path))
        if not is_begun(path):
            _prepare(path, journal, opened, execute, progress)
        plan = Plan.read(journal, path)
        if plan.patch != digests_of(opened):
            raise OutputError(f"{path}: is being changed by another patch, {plan.patch_path}: go on with that one")
        rebuilder = Rebuilder(plan.open_base(path), [opened], execute)
        outputs, log = outputs_in_place(rebuilder), UnitLog({"command": "apply --in-place", "patch": plan.patch}, noted=noted)
        stack.callback(log.close)
        log.start(journal)
        InPlace(path, journal, plan, log, rebuilder, outputs, progress).change()
        (journal / BEGUN).unlink()
        sync(journal)
    files = [output.path for output in outputs] + [other.path for other in opened.others]
    count, planned = sum(len(output.tensors) for output in outputs), planned_apply(rebuilder.base, [opened], path)
    return ApplyResult(path, tuple(files), count, opened.output_size, watch.seconds(), TRAFFIC.total() - before, planned)


def _checked_path(base: str | os.PathLike[str]) -> Path:
    """The absolute path of a base; raises CheckpointError if it is not on this machine, OutputError if it is a link."""
    place = place_of(base)
    if isinstance(place, StorePath):
        raise CheckpointError(f"{place}: is in a store, and --in-place changes only what is on this machine: give -o OUT")
    path = Path(os.path.abspath(place))
    if path.is_symlink():
        raise OutputError(f"{path}: is a link to {os.path.realpath(path)}: give that, or -o OUT, which writes a new one")
    if not path.exists():
        on_hub = parse_id(base) is not None
        raise CheckpointError(f"{base}: " + ("is no path here, and --in-place changes nothing elsewhere" if on_hub else "does not exist"))
    return path


@contextmanager
def _journal(path: Path) -> Iterator[Path]:
    """The journal of a checkpoint, which is removed at the end unless the checkpoint is neither base nor target then."""
    try:
        with journal_lock(path) as journal:
            try:
                yield journal
            finally:
                if not is_begun(path):
                    with held():
                        _empty(journal)
                        (journal / LOCK).unlink(missing_ok=True)
                        journal.rmdir()
    except OSError as error:
        if is_begun(path):
            raise OutputError(f"{path}: {error.strerror or error}: it is neither base nor target now: {GO_ON}") from None
        with explain_write_errors(path):
            raise
    except KeyboardInterrupt:
        if is_begun(path):
            raise KeyboardInterrupt(f"{path} is neither base nor target now: {GO_ON}") from None
        raise


def _empty(journal: Path) -> None:
    """Remove all but the lock."""
    for entry in journal.iterdir():
        if entry.name != LOCK:
            discard(entry)


def digests_of(patch: OpenPatch) -> list[str]:
    """Digests that cover all that a patch gives."""
    return [*(file.digest.hex() for file in patch.files), *(other.sha256 for other in patch.others)]


def _prepare(path: Path, journal: Path, patch: OpenPatch, execute: Executor, progress: Progress) -> None:
    """Check everything, and write the journal; nothing of the base is changed."""
    _empty(journal)
    with open_base(path, [patch]) as old:
        check_layout(old, patch)
        rebuilder = Rebuilder(old, [patch], execute)
        with rebuilder.explained():
            outputs = outputs_in_place(rebuilder)
            plan = _plan(old, patch, outputs)
            _check_room(path, old, patch, outputs, plan)
            check_all(rebuilder, outputs, plan.changed, journal, progress)
            _stage_others(old, patch, journal)
        old.check_unchanged()
    plan.write(journal)
    sync_tree(journal)
    sync(journal.parent)
    write_durably(journal / BEGUN, b"")


def _plan(old: Checkpoint, patch: OpenPatch, outputs: Sequence[OutputFile]) -> Plan:
    """How each file changes."""
    bases = {file.path: file for file in old.weights}
    changed = [output.path for output in outputs if lies_in_place(output, bases.get(output.path))]
    moves = moves_of(old, outputs, changed)
    removed = [name for name in (patch.index.removed if patch.index else ()) if name not in bases and os.path.lexists(old.path / name)]
    return Plan(
        patch=digests_of(patch),
        patch_path=str(patch.path),
        is_file=old.is_file,
        base=base_rows(old),
        changed=changed,
        moves=[[name, sorted(moves.reads[name])] for name in moves.rebuilt],
        gone=list(moves.gone),
        others=[other.path for other in patch.others if _is_staged(other)],
        removed=removed,
    )


def _is_staged(other: OtherFile) -> bool:
    return other.kind != "same" or is_hidden(other.path)


def _stage_others(old: Checkpoint, patch: OpenPatch, journal: Path) -> None:
    """Write the files without weights that change, or are away meanwhile, into the journal; check the others."""
    for other in patch.others:
        base = old.others.get(other.path)
        if _is_staged(other):
            other_files.rebuild(patch, other, base, journal / STAGED / other.path)
        elif (error := other_files.base_error(other, base)) is not None:
            raise error


def _check_room(path: Path, old: Checkpoint, patch: OpenPatch, outputs: Sequence[OutputFile], plan: Plan) -> None:
    """Raise OutputError unless there is room for what is written beside the base."""
    sizes, old_sizes = {output.path: output.size for output in outputs}, {file.path: file.file.size for file in old.weights}
    moved = peak_size(plan.as_moves, sizes, old_sizes)
    needed = moved + sum(other.size for other in patch.others if _is_staged(other))
    needed += min(UNITS_AT_ONCE * unit_log.UNIT_BYTES, sum(sizes[name] for name in plan.changed))
    free = shutil.disk_usage(path).free
    if free < needed:
        why = f", {moved:,} of them for {len(plan.moves)} weight files in which data moves" if moved else ""
        raise OutputError(f"{path}: {needed:,} bytes are needed beside it{why}, {free:,} are free; free some space, or write elsewhere")
