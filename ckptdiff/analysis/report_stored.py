"""Reading reports that are stored in patches (spec 5.4). It is strict, since patches may come from strangers: all that is shown is
checked."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from typing import Any, get_args

from ckptdiff.analysis.intervals import MAX_DRAWS, NullSettings
from ckptdiff.analysis.modules import KINDS, MAX_LAYER
from ckptdiff.analysis.report_model import (
    MAX_REPORT,
    QUANTILES,
    SCHEMA,
    Bin,
    ExponentRow,
    Quantiles,
    RankChoice,
    Report,
    TensorReport,
    tensor_json,
)
from ckptdiff.analysis.sparsity import COUNT_FIELDS, Counts, Tolerance
from ckptdiff.analysis.stored_ranks import read_exponents, read_number, read_numbers, read_rank
from ckptdiff.errors import FormatError, UnsupportedError, cut
from ckptdiff.format.canonical import MAX_INTEGER, JsonObject, quoted
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.fields import Fields, as_integer, as_text, load_divided
from ckptdiff.format.zstd_frame import decompress
from ckptdiff.patching.patch_limits import MAX_ALL_TENSORS

MAX_ROW_DEPTH = 9
MAX_ROW_NODES = 1 << 18
"""Braces, brackets and commas of one tensor's row; each of its matrices takes about 80, and as many again with nulls."""
OPEN_BIN_START = 1 << 52
"""Lower end of the bin of ulp distances that has no upper end."""

REPORT_FIELDS = (
    "schema base target settings totals layers modules experts components moves size rank nulls sample tensors added removed unpaired "
    "without_rank against_zeros"
)
TENSOR_FIELDS = (
    *("scope", "name", "part", "bases", "base_dtype", "target_dtype", "dtype", "shape", "layer", "module", "rows", "columns"),
    *("expert_changes", "spectra", "exponents"),
    *COUNT_FIELDS,
)


def unpack(stored: bytes, where: str, target: str) -> Report:
    """Read a stored report.

    Args:
        stored: its bytes in the patch.
        where: what error messages call it.
        target: name to give to the target, as stored reports do not name their checkpoints.

    Raises:
        FormatError: the report is broken. UnsupportedError: a newer ckptdiff wrote it.
    """
    data = decompress(stored, MAX_REPORT, where)

    def schema(value: JsonObject) -> None:
        if value.get("schema") != SCHEMA:
            raise UnsupportedError(f"{where}: its schema is {cut(value.get('schema'))!r}, expected {SCHEMA!r}: try to upgrade ckptdiff")

    limits = {"most": MAX_ALL_TENSORS, "nodes": MAX_ROW_NODES, "depth": MAX_ROW_DEPTH}
    f = load_divided(data, where, REPORT_FIELDS, {"tensors": _row}, **limits, exact=False, first=schema)
    settings, moves = f.child("settings", "atol rtol rank as nulls"), f.child("moves", "ulp abs exponents")
    report = Report(
        base="",
        target="",
        tolerance=Tolerance(read_number(settings, "atol"), read_number(settings, "rtol")),
        rank_choice=_rank_choice(settings),
        tensors=tuple(f.items("tensors")),
        ulps=moves.array("ulp", partial(_bin, kind=int)),
        moves=moves.array("abs", partial(_bin, kind=float)),
        exponents=moves.array("exponents", _exponent),
        added=f.array("added", as_text),
        removed=f.array("removed", as_text),
        unpaired=f.array("unpaired", as_text),
        without_rank=f.array("without_rank", as_text),
        against_zeros=f.integer("against_zeros"),
        nulls=_nulls(settings),
    )
    if settings.value.get("as") is not None:
        raise FormatError(f"{where}.settings.as: expected null, as what a patch stores is not cast, found {cut(settings.value['as'])}")
    if report.sums() != {key: member for key, member in f.value.items() if key != "tensors"}:
        raise FormatError(f"{where}: its sums do not agree with its tensors: do not trust this patch")
    return replace(report, target=target)


def _rank_choice(settings: Fields) -> Any:
    choice = settings.text("rank")
    if choice not in get_args(RankChoice):
        raise FormatError(f"{settings.where}.rank: expected one of {', '.join(get_args(RankChoice))}, found {quoted(choice)}")
    return choice


def _nulls(settings: Fields) -> NullSettings:
    f = settings.child("nulls", "draws seed")
    return NullSettings(f.integer("draws", high=MAX_DRAWS), f.integer("seed", high=MAX_INTEGER))


def _bin(value: Any, where: str, kind: type[int] | type[float]) -> Bin:
    f = Fields(value, where, "from to count")
    if kind is int:
        low = f.integer("from", high=MAX_INTEGER)
        high = None if low == OPEN_BIN_START and f.value.get("to") is None else f.integer("to", high=MAX_INTEGER)
        return Bin(low, high, f.integer("count"))
    return Bin(read_number(f, "from"), read_number(f, "to"), f.integer("count"))


def _exponent(value: Any, where: str) -> ExponentRow:
    f = Fields(value, where, "exponent elements changed")
    exponent = f.integer("exponent", low=-2000, high=2000) if f.value.get("exponent") is not None else None
    elements = f.integer("elements")
    return ExponentRow(exponent, elements, f.integer("changed", high=elements))


def _row(value: Any, where: str) -> TensorReport:
    tensor = _tensor(value, where)
    if tensor_json(tensor) | asdict(tensor.counts) != value:
        raise FormatError(f"{where}: holds a value in another form than its type has")
    return tensor


def _tensor(value: Any, where: str) -> TensorReport:
    f = Fields(value, where, " ".join(TENSOR_FIELDS))
    dtype, module = f.text("dtype"), f.text("module")
    if dtype not in DTYPES or module not in KINDS:
        raise UnsupportedError(f"{where}: unknown dtype {quoted(dtype)} or module {quoted(module)}: try to upgrade ckptdiff")
    elements, shape = f.integer("elements"), f.array("shape", as_integer)
    if elements != math.prod(shape) * (1 + (dtype == "C64")):
        raise FormatError(f"{where}: has {elements} elements, but the shape {cut(list(shape))}: do not trust this patch")
    experts = f.array("expert_changes", as_integer) if f.value.get("expert_changes") is not None else None
    changed = elements - f.integer("bit_identical", high=elements)
    if experts is not None and (not experts or (len(experts), sum(experts)) != (shape[0] if shape else 0, changed)):
        raise FormatError(f"{where}.expert_changes: does not agree with the shape and the changed elements: do not trust this patch")
    return TensorReport(
        scope=f.text("scope"),
        name=f.text("name"),
        dtype=dtype,
        shape=shape,
        layer=f.integer("layer", high=MAX_LAYER) if f.value.get("layer") is not None else None,
        module=module,
        counts=Counts(elements=elements, **{key: f.integer(key, high=elements) for key in COUNT_FIELDS if key != "elements"}),
        rows=_quantiles(f, "rows"),
        columns=_quantiles(f, "columns"),
        ranks=f.array("spectra", read_rank) if f.value.get("spectra") is not None else None,
        part=f.integer("part") if f.value.get("part") is not None else None,
        expert_changes=experts,
        bases=f.array("bases", as_text),
        base_dtype=f.text("base_dtype") if f.value.get("base_dtype") is not None else None,
        exponents=read_exponents(f, dtype) if f.value.get("exponents") is not None else None,
    )


def _quantiles(f: Fields, key: str) -> Quantiles | None:
    if f.value.get(key) is None:
        return None
    return read_numbers(f, key, len(QUANTILES), len(QUANTILES), 1.0)
