"""What all commands share: options, JSON, a progress bar."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ckptdiff import io
from ckptdiff.errors import visible
from ckptdiff.lazy import rich

if TYPE_CHECKING:
    from ckptdiff.io.parallel import Progress


PATH = click.Path(path_type=Path, readable=False)  # the library says what is wrong with a path, in its own words


def note_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    ctx.find_root().meta["json"] = value
    return value


as_json = click.option("--json", "json_output", is_flag=True, callback=note_json, help="Print one JSON object instead of text.")
device_option = click.option("--device", metavar="DEVICE", help="Torch device that compares, such as cuda, or auto.  [default: the host]")
threads_option = click.option("--threads", type=click.IntRange(1, 256), help="Threads to use.  [default: cores, at most 8]")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


def file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which files belong to two checkpoints."""
    for option in (
        click.option("--follow-links", is_flag=True, help="Take what links lead to that leave a folder, as weight files always may."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Leave files out."),
        click.option("--include", multiple=True, metavar="GLOB", help="Take files that are left out by default, such as optimizer state."),
    ):
        command = option(command)
    return command


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which files and tensors of two checkpoints stand against each other."""
    rename = click.option("--rename", multiple=True, metavar="REGEX=REPL", help="Turn a target tensor's name into the base's.")
    return file_options(rename(command))


def finite(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
        raise click.BadParameter("expected a finite number")
    return value


def say(text: str) -> None:
    """A line on stderr."""
    click.echo("ckptdiff: " + visible(text), err=True)


def print_json(value: object) -> None:
    """One object on stdout, in ASCII: valid in any encoding, and nothing in a name steers a terminal."""
    click.echo(json.dumps(value))


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` stands among arguments, whatever is wrong with the others."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]


def fail(ctx: click.Context, kind: str, message: str, code: int = 3) -> NoReturn:
    """End with a line on stderr, and with ``--json`` an object on stdout."""
    _print_error(ctx, kind, message)
    say(message if kind == "interrupted" else f"error: {message}")
    ctx.exit(code)


def _print_error(ctx: click.Context, kind: str, message: str) -> None:
    if ctx.find_root().meta.get("json"):
        with suppress(OSError):  # stdout may be what failed
            print_json({"error": {"kind": kind, "message": message}})


@contextmanager
def usage_errors(ctx: click.Context) -> Iterator[None]:
    """With ``--json`` print usage errors as an object too; click prints their text, and names in it must not steer a terminal."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        message = error.format_message()
        _print_error(ctx, "usage", message)
        raise click.UsageError(visible(message), error.ctx) from None


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

    if not sys.stderr.isatty():
        yield io.parallel.no_progress
        return
    shown = rich.progress
    speed = (shown.TransferSpeedColumn(),) if sizes else ()
    columns = (shown.TextColumn("{task.description}"), shown.BarColumn(), shown.TaskProgressColumn(), *speed, shown.TimeRemainingColumn())
    with shown.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress
