"""The command that makes one patch of several: ``compose``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdiff import cli, verbs
from ckptdiff.cli.grouped import GroupedCommand
from ckptdiff.cli.options import (
    PATH,
    as_json,
    base_option,
    codec_option,
    output_name,
    output_option,
    overwrite_option,
    print_json,
    threads_option,
    to_json,
)
from ckptdiff.cli.progress import progress_bar


@click.command(cls=GroupedCommand)
@click.argument("patches", type=PATH, nargs=-1, required=True, metavar="PATCH...")
@output_option("output", "PATCH", "Write the patch to this path.", output_name)
@codec_option("Store changed tensors by this codec, as make does. Without --base there is sparse only, and auto takes it.")
@base_option("Rebuild the target through this base of the first patch, block by block, and encode it as make does.")
@threads_option
@overwrite_option
@as_json
def compose(patches: tuple[Path, ...], base: Path | None, codec: str, json_output: bool, **options: Any) -> None:
    """Make one patch of several that follow each other.

    It leads from the base of the first patch to the target of the last. Where all are made with --codec sparse, no base is needed: ulp
    distances are added. What a tensor or a file becomes that a later patch casts, moves or copies, or that another codec and other patches
    change, only the base can tell; then the error names it.

    \b
    Examples:
      ckptdiff compose step1 step2 step3 -o steps
      ckptdiff compose step1 step2 -o steps --base Llama-3-8B --codec context
    """
    with progress_bar() as progress:
        result = verbs.compose.compose(patches, base, codec=None if codec == "auto" else codec, progress=progress, **options)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render.print_compose(result)
