"""Masks that need no training: random ones of the same sizes, and what a learning rate can move, against torch and numpy."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdiff import Mask
from ckptdiff.analysis.values import values_of
from ckptdiff.errors import CheckpointError
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.subnetwork.mask_guesses import largest_moved
from ckptdiff.units import percent
from tests.support.checkpoints import SHARED_DATA, random_tensor, tensor, write
from tests.support.commands import run
from tests.support.strategies import examples_run

torch = pytest.importorskip("torch")
FLOATS = ["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4"]


def exponents(bits: np.ndarray) -> np.ndarray:
    """Of BF16."""
    return bits.reshape(-1) >> 7 & 255


@settings(max_examples=examples_run(40), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_a_random_mask_has_the_same_sizes(tmp_path_factory: pytest.TempPathFactory, seed: int, density: float) -> None:
    """As many elements of each tensor and binary exponent; the same for the same seed, whatever tensors are beside."""
    rng = np.random.default_rng(seed)
    bits = {name: rng.integers(0, 1 << 16, shape).astype("<u2") for name, shape in (("w", (70, 61)), ("v", (333,)), ("z", (0,)))}
    path = write(tmp_path_factory.mktemp("base") / "b.safetensors", {k: tensor("BF16", v.shape, v) for k, v in bits.items()})
    mask = Mask.from_arrays({name: rng.random(array.shape) < density for name, array in bits.items()})
    found = mask.random(seed, path)
    for name, array in bits.items():
        sizes = [np.bincount(exponents(array)[m.flags(name).reshape(-1)], minlength=256) for m in (mask, found)]
        assert (sizes[0] == sizes[1]).all()
    assert found == mask.random(seed, path, threads=1) == mask.random(seed, base=path, by="size") and found.shapes == mask.shapes
    plain = mask.random(seed, by="tensor")
    assert plain.counts == mask.counts == mask.random(seed, path, by="tensor").counts
    alone = Mask.from_arrays({"w": mask.flags("w")})
    for control, of_all in ((alone.random(seed, path), found), (alone.random(seed), plain)):
        assert (control.flags("w") == of_all.flags("w")).all()
    if density == 0.3:
        assert len({tuple(np.flatnonzero(mask.random(k).flags("w"))) for k in range(3)}) == 3 and found != mask


def test_random_elements_are_evenly_spread(tmp_path: Path) -> None:
    """Over 400 seeds each element of a size is taken as often as any other, within five deviations."""
    bits = np.where(np.arange(40) < 25, 0x3F80, 0x4080).astype("<u2")
    path = write(tmp_path / "b.safetensors", {"w": tensor("BF16", (40,), bits)})
    mask = Mask.from_arrays({"w": [*[True] * 10, *[False] * 15, *[True] * 3, *[False] * 12]})
    for of_size, of_tensor in ((mask.random(k, path).flags("w"), mask.random(k).flags("w")) for k in range(3)):
        assert of_size[:25].sum() == 10 and of_size[25:].sum() == 3 and of_tensor.sum() == 13
    taken = sum(mask.random(k, path).flags("w").astype(int) for k in range(400))
    for low, high, share in ((0, 25, 10 / 25), (25, 40, 3 / 15)):
        assert (abs(taken[low:high] - 400 * share) < 5 * math.sqrt(400 * share * (1 - share))).all()


def test_complex_numbers_and_integers_have_sizes_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    base = {"c": random_tensor(rng, "C64", (300,)), "i": random_tensor(rng, "I32", (300,)), "f": random_tensor(rng, "F6_E2M3", (4, 100))}
    path = write(tmp_path / "b.safetensors", base)
    mask = Mask.from_arrays({name: rng.random(row[1]) < 0.3 for name, row in base.items()})
    found, parts = mask.random(1, path), np.frombuffer(base["c"][2], "<u4").reshape(-1, 2) >> 23 & 255
    assert found.counts == mask.counts
    sizes = [np.bincount(parts.max(1)[m.flags("c")], minlength=256).tolist() for m in (mask, found)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("step", [1e-45, 1e-8, 1e-6, 3e-4, 0.0625, 0.125, 1.0, 1e30])
def test_the_largest_number_that_a_step_moves(dtype: str, step: float) -> None:
    """By rational arithmetic over all bit patterns of small types, and around the found one of others."""
    found, bits = largest_moved(dtype, step), DTYPES[dtype].bits
    last = (1 << (bits - 1)) - 1
    near = {max(min(found + k, last), 0) for k in (-2, -1, 0, 1, 2)} | {0, 1, last}
    for magnitude in range(last + 1) if bits <= 8 else sorted(near):
        pair = np.array([magnitude, magnitude - 1 if magnitude else 1]).astype(f"<u{DTYPES[dtype].carrier}")
        here, other = (float(x) for x in values_of(pair, dtype))
        moved = math.isfinite(here) and math.isfinite(other) and abs(Fraction(here) - Fraction(other)) / 2 < Fraction(step)
        assert moved == (magnitude <= found), magnitude


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lr", [1e-6, 2.5e-5, 1e-3])
def test_a_prediction_is_what_torch_rounds_away(tmp_path: Path, dtype: str, lr: float) -> None:
    """All 16-bit floats: a step of the learning rate, up or down, changes the predicted ones; of the others it changes none, but where it
    falls between two numbers, just beyond half."""
    weights = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype))
    mask = Mask.predict({"w": weights}, lr).flags("w")
    wide = weights.double()
    moved = torch.zeros(len(weights), dtype=torch.bool)
    for sign in (1, -1):
        moved |= (wide + sign * lr).to(weights.dtype).double() != wide
    moved &= torch.isfinite(wide)
    assert (mask <= moved.numpy()).all()
    ties = moved.numpy() & ~mask
    gaps = (torch.nextafter(weights, torch.zeros_like(weights)).double() - wide).abs() if dtype == "float16" else None
    assert ties.sum() == 0 or (gaps is not None and (gaps.numpy()[ties] == 2 * lr).all())
    half = Mask.predict({"w": weights.float()}, lr, as_dtype=dtype)
    assert (half.flags("w") == mask).all()


def test_a_prediction_leaves_out_what_no_step_moves(tmp_path: Path) -> None:
    state = {"i": torch.arange(8), "c": torch.zeros(3, dtype=torch.complex64), "w": torch.tensor([0.0, 1.0, math.nan, math.inf, -1e-40])}
    mask = Mask.predict(state, 1e-9)
    assert mask.shapes == {"w": (5,)} and mask.flags("w").tolist() == [True, False, False, False, True]
    path = write(tmp_path / "f.safetensors", {"w": tensor("F8_E4M3FNUZ", (3,), bytes([0, 0x80, 0x81]))})
    assert Mask.predict(path, 1.0).flags("w").tolist() == [True, False, True]


def test_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0x3C00, 0x3E00, (60, 50)).astype("<u2")
    path = write(tmp_path / "b.safetensors", {"w": tensor("BF16", bits.shape, bits), "v": tensor("BF16", (4,), bytes(8))})
    a, b = (rng.random((60, 50)) < share for share in (0.3, 0.1))
    guess, truth = Mask.from_arrays({"w": a, "v": [True] * 4}), Mask.from_arrays({"w": b, "v": [False] * 4})
    score = guess.score(truth, path)
    assert (score.elements, score.truth, score.shared) == (a.sum() + 4, b.sum(), (a & b).sum())
    assert (score.precision, score.recall) == (guess.precision(truth), guess.recall(truth))
    assert score.random_precision == pytest.approx(a.sum() * b.sum() / 3000 / (a.sum() + 4))
    assert score.random_recall == pytest.approx(a.sum() / 3000)
    sizes = exponents(bits)
    counts = [np.bincount(sizes[m.reshape(-1)], minlength=256) for m in (a, b, np.ones_like(a))]
    assert score.precision_by_size == pytest.approx((counts[0] * counts[1] / np.maximum(counts[2], 1)).sum() / (a.sum() + 4))
    assert guess.score(truth).precision_by_size is None
    empty = Mask.from_arrays({"w": np.zeros((60, 50))})
    assert (empty.score(truth).precision, truth.score(empty).recall, empty.score(empty, path).precision_by_size) == (0.0, 0.0, None)


def test_errors(tmp_path: Path) -> None:
    mask = Mask.from_arrays({"w": [True, False]})
    path = write(tmp_path / "b.safetensors", {"w": tensor("U8", (3,), b"abc"), "v": tensor("U8", (1,), b"x")})
    for lr in (0, -1e-6, math.inf, math.nan):
        with pytest.raises(CheckpointError, match="lr: expected a positive number, found"):
            Mask.predict(path, lr)
    with pytest.raises(CheckpointError, match="base: expected the weights before training, by whose sizes elements are chosen, found none"):
        mask.random(0, by="size")
    with pytest.raises(CheckpointError, match="by: expected tensor or size, found 'sizes'"):
        mask.random(0, path, by="sizes")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"the mask has the tensor w of shape \[2\], b.safetensors has it as \[3\]: give the base"):
        mask.random(0, path)
    with pytest.raises(CheckpointError, match=r"the mask has the tensor u of shape .*b.safetensors has no such tensor"):
        Mask.from_arrays({"u": [True]}).random(0, path)
    with pytest.raises(CheckpointError, match=r"base: expected a path, an id on the Hub, .* or a ckptdiff\.Patch, found int"):
        mask.random(0, 7)


def test_the_command(tmp_path: Path) -> None:
    """``--predict`` and ``--random`` write what the methods give."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 0x3F00, (50, 20)).astype("<u2")
    paths = [write(tmp_path / f"{k}.safetensors", {"w": tensor("BF16", (50, 20), bits ^ (bits % 3 < k).astype("<u2"))}) for k in range(2)]
    out = tmp_path / "mask.safetensors"
    shown = run("mask", paths[0], "--predict", "1e-6", "-o", out).stdout
    guess = Mask.load(out)
    assert guess == Mask.predict(paths[0], 1e-6) and f"{len(guess):,} in 1 of 1 tensor" in shown
    value = json.loads(run("mask", paths[1], "--base", paths[0], "--random", "4", "-o", out, "--overwrite", "--json").stdout)
    truth = Mask.from_patch(paths[1], paths[0])
    assert Mask.load(out) == truth.random(4, paths[0]) and value["elements"] == len(truth)
    for options, text in (
        (["--predict", "1e-6", "--base", paths[0]], "--base does not go with --predict"),
        (["--predict", "1e-6", "--random", "1"], "--random does not go with --predict"),
        (["--predict", "0"], "0.0 is not in the range x>0"),
    ):
        wrong = run("mask", paths[1], *options, "-o", out, "--overwrite")
        assert wrong.exit_code == 2 and text in wrong.output


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")
@pytest.mark.parametrize(
    ("name", "lr", "row"),
    [
        ("grpo-lr1e-6", 1e-6, "GRPO, pure bf16"),
        ("sft-lr1e-5", 1e-5, "SFT, pure bf16"),
        ("grpo-fp32master-lr1e-6", 1e-6, "GRPO, fp32 masters"),
    ],
)
def test_what_the_learning_rate_tells_of_real_pairs(name: str, lr: float, row: str) -> None:
    """In pure bf16 the learning rate alone tells which weights change; the figures of docs/reports.md."""
    base = SHARED_DATA / "tiny6m-base" / "model.safetensors"
    truth = Mask.from_patch(SHARED_DATA / f"tiny6m-{name}" / "model.safetensors", base)
    score = Mask.predict(base, lr).score(truth, base)
    figures = map(percent, (score.precision, score.recall, score.random_precision, score.precision_by_size))
    line = " | ".join([row, *figures, name.rpartition("lr")[2]])
    assert f"| {line} |" in (Path(__file__).parents[2] / "docs" / "reports.md").read_text()
    if "pure" in row:
        controls = [truth.random(seed, base).score(truth).precision for seed in range(3)]
        assert score.precision > 0.95 and score.recall > 0.99 > 6 * score.random_precision and min(controls) > 0.97
