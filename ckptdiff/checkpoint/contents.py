"""What an open checkpoint holds: weight files, their tensors by scope (spec 3.1), and the files beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.checkpoint.selection import exclude_option
from ckptdiff.errors import CheckpointError, cut
from ckptdiff.format.dtypes import Bytes
from ckptdiff.format.safetensors import Header
from ckptdiff.hub.ids import HubId
from ckptdiff.io.source import ByteSource, WeightSource


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint: ``shape`` in elements, ``nbytes`` of data at ``offset`` of ``source``."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: ByteSource
    offset: int

    def readinto(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from ``start`` on."""
        self.source.readinto(self.offset + start, out)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file; ``path`` is relative to the checkpoint, with ``/``."""

    path: str
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
    """A checkpoint whose headers are read.

    ``scopes`` maps scope and name to a tensor, ``others`` the path of each file without weights to a local file;
    ``left_out`` are the paths that do not belong to it by default, or as the caller asked; ``followed`` says where links lead that leave
    its folder; ``origin`` is the repo and commit that it is from; ``in_memory`` says that its weights are no files; ``tied`` then maps
    further names of a tensor to the one that it counts under; ``can_exclude`` says that the caller has an option to leave files out, which
    messages may advise.
    """

    path: Path
    is_file: bool
    weights: list[WeightFile]
    others: dict[str, Path]
    left_out: tuple[str, ...] = ()
    followed: dict[str, Path] = field(default_factory=dict)
    can_exclude: bool = False
    origin: HubId | None = None
    in_memory: bool = False
    tied: dict[str, str] = field(default_factory=dict)
    scopes: dict[str, dict[str, Tensor]] = field(default_factory=dict)

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
        """Paths of the other files that belong to it."""
        left_out = set(self.left_out)
        return [name for name in self.others if name not in left_out]

    @property
    def paths(self) -> list[Path]:
        """The checkpoint's own path and those of all its files."""
        return [self.path, *(file.file.path for file in self.weights), *self.others.values()]

    def check_unchanged(self) -> None:
        for file in self.weights:
            file.file.check_unchanged()

    def close(self) -> None:
        for file in self.weights:
            file.file.close()
