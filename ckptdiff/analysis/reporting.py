"""``report``: what training changed, as typed rows and as JSON (``spec/report.schema.json``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.modules import APART, KINDS, layer_of, module_of
from ckptdiff.analysis.rank import Spectrum, expected_random_rank, spectrum
from ckptdiff.analysis.source import Pair, open_source
from ckptdiff.analysis.sparsity import LOWEST, ZERO_EXPONENT, BlockTally, Counts, Tally, Tolerance, count_block, subtract
from ckptdiff.digests import BLOCK
from ckptdiff.dtypes import DTYPES
from ckptdiff.parallel import Progress, default_threads, no_progress, run_ordered
from ckptdiff.patchfile import open_patch
from ckptdiff.values import element_bits, values_of

SCHEMA = "ckptdiff-report/1"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SAMPLE = 32
"""Matrices whose rank is taken with ``rank="sample"``: every n-th, so that about this many are."""
SMALL_MATRIX = 512
"""Up to this smaller side matrices are taken on a thread each; larger ones one after the other, since LAPACK has threads of its own."""

RankChoice: TypeAlias = Literal["none", "sample", "all"]
Quantiles: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MatrixRank:
    """The spectrum of one matrix's update (number ``index`` of a stack), and the rank that a random update as dense would have."""

    index: int
    spectrum: Spectrum
    random_rank: float

    @property
    def shares(self) -> tuple[float, float]:
        """Effective rank, and the rank of a random update, over the largest possible."""
        return self.spectrum.effective_rank / self.spectrum.largest, self.random_rank / self.spectrum.largest


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor. ``rows`` and ``columns``: share of changed elements per row and column at :data:`QUANTILES`; None but for matrices."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    layer: int | None
    module: str
    counts: Counts
    rows: Quantiles | None
    columns: Quantiles | None
    ranks: tuple[MatrixRank, ...] | None = None


@dataclass(frozen=True, slots=True)
class RankSummary:
    """Unweighted means over matrices, as the paper takes them (arXiv 2505.11711, table 2): no 1-D tensors, no norms.

    ``rank_share`` = rank / min(shape); ``effective_share`` = effective rank / min(shape); ``random_rank_share``: that of a random
    update as dense.
    """

    matrices: int
    rank_share: float
    stable_rank: float
    effective_share: float
    random_rank_share: float


