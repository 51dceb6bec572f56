"""How to get ckptdiff, and the libraries that some of its commands need: one text, which cards and errors share."""

from __future__ import annotations

HOW_TO_GET_IT = "in a clone of the ckptdiff repository: pip install ."
"""Its last word is what pip installs. To change when a package index has ckptdiff: see docs/release.md."""


def how_to_get(extra: str) -> str:
    """How to get ckptdiff together with the libraries of an extra, such as ``report``."""
    *words, package = HOW_TO_GET_IT.split()
    return " ".join([*words, f"'{package}[{extra}]'"])
