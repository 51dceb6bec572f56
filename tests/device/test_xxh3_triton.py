"""Triton's kernels, run on a CPU by Triton's interpreter; ``tests/device/test_gpu.py`` runs them on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from ckptdiff.device import leaves, xxh3_triton  # noqa: E402

CODE = """
import numpy as np, torch
from ckptdiff.device import leaves
from ckptdiff.format.digests import BLOCK, leaves_of

kernels = leaves._kernels(torch.device("cpu"))
assert kernels is not None
leaves._sums = None  # torch's way
leaves._accumulate = lambda blocks: kernels(blocks, *leaves._words(torch.device("cpu")))
data = np.random.default_rng(3).integers(0, 256, 2 * BLOCK + 100, dtype=np.uint8)
data[:BLOCK] = 255
parts = [data, data[: BLOCK - 1], data[3 : BLOCK + 3], data[5:]]  # the last two are not aligned
assert leaves.leaf_digests([torch.from_numpy(part) for part in parts]) == [leaves_of(part) for part in parts]
"""


@pytest.mark.slow
def test_xxh3_of_triton_is_xxhash() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", CODE], check=True, timeout=300, env={**os.environ, "TRITON_INTERPRET": "1"})


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("target", [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)], ids=str)
def test_they_compile(target: tuple[str, int | str, int]) -> None:
    """They compile to the machine code of an A100, H100, B200 and MI300X on a machine without any of these."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kinds = {"addresses": "*i64", "keys": "*i64", "sums": "*i64", "start": "*i64", "secret": "*i64", "accumulators": "*i64", "count": "i32"}
    for kernel, constants in (
        (xxh3_triton.add_stripes, {"steps": xxh3_triton.STEPS_PER_LEAF, "together": xxh3_triton.STEPS_PER_PROGRAM}),
        (xxh3_triton.scramble, {"steps": xxh3_triton.STEPS_PER_LEAF, "leaves": xxh3_triton.LEAVES_PER_PROGRAM}),
    ):
        signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
        assert compile(source, target=GPUTarget(*target)).asm


def test_where_they_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other devices, and where Triton cannot compile, torch's operations hash."""
    monkeypatch.setattr(xxh3_triton, "accumulate", lambda *_: torch.zeros(1, 8, dtype=torch.int64))
    with pytest.warns(
        UserWarning, match=r"kernels do not run on cpu \(they give another digest than the library\): torch's operations hash"
    ):
        assert leaves._kernels.__wrapped__(torch.device("cpu")) is None
    monkeypatch.setattr(xxh3_triton, "accumulate", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"kernels do not run on cpu \(ZeroDivisionError: division by zero\): torch's operations hash"):
        assert leaves._kernels.__wrapped__(torch.device("cpu")) is None
