"""Ranks are those of torch, and the other figures those of a plain SVD; ``tests/verbs/test_report.py`` does the same on real pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ckptdiff.analysis import rank
from ckptdiff.analysis.rank import ENERGY_RANKS, expected_random_rank, spectrum
from ckptdiff.kernels.gram import sparse_gram
from tests.support.strategies import examples_run

RNG = np.random.default_rng(0)


def scattered(rows: int, columns: int, density: float) -> np.ndarray:
    return ((RNG.random((rows, columns)) < density) * RNG.choice([1, -1], (rows, columns)) * 2.0**-12).astype(np.float32)


MATRICES = {
    "dense": RNG.normal(size=(300, 200)).astype(np.float32),
    "scattered": scattered(200, 700, 0.02),
    "very scattered": scattered(500, 400, 0.002),
    "low rank": (RNG.normal(size=(260, 7)) @ RNG.normal(size=(7, 410))).astype(np.float32),
    "low rank and small": (RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 20))).astype(np.float32),
    "one row": RNG.normal(size=(1, 900)).astype(np.float32),
    "one column": RNG.normal(size=(900, 1)).astype(np.float32),
    "one": np.ones((1, 1), np.float32),
    "zeros": np.zeros((30, 50), np.float32),
    "scaled columns": (RNG.normal(size=(200, 300)) * 10.0 ** RNG.uniform(-9, 0, 300)).astype(np.float32),
    "huge": (RNG.normal(size=(150, 200)) * 2.0**100).astype(np.float32),
    "tiny": (RNG.normal(size=(150, 200)) * 2.0**-120).astype(np.float32),
    "denormal": (RNG.integers(-5, 6, (150, 200)) * 2.0**-149).astype(np.float32),
    "no rows": np.zeros((0, 5), np.float32),
    "no columns": np.zeros((5, 0), np.float32),
    "strided": RNG.normal(size=(300, 400)).astype(np.float32)[::-2, ::2],
    "bf16 product": (RNG.normal(size=(200, 8)) @ RNG.normal(size=(8, 300))).astype("<f4").view("<u4").__and__(0xFFFF0000).view("<f4"),
    "transposed": np.asfortranarray(RNG.normal(size=(150, 340)).astype(np.float32)).T,
    "equal rows": np.repeat(RNG.normal(size=(90, 300)).astype(np.float32), 2, axis=0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_rank_is_torchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    d = MATRICES[name]
    expected = int(torch.linalg.matrix_rank(torch.from_numpy(np.ascontiguousarray(d))))
    assert spectrum(d).rank == spectrum(d, "cpu").rank == expected


@pytest.mark.parametrize("name", [name for name in MATRICES if MATRICES[name].any()])
def test_figures_are_those_of_the_svd(name: str) -> None:
    d = MATRICES[name]
    s = np.linalg.svd(d.astype(np.float64), compute_uv=False)
    energy, found = np.cumsum(s**2) / np.sum(s**2), spectrum(d)
    assert (found.rows, found.columns, found.largest) == (*d.shape, min(d.shape))
    assert found.stable_rank == pytest.approx(np.sum((s / s[0]) ** 2), rel=1e-9)
    assert found.effective_rank == int(np.argmax(energy >= 0.99 * (1 - 1e-12)) + 1)
    assert found.top_energy == pytest.approx([energy[min(k, len(s)) - 1] for k in ENERGY_RANKS], rel=1e-9)
    assert found.singular_values[0] == pytest.approx(s[0], rel=1e-9) and len(found.singular_values) == min(len(s), 64)


def test_zeros_have_the_rank_0_and_nothing_has_a_whole_share() -> None:
    zero = spectrum(MATRICES["zeros"])
    assert (zero.rank, zero.stable_rank, zero.effective_rank, set(zero.top_energy)) == (0, 0.0, 0, {0.0})
    assert spectrum(np.zeros((0, 5), np.float32)).rank_share == 1.0


@pytest.mark.parametrize("rows", [20, 150])
@pytest.mark.parametrize("exponent", [1023, -1074])
def test_the_ends_of_float64(rows: int, exponent: int) -> None:
    """The power of two by which to divide must exist, and neither overflow nor underflow."""
    d = np.ldexp(RNG.integers(-1, 2, (rows, 200)).astype(np.float64), exponent)
    with np.errstate(over="ignore"):  # the singular values themselves exceed float64
        found = spectrum(d)
    assert found.rank == rows
    assert found.stable_rank == pytest.approx(spectrum(np.sign(d)).stable_rank, rel=1e-9)


@pytest.mark.parametrize("factor", [1 - 1e-4, 1 + 1e-4, 1 - 1e-2, 1 + 1e-2])
def test_next_to_the_tolerance(factor: float) -> None:
    """The Gram matrix's eigenvalues decide as the SVD in float64 does; torch's float32 is asked where it can tell."""
    q, p = (np.linalg.qr(RNG.normal(size=(160, 160)))[0] for _ in range(2))
    s = np.append(np.linspace(1, 0.1, 159), 160 * rank.FLOAT32_EPSILON * factor)
    d = (q * s) @ p.T
    assert spectrum(d).rank == (160 if factor > 1 else 159)
    if abs(factor - 1) > 1e-3:
        torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
        assert int(torch.linalg.matrix_rank(torch.from_numpy(d.astype(np.float32)))) == spectrum(d).rank


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_has_no_rank(bad: float) -> None:
    with pytest.raises(ValueError, match="infinities or NaNs"):
        spectrum(np.array([[1.0, bad]]))
    with pytest.raises(ValueError, match="not a matrix"):
        spectrum(np.ones(3))


@settings(max_examples=examples_run(40), deadline=None)
@example(rows=51, columns=51, inner=51, seed=6019, by_svd=0)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    inner=st.integers(0, 60),
    seed=st.integers(0, 2**32),
    by_svd=st.sampled_from([0, 128]),
)
def test_products_have_the_rank_of_their_factors(rows: int, columns: int, inner: int, seed: int, by_svd: int) -> None:
    """Integer factors, so that nothing rounds; with and without the path for small matrices."""
    rng = np.random.default_rng(seed)
    d = (rng.integers(-9, 10, (rows, inner)) @ rng.integers(-9, 10, (inner, columns))).astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "MAX_SVD_SIDE", by_svd)
        values = np.linalg.svd(d, compute_uv=False)
        tolerance = max(rows, columns) * rank.FLOAT32_EPSILON * values[0]  # a product may have a singular value below it, but not zero
        assume(not np.any(np.abs(values - tolerance) < 1e-6 * tolerance))
        assert spectrum(d).rank == np.count_nonzero(values > tolerance) <= inner


@pytest.mark.parametrize(("rows", "columns"), [(400, 400), (256, 768), (768, 256)])
@pytest.mark.parametrize("density", [0.0005, 0.001, 0.002, 0.01, 0.1])
def test_random_rank_is_what_random_matrices_have(rows: int, columns: int, density: float) -> None:
    """The mean of simulated matrices, within 4 % of the largest rank."""
    simulated = np.mean([spectrum(scattered(rows, columns, density) * RNG.random((rows, columns))).rank for _ in range(4)])
    assert abs(expected_random_rank(rows, columns, density) - simulated) < 0.04 * min(rows, columns)
    assert expected_random_rank(rows, columns, 0.0) == 0.0 and expected_random_rank(rows, columns, 1.0) == min(rows, columns)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "columns", "density"), [(1, 1, 1.0), (7, 300, 0.02), (130, 131, 0.1), (600, 1500, 0.1), (200, 5000, 0.001)]
)
def test_gram_of_a_sparse_update(dtype: type, rows: int, columns: int, density: float) -> None:
    """The product that looks for what is not zero, against NumPy's of the whole: exact, as these sums are."""
    rng = np.random.default_rng(rows)
    matrix = (rng.integers(-7, 8, (rows, columns)) * (rng.random((rows, columns)) < density) * 2.0**-9).astype(dtype)
    for threads in (1, 3):
        ordered = matrix if threads == 1 else np.asfortranarray(matrix)
        found = sparse_gram(ordered, np.count_nonzero(matrix, axis=0), 2.0**-8, threads)
        expected = (matrix.astype(np.float64) * 256) @ (matrix.astype(np.float64) * 256).T
        assert np.array_equal(np.tril(found), np.tril(expected))


def test_the_spectrum_is_the_same_by_both_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    update = (rng.normal(0, 1e-4, (300, 900)) * (rng.random((300, 900)) < 0.05)).astype(np.float32)
    sparse = spectrum(update, threads=2)
    monkeypatch.setattr("ckptdiff.analysis.rank.SPARSE_PRODUCT_COST", math.inf)
    dense = spectrum(update)
    assert (sparse.rank, sparse.effective_rank) == (dense.rank, dense.effective_rank) and sparse.rank > 290
    assert np.allclose(sparse.singular_values, dense.singular_values, rtol=1e-9)
