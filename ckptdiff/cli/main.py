"""The command line: parses, calls the library, renders, sets exit codes. It computes nothing.

stdout carries what was asked for, stderr everything else. Exit codes: 0 done, or the same; 1 a difference, or a failed
check; 2 usage; 3 bad input or output; 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path
from typing import Any

import click

from ckptdiff import __version__, checkpoint, cli, verbs
from ckptdiff.cli.hub_commands import pull, push
from ckptdiff.cli.options import (
    PATH,
    as_json,
    asks_for_json,
    device_option,
    fail,
    file_options,
    finite,
    overwrite_option,
    print_json,
    progress_bar,
    say,
    selection_options,
    threads_option,
    to_json,
    usage_errors,
)
from ckptdiff.cli.report_commands import mask, overlap, report
from ckptdiff.errors import CkptdiffError, visible
from ckptdiff.io.signals import raised
from ckptdiff.machine import machine_error


def _some_path(ctx: click.Context, parameter: click.Parameter, value: Path) -> Path:
    if str(value) in (".", "-"):
        raise click.BadParameter(f"{str(value)!r} cannot be written to; give a new name")
    return value


class Commands(click.Group):
    """A group that turns every CkptdiffError into one line on stderr and exit code 3."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["json"] = asks_for_json(args)  # what is parsed says so too, but a usage error comes before
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
            lacking = machine_error(error)
            if lacking is not None:
                fail(ctx, lacking.kind, str(lacking))
            if not isinstance(error, OSError) or error.errno == errno.EPIPE:
                raise
            where = error.filename or "standard output"
            fail(ctx, "output", f"{where}: {error.strerror or error}")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ckptdiff")
