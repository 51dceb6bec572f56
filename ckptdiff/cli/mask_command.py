"""The command that stores which weights change: ``mask``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdiff import cli, io, patching, subnetwork, verbs
from ckptdiff.cli.grouped import MEASURED, GroupedCommand, option
from ckptdiff.cli.options import (
    PATH,
    as_json,
    as_option,
    base_option,
    changed_above_option,
    output_option,
    overwrite_option,
    print_json,
    refuse_given,
    require_finite,
    steps_option,
    threads_option,
)
from ckptdiff.cli.progress import progress_bar


@click.command(cls=GroupedCommand)
@click.argument("patch", type=PATH, metavar="PATCH|CHECKPOINT|CHAIN")
@base_option("Take this checkpoint as the one that the patch was made from.  [default: the repo that the patch names]")
@steps_option
@output_option("out", "FILE", "Write the mask to this file.")
@as_option
@changed_above_option()
@option(
    MEASURED,
    "--predict",
    type=click.FloatRange(min=0, min_open=True),
    callback=require_finite,
    metavar="LR",
    help="Guess from this checkpoint alone: the weights that a step of this learning rate can move, as half the distance to the next "
    "number is less.",
)
@option(
    MEASURED,
    "--random",
    type=int,
    metavar="SEED",
    help="Take as many weights at random instead, of each tensor and size (binary exponent): the control of an experiment.",
)
@threads_option
@overwrite_option
@as_json
def mask(
    patch: Path,
    base: Path | None,
    steps: tuple[str, ...],
    out: Path,
    predict: float | None,
    random: int | None,
    overwrite: bool,
    json_output: bool,
    **options: Any,
) -> None:
    """Store which weights a patch changes, to train only these.

    Of a chain these are the weights that any step changes of the base. In Python, ckptdiff.subnetwork.freeze_outside takes the mask, and
    ckptdiff.Mask combines masks as sets.

    \b
    Examples:
      ckptdiff mask grpo-patch --base Llama-3-8B -o mask.safetensors
      ckptdiff mask tuned --base base --atol 1e-5 -o mask.safetensors
      ckptdiff mask tuned --base base --random 0 -o control.safetensors
      ckptdiff mask base --predict 1e-6 -o guess.safetensors
    """
    of_chain = predict is None and verbs.chain_series.is_chain(patch)
    if predict is not None:
        refuse_given("--predict", ("base", "steps", "atol", "random"))
    else:
        if random is not None and base is None:
            raise click.UsageError("--random needs --base too: it takes weights of the same sizes in the base")
        refuse_given("what is no chain", () if of_chain else ("steps",))
    out = io.places.local_path(out, "masks are written")
    patching.output.check_plain_output(out, (patch, *([base] if base else [])), folder=False, overwrite=overwrite)
    shared = {key: options[key] for key in ("as_dtype", "threads")}
    with progress_bar() as progress:
        if predict is not None:
            result = subnetwork.mask.Mask.predict(patch, predict, **shared)
        elif of_chain:
            result = verbs.chain_series.chain_mask(patch, base, steps=steps, progress=progress, **options)
        else:
            result = subnetwork.mask.Mask.from_patch(patch, base, progress=progress, **options)
        if random is not None:
            result = result.random(random, base, by="size", **shared)
    size = result.save(out, overwrite=overwrite)
    if json_output:
        print_json({"mask": str(out), "elements": result.total, "tensors": result.counts, "size": size})
    else:
        cli.render_report.print_mask(out, result, size)
