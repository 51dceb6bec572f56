"""The commands that measure what training changed: ``report`` and ``overlap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ckptdiff import checkpoint, cli, pages, patching, verbs
from ckptdiff.analysis.intervals import DRAWS, MAX_DRAWS
from ckptdiff.cli.grouped import FILES, MEASURED, OUTPUT, Decorator, GroupedCommand, option
from ckptdiff.cli.options import (
    LOCAL_PATH,
    PATH,
    as_json,
    as_option,
    base_option,
    changed_above_option,
    device_option,
    file_options,
    overwrite_option,
    print_json,
    ray_option,
    refuse_given,
    selection_options,
    steps_option,
    tensors_option,
    threads_option,
    tolerance_option,
)
from ckptdiff.cli.progress import progress_bar

html_option = option(OUTPUT, "--html", type=LOCAL_PATH, metavar="FILE", help="Write one HTML page with charts, which works offline.")
png_option = option(OUTPUT, "--png", type=LOCAL_PATH, metavar="DIR", help="Write each chart as a PNG file into this folder.")
csv_option = option(OUTPUT, "--csv", type=LOCAL_PATH, metavar="FILE", help="Write a table with exact counts as CSV.")
parquet_option = option(OUTPUT, "--parquet", type=LOCAL_PATH, metavar="FILE", help="Write the same table as Parquet.")


def table_option(*names: str) -> Decorator:
    """Which table ``--csv`` and ``--parquet`` write."""
    text = "The table that --csv and --parquet write: a row for each of these."
    return option(OUTPUT, "--table", "table_name", type=click.Choice(names), default=names[0], show_default=True, help=text)


@click.command(cls=GroupedCommand)
@click.argument("base", type=PATH, metavar="BASE|PATCH|CHAIN")
@click.argument("target", type=PATH, required=False, metavar="[TARGET|PATCH]")
@option(FILES, "--base", "chain_base", type=PATH, metavar="CHECKPOINT", help="Of a chain, its base.  [default: the repo that it records]")
@steps_option
@selection_options
@as_option
@tolerance_option("--atol", "Also count the elements with |d| up to this as equal.", 1e-5)
@tolerance_option("--rtol", "Also count the elements with |d| up to this share of |base| as equal.", 1e-3)
@option(
    MEASURED,
    "--rank",
    type=click.Choice(["none", "sample", "all"]),
    default="sample",
    show_default=True,
    help="Take the rank of no matrix, of a sample of 32 spread over modules and layers, or of all.",
)
@option(
    MEASURED,
    "--nulls",
    type=click.IntRange(0, MAX_DRAWS),
    default=DRAWS,
    show_default=True,
    metavar="N",
    help="Beside ranks, draw the same update N times with flipped signs and N times shuffled among weights of the same size; 0: never.",
)
@option(MEASURED, "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws.")
@device_option("to take ranks", default="NumPy on the host")
@html_option
@png_option
@csv_option
@parquet_option
@table_option("tensors", "matrices", "layers", "experts", "exponents")
@tensors_option
@threads_option
@ray_option
@overwrite_option
@as_json
def report(
    base: Path,
    target: Path | None,
    chain_base: Path | None,
    steps: tuple[str, ...],
    html: Path | None,
    png: Path | None,
    csv: Path | None,
    parquet: Path | None,
    table_name: str,
    tensors: bool,
    overwrite: bool,
    json_output: bool,
    **options: Any,
) -> None:
    """Measure what training changed: sparsity, size of the moves, rank.

    TARGET is a checkpoint, or a patch from BASE, which need not be applied. For a patch alone, the report that make --report stored in it
    is shown, or else how many elements changed.

    For a chain it is how many elements each step changed, ever or not, by their bits; ckptdiff overlap CHAIN --series draws that.

    \b
    Examples:
      ckptdiff report Llama-3-8B Llama-3-8B-GRPO --html report.html
      ckptdiff report Llama-3-8B grpo-patch --rank none --tensors
      ckptdiff report run-chain --base Llama-3-8B
    """
    if target is None and verbs.chain_series.is_chain(base):
        refuse_given("a chain; see ckptdiff overlap CHAIN --series", ("html", "png", "csv", "parquet", "table_name", *NEED_TWO))
        with progress_bar() as progress:
            shared = {key: options[key] for key in ("as_dtype", "threads")}
            run = verbs.chain_series.chain_report(base, chain_base, steps=steps, progress=progress, **shared)
        if json_output:
            print_json(run.to_json())
        else:
            cli.render_overlap.print_chain_report(run, tensors)
        return
    refuse_given("what is no chain", ("chain_base", "steps"))
    if target is None:
        _check_lone_patch(base, checkpoint.recognition.is_patch(base))
    elif checkpoint.recognition.is_patch(base) and not checkpoint.recognition.is_patch(target):
        raise click.UsageError(f"{base} is a patch: give the base first, ckptdiff report BASE PATCH")
    files = _Files(html, png, csv, parquet)
    files.check((base, *([target] if target else [])), overwrite)
    if target is None:
        result = verbs.report.report_patch(base)
        if not result.complete and (html or png):
            raise click.UsageError("--html and --png need BASE too: ckptdiff report BASE PATCH --html FILE")
    else:
        with progress_bar() as progress:
            result = verbs.report.report(base, target, progress=progress, **options)
    value = result.to_json()
    if html:
        _write(html, pages.report_page.render_page(value), overwrite)
    if png:
        pages.report_charts.write_png(value, png)
    files.write_table(lambda: pages.csv_tables.report_table(result, table_name), overwrite)
    if json_output:
        print_json(value)
    else:
        cli.render_report.print_report(result, tensors)
        cli.render_report.print_pictures(html, png, *filter(None, (csv, parquet)))


NEED_TWO = ("atol", "rtol", "rank", "nulls", "seed", "device", "include", "exclude", "follow_links", "rename", "ray")
"""Options of ``report`` for which base and target are compared."""


def _check_lone_patch(path: Path, is_patch: bool) -> None:
    """Refuse options that need the base: a patch alone has only what is stored in it."""
    if not is_patch:
        raise click.UsageError(f"{path} is not a patch: give BASE and TARGET, or a patch alone.")
    given = click.get_current_context().get_parameter_source
    for name in ("as_dtype", *NEED_TWO):
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.removesuffix('_dtype').replace('_', '-')} needs BASE too: a patch alone says what was stored in it. "
                f"ckptdiff report BASE {path}"
            )


class _Files(NamedTuple):
    """What a report is written to, beside the terminal."""

    html: Path | None
    png: Path | None
    csv: Path | None
    parquet: Path | None

    def check(self, inputs: Sequence[Path], overwrite: bool) -> None:
        """Refuse outputs that cannot be written, and missing libraries, before the work rather than after it."""
        for path in filter(None, self):
            patching.output.check_plain_output(path, inputs, folder=path is self.png, overwrite=overwrite)
        if self.html or self.png:
            pages.drawing.libraries()
        if self.parquet:
            pages.csv_tables.check_parquet()

    def write_table(self, table: Callable[[], Any], overwrite: bool) -> None:
        """Write what ``--csv`` and ``--parquet`` ask for."""
        if self.csv:
            _write(self.csv, pages.csv_tables.csv_of(table()), overwrite)
        if self.parquet:
            _write(self.parquet, pages.csv_tables.parquet_of(table()), overwrite)


def _write(path: Path, content: str | bytes, overwrite: bool) -> None:
    """Write a file whole or not at all, and text in bytes: with other line ends the digests of a page's scripts would be wrong."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with patching.output.build_beside(path, overwrite=overwrite) as built:
        built.write_bytes(data)


