"""What hostile files cost: each is made in two sizes, one four times the other, and given to the tool in a process of its own.

    python tests/support/hostile_inputs.py [--quick] [--json] [NAME...]

Each must be handled or refused by a CkptdiffError within 600 MB of address space beside what imports take, and four times the input may
take six times the CPU at most. Prints a table: seconds of CPU and peak of memory for the larger one; exits with 1 if any breaks this.
``--quick``: a sixteenth of the sizes. No sentence of an error may exceed :data:`LINE` characters but for the path of the file.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ckptdiff
from ckptdiff import Mask
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.verbs.report import report_patch
from tests.support.hostile_cases import CASES

ROOM = 600 << 20
LINE = 1000
TIMES = 6
FLOOR = 0.4
"""Seconds of CPU from which the ratio of two sizes says anything."""


def run(action: str, paths: list[Path], folder: Path) -> None:
    if action == "info":
        ckptdiff.info(paths[0])
    elif action == "verify":
        problems = ckptdiff.verify(paths[0], threads=1).problems
        if problems:
            raise ckptdiff.CkptdiffError(problems[0].message)
    elif action == "apply":
        ckptdiff.apply(paths[0], paths[1:], folder / "out", threads=1)
    elif action == "report":
        report_patch(paths[0])
    elif action == "checkpoint":
        with open_checkpoint(paths[0]):
            pass
    elif action == "blocks":
        from ckptdiff.patching.patch import open_patch

        with open_patch(paths[0]) as patch:
            entry = patch.files[0].table.entries[0]
            for k in range(len(entry.blocks)):
                patch.files[0].payloads.read_blocks(entry, k, k + 1)
    else:
        found = Mask.load(paths[0])
        assert Mask.union(found, found) == found == Mask.vote(2, found, found) and found.shared(found) == found.total
        found.random(1)


@dataclass(frozen=True)
class Outcome:
    """What became of an input: ``handled``, a kind of error, or what went wrong; seconds of CPU, bytes of memory, and the message."""

    what: str
    seconds: float
    peak: int
    message: str


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def measure(action: str, paths: list[Path], folder: Path) -> Outcome:
    """Run it in a process of its own, with 600 MB more than it has at its start."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        what, message = "handled", ""
        limit = _status("VmSize") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        Path("/proc/self/clear_refs").write_text("5")
        before, started = _status("VmRSS"), time.process_time()
        try:
            run(action, paths, folder)
        except ckptdiff.CkptdiffError as error:
            what, message = error.kind, str(error)
        except BaseException as error:
            what, message = f"FAILED: {type(error).__name__}", str(error)
        seconds, peak = time.process_time() - started, max(_status("VmHWM") - before, 0)
        os.write(writer, json.dumps([what, seconds, peak, message[:50_000]]).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return Outcome(*json.loads(data)) if data else Outcome("FAILED: killed", 0.0, 0, "")


def check(name: str, share: int = 1) -> tuple[Outcome, Outcome, str]:
    """Both sizes of a case, a ``share``-th of them, and what is wrong, or nothing."""
    n, action, make = CASES[name]
    outcomes = []
    for size in (max(n // share, 2), max(4 * n // share, 2)):
        with tempfile.TemporaryDirectory() as folder:
            paths = make(Path(folder), size)
            found = measure(action, paths, Path(folder))
            outcomes.append(Outcome(found.what, found.seconds, found.peak, found.message.replace(folder, "")))
    small, large = outcomes
    wrong = [o.what for o in outcomes if o.what.startswith("FAILED")]
    wrong += [f"a message of {len(o.message)} characters" for o in outcomes if len(o.message) > LINE]
    if large.seconds > FLOOR and large.seconds > TIMES * max(small.seconds, FLOOR / TIMES):
        wrong.append(f"{large.seconds / small.seconds:.1f} times the CPU")
    return small, large, "; ".join(wrong)


def main() -> None:
    names = [name for name in sys.argv[1:] if not name.startswith("-")] or list(CASES)
    share, as_json, rows = 16 if "--quick" in sys.argv else 1, "--json" in sys.argv, []
    warm()
    if not as_json:
        print(f"{'input':36} {'outcome':12} {'CPU s':>7} {'x of 1/4':>8} {'peak MB':>8}")
    for name in names:
        small, large, wrong = check(name, share)
        rows.append({"input": name, "outcome": large.what, "wrong": wrong, "message": large.message})
        ratio = large.seconds / max(small.seconds, 1e-3)
        if not as_json:
            print(f"{name:36} {large.what:12.12} {large.seconds:7.2f} {ratio:8.1f} {large.peak / 1e6:8.0f}  {wrong}", flush=True)
    failures = sum(bool(row["wrong"]) for row in rows)
    print(json.dumps(rows) if as_json else f"{len(names)} inputs, {failures} failures")
    sys.exit(failures > 0)


def warm() -> None:
    """Import all that the cases use, so that it counts for none of them."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tensors_empty_applied", "blocks_that_expand", "mask_of_tensors", "report_of_tensors", "header_of_tensors"):
            _, action, make = CASES[name]
            (Path(folder) / name).mkdir()
            with suppress(ckptdiff.CkptdiffError):
                run(action, make(Path(folder) / name, 2), Path(folder) / name)


if __name__ == "__main__":
    main()
