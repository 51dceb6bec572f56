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

OURS = "ckptdiff"


def rows(paths: list[Path], titles: dict[str, str]) -> list[dict[str, Any]]:
    """One row a pair and peer that was exact."""
    found = []
    for path in paths:
        for pair in json.loads(path.read_text())["pairs"]:
            for row in pair["rows"]:
                if "bytes" in row["best"] and row["status"] in ("file", "tensors"):
                    share = row["best"]["bytes"] / pair["bytes"]
                    title = titles.get(pair["name"], pair["name"])
                    found.append({"pair": title, "peer": row["peer"], "share": share, "label": f"{share:.2%}"})
    return found


def chart(data: list[dict[str, Any]], pairs: list[str]) -> Any:
    """Bars, one panel a pair with its own scale from 0, the smallest patch on top."""
    x = altair.X("share:Q", title=None, axis=None)
    base = altair.Chart().encode(y=altair.Y("peer:N", sort="x", title=None))
    colour = altair.condition(altair.datum.peer == OURS, altair.value("#d97706"), altair.value("#9db4cc"))
    bars = base.mark_bar().encode(x=x, color=colour)
    text = base.mark_text(align="left", dx=3, fontSize=10).encode(x=x, text="label:N")
    panels = altair.layer(bars, text, data=altair.Data(values=data)).properties(width=190, height=altair.Step(16))
    facets = panels.facet(facet=altair.Facet("pair:N", sort=pairs, title=None), columns=3).resolve_scale(x="independent", y="independent")
    return facets.properties(title="Patch as a share of the target: less is better", padding=12)


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
