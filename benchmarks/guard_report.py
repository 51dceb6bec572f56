"""What ``guard.py`` found, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guard_bytes import Row
from guard_time import Task, judgements
from guard_verdict import NEW, OLD, Judgement

FIGURES = {"cpu": "CPU seconds (user and system)", "wall": "Wall seconds", "rss": "Peak memory, MB"}
READING = """old: the commit; new: the working tree. Figures: median (least to most) of all rounds; old's are of both of its
installs. ratio: new's median over old's; paired: the median, over the rounds, of new over the geometric mean of old's two.
A/A: old's second install over its first. Outside of noise is a row whose ratio and paired ratio both lie beyond the noise;
it was then measured for as many rounds more, and its verdict is of all of them."""


@dataclass
class Findings:
    """All that a run finds out."""

    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was skipped, and what no row tells
    bytes: list[Row] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # differences that no row of ``bytes`` has


@dataclass(frozen=True)
class Summary:
    lines: list[str]
    fine: bool


def judged_rows(found: Findings, key: str) -> dict[str, tuple[Judgement, int]]:
    """Verdict on one figure, and rounds, by row."""
    return {row: (judgement, task.rounds) for task in found.tasks for row, judgement in judgements(task, key).items()}


def summary(found: Findings) -> Summary:
    same, exact = (sum(getattr(row, what) for row in found.bytes) for what in ("same", "exact"))
    rebuilt = sum(how == "exact" for row in found.bytes for how in row.rebuilt.values())
    lines = (
        []
        if not found.bytes
        else [f"Bytes: {same} of {len(found.bytes)} patches are the same; {rebuilt} rebuilt, {len(found.bytes) - exact} pairs not exact."]
    )
    fine = same == exact == len(found.bytes) and not found.wrong and not any(task.failed for task in found.tasks)
    for key, what in FIGURES.items():
        rows = judged_rows(found, key)
        if rows:
            outside = [f"{row} {of.verdict} ({of.ratio:.3f})" for row, (of, _) in rows.items() if of.verdict != "within noise"]
            furthest = max(rows, key=lambda row: abs(rows[row][0].ratio - 1))
            told = f"{len(rows) - len(outside)} of {len(rows)} rows within noise" + (f"; {', '.join(outside)}" if outside else "")
            lines.append(f"{what}: {told}. The ratio furthest from 1 is {rows[furthest][0].ratio:.3f} ({furthest}).")
            fine &= key != "cpu" or all(of.verdict != "slower" for of, _ in rows.values())
    return Summary(lines, fine)


def how_rebuilt(row: Row) -> str:
    if row.failed:
        return row.failed
    wrong = [f"{who}: {how}" for who, how in row.rebuilt.items() if how != "exact"]
    return "; ".join(wrong) or f"exact, {len(row.rebuilt)} ways"


def bytes_table(rows: list[Row]) -> Iterator[str]:
    yield from (
        "## Bytes",
        "",
        "| pair | codec | old, bytes | new, bytes | new / old | patches | rebuilt |",
        "|---|---|---|---|---|---|---|",
    )
    for row in rows:
        sizes = [row.sizes.get(tree) for tree in (OLD, NEW)]
        ratio = f"{sizes[1] / sizes[0]:.4f}" if sizes[0] and sizes[1] is not None else ""
        cells = [row.case.pair, row.case.codec, *(f"{size:,}" if size is not None else "" for size in sizes), ratio]
        cells += ["same bytes" if row.same else "; ".join(row.differ), how_rebuilt(row)]
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
    yield ""


def figure(of: tuple[float, float, float]) -> str:
    form = ".4f" if of[0] < 0.1 else ".3f" if of[0] < 10 else ".1f"
    return f"{of[0]:{form}} ({of[1]:{form}} to {of[2]:{form}})"


def time_table(found: Findings, key: str) -> Iterator[str]:
    rows = judged_rows(found, key)
    if not rows:
        return
    yield from (f"## {FIGURES[key]}", "", "| row | rounds | old | new | ratio | paired | A/A | noise | verdict |", "|---" * 9 + "|")
    for row, (of, rounds) in rows.items():
        cells = [row, str(rounds), figure(of.old), figure(of.new), f"{of.ratio:.3f}", f"{of.paired:.3f}", f"{of.itself:.3f}"]
        yield f"| {' | '.join([*cells, f'± {100 * of.noise:.1f} %', of.verdict])} |"
    yield ""


def markdown(found: Findings) -> str:
    facts = found.facts
    lines = ["# Guard", "", *(f"- {name}: {what}" for name, what in facts.get("trees", {}).items())]
    if "machine" in facts:
        lines.append("- machine: {cpu}, {cores} cores, Python {python}".format(**facts["machine"]))
    for when in ("start", "end"):
        if f"load at {when}" in facts:
            lines.append(f"- load at {when}: {', '.join(f'{load:.1f}' for load in facts[f'load at {when}'])}")
    lines += [f"- {text}" for text in found.notes]
    lines += ["", *summary(found).lines, *(f"WRONG: {text}" for text in found.wrong)]
    lines += [f"FAILED: {', '.join(task.rows)}: {task.failed}" for task in found.tasks if task.failed]
    lines += ["", *(bytes_table(found.bytes) if found.bytes else ())]
    timed = [line for key in FIGURES for line in time_table(found, key)]
    return "\n".join([*lines, *([READING, "", *timed] if timed else [])])


def as_json(found: Findings) -> dict[str, Any]:
    times = {key: {row: {**asdict(of), "rounds": rounds} for row, (of, rounds) in judged_rows(found, key).items()} for key in FIGURES}
    tasks = [{"rows": task.rows, "rounds": task.rounds, "failed": task.failed, "samples": task.samples} for task in found.tasks]
    facts = {**found.facts, "notes": found.notes, "wrong": found.wrong}
    return {**facts, "summary": asdict(summary(found)), "bytes": [row.to_json() for row in found.bytes], "times": times, "tasks": tasks}


def save(out: Path, found: Findings) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.name}.md").write_text(markdown(found))
    out.with_name(f"{out.name}.json").write_text(json.dumps(as_json(found), indent=1) + "\n")
