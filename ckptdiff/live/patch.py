"""Patches of tensors in memory: made of two state dicts, and applied to a model in place."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptdiff.checkpoint.pairing import pair
from ckptdiff.checkpoint.renames import Rename
from ckptdiff.errors import CheckpointError
from ckptdiff.format.entry import CODEC_NAMES, Totals
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.collector import paused_collector
from ckptdiff.io.parallel import default_threads, no_progress
from ckptdiff.io.source import read_bytes
from ckptdiff.io.work_folder import work_folder
from ckptdiff.live.changes import Change, changes_of
from ckptdiff.live.encode_states import encode_states
from ckptdiff.live.load import Loader
from ckptdiff.live.loaded_rows import load_rows
from ckptdiff.live.names import MODEL
from ckptdiff.live.rows import rows_of
from ckptdiff.live.switch import LoadedPatch
from ckptdiff.live.writing import writing
from ckptdiff.patching.chain import MAX_CHAIN
from ckptdiff.patching.compose import Composition
from ckptdiff.patching.compose_base import ThroughBase
from ckptdiff.patching.encode_options import on_threads
from ckptdiff.patching.encode_pair import encode_pair
from ckptdiff.patching.memory import BytesFile, open_state, state_of
from ckptdiff.patching.output import check_space
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.provenance import recorded_facts
from ckptdiff.patching.rebuild import check_stored, open_base, scratch_size
from ckptdiff.patching.write import PatchContents, check_size, write_file


def diff(
    old: Any, new: Any, *, codec: str | None = "sparse", rename: Sequence[str] = (), threads: int | None = None, device: str | None = None
) -> Patch:
    """The exact difference between two sets of tensors in memory.

    The result is a patch file (spec section 5) between the files that ``safetensors.torch.save_file`` would write, so that
    ``ckptdiff apply`` takes it too. Only what changed is copied, one block at a time. If a tensor has several names, such as a head tied to
    the embedding, it counts once, under the first name in the state's order; the patch records the others.

    Args:
        old, new: state dicts or modules; torch tensors on any device, or numpy arrays. Of a DTensor only this rank's part is taken, so that
            each rank makes and applies its own patch.
        codec: ``sparse`` (the fastest), ``context`` (the smallest) or ``raw``; None: the smallest of them, tensor by tensor.
        rename: rules as in :func:`ckptdiff.make`.
        threads: how many to use; the bytes do not depend on it.
        device: torch device to compare on; by default tensors are compared on the device that they are on.

    Raises:
        UnsupportedError: a tensor is not contiguous, is meta or sparse, or has a dtype that safetensors lacks.
        CheckpointError: ``old`` or ``new`` does not consist of tensors.
    """
    if codec is not None and codec not in CODEC_NAMES:
        raise CheckpointError(f"unknown codec {codec!r}: expected one of {', '.join(CODEC_NAMES)}")
    base, target = (open_state(state_of(state, where), where) for state, where in ((old, "the old tensors"), (new, "the new tensors")))
    rules, count = [Rename.parse(text) for text in rename], threads or default_threads()
    options = on_threads(base, target, codec, count, device)
    check_size(target)
    with paused_collector():
        pairing = pair(base, target, rules)
        encoded = encode_states(base, target, pairing, io.BytesIO(), count) if codec == "sparse" and device is None else None
        if encoded is None:
            encoded = encode_pair(base, target, pairing, options, io.BytesIO(), no_progress)
        return written(PatchContents(encoded, recorded_facts(encoded, None, None), None))


def written(contents: PatchContents) -> Patch:
    """The patch file of these contents, in memory."""
    out = io.BytesIO()
    write_file(contents, out)
    return Patch(out.getvalue())


def compose_in_memory(
    patches: Sequence[Patch], base: Any = None, *, codec: str | None = None, threads: int | None = None, copies: bool = True
) -> Patch:
    """:func:`ckptdiff.compose` for patches in memory, or open ones, of one file each.

    ``copies``: as of :class:`~ckptdiff.patching.write.PatchContents`, for those that are composed without the base.
    """
    chain, count = [patch.opened for patch in patches], threads or default_threads()
    folder = next((patch.path for patch in chain if patch.index is not None), None)
    if folder is not None:
        raise CheckpointError(f"{folder}: is a patch folder: give the paths of the patches, and an output")
    if base is None:
        composition = Composition()
        for patch in chain:
            composition.add(patch)
        return written(composition.encode(io.BytesIO(), count, no_progress, copies))
    while len(chain) > MAX_CHAIN:
        chain[:MAX_CHAIN] = [_through(base, chain[:MAX_CHAIN], ThroughBase("sparse", count, no_progress)).opened]
    return _through(base, chain, ThroughBase(codec, count, no_progress))


def _through(base: Any, chain: Sequence[OpenPatch], way: ThroughBase) -> Patch:
    """Compose a chain of at most 64 patches through its base."""
    with ExitStack() as stack:
        if isinstance(base, (str, os.PathLike)):
            old = stack.enter_context(open_base(base, chain, only_weights=True))
        else:
            old = open_state(state_of(base, "the base"), "the base", scope=chain[0].files[0].metadata.base_scope or "")
        folder = stack.enter_context(work_folder(Path(tempfile.gettempdir()), "ckptdiff-tensors-")).path
        check_space(folder, scratch_size(chain))
        return written(way.encode(old, chain, io.BytesIO(), folder))


class Patch:
    """An open patch: in memory, in files, or on the Hub. If it has files, close it, or use it in a ``with`` statement."""

    def __init__(self, source: bytes | OpenPatch, stack: ExitStack | None = None, name: str = "the patch") -> None:
        self._source, self._stack, self._name, self._closed = source, stack or ExitStack(), name, False

    @cached_property
    def _opened(self) -> OpenPatch:
        """The patch, read and checked. One that was just made is read only when more than its bytes is asked for."""
        if isinstance(self._source, OpenPatch):
            return self._source
        opened = OpenPatch(Path(self._name), None, [PatchFile(BytesFile(self._source, self._name))])
        check_stored(opened)
        return opened

    @property
    def opened(self) -> OpenPatch:
        """The open patch; raises CheckpointError if it was closed."""
        if self._closed:
            raise CheckpointError(f"{self._opened.path}: the patch is closed: open it again")
        return self._opened

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the patch") -> Patch:
        """Open the bytes of a patch file.

        Raises:
            FormatError, UnsupportedError, IntegrityError: they are not a whole and valid patch.
        """
        patch = cls(data, name=name)
        _ = patch._opened
        return patch

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Patch:
        """Open a patch file or folder, or a patch on the Hub (``org/name@revision``).

        Raises:
            FormatError, UnsupportedError, IntegrityError: it is not a whole and valid patch. CheckpointError, HubError: it cannot be read.
        """
        with ExitStack() as stack:
            opened = stack.enter_context(open_patch(path))
            check_stored(opened)
            return cls(opened, stack.pop_all())

    def to_bytes(self) -> bytes:
        """The bytes of the patch file.

        Raises:
            CheckpointError: the patch is a folder of several files.
        """
        if isinstance(self._source, bytes):
            return self._source
        if self._source.index is not None:
            raise CheckpointError(f"{self._source.path}: is a patch folder, not one patch file")
        source = self._source.files[0].source
        return read_bytes(source, 0, source.size)

    @property
    def totals(self) -> Totals:
        """How many tensors are of each kind, and how many units changed."""
        return self._opened.totals

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the target's tensors."""
        return tuple(name for _, name in self._opened.entries)

    @property
    def base_identity(self) -> str:
        """Identity of the base (spec 3.2), in hexadecimal."""
        return self._opened.base_identity.hex()

    @property
    def target_identity(self) -> str:
        """Identity of the target (spec 3.2), in hexadecimal."""
        return self._opened.target_identity.hex()

    @property
    def nbytes(self) -> int:
        """Size of the patch, in bytes."""
        return self._opened.stored_size

    def changes(self, names: Collection[str] | None = None, base: Any = None, *, threads: int | None = None) -> Iterator[Change]:
        """What the patch changes, tensor by tensor: unchanged ones are left out.

        Tensors that are coded by ``sparse`` need no base. With a base it is checked that it has the base's content, and every tensor gives
        what changes, also one that ``context`` or ``raw`` codes, or that is new or a copy, if the base has one of its name, dtype and
        size.

        Args:
            names: names of the target's tensors; None: all.
            base: a state dict, a module or a checkpoint with the base's content, under the names that the patch has.
            threads: how many to use, with a base.

        Raises:
            UnsupportedError: only the base tells what changes in a tensor, or not even that.
            CheckpointError: there is no tensor of such a name. BaseMismatchError: it is not the base.
            FormatError, IntegrityError: the patch does not give what it states; what came before is right.
        """
        return changes_of(self.opened, names, base, threads or default_threads())

    def load(self, base: Any, *, scope: str | None = None, threads: int | None = None) -> LoadedPatch:
        """Decode the patch against a model, to apply and revert it later. The model is not changed yet.

        For each changed unit this takes 4 bytes and the unit's width on the tensors' device, but never more than the changed tensors take.

        Args:
            base: the module or state dict that has the base's content, and whose tensors will be written to in place.
            scope: which scope of a patch with several (a pipeline of models).
            threads: how many to use.

        Raises:
            BaseMismatchError: the model does not have the base's content.
            UnsupportedError: the model cannot become the target in place, since a tensor is new or has another shape, or shares memory with
                a tensor that would have another content.
            FormatError, IntegrityError: the patch does not give what it states.
        """
        loaded = self._in_rows(base, scope, threads or default_threads())
        return loaded if loaded is not None else self._loader(base, scope, threads).load()

    def apply_(self, model: Any, *, scope: str | None = None, threads: int | None = None) -> None:
        """Turn a model that has the base's content into the target in place; after an error the model is as it was.

        The base is checked before anything is written, and the result afterwards; a wrong result is taken back. Arguments and errors are
        those of :meth:`load`.
        """
        if self._in_rows(model, scope, threads or default_threads(), True) is not None:
            return
        loader = self._loader(model, scope, threads)
        with writing(loader.memory):
            loader.load().write(False, True, loader.state)

    def _in_rows(self, model: Any, scope: str | None, threads: int, applied: bool = False) -> LoadedPatch | None:
        """The patch decoded against tensors in the host's memory, and ``applied`` if that is asked for; None if that needs a loader."""
        state = state_of(model, MODEL)
        rows = rows_of(self.opened, state, scope)
        if rows is None:
            return None
        with writing(rows.memory) if applied else nullcontext():
            loaded = load_rows(str(self.opened.path), rows, threads, lambda: state_of(model, MODEL))
            if loaded is not None and applied:
                loaded.write(False, True, state)
            return loaded

    def _loader(self, model: Any, scope: str | None, threads: int | None) -> Loader:
        return Loader(self.opened, model, scope, threads or default_threads())

    def close(self) -> None:
        """Close the patch's files."""
        self._closed = True
        self._stack.close()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        totals = self.totals
        return f"<ckptdiff.Patch: {totals.changed:,} of {totals.units:,} units in {totals.delta} tensors, {self.nbytes:,} bytes>"
