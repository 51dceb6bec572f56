"""Tensors of a model by the names that a patch, or a mask, has for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from typing import Any

from ckptdiff.checkpoint.names import closeness, is_within, numbers
from ckptdiff.errors import UnsupportedError, cut
from ckptdiff.format.digests import tensor_digest
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.patching.memory import State, open_state, state_of
from ckptdiff.patching.patch import OpenPatch

MODEL = "the model"
"""How messages call the tensors in memory."""
Content = tuple[str, int, bytes]
"""Dtype, bytes and tensor digest of a tensor."""


def scope_of(patch: OpenPatch, wanted: str | None) -> str:
    """The target scope that was asked for, or the only one.

    Raises:
        UnsupportedError: there is no such scope, or there are several and none was asked for.
    """
    scopes = list(dict.fromkeys(file.metadata.target_scope for file in patch.files))
    if wanted is None and len(scopes) == 1:
        return scopes[0]
    if wanted not in scopes:
        raise UnsupportedError(f"{patch.path}: has the scopes {cut(', '.join(scopes))}: load them one by one, with scope=...")
    return wanted


def tied_of(patch: OpenPatch, names: Container[str]) -> dict[str, str]:
    """Further names of a patch's tensors, and those that they are stored under: of these ``names``, which the further ones are not."""
    return {name: kept for name, kept in patch.tied.items() if kept in names and name not in names}  # a patch may say so of any names


def find_tensors(base: Any, own: Mapping[str, str], names: Collection[str], tied: Mapping[str, str]) -> dict[str, Any]:
    """The model's tensors by the patch's names, which :func:`own_names` has found; tied ones also under the name that the patch has for
    them, if the model has another of their names."""
    state = dict(state_of(base, MODEL))
    for name, other in own.items():
        state[name] = state.pop(other)
    for name, kept in tied.items():
        if kept not in state and name in state:
            state[kept] = state[name]
        elif name in names and name not in state and kept in state:
            state[name] = state[kept]
    return state


def base_contents(patch: OpenPatch, scope: str) -> dict[str, Content]:
    """What a patch says of the base tensors that a target scope takes whole, by their names."""
    entries = (entry for (scope_id, _), (_, entry) in patch.entries.items() if scope_id == scope)
    whole = (e for e in entries if e.has_base and e.base_dtype == e.dtype and len(e.base_names) == 1 and len(e.pieces) <= 1)
    return {entry.base_names[0]: (entry.dtype, entry.nbytes, entry.base_digest) for entry in whole}


def own_names(base: Any, names: Iterable[str], contents: Callable[[], Mapping[str, Content]], threads: int) -> dict[str, str]:
    """What a model calls the tensors that it does not have under the patch's names, by these.

    Wrappers (DDP, FSDP, torch.compile, PEFT, a head model) add parts to names, or take some away. What that does not explain is found by
    the digest that the patch has of the base tensor.

    Args:
        base: the model.
        names: the patch's names of all tensors.
        contents: gives what some of them hold, by name.
        threads: how many to use.
    """
    state, wanted = state_of(base, MODEL), dict.fromkeys(names)
    missing, spare = [name for name in wanted if name not in state], [name for name in state if name not in wanted]
    if not missing or not spare:
        return {}
    own, known = names_by_parts(missing, spare), contents()
    taken, left = set(own.values()), [name for name in missing if name not in own and name in known]
    return own | _by_content(left, {name: state[name] for name in spare if name not in taken}, known, threads)


def names_by_parts(wanted: Iterable[str], given: Iterable[str]) -> dict[str, str]:
    """Which given name stands for each wanted one: the only one that has its dotted parts and others, or some of them and no others."""
    by_end: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in given:
        by_end.setdefault((name.rpartition(".")[2], numbers(name)), []).append(name)
    found: dict[str, list[str]] = {}
    for name in wanted:
        near = [other for other in by_end.get((name.rpartition(".")[2], numbers(name)), ()) if is_within(name, other)]
        if near:
            best = max(closeness(name, other) for other in near)
            nearest = [other for other in near if closeness(name, other) == best]
            if len(nearest) == 1:
                found.setdefault(nearest[0], []).append(name)
    return {names[0]: other for other, names in found.items() if len(names) == 1}


def _by_content(wanted: Iterable[str], state: State, contents: Mapping[str, Content], threads: int) -> dict[str, str]:
    """The tensors that have the digests of wanted ones; of several with one digest those whose names are the closest."""
    by_content: dict[Content, list[str]] = {}
    for name in wanted:
        by_content.setdefault(contents[name], []).append(name)
    sizes = {content[:2] for content in by_content}
    if not sizes or not state:
        return {}
    tensors = [tensor for file in open_state(state, MODEL, state.keys()).weights for tensor in file.tensors]
    alike = [(tensor, memory) for tensor in tensors if (tensor.dtype, tensor.nbytes) in sizes and (memory := tensor.memory) is not None]
    own = dict[str, str]()
    for (tensor, _), leaves in zip(alike, leaves_in_memory([memory for _, memory in alike], threads), strict=True):
        names = by_content.get((tensor.dtype, tensor.nbytes, tensor_digest(leaves)), [])
        if names:
            name = max(names, key=lambda name: closeness(name, tensor.name))
            names.remove(name)
            own[name] = tensor.name
    return own
