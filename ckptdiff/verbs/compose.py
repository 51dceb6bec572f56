"""``compose`` makes one patch of several that follow each other (spec section 10.1)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

from ckptdiff.errors import CheckpointError
from ckptdiff.format.entry import CODEC_NAMES, Totals
from ckptdiff.format.index import INDEX_NAME, other_file_path, shard_path
from ckptdiff.io.parallel import Progress, default_threads, no_progress
from ckptdiff.io.places import local_path
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.live.patch import Patch, compose_in_memory
from ckptdiff.patching.chain import MAX_CHAIN, check_length, explained_order
from ckptdiff.patching.compose import MAX_COMPOSED, Composition
from ckptdiff.patching.compose_base import ThroughBase
from ckptdiff.patching.output import build_beside, check_output, check_space
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import check_stored, open_base, scratch_size
from ckptdiff.patching.write import WrittenPatch, encoded_files, write_patch

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ComposeResult:
    """The result of :func:`compose` of patches in files. Sizes are in bytes."""

    patch: Path
    """The patch that was written."""
    patches: int
    """How many patches it is made of."""
    totals: Totals
    """Counts of tensors and units."""
    patch_size: int
    patches_size: int
    """Of all patches that it is made of."""
    codecs: dict[str, int]
    """Number of tensors that each codec codes."""
    seconds: float
    """Wall time."""


@overload
def compose(patches: Sequence[Patch], base: Any = None, *, codec: str | None = None, threads: int | None = None) -> Patch: ...


@overload
def compose(
    patches: Sequence[PathLike],
    base: PathLike | None = None,
    *,
    output: PathLike,
    codec: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ComposeResult: ...


def compose(
    patches: Sequence[Patch] | Sequence[PathLike],
    base: Any = None,
    *,
    output: PathLike | None = None,
    codec: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Patch | ComposeResult:
    """Make one patch of several that follow each other: from the base of the first to the target of the last.

    Without a base the ulp distances of ``sparse`` patches are added, and the result is what ``make`` with ``codec="sparse"`` gives of base
    and target, which need not be there (spec section 10.1 says how far). What a tensor or a file becomes that a later patch casts, moves
    or copies, or that ``context`` or ``raw`` codes and other patches change too, only the base can tell; where ``raw`` has all of it, the
    result has too. With the base the target is rebuilt block by block, and encoded as :func:`ckptdiff.make` does.

    Args:
        patches: 1 to 4,096 patches in order: paths or ids on the Hub; or all of them a :class:`ckptdiff.Patch` of one file.
        base: the checkpoint that the first patch was made from; for patches in memory it may also be a module or a state dict.
        output: where to write the patch; not for patches in memory.
        codec: with a base the codec as of :func:`ckptdiff.make`; without, there is ``sparse`` only.
        threads: number of threads; the bytes of the patch do not depend on it.
        overwrite: replace an existing patch.
        progress: called with what is being done, how much is done, and how much there is.

    Returns:
        Of patches in memory a patch in memory; else what was written.

    Raises:
        UnsupportedError: only the base can tell what a tensor or a file becomes; its name, and what to do, are in the message.
        FormatError, UnsupportedError, IntegrityError: a patch is broken.
        BaseMismatchError: a patch does not follow the one before, or the base is wrong.
        CheckpointError: the base cannot be read. OutputError: the patch cannot be written there. HubError: a repo cannot be read.
    """
    in_memory = [patch for patch in patches if isinstance(patch, Patch)]
    paths = [os.fspath(patch) for patch in patches if not isinstance(patch, Patch)]
    check_length(len(in_memory) + len(paths), MAX_COMPOSED)
    if codec is not None and codec not in (CODEC_NAMES if base is not None else ("sparse",)):
        known = (
            f"one of {', '.join(CODEC_NAMES)}" if base is not None else "sparse, the only one that needs no base: give the base (--base)"
        )
        raise CheckpointError(f"codec {codec!r}: expected {known}")
    if (in_memory and paths) or bool(in_memory) is (output is not None):
        raise CheckpointError("compose takes patches in memory and gives one, or paths of patches and an output to write")
    if output is None:
        return compose_in_memory(in_memory, base, codec=codec, threads=threads)
    return _Files(paths, local_path(output, "compose writes a patch"), threads or default_threads(), overwrite, progress).compose(
        base, codec
    )


def check_patch_output(patches: Sequence[PathLike], base: PathLike | None, out: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that the patch which several patches give can be written.

    Args:
        patches: those that it is made of, in order.
        base: what is read beside them.
        out: where it is to be written.
        overwrite: whether an old one may be replaced.

    Raises:
        OutputError: it cannot. FormatError, UnsupportedError, IntegrityError: the last patch is broken.
    """
    with open_patch(patches[-1]) as last:
        files = [INDEX_NAME, *(shard_path(file.metadata.target_path) for file in last.files)]
        files += [other_file_path(other.path) for other in last.others]
        local = [Path(name) for name in (*patches, *([base] if base is not None else ())) if os.path.exists(name)]
        check_output(
            out,
            [*local, *(path for path in last.paths if isinstance(path, Path))],
            folder=last.index is not None,
            overwrite=overwrite,
            files=files,
        )


