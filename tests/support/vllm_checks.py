"""What the acceptance of vLLM's engine shares, offline and over HTTP: the real pairs, prompts, checks that print and end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
DATA = Path(os.environ.get("CKPTDIFF_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
FOLDERS = {"base": "tiny6m-base", "sft": "tiny6m-sft-lr1e-5", "grpo": "tiny6m-grpo-fp32master-lr1e-6", "other": "tiny6m-grpo-lr1e-6"}
MODES = ("move", "sparse", "mirror")
CHAIN = {1: "other", 2: "sft", 3: "grpo"}
PROMPTS = [[5, 17, 300], list(range(40, 75)), [(7 * k) % 3000 + 3 for k in range(160)], [1000, 2, 2, 900]]
"""Token ids; the third is longer than a block of the prefix cache."""


def folder(name: str) -> str:
    return str(DATA / FOLDERS[name]) if name in FOLDERS else name


def check(right: bool, what: str) -> None:
    print(f"{'ok  ' if right else 'FAIL'} {what}", flush=True)
    if not right:
        sys.exit(1)


def refused(what: str, call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except Exception as error:
        told = str(error)
        check(all(word in told for word in words), f"{what}: refused: {type(error).__name__}: {told[:230]}")
    else:
        check(False, f"{what}: refused")