@click.command(cls=GroupedCommand)
@click.argument("updates", type=PATH, nargs=-1, required=True, metavar="PATCH|CHECKPOINT|CHAIN...")
@base_option("Take this checkpoint as the one that all updates started from.  [default: the repo that the first patch names]")
@steps_option
@as_option
@changed_above_option()
@file_options
@option(
    MEASURED,
    "--series",
    is_flag=True,
    help="Take the updates as checkpoints of one run, in order: show how the update grew, a row for each checkpoint, instead of every two.",
)
@html_option
@png_option
@csv_option
@parquet_option
@table_option("pairs", "tensors", "steps", "series")
@tensors_option
@threads_option
@ray_option
@overwrite_option
@as_json
def overlap(
    updates: tuple[Path, ...],
    base: Path | None,
    steps: tuple[str, ...],
    series: bool,
    html: Path | None,
    png: Path | None,
    csv: Path | None,
    parquet: Path | None,
    table_name: str,
    tensors: bool,
    overwrite: bool,
    json_output: bool,
    **options: Any,
) -> None:
    """Compare which elements several updates of one base changed.

    For every two updates, o1 is the share of the first one's changes that the second one made too, and o2 the share of the second one's
    changes that the first one made (arXiv 2505.11711, section 5). Jaccard is the share of what either changed that both changed. Next to
    each value stands what chance would give if as many weights were picked at random: from the weights of one tensor with the same binary
    exponent ("by size"), or from all weights ("at random"). Same direction is the share of what both changed that moved the same way.

    With --series each checkpoint is compared with the one before and with the last one, n rows for n checkpoints: "kept" is the share of
    the changes of the one before that are still changes here, "kept to the end" the share of the changes here that are still changes in
    the last one, and "of the last" the share of the changes in the last one that are made by then. --json has every two in either case.

    The steps of a chain are such checkpoints; they are read in one pass, and not rebuilt on disk.

    \b
    Examples:
      ckptdiff overlap grpo-patch dpo-patch --base Llama-3-8B --html overlap.html
      ckptdiff overlap run/checkpoint-* --base Llama-3-8B --series
      ckptdiff overlap run-chain --base Llama-3-8B --series --steps last:20
    """
    of_chain = len(updates) == 1 and verbs.chain_series.is_chain(updates[0])
    refuse_given(*(("a chain", ("include", "exclude", "follow_links", "ray")) if of_chain else ("what is no chain", ("steps",))))
    files = _Files(html, png, csv, parquet)
    files.check((*updates, *([base] if base else [])), overwrite)
    with progress_bar() as progress:
        if of_chain:
            shared = {key: options[key] for key in ("as_dtype", "atol", "threads")}
            result = verbs.chain_series.chain_overlap(updates[0], base, steps=steps, progress=progress, **shared)
        else:
            result = verbs.overlap.overlap(updates, base, progress=progress, **options)
    if html:
        _write(html, pages.overlap_page.render_overlap(result, series), overwrite)
    if png:
        pages.overlap_charts.write_png(result, series, png)
    files.write_table(lambda: pages.csv_tables.overlap_table(result, table_name), overwrite)
    if json_output:
        print_json(result.to_json())
    else:
        cli.render_overlap.print_overlap(result, series, tensors)
        cli.render_report.print_pictures(html, png, *filter(None, (csv, parquet)))
