"""The paper's tables beside ours: rows of figures, made of ``measures.json``."""

from __future__ import annotations

from figures import Figure, Key, Table, complement, difference
from kept import CURVE, Found
from plan import Run
from records import PLAIN, PRECISIONS, Runs, Tables, at, figure, plain_keys, power, present

MASKS = {
    "sub": "theta_sub: what theta_full changed",
    "size": "random, of the same sizes",
    "smallest": "the smallest weights",
    "random": "random, as many a tensor",
    "seed": "another seed, all weights",
}
TOLERANCES = ("1e-08", "1e-07", "1e-06", "1e-05", "0.0001")
EQUAL = {"identical": "identical", "1e-05": "equal at 1e-5", "0.0001": "at 1e-4", "of changed": "of theta_full's changes, at 1e-5"}
PAIRED = "Another seed is the next one, so that each run is in two pairs, which the intervals take as independent."


def sparsity_table(runs: Runs, number: int) -> Table:
    """Tables 1 and 6 of the paper."""
    columns = ["by bits", *TOLERANCES, "of the changed, by one ulp"]
    table = Table(number, "Update sparsity: weights that stay (the paper's tables 1 and 6)", PLAIN, columns)
    for algorithm, precision, words in plain_keys():
        found = [record["measures"] for record in runs.named(algorithm, precision, "add")]
        figures = {"by bits": figure(found, at("bits"))}
        figures |= {atol: figure(found, at("within", atol)) for atol in TOLERANCES}
        figures["of the changed, by one ulp"] = figure(found, at("one ulp"))
        table.add((algorithm, precision), words, present(figures))
    return table


def rank_table(runs: Runs, number: int) -> Table:
    """Table 2, and what the same update would have with its changes shuffled among weights of the same size."""
    shown = {
        "effective_share": ("99 % of the energy in", 100.0),
        "stable_rank": ("stable rank", 1.0),
        "top_energy": ("energy of the top 8", 100.0),
    }
    columns = ["mean rank", "random, as dense", *(c for name, _ in shown.values() for c in (name, f"{name}: shuffled"))]
    columns += ["changed in principal half", "principal: by size"]
    table = Table(number, "Rank of the updates (the paper's table 2), beside shuffled updates", PLAIN, columns, RANK_NOTE)
    for algorithm, precision, words in plain_keys():
        found = [record["measures"] for record in runs.named(algorithm, precision, "add")]
        figures = {"mean rank": figure(found, at("rank", "mean"))}
        figures["random, as dense"] = figure(found, at("rank", "random"))
        for key, (name, scale) in shown.items():
            figures[name] = figure(found, at("nulls", key, "value"), scale)
            figures[f"{name}: shuffled"] = figure(found, at("nulls", key, "shuffled"), scale)
        figures["changed in principal half"] = figure(found, at("nulls", "principal_overlap", "value"))
        figures["principal: by size"] = figure(found, at("nulls", "principal_overlap", "shuffled"))
        table.add((algorithm, precision), words, present(figures))
    return table


RANK_NOTE = (
    "Means over all matrices, in per cent but for the stable rank. *Shuffled*: the same values at other places of the same tensor, each "
    "among weights of the same binary exponent. *Principal half*: the largest half of the elements of the base's low-rank approximation "
    "(2511.08567)."
)


def place_table(runs: Runs, number: int, kind: str, title: str) -> Table:
    """Figure 3: sparsity by layer or by kind of matrix."""
    some = next(record["measures"][kind] for record in runs.named("grpo", "bf16", "add"))
    table = Table(number, title, PLAIN, list(some))
    for algorithm, precision, words in plain_keys():
        found = [record["measures"][kind] for record in runs.named(algorithm, precision, "add")]
        table.add((algorithm, precision), words, present({place: figure(found, at(place)) for place in some}))
    return table


def size_table(runs: Runs, number: int) -> Table:
    """How far the sizes of weights explain which of them change."""
    table = Table(
        number, "Which weights change: what their sizes explain", PLAIN, ["R² of changed or not", "median update, 1e-6"], SIZE_NOTE
    )
    for algorithm, precision, words in plain_keys():
        found = [record["measures"] for record in runs.named(algorithm, precision, "add")]
        holds = all(m["updates"] and m["updates"]["holds"] for m in found)
        median = figure(found, at("updates", "median"), 1e6) if holds else None
        table.add(
            (algorithm, precision),
            words,
            present({"R² of changed or not": figure(found, at("explained")), "median update, 1e-6": median}),
        )
    return table


