"""The paper's tables beside ours, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from measure import TOLERANCES, Found
from plan import Scale

PAPER_SPARSITY = {"dpo": "81.4 to 95.2", "grpo": "68.5 to 86.0", "sft": "6 to 15"}
PAPER_BITS = {"dpo": "76.0 to 87.6", "grpo": "68.1", "sft": ""}
PAPER_RANK = {"dpo": "99.8", "grpo": "99.4", "sft": ""}
PRECISIONS = {"fp32": "fp32 masters", "bf16": "pure bf16"}


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def label(name: str) -> str:
    """``grpo-fp32-add-0`` -> ``GRPO, fp32 masters: add-0``."""
    algorithm, precision, rest = name.split("-", 2)
    return f"{algorithm.upper()}, {PRECISIONS[precision]}: {rest}"


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def of_seeds(scale: Scale, algorithm: str, precision: str) -> list[str]:
    return [f"{algorithm}-{precision}-add-{seed}" for seed in range(scale.seeds)]


def sparsity_table(found: Found, scale: Scale) -> str:
    """Tables 1 and 6 of the paper, tables of ours: means over seeds."""
    rows = []
    for algorithm in ("sft", "dpo", "grpo"):
        for precision, words in PRECISIONS.items():
            names = of_seeds(scale, algorithm, precision)
            within = [percent(mean(found["sparsity"][name]["within"][f"{atol:g}"] for name in names)) for atol in TOLERANCES]
            bits = percent(mean(found["sparsity"][name]["bits"] for name in names))
            ulp = percent(mean(found["sparsity"][name]["one ulp"] for name in names), 1)
            rows.append([algorithm.upper(), words, bits, *within, ulp, PAPER_BITS[algorithm], PAPER_SPARSITY[algorithm]])
    head = ["algorithm", "weights", "by bits", *(f"{atol:g}" for atol in TOLERANCES), "of the changed, by one ulp"]
    return table([*head, "paper at 1e-8", "paper at 1e-5"], rows)


def rank_table(found: Found, scale: Scale) -> str:
    """Table 2: the mean rank of updates."""
    rows = []
    for algorithm in ("sft", "dpo", "grpo"):
        for precision, words in PRECISIONS.items():
            ranks = [found["sparsity"][name]["rank"] for name in of_seeds(scale, algorithm, precision)]
            means = [percent(mean(rank[key] for rank in ranks if rank)) for key in ("mean", "random", "effective")]
            rows.append([algorithm.upper(), words, *means, PAPER_RANK[algorithm]])
    return table(["algorithm", "weights", "mean rank", "random updates as dense", "99 % of the energy in", "paper"], rows)


def subnetwork_table(found: Found) -> str:
    """Table 3 and section 4: the model trained within the mask against the one trained whole."""
    rows, base = [], found["base"]["accuracy"]["add"]["greedy"]
    for name, both in found["agreement"].items():
        of, kind = name.rsplit("-", 1)
        right = [percent(found["records"][run]["accuracy"]["greedy"], 1) for run in (of, name)]
        rows.append(
            [label(of), kind, *(percent(both["each other"][key]) for key in ("identical", "1e-05", "1e-04")), percent(base, 1), *right]
        )
        if kind == "sub":
            rows[-1][1] = "theta_sub"
            seed, start = found["seeds"][of]["each other"], both["base"]
            for words, row, accuracy in (
                ("another seed, whole", seed, found["records"][of[:-1] + "1"]["accuracy"]["greedy"]),
                ("the base", start, base),
            ):
                cells = [percent(row[key]) for key in ("identical", "1e-05", "1e-04")]
                rows.append([label(of), words, *cells, percent(base, 1), right[0], percent(accuracy, 1)])
        else:
            rows[-1][1] = "a random mask as dense"
    head = ["theta_full", "against", "identical", "equal at 1e-5", "at 1e-4", "task: base", "theta_full", "the other"]
    return table(head, rows)


def overlap_table(found: Found) -> str:
    """Table 4."""
    rows = []
    for row in found["overlap"]:
        bits, wide = row["bits"], row["1e-05"]
        cells = [
            f"{percent(bits['o1'], 1)} / {percent(bits['o2'], 1)}",
            f"{percent(bits['random_o1'], 1)} / {percent(bits['random_o2'], 1)}",
        ]
        cells += [f"{percent(bits['o1_by_size'], 1)} / {percent(bits['o2_by_size'], 1)}", percent(bits["same_direction"], 1)]
        cells += [
            f"{percent(wide['o1'], 1)} / {percent(wide['o2'], 1)}",
            f"{percent(wide['random_o1'], 1)} / {percent(wide['random_o2'], 1)}",
        ]
        rows.append([row["differ"], label(row["first"]), label(row["second"]), *cells])
    head = ["differ in", "first", "second", "o1 / o2 by bits", "at random", "by size", "same direction", "o1 / o2 at 1e-5", "at random"]
    return table(head, rows)


def ablation_table(found: Found, scale: Scale) -> str:
    """Section 6: what sparsity depends on."""
    rows = []
    for name, record in found["records"].items():
        run = record["run"]
        if run["mask"] or run["seed"] or name.endswith("sort-0"):
            continue
        what = {
            "add-0": "as above",
            "kl": f"KL {run['beta']:g}",
            "noclip": "no clipping",
            "long": f"{run['steps']} steps",
            "own": "its own samples",
            "new": "new prompts",
        }
        rest = name.split("-", 2)[2]
        values = found["sparsity"][name]
        cells = [percent(values["bits"]), percent(values["within"]["1e-05"]), percent(record["accuracy"]["greedy"], 1)]
        rows.append(
            [
                run["algorithm"].upper(),
                PRECISIONS[run["precision"]],
                what.get(rest, f"learning rate {run['rate']:g}"),
                f"{run['rate']:g}",
                *cells,
            ]
        )
    rows.sort(key=lambda row: (row[0], row[1], row[2] != "as above", float(row[3])))
    return table(["algorithm", "weights", "what differs", "learning rate", "sparsity by bits", "at 1e-5", "task, greedy"], rows)


def prediction_table(found: Found) -> str:
    """The paper's open question: can the subnetwork be told early?"""
    rows = []
    for name, guesses in found["predictions"].items():
        for guess in guesses:
            rows.append([label(name), guess["guess"], *(percent(guess[key], 1) for key in ("share", "precision", "recall"))])
    return table(["final subnetwork", "guess", "share of weights", "precision", "recall"], rows)


