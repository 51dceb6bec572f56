"""Reports as typed records, as JSON (``spec/report.schema.json``), and as a DataFrame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import zstandard

from ckptdiff.analysis.intervals import NO_NULLS, NullSettings
from ckptdiff.analysis.matrices import count_ranked
from ckptdiff.analysis.matrix_rank import MatrixRank, significant
from ckptdiff.analysis.modules import APART, KINDS, REST, components_of, expert_of
from ckptdiff.analysis.notebook import ShownReport, ShownTensor
from ckptdiff.analysis.null_summary import NullRow, null_rows
from ckptdiff.analysis.size_summary import SizeSummary, summarize_sizes
from ckptdiff.analysis.sizes import ExponentCounts
from ckptdiff.analysis.sparsity import Counts, Tolerance, sums_by
from ckptdiff.errors import CheckpointError
from ckptdiff.format import canonical
from ckptdiff.format.patch_file import MAX_STORED_REPORT

SCHEMA = "ckptdiff-report/1"
ZSTD_LEVEL = 19
MAX_REPORT = 1 << 26
"""Bytes of a report in a patch, once it is decompressed (spec 5.4)."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

RankChoice: TypeAlias = Literal["none", "sample", "all"]
Quantiles: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True, repr=False)
class TensorReport(ShownTensor):
    """What changed in one tensor."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    layer: int | None
    """Number of its layer, if its name tells one."""
    module: str
    """Kind of its module, one of :data:`ckptdiff.analysis.modules.KINDS`."""
    counts: Counts
    rows: Quantiles | None
    """:data:`QUANTILES` of the share of changed elements over its rows; None for what is no matrix, or has more than 2^22 rows or
    columns."""
    columns: Quantiles | None
    """The same quantiles over its columns."""
    ranks: tuple[MatrixRank, ...] | None = None
    """Ranks of those of its matrices whose rank was taken."""
    part: int | None = None
    """Number of the matrix in the tensor, of one that is stacked from several base tensors, as experts are; None for a whole tensor."""
    bases: tuple[str, ...] = ()
    """Base tensors that it was compared with, where that is not simply the one of its own name."""
    base_dtype: str | None = None
    """Their dtype, where that is not ``dtype``, in which values are compared: after a cast (spec 8)."""
    target_dtype: str | None = None
    """The dtype that the target has it in, where that is not ``dtype``, as both sides were to be cast."""
    expert_changes: tuple[int, ...] | None = None
    """Changed elements of each expert, of a tensor in which they are stacked and whose changes are counted by row; else None."""
    exponents: ExponentCounts | None = None
    """Its elements by the binary exponent of the base's value; None for dtypes without exponents, and where it is not known."""

    @property
    def label(self) -> str:
        """Its name, with the number of the part."""
        return self.name if self.part is None else f"{self.name}[{self.part}]"


@dataclass(frozen=True, slots=True)
class RankSummary:
    """Unweighted means over the matrices that changed, as the paper takes them (arXiv 2505.11711, table 2): without 1-D tensors and norms.

    Matrices of integers, of complex numbers and of floats of less than a byte have no rank here.
    """

    matrices: int
    """Matrices that changed and whose rank was taken."""
    unchanged: int
    """Matrices whose rank was taken but whose update is 0. As that has no stable rank, they are in no mean."""
    rank_share: float
    """Mean of rank / min(shape)."""
    stable_rank: float
    """Mean of the stable rank."""
    effective_share: float
    """Mean of effective rank / min(shape)."""
    random_rank_share: float
    """Mean of the rank of a random update as dense / min(shape)."""


@dataclass(frozen=True, slots=True)
class ModuleSample:
    """The matrices of one kind of module in a sample."""

    module: str
    matrices: int
    """Matrices that have a rank."""
    taken: int
    """Matrices whose rank was taken."""
    layers: tuple[int, ...]
    """Layers in which these lie."""


@dataclass(frozen=True, slots=True)
class Bin:
    """A bin of a histogram of changed elements, by distance in ulps or by |d|."""

    low: float
    high: float | None
    """Upper end; None: the bin has none."""
    count: int
    """Changed elements in it."""


@dataclass(frozen=True, slots=True)
class ExponentRow:
    """The elements whose base value has one binary exponent."""

    exponent: int | None
    """The values lie in [2^exponent, 2^(exponent + 1)); None: they are zeros and subnormals."""
    elements: int
    changed: int
    """How many of them changed."""


