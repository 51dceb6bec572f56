"""Every row of the paper's sections 3 to 6 and of its figures: reproduced at this scale, contradicted, or not covered.

A verdict follows from a criterion that stands beside it, by rule and not by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from figures import Figure, Key, Row, complement, difference, rows_named
from records import PRECISIONS, Tables
from tables import EQUAL

RL = ("grpo", "dpo")
NOT_COVERED, NOT_SHOWN = "not covered", "not shown"

CONTROL = "the subnetwork is what matters (the paper has no control)"
CONTROLLED = "theta_sub has more of theta_full's changes than a random mask of the same sizes, beyond the interval"


@dataclass(frozen=True)
class Claim:
    """What the paper says, what came out here, and what follows."""

    place: str
    says: str
    ours: str
    criterion: str
    verdict: str


@dataclass(frozen=True)
class Case:
    """One of the runs that a claim is tested with."""

    words: str
    figure: Figure
    holds: bool | None
    """None: the runs do not tell."""
    rows: tuple[Row, ...]
    signed: bool = False


def claim(place: str, says: str, criterion: str, cases: Sequence[Case]) -> Claim:
    """Reproduced where all cases hold, contradicted where all fail, not shown where none holds and some do not tell."""
    ours = "; ".join(f"{case.words} {case.figure.signed if case.signed else case.figure}" for case in cases)
    rows = rows_named(*(row for case in cases for row in case.rows))
    holding = [case.words for case in cases if case.holds]
    if len(holding) == len(cases):
        verdict = "reproduced"
    elif not holding:
        verdict = NOT_SHOWN if any(case.holds is None for case in cases) else "contradicted"
    else:
        verdict = "for " + ", ".join(holding) + " only"
    return Claim(place, says, f"{ours} {rows}", criterion, verdict)


def shown(gap: Figure, side: int = 1) -> bool | None:
    """Whether a difference lies on a side of zero; None if its interval holds zero."""
    return None if gap.side == 0 else gap.side == side


def all_of(*checks: bool | None) -> bool | None:
    """Whether all hold; False where one fails, else None where one does not tell."""
    return False if False in checks else None if None in checks else True


def left_out(place: str, says: str, why: str) -> Claim:
    return Claim(place, says, why, "", NOT_COVERED)


def every(
    table_rows: Callable[[Key], Row],
    algorithms: Sequence[str],
    made: Callable[[str, Row], tuple[Figure, bool | None]],
    *,
    signed: bool = False,
) -> list[Case]:
    """A case of each algorithm and kind of weights, from one row each."""
    found = []
    for algorithm in algorithms:
        for precision, words in PRECISIONS.items():
            row = table_rows((algorithm, precision))
            figure, holds = made(algorithm, row)
            found.append(
                Case(
                    f"{algorithm.upper()} in {words}" if precision == "bf16" else f"{algorithm.upper()} with {words}",
                    figure,
                    holds,
                    (row,),
                    signed,
                )
            )
    return found


def claims(made: Tables) -> list[Claim]:
    """All of them, in the order of the paper; of parts that were not run, none."""
    found: list[Claim] = []
    if "sparsity" in made:
        found += section_3(made)
    if "subnetwork" in made:
        found += section_4(made)
    if "large decision" in made:
        found.append(claim("section 4, the larger model", CONTROL, CONTROLLED, decided(made, "large decision", RL)))
    if "overlap" in made:
        found += section_5(made)
    if "ablations" in made and "curve" in made:
        found += section_6(made)
    return found


def section_3(made: Tables) -> list[Claim]:
    sparsity, rank, layers, modules, curve = (made[name] for name in ("sparsity", "rank", "layers", "modules", "curve"))

    def at_least(share: float, column: str) -> Callable[[str, Row], tuple[Figure, bool | None]]:
        return lambda _, row: (row[column], row[column].above(share))

    def spread(_: str, row: Row) -> tuple[Figure, bool | None]:
        seeds = zip(*(row[name].values for name in layers.columns), strict=True)
        figure = Figure(tuple(max(values) - min(values) for values in seeds))
        return figure, figure.below(0.05)

    def tolerance(_: str, row: Row) -> tuple[Figure, bool | None]:
        gained = difference(row["1e-05"], row["1e-08"])
        before, after = difference(row["1e-06"], row["1e-08"]), difference(row["1e-05"], row["1e-06"])
        return gained, shown(difference(after, before))

    def cancelled(_: str, row: Row) -> tuple[Figure, bool | None]:
        back, stays = row["changed and back"], complement(row["unchanged at the end"])
        return back, all_of(shown(back), shown(difference(stays, back)))

    sft = every(sparsity.__getitem__, ("sft",), lambda _, row: (row["1e-05"], row["1e-05"].below(0.20)))
    denser = []
    for precision, words in PRECISIONS.items():
        rows = sparsity["grpo", precision], sparsity["sft", precision]
        gap = difference(rows[0]["1e-05"], rows[1]["1e-05"])
        denser.append(Case(words, gap, gap.above(0.5), rows, signed=True))
    return [
        claim(
            "table 1, GRPO",
            "68.5 and 86.0 % stay, at 1e-5",
            "at least 68.5 %",
            every(sparsity.__getitem__, ("grpo",), at_least(0.685, "1e-05")),
        ),
        claim(
            "table 1, DPO",
            "81.4 and 95.2 % stay, at 1e-5",
            "at least 81.4 %",
            every(sparsity.__getitem__, ("dpo",), at_least(0.814, "1e-05")),
        ),
        left_out(
            "table 1, ORPO, KTO, PPO, SimPO, PRIME",
            "76.9; 96.0 and 81.2; 80.8; 86.5; 77.0 %",
            "no such run: PPO and PRIME need a reward model, and the others were left for time",
        ),
        claim("figure 1", "SFT leaves 6 to 15 %", "at most 20 %", sft),
        claim("figure 1", "SFT is far denser than RL", "GRPO leaves 50 points more than SFT at one learning rate", denser),
        claim(
            "table 6",
            "tolerances up to 1e-6 hardly matter, 1e-5 adds 0.4 to 29 points",
            "1e-5 adds more to 1e-6 than that to 1e-8",
            every(sparsity.__getitem__, RL, tolerance, signed=True),
        ),
        claim(
            "table 2",
            "mean rank 99.2 to 99.8 %",
            "at least 99 %; random updates as dense have it too, see table 2",
            every(rank.__getitem__, RL, at_least(0.99, "mean rank")),
        ),
        claim(
            "figure 2",
            "72 % never change, 8 % change and come back, 20 % stay changed",
            "some come back, less than stay changed",
            every(curve.__getitem__, RL, cancelled),
        ),
        claim("figure 3", "layers are alike", "at most 5 points between the layers, of one run", every(layers.__getitem__, RL, spread)),
        claim(
            "figure 3",
            "layer norms get little to no update",
            "at least 99 % of their weights stay",
            every(modules.__getitem__, RL, at_least(0.99, "norm")),
        ),
    ]


def section_4(made: Tables) -> list[Claim]:
    subnetwork, levels, loss = made["subnetwork"], made["levels"], made["loss"]

    def against(mask: str) -> Callable[[Key], Row]:
        return lambda key: subnetwork[(*key, mask)]

    def level(name: str, wanted: Callable[[Figure], bool | None]) -> list[Case]:
        found = []
        for algorithm in RL:
            for precision, words in PRECISIONS.items():
                full, sub = levels[algorithm, precision, ""], levels[algorithm, precision, "-sub"]
                gap = difference(sub[name], full[name])
                found.append(Case(f"{algorithm.upper()}, {words}", gap, wanted(gap), (full, sub), signed=True))
        return found

    hardest = levels.columns[-1]
    lower = []
    for precision, words in PRECISIONS.items():
        row = loss["dpo", precision]
        gap = row["theta_sub - theta_full"]
        lower.append(Case(words, gap, shown(gap, -1), (row,), signed=True))
    near, nearer = EQUAL["1e-05"], EQUAL["0.0001"]
    return [
        claim(
            "section 4, DPO",
            "94.0 % of theta_sub equal theta_full at 1e-5",
            "at least 90 %",
            every(against("sub"), ("dpo",), lambda _, row: (row[near], row[near].above(0.9))),
        ),
        claim(
            "section 4, PRIME",
            "90.5 % at 1e-5 (here GRPO)",
            "at least 90 %",
            every(against("sub"), ("grpo",), lambda _, row: (row[near], row[near].above(0.9))),
        ),
        claim(
            "section 4",
            "100 % at 1e-4",
            "at least 99.5 %",
            every(against("sub"), RL, lambda _, row: (row[nearer], row[nearer].above(0.995))),
        ),
        claim(
            "section 4",
            CONTROL,
            CONTROLLED,
            decided(made, "decision", RL),
        ),
        claim(
            "table 3, all",
            "theta_sub is no worse: +1.6 (DPO), +2.4 (PRIME)",
            "the interval is not below 0",
            level("all", lambda gap: gap.side >= 0),
        ),
        claim(
            "table 3, the hardest level",
            "theta_sub gains most there: PRIME +5.2",
            f"the interval is above 0; {hardest}",
            level(hardest, shown),
        ),
        claim("figure 4", "DPO's loss is lower within the subnetwork", "the interval is below 0", lower),
    ]


def decided(made: Tables, table: str, algorithms: Sequence[str]) -> list[Case]:
    """Theta_sub against a random mask of the same sizes."""
    column = "theta_sub - same sizes"
    return every(made[table].__getitem__, algorithms, lambda _, row: (row[column], shown(row[column])), signed=True)


def section_5(made: Tables) -> list[Claim]:
    table = made["overlap"]

    def cases(differ: str, *, by_size: bool) -> list[Case]:
        found = []
        for key, row in table.rows.items():
            if key[0] != differ or "sft" in key:
                continue
            gap = row["excess over size"] if by_size else difference(row["o1"], row["chance of all weights"])
            found.append(
                Case(
                    f"{' and '.join(dict.fromkeys(part.upper() for part in key[1:3]))}, {PRECISIONS[key[3]]}",
                    gap,
                    shown(gap),
                    (row,),
                    signed=True,
                )
            )
        return found

    said = {"seed": "60.5 % beside 36.7 % by chance", "data": "26.7 beside 14.6 %", "seed, data and algorithm": "59.1 beside 23.0 %"}
    found = []
    for differ, figures in said.items():
        found.append(claim(f"table 4, {differ}", figures, "o1 above the chance of all weights", cases(differ, by_size=False)))
        found.append(
            claim(
                f"table 4, {differ}",
                "the same beside chance by size (the paper has none)",
                "an excess above 0",
                cases(differ, by_size=True),
            )
        )
    return found


def section_6(made: Tables) -> list[Claim]:
    table, curve, marks = made["ablations"], made["curve"], made["marks"]

    def beside(algorithm: str, precision: str, what: str, holds: Callable[[Figure], bool | None]) -> Case:
        rows = table[algorithm, precision, what], table[algorithm, precision, "add"]
        gap = difference(rows[0]["at 1e-5"], rows[1]["at 1e-5"])
        return Case(f"{algorithm.upper()}, {PRECISIONS[precision]}", gap, holds(gap), rows, signed=True)

    def no_effect(gap: Figure) -> bool | None:
        return all_of(gap.below(0.02), gap.above(-0.02))

    def flattens(_: str, row: Row) -> tuple[Figure, bool | None]:
        second = difference(row["half way"], row["unchanged at the end"])
        return second, shown(difference(complement(row["half way"]), second))

    def rises(_: str, row: Row) -> tuple[Figure, bool | None]:
        fallen = difference(row["at most"], row["changed and back"])
        return fallen, shown(fallen)

    def successive(_: str, row: Row) -> tuple[Figure, bool | None]:
        column = curve.columns[-2]
        return row[column], shown(difference(complement(row["unchanged at the end"]), row[column]))

    longer, plain = table["grpo", "fp32", "long"], table["grpo", "fp32", "add"]
    after = difference(plain["at 1e-5"], longer["at 1e-5"])
    before = complement(plain["at 1e-5"])
    checkpoints = []
    for precision, words in PRECISIONS.items():
        first, last = next(row for key, row in marks.rows.items() if key[0] == precision), marks[precision, "all"]
        gap, gained = difference(last["unchanged"], first["unchanged"]), difference(last["accuracy"], first["accuracy"])
        checkpoints.append(Case(words, gap, gap.side < 0 and gained.side > 0, (first, last), signed=True))
    return [
        claim(
            "table 5, RFT",
            "SFT on the model's own samples leaves 91.2 %",
            "20 points more than on gold answers",
            [beside("sft", "fp32", "own", lambda gap: gap.above(0.2))],
        ),
        left_out("table 5, RAFT++", "69.4 %", "no such run"),
        claim(
            "table 5, SFT",
            "6.8 % stay out of distribution",
            "less than on prompts in the base's form, beyond the interval",
            [beside("sft", "fp32", "new", lambda gap: shown(gap, -1))],
        ),
        claim(
            "table 5, DPO",
            "6.8 and 7.7 % out of distribution, 81.4 % in it",
            "less than on prompts in the base's form, beyond the interval",
            [beside("dpo", "fp32", "new", lambda gap: shown(gap, -1))],
        ),
        claim(
            "section 6, KL", "69.8 % with, 68.8 % without", "less than 2 points", [beside("grpo", p, "kl", no_effect) for p in PRECISIONS]
        ),
        claim(
            "section 6, clipping", "no material effect", "less than 2 points", [beside("grpo", p, "noclip", no_effect) for p in PRECISIONS]
        ),
        left_out(
            "section 6, SFT before RL",
            "not required: R1-Zero 86 %",
            "the base is trained on the task itself; a base that cannot do it gets no reward at this scale",
        ),
        claim(
            "section 6, length",
            "sparsity falls, then flattens",
            "of three times the steps, the later two thirds change less than the first",
            [Case("GRPO with fp32 masters", after, shown(difference(before, after)), (plain, longer), signed=True)],
        ),
        claim(
            "figure 5",
            "sparsity decays and converges",
            "the second half of the steps changes less than the first",
            every(curve.__getitem__, RL, flattens, signed=True),
        ),
        claim(
            "figure 6",
            "changed and back rises, then falls",
            "at its most above the end, beyond the interval",
            every(curve.__getitem__, RL, rises, signed=True),
        ),
        claim("figure 7a", "along the checkpoints sparsity falls and accuracy rises", "both beyond their intervals", checkpoints),
        claim(
            "figure 7b", "7 % change between two checkpoints", "less than in all steps together", every(curve.__getitem__, RL, successive)
        ),
    ]


def markdown(found: Sequence[Claim]) -> str:
    """The table."""
    heads = ("paper", "says", "here", "criterion", "verdict")
    lines = [heads, ["---"] * len(heads), *((c.place, c.says, c.ours, c.criterion, f"**{c.verdict}**") for c in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted(found: Sequence[Claim]) -> dict[str, int]:
    """How many of each kind of verdict."""
    kinds = {"reproduced": 0, "in part": 0, NOT_SHOWN: 0, "contradicted": 0, NOT_COVERED: 0}
    for one in found:
        kinds[one.verdict if one.verdict in kinds else "in part"] += 1
    return kinds
