"""How well one mask tells another."""

from __future__ import annotations

from dataclasses import dataclass


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
        return self.shared / self.elements if self.elements else 0.0

    @property
    def recall(self) -> float:
        """Share of the truth's elements that are in the mask; 0 for an empty truth."""
        return self.shared / self.truth if self.truth else 0.0

    @property
    def random_precision(self) -> float:
        """Expected precision of a random mask."""
        return self.random_shared / self.elements if self.elements else 0.0

    @property
    def random_recall(self) -> float:
        """Expected recall of a random mask."""
        return self.random_shared / self.truth if self.truth else 0.0

    @property
    def precision_by_size(self) -> float | None:
        """Expected precision of a random mask with elements of the same sizes."""
        known = self.shared_by_size is not None and self.elements
        return self.shared_by_size / self.elements if self.shared_by_size is not None and known else None
