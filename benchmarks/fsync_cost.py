"""What flushing costs: ``make`` and ``apply`` as they are, and with an ``fsync`` that does nothing, in turns.

    python benchmarks/fsync_cost.py FOLDER [--mb 500] [--turns 3]

makes a pair in FOLDER, and removes all that it has written; prints the seconds of each turn, and for each verb the ratio of the shortest. A
run flushes what it has written of each unit of 64 MiB of the target, its log, and at the end the output (docs/commands.md). What is done
without it is compared with what is done with it.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import time
from pathlib import Path

from made_pairs import Recipe, write

WITHOUT = "import os\nos.fsync = lambda fd: None\n"
PROGRAM = "from ckptdiff.__main__ import main\nmain()"


def seconds(code: str, *arguments: object) -> float:
    """How long a command takes, as a whole process."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, *map(str, arguments), "--threads", "2"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def same(one: Path, other: Path) -> bool:
    """Whether two files, or the files of two patch folders, are the same."""
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    return names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file()) and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names
    )


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, default=500)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    work = options.folder / "fsync-cost"
    try:
        write(work, Recipe(options.mb, 12.0, "BF16", 0))
        base, target, patch = work / "base.safetensors", work / "target.safetensors", work / "patch"
        seconds(PROGRAM, "make", base, target, "-o", patch)
        outs = [work / "out-with", work / "out-without"]
        for verb, given in (("make", (base, target)), ("apply", (base, patch))):
            taken: list[list[float]] = [[], []]
            for _ in range(options.turns):
                for k, code in enumerate((PROGRAM, WITHOUT + PROGRAM)):
                    outs[k].unlink(missing_ok=True)
                    taken[k].append(seconds(code, verb, *given, "-o", outs[k]))
                assert same(*outs), verb
            texts = [", ".join(f"{value:.1f}" for value in some) for some in taken]
            print(f"{verb}: {texts[0]} s with fsync; {texts[1]} s without; ratio {min(taken[0]) / min(taken[1]):.3f}", flush=True)
            for out in outs:
                out.unlink()
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
