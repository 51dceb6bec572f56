"""Reports, comparisons, overlaps and masks of pairs in other dtypes, layouts and names, against plain torch on the whole tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff import Mask, Report, report
from ckptdiff.analysis.rank import ENERGY_RANKS, ENERGY_SHARE
from ckptdiff.analysis.report_model import QUANTILES
from tests.support.checkpoints import SHARED_DATA
from tests.support.commands import run
from tests.support.layouts_by_pieces import EMBEDDING
from tests.support.real_pairs import BASE, TARGETS

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BASE.is_dir(), reason=f"the real checkpoint pairs are not at {SHARED_DATA}"),
]

from tests.support import torch_pairs as pairs  # noqa: E402
from tests.support.rewritten import WRAPPERS  # noqa: E402
from tests.support.torch_pairs import PAIRS, Key, State, TorchPair  # noqa: E402

ATOL, RTOL = 1e-5, 1e-3
NEARLY = 1e-6
"""Relative, for figures that are no integers."""
BITS = {2: torch.int16, 4: torch.int32}
with_each_pair = pytest.mark.parametrize("name", PAIRS)


def bits(tensor: Any) -> Any:
    return tensor.contiguous().view(BITS[tensor.element_size()])


def places(tensor: Any) -> Any:
    """Numbers of floats in their order; both zeros are one."""
    units, sign = bits(tensor).long(), 1 << (8 * tensor.element_size() - 1)
    magnitude = units & (sign - 1)
    return torch.where(units < 0, -magnitude, magnitude)


def counts(old: Any, new: Any) -> dict[str, int]:
    """What :class:`ckptdiff.analysis.sparsity.Counts` says of two tensors of one dtype."""
    a, b, same = old.double(), new.double(), bits(old) == bits(new)
    d, steps, rounded = b - a, (places(new) - places(old)).abs(), (new - old).abs()
    flags = {
        "bit_identical": same,
        "equal": (old == new) | same,
        "within_atol": (d.abs() <= ATOL) | same,
        "within_rtol": (d.abs() <= RTOL * a.abs()) | same,
        "within_atol_rounded": (rounded <= torch.tensor(ATOL, dtype=old.dtype)) | same,
        "one_ulp": steps == 1,
        "up": new > old,
        "down": new < old,
    }
    return {"elements": old.numel(), **{name: int(flag.sum()) for name, flag in flags.items()}}


def summed(rows: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for row in rows:
        total.update(row)
    return dict(total)


def rows_of(found: Report) -> dict[Key, Any]:
    return {(row.name, row.part): row for row in found.tensors}


# --- report ---


@with_each_pair
def test_a_report_counts_what_torch_counts(name: str, tmp_path: Path) -> None:
    """In each tensor and in all; by row and column too; of a patch as of the target itself."""
    case = PAIRS[name]()
    base, target = case.write(tmp_path)
    found, common = report(base, target, atol=ATOL, rtol=RTOL, rank="none"), case.common()
    rows, expected = rows_of(found), {key: counts(*pair) for key, pair in common.items()}
    assert {key: asdict(row.counts) for key, row in rows.items()} == expected
    total = summed(expected.values())
    assert asdict(found.totals) == total and found.totals.sparsity == total["bit_identical"] / total["elements"]
    assert found.against_zeros == case.added and not (found.added or found.removed or found.unpaired)
    for key, (old, new) in common.items():
        row, changed = rows[key], (bits(old) != bits(new)).numpy()
        assert (row.shape, row.bases) == (tuple(new.shape), case.bases.get(row.label, ())), key
        assert row.base_dtype == (None if new.dtype == torch.bfloat16 else "BF16")
        if changed.ndim == 2:
            assert row.rows == pytest.approx(np.quantile(changed.mean(1), QUANTILES), rel=NEARLY)
            assert row.columns == pytest.approx(np.quantile(changed.mean(0), QUANTILES), rel=NEARLY)
    ckptdiff.make(base, target, tmp_path / "patch.safetensors")
    of_patch = report(base, tmp_path / "patch.safetensors", atol=ATOL, rtol=RTOL, rank="none")
    assert of_patch.tensors == found.tensors and of_patch.against_zeros == case.added
    assert (of_patch.ulps, of_patch.moves, of_patch.exponents) == (found.ulps, found.moves, found.exponents)


@with_each_pair
def test_histograms_are_of_the_values_after_the_cast(name: str, tmp_path: Path) -> None:
    case = PAIRS[name]()
    found = report(*case.write(tmp_path), rank="none")
    ulps, moves, exponents, changed_exponents = (Counter[Any]() for _ in range(4))
    for old, new in case.common().values():
        changed = bits(old) != bits(new)
        steps, d = (places(new) - places(old)).abs()[changed], (new.double() - old.double()).abs()[changed]
        ulps.update((torch.log2(steps.double()).floor()).int().tolist())
        moves.update((torch.frexp(d)[1] - 1).tolist())
        powers = torch.where(old.abs() < torch.finfo(old.dtype).tiny, -10_000, torch.frexp(old.float())[1] - 1)
        exponents.update(powers.reshape(-1).tolist())
        changed_exponents.update(powers[changed].tolist())
    assert {int(np.log2(row.low)): row.count for row in found.ulps} == dict(ulps)
    assert {int(np.log2(row.low)): row.count for row in found.moves} == dict(moves)
    none = -10_000
    assert {none if row.exponent is None else row.exponent: row.elements for row in found.exponents} == dict(exponents)
    changed_rows = {none if row.exponent is None else row.exponent: row.changed for row in found.exponents if row.changed}
    assert changed_rows == dict(changed_exponents)


@with_each_pair
def test_ranks_are_those_of_torch(name: str, tmp_path: Path) -> None:
    case = PAIRS[name]()
    found = report(*case.write(tmp_path), rank="all")
    rows = {key: row for key, row in rows_of(found).items() if row.ranks is not None}
    expected = {key: new - old for key, (old, new) in case.common().items() if new.ndim == 2}
    assert rows.keys() == expected.keys() and not found.without_rank
    for key, update in expected.items():
        (taken,) = rows[key].ranks
        spectrum = taken.spectrum
        assert (spectrum.rows, spectrum.columns) == tuple(update.shape)
        assert spectrum.rank == int(torch.linalg.matrix_rank(update.float())), key
        values = torch.linalg.svdvals(update.double())
        energy = torch.cumsum(values**2, 0) / (values**2).sum()
        assert spectrum.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=NEARLY)
        assert spectrum.effective_rank == int((energy < ENERGY_SHARE).sum()) + 1, key
        assert spectrum.top_energy == pytest.approx([float(energy[min(k, len(energy)) - 1]) for k in ENERGY_RANKS], rel=NEARLY)
        kept = np.unique(np.linspace(0, len(values) - 1, min(64, len(values))).round().astype(int))
        assert spectrum.singular_values == pytest.approx(values[kept].tolist(), rel=NEARLY, abs=NEARLY * float(values[0]))


def wrapped(state: State, *names: str) -> State:
    for wrapper in names:
        state = {WRAPPERS[wrapper](name): tensor for name, tensor in state.items()}
    return state


@pytest.mark.parametrize("names", [("LoRA",), ("FSDP", "actor"), ("base layer",), ("language model",), ("transformer", "LoRA")])
@pytest.mark.parametrize("name", ["cast to F16", "moved in F32", "rows cut and put in, in F16", "experts"])
def test_a_renamed_model_has_the_report_of_the_one_before(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    case = PAIRS[name]()
    base, target = case.write(tmp_path)
    (tmp_path / "other").mkdir()
    other = pairs.save(tmp_path / "other" / target.name, wrapped(case.target, *names))
    found, expected = (report(base, path, rank="sample") for path in (other, target))
    new_names = dict(zip(case.target, wrapped(case.target, *names), strict=True))
    assert not (found.added or found.removed or found.unpaired) and found.against_zeros == expected.against_zeros
    by_name = rows_of(found)
    for key, row in rows_of(expected).items():
        own = by_name[new_names[row.name], row.part]
        assert replace(own, name=row.name, bases=row.bases) == row
        assert own.bases == (row.bases or (() if own.name == row.name else (row.name,))), key
    assert (found.totals, found.rank, found.modules, found.layers) == (expected.totals, expected.rank, expected.modules, expected.layers)
    assert (found.ulps, found.moves, found.exponents) == (expected.ulps, expected.moves, expected.exponents)


# --- compare ---


@with_each_pair
def test_compare_counts_what_torch_counts(name: str, tmp_path: Path) -> None:
    case, atol = PAIRS[name](), (1e-6, 1e-5, 1e-3)
    base, target = case.write(tmp_path)
    found, expected = ckptdiff.compare(base, target, atol=atol), dict[str, list[int]]()
    for (key, _), (old, new) in case.common().items():
        same, d = bits(old) == bits(new), (new.double() - old.double()).abs()
        row = [old.numel(), int(same.sum()), *(int(((d <= limit) | same).sum()) for limit in atol)]
        expected[key] = [a + b for a, b in zip(expected.get(key, [0] * 5), row, strict=True)]
    assert {row.name: [row.elements, row.identical, *row.within] for row in found.tensors} == expected
    assert [found.elements, found.identical, *found.within] == [sum(column) for column in zip(*expected.values(), strict=True)]
    assert not (found.only_in_a or found.only_in_b or found.mismatched or found.same or found.same_files)
    unchanged = [k for k, new in case.target.items() if k in case.base and _is_same(case.base[k], new)]
    assert sorted(row.name for row in found.tensors if row.same) == sorted(unchanged)
    first = run("compare", base, target).stdout.splitlines()[0]
    assert first.split() == ["verdict", *f"{len(case.target) - len(unchanged)} of {len(case.target)} tensors differ".split()]


def _is_same(old: Any, new: Any) -> bool:
    return old.dtype == new.dtype and old.shape == new.shape and bool((bits(old) == bits(new)).all())


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    """Of the same file; of the same tensors in another order; of the same tensors by other names."""
    state = pairs.real(BASE.name)
    base = pairs.save(tmp_path / "a.safetensors", state)
    sides = {"again": state, "wrapped": wrapped(state, "LoRA"), "one less": {k: v for k, v in state.items() if k != "model.norm.weight"}}
    paths = {name: pairs.save(tmp_path / f"{name}.safetensors", side) for name, side in sides.items()}
    paths["metadata"] = tmp_path / "metadata.safetensors"
    from safetensors.torch import save_file

    save_file(state, paths["metadata"], {"format": "pt"})
    lines = {name: run("compare", base, path).stdout.splitlines()[0].split(maxsplit=1) for name, path in paths.items()}
    assert lines == {
        "again": ["verdict", "identical files"],
        "metadata": ["verdict", "identical tensors, in files that differ"],
        "wrapped": ["verdict", f"{len(state)} of {len(state)} tensors differ, in names, dtypes or shapes alone"],
        "one less": ["verdict", f"1 of {len(state)} tensors differ"],
    }
    result = ckptdiff.compare(base, paths["wrapped"])
    assert result.elements == result.identical == sum(tensor.numel() for tensor in state.values()) and not result.same


# --- overlap ---


def changes(case: TorchPair, atol: float) -> dict[str, Any]:
    """Which elements of each tensor changed."""
    return {
        name: (bits(old) != bits(new)) & ~((new.double() - old.double()).abs() <= atol) if atol else bits(old) != bits(new)
        for (name, _), (old, new) in case.common().items()
    }


@pytest.mark.parametrize("atol", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_overlaps_of_cast_updates_are_those_of_torch(dtype: Any, atol: float, tmp_path: Path) -> None:
    """Three updates of one BF16 base, of which one has other names, and one more rows."""
    grown = pairs.with_rows(dtype, [*range(pairs.ROWS), *[-1] * 9])
    cases = [pairs.cast(dtype, TARGETS[0]), grown, pairs.moved(dtype)]
    base = pairs.save(tmp_path / "base.safetensors", cases[0].base)
    sides = [cases[0].target, cases[1].target, wrapped(cases[2].target, "LoRA")]
    updates = [pairs.save(tmp_path / f"{k}.safetensors", side) for k, side in enumerate(sides)]
    flags, signs = [changes(case, atol) for case in cases], [direction(case) for case in cases]
    found = {row.name: row for row in ckptdiff.overlap(updates, base, atol=atol).tensors}
    assert found.keys() == flags[0].keys()
    for name, row in found.items():
        changed = torch.stack([flag[name] for flag in flags]).reshape(3, -1)
        sign = torch.stack([side[name] for side in signs]).reshape(3, -1)
        assert row.elements == changed.shape[1] and row.changed.tolist() == changed.sum(1).tolist()
        both = changed[:, None] & changed[None]
        assert row.both.tolist() == both.sum(-1).tolist()
        assert row.same_direction.tolist() == (both & (sign[:, None] == sign[None]) & (sign[:, None] != 0)).sum(-1).tolist()
        assert row.core == int(changed.all(0).sum())
        assert row.ever.tolist() == torch.cumsum(changed, 0).bool().sum(1).tolist()
    patches = [tmp_path / f"patch{k}.safetensors" for k in range(3)]
    for update, patch in zip(updates, patches, strict=True):
        ckptdiff.make(base, update, patch)
    again = {row.name: row for row in ckptdiff.overlap(patches, base, atol=atol).tensors}
    assert {name: row.both.tolist() for name, row in again.items()} == {name: row.both.tolist() for name, row in found.items()}


def direction(case: TorchPair) -> dict[str, Any]:
    return {name: torch.sign(new.double() - old.double()) for (name, _), (old, new) in case.common().items()}


# --- masks ---


@pytest.mark.parametrize("atol", [0.0, 1e-5])
@with_each_pair
def test_a_mask_is_what_changed_and_what_was_added(name: str, atol: float, tmp_path: Path) -> None:
    case = PAIRS[name]()
    base, target = case.write(tmp_path)
    ckptdiff.make(base, target, tmp_path / "patch.safetensors")
    found = Mask.from_patch(tmp_path / "patch.safetensors", base, atol=atol)
    assert found == Mask.from_patch(target, base, atol=atol)
    for key, new in case.target.items():
        old = case.old[key]
        changed = bits(old) != bits(new)
        if atol:
            changed &= ~((new.double() - old.double()).abs() <= atol)
        if key in case.known:
            changed[~case.known[key]] = True
        flags = found.flags(key) if key in found.rows else np.zeros(new.shape, bool)
        assert flags.shape == tuple(new.shape) and np.array_equal(flags, changed.numpy()), key


def test_masks_of_a_renamed_update_have_its_names(tmp_path: Path) -> None:
    case = pairs.with_rows(torch.float16, [*pairs.CUT, *[-1] * 7])
    base, target = case.write(tmp_path)
    other = pairs.save(tmp_path / "other.safetensors", wrapped(case.target, "actor"))
    plain, renamed = Mask.from_patch(target, base), Mask.from_patch(other, base)
    assert renamed == Mask.from_arrays({WRAPPERS["actor"](name): plain.flags(name) for name in plain.shapes})
    assert plain.flags(EMBEDDING)[-7:].all()
