"""What training within a mask, and tracking updates, add to a step.

    python benchmarks/subnetwork.py [--dtype float32] [--steps 30] [--every 10]

A Llama of 5.2 million parameters (the size of the real pairs), AdamW with weight decay and clipping, 8 sequences of 128 tokens, one
thread. Three copies take steps in turn: plain, within a random mask of 20 %, with an ``UpdateTracker``. Prints JSON: median and mean
seconds a step, and the means' ratio to the plain one's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
import transformers

from ckptdiff.subnetwork import Mask, UpdateTracker, freeze_outside


def make(dtype: torch.dtype) -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes = dict(vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)).to(dtype)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is slow on CPUs without its instructions"
    )
    parser.add_argument("--every", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: make(getattr(torch, arguments.dtype)) for name in ("plain", "freeze_outside", "UpdateTracker")}
    rng, (model, optimizer) = np.random.default_rng(0), runs["freeze_outside"]
    mask = Mask.from_arrays({name: rng.random(tuple(part.shape)) < 0.2 for name, part in model.named_parameters()})
    freeze_outside(model, mask, optimizer)
    UpdateTracker(*runs["UpdateTracker"], every=arguments.every)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(arguments.steps + 1):
        tokens = torch.randint(0, 4096, (8, 128))
        for name, (model, optimizer) in runs.items():
            begun = time.perf_counter()
            model(tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step:
                seconds[name].append(time.perf_counter() - begun)
    means = {name: statistics.mean(row) for name, row in seconds.items()}
    found = {
        name: {"median_s": statistics.median(row), "mean_s": means[name], "ratio": means[name] / means["plain"]}
        for name, row in seconds.items()
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
