"""Nulls beside ranks, overlaps and places, against plain torch on real pairs and on a made one."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ckptdiff import verbs  # noqa: E402
from ckptdiff.analysis.intervals import NullSettings, prediction_interval, student_quantile  # noqa: E402
from ckptdiff.analysis.matrix_nulls import matrix_nulls  # noqa: E402
from ckptdiff.analysis.nulls import SizeBins, generator, shared_by_chance, with_flipped_signs  # noqa: E402
from ckptdiff.analysis.principal import principal_angles  # noqa: E402
from ckptdiff.analysis.report_model import Report  # noqa: E402
from ckptdiff.errors import CheckpointError  # noqa: E402
from ckptdiff.verbs.overlap import overlap  # noqa: E402
from ckptdiff.verbs.report import report  # noqa: E402
from tests.support import null_oracles as oracle  # noqa: E402
from tests.support.checkpoints import tensor, write  # noqa: E402
from tests.support.null_coverage import TENSOR, covered, sides_of  # noqa: E402
from tests.support.real_pairs import BASE, TARGETS  # noqa: E402

needs_data = pytest.mark.skipif(not BASE.exists(), reason="needs the project's data")
ALL = [oracle.MADE, *(pytest.param(target, marks=needs_data) for target in TARGETS)]

NAME = TENSOR.format(2)
CLOSE = {"rel": 1e-6, "abs": 1e-9}


@cache
def measured(target: str) -> Report:
    return report(BASE, BASE.parent / target, nulls=2, seed=3)


# --- what is drawn ---


@pytest.mark.parametrize("target", ALL)
def test_draws_keep_what_they_say(target: str) -> None:
    base, new = oracle.base_of(target)[NAME], oracle.state(target)[NAME]
    update, sizes = (new - base).float(), oracle.exponents(base)
    flipped = torch.from_numpy(with_flipped_signs(update.numpy(), generator(1, NAME)))
    assert torch.equal(flipped.abs(), update.abs()) and 0 < int((flipped != update).sum()) < int((update != 0).sum())
    signs = (flipped * update > 0)[update != 0].double()
    assert abs(float(signs.mean()) - 0.5) < 4 * 0.5 / math.sqrt(len(signs))
    shuffled = torch.from_numpy(SizeBins(sizes.numpy().astype(np.uint8).reshape(-1)).shuffled(update.numpy(), generator(1, NAME)))
    assert not torch.equal(shuffled, update)
    for size in sizes.unique():
        assert torch.equal(shuffled[sizes == size].sort().values, update[sizes == size].sort().values)


def test_each_place_of_a_size_is_as_likely() -> None:
    """A chi-square over 2,000 shuffles of where one value of each of two sizes comes to lie."""
    bins, values = SizeBins(np.array([5, 9, 5, 5, 9, 5, 5, 9], np.uint8)), np.array([1, 2, 0, 0, 0, 0, 0, 0.0])
    counts = sum(np.stack([(drawn := bins.shuffled(values, generator(0, n))) == 1, drawn == 2]) for n in range(2000))
    assert counts[0, [1, 4, 7]].sum() == counts[1, [0, 2, 3, 5, 6]].sum() == 0
    for row, places in ((0, [0, 2, 3, 5, 6]), (1, [1, 4, 7])):
        expected = 2000 / len(places)
        assert ((counts[row, places] - expected) ** 2 / expected).sum() < 20  # 0.9995 quantile of 4 degrees of freedom


def test_draws_depend_on_seed_and_name_alone() -> None:
    first = generator(7, "a", None, 0).random(4)
    assert np.array_equal(first, generator(7, "a", None, 0).random(4))
    others = [generator(*names).random(4) for names in ((8, "a", None, 0), (7, "b", None, 0), (7, "a", None, 1), (7, "a", 0, 0))]
    assert not any(np.array_equal(first, other) for other in others)


@needs_data
def test_a_report_has_the_same_draws_on_any_number_of_threads() -> None:
    target = BASE.parent / TARGETS[0]
    one, two = (report(BASE, target, nulls=3, threads=n) for n in (1, 2))
    assert one.null_rows == two.null_rows and one.to_bytes() == two.to_bytes()
    more = report(BASE, target, nulls=2)
    ranks = [[rank.nulls for t in found.tensors for rank in t.ranks or ()] for found in (one, more)]
    assert all(a is not None and b is not None and a.shuffled.rank[:2] == b.shuffled.rank for a, b in zip(*ranks, strict=True))


# --- each figure of each draw ---


@pytest.mark.parametrize("target", ALL)
def test_figures_of_draws_are_those_of_torch(target: str) -> None:
    base, new = oracle.base_of(target)[NAME], oracle.state(target)[NAME]
    sides = sides_of(base, new)
    found = matrix_nulls(sides, NullSettings(2, 5), (NAME,), None, 1)
    bins = SizeBins(sides.exponents)
    for n in range(2):
        change = torch.from_numpy(bins.shuffled(sides.change, generator(5, NAME, "shuffled", n)))
        flipped = torch.from_numpy(with_flipped_signs((new - base).float().numpy(), generator(5, NAME, "flipped", n)))
        for draws, update in ((found.flipped, flipped), (found.shuffled, change.bfloat16().float())):
            for figure, value in oracle.spectrum_figures(update).items():
                assert getattr(draws, figure)[n] == pytest.approx(value, **CLOSE), figure
        assert found.principal is not None
        turned = oracle.turned_figures(base, (base.float() + change).double(), found.principal.k)
        for figure, value in turned.items():
            assert getattr(found.principal.shuffled[n], figure) == pytest.approx(value, rel=1e-5, abs=2e-6), figure


@pytest.mark.parametrize("target", ALL)
def test_the_principal_part_is_that_of_torch(target: str) -> None:
    for name in (
        NAME,
        "model.layers.4.mlp.down_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
    ):
        base, new = oracle.base_of(target)[name], oracle.state(target)[name]
        principal = matrix_nulls(sides_of(base, new), NullSettings(2), (name,), None, 1).principal
        assert principal is not None and principal.k == min(base.shape) // 8
        mask, moved = oracle.principal_mask(base, principal.k), new != base
        assert (principal.mask, principal.changed, principal.inside) == tuple(int(x.sum()) for x in (mask, moved, mask & moved))
        mean, variance = oracle.by_size(oracle.exponents(base), moved, mask)
        assert principal.inside_by_size == pytest.approx(mean) and principal.variance_by_size == pytest.approx(variance)
        for figure, value in oracle.turned_figures(base, new, principal.k).items():
            assert getattr(principal.turned, figure) == pytest.approx(value, rel=1e-5, abs=2e-6), figure


@pytest.mark.parametrize("angle", [1e-12, 1e-7, 1e-3, 30.0, 44.9, 45.1, 60.0, 89.999, 90.0])
def test_angles_are_exact_near_both_ends(angle: float) -> None:
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    first, second = np.eye(5)[:, :2], np.array([[1, 0], [0, c], [0, s], [0, 0], [0, 0]], np.float64)
    assert principal_angles(first, second) == pytest.approx([0, angle], rel=1e-12, abs=1e-15)


@needs_data
@pytest.mark.parametrize("target", TARGETS)
def test_means_over_matrices_have_the_interval_of_means_of_draws(target: str) -> None:
    found = measured(target)
    ranks = [rank for t in found.tensors for rank in t.ranks or () if rank.nulls]
    assert len(ranks) == 32
    (stable,) = (row for row in found.null_rows if row.figure == "stable_rank")
    draws = torch.tensor([rank.nulls.shuffled.stable_rank for rank in ranks], dtype=torch.float64).mean(0)  # type: ignore[union-attr]
    half = 12.706204736 * float(draws.std()) * math.sqrt(1 + 1 / 2)
    assert (stable.shuffled.low, stable.shuffled.high) == pytest.approx((float(draws.mean()) - half, float(draws.mean()) + half))
    assert stable.value == pytest.approx(sum(rank.spectrum.stable_rank for rank in ranks) / 32)


# --- intervals ---


def test_student_quantiles() -> None:
    """Fisher and Yates, "Statistical Tables", table III."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 20: 2.086, 30: 2.042, 120: 1.980}
    assert {n: round(student_quantile(n), 3) for n in table} == table


