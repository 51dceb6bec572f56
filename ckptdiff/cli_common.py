"""What all commands share: options, JSON, a progress bar."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptdiff.canonical import visible

if TYPE_CHECKING:
    from ckptdiff.parallel import Progress


PATH = click.Path(path_type=Path, readable=False)  # the library says what is wrong with a path, in its own words


def note_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    ctx.find_root().meta["json"] = value
    return value


as_json = click.option("--json", "json_output", is_flag=True, callback=note_json, help="Print one JSON object instead of text.")
device_option = click.option("--device", metavar="DEVICE", help="Torch device that compares, such as cuda, or auto.  [default: the host]")
threads_option = click.option("--threads", type=click.IntRange(1, 256), help="Threads to use.  [default: cores, at most 8]")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which files and tensors of two checkpoints stand against each other."""
    for option in (
        click.option("--rename", multiple=True, metavar="REGEX=REPL", help="Turn a target tensor's name into the base's."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Leave files out."),
        click.option("--include", multiple=True, metavar="GLOB", help="Take files that are left out by default, such as optimizer state."),
    ):
        command = option(command)
    return command


def finite(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
        raise click.BadParameter("expected a finite number")
    return value


def say(text: str) -> None:
    """A line on stderr."""
    click.echo("ckptdiff: " + visible(text), err=True)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def to_json(value: Any) -> Any:
    """A result as plain JSON values."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


@contextmanager
def progress_bar(sizes: bool = True) -> Iterator[Progress]:
    """A progress bar on stderr where a person watches, else nothing; ``sizes``: of bytes, so with a speed."""
    from ckptdiff.parallel import no_progress

    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    speed = (TransferSpeedColumn(),) if sizes else ()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *speed, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress
