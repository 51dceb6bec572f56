"""Pairs of checkpoints whose tensors are laid out in different ways, with the pieces of the base that each target tensor is made from.

Every layout tells the same thing twice, in two ways that do not share code: as pieces, by counting units, and as the base put into the
target's layout by numpy, by joining, stacking and picking rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckptdiff.format.entry import Piece
from ckptdiff.kernels import casts
from tests.support.casts import cast_bits
from tests.support.checkpoints import TensorData, carrier, tensor
from tests.support.roundtrips import Tensors

EMBEDDING = "model.embed_tokens.weight"
TABLE_ROWS, TABLE_WIDTH = 128_000, 32
"""Of the made table, which is as long as a large vocabulary."""


def units(data: TensorData) -> int:
    return len(data[2]) // carrier(data[0])


@dataclass(frozen=True, repr=False)
class Layout:
    """A base, a target in another layout, and what of the base the target is made from."""

    base: Tensors
    target: Tensors
    pieces: Mapping[str, Sequence[Piece]]
    """By name of the target tensor; the other tensors have the same name, dtype and shape on both sides."""
    by_hand: Tensors
    """The base put into the target's layout by numpy."""


def stated(layout: Layout) -> int:
    """How many of the pieces a table has to say."""
    return sum(len(of) for name, of in layout.pieces.items() if of != [Piece(name, 0, units(layout.target[name]))])


def array(data: TensorData) -> np.ndarray:
    """The units of a tensor in its shape; read-only."""
    dtype, shape, raw = data
    return np.frombuffer(raw, f"<u{carrier(dtype)}").reshape(shape)


def with_array(dtype: str, values: np.ndarray) -> TensorData:
    return tensor(dtype, values.shape, values)


# --- several tensors in one ---

Parts = dict[str, list[str]]
"""Names of the tensors that a joined tensor is made of, in order, by its name."""


def layers(names: Iterable[str]) -> list[str]:
    """What the names of each layer's tensors begin with, such as ``model.layers.0.``, in order."""
    found = {match[1]: int(match[2]) for name in names if (match := re.match(r"(model\.layers\.(\d+)\.)", name))}
    return sorted(found, key=found.__getitem__)


def fused_parts(names: Iterable[str]) -> Parts:
    """Queries, keys and values of each layer in one tensor, and its gate and up projections in another."""
    parts = Parts()
    for layer in layers(names):
        parts[f"{layer}self_attn.qkv_proj.weight"] = [f"{layer}self_attn.{which}_proj.weight" for which in "qkv"]
        parts[f"{layer}mlp.gate_up_proj.weight"] = [f"{layer}mlp.{which}_proj.weight" for which in ("gate", "up")]
    return parts


def expert_parts(names: Iterable[str]) -> Parts:
    """The MLP of each layer taken for an expert: gate, up, gate, up, ... in one tensor, and all down projections in another."""
    found = layers(names)
    return {
        "model.experts.gate_up_proj": [f"{layer}mlp.{which}_proj.weight" for layer in found for which in ("gate", "up")],
        "model.experts.down_proj": [f"{layer}mlp.down_proj.weight" for layer in found],
    }


def fused(tensors: Tensors) -> Tensors:
    """The tensors of :func:`fused_parts`, joined row after row."""
    return _joined(tensors, fused_parts(tensors), lambda name, rows: np.concatenate(rows))


def with_experts(tensors: Tensors) -> Tensors:
    """The tensors of :func:`expert_parts`: [layers, 2 * inner, outer] and [layers, outer, inner]."""

    def stacked(name: str, arrays: list[np.ndarray]) -> np.ndarray:
        if name.endswith("down_proj"):
            return np.stack(arrays)
        return np.stack([np.concatenate(pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)])

    return _joined(tensors, expert_parts(tensors), stacked)


def _joined(tensors: Tensors, parts: Parts, join: Callable[[str, list[np.ndarray]], np.ndarray]) -> Tensors:
    gone = {name for names in parts.values() for name in names}
    joined = {name: with_array(tensors[names[0]][0], join(name, [array(tensors[n]) for n in names])) for name, names in parts.items()}
    return {name: data for name, data in tensors.items() if name not in gone} | joined


def pieces_of_joined(split: Tensors, parts: Parts) -> dict[str, list[Piece]]:
    """What joined tensors are made of, where the base has their parts."""
    return {name: [Piece(part, 0, units(split[part])) for part in names] for name, names in parts.items()}


