"""Charts of the measures, as SVG."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import altair
from records import PRECISIONS, Found

WIDTH, HEIGHT = 230, 150
ALGORITHMS = ("sft", "dpo", "grpo")


def names() -> list[tuple[str, str, str]]:
    """Algorithm, weights, and run of the first seed."""
    return [(a.upper(), words, f"{a}-{p}-add-0") for a in ALGORITHMS for p, words in PRECISIONS.items()]


def facets(rows: list[dict[str, Any]], mark: str, x: Any, y: Any, colour: Any) -> Any:
    """One small chart for each kind of weights."""
    chart = altair.Chart(altair.Data(values=rows)).mark_line(point=mark == "points").encode(x, y, colour)
    return chart.properties(width=WIDTH, height=HEIGHT).facet(column=altair.Column("weights:N", title=None))


def while_training(found: Found) -> Any:
    """Figures 1 and 5: the share of weights that are as they were at the start."""
    rows = [
        {"algorithm": algorithm, "weights": words, "step": row["step"], "unchanged": row["sparsity"]}
        for algorithm, words, name in names()
        for row in found["records"][name]["curve"]
    ]
    y = altair.Y("unchanged:Q", axis=altair.Axis(format="%"), title="unchanged since the start", scale=altair.Scale(domain=[0, 1]))
    return facets(rows, "lines", altair.X("step:Q"), y, altair.Color("algorithm:N"))


def back_again(found: Found) -> Any:
    """Figures 2 and 6: changed at some time, and now as at the start."""
    rows = [
        {"algorithm": algorithm, "weights": words, "step": row["step"], "share": row["cancelled"]}
        for algorithm, words, name in names()
        for row in found["records"][name]["curve"]
    ]
    y = altair.Y("share:Q", axis=altair.Axis(format="%"), title="changed and back again")
    return facets(rows, "lines", altair.X("step:Q"), y, altair.Color("algorithm:N"))


def by_size(found: Found) -> Any:
    """Why: the chance to change by the binary exponent of the base weight."""
    rows = [
        {"algorithm": algorithm, "weights": words, "exponent": exponent, "changed": changed / elements}
        for algorithm, words, name in names()
        for exponent, elements, changed in found["records"][name]["measures"]["exponents"]
        if exponent is not None and elements >= 200
    ]
    y = altair.Y("changed:Q", axis=altair.Axis(format="%"), title="changed")
    return facets(rows, "points", altair.X("exponent:Q", title="weight, power of two"), y, altair.Color("algorithm:N"))


def by_place(found: Found, key: str, title: str) -> Any:
    """Figure 3: sparsity by layer, or by kind of matrix."""
    rows = [
        {"algorithm": algorithm, "weights": words, "place": place, "sparsity": value}
        for algorithm, words, name in names()
        for place, value in found["records"][name]["measures"][key].items()
    ]
    chart = (
        altair.Chart(altair.Data(values=rows))
        .mark_bar()
        .encode(
            altair.X("place:N", title=title, sort=None),
            altair.Y("sparsity:Q", axis=altair.Axis(format="%"), title="unchanged"),
            altair.XOffset("algorithm:N"),
            altair.Color("algorithm:N"),
        )
    )
    return chart.properties(width=WIDTH + 60, height=HEIGHT).facet(column=altair.Column("weights:N", title=None))


def early(found: Found) -> Any:
    """How much of the final subnetwork had changed after some steps."""
    rows = [
        {"algorithm": algorithm, "weights": words, "step": step, "recall": guess["recall"]}
        for algorithm, words, name in names()
        for step, guess in zip(found["scale"]["marks"], found["records"][name]["early"], strict=False)
    ]
    y = altair.Y("recall:Q", axis=altair.Axis(format="%"), title="of the final subnetwork")
    x = altair.X("step:Q", title="changed after step", scale=altair.Scale(type="log"))
    return facets(rows, "points", x, y, altair.Color("algorithm:N"))


def draw(found: Found, folder: Path) -> list[Path]:
    """Write them all; returns their paths: none before the part ``updates`` was run."""
    if "updates" not in found["parts"]:
        return []
    folder.mkdir(exist_ok=True)
    charts = {
        "while-training": while_training(found),
        "back-again": back_again(found),
        "by-size": by_size(found),
        "by-layer": by_place(found, "layers", "layer"),
        "by-module": by_place(found, "modules", "kind"),
        "early": early(found),
    }
    paths = []
    for name, chart in charts.items():
        paths.append(folder / f"{name}.svg")
        chart.save(paths[-1])
        text = re.sub(r' (?:aria-[a-z]+|role|class)="[^"]*"', "", paths[-1].read_text())  # a third to a half; the numbers are in the tables
        paths[-1].write_text(text)
    return paths
