"""Memory of a patch loaded as a model of transformers, and of the same patch applied to the model in place.

    python benchmarks/live_model.py WORKDIR [--layers 14]

Makes a Llama of random weights in bf16 (14 layers: 0.5 GB) and a target with 1 % of them changed, in WORKDIR. Each way runs
in a process of its own, which first loads what it loads anyway (torch, transformers, and for ``apply_`` the model), then says by how
much its peak memory grew. Prints JSON, in MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CHILD = """
import sys, json, torch, transformers
from pathlib import Path
import ckptdiff
from ckptdiff.integrations.transformers import from_pretrained

def memory(key):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]) / 1024

way, base, target, patch = sys.argv[1:]
load = transformers.AutoModelForCausalLM.from_pretrained
if way == "apply_":
    model = load(base)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # out of the mapped file
else:
    transformers.LlamaForCausalLM
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS:")
if way == "apply_":
    with ckptdiff.Patch.open(patch) as opened:
        opened.apply_(model)
elif way == "from_pretrained":
    model = from_pretrained(transformers.AutoModelForCausalLM, patch, base)
else:
    model = load(target)
grown = memory("VmHWM:") - before
expected = load(target).state_dict()
assert all(torch.equal(a, expected[name]) for name, a in model.state_dict().items())
print(json.dumps(round(grown)))
"""


def make_models(folder: Path, layers: int) -> None:
    import torch
    import transformers

    import ckptdiff

    torch.manual_seed(0)
    sizes = dict(vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_attention_heads=16, num_hidden_layers=layers)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            bits = parameter.data.view(torch.int16)
            bits += (torch.rand(bits.shape) < 0.01).to(torch.int16)
    model.save_pretrained(folder / "target")
    ckptdiff.make(folder / "base", folder / "target", folder / "patch", codec="sparse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--layers", type=int, default=14)
    arguments = parser.parse_args()
    folder = arguments.workdir / f"live-{arguments.layers}"
    if not (folder / "patch" / "ckptdiff.json").exists():
        make_models(folder, arguments.layers)
    size = sum(path.stat().st_size for path in (folder / "target").glob("*.safetensors")) / 1e6
    found: dict[str, float] = {"model": round(size)}
    for way in ("transformers alone", "from_pretrained", "apply_"):
        command = [sys.executable, "-c", CHILD, way, *(str(folder / name) for name in ("base", "target", "patch"))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
