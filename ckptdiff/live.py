"""Patches of tensors in memory: made of two state dicts, applied to a model in place, taken back."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptdiff.applier import Applier, check_chain, check_stored
from ckptdiff.checkpoint import Checkpoint, Tensor
from ckptdiff.codecs import CODECS
from ckptdiff.digests import BLOCK, tensor_digest, xxh128
from ckptdiff.dtypes import DTYPES, Bytes, Dtype, ulp_zigzag
from ckptdiff.errors import BaseMismatchError, CheckpointError, FormatError, IntegrityError, UnsupportedError
from ckptdiff.layers import FromBase, Node, digest_of, ranges
from ckptdiff.memory import BytesFile, MemoryFile, State, open_state, state_of
from ckptdiff.pairing import Rename, strip_prefixes
from ckptdiff.parallel import default_threads, no_progress, run_ordered
from ckptdiff.patches import OpenPatch, open_patch
from ckptdiff.patchfile import PatchFile
from ckptdiff.patchmaker import PatchMaker
from ckptdiff.stfile import read_bytes
from ckptdiff.table import Entry, Totals

if TYPE_CHECKING:
    import torch

MODEL = "the model"
"""What messages call tensors in memory."""


def diff(
    old: Any, new: Any, *, codec: str | None = "sparse", rename: Sequence[str] = (), threads: int | None = None, device: str | None = None
) -> Patch:
    """The exact difference between two sets of tensors in memory.

    Its bytes are a patch file (spec section 5) of what ``safetensors.torch.save_file`` would write of both, so that
    ``ckptdiff apply`` takes it too. Nothing is copied but what changed, and one block at a time.

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
    if codec is not None and codec not in CODECS:
        raise CheckpointError(f"unknown codec {codec!r}: expected one of {', '.join(CODECS)}")
    base, target = (open_state(state_of(state, where), where) for state, where in ((old, "the old tensors"), (new, "the new tensors")))
    rules = [Rename.parse(text) for text in rename]
    out = io.BytesIO()
    maker = PatchMaker(base, target, codec, threads or default_threads(), rules, None, io.BytesIO(), no_progress)
    maker.write_file(out)
    return Patch.from_bytes(out.getvalue())


class Patch:
    """A patch that is open: in memory, here, or on the Hub. Close it, or use it in a ``with`` statement, if it has files."""

    def __init__(self, opened: OpenPatch, stack: ExitStack) -> None:
        self._opened, self._stack = opened, stack

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the patch") -> Patch:
        """A patch file's bytes.

        Raises:
            FormatError, UnsupportedError, IntegrityError: they are not a whole and valid patch.
        """
        opened = OpenPatch(Path(name), None, [PatchFile(BytesFile(data, name))])
        check_stored(opened)
        return cls(opened, ExitStack())

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
        if self._opened.index is not None:
            raise CheckpointError(f"{self._opened.path}: is a patch folder, not one patch file")
        source = self._opened.files[0].source
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
        return _Loader(self._opened, base, scope, threads or default_threads()).load()

    def apply_(self, model: Any, *, scope: str | None = None, threads: int | None = None) -> None:
        """Turn a model that has the base's content into the target, in place: all of it, or on an error nothing.

        Base and result are checked before anything is written, the result once more after. Args and errors: as of :meth:`load`.
        """
        self.load(model, scope=scope, threads=threads)._write(back=False, check=True)

    def close(self) -> None:
        """Close its files."""
        self._stack.close()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        totals = self.totals
        return f"<ckptdiff.Patch: {totals.changed:,} of {totals.units:,} units in {totals.delta} tensors, {self.nbytes:,} bytes>"


@dataclass(slots=True)
class _Moves:
    """What happens to one tensor in memory: ``flat`` are its bytes, ``positions`` None if every unit has a distance."""

    name: str
    dtype: Dtype
    flat: torch.Tensor
    positions: torch.Tensor | None
    distances: torch.Tensor
    before: bytes
    after: bytes


