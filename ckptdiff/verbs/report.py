"""``report`` measures what training changed: in one pass over base and target, and for ranks matrix by matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.cast_on_read import cast_dtype
from ckptdiff.analysis.intervals import DRAWS, MAX_DRAWS, NullSettings
from ckptdiff.analysis.matrices import choose_sample, count_ranked, counted_lines
from ckptdiff.analysis.matrix_rank import MatrixRank
from ckptdiff.analysis.modules import expert_of, layer_of, module_of
from ckptdiff.analysis.pairs import Pair, Part, Source, check_common, open_source
from ckptdiff.analysis.rank import check_device
from ckptdiff.analysis.report_model import QUANTILES, Bin, ExponentRow, Quantiles, RankChoice, Report, TensorReport
from ckptdiff.analysis.report_stored import unpack
from ckptdiff.analysis.report_work import BlockCounting, CountedBlocks, CountJob, Place, RankTaking, count_jobs, rank_job
from ckptdiff.analysis.sides import Side, check_ray_reads, check_sides, is_path
from ckptdiff.analysis.sizes import exponent_counts
from ckptdiff.analysis.sparsity import COUNT_FIELDS, EXPONENT_FIELDS, ZERO_EXPONENT_BIN, BlockCounts, Counts, Histograms, Tolerance
from ckptdiff.checkpoint.renames import Rename, check_globs
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.errors import CheckpointError
from ckptdiff.io.parallel import Progress, Workers, no_progress, run_plan
from ckptdiff.io.workers import check_no_ray, check_no_ray_with_stores, open_workers
from ckptdiff.kernels.bins import LOWEST
from ckptdiff.patching.patch import open_patch

LAST_ULP_OCTAVE = 52
"""Binary exponent from which ulp distances are counted in one bin, as not every JSON reader has integers above 2^53."""
MAX_PARALLEL_SIDE = 512
"""Smaller side of a matrix up to which ranks are taken on several threads, each of one matrix. Larger matrices are taken one after the
other, as LAPACK has threads of its own."""
MAX_SIDE_BY_KIND = 2048
"""Matrices with a smaller side above this have no nulls by kind of module: those of one take minutes."""


def report(
    base: Side,
    target: Side,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    rename: Sequence[str] = (),
    as_dtype: Any = None,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    rank: RankChoice = "sample",
    nulls: int = DRAWS,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    ray: str | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Measure what changed between a base and a target, which may be a patch from that base.

    Sparsity and moves take one pass over both, in memory that does not depend on their size. Ranks need one whole matrix at a time.

    Args:
        base: the base checkpoint: a path, a URL or an id on the Hub; or a state dict or a module.
        target: the target checkpoint, in any of these forms; or a patch from the base, by its path or as a :class:`ckptdiff.Patch`, which
            is not written out.
        include, exclude, follow_links, rename: choose the files and tensors of checkpoints, as in :func:`ckptdiff.make`; a patch says
            itself what is in it.
        as_dtype: cast the tensors of F16, BF16 and F32 in base and target to one of these while they are read: ``bf16``, ``f16`` or
            ``f32``, or torch's dtype. The paper's code casts both models to BF16 when it loads them. None: no cast, but of a base whose
            dtype is not the target's.
        atol, rtol: the tolerances at which elements count as unchanged, see :class:`Counts`.
        rank: take the rank of no matrix, of a sample of 32 spread over kinds of modules and over layers (:attr:`Report.sample` says which),
            or of all matrices.
        nulls: how many draws with flipped signs, and how many with positions shuffled among weights of the same size, stand beside the rank
            of a matrix: at least 2, or 0 for none (:mod:`ckptdiff.analysis.nulls`). Each costs about as much as the rank itself, and
            somewhat more for the singular vectors; of matrices whose smaller side exceeds 512 it is one of each kind of module, and above
            2,048 one of all.
        seed: of the draws.
        device: a torch device on which ranks are taken, such as ``cuda``, or ``auto`` for the first accelerator; None for NumPy.
        threads, ray: who does the work, as in :func:`ckptdiff.make`; with ``ray`` there is no device.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        CheckpointError: a checkpoint cannot be read, the two have nothing in common, or an argument is wrong.
        FormatError, UnsupportedError, IntegrityError: the patch is broken.
        BaseMismatchError: the patch has another base. UnsupportedError: torch is missing, or cannot use the device.
    """
    if not (0 <= atol < math.inf and 0 <= rtol < math.inf):
        raise CheckpointError(f"atol and rtol must be finite and not negative, found {atol} and {rtol}")
    if rank not in get_args(RankChoice):
        raise CheckpointError(f"unknown choice of ranks {rank!r}: expected one of {', '.join(get_args(RankChoice))}")
    if not (nulls == 0 or 2 <= nulls <= MAX_DRAWS) or seed < 0:
        raise CheckpointError(f"nulls must be 0 or from 2 to {MAX_DRAWS}, and seed not negative, found {nulls} and {seed}")
    if device is not None:
        check_no_ray(ray, "the device")
        device = check_device(device)
    check_sides(base=base, target=target)
    check_ray_reads(ray, base, target)
    check_no_ray_with_stores(ray, *filter(is_path, (base, target)))
    chosen, renames = Selection(include, exclude, follow_links), [Rename.parse(text) for text in rename]
    with open_source(base, target, selection=chosen, renames=renames, as_dtype=as_dtype) as source:
        if source.checkpoints:
            check_globs(chosen.globs, *source.checkpoints)
        check_common(source)
        with open_workers(threads, ray) as workers:
            settings = NullSettings(nulls if rank != "none" else 0, seed)
            found = _measure(source, Tolerance(atol, rtol), rank, settings, device, workers, progress)
            return replace(found, cast=cast_dtype(as_dtype))