@dataclass(frozen=True, slots=True, repr=False)
class Report(ShownReport):
    """The result of :func:`ckptdiff.report` and :func:`ckptdiff.report_patch`."""

    base: str
    """Name of the base."""
    target: str
    """Name of the target, or of the patch."""
    tolerance: Tolerance
    rank_choice: RankChoice
    """Of which matrices the rank was to be taken."""
    tensors: tuple[TensorReport, ...]
    ulps: tuple[Bin, ...]
    """Changed elements by distance in ulps."""
    moves: tuple[Bin, ...]
    """Changed elements by |d|."""
    exponents: tuple[ExponentRow, ...]
    added: tuple[str, ...]
    """Names of tensors that only the target has."""
    removed: tuple[str, ...]
    """Names of tensors that only the base has."""
    unpaired: tuple[str, ...]
    """Names of tensors that both have, but with a dtype or shape that cannot be compared."""
    without_rank: tuple[str, ...]
    """Names of tensors with a matrix whose update holds infinities or NaNs, or has singular values beyond float64."""
    against_zeros: int = 0
    """Elements of the target that stand against zeros, as no base tensor has them (rows that were added); they count in nothing else."""
    cast: str | None = None
    """The dtype that tensors of F16, BF16 and F32 were cast to on both sides before they were compared."""
    nulls: NullSettings = NO_NULLS
    """How the nulls beside ranks were drawn."""
    complete: bool = True
    """False for a report from a patch alone that stores none: it says how many elements changed, but not how far."""

    @property
    def totals(self) -> Counts:
        """Sums over all tensors, so that shares are weighted by the tensors' sizes."""
        return sum((tensor.counts for tensor in self.tensors), Counts())

    @property
    def layers(self) -> dict[int, Counts]:
        """Sums by number of the layer, over all components."""
        return dict(sorted(sums_by((t.layer, t.counts) for t in self.tensors if t.layer is not None).items()))

    @property
    def modules(self) -> dict[str, Counts]:
        """Sums by kind of module, in the order of :data:`KINDS`."""
        sums = sums_by((t.module, t.counts) for t in self.tensors)
        return {kind: sums[kind] for kind in KINDS if kind in sums and sums[kind].elements}

    @property
    def experts(self) -> dict[int, Counts]:
        """Sums by number of the expert, over all layers; without experts that are stacked in one tensor in the base, too."""
        numbered = ((expert_of(t.name, t.part), t.counts) for t in self.tensors)
        return dict(sorted(sums_by((expert, counts) for expert, counts in numbered if expert is not None).items()))

    @property
    def components(self) -> dict[str, Counts]:
        """Sums by component of a pipeline or tower of a multimodal model; empty where names tell less than two."""
        components = components_of((t.scope, t.name) for t in self.tensors)
        sums = sums_by((c, t.counts) for c, t in zip(components, self.tensors, strict=True) if c)
        return {component: sums[component] for component in sorted(sums, key=lambda c: (c == REST, c))}

    @property
    def apart(self) -> dict[str, Counts]:
        """Sums over norms, biases and embeddings, and under ``matrices`` over all the rest."""
        modules = self.modules
        rest = sum((counts for kind, counts in modules.items() if kind not in APART), Counts())
        return {"matrices": rest} | {kind: modules[kind] for kind in APART if kind in modules}

    @property
    def rank(self) -> RankSummary | None:
        """Means over all matrices that changed and whose rank was taken; None if there are none."""
        taken = [row for tensor in self.tensors if tensor.module != "norm" for row in tensor.ranks or ()]
        rows = [row for row in taken if row.spectrum.stable_rank]
        if not rows:
            return None
        figures = zip(*((r.spectrum.rank_share, r.spectrum.stable_rank, *r.shares) for r in rows), strict=True)
        return RankSummary(len(rows), len(taken) - len(rows), *(math.fsum(values) / len(rows) for values in figures))

    @property
    def null_rows(self) -> tuple[NullRow, ...]:
        """Figures of the matrices with nulls, each beside what it would be without the effect."""
        return null_rows([rank for tensor in self.tensors for rank in tensor.ranks or ()])

    @property
    def sizes(self) -> SizeSummary | None:
        """How far the sizes of the base's weights explain where the update lies; None where nothing changed or the sizes are not known."""
        matrices = [bool(count_ranked(t.module, t.dtype, t.shape)) for t in self.tensors]
        return summarize_sizes([(t.dtype, t.exponents) for t in self.tensors], matrices, [(b.low, b.count) for b in self.moves])

    @property
    def sample(self) -> tuple[ModuleSample, ...] | None:
        """With ``rank="sample"``, the matrices whose rank was taken, by kind of module; else None."""
        if self.rank_choice != "sample":
            return None
        samples = []
        for kind in KINDS:
            tensors = [t for t in self.tensors if t.module == kind]
            matrices, taken = sum(count_ranked(kind, t.dtype, t.shape) for t in tensors), sum(len(t.ranks or ()) for t in tensors)
            layers = sorted({t.layer for t in tensors if t.ranks and t.layer is not None})
            samples += [ModuleSample(kind, matrices, taken, tuple(layers))] * bool(matrices)
        return tuple(samples)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, as ``spec/report.schema.json`` describes them."""
        return self.sums() | {"tensors": [tensor_json(tensor) | self._counts(tensor.counts) for tensor in self.tensors]}

    def sums(self) -> dict[str, Any]:
        """All of :meth:`to_json` except its rows of tensors."""
        rank = self.rank
        groups: tuple[tuple[str, Mapping[Any, Counts]], ...] = (("expert", self.experts), ("component", self.components))
        return {
            "schema": SCHEMA,
            "base": self.base,
            "target": self.target,
            "settings": {
                "atol": self.tolerance.atol,
                "rtol": self.tolerance.rtol,
                "rank": self.rank_choice,
                "as": self.cast,
                "nulls": asdict(self.nulls),
            },
            "totals": self._counts(self.totals),
            "layers": [{"layer": layer, **self._counts(counts)} for layer, counts in self.layers.items()],
            "modules": [{"module": kind, **self._counts(counts)} for kind, counts in self.modules.items()],
            "moves": {
                "ulp": [{"from": int(b.low), "to": None if b.high is None else int(b.high), "count": b.count} for b in self.ulps],
                "abs": [{"from": b.low, "to": b.high, "count": b.count} for b in self.moves],
                "exponents": [asdict(row) for row in self.exponents],
            },
            "size": self.sizes and self.sizes.to_json(),
            "rank": asdict(rank) if rank else None,
            "nulls": [asdict(row) for row in self.null_rows],
            "sample": None if self.sample is None else [asdict(row) | {"layers": list(row.layers)} for row in self.sample],
            "added": list(self.added),
            "removed": list(self.removed),
            "unpaired": list(self.unpaired),
            "without_rank": list(self.without_rank),
            "against_zeros": self.against_zeros,
        } | {f"{key}s": [{key: name, **self._counts(c)} for name, c in sums.items()] for key, sums in groups if sums}

    @property
    def changes(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Number of elements of each tensor, and of those that changed, by scope and name."""
        sums = sums_by(((t.scope, t.name), t.counts) for t in self.tensors)
        return {key: (counts.elements, counts.changed) for key, counts in sums.items()}

    def to_bytes(self) -> bytes:
        """The report as :func:`ckptdiff.make` stores it in a patch: the same bytes wherever the checkpoints lie.

        Of very many tensors it does not hold the counts by exponent.

        Raises:
            CheckpointError: the report is larger than a reader takes, or it is of tensors that were cast on both sides.
        """
        if self.cast is not None:
            raise CheckpointError(f"the report is of tensors cast to {self.cast}, the patch of what is stored: report without as_dtype")
        small = replace(self, base="", target="", tensors=tuple(_rounded(tensor) for tensor in self.tensors))
        data = canonical.dumps(small.to_json())
        if len(data) > MAX_REPORT:  # counts by exponent are the largest part of a row, and the easiest to do without
            small = replace(small, tensors=tuple(replace(tensor, exponents=None) for tensor in small.tensors))
            data = canonical.dumps(small.to_json())
        stored = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True).compress(data)
        if len(data) > MAX_REPORT or len(stored) > MAX_STORED_REPORT:
            raise CheckpointError(
                f"the report of {len(self.tensors)} tensors has {len(data)} bytes, {len(stored)} as stored; a patch can hold at most "
                f"{MAX_REPORT}, {MAX_STORED_REPORT} as stored: make the patch without it, and keep what ckptdiff report --json gives"
            )
        return stored

    def _counts(self, counts: Counts) -> dict[str, int | None]:
        return {key: n if self.complete or key in ("elements", "bit_identical") else None for key, n in asdict(counts).items()}


