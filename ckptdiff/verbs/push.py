"""``push``: a patch, its model card and what the Hub wants beside it, in one commit of a repo."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptdiff import pages
from ckptdiff.analysis.report_model import Report
from ckptdiff.checkpoint.recognition import is_patch_repo
from ckptdiff.checkpoint.secrets import suspicious_content, suspicious_name
from ckptdiff.errors import CheckpointError, CkptdiffError, FormatError, HubError, IntegrityError, OutputError
from ckptdiff.format.index import INDEX_NAME, OtherFile
from ckptdiff.hub.client import endpoint, using
from ckptdiff.hub.commit import Commit, find_repo, licence_of, publish, with_metadata
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.hub.repo import Repo, check_files, download, open_repo
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.patching import other_files
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.verbs.card import Facts, card_text
from ckptdiff.verbs.info import info
from ckptdiff.verbs.report import report_patch
from ckptdiff.verbs.verify import verify

CARD, CONFIG, PICTURE = "README.md", "config.json", "ckptdiff-changed.png"
TAGS = ("ckptdiff", "patch")
SCANNED = 1 << 24
"""Other files of at most this many bytes are looked through for secrets."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """What :func:`push` sent, or with ``dry_run`` would send: sizes in bytes by path in the repo. ``commit`` is None then."""

    repo: str
    files: dict[str, int]
    deleted: tuple[str, ...]
    card: str
    commit: Commit | None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


@dataclass(slots=True)
class _Plan:
    """What goes into the commit."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)


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
        repo_id: ``org/name`` or ``org/name@branch``; made if it is not there.
        base_repo: the id of the base, if the patch does not record it (then a patch folder).
        licence: what the card states; by default the base's.
        private: whether a new repo is private; None for the account's default.
        create_pr: open a pull request instead of committing.
        message: of the commit.
        allow_secrets: publish although a file looks like a secret.
        dry_run: do everything but write to the Hub.
        token: instead of ``HF_TOKEN`` or the stored one.
        threads, progress: of the check of the patch.

    Raises:
        IntegrityError, FormatError: the patch does not verify. CheckpointError: it cannot be published like this.
        HubError: the Hub refuses, or cannot be reached. The repo is as before then.
    """
    hub_id = parse_id(repo_id) if not os.path.lexists(repo_id) else HubId(repo_id)
    if hub_id is None or hub_id.subfolder:
        raise CheckpointError(f"{repo_id!r}: expected org/name, or org/name@branch")
    if parse_id(patch) is not None:
        raise CheckpointError(f"{patch}: there is no such file or folder: push sends a patch from this machine")
    with using(token), ExitStack() as stack:
        opened = stack.enter_context(open_patch(patch))
        _check(patch, threads, progress)
        parts = "the index, tables, headers and all payloads" if opened.index else "its table, header and all payloads"
        plan = _Plan(checked=[f"`ckptdiff verify`: digests of {parts}"])
        base = _base(opened, base_repo, plan)
        _add_patch(opened, base, plan, relabel=base_repo is not None)
        config = _config(opened, base)
        if config is not None:
            plan.files[CONFIG] = config
        if not allow_secrets:
            _refuse_secrets(opened, plan)
        there = find_repo(hub_id)
        measured = report_patch(patch)
        _add_card(opened, hub_id, base, there, plan, licence, measured)
        plan.gone = [path for path in there.files if _is_ours(path) and path not in plan.files] if there else []
        sizes = {path: len(data) if isinstance(data, bytes) else data.stat().st_size for path, data in plan.files.items()}
        commit = None
        if not dry_run:
            text = message or f"ckptdiff patch from {base.name}@{base.commit[:12]}"
            commit = publish(hub_id, plan.files, plan.gone, message=text, private=private, pull_request=create_pr)
        card = plan.files[CARD]
        assert isinstance(card, bytes)
        return PushResult(str(hub_id), sizes, tuple(plan.gone), card.decode(), commit)


def _is_ours(path: str) -> bool:
    return path in (INDEX_NAME, PICTURE) or path.startswith(("patch/", "files/"))


def _check(patch: str | os.PathLike[str], threads: int | None, progress: Progress) -> None:
    found = verify(patch, threads=threads, progress=progress)
    if not found.ok:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise IntegrityError(f"{patch}: does not verify, so it was not published: {found.problems[0].message}{more}")


def _base(patch: OpenPatch, base_repo: str | None, plan: _Plan) -> Repo:
    """The repo that the patch records as its base's, or is told; its files must be the ones that the patch was made from."""
    recorded = patch.info
    if base_repo is not None:
        hub_id = parse_id(base_repo)
        if hub_id is None:
            raise CheckpointError(f"{base_repo!r} is not an id on the Hub: expected org/name or org/name@revision")
    elif "base_repo" in recorded:
        hub_id = HubId(recorded["base_repo"], recorded.get("base_revision"))
    else:
        raise CheckpointError(f"{patch.path}: does not say which repo has its base: push with --base-repo org/name[@revision]")
    repo = open_repo(hub_id)
    if is_patch_repo(repo):
        with open_patch(str(repo.pinned), by_ranges=True) as before:
            if before.target_identity != patch.base_identity:
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
    if patch.index is None:
        if relabel:
            raise CheckpointError(f"{patch.path}: is a lone patch file: record its base with ckptdiff make ... --base-repo {base.name}")
        plan.files[f"patch/{Path(patch.files[0].metadata.target_path).name}"] = patch.path
        return
    index = patch.index
    if relabel:
        index = replace(index, info={**index.info, "base_repo": base.name, "base_revision": base.commit})
    plan.files[INDEX_NAME] = index.to_bytes()
    members = [shard.path for shard in index.shards] + [other.stored_path for other in index.files if other.kind != "same"]
    plan.files |= {member: patch.path / member for member in members}