@dataclass(frozen=True, slots=True)
class Bin:
    """How many changed elements have a value (ulp distance, or \\|d\\|) from ``low`` to ``high``."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class ExponentRow:
    """Elements whose base value lies in [2^exponent, 2^(exponent + 1)), None for zeros and subnormals, and how many changed."""

    exponent: int | None
    elements: int
    changed: int


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`report` found. ``added``, ``removed``, ``unpaired``: tensors that only one side has, or with another dtype or shape.

    Not ``complete``: from a patch alone, which knows how many elements changed, but not how far (see :func:`report_patch`).
    """

    base: str
    target: str
    tolerance: Tolerance
    rank_choice: RankChoice
    tensors: tuple[TensorReport, ...]
    ulps: tuple[Bin, ...]
    moves: tuple[Bin, ...]
    exponents: tuple[ExponentRow, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    unpaired: tuple[str, ...]
    complete: bool = True

    @property
    def totals(self) -> Counts:
        """Sums over all tensors, so that shares of it are weighted by size."""
        return sum((tensor.counts for tensor in self.tensors), Counts())

    @property
    def layers(self) -> dict[int, Counts]:
        """Sums by layer."""
        found: dict[int, Counts] = {}
        for tensor in self.tensors:
            if tensor.layer is not None:
                found[tensor.layer] = found.get(tensor.layer, Counts()) + tensor.counts
        return dict(sorted(found.items()))

    @property
    def modules(self) -> dict[str, Counts]:
        """Sums by kind of module, in the order of :data:`KINDS`."""
        found = {kind: sum((t.counts for t in self.tensors if t.module == kind), Counts()) for kind in KINDS}
        return {kind: counts for kind, counts in found.items() if counts.elements}

    @property
    def apart(self) -> dict[str, Counts]:
        """Norms, biases and embeddings, and under ``matrices`` all the rest."""
        modules = self.modules
        rest = sum((counts for kind, counts in modules.items() if kind not in APART), Counts())
        return {"matrices": rest} | {kind: modules[kind] for kind in APART if kind in modules}

    @property
    def rank(self) -> RankSummary | None:
        """Means over all matrices whose rank was taken, or None."""
        rows = [row for tensor in self.tensors if tensor.module != "norm" for row in tensor.ranks or ()]
        if not rows:
            return None
        means = np.mean([(r.spectrum.rank_share, r.spectrum.stable_rank, *r.shares) for r in rows], axis=0)
        return RankSummary(len(rows), *(float(x) for x in means))

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, as ``spec/report.schema.json`` says."""
        rank = self.rank
        return {
            "schema": SCHEMA,
            "base": self.base,
            "target": self.target,
            "settings": {"atol": self.tolerance.atol, "rtol": self.tolerance.rtol, "rank": self.rank_choice},
            "totals": self._counts(self.totals),
            "layers": [{"layer": layer, **self._counts(counts)} for layer, counts in self.layers.items()],
            "modules": [{"module": kind, **self._counts(counts)} for kind, counts in self.modules.items()],
            "moves": {
                "ulp": [{"from": int(b.low), "to": int(b.high), "count": b.count} for b in self.ulps],
                "abs": [{"from": b.low, "to": b.high, "count": b.count} for b in self.moves],
                "exponents": [asdict(row) for row in self.exponents],
            },
            "rank": asdict(rank) if rank else None,
            "tensors": [_tensor_json(tensor) | self._counts(tensor.counts) for tensor in self.tensors],
            "added": list(self.added),
            "removed": list(self.removed),
            "unpaired": list(self.unpaired),
        }

    def _counts(self, counts: Counts) -> dict[str, int | None]:
        return {key: n if self.complete or key in ("elements", "bit_identical") else None for key, n in asdict(counts).items()}

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a tensor.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        keep = ("scope", "name", "dtype", "shape", "layer", "module")
        return pandas.DataFrame(
            [{key: getattr(t, key) for key in keep} | asdict(t.counts) | {"sparsity": t.counts.sparsity} for t in self.tensors]
        )


def _tensor_json(tensor: TensorReport) -> dict[str, Any]:
    row = {key: getattr(tensor, key) for key in ("scope", "name", "dtype")}
    row |= {"shape": list(tensor.shape), "layer": tensor.layer, "module": tensor.module}
    row |= {"rows": list(tensor.rows) if tensor.rows else None, "columns": list(tensor.columns) if tensor.columns else None}
    spectra = None
    if tensor.ranks is not None:
        spectra = [{"index": r.index, **_spectrum_json(r.spectrum), "random_rank": r.random_rank} for r in tensor.ranks]
    return row | {"spectra": spectra}


def _spectrum_json(found: Spectrum) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(found).items()}


def report(
    base: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    rank: RankChoice = "sample",
    device: str | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Measure what changed between a base and a target, which may be a patch from that base.

    Sparsity and moves take one pass over both; memory does not depend on their size. Rank takes one matrix at a time whole.

    Args:
        base: checkpoint.
        target: checkpoint, or patch; the patch is not applied to the disk.
        atol, rtol: see :class:`Counts`.
        rank: of no matrix, of about 32 spread over the model, or of all.
        device: a torch device for rank, such as ``cuda``; None for NumPy.
        threads: how many to use.
        progress: called with how far it is.

    Raises:
        CheckpointError: a checkpoint cannot be read. FormatError, UnsupportedError, IntegrityError: the patch is broken.
        BaseMismatchError: the patch has another base.
    """
    count = threads or default_threads()
    with open_source(base, target) as source:
        total, tensors = Tally.empty(), []
        jobs = (partial(_count, pair, start, Tolerance(atol, rtol)) for pair in source.pairs for start in pair.starts)
        done, nbytes = 0, sum(pair.nbytes for pair in source.pairs)
        with closing(run_ordered(jobs, count)) as blocks:
            for pair in source.pairs:
                tensors.append(_gather(pair, blocks, total))
                done += pair.nbytes
                progress("counting", done, nbytes)
        if rank != "none":
            tensors = list(_ranks(source.pairs, tensors, rank, device, count, progress))
        ulps, moves, exponents = _bins(total)
        names = (source.added, source.removed, source.unpaired)
        return Report(source.base, source.target, Tolerance(atol, rtol), rank, tuple(tensors), ulps, moves, exponents, *names)


def report_patch(patch: str | os.PathLike[str]) -> Report:
    """What a patch alone says: how many units (elements, but for types of less than a byte) changed, per tensor. Payloads are not read.

    Raises:
        CheckpointError: there is no such file. FormatError, UnsupportedError, IntegrityError: it is not a whole and valid patch.
    """
    tensors, added, unpaired = [], [], []
    with open_patch(patch) as opened:
        for (scope, name), (_, entry) in opened.entries.items():
            if entry.kind == "new":
                added.append(name)
            elif entry.adapted or entry.kind == "copy":
                unpaired.append(name)
            else:
                counts = Counts(elements=entry.units, bit_identical=entry.units - entry.changed)
                tensors.append(TensorReport(scope, name, entry.dtype, entry.shape, layer_of(name), module_of(name), counts, None, None))
        removed = [name for file in opened.files for name in file.table.removed]
        names = tuple(added), tuple(removed), tuple(unpaired)
        return Report("", opened.path.name, Tolerance(), "none", tuple(tensors), (), (), (), *names, complete=False)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Matrices of a tensor, and their rows and columns: a stack of experts is one a matrix; zeros if it has less than two dimensions."""
    if len(shape) < 2 or 0 in shape:
        return 0, 0, 0
    return int(np.prod(shape[:-2], dtype=np.int64)), shape[-2], shape[-1]


def _count(pair: Pair, start: int, tolerance: Tolerance) -> BlockTally:
    old, new = pair.read(start, start + BLOCK)
    bits = DTYPES[pair.dtype].bits
    return count_block(old, new, pair.dtype, matrix_shape(pair.shape)[2], 8 * start // bits, tolerance)


def _gather(pair: Pair, blocks: Iterator[BlockTally], total: Tally) -> TensorReport:
    """Add up a tensor's blocks."""
    counts, (matrices, height, width) = Counts(), matrix_shape(pair.shape)
    rows, columns = np.zeros(matrices * height, np.int64), np.zeros(width * (1 + (pair.dtype == "C64")), np.int64)
    for _ in pair.starts:
        block = next(blocks)
        counts += block.tally.counts
        total.add(block.tally)
        rows[block.first_row : block.first_row + len(block.rows)] += block.rows
        columns += block.columns
    pair.finish()
    shares = (_quantiles(rows, len(columns)), _quantiles(columns, len(rows))) if matrices else (None, None)
    return TensorReport(pair.scope, pair.name, pair.dtype, pair.shape, layer_of(pair.name), module_of(pair.name), counts, *shares)


def _quantiles(changed: npt.NDArray[np.int64], length: int) -> Quantiles:
    return tuple(float(x) for x in np.quantile(changed / length, QUANTILES))


def _bins(total: Tally) -> tuple[tuple[Bin, ...], tuple[Bin, ...], tuple[ExponentRow, ...]]:
    ulps = tuple(Bin(2.0**k, 2.0 ** (k + 1) - 1, int(n)) for k, n in enumerate(total.ulps) if n)
    moves = tuple(Bin(2.0 ** (k + LOWEST), 2.0 ** (k + LOWEST + 1), int(n)) for k, n in enumerate(total.moves) if n)
    exponents = tuple(
        ExponentRow(k - ZERO_EXPONENT if k else None, int(n), int(total.changed_exponents[k])) for k, n in enumerate(total.exponents) if n
    )
    return ulps, moves, exponents


# --- rank ---


def _ranks(
    pairs: Sequence[Pair], tensors: Sequence[TensorReport], choice: RankChoice, device: str | None, threads: int, progress: Progress
) -> Iterator[TensorReport]:
    """The tensors with their ranks: those of matrices that changed; norms and tensors of one dimension have none."""
    matrices = [
        (k, index)
        for k, tensor in enumerate(tensors)
        if tensor.module != "norm" and tensor.dtype in ("BF16", "F16", "F32", "F64")
        for index in range(matrix_shape(tensor.shape)[0])
    ]
    step = max(1, -(-len(matrices) // SAMPLE)) if choice == "sample" else 1
    chosen = matrices[::step]
    small = [both for both in chosen if min(tensors[both[0]].shape[-2:]) <= SMALL_MATRIX]
    found: dict[int, list[MatrixRank]] = {}
    done = 0
    for group, workers in ((small, threads), ([both for both in chosen if both not in set(small)], 1)):
        jobs: list[Callable[[], MatrixRank | None]] = [partial(_rank, pairs[k], index, device) for k, index in group]
        with closing(run_ordered(jobs, workers)) as results:
            for (k, _), row in zip(group, results, strict=True):
                done += 1
                progress("taking ranks", done, len(chosen))
                if row is not None:
                    found.setdefault(k, []).append(row)
    for k, tensor in enumerate(tensors):
        ranks = tuple(found[k]) if k in found else None
        yield TensorReport(**{name: getattr(tensor, name) for name in tensor.__slots__ if name != "ranks"}, ranks=ranks)


def _rank(pair: Pair, index: int, device: str | None) -> MatrixRank | None:
    """None for an update with infinities or NaNs, which has no rank."""
    _, height, width = matrix_shape(pair.shape)
    size = height * width * DTYPES[pair.dtype].bits // 8
    update = np.empty(height * width, np.float64 if pair.dtype == "F64" else np.float32)
    begin, changed = index * size, 0
    for start in range(begin // BLOCK * BLOCK, begin + size, BLOCK):
        old, new = (values_of(element_bits(part, pair.dtype), pair.dtype) for part in pair.read(start, start + BLOCK))
        first = (start - begin) * len(update) // size
        low, high = max(0, -first), min(len(old), len(update) - first)
        part = subtract(new[low:high], old[low:high], pair.dtype)
        update[first + low : first + high] = part
        changed += int(np.count_nonzero(part))
    if not np.isfinite(update).all():
        return None
    return MatrixRank(index, spectrum(update.reshape(height, width), device), expected_random_rank(height, width, changed / len(update)))