SIZE_NOTE = (
    "R² in per cent, of the base's dtype and binary exponent. The median of |update| follows from P(changed | exponent), and stands only "
    "where it agrees with the moves that are seen in every seed."
)


def subnetwork_table(runs: Runs, number: int, what: str, title: str) -> Table:
    """Section 4: what was trained within masks, beside the full run and another seed of it."""
    columns = [*EQUAL.values(), "cosine of updates", "accuracy", "less theta_full's"]
    table = Table(number, title, (*PLAIN, "within"), columns, SUBNETWORK_NOTE)
    for algorithm, precision, words in plain_keys():
        full = runs.named(algorithm, precision, what)
        whole = figure(full, at("accuracy"))
        if whole is None:
            continue
        table.add((algorithm, precision, "full"), [*words, "theta_full: all weights"], {"accuracy": whole})
        for mask, name in MASKS.items():
            rows = (
                runs.other_seeds(algorithm, precision, what)
                if mask == "seed"
                else [r["measures"] for r in runs.named(algorithm, precision, f"{what}-{mask}")]
            )
            if not rows:
                continue
            right = None if mask == "seed" else figure(runs.named(algorithm, precision, f"{what}-{mask}"), at("accuracy"))
            figures = {column: figure(rows, at(key)) for key, column in EQUAL.items()}
            figures |= {"cosine of updates": figure(rows, at("cosine"), 1.0, 4), "accuracy": right}
            if right is not None:
                figures["less theta_full's"] = difference(right, whole)
            table.add((algorithm, precision, mask), [*words, name], present(figures))
    return table


SUBNETWORK_NOTE = (
    "Each masked run has the data, seed and steps of the full run that its mask comes from, as in the paper. *Of theta_full's changes*: of "
    "the weights that the full run changed, those that the other run has as the full run has them. Accuracy: all held-out exercises, the "
    "most likely answer. " + PAIRED
)


def decision_table(runs: Runs, number: int, sections: Table, title: str) -> Table:
    """Section 4 decided: differences of the masks, seed by seed."""
    pairs = {
        "theta_sub - same sizes": ("sub", "size"),
        "same sizes - as many a tensor": ("size", "random"),
        "theta_sub - another seed": ("sub", "seed"),
    }
    right = {
        "theta_sub - same sizes": ("sub", "size"),
        "same sizes - as many a tensor": ("size", "random"),
        "theta_sub - theta_full": ("sub", "full"),
    }
    table = Table(number, title, PLAIN, [*pairs, *(f"accuracy: {name}" for name in right)], DECISION_NOTE)
    for algorithm, precision, words in plain_keys():
        if (algorithm, precision, "sub") not in sections.rows:
            continue
        figures = {}
        for name, (a, b) in pairs.items():
            first, second = sections[algorithm, precision, a], sections[algorithm, precision, b]
            figures[name] = difference(first[EQUAL["of changed"]], second[EQUAL["of changed"]])
        for name, (a, b) in right.items():
            figures[f"accuracy: {name}"] = difference(
                sections[algorithm, precision, a]["accuracy"], sections[algorithm, precision, b]["accuracy"]
            )
        table.add((algorithm, precision), words, figures)
    return table


DECISION_NOTE = (
    "Points of theta_full's changes that come out the same to 1e-5, and points of accuracy; differences of runs of the same seed."
)


def level_table(runs: Runs, number: int) -> Table:
    """Table 3 of the paper: accuracy by level, of the whole and of the masked runs."""
    levels = sorted(runs.found["bases"]["small"]["accuracy"]["add"]["levels"])
    names = {level: f"sums from {10 * int(level)}" for level in levels}
    table = Table(number, "Accuracy by level (the paper's table 3)", (*PLAIN, "model"), ["all", *names.values()], LEVEL_NOTE)
    for algorithm, precision, words in plain_keys():
        for mask, name in {"": "theta_full", "-sub": "theta_sub", "-size": "same sizes", "-random": "as many a tensor"}.items():
            found = runs.named(algorithm, precision, f"add{mask}")
            if found:
                figures = {"all": figure(found, at("accuracy"))}
                figures |= {shown: figure(found, at("levels", level)) for level, shown in names.items()}
                table.add((algorithm, precision, mask), [*words, name], present(figures))
    return table


