"""Which tensors of a base each tensor of a target is compared with (spec 3.1 and 8): by name, and where names differ by evidence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckptdiff.checkpoint.adapt import AdaptedBase, adapt, fits
from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey
from ckptdiff.checkpoint.evidence import TALL, Evidence, found_by_content
from ckptdiff.checkpoint.names import numbers
from ckptdiff.checkpoint.renames import Rename, rename_all
from ckptdiff.checkpoint.samples import Relation, all_agree, compare, windows_of

CHECK_ALL = 1 << 11
"""Tensors up to which each that is paired by its name is checked; of more, the largest of each layer or expert."""
CHECK_UNITS = 256
"""Units that are read in the middle of a pair of one name and size to check it."""
MUCH = 8
"""One unit in so many is much."""
TABLE_WINDOWS = 8
"""Windows that are read of a tall table, and of a tensor that has not the size of its base: rows may have been moved, cut or added."""


@dataclass(frozen=True, slots=True)
class Counterpart:
    """What of a base a tensor of the target is compared with."""

    base: AdaptedBase
    means: str
    """How it was found: one of :data:`MEANS`."""
    related: bool | None = True
    """Whether the target has content of it; None where a sample cannot tell."""


MEANS = ("name", "rename", "content", "parts", "rows", "similar name")
"""By equal names; by ``--rename``; by content; as parts of tensors, or of several; by the content of rows; by names that are alike."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The scopes and tensors of a target, and what they are paired with."""

    scopes: dict[str, str | None]
    """The base scope of each target scope; None if there is none."""
    counterparts: dict[TensorKey, Counterpart] = field(default_factory=dict)
    """By key of the target tensor. Tensors without one are new, or found by their digest."""


def pair(base: Checkpoint, target: Checkpoint, renames: Sequence[Rename] = (), *, trust_names: bool = False) -> Pairing:
    """Pair the scopes and the tensors of two checkpoints.

    Args:
        base, target: the checkpoints.
        renames: rules that turn a target tensor's name into its base's.
        trust_names: take pairs of one name as they are, so that nothing is read of a pair of checkpoints whose names agree. Otherwise
            samples of their contents show whether a name says something wrong.
    """
    by_scope: dict[str, list[Tensor]] = {scope: [] for scope in target.scopes}
    for file in target.weights:
        by_scope[file.scope] += file.tensors
    pairing = Pairing(_pair_scopes(base, target, by_scope, renames))
    for scope, tensors in by_scope.items():
        base_id = pairing.scopes[scope]
        if base_id is not None:
            pairing.counterparts.update(_pair_tensors(base, target, base.scopes[base_id], tensors, renames, trust_names))
    return pairing


# --- scopes ---


def _pair_scopes(
    base: Checkpoint, target: Checkpoint, by_scope: Mapping[str, Sequence[Tensor]], renames: Sequence[Rename]
) -> dict[str, str | None]:
    """The base scope of each target scope: that of its id; or else that which has most of its names, or of its contents."""
    if len(base.scopes) == 1 and len(target.scopes) == 1:
        return dict(zip(target.scopes, base.scopes, strict=True))
    taken = base.scopes.keys() & target.scopes.keys()
    found = {
        scope: scope if scope in base.scopes else _scope_by_names(base, tensors, renames, taken) for scope, tensors in by_scope.items()
    }
    left = {scope: tensors for scope, tensors in by_scope.items() if found[scope] is None}
    return found | (_scopes_by_contents(base, left) if left and base.scopes else {})


def _scope_by_names(base: Checkpoint, tensors: Sequence[Tensor], renames: Sequence[Rename], taken: Collection[str]) -> str | None:
    """The scope that has most of the names; of several that whose tensors of these names are related; then one without a partner."""
    names = [(tensor, rename_all(tensor.name, renames)[0]) for tensor in tensors]
    found = {scope: [(tensor, known[name]) for tensor, name in names if name in known] for scope, known in base.scopes.items()}
    found = {scope: [row for row in rows if _is_adaptable(row[1], row[0])] for scope, rows in found.items()}
    most = max(map(len, found.values()), default=0)
    best = [scope for scope, rows in found.items() if len(rows) == most]
    if not most or len(best) == 1:
        return best[0] if most else None
    related = {scope: sum(t.nbytes for t, known in found[scope] if compare(adapt(known, t), t).related) for scope in best}
    return max(best, key=lambda scope: (related[scope], scope not in taken))


