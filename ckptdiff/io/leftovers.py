"""Work folders, which stand beside an output while it is written, and which a run that is killed leaves: their names and how to find them.

A work folder has the name of its output, with ``.`` before it and ``.ckptdiff-`` and eight characters behind it. Its marker file shows
that ckptdiff made it, and is locked while its run lives. In it ``result`` is the new output while it is built, or the replaced one once
both were exchanged; ``old`` is the old output, where the file system can replace a folder only by two renames; ``log`` says which units of
the new output are finished (:mod:`ckptdiff.io.unit_log`).
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path

import xxhash

MARKER, RESULT, OLD, LOG = "ckptdiff-work", "result", "old", "log"
"""Names of the entries of a work folder."""
WORK_PREFIX = ".work.ckptdiff-"
"""How the names of work folders begin that are not for one output."""
MAX_REPEATED = 100
"""How many bytes of an output's name the names of its work folders repeat, at most."""


def work_prefix(out: Path) -> str:
    """How the names of an output's work folders begin. In place of the end of a long name stands its hash."""
    name = os.fsencode(out.name)
    if len(name) > MAX_REPEATED:  # with the hash it is longer than any name that is not cut, so it is no other output's
        return f".{name[:MAX_REPEATED].decode(errors='ignore')}{xxhash.xxh3_64_hexdigest(name)}.ckptdiff-"
    return f".{out.name}.ckptdiff-"


def work_folders(parent: Path, prefix: str) -> list[Path]:
    """The folders in ``parent`` whose names are those of work folders with this prefix; raises OSError."""
    form = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")  # as tempfile makes them
    return sorted(path for path in parent.iterdir() if form.fullmatch(path.name) and _may_be_ours(path, parent))


def _may_be_ours(path: Path, parent: Path) -> bool:
    """Whether a path is a folder that a run of this user may have made."""
    try:
        status, above = path.lstat(), parent.stat()
    except FileNotFoundError:  # its run has just ended
        return False
    shared = above.st_mode & stat.S_ISVTX  # as /tmp, where everybody may make folders of this name
    return stat.S_ISDIR(status.st_mode) and (not shared or status.st_uid == os.geteuid())


def is_marked(folder: Path) -> bool:
    """Whether a folder holds a marker file."""
    try:
        return stat.S_ISREG((folder / MARKER).lstat().st_mode)
    except OSError:
        return False


def old_copy(path: str | os.PathLike[str]) -> Path | None:
    """Where the old output lies, if ``path`` is missing because a run was killed while it replaced it; else None."""
    path = Path(os.path.abspath(path))
    try:
        if os.path.lexists(path) or not path.parent.is_dir():
            return None
        folders = work_folders(path.parent, work_prefix(path))
        return next((folder / OLD for folder in folders if is_marked(folder) and os.path.lexists(folder / OLD)), None)
    except (OSError, ValueError):  # ValueError: a null byte
        return None


def if_gone(path: str | os.PathLike[str]) -> str:
    """What to add to a message that ``path`` does not exist: where it is, if a killed run has moved it or a folder above it aside."""
    for gone in (Path(path), *Path(path).parents):
        old = old_copy(gone)
        if old is not None:
            again = f"mv {shlex.quote(str(old))} {shlex.quote(str(gone))}"
            return f"; a command that was killed while it replaced {gone} left the old one in {old}: run it again, or put it back: {again}"
    return ""
