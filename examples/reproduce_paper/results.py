"""RESULTS.md from ``measures.json`` alone: ``python results.py measures.json > RESULTS.md``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from claims import claims, markdown
from prose import NOT_COVERED, introduction, sentences, verdicts
from tables import tables

CHARTS = ("while-training", "back-again", "by-size", "early")


def page(found: dict[str, Any]) -> str:
    """The whole page, of the parts that were run.

    Args:
        found: what ``measures.json`` holds.
    """
    made = tables(found)
    said = claims(made)
    parts = ["# What came out", introduction(found), sentences(made)]
    if said:
        parts += ["## The paper, row by row", verdicts(said), markdown(said)]
    parts += ["## What was not covered", NOT_COVERED, "## Tables", *(table.markdown() for table in made.values())]
    if "updates" in found["parts"]:
        parts += ["## Charts", *(f"![{name.replace('-', ' ')}](charts/{name}.svg)" for name in CHARTS)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(Path(sys.argv[1]).read_text())))
