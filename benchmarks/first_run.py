"""What a command compiles on a new machine: each kernel, and the CPU seconds that it takes.

    python benchmarks/first_run.py [--out FILE] [COMMAND ...]

runs ``ckptdiff COMMAND ...`` (default: ``demo``) in this process with an empty kernel cache, and prints a Markdown table; ``--out`` writes
FILE.json too. A kernel's own seconds are without those of the functions that it takes in, which have rows of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click


def listener(rows: list[dict[str, Any]]) -> Any:
    """A listener for Numba that adds a row for each function that is compiled, for each of its signatures."""
    from numba.core import event

    open_: list[tuple[float, list[float]]] = []

    class Seconds(event.Listener):
        def on_start(self, event: Any) -> None:
            open_.append((time.thread_time(), []))

        def on_end(self, event: Any) -> None:
            began, parts = open_.pop()
            total = time.thread_time() - began
            if open_:
                open_[-1][1].append(total)
            function, kinds = event.data["dispatcher"].py_func, ", ".join(map(str, event.data["args"]))
            name = f"{function.__module__.removeprefix('ckptdiff.')}.{function.__name__}"
            rows.append({"function": name, "arguments": kinds, "own": total - sum(parts), "kernel": not open_})

    return Seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    command = arguments.command or ["demo"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.environ["CKPTDIFF_CACHE_DIR"] = folder
        from numba.core import event

        from ckptdiff.cli.main import main as run

        event.register("numba:compile", listener(rows))
        began = time.process_time()
        with contextlib.suppress(click.exceptions.Exit):
            run(command, standalone_mode=False)
        seconds = time.process_time() - began
    kernels, compiling = sum(row["kernel"] for row in rows), sum(row["own"] for row in rows)
    of_it = f"{compiling:.2f} of it for {kernels} kernels and {len(rows) - kernels} parts"
    print(f"`ckptdiff {' '.join(command)}`: {seconds:.2f} s of CPU, {of_it}.\n")
    print("| function | | seconds |\n|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["own"]):
        print(f"| {row['function']} | {'kernel' if row['kernel'] else 'part'} | {row['own']:.3f} |")
    if arguments.out:
        arguments.out.with_suffix(".json").write_text(json.dumps({"command": command, "cpu": seconds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