def pieces_of_split(split: Tensors, parts: Parts) -> dict[str, list[Piece]]:
    """What the parts are made of, where the base has the joined tensors."""
    found = {}
    for name, names in parts.items():
        first = 0
        for part in names:
            found[part] = [Piece(name, first, units(split[part]))]
            first += units(split[part])
    return found


def split_to_fused(base: Tensors, target: Tensors) -> Layout:
    return Layout(base, fused(target), pieces_of_joined(base, fused_parts(base)), fused(base))


def fused_to_split(base: Tensors, target: Tensors) -> Layout:
    return Layout(fused(base), target, pieces_of_split(base, fused_parts(base)), base)


def layers_to_experts(base: Tensors, target: Tensors) -> Layout:
    return Layout(base, with_experts(target), pieces_of_joined(base, expert_parts(base)), with_experts(base))


def experts_to_layers(base: Tensors, target: Tensors) -> Layout:
    return Layout(with_experts(base), target, pieces_of_split(base, expert_parts(base)), base)


# --- rows ---


def runs(name: str, rows: np.ndarray, width: int) -> list[Piece]:
    """Pieces for rows of a tensor that has ``width`` units a row: one for each run of rows that follow each other; -1 stands for zeros."""
    pieces = list[Piece]()
    for row in rows.tolist():
        last = pieces[-1] if pieces else None
        follows = last is not None and (last.name is None if row < 0 else last.name is not None and last.first + last.units == row * width)
        if last is not None and follows:
            pieces[-1] = last._replace(units=last.units + width)
        else:
            pieces.append(Piece(None, 0, width) if row < 0 else Piece(name, row * width, width))
    return pieces


def picked(data: TensorData, rows: np.ndarray, new: np.ndarray | None = None) -> TensorData:
    """These rows of a tensor; where the number is -1, the rows of ``new`` in turn, or zeros."""
    values = array(data)[rows]
    values[rows < 0] = 0 if new is None else new
    return with_array(data[0], values)


def half_of_rows(count: int) -> np.ndarray:
    """About half of the numbers of rows, in order."""
    return np.flatnonzero(np.random.default_rng(count).random(count) < 0.5)


def rows_cut(base: Tensors, target: Tensors) -> Layout:
    """Half of the rows of the embedding."""
    rows = half_of_rows(base[EMBEDDING][1][0])
    pieces = {EMBEDDING: runs(EMBEDDING, rows, base[EMBEDDING][1][1])}
    return Layout(base, target | {EMBEDDING: picked(target[EMBEDDING], rows)}, pieces, base | {EMBEDDING: picked(base[EMBEDDING], rows)})


def rows_cut_and_new(base: Tensors, target: Tensors) -> Layout:
    """Half of the rows of the embedding, and between them some that the base does not have."""
    rng, half = np.random.default_rng(20), half_of_rows(base[EMBEDDING][1][0])
    rows = np.insert(half, np.sort(rng.integers(len(half), size=100)), -1)
    width = base[EMBEDDING][1][1]
    new = bf16_noise(rng, (np.count_nonzero(rows < 0), width))
    pieces = {EMBEDDING: runs(EMBEDDING, rows, width)}
    return Layout(
        base, target | {EMBEDDING: picked(target[EMBEDDING], rows, new)}, pieces, base | {EMBEDDING: picked(base[EMBEDDING], rows)}
    )


