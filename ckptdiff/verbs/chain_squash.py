"""``chain squash`` makes one patch of those from one step of a chain to another (spec/ckptdiff-v1.md, 10.1)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.chain.contents import local_patches
from ckptdiff.chain.history import History, read_history
from ckptdiff.chain.names import PatchName
from ckptdiff.chain.retention import find_step
from ckptdiff.errors import CheckpointError, IntegrityError, UnsupportedError
from ckptdiff.format.entry import Totals
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.places import local_path
from ckptdiff.io.store_urls import open_store
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.patching.output import build_beside, explain_write_errors
from ckptdiff.verbs.chain_parts import Noted, apply_plan, find_base, not_noted, plan_of, work_beside
from ckptdiff.verbs.compose import ComposeResult, check_patch_output, compose
from ckptdiff.verbs.verify import verify


@dataclass(frozen=True, slots=True)
class ChainSquashResult:
    """The result of :func:`chain_squash`. Sizes are in bytes."""

    patch: Path
    """The patch that was written."""
    first: int
    """The step that it starts from."""
    last: int
    """The step that it gives."""
    patches: tuple[str, ...]
    """Names of the patches that it is made of, in order."""
    through_base: bool
    """Whether the checkpoint of the first step was needed; else ulp distances were added."""
    totals: Totals
    patch_size: int
    patches_size: int
    """Of all patches that it is made of."""
    codecs: dict[str, int]
    """Number of tensors that each codec codes."""
    seconds: float
    """Wall time."""


def chain_squash(
    chain: str | os.PathLike[str],
    first: int,
    last: int,
    output: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    codec: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    noted: Noted = not_noted,
) -> ChainSquashResult:
    """Make one patch of those from one step of a chain to another, as :func:`ckptdiff.compose` does. The chain stays as it is.

    Without a base where the patches are ``sparse``. Where only the base can tell what a tensor becomes, or another codec is asked for,
    the checkpoint of step ``first`` is rebuilt beside the output, and the patch is encoded, and decoded again, against that.

    Args:
        chain: a folder, or a URL that fsspec knows.
        first: the step that the patch starts from; the base's own step, if the chain records one, stands for the base.
        last: the step that it gives.
        output: where to write the patch.
        base: the chain's base, or the checkpoint of any step up to ``first``; by default the repo on the Hub that the chain records. It is
            read only where it is needed.
        codec: the codec of changed tensors, as of :func:`ckptdiff.make`; by default ``sparse`` where that needs no base, else the smallest.
        threads: number of threads.
        overwrite: replace an existing patch.
        progress: called with what is being done, how much is done, and how much there is.
        noted: called with a line about what takes long.

    Raises:
        CheckpointError: there is no such step, no way from the one to the other, or no base. BaseMismatchError: the base is another one.
        UnsupportedError: only the base can tell what a tensor becomes, and none is given or recorded.
        FormatError, UnsupportedError, IntegrityError: the chain is broken, or a patch.
        StoreError: the store cannot be read. OutputError: the patch cannot be written there.
    """
    watch, history, out = Stopwatch(), read_history(open_store(chain)), local_path(output, "chain squash writes a patch")
    start, plan = _way(history, first, last)
    squash = _Squash(history, start, base, codec, threads, progress, noted)
    with explain_write_errors(out), work_beside(history, plan, out) as work, local_patches(history, plan, work, progress) as patches:
        check_patch_output(patches, base, out, overwrite=overwrite)
        with build_beside(out, overwrite=overwrite) as built:
            done, through_base = squash.into(built, patches)
    keys = tuple(name.key for name in plan)
    return ChainSquashResult(
        out, first, last, keys, through_base, done.totals, done.patch_size, done.patches_size, done.codecs, watch.seconds()
    )


def _way(history: History, first: int, last: int) -> tuple[int | None, list[PatchName]]:
    """Where in the history the first step is, None for the base, and the patches from there to the last one."""
    if first >= last:
        raise CheckpointError(f"{history.store.name}: step {first} does not come before step {last}: give the earlier one first")
    at = find_step(history, last)
    start = None if first == history.chain.base_step else find_step(history, first)
    return start, plan_of(history, at, start)


@dataclass(frozen=True, slots=True)
class _Squash:
    """The steps of :func:`chain_squash`, with its arguments."""

    history: History
    start: int | None
    base: str | os.PathLike[str] | None
    codec: str | None
    threads: int | None
    progress: Progress
    noted: Noted

    def into(self, built: Path, patches: Sequence[Path]) -> tuple[ComposeResult, bool]:
        """Write the patch, and check it; also returns whether the first step's checkpoint was needed."""
        if self.codec in (None, "sparse"):
            try:
                done = compose(patches, output=built, codec=self.codec, threads=self.threads, progress=self.progress)
                self._check(built, None)
                return done, False
            except UnsupportedError as error:
                if self.base is None and self.history.chain.base_repo is None:
                    raise
                self.noted(f"{error}: so it is used")
        first = self._first_step(built)
        done = compose(patches, first, output=built, codec=self.codec, threads=self.threads, progress=self.progress)
        self._check(built, first)
        return done, True

    def _first_step(self, built: Path) -> str | Path:
        """The checkpoint that the patch starts from: the base that is given, or what is rebuilt from it beside the output."""
        history = self.history
        known = find_base(history, self.base, self.threads, self.progress, self.start)
        if known.start == self.start:
            return known.path
        assert self.start is not None  # else the base would be a step before the base
        out = built.with_name("first")
        self.noted(f"rebuilding step {history.steps[self.start].number} in {out}, as the patch is made from it")
        plan = plan_of(history, self.start, known.start)
        apply_plan(history, plan, known.path, out, built.parent, self.threads, self.progress)
        return out

    def _check(self, built: Path, first: str | Path | None) -> None:
        """Raise IntegrityError unless the patch is whole and, with the checkpoint that it starts from, gives what it states."""
        problems = verify(built, base=first, threads=self.threads, progress=self.progress).problems
        if problems:
            raise IntegrityError(f"the patch was made, but does not verify: {problems[0].message}")
