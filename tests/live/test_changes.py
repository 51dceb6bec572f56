"""``Patch.changes``: what a patch changes, against what NumPy finds; and ``identity`` of checkpoints in memory and in files."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.errors import BaseMismatchError, CheckpointError, UnsupportedError
from tests.support.checkpoints import TensorData, bf16, carrier, perturb, random_tensor, tensor, write, write_sharded
from tests.support.composed import chain, moved
from tests.support.strategies import DTYPE_NAMES, FLOATS, SEEDS, quick


def distances(dtype: str, old: TensorData, new: TensorData) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Positions, ulp distances (spec 7.2) and new units, one number at a time."""
    bits = 8 * carrier(dtype)
    x, y = (np.frombuffer(side[2], f"<u{carrier(dtype)}") for side in (old, new))
    where = np.flatnonzero(x != y)

    def order(unit: int) -> int:
        top = 1 << (bits - 1)
        return unit if dtype not in FLOATS else unit + top if unit < top else 2 * top - 1 - unit

    found = [(order(int(b)) - order(int(a))) % (1 << bits) for a, b in zip(x[where], y[where], strict=True)]
    return where, [d - (1 << bits) if d >> (bits - 1) else d for d in found], y[where]


@quick(30)
@given(dtype=DTYPE_NAMES, seed=SEEDS, share=st.sampled_from([0.01, 0.3, 1.0]), codec=st.sampled_from(["sparse", "context", "raw"]))
def test_they_are_what_numpy_finds(dtype: str, seed: int, share: float, codec: str) -> None:
    rng = np.random.default_rng(seed)
    old = random_tensor(rng, dtype, (16, 40))
    new = perturb(rng, old, share)
    where, moves, values = distances(dtype, old, new)
    with tempfile.TemporaryDirectory() as folder:
        files, patches = chain(Path(folder), [{"w": old, "x": old}, {"w": new, "x": old}], codec)
        with ckptdiff.Patch.open(patches[0]) as patch:
            bases = [files[0]] if codec != "sparse" else [None, files[0]]
            for base in bases:
                (change,) = patch.changes(base=base, threads=1)
                assert (change.name, change.dtype, change.shape, change.scope) == ("w", dtype, new[1], "1")
                assert change.positions.dtype == change.distances.dtype == np.int64
                assert change.positions.tolist() == where.tolist() and change.distances.tolist() == moves
                assert change.values is None if base is None else change.values.tolist() == values.tolist()
            if codec != "sparse":
                with pytest.raises(UnsupportedError, match=rf"tensor w: is coded by {codec}: only the base tells which units change: give"):
                    patch.changes()


def test_positions_are_those_of_the_whole_tensor(tmp_path: Path) -> None:
    """Over several blocks; only the tensors that are asked for."""
    rng = np.random.default_rng(0)
    old = {name: random_tensor(rng, "BF16", (2_300_000,)) for name in "ab"}
    new = {name: perturb(rng, data, 0.001) for name, data in old.items()}
    files, patches = chain(tmp_path, [old, new])
    with ckptdiff.Patch.open(patches[0]) as patch:
        for base in (None, files[0], {name: np.frombuffer(data[2], np.float16) for name, data in old.items()}):
            if isinstance(base, dict):
                with pytest.raises(BaseMismatchError, match="its tensor b is F16, expected BF16"):
                    next(patch.changes(["b"], base))
                continue
            (change,) = patch.changes(["b"], base)
            where, moves, values = distances("BF16", old["b"], new["b"])
            assert change.positions.tolist() == where.tolist() and change.distances.tolist() == moves
            assert change.values is None or np.array_equal(change.values, values)
        with pytest.raises(CheckpointError, match=r"its target has no tensor c"):
            patch.changes(["a", "c"])
        with pytest.raises(BaseMismatchError, match="already the target"):
            list(patch.changes(base=files[1]))


def test_new_tensors_and_copies(tmp_path: Path) -> None:
    """They are counted from the base's tensor of their name, if it has one."""
    rng = np.random.default_rng(0)
    a, b, new = (bf16(rng.normal(0, 0.02, (30, 40))) for _ in range(3))
    after = moved(rng, a, 9)
    files, patches = chain(tmp_path, [{"a": a, "b": b}, {"a": after, "b": after, "new": new}])
    with ckptdiff.Patch.open(patches[0]) as patch:
        assert [change.name for change in patch.changes(["a"])] == ["a"]
        for name, why in (("b", "is a copy of a"), ("new", "is new")):
            with pytest.raises(
                UnsupportedError, match=rf"tensor {name}: {why}: only the base tells which units change: give base=, or leave"
            ):
                patch.changes([name])
        changes = {change.name: change for change in patch.changes("ab", files[0])}
        assert set(changes) == {"a", "b"}
        for name, old in (("a", a), ("b", b)):
            where, moves, _ = distances("BF16", old, after)
            assert changes[name].positions.tolist() == where.tolist() and changes[name].distances.tolist() == moves
        with pytest.raises(UnsupportedError, match="tensor new: the base has no tensor of that name, dtype and size"):
            list(patch.changes(base=files[0]))


