"""What a pairing came to, for those who make a patch: what was paired by other means than the name, and what is stored whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey
from ckptdiff.checkpoint.names import closeness, is_within
from ckptdiff.checkpoint.pairing import MEANS, Pairing
from ckptdiff.checkpoint.renames import Rename
from ckptdiff.errors import CheckpointError
from ckptdiff.format.entry import Entry
from ckptdiff.patching.encode_pair import EncodedPair

LEAST_SHARE = 256
"""A patch is refused where less than one byte in so many of base and target has to do with the other one."""
MOST_CANDIDATES = 256
"""Base tensors of one size, with names of one length, among which one is looked for that a rule would pair."""
MUCH = 10
"""Where more than one byte in so many of the target is stored whole, though base tensors of these sizes are left, a rule may help."""


@dataclass(frozen=True, slots=True)
class PairedBy:
    """Tensors that were paired by other means than their name."""

    means: str
    """One of :data:`~ckptdiff.checkpoint.pairing.MEANS`, or ``digest``."""
    tensors: int
    """How many."""
    target: str
    """The name of the first of them."""
    bases: tuple[str, ...]
    """The base tensors of that one."""
    alike: tuple[str, ...] = ()
    """The names of the target's tensors that a rule stands against one base tensor, of the first one with several; such a rule may be too
    broad."""


@dataclass(frozen=True, slots=True)
class StoredWhole:
    """Tensors of which a patch has all units, coded without a base."""

    replaced: int
    """How many of them have a base, or a base tensor of their name."""
    replaced_new: int
    """How many of those are new in the patch, which does not use that base tensor."""
    added: int
    """How many have none."""
    nbytes: int
    """Bytes of these tensors in the target."""
    rename: str | None
    """A rule ``REGEX=REPL`` that would give many of them base tensors of the same sizes, which nothing else uses."""


def check_related(base: Checkpoint, target: Checkpoint, pairing: Pairing) -> None:
    """Raise CheckpointError if a target has nothing of the base, as an adapter or another model has not."""
    found = {key: counterpart for key, counterpart in pairing.counterparts.items() if counterpart.related is not False}
    tensors = [tensor for file in target.weights for tensor in file.tensors]
    kept = sum(tensor.nbytes for tensor in tensors if tensor.key in found)
    used = {(pairing.scopes[key.scope], name) for key, counterpart in found.items() for name in counterpart.base.tensors}
    used_bytes = sum(base.scopes[scope or ""][name].nbytes for scope, name in used)
    of_base, of_target = (sum(file.header.data_size for file in side.weights) for side in (base, target))
    if of_base and of_target and LEAST_SHARE * kept < of_target and LEAST_SHARE * used_bytes < of_base:
        what = (
            "an adapter: merge it into its base first (merge_and_unload and save_pretrained of PEFT)"
            if _is_adapter(tensors)
            else ("another model? If its tensors have other names, pair them with --rename")
        )
        raise CheckpointError(
            f"nothing of {base.path} is in {target.path}: no tensor has content of one of the base, by name or by content. Is it {what}; "
            "or make a patch that stores it whole with --force"
        )


def _is_adapter(tensors: Iterable[Tensor]) -> bool:
    """Whether tensors are those of a low-rank adapter, as PEFT names them."""
    return any(re.search(r"\blora_|_lora\b|\bhada_|\bia3_|\.modules_to_save\.|\bvera_lambda", tensor.name) for tensor in tensors)


def paired_by(pair: EncodedPair) -> tuple[PairedBy, ...]:
    """What was paired by other means than the name."""
    groups: dict[str, list[Entry]] = {means: [] for means in (*MEANS[1:], "digest")}
    for key, entry in _entries(pair):
        counterpart = pair.pairing.counterparts.get(key)
        means = "digest" if counterpart is None else counterpart.means
        if entry.has_base and means in groups and (means != "digest" or entry.base_names != (entry.name,)):
            groups[means].append(entry)
    return tuple(
        PairedBy(means, len(rows), rows[0].name, rows[0].base_names, _renamed_alike(pair.pairing) if means == "rename" else ())
        for means, rows in groups.items()
        if rows
    )


def _renamed_alike(pairing: Pairing) -> tuple[str, ...]:
    """The tensors of one scope that have one and the same base tensor, if rules gave it to any of them."""
    groups: dict[tuple[str, str], list[TensorKey]] = {}
    renamed = set[tuple[str, str]]()
    for key, counterpart in pairing.counterparts.items():
        if counterpart.means in ("name", "rename"):
            for name in counterpart.base.tensors:
                groups.setdefault((key.scope, name), []).append(key)
                renamed |= {(key.scope, name)} if counterpart.means == "rename" else set()
    return next((tuple(key.name for key in keys) for place, keys in groups.items() if place in renamed and len(keys) > 1), ())


def stored_whole(pair: EncodedPair, copies: Iterable[Mapping[TensorKey, Entry]]) -> StoredWhole:
    """What a patch stores whole; ``copies``: the entries of each scope, of which some are copies of others."""
    final = {key: entry for entries in copies for key, entry in entries.items()}
    whole = [(key, entry) for key, entry in final.items() if entry.codec == "raw" and entry.nbytes]
    replaced = [key for key, entry in whole if entry.has_base or key.name in pair.scopes[key.scope].base]
    nbytes = sum(entry.nbytes for _, entry in whole)
    rename = None
    if nbytes and MUCH * nbytes > sum(entry.nbytes for entry in final.values()):
        used = {(pair.scopes[key.scope].base_id, name) for key, entry in final.items() for name in entry.base_names}
        left = [t for scope, tensors in pair.base_scopes.items() for t in tensors.values() if (scope, t.name) not in used]
        rename = suggested_rename([pair.target.tensor(key) for key, _ in whole if key not in pair.pairing.counterparts], left)
    return StoredWhole(len(replaced), sum(not final[key].has_base for key in replaced), len(whole) - len(replaced), nbytes, rename)


def _entries(pair: EncodedPair) -> list[tuple[TensorKey, Entry]]:
    return [(key, entry) for scope in pair.scopes.values() for key, entry in scope.entries.items()]


def suggested_rename(tensors: Sequence[Tensor], left: Sequence[Tensor]) -> str | None:
    """The rule that pairs the most bytes of some tensors with base tensors of the same sizes, which are left over."""
    by_size: dict[tuple[int, int], list[Tensor]] = {}
    for base in left:
        by_size.setdefault((base.units, base.name.count(".")), []).append(base)
    sizes = {units for units, _ in by_size}
    rules, known = Counter[str](), {base.name for base in left}
    total = sum(tensor.nbytes for tensor in tensors)
    for tensor in tensors:
        if tensor.units in sizes:
            rows = [base for (units, _), bases in by_size.items() if units == tensor.units for base in bases[:MOST_CANDIDATES]]
            rule = _rule(tensor.name, max(rows, key=lambda base: closeness(base.name, tensor.name)).name)
            if rule is not None:
                rules[rule] += tensor.nbytes
    return next((rule for rule, nbytes in rules.most_common() if MUCH * nbytes > total and _helps(rule, tensors, known)), None)


def _helps(rule: str, tensors: Iterable[Tensor], known: set[str]) -> bool:
    """Whether a rule gives a tensor the name of one that is left."""
    rename = Rename.parse(rule)
    return any(rename.pattern.sub(rename.replacement, tensor.name) in known for tensor in tensors)


def _rule(target: str, base: str) -> str | None:
    """A rule that turns a target's name into a base's: parts that the base does not have are left out, or a prefix is exchanged."""
    x, y = target.split("."), base.split(".")
    extra = Counter(x) - Counter(y)
    if is_within(target, base) and len(x) > len(y) and len(extra) == 1:
        return rf"\b{re.escape(next(iter(extra)))}\.="
    while x and y and x[-1] == y[-1]:
        x.pop()
        y.pop()
    if "=" in target + base or not (len(x) < len(target.split(".")) and (x or y)):
        return None
    replacement = "".join(part + "." for part in y).replace("\\", r"\\")
    return "^" + "".join(re.escape(part) + r"\." for part in x) + "=" + replacement
