"""What an open checkpoint holds: weight files, their tensors by scope (spec 3.1), and the files beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckptdiff.checkpoint.selection import exclude_option
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.format.safetensors import Header
from ckptdiff.hub.ids import HubId
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import WeightSource
from ckptdiff.lazy import torch


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    """Its dimensions, in elements."""
    nbytes: int
    """Size of its data in bytes."""
    source: WeightSource
    offset: int
    """Where its data begins in ``source``, in bytes."""

    @property
    def key(self) -> tuple[str, str]:
        """Scope and name."""
        return self.scope, self.name

    @property
    def units(self) -> int:
        """Number of its units (spec section 4)."""
        return self.nbytes // DTYPES[self.dtype].carrier

    @property
    def memory(self) -> Bytes | torch.Tensor | None:
        """Its data without a copy, if it is in memory: numpy's on the host, torch's on another device. None for a tensor of a file."""
        return self.source.view(self.offset, self.nbytes)

    def readinto(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from ``start`` on."""
        self.source.readinto(self.offset + start, out)

    def read(self, start: int, stop: int, name: str = "read") -> Bytes:
        """Bytes ``start`` to ``stop``, or fewer where the tensor ends before, in the :func:`scratch` array called ``name``."""
        out = scratch(name, max(min(stop, self.nbytes) - start, 0), np.uint8)
        if len(out):  # a checkpoint may have a hundred thousand empty tensors, for which no file is opened
            self.readinto(start, out)
        return out

    def view(self, start: int, stop: int, name: str) -> Bytes:
        """As :meth:`read`, but the tensor's own memory if that is on the host: the bytes must not be written to."""
        data = self.memory
        return data[start:stop] if isinstance(data, np.ndarray) else self.read(start, stop, name)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file of a checkpoint."""

    path: str
    """Relative to the checkpoint, with ``/``."""
    scope: str
    file: WeightSource
    header: Header

    @property
    def tensors(self) -> list[Tensor]:
        """The file's tensors in the order of their data."""
        start = self.header.data_start
        return [Tensor(self.scope, t.name, t.dtype, t.shape, t.nbytes, self.file, start + t.begin) for t in self.header.tensors]


@dataclass(slots=True)
class Checkpoint:
    """An open checkpoint, whose headers are read."""

    path: Path
    is_file: bool
    """Whether it is one safetensors file, not a folder."""
    weights: list[WeightFile]
    others: dict[str, Path]
    """The local file of each file without weights, by its path in the checkpoint."""
    left_out: tuple[str, ...] = ()
    """Paths of the files that do not belong to it, by default or because the caller said so."""
    followed: dict[str, Path] = field(default_factory=dict)
    """Where links lead that leave its folder and were followed, by the path of the link."""
    can_exclude: bool = False
    """Whether the caller has an option to leave files out, which messages may advise."""
    origin: HubId | None = None
    """The repo and commit that it is from."""
    in_memory: bool = False
    """Whether its weights are tensors in memory, not files."""
    tied: dict[str, str] = field(default_factory=dict)
    """Further names of tensors in memory, and the name that each tensor counts under."""
    scopes: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """The tensors by scope and name."""

    def __post_init__(self) -> None:
        for file in self.weights:
            tensors = self.scopes.setdefault(file.scope, {})
            for tensor in file.tensors:
                if tensor.name in tensors:
                    self.close()
                    way_on = f", or leave it out with {exclude_option(file.path)}" if self.can_exclude else ""
                    raise CheckpointError(
                        f"{file.file.name}: tensor {cut(tensor.name)} is also in {tensors[tensor.name].source.name}; "
                        f"two files of one index must not share names: remove the stale shard{way_on}"
                    )
                tensors[tensor.name] = tensor

    def scope(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a scope; a checkpoint with one scope gives that one whatever it is called (spec 10, step 3)."""
        if len(self.scopes) == 1:
            return next(iter(self.scopes.values()))
        return self.scopes.get(name)

    @property
    def kept(self) -> list[str]:
        """Paths of the files without weights that belong to it."""
        left_out = set(self.left_out)
        return [name for name in self.others if name not in left_out]

    @property
    def paths(self) -> list[Path]:
        """The checkpoint's own path and those of all its files."""
        return [self.path, *(file.file.path for file in self.weights), *self.others.values()]

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a weight file was written to since it was opened."""
        for file in self.weights:
            file.file.check_unchanged()

    def close(self) -> None:
        """Close all weight files."""
        for file in self.weights:
            file.file.close()