def test_casts_and_pieces_are_counted_from_the_adapted_base(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = tensor("F32", (600,), rng.normal(0, 1, 600).astype("<f4"))
    cast = tensor("BF16", (600,), ((np.frombuffer(wide[2], "<u4").astype("<u8") + 0x8000) >> 16).astype("<u2"))
    after = moved(rng, cast, 9)
    files, patches = chain(tmp_path, [{"w": wide}, {"w": after}])
    with ckptdiff.Patch.open(patches[0]) as patch:
        for base in (None, files[0]):
            (change,) = patch.changes(base=base)
            assert set(change.positions.tolist()) <= set(np.flatnonzero(np.frombuffer(after[2], "<u2") != np.frombuffer(cast[2], "<u2")))
            assert np.abs(change.distances).max() == 1


def test_a_composed_patch_has_the_sums(tmp_path: Path) -> None:
    """For an engine that was away: positions and distances of all steps together."""
    rng = np.random.default_rng(0)
    found = [{"w": bf16(rng.normal(0, 0.02, (50, 40)))}]
    for _ in range(4):
        found.append({"w": moved(rng, found[-1]["w"], 60)})
    _, patches = chain(tmp_path, found)
    composed = ckptdiff.compose([ckptdiff.Patch.open(patch) for patch in patches])
    (change,) = composed.changes()
    where, moves, _ = distances("BF16", found[0]["w"], found[-1]["w"])
    assert change.positions.tolist() == where.tolist() and change.distances.tolist() == moves


# --- identity ---


def test_identities_are_those_of_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [{"a": rng.normal(0, 1, (9, 5)).astype("<f4"), "b": rng.integers(0, 9, 7), "none": np.zeros((0, 3), "<f2")} for _ in range(2)]
    patch = ckptdiff.diff(*arrays)
    assert [ckptdiff.identity(side) for side in arrays] == [patch.base_identity, patch.target_identity]
    data = {"b": tensor("I64", (7,), arrays[0]["b"]), "a": tensor("F32", (9, 5), arrays[0]["a"]), "none": tensor("F16", (0, 3), b"")}
    file = write(tmp_path / "any.safetensors", data, {"x": "y"}, pad=1)
    shards = {f"model-{k + 1:05}-of-00003.safetensors": {name: data[name]} for k, name in enumerate(data)}
    folder = write_sharded(tmp_path / "folder", shards)
    assert {ckptdiff.identity(place) for place in (file, str(file), folder)} == {patch.base_identity}
    assert ckptdiff.identity({**arrays[0], "a": arrays[0]["a"].reshape(5, 9)}) != patch.base_identity


def test_identities_of_modules(tmp_path: Path) -> None:
    """Tied tensors count once, under the name that comes first."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8, bias=False), "b": torch.nn.Linear(8, 8, bias=False)})
    model["b"].weight = model["a"].weight
    assert ckptdiff.identity(model) == ckptdiff.identity({"a.weight": model["a"].weight.detach().numpy()})
    patch = ckptdiff.diff(model, {name: value + 1 for name, value in model.state_dict().items()})
    assert ckptdiff.identity(model) == patch.base_identity


def test_what_has_no_identity(tmp_path: Path) -> None:
    files, patches = chain(tmp_path, [{"w": bf16([1.0])}, {"w": bf16([2.0])}])
    for wrong, text in (
        (3, "expected a module or a state dict, found int"),
        (tmp_path / "gone", "no such file or folder"),
        (patches[0], "is a ckptdiff patch, not a checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=text):
            ckptdiff.identity(wrong)
    assert len(ckptdiff.identity(files[0])) == 32


# --- composition through a base in memory ---


def test_composing_through_a_state_dict(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states = [{name: rng.integers(0, 1 << 16, (30, 40)).astype("<u2") for name in "ab"}]
    for _ in range(3):
        states.append({name: data ^ (rng.random(data.shape) < 0.1) for name, data in states[-1].items()})
    patches = [ckptdiff.diff(*pair, codec="context") for pair in itertools.pairwise(states)]
    with pytest.raises(UnsupportedError, match="the patch: tensor a: is coded by context, and is changed by other patches too"):
        ckptdiff.compose(patches)
    for codec in ("sparse", "context"):
        composed = ckptdiff.compose(patches, states[0], codec=codec)
        assert composed.to_bytes() == ckptdiff.diff(states[0], states[-1], codec=codec).to_bytes()
        model = {name: data.copy() for name, data in states[0].items()}
        composed.apply_(model)
        assert all(np.array_equal(model[name], data) for name, data in states[-1].items())
    with pytest.raises(BaseMismatchError):
        ckptdiff.compose(patches, states[1])
    # patches of files: the result names the files that the first patch names
    files, made = chain(tmp_path, [{name: tensor("U16", (30, 40), data) for name, data in state.items()} for state in states], "context")
    opened = [ckptdiff.Patch.open(patch) for patch in made]
    composed = ckptdiff.compose(opened, states[0], codec="sparse")
    ckptdiff.make(files[0], files[-1], tmp_path / "direct", codec="sparse")
    assert composed.to_bytes() == (tmp_path / "direct").read_bytes()
