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

KERNELS = {"make": 22, "apply": 13, "report": 8, "warmup": 114, "chain add": 26, "chain restore": 13}
"""About how many kernels a command compiles on a new machine, for a pair of one dtype; ``tests/cli/test_progress.py`` counts them."""
OTHER_KERNELS = 6
"""The same for any other command."""
SECONDS_A_KERNEL = 0.22
"""About how long a kernel takes to compile, on the two cores where this was written."""


COUNTED = ("taking ranks", "verifying", "compiling", "reading steps", "checking steps")
"""What is counted in pieces; the progress of all else is in bytes."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show what a command is doing."""
    context = click.get_current_context()
    command = context.info_name or ""
    if context.parent is not None and context.parent.parent is not None:  # a command of a group
        command = f"{context.parent.info_name} {command}"
    kernels = KERNELS.get(command, OTHER_KERNELS)
    if sys.stderr.isatty():
        with _bars(command, kernels) as progress:
            yield progress
        return
    with compiling.told(lambda _, unkept: _print_once(_what_is_compiled(command, kernels, unkept))):
        yield io.parallel.no_progress


def _what_is_compiled(command: str, kernels: int, unkept: str | None) -> str:
    """What is said while a command's kernels are compiled."""
    about = f"about {max(round(kernels * SECONDS_A_KERNEL), 1)} s"
    if unkept is None:
        return f"compiling what {command} needs on this machine, once ({about})"
    return f"compiling what {command} needs ({about}), for this run alone: {unkept}; CKPTDIFF_CACHE_DIR names another folder"


_printed: list[str] = []


def _print_once(text: str) -> None:
    """Print a note, unless this process has printed one: ``demo`` runs several commands, all of which may compile something."""
    if not _printed:
        _printed.append(text)
        print_note(text)


@contextmanager
def _bars(command: str, kernels: int) -> Iterator[Progress]:
    """Bars that vanish at the end; the one of what is compiled is above the others, and is there only while kernels are compiled."""
    shown = rich.progress
    left = (shown.TextColumn("{task.description}"), shown.BarColumn())
    compiled = shown.Progress(*left, shown.TextColumn("{task.completed} of about {task.total} kernels"))
    counted = shown.Progress(*left, shown.MofNCompleteColumn(), shown.TimeRemainingColumn())
    read = shown.Progress(*left, shown.TaskProgressColumn(), shown.TransferSpeedColumn(), shown.TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    before: list[int] = []

    def tell(count: int, unkept: str | None) -> None:
        before.append(count)
        done = count - before[0]
        _update(compiled, tasks, _what_is_compiled(command, kernels, unkept), done, max(kernels, done + 1))
        live.refresh()  # short kernels end between two of its own refreshes

    def progress(what: str, done: int, total: int) -> None:
        if before and not compiling.active():
            for task in compiled.task_ids:
                compiled.update(task, visible=False)
        _update(counted if what in COUNTED else read, tasks, what, done, total)

    group = rich.console.Group(compiled, counted, read)
    live = rich.live.Live(group, console=rich.console.Console(stderr=True), transient=True)
    with live, compiling.told(tell):
        yield progress


def _update(bars: Any, tasks: dict[str, Any], what: str, done: int, total: int) -> None:
    if what not in tasks:
        tasks[what] = bars.add_task(what, total=total)
    bars.update(tasks[what], completed=done, total=total, visible=True)
