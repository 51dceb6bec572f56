"""The commands that publish and fetch patches: ``push`` and ``pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdiff import cli, verbs
from ckptdiff.cli.grouped import FILES, HUB, GroupedCommand, option
from ckptdiff.cli.options import (
    PATH,
    as_json,
    fresh_option,
    only_option,
    output_option,
    overwrite_option,
    print_json,
    print_note,
    refuse_given,
    threads_option,
    to_json,
)
from ckptdiff.cli.progress import progress_bar

token_option = option(
    HUB, "--token", metavar="TOKEN", help="Use this access token.  [default: HF_TOKEN, or the one that `hf auth login` stored]"
)


@click.command(cls=GroupedCommand)
@click.argument("patch", type=PATH, metavar="PATCH|CHAIN")
@click.argument("repo_id", metavar="REPO_ID")
@option(HUB, "--base-repo", metavar="ID", help="Name the repo that has the base, if make did not record it.")
@option(HUB, "--license", "licence", metavar="NAME", help="State this licence in the model card.  [default: that of the base]")
@option(HUB, "--private/--public", default=None, help="Make the repo private or public, if it is new.  [default: that of the account]")
@option(HUB, "--revision", metavar="BRANCH", help="Commit to this branch, which is made if it does not exist.")
@option(HUB, "--create-pr", is_flag=True, help="Open a pull request instead of committing to the branch.")
@option(HUB, "-m", "--message", metavar="TEXT", help="Give the commit this message.  [default: one that names the base]")
@option(HUB, "--allow-secrets", is_flag=True, help="Publish the patch even if a file looks like a secret.")
@option(HUB, "--dry-run", is_flag=True, help="Check everything, show what would be sent, and send nothing.")
@token_option
@threads_option
@as_json
def push(patch: Path, repo_id: str, revision: str | None, json_output: bool, **options: Any) -> None:
    """Publish a patch on the Hugging Face Hub.

    The patch is verified, its base is compared with the repo that has it, and everything goes into one commit, with a model card that
    says how to rebuild the model. Text that you write in the card stays.

    A chain goes into as many commits as it takes, each of whole patches. What the repo has of it is not sent again.

    \b
    Examples:
      ckptdiff push patch me/my-model-ckptdiff --dry-run
      ckptdiff push patch me/my-model-ckptdiff --base-repo org/base --private
      ckptdiff push run-chain me/my-run
    """
    if revision is not None:
        if "@" in repo_id:
            raise click.UsageError("give the branch once: as --revision, or behind an @")
        repo_id = f"{repo_id}@{revision}"
    if verbs.chain_series.is_chain(patch):
        refuse_given("a chain", ("base_repo", "create_pr"))
        shared = {key: value for key, value in options.items() if key not in ("base_repo", "create_pr")}
        with progress_bar() as progress:
            sent = verbs.chain_push.chain_push(patch, repo_id, progress=progress, **shared)
        if json_output:
            print_json({**to_json(sent), "size": sent.size})
        else:
            cli.render_hub.print_chain_push(sent)
        return
    with progress_bar() as progress:
        result = verbs.push.push(patch, repo_id, progress=progress, **options)
    for note in result.notes:
        print_note(note)
    if json_output:
        print_json({**to_json(result), "size": result.size})
    else:
        cli.render_hub.print_push(result)


@click.command(cls=GroupedCommand)
@click.argument("repo_id", metavar="REPO_ID")
@output_option("out", "OUT", "Write this folder or file.")
@option(FILES, "--step", type=click.IntRange(0), metavar="N", help="Rebuild this step of a chain.  [default: fetch the chain itself]")
@option(FILES, "--base", metavar="CHECKPOINT", help="Use this checkpoint as the base.  [default: the repo that the patch names]")
@option(HUB, "--revision", metavar="REV", help="Take the patch at this branch, tag or commit.")
@only_option
@token_option
@threads_option
@overwrite_option
@fresh_option
@as_json
def pull(repo_id: str, out: Path, step: int | None, json_output: bool, **options: Any) -> None:
    """Rebuild a model from the Hugging Face Hub, or fetch a chain.

    Finds the base that the patch is pinned to, and any patches in between. The digests that the Hub states show whether these are the right
    ones before they are fetched into the Hub's cache. Then every file is rebuilt.

    Of a chain, OUT is the chain, or the checkpoint of a step. What OUT has of a chain is not fetched again.

    \b
    Examples:
      ckptdiff pull me/my-model-ckptdiff -o my-model
      ckptdiff pull me/my-model-ckptdiff -o my-model --base ./base
      ckptdiff pull me/my-run --step 900 -o step-900
    """
    shared = {key: options[key] for key in ("revision", "token", "threads")}
    if step is None and options["base"] is None and verbs.chain_pull.is_chain_id(repo_id, options["revision"], options["token"]):
        refuse_given("a chain: give --step N too", ("only", "overwrite", "fresh"))
        with progress_bar() as progress:
            fetched = verbs.chain_pull.chain_pull(repo_id, out, progress=progress, **shared)
        if json_output:
            print_json(to_json(fetched))
        else:
            cli.render_hub.print_chain_pull(fetched)
        return
    with progress_bar() as progress:
        result = verbs.pull.pull(repo_id, out, step=step, progress=progress, listed=cli.render.note_runnable, noted=print_note, **options)
    for note in result.notes:
        print_note(note)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render_hub.print_pull(result)
