"""The tables of ``docs/scale.md``: what large checkpoints cost, out of plans, of what was measured, and of what is assumed.

    python benchmarks/scale_tables.py --plan FOLDER        plans of header-true sparse checkpoints, into benchmarks/scale.json
    python benchmarks/scale_tables.py --fits COST.json     what ``cost_model.py --json COST.json`` fitted, into benchmarks/scale.json
    python benchmarks/scale_tables.py --write              the tables of benchmarks/scale.json, into docs/scale.md

Jobs, bytes and memory are those of ``make --dry-run`` on sparse files of the true sizes; those of ``apply`` follow from the same tensors.
CPU seconds are the fit's. Seconds of wall time are the largest of what each bound alone would take: cores, the medium, the SHA-256 of the
largest file, and what one driver does of each tensor. ``tests/test_scale_page.py`` holds page and JSON together.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ckptdiff
from ckptdiff.patching.work_plan import Work, peak_memory
from ckptdiff.units import byte_size

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "benchmarks" / "scale.json", ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- tables of benchmarks/scale_tables.py -->", "<!-- end of the tables -->"
MODELS = {
    "8 B": (291, 4, "5225x5225"),
    "70 B": (723, 30, "9840x9840"),
    "671 B": (90_427, 163, "3072x4830"),
    "1 T": (90_427, 163, "3072x7200"),
}
"""Tensors, shards, and the shape of a weight: all of one size, in bf16; of the large models every other tensor has scales."""
WORKERS = (1, 4, 16, 64)
Data = dict[str, Any]


def plan(folder: Path) -> Data:
    """The plans of ``make`` for each model."""
    import trillion  # beside this script; it loads the kernels

    plans: Data = {}
    for model, (count, shards, shape) in MODELS.items():
        rows = trillion.rows_of(count if count > 1000 else 2 * count, shards, tuple(map(int, shape.split("x"))))
        if count < 1000:
            rows = {path: [row for row in tensors if row[1] == "BF16"] for path, tensors in rows.items()}
        for side in ("base", "target"):
            trillion.write_sparse(folder / side, rows)
        found = ckptdiff.plan_make(folder / "base", folder / "target", folder / "patch", threads=16)
        largest = max(path.stat().st_size for path in (folder / "target").iterdir())
        plans[model] = asdict(found.work) | {"target": found.target_size, "largest": largest, "shards": shards}
        for side in ("base", "target"):
            shutil.rmtree(folder / side)
    return plans


def checked(rows: list[Data], fits: Data) -> Data:
    """How far the fit of each verb is at most from pairs that it was fitted to, and from those that it has not seen; and their sizes."""
    found: Data = {}
    for verb in fits:
        mine = [row for row in rows if row["verb"] == verb]
        errors = [
            max(abs(predicted(fits[verb]["cpu"], row) / row["cpu"] - 1) for row in mine if row["seen"] is seen) for seen in (True, False)
        ]
        found[verb] = {"fitted": errors[0], "unseen": errors[1], "largest": max(row["bytes"] for row in mine)}
    return found


def predicted(numbers: list[float], row: Data) -> float:
    """CPU seconds by the four numbers of a fit."""
    return sum(number * term for number, term in zip(numbers, (1, row["tensors"], row["blocks"], row["bytes"]), strict=True))


def costs(data: Data, model: str, verb: str) -> Data:
    """What a verb reads, writes and computes for a model: bytes, ranges and seconds."""
    row, share = data["plans"][model], data["assumed"]["patch_share"]
    patch, target = int(share * row["target"]), row["target"]
    read, written = (row["read"], patch) if verb == "make" else (target + 2 * patch, target)
    again = row["hashed"] if verb == "make" else 0
    a, b, *_ = numbers = data["fits"][verb]["cpu"]
    work = Work(row["tensors"], row["jobs"], row["blocks"])
    return {
        "read": read,
        "again": again,
        "written": written,
        "ranges": 2 * row["jobs"] if verb == "make" else row["blocks"] * 2,
        "cpu": predicted(numbers, row | {"bytes": target}),
        "driver": a + b * row["tensors"],
        "sha": row["largest"] / data["sha256"] if verb == "make" else 0.0,
        "memory": peak_memory(work, data["assumed"]["cores"]),
    }


def wall(data: Data, cost: Data, medium: Data, workers: int) -> tuple[float, str]:
    """Seconds of wall time with so many workers, and what bounds them."""
    least = {
        "cores": cost["cpu"] / (workers * data["assumed"]["cores"]),
        "reading": (cost["read"] + cost["again"] * medium["reads_again"]) / min(workers * medium["read"], medium["read_in_all"]),
        "writing": cost["written"] / min(workers * medium["write"], medium["write_in_all"]),
        "requests": cost["ranges"] * medium["latency"] / (workers * medium["requests_at_once"]),
        "SHA-256": cost["sha"],
        "driver": cost["driver"],
    }
    what = max(least, key=lambda name: least[name])
    return least[what], what


def tables(data: Data) -> str:
    """The tables as Markdown."""
    lines = ["| verb | start, s of CPU | µs a tensor | µs a block | GB/s a core | fitted within | pairs not seen within |"]
    lines.append("|---|---|---|---|---|---|---|")
    for verb, found in data["checked"].items():
        a, b, c, d = data["fits"][verb]["cpu"]
        rate, errors = f"{1e-9 / d:.2f}" if d else "-", f"{found['fitted']:.0%} | {found['unseen']:.0%}"
        lines.append(f"| {verb} | {a:.2f} | {1e6 * b:.0f} | {1e6 * c:.0f} | {rate} | {errors} |")
    lines += [
        "",
        "| model | verb | read | once more for SHA-256 | written | ranges | CPU, s | memory, 16 threads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for verb in ("make", "apply"):
            cost = costs(data, model, verb)
            sizes = [byte_size(cost["read"]), byte_size(cost["again"]) if cost["again"] else "-", byte_size(cost["written"])]
            lines.append(
                f"| {model} | {verb} | {' | '.join(sizes)} | {cost['ranges']:,} | {cost['cpu']:,.0f} | {byte_size(cost['memory'])} |"
            )
    for name, medium in data["assumed"]["media"].items():
        heads = " | ".join(f"{count} worker{'s' * (count > 1)}" for count in WORKERS)
        lines += [
            "",
            f"Seconds of wall time, {name} (not measured):",
            "",
            f"| model | verb | {heads} |",
            "|---|---|" + "---|" * len(WORKERS),
        ]
        for model in MODELS:
            for verb in ("make", "apply"):
                bounds = [wall(data, costs(data, model, verb), medium, count) for count in WORKERS]
                lines.append(f"| {model} | {verb} | " + " | ".join(f"{math.ceil(seconds):,} ({what})" for seconds, what in bounds) + " |")
    return "\n".join(lines)


def written_page(page: str, data: Data) -> str:
    """The page with the tables of some data between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{tables(data)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--fits", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    data = json.loads(DATA.read_text())
    if arguments.plan:
        data["plans"] = plan(arguments.plan)
    if arguments.fits:
        found = json.loads(arguments.fits.read_text())
        data |= {"fits": found["fits"], "checked": checked(found["rows"], found["fits"])}
    DATA.write_text(json.dumps(data) + "\n")
    if arguments.write:
        PAGE.write_text(written_page(PAGE.read_text(), data))


if __name__ == "__main__":
    main()
