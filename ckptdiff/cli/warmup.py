"""``warmup`` compiles every kernel for every dtype, by running the verbs on a small pair of checkpoints that has all dtypes."""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs import context
from ckptdiff.errors import OutputError
from ckptdiff.format.dtypes import DTYPES, Bytes, Dtype
from ckptdiff.format.safetensors import predicted_header
from ckptdiff.io.parallel import Progress, no_progress
from ckptdiff.kernels import cache, decode_files, encode_files, mask_ops
from ckptdiff.kernels.leaves import leaves_of_sums
from ckptdiff.live.patch import Patch, diff
from ckptdiff.subnetwork.mask import Mask
from ckptdiff.verbs.apply import apply
from ckptdiff.verbs.compare import compare
from ckptdiff.verbs.compose import compose
from ckptdiff.verbs.make import make
from ckptdiff.verbs.overlap import overlap
from ckptdiff.verbs.report import report
from ckptdiff.verbs.verify import verify

Probability: TypeAlias = float | npt.NDArray[np.float64]
"""Probability that a unit changes, of all units or of each of them."""

SIDE = 64
"""Rows and columns of most tensors."""
GRAM_SIDE = 192
"""Rows and columns of matrices whose rank is taken from the Gram matrix."""
LARGE_TENSOR = 1 << 17
"""Elements of a tensor that is so large that reports merge equal moves."""
ARRAY_TYPES = {"U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "F16": "f2", "F32": "f4", "F64": "f8"}
"""NumPy's types, of each width, of the arrays on which the verbs of live models are run."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The result of :func:`warm_up`. A kernel is one function for one signature."""

    folder: Path
    """Where the kernels are kept."""
    read: int
    """Number of kernels that had been compiled before."""
    compiled: int
    """Number of kernels that were compiled now."""


def warm_up(progress: Progress = no_progress) -> WarmUp:
    """Compile all kernels that are not in the cache (:mod:`ckptdiff.kernels.cache`), and keep them there.

    Args:
        progress: called with how many steps are done. The first time they take half a minute or more, later seconds.

    Raises:
        OutputError: kernels cannot be kept in the folder that ``CKPTDIFF_CACHE_DIR`` names, or, if it names none, in any folder.
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
    """Calls that together run every kernel for every dtype."""
    names = ("base", "target", "patch", "sparse", "out", "back", "once")
    base, target, patch, sparse, out, back, once = (str(folder / f"{name}.safetensors") for name in names)
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
        lambda: make(target, base, back, codec="sparse"),
        lambda: compose([sparse, back, sparse], output=once),
        *(lambda codec=codec: _in_memory(old, new, codec) for codec in ("context", "sparse", "raw")),
        lambda: _run_file_kernels(Path(base)),
        _run_mask_kernels,
        _name_what_is_wrong,
        lambda: leaves_of_sums(np.zeros((1, 8), np.int64)),
    ]


def _tensors() -> dict[str, tuple[Dtype, tuple[int, ...], Probability]]:
    """Dtype, shape and probability of change of each tensor of the pair."""
    tensors: dict[str, tuple[Dtype, tuple[int, ...], Probability]] = {}
    for name, dtype in DTYPES.items():
        tensors |= {f"{name}.{share}": (dtype, (SIDE, SIDE), share) for share in (0.02, 0.5, 1.0)}
        if name in ("BF16", "F16"):
            tensors[f"{name}.large"] = dtype, (LARGE_TENSOR,), 0.5
        if name in ("BF16", "F16", "F32", "F64"):
            tensors[f"{name}.matrix"] = dtype, (GRAM_SIDE, GRAM_SIDE), 0.02
    rows = np.where(np.arange(GRAM_SIDE) % 4, 0.02, 0.98)  # rows so different that the coder takes the activity of a row as context
    return tensors | {"rows": (DTYPES["BF16"], (GRAM_SIDE, SIDE), np.repeat(rows, SIDE))}


def _units(dtype: Dtype, count: int, probability: Probability, changed: bool) -> Bytes:
    """Bytes of units that are numbers of about 1 where the dtype has such; with ``changed`` some of them moved by a few ulps, up or
    down."""
    rng = np.random.default_rng(0)
    one = {"F16": 15 << 10, "BF16": 127 << 7, "F32": 127 << 23, "C64": 127 << 23, "F64": 1023 << 52}.get(dtype.name, 16)
    units = (one + rng.integers(0, 64, count)).astype(dtype.unit)
    if changed:
        where = rng.random(count) < probability
        units[where] += rng.integers(-9, 9, int(where.sum())).astype(dtype.unit)
        if dtype.carrier > 1:
            units[::97] += dtype.unit.type(1000)  # so far that the codec sparse has escapes
    return units.view(np.uint8)


def _write_pair(base: Path, target: Path) -> None:
    tensors = _tensors()
    sizes = {name: dtype.nbytes(shape) or 0 for name, (dtype, shape, _) in tensors.items()}
    header = predicted_header([(name, dtype.name, shape, sizes[name]) for name, (dtype, shape, _) in tensors.items()])
    for path in (base, target):
        with open(path, "xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name, (dtype, _, probability) in tensors.items():
                file.write(_units(dtype, sizes[name] // dtype.carrier, probability, path == target).tobytes())


def _arrays(changed: bool) -> dict[str, npt.NDArray[np.generic]]:
    return {
        f"{name}.{share}": _units(DTYPES[name], SIDE**2, share, changed).view(kind)
        for name, kind in ARRAY_TYPES.items()
        for share in (0.02, 0.5)
    }


def _in_memory(old: dict[str, npt.NDArray[np.generic]], new: dict[str, npt.NDArray[np.generic]], codec: str) -> None:
    model = {name: array.copy() for name, array in old.items()}
    with Patch.from_bytes(diff(old, new, codec=codec).to_bytes()) as patch:
        loaded = patch.load(model)
        loaded.apply_()
        loaded.revert_()
        patch.apply_(model)


def _name_what_is_wrong() -> None:
    """Decode blocks that break a rule: what says which has kernels of its own."""
    for dtype in DTYPES.values():
        with suppress(ValueError):
            context.unpack(memoryview(b"\1\0"), np.zeros(8 * dtype.carrier, np.uint8), 8 * dtype.carrier, dtype)


def _run_file_kernels(path: Path) -> None:
    """Run the kernels that read files, which the verbs use for checkpoints of hundreds of megabytes, on blocks of a small file."""
    with open(path, "rb") as file:
        fd, size = file.fileno(), 1 << 10
        for dtype in DTYPES.values():
            if dtype.carrier < 8:
                encode_files.encode([encode_files.FileBlock(fd, 0, fd, 0, size)], dtype, 1, context.ADAPTIVE)
            decode_files.decode([decode_files.FileRange(fd, 0, fd, 0, 0, -1, 0, size)], dtype, context.ADAPTIVE)


def _run_mask_kernels() -> None:
    """Run the kernels that train within a mask, which torch calls, without torch."""
    bits = np.zeros(1, np.uint8)
    for size in (1, 2, 4, 8):
        units = np.zeros(8, f"i{size}")
        mask_ops.zero_unmasked(units, bits)
        mask_ops.fill_unmasked(units, bits, units[0])
    for size in (4, 8):
        floats = np.zeros(8, f"f{size}")
        mask_ops.scale_masked(floats, bits, floats[0])