def _config(patch: OpenPatch, base: Repo) -> bytes | None:
    """The target's ``config.json``: the Hub reads from it what model this is, and counts downloads by it."""
    found = next((other for other in patch.others if other.path == CONFIG), None)
    if found is None:
        return None
    try:
        return b"".join(other_files.decode(patch, found, None if found.kind == "new" else download(base, [CONFIG]) / CONFIG))
    except (CkptdiffError, OSError):
        return None  # of a chain: its base's config.json is not in that repo as it was


def _refuse_secrets(patch: OpenPatch, plan: _Plan) -> None:
    found = [f"{other.path} (by its name)" for other in patch.others if suspicious_name(other.path)]
    for other in patch.others:
        what = suspicious_content(_content(patch, other))
        if what:
            found.append(f"{other.path} (holds {what})")
    config = plan.files.get(CONFIG)
    if isinstance(config, bytes) and suspicious_content(config):
        found.append(CONFIG)
    if found:
        raise CheckpointError(
            f"{patch.path}: would publish what looks like secrets: {', '.join(found[:10])}: make the patch with --exclude, "
            "or push with --allow-secrets if they are none"
        )


def _content(patch: OpenPatch, other: OtherFile) -> bytes:
    """A file's bytes as far as they stand in the patch: of one that is coded against the base's what the frame holds literally."""
    if other.kind == "same" or other.size > SCANNED:
        return b""
    if other.kind == "delta":
        return (patch.path / other.stored_path).read_bytes()
    try:
        return b"".join(other_files.decode(patch, other, None))
    except (FormatError, IntegrityError, OSError):
        return b""


def _add_card(patch: OpenPatch, hub_id: HubId, base: Repo, there: Repo | None, plan: _Plan, licence: str | None, report: Report) -> None:
    own = None
    if there is not None and CARD in there.files:
        own = (download(there, [CARD]) / CARD).read_text(encoding="utf-8", errors="replace")
    stated = {"license": licence} if licence else licence_of(base.pinned)
    if not stated and not (own and "\nlicense:" in own):
        raise HubError(f"{base.name}: states no licence that the card could carry on: push with --license")
    picture = _picture(report)
    if picture is not None:
        plan.files[PICTURE] = picture
    facts = Facts(
        patch=info(patch.path),
        repo=HubId(hub_id.repo),
        base=HubId(base.name, base.commit),
        report=report,
        checked=tuple(plan.checked),
        picture=PICTURE if picture else None,
        endpoint=endpoint(),
    )
    metadata: Mapping[str, object] = {
        **stated,
        "base_model": base.name,
        "base_model_relation": "finetune",
        "library_name": "ckptdiff",
        "tags": list(TAGS),
    }
    plan.files[CARD] = with_metadata(card_text(facts, own), metadata).encode()


def _picture(report: Report) -> bytes | None:
    """The chart of where weights changed, if the patch has a report and the libraries are there."""
    if not report.complete:
        return None

    try:
        return next(
            (pages.drawing.png(chart, scale=1) for chart in pages.report_charts.charts(report.to_json()) if chart.name == "changed"), None
        )
    except OutputError:
        return None
