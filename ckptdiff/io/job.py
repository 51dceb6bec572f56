"""What a job is: a part of a plan, which anyone may do."""

from __future__ import annotations

from typing import Protocol


class Job(Protocol):
    """What an :class:`Executor` is told to do, and nothing else: a job holds no open file, so that another process can do it."""

    @property
    def nbytes(self) -> int:
        """About how many bytes of tensors it works on."""
