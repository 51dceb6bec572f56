"""Train only the weights that RL would change: masks, freezing, and records of what training does to the weights. Needs torch.

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711) claim that fine-tuning only the weights that RL changed gives the same model.
A patch is that mask.
"""

from __future__ import annotations

from ckptdiff.errors import UnsupportedError
from ckptdiff.lazy import require, submodules
from ckptdiff.obtaining import how_to_get

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ckptdiff.subnetwork import mask as mask
    from ckptdiff.subnetwork.freeze import Frozen, freeze_outside
    from ckptdiff.subnetwork.mask import Mask
    from ckptdiff.subnetwork.mask_score import MaskScore
    from ckptdiff.subnetwork.smallest import smallest_weights
    from ckptdiff.subnetwork.track import UpdateRecord, UpdateTracker

__all__ = ["Frozen", "Mask", "MaskScore", "UpdateRecord", "UpdateTracker", "freeze_outside", "smallest_weights"]

_MODULES = {
    "Frozen": "freeze",
    "Mask": "mask",
    "MaskScore": "mask_score",
    "UpdateRecord": "track",
    "UpdateTracker": "track",
    "freeze_outside": "freeze",
    "smallest_weights": "smallest",
}
_submodule = submodules(__name__)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            return _submodule(name)
        try:
            require("torch")
        except ImportError:
            raise UnsupportedError(f"training within a mask needs torch; {how_to_get('torch')}") from None
        return getattr(_submodule(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
