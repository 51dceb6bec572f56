"""The entry point by which vLLM finds the weight-transfer engine ``ckptdiff`` (group ``vllm.general_plugins``)."""

from __future__ import annotations

from contextlib import suppress

from ckptdiff.lazy import require

NAME = "ckptdiff"
"""The engine's name in vLLM's ``--weight-transfer-config``."""


def register() -> None:
    """Tell vLLM where the engine is; vLLM calls this in each of its processes, perhaps several times. Nothing else is imported.

    An error here would stop vLLM for everybody who has ckptdiff installed: a vLLM too old for weight-transfer engines goes without.
    """
    with suppress(ImportError, AttributeError, ValueError):  # ValueError: it is registered already
        factory = require("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
        factory.register_engine(NAME, "ckptdiff.engines.vllm_engine", "Engine")
