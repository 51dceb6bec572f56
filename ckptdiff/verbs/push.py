"""``push`` publishes a patch on the Hub, with a model card and what else the Hub needs, in one commit of a repo."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptdiff import pages
from ckptdiff.analysis.report_model import Report
from ckptdiff.checkpoint.recognition import is_patch_repo
from ckptdiff.checkpoint.secrets import suspicious_content, suspicious_name
from ckptdiff.errors import CheckpointError, CkptdiffError, FormatError, HubError, IntegrityError, OutputError
from ckptdiff.format.index import INDEX_NAME, OtherFile
from ckptdiff.hub.client import endpoint, use_token
from ckptdiff.hub.commit import Commit, find_repo, licence_of, publish, update_card
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.hub.repo import Repo, check_files, download, open_repo
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.places import local_path, read_file
from ckptdiff.patching import other_files
from ckptdiff.patching.chain import repo_gives
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.verbs.card import Facts, card_text
from ckptdiff.verbs.info import info
from ckptdiff.verbs.report import report_patch
from ckptdiff.verbs.verify import verify

CARD_PATH, CONFIG_PATH, PICTURE_PATH = "README.md", "config.json", "ckptdiff-changed.png"
TAGS = ("ckptdiff", "patch")
MAX_SCANNED_BYTES = 1 << 24
"""Bytes up to which a file without weights is searched for secrets."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of :func:`push`: what was sent, or with ``dry_run`` would be sent."""

    repo: str
    """Id of the repo."""
    files: dict[str, int]
    """Bytes of each file, by its path in the repo."""
    deleted: tuple[str, ...]
    """Paths of files that an earlier push wrote and this one deletes."""
    card: str
    """Text of the model card."""
    commit: Commit | None
    """The commit; None with ``dry_run``."""
    notes: tuple[str, ...]
    """What the caller may want to know."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


@dataclass(slots=True)
class _Plan:
    """What goes into the commit."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    """Content of each file, or where it lies on this machine, by its path in the repo."""
    deleted: list[str] = field(default_factory=list)
    """Paths to delete in the repo."""
    checked: list[str] = field(default_factory=list)
    """What was checked, in Markdown."""
    notes: list[str] = field(default_factory=list)
    """What the caller may want to know."""


def push(
    patch: str | os.PathLike[str],
    repo_id: str,
    *,
    base_repo: str | None = None,
    licence: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    message: str | None = None,
    allow_secrets: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> PushResult:
    """Publish a patch on the Hugging Face Hub, with a model card, in one commit.

    Args:
        patch: a patch folder or file on this machine.
        repo_id: ``org/name`` or ``org/name@branch``; the repo and the branch are made if they do not exist.
        base_repo: id of the repo that has the base, if the patch, which must then be a folder, does not record it.
        licence: the licence that the card states; by default that of the base.
        private: whether a new repo is private; None for the account's default.
        create_pr: open a pull request instead of committing to the branch.
        message: message of the commit; by default one that names the base.
        allow_secrets: publish the patch even if a file looks like a secret.
        dry_run: do everything except writing to the Hub.
        token: access token for the Hub, instead of ``HF_TOKEN`` or the stored one.
        threads, progress: used while the patch is verified, as in :func:`ckptdiff.verify`.

    Raises:
        IntegrityError, FormatError: the patch does not verify. CheckpointError: it cannot be published like this.
        HubError: the Hub refuses, or cannot be reached; the repo is then as before.
    """
    hub_id = repo_to_push_to(repo_id)
    if parse_id(patch) is not None:
        raise CheckpointError(f"{patch}: there is no such file or folder: push sends a patch from this machine")
    with use_token(token), open_patch(local_path(patch, "push sends a patch that lies")) as opened:
        _check(patch, threads, progress)
        plan, base = _make_plan(opened, hub_id, base_repo, licence, allow_secrets)
        sizes = {path: len(data) if isinstance(data, bytes) else data.stat().st_size for path, data in plan.files.items()}
        commit = None
        if not dry_run:
            text = message or f"ckptdiff patch from {base.name}@{base.commit[:12]}"
            commit = publish(hub_id, plan.files, plan.deleted, message=text, private=private, pull_request=create_pr)
        card = plan.files[CARD_PATH]
        assert isinstance(card, bytes)
        return PushResult(str(hub_id), sizes, tuple(plan.deleted), card.decode(), commit, tuple(plan.notes))


def repo_to_push_to(repo_id: str) -> HubId:
    """The id of a repo and branch; raises CheckpointError if the text is none."""
    hub_id = parse_id(repo_id) if not os.path.lexists(repo_id) else HubId(repo_id)
    if hub_id is None or hub_id.subfolder:
        raise CheckpointError(f"{repo_id!r}: expected the id of the repo on the Hub to push to, as org/name or org/name@branch")
    return hub_id


def existing_card(existing: Repo | None) -> str | None:
    """The text of a repo's card, if it has one."""
    if existing is None or CARD_PATH not in existing.files:
        return None
    return (download(existing, [CARD_PATH]) / CARD_PATH).read_text(encoding="utf-8", errors="replace")


