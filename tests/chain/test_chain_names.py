"""Names: the steps that those of checkpoints state, and those of a chain's objects, whatever is listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.chain.documents import ChainDocument
from ckptdiff.chain.history import History, foreign_objects, read_history
from ckptdiff.chain.names import MAX_EPOCH, MAX_STEP, PatchName, epoch_key, in_natural_order, step_of
from ckptdiff.errors import FormatError


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("run/checkpoint-100", 100),
        ("global_step_100", 100),
        ("run/global_step100/hf", 100),
        ("step-00000042", 42),
        ("epoch=3-step=99", 99),
        ("epoch-3", 3),
        ("iter_0000100", 100),
        ("ckpt_7", 7),
        ("STEP_8.safetensors", 8),
        ("checkpoint-100/model.safetensors", 100),
        ("checkpoint-100-merged", 100),
        ("run7/100", 100),
        ("llama.v12", 12),
        ("model-5.safetensors", 5),
    ],
)
def test_steps_as_trainers_name_them(path: str, step: int) -> None:
    assert step_of(path).step == step


@pytest.mark.parametrize("path", ["final", "Llama-3-8B", "run-7/final", "checkpoint-", "."])
def test_names_that_state_no_step(path: str) -> None:
    with pytest.raises(ckptdiff.CheckpointError, match=r"does not say which step it is, as checkpoint-100 does: give --step N"):
        step_of(path)


def test_natural_order() -> None:
    paths = [f"checkpoint-{k}" for k in (10, 100, 20, 9)]
    assert [named.path for named in in_natural_order(paths)] == ["checkpoint-9", "checkpoint-10", "checkpoint-20", "checkpoint-100"]
    with pytest.raises(ckptdiff.CheckpointError, match=r"epoch-2 and checkpoint-100: count different things, epoch and checkpoint"):
        in_natural_order(["checkpoint-100", "epoch-2"])
    with pytest.raises(ckptdiff.CheckpointError, match="states the step 1000000000000, expected at most 999999999999"):
        step_of("step-1000000000000")


DIGITS = st.text("0123456789abcdef", min_size=8, max_size=8)


@st.composite
def names(draw: st.DrawFn, most: int = MAX_STEP) -> PatchName:
    step = draw(st.integers(0, most))
    is_keyframe = draw(st.booleans())
    parent = draw(st.none() | st.integers(0, step - 1)) if step and not is_keyframe else None
    digits = st.sampled_from(["00000000", "11111111"]) if most < MAX_STEP else DIGITS
    epoch = draw(st.integers(1, 3 if most < MAX_STEP else MAX_EPOCH))
    return PatchName(step, parent, draw(digits), draw(digits), epoch, draw(st.booleans()), is_keyframe)


@given(names())
def test_a_name_says_what_was_put_in(name: PatchName) -> None:
    assert PatchName.parse(name.marker) == name
    assert PatchName.parse(name.key + ("/x" if name.is_file else "")) is None


class Listed:
    """A store of names alone, with the document of a chain."""

    name = "listed"

    def __init__(self, keys: list[str]) -> None:
        self.document = ChainDocument(base_identity=bytes(16), base_step=None, codec=None, keyframe_every=4).to_bytes()
        self.keys = keys

    def objects(self, folder: str) -> dict[str, int]:
        return {key: 1 for key in sorted(self.keys) if not folder or key.startswith(f"{folder}/")}

    def size(self, key: str) -> int | None:
        return len(self.document) if key == "chain.json" else None

    def read(self, key: str, start: int, size: int) -> bytes:
        return self.document

    def path(self, key: str) -> Path | None:
        return None


def listed(keys: list[str]) -> History:
    return read_history(Listed(keys))  # type: ignore[arg-type]


@settings(max_examples=300)
@given(st.lists(names(6) | st.text("0123456789-/abcsteps.", max_size=30), max_size=12), st.booleans())
def test_any_listing_is_a_history_or_an_error_in_format(drawn: list[PatchName | str], torn: bool) -> None:
    """Every object is accounted for, and each plan leads from the base to its step, link by link."""
    keys = {f"steps/{name}" if isinstance(name, str) else name.marker for name in drawn}
    keys |= {f"{name.key}/files/x.zst" for name in drawn[:3] if isinstance(name, PatchName) and torn and not name.is_file}
    try:
        history = listed([*keys, *(epoch_key(epoch) for epoch in (1, 2, 3))])
    except FormatError as error:
        assert "forked" in str(error)
        return
    counted = [name for step in history.steps for name in (step.patch, step.keyframe) if name is not None]
    known = [key for name in (*counted, *history.superseded, *history.torn) for key in history.objects(name)]
    assert sorted([*known, *foreign_objects(history)]) == sorted(keys)
    numbers = [step.number for step in history.steps]
    assert numbers == sorted(set(numbers))
    for at, step in enumerate(history.steps):
        plan = history.plan(at)
        assert plan is None or (plan[0].parent is None and plan[-1].step == step.number and plan[0].base == "00000000")
        for before, name in zip(plan or [], (plan or [])[1:], strict=False):
            assert (name.parent, name.base) == (before.step, before.target) and not name.is_keyframe
        assert plan is not None or (step.keyframe is None and not all(s.follows for s in history.steps[: at + 1]))