def tensor_json(tensor: TensorReport) -> dict[str, Any]:
    """A tensor's row as plain JSON values, without its counts."""
    row = {key: getattr(tensor, key) for key in ("scope", "name", "dtype")}
    row |= {"shape": list(tensor.shape), "layer": tensor.layer, "module": tensor.module}
    row |= {"part": tensor.part, "bases": list(tensor.bases), "base_dtype": tensor.base_dtype, "target_dtype": tensor.target_dtype}
    row |= {"rows": list(tensor.rows) if tensor.rows else None, "columns": list(tensor.columns) if tensor.columns else None}
    row |= {"expert_changes": None if tensor.expert_changes is None else list(tensor.expert_changes)}
    spectra = None if tensor.ranks is None else [rank.to_json() for rank in tensor.ranks]
    return row | {"spectra": spectra, "exponents": tensor.exponents and tensor.exponents.to_json()}


def _rounded(tensor: TensorReport) -> TensorReport:
    def quantiles(values: Quantiles | None) -> Quantiles | None:
        return None if values is None else tuple(map(significant, values))

    ranks = None if tensor.ranks is None else tuple(rank.rounded() for rank in tensor.ranks)
    return replace(tensor, rows=quantiles(tensor.rows), columns=quantiles(tensor.columns), ranks=ranks)