def test_an_interval_needs_two_draws_and_knows_a_constant() -> None:
    with pytest.raises(ValueError, match="at least two draws, found 1"):
        prediction_interval([1.0])
    same = prediction_interval([0.1] * 7)
    assert (same.low, same.mean, same.high) == (0.1, 0.1, 0.1) and same.side(0.1) == 0 and same.side(0.2) == 1


def test_intervals_hold_a_further_normal_draw_in_95_of_100() -> None:
    random = np.random.default_rng(0)
    for draws in (2, 5, 20):
        held = sum(prediction_interval(random.normal(3, 2, draws).tolist()).side(random.normal(3, 2)) == 0 for _ in range(4000))
        assert abs(held / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.slow
@pytest.mark.parametrize("target", ALL)
def test_intervals_hold_torchs_own_shuffles(target: str) -> None:
    """All figures that are no counts, in 90 to 99 of 100 seeds; ``python -m tests.support.null_coverage`` prints the numbers."""
    for figure, times in covered(target, TENSOR.format(3), range(100)).items():
        assert times >= 90, (figure, times)
        assert times <= 99 or figure.split()[1] in ("rank", "effective_rank"), (figure, times)


@pytest.mark.parametrize(("nulls", "seed"), [(1, 0), (-1, 0), (1001, 0), (5, -1)])
def test_settings_are_checked(nulls: int, seed: int) -> None:
    with pytest.raises(CheckpointError, match=f"nulls must be 0 or from 2 to 1000, and seed not negative, found {nulls} and {seed}"):
        report(BASE, BASE.parent / TARGETS[0], nulls=nulls, seed=seed)


# --- overlaps ---


@pytest.mark.parametrize(("n", "a", "b"), [(7, 3, 4), (30, 1, 1), (100, 50, 99), (5, 5, 2), (9, 0, 4), (1, 1, 1)])
def test_the_hypergeometric_moments(n: int, a: int, b: int) -> None:
    mean, variance = oracle.by_size(torch.zeros(n), torch.arange(n) < a, torch.arange(n) >= n - b)
    found = shared_by_chance(np.array([n]), np.array([[a], [b]]))
    assert (found[0][0, 1], found[1][0, 1]) == pytest.approx((mean, variance), abs=1e-12)


def test_the_moments_of_bins_whose_squares_no_integer_holds() -> None:
    n, a, b = 3 << 33, 1 << 33, 1 << 32
    mean, variance = Fraction(a * b, n), Fraction(a * b * (n - a) * (n - b), n * n * (n - 1))
    found = shared_by_chance(np.array([n]), np.array([[a], [b]]))
    assert (found[0][0, 1], found[1][0, 1]) == pytest.approx((float(mean), float(variance)), rel=1e-12)


def test_which_large_matrices_have_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All small ones, of the large ones the middle one of each kind of module, of the largest the middle one of all."""
    monkeypatch.setattr(verbs.report, "MAX_PARALLEL_SIDE", 4)
    monkeypatch.setattr(verbs.report, "MAX_SIDE_BY_KIND", 8)
    sides = {"self_attn.q_proj": 8, "self_attn.k_proj": 4, "self_attn.v_proj": 8, "mlp.up_proj": 16, "mlp.down_proj": 16}
    names = {f"model.layers.{layer}.{kind}.weight": side for layer in range(3) for kind, side in sides.items()}
    units = np.arange(256, dtype="<u2") + 0x3C00
    paths = [
        write(tmp_path / f"{k}.safetensors", {n: tensor("BF16", (side, side), units[: side * side] + k) for n, side in names.items()})
        for k in range(2)
    ]
    found = report(*paths, rank="all", nulls=2)
    assert all(len(t.ranks or ()) == 1 for t in found.tensors)
    with_nulls = {t.name for t in found.tensors for rank in t.ranks or () if rank.nulls is not None}
    small = {name for name, side in names.items() if side == 4}
    assert with_nulls - small == {
        *(f"model.layers.1.self_attn.{kind}_proj.weight" for kind in "qv"),
        next(name for name in sorted(with_nulls) if names[name] == 16),
    }
    assert small <= with_nulls and sum(names[name] == 16 for name in with_nulls) == 1


def test_excess_and_z_are_those_of_torch(tmp_path: Path) -> None:
    base, updates = oracle.base_of(oracle.MADE)[NAME], [oracle.state(oracle.MADE)[NAME]]
    updates.append((base.float() + 2e-5 * torch.randn(base.shape, generator=torch.Generator().manual_seed(2))).bfloat16())
    paths = [
        write(tmp_path / f"{k}.safetensors", {NAME: tensor("BF16", tuple(side.shape), side.view(torch.int16).numpy())})
        for k, side in enumerate((base, *updates))
    ]
    (pair,) = overlap(paths[1:], paths[0]).pairs
    a, b = (oracle.changed(base, side).flatten() for side in updates)
    mean, variance = oracle.by_size(oracle.exponents(base).flatten(), a, b)
    both = int((a & b).sum())
    assert 0 < both < int(a.sum()) and variance > 1
    assert pair.z == pytest.approx((both - mean) / math.sqrt(variance), rel=1e-9)
    for value, count in ((pair.o1_excess, int(a.sum())), (pair.o2_excess, int(b.sum()))):
        assert value == pytest.approx((both / count - mean / count) / (1 - mean / count), rel=1e-9)


@needs_data
def test_excess_and_z_of_real_updates_are_those_of_torch() -> None:
    found, names = overlap([BASE.parent / name for name in TARGETS], BASE), list(oracle.state("tiny6m-base"))
    for pair in found.pairs:
        both = mean = variance = first = second = 0.0
        for name in names:
            base = oracle.state("tiny6m-base")[name]
            a, b = (oracle.changed(base, oracle.state(TARGETS[k])[name]).flatten() for k in (pair.first, pair.second))
            here, spread = oracle.by_size(oracle.exponents(base).flatten(), a, b)
            both, mean, variance = both + int((a & b).sum()), mean + here, variance + spread
            first, second = first + int(a.sum()), second + int(b.sum())
        assert pair.z == pytest.approx((both - mean) / math.sqrt(variance), rel=1e-6)
        for value, count in ((pair.o1_excess, first), (pair.o2_excess, second)):
            assert value == pytest.approx((both / count - mean / count) / (1 - mean / count), rel=1e-6)