def _measure(
    source: Source,
    tolerance: Tolerance,
    rank: RankChoice,
    nulls: NullSettings,
    device: str | None,
    workers: Workers,
    progress: Progress,
) -> Report:
    """Count the changes of all pairs of tensors, then take ranks."""
    total, tensors = Histograms.empty(), []
    without_rank: tuple[str, ...] = ()
    done, nbytes = 0, sum(pair.nbytes for pair in source.pairs)
    with closing(run_plan(workers.executor(nbytes, 0), BlockCounting(source.pairs, tolerance), count_jobs(source.pairs))) as results:
        blocks = _counted_blocks(source.pairs, results, total)
        for pair in source.pairs:
            tensors += _tensor_reports(pair, blocks)
            done += pair.nbytes
            progress("counting", done, nbytes)
    if rank != "none":
        tensors, without_rank = _take_ranks(source.pairs, tensors, rank, nulls, device, workers, progress)
    names = (source.added, source.removed, source.unpaired)
    zeros = sum(pair.against_zeros for pair in source.pairs)
    sums = _histogram_rows(total)
    return Report(source.base, source.target, tolerance, rank, tuple(tensors), *sums, *names, without_rank, zeros, nulls=nulls)


def report_patch(patch: str | os.PathLike[str]) -> Report:
    """Show what a patch alone says, without reading its payloads.

    That is the report stored in it (see :func:`ckptdiff.make`), or else how many units changed in each tensor. Units are elements, except
    for types of less than a byte.

    Raises:
        CheckpointError: there is no such file. FormatError, UnsupportedError, IntegrityError: it is not a whole and valid patch.
    """
    tensors, added, unpaired = [], [], []
    with open_patch(patch, by_ranges=True) as opened:
        if opened.report is not None:
            return unpack(opened.report, f"{opened.path}: report", opened.path.name)
        for (scope, name), (_, entry) in opened.entries.items():
            if entry.kind == "new":
                added.append(name)
            elif entry.kind == "copy" or (entry.pieces and sum(piece.units for piece in entry.pieces if piece.name) != entry.units):
                unpaired.append(name)
            else:
                counts = Counts(elements=entry.units, bit_identical=entry.units - entry.changed)
                row = TensorReport(scope, name, entry.dtype, entry.shape, layer_of(name), module_of(name), counts, None, None)
                bases = () if entry.base_names == (name,) else entry.base_names
                tensors.append(replace(row, bases=bases, base_dtype=entry.base_dtype if entry.base_dtype != entry.dtype else None))
        removed = [name for file in opened.files for name in file.table.removed]
        names = tuple(added), tuple(removed), tuple(unpaired)
        return Report("", opened.path.name, Tolerance(), "none", tuple(tensors), (), (), (), *names, (), complete=False)


