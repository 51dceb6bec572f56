"""Plant faults and see which survive: python -m tests.mutants --target minimal_reader|kernels --seed S --count N. See README.md."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.mutants import kernels, reader
from tests.mutants.children import first_failure, in_child, scratch
from tests.mutants.planting import Fault

TARGETS: dict[str, Any] = {"minimal_reader": reader, "kernels": kernels}
FILES = {"minimal_reader": [str(reader.FILE)], "kernels": [str(kernels.FOLDER / f"{name}.py") for name in kernels.DECODERS]}
SURVIVORS = Path(__file__).with_name("survivors.json")
KILLERS = Path(__file__).with_name("killers.json")
"""For each target the cases that kill most, in the order in which they are tried where no lines are traced."""
PATIENCE = 3.0
"""Seconds of processor time that a mutant may take for any case, and twelve times what it takes without a fault beside."""
LARGE = 20_000
"""Bytes of a case that may take three seconds without a fault, where no lines are traced."""


def listed(target: str) -> dict[str, Any]:
    """The survivors that are known, with the reason why nothing kills them."""
    return dict(json.loads(SURVIVORS.read_text()).get(target, {})) if SURVIVORS.exists() else {}


def sample(target: str, seed: int, count: int) -> list[Fault]:
    """The first so many of a target's faults in the order of a seed."""
    every = list(TARGETS[target].all_faults())
    random.Random(seed).shuffle(every)
    return every[:count]


def trace(target: str, cases: list[Any], folder: Path) -> dict[str, Any]:
    """Of each case which lines of the target it executes, and the seconds of processor time that it takes (more than without a trace)."""

    def work(own: Path, report: Any) -> None:
        import coverage

        cover = coverage.Coverage(data_file=None, include=FILES[target], config_file=False)
        cover.start()
        judge = TARGETS[target].judge(None, own)
        for case in cases:
            cover.switch_context(case.name)
            start = time.process_time()
            wrong = judge(case)
            report({"case": case.name, "seconds": time.process_time() - start, "wrong": wrong})
        cover.stop()
        data = cover.get_data()
        for path in data.measured_files():
            lines: dict[str, list[int]] = {}
            for line, names in data.contexts_by_lineno(path).items():
                for name in names:
                    lines.setdefault(name, []).append(line)
            report({"module": Path(path).stem, "lines": lines})

    rows, ended = in_child(work, folder, 3600)
    if ended or any(row.get("wrong") for row in rows):
        sys.exit(f"without a fault: {ended} {[row for row in rows if row.get('wrong') or 'crash' in row]}")
    seconds = {row["case"]: row["seconds"] for row in rows if "case" in row}
    return {"seconds": seconds, "lines": {row["module"]: row["lines"] for row in rows if "module" in row}}


def chosen(fault: Fault, cases: list[Any], traced: dict[str, Any] | None, kills: Counter[str], order: list[str]) -> list[Any]:
    """The cases that may kill a mutant, the likeliest for the time that they take first."""
    if traced is None:
        rank = {name: k for k, name in enumerate(order)}
        return sorted(cases, key=lambda case: (rank.get(case.name, len(rank)), case.size))
    lines, wanted = traced["lines"].get(fault.key.split(".")[0], {}), set(fault.lines)
    able = [case for case in cases if not wanted or wanted & lines.get(case.name, set())]
    return sorted(able, key=lambda case: traced["seconds"][case.name] / (1 + kills[case.name]))


def usual(case: Any) -> float:
    """About the seconds that a case takes, at most."""
    return 3.0 if case.size > LARGE else 0.1


def run(target: str, plan: list[Fault], traced_too: bool, out: Path | None) -> list[dict[str, Any]]:
    """Each fault with what killed it, or none."""
    results, kills = [], Counter[str]()
    with scratch() as folder:
        cases = TARGETS[target].cases(folder / "cases")
        traced = trace(target, cases, folder) if traced_too else None
        if traced:
            traced["lines"] = {m: {name: set(lines) for name, lines in by.items()} for m, by in traced["lines"].items()}
        order = json.loads(KILLERS.read_text()).get(target, []) if KILLERS.exists() else []
        seconds = traced["seconds"] if traced else {}
        for fault in plan:
            able = chosen(fault, cases, traced, kills, order)

            def work(own: Path, report: Any, fault: Fault = fault, able: list[Any] = able) -> None:
                judge = TARGETS[target].judge(fault, own)
                first_failure(able, judge, lambda case: PATIENCE + 12 * seconds.get(case.name, usual(case)))(own, report)

            start = time.time()
            rows, ended = in_child(work, folder, PATIENCE)
            last = next((row["case"] for row in reversed(rows) if "case" in row), "(import)")
            wrong = next((row["wrong"] for row in rows if "wrong" in row), ended)
            survived = not wrong and {"survived": True} in rows
            if not survived:
                kills[last] += 1
            row = {"key": fault.key, "killer": None if survived else last, "how": wrong, "cases": len(able), "line": fault.lines.start}
            results.append(row)
            if out:
                with open(out, "a") as file:
                    file.write(json.dumps({**row, "seconds": round(time.time() - start, 2)}) + "\n")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--out", type=Path, help="a line of JSON for each mutant is appended to this file")
    parser.add_argument("--new", action="store_true", help="without the survivors that are known, and without a trace: quick for a few")
    parser.add_argument("--key", action="append", help="only the faults of this name")
    parser.add_argument("--killers", action="store_true", help="write the cases that killed, in order, to killers.json")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    known = listed(arguments.target)
    plan = sample(arguments.target, arguments.seed, arguments.count)
    if arguments.key:
        plan = [fault for fault in TARGETS[arguments.target].all_faults() if fault.key in arguments.key]
    if arguments.new:
        plan = [fault for fault in plan if fault.key not in known]
    results = run(arguments.target, plan, not arguments.new, arguments.out)
    if arguments.killers:
        kept = json.loads(KILLERS.read_text()) if KILLERS.exists() else {}
        kept[arguments.target] = [name for name, _ in Counter(row["killer"] for row in results if row["killer"]).most_common()]
        KILLERS.write_text(json.dumps(kept, indent=0) + "\n")
    alive = [row["key"] for row in results if row["killer"] is None]
    unknown = [key for key in alive if key not in known]
    print(json.dumps({"mutants": len(results), "killed": len(results) - len(alive), "survivors": len(alive), "unknown": unknown}, indent=1))
    sys.exit(bool(unknown))


if __name__ == "__main__":
    main()
