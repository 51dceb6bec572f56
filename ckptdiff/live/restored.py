"""A copy of a state turned into a later one by patches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from ckptdiff.errors import FormatError, UnsupportedError
from ckptdiff.format.dtypes import Bytes
from ckptdiff.io.parallel import threads_for
from ckptdiff.io.work_folder import work_folder
from ckptdiff.live.patch import Patch
from ckptdiff.live.state_copy import StateCopy
from ckptdiff.patching.chain import MAX_CHAIN
from ckptdiff.patching.output import check_space
from ckptdiff.patching.rebuild import Rebuilder, ScratchTensors, scratch_size
from ckptdiff.patching.recipes import RebuildJob


def restored(base: StateCopy, patches: Sequence[Patch], threads: int) -> StateCopy:
    """What patches, at most 64 in order, give from a copy of a state, in the same layout; digests are checked.

    Raises:
        UnsupportedError: it has other tensors. BaseMismatchError, FormatError, IntegrityError: the patches do not give what they state.
    """
    made, opened = StateCopy.new(base.layout), [patch.opened for patch in patches]
    if len(opened) > MAX_CHAIN:
        raise FormatError(f"{opened[0].path}: {len(opened)} patches lead to the step, expected at most {MAX_CHAIN}")
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder(Path(tempfile.gettempdir()), "ckptdiff-tensors-")).path
        check_space(folder, scratch_size(opened))
        scratch = stack.enter_context(closing(ScratchTensors(folder)))
        execute = threads_for(threads, opened[-1].output_size)
        rebuilder, last = Rebuilder(base.open("the copy of a state"), opened, execute, scratch), opened[-1]
        with rebuilder.explained():
            rows = [(entry, rebuilder.recipe(len(opened) - 1, file, entry)) for file, entry in last.entries.values()]
            wanted = {name: (row.dtype, row.shape) for name, row in made.rows.items()}
            if {entry.name: (entry.dtype, entry.shape) for entry, _ in rows} != wanted:
                raise UnsupportedError(f"{last.path}: gives other tensors than the base has: a state in memory cannot go on from there")
            flats = [made.rows[entry.name].flat for entry, _ in rows]

            def sink(job: RebuildJob, data: Bytes) -> None:
                flat = flats[job.tensor]
                assert isinstance(flat, np.ndarray)
                flat[job.start : job.start + len(data)] = data

            with closing(rebuilder.rebuild([recipe for _, recipe in rows], sink)) as results:
                for _ in results:
                    pass
    return made