LEVEL_NOTE = "The task is to add four digits; a level is the tens of the sum."


def loss_table(runs: Runs, number: int) -> Table:
    """Figure 4: the loss of training in the last third of the steps; of GRPO, whose loss says nothing, the reward."""
    columns = ["theta_full", "theta_sub - theta_full", "same sizes - theta_full", "as many a tensor - theta_full"]
    table = Table(number, "Training loss within masks (the paper's figure 4)", (*PLAIN, "of"), columns, LOSS_NOTE)
    for algorithm, precision, words in plain_keys():
        name = "reward" if algorithm == "grpo" else "loss"
        own = {
            mask: figure(runs.named(algorithm, precision, f"add{mask}"), at("last"), 1.0, 4) for mask in ("", "-sub", "-size", "-random")
        }
        full = own.pop("")
        if full is None:
            continue
        figures: dict[str, Figure | None] = {"theta_full": full}
        figures |= {column: difference(other, full) if other else None for column, other in zip(columns[1:], own.values(), strict=True)}
        table.add((algorithm, precision), [*words, name], present(figures))
    return table


LOSS_NOTE = "Mean over the last third of the steps; differences of runs of the same seed."


def overlap_table(runs: Runs, number: int) -> Table:
    """Table 4 of the paper, with chance by size."""
    columns = ["o1", "chance by size", "excess over size", "o2", "excess of o2", "chance of all weights", "same direction", "o1 at 1e-5"]
    table = Table(number, "Overlap of updates (the paper's table 4)", ("differ in", "first", "second", "weights"), columns, OVERLAP_NOTE)
    groups: dict[Key, list[Found]] = {}
    for row in runs.found["overlap"]:
        (first, precision), second = row["first"].split("-")[:2], row["second"].split("-")[0]
        groups.setdefault((row["differ"], first, second, precision), []).append(row)
    for key, rows in groups.items():
        bits = [row["bits"] for row in rows]
        names = ("o1", "o1_by_size", "o1_excess", "o2", "o2_excess", "random_o1", "same_direction")
        figures = {column: figure(bits, at(name)) for column, name in zip(columns, names, strict=False)}
        figures["o1 at 1e-5"] = figure(rows, at("1e-05", "o1"))
        differ, first, second, precision = key
        table.add(key, [differ, first.upper(), second.upper(), PRECISIONS[precision]], present(figures))
    return table


OVERLAP_NOTE = (
    "By bits, but for the last column. *Excess*: (o1 - by size) / (1 - by size): what two updates share of what sizes leave open. " + PAIRED
)


def curve_table(runs: Runs, number: int) -> Table:
    """Figures 2, 5, 6 and 7b."""
    every = runs.found["scale"]["every"]
    columns = ["unchanged at the end", "half way", "ever changed", "changed and back", "at most", f"changed in {every} steps", "first such"]
    table = Table(number, "While training (the paper's figures 2, 5, 6 and 7b)", PLAIN, columns, CURVE_NOTE)
    for algorithm, precision, words in plain_keys():
        curves = [record["curve"] for record in runs.named(algorithm, precision, "add")]
        figures = {column: figure(curves, at(key)) for column, key in zip(columns, CURVE, strict=True)}
        table.add((algorithm, precision), words, present(figures))
    return table


CURVE_NOTE = "*Changed and back*: changed at a record, and at the end, or at the record where it is most, as at the start."


