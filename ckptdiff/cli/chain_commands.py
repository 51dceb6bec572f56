"""The commands that keep the checkpoints of a training run: ``chain add``, ``list``, ``restore``, ``verify``, ``prune``, ``squash``,
``follow``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdiff import cli, engines, verbs
from ckptdiff.cli.grouped import FILES, OUTPUT, Decorator, OrderedGroup, option
from ckptdiff.cli.options import (
    as_json,
    codec_option,
    output_name,
    output_option,
    overwrite_option,
    print_json,
    print_note,
    threads_option,
    to_json,
)
from ckptdiff.cli.progress import progress_bar

BASE = "Use this checkpoint as the base: the chain's own, or that of any earlier step.  [default: the repo that the chain records]"


def _base_option(text: str) -> Decorator:
    """A base, which may be an id on the Hub."""
    return option(FILES, "--base", metavar="CHECKPOINT", help=text)


@click.group(cls=OrderedGroup)
def chain() -> None:
    """Keep every checkpoint of a training run.

    A chain is a folder, or a URL such as s3://bucket/run, with a patch from each step to the next and now and then a keyframe, a patch
    straight from the base. Any step comes back byte for byte.

    \b
    Examples:
      ckptdiff chain add run-chain run/checkpoint-100 run/checkpoint-200
      ckptdiff chain restore run-chain 200 -o step-200 --base run/checkpoint-100
    """


@chain.command()
@click.argument("chain", metavar="CHAIN")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@_base_option("Use this checkpoint as the base, from which a new chain starts.  [default: the first CHECKPOINT]")
@option(FILES, "--step", type=click.IntRange(0), metavar="N", help="Take CHECKPOINT as this step.  [default: the number in its name]")
@option(OUTPUT, "--keyframe-every", type=click.IntRange(1, 64), metavar="N", help="Have no step take more patches than N.  [default: 50]")
@option(
    OUTPUT,
    "--codec",
    type=click.Choice(["auto", "context", "sparse", "raw"]),
    help="Store changed tensors by this codec; auto takes the one that gives the smallest patch.  [default: auto]",
)
@option(OUTPUT, "--remove-originals", is_flag=True, help="Remove the files of each CHECKPOINT but the base once the chain has them.")
@threads_option
@as_json
def add(chain: str, checkpoints: tuple[str, ...], codec: str | None, json_output: bool, **options: Any) -> None:
    """Put checkpoints into a chain.

    They are taken in the order of the steps that their names state: checkpoint-100 is step 100. The first CHECKPOINT of a new chain is its
    base unless --base names one. The base is not copied: keep it.

    Each patch is checked against both checkpoints before it goes in. A run that was killed is completed by the same command. Of two that
    run at once, the later one goes on.

    \b
    Examples:
      ckptdiff chain add run-chain run/checkpoint-*
      ckptdiff chain add s3://bucket/run final --base org/base --step 900
    """
    with progress_bar() as progress:
        result = verbs.chain_add.chain_add(
            chain, checkpoints, codec=None if codec == "auto" else codec, progress=progress, noted=print_note, **options
        )
    if json_output:
        print_json(to_json(result))
    else:
        cli.render_chain.print_add(result)


@chain.command("list")
@click.argument("chain", metavar="CHAIN")
@as_json
def list_steps(chain: str, json_output: bool) -> None:
    """Show the steps of a chain.

    "changed" is the share of weights that differ from the step before, or from the base where a keyframe is all there is; "patches" is how
    many rebuild the step.

    \b
    Examples:
      ckptdiff chain list run-chain
      ckptdiff chain list s3://bucket/run --json
    """
    with progress_bar() as progress:
        result = verbs.chain_list.chain_list(chain, progress=progress)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render_chain.print_listing(result)


@chain.command()
@click.argument("chain", metavar="CHAIN")
@click.argument("step", type=click.IntRange(0), metavar="STEP")
@output_option("out", "OUT", "Write this folder or file.")
@_base_option(BASE)
@threads_option
@overwrite_option
@as_json
def restore(chain: str, step: int, out: Path, json_output: bool, **options: Any) -> None:
    """Rebuild the checkpoint of a step.

    Takes the base, the nearest keyframe and the patches after it. Where CHECKPOINT is one of the chain's steps, it starts from there.

    \b
    Examples:
      ckptdiff chain restore run-chain 300 -o step-300 --base run/checkpoint-100
      ckptdiff chain restore s3://bucket/run 900 -o step-900
    """
    with progress_bar() as progress:
        result = verbs.chain_restore.chain_restore(
            chain, step, out, progress=progress, noted=print_note, listed=cli.render.note_runnable, **options
        )
    if json_output:
        print_json(to_json(result))
    else:
        cli.render_chain.print_restore(result)


@chain.command()
@click.argument("chain", metavar="CHAIN")
@threads_option
@as_json
def verify(chain: str, json_output: bool, **options: Any) -> None:
    """Check a chain.

    Checks the stored bytes of each patch, and that the steps follow from each other. The exit code is 1 if there is a problem.

    \b
    Examples:
      ckptdiff chain verify run-chain
      ckptdiff chain verify s3://bucket/run --json
    """
    with progress_bar() as progress:
        result = verbs.chain_verify.chain_verify(chain, progress=progress, **options)
    if json_output:
        print_json({**to_json(result), "ok": result.ok})
    else:
        cli.render_chain.print_verify(result)
    click.get_current_context().exit(0 if result.ok else 1)


@chain.command()
@click.argument("chain", metavar="CHAIN")
@option(
    FILES,
    "--keep",
    multiple=True,
    required=True,
    metavar="STEPS",
    help="Keep these steps, and the last one: N, A-B, last:N or every:N, with commas between. It may be repeated.",
)
@_base_option("Make keyframes from this checkpoint, the chain's base.  [default: the repo that the chain records]")
@option(OUTPUT, "--dry-run", is_flag=True, help="Show what would be written and removed, and do nothing.")
@threads_option
@as_json
def prune(chain: str, json_output: bool, **options: Any) -> None:
    """Remove steps of a chain.

    What stays can be restored as before: a step that needs one gets a keyframe first, for which it is rebuilt.

    \b
    Examples:
      ckptdiff chain prune run-chain --keep last:10 --keep every:1000 --dry-run
      ckptdiff chain prune run-chain --keep 100,500-700 --base run/checkpoint-100
    """
    with progress_bar() as progress:
        result = verbs.chain_prune.chain_prune(chain, progress=progress, noted=print_note, **options)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render_chain.print_prune(result)


@chain.command()
@click.argument("chain", metavar="CHAIN")
@click.argument("first", type=click.IntRange(0), metavar="FROM")
@click.argument("last", type=click.IntRange(0), metavar="TO")
@output_option("output", "PATCH", "Write the patch to this path.", output_name)
@codec_option("Store changed tensors by this codec. Any but sparse needs the base; auto takes sparse where that needs none.")
@_base_option(BASE)
@threads_option
@overwrite_option
@as_json
def squash(chain: str, first: int, last: int, output: Path, codec: str, json_output: bool, **options: Any) -> None:
    """Make one patch from step FROM to step TO.

    Where all patches in between are made with --codec sparse, ulp distances are added, and no base is needed. Else the checkpoint of FROM
    is rebuilt on the way. The chain stays as it is.

    \b
    Examples:
      ckptdiff chain squash run-chain 100 900 -o patch
      ckptdiff chain squash run-chain 100 900 -o patch --base checkpoint-100
    """
    with progress_bar() as progress:
        result = verbs.chain_squash.chain_squash(
            chain, first, last, output, codec=None if codec == "auto" else codec, progress=progress, noted=print_note, **options
        )
    if json_output:
        print_json(to_json(result))
    else:
        cli.render_chain.print_squash(result)


@chain.command()
@click.argument("chain", metavar="CHAIN")
@click.argument("url", metavar="URL")
@option(FILES, "--base", metavar="CHECKPOINT", help="The server loaded its model from this checkpoint.  [default: its --model]")
@option(OUTPUT, "--mode", type=click.Choice(["move", "sparse", "mirror"]), help="Update the weights in this way.  [default: move]")
@option(
    OUTPUT,
    "--pause-mode",
    type=click.Choice(["wait", "abort", "keep"]),
    default="wait",
    show_default=True,
    help="Do this with requests in flight.",
)
@option(OUTPUT, "--interval", type=click.FloatRange(0.01), default=1.0, show_default=True, metavar="S", help="Look every S seconds.")
@option(OUTPUT, "--once", is_flag=True, help="Take the last step, and end.")
@as_json
def follow(chain: str, url: str, interval: float, once: bool, json_output: bool, **options: Any) -> None:
    """Keep a vLLM server at the last step of a chain.

    The server needs ckptdiff installed beside vLLM, and the options that docs/engines.md has. CHAIN is a path or URL that the server can
    read too. Each step is fetched and checked while the server serves; then it pauses, moves its weights, and goes on.

    \b
    Examples:
      ckptdiff chain follow run-chain http://127.0.0.1:8000
      ckptdiff chain follow s3://bucket/run http://127.0.0.1:8000 --once
    """
    client = engines.vllm_client.Client(engines.vllm_client.HttpServer(url), **options)
    for updated in client.follow(chain, interval=interval, until=lambda _: once):
        if json_output:
            print_json({**to_json(updated), "weight_version": updated.weight_version})
        else:
            cli.render_chain.print_followed(updated)
