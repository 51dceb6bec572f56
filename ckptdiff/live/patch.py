"""Patches of tensors in memory: made of two state dicts, applied to a model in place, taken back."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdiff.checkpoint.pairing import Rename
from ckptdiff.errors import CheckpointError
from ckptdiff.format.entry import CODEC_NAMES, Totals
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import default_threads, no_progress
from ckptdiff.io.source import read_bytes
from ckptdiff.live.load import Loader
from ckptdiff.live.switch import WRITING, LoadedPatch
from ckptdiff.patching.encoders import choose_coder
from ckptdiff.patching.memory import BytesFile, open_state, state_of
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import check_stored
from ckptdiff.patching.write import PatchMaker

if TYPE_CHECKING:
    pass


def diff(
    old: Any, new: Any, *, codec: str | None = "sparse", rename: Sequence[str] = (), threads: int | None = None, device: str | None = None
) -> Patch:
    """The exact difference between two sets of tensors in memory.

    Its bytes are a patch file (spec section 5) of what ``safetensors.torch.save_file`` would write of both, so that
    ``ckptdiff apply`` takes it too. Nothing is copied but what changed, and one block at a time. Names of one tensor, such as those
    of a head tied to the embedding, count once, under the first in the state's order; the patch keeps the others.

    Args:
        old, new: state dicts or modules; torch tensors on any device, or numpy arrays. Of a DTensor this rank's part is taken: each rank
            makes a patch of its own, for its own.
        codec: ``sparse``, the fastest, ``context``, the smallest, ``raw``; None: the smallest of them, tensor by tensor.
        rename: as of :func:`ckptdiff.make`.
        threads: how many to use; the bytes do not depend on it.
        device: torch device to compare on; by default tensors on another device than the host's are compared where they are.

    Raises:
        UnsupportedError: a tensor is not contiguous, meta, sparse or of a dtype that safetensors lacks. CheckpointError: not tensors.
    """
    if codec is not None and codec not in CODEC_NAMES:
        raise CheckpointError(f"unknown codec {codec!r}: expected one of {', '.join(CODEC_NAMES)}")
    base, target = (open_state(state_of(state, where), where) for state, where in ((old, "the old tensors"), (new, "the new tensors")))
    rules, out = [Rename.parse(text) for text in rename], io.BytesIO()
    tensors = [tensor for side in (base, target) for file in side.weights for tensor in file.tensors]
    coder, groups = choose_coder(device, tensors, codec)
    maker = PatchMaker(base, target, codec, threads or default_threads(), rules, None, io.BytesIO(), no_progress, coder, groups)
    maker.write_file(out)
    return Patch(out.getvalue())


class Patch:
    """A patch that is open: in memory, here, or on the Hub. Close it, or use it in a ``with`` statement, if it has files."""

    def __init__(self, source: bytes | OpenPatch, stack: ExitStack | None = None, name: str = "the patch") -> None:
        self._source, self._stack, self._name, self._closed = source, stack or ExitStack(), name, False

    @cached_property
    def _opened(self) -> OpenPatch:
        """The patch, read and checked; one that was just made when it is first asked for more than its bytes."""
        if isinstance(self._source, OpenPatch):
            return self._source
        opened = OpenPatch(Path(self._name), None, [PatchFile(BytesFile(self._source, self._name))])
        check_stored(opened)
        return opened

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the patch") -> Patch:
        """A patch file's bytes.

        Raises:
            FormatError, UnsupportedError, IntegrityError: they are not a whole and valid patch.
        """
        patch = cls(data, name=name)
        _ = patch._opened
        return patch

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Patch:
        """A patch file or folder, or an id on the Hub (``org/name@revision``).

        Raises:
            FormatError, UnsupportedError, IntegrityError: it is not a whole and valid patch. CheckpointError, HubError: it cannot be read.
        """
        with ExitStack() as stack:
            opened = stack.enter_context(open_patch(path))
            check_stored(opened)
            return cls(opened, stack.pop_all())

    def to_bytes(self) -> bytes:
        """The patch file.

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
        """The target's tensors."""
        return tuple(name for _, name in self._opened.entries)

    @property
    def base_identity(self) -> str:
        """Identity of the base (spec 3.2), in hexadecimal."""
        return self._opened.base_identity.hex()

    @property
    def target_identity(self) -> str:
        """Identity of the target."""
        return self._opened.target_identity.hex()

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._opened.stored_size

    def load(self, base: Any, *, scope: str | None = None, threads: int | None = None) -> LoadedPatch:
        """Decode the patch against a model, which stays as it is, so that it can be switched on and off.

        Holds 4 bytes and one unit a changed unit on the tensors' device, at most as much as the changed tensors.

        Args:
            base: the module or state dict that has the base's content; its tensors will be written to in place.
            scope: of a patch with several (a pipeline of models), which one.
            threads: how many to use.

        Raises:
            BaseMismatchError: the model does not have the base's content. UnsupportedError: it cannot become the target in place, as a
                tensor is new, or of another shape, or shares memory with one of another content.
            FormatError, IntegrityError: the patch does not give what it states.
        """
        if self._closed:
            raise CheckpointError(f"{self._opened.path}: the patch is closed: open it again")
        return Loader(self._opened, base, scope, threads or default_threads()).load()

    def apply_(self, model: Any, *, scope: str | None = None, threads: int | None = None) -> None:
        """Turn a model that has the base's content into the target, in place: all of it, or on an error nothing.

        The base is checked before anything is written, the result after; if that is wrong it is taken back.

        Args and errors: as of :meth:`load`.
        """
        with WRITING:
            self.load(model, scope=scope, threads=threads).write(False, True)

    def close(self) -> None:
        """Close its files."""
        self._closed = True
        self._stack.close()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        totals = self.totals
        return f"<ckptdiff.Patch: {totals.changed:,} of {totals.units:,} units in {totals.delta} tensors, {self.nbytes:,} bytes>"
