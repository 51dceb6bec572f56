"""Small states of numpy arrays that follow each other, and what a chain gives back of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import ckptdiff

State = dict[str, Any]


def first_state(seed: int = 0, size: int = 300) -> State:
    """Tensors of several dtypes, two of equal content, an empty one, and one without dimensions."""
    rng = np.random.default_rng(seed)
    state = {"a": rng.normal(0, 0.02, (size, 7)).astype(np.float32), "b": rng.normal(0, 1, size).astype(np.float16)}
    state |= {"norm": np.ones(9, np.float32), "same.norm": np.ones(9, np.float32), "count": np.array(3, np.int64)}
    return state | {"empty": np.empty((0, 4), np.float32)}


def next_state(state: State, rng: np.random.Generator, share: float = 0.05) -> State:
    """A copy of which a share of the bytes differ in their last bit; now and then a whole tensor is another, or nothing changes."""
    made, how = {}, int(rng.integers(0, 12))
    for name, array in state.items():
        flat = np.frombuffer(array.tobytes(), np.uint8).copy()
        if how == 0:
            flat[:] = rng.integers(0, 256, len(flat), dtype=np.uint8)
        elif how > 1:
            flat ^= (rng.random(len(flat)) < share).astype(np.uint8)
        made[name] = flat.view(array.dtype).reshape(array.shape)
    return made


def states(count: int, seed: int = 0) -> list[State]:
    """A state, and so many that follow from it."""
    rng, made = np.random.default_rng(seed), [first_state(seed)]
    for _ in range(count):
        made.append(next_state(made[-1], rng))
    return made


def copy_of(state: State) -> State:
    return {name: array.copy() for name, array in state.items()}


def same(one: State, other: State) -> bool:
    """Whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in other)


def check_chain(chain: str | Path, known: dict[int, State], base: State) -> None:
    """Every step comes back bit for bit, for one who joins late, and for one who takes each step."""
    model, follower = copy_of(base), ckptdiff.Subscriber(chain, threads=1)
    for step, state in sorted(known.items()):
        late = copy_of(base)
        ckptdiff.Subscriber(chain, threads=1).stage(to=step).apply_(late)
        assert same(late, state), step
        follower.stage(to=step, model=model if step % 2 else None).apply_(model)
        assert same(model, state), step
        assert follower.identity == ckptdiff.identity(state, threads=1) and follower.step == step
