"""What ckptdiff says of the runs, from their patches and the base: sparsity, rank, overlap, agreement, early guesses of the subnetwork."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from kept import Found
from places import base_of, patch_of, rollouts_of, run_folder
from plan import ALGORITHMS, PRECISIONS, Part, Run, Scale, name_of, runs, seeds_of
from safetensors.torch import load_file

import ckptdiff
from ckptdiff.subnetwork import Mask, smallest_weights

TOLERANCES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""The paper's table 6, and 1e-4 of its section 4."""
PAPER_TOLERANCE = 1e-5


def of_run(run: Run, scale: Scale, out: Path) -> Found:
    """What a run's patch says: of a masked run how near it is to the full one, of all others where they changed the base."""
    if run.mask:
        return agreement(out, run.model, run.of, run.name)
    return sparsity(run, scale, out)


def sparsity(run: Run, scale: Scale, out: Path) -> Found:
    """Shares of weights that stayed, by bits and within tolerances; by module and layer; ranks of all matrices' updates, beside nulls."""
    start, patch = base_of(out, run.model), patch_of(out, run.name)
    central = run.part in ("updates", "size")
    found = ckptdiff.report(start, patch, rank="all" if central else "none", nulls=scale.draws if central else 0, threads=1)
    within = {}
    for atol in TOLERANCES if central else (PAPER_TOLERANCE,):
        totals = ckptdiff.report(start, patch, rank="none", nulls=0, atol=atol, threads=1).totals
        within[f"{atol:g}"] = totals.within_atol / totals.elements
    shares: Found = {"bits": found.totals.sparsity, "within": within}
    if not central:
        return shares
    rank, sizes = found.rank, found.sizes
    return shares | {
        "one ulp": found.totals.one_ulp / max(found.totals.changed, 1),
        "modules": {kind: counts.sparsity for kind, counts in found.modules.items()},
        "layers": {str(layer): counts.sparsity for layer, counts in found.layers.items()},
        "rank": rank and {"mean": rank.rank_share, "random": rank.random_rank_share},
        "nulls": {row.figure: {"value": row.value, "shuffled": row.shuffled.mean, "side": row.side, "z": row.z} for row in found.null_rows},
        "explained": sizes and sizes.explained,
        "updates": sizes and sizes.updates and {"holds": sizes.updates.holds, "median": sizes.updates.exceeded_by(0.5)},
        "exponents": [[row.exponent, row.elements, row.changed] for row in found.exponents] if run.part == "updates" else [],
        "patch": sum(file.stat().st_size for file in patch.rglob("*") if file.is_file()),
    }


def agreement(out: Path, model: str, first: str, second: str) -> Found:
    """The paper's section 4: the share of weights that are equal in two tuned models, of all and of those that the first changed; and the
    cosine of the two updates."""
    start = base_of(out, model)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(k) for k in range(2)]
        for run, folder in zip((first, second), folders, strict=True):
            ckptdiff.apply(start, patch_of(out, run), folder, threads=1)
        row = ckptdiff.compare(*folders, atol=(PAPER_TOLERANCE, 1e-4), threads=1)
        base, a, b = (_weights(folder) for folder in (start, *folders))
    changed = a != base
    near = (a - b).abs() <= PAPER_TOLERANCE
    return {
        "identical": row.identical / row.elements,
        "1e-05": row.within[0] / row.elements,
        "0.0001": row.within[1] / row.elements,
        "of changed": float((near & changed).sum() / changed.sum()),
        "cosine": float(torch.nn.functional.cosine_similarity(a - base, b - base, dim=0)),
    }


def _weights(folder: Path) -> torch.Tensor:
    """All weights of a checkpoint in a row, in float64, which holds the difference of any two of bf16 exactly enough to compare."""
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(load_file(folder / "model.safetensors").items())])


