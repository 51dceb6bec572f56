"""Kernels do not check their indexes, so lengths, positions, classes and shapes are checked before a kernel is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckptdiff.errors import CheckpointError
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.kernels import adaptive, changes, leaves, moves, pace, sums, ulps
from ckptdiff.kernels.gram import sparse_gram
from ckptdiff.kernels.mask_ops import split_jobs
from ckptdiff.kernels.range_coder import NEW_CONTEXT
from ckptdiff.kernels.ulps import SizedChanges

BF16 = DTYPES["BF16"]


def units(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + count, dtype="<u2")


def at(*positions: int) -> np.ndarray:
    return np.array(positions, np.int32)


COMPARED: dict[str, Callable[[], object]] = {
    "differing": lambda: changes.differing(units(100), units(99)),
    "changes_of": lambda: changes.changes_of(units(100).view(np.uint8), units(300).view(np.uint8), BF16),
    "compared": lambda: changes.compared(units(100).view(np.uint8), units(99).view(np.uint8), BF16),
    "move_run": lambda: moves.move_run(units(100).view(np.uint8), None, units(300), BF16, False, True),
}
MOVED: dict[str, Callable[[np.ndarray], object]] = {
    "sized_changes": lambda where: ulps.sized_changes(units(100), where, units(2, 1), BF16),
    "add_changes": lambda where: sums.add_changes(units(100), (where, units(2, 1))),
    "move_run": lambda where: moves.move_run(units(100).view(np.uint8), where, units(2, 1), BF16, False, False),
    "zigzags_of": lambda where: ulps.zigzags_of(
        units(100), SizedChanges(where, np.ones(2, np.uint64), np.zeros(2, np.uint8)), BF16, units(2)
    ),
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_compared_has_one_length(name: str) -> None:
    with pytest.raises(ValueError, match=r"^100 units cannot be compared with (99|300)$"):
        COMPARED[name]()


@pytest.mark.parametrize("where", [at(3, 100), at(-1, 3), at(3), at(1, 2, 3)], ids=["behind", "before", "too few", "too many"])
@pytest.mark.parametrize("name", MOVED)
def test_positions_lie_in_the_block(name: str, where: np.ndarray) -> None:
    MOVED[name](at(0, 99))
    with pytest.raises(ValueError, match=rf"^{len(where)} positions and their values do not fit: expected .* positions below 100 units$"):
        MOVED[name](where)


@pytest.mark.parametrize("part", [units(100), units(100).view(np.uint8)[::2], units(100).view(np.uint8).reshape(20, 10)])
def test_leaves_are_of_bytes_in_a_row(part: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^expected bytes that lie one behind the other$"):
        leaves.blocks_of([part])


@pytest.mark.parametrize("counts", [[1, 1, 2], [1, 1], [300, 1, 1]])
def test_a_gram_matrix_takes_the_counts_of_its_columns(counts: list[int]) -> None:
    matrix = np.eye(3, dtype=np.float32)
    assert np.array_equal(np.tril(sparse_gram(matrix, np.ones(3, np.int64), 1.0, 1)), np.eye(3))
    with pytest.raises(ValueError, match=rf"^3 elements of 3 columns are not zero, but the counts say {sum(counts)}$"):
        sparse_gram(matrix, np.array(counts, np.int64), 1.0, 1)


@pytest.mark.parametrize(("elements", "size"), [(4096, 8), (64, 9), (65, 8)])
def test_bits_are_as_many_as_elements(elements: int, size: int) -> None:
    with pytest.raises(ValueError, match=rf"^{size} bytes of bits do not mask an array of the shape \[{elements}\]$"):
        split_jobs(np.zeros(elements, "i4"), np.zeros(size, np.uint8))


def test_a_change_of_a_class_without_contexts_is_refused() -> None:
    """Weights of zero keep such units from changing; the kernel does not rest on it."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.array([10, 11, 200, 3], np.uint8), 64)
    words = rng.integers(0, 1 << 16, 4096, dtype=np.uint16)
    words[0] = 0x2000

    def decoded(weights: np.ndarray) -> int:
        contexts, raw = np.full(2 * adaptive.CONTEXTS_PER_BIT * 16, NEW_CONTEXT, np.uint32), np.zeros(1000, np.uint32)
        learned = adaptive.ClassContexts(10, 11, 16, contexts, np.zeros(256, np.uint8))
        out = SizedChanges.scratch(len(classes), np.empty(len(classes), np.int32))
        return int(adaptive.decode_changes(classes, weights, learned, raw, 0, words, out)[0])

    inside = np.zeros(256, np.uint32)
    inside[10:12] = pace.WEIGHTS[40]
    assert decoded(inside) > 0
    for c in (3, 200):
        weights = np.zeros(256, np.uint32)
        weights[c] = pace.WEIGHTS[40]
        assert decoded(weights) == -1


