"""Tensors of a model by the names that a patch has for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ckptdiff.errors import UnsupportedError, cut
from ckptdiff.patching.memory import State, state_of
from ckptdiff.patching.patch import OpenPatch

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and head models put before the names of tensors."""
MODEL = "the model"
"""How messages call the tensors in memory."""


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


def find_tensors(base: Any, names: Sequence[str], tied: Mapping[str, str]) -> dict[str, Any]:
    """The model's tensors by name; tied ones also under the name that the patch has for them, if the model has another of their names."""
    state = _align_names(state_of(base, MODEL), [*names, *tied])
    for name, kept in tied.items():
        if kept not in state and name in state:
            state[kept] = state[name]
        elif name in names and name not in state and kept in state:
            state[name] = state[kept]
    return state


def _align_names(state: State, names: Sequence[str]) -> dict[str, Any]:
    """Rename tensors as a patch calls them, where the names differ in prefixes of wrappers (DDP, torch.compile, a head model)."""
    state = dict(state)
    stems = Counter(map(strip_prefixes, state))
    by_stem = {strip_prefixes(name): name for name in state if stems[strip_prefixes(name)] == 1}
    missing: Mapping[str, str | None] = {name: by_stem.get(strip_prefixes(name)) for name in names if name not in state}
    for name, own in missing.items():
        if own is not None and own not in names and own in state:
            state[name] = state.pop(own)
    return state


def strip_prefixes(name: str) -> str:
    """The name without :data:`WRAPPER_PREFIXES`."""
    while True:
        stripped = name
        for prefix in WRAPPER_PREFIXES:
            stripped = stripped.removeprefix(prefix)
        if stripped == name or not stripped:
            return name
        name = stripped
