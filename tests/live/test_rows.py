"""A patch decoded to rows of tensors does what the general way does; what is not taken that way changes nothing."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.errors import BaseMismatchError, IntegrityError, UnsupportedError
from ckptdiff.format.digests import BLOCK

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")


from ckptdiff.format.dtypes import DTYPE_NAMES  # noqa: E402
from ckptdiff.live import load as load_module  # noqa: E402
from ckptdiff.live import rows as rows_module  # noqa: E402
from ckptdiff.live.loaded_rows import LoadedRows, load_rows  # noqa: E402
from ckptdiff.patching.memory import state_of  # noqa: E402
from tests.support.strategies import examples_run  # noqa: E402
from tests.support.torch_states import State, copy_of, equal, nudge, pair, tensor  # noqa: E402


def loaded(patch: ckptdiff.Patch, model: Any, threads: int = 1) -> LoadedRows | None:
    """The patch decoded in this way."""
    rows = rows_module.rows_of(patch.opened, state_of(model, "the model"), None)
    return load_rows("the patch", rows, threads, lambda: state_of(model, "the model")) if rows is not None else None


def taken(patch: ckptdiff.Patch, model: Any, threads: int = 1) -> bool:
    """Whether the patch is decoded in this way; if so it is applied, with all digests compared."""
    found = loaded(patch, model, threads)
    if found is not None:
        found.apply_()
    return found is not None


@settings(max_examples=examples_run(80), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]), st.sampled_from([1, 3]))
def test_any_pair(seed: int, share: float, threads: int) -> None:
    rng = np.random.default_rng(seed)
    names = [name for name, (torch_name, _) in DTYPE_NAMES.items() if hasattr(torch, torch_name or "-") and name != "F4"]
    old = {
        f"{k}.{name}": tensor(rng, name, tuple(rng.integers(0, 30, rng.integers(0, 4)).tolist()))
        for k, name in enumerate(rng.choice(names, 6))
    }
    new = {name: nudge(rng, array, share) for name, array in old.items()}
    patch, model = ckptdiff.diff(old, new), copy_of(old)
    found, other = loaded(patch, model, threads), patch._loader(model, None, threads).load()
    assert found is not None or share > 0.1  # where the changes would take more memory than the tensors
    for _ in range(2 if found is not None else 0):
        assert {name: places.tolist() for name, places in found.touched()} == {name: p.tolist() for name, p in other.touched()}
        found.apply_()
        assert equal(model, new) and (loaded(patch, model, threads) is None or equal(old, new))
        found.revert_()
        assert equal(model, old)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("blocks_at_once", [1, 3, 1 << 20])
def test_long_tensors_are_cut(threads: int, blocks_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of many blocks and of none, in parts that end within them and between them."""
    rng, units = np.random.default_rng(1), BLOCK // 2
    sizes = {"a": 7 * units + 5, "b": 0, "c": units, "d": 3, "e": 2 * units - 1, "f": 4 * units, "g": 1000}
    old = {name: tensor(rng, "BF16", (size,)) for name, size in sizes.items()} | {"h": tensor(rng, "F32", (BLOCK,))}
    new = {name: nudge(rng, array, 0.01) if name != "e" else array.clone() for name, array in old.items()}
    patch, model = ckptdiff.diff(old, new), copy_of(old)
    monkeypatch.setattr(rows_module, "DECODED_AT_ONCE", blocks_at_once * BLOCK)
    monkeypatch.setattr(rows_module, "BYTES_PER_UPDATE_JOB", 2 * BLOCK)
    found = loaded(patch, model, threads)
    other = patch._loader(model, None, 1).load()
    assert found is not None and found.nbytes == other.nbytes
    assert {name: places.tolist() for name, places in found.touched()} == {name: places.tolist() for name, places in other.touched()}
    found.apply_()
    assert equal(model, new)
    found.revert_(check=False)
    assert equal(model, old)