def _scopes_by_contents(base: Checkpoint, by_scope: Mapping[str, Sequence[Tensor]]) -> dict[str, str | None]:
    """For each of some target scopes the base scope in which most of its bytes are found again; None if none is."""
    known = [tensor for tensors in base.scopes.values() for tensor in tensors.values()]
    found: dict[str, str | None] = {}
    for scope, tensors, bases in found_by_content(known, by_scope):
        sizes: dict[str, int] = {}
        for tensor, other in zip(tensors, bases, strict=True):
            if other is not None:
                sizes[other.scope] = sizes.get(other.scope, 0) + tensor.nbytes
        found[scope] = max(sizes, key=sizes.__getitem__) if sizes else None
    return found


# --- tensors ---


def _pair_tensors(
    base: Checkpoint, target: Checkpoint, known: dict[str, Tensor], tensors: Sequence[Tensor], renames: Sequence[Rename], trust: bool
) -> dict[TensorKey, Counterpart]:
    """The counterparts of the tensors of one scope."""
    named = _by_names(known, base.tied, tensors, target.tied, renames)
    trust = trust or base.in_memory or target.in_memory
    doubtful = {} if trust else _doubtful([t for t in tensors if t.key in named and named[t.key].means == "name"], named)
    left = [tensor for tensor in tensors if tensor.nbytes and (tensor.key not in named or tensor.key in doubtful)]
    if not left:
        return named
    bases = {key: found.base for key, found in named.items()}
    for key, found in Evidence(known, tensors, bases, doubtful).find(left).items():
        named[key] = Counterpart(found.base, found.means, found.related)
    return {
        key: replace(found, related=doubtful[key].related) if key in doubtful and found.means == "name" else found
        for key, found in named.items()
    }


def _by_names(
    known: Mapping[str, Tensor],
    base_tied: Mapping[str, str],
    tensors: Iterable[Tensor],
    tied: Mapping[str, str],
    renames: Sequence[Rename],
) -> dict[TensorKey, Counterpart]:
    """The tensors that have a base tensor of their name, or of one of their further names, or by a rule."""
    found: dict[TensorKey, Counterpart] = {}
    by_name = {name: known[kept] for name, kept in base_tied.items() if kept in known} | dict(known)
    further: dict[str, list[str]] = {}
    for name, kept in tied.items():
        further.setdefault(kept, []).append(name)
    for tensor in tensors:
        wanted, rules = rename_all(tensor.name, renames) if renames else (tensor.name, set())
        for name in (wanted, *further.get(tensor.name, ())):
            if name in by_name and _is_adaptable(by_name[name], tensor):
                found[tensor.key] = Counterpart(adapt(by_name[name], tensor), "rename" if rules else "name")
                break
    return found


def _is_adaptable(base: Tensor, target: Tensor) -> bool:
    """Whether a base tensor can stand for a target's; one of another name must have units that do."""
    return fits(base, target) and (base.name == target.name or min(base.units, target.units) > 0)


def _doubtful(tensors: Sequence[Tensor], named: Mapping[TensorKey, Counterpart]) -> dict[TensorKey, Relation]:
    """Pairs of one name whose samples show no relation, or not all over, and how far apart they are."""
    groups = dict[tuple[int, ...], list[Tensor]]()
    for tensor in tensors:
        groups.setdefault(numbers(tensor.name), []).append(tensor)
    chosen = tensors if len(tensors) <= CHECK_ALL else [max(group, key=lambda tensor: tensor.nbytes) for group in groups.values()]
    suspects = _suspects(chosen, named)
    doubtful = dict[TensorKey, Relation]()
    for group in groups.values():
        for tensor in group if not suspects.isdisjoint(tensor.key for tensor in group) else ():
            compared = compare(named[tensor.key].base, tensor)
            if tensor.key in suspects or compared.related is False or _suspects([tensor], named):
                doubtful[tensor.key] = compared
    return doubtful


def _suspects(tensors: Sequence[Tensor], named: Mapping[TensorKey, Counterpart]) -> set[TensorKey]:
    """Those of some tensors of whose pairs a look gives reason to look for another base."""
    pairs = [(base := named[tensor.key].base, tensor, _windows(base, tensor)) for tensor in tensors]
    return {tensor.key for (base, tensor, _), agrees in zip(pairs, all_agree(pairs), strict=True) if not agrees or _has_much_more(base)}


def _has_much_more(base: AdaptedBase) -> bool:
    """Whether so much of a target stands against zeros that it is worth to look for it elsewhere."""
    return MUCH * base.against_zeros >= base.units > 0


def _windows(base: AdaptedBase, target: Tensor) -> list[tuple[int, int]]:
    """The few windows of a pair that are to show whether the target was made from the base."""
    common = sum(piece.units for piece in base.pieces)
    tall = len(target.shape) == 2 and target.shape[0] >= TALL * target.shape[1]
    cut = target.units != next(iter(base.tensors.values())).units
    return windows_of(common, TABLE_WINDOWS if tall or cut else 1, CHECK_UNITS)
