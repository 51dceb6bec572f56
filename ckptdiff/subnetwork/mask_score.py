"""How well one mask tells another."""

from __future__ import annotations

from dataclasses import dataclass

from ckptdiff.analysis.overlap import ratio


@dataclass(frozen=True, slots=True)
class MaskScore:
    """How well a mask tells the elements of another one, the truth, beside a random mask as large."""

    elements: int
    """Elements of the mask."""
    truth: int
    """Elements of the truth."""
    shared: int
    """Elements of both."""
    random_shared: float
    """Expected elements of both, had the mask as many elements of each tensor, chosen at random."""
    shared_by_size: float | None = None
    """The same, had it as many elements of each tensor and size of the base's weight (binary exponent); None without a base."""

    @property
    def precision(self) -> float:
        """Share of the mask's elements that are in the truth; 0 for an empty mask."""
        return ratio(self.shared, self.elements)

    @property
    def recall(self) -> float:
        """Share of the truth's elements that are in the mask; 0 for an empty truth."""
        return ratio(self.shared, self.truth)

    @property
    def random_precision(self) -> float:
        """Expected precision of a random mask."""
        return ratio(self.random_shared, self.elements)

    @property
    def random_recall(self) -> float:
        """Expected recall of a random mask."""
        return ratio(self.random_shared, self.truth)

    @property
    def precision_by_size(self) -> float | None:
        """Expected precision of a random mask with elements of the same sizes; None without a base, or for an empty mask."""
        return None if self.shared_by_size is None or not self.elements else self.shared_by_size / self.elements
