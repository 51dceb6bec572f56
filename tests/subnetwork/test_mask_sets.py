"""Masks as sets: operations, complements, and masks that know their tensors without elements, against boolean arrays of numpy."""

from __future__ import annotations

import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdiff import Mask
from ckptdiff.errors import CheckpointError
from tests.support.checkpoints import tensor, write
from tests.support.strategies import examples_run

SHAPES = {"a": (7, 9), "b": (64,), "c": (), "long": (40, 50), "none": (0, 3)}


def arrays(seed: int, density: float, names: list[str]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(SHAPES[name]) < density for name in names}


states = st.builds(
    arrays,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.002, 0.02, 0.5, 0.98, 1.0]),
    st.lists(st.sampled_from(list(SHAPES)), unique=True),
)


@settings(max_examples=examples_run(200), deadline=None)
@given(states, states)
def test_operations_are_those_of_sets(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> None:
    a, b = Mask.from_arrays(x), Mask.from_arrays(y)
    names = x.keys() | y.keys()
    whole = [{name: side.get(name, np.zeros(SHAPES[name], np.bool_)) for name in names} for side in (x, y)]
    for of_masks, of_arrays in (
        (operator.and_, np.logical_and),
        (operator.or_, np.logical_or),
        (operator.xor, np.logical_xor),
        (operator.sub, lambda p, q: p & ~q),
    ):
        found = of_masks(a, b)
        assert found == Mask.from_arrays({name: of_arrays(whole[0][name], whole[1][name]) for name in names})
        assert found.shapes.keys() == names and len(found) == sum(int(found.flags(name).sum()) for name in names)
    assert ~a == a.complement() == Mask.from_arrays({name: ~flags for name, flags in x.items()})
    assert ~~a == a and len(a) + len(~a) == sum(flags.size for flags in x.values())
    assert len(a & ~a) == 0 and not (a & ~a) and (a | b) == Mask.union(a, b) and ~(a | b) == ~(a | (b - b)) & ~(b | (a - a))


def test_a_mask_knows_tensors_without_elements(tmp_path: Path) -> None:
    """So that its complement has all of a tensor that did not change; in a file too."""
    mask = Mask.from_arrays({"w": [True, False, False], "norm": [False, False]})
    assert mask.counts == {"w": 1} and mask.flags("norm").tolist() == [False, False] and mask.bits["norm"].tolist() == [0]
    assert (~mask).counts == {"w": 2, "norm": 2} and repr(mask) == "<ckptdiff.Mask: 1 elements in 1 of 2 tensors>"
    mask.save(tmp_path / "mask.safetensors")
    assert Mask.load(tmp_path / "mask.safetensors") == mask != Mask.from_arrays({"w": [True, False, False]})
    with pytest.raises(CheckpointError, match=r"the mask knows no tensor nrom; the nearest of its 2 tensors are norm"):
        mask.flags("nrom")
    with pytest.raises(CheckpointError, match="it is of no tensor at all"):
        Mask.from_arrays({}).flags("w")


def test_what_cannot_be_combined() -> None:
    a, b = Mask.from_arrays({"w": [True, False]}), Mask.from_arrays({"w": [True, False, True]})
    for combine in (operator.and_, operator.or_, operator.xor, operator.sub, lambda x, y: x.score(y)):
        with pytest.raises(CheckpointError, match=r"tensor w: has the shape \[3\] in one mask, \[2\] in another"):
            combine(a, b)
    with pytest.raises(TypeError, match="unsupported operand"):
        a & {"w"}  # type: ignore[operator]
    assert a != {"w"} and a != b


def test_a_patch_gives_a_mask_of_all_its_tensors(tmp_path: Path) -> None:
    """As tensors that did not change are in the complement."""
    old = {"w": tensor("U8", (4,), b"abcd"), "norm": tensor("U8", (2,), b"xy")}
    base, target = write(tmp_path / "base.safetensors", old), write(tmp_path / "t.safetensors", old | {"w": tensor("U8", (4,), b"abcx")})
    mask = Mask.from_patch(target, base)
    assert mask.shapes == {"norm": (2,), "w": (4,)} and mask.counts == {"w": 1}
    assert (~mask).flags("norm").all() and (~mask).flags("w").tolist() == [True, True, True, False]
