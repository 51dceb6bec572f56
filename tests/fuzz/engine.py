"""What a fuzz target is, and the loop that needs no fuzzer: inputs by seed and number, the same on every machine.

A target turns bytes into an outcome and raises :class:`Disagreement` where the package does not do what the specification,
or a second reader written from it, does. Any other exception is a finding as well.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rng = np.random.Generator


class Disagreement(AssertionError):
    """The package and the reference differ about an input."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an input. ``sealed``: all digests around what was mutated were right, so that the code behind them saw it;
    ``result``: "accepted", or the kind of the error."""

    sealed: bool
    result: str


@dataclass(frozen=True, slots=True)
class Target:
    """``seeds`` gives valid and broken inputs, ``mutate`` makes an input of another that is close to it, ``run`` judges one."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[Rng, bytes], bytes]
    run: Callable[[bytes], Outcome]
    count: int
    """Executions in CI."""


@dataclass(slots=True)
class Tally:
    """Sums over a campaign."""

    executions: int = 0
    sealed: int = 0
    results: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.process_time)

    def add(self, outcome: Outcome) -> None:
        self.executions += 1
        self.sealed += outcome.sealed
        self.results[outcome.result] += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "executions": self.executions,
            "passed_all_digests": self.sealed,
            "results": dict(sorted(self.results.items())),
            "cpu_seconds": round(time.process_time() - self.started, 1),
        }


def loop(target: Target, seed: int, count: int) -> Tally:
    """Run the seeds, then ``count`` mutations in all, each made of a seed or of an earlier input that gave something new.

    Raises:
        Whatever a target raises, with the input as a note.
    """
    rng, tally, pool = np.random.default_rng(seed), Tally(), list(target.seeds())
    seen: set[tuple[str, int]] = set()
    for data in pool:
        tally.add(judge(target, data))
    for _ in range(count):
        data = pool[int(rng.integers(len(pool)))]
        for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
            data = target.mutate(rng, data)
        outcome = judge(target, data)
        tally.add(outcome)
        kind = (outcome.result, len(data).bit_length())  # a poor man's coverage: keep a few of each outcome and size
        if outcome.sealed and kind not in seen:
            seen.add(kind)
            pool.append(data)
    return tally


def judge(target: Target, data: bytes) -> Outcome:
    """Run one input; where an exception escapes the input is kept in a file, which the exception names."""
    try:
        return target.run(data)
    except Exception as error:
        with tempfile.NamedTemporaryFile(prefix=f"ckptdiff-{target.name}-", delete=False) as file:
            file.write(data)
        raise Disagreement(f"{type(error).__name__}: {error}. Again: python -m tests.fuzz {target.name} {file.name}") from error
