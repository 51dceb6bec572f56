"""What the logs of unfinished work say, for checks of runs that were killed."""

from __future__ import annotations

from pathlib import Path

from ckptdiff.io.unit_log import read_records


def unit_log_of(out: Path) -> Path:
    """The log of unfinished work of an output, which need not be there."""
    return next(out.parent.glob(f".{out.name}.ckptdiff-*/log"), out.parent / "none")


def logged(out: Path, what: str, start: int = 0) -> set[int]:
    """The units that the log says were begun, or are done, from an offset on."""
    log = unit_log_of(out)
    if not log.exists():
        return set()
    with open(log, "rb") as file:
        return {record.content[what] for record in read_records(file, start) if what in record.content}


def spans(numbers: set[int]) -> str:
    """Numbers as text: ``0-4, 7``."""
    ends = [n for n in sorted(numbers) if n + 1 not in numbers]
    starts = [n for n in sorted(numbers) if n - 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)) or "none"
