"""Train only what RL would change: masks, freezing, and what training does to the weights. Needs torch.

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711) claim that fine-tuning only the weights that RL changed gives the same model.
A patch is that mask.
"""

from ckptdiff.errors import UnsupportedError

try:
    import torch  # noqa: F401
except ImportError:
    raise UnsupportedError("training within a mask needs torch: pip install 'ckptdiff[torch]'") from None

from ckptdiff.subnetwork.freeze import Frozen, freeze_outside
from ckptdiff.subnetwork.mask import Mask, smallest_weights
from ckptdiff.subnetwork.track import UpdateRecord, UpdateTracker

__all__ = ["Frozen", "Mask", "UpdateRecord", "UpdateTracker", "freeze_outside", "smallest_weights"]