def bf16_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bits of BF16 numbers such as weights have."""
    return (rng.normal(0, 0.02, shape).astype("<f4").view("<u4") >> 16).astype("<u2")


def made_table_cut() -> Layout:
    """A vocabulary of 128,000 rows cut to about half at random; one in a hundred of the numbers that are left moves by an ulp."""
    rng = np.random.default_rng(128)
    table = with_array("BF16", bf16_noise(rng, (TABLE_ROWS, TABLE_WIDTH)))
    rows = half_of_rows(TABLE_ROWS)
    left = picked(table, rows)
    moved = array(left) + (rng.random(left[1]) < 0.01).astype("<u2")
    return Layout({"table": table}, {"table": with_array("BF16", moved)}, {"table": runs("table", rows, TABLE_WIDTH)}, {"table": left})


# --- shapes and dtypes ---


def whole(tensors: Tensors) -> dict[str, list[Piece]]:
    """A piece for each tensor, the whole of the base tensor of its own name: which a table does not say."""
    return {name: [Piece(name, 0, units(data))] for name, data in tensors.items()}


def in_other_shapes(tensors: Tensors) -> Tensors:
    """Every matrix with twice as many rows of half the width."""
    return {
        name: (dtype, [2 * shape[0], shape[1] // 2] if len(shape) == 2 else shape, raw) for name, (dtype, shape, raw) in tensors.items()
    }


def reshaped(base: Tensors, target: Tensors) -> Layout:
    return Layout(base, in_other_shapes(target), whole(base), in_other_shapes(base))


def cast(tensors: Tensors, dtype: str) -> Tensors:
    """The tensors in another dtype, cast by the package."""
    bits = {name: (d, shape, np.frombuffer(raw, np.uint8)) for name, (d, shape, raw) in tensors.items()}
    return {name: tensor(dtype, shape, casts.cast(raw, d, dtype)) for name, (d, shape, raw) in bits.items()}


def cast_by_numpy(tensors: Tensors, dtype: str) -> Tensors:
    return {name: tensor(dtype, data[1], cast_bits(f"{data[0]}-{dtype}", array(data).reshape(-1))) for name, data in tensors.items()}


def cast_between(source: str, dtype: str) -> Callable[[Tensors, Tensors], Layout]:
    """Both sides in one dtype, of which the target is published in another."""

    def layout(base: Tensors, target: Tensors) -> Layout:
        old, new = (cast(side, source) if source != "BF16" else side for side in (base, target))
        return Layout(old, cast(new, dtype), whole(base), cast_by_numpy(old, dtype))

    return layout


def fused_and_cast(base: Tensors, target: Tensors) -> Layout:
    """Tensors joined from parts of another dtype."""
    pieces = pieces_of_joined(base, fused_parts(base))
    return Layout(base, fused(cast(target, "F16")), pieces, fused(cast_by_numpy(base, "F16")))


LAYOUTS: dict[str, Callable[[Tensors, Tensors], Layout]] = {
    "split to fused": split_to_fused,
    "fused to split": fused_to_split,
    "layers to experts": layers_to_experts,
    "experts to layers": experts_to_layers,
    "half of the rows": rows_cut,
    "half, and new rows": rows_cut_and_new,
    "other shapes": reshaped,
    **{
        f"{source} to {dtype}": cast_between(source, dtype)
        for source in ("BF16", "F16", "F32")
        for dtype in ("BF16", "F16", "F32")
        if source != dtype
    },
    "fused, in F16": fused_and_cast,
}
"""Each makes a layout of the tensors of a base and of a target, which have the same names, shapes and dtype BF16."""


# --- chains ---

Step = tuple[Tensors, Mapping[str, Sequence[Piece]]]
"""The tensors of a checkpoint, and what they are made from in the checkpoint before."""


def fused_split_cast(first: Tensors, second: Tensors, third: Tensors) -> list[Step]:
    parts = fused_parts(first)
    return [(fused(first), pieces_of_joined(first, parts)), (second, pieces_of_split(first, parts)), (cast(third, "F16"), whole(third))]


def experts_split_cast(first: Tensors, second: Tensors, third: Tensors) -> list[Step]:
    parts = expert_parts(first)
    return [
        (with_experts(first), pieces_of_joined(first, parts)),
        (second, pieces_of_split(first, parts)),
        (cast(third, "F32"), whole(third)),
    ]


def cut_fused_and_cast_split_and_cut(first: Tensors, second: Tensors, third: Tensors) -> list[Step]:
    """Half of the rows; then another dtype and joined tensors; then half of the half, and what was joined split again."""
    parts, (count, width) = fused_parts(first), first[EMBEDDING][1]
    half = half_of_rows(count)
    quarter = half_of_rows(len(half))
    one, two = (side | {EMBEDDING: picked(side[EMBEDDING], half)} for side in (first, second))
    three = third | {EMBEDDING: picked(third[EMBEDDING], half[quarter])}
    return [
        (one, {EMBEDDING: runs(EMBEDDING, half, width)}),
        (fused(cast(two, "F16")), pieces_of_joined(one, parts)),
        (cast(three, "F16"), pieces_of_split(one, parts) | {EMBEDDING: runs(EMBEDDING, quarter, width)}),
    ]


CHAINS: dict[str, Callable[[Tensors, Tensors, Tensors], list[Step]]] = {
    "fused, split, cast": fused_split_cast,
    "experts, split, cast": experts_split_cast,
    "cut, fused and cast, split and cut": cut_fused_and_cast_split_and_cut,
}
"""Each makes three checkpoints, one from the other, of the tensors of three models that have the same names, shapes and dtype BF16."""
