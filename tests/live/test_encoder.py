"""The encoder: the same patches as diff, tensor by tensor; casts; what it refuses; it goes on from what was committed alone."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptdiff
from ckptdiff import kernels
from ckptdiff.live.patch import diff
from tests.support.states import copy_of, first_state, next_state, same, states
from tests.support.strategies import quick

CODECS = st.sampled_from(["sparse", "context", "raw", None])


@given(st.integers(0, 1 << 20), CODECS, st.lists(st.booleans(), min_size=1, max_size=4), st.booleans())
@quick(12)
def test_patches_lead_from_what_was_committed(seed: int, codec: str | None, commits: list[bool], streamed: bool) -> None:
    rng, last = np.random.default_rng(seed), first_state(seed)
    encoder = ckptdiff.Encoder(last, codec=codec, threads=1)
    for commit in commits:
        state = next_state(last, rng)
        if streamed:
            for name in rng.permutation(list(state)):
                encoder.add(str(name), state[str(name)])
        else:
            encoder.add_all(state)
        patch, model = encoder.finish(), copy_of(last)
        assert (patch.base_identity, patch.target_identity) == (encoder.identity, ckptdiff.identity(state))
        patch.apply_(model, threads=1)
        assert same(model, state)
        if commit:
            encoder.commit()
            last = state
        else:
            encoder.rollback()
        assert encoder.identity == ckptdiff.identity(last)


@pytest.mark.parametrize("codec", ["sparse", "context", "raw", None])
def test_the_bytes_are_those_of_diff(codec: str | None) -> None:
    old, new = first_state(), next_state(first_state(), np.random.default_rng(3))
    for state in (old, new):
        del state["same.norm"]  # of two tensors of equal content diff stores a copy
    encoder = ckptdiff.Encoder(old, codec=codec)
    encoder.add_all(new)
    assert encoder.finish().to_bytes() == diff(old, new, codec=codec).to_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_long_tensors_are_encoded_in_parts(threads: int) -> None:
    """Tensors of more bytes than are compared by one call, beside short ones of the same and of another dtype."""
    rng = np.random.default_rng(threads)
    old = {
        "long": rng.integers(0, 1 << 15, (9 << 20) + 5, np.uint16).view(np.float16),
        "a": np.arange(7, dtype=np.float16),
        "b": np.ones(40, np.float32),
        "same": np.ones(9, np.float16),
    }
    new = copy_of(old)
    for name in ("long", "a", "b"):
        units = new[name].view(f"u{new[name].itemsize}")
        units[rng.integers(0, len(units), len(units) // 50 + 1)] ^= 1
    encoder = ckptdiff.Encoder(old, threads=threads)
    encoder.add_all(new)
    assert encoder.finish().to_bytes() == diff(old, new, codec="sparse").to_bytes()
    encoder.commit()
    assert encoder.identity == ckptdiff.identity(new)
    encoder.add_all(new)
    assert encoder.finish().totals.same == 4


@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_a_tensor_that_was_interrupted_is_added_again(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was noted before counts once: else the encoder's copy would move twice, and be another state."""
    old, new = first_state(), next_state(first_state(), np.random.default_rng(5))
    encoder, note, seen = ckptdiff.Encoder(old, codec=codec, threads=1), ckptdiff.Encoder._note, list[str]()

    def interrupted(self: ckptdiff.Encoder, *arguments: Any) -> None:
        note(self, *arguments)
        seen.append("")
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ckptdiff.Encoder, "_note", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoder.add_all(new)
    encoder.add_all(new)
    encoder.finish()
    encoder.commit()
    encoder.add_all(new)
    again = encoder.finish()  # which hashes the copy
    assert len(seen) > 4 and again.totals.changed == 0 and again.base_identity == ckptdiff.identity(new)


def test_all_dtypes_of_torch() -> None:
    torch_states = pytest.importorskip("tests.support.torch_states")
    old, new = torch_states.pair()
    encoder, model = ckptdiff.Encoder(old), torch_states.copy_of(old)
    for name, tensor in new.items():
        encoder.add(name, tensor)
    encoder.finish().apply_(model)
    assert torch_states.equal(model, new)
    encoder.commit()
    assert encoder.identity == ckptdiff.identity(new)


def test_masters_are_cast_to_what_is_served() -> None:
    torch = pytest.importorskip("torch")
    masters = {"w": torch.randn(40, 30), "router": torch.randn(8), "step": torch.tensor(1)}
    served = {name: t.to(torch.bfloat16) if name == "w" else t.clone() for name, t in masters.items()}
    encoder = ckptdiff.Encoder(served, dtype="base")
    moved = {name: t + 0.01 if t.is_floating_point() else t for name, t in masters.items()}
    encoder.add_all(moved)
    encoder.finish().apply_(served)
    assert served["w"].dtype == torch.bfloat16 and torch.equal(served["w"], moved["w"].bfloat16())
    assert torch.equal(served["router"], moved["router"])
    all_cast = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in masters.items()}
    for dtype in (torch.bfloat16, "bfloat16", "BF16"):
        assert ckptdiff.Encoder(masters, dtype=dtype).identity == ckptdiff.identity(all_cast)
    with pytest.raises(ckptdiff.CheckpointError, match=r"is F32 \[40, 30\], expected BF16 \[40, 30\].*dtype= casts"):
        ckptdiff.Encoder(all_cast).add("w", moved["w"])
    with pytest.raises(
        ckptdiff.CheckpointError, match="dtype='float8_e5m2': expected one of float64, float32, float16, bfloat16, or 'base'"
    ):
        ckptdiff.Encoder(masters, dtype=torch.float8_e5m2)