class LoadedPatch:
    """A patch decoded against the tensors of a model, to be switched on and off in place; made by :meth:`Patch.load`."""

    def __init__(self, name: str, moves: Sequence[_Moves], threads: int) -> None:
        self._name, self._moves, self._threads = name, moves, threads
        self.applied = False

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        arrays = (array for row in self._moves for array in (row.positions, row.distances) if array is not None)
        return sum(array.numel() * array.element_size() for array in arrays)

    def apply_(self, *, check: bool = True) -> None:
        """Turn base into target in place.

        Args:
            check: compare the digests of all changed tensors before and after; without, their content is believed.

        Raises:
            BaseMismatchError: the model does not have the base's content; nothing was written. IntegrityError: the result is not the
                target, as when another thread wrote to it; it was taken back.
        """
        if self.applied:
            raise BaseMismatchError(f"{self._name}: is applied already: revert it first", "already_target")
        self._write(back=False, check=check)

    def revert_(self, *, check: bool = True) -> None:
        """Turn target into base in place; args and errors as of :meth:`apply_`."""
        if not self.applied:
            raise BaseMismatchError(f"{self._name}: is not applied, there is nothing to revert")
        self._write(back=True, check=check)

    def _write(self, back: bool, check: bool) -> None:
        from ckptdiff.device import move, units_of

        if check:
            self._check(not back)
        done: list[_Moves] = []
        try:
            for row in self._moves:
                done.append(row)
                move(units_of(row.flat, row.dtype), row.positions, row.distances, row.dtype, back)
            if check:
                self._check(back, written=True)
        except BaseException:
            for row in done:
                move(units_of(row.flat, row.dtype), row.positions, row.distances, row.dtype, not back)
            raise
        self.applied = not back

    def _check(self, base: bool, written: bool = False) -> None:
        """Whether each tensor has the base's content, or the target's."""
        for row, found in zip(self._moves, _digests([row.flat for row in self._moves], self._threads), strict=True):
            expected = row.before if base else row.after
            if found == expected:
                continue
            what = f"{MODEL}: tensor {row.name} has the digest {found.hex()}, expected {expected.hex()}"
            if written:
                raise IntegrityError(f"{what} after it was written: does another thread use it? {self._name} was taken back")
            state = "is not the base" if base else "was changed since the patch was applied"
            raise BaseMismatchError(f"{what}: it {state}: is another patch applied, or was it trained? nothing was written")


def _digests(parts: Sequence[torch.Tensor], threads: int) -> Iterator[bytes]:
    """Tensor digests of memory."""
    rows: dict[int, bytes] = {}
    by_device: dict[Any, list[int]] = {}
    for k, part in enumerate(parts):
        by_device.setdefault(part.device, []).append(k)
    for device, numbers in by_device.items():
        if device.type == "cpu":
            jobs = (partial(xxh128, parts[k].numpy()[i : i + BLOCK]) for k in numbers for i in range(0, len(parts[k]), BLOCK))
            with closing(run_ordered(jobs, threads)) as leaves:
                rows |= {k: tensor_digest([next(leaves) for _ in range(0, len(parts[k]), BLOCK)]) for k in numbers}
        else:
            from ckptdiff.device import leaf_digests

            rows |= dict(zip(numbers, map(tensor_digest, leaf_digests([parts[k] for k in numbers])), strict=True))
    yield from (rows[k] for k in range(len(parts)))


@dataclass(frozen=True, slots=True)
class _Place:
    """A target tensor, what builds it, and the tensor in memory that it goes to."""

    entry: Entry
    node: Node
    tensor: Tensor


