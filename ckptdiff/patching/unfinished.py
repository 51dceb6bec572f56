"""What unfinished work is of: the inputs and options that a log of units names, so that no other run goes on with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.dcp import DcpFile
from ckptdiff.format.digests import xxh128
from ckptdiff.io.source import LocalFile
from ckptdiff.io.unit_log import UnitLog
from ckptdiff.patching.patch import OpenPatch


def make_log(base: Checkpoint, target: Checkpoint, options: Mapping[str, Any], fresh: bool, noted: Callable[[str], None]) -> UnitLog | None:
    """The log of a run of ``make``; None if an input is not on this machine, so that nothing tells whether it has changed."""
    return _log({"command": "make", "base": _stamps(base), "target": _stamps(target), "options": options}, fresh, noted)


def apply_log(
    base: Checkpoint, chain: Sequence[OpenPatch], only: Sequence[str], fresh: bool, noted: Callable[[str], None]
) -> UnitLog | None:
    """The log of a run of ``apply``; None as of :func:`make_log`. The digests of patch files cover all that they hold."""
    patches = [[file.digest.hex() for file in patch.files] for patch in chain]
    return _log({"command": "apply", "base": _stamps(base), "patch": patches, "options": {"only": list(only)}}, fresh, noted)


def _log(key: Mapping[str, Any], fresh: bool, noted: Callable[[str], None]) -> UnitLog | None:
    return UnitLog(key, fresh=fresh, noted=noted) if None not in key.values() else None


def _stamps(checkpoint: Checkpoint) -> list[list[Any]] | None:
    """For each weight file its path, what shows whether its bytes have changed, and the digest of its header."""
    stamps = list[list[Any]]()
    for file in checkpoint.weights:
        if not isinstance(file.file, (LocalFile, DcpFile)):
            return None
        stamps.append([file.path, *file.file.stamp, xxh128(file.header.raw).hex()])
    return stamps