def curve_table(found: Found, scale: Scale) -> str:
    """Figures 1, 2, 5, 6: the last record of each run."""
    rows = []
    for algorithm in ("sft", "dpo", "grpo"):
        for precision, words in PRECISIONS.items():
            last: dict[str, Any] = found["records"][f"{algorithm}-{precision}-add-0"]["curve"][-1]
            keys = ("sparsity", "ever", "cancelled", "since_last", "gradient_density")
            rows.append([algorithm.upper(), words, *(percent(last[key]) for key in keys)])
    return table(
        ["algorithm", "weights", "unchanged", "ever changed", "changed and back", f"in the last {scale.every} steps", "with a gradient"],
        rows,
    )


def tables(found: Found, scale: Scale) -> str:
    """All of them, in per cent."""
    seconds = sum(record["seconds"]["cpu"] for record in found["records"].values())
    parts = [
        ("Update sparsity (tables 1 and 6), means of the seeds", sparsity_table(found, scale)),
        ("Mean rank of the updates (table 2), means of the seeds", rank_table(found, scale)),
        ("The subnetwork alone (table 3, section 4)", subnetwork_table(found)),
        ("Overlap (table 4)", overlap_table(found)),
        ("While training (figures 1, 2, 5, 6, 7b)", curve_table(found, scale)),
        ("What sparsity depends on (section 6)", ablation_table(found, scale)),
        ("Telling the subnetwork early", prediction_table(found)),
    ]
    count = f"{found['base']['parameters']:,} parameters, {len(found['records'])} runs of {seconds / 60:.1f} minutes of CPU."
    size = f"{count} All figures in per cent."
    return "\n\n".join([size, *(f"### {title}\n\n{text}" for title, text in parts)]) + "\n"
