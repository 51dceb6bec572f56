"""``warmup``: compiles every kernel for every dtype, by running the verbs on a small pair that has them all."""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.errors import OutputError
from ckptdiff.format.dtypes import DTYPES, Bytes, Dtype
from ckptdiff.format.safetensors import predicted_header
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.kernels import cache, mask_ops
from ckptdiff.kernels.leaves import leaves_of_sums
from ckptdiff.live.patch import Patch, diff
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.verbs.apply import apply
from ckptdiff.verbs.compare import compare
from ckptdiff.verbs.make import make
from ckptdiff.verbs.overlap import overlap
from ckptdiff.verbs.report import report
from ckptdiff.verbs.verify import verify

Chance: TypeAlias = float | npt.NDArray[np.float64]

SIDE, MATRIX, LARGE = 64, 192, 1 << 17
"""Rows and columns of most tensors; of floats whose update's rank is taken from its Gram matrix; and elements of a tensor so
large that reports gather its moves."""
IN_MEMORY = {"U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "F16": "f2", "F32": "f4", "F64": "f8"}
"""Arrays of NumPy for the verbs of live models, of each width."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Where kernels are, how many were there, and how many were compiled now; a kernel is one function for one signature."""

    folder: Path
    read: int
    compiled: int


def warm_up(progress: Progress = no_progress) -> WarmUp:
    """Compile all kernels that are not in the cache (:mod:`ckptdiff.kernels.cache`), and keep them there.

    Args:
        progress: called with how many steps are done. The first time they take half a minute and more, later seconds.

    Raises:
        OutputError: they cannot be kept in the folder that ``CKPTDIFF_CACHE_DIR`` names, or, where it names none, in any.
    """
    before = len(cache.read_files), len(cache.compiled_kernels), len(cache.save_failures)
    try:
        with tempfile.TemporaryDirectory(prefix="ckptdiff-warmup-") as folder:
            steps = _steps(Path(folder))
            for done, step in enumerate(steps):
                progress("compiling", done, len(steps))
                step()
            progress("compiling", len(steps), len(steps))
    except OSError as error:
        raise OutputError(f"{tempfile.gettempdir()}: a small pair of checkpoints cannot be written there: {error.strerror}") from None
    first, last = cache.folders()[0], cache.folders()[-1]
    elsewhere = [path for path in cache.read_files[before[0] :] if path.parent != first]
    read, compiled = len(cache.read_files) - before[0], len(cache.compiled_kernels) - before[1]
    missing, unkept = compiled + len(elsewhere), cache.save_failures[before[2] :]
    if missing and first != last and os.environ.get(cache.ENVIRONMENT_VARIABLE):
        unkept = [f"{first}: {cache.why_unusable(first)}"]
    if unkept:
        raise OutputError(
            f"{unkept[0]}; {missing} kernels are missing: name another folder by {cache.ENVIRONMENT_VARIABLE}, "
            "or run warmup as a user who may write this one"
        )
    return WarmUp(last if missing else first, read, compiled)


def _steps(folder: Path) -> list[Callable[[], object]]:
    base, target, patch, sparse, out = (str(folder / f"{name}.safetensors") for name in ("base", "target", "patch", "sparse", "out"))
    old, new = _arrays(False), _arrays(True)
    return [
        lambda: _write_pair(Path(base), Path(target)),
        lambda: make(base, target, patch),
        lambda: make(base, target, sparse, codec="sparse"),
        lambda: apply(base, patch, out),
        lambda: apply(base, sparse, out, overwrite=True),
        lambda: verify(patch, base=base, target=out),
        lambda: compare(base, target),
        lambda: report(base, target, rank="all"),
        lambda: report(base, patch, rank="none"),
        lambda: overlap([patch, sparse, target], base),
        lambda: Mask.from_patch(patch, base),
        *(lambda codec=codec: _in_memory(old, new, codec) for codec in ("context", "sparse", "raw")),
        _mask,
        lambda: leaves_of_sums(np.zeros((1, 8), np.int64)),
    ]


def _tensors() -> dict[str, tuple[Dtype, tuple[int, ...], Chance]]:
    """Dtype, shape, and how likely units change."""
    found: dict[str, tuple[Dtype, tuple[int, ...], Chance]] = {}
    for name, dtype in DTYPES.items():
        found |= {f"{name}.{share}": (dtype, (SIDE, SIDE), share) for share in (0.02, 0.5, 1.0)}
        if name in ("BF16", "F16"):
            found[f"{name}.large"] = dtype, (LARGE,), 0.5
        if name in ("BF16", "F16", "F32", "F64"):
            found[f"{name}.matrix"] = dtype, (MATRIX, MATRIX), 0.02
    rows = np.where(np.arange(MATRIX) % 4, 0.02, 0.98)  # the coder then goes by how active a row is
    return found | {"rows": (DTYPES["BF16"], (MATRIX, SIDE), np.repeat(rows, SIDE))}


def _units(dtype: Dtype, count: int, chance: Chance, changed: bool) -> Bytes:
    """Bytes of numbers of about 1 where the dtype has such; and how some changed, by a few ulps, up and down."""
    rng = np.random.default_rng(0)
    one = {"F16": 15 << 10, "BF16": 127 << 7, "F32": 127 << 23, "C64": 127 << 23, "F64": 1023 << 52}.get(dtype.name, 16)
    units = (one + rng.integers(0, 64, count)).astype(dtype.unit)
    if changed:
        where = rng.random(count) < chance
        units[where] += rng.integers(-9, 9, int(where.sum())).astype(dtype.unit)
    return units.view(np.uint8)


def _write_pair(base: Path, target: Path) -> None:
    tensors = _tensors()
    sizes = {name: dtype.nbytes(shape) or 0 for name, (dtype, shape, _) in tensors.items()}
    header = predicted_header([(name, dtype.name, shape, sizes[name]) for name, (dtype, shape, _) in tensors.items()])
    for path in (base, target):
        with open(path, "xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name, (dtype, _, chance) in tensors.items():
                file.write(_units(dtype, sizes[name] // dtype.carrier, chance, path == target).tobytes())


def _arrays(changed: bool) -> dict[str, npt.NDArray[np.generic]]:
    return {
        f"{name}.{share}": _units(DTYPES[name], SIDE**2, share, changed).view(kind)
        for name, kind in IN_MEMORY.items()
        for share in (0.02, 0.5)
    }


def _in_memory(old: dict[str, npt.NDArray[np.generic]], new: dict[str, npt.NDArray[np.generic]], codec: str) -> None:
    model = {name: array.copy() for name, array in old.items()}
    with Patch.from_bytes(diff(old, new, codec=codec).to_bytes()) as patch:
        loaded = patch.load(model)
        loaded.apply_()
        loaded.revert_()
        patch.apply_(model)


def _mask() -> None:
    bits = np.zeros(1, np.uint8)
    for size in (1, 2, 4, 8):
        units = np.zeros(8, f"i{size}")
        mask_ops.zero_unmasked(units, bits)
        mask_ops.fill_unmasked(units, bits, units[0])
    for size in (4, 8):
        floats = np.zeros(8, f"f{size}")
        mask_ops.scale_masked(floats, bits, floats[0])
