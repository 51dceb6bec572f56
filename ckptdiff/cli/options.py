"""What all commands share: options, JSON, errors."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from ckptdiff import io
from ckptdiff.cli.grouped import FILES, MEASURED, OUTPUT, SPEED, Decorator, option
from ckptdiff.errors import visible
from ckptdiff.units import short_number

T = TypeVar("T")
LOCAL_PATH = click.Path(path_type=Path, readable=False)  # the library says what is wrong with a path, in its own words


class PlaceType(click.Path):
    """A path of this machine, an id on the Hub, or the URL of a store, such as ``s3://bucket/model``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            return io.places.place_of(value)
        return super().convert(value, param, ctx)


PATH = PlaceType()


def _remember_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Remember for error messages whether ``--json`` was given."""
    ctx.find_root().meta["json"] = value
    return value


as_json = option(
    OUTPUT, "--json", "json_output", is_flag=True, callback=_remember_json, help="Print one JSON object, which has everything, and no text."
)
threads_option = option(
    SPEED, "--threads", type=click.IntRange(1, 256), metavar="N", help="Use this number of threads.  [default: one per core, at most 8]"
)


def _ray_address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what is no address: click takes the word after ``--ray`` for one, whatever it is."""
    if value is not None and not re.fullmatch(r"local|auto|[^/\s:]+:\d+", value):
        raise click.BadParameter(f"{value!r} is no address: expected HOST:PORT, auto or local; or give --ray behind all else")
    return value


ray_option = option(
    SPEED,
    "--ray",
    is_flag=False,
    flag_value="local",
    callback=_ray_address,
    metavar="[ADDRESS]",
    help="Have a Ray cluster do the work: HOST:PORT of one, auto for the one that runs here, or local, also if nothing is given, to start "
    "one here. --threads is then the number of tasks at a time.  [default: threads do it]",
)
overwrite_option = option(OUTPUT, "--overwrite", is_flag=True, help="Replace the output if it exists.")
dry_run_option = option(
    OUTPUT,
    "--dry-run",
    is_flag=True,
    help="Say from headers alone what would be paired, read and written, and what disk and memory that takes; write nothing.",
)
in_place_option = option(OUTPUT, "--in-place", is_flag=True, help="Change BASE into the target where it lies, and write no OUT.")
fresh_option = option(
    OUTPUT, "--fresh", is_flag=True, help="Start over, instead of going on where an earlier run of this command was killed."
)
tensors_option = option(OUTPUT, "--tensors", is_flag=True, help="Also list every tensor.")
only_option = option(
    FILES,
    "--only",
    multiple=True,
    metavar="GLOB",
    help="Rebuild only the tensors whose names match, into one safetensors file. It may be repeated.",
)


def output_option(name: str, metavar: str, text: str, callback: Callable[..., Any] | None = None, required: bool = True) -> Decorator:
    """Where the result is written, which must be said unless the command says otherwise."""
    return option(OUTPUT, "-o", "--output", name, type=PATH, required=required, callback=callback, metavar=metavar, help=text)


def codec_option(text: str) -> Decorator:
    """The codec of changed tensors."""
    choice = click.Choice(["auto", "context", "sparse", "raw"])
    return option(OUTPUT, "--codec", type=choice, default="auto", show_default=True, help=text)


