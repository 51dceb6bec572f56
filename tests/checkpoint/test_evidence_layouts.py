"""Pairs by evidence in layouts that a generator of chance seldom makes: layers repeated, flat parameters, experts in other order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import SHARED_DATA, tree
from tests.support.layouts_by_pieces import EMBEDDING, array, with_array
from tests.support.real_pairs import BASE, TARGETS
from tests.support.rewritten import LAYERS, model, pairing_of, written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BASE.is_dir(), reason=f"the real checkpoint pairs are not at {SHARED_DATA}"),
]
Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], Arrays]
LAYER = re.compile(r"model\.layers\.(\d+)\.")
EXPERT = "model.layers.0.mlp.experts"
GPT_NAMES = {
    "model.layers": "blk",
    "model.embed_tokens": "tok",
    "model.norm": "out",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.": "attn.w",
    "_proj": "",
    "mlp.gate": "ff.w1",
    "mlp.down": "ff.w2",
    "mlp.up": "ff.w3",
}


def same(state: Arrays) -> Arrays:
    return state


def layers(order: Sequence[int]) -> Change:
    """Layers by their numbers in the base, in a new order."""

    def changed(state: Arrays) -> Arrays:
        out = {name: values for name, values in state.items() if not LAYER.match(name)}
        for new, old in enumerate(order):
            prefix = f"model.layers.{old}."
            out |= {f"model.layers.{new}.{name[len(prefix) :]}": values for name, values in state.items() if name.startswith(prefix)}
        return out

    return changed


def rows(pick: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Rows of the vocabulary."""
    return lambda state: state | {EMBEDDING: pick(state[EMBEDDING])}


def flat(padding: int) -> Change:
    """All tensors of each layer in one, as FSDP has them."""

    def changed(state: Arrays) -> Arrays:
        out = {name: values for name, values in state.items() if not LAYER.match(name)}
        for k in range(LAYERS):
            parts = [values.reshape(-1) for name, values in state.items() if name.startswith(f"model.layers.{k}.")]
            out[f"_fsdp_wrapped_module.{k}.flat_param"] = np.concatenate([*parts, np.zeros(padding, "<u2")])
        return out

    return changed


def one_flat(state: Arrays) -> Arrays:
    return {"flat": np.concatenate([values.reshape(-1) for values in state.values()])}


