"""torch and its part of the safetensors library as independent judges; skipped where torch is not installed. CI installs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checkpoints import BITS, TensorData
from tests.support.safetensors_views import library_view, our_view
from tests.support.strategies import METADATA, NAMES, quick, tensors
from tests.support.ulp_distances import zigzags

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch, or its CPU build, to run these")
safetensors_torch = pytest.importorskip("safetensors.torch")

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "U64": torch.uint64,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "C64": torch.complex64,
    "U32": torch.uint32, "U16": torch.uint16, "F8_E8M0": torch.float8_e8m0fnu, "F4": torch.float4_e2m1fn_x2,
}  # fmt: skip


TORCH_FLOATS = {
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@pytest.mark.parametrize("name", TORCH_FLOATS)
def test_ulp_distance_keeps_the_order_of_numbers(name: str) -> None:
    """Over all finite values: a larger number has a larger rank, and only the two zeros share a number."""
    bits = BITS[name]
    patterns = np.arange(1 << bits, dtype=f"<u{bits // 8}")
    values = torch.from_numpy(patterns.view(f"<i{bits // 8}").copy()).view(TORCH_FLOATS[name]).to(torch.float64).numpy()
    z = zigzags(name, np.full_like(patterns, (1 << bits) - 1), patterns).astype(np.int64)
    ranks = np.where(z & 1, -(z >> 1) - 1, z >> 1) % (1 << bits)  # distance from the lowest of all patterns
    finite = np.isfinite(values)
    by_rank = values[finite][np.argsort(ranks[finite])]
    steps = np.diff(by_rank)
    assert len(steps) > 200 and np.all(steps >= 0)
    assert by_rank[:-1][steps == 0].tolist() == ([] if name.endswith("FNUZ") else [0.0])


def as_torch(data: TensorData) -> object:
    dtype, shape, raw = data
    if dtype == "F4":
        shape = (*shape[:-1], shape[-1] // 2)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return flat.view(TORCH_DTYPES[dtype]).reshape(tuple(shape))


@quick(80)
@given(st.dictionaries(NAMES, tensors().filter(lambda t: t[0] in TORCH_DTYPES), max_size=5), METADATA)
def test_files_that_the_library_writes(found: dict[str, TensorData], metadata: dict[str, str] | None) -> None:
    """Whatever save_file writes, for every dtype it knows, is read with the same names, dtypes, shapes and bytes."""
    metadata = metadata or None  # safetensors 0.8.0 writes no valid JSON for neither tensors nor metadata: {},"__metadata__":{}}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.safetensors"
        safetensors_torch.save_file({key: as_torch(data) for key, data in found.items()}, path, metadata)
        assert our_view(path) == found == library_view(path.read_bytes())


def test_no_dtype_that_torch_can_save_is_missing() -> None:
    """The library's torch dtypes are all in our table; torch has no F6."""
    assert set(safetensors_torch._TYPES) <= set(TORCH_DTYPES) == set(BITS) - {"F6_E2M3", "F6_E3M2"}
