"""How a block lies in its tensor."""

from __future__ import annotations

from typing import NamedTuple


class BlockLayout(NamedTuple):
    """The rows of a block's tensor, whose last dimension is a row. A tuple, since kernels take it."""

    width: int = 0
    """Units in a row of the tensor; 0 if it has no whole rows."""
    phase: int = 0
    """Number in its row of the block's first unit."""

    def rows(self, units: int) -> int:
        """In how many rows, whole or not, a block of so many units lies."""
        return -(-(self.phase + units) // self.width)


WITHOUT_ROWS = BlockLayout()