def renamed(names: dict[str, str]) -> Change:
    def name_of(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    return lambda state: {name_of(name): values for name, values in state.items()}


def swapped_norms(state: Arrays) -> Arrays:
    other = {"input_layernorm": "post_attention_layernorm", "post_attention_layernorm": "input_layernorm"}
    return {re.sub("|".join(other), lambda match: other[match[0]], name): values for name, values in state.items()}


def experts(order: Iterable[int], stacked: bool) -> Change:
    """The MLPs of layers as the experts of one layer, in an order, each by itself or stacked."""
    chosen = list(order)

    def changed(state: Arrays) -> Arrays:
        out = {name: values for name, values in state.items() if ".mlp." not in name}
        for which in ("gate", "up", "down"):
            parts = [state[f"model.layers.{k}.mlp.{which}_proj.weight"] for k in chosen]
            if stacked:
                out[f"{EXPERT}.{which}_proj"] = np.stack(parts)
            else:
                out |= {f"{EXPERT}.{k}.{which}_proj.weight": part for k, part in enumerate(parts)}
        return out

    return changed


def by_groups(state: Arrays) -> Arrays:
    """Queries, keys and values of each group of heads together, group after group, as Megatron has them."""
    out = {name: values for name, values in state.items() if not re.search(r"\.[qkv]_proj", name)}
    for k in range(LAYERS):
        q, *others = (state[f"model.layers.{k}.self_attn.{which}_proj.weight"] for which in "qkv")
        groups = zip(np.split(q, 2), *(np.split(other, 2) for other in others), strict=True)
        out[f"model.layers.{k}.self_attn.qkv.weight"] = np.concatenate([part for group in groups for part in group])
    return out


def permuted(table: np.ndarray) -> np.ndarray:
    return table[np.random.default_rng(0).permutation(len(table))]


def shifted(table: np.ndarray) -> np.ndarray:
    return np.concatenate([table[1:], np.zeros_like(table[:1])])


ALL = range(LAYERS)
LAYOUTS: dict[str, tuple[Change, Change]] = {
    "layers repeated": (same, layers([0, 1, 2, 1, 2, 3])),
    "layers in another order, by the same names": (same, layers([2, 1, 3, 0])),
    "the first layer left out": (same, layers([1, 2, 3])),
    "rows at other places": (same, rows(permuted)),
    "each row twice": (same, rows(lambda table: np.repeat(table, 2, axis=0))),
    "rows shifted, as many as before": (same, rows(shifted)),
    "rows of zeros added": (same, rows(lambda table: np.concatenate([table, np.zeros_like(table[:64])]))),
    "the last rows only": (same, rows(lambda table: table[-64:])),
    "flat": (same, flat(0)),
    "flat, with padding": (same, flat(40)),
    "flat before": (flat(40), same),
    "other names for all": (same, renamed(GPT_NAMES)),
    "other names for norms": (same, renamed({"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"})),
    "norms that changed names": (same, swapped_norms),
    "experts in another order, by the same names": (experts(ALL, False), experts([2, 0, 3, 1], False)),
    "fewer experts, by the same names": (experts(ALL, False), experts([0, 3], False)),
    "experts stacked in another order": (experts(ALL, False), experts([2, 0, 3, 1], True)),
    "stacked experts in another order": (experts(ALL, True), experts([2, 0, 3, 1], True)),
    "fewer stacked experts": (experts(ALL, True), experts([0, 3], True)),
    "experts that were stacked": (experts(ALL, True), experts([3, 1], False)),
    "stacked experts, and copies of some": (experts([0, 1], True), experts([0, 1, 0], True)),
    "heads by groups": (same, by_groups),
    "all in one": (same, one_flat),
}


def arrays(name: str) -> Arrays:
    return {key: array(data) for key, data in model(name).items()}


def saved(folder: Path, state: Arrays) -> Path:
    return written(folder, {name: with_array("BF16", np.ascontiguousarray(values)) for name, values in state.items()})


def wrong_in(tmp: Path, layout: tuple[Change, Change], target: str) -> list[str]:
    """Tensors that do not stand against all that they were made from; of two-dimensional ones, a row in a hundred may."""
    before, after = layout
    state = after(arrays(target))
    _, against = pairing_of(saved(tmp / "base", before(arrays(BASE.name))), saved(tmp / "target", state))
    wrong = list[str]()
    for name, expected in after(arrays(BASE.name)).items():
        width = expected.shape[-1] if expected.ndim > 1 else 1
        bad = (against[name] != expected.reshape(-1)).reshape(-1, width).any(axis=1) if name in against else np.ones(1, bool)
        if bad.sum() > (0.01 * len(bad) if expected.ndim > 1 else 0):
            wrong.append(f"{name}: {bad.sum()} of {len(bad)} rows")
    return wrong


@pytest.mark.parametrize("target", [TARGETS[1], pytest.param(TARGETS[2], id="fine-tuned")])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_found(name: str, target: str, tmp_path: Path) -> None:
    assert wrong_in(tmp_path, LAYOUTS[name], target) == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_patches_are_exact(name: str, tmp_path: Path) -> None:
    """Whatever was found: on layers that are few and short, of which none says much."""
    before, after = LAYOUTS[name]
    sides = (before(short(BASE.name)), after(short(TARGETS[1])))
    base, target = (saved(tmp_path / str(k), side) for k, side in enumerate(sides))
    ckptdiff.make(base, target, tmp_path / "patch", force=True)
    ckptdiff.apply(base, tmp_path / "patch", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(target)


def short(name: str) -> Arrays:
    """The first rows of all tensors."""
    return {key: values[:96] if values.ndim > 1 else values for key, values in arrays(name).items()}
