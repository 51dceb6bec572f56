"""The command line: it parses arguments, calls the library, prints results and sets exit codes. It computes nothing.

Standard output carries what was asked for, standard error everything else. Exit codes: 0 done, or the same; 1 a difference, or a failed
check; 2 usage; 3 bad input or output; 130 interrupted.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from ckptdiff import __version__, checkpoint, cli, verbs
from ckptdiff.cli.chain_commands import chain
from ckptdiff.cli.compose_command import compose
from ckptdiff.cli.grouped import FILES, HUB, OrderedGroup, option
from ckptdiff.cli.hub_commands import pull, push
from ckptdiff.cli.mask_command import mask
from ckptdiff.cli.options import (
    LOCAL_PATH,
    PATH,
    as_json,
    asks_for_json,
    base_option,
    fail,
    print_json,
    ray_option,
    selection_options,
    tensors_option,
    threads_option,
    to_json,
    tolerance_option,
    usage_errors,
)
from ckptdiff.cli.patch_commands import apply, make
from ckptdiff.cli.progress import progress_bar
from ckptdiff.cli.report_commands import overlap, report
from ckptdiff.errors import CkptdiffError, visible
from ckptdiff.io.signals import CLOSED_PIPE, raised
from ckptdiff.machine import machine_error


class CommandGroup(OrderedGroup):
    """A group of commands that turns every CkptdiffError into one line on standard error and exit code 3."""

    format_options = click.Group.format_options  # its own are too few for groups

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["json"] = asks_for_json(args)  # a usage error may come before --json is parsed
        with usage_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with raised(), usage_errors(ctx):
                return super().invoke(ctx)
        except CkptdiffError as error:
            fail(ctx, error.kind, str(error))
        except (KeyboardInterrupt, click.Abort) as error:
            fail(ctx, "interrupted", f"interrupted; {str(error) or 'nothing unfinished was left behind'}", 130)
        except Exception as error:
            resource_error = machine_error(error)
            if resource_error is not None:
                fail(ctx, resource_error.kind, str(resource_error))
            if not isinstance(error, OSError):
                raise
            if error.errno == errno.EPIPE:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written has no reader
                ctx.exit(CLOSED_PIPE)
            where = error.filename or "standard output"
            fail(ctx, "output", f"{where}: {error.strerror or error}")


COMPLETION = """\b
For completion of commands and options by the Tab key in bash:
  eval "$(_CKPTDIFF_COMPLETE=bash_source ckptdiff)"
