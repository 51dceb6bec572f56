"""``LoadedPatch``: a model switches to the target and back in place, all of it or nothing."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError, IntegrityError
from ckptdiff.live import switch as loaded_module

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from tests.support.torch_states import CODECS, copy_of, equal, nudge, pair, raw  # noqa: E402


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("share", [0.002, 0.6])
def test_a_model_switches_there_and_back(codec: str | None, share: float) -> None:
    old, new = pair(share)
    patch = ckptdiff.Patch.from_bytes(ckptdiff.diff(old, new, codec=codec).to_bytes())
    model = copy_of(old)
    loaded = patch.load(model)
    assert equal(model, old) and not loaded.applied
    for _ in range(3):
        loaded.apply_()
        assert equal(model, new) and loaded.applied
        loaded.revert_()
        assert equal(model, old)
    loaded.apply_(check=False)
    assert equal(model, new) and model["tied"] is model["bf16"]
    model = copy_of(old)
    patch.apply_(model)
    assert equal(model, new)


def test_several_patches_of_one_base() -> None:
    old, first = pair(0.01, 1)
    second = {name: nudge(np.random.default_rng(9), array, 0.02) for name, array in old.items()}
    second["tied"] = second["bf16"]
    model = copy_of(old)
    a, b = (ckptdiff.diff(old, new).load(model) for new in (first, second))
    for _ in range(3):
        for loaded, expected in ((a, first), (b, second)):
            loaded.apply_()
            assert equal(model, expected)
            loaded.revert_()
    a.apply_()
    with pytest.raises(BaseMismatchError, match=r"it is not the base: is another patch applied\? Nothing was written"):
        b.apply_()
    assert equal(model, first)
    with pytest.raises(BaseMismatchError, match="is applied already: revert it first"):
        a.apply_()
    model["f32"].view(torch.uint8)[0, 0] ^= 1
    with pytest.raises(BaseMismatchError, match=r"tensor f32 has the digest .* it was changed since the patch was applied"):
        a.revert_()
    model["f32"].view(torch.uint8)[0, 0] ^= 1
    a.revert_()
    with pytest.raises(BaseMismatchError, match="is not applied: there is nothing to revert"):
        a.revert_()
    assert equal(model, old)


def test_patches_are_not_stacked() -> None:
    """A patch of one tensor is not applied to a base whose other tensors another patch has moved."""
    old = {name: torch.zeros(9) for name in "ab"}
    first, second = (ckptdiff.diff(old, {**old, name: old[name] + 1}).load(old) for name in "ab")
    first.apply_()
    with pytest.raises(BaseMismatchError, match=r"tensor a .* it is not the base: is another patch applied\?"):
        second.apply_()
    assert old["a"].eq(1).all() and old["b"].eq(0).all()


def test_threads() -> None:
    """Of several threads that apply one patch, one does, and the others get an error that says so."""
    old, new = pair()
    for _ in range(5):
        model, errors = copy_of(old), []
        loaded = ckptdiff.diff(old, new).load(model)

        def switch(loaded: Any = loaded, errors: list[str] = errors) -> None:
            try:
                loaded.apply_()
            except BaseMismatchError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=switch) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 2 and "is applied already" in errors[0] and equal(model, new)


def test_backward_through_a_switch_fails() -> None:
    module = torch.nn.Linear(4, 4)
    new = {name: part + 1 for name, part in module.state_dict().items()}
    patch, inputs = ckptdiff.diff(module, new), torch.randn(2, 4, requires_grad=True)
    loss = module(inputs).sum()
    patch.apply_(module)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_all_or_nothing(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wrong result, an error in the middle or Ctrl-C, the model is as it was."""
    old, new = pair()
    model = copy_of(old)
    loaded = ckptdiff.diff(old, new, codec=codec).load(model)
    loaded._updates[-1].digest = bytes(16)
    with pytest.raises(IntegrityError, match=r"came out with the digest .*, expected 0000.* it was taken back"):
        loaded.apply_()
    assert equal(model, old) and not loaded.applied
    plain, numbers = loaded_module._Batch.update, itertools.count()

    def interrupted(*arguments: Any) -> Any:
        number, leaves = next(numbers), plain(*arguments)
        if number == 3:  # once the kernel has moved the units, and nobody was told
            raise KeyboardInterrupt
        return leaves

    monkeypatch.setattr(loaded_module, "BYTES_PER_UPDATE_JOB", 1)
    monkeypatch.setattr(loaded_module._Batch, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded.apply_()
    assert equal(model, old) and next(numbers) > 4


def test_no_memory_is_held() -> None:
    """A hundred switches, by several threads' arrays: what the process holds does not grow."""
    old, new = pair(0.05)
    model = copy_of(old)
    loaded = ckptdiff.diff(old, new).load(model)
    assert loaded.nbytes < 3 * sum(len(raw(array)) for array in old.values())

    def held() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1])

    for _ in range(20):
        loaded.apply_()
        loaded.revert_()
    before = held()
    for _ in range(100):
        loaded.apply_()
        loaded.revert_()
    assert held() - before < 20_000 and equal(model, old) and threading.active_count() < 20
