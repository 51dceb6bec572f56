"""Masks: where they come from, how they combine, and their files."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff import Mask
from ckptdiff.analysis.values import values_of
from ckptdiff.errors import CheckpointError, FormatError, IntegrityError, OutputError, UnsupportedError
from ckptdiff.format import canonical
from ckptdiff.subnetwork.smallest import smallest_weights
from tests.support.checkpoints import BITS, SHARED_DATA, perturb, random_tensor, tensor, write
from tests.support.commands import run
from tests.support.strategies import examples_run


def random_mask(rng: np.random.Generator, density: float = 0.3) -> Mask:
    shapes = {"a": (7, 9), "b": (64,), "c": (), "long": (40, 50)}
    return Mask.from_arrays({name: rng.random(shape) < density for name, shape in shapes.items()})


def test_a_patch_is_a_mask(tmp_path: Path) -> None:
    """Every dtype; patch, checkpoint, and a dtype's tolerance; elements, and not units, of types of less than a byte."""
    rng = np.random.default_rng(0)
    base = {dtype: random_tensor(rng, dtype, (6, 16)) for dtype in BITS}
    target = {dtype: perturb(rng, row, 0.2) for dtype, row in base.items()}
    write(tmp_path / "base.safetensors", base)
    write(tmp_path / "target.safetensors", target)
    ckptdiff.make(tmp_path / "base.safetensors", tmp_path / "target.safetensors", tmp_path / "patch.safetensors")
    mask = Mask.from_patch(tmp_path / "patch.safetensors", tmp_path / "base.safetensors")
    assert mask == Mask.from_patch(tmp_path / "target.safetensors", tmp_path / "base.safetensors", threads=1)
    for dtype, bits in BITS.items():
        sides = [int.from_bytes(side[dtype][2], "little") for side in (base, target)]
        elements = [[value >> bits * k & (1 << bits) - 1 for k in range(96)] for value in sides]
        expected = [a != b for a, b in zip(*elements, strict=True)]
        assert (mask.flags(dtype).reshape(-1).tolist() if any(expected) else expected) == expected, dtype
    near = Mask.from_patch(tmp_path / "patch.safetensors", tmp_path / "base.safetensors", atol=0.01)
    old, new = (values_of(np.frombuffer(side["BF16"][2], "<u2"), "BF16").astype(float) for side in (base, target))
    with np.errstate(invalid="ignore"):
        assert near.flags("BF16").reshape(-1).tolist() == (~(abs(new - old) <= 0.01) & (mask.flags("BF16").reshape(-1))).tolist()


def test_errors(tmp_path: Path) -> None:
    base = write(tmp_path / "base.safetensors", {"a": tensor("U8", (4,), b"abcd")})
    other = write(tmp_path / "other.safetensors", {"a": tensor("U8", (4,), b"abcx"), "b": tensor("U8", (1,), b"x")})
    with pytest.raises(CheckpointError, match=r"its tensor b \(1 in all\) has no counterpart in"):
        Mask.from_patch(other, base)
    with pytest.raises(CheckpointError, match="checkpoints do not name their base: give it with --base"):
        Mask.from_patch(other)
    with pytest.raises(CheckpointError, match=r"tensor a: has the shape \[2\] in one mask, \[3\] in another"):
        Mask.union(Mask.from_arrays({"a": [1, 1, 1]}), Mask.from_arrays({"a": [1, 1]}))


@settings(max_examples=examples_run(50), deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_masks_combine_as_sets(seed: int, least: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [random_mask(rng, density) for density in (0.0, 0.02, 0.4, 0.9)]
    names = {name for mask in masks for name in mask.shapes}
    votes = {name: sum(m.flags(name).astype(int) for m in masks) for name in names}
    found = Mask.vote(least, *masks)
    assert found == Mask.from_arrays({name: np.asarray(vote) >= least for name, vote in votes.items()})
    assert Mask.union(*masks) == Mask.vote(1, *masks) and Mask.intersection(*masks[1:]) == Mask.vote(3, *masks[1:])
    a, b = masks[2], masks[3]
    shared = sum(int((a.flags(name) & b.flags(name)).sum()) for name in names)
    assert a.shared(b) == shared and a.precision(b) == shared / a.total and a.recall(b) == shared / b.total


@settings(max_examples=examples_run(50), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.0, 0.005, 0.03, 0.5, 1.0]))
def test_masks_are_saved_and_loaded(tmp_path_factory: pytest.TempPathFactory, seed: int, density: float) -> None:
    """A mask comes back; the same mask gives the same bytes; the safetensors library reads them."""
    folder = tmp_path_factory.mktemp("masks")
    mask = random_mask(np.random.default_rng(seed), density)
    size = mask.save(folder / "a.safetensors")
    assert Mask.load(folder / "a.safetensors") == mask and size == (folder / "a.safetensors").stat().st_size
    Mask.load(folder / "a.safetensors").save(folder / "b.safetensors")
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    stored = safetensors_numpy.load_file(folder / "a.safetensors")
    assert stored.keys() == mask.rows.keys() <= mask.shapes.keys()
    for name, part in stored.items():
        if part.dtype == np.uint32:
            assert part.tolist() == np.flatnonzero(mask.flags(name)).tolist() and 4 * len(part) < len(mask.bits[name])
    with pytest.raises(OutputError, match="exists"):
        mask.save(folder / "a.safetensors")
    mask.save(folder / "a.safetensors", overwrite=True)