@dataclass(slots=True)
class _Files:
    """The steps of :func:`compose` for patches in files, with its arguments."""

    names: list[str]
    out: Path
    threads: int
    overwrite: bool
    progress: Progress

    def compose(self, base: PathLike | None, codec: str | None) -> ComposeResult:
        """Compose, and write the result."""
        watch = Stopwatch()
        check_patch_output(self.names, base, self.out, overwrite=self.overwrite)
        with build_beside(self.out, overwrite=self.overwrite) as built:
            size, written = self._added(built) if base is None else self._rebuilt(base, codec, built)
        return ComposeResult(self.out, len(self.names), written.totals, written.size, size, written.codecs, watch.seconds())

    @contextmanager
    def _open(self, name: str) -> Iterator[OpenPatch]:
        """Open a patch, and check its payloads."""
        with open_patch(name) as patch:
            check_stored(patch, progress=self.progress)
            yield patch

    def _added(self, built: Path) -> tuple[int, WrittenPatch]:
        """Compose without a base; returns the size of all patches, and what was written to ``built``."""
        composition = Composition()
        for name in self.names:
            with self._open(name) as patch:
                composition.add(patch)
        with open(built.with_name("spool"), "w+b") as spool:
            contents = composition.encode(spool, self.threads, self.progress)
            return composition.size, write_patch(contents, built, composition.others.write(built))

    def _rebuilt(self, base: PathLike, codec: str | None, built: Path) -> tuple[int, WrittenPatch]:
        """Compose through the base. Of a long chain its first part is composed first, to a patch in place of it, and so on."""
        names, size, part = self.names, 0, built.parent / "part"
        while len(names) > MAX_CHAIN:
            with TemporaryDirectory(dir=built.parent) as folder:
                read, written = self._through(
                    base, names[:MAX_CHAIN], Path(folder, "part"), ThroughBase("sparse", self.threads, self.progress)
                )
                _move_over(Path(folder, "part"), part)
            names, size = [str(part), *names[MAX_CHAIN:]], size + read - written.size
        read, written = self._through(base, names, built, ThroughBase(codec, self.threads, self.progress))
        return size + read, written

    def _through(self, base: PathLike, names: Sequence[str], built: Path, way: ThroughBase) -> tuple[int, WrittenPatch]:
        """Compose a chain of at most 64 patches through the base."""
        with ExitStack() as stack:
            with explained_order(base, names):
                chain = [stack.enter_context(self._open(name)) for name in names]
            old = stack.enter_context(open_base(base, chain, with_files=True))
            check_space(self.out, scratch_size(chain))
            spool = stack.enter_context(open(built.with_name("spool"), "w+b"))
            contents = way.encode(old, chain, spool, built.with_name(f"{built.name}-work"))
            return sum(patch.stored_size for patch in chain), write_patch(contents, built, encoded_files(contents, built))


def _move_over(new: Path, old: Path) -> None:
    """Put a patch in the place of another, which may be there."""
    if old.is_dir():
        shutil.rmtree(old)
    os.replace(new, old)
