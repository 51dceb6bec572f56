"""The commands that publish and fetch: ``push`` and ``pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdiff import cli, verbs
from ckptdiff.cli.options import PATH, as_json, overwrite_option, print_json, progress_bar, say, threads_option, to_json

token_option = click.option("--token", metavar="TOKEN", help="Instead of HF_TOKEN, or the one that `hf auth login` stored.")


@click.command()
@click.argument("patch", type=PATH)
@click.argument("repo_id", metavar="REPO_ID")
@click.option("--base-repo", metavar="ID", help="Repo of the base, where make did not record it.")
@click.option("--license", "licence", metavar="NAME", help="What the card states.  [default: the base's]")
@click.option("--private/--public", default=None, help="Of a new repo.  [default: the account's]")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to, made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("-m", "--message", metavar="TEXT", help="Of the commit.")
@click.option("--allow-secrets", is_flag=True, help="Publish although a file looks like a secret.")
@click.option("--dry-run", is_flag=True, help="Check everything, show what would be sent, and send nothing.")
@token_option
@threads_option
@as_json
def push(patch: Path, repo_id: str, revision: str | None, json_output: bool, **options: Any) -> None:
    """Publish a patch on the Hugging Face Hub.

    The patch is checked, its base compared with the repo that has it, and all goes into one commit, with a model card that says how
    to rebuild. Text that you write in the card stays.

    \b
      ckptdiff make org/base my-model -o patch --report
      ckptdiff push patch me/my-model-ckptdiff
    """

    if revision is not None:
        if "@" in repo_id:
            raise click.UsageError("give the branch once: as --revision, or behind an @")
        repo_id = f"{repo_id}@{revision}"
    with progress_bar() as progress:
        result = verbs.push.push(patch, repo_id, progress=progress, **options)
    if json_output:
        print_json({**to_json(result), "size": result.size})
    else:
        cli.render_hub.pushed(result)


@click.command()
@click.argument("repo_id", metavar="REPO_ID")
@click.option("-o", "--output", "out", type=PATH, required=True, metavar="OUT", help="Folder to write.")
@click.option("--base", metavar="BASE", help="Checkpoint, here or on the Hub, to use instead of the one that the patch names.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the patch.")
@click.option("--only", multiple=True, metavar="GLOB", help="Rebuild just the tensors whose names match, into one safetensors file.")
@token_option
@threads_option
@overwrite_option
@as_json
def pull(repo_id: str, out: Path, json_output: bool, **options: Any) -> None:
    """Rebuild a model from a patch on the Hugging Face Hub.

    Finds the base that the patch is pinned to, and patches in between, checks them by what the Hub states before it fetches them
    into the Hub's cache, and rebuilds every file.

    \b
      ckptdiff pull me/my-model-ckptdiff -o my-model
    """

    with progress_bar() as progress:
        result = verbs.pull.pull(repo_id, out, progress=progress, **options)
    for note in result.notes:
        say(note)
    if json_output:
        print_json(to_json(result))
    else:
        cli.render_hub.pulled(result)
