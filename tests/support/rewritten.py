"""Checkpoints whose target was rewritten by seeded chance, and of each unit of it the unit of the base that it was made from.

Whatever is done to a tensor is done alike to three arrays of one shape: what the base has there, what the target has, and the numbers of
the base's units. So the numbers tell in the end what the target was made from, however it was cut, joined and renamed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ckptdiff.checkpoint.names import numbers
from ckptdiff.checkpoint.pairing import Pairing, pair
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.format.entry import Piece
from tests.support.checkpoints import SHARED_DATA, TensorData, carrier, write, write_sharded
from tests.support.layouts_by_pieces import EMBEDDING, Parts, array, bf16_noise, cast, expert_parts, fused_parts, layers, units, with_array
from tests.support.roundtrips import Tensors
from tests.support.safetensors_views import our_view

LAYERS = 4
"""Layers of the real models that are taken."""
HEAD = "lm_head.weight"
DTYPES = ("BF16", "F16", "F32")
LAYOUTS = ("plain", "fused", "experts", "fused and experts")
WRAPPERS: dict[str, Callable[[str], str]] = {
    "LoRA": lambda name: f"base_model.model.{name}",
    "FSDP": lambda name: re.sub(r"(layers\.\d+\.|^)(?!.*layers\.)", r"\1_fsdp_wrapped_module.", name, count=1),
    "base layer": lambda name: _with_part(name, "base_layer", name.count(".")),
    "actor": lambda name: f"actor.{name}",
    "transformer": lambda name: re.sub(r"^model\.", "transformer.", name),
    "language model": lambda name: re.sub(r"^model\.", "model.language_model.", name),
}
"""How names are wrapped; the last two call one thing by two names."""


def _with_part(name: str, part: str, at: int) -> str:
    parts = name.split(".")
    return ".".join([*parts[:at], part, *parts[at:]])


# --- what may be done ---


@dataclass(frozen=True)
class Choices:
    """What is done to a pair."""

    seed: int
    names: tuple[str, ...] = ()
    """Of :data:`WRAPPERS`, in the order in which they are put on."""
    drops_layers: bool = False
    """Whether two layers of the target are left out, and the others numbered anew."""
    base_layout: str = "plain"
    """One of :data:`LAYOUTS`."""
    layout: str = "plain"
    """The target's."""
    rows: tuple[str, ...] = ()
    """What is done to the vocabulary: ``cut``, ``inserted``, ``appended``."""
    new_rows: str = "noise"
    """What rows are that no base has: ``noise``, ``zeros``, or ``equal`` ones."""
    has_head: bool = False
    """Whether the target has a head of its own, with other rows."""
    base_dtype: str = "BF16"
    dtype: str = "BF16"
    norm_dtype: str | None = None
    """That of the target's norms, if they have their own."""
    shards: int = 1

    @classmethod
    def drawn(cls, seed: int) -> Choices:
        """A combination by chance."""
        rng = np.random.default_rng(seed)
        names = [str(name) for name in rng.permutation(list(WRAPPERS)) if rng.random() < 0.35]
        return cls(
            seed,
            tuple(name for name in names if name != "language model" or "transformer" not in names),
            bool(rng.random() < 0.5),
            str(rng.choice(LAYOUTS, p=[0.5, 0.2, 0.2, 0.1])),
            str(rng.choice(LAYOUTS, p=[0.5, 0.2, 0.2, 0.1])),
            tuple(name for name in ("cut", "inserted", "appended") if rng.random() < 0.5),
            str(rng.choice(["noise", "zeros", "equal"])),
            bool(rng.random() < 0.4),
            str(rng.choice(DTYPES, p=[0.7, 0.15, 0.15])),
            str(rng.choice(DTYPES, p=[0.5, 0.25, 0.25])),
            "F32" if rng.random() < 0.2 else None,
            int(rng.integers(1, 4)),
        )


# --- tensors of which each unit is known ---


@dataclass(frozen=True, eq=False)
class Traced:
    """Three arrays of one shape."""

    old: np.ndarray
    """What the base has, or zeros."""
    new: np.ndarray
    """What the target has."""
    origin: np.ndarray
    """Numbers of the base's units; -1 where it has none."""

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Traced:
        return Traced(change(self.old), change(self.new), change(self.origin))


State = dict[str, Traced]


@dataclass(frozen=True, eq=False, repr=False)
class Rewritten:
    """A base, a target that was made from a model of it and rewritten, and what it was made from."""

    choices: Choices
    base: Tensors
    target: Tensors
    by_hand: Tensors
    """What the base has of each target tensor, in its layout and dtype; zeros where it has nothing."""
    origin: Mapping[str, np.ndarray]
    """Of each unit of a target tensor the number of the base's unit, all tensors of the base counted in their order; -1: none."""

    def pieces(self, name: str) -> list[Piece]:
        """What a target tensor was made from."""
        numbers, names = self.origin[name], list(self.base)
        starts = np.cumsum([0, *(units(data) for data in self.base.values())])
        owner = np.where(numbers < 0, -1, np.searchsorted(starts, numbers, side="right") - 1)
        follows = (np.diff(owner) == 0) & ((owner[1:] < 0) | (np.diff(numbers) == 1))
        breaks = [0, *np.flatnonzero(~follows) + 1, len(numbers)]
        return [
            Piece(None, 0, int(stop - first))
            if owner[first] < 0
            else Piece(names[owner[first]], int(numbers[first] - starts[owner[first]]), int(stop - first))
            for first, stop in itertools.pairwise(breaks)
        ]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the base and the target as folders; the target in shards, and its tensors in any order."""
        return write_base(folder / "base", self.base), write_target(folder / "target", self.target, self.choices)


def write_base(folder: Path, tensors: Tensors) -> Path:
    return write_sharded(folder, {"model.safetensors": tensors}, index=None)


def write_target(folder: Path, tensors: Tensors, choices: Choices) -> Path:
    names, count = [str(n) for n in np.random.default_rng(choices.seed).permutation(list(tensors))], choices.shards
    if count == 1:
        return write_base(folder, {name: tensors[name] for name in names})
    shards = {f"model-{k + 1:05}-of-{count:05}.safetensors": {name: tensors[name] for name in names[k::count]} for k in range(count)}
    return write_sharded(folder, shards)


def rewrite(base: Tensors, target: Tensors, choices: Choices, head: TensorData | None = None) -> Rewritten:
    """Rewrite a pair of models in BF16 with equal names and shapes; ``head``: a target's head that was made from the base's embedding."""
    rng = np.random.default_rng([choices.seed, 1])
    laid_out = _with_layout(base, choices.base_layout) if choices.base_layout != "plain" else base
    written = cast(laid_out, choices.base_dtype) if choices.base_dtype != "BF16" else laid_out
    state = _split(_numbered(written), base, target, choices.base_layout)
    if choices.drops_layers:
        state = _without_two_layers(rng, state)
    if choices.has_head:
        embedding = state[EMBEDDING]
        own = Traced(embedding.old, array(head or target[EMBEDDING]), embedding.origin)
        state[HEAD] = _other_rows(rng, own, ("cut", "appended"), choices.new_rows)
    state[EMBEDDING] = _other_rows(rng, state[EMBEDDING], choices.rows, choices.new_rows)
    state = _join(state, _parts(choices.layout, state))
    for wrapper in choices.names:
        state = {WRAPPERS[wrapper](name): traced for name, traced in state.items()}
    return _finished(choices, written, state)


def _parts(layout: str, names: Sequence[str] | Mapping[str, object]) -> Parts:
    """What the joined tensors of a layout are joined from."""
    fused = fused_parts(names) if "fused" in layout else {}
    if "experts" not in layout:
        return fused
    return {name: parts for name, parts in fused.items() if "qkv" in name} | expert_parts(names)


def _joined(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    if not name.startswith("model.experts."):
        return np.concatenate(parts)
    stacked = np.stack(parts)
    return stacked.reshape(-1, 2 * stacked.shape[1], stacked.shape[2]) if "gate_up" in name else stacked


def _with_layout(tensors: Tensors, layout: str) -> dict[str, TensorData]:
    parts = _parts(layout, tensors)
    gone = {name for names in parts.values() for name in names}
    kept = {name: data for name, data in tensors.items() if name not in gone}
    return kept | {
        name: with_array(tensors[names[0]][0], _joined(name, [array(tensors[n]) for n in names])) for name, names in parts.items()
    }


def _numbered(base: Tensors) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The units of the base's tensors, and their numbers."""
    numbered, first = {}, 0
    for name, data in base.items():
        values = array(data)
        numbered[name] = values, np.arange(first, first + values.size, dtype=np.int32).reshape(values.shape)
        first += values.size
    return numbered