def main() -> None:
    """Exact, sparse differences between model checkpoints.

    \b
      ckptdiff make BASE TARGET -o PATCH     store what changed
      ckptdiff apply BASE PATCH -o OUT       rebuild TARGET byte for byte
      ckptdiff demo                          see it work

    A checkpoint is a .safetensors file, a folder that holds some, or an id on the Hub such as org/name@revision.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@main.command()
@click.argument("base", type=PATH)
@click.argument("target", type=PATH)
@click.option("-o", "--output", "patch", type=PATH, required=True, callback=_some_path, metavar="PATCH", help="Where to write the patch.")
@click.option(
    "--codec", type=click.Choice(["auto", "context", "sparse", "raw"]), default="auto", show_default=True, help="Codec of changed tensors."
)
@selection_options
@click.option("--report", "with_report", is_flag=True, help="Measure first what changed, and store the report in the patch.")
@click.option("--base-repo", metavar="ID", help="Repo on the Hub that has BASE, to record for push and pull; checked by SHA-256.")
@click.option("--target-repo", metavar="ID", help="The same of TARGET.")
@threads_option
@device_option
@overwrite_option
@as_json
def make(base: Path, target: Path, patch: Path, codec: str, with_report: bool, json_output: bool, **options: Any) -> None:
    """Store the difference between two checkpoints.

    All files of TARGET go in, byte for byte, but for version control, caches, logs, optimizer and trainer state, and secrets, which are
    listed.

    \b
    TARGET a file gives a patch file, TARGET a folder gives a patch folder.
      ckptdiff make base.safetensors tuned.safetensors -o tuned-patch.safetensors
      ckptdiff make Llama-3-8B Llama-3-8B-GRPO -o grpo-patch
    """

    with progress_bar() as progress:
        measured = None
        if with_report:
            same = {key: options[key] for key in ("include", "exclude", "follow_links", "rename", "threads")}
            measured = verbs.report.report(base, target, progress=progress, **same)
        result = verbs.make.make(
            base, target, patch, codec=None if codec == "auto" else codec, report=measured, progress=progress, **options
        )
    if json_output:
        print_json({**to_json(result), "ratio": result.ratio})
    else:
        cli.render.made(result)


@main.command()
@click.argument("base", type=PATH)
@click.argument("patches", type=PATH, nargs=-1, required=True, metavar="PATCH...")
@click.option("-o", "--output", "out", type=PATH, required=True, callback=_some_path, metavar="OUT", help="File or folder to write.")
@click.option("--only", multiple=True, metavar="GLOB", help="Rebuild just the tensors whose names match, into one safetensors file.")
@threads_option
@click.option("--device", metavar="DEVICE", help="Torch device that moves weights; slower from file to file.  [default: the host]")
@overwrite_option
@as_json
def apply(base: Path, patches: tuple[Path, ...], out: Path, json_output: bool, **options: Any) -> None:
    """Rebuild the target of one patch or a chain.

    \b
    Patches, base and result are checked; OUT appears only when it is right.
      ckptdiff apply Llama-3-8B grpo-patch -o Llama-3-8B-GRPO
      ckptdiff apply base step1 step2 step3 -o model
      ckptdiff apply base patch -o heads.safetensors --only '*lm_head*'
    """

    code = "" if options["only"] else cli.render.may_run(verbs.info.info(patches[-1]))
    if code:  # before anything is written (spec 14)
        say(f"the patch gives files that other tools may run, read them before you use them: {code}")
    with progress_bar() as progress:
        result = verbs.apply.apply(base, patches, out, progress=progress, **options)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render.applied(result)


@main.command()
@click.argument("patch", type=PATH)
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@as_json
def info(patch: Path, tensors: bool, json_output: bool) -> None:
    """Show what a patch holds, without reading its payloads."""

    result = verbs.info.info(patch)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render.described(result, tensors)


@main.command()
@click.argument("patch", type=PATH)
@click.option("--base", type=PATH, help="Check that the patch fits this base.")
@click.option("--target", type=PATH, help="Check by SHA-256 that these are the files that the patch gives.")
@click.option("--hub", metavar="ID", help="Check that a checkpoint, given as PATCH, is that of a repo on the Hub.")
@threads_option
@as_json
def verify(patch: Path, hub: str | None, json_output: bool, **options: Any) -> None:
    """Check a patch, its base, or rebuilt files.

    Lists the problems found (of more than ten of one kind the first; --json lists all), and exits with 1 if there is one. Changes are
    decoded where --base is given.
    """

    if hub is not None and (options["base"] or options["target"]):
        raise click.UsageError("--hub compares a checkpoint with a repo: give no --base and no --target.")
    with progress_bar() as progress:
        result = (
            verbs.verify.verify(patch, progress=progress, **options)
            if hub is None
            else verbs.verify.verify_against_hub(patch, hub, threads=options["threads"])
        )
    if json_output:
        print_json({**to_json(result), "ok": result.ok})
    else:
        cli.render.verified(result)
    click.get_current_context().exit(0 if result.ok else 1)


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    multiple=True,
    default=(1e-5, 1e-4),
    show_default=True,
    callback=finite,
    help="Tolerance; may be repeated.",
)
@file_options
@click.option("--base", type=PATH, help="Checkpoint that both started from: also compare what changed in each.")
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@threads_option
@as_json
def compare(a: Path, b: Path, base: Path | None, tensors: bool, json_output: bool, **options: Any) -> None:
    """Count equal elements of two checkpoints.

    Bit-identical ones, and those within a tolerance. With --base also which elements each changed, and whether the same ones.

    Exits with 1 if any bit of a tensor differs.
    """

    if base is not None:
        checkpoint.recognition.check_exists(base)
    with progress_bar() as progress:
        result = verbs.compare.compare(a, b, progress=progress, **options)
        changed = None
        if base is not None:
            same = {key: options[key] for key in ("include", "exclude", "follow_links", "threads")}
            changed = verbs.overlap.overlap([a, b], base, **same, progress=progress)
    if json_output:
        totals = {"elements": result.elements, "identical": result.identical, "within": result.within, "same": result.same}
        rows = to_json(result)
        if not tensors:
            del rows["tensors"]
        print_json({**totals, **rows, **({"overlap": changed.to_json()} if changed else {})})
    else:
        cli.render.compared(result, tensors)
        if changed:
            cli.render_report.overlapped(changed, series=False, tensors=False)
    click.get_current_context().exit(0 if result.same else 1)


main.add_command(report)
main.add_command(overlap)
main.add_command(mask)
main.add_command(push)
main.add_command(pull)


@main.command()
@click.argument("folder", type=PATH, required=False, metavar="[DIR]")
def demo(folder: Path | None) -> None:
    """Run every command on a small synthetic pair.

    Files are kept in DIR if you name one.
    """

    cli.demo.run(folder, main)


@main.command()
@as_json
def warmup(json_output: bool) -> None:
    """Compile all kernels now, for images, read-only installs and shared folders.

    They are compiled when they are first needed otherwise. CKPTDIFF_CACHE_DIR names the folder that they are kept in; without it
    that is in the package's own folder, or in the user's cache where that cannot be written. The folder is printed.
    """

    with progress_bar(sizes=False) as progress:
        result = cli.warmup.warm_up(progress)
    if json_output:
        print_json(to_json(result))
    else:
        click.echo(f"{result.compiled} kernels compiled, {result.read} read, in {visible(str(result.folder))}")
