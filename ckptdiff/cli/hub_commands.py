"""The commands that publish and fetch patches: ``push`` and ``pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdiff import cli, verbs
from ckptdiff.cli.options import (
    PATH,
    as_json,
    only_option,
    overwrite_option,
    print_json,
    print_note,
    threads_option,
    to_json,
)
from ckptdiff.cli.progress import progress_bar

token_option = click.option(
    "--token", metavar="TOKEN", help="Access token for the Hub.  [default: HF_TOKEN, or the one that `hf auth login` stored]"
)


@click.command()
@click.argument("patch", type=PATH)
@click.argument("repo_id", metavar="REPO_ID")
@click.option("--base-repo", metavar="ID", help="Id of the repo that has the base, if make did not record it.")
@click.option("--license", "licence", metavar="NAME", help="Licence that the model card states.  [default: that of the base]")
@click.option("--private/--public", default=None, help="Visibility of the repo, if it is new.  [default: that of the account]")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to; it is made if it does not exist.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing to the branch.")
@click.option("-m", "--message", metavar="TEXT", help="Message of the commit.  [default: one that names the base]")
@click.option("--allow-secrets", is_flag=True, help="Publish the patch even if a file looks like a secret.")
@click.option("--dry-run", is_flag=True, help="Check everything, show what would be sent, and send nothing.")
@token_option
@threads_option
@as_json
def push(patch: Path, repo_id: str, revision: str | None, json_output: bool, **options: Any) -> None:
    """Publish a patch on the Hugging Face Hub.

    The patch is verified, its base is compared with the repo that has it, and everything goes into one commit, with a model card that
    says how to rebuild the model. Text that you write in the card stays.

    \b
      ckptdiff make org/base my-model -o patch --report
      ckptdiff push patch me/my-model-ckptdiff
    """
    if revision is not None:
        if "@" in repo_id:
            raise click.UsageError("give the branch once: as --revision, or behind an @")
        repo_id = f"{repo_id}@{revision}"
    show = cli.render_hub.print_push  # a library that it needs is missed before anything is sent
    with progress_bar() as progress:
        result = verbs.push.push(patch, repo_id, progress=progress, **options)
    if json_output:
        print_json({**to_json(result), "size": result.size})
    else:
        show(result)


@click.command()
@click.argument("repo_id", metavar="REPO_ID")
@click.option("-o", "--output", "out", type=PATH, required=True, metavar="OUT", help="Folder or file to write.")
@click.option("--base", metavar="CHECKPOINT", help="Checkpoint to use as the base.  [default: the repo that the patch names]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the patch.")
@only_option
@token_option
@threads_option
@overwrite_option
@as_json
def pull(repo_id: str, out: Path, json_output: bool, **options: Any) -> None:
    """Rebuild a model from a patch on the Hugging Face Hub.

    Finds the base that the patch is pinned to, and any patches in between. The digests that the Hub states show whether these are the right
    ones before they are fetched into the Hub's cache. Then every file is rebuilt.

    \b
      ckptdiff pull me/my-model-ckptdiff -o my-model
    """
    show = cli.render_hub.print_pull  # a library that it needs is missed before anything is written
    with progress_bar() as progress:
        result = verbs.pull.pull(repo_id, out, progress=progress, **options)
    for note in result.notes:
        print_note(note)
    if json_output:
        print_json(to_json(result))
    else:
        show(result)