def overlap(out: Path, first: str, second: str) -> Found:
    """The paper's table 4, at its tolerance of 1e-5 and by bits; by bits also beside chance by size."""
    found: Found = {}
    names = ("o1", "o2", "random_o1", "random_o2", "o1_by_size", "o2_by_size", "o1_excess", "o2_excess", "z", "same_direction")
    for key, atol in (("bits", 0.0), ("1e-05", PAPER_TOLERANCE)):
        pair = ckptdiff.overlap([patch_of(out, first), patch_of(out, second)], base_of(out, "small"), atol=atol, threads=2).pairs[0]
        found[key] = {name: getattr(pair, name) for name in names}
    return found


def early(run: Run, scale: Scale, out: Path) -> list[Found]:
    """Guesses of a run's subnetwork: by what its first steps changed, by the learning rate, and by the base's smallest weights."""
    start = base_of(out, run.model)
    final = Mask.from_patch(patch_of(out, run.name), start, threads=1)
    elements = json.loads((rollouts_of(out, run.model) / "record.json").read_text())["parameters"]
    steps = [path for path in sorted(run_folder(out, run.name).glob("step-*.safetensors"))]
    guesses = [(f"after {int(path.stem[5:])} steps", Mask.from_patch(path, start, threads=1)) for path in steps]
    guesses += [
        ("learning rate above half an ulp", Mask.predict(start, run.rate, threads=1)),
        ("smallest weights, as many", smallest_weights(start, like=final, threads=1)),
        ("at random, as many", final.random(run.seed, by="tensor")),
    ]
    return [
        {"guess": key, "share": mask.total / elements, "precision": score.precision, "recall": score.recall}
        for key, mask in guesses
        for score in [mask.score(final)]
    ]


def overlap_pairs(scale: Scale) -> list[tuple[str, str, str, int]]:
    """What table 4 compares: another seed, another data set, another algorithm, and all at once; first, second, and the repetition."""
    found = []
    for precision in PRECISIONS:
        for seed in range(scale.seeds):
            after = (seed + 1) % scale.seeds
            for algorithm in ALGORITHMS:
                first = name_of(algorithm, precision, "add", seed)
                found.append(("seed", first, name_of(algorithm, precision, "add", after), seed))
                found.append(("data", first, name_of(algorithm, precision, "sort", seed), seed))
            first = name_of("sft", precision, "add", seed)
            found.append(("algorithm", first, name_of("grpo", precision, "add", seed), seed))
            first = name_of("dpo", precision, "add", after)
            found.append(("seed, data and algorithm", first, name_of("grpo", precision, "sort", seed), seed))
    return found


def other_seeds(scale: Scale, part: Part, out: Path) -> list[Found]:
    """Each full run beside that of the next seed, which is what a mask has to do better than."""
    found = []
    for algorithm in ALGORITHMS:
        small = part == "subnetwork"
        seeds, what, model = (seeds_of(scale, algorithm), "add", "small") if small else (scale.seeds, "large", "large")
        for precision in PRECISIONS:
            names = [name_of(algorithm, precision, what, seed) for seed in range(seeds)]
            pairs = zip(names, [*names[1:], names[0]], strict=True)
            found += [{"first": a, "second": b, **agreement(out, model, a, b)} for a, b in pairs]
    return found


def measure(scale: Scale, out: Path, parts: Sequence[Part]) -> Found:
    """Everything that was run of some parts, for tables, charts and prose."""
    chosen = [run for run in runs(scale) if run.part in parts]
    records = {run.name: json.loads((run_folder(out, run.name) / "record.json").read_text()) for run in chosen}
    found: Found = {
        "parts": list(parts),
        "bases": {model: json.loads((rollouts_of(out, model) / "record.json").read_text()) for model in sorted({r.model for r in chosen})},
        "records": records,
        "other seeds": [row for part in ("subnetwork", "size") if part in parts for row in other_seeds(scale, part, out)],
        "overlap": [],
    }
    if "overlap" in parts:
        for differ, first, second, repetition in overlap_pairs(scale):
            found["overlap"].append({"differ": differ, "first": first, "second": second, "seed": repetition, **overlap(out, first, second)})
    return found
