"""Mutate valid patches at random and apply them: run by test_mutations.py in a process of its own, with limited memory.

    python -m tests.support.mutations FOLDER COUNT SEED

prints one JSON object: how often each outcome occurred, and the peak RSS in MB. Any other exception ends it.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import xxhash

import ckptdiff
from ckptdiff.format.patch_file import PatchParts, write_patch_file
from ckptdiff.format.table import Table
from ckptdiff.io.source import read_bytes
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import bf16, perturb, random_tensor, tree, write, write_sharded

LIMIT = 3 << 29
"""Bytes of address space: what the process maps at its start, and 1 GB."""


def inputs(folder: Path) -> tuple[Path, Path, Path, Path]:
    """A base and a target file, and a base and a target folder, that use every kind of entry."""
    rng = np.random.default_rng(7)
    weights = bf16(rng.normal(0, 0.02, (64, 128)))
    base = {"w": weights, "i": random_tensor(rng, "I64", (300,)), "h": bf16(rng.normal(0, 0.02, (8, 16))), "gone": bf16([1.0])}
    target = {
        "w": perturb(rng, weights, 0.02),
        "i": perturb(rng, base["i"], 0.3),
        "h": (lambda t: (t[0], (10, 16), t[2] + bytes(64)))(perturb(rng, base["h"], 0.1)),
        "n": random_tensor(rng, "F32", (40,)),
    }
    target["c"] = target["n"]
    write(folder / "base.safetensors", base)
    write(folder / "target.safetensors", target, {"format": "pt"})
    for name, tensors in (("base", base), ("target", target)):
        names = sorted(tensors)
        shards = {
            "model-00001-of-00002.safetensors": {n: tensors[n] for n in names[:2]},
            "model-00002-of-00002.safetensors": {n: tensors[n] for n in names[2:]},
        }
        write_sharded(folder / name, shards)
        (folder / name / "config.json").write_text(json.dumps({"a": name, "text": "x" * 300}))
    (folder / "target" / "new.txt").write_text("new " * 50)
    return folder / "base.safetensors", folder / "target.safetensors", folder / "base", folder / "target"


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip bits, cut, splice, or overwrite what may be a length."""
    out, kind = bytearray(data), rng.integers(6)
    at = int(rng.integers(max(len(out), 1)))
    if kind == 0 and out:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        width = int(rng.choice([1, 2, 4, 8]))
        value = int(rng.choice([0, 1, 255, 65535, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
        out[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    elif kind == 3:
        del out[at : at + int(rng.integers(1, 64))]
    elif kind == 4:
        begin = int(rng.integers(max(len(out), 1)))
        out[at:at] = out[begin : begin + int(rng.integers(1, 64))]
    else:
        digits = [i for i, byte in enumerate(out) if 48 <= byte <= 57]
        if digits:
            out[digits[int(rng.integers(len(digits)))]] = 48 + int(rng.integers(10))
    return bytes(out)


def mutate_resealed(rng: np.random.Generator, patch: Path, out: Path) -> None:
    """Mutate payloads of a patch file and make all digests around them right again, so that the codecs meet the fault."""
    with open_patch(patch) as opened:
        file = opened.files[0]
        entries, payloads = [], []
        for entry in file.table.entries:
            if entry.has_payload:
                payload = read_bytes(file.source, file.payloads.offsets[entry.name], entry.payload_size)
                if rng.random() < 0.7:
                    payload = mutate(rng, payload)
                payloads.append(payload)
                entry = entry._replace(blocks=(len(payload),), payload_digest=xxhash.xxh3_64_digest(payload))
            entries.append(entry)
        parts = PatchParts(Table.of(tuple(entries), file.table.removed), file.header.raw, None, payloads)
        with open(out, "wb") as built:
            write_patch_file(built, file.metadata, parts)


def peak_rss_mb() -> float:
    """This program's own peak: ``ru_maxrss`` would count that of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def run(folder: Path, count: int, seed: int) -> dict[str, object]:
    base, target, base_folder, target_folder = inputs(folder)
    ckptdiff.make(base, target, folder / "patch.safetensors")
    ckptdiff.make(base_folder, target_folder, folder / "patch")
    expected = {"file": tree(target), "folder": tree(target_folder)}
    files = [path for path in sorted((folder / "patch").rglob("*")) if path.is_file()]
    rng, outcomes = np.random.default_rng(seed), Counter[str]()
    for k in range(count):
        kind = ("file", "folder", "file", "resealed")[k % 4]
        mutant, out = folder / "mutant", folder / "out"
        if kind == "resealed":
            mutate_resealed(rng, folder / "patch.safetensors", mutant)
        elif kind == "file":
            mutant.write_bytes(mutate(rng, (folder / "patch.safetensors").read_bytes()))
        else:
            shutil.copytree(folder / "patch", mutant)
            chosen = mutant / files[int(rng.integers(len(files)))].relative_to(folder / "patch")
            chosen.write_bytes(mutate(rng, chosen.read_bytes()))
        try:
            ckptdiff.apply(base_folder if kind == "folder" else base, mutant, out, threads=1)
        except ckptdiff.CkptdiffError as error:
            outcomes[error.kind] += 1
            assert not out.exists(), f"mutation {k}: {error}"
        else:
            outcomes["exact"] += 1
            assert tree(out) == expected["folder" if kind == "folder" else "file"], f"mutation {k}: a wrong result"
        for path in (mutant, out):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["base", "base.safetensors", "patch", "patch.safetensors", "target", "target.safetensors"], left
    return {"outcomes": dict(outcomes), "peak_rss_mb": peak_rss_mb()}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