def test_every_change_has_room() -> None:
    """The margin that keeps the decoder's range from becoming nothing: what runs tell of the pace, at most, and the least weight."""
    observed = expected = np.uint64(0)
    for _ in range(1000):
        observed, expected, found = (np.uint64(x) for x in pace.next_pace(observed, expected, np.uint64(8), np.uint64(1 << 62)))
        observed = np.uint64(0)
        assert found >= pace.MIN_PACE
    assert expected < 16 * pace.MAX_EXPECTED + 16 and int(pace.WEIGHTS[1]) * pace.MIN_PACE >> 16 == 1
    places = np.unique(np.random.default_rng(0).integers(0, int(pace.MAX_RUN), 20_000)).tolist() + [k << 16 for k in range(1, 1024)]
    assert all(pace.share(np.uint64(a)) > pace.share(np.uint64(a + 1)) for a in places)


# --- masks ---


def frozen_model(outcome: dict[str, Any]) -> tuple[Any, Any]:
    """A parameter of 64 elements frozen but for every other, trained for a step."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    from ckptdiff.subnetwork import Mask, freeze_outside

    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(64)), "v": torch.nn.Parameter(torch.ones(8))})
    groups = [{"params": [model["v"]], "weight_decay": 0.2}, {"params": [model["w"]], "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    mask = Mask.from_arrays({"w": np.arange(64) % 2 == 0, "v": np.ones(8, np.bool_)})
    outcome["frozen"] = freeze_outside(model, mask, optimizer, before_clipping=outcome.get("before_clipping", False))
    for parameter in model.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("host", [True, False], ids=["kernels", "as on a device"])
@pytest.mark.parametrize("size", [4096, 63, 8])
def test_a_parameter_that_grew_is_named(size: int, host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """B2: bits were read beyond the mask's end, and what lay there trained."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    from ckptdiff.subnetwork import Mask, freeze_outside

    if not host:
        monkeypatch.setattr("ckptdiff.subnetwork.masked_parameter._on_host", lambda _: False)
    outcome: dict[str, Any] = {}
    model, optimizer = frozen_model(outcome)
    w = model["w"]
    w.grad, w.data = None, torch.ones(size)
    w.grad = torch.ones(size)
    before = [part.detach().clone() for part in (model["v"], w)]
    text = f"parameter w: has the shape [{size}], but had [64] when freeze_outside was called: call remove(), and freeze_outside again"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=re.escape(text)):
            optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.1]
    assert all(torch.equal(part, old) for part, old in zip((model["v"], w), before, strict=True))
    outcome["frozen"].remove()
    optimizer.state.pop(w)
    flags = np.arange(size) % 3 == 0
    freeze_outside(model, Mask.from_arrays({"w": flags}), optimizer)
    optimizer.step()
    assert np.array_equal((w != 1).numpy(force=True), flags)


def test_a_gradient_of_another_shape_is_named_while_it_is_summed() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    model, _ = frozen_model({"before_clipping": True})
    w = model["w"]
    w.grad, w.data = None, torch.ones(4096)
    with pytest.raises(CheckpointError, match=r"parameter w: has the shape \[4096\], but had \[64\]"):
        w.sum().backward()


def test_a_tracked_parameter_of_another_shape_is_named() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    from ckptdiff.subnetwork import UpdateTracker

    model = torch.nn.Linear(4, 6, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    UpdateTracker(model, optimizer, every=1)
    model.weight.data = torch.ones(1, 4)
    model.weight.grad = torch.ones(1, 4)
    with pytest.raises(CheckpointError, match=r"parameter weight: \[1, 4\] of its elements are watched, at the start \[6, 4\]"):
        optimizer.step()


def test_training_leaves_memory_resizable() -> None:
    """As FSDP resizes it: gradients, weights and the optimizer's state."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    model, optimizer = frozen_model({})
    parts = [model["w"], model["w"].grad, *(value for value in optimizer.state[model["w"]].values() if value.ndim)]
    assert len(parts) == 4
    for part in parts:
        storage = part.untyped_storage()
        storage.resize_(2 * storage.nbytes())
        assert storage.nbytes() == 2 * part.nbytes
    assert torch.equal(model["w"][1::2], torch.ones(32))
