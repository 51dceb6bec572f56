"""``make`` writes the difference between two checkpoints as a patch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.other_formats import other_formats
from ckptdiff.checkpoint.pairing import pair
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.renames import Rename, check_patterns
from ckptdiff.checkpoint.secrets import suspicious_name
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.errors import CheckpointError
from ckptdiff.format.entry import CODEC_NAMES, Totals
from ckptdiff.format.index import INDEX_NAME, other_file_path, shard_path
from ckptdiff.hub.ids import parse_id
from ckptdiff.hub.repo import Repo, open_repo
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.io.places import Place, place_of, size_of
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_traffic import TRAFFIC, Traffic
from ckptdiff.io.work_folder import discard
from ckptdiff.io.workers import check_no_ray, check_no_ray_with_stores, open_workers
from ckptdiff.kernels.compiling import Stopwatch
from ckptdiff.patching import other_files
from ckptdiff.patching.destination import Building, Destination, check_destination
from ckptdiff.patching.encode_options import options_for
from ckptdiff.patching.encode_pair import encode_pair
from ckptdiff.patching.output import told_of_unfinished
from ckptdiff.patching.pair_summary import PairedBy, StoredWhole, check_related, paired_by, stored_whole
from ckptdiff.patching.provenance import recorded_facts
from ckptdiff.patching.traffic_plan import planned_make
from ckptdiff.patching.unfinished import make_log
from ckptdiff.patching.write import (
    PatchContents,
    StorableReport,
    WrittenPatch,
    check_report,
    check_size,
    encoded_files,
    write_patch,
)


@dataclass(frozen=True, slots=True)
class MakeResult:
    """The result of :func:`make`. Sizes are in bytes."""

    patch: Place
    """The patch that was written."""
    totals: Totals
    """Counts of tensors and units."""
    paired: tuple[PairedBy, ...]
    """Tensors that were paired by other means than their name."""
    whole: StoredWhole
    """Tensors that are stored whole."""
    patch_size: int
    report_size: int
    """Bytes of ``patch_size`` that the stored report takes."""
    target_size: int
    files: tuple[str, ...]
    """Files without weights that went into the patch."""
    left_out: tuple[str, ...]
    """Files of the target that did not go into the patch."""
    left_out_tensors: tuple[str, ...]
    """Entries of a target that torch.distributed.checkpoint wrote which are optimizer state, or no tensors: they did not go in either."""
    secrets: tuple[str, ...]
    """Those of ``left_out`` that are named like keys and passwords."""
    other_formats: dict[str, int]
    """Files that went in and may hold the weights once more in another format, and the bytes that they take in the patch."""
    followed: dict[str, Place]
    """Links that lead out of the base's or the target's folder, and where they lead."""
    removed_files: tuple[str, ...]
    """Files of the base that the target lacks."""
    codecs: dict[str, int]
    """Number of tensors that each codec codes."""
    seconds: float
    """Wall time."""
    traffic: Traffic
    """Requests to stores, and bytes both ways."""
    planned: Traffic
    """What was to be expected of them, given the headers, how tensors were paired, and the sizes of the patch's files."""

    @property
    def ratio(self) -> float:
        """How many times smaller the patch is than the target."""
        return self.target_size / self.patch_size


def make(
    base: str | os.PathLike[str],
    target: str | os.PathLike[str],
    patch: str | os.PathLike[str],
    *,
    codec: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    rename: Sequence[str] = (),
    force: bool = False,
    report: StorableReport | None = None,
    base_repo: str | None = None,
    target_repo: str | None = None,
    threads: int | None = None,
    ray: str | None = None,
    device: str | None = None,
    trust_hub_cache: bool = False,
    overwrite: bool = False,
    fresh: bool = False,
    progress: Progress = no_progress,
    noted: Callable[[str], None] = lambda text: None,
) -> MakeResult:
    """Write the exact difference between two checkpoints as a patch.

    If a run is killed or interrupted, the next one with the same arguments goes on after the units of 64 MiB of the target that are
    finished, whose encoded bytes are checked; the patch is the same.

    Args:
        base: a safetensors file, or a checkpoint folder: a path, a URL that fsspec knows, or an id on the Hub.
        target: a safetensors file, which gives a patch file, or a checkpoint folder, which gives a patch folder.
        patch: where to write the patch: a path, or a URL. In a store it is whole once its ``ckptdiff.json`` is there.
        codec: ``context``, ``sparse`` or ``raw`` for every changed tensor; by default the smallest of them, tensor by tensor.
        include: globs of files to take although they are left out by default, of the base too.
        exclude: globs of files to leave out, of the base too.
        follow_links: follow links that lead out of a checkpoint's folder; those to weight files, indexes and the Hub's cache always are.
        rename: ``REGEX=REPL`` rules that turn a target tensor's name into the base's. Without them tensors are paired by name, and where
            names differ, or say something wrong, by content.
        force: make the patch even if the target has nothing of the base.
        report: the report of this pair, by :func:`ckptdiff.report`, to store in the patch for those who do not have the base.
        base_repo, target_repo: ids of the repos on the Hub that hold these checkpoints, to record in the patch; an id given as ``base``
            or ``target`` is recorded anyway. The weight files must have the SHA-256 that the Hub states.
        threads: number of threads, or of tasks at a time with ``ray``; the bytes of the patch do not depend on it.
        ray: have the workers of a Ray cluster do the work: ``host:port`` of one, ``auto`` for the one that runs on this machine, ``local``
            to start one here. All of its machines must see the files at the paths that they have here. None: threads do it.
        device: torch device on which checkpoints are compared, ``auto`` for the first accelerator; the bytes do not depend on it either.
        trust_hub_cache: take the SHA-256 of weight files in the Hub's cache, which names files by it, from their names, and not from
            their bytes. What is compared and stored is covered by digests of its own.
        overwrite: replace an existing patch.
        fresh: start over, where an earlier run was killed.
        progress: called with what is being done, how much is done, and how much there is.
        noted: called with a line that says so where the run goes on from an earlier one, or removes what that has left.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is not one, or nothing of the base is in the target, or the report is one of
            other checkpoints.
        UnsupportedError: torch or Ray is missing, or there is no such device.
        ResourceError: the cluster cannot be reached, or a worker failed again and again.
        OutputError: the patch cannot be written there. HubError: a repo cannot be read. StoreError: a store cannot be read or written.
    """
    watch, before, out, rules = Stopwatch(), TRAFFIC.total(), place_of(patch), parsed_rules(codec, rename)
    if device is not None:
        check_no_ray(ray, "the device")
    check_no_ray_with_stores(ray, base, target, out)
    with ExitStack() as stack:
        stack.enter_context(told_of_unfinished(out))
        old, new = stack.enter_context(open_pair(base, target, Selection(include, exclude, follow_links), rules))
        destination = checked_destination(old, new, out, overwrite)
        stored = report.to_bytes() if report is not None else None  # here, as a large one is refused before anything is encoded
        repos = [_repo_of(old, base_repo), _repo_of(new, target_repo)]
        pairing = pair(old, new, rules)
        if not force:
            check_related(old, new, pairing)
        opened = TRAFFIC.total() - before
        workers = stack.enter_context(open_workers(threads, ray))
        options = options_for(old, new, codec, workers, device, trust_hub_cache)
        asked = {"codec": codec, "include": include, "exclude": exclude, "follow_links": follow_links, "rename": rename}
        log = make_log(old, new, {**asked, "blocks": options.blocks}, fresh, noted) if isinstance(out, Path) else None
        with destination.building(log) as built, built.spool() as spool:
            encoded = encode_pair(old, new, pairing, options, spool, progress, log)
            if report is not None:
                check_report(report, encoded)
            contents = PatchContents(encoded, recorded_facts(encoded, *repos), stored)
            written = _write(contents, built)
        in_store = isinstance(out, StorePath)
        planned = opened + planned_make(old, new, written.sizes if in_store else (), contents.payload_size)
        return _result(contents, written, out, watch.seconds(), TRAFFIC.total() - before, planned)


