"""A report's rows: typed, as JSON (``spec/report.schema.json``), as a DataFrame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import zstandard

from ckptdiff.analysis.matrices import ranked
from ckptdiff.analysis.modules import APART, KINDS
from ckptdiff.analysis.rank import Spectrum
from ckptdiff.analysis.sparsity import Counts, Tolerance
from ckptdiff.errors import CheckpointError
from ckptdiff.format import canonical
from ckptdiff.format.patch_file import MAX_STORED_REPORT
from ckptdiff.lazy import pandas

SCHEMA = "ckptdiff-report/1"
LEVEL = 19
MAX_REPORT = 1 << 26
"""Bytes of a report in a patch, decoded (spec 5.4)."""
DIGITS = 4
"""Significant digits of quantiles and singular values, and decimals of ranks: half of the bytes, and no chart shows more."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

RankChoice: TypeAlias = Literal["none", "sample", "all"]
Quantiles: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MatrixRank:
    """The spectrum of one matrix's update (number ``index`` of a stack), and the rank that a random update as dense would have.

    The update is target minus base in the tensor's dtype, as torch has it: the difference of two bf16 tensors is rounded to bf16 again,
    which moves singular values by up to some parts in a thousand. The paper's ranks are those of it.
    """

    index: int
    spectrum: Spectrum
    random_rank: float

    @property
    def shares(self) -> tuple[float, float]:
        """Effective rank, and the rank of a random update, over the largest possible."""
        return self.spectrum.effective_rank / self.spectrum.largest, self.random_rank / self.spectrum.largest


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor.

    ``rows`` and ``columns``: share of changed elements per row and column at :data:`QUANTILES`; None but for matrices of at most 2^22
    rows and columns.
    """

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
    """Unweighted means over the matrices that changed, as the paper takes them (arXiv 2505.11711, table 2): no 1-D tensors, no norms.
    Matrices of integers, of complex numbers and of floats of less than a byte have no rank here; the update of those ``unchanged`` is 0,
    which has no stable rank, and they count nowhere.

    ``rank_share`` = rank / min(shape); ``effective_share`` = effective rank / min(shape); ``random_rank_share``: that of a random
    update as dense.
    """

    matrices: int
    unchanged: int
    rank_share: float
    stable_rank: float
    effective_share: float
    random_rank_share: float


@dataclass(frozen=True, slots=True)
class ModuleSample:
    """Matrices of a kind of module that have a rank, of how many of them it was taken, and the layers that these are in."""

    module: str
    matrices: int
    taken: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bin:
    """How many changed elements have a value (ulp distance, or \\|d\\|) from ``low`` to ``high``; None: or more."""

    low: float
    high: float | None
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
    ``without_rank``: tensors with a matrix whose update holds infinities or NaNs, or singular values beyond float64.

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
    without_rank: tuple[str, ...]
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
        """Means over all matrices that changed and whose rank was taken, or None."""
        taken = [row for tensor in self.tensors if tensor.module != "norm" for row in tensor.ranks or ()]
        rows = [row for row in taken if row.spectrum.stable_rank]
        if not rows:
            return None
        figures = zip(*((r.spectrum.rank_share, r.spectrum.stable_rank, *r.shares) for r in rows), strict=True)
        return RankSummary(len(rows), len(taken) - len(rows), *(math.fsum(values) / len(rows) for values in figures))

    @property
    def sample(self) -> tuple[ModuleSample, ...] | None:
        """With ``rank="sample"``: of which matrices the rank was taken, by kind of module; else None."""
        if self.rank_choice != "sample":
            return None
        found = []
        for kind in KINDS:
            tensors = [t for t in self.tensors if t.module == kind]
            matrices, taken = sum(ranked(kind, t.dtype, t.shape) for t in tensors), sum(len(t.ranks or ()) for t in tensors)
            layers = sorted({t.layer for t in tensors if t.ranks and t.layer is not None})
            found += [ModuleSample(kind, matrices, taken, tuple(layers))] * bool(matrices)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, as ``spec/report.schema.json`` says."""
        return self.sums() | {"tensors": [tensor_json(tensor) | self._counts(tensor.counts) for tensor in self.tensors]}

    def sums(self) -> dict[str, Any]:
        """All of :meth:`to_json` but its rows of tensors."""
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
                "ulp": [{"from": int(b.low), "to": None if b.high is None else int(b.high), "count": b.count} for b in self.ulps],
                "abs": [{"from": b.low, "to": b.high, "count": b.count} for b in self.moves],
                "exponents": [asdict(row) for row in self.exponents],
            },
            "rank": asdict(rank) if rank else None,
            "sample": None if self.sample is None else [asdict(row) | {"layers": list(row.layers)} for row in self.sample],
            "added": list(self.added),
            "removed": list(self.removed),
            "unpaired": list(self.unpaired),
            "without_rank": list(self.without_rank),
        }

    @property
    def changes(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Elements, and how many of them changed, by scope and name."""
        return {(t.scope, t.name): (t.counts.elements, t.counts.changed) for t in self.tensors}

    def to_bytes(self) -> bytes:
        """The report as :func:`ckptdiff.make` stores it in a patch: the same bytes wherever its checkpoints lie.

        Raises:
            CheckpointError: it is larger than a reader takes.
        """
        small = replace(self, base="", target="", tensors=tuple(_rounded(tensor) for tensor in self.tensors))
        data = canonical.dumps(small.to_json())
        stored = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(data)
        if len(data) > MAX_REPORT or len(stored) > MAX_STORED_REPORT:
            raise CheckpointError(
                f"the report of {len(self.tensors)} tensors has {len(data)} bytes, {len(stored)} as stored; a patch can hold at most "
                f"{MAX_REPORT}, {MAX_STORED_REPORT} as stored: make the patch without it, and keep what ckptdiff report --json gives"
            )
        return stored

    def _counts(self, counts: Counts) -> dict[str, int | None]:
        return {key: n if self.complete or key in ("elements", "bit_identical") else None for key, n in asdict(counts).items()}

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a tensor: its names, its counts (:class:`Counts`), its sparsity, and means over its matrices that
        changed: ``rank_share``, ``stable_rank``, ``effective_share``, ``random_rank_share``, NaN where no rank was taken.

        Raises:
            ImportError: pandas is not installed.
        """
        keep = ("scope", "name", "dtype", "shape", "layer", "module")
        return pandas.DataFrame(
            [
                {key: getattr(t, key) for key in keep} | asdict(t.counts) | {"sparsity": t.counts.sparsity} | _mean_ranks(t.ranks or ())
                for t in self.tensors
            ]
        )


def _mean_ranks(ranks: Sequence[MatrixRank]) -> dict[str, float]:
    rows = [(r.spectrum.rank_share, r.spectrum.stable_rank, *r.shares) for r in ranks if r.spectrum.stable_rank]
    means = [math.fsum(values) / len(rows) for values in zip(*rows, strict=True)] or [math.nan] * 4
    return dict(zip(("rank_share", "stable_rank", "effective_share", "random_rank_share"), means, strict=True))


def tensor_json(tensor: TensorReport) -> dict[str, Any]:
    """A tensor's row but for its counts."""
    row = {key: getattr(tensor, key) for key in ("scope", "name", "dtype")}
    row |= {"shape": list(tensor.shape), "layer": tensor.layer, "module": tensor.module}
    row |= {"rows": list(tensor.rows) if tensor.rows else None, "columns": list(tensor.columns) if tensor.columns else None}
    spectra = None
    if tensor.ranks is not None:
        spectra = [{"index": r.index, **_spectrum_json(r.spectrum), "random_rank": r.random_rank} for r in tensor.ranks]
    return row | {"spectra": spectra}


def _spectrum_json(found: Spectrum) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(found).items()}


def _rounded(tensor: TensorReport) -> TensorReport:
    def quantiles(values: Quantiles | None) -> Quantiles | None:
        return None if values is None else tuple(map(_round, values))

    ranks = tensor.ranks
    if ranks is not None:
        ranks = tuple(replace(row, spectrum=_rounded_spectrum(row.spectrum), random_rank=round(row.random_rank, DIGITS)) for row in ranks)
    return replace(tensor, rows=quantiles(tensor.rows), columns=quantiles(tensor.columns), ranks=ranks)


def _rounded_spectrum(found: Spectrum) -> Spectrum:
    top_energy, singular_values = (tuple(map(_round, values)) for values in (found.top_energy, found.singular_values))
    return replace(found, stable_rank=round(found.stable_rank, DIGITS), top_energy=top_energy, singular_values=singular_values)


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
