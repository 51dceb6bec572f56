"""What is run: sizes, and every training run by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Algorithm = Literal["sft", "dpo", "grpo"]
Precision = Literal["bf16", "fp32"]
"""What the optimizer steps: bf16 weights, or fp32 master weights (with bf16 autocast), saved as bf16."""


@dataclass(frozen=True)
class Scale:
    """How large and how long.

    Attributes:
        text: characters of the standard library.
        vocabulary, width, layers: of the model.
        base_steps, base_rate: steps of 32 windows of 128 tokens, and the learning rate's peak.
        exercises: prompts of a data set.
        tests: exercises that measure a model.
        steps: optimizer steps of a run.
        every: steps between two records of how the weights moved.
        marks: steps after which a run's patch so far is kept.
        seeds: how many.
        rate, dpo_rate: the learning rate of all runs but those that try others; DPO's, whose loss has no end, is lower.
        rates: the others.
    """

    text: int = 2_000_000
    vocabulary: int = 1024
    width: int = 128
    layers: int = 4
    base_steps: int = 450
    base_rate: float = 3e-3
    exercises: int = 4096
    tests: int = 500
    steps: int = 200
    every: int = 10
    marks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    seeds: int = 3
    rate: float = 1e-5
    dpo_rate: float = 2e-6
    rates: tuple[float, ...] = (1e-6, 1e-4)


FULL = Scale()
QUICK = Scale(
    text=100_000,
    vocabulary=320,
    width=32,
    layers=2,
    base_steps=20,
    exercises=64,
    tests=40,
    steps=4,
    every=2,
    marks=(1, 2),
    seeds=2,
    rate=1e-3,
    dpo_rate=1e-3,
    rates=(1e-4,),
)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        beta: weight of the KL term to the base (DPO: its own beta).
        clip: largest norm of the gradient; 0: any.
        data: of SFT: ``gold`` answers, the base's ``own`` right samples, or ``new``: gold answers to prompts in a form unknown to it.
        mask: train only what ``of``, another run, changed (``sub``), or as many weights of each tensor at random (``random``).
    """

    name: str
    algorithm: Algorithm
    precision: Precision
    steps: int
    rate: float
    task: str = "add"
    seed: int = 0
    beta: float = 0.0
    clip: float = 1.0
    data: Literal["gold", "own", "new"] = "gold"
    mask: Literal["", "sub", "random"] = ""
    of: str = ""


def runs(scale: Scale) -> list[Run]:
    """All of them; those that others wait for come first."""
    found = []
    for precision in ("fp32", "bf16"):
        for algorithm in ("grpo", "dpo", "sft"):
            dpo = algorithm == "dpo"
            plain = Run("", algorithm, precision, scale.steps, scale.dpo_rate if dpo else scale.rate, beta=0.1 if dpo else 0.0)
            found += [replace(plain, name=f"{algorithm}-{precision}-add-{seed}", seed=seed) for seed in range(scale.seeds)]
            found.append(replace(plain, name=f"{algorithm}-{precision}-sort-0", task="sort"))
            found += [replace(plain, name=f"{algorithm}-{precision}-lr{rate:.0e}", rate=rate) for rate in scale.rates]
            if algorithm != "sft":
                of = f"{algorithm}-{precision}-add-0"
                found += [replace(plain, name=f"{of}-{kind}", of=of, mask=kind) for kind in ("sub", "random")]
            elif precision == "fp32":
                found += [replace(plain, name=f"sft-fp32-{kind}", data=kind) for kind in ("own", "new")]
            if algorithm == "grpo":
                found += [replace(plain, name=f"grpo-{precision}-kl", beta=0.05), replace(plain, name=f"grpo-{precision}-noclip", clip=0.0)]
    long = next(run for run in found if run.name == "grpo-fp32-add-0")
    return [replace(long, name="grpo-fp32-long", steps=3 * scale.steps), *found]