def test_a_mask_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """The library that writes it has errors of its own."""
    mask = Mask.from_arrays({"w": np.ones(1 << 20, np.bool_)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(ckptdiff.OutputError, match="the mask: cannot be written: File too large"):
            mask.save(tmp_path / "the mask")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "plain").touch()
    mask.save(tmp_path / "the mask")
    assert (tmp_path / "the mask").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    mask = Mask.from_arrays({"few": np.arange(1000) == 77, "many": np.arange(13) % 2 == 0})
    mask.save(path)
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    for cut in (3, n, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(FormatError, match="not a mask"):
            Mask.load(tmp_path / "cut")
    for k in range(8 + n, len(data)):
        broken = bytearray(data)
        broken[k] ^= 4
        (tmp_path / "flip").write_bytes(broken)
        with pytest.raises((IntegrityError, FormatError)):
            Mask.load(tmp_path / "flip")
    for changes, text in (
        ({"few": ("U32", [1000])}, "its tensors do not stand in the order and form|has the digest|positions"),
        ({"few": ("U32", [77, 77])}, "expected positions below 1000, rising"),
        ({"few": ("U32", [])}, "expected positions below 1000, rising"),
        ({"few": ("U8", np.packbits(np.arange(1000) == 77, bitorder="little"))}, "do not stand in the order and form of spec/mask-v1.md"),
        ({"many": ("U8", [0x55, 0x35])}, "none of their bits past the last element"),
        ({"many": ("U8", [0, 0])}, "and not all zero"),
        ({"many": ("U8", [0x55])}, "expected 2 bytes"),
        ({"many": ("I8", [1, 1])}, "expected U8 or U32 of one dimension, found I8"),
        ({"other": ("U32", [1])}, "has tensors that are not among its shapes"),
    ):
        parts = {"few": ("U32", [77]), "many": ("U8", [0x55, 0x15])} | changes
        arrays = {name: np.asarray(row, "<u4" if dtype == "U32" else "u1") for name, (dtype, row) in parts.items()}
        value = json.loads(header["__metadata__"]["ckptdiff-mask"])
        del value["digest"]
        digest = xxhash.xxh3_128_hexdigest(b"".join(a.tobytes() for a in arrays.values()) + canonical.dumps(value))
        text_ = canonical.dumps({**value, "digest": digest}).decode()
        made = {name: tensor(parts[name][0], (len(a),), a.tobytes()) for name, a in arrays.items()}
        write(tmp_path / "made.safetensors", made, {"ckptdiff-mask": text_})
        with pytest.raises((FormatError, IntegrityError), match=text):
            Mask.load(tmp_path / "made.safetensors")
    good = json.loads(header["__metadata__"]["ckptdiff-mask"])
    stored = {"few": tensor("U32", (1,), np.array([77], "<u4")), "many": tensor("U8", (2,), bytes([0x55, 0x15]))}

    def sealed(changes: dict[str, object], parts: dict = stored) -> str:
        value = {key: member for key, member in {**good, **changes}.items() if key != "digest" and member is not None}
        digest = xxhash.xxh3_128_hexdigest(b"".join(data for _, _, data in parts.values()) + canonical.dumps(value))
        return canonical.dumps({**value, "digest": digest}).decode()

    write(tmp_path / "made.safetensors", stored, {"ckptdiff-mask": sealed({})})
    assert Mask.load(tmp_path / "made.safetensors") == mask
    for metadata, text in (
        ({"ckptdiff-mask": sealed({}), "format": "pt"}, "expected the metadata ckptdiff-mask alone"),
        ({"ckptdiff-mask": sealed({}) + " "}, "not in canonical form"),
        ({"ckptdiff-mask": sealed({"version": 2})}, "a mask of version 2, expected 1: upgrade ckptdiff"),
        ({"ckptdiff-mask": sealed({"format": "mask"})}, "not a mask: its format is"),
        ({"ckptdiff-mask": sealed({"more": 1})}, 'unknown member "more"'),
        ({"ckptdiff-mask": sealed({"shapes": None})}, "shapes"),
        ({"ckptdiff-mask": sealed({"shapes": [1]})}, "shapes"),
        ({"ckptdiff-mask": sealed({"shapes": {"few": 1000, "many": [13]}})}, "shapes.few: expected a list of at most 32 integers"),
        ({"ckptdiff-mask": sealed({"shapes": {"few": [-1000], "many": [13]}})}, "expected an integer of at least 0"),
        ({"ckptdiff-mask": sealed({"shapes": {"few": [1 << 40, 1 << 40], "many": [13]}})}, "more than 281474976710656 elements"),
        ({"ckptdiff-mask": sealed({"shapes": {"few": [1 << 33], "many": [13]}})}, "expected U8 for 8589934592 elements"),
        ({"ckptdiff-mask": sealed({"shapes": {"few": [1000], "many": [13], "": [1]}})}, "expected 1 to 4096 bytes"),
    ):
        write(tmp_path / "made.safetensors", stored, metadata)
        kind = UnsupportedError if "upgrade" in text or "unknown" in text else FormatError
        with pytest.raises(kind, match=text):
            Mask.load(tmp_path / "made.safetensors")
    turned = dict(reversed(stored.items()))
    write(tmp_path / "made.safetensors", turned, {"ckptdiff-mask": sealed({}, turned)})
    with pytest.raises(FormatError, match="do not stand in the order and form"):
        Mask.load(tmp_path / "made.safetensors")
    write(tmp_path / "plain.safetensors", {"a": tensor("U8", (1,), b"x")})
    with pytest.raises(FormatError, match="expected the metadata ckptdiff-mask alone; ckptdiff mask PATCH -o FILE makes one"):
        Mask.load(tmp_path / "plain.safetensors")


def test_the_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    base = {"w": random_tensor(rng, "BF16", (50, 20))}
    target = {"w": perturb(rng, base["w"], 0.1)}
    paths = [write(tmp_path / "base.safetensors", base), write(tmp_path / "target.safetensors", target)]
    ckptdiff.make(*paths, tmp_path / "patch.safetensors")
    out = tmp_path / "mask.safetensors"
    shown = run("mask", tmp_path / "patch.safetensors", "--base", paths[0], "-o", out).stdout
    mask = Mask.load(out)
    assert f"{mask.total:,} in 1 of 1 tensor (" in shown
    value = json.loads(run("mask", paths[1], "--base", paths[0], "-o", out, "--overwrite", "--json").stdout)
    assert value["elements"] == mask.total == value["tensors"]["w"] and value["size"] == out.stat().st_size
    for path in (paths[0], tmp_path / "patch.safetensors"):
        before = path.read_bytes()
        ruined = run("mask", tmp_path / "patch.safetensors", "--base", paths[0], "-o", path, "--overwrite")
        assert ruined.exit_code == 3 and "the output is the input" in ruined.output and path.read_bytes() == before
    again = run("mask", tmp_path / "patch.safetensors", "-o", out, "--overwrite")
    assert again.exit_code == 3 and "does not say which repo has its base" in again.output


def test_guesses_from_magnitude(tmp_path: Path) -> None:
    values = np.array([[0.5, -0.001, 3.0, -0.25], [0.002, 1.0, -2.0, 0.1]], np.float32)
    write(tmp_path / "base.safetensors", {"w": tensor("F32", (2, 4), values)})
    like = Mask.from_arrays({"w": np.arange(8).reshape(2, 4) < 3})
    found = smallest_weights(tmp_path / "base.safetensors", like)
    assert found.flags("w").tolist() == [[False, True, False, False], [True, False, False, True]]
    assert found.precision(like) == found.recall(like) == 1 / 3


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")
def test_masks_of_real_pairs(tmp_path: Path) -> None:
    base = SHARED_DATA / "tiny6m-base" / "model.safetensors"
    targets = [SHARED_DATA / f"tiny6m-{name}" / "model.safetensors" for name in ("grpo-lr1e-6", "sft-lr1e-5")]
    masks = [Mask.from_patch(target, base) for target in targets]
    rows = ckptdiff.overlap(targets, base).pairs[0]
    assert masks[0].precision(masks[1]) == rows.o1 and masks[1].precision(masks[0]) == rows.o2
    small = [mask.save(tmp_path / f"{k}.safetensors") for k, mask in enumerate(masks)]
    assert small[0] < 4 * masks[0].total + 20_000 and small[1] < 700_000
    guess = smallest_weights(base, masks[0])
    assert guess.precision(masks[0]) > 0.5 > 20 * masks[0].random(0).precision(masks[0])