def test_apply_takes_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with tied weights, a model in NumPy's arrays, and one that shares memory with tensors that are not the patch's."""

    def no_other(*_: Any) -> Any:
        raise AssertionError("the general way")

    monkeypatch.setattr(load_module.Loader, "__init__", no_other)

    def moved(array: Any) -> Any:
        new = array.clone() if isinstance(array, torch.Tensor) else array.copy()
        new.reshape(-1)[::5] += 1
        return new

    module = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 50, bias=False)).bfloat16()
    module[2].weight = module[0].weight
    after = {name: moved(part) for name, part in module.state_dict().items()}
    after["2.weight"] = after["0.weight"]
    patch = ckptdiff.diff(module, after)
    assert patch.opened.tied == {"2.weight": "0.weight"}
    versions = [part._version for part in module.parameters()]
    patch.load(module)
    patch.apply_(module)
    assert equal(module.state_dict(), after)
    assert all(part._version > version for part, version in zip(module.parameters(), versions, strict=True))
    arrays = {"w": np.arange(1000, dtype=np.float32), "b": np.zeros(30, np.int32)}
    more = {name: moved(array) for name, array in arrays.items()}
    ckptdiff.diff(arrays, more).apply_(arrays)
    assert equal(arrays, more)
    storage = torch.zeros(100)
    ckptdiff.diff({"w": storage[:60]}, {"w": moved(storage[:60])}).apply_({"w": storage[:60], "view": storage[50:]})
    assert storage.sum() == 12


def test_what_is_left_to_the_general_way() -> None:
    """Nothing is changed where that way has something else to do, or something to say."""
    old, new = ({name: side[name] for name in ("bf16", "f32", "large", "same", "i8")} for side in pair())
    patch = ckptdiff.diff(old, new)
    assert taken(patch, copy_of(old))
    flipped = copy_of(old)
    flipped["same"].view(torch.uint8)[0] ^= 1
    frozen = {"w": np.zeros(5, np.float32)}
    one = ckptdiff.diff(frozen, {"w": np.ones(5, np.float32)})
    frozen["w"].flags.writeable = False
    strided = {**old, "f32": old["f32"].T.contiguous().T}
    cases: dict[str, tuple[ckptdiff.Patch, State]] = {
        "another base": (patch, flipped),
        "the target": (patch, copy_of(new)),
        "a tensor less": (patch, {name: array for name, array in copy_of(old).items() if name != "i8"}),
        "another name": (patch, {f"model.{name}": array for name, array in copy_of(old).items()}),
        "another dtype": (patch, {**copy_of(old), "bf16": old["bf16"].clone().view(torch.float16)}),
        "another shape": (patch, {**copy_of(old), "bf16": old["bf16"].clone().reshape(-1)}),
        "not contiguous": (patch, strided),
        "read-only": (one, frozen),
        "codec context": (ckptdiff.diff(old, new, codec="context"), copy_of(old)),
        "a new tensor": (ckptdiff.diff(old, {**new, "more": torch.ones(3)}), copy_of(old)),
        "a copy": (
            ckptdiff.diff(old, {**old, "i8": nudge(np.random.default_rng(0), old["i8"], 0.1), "again": old["f32"].clone()}),
            copy_of(old),
        ),
    }
    for what, (of, model) in cases.items():
        before = {name: array.copy() if isinstance(array, np.ndarray) else array.clone() for name, array in model.items()}
        assert not taken(of, model), what
        assert equal(model, before), what
    kept = torch.ones(9)
    tied, apart = ckptdiff.diff({"a": kept, "b": kept}, dict.fromkeys("ab", torch.zeros(9))), {"a": torch.ones(9), "b": torch.ones(9)}
    assert tied.opened.tied == {"b": "a"} and not taken(tied, apart) and equal(apart, {"a": torch.ones(9), "b": torch.ones(9)})
    tied.apply_(apart)
    assert equal(apart, {"a": torch.zeros(9), "b": torch.zeros(9)})


def test_a_broken_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload with the right digest that decodes to something else is found before anything is written, or taken back."""
    old, new = pair()
    old, new = ({name: side[name] for name in ("bf16", "f32")} for side in (old, new))
    patch, model = ckptdiff.diff(old, new), copy_of(old)
    unpack_all = rows_module.codecs.sparse.unpack_all

    def another(*arguments: Any) -> Any:
        (positions, zigzags), counts = unpack_all(*arguments)
        zigzags[0] ^= 3
        return (positions, zigzags), counts

    monkeypatch.setattr(rows_module.codecs.sparse, "unpack_all", another)
    versions = [array._version for array in model.values()]
    with pytest.raises(IntegrityError, match=r"the model: tensor \w+ came out with the digest .*the patch is broken.*it was taken back"):
        patch.apply_(model)
    assert equal(model, old)
    assert all(array._version > version for array, version in zip(model.values(), versions, strict=True))

    def fewer(*arguments: Any) -> Any:
        changes, counts = unpack_all(*arguments)
        return changes, [counts[0] - 1, *counts[1:]]

    monkeypatch.setattr(rows_module.codecs.sparse, "unpack_all", fewer)
    assert not taken(patch, model) and equal(model, old)
    monkeypatch.undo()
    with pytest.raises(BaseMismatchError, match="is not the base of the patch"):
        patch.apply_({**copy_of(old), "f32": new["f32"].clone()})