def output_name(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse names that other tools take for the current folder or for standard output."""
    if str(value) in (".", "-"):
        raise click.BadParameter(f"{str(value)!r} cannot be written to; give a new name")
    return value


def device_option(purpose: str, default: str = "the host") -> Decorator:
    """A torch device, for what ``purpose`` says."""
    text = f"Use this torch device {purpose}, such as cuda; auto takes the first accelerator.  [default: {default}]"
    return option(SPEED, "--device", metavar="DEVICE", help=text)


def base_option(text: str) -> Decorator:
    """A base that may be left out."""
    return option(FILES, "--base", type=PATH, metavar="CHECKPOINT", help=text)


def tolerance_option(name: str, text: str, default: float | tuple[float, ...], multiple: bool = False) -> Decorator:
    """A tolerance, which is a finite number and not negative."""
    text += f"  [default: {' and '.join(map(short_number, default if isinstance(default, tuple) else (default,)))}]"
    settings: dict[str, Any] = {"type": click.FloatRange(min=0), "metavar": "X", "default": default, "multiple": multiple}
    return option(MEASURED, name, **settings, callback=require_finite, help=text)


def changed_above_option() -> Decorator:
    """The tolerance above which an element counts as changed."""
    return tolerance_option("--atol", "Count an element as changed if |d| exceeds this; at 0, if its bits differ.", 0.0)


steps_option = option(
    FILES,
    "--steps",
    multiple=True,
    metavar="STEPS",
    help="Of a chain take these steps: N, A-B, last:N or every:N, with commas between. It may be repeated.  [default: all]",
)


as_option = option(
    MEASURED,
    "--as",
    "as_dtype",
    type=click.Choice(["bf16", "f16", "f32"], case_sensitive=False),
    help="Cast the F32, F16 and BF16 tensors of all sides to this dtype while they are read, as the paper's code does with bf16.  "
    "[default: compare in the target's dtype]",
)


def file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that choose the files of two checkpoints."""
    links = "Follow links that lead out of a checkpoint's folder. Links to weight files and their indexes are always followed."
    include = "Take the files whose paths match although they are left out by default, such as optimizer state. It may be repeated."
    exclude = "Leave out the files whose paths match. It may be repeated."
    for add in (
        option(FILES, "--follow-links", is_flag=True, help=links),
        option(FILES, "--exclude", multiple=True, metavar="GLOB", help=exclude),
        option(FILES, "--include", multiple=True, metavar="GLOB", help=include),
    ):
        command = add(command)
    return command


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that choose the files of two checkpoints and pair their tensors."""
    text = (
        "Turn the name of a target tensor into that of its base tensor by this rule, where neither name nor content pairs them. "
        "It may be repeated."
    )
    return file_options(option(FILES, "--rename", multiple=True, metavar="REGEX=REPL", help=text)(command))


def require_finite(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse infinities and NaNs, which click takes for numbers."""
    if value is not None and not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
        raise click.BadParameter("expected a finite number")
    return value


def refuse_given(what: str, names: Sequence[str]) -> None:
    """Refuse options that are not for what was given."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} does not go with {what}")


def print_note(text: str) -> None:
    """Print a line on standard error."""
    click.echo("ckptdiff: " + visible(text), err=True)


def print_json(value: object) -> None:
    """Print one object on standard output, in ASCII: it is valid in any encoding, and no name in it can steer a terminal."""
    click.echo(json.dumps(value))


def print_result(result: T, json_output: bool, as_text: Callable[[T], None]) -> None:
    """Print a verb's result, as JSON or as text."""
    if json_output:
        print_json(to_json(result))
    else:
        as_text(result)


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is among the arguments, even where others are wrong."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]


def fail(ctx: click.Context, kind: str, message: str, code: int = 3) -> NoReturn:
    """Print an error on standard error, with ``--json`` also as an object on standard output, and exit with ``code``."""
    _print_error(ctx, kind, message)
    print_note(message if kind == "interrupted" else f"error: {message}")
    ctx.exit(code)


def _print_error(ctx: click.Context, kind: str, message: str) -> None:
    if ctx.find_root().meta.get("json"):
        with suppress(OSError):  # stdout may be what failed
            print_json({"error": {"kind": kind, "message": message}})


@contextmanager
def usage_errors(ctx: click.Context) -> Iterator[None]:
    """With ``--json`` print usage errors as an object too. click prints their text, in which names must not steer a terminal."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        message = error.format_message()
        _print_error(ctx, "usage", message)
        raise click.UsageError(visible(message), error.ctx) from None


def to_json(value: Any) -> Any:
    """A verb's result as plain JSON values."""
    if isinstance(value, os.PathLike):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value
