"""Charts of the measures, as SVG: means over seeds, with 95 % intervals as bands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import altair
from figures import Figure
from kept import Found
from records import ALGORITHMS, PRECISIONS

WIDTH, HEIGHT = 230, 150
Points = Iterable[tuple[Any, float]]
"""A place on the x axis, and a share."""


def rows_of(found: Found, points: Callable[[Found], Points]) -> list[dict[str, Any]]:
    """A row for each algorithm, kind of weights and place that all seeds have: the mean over them and its interval."""
    rows = []
    for algorithm in ALGORITHMS:
        for precision, words in PRECISIONS.items():
            runs = [one for one in found["records"].values() if one["run"]["what"] == "add"]
            records = [one for one in runs if (one["run"]["algorithm"], one["run"]["precision"]) == (algorithm, precision)]
            groups: dict[Any, list[float]] = {}
            for record in records:
                for place, share in points(record):
                    groups.setdefault(place, []).append(share)
            for place, shares in groups.items():
                if len(shares) == len(records):
                    one = Figure(tuple(shares))
                    ends = (
                        {"low": one.mean - one.half, "high": one.mean + one.half}
                        if len(shares) > 1
                        else {"low": one.mean, "high": one.mean}
                    )
                    rows.append({"algorithm": algorithm.upper(), "weights": words, "place": place, "share": one.mean} | ends)
    return rows


def lines(rows: list[dict[str, Any]], title: str, y_title: str, **scale: Any) -> Any:
    """Lines with bands, one small chart for each kind of weights."""
    chart = altair.Chart(altair.Data(values=rows)).encode(
        altair.X("place:Q", title=title, scale=altair.Scale(**scale) if scale else altair.Undefined), altair.Color("algorithm:N")
    )
    y = altair.Y("share:Q", axis=altair.Axis(format="%"), title=y_title)
    bands = chart.mark_area(opacity=0.25).encode(altair.Y("low:Q", title=y_title), altair.Y2("high:Q"))
    return in_columns(altair.layer(bands, chart.mark_line().encode(y)), WIDTH)


def in_columns(chart: Any, width: int) -> Any:
    """One for each kind of weights."""
    return chart.properties(width=width, height=HEIGHT).facet(column=altair.Column("weights:N", title=None))


def curve(key: str) -> Callable[[Found], Points]:
    """A share of the tracker's by step."""
    return lambda record: [(row["step"], row[key]) for row in record["curve"]]


def by_size(record: Found) -> Points:
    """The chance to change by the binary exponent of the base weight."""
    rows = record["measures"]["exponents"]
    return [(exponent, changed / elements) for exponent, elements, changed in rows if exponent is not None and elements >= 200]


def early(record: Found) -> Points:
    """How much of the final subnetwork had changed after some steps."""
    guesses = [(re.fullmatch(r"after (\d+) steps", guess["guess"]), guess["recall"]) for guess in record["early"]]
    return [(int(match[1]), recall) for match, recall in guesses if match]


def draw(found: Found, folder: Path) -> list[Path]:
    """Write them all; returns their paths: none before the part ``updates`` was run."""
    if "updates" not in found["parts"]:
        return []
    folder.mkdir(exist_ok=True)
    charts = {
        "while-training": lines(rows_of(found, curve("sparsity")), "step", "unchanged since the start"),
        "back-again": lines(rows_of(found, curve("cancelled")), "step", "changed and back again"),
        "by-size": lines(rows_of(found, by_size), "weight, power of two", "changed"),
        "early": lines(rows_of(found, early), "changed after step", "of the final subnetwork", type="log"),
    }
    paths = []
    for name, chart in charts.items():
        paths.append(folder / f"{name}.svg")
        chart.save(paths[-1])
        text = re.sub(r' (?:aria-[a-z]+|role|class)="[^"]*"', "", paths[-1].read_text())  # a third to a half; the numbers are in the tables
        paths[-1].write_text(text)
    return paths
