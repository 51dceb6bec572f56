"""What ``measures.json`` keeps of all measures: the figures that tables show, to six digits, as short as they can be."""

from __future__ import annotations

from typing import Any

Found = dict[str, Any]

AGREEMENT = ("identical", "1e-05", "0.0001", "of changed", "cosine")
OVERLAP = ("o1", "o1_by_size", "o1_excess", "o2", "o2_excess", "random_o1", "same_direction")
GUESS = ("share", "precision", "recall")
NULLS = ("effective_share", "stable_rank", "top_energy", "principal_overlap")
CURVE = ("end", "half", "ever", "back", "most back", "last", "first")


def trimmed(found: Found) -> Found:
    """The figures of ``measure.measure``; :func:`restored` gives the tables their names back."""
    records = found["records"]
    guesses = next(([guess["guess"] for guess in r["early"]] for r in records.values() if r["early"]), [])
    return rounded(
        found
        | {
            "records": {name: record(one) for name, one in records.items()},
            "other seeds": [[row["first"], *(row[key] for key in AGREEMENT)] for row in found["other seeds"]],
            "overlap": [
                [row["differ"], row["first"], row["second"], row["1e-05"]["o1"], *(row["bits"][key] for key in OVERLAP)]
                for row in found["overlap"]
            ],
            "guesses": guesses,
        }
    )


def record(one: Found) -> Found:
    """What is kept of one run."""
    run, measures, accuracy = one["run"], one["measures"], one["accuracy"]
    kept: Found = {"accuracy": accuracy["right"] / accuracy["of"], "last": last_third(one)}
    if run["mask"]:
        kept["measures"] = [measures[key] for key in AGREEMENT]
    elif run["part"] != "updates":
        kept["measures"] = {"bits": measures["bits"], "within": {"1e-05": measures["within"]["1e-05"]}}
    else:
        nulls = {name: [measures["nulls"][name][key] for key in ("value", "shuffled")] for name in NULLS if name in measures["nulls"]}
        kept["measures"] = {key: value for key, value in measures.items() if key not in ("exponents", "patch", "nulls")} | {"nulls": nulls}
        kept |= {"curve": curve(one["curve"]), "early": [[guess[key] for key in GUESS] for guess in one["early"]]}
        kept |= {"marks": one["marks"]} if one["marks"] else {}
    if run["part"] in ("updates", "subnetwork"):
        kept["levels"] = {level: right / of for level, (right, of) in accuracy["levels"].items()}
    return kept


def last_third(one: Found) -> float | None:
    """Mean over the last third of the steps of the loss that the trainer logged; of GRPO, whose loss says nothing, of the reward."""
    name, after = "reward" if one["run"]["algorithm"] == "grpo" else "loss", one["run"]["steps"] * 2 / 3
    values = [row[name] for row in one["log"] if name in row and row["step"] > after]
    return sum(values) / len(values) if values else None


def curve(rows: list[Found]) -> list[float]:
    """Of the tracker's records, see :data:`CURVE`: unchanged at the end and half way; ever changed; changed and back, at the end and at
    most; changed since the record before, at the end and first."""
    end, half = rows[-1], rows[(len(rows) - 1) // 2]
    most = max(row["cancelled"] for row in rows)
    return [end["sparsity"], half["sparsity"], end["ever"], end["cancelled"], most, end["since_last"], rows[0]["since_last"]]


def restored(found: Found) -> Found:
    """With names in place of places in lists."""
    records = {}
    for name, one in found["records"].items():
        measures = one["measures"]
        if isinstance(measures, list):
            measures = dict(zip(AGREEMENT, measures, strict=True))
        elif "nulls" in measures:
            nulls = {key: dict(zip(("value", "shuffled"), pair, strict=True)) for key, pair in measures["nulls"].items()}
            measures = measures | {"nulls": nulls}
        early = [
            dict(zip(GUESS, row, strict=True)) | {"guess": guess}
            for guess, row in zip(found["guesses"], one.get("early", []), strict=False)
        ]
        records[name] = one | {"measures": measures, "early": early, "curve": dict(zip(CURVE, one.get("curve", []), strict=False))}
    seeds = [{"first": first, **dict(zip(AGREEMENT, row, strict=True))} for first, *row in found["other seeds"]]
    overlap = [
        {"differ": differ, "first": a, "second": b, "1e-05": {"o1": wide}, "bits": dict(zip(OVERLAP, row, strict=True))}
        for differ, a, b, wide, *row in found["overlap"]
    ]
    return found | {"records": records, "other seeds": seeds, "overlap": overlap}


def rounded(value: Any) -> Any:
    """Floats to six digits, in all that a value holds."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value
