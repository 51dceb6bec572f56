"""What stands beside an output while it is written, and what a run that was killed has left there: names, and how they are read.

A work folder lies beside the output and is called as the output, with ``.`` before it and ``.ckptdiff-`` and eight characters after.
Its marker says that it is ours, and is locked as long as its run lives. ``result`` is what is being built, or after an exchange what
was replaced; ``old`` is the old output, on file systems that replace a folder in two renames only.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path

import xxhash

MARKER, RESULT, OLD = "ckptdiff-work", "result", "old"
MOST = 100
"""Bytes of an output's name that those of its work folders repeat."""


def work_prefix(out: Path) -> str:
    """What the names of an output's work folders begin with; a long name is cut, and its hash makes up for that."""
    name = os.fsencode(out.name)
    if len(name) > MOST:  # what stands for it is longer than MOST too, so it is no other output's
        return f".{name[:MOST].decode(errors='ignore')}{xxhash.xxh3_64_hexdigest(name)}.ckptdiff-"
    return f".{out.name}.ckptdiff-"


def work_folders(parent: Path, prefix: str) -> list[Path]:
    """The folders in ``parent`` whose names have exactly the form of ours; raises OSError."""
    form = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")  # as tempfile makes them
    return sorted(path for path in parent.iterdir() if form.fullmatch(path.name) and _may_be_ours(path, parent))


def _may_be_ours(path: Path, parent: Path) -> bool:
    try:
        found, above = path.lstat(), parent.stat()
    except FileNotFoundError:  # its run has just ended
        return False
    return stat.S_ISDIR(found.st_mode) and (not above.st_mode & stat.S_ISVTX or found.st_uid == os.geteuid())  # /tmp is everybody's


def is_marked(folder: Path) -> bool:
    """Whether a folder has our marker."""
    try:
        return stat.S_ISREG((folder / MARKER).lstat().st_mode)
    except OSError:
        return False


def old_copy(path: str | os.PathLike[str]) -> Path | None:
    """Where the old output lies if ``path`` is gone since a run was killed while it replaced it; None otherwise."""
    path = Path(os.path.abspath(path))
    try:
        if os.path.lexists(path) or not path.parent.is_dir():
            return None
        folders = work_folders(path.parent, work_prefix(path))
        return next((folder / OLD for folder in folders if is_marked(folder) and os.path.lexists(folder / OLD)), None)
    except (OSError, ValueError):  # ValueError: a null byte
        return None


def if_gone(path: str | os.PathLike[str]) -> str:
    """What to add to a message that ``path`` does not exist: where it is, if a killed run has left it or what holds it aside."""
    for gone in (Path(path), *Path(path).parents):
        old = old_copy(gone)
        if old is not None:
            again = f"mv {shlex.quote(str(old))} {shlex.quote(str(gone))}"
            return f"; a command that was killed while it replaced {gone} left the old one in {old}: run it again, or put it back: {again}"
    return ""
