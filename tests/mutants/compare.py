"""Known survivors against what has no fault, on random inputs: python -m tests.mutants.compare --target T [--count N] [--seed S].

Faults of section 7 are tried on random coded blocks, made and mutated by ``tests/fuzz``; others on random patches, sealed again.
Each survivor that agrees on all gets the number in ``survivors.json``; one that does not is printed with the seed and number.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutants import kernels, reader
from tests.mutants.__main__ import SURVIVORS, TARGETS
from tests.mutants.children import alarm, in_child, scratch
from tests.mutants.planting import Fault

BLOCKS = set(
    "Reader decode_raw decode_sparse RawBits share RangeDecoder decode_adaptive number step table decode_static decode_context".split()
)
"""What of the minimal reader decodes blocks."""


def blocks(seed: int, count: int) -> list[kernels.Case]:
    """Random coded blocks, and what the minimal reader makes of them."""
    from tests.fuzz import blocks as fuzz

    plain: Any = reader.module(None)
    rng, found = np.random.default_rng(seed), []
    makers = [("raw", fuzz.make_raw, fuzz.change_bytes), ("sparse", fuzz.make_sparse, fuzz.change_bytes)]
    makers += 3 * [("context", fuzz.make_adaptive, fuzz.change_context), ("context", fuzz.make_static, fuzz.change_context)]
    while len(found) < count:
        codec, make, change = makers[len(found) % len(makers)]
        dtype, base, coded = make(rng)
        if rng.random() < 0.4:
            coded = change(rng, (dtype, base, coded))
        case = kernels.Case(str(len(found)), codec, dtype, base, coded, None)
        case.expected = kernels.by_reader(plain, case)
        found.append(case)
    return found


def scenarios(seed: int, count: int, folder: Path) -> list[reader.Case]:
    """Random scenarios, each mutated from a vector, and what the minimal reader makes of them."""
    from tests.fuzz.containers import TARGETS as CONTAINERS
    from tests.fuzz.vectors import unpack

    plain: Any = reader.module(None)
    rng, found = np.random.default_rng(seed), []
    seeds = {target.name: list(target.seeds()) for target in CONTAINERS}
    while len(found) < count:
        target = CONTAINERS[int(rng.integers(len(CONTAINERS)))]
        data = seeds[target.name][int(rng.integers(len(seeds[target.name])))]
        for _ in range(int(rng.integers(1, 3))):
            data = target.mutate(rng, data)
        parts = unpack(data)
        if not parts:
            continue
        own = folder / str(len(found))
        try:
            for name, content in parts.items():
                (own / name).parent.mkdir(parents=True, exist_ok=True)
                (own / name).write_bytes(content)
        except OSError:
            continue
        roots = list(dict.fromkeys(name.split("/")[0] for name in parts))
        base = [own / root for root in roots if root.startswith("base")]
        patches = sorted(own / root for root in roots if root.startswith("patch"))
        if len(base) != 1 or not patches:
            continue
        try:
            expect, outputs = reader.outcome(plain, base[0], patches, folder / "out" / "out")
        except OSError:
            continue
        found.append(reader.Case(str(len(found)), expect, base[0], patches, outputs, 0))
    return found


def compare(target: str, fault: Fault, cases: list[Any], folder: Path) -> str:
    """Where a mutant differs: "" if nowhere."""

    def work(own: Path, report: Any) -> None:
        if target == "minimal_reader" and isinstance(cases[0], kernels.Case):
            faulty: Any = reader.module(fault)

            def judge(case: Any) -> str:
                return "" if kernels.by_reader(faulty, case) == case.expected else "another outcome"
        else:
            judge = TARGETS[target].judge(fault, own)
        for case in cases:
            alarm(20)
            if wrong := judge(case):
                report({"wrong": f"input {case.name}: {wrong}"})
                return

    rows, ended = in_child(work, folder, 60)
    return next((row["wrong"] for row in rows if "wrong" in row), ended)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.compare")
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--key", action="append")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    known = json.loads(SURVIVORS.read_text())
    survivors = known[arguments.target]
    keys = [key for key in survivors if not arguments.key or key in arguments.key]
    plan = {fault.key: fault for fault in TARGETS[arguments.target].all_faults()}
    different = 0
    with scratch() as folder:
        made: dict[bool, list[Any]] = {}
        for key in keys:
            of_blocks = arguments.target == "kernels" or key.split(": ")[0].split(".")[1] in BLOCKS
            if of_blocks not in made:
                made[of_blocks] = in_fork(of_blocks, arguments.seed, arguments.count, folder)
            wrong = compare(arguments.target, plan[key], made[of_blocks], folder)
            if wrong:
                different += 1
                print(f"{key}\n    seed {arguments.seed}, {wrong}", flush=True)
            else:
                survivors[key]["checked"] = max(survivors[key].get("checked", 0), arguments.count)
    SURVIVORS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({"survivors": len(keys), "different": different, "inputs": arguments.count}))
    sys.exit(bool(different))


def in_fork(of_blocks: bool, seed: int, count: int, folder: Path) -> list[Any]:
    """The inputs, made in a child: what makes them imports the kernels, which no mutant may find imported."""
    place = folder / "inputs"

    def work(own: Path, report: Any) -> None:
        alarm(36_000)
        cases = blocks(seed, count) if of_blocks else scenarios(seed, count, own / "inputs")
        (own / "cases").write_bytes(pickle.dumps(cases))
        report("kept")

    kept = place / str(of_blocks)
    rows, ended = in_child(work, folder, 60, kept)
    if ended or rows != ["kept"]:
        sys.exit(f"no inputs: {ended}")
    return list(pickle.loads((kept / "cases").read_bytes()))


if __name__ == "__main__":
    main()
