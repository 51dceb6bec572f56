"""Files and folders are made durable, and moved to their place in one step (spec 10, step 6)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""How some network and FUSE file systems say that they cannot flush folders."""

NO_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""How a file system, a kernel or a sandbox says that it does not know renameat2, or one of its flags."""

NO_UNNAMED = {errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP}
"""How a file system or a kernel says that it has no files without a name."""

AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2
"""Constants of Linux, which Python has no names for."""


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; raises OSError, but not where a file system cannot flush folders."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not os.path.isdir(path):
            raise
    finally:
        os.close(fd)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder and everything in it; raises OSError."""

    def fail(error: OSError) -> None:
        raise error

    if path.is_file():
        sync(path)
        return
    for root, _, names in os.walk(path, onerror=fail):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def move_new(source: Path, target: Path) -> None:
    """Rename a file or folder, without replacing anything.

    Raises:
        FileExistsError: there is something at ``target``, which is left as it is. OSError: renaming fails.
    """
    if _renameat2(source, target, RENAME_NOREPLACE):
        return
    if source.is_dir():
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
        os.rename(source, target)  # does not replace a file, nor a folder that is not empty
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(source, target)


def link_new(target: Path, data: bytes, flush: bool = True) -> bool:
    """Make a file that is written, and flushed, before it has a name: it is there whole, or not at all, and a killed run leaves nothing.

    Returns:
        False where the file system has no files without a name; nothing is done then.

    Raises:
        FileExistsError: there is something at ``target``, which is left as it is. OSError: it cannot be written.
    """
    try:
        fd = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in NO_UNNAMED:
            return False
        raise
    try:
        view = memoryview(data)
        while len(view):
            view = view[os.write(fd, view) :]
        if flush:
            os.fsync(fd)
        try:
            os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=fd)  # which has Python call linkat, and so follow the first
        except FileNotFoundError:  # there is no /proc
            return False
    finally:
        os.close(fd)
    return True


def replace_folder(source: Path, target: Path, aside: Path) -> None:
    """Put a folder in the place of another.

    Both are exchanged in one step; where the system cannot do that, ``target`` is moved to ``aside`` first.

    Raises:
        OSError: renaming fails. If ``target`` is missing then, it is at ``aside``.
    """
    if not _renameat2(source, target, RENAME_EXCHANGE):
        os.rename(target, aside)
        os.rename(source, target)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Rename with flags; returns False where the system does not know them. Raises OSError if renaming fails."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_FLAGS:
        return False
    raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))