def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C in the middle the model is as it was."""
    old, new = pair()
    old, new = ({name: array for name, array in side.items() if name not in ("f4", "tied")} for side in (old, new))
    patch, model, calls = ckptdiff.diff(old, new), copy_of(old), []
    move = rows_module.Moves.move

    def interrupted(part: Any, back: bool, hashed: bool) -> bytes:
        leaves = move(part, back, hashed)
        calls.append(part)
        if len(calls) == 4:  # once the kernel has moved the units, and nobody was told
            raise KeyboardInterrupt
        return leaves

    monkeypatch.setattr(rows_module.Moves, "move", interrupted)
    for threads in (1, 3):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            patch.apply_(model, threads=threads)
        assert equal(model, old) and len(calls) >= 4
    monkeypatch.undo()
    patch.apply_(model)
    assert equal(model, new)


def test_threads_that_an_interrupt_hid_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the first thread is started: it moves units, and all are taken back."""
    old = {name: torch.full((BLOCK,), float(k), dtype=torch.bfloat16) for k, name in enumerate("abcd")}
    new = {name: array.clone() for name, array in old.items()}
    for array in new.values():
        array[::50] += 1
    model, start, move, moved = copy_of(old), threading.Thread.start, rows_module.Moves.move, list[Any]()
    monkeypatch.setattr(rows_module, "BYTES_PER_UPDATE_JOB", BLOCK)
    found = loaded(ckptdiff.diff(old, new), model, 3)
    assert found is not None

    def interrupted(self: threading.Thread) -> None:
        start(self)
        while not moved:
            time.sleep(0.001)
        raise KeyboardInterrupt

    def slow(part: Any, back: bool, hashed: bool) -> bytes:
        moved.append(part)
        time.sleep(0.1)
        return move(part, back, hashed)

    monkeypatch.setattr(rows_module.Moves, "move", slow)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.apply_(check=False)
    monkeypatch.undo()
    time.sleep(0.3)  # for a thread that nobody waited for
    assert equal(model, old) and not found.applied and len(moved) == 1
    found.apply_()
    assert equal(model, new)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_tensors_without_memory_are_refused() -> None:
    """Fake tensors, and those that wrap others, have an address of zero, though they have elements."""
    plain = torch.ones(9)
    patch = ckptdiff.diff({"w": plain}, {"w": plain + 1})
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(plain)
    for array in (fake, torch._efficientzerotensor(9)):
        for call in (patch.apply_, patch.load, lambda state: ckptdiff.diff(state, {"w": plain})):
            with pytest.raises(
                UnsupportedError, match=r"w: has no memory that can be read, as a fake tensor|is sparse, quantized or a lazy"
            ):
                call({"w": array})


