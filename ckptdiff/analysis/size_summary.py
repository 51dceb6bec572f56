"""How far the sizes of the base's weights explain where a whole update lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptdiff.analysis.sizes import QUANTILE_SHARES, ExponentCounts, UpdateSizes, densities_explained, explained, infer_updates, pooled


@dataclass(frozen=True, slots=True)
class SizeSummary:
    """What dtype and exponent of the base's weights explain, over all tensors of floats."""

    explained: float
    """R^2 of "changed or not" by dtype and exponent, see :func:`~ckptdiff.analysis.sizes.explained`."""
    densities: float | None
    """R^2 of the densities of matrices, see :func:`~ckptdiff.analysis.sizes.densities_explained`."""
    updates: UpdateSizes | None
    """What the places tell of the size of updates, see :func:`~ckptdiff.analysis.sizes.infer_updates`."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        updates: dict[str, Any] | None = None
        if self.updates is not None:
            quantiles = [{"share": share, "above": self.updates.exceeded_by(share)} for share in QUANTILE_SHARES]
            above = [list(point) for point in self.updates.above]
            updates = {"holds": self.updates.holds, "disagreement": self.updates.disagreement, "above": above, "quantiles": quantiles}
        return {"explained": self.explained, "densities": self.densities, "updates": updates}


def summarize_sizes(
    tensors: Sequence[tuple[str, ExponentCounts | None]], matrices: Sequence[bool], moves: Sequence[tuple[float, int]]
) -> SizeSummary | None:
    """Summarize the counts of all tensors.

    Args:
        tensors: dtype and counts of each.
        matrices: whether its density counts.
        moves: lower end of each bin of |d|, and the number of changed elements in it.

    Returns:
        None where none or all of the elements changed, or no tensor has counts.
    """
    bins = pooled(tensors)
    share = explained(bins.values())
    if share is None:
        return None
    chosen = [tensor for tensor, counts in zip(tensors, matrices, strict=True) if counts]
    return SizeSummary(share, densities_explained(chosen), infer_updates(bins, moves))
