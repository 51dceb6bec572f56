"""What stands on a side of a comparison: a checkpoint or a patch by its path, URL or id, or tensors or a patch in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.recognition import is_patch
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.errors import CheckpointError, UnsupportedError
from ckptdiff.io.places import place_of
from ckptdiff.live.patch import Patch
from ckptdiff.patching.memory import open_state, state_of
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import open_base

PathLike: TypeAlias = str | os.PathLike[str]
Side: TypeAlias = Any
"""A path, a URL or an id; a state dict or a module; or, where a patch may stand, a :class:`ckptdiff.Patch`."""


def is_path(side: Side) -> bool:
    """Whether a side is named, and not in memory."""
    return isinstance(side, (str, os.PathLike))


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch or numpy: a dict of such is a state dict."""
    return isinstance(value, np.ndarray) or hasattr(type(value), "is_meta")


def is_patch_side(side: Side) -> bool:
    """Whether a side is a patch."""
    return is_patch(side) if is_path(side) else isinstance(side, Patch)


def side_name(side: Side, where: str) -> str:
    """What people call a side; ``where``: what they call one in memory."""
    return place_of(side).name or str(side) if is_path(side) else where


def check_sides(**sides: Side) -> None:
    """Raise CheckpointError for what is no side at all, which is known by the name of its argument."""
    for name, side in sides.items():
        if not (is_path(side) or isinstance(side, (Mapping, Patch)) or hasattr(side, "state_dict")):
            kind = type(side).__name__
            raise CheckpointError(f"{name}: expected a path, an id on the Hub, a state dict, a module or a ckptdiff.Patch, found {kind}")
        if name == "base" and isinstance(side, Patch):
            raise CheckpointError("base: is a patch: give the checkpoint that it was made from, and the patch behind it")


def check_ray_reads(ray: str | None, *sides: Side) -> None:
    """Raise UnsupportedError where a Ray cluster is to read what only this process has."""
    if ray is not None and not all(map(is_path, sides)):
        raise UnsupportedError("tensors and patches in memory are read by this process alone, not by workers of Ray: leave ray out")


@contextmanager
def open_side(side: Side, where: str, selection: Selection | None = None) -> Iterator[Checkpoint]:
    """Open a checkpoint, or tensors in memory, which ``where`` names in messages."""
    if not is_path(side):
        yield open_state(state_of(side, where), where)
        return
    with open_checkpoint(side, selection=selection) as checkpoint:
        yield checkpoint


@contextmanager
def open_patch_side(side: Side) -> Iterator[OpenPatch]:
    """Open a patch, or take one that is open."""
    if isinstance(side, Patch):
        yield side.opened
        return
    with open_patch(side) as patch:
        yield patch


@contextmanager
def open_base_side(base: Side, patch: OpenPatch) -> Iterator[Checkpoint]:
    """Open the base of a patch."""
    if not is_path(base):
        yield open_state(state_of(base, "the base"), "the base")
        return
    with open_base(base, [patch], only_weights=True) as checkpoint:
        yield checkpoint
