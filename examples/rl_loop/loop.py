"""TRL's GRPO on a small policy, whose rollouts a real vLLM server makes that follows it through a chain; see README.md.

python loop.py WORK --server-python PYTHON [--steps 50] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from chart import draw
from datasets import Dataset
from followers import Followers
from policy import make_policy
from safetensors.torch import load_file
from served import Served
from trl import GRPOConfig, GRPOTrainer

import ckptdiff
from ckptdiff.integrations.trl import ChainWeightTransfer, SyncCallback

PROMPTS = ["def ", "for x in ", "import ", "return ", "class A", "x = ", "if not ", "print("]
COMPLETION = 16
"""Tokens of a rollout."""
GREEDY = 24
"""Tokens of an output that is compared."""


def reward(completions: list[str], **_: Any) -> list[float]:
    """The share of letters that are vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def rollouts(server: Served) -> Any:
    """What TRL asks for completions: the server makes them."""

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        made = server.complete(ids, COMPLETION, 1.0)
        return {"prompt_ids": ids, "completion_ids": [tokens for tokens, _ in made], "logprobs": [values for _, values in made]}

    return rollout


class Printed(transformers.TrainerCallback):
    """A line for each step, and what becomes of the subscribers."""

    def __init__(self, transfer: ChainWeightTransfer, followers: Followers) -> None:
        self._transfer, self._followers = transfer, followers

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        version, updated = self._transfer.synced[-1].version, self._transfer.synced[-1].updated
        self._followers.at(state.global_step)
        if updated is None:
            print(f"{state.global_step:4} nothing changed", flush=True)
            return
        timings = {"encode": version.timings["encode"], **{key: updated.timings[key] for key in ("stage", "apply", "paused")}}
        told = ", ".join(f"{key} {1000 * seconds:.0f} ms" for key, seconds in timings.items())
        share = version.changed / version.units
        print(f"{state.global_step:4} changed {share:.2%}, patch {version.patch_size:,} bytes, {told}", flush=True)


def greedy(server: Served, tokenizer: Any) -> list[Any]:
    """Greedy tokens and logprobs, prompt by prompt."""
    server.post("reset_prefix_cache", {})
    return [server.complete([tokenizer(prompt)["input_ids"]], GREEDY, 0.0) for prompt in PROMPTS]


def full_reloads(server: Served, folder: Path, times: int = 5) -> list[float]:
    """Seconds of pauses in which vLLM reloads all of a checkpoint."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        server.post("pause?mode=keep", {})
        server.post("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        server.post("reset_prefix_cache?reset_running_requests=true", {})
        server.post("resume", {})
        seconds.append(time.perf_counter() - begun)
    return seconds


def check(right: bool, what: str) -> None:
    print(f"{'ok  ' if right else 'FAIL'} {what}", flush=True)
    if not right:
        sys.exit(1)


def train(work: Path, base: Path, server: Served, steps: int) -> tuple[ChainWeightTransfer, Any]:
    """Train, with the server and three subscribers behind; gives the transfer and the trained model."""
    chain = work / "chain"
    transfer = ChainWeightTransfer(chain, server.url, base)
    with Followers(chain, base, steps) as followers:
        options = GRPOConfig(
            str(work / "run"), max_steps=steps, per_device_train_batch_size=16, num_generations=8, max_completion_length=COMPLETION,
            learning_rate=1e-5, lr_scheduler_type="constant", bf16=False, use_cpu=True, report_to=[], save_strategy="no", logging_steps=10,
            model_init_kwargs={"dtype": "float32"}, disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            str(base), reward, args=options, train_dataset=Dataset.from_dict({"prompt": PROMPTS * 8}), rollout_func=rollouts(server),
            callbacks=[SyncCallback(transfer), Printed(transfer, followers)],
        )  # fmt: skip
        trainer.train()
        trained = trainer.model
        identity = transfer.synced[-1].version.identity
        for name, found in followers.ends().items():
            check(found == identity, f"the subscriber that {name} ends with the policy, bit for bit: {found}")
    return transfer, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--server-python", required=True, help="python of an environment with vLLM and ckptdiff")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model", type=Path, help="a causal language model with a tokenizer, in bfloat16; else one is made")
    arguments = parser.parse_args()
    work, begun = arguments.work.resolve(), time.perf_counter()
    for name in ("chain", "run", "base", "final"):
        shutil.rmtree(work / name, ignore_errors=True)
    base = arguments.model.resolve() if arguments.model else work / "base"
    if not arguments.model:
        make_policy(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    final = work / "final"
    print(f"     load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with Served(arguments.server_python, base, work / "server.log") as server:
        print(f"     the server is up after {time.perf_counter() - begun:.0f} s", flush=True)
        before = greedy(server, tokenizer)
        transfer, model = train(work, base, server, arguments.steps)
        model.to(torch.bfloat16).save_pretrained(final)
        tokenizer.save_pretrained(final)
        outputs = greedy(server, tokenizer)
        check(outputs != before, "the server's outputs are not those of the base")
        identity = ckptdiff.identity(load_file(final / "model.safetensors"))
        check(identity == transfer.synced[-1].version.identity, f"the last step of the chain is the trained policy: {identity}")
        reloads = full_reloads(server, final)
    with Served(arguments.server_python, final, work / "fresh.log", plugin=False) as fresh:
        check(greedy(fresh, tokenizer) == outputs, "greedy tokens and logprobs are those of a server freshly loaded from the policy")
    told = [row for row in transfer.synced if row.updated is not None]
    full = (final / "model.safetensors").stat().st_size
    pauses, sizes = [row.updated.timings["paused"] for row in told if row.updated], [row.version.patch_size for row in told]
    print(f"     bytes a step: median {statistics.median(sizes):,.0f} of {full:,} ({statistics.median(sizes) / full:.2%})")
    pause, reload = statistics.median(pauses), statistics.median(reloads)
    print(f"     pause: median {1000 * pause:.0f} ms; full reload {1000 * reload:.0f} ms: {pause / reload:.2f} x")
    for path in draw(told, full, reload, work / "charts"):
        print(f"     {path}")
    print(f"     {time.perf_counter() - begun:.0f} s in all, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
