"""The smallest weights as a mask: a guess that takes only the size of the answer from it."""

from __future__ import annotations

from ckptdiff.analysis.pairs import Pair
from ckptdiff.analysis.sides import Side
from ckptdiff.io.parallel import default_threads
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.subnetwork.mask_guesses import is_predicted, rows_of_base, smallest_row
from ckptdiff.subnetwork.mask_rows import Row


def smallest_weights(base: Side, like: Mask, *, threads: int | None = None) -> Mask:
    """A guess without training: as many elements of each tensor as ``like`` has, those with the smallest |weight| in the base.

    In bf16 an update is rounded away where it is less than half an ulp, so that small weights change first. Of integers and complex
    numbers there is no guess.

    Raises:
        CheckpointError: the base cannot be read, or lacks a tensor of the mask, or has it in another shape.
    """
    counts = like.counts

    def smallest(pair: Pair) -> Row:
        return smallest_row(pair, counts[pair.name])

    shapes = {name: like.shapes[name] for name in like.rows}
    found = rows_of_base(base, shapes, smallest, wanted=is_predicted, threads=threads or default_threads())
    return Mask.from_rows({name: row for name, _, row in found}, like.shapes)