def mark_table(runs: Runs, number: int) -> Table:
    """Figure 7a: sparsity and accuracy of checkpoints of one training."""
    table = Table(
        number, "Checkpoints of GRPO: sparsity and accuracy (the paper's figure 7a)", ("weights", "steps"), ["unchanged", "accuracy"]
    )
    for precision, words in PRECISIONS.items():
        records = runs.named("grpo", precision, "add")
        for k, (step, _) in enumerate(records[0]["marks"]):
            changed = figure(records, at("early", k, "share"))
            figures = {
                "unchanged": changed and complement(changed),
                "accuracy": figure(records, at("marks", k, 1)),
            }
            table.add((precision, str(step)), [words, str(step)], present(figures))
        last = {"unchanged": figure(records, at("measures", "bits")), "accuracy": figure(records, at("accuracy"))}
        table.add((precision, "all"), [words, str(runs.first("grpo", precision, "add").steps)], present(last))
    return table


def ablation_table(runs: Runs, number: int) -> Table:
    """Section 6: what sparsity depends on; each row beside the run that it varies."""
    table = Table(number, "What sparsity depends on (section 6)", (*PLAIN, "what differs"), ["unchanged", "at 1e-5", "accuracy"])
    for algorithm, precision, words in plain_keys():
        planned = [run for run in runs.planned if (run.algorithm, run.precision, run.part) == (algorithm, precision, "ablations")]
        whats = dict.fromkeys(run.what for run in planned)
        for what in ("add", *whats):
            records = runs.named(algorithm, precision, what)
            figures = {
                "unchanged": figure(records, at("measures", "bits")),
                "at 1e-5": figure(records, at("measures", "within", "1e-05")),
                "accuracy": figure(records, at("accuracy")),
            }
            table.add((algorithm, precision, what), [*words, variation(runs.first(algorithm, precision, what))], present(figures))
    return table


def variation(run: Run) -> str:
    """What a run has that the others have not."""
    named = {
        "add": f"nothing: learning rate {power(run.rate)}",
        "kl": f"KL {run.beta:g}",
        "noclip": "no clipping",
        "long": f"{run.steps} steps",
        "own": "the base's own right samples",
        "new": "prompts in an unknown form",
    }
    return named.get(run.what, f"learning rate {power(run.rate)}")


def early_table(runs: Runs, number: int) -> Table:
    """The paper's open question: can the subnetwork be told early?"""
    table = Table(number, "Telling the subnetwork before the end", (*PLAIN, "guess"), ["share of weights", "precision", "recall"])
    for algorithm, precision, words in plain_keys():
        records = runs.named(algorithm, precision, "add")
        for k, guess in enumerate(records[0]["early"]):
            columns = {"share of weights": "share", "precision": "precision", "recall": "recall"}
            figures = {column: figure(records, at("early", k, key)) for column, key in columns.items()}
            table.add((algorithm, precision, guess["guess"]), [*words, guess["guess"]], present(figures))
    return table


def tables(found: Found) -> Tables:
    """All that the parts which were run allow, numbered as if all had been."""
    runs, made, parts = Runs(found), Tables(), set(found["parts"])
    if "updates" in parts:
        made["sparsity"] = sparsity_table(runs, 1)
        made["rank"] = rank_table(runs, 2)
        made["layers"] = place_table(runs, 3, "layers", "Weights that stay, by layer (the paper's figure 3)")
        made["modules"] = place_table(runs, 4, "modules", "Weights that stay, by kind of tensor (the paper's figure 3)")
        made["sizes"] = size_table(runs, 5)
    if "subnetwork" in parts:
        made["subnetwork"] = subnetwork_table(runs, 6, "add", "Training within a mask (section 4)")
        made["decision"] = decision_table(runs, 7, made["subnetwork"], "What the mask carries beyond sizes (section 4)")
        made["levels"] = level_table(runs, 8)
        made["loss"] = loss_table(runs, 9)
    if "size" in parts:
        made["large"] = subnetwork_table(runs, 10, "large", "Training within a mask, the larger model (section 4)")
        made["large decision"] = decision_table(runs, 11, made["large"], "What the mask carries beyond sizes, the larger model")
    if "overlap" in parts:
        made["overlap"] = overlap_table(runs, 12)
    if "updates" in parts:
        made["curve"] = curve_table(runs, 13)
        made["marks"] = mark_table(runs, 14)
    if "ablations" in parts:
        made["ablations"] = ablation_table(runs, 15)
    if "updates" in parts:
        made["early"] = early_table(runs, 16)
    return made