def _counted_blocks(
    pairs: Sequence[Pair], results: Iterator[tuple[CountJob, CountedBlocks]], total: Histograms
) -> Iterator[dict[int, BlockCounts]]:
    """The counts of the blocks of all jobs; adds their histograms to ``total``, and tells readers what is known of a patch."""
    for job, counted in results:
        total.add(counted.histograms)
        for (number, start), known in zip(job.blocks, counted.known, strict=True):
            pairs[number].reader.give(start, known)
        yield from counted.blocks


def _tensor_reports(pair: Pair, blocks: Iterator[dict[int, BlockCounts]]) -> list[TensorReport]:
    """Add up the counts of the blocks of each part of a pair, which come first in ``blocks``."""
    sums = [_PartSums(part, pair.dtype) for part in pair.parts]
    for _ in pair.starts:
        for number, block in next(blocks).items():
            sums[number].add(block)
    pair.finish()
    return [_tensor_report(pair, part) for part in sums]


class _PartSums:
    """The counts of one part of a pair, by row and column too."""

    def __init__(self, part: Part, dtype: str) -> None:
        height, width = counted_lines(part.shape)
        self.part, self.numbers = part, np.zeros(len(COUNT_FIELDS), np.int64)
        self.exponents = np.zeros((2, EXPONENT_FIELDS.get(dtype, (0, 0, 0))[1] + 1), np.int64)
        self.rows, self.columns = np.zeros(height, np.int64), np.zeros(width * (1 + (dtype == "C64")), np.int64)

    def add(self, block: BlockCounts) -> None:
        """Add the counts of a block."""
        self.numbers += block.numbers
        self.exponents[:, block.exponents[0]] += block.exponents[1:]
        self.rows[block.first_row : block.first_row + len(block.rows)] += block.rows
        whole = min(len(block.columns), len(self.columns) - block.first_column)
        self.columns[block.first_column : block.first_column + whole] += block.columns[:whole]
        self.columns[: len(block.columns) - whole] += block.columns[whole:]


def _tensor_report(pair: Pair, sums: _PartSums) -> TensorReport:
    part, base = sums.part, pair.base
    has_lines = len(sums.rows) > 0
    return TensorReport(
        scope=pair.scope,
        name=pair.name,
        dtype=pair.dtype,
        shape=part.shape,
        layer=layer_of(pair.name),
        module=module_of(pair.name),
        counts=Counts.from_numbers(sums.numbers),
        rows=_quantiles(sums.rows, len(sums.columns)) if has_lines else None,
        columns=_quantiles(sums.columns, len(sums.rows)) if has_lines else None,
        expert_changes=_expert_changes(pair.name, sums) if has_lines else None,
        part=part.index,
        bases=() if set(part.bases) <= {pair.name} else part.bases,
        base_dtype=base.base_dtype if base.base_dtype != pair.dtype else None,
        target_dtype=pair.reader.stored if pair.reader.stored != pair.dtype else None,
        exponents=exponent_counts(sums.exponents[0], sums.exponents[1], pair.dtype) if pair.dtype in EXPONENT_FIELDS else None,
    )


def _expert_changes(name: str, sums: _PartSums) -> tuple[int, ...] | None:
    """Changed elements of each expert of a tensor in which experts are stacked, the first dimension telling them apart."""
    shape = sums.part.shape
    if len(shape) < 3 or sums.part.index is not None or module_of(name) != "experts" or expert_of(name) is not None:
        return None
    return tuple(map(int, sums.rows.reshape(shape[0], -1).sum(axis=1)))


