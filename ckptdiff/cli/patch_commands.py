"""The commands that write a patch, and a checkpoint from patches: ``make`` and ``apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdiff import cli, verbs
from ckptdiff.cli.grouped import FILES, HUB, OUTPUT, GroupedCommand, option
from ckptdiff.cli.options import (
    PATH,
    as_json,
    codec_option,
    device_option,
    dry_run_option,
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
    threads_option,
    to_json,
)
from ckptdiff.cli.progress import progress_bar


@click.command(cls=GroupedCommand)
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


@click.command(cls=GroupedCommand)
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