zsh_source and fish_source are for zsh and fish.
"""


COLLECTED_EVERY = 50_000, 20, 100
"""Thresholds of Python's garbage collector, which otherwise looks through the objects of a hundred thousand tensors again and again."""


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=COMPLETION)
@click.version_option(__version__, prog_name="ckptdiff")
def main() -> None:
    """Exact, sparse differences between model checkpoints.

    \b
      ckptdiff make BASE TARGET -o PATCH     store what changed
      ckptdiff apply BASE PATCH -o OUT       rebuild TARGET byte for byte
      ckptdiff demo                          see it work

    A checkpoint is a .safetensors file, a folder that holds some, a URL such as s3://bucket/model, or an id on the Hub such as
    org/name@revision.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    gc.set_threshold(*COLLECTED_EVERY)


main.add_command(make)
main.add_command(apply)
main.add_command(compose)


@main.command()
@click.argument("patch", type=PATH)
@tensors_option
@as_json
def info(patch: Path, tensors: bool, json_output: bool) -> None:
    """Show what a patch holds, without reading its payloads.

    Names the base that the patch needs, the files that it gives, and, where the patch records them, the repos and commits on the Hub that
    have base and target. A terminal shows the beginning of digests; a pipe and --json have them whole.

    \b
    Examples:
      ckptdiff info grpo-patch
      ckptdiff info me/my-model-ckptdiff --tensors
    """
    result = verbs.info.info(patch)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render.print_info(result, tensors)


@main.command()
@click.argument("patch", type=PATH)
@base_option("Also check that the patch fits this base, and that its changes can be decoded.")
@option(FILES, "--target", type=PATH, metavar="CHECKPOINT", help="Also check by SHA-256 that these are the files that the patch gives.")
@option(HUB, "--hub", metavar="ID", help="Compare a checkpoint, given in place of PATCH, with the one in this repo on the Hub.")
@threads_option
@ray_option
@as_json
def verify(patch: Path, hub: str | None, json_output: bool, **options: Any) -> None:
    """Check a patch, its base, or rebuilt files.

    Lists the problems that were found. If there are more than ten of one kind, only the first is shown; --json lists all. The exit code
    is 1 if there is a problem.

    \b
    Examples:
      ckptdiff verify grpo-patch --base Llama-3-8B --target Llama-3-8B-GRPO
      ckptdiff verify Llama-3-8B-GRPO --hub me/Llama-3-8B-GRPO
    """
    if hub is not None and (options["base"] or options["target"] or options["ray"]):
        raise click.UsageError("--hub compares a checkpoint with a repo: give no --base, no --target and no --ray.")
    with progress_bar() as progress:
        result = (
            verbs.verify.verify(patch, progress=progress, **options)
            if hub is None
            else verbs.verify_hub.verify_against_hub(patch, hub, threads=options["threads"])
        )
    if json_output:
        print_json({**to_json(result), "ok": result.ok})
    else:
        cli.render.print_verify(result)
    click.get_current_context().exit(0 if result.ok else 1)


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@tolerance_option("--atol", "Also count the elements with |d| up to this as equal. It may be repeated.", (1e-5, 1e-4), multiple=True)
@selection_options
@base_option("Also compare which elements each changed of this checkpoint, which both started from.")
@tensors_option
@threads_option
@as_json
def compare(a: Path, b: Path, base: Path | None, tensors: bool, json_output: bool, **options: Any) -> None:
    """Count equal elements of two checkpoints.

    Says whether files and tensors are identical, and counts the elements that are bit-identical, and those within a tolerance. With
    --base it also compares which elements each checkpoint changed, and whether these are the same ones.

    Tensors are paired as make pairs them, whatever their names, dtypes and layouts. The exit code is 1 unless B has the tensors of A, bit
    for bit.

    \b
    Examples:
      ckptdiff compare Llama-3-8B-GRPO rebuilt
      ckptdiff compare run-1 run-2 --base Llama-3-8B --tensors
    """
    if base is not None:
        checkpoint.recognition.check_exists(base)
    with progress_bar() as progress:
        result = verbs.compare.compare(a, b, progress=progress, **options)
        changed = None
        if base is not None:
            shared = {key: options[key] for key in ("include", "exclude", "follow_links", "threads")}
            changed = verbs.overlap.overlap([a, b], base, **shared, progress=progress)
    if json_output:
        totals = {key: getattr(result, key) for key in ("elements", "identical", "within", "same", "differing")}
        rows = to_json(result)
        if not tensors:
            del rows["tensors"]
        print_json({**totals, **rows, **({"overlap": changed.to_json()} if changed else {})})
    else:
        cli.render.print_compare(result, tensors)
        if changed:
            cli.render_overlap.print_overlap(changed, series=False, tensors=False)
    click.get_current_context().exit(0 if result.same else 1)


main.add_command(report)
main.add_command(overlap)
main.add_command(mask)
main.add_command(chain)
main.add_command(push)
main.add_command(pull)


@main.command()
@click.argument("folder", type=LOCAL_PATH, required=False, metavar="[DIR]")
def demo(folder: Path | None) -> None:
    """Run the main commands on a small synthetic pair of checkpoints.

    The files are kept in DIR if you name one, which must be a new or empty folder. At the end the commands are listed, to be run on
    checkpoints of your own.

    \b
    Examples:
      ckptdiff demo
      ckptdiff demo ckptdiff-demo
    """
    cli.demo.run(folder, main)


@main.command()
@as_json
def warmup(json_output: bool) -> None:
    """Compile all kernels ahead of time.

    Useful for images, read-only installs and shared folders: otherwise each kernel is compiled when it is first needed. Compiled kernels
    are kept in the folder that CKPTDIFF_CACHE_DIR names; by default that is in the package's own folder, or in the user's cache where that
    cannot be written. The folder is printed.

    \b
    Examples:
      ckptdiff warmup
      CKPTDIFF_CACHE_DIR=/opt/ckptdiff-kernels ckptdiff warmup
    """
    with progress_bar() as progress:
        result = cli.warmup.warm_up(progress)
    if json_output:
        print_json(to_json(result))
    else:
        click.echo(f"{result.compiled} kernels compiled, {result.read} read, in {visible(str(result.folder))}")
