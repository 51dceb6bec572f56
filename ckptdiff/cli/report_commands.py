"""The commands that measure what training changed: ``report`` and ``overlap``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ckptdiff import checkpoint, cli, pages, patching, subnetwork, verbs
from ckptdiff.cli.options import (
    PATH,
    as_json,
    file_options,
    finite,
    overwrite_option,
    print_json,
    progress_bar,
    selection_options,
    threads_option,
)

POSITIVE = click.FloatRange(min=0)
html_option = click.option("--html", type=PATH, metavar="FILE", help="Write a page with charts, in one file.")
png_option = click.option("--png", type=PATH, metavar="DIR", help="Write the charts as pictures.")


@click.command()
@click.argument("base", type=PATH, metavar="BASE|PATCH")
@click.argument("target", type=PATH, required=False, metavar="[TARGET|PATCH]")
@selection_options
@click.option("--atol", type=POSITIVE, default=1e-5, show_default=True, callback=finite, help="Count |d| up to this as equal.")
@click.option("--rtol", type=POSITIVE, default=1e-3, show_default=True, callback=finite, help="Count |d| up to this share of |base|.")
@click.option(
    "--rank",
    type=click.Choice(["none", "sample", "all"]),
    default="sample",
    show_default=True,
    help="Which matrices' rank: 32, spread over modules and layers, or all.",
)
@click.option("--device", metavar="DEVICE", help="Torch device for ranks, such as cuda, or auto.  [default: NumPy]")
@html_option
@png_option
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@threads_option
@overwrite_option
@as_json
def report(
    base: Path, target: Path | None, html: Path | None, png: Path | None, tensors: bool, overwrite: bool, json_output: bool, **options: Any
) -> None:
    """Measure what training changed: sparsity, size of the moves, rank.

    TARGET is a checkpoint or a patch from BASE, which need not be applied. A patch alone shows the report that make --report stored in it,
    or how many elements changed.
    """

    if target is None:
        _check_alone(base, checkpoint.recognition.is_patch(base))
    elif checkpoint.recognition.is_patch(base) and not checkpoint.recognition.is_patch(target):
        raise click.UsageError(f"{base} is a patch: give the base first, ckptdiff report BASE PATCH")
    _check_outputs(html, png, (base, *([target] if target else [])), overwrite)
    if target is None:
        result = verbs.report.report_patch(base)
        if not result.complete and (html or png):
            raise click.UsageError("--html and --png need BASE too: ckptdiff report BASE PATCH --html FILE")
    else:
        with progress_bar() as progress:
            result = verbs.report.report(base, target, progress=progress, **options)
    value = result.to_json()
    if html:
        _write_page(html, pages.report_page.render_page(value), overwrite)
    if png:
        pages.report_charts.write_png(value, png)
    if json_output:
        print_json(value)
    else:
        cli.render_report.reported(result, tensors)
        cli.render_report.written(html, png)


def _check_alone(path: Path, patch: bool) -> None:
    """A patch alone is told by no options: what it stores is what it has."""
    if not patch:
        raise click.UsageError(f"{path} is not a patch: give BASE and TARGET, or a patch alone.")
    given = click.get_current_context().get_parameter_source
    for name in ("atol", "rtol", "rank", "device", "include", "exclude", "follow_links", "rename"):
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} needs BASE too: a patch alone says what was stored in it. ckptdiff report BASE {path}"
            )


def _check_outputs(html: Path | None, png: Path | None, inputs: Sequence[Path], overwrite: bool) -> None:
    """Say before the work, not after, why pictures cannot be written."""

    for path in filter(None, (html, png)):
        patching.output.check_plain_output(path, inputs, folder=path is png, overwrite=overwrite)
    if html or png:
        pages.drawing.libraries()


def _write_page(path: Path, page: str, overwrite: bool) -> None:
    """Whole, or not at all; in bytes, as the page admits its scripts by digest."""

    with patching.output.build_beside(path, overwrite=overwrite) as built:
        built.write_bytes(page.encode())


@click.command()
@click.argument("updates", type=PATH, nargs=-1, required=True, metavar="PATCH|CHECKPOINT...")
@click.option("--base", type=PATH, help="Checkpoint that all started from.  [default: the repo that the first patch names as its base]")
@click.option("--atol", type=POSITIVE, default=0.0, show_default=True, callback=finite, help="Count |d| above this as changed; 0: by bits.")
@file_options
@click.option("--series", is_flag=True, help="They are checkpoints of one run, in order: also changed since the last, ever, and back.")
@html_option
@png_option
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@threads_option
@overwrite_option
@as_json
def overlap(
    updates: tuple[Path, ...],
    base: Path | None,
    series: bool,
    html: Path | None,
    png: Path | None,
    tensors: bool,
    overwrite: bool,
    json_output: bool,
    **options: Any,
) -> None:
    """Compare which elements several updates of one base changed.

    o1 is the share of the first's changes that the second made too, o2 that of the second's (arXiv 2505.11711, section 5), each beside its
    chance at random. Jaccard: of what either changed, what both did; expected: the same at random within each tensor; by size: at random
    among weights of the same tensor and binary exponent. Same direction: of what both changed, what moved the same way.
    """

    _check_outputs(html, png, (*updates, *([base] if base else [])), overwrite)
    with progress_bar() as progress:
        result = verbs.overlap.overlap(updates, base, progress=progress, **options)
    if html:
        _write_page(html, pages.overlap_page.render_overlap(result, series), overwrite)
    if png:
        pages.overlap_charts.write_png(result, series, png)
    if json_output:
        print_json(result.to_json())
    else:
        cli.render_report.overlapped(result, series, tensors)
        cli.render_report.written(html, png)


@click.command()
@click.argument("patch", type=PATH, metavar="PATCH|CHECKPOINT")
@click.option("--base", type=PATH, help="Checkpoint that it was made from.  [default: the repo that the patch names as its base]")
@click.option("-o", "--output", "out", type=PATH, required=True, metavar="FILE", help="Where to write the mask.")
@click.option("--atol", type=POSITIVE, default=0.0, show_default=True, callback=finite, help="Take |d| above this as changed; 0: by bits.")
@threads_option
@overwrite_option
@as_json
def mask(patch: Path, base: Path | None, out: Path, overwrite: bool, json_output: bool, **options: Any) -> None:
    """Store which weights a patch changes, to train only these: ckptdiff.subnetwork.freeze_outside."""

    patching.output.check_plain_output(out, (patch, *([base] if base else [])), folder=False, overwrite=overwrite)
    with progress_bar() as progress:
        made = subnetwork.mask.Mask.from_patch(patch, base, progress=progress, **options)
    size = made.save(out, overwrite=overwrite)
    if json_output:
        print_json({"mask": str(out), "elements": made.total, "tensors": made.counts, "size": size})
    else:
        cli.render_report.masked(out, made, size)
