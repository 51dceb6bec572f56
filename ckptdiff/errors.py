"""Every error that ckptdiff raises on purpose.

CkptdiffError            base of all; ``except ckptdiff.CkptdiffError`` catches them all
├── FormatError          the patch breaks a rule of the format
├── UnsupportedError     the patch needs a version, codec, dtype or field that this reader does not know
├── IntegrityError       a stored digest or size does not agree with the bytes it covers
├── BaseMismatchError    the base is not the one the patch was made from
├── CheckpointError      a checkpoint cannot be read, or is not one
├── OutputError          the output cannot be written where it is wanted
├── StoreError           the store of a chain cannot be read or written
├── ResourceError        this machine lacks memory or threads, or a library cannot be loaded
└── HubError             the Hub refuses, lacks something, or cannot be reached
    └── RevisionError    a repo exists, but not the revision of it that was asked for

Each has ``kind``, a short stable word (spec section 13 for the first four) that scripts can branch on.
"""

from __future__ import annotations

from typing import Literal

SHOWN = 80
"""How many characters of a name, or of other text out of a file, a message shows."""


def cut(text: object) -> str:
    """Text out of a file, for messages: at most :data:`SHOWN` characters of it, since anybody may have written the file."""
    text = str(text)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def visible(text: str) -> str:
    """Text for a terminal: characters that cannot be seen, or that a terminal would obey, are written as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


class CkptdiffError(Exception):
    """Base of every error that ckptdiff raises on purpose."""

    kind = "error"


class FormatError(CkptdiffError):
    """The patch breaks a rule of the format."""

    kind = "format"


class UnsupportedError(CkptdiffError):
    """The patch needs a version, codec, dtype or field that this reader does not know."""

    kind = "unsupported"


class IntegrityError(CkptdiffError):
    """A stored digest or size does not agree with the bytes it covers."""

    kind = "integrity"


class BaseMismatchError(CkptdiffError):
    """The base is not the one the patch was made from; ``kind`` is ``wrong_base`` or ``already_target``."""

    def __init__(self, message: str, kind: Literal["wrong_base", "already_target"] = "wrong_base") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(CkptdiffError):
    """A checkpoint (or a file of a patch) cannot be read, or is not what it should be."""

    kind = "checkpoint"


class OutputError(CkptdiffError):
    """The output cannot be written where it is wanted."""

    kind = "output"


class StoreError(CkptdiffError):
    """The store of a chain, a folder or a URL, cannot be read or written, or lacks something."""

    kind = "store"


class ResourceError(CkptdiffError):
    """This machine lacks memory or threads, or a library cannot be loaded."""

    kind = "resources"


class HubError(CkptdiffError):
    """The Hub refuses, lacks something, or cannot be reached."""

    kind = "hub"


class RevisionError(HubError):
    """A repo exists on the Hub, but not the revision of it that was asked for."""