def _split(numbered: Mapping[str, tuple[np.ndarray, np.ndarray]], base: Tensors, target: Tensors, layout: str) -> State:
    """A base in some layout, its tensors by themselves again, beside the target's."""
    found = {name: pair for name, pair in numbered.items() if name in base}
    for name, parts in _parts(layout, base).items():
        first, (values, numbers) = 0, (row.reshape(-1) for row in numbered[name])
        for part in parts:
            shape, stop = base[part][1], first + units(base[part])
            found[part] = values[first:stop].reshape(shape), numbers[first:stop].reshape(shape)
            first = stop
    return {name: Traced(found[name][0], array(target[name]), found[name][1]) for name in base}


def _join(state: State, parts: Parts) -> State:
    gone = {name for names in parts.values() for name in names}
    joined = {
        name: Traced(*(_joined(name, rows) for rows in zip(*((state[n].old, state[n].new, state[n].origin) for n in names), strict=True)))
        for name, names in parts.items()
    }
    return {name: traced for name, traced in state.items() if name not in gone} | joined


def _without_two_layers(rng: np.random.Generator, state: State) -> State:
    known = layers(state)
    kept = sorted(rng.permutation(len(known))[2:].tolist())
    numbers = {known[old]: f"model.layers.{new}." for new, old in enumerate(kept)}
    result = {}
    for name, traced in state.items():
        match = re.match(r"model\.layers\.\d+\.", name)
        if match is None:
            result[name] = traced
        elif match[0] in numbers:
            result[numbers[match[0]] + name[match.end() :]] = traced
    return result


def _other_rows(rng: np.random.Generator, table: Traced, changes: Sequence[str], new_rows: str) -> Traced:
    """Rows left out, put in at some places, and added at the end."""
    rows = np.arange(len(table.new))
    if "cut" in changes:
        rows = rows[rng.random(len(rows)) < rng.uniform(0.7, 0.99)]
    if "inserted" in changes:
        for at in rng.integers(len(rows), size=4):
            rows = np.insert(rows, at, np.full(rng.integers(1, 9), -1))
    if "appended" in changes:
        rows = np.append(rows, np.full(rng.integers(1, 100), -1))
    picked, added = table.map(lambda array: array[rows]), rows < 0
    picked.old[added], picked.origin[added] = 0, -1
    noise = bf16_noise(rng, (int(added.sum()), table.new.shape[1]))
    picked.new[added] = noise[:1] if new_rows == "equal" else 0 if new_rows == "zeros" else noise
    return picked


def _finished(choices: Choices, base: Tensors, state: State) -> Rewritten:
    """The files' tensors: the target as of the base's dtype, and then in its own."""
    target, by_hand = dict[str, TensorData](), dict[str, TensorData]()
    for name, traced in state.items():
        dtype = (choices.norm_dtype if "norm" in name else None) or choices.dtype
        target[name] = _cast(_cast(with_array("BF16", traced.new), choices.base_dtype), dtype)
        by_hand[name] = _cast(with_array(choices.base_dtype, traced.old), dtype)
    return Rewritten(choices, base, target, by_hand, {name: traced.origin.reshape(-1) for name, traced in state.items()})


def _cast(data: TensorData, dtype: str) -> TensorData:
    return data if data[0] == dtype else cast({"": data}, dtype)[""]


# --- pairs in files ---


@cache
def model(name: str, count: int = LAYERS) -> dict[str, TensorData]:
    """The first layers of a real model, and what is in none."""
    tensors = our_view(SHARED_DATA / name / "model.safetensors")
    return {name: data for name, data in tensors.items() if all(number < count for number in numbers(name))}


def pairing_of(base: Path, target: Path) -> tuple[Pairing, dict[str, np.ndarray]]:
    """How two checkpoints are paired, and the units that each target tensor stands against."""
    with open_checkpoint(base) as old, open_checkpoint(target) as new:
        found = pair(old, new)
        against = {
            key.name: row.base.read(0, new.tensor(key).nbytes).view(f"<u{carrier(new.tensor(key).dtype)}").copy()
            for key, row in found.counterparts.items()
        }
        return found, against


def written(folder: Path, tensors: Tensors) -> Path:
    return write(folder / "model.safetensors", tensors).parent
