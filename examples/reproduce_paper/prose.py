"""What RESULTS.md says in words. Each sentence is made of rows of the tables, names them, and turns with their figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import tee
from typing import Any

from claims import Claim, counted
from figures import Figure, Row, Table, difference, rows_named
from records import ALGORITHMS, Tables, power
from tables import EQUAL

OF = EQUAL["of changed"]
WAYS = {"bf16": "in pure bf16", "fp32": "with fp32 masters"}


def introduction(found: dict[str, Any]) -> str:
    """What was run, where and for how long, and how to read it."""
    scale, machine, seconds = found["scale"], found["machine"], found["seconds"]
    bases = [found["bases"][name] for name in ("small", "large") if name in found["bases"]]
    sizes = " and ".join(f"{base['parameters']:,}" for base in bases)
    right = [base["accuracy"]["add"]["right"] for base in bases]
    tests = bases[0]["accuracy"]["add"]["of"]
    return words(
        f"`python examples/reproduce_paper/run.py` trained {len(found['records'])} runs from bases of {sizes} parameters in",
        f"{seconds['wall'] / 60:.0f} minutes on {machine['cores']} cores {'with' if machine['bf16'] else 'without'} instructions for bf16",
        f"({seconds['cpu of runs'] / 60:.0f} minutes of CPU for the runs; torch {machine['torch']}). A run has {scale['steps']} steps,",
        f"one of the larger model {scale['large_steps']}; SFT and GRPO have a learning rate of {power(scale['rate'])}, DPO of",
        f"{power(scale['dpo_rate'])}. The task is to add four digits; the bases solve {' and '.join(map(str, right))} of the {tests}",
        "held-out exercises. The paper's models have 7 to 70 billion parameters: what follows says which of its observations show at this",
        "scale, and under which conditions; it neither confirms nor refutes them at theirs.",
    ) + words(
        "\n\n**How to read it.** Figures are in per cent unless a table says otherwise: means over the seeds of training,",
        f"{scale['grpo_seeds']} for GRPO's updates and masks and {scale['seeds']} for all else, ± half of the 95 % confidence interval of",
        "the mean (Student's t). Three seeds make wide intervals. *Beyond chance* means that an interval excludes zero; with this many",
        "rows some do so by accident. Differences are taken between runs of one seed. All sentences, verdicts and tables are made from",
        "`measures.json` by `results.py`; a sentence names the rows it rests on.",
    )


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def words(*lines: str) -> str:
    """One paragraph."""
    return " ".join(lines)


def signed_words(gap: Figure, more: str, less: str, same: str) -> str:
    """Which of three holds."""
    return {1: more, -1: less, 0: same}[gap.side]


def way(random: Figure, size: Figure, sub: Figure) -> float | None:
    """How far a mask of the same sizes is on the way from one as dense to theta_sub, by means; None where the two ends are alike."""
    whole = difference(sub, random)
    return (size.mean - random.mean) / whole.mean if whole.side > 0 else None


def section_4(made: Tables, table: str, decision: str) -> list[str]:
    """The control: a sentence of two for each algorithm and kind of weights."""
    found = []
    for algorithm in ALGORITHMS:
        for precision, where in WAYS.items():
            if (algorithm, precision, "sub") not in made[table].rows:
                continue
            sub, size, random, seed, full = (made[table][algorithm, precision, mask] for mask in ("sub", "size", "random", "seed", "full"))
            decided = made[decision][algorithm, precision]
            gap, right = decided["theta_sub - same sizes"], decided["accuracy: theta_sub - same sizes"]
            share = way(random[OF], size[OF], sub[OF])
            goes = "" if share is None else f", {100 * share:.0f} % of the way from a mask as dense to theta_sub"
            verdict = signed_words(
                gap,
                f"theta_sub is nearer by {gap.short} points: the mask carries something that sizes do not",
                f"theta_sub is farther by {-100 * gap.mean:.2f} points: sizes alone do better",
                f"the difference to theta_sub, {gap.signed}, is within chance: nothing shows that the mask carries more than sizes",
            )
            compared = {"theta_sub": sub, "the same sizes": size, "as dense a mask": random}
            less = {mask: row["less theta_full's"] for mask, row in compared.items()}
            told = [f"{name} ({value.signed})" for name, value in less.items() if value.side]
            whole = f"theta_full's {full['accuracy'].short} %"
            accuracy = f"Accuracy tells {listed(told)} from {whole}" if told else f"Accuracy tells none of the three from {whole}"
            by = signed_words(
                right,
                "theta_sub's is higher than that of the same sizes",
                "theta_sub's is lower than that of the same sizes",
                "theta_sub and the same sizes are alike in it",
            )
            found.append(
                words(
                    f"**{algorithm.upper()} {where}**: of the weights that theta_full changed, theta_sub has {sub[OF]} as theta_full has",
                    f"them, a random mask of the same sizes {size[OF]}{goes}, one as dense {random[OF]}, another seed {seed[OF]}",
                    f"{rows_named(sub, size, random, seed)}; {verdict} {rows_named(decided)}. {accuracy}",
                    f"{rows_named(full, sub, size, random)}, and {by} {rows_named(decided)}.",
                )
            )
    return found


def summary(made: Tables) -> list[str]:
    """What section 4 comes to, over all algorithms and both models."""
    found = []
    for precision, where in WAYS.items():
        rows: list[Row] = []
        shares, beyond, total = [], 0, 0
        for table, decision in (("subnetwork", "decision"), ("large", "large decision")):
            for algorithm in ALGORITHMS:
                if table not in made or (algorithm, precision, "sub") not in made[table].rows:
                    continue
                a, b, c = (made[table][algorithm, precision, mask] for mask in ("random", "size", "sub"))
                share = way(a[OF], b[OF], c[OF])
                if share is not None:
                    shares.append(share)
                rows += [a, b, c]
                total += 1
                beyond += made[decision][algorithm, precision]["theta_sub - same sizes"].side > 0
        if rows:
            goes = f"goes {100 * min(shares):.0f} to {100 * max(shares):.0f} %" if shares else "goes no telling part"
            found.append(
                words(
                    f"**{where[0].upper() + where[1:]}** a random mask of the same sizes {goes} of the way from a mask as dense to",
                    f"theta_sub, in the {len(shares)} of {total} comparisons where these two differ beyond chance; theta_sub is nearer to",
                    f"theta_full than that mask, beyond chance, in {beyond} {rows_named(*rows)}.",
                )
            )
    return found


def updates(made: Tables) -> list[str]:
    """Sections 3 and 6, as far as every run shows them."""
    sparsity, rank, sizes, early = made["sparsity"], made["rank"], made["sizes"], made["early"]
    found = [*algorithms(sparsity), *ranks(rank)]
    parts = []
    for precision, where in WAYS.items():
        rows = [sizes[algorithm, precision] for algorithm in ALGORITHMS]
        parts.append(f"{between(row['R² of changed or not'] for row in rows)} of which weights change {where} {rows_named(*rows)}")
    found.append("**Sizes.** The binary exponents of the base explain (R²) " + ", and ".join(parts) + ".")
    parts = []
    for precision, where in WAYS.items():
        rows = [early[algorithm, precision, "learning rate above half an ulp"] for algorithm in ALGORITHMS]
        precisions, recalls = (between(row[column] for row in rows) for column in ("precision", "recall"))
        parts.append(f"{where} at a precision of {precisions} and a recall of {recalls} {rows_named(*rows)}")
    guess = "The weights of which half an ulp is below the learning rate tell the final subnetwork "
    found.append("**Told without a run.** " + guess + "; ".join(parts) + ".")
    return found


def between(figures: Iterable[Figure]) -> str:
    """``96.1 to 99.3 %`` of several means."""
    least, most = (f"{100 * of(one.mean for one in row):.1f}" for of, row in zip((min, max), tee(figures), strict=True))
    return f"{least} %" if least == most else f"{least} to {most} %"


def algorithms(sparsity: Table) -> list[str]:
    """RL beside SFT at one learning rate."""
    found = []
    for precision, where in WAYS.items():
        grpo, sft = sparsity["grpo", precision], sparsity["sft", precision]
        gap = difference(grpo["by bits"], sft["by bits"])
        told = signed_words(gap, "GRPO is sparser", "GRPO is denser", "neither is sparser beyond chance")
        figures = f"GRPO leaves {grpo['by bits']} as they were and SFT {sft['by bits']}: {told}, {gap.signed} points"
        found.append(f"**GRPO and SFT at one learning rate, {where}**: {figures} {rows_named(grpo, sft)}.")
    return found


def ranks(rank: Table) -> list[str]:
    """Full rank, and what does have a null."""
    found = []
    for precision, where in WAYS.items():
        rows = [rank[algorithm, precision] for algorithm in ALGORITHMS]
        below = [row for row in rows if difference(row["stable rank"], row["stable rank: shuffled"]).side < 0]
        stable = ", ".join(f"{row['stable rank'].short} ({row.words[0]}; shuffled {row['stable rank: shuffled'].short})" for row in rows)
        found.append(
            words(
                f"**Rank {where}**: updates have {between(row['mean rank'] for row in rows)} of the largest rank, random ones as dense",
                f"{between(row['random, as dense'] for row in rows)}; their stable rank is {stable}: below the shuffled one beyond chance",
                f"in {len(below)} of {len(rows)} {rows_named(*rows)}.",
            )
        )
    every = list(rank.rows.values())
    gaps = [difference(row["changed in principal half"], row["principal: by size"]) for row in every]
    found.append(
        words(
            f"**Off the principals** (2511.08567): of the changed weights {between(row['changed in principal half'] for row in every)} lie",
            f"in the principal half, by size alone {between(row['principal: by size'] for row in every)}; the gap is",
            f"{100 * min(gap.mean for gap in gaps):+.2f} to {100 * max(gap.mean for gap in gaps):+.2f} points, below 0 beyond chance in",
            f"{sum(gap.side < 0 for gap in gaps)} of {len(gaps)} {rows_named(*every)}.",
        )
    )
    return found


def overlaps(table: Table) -> list[str]:
    """Section 5 with chance by size."""
    found = []
    for precision, where in WAYS.items():
        rows = [row for key, row in table.rows.items() if key[3] == precision]
        beyond = [row for row in rows if row["excess over size"].side > 0]
        o1, size, plain, excess = (
            between(row[column] for row in rows) for column in ("o1", "chance by size", "chance of all weights", "excess over size")
        )
        found.append(
            words(
                f"**Overlap {where}**: o1 is {o1}, where chance by size gives {size} and the chance of all weights {plain}; the excess",
                f"over size is {excess}, above 0 beyond chance in {len(beyond)} of {len(rows)} {rows_named(*rows)}.",
            )
        )
    return found


def ablations(table: Table) -> list[str]:
    """Section 6: every variation beside its plain run."""
    parts = []
    for key, row in table.rows.items():
        if key[2] != "add":
            plain = table[key[0], key[1], "add"]
            gap = difference(row["unchanged"], plain["unchanged"])
            parts.append((abs(gap.mean), f"{row.words[0]} {WAYS[key[1]]}, {row.words[2]}: {gap.signed} {rows_named(row)}"))
    small = [text for size, text in parts if size < 0.02]
    large = [text for size, text in parts if size >= 0.02]
    return [
        *(["**Moves sparsity** by two points or more, by the mean: " + "; ".join(large) + "."] if large else []),
        *(["**Moves it less**: " + "; ".join(small) + "."] if small else []),
    ]


def verdicts(found: list[Claim]) -> str:
    """How many of each."""
    counts = counted(found)
    kinds = {"reproduced": "reproduced", "in part": "for some of the runs only", "not shown": "not shown", "contradicted": "contradicted"}
    told = ", ".join(f"{counts[kind]} {shown}" for kind, shown in (kinds | {"not covered": "not covered"}).items())
    return words(
        f"{len(found)} rows: {told}. A criterion holds where a whole interval meets it. *Contradicted* means at this",
        "scale; *not shown*, that no case holds and the interval of one allows both answers.",
    )


def sentences(made: Tables) -> str:
    """All of them, as sections of lists."""
    parts: list[tuple[str, list[str]]] = []
    if "subnetwork" in made:
        parts.append(("Section 4 decided: is it the mask, or the sizes?", summary(made)))
        parts.append(("Section 4, run by run", section_4(made, "subnetwork", "decision")))
    if "large" in made:
        parts.append(("Section 4, the larger model", section_4(made, "large", "large decision")))
    if "sparsity" in made:
        parts.append(("Sections 3 and 6: the updates", updates(made)))
    if "overlap" in made:
        parts.append(("Section 5: overlap", overlaps(made["overlap"])))
    if "ablations" in made:
        parts.append(("Section 6: what sparsity depends on", ablations(made["ablations"])))
    return "\n\n".join(f"## {title}\n\n" + "\n".join(f"- {text}" for text in texts) for title, texts in parts)


NOT_COVERED = """\
- PPO, PRIME, KTO, ORPO, SimPO, RAFT++, and rejection sampling beyond SFT on a model's own samples; SFT before RL against none; GRPO on
  data out of distribution.
- Larger models, natural language, and longer training: the figures are of a narrow task that a small model half knows.
- For DPO, a second learning rate; the smallest weights as a mask but for GRPO; for the larger model, overlaps and ablations.
- A null for *same direction*; intervals over bases: there is one base of each size, and the intervals are of the seeds of fine-tuning
  alone.
- *The Path Not Taken* ([2511.08567](https://arxiv.org/abs/2511.08567)) beyond its principal mask; what bf16 absorbs from step to step,
  PULSE ([2602.03839](https://arxiv.org/abs/2602.03839)); random masks of 1 % that train as well
  ([2602.01599](https://arxiv.org/abs/2602.01599)); updates whose gains lie in one direction of each matrix
  ([2510.00553](https://arxiv.org/abs/2510.00553), [2605.21468](https://arxiv.org/abs/2605.21468))."""
