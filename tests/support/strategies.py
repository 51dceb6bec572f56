"""Hypothesis strategies: tensors of every dtype, pairs of checkpoints, and blocks that are hard on coders."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tests.support.checkpoints import BITS, TensorData, carrier, tensor

SHARE = float(os.environ.get("CKPTDIFF_TEST_EXAMPLES", "1"))
"""Which share of its examples a property test runs: CI has no time for all of them but before a release (``.ci/run``)."""


def examples_run(examples: int) -> int:
    """How many of a test's examples are run."""
    return max(round(SHARE * examples), min(examples, 5))


def quick(examples: int) -> Any:
    """Settings of every test here: the same examples in each run, no clock."""
    return settings(max_examples=examples_run(examples), deadline=None, derandomize=True, database=None)


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = TEXT.filter(lambda name: name and name != "__metadata__")
SEEDS = st.integers(0, 2**32 - 1)
DTYPE_NAMES = st.sampled_from(sorted(BITS))
FLOATS = ("F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F16", "BF16", "F32", "F64", "C64")


def fill(rng: np.random.Generator, mode: str, size: int) -> bytes:
    """``size`` bytes: of random bits, few values, zeros, ones, or in long runs."""
    if mode == "random":
        return rng.bytes(size)
    if mode == "few":
        return rng.choice(np.frombuffer(rng.bytes(3), np.uint8), size).tobytes()
    if mode == "runs":
        return np.repeat(np.frombuffer(rng.bytes(size // 50 + 1), np.uint8), 50)[:size].tobytes()
    return {"zeros": b"\x00", "ones": b"\xff"}[mode] * size


MODES = st.sampled_from(["random", "few", "zeros", "ones", "runs"])


@st.composite
def tensors(draw: Callable[[Any], Any]) -> TensorData:
    dtype = draw(DTYPE_NAMES)
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    if BITS[dtype] < 8:
        shape.append(4)
    size = math.prod(shape) * BITS[dtype] // 8
    return tensor(dtype, shape, fill(np.random.default_rng(draw(SEEDS)), draw(MODES), size))


CAST_TO = {"BF16": "F32", "F16": "F32", "F32": "BF16"}


def cast_bits(data: TensorData) -> TensorData:
    """The cast of spec section 8, one number at a time; the tensor itself where there is none."""
    dtype, shape, raw = data
    to = CAST_TO.get(dtype)
    if to is None:
        return data
    bits = [int(x) for x in np.frombuffer(raw, f"<u{BITS[dtype] // 8}")]
    if dtype == "BF16":
        return tensor(to, shape, np.array([x << 16 for x in bits], "<u4"))
    if dtype == "F32":
        half = [(x >> 16) | 0x40 if x & 0x7FFFFFFF > 0x7F800000 else (x + 0x7FFF + (x >> 16 & 1)) >> 16 for x in bits]
        return tensor(to, shape, np.array(half, "<u2"))
    wide = []
    for x in bits:
        sign, exponent, mantissa = x >> 15, x >> 10 & 31, x & 1023
        if exponent == 31:
            wide.append(sign << 31 | 0x7F800000 | mantissa << 13)
        else:
            value = mantissa * 2.0**-24 if exponent == 0 else (1024 + mantissa) * 2.0 ** (exponent - 25)
            wide.append(sign << 31 | int(np.float32(value).view(np.uint32)))
    return tensor(to, shape, np.array(wide, "<u4"))


def change(rng: np.random.Generator, data: TensorData, share: float) -> TensorData:
    dtype, shape, raw = data
    out = np.frombuffer(raw, np.uint8).copy()
    where = rng.random(len(out)) < share
    out[where] = rng.integers(0, 256, int(where.sum()))
    return dtype, shape, out.tobytes()


RELATIONS = ("same", "changed", "dense", "resized", "cast", "cast and changed", "dtype", "prefix", "moved", "copied", "removed", "added")


@st.composite
def pairs(draw: Callable[[Any], Any]) -> tuple[dict[str, TensorData], dict[str, TensorData]]:
    """Tensors of a base and a target, each target tensor in a drawn relation to a base tensor."""
    base: dict[str, TensorData] = {}
    target: dict[str, TensorData] = {}
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    for name in names:
        data, relation, rng = draw(tensors()), draw(st.sampled_from(RELATIONS)), np.random.default_rng(draw(SEEDS))
        if relation != "added":
            base[name] = data
        dtype, shape, raw = data
        if relation in ("changed", "dense"):
            data = change(rng, data, 0.05 if relation == "changed" else 0.9)
        elif relation == "resized" and shape and shape[0] and BITS[dtype] >= 8:
            rows = draw(st.integers(0, 9))
            grown = raw + fill(rng, draw(MODES), len(raw) * 9)
            data = change(rng, (dtype, (rows, *shape[1:]), grown[: len(raw) // shape[0] * rows]), draw(st.sampled_from([0, 0.1])))
        elif relation.startswith("cast"):
            data = change(rng, cast_bits(data), 0.0 if relation == "cast" else 0.1)
        elif relation == "dtype" and dtype in ("I64", "F64", "U64"):
            data = ("I64" if dtype != "I64" else "F64", shape, raw)
        elif relation == "prefix":
            name = draw(st.sampled_from(["model.", "module.", "_orig_mod."])) + name
            data = change(rng, data, draw(st.sampled_from([0, 0.05])))
        elif relation == "moved":
            name = f"{name} moved"
        elif relation == "copied":
            data = change(rng, data, 0.5)
            target.setdefault(f"{name} copied", data)
        if relation != "removed":
            target.setdefault(name, data)
    order = draw(st.permutations(sorted(target)))
    return base, {name: target[name] for name in order}


DAMAGE = st.tuples(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3), st.floats(0, 1))
"""Positions and the bytes that are put there, and the share of a coded form that is kept."""
METADATA = st.none() | st.dictionaries(TEXT, TEXT, max_size=3)
FRAMES = st.tuples(METADATA, st.integers(1, 16), st.booleans())


@st.composite
def units(draw: Callable[[Any], Any], width: int, count: int) -> np.ndarray:
    """Unsigned integers that are hard on coders: all bits, few values, extremes, long runs."""
    rng, top = np.random.default_rng(draw(SEEDS)), 1 << (8 * width - 1)
    extremes = [0, 1, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 0x7F, 0xFE, 0xFF]
    mode = draw(st.sampled_from(["random", "few", "extremes", "runs", "constant"]))
    if mode == "random":
        return np.frombuffer(rng.bytes(count * width), f"<u{width}").copy()
    if mode == "runs":
        return np.repeat(np.frombuffer(rng.bytes((count // 40 + 1) * width), f"<u{width}"), 40)[:count].copy()
    values = extremes if mode == "extremes" else [draw(st.integers(0, 2 * top - 1)) for _ in range(3 if mode == "few" else 1)]
    return rng.choice(np.array([value % (2 * top) for value in values], f"<u{width}"), count)


@st.composite
def blocks(draw: Callable[[Any], Any]) -> tuple[str, np.ndarray, np.ndarray]:
    """A dtype, and the bytes of a base block and of a target block that has some of its units from the base."""
    dtype = draw(DTYPE_NAMES)
    count = draw(st.sampled_from([1, 2, 15, 16, 17, 255, 256, 300, 1000]))
    base, target = draw(units(carrier(dtype), count)), draw(units(carrier(dtype), count))
    kept = np.random.default_rng(draw(SEEDS)).random(count) < draw(st.sampled_from([0, 0.5, 0.99, 1]))
    target = np.where(kept, base, target).astype(base.dtype)
    return dtype, base.view(np.uint8), target.view(np.uint8)