def _write(contents: PatchContents, built: Building) -> WrittenPatch:
    """Write the patch, and check that neither checkpoint has changed while it was read."""
    if isinstance(built.place, Path):
        discard(built.place)  # the patch that an earlier run has begun to write
    written = write_patch(contents, built.place, encoded_files(contents, built.place))
    contents.pair.base.check_unchanged()
    contents.pair.target.check_unchanged()
    return written


def parsed_rules(codec: str | None, rename: Sequence[str]) -> list[Rename]:
    """The rules of ``rename``; raises CheckpointError if one is none, or there is no such codec."""
    if codec is not None and codec not in CODEC_NAMES:
        raise CheckpointError(f"unknown codec {codec!r}: expected one of {', '.join(CODEC_NAMES)}")
    return [Rename.parse(text) for text in rename]


@contextmanager
def open_pair(
    base: str | os.PathLike[str], target: str | os.PathLike[str], chosen: Selection, rules: Sequence[Rename]
) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """Open both checkpoints, and check what can be told from their headers alone."""
    with ExitStack() as stack:
        old, new = (stack.enter_context(open_checkpoint(path, with_files=True, selection=chosen)) for path in (base, target))
        check_patterns(old, new, rules, chosen.globs)
        check_size(new)
        yield old, new


def checked_destination(old: Checkpoint, new: Checkpoint, out: Place, overwrite: bool, mend: bool = True) -> Destination:
    """Where the patch is written; raises an error if two of its files would have one path, or it cannot be written to ``out``."""
    other_files.check_paths(new.kept, [file.path for file in (*old.weights, *new.weights)])
    files = [INDEX_NAME, *(shard_path(file.path) for file in new.weights), *map(other_file_path, new.kept)]
    return check_destination(out, [*old.paths, *new.paths], folder=not new.is_file, overwrite=overwrite, files=files, mend=mend)


def _result(contents: PatchContents, written: WrittenPatch, out: Place, seconds: float, traffic: Traffic, planned: Traffic) -> MakeResult:
    old, new = contents.pair.base, contents.pair.target
    return MakeResult(
        patch=out,
        totals=written.totals,
        paired=paired_by(contents.pair),
        whole=stored_whole(contents.pair, contents.entries.values()),
        patch_size=written.size,
        report_size=len(contents.report or b""),
        target_size=sum(file.file.size for file in new.weights) + sum(size_of(new.others[name]) for name in new.kept),
        files=tuple(new.kept),
        left_out=new.left_out,
        left_out_tensors=new.left_out_tensors,
        secrets=tuple(filter(suspicious_name, new.left_out)),
        other_formats={name: written.stored[name] for name in other_formats(new.kept) if written.stored[name]},
        followed={f"{side.path}/{name}": to for side in (old, new) for name, to in side.followed.items()},
        removed_files=written.removed_files,
        codecs=written.codecs,
        seconds=seconds,
        traffic=traffic,
        planned=planned,
    )


def _repo_of(checkpoint: Checkpoint, recorded: str | None) -> Repo | None:
    """The repo that a checkpoint was read from, or that is said to hold it."""
    if recorded is None:
        return open_repo(checkpoint.origin) if checkpoint.origin else None
    hub_id = parse_id(recorded)
    if hub_id is None:
        raise CheckpointError(f"{recorded!r} is not an id on the Hub: expected org/name or org/name@revision")
    return open_repo(hub_id)
