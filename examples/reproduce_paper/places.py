"""Where the files of a reproduction lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def base_of(out: Path, model: str) -> Path:
    """The base of the small or the large model."""
    return out / "base" / model


def rollouts_of(out: Path, model: str) -> Path:
    """What a base says, by task, and ``record.json``."""
    return out / "rollouts" / model


def run_folder(out: Path, name: str) -> Path:
    """A run's: ``patch``, ``record.json``, and patches of its first steps."""
    return out / "runs" / name


def patch_of(out: Path, name: str) -> Path:
    """The patch from the base to a run's model."""
    return run_folder(out, name) / "patch"


def write_json(path: Path, value: Any) -> None:
    """At once: a file that is there is whole."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, separators=(",", ":")))
    beside.replace(path)