class _Loader:
    """The steps of one :meth:`Patch.load`."""

    def __init__(self, patch: OpenPatch, base: Any, scope: str | None, threads: int) -> None:
        check_chain([patch])
        self.patch, self.threads = patch, threads
        self.scope = _scope_of(patch, scope)
        wanted = [e.base_name or name for (found, name), (_, e) in patch.entries.items() if found == self.scope]
        self.base = open_state(_align(state_of(base, MODEL), [*wanted, *(name for _, name in patch.entries)]), MODEL)
        self.applier = Applier(self.base, [patch], threads, no_progress)
        self.tensors = next(iter(self.base.scopes.values()), {})

    def load(self) -> LoadedPatch:
        places = self._places()
        try:
            moves = self._moves(places)
        except (FormatError, IntegrityError, BaseMismatchError):
            self.applier.explain(self.applier.outputs())
            raise
        return LoadedPatch(str(self.patch.path), moves, self.threads)

    def _places(self) -> list[_Place]:
        """Where every target tensor goes; those that share memory once."""
        rows = [(file, entry) for (scope, _), (file, entry) in self.patch.entries.items() if scope == self.scope]
        uses = Counter(entry.base_name for _, entry in rows)
        names = {entry.name for _, entry in rows}
        found: dict[tuple[str, int], _Place] = {}
        for file, entry in rows:
            node = self.applier.node(0, file, entry)
            old = entry.base_name
            alone = old is not None and uses[old] == 1 and old not in names
            tensor = self.tensors.get(entry.name) or (self.tensors[old] if alone and old is not None else None)
            if tensor is None or (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
                is_there = f"{MODEL} has it as {tensor.dtype} {list(tensor.shape)}" if tensor else f"{MODEL} has no such tensor"
                raise UnsupportedError(
                    f"{self.patch.path}: its target has the tensor {entry.name}, {entry.dtype} {list(entry.shape)}; {is_there}: "
                    "it cannot be written in place; rebuild the target with ckptdiff.load_target or ckptdiff apply"
                )
            place = _Place(entry, node, tensor)
            first = found.setdefault(_memory(tensor), place)
            if first.tensor.name != tensor.name and first.node.digest != node.digest:
                raise UnsupportedError(
                    f"{MODEL}: {first.tensor.name} and {tensor.name} share memory, but the target of {self.patch.path} has two "
                    "contents for them: untie them first"
                )
        return list(found.values())

    def _moves(self, places: Sequence[_Place]) -> list[_Moves]:
        jobs = (partial(self._changes, place, start, stop, last) for place in places for start, stop, last in ranges(place.node))
        moves, parts = [], []
        with closing(run_ordered(jobs, self.threads)) as results:
            for place, part, last in results:
                parts.append(part)
                if last:
                    before = self._check(place)
                    row = _gather(place, parts, before)
                    if row is not None:
                        moves.append(row)
                    parts = []
        return moves

    def _changes(self, place: _Place, start: int, stop: int, last: bool) -> tuple[_Place, tuple[Any, Any], bool]:
        """Positions in the tensor of the units of a range that the patch moves, and the zigzag of how far."""
        dtype = DTYPES[place.entry.dtype]
        new = place.node.build(start, stop)
        if isinstance(place.node, FromBase) and place.node.tensor is place.tensor:
            return place, _NOTHING, last
        old = np.empty(len(new), np.uint8)
        place.tensor.readinto(start, old)
        a, b = old.view(dtype.unit), new.view(dtype.unit)
        positions = np.flatnonzero(a != b)
        zigzag = ulp_zigzag(a[positions], b[positions], dtype)
        positions += start // dtype.carrier
        return place, (positions.astype(np.int32 if place.entry.units < 1 << 31 else np.int64), zigzag), last

    def _check(self, place: _Place) -> bytes:
        """Compare the digests of what a tensor is built from and of the result; returns the digest of what is there now."""
        self.applier.check(place.node)
        base = place.entry.base_name is not None and not place.entry.adapted and self.tensors.get(place.entry.base_name) is place.tensor
        return place.entry.base_digest if base else digest_of(place.tensor)


_NOTHING: tuple[Any, Any] = (np.empty(0, np.int32), np.empty(0, np.uint8))


def _gather(place: _Place, parts: Sequence[tuple[Any, Any]], before: bytes) -> _Moves | None:
    """A tensor's moves on its device; None if it does not change."""
    import torch

    from ckptdiff.device import SIGNED, from_zigzag

    dtype, file = DTYPES[place.entry.dtype], place.tensor.source
    count = sum(len(positions) for positions, _ in parts)
    if count == 0:
        return None
    assert isinstance(file, MemoryFile)
    flat = _writable(file.view(place.tensor.offset, place.tensor.nbytes), place.tensor.name)
    positions = torch.from_numpy(np.concatenate([positions for positions, _ in parts])).to(flat.device)
    signed = np.dtype(f"i{dtype.carrier}")
    distances = from_zigzag(torch.from_numpy(np.concatenate([zigzag for _, zigzag in parts]).view(signed)).to(flat.device))
    if count * (positions.element_size() + dtype.carrier) > place.tensor.nbytes:
        every = torch.zeros(place.entry.units, dtype=SIGNED[dtype.carrier], device=flat.device)
        every[positions] = distances
        return _Moves(place.tensor.name, dtype, flat, None, every, before, place.node.digest)
    return _Moves(place.tensor.name, dtype, flat, positions, distances, before, place.node.digest)


def _writable(flat: Bytes | torch.Tensor, name: str) -> torch.Tensor:
    import torch

    if isinstance(flat, np.ndarray):
        if not flat.flags.writeable:
            raise UnsupportedError(f"{MODEL}: {name}: is read-only memory: give a copy of it")
        return torch.from_numpy(flat)
    return flat


def _memory(tensor: Tensor) -> tuple[str, int]:
    """What two tensors that are one have in common: device and address."""
    assert isinstance(tensor.source, MemoryFile)
    data = tensor.source.view(tensor.offset, tensor.nbytes)
    if tensor.nbytes == 0:
        return tensor.name, 0
    return ("cpu", data.ctypes.data) if isinstance(data, np.ndarray) else (str(data.device), data.data_ptr())


def _scope_of(patch: OpenPatch, wanted: str | None) -> str:
    scopes = list(dict.fromkeys(file.metadata.target_scope for file in patch.files))
    if wanted is None and len(scopes) == 1:
        return scopes[0]
    if wanted not in scopes:
        raise UnsupportedError(f"{patch.path}: has the scopes {', '.join(scopes)}: load them one by one, with scope=...")
    return wanted


def _align(state: State, names: Sequence[str]) -> dict[str, Any]:
    """The tensors under the names that a patch has for them: wrappers (DDP, torch.compile, a head model) put prefixes before them."""
    state = dict(state)
    stems = Counter(map(strip_prefixes, state))
    by_stem = {strip_prefixes(name): name for name in state if stems[strip_prefixes(name)] == 1}
    missing: Mapping[str, str | None] = {name: by_stem.get(strip_prefixes(name)) for name in names if name not in state}
    for name, found in missing.items():
        if found is not None and found not in names and found in state:
            state[name] = state.pop(found)
    return state


Build = Callable[[int, int], Bytes]


def load_target(base: str | os.PathLike[str], patch: str | os.PathLike[str], *, threads: int | None = None) -> dict[str, torch.Tensor]:
    """The target's tensors in memory, rebuilt and checked; nothing is written to the disk.

    Args:
        base: the checkpoint that the patch was made from: a file, a folder or an id on the Hub.
        patch: a patch file, a folder or an id.
        threads: how many to use.

    Raises:
        As :func:`ckptdiff.apply`. UnsupportedError: torch lacks a dtype.
    """
    from ckptdiff.checkpoint import open_checkpoint

    with open_patch(patch) as opened, open_checkpoint(base, needs_weights=bool(opened.files), scopes=opened.base_scopes, others=[]) as old:
        check_stored(opened)
        return rebuild(old, opened, threads or default_threads())


def rebuild(base: Checkpoint, patch: OpenPatch, threads: int) -> dict[str, torch.Tensor]:
    """The tensors of a patch's target, built from an open base."""
    from ckptdiff.torchtypes import flat_bytes, new_tensor

    check_chain([patch])
    scope, applier = _scope_of(patch, None), Applier(base, [patch], threads, no_progress)
    rows = [(entry, applier.node(0, file, entry)) for (found, _), (file, entry) in patch.entries.items() if found == scope]
    tensors = {entry.name: new_tensor(entry.dtype, entry.shape, f"{patch.path}: tensor {entry.name}") for entry, _ in rows}

    def step(name: str, node: Node, start: int, stop: int, last: bool) -> tuple[Node, bool]:
        out, data = flat_bytes(tensors[name], name), node.build(start, stop)
        out[start : start + len(data)] = data
        return node, last

    jobs = (partial(step, entry.name, node, start, stop, last) for entry, node in rows for start, stop, last in ranges(node))
    try:
        with closing(run_ordered(jobs, threads)) as results:
            for node, last in results:
                if last:
                    applier.check(node)
    except (FormatError, IntegrityError, BaseMismatchError):
        applier.explain(applier.outputs())
        raise
    return tensors
