"""``make --dry-run``: what ``make`` would pair, read, write and need, from headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.pairing import MEANS, Pairing, pair
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.errors import CheckpointError
from ckptdiff.hub.ids import parse_id
from ckptdiff.io.parallel import default_threads
from ckptdiff.io.places import Place, place_of, size_of
from ckptdiff.patching.encode_options import on_threads
from ckptdiff.patching.pair_summary import check_related
from ckptdiff.patching.work_plan import Work, encoding_work, free_space, most_of_payloads, most_of_tables, peak_memory
from ckptdiff.verbs.make import checked_destination, open_pair, parsed_rules


@dataclass(frozen=True, slots=True)
class PlannedPairs:
    """How tensors of the target would be paired."""

    by_means: dict[str, int]
    """Number of tensors by how their base is found: ``name``, ``rename``, ``content``, ``parts``, ``rows``, ``similar name``."""
    new: int
    """Tensors without a base, unless the base has one of the same content, which only a run looks for."""
    removed: int
    """Tensors of the base that nothing of the target is paired with, or named as."""
    sampled: bool
    """Whether samples of tensors were read: names do not agree, so that content must show what belongs together."""


@dataclass(frozen=True, slots=True)
class MakePlan:
    """What :func:`ckptdiff.make` would do. Sizes are in bytes."""

    patch: Place
    """Where the patch would be written."""
    pairs: PlannedPairs
    work: Work
    """The jobs, and what they read."""
    threads: int
    base_size: int
    target_size: int
    """Weight files and other files."""
    patch_at_most: int
    """What the patch takes if every tensor is stored whole and nothing can be compressed; patches are far smaller."""
    disk_needed: int
    """Free space that a run needs at most: payloads lie beside the patch until that is written."""
    disk_free: int | None
    memory: int
    """About the most memory that a run takes."""
    weight_files: tuple[str, ...]
    """Paths of the target's weight files, of which each gives a file of the patch."""
    files: tuple[str, ...]
    """Files without weights that would go into the patch."""
    left_out: tuple[str, ...]
    """Files of the target that would not."""
    left_out_tensors: tuple[str, ...]
    """As of :class:`~ckptdiff.verbs.make.MakeResult`."""


def plan_make(
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
    threads: int | None = None,
    device: str | None = None,
    trust_hub_cache: bool = False,
    overwrite: bool = False,
) -> MakePlan:
    """Say what :func:`ckptdiff.make` would do with these arguments. Nothing is written.

    Only headers are read where the names of all tensors agree, or rules make them agree. Otherwise samples of tensors are, as a run reads
    them; a run also reads samples of pairs whose names agree, to see whether a name says something wrong.

    Raises:
        CheckpointError: as :func:`ckptdiff.make`; or a checkpoint is on the Hub, from which a dry run fetches nothing.
        UnsupportedError, OutputError: as :func:`ckptdiff.make`, but that the disk is large enough is not checked.
    """
    for path in (base, target):
        if parse_id(path) is not None:
            raise CheckpointError(f"{path}: a dry run fetches nothing from the Hub: give a checkpoint on this machine")
    out, rules, count = place_of(patch), parsed_rules(codec, rename), threads or default_threads()
    with open_pair(base, target, Selection(include, exclude, follow_links), rules) as (old, new):
        checked_destination(old, new, out, overwrite, mend=False)
        pairing = pair(old, new, rules, trust_names=True)
        if not force:
            check_related(old, new, pairing)
        work = encoding_work(old, new, pairing, on_threads(old, new, codec, count, device, trust_hub_cache))
        others = {side.path: sum(size_of(side.others[name]) for name in side.kept) for side in (old, new)}
        payloads, rest = most_of_payloads(new), most_of_tables(new) + others[new.path]
        return MakePlan(
            patch=out,
            pairs=_planned(old, new, pairing),
            work=work,
            threads=count,
            base_size=sum(file.file.size for file in old.weights) + others[old.path],
            target_size=sum(file.file.size for file in new.weights) + others[new.path],
            patch_at_most=payloads + rest,
            disk_needed=2 * payloads + rest,
            disk_free=free_space(out),
            memory=peak_memory(work, count),
            weight_files=tuple(file.path for file in new.weights),
            files=tuple(new.kept),
            left_out=new.left_out,
            left_out_tensors=new.left_out_tensors,
        )


def _planned(base: Checkpoint, target: Checkpoint, pairing: Pairing) -> PlannedPairs:
    means = Counter(counterpart.means for counterpart in pairing.counterparts.values())
    tensors = [tensor for file in target.weights for tensor in file.tensors]
    new = [tensor for tensor in tensors if tensor.key not in pairing.counterparts]
    used = {(pairing.scopes[key.scope], name) for key, found in pairing.counterparts.items() for name in found.base.tensors}
    used |= {(pairing.scopes[tensor.scope], tensor.name) for tensor in tensors}
    paired = {scope for scope in pairing.scopes.values() if scope is not None}
    removed = sum((scope, name) not in used for scope in paired for name in base.scopes[scope])
    by_means = {name: means[name] for name in MEANS if means[name]}
    sampled = any(tensor.nbytes for tensor in new) or any(name not in ("name", "rename") for name in by_means)
    return PlannedPairs(by_means, len(new), removed, sampled)
