"""What ckptdiff says of the runs, from their patches and the base: sparsity, rank, overlap, agreement, early guesses of the subnetwork."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from plan import Run, Scale, runs

import ckptdiff
from ckptdiff.subnetwork import Mask, smallest_weights

TOLERANCES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""The paper's table 6, and 1e-4 of its section 4."""
Found = dict[str, Any]


def patch(out: Path, name: str) -> Path:
    """A run's."""
    return out / "runs" / name / "patch"


def sparsity(out: Path, name: str) -> Found:
    """Shares of weights that stayed, by bits and within tolerances; by module and layer; ranks of all matrices' updates."""
    found = ckptdiff.report(out / "base", patch(out, name), rank="all", nulls=0, threads=2)
    within = {}
    for atol in TOLERANCES:
        totals = ckptdiff.report(out / "base", patch(out, name), rank="none", atol=atol, threads=2).totals
        within[f"{atol:g}"] = totals.within_atol / totals.elements
    rank = found.rank
    return {
        "bits": found.totals.sparsity,
        "within": within,
        "one ulp": found.totals.one_ulp / max(found.totals.changed, 1),
        "modules": {kind: counts.sparsity for kind, counts in found.modules.items()},
        "layers": {str(layer): counts.sparsity for layer, counts in found.layers.items()},
        "rank": rank and {"mean": rank.rank_share, "random": rank.random_rank_share, "effective": rank.effective_share},
        "exponents": [[row.exponent, row.elements, row.changed] for row in found.exponents],
        "patch": sum(file.stat().st_size for file in patch(out, name).rglob("*") if file.is_file()),
    }


def agreement(out: Path, first: str, second: str) -> Found:
    """The paper's section 4: the share of weights that are equal in two tuned models, and in the first and the base."""
    with tempfile.TemporaryDirectory() as name:
        models = [Path(name) / str(k) for k in range(2)]
        for run, model in zip((first, second), models, strict=True):
            ckptdiff.apply(out / "base", patch(out, run), model, threads=2)
        rows = [ckptdiff.compare(models[0], other, atol=(1e-5, 1e-4), threads=2) for other in (models[1], out / "base")]
    return {
        key: {"identical": row.identical / row.elements, "1e-05": row.within[0] / row.elements, "1e-04": row.within[1] / row.elements}
        for key, row in zip(("each other", "base"), rows, strict=True)
    }


def overlap(out: Path, first: str, second: str) -> Found:
    """The paper's table 4, at its tolerance of 1e-5 and by bits; by bits also what chance by size gives."""
    found: Found = {}
    for key, atol in (("bits", 0.0), ("1e-05", 1e-5)):
        pair = ckptdiff.overlap([patch(out, first), patch(out, second)], out / "base", atol=atol, threads=2).pairs[0]
        found[key] = {
            name: getattr(pair, name) for name in ("o1", "o2", "random_o1", "random_o2", "o1_by_size", "o2_by_size", "same_direction")
        }
    return found


def predictions(out: Path, name: str, scale: Scale) -> list[Found]:
    """Guesses of a run's subnetwork by what its first steps changed, and by the base's smallest weights: precision and recall."""
    final = Mask.from_patch(patch(out, name), out / "base", threads=2)
    folder, elements = out / "runs" / name, json.loads((out / "rollouts" / "record.json").read_text())["parameters"]
    early = [
        (f"after {step} steps", Mask.from_patch(folder / f"step-{step:04}.safetensors", out / "base", threads=2)) for step in scale.marks
    ]
    guesses = [*early, ("smallest weights", smallest_weights(out / "base", like=final, threads=2)), ("at random", final.random(seed=0))]
    return [
        {"guess": key, "share": mask.total / elements, "precision": mask.precision(final), "recall": mask.recall(final)}
        for key, mask in guesses
    ]


def pairs(scale: Scale) -> list[tuple[str, str, str]]:
    """What table 4 compares: another seed, another data set, and all at once; each with what differs."""
    found = []
    for precision in ("fp32", "bf16"):
        for algorithm in ("sft", "dpo", "grpo"):
            first = f"{algorithm}-{precision}-add-0"
            found += [("seed", first, f"{algorithm}-{precision}-add-{seed}") for seed in range(1, scale.seeds)]
            found.append(("data", first, f"{algorithm}-{precision}-sort-0"))
        found.append(("algorithm", f"sft-{precision}-add-0", f"grpo-{precision}-add-0"))
        found.append(("seed, data, algorithm", f"dpo-{precision}-add-1", f"grpo-{precision}-sort-0"))
    return found


def measure(scale: Scale, out: Path) -> Found:
    """Everything, for the tables and charts."""
    planned: list[Run] = runs(scale)
    full = [run for run in planned if not run.mask]
    masked = [run for run in planned if run.mask]
    guessed = [run.name for run in full if run.seed == 0 and run.name.endswith("-add-0")]
    return {
        "records": {run.name: json.loads((out / "runs" / run.name / "record.json").read_text()) for run in planned},
        "base": json.loads((out / "rollouts" / "record.json").read_text()),
        "sparsity": {run.name: sparsity(out, run.name) for run in planned},
        "agreement": {run.name: agreement(out, run.of, run.name) for run in masked},
        "seeds": {run.of: agreement(out, run.of, run.of[:-1] + "1") for run in masked if run.mask == "sub"},
        "overlap": [{"differ": key, "first": a, "second": b, **overlap(out, a, b)} for key, a, b in pairs(scale)],
        "predictions": {name: predictions(out, name, scale) for name in guessed},
    }