def _quantiles(changed: npt.NDArray[np.int64], length: int) -> Quantiles:
    """Quantiles of ``changed / length``, as ``np.quantile`` interpolates them.

    ``np.quantile`` takes ten times as long, which was a tenth of the time of the counting pass.
    """
    ordered, last, result = np.sort(changed), len(changed) - 1, []
    for quantile in QUANTILES:
        k, part = int(last * quantile), last * quantile % 1
        low, high = float(ordered[k] / length), float(ordered[min(k + 1, last)] / length)
        result.append(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))
    return tuple(result)


def _histogram_rows(total: Histograms) -> tuple[tuple[Bin, ...], tuple[Bin, ...], tuple[ExponentRow, ...]]:
    """Distances in ulps, absolute changes and exponents of the base, as rows of a report; empty bins are left out."""
    counts = [*total.ulps[:LAST_ULP_OCTAVE], int(total.ulps[LAST_ULP_OCTAVE:].sum())]
    ulps = tuple(Bin(2.0**k, 2.0 ** (k + 1) - 1 if k < LAST_ULP_OCTAVE else None, int(n)) for k, n in enumerate(counts) if n)
    moves = tuple(Bin(2.0 ** (k + LOWEST), 2.0 ** (k + LOWEST + 1), int(n)) for k, n in enumerate(total.moves) if n)
    exponents = tuple(
        ExponentRow(k - ZERO_EXPONENT_BIN if k else None, int(n), int(total.changed_exponents[k]))
        for k, n in enumerate(total.exponents)
        if n
    )
    return ulps, moves, exponents


# --- rank ---


def _take_ranks(
    pairs: Sequence[Pair],
    tensors: Sequence[TensorReport],
    choice: RankChoice,
    nulls: NullSettings,
    device: str | None,
    workers: Workers,
    progress: Progress,
) -> tuple[list[TensorReport], tuple[str, ...]]:
    """The tensors with their ranks and nulls, and the names of those with a matrix whose update holds infinities or NaNs."""
    places = [Place(number, part) for number, pair in enumerate(pairs) for part in range(len(pair.parts))]
    chosen = [(k, i) for k, t in enumerate(tensors) for i in range(count_ranked(t.module, t.dtype, t.shape))]
    if choice == "sample":
        chosen = [chosen[number] for number in choose_sample([(tensors[k].module, tensors[k].layer) for k, _ in chosen])]
    small, large = ([(k, i) for k, i in chosen if (min(tensors[k].shape[-2:]) <= MAX_PARALLEL_SIDE) == wanted] for wanted in (True, False))
    with_nulls = _with_nulls(chosen, tensors) if nulls.draws else set()
    ranks: dict[int, list[MatrixRank]] = {}
    without: dict[str, None] = {}
    done = 0
    for group, (execute, threads) in ((small, (workers.executor(0), 1)), (large, workers.alone())):
        work = RankTaking({places[k].pair: pairs[places[k].pair] for k, _ in group}, device, threads, nulls)
        with closing(execute(work, (rank_job(pairs, places[k], i, (k, i) in with_nulls) for k, i in group))) as results:
            for (k, _), row in zip(group, results, strict=True):
                done += 1
                progress("taking ranks", done, len(chosen))
                if row is not None:
                    ranks.setdefault(k, []).append(row)
                else:
                    without[tensors[k].label] = None
    return [replace(t, ranks=tuple(ranks[k])) if k in ranks else t for k, t in enumerate(tensors)], tuple(without)


def _with_nulls(chosen: Sequence[tuple[int, int]], tensors: Sequence[TensorReport]) -> set[tuple[int, int]]:
    """Which of the matrices whose rank is taken have nulls.

    All small ones have them, and of the large ones the middle one of each kind of module; of those above :data:`MAX_SIDE_BY_KIND` only the
    middle one of all, so that its nulls cost about as much as the ranks of a sample.
    """
    large: dict[str, list[tuple[int, int]]] = {}
    for k, i in chosen:
        side = min(tensors[k].shape[-2:])
        if side > MAX_PARALLEL_SIDE:
            large.setdefault(tensors[k].module if side <= MAX_SIDE_BY_KIND else "", []).append((k, i))
    left_out = {matrix for matrices in large.values() for matrix in matrices if matrix != matrices[len(matrices) // 2]}
    return set(chosen) - left_out
