"""The records of ``measures.json`` by what they are of, and figures of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from figures import Figure, Table
from kept import Found, restored
from plan import FULL, QUICK, Run, runs

Tables = dict[str, Table]

ALGORITHMS = ("grpo", "dpo", "sft")
PRECISIONS = {"bf16": "pure bf16", "fp32": "fp32 masters"}
PLAIN = ("algorithm", "weights")


class Runs:
    """The records of ``measures.json`` by what they are of."""

    def __init__(self, found: Found) -> None:
        self.found = restored(found)
        self.records: dict[str, Found] = self.found["records"]
        scale = next((scale for scale in (FULL, QUICK) if json.loads(json.dumps(asdict(scale))) == found["scale"]), None)
        if scale is None:
            raise SystemExit("measures.json: was made with another plan than plan.py has now: run run.py with another --out")
        self.planned = [run for run in runs(scale) if run.name in self.records]

    def named(self, algorithm: str, precision: str, what: str) -> list[Found]:
        """Records of all seeds of a run, in the order of the seeds."""
        return [self.records[run.name] for run in self.planned if (run.algorithm, run.precision, run.what) == (algorithm, precision, what)]

    def first(self, algorithm: str, precision: str, what: str) -> Run:
        """The run of the first seed, as it was planned."""
        return next(run for run in self.planned if (run.algorithm, run.precision, run.what) == (algorithm, precision, what))

    def other_seeds(self, algorithm: str, precision: str, what: str) -> list[Found]:
        start = f"{algorithm}-{precision}-{what}-"
        return [row for row in self.found["other seeds"] if row["first"].startswith(start)]


def figure(records: Iterable[Any], value: Callable[[Any], float | None], scale: float = 100.0, digits: int = 2) -> Figure | None:
    """The values of all records; none where one lacks it."""
    values = [value(record) for record in records]
    known = [v for v in values if v is not None]
    return Figure(tuple(known), scale, digits) if known and len(known) == len(values) else None


def present(figures: dict[str, Figure | None]) -> dict[str, Figure]:
    """Those that there are."""
    return {name: found for name, found in figures.items() if found is not None}


def at(*path: Any) -> Callable[[Any], float | None]:
    """The value at a path of keys; None where a key is missing or what it leads to is."""

    def found(value: Any) -> float | None:
        for key in path:
            if value is None or (isinstance(value, dict) and key not in value):
                return None
            value = value[key]
        return None if value is None else float(value)

    return found


def power(number: float) -> str:
    """``1e-5``."""
    return f"{number:g}".replace("e-0", "e-")


def plain_keys() -> Iterable[tuple[str, str, list[str]]]:
    """Algorithm and precision, and how a table says them."""
    for algorithm in ALGORITHMS:
        for precision, words in PRECISIONS.items():
            yield algorithm, precision, [algorithm.upper(), words]
