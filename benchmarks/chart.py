"""A chart of what ``peers.py`` measured: the patch as a share of the target, by peer and pair.

    python benchmarks/chart.py OUT.svg PEERS.json [...] [--title NAME=TITLE ...]

Needs Altair and vl-convert (``pip install '.[report]'``). Reads nothing but the JSON files, and gives the same picture of
the same files.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import altair
import vl_convert

from ckptdiff.units import percent

OURS = "ckptdiff"
MOST_COLUMNS = 4
WIDTH = 1000
"""Width of all panels of a row with their names, in pixels."""
NAMES, NUMBERS, BETWEEN = 88, 44, 16
"""Pixels of a panel that the peers' names take, those that the longest bar's number takes, and those between two panels."""


def rows(paths: list[Path], titles: dict[str, str]) -> list[dict[str, Any]]:
    """One row a pair and peer that was exact."""
    found = []
    for path in paths:
        for pair in json.loads(path.read_text())["pairs"]:
            for row in pair["rows"]:
                if "bytes" in row["best"] and row["status"] in ("file", "tensors"):
                    share = row["best"]["bytes"] / pair["bytes"]
                    title = titles.get(pair["name"], pair["name"])
                    found.append({"pair": title, "peer": row["peer"], "share": share, "label": percent(share)})
    return found


def panels_in_a_row(count: int) -> int:
    """How many of ``count`` panels stand side by side: as many as leave the fewest places of the last row empty."""
    return min(count, max(range(2, MOST_COLUMNS + 1), key=lambda columns: (-(-count % columns), columns)))


def panel(data: list[dict[str, Any]], pair: str, width: int) -> Any:
    """The bars of one pair, the smallest patch on top; the longest bar and its number take the whole width."""
    mine = [row for row in data if row["pair"] == pair]
    top = max(row["share"] for row in mine) * width / (width - NUMBERS)
    x = altair.X("share:Q", title=None, axis=None, scale=altair.Scale(domain=[0, top], nice=False))
    base = altair.Chart(altair.Data(values=mine)).encode(
        y=altair.Y("peer:N", sort="x", title=None, axis=altair.Axis(minExtent=NAMES, maxExtent=NAMES, ticks=False))
    )
    colour = altair.condition(altair.datum.peer == OURS, altair.value("#d97706"), altair.value("#9db4cc"))
    bars = base.mark_bar().encode(x=x, color=colour)
    text = base.mark_text(align="left", dx=3, fontSize=10).encode(x=x, text="label:N")
    title = altair.Title(pair, fontSize=11, fontWeight="normal", anchor="start", frame="bounds")
    return altair.layer(bars, text).properties(width=width, height=altair.Step(16), title=title)


def chart(data: list[dict[str, Any]], pairs: list[str]) -> Any:
    """A panel a pair, each with its own scale from 0, in rows without an empty place."""
    shown = [pair for pair in pairs if any(row["pair"] == pair for row in data)]
    shown += sorted({row["pair"] for row in data} - set(shown))
    columns = panels_in_a_row(len(shown))
    width = (WIDTH - BETWEEN * (columns - 1)) // columns - NAMES
    panels = altair.concat(*(panel(data, pair, width) for pair in shown), columns=columns, spacing=BETWEEN)
    return panels.properties(title="Patch as a share of the target: less is better", padding=12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.svg")
    parser.add_argument("results", type=Path, nargs="+", metavar="PEERS.json")
    parser.add_argument("--title", action="append", default=[], metavar="NAME=TITLE", help="what to call a pair; their order counts")
    arguments = parser.parse_args()
    titles = dict(title.split("=", 1) for title in arguments.title)
    spec = chart(rows(arguments.results, titles), list(titles.values())).to_dict()
    config = {"background": "white", "font": "DejaVu Sans, sans-serif", "view": {"stroke": None}}
    svg = vl_convert.vegalite_to_svg(spec, config=config)
    arguments.out.write_text(re.sub(r' (?:aria-[a-z]+|role|class)="[^"]*"', "", svg))  # half of it; a page gives the image a text


if __name__ == "__main__":
    main()