def _make_plan(patch: OpenPatch, hub_id: HubId, base_repo: str | None, licence: str | None, allow_secrets: bool) -> tuple[_Plan, Repo]:
    """What goes into the commit, and the repo of the base."""
    parts = "the index, tables, headers and all payloads" if patch.index else "its table, header and all payloads"
    plan = _Plan(checked=[f"`ckptdiff verify`: digests of {parts}"])
    base = _find_base(patch, base_repo, plan)
    _add_patch(patch, base, plan, relabel=base_repo is not None)
    config = _config(patch, base)
    if config is not None:
        plan.files[CONFIG_PATH] = config
    if not allow_secrets:
        _refuse_secrets(patch, plan)
    existing = find_repo(hub_id)
    _add_card(patch, hub_id, base, existing, plan, licence)
    plan.deleted = [path for path in existing.files if _is_written_by_push(path) and path not in plan.files] if existing else []
    return plan, base


def _is_written_by_push(path: str) -> bool:
    return path in (INDEX_NAME, PICTURE_PATH) or path.startswith(("patch/", "files/"))


def _check(patch: str | os.PathLike[str], threads: int | None, progress: Progress) -> None:
    """Raise IntegrityError unless the patch verifies."""
    result = verify(patch, threads=threads, progress=progress)
    if not result.ok:
        more = f" (and {len(result.problems) - 1} more)" if len(result.problems) > 1 else ""
        raise IntegrityError(f"{patch}: does not verify, so it was not published: {result.problems[0].message}{more}")


def _find_base(patch: OpenPatch, base_repo: str | None, plan: _Plan) -> Repo:
    """The repo of the base: the one that is given, or that the patch records. Its files must be those that the patch was made from."""
    hub_id = patch.base_repo
    if base_repo is not None:
        hub_id = parse_id(base_repo)
        if hub_id is None:
            raise CheckpointError(f"{base_repo!r} is not an id on the Hub: expected org/name or org/name@revision")
    elif hub_id is None:
        raise CheckpointError(f"{patch.path}: does not say which repo has its base: push with --base-repo org/name[@revision]")
    repo = open_repo(hub_id)
    if is_patch_repo(repo):
        if not repo_gives(repo, patch.base_identity):
            raise CheckpointError(f"{patch.path}: its base is not what the patch in {repo.pinned} gives")
        plan.checked.append(f"the patch in `{repo.name}` at that commit gives its base")
    else:
        plan.checked += _compare_files(patch, repo)
    return repo


def _compare_files(patch: OpenPatch, repo: Repo) -> list[str]:
    """Compare the base's files, as the patch lists them, with a repo's, and say which were compared."""
    listed = {file.path: file.sha256 for file in patch.base_files}
    if not listed and any(entry.kind in ("same", "delta") for _, entry in patch.entries.values()):
        raise CheckpointError(
            f"{patch.path}: needs a base but lists no file of it, so nothing shows whether {repo.name} has it: make it again, from files"
        )
    compared = check_files(repo, listed, f"the base of {patch.path}")
    if not listed:
        return []
    if not compared:
        return [f"not its base: of none of the weight files that the patch lists does the Hub state a SHA-256 in `{repo.name}`"]
    rest = len(listed) - compared
    files = "one weight file" if compared == 1 else f"{compared} weight files"
    more = f"; of {rest} more that the patch lists it states none" if rest else ""
    return [f"SHA-256 of {files} of its base: as the Hub states it of `{repo.name}` at that commit{more}"]


