"""The command line: it parses arguments, calls the library, prints results and sets exit codes. It computes nothing.

Standard output carries what was asked for, standard error everything else. Exit codes: 0 done, or the same; 1 a difference, or a failed
check; 2 usage; 3 bad input or output; 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from ckptdiff import __version__, checkpoint, cli, verbs
from ckptdiff.cli.chain_commands import chain
from ckptdiff.cli.compose_command import compose
from ckptdiff.cli.grouped import FILES, HUB, OUTPUT, OrderedGroup, option
from ckptdiff.cli.hub_commands import pull, push
from ckptdiff.cli.options import (
    LOCAL_PATH,
    PATH,
    as_json,
    asks_for_json,
    base_option,
    codec_option,
    device_option,
    dry_run_option,
    fail,
    fresh_option,
    in_place_option,
    only_option,
    output_name,
    output_option,
    overwrite_option,
    print_json,
    print_note,
    print_result,
    ray_option,
    refuse_given,
    selection_options,
    tensors_option,
    threads_option,
    to_json,
    tolerance_option,
    usage_errors,
)
from ckptdiff.cli.progress import progress_bar
from ckptdiff.cli.report_commands import mask, overlap, report
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


@main.command()
@click.argument("base", type=PATH)
@click.argument("target", type=PATH)
@output_option("patch", "PATCH", "Write the patch to this path.", output_name)
@codec_option("Store changed tensors by this codec; auto takes the one that gives the smallest patch.")
@selection_options
@option(FILES, "--force", is_flag=True, help="Make the patch even if nothing of BASE is in TARGET.")
@option(OUTPUT, "--report", "with_report", is_flag=True, help="Measure what training changed, and store the report in the patch.")
@option(HUB, "--base-repo", metavar="ID", help="Record that this repo on the Hub has BASE, after comparing its files by SHA-256.")
@option(HUB, "--target-repo", metavar="ID", help="Record that this repo on the Hub has TARGET, after comparing its files by SHA-256.")
@option(HUB, "--trust-hub-cache", is_flag=True, help="Take the SHA-256 of files in the Hub's cache from their names there.")
@threads_option
@ray_option
@device_option("to compare the checkpoints")
@overwrite_option
@dry_run_option
@fresh_option
@as_json
def make(base: Path, target: Path, patch: Path, codec: str, with_report: bool, dry_run: bool, json_output: bool, **options: Any) -> None:
    """Store the difference between two checkpoints.

    The patch holds all files of TARGET, byte for byte, except for version control, caches, logs, optimizer and trainer state, and files
    named like secrets. What is left out is listed. PATCH becomes a file if TARGET is a file, and a folder if TARGET is a folder.

    If the command is killed or interrupted, the same command goes on where it was.

    \b
    Examples:
      ckptdiff make base.safetensors tuned.safetensors -o patch.safetensors
      ckptdiff make Llama-3-8B Llama-3-8B-GRPO -o grpo-patch --report
      ckptdiff make Llama-3-8B Llama-3-8B-GRPO -o grpo-patch --dry-run
      ckptdiff make s3://bucket/base s3://bucket/tuned -o s3://bucket/patch
    """
    chosen = None if codec == "auto" else codec
    if dry_run:
        refuse_given("--dry-run, which measures and writes nothing", ("with_report", "base_repo", "target_repo"))
        given = {name: value for name, value in options.items() if name not in ("base_repo", "target_repo", "fresh", "ray")}
        print_result(verbs.plan_make.plan_make(base, target, patch, codec=chosen, **given), json_output, cli.render_plan.print_make_plan)
        return
    with progress_bar() as progress:
        measured = None
        if with_report:
            shared = {key: options[key] for key in ("include", "exclude", "follow_links", "rename", "threads", "ray")}
            measured = verbs.report.report(base, target, progress=progress, **shared)
        result = verbs.make.make(base, target, patch, codec=chosen, report=measured, progress=progress, noted=print_note, **options)
    if json_output:
        print_json({**to_json(result), "ratio": result.ratio})
    else:
        cli.render.print_make(result)


@main.command()
@click.argument("base", type=PATH)
@click.argument("patches", type=PATH, nargs=-1, required=True, metavar="PATCH...")
@output_option("out", "OUT", "Write this folder or file.", output_name, required=False)
@in_place_option
@only_option
@threads_option
@ray_option
@overwrite_option
@dry_run_option
@fresh_option
@as_json
def apply(
    base: Path, patches: tuple[Path, ...], out: Path | None, in_place: bool, dry_run: bool, json_output: bool, **options: Any
) -> None:
    """Rebuild the target of one patch or of a chain of patches.

    The patches, the base and the result are checked; OUT appears only if it is right. If the command is killed or interrupted, the same
    command goes on where it was.

    With --in-place and no OUT, BASE itself becomes the target. There is no way back: if the command is killed, the same command goes on,
    and until it has ended BASE is neither base nor target.

    \b
    Examples:
      ckptdiff apply Llama-3-8B grpo-patch -o Llama-3-8B-GRPO
      ckptdiff apply base step1 step2 step3 -o model
      ckptdiff apply base patch -o heads.safetensors --only '*lm_head*'
      ckptdiff apply my-copy patch --in-place
    """
    told: dict[str, Any] = {"listed": cli.render.note_runnable, "noted": print_note}
    if in_place:
        refuse_given("--in-place", ("out", "only", "overwrite", "fresh", "dry_run", "ray"))
        if len(patches) > 1:
            raise click.UsageError("--in-place takes one patch: apply them one by one, or compose them.")
    elif out is None:
        raise click.UsageError("Missing option '-o' / '--output': say where to write, or give --in-place.")
    elif dry_run:
        given = {name: value for name, value in options.items() if name not in ("fresh", "ray")}
        print_result(verbs.plan_apply.plan_apply(base, patches, out, **given), json_output, cli.render_plan.print_apply_plan)
        return
    with progress_bar() as progress:
        if out is None:
            result = verbs.apply_in_place.apply_in_place(base, patches[0], threads=options["threads"], progress=progress, **told)
        else:
            result = verbs.apply.apply(base, patches, out, progress=progress, **told, **options)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render.print_apply(result)


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
