"""A process that holds the policy as plain tensors, and follows the chain to a step.

python subscriber.py CHAIN BASE STEP

It prints each step that it took, and at the end the identity of what it holds. Killed and started again it begins anew, at the base.
"""

from __future__ import annotations

import sys
import time

from safetensors.torch import load_file

import ckptdiff

if __name__ == "__main__":
    chain, base, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
    state = load_file(f"{base}/model.safetensors")
    subscriber = ckptdiff.Subscriber(chain, at=state, threads=1)
    while (subscriber.step or 0) < last:
        latest = subscriber.latest()
        if latest is None or latest.step == subscriber.step:
            time.sleep(0.1)
        elif latest.identity == subscriber.identity:  # nothing was changed: it has that already
            subscriber.step = latest.step
        else:
            staged = subscriber.stage()
            patches = len(staged.patches)
            staged.apply_(state)
            print(f"step {subscriber.step} by {patches} patches", flush=True)
    print(f"identity {ckptdiff.identity(state)}", flush=True)
