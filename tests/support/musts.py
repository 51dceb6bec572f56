"""Every MUST of both specs, and the vectors and tests that hold it: ``python -m tests.support.musts`` lists them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "spec"

HELD = Path(__file__).with_suffix(".txt")
"""In each line a part of a sentence with MUST that no other has, and what holds it: vectors, and tests as ``FILE::TEST``."""


def text() -> str:
    """Both, one after the other."""
    return " ".join(word for name in ("ckptdiff-v1.md", "chain-v1.md") for word in (SPEC / name).read_text().split())


def held() -> dict[str, list[str]]:
    """What holds each MUST, by a part of its sentence."""
    rows = (line.split(" | ") for line in HELD.read_text().splitlines())
    return {part: names.split() for part, names in rows}


def uncovered() -> list[str]:
    """The surroundings of each MUST that no row's sentence has."""
    whole = text()
    covered = set[int]()
    for part in held():
        begin = whole.index(part)
        end = min((at for at in (whole.find(stop, begin + len(part)) for stop in (". ", " | ", "; ")) if at >= 0), default=len(whole))
        start = max(whole.rfind(stop, 0, begin + 1) for stop in (". ", " | ", "; "))
        covered |= {match.start() for match in re.finditer("MUST", whole) if start <= match.start() < end}
    explained = {
        match.start() for match in re.finditer("MUST", whole) if re.search("BCP 14|RFC 2119", whole[match.start() : match.start() + 90])
    }
    return [
        whole[max(match.start() - 60, 0) : match.start() + 60]
        for match in re.finditer("MUST", whole)
        if match.start() not in covered | explained
    ]


def missing(name: str) -> bool:
    """Whether there is no such vector or test."""
    if "::" not in name:
        return not any((SPEC / folder / f"{name}.vector").exists() for folder in ("vectors", "chain-vectors"))
    file, test = name.split("::")
    return not any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").glob(f"*/{file}.py"))


def main() -> None:
    for part, names in held().items():
        print(f"{part}\n    {' '.join(names)}")
    print(f"{len(held())} sentences; without a vector or test: {uncovered() or 'none'}")


if __name__ == "__main__":
    main()