def test_numpy_masters_are_cast_without_torch() -> None:
    masters = {"w": np.random.default_rng(0).normal(0, 1, 50), "n": np.arange(3)}
    cast = {"w": masters["w"].astype(np.float16), "n": masters["n"]}
    encoder = ckptdiff.Encoder(masters, dtype="float16")
    assert encoder.identity == ckptdiff.identity(cast)
    encoder.add_all({"w": masters["w"] * 1.01, "n": masters["n"]})
    encoder.finish().apply_(cast)
    assert np.array_equal(cast["w"], (masters["w"] * 1.01).astype(np.float16))


def test_tied_tensors() -> None:
    torch = pytest.importorskip("torch")
    embedding = torch.randn(6, 4)
    base = {"embed": embedding, "head": embedding}
    encoder, new = ckptdiff.Encoder(base), torch.randn(6, 4)
    encoder.add("embed", new)
    encoder.add("head", new.clone())  # gathered one by one, they no longer share memory
    patch, model = encoder.finish(), {"embed": embedding.clone()}
    patch.apply_(model)
    assert torch.equal(model["embed"], new)
    encoder.rollback()
    encoder.add("embed", new)
    encoder.add("head", torch.randn(6, 4))
    with pytest.raises(ckptdiff.CheckpointError, match="head and embed are one tensor in the base, but have different contents"):
        encoder.finish()
    encoder.rollback()
    with pytest.raises(ckptdiff.CheckpointError, match="head and embed are one tensor in the base, but have different contents"):
        encoder.add_all({"embed": new, "head": torch.randn(6, 4)})


def test_refusals() -> None:
    base, new = states(1)
    encoder = ckptdiff.Encoder(base)
    with pytest.raises(ckptdiff.CheckpointError, match=r"has the tensor extra, which the base has not; it has .*: all states of a chain"):
        encoder.add("extra", new["a"])
    with pytest.raises(ckptdiff.CheckpointError, match=r"tensor a is F16 \[300\], expected F32 \[300, 7\], as the base has it"):
        encoder.add("a", new["b"])
    with pytest.raises(ckptdiff.CheckpointError, match="call finish"):
        encoder.commit()
    encoder.add("a", new["a"])
    with pytest.raises(ckptdiff.CheckpointError, match="tensor a was added already"):
        encoder.add("a", new["a"])
    with pytest.raises(ckptdiff.CheckpointError, match="lacks the tensor b, which the base has: give all of them"):
        encoder.finish()
    encoder.rollback()
    with pytest.raises(ckptdiff.CheckpointError, match="lacks the tensor a, which the base has"):
        encoder.add_all({"b": new["b"]})
    encoder.add_all(new)
    encoder.finish()
    with pytest.raises(ckptdiff.CheckpointError, match="commit it or roll it back first"):
        encoder.add("a", new["a"])
    encoder.commit()
    encoder.reference.memory[:50] ^= 1
    encoder.add_all(new)
    with pytest.raises(ckptdiff.IntegrityError, match=r"copy of the last state: has the identity .*: something wrote to it"):
        encoder.finish()
    with pytest.raises(ckptdiff.CheckpointError, match="unknown codec 'zip': expected one of"):
        ckptdiff.Encoder(base, codec="zip")


def test_no_memory_of_a_state_is_held() -> None:
    """A state that was added may be freed, before the patch is finished and afterwards; added as a whole or in parts."""
    base = {name: np.arange(1000, dtype=np.float32) + k for k, name in enumerate("ab")}
    encoder = ckptdiff.Encoder(base)
    for step in range(1, 4):
        state = {name: array + np.float32(step) for name, array in base.items()}
        held = [weakref.ref(array) for array in state.values()]
        if step == 2:
            encoder.add("a", state["a"])
            encoder.add("b", state["b"])
        else:
            encoder.add_all(state)
        del state
        assert not any(array() is not None for array in held)
        encoder.finish()
        encoder.commit()


def test_an_interrupted_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the copy moves, which comes out of a kernel once that is done: nothing is committed, and the same may be done again."""
    old = {"a": np.zeros(5000, np.float32), "b": np.zeros(5000, np.int16)}
    new = {name: array.copy() for name, array in old.items()}
    for array in new.values():
        array[::9] += 1
    encoder, move_at = ckptdiff.Encoder(old), kernels.moves.move_at
    encoder.add_all(new)
    first = encoder.finish().to_bytes()
    for call in (1, 2):
        left = [call]

        def interrupted(*arguments: Any, left: list[int] = left) -> bytes:
            found = move_at(*arguments)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(kernels.moves, "move_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoder.commit()
        monkeypatch.undo()
    encoder.rollback()
    encoder.add_all(new)
    assert encoder.finish().to_bytes() == first
    encoder.commit()
    encoder.add_all(old)
    assert encoder.finish().to_bytes() == ckptdiff.diff(new, old).to_bytes()


def test_empty_tensors_are_cast() -> None:
    torch = pytest.importorskip("torch")
    encoder = ckptdiff.Encoder({"e": torch.empty(0), "w": torch.ones(3)}, dtype=torch.bfloat16)
    encoder.add_all({"e": torch.empty(0), "w": torch.zeros(3)})
    assert encoder.finish().totals.changed == 3
