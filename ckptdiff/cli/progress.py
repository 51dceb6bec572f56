"""How far a command has come, on standard error: bars on a terminal, and anywhere else one line when kernels have to be compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ckptdiff import io
from ckptdiff.cli.options import print_note
from ckptdiff.kernels import compiling
from ckptdiff.lazy import rich

if TYPE_CHECKING:
    from ckptdiff.io.parallel import Progress

KERNELS = {"make": 23, "apply": 12, "report": 8, "warmup": 107}
"""About how many kernels a command compiles on a new machine, for a pair of one dtype; ``tests/cli/test_progress.py`` counts them."""
OTHER_KERNELS = 6
"""The same for any other command."""
SECONDS_A_KERNEL = 0.22
"""About how long a kernel takes to compile, on the two cores where this was written."""


@contextmanager
def progress_bar(sizes: bool = True) -> Iterator[Progress]:
    """Show what a command is doing; ``sizes``: progress is in bytes, so that a speed is shown."""
    kernels = KERNELS.get(click.get_current_context().info_name or "", OTHER_KERNELS)
    text = f"compiling the coder for this machine, once (about {max(round(kernels * SECONDS_A_KERNEL), 1)} s)"
    if sys.stderr.isatty():
        with _bars(sizes, text, kernels) as progress:
            yield progress
        return
    with compiling.told(lambda count: _print_once(text)):
        yield io.parallel.no_progress


_printed: list[str] = []


def _print_once(text: str) -> None:
    """Print a note, unless this process has printed one: ``demo`` runs several commands, all of which may compile something."""
    if not _printed:
        _printed.append(text)
        print_note(text)


@contextmanager
def _bars(sizes: bool, text: str, kernels: int) -> Iterator[Progress]:
    """Bars that vanish at the end; the one of what is compiled is above the others, and is there only while kernels are compiled."""
    shown = rich.progress
    left = (shown.TextColumn("{task.description}"), shown.BarColumn())
    speed = (shown.TransferSpeedColumn(),) if sizes else ()
    compiled = shown.Progress(*left, shown.TextColumn("{task.completed} of about {task.total} kernels"))
    work = shown.Progress(*left, shown.TaskProgressColumn(), *speed, shown.TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    before: list[int] = []

    def tell(count: int) -> None:
        before.append(count)
        done = count - before[0]
        _update(compiled, tasks, text, done, max(kernels, done + 1))

    def progress(what: str, done: int, total: int) -> None:
        if text in tasks and not compiling.active():
            compiled.update(tasks[text], visible=False)
        _update(work, tasks, what, done, total)

    group = rich.console.Group(compiled, work)
    with rich.live.Live(group, console=rich.console.Console(stderr=True), transient=True), compiling.told(tell):
        yield progress


def _update(bars: Any, tasks: dict[str, Any], what: str, done: int, total: int) -> None:
    if what not in tasks:
        tasks[what] = bars.add_task(what, total=total)
    bars.update(tasks[what], completed=done, total=total, visible=True)
