"""Real checkpoint pairs that lie beside the checkout on the project's machines."""

from __future__ import annotations

from tests.support.checkpoints import SHARED_DATA

BASE = SHARED_DATA / "tiny6m-base"
TARGETS = ["tiny6m-grpo-lr1e-6", "tiny6m-grpo-fp32master-lr1e-6", "tiny6m-sft-lr1e-5"]
