"""Limits of all patch files of a patch together (spec section 11), which are checked while they are opened one after the other."""

from __future__ import annotations

from ckptdiff.errors import FormatError
from ckptdiff.format.patch_file import PatchFile

MAX_ALL_TENSORS = 1 << 18
MAX_ALL_PIECES = 1 << 20
MAX_ALL_DESCRIBED = 1 << 27
MAX_ALL_BYTES = 1 << 42
"""Limits of all patch files together (spec 11): tensors, and removed ones; pieces; bytes of tables and headers; bytes to rebuild."""
FOLDER_LIMITS = {
    "tensors": MAX_ALL_TENSORS,
    "removed tensors": MAX_ALL_TENSORS,
    "pieces": MAX_ALL_PIECES,
    "bytes of tables and headers": MAX_ALL_DESCRIBED,
    "bytes to rebuild": MAX_ALL_BYTES,
}


def add_to_sums(sums: dict[str, int], file: PatchFile, where: str) -> None:
    """Add a patch file to the sums of a folder; raises FormatError if they exceed the limits of a patch (spec 11)."""
    table = file.table
    counts = (len(table), len(table.removed), table.pieces, file.described, file.metadata.target_size)
    for (what, limit), count in zip(FOLDER_LIMITS.items(), counts, strict=True):
        sums[what] = sums.get(what, 0) + count
        if sums[what] > limit:
            raise FormatError(f"{where}: with the files before it there are {sums[what]} {what}, expected at most {limit}")