def _add_patch(patch: OpenPatch, base: Repo, plan: _Plan, relabel: bool) -> None:
    """Add the files of the patch; ``relabel``: record another repo as that of its base."""
    here = Path(patch.path)
    if patch.index is None:
        if relabel:
            raise CheckpointError(f"{patch.path}: is a lone patch file: record its base with ckptdiff make ... --base-repo {base.name}")
        plan.files[f"patch/{Path(patch.files[0].metadata.target_path).name}"] = here
        return
    index = patch.index
    if relabel:
        index = replace(index, info={**index.info, "base_repo": base.name, "base_revision": base.commit})
    plan.files[INDEX_NAME] = index.to_bytes()
    members = [shard.path for shard in index.shards] + [other.stored_path for other in index.files if other.kind != "same"]
    plan.files |= {member: here / member for member in members}


def _config(patch: OpenPatch, base: Repo) -> bytes | None:
    """The target's ``config.json``, from which the Hub reads what model this is, and by which it counts downloads."""
    config = next((other for other in patch.others if other.path == CONFIG_PATH), None)
    if config is None:
        return None
    try:
        return b"".join(other_files.decode(patch, config, None if config.kind == "new" else download(base, [CONFIG_PATH]) / CONFIG_PATH))
    except (CkptdiffError, OSError):
        return None  # the base is a patch's repo, whose own config.json is not the one that this patch changes


def _refuse_secrets(patch: OpenPatch, plan: _Plan) -> None:
    """Raise CheckpointError if the name or the content of a file looks like a secret."""
    suspects = suspects_of(patch)
    config = plan.files.get(CONFIG_PATH)
    if isinstance(config, bytes) and suspicious_content(config):
        suspects.append(CONFIG_PATH)
    if suspects:
        raise CheckpointError(
            f"{patch.path}: would publish what looks like secrets: {', '.join(suspects[:10])}: make the patch with --exclude, "
            "or push with --allow-secrets if they are none"
        )


def suspects_of(patch: OpenPatch) -> list[str]:
    """The files of a patch that look like secrets, and by what."""
    suspects = [f"{other.path} (by its name)" for other in patch.others if suspicious_name(other.path)]
    for other in patch.others:
        what = suspicious_content(_content(patch, other))
        if what:
            suspects.append(f"{other.path} (holds {what})")
    return suspects


def _content(patch: OpenPatch, other: OtherFile) -> bytes:
    """The bytes that the patch holds of a file; of one that is coded against the base's, the compressed bytes, which may hold text
    literally."""
    if other.kind == "same" or other.size > MAX_SCANNED_BYTES:
        return b""
    if other.kind == "delta":
        return read_file(patch.path / other.stored_path)
    try:
        return b"".join(other_files.decode(patch, other, None))
    except (FormatError, IntegrityError, OSError):
        return b""


def _add_card(patch: OpenPatch, hub_id: HubId, base: Repo, existing: Repo | None, plan: _Plan, licence: str | None) -> None:
    """Add the model card, and the picture that it shows; what the owner of the repo wrote in the card stays."""
    card = existing_card(existing)
    stated = {"license": licence} if licence else licence_of(base.pinned)
    if not stated and not (card and "\nlicense:" in card):
        raise HubError(f"{base.name}: states no licence that the card could carry on: push with --license NAME, such as apache-2.0")
    report = report_patch(patch.path)
    picture = _picture(report, plan)
    if picture is not None:
        plan.files[PICTURE_PATH] = picture
    facts = Facts(
        patch=info(patch.path),
        repo=HubId(hub_id.repo),
        base=HubId(base.name, base.commit),
        report=report,
        checked=tuple(plan.checked),
        picture=PICTURE_PATH if picture else None,
        endpoint=endpoint(),
    )
    metadata: Mapping[str, object] = {
        **stated,
        "base_model": base.name,
        "base_model_relation": "finetune",
        "library_name": "ckptdiff",
        "tags": list(TAGS),
    }
    plan.files[CARD_PATH] = update_card(card_text(facts, card), metadata).encode()


def _picture(report: Report, plan: _Plan) -> bytes | None:
    """The chart of where weights changed, if the patch has a report and the libraries for charts are installed; a note if they are not."""
    if not report.complete:
        return None
    try:
        return next(
            (pages.drawing.png(chart, scale=1) for chart in pages.report_charts.charts(report.to_json()) if chart.name == "changed"), None
        )
    except OutputError as error:
        plan.notes.append(f"the card has no picture of what changed: {error}")
        return None
