"""What is run: sizes, and every training run by name and part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Algorithm = Literal["sft", "dpo", "grpo"]
Precision = Literal["bf16", "fp32"]
"""What the optimizer steps: bf16 weights, or fp32 master weights (with bf16 autocast), saved as bf16."""
Part = Literal["updates", "subnetwork", "overlap", "ablations", "size"]
"""A part of the experiments, which can be run by itself."""
Against = Literal["sub", "size", "smallest", "random"]
"""A mask beside the full run: what that run changed; as many weights of each tensor and size (binary exponent) at random; the smallest
weights of each tensor; as many weights of each tensor at random."""

CONTROLS: tuple[Against, ...] = ("sub", "size", "random")
ALGORITHMS: tuple[Algorithm, ...] = ("sft", "dpo", "grpo")
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
PARTS: dict[Part, str] = {
    "updates": "sparsity, ranks, layers, the curves of training, and early guesses (sections 3 and 6)",
    "subnetwork": "training within a mask, beside masks of the same sizes (section 4)",
    "overlap": "runs with other seeds, data and algorithms (section 5)",
    "ablations": "learning rate, KL, clipping, length and data (section 6)",
    "size": "section 4 again with a larger model",
}


@dataclass(frozen=True)
class Shape:
    """A model's size, and how its base is trained: steps of 32 windows of 128 tokens, and the learning rate's peak."""

    width: int
    layers: int
    base_steps: int
    base_rate: float = 3e-3


@dataclass(frozen=True)
class Scale:
    """How large and how long.

    Attributes:
        text: characters of the standard library.
        vocabulary: of both models.
        small, large: the models.
        exercises: prompts of a data set.
        tests: held-out exercises that measure a model at most; all there are, if there are less.
        steps, large_steps: optimizer steps of a run of the small and of the large model.
        every: steps between two records of how the weights moved.
        marks: steps after which a run's patch so far is kept, and GRPO's accuracy taken.
        grpo_seeds, seeds: how many for the runs of GRPO that section 4 rests on, and how many of all others.
        rate, dpo_rate: the learning rate of all runs but those that try others; DPO's, whose loss has no end, is lower.
        rates: the others.
        draws: of each null of ranks.
    """

    text: int = 2_000_000
    vocabulary: int = 1024
    small: Shape = Shape(width=128, layers=4, base_steps=260)
    large: Shape = Shape(width=256, layers=4, base_steps=200)
    exercises: int = 4096
    tests: int = 100_000
    steps: int = 120
    large_steps: int = 80
    every: int = 10
    marks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    grpo_seeds: int = 5
    seeds: int = 3
    rate: float = 1e-5
    dpo_rate: float = 2e-6
    rates: tuple[float, ...] = (2e-6, 1e-4)
    draws: int = 3


FULL = Scale()
QUICK = Scale(
    text=100_000,
    vocabulary=320,
    small=Shape(width=32, layers=2, base_steps=20),
    large=Shape(width=64, layers=2, base_steps=20),
    exercises=64,
    tests=40,
    steps=4,
    large_steps=2,
    every=2,
    marks=(1, 2),
    grpo_seeds=2,
    seeds=1,
    rate=1e-3,
    dpo_rate=1e-3,
    rates=(1e-4,),
    draws=2,
)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        part: the part that it is made for; others use it too.
        what: which run of its algorithm, weights and seed it is, as its name says it.
        beta: weight of the KL term to the base (DPO: its own beta).
        clip: largest norm of the gradient; 0: any.
        data: ``gold`` answers, for SFT also the base's ``own`` right samples, or ``new``: prompts in a form unknown to the base.
        mask: train only within a mask, see :data:`Against`, of the run ``of``.
    """

    name: str
    part: Part
    algorithm: Algorithm
    precision: Precision
    steps: int
    rate: float
    what: str
    seed: int = 0
    model: Literal["small", "large"] = "small"
    task: str = "add"
    beta: float = 0.0
    clip: float = 1.0
    data: Literal["gold", "own", "new"] = "gold"
    mask: Against | Literal[""] = ""
    of: str = ""


def name_of(algorithm: Algorithm, precision: Precision, what: str, seed: int) -> str:
    """``grpo-fp32-add-0``."""
    return f"{algorithm}-{precision}-{what}-{seed}"


def seeds_of(scale: Scale, algorithm: Algorithm) -> int:
    """Seeds of the runs that section 4 rests on."""
    return scale.grpo_seeds if algorithm == "grpo" else scale.seeds


def runs(scale: Scale) -> list[Run]:
    """All of them; those that others wait for come first."""
    found: list[Run] = []
    for algorithm in reversed(ALGORITHMS):
        for precision in reversed(PRECISIONS):
            found += _of(scale, algorithm, precision)
    order = list(PARTS)
    return sorted(found, key=lambda run: order.index(run.part))


def _of(scale: Scale, algorithm: Algorithm, precision: Precision) -> list[Run]:
    """The runs of an algorithm and a kind of weights."""
    dpo = algorithm == "dpo"
    plain = Run("", "updates", algorithm, precision, scale.steps, scale.dpo_rate if dpo else scale.rate, "add", beta=0.5 if dpo else 0.0)

    def repeat(run: Run, seeds: int) -> list[Run]:
        return [replace(run, name=name_of(algorithm, precision, run.what, seed), seed=seed) for seed in range(seeds)]

    central = seeds_of(scale, algorithm)
    found = repeat(plain, central)
    for mask in CONTROLS:
        found += _masked(repeat(replace(plain, part="subnetwork", what=f"add-{mask}", mask=mask), central))
    if algorithm == "grpo":
        found += _masked(repeat(replace(plain, part="subnetwork", what="add-smallest", mask="smallest"), scale.seeds))
    found += repeat(replace(plain, part="overlap", what="sort", task="sort"), scale.seeds)
    for variation in _variations(scale, plain):
        found += repeat(replace(variation, part="ablations"), scale.seeds)
    large = replace(plain, part="size", what="large", model="large", steps=scale.large_steps)
    found += repeat(large, scale.seeds)
    for mask in CONTROLS:
        found += _masked(repeat(replace(large, what=f"large-{mask}", mask=mask), scale.seeds))
    return found


def _masked(found: list[Run]) -> list[Run]:
    """Runs of masks, each with the full run of its seed."""
    return [replace(run, of=name_of(run.algorithm, run.precision, run.what.rsplit("-", 1)[0], run.seed)) for run in found]


def _variations(scale: Scale, plain: Run) -> list[Run]:
    """What is changed, one thing at a time."""
    rates = [rate for rate in scale.rates if plain.algorithm == "grpo" or (plain.algorithm == "sft" and rate < plain.rate)]
    found = [replace(plain, what=f"lr{rate:.0e}", rate=rate) for rate in rates]
    if plain.algorithm == "grpo":
        found += [replace(plain, what="kl", beta=0.05), replace(plain, what="noclip", clip=0.0)]
        if plain.precision == "fp32":
            found.append(replace(plain, what="long", steps=3 * plain.steps))
    elif plain.precision == "fp32":
        found.append(replace(plain, what="new", data="new"))
        if plain.algorithm == "sft":
            found.append(replace(plain, what="own", data="own"))
    return found