def test_a_target_without_tensors() -> None:
    ckptdiff.diff({}, {}).apply_({})
    ckptdiff.diff({"w": torch.ones(3)}, {}).load({"w": torch.ones(3)}).apply_()
    ckptdiff.diff(torch.nn.ReLU(), torch.nn.ReLU()).apply_(torch.nn.ReLU())


@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_what_the_patch_has_not_may_be_anything(codec: str) -> None:
    """Tensors of the model that no patch could read, which the patch does not name, and which are not written to."""
    old, new = {"w": torch.ones(900)}, {"w": torch.ones(900)}
    new["w"][::9] += 1
    more = {"meta": torch.ones(3, device="meta"), "strided": torch.ones(3, 4).T, "complex": torch.ones(3, dtype=torch.complex128)}
    model = {**copy_of(old), **more}
    patch = ckptdiff.diff(old, new, codec=codec)
    patch.apply_(model)
    assert equal({"w": model["w"]}, new)
    patch.load({**copy_of(old), **more}).apply_()


def test_other_forms_of_one_memory() -> None:
    """A tensor seen in another shape is the one that a patch was loaded for; a tied name of another form is refused, as ever."""
    old, new = {"w": torch.ones(30, 30), "e": np.zeros(0, np.float32)}, {"w": torch.ones(30, 30), "e": np.zeros(0, np.float32)}
    new["w"][::9] += 1
    model = {"w": old["w"].clone(), "e": old["e"].copy()}
    found = loaded(ckptdiff.diff(old, new), model)
    assert found is not None
    model |= {"w": model["w"].view(-1), "e": np.zeros(0, np.float32)}
    found.apply_()
    assert torch.equal(model["w"].reshape(30, 30), new["w"])
    tied = ckptdiff.diff({"w": old["w"], "head": old["w"]}, {"w": new["w"], "head": new["w"]})
    for other in (old["w"].view(-1), old["w"].view(torch.int32)):
        with pytest.raises(UnsupportedError, match="it cannot be written in place"):
            tied.apply_({"w": old["w"], "head": other})


@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_tied_names_that_a_patch_makes_up(codec: str) -> None:
    """What a patch says of tied names may be of any, which it does not have, or has as tensors of their own: they say nothing."""
    old, new = ({name: side[name] for name in ("bf16", "f32")} for side in pair())
    patch, model = ckptdiff.diff(old, new, codec=codec), copy_of(old)
    patch.opened.files[0].metadata.info["tied"] = {"f32": "bf16", "more": "nothing", "bf16": "nothing"}
    model["more"] = torch.ones(3)
    patch.load(model)
    patch.apply_(model)
    assert equal(model, {**new, "more": torch.ones(3)})


def test_a_model_that_was_changed_or_replaced() -> None:
    """What a loaded patch was loaded for must be there still, with the content that it left."""
    old, new = ({name: side[name] for name in ("bf16", "f32", "same")} for side in pair())
    model = copy_of(old)
    found = loaded(ckptdiff.diff(old, new), model)
    assert found is not None
    with pytest.raises(BaseMismatchError, match="is not applied: there is nothing to revert"):
        found.revert_()
    model["same"].view(torch.uint8)[0] ^= 1
    with pytest.raises(BaseMismatchError, match=r"the model: tensor same has the digest .*it is not the base: is another patch applied\?"):
        found.apply_()
    model["same"].view(torch.uint8)[0] ^= 1
    found.apply_()
    with pytest.raises(BaseMismatchError, match="is applied already: revert it first"):
        found.apply_()
    model["f32"].view(torch.uint8)[0, 0] ^= 1
    with pytest.raises(BaseMismatchError, match=r"tensor f32 has the digest .* it was changed since the patch was applied"):
        found.revert_()
    model["f32"].view(torch.uint8)[0, 0] ^= 1
    kept, model["same"] = model["same"], model["same"].clone()
    with pytest.raises(BaseMismatchError, match="tensor same is not the one that the patch was loaded for: was the model cast, moved"):
        found.revert_()
    model["same"] = kept
    found.revert_()
    assert equal(model, old)
