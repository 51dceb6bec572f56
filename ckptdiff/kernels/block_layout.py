"""How a block lies in its tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """``width`` units in a row of the tensor (0: it has no rows); the block's first unit is at ``phase`` of a row."""

    width: int = 0
    phase: int = 0

    def rows(self, units: int) -> int:
        """Rows, whole or not, that so many units lie in."""
        return -(-(self.phase + units) // self.width)


WITHOUT_ROWS = BlockLayout()
