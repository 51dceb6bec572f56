"""The numbers that the charts draw and the sentences name, computed from a report's JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptdiff.analysis.modules import KINDS, REST, components_of, modules_by_component
from ckptdiff.analysis.sparsity import COUNT_FIELDS
from ckptdiff.units import percent, three_digits

JsonReport = dict[str, Any]
"""A report as ``spec/report.schema.json`` describes it."""
Rows = list[dict[str, Any]]
"""Data of a chart: one object for each point, bar or cell."""

NO_LAYER = "none"
"""Label of tensors that belong to no layer."""
MIN_SINGULAR_VALUE = 1e-7
"""Share of the largest singular value below which one is rounding noise of single precision, and left out."""
MAX_SPECTRA = 8
MAX_SPECTRA_OF_ONE_MODULE = 5
"""Spectra that are drawn where all matrices are of one kind of module."""


def changed_count(counts: dict[str, Any]) -> int:
    """Number of elements whose bits differ."""
    return int(counts["elements"] - counts["bit_identical"])


def changed_share(counts: dict[str, Any]) -> float:
    """Share of the elements that changed; 0 where there are none."""
    return changed_count(counts) / counts["elements"] if counts["elements"] else 0.0


def share_of_changed(counts: dict[str, Any], field: str) -> float | None:
    """Share of the changed elements that ``field`` counts; None where nothing changed."""
    count = changed_count(counts)
    return counts[field] / count if count else None


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values; None where there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def module_order(modules: set[str]) -> list[str]:
    """Modules in the order in which a model uses them; those that follow the name of a component, by component."""

    def place(module: str) -> tuple[bool, str, int, str]:
        component, _, kind = module.rpartition(" ")
        return component == REST, component, KINDS.index(kind) if kind in KINDS else len(KINDS), kind

    return sorted(modules, key=place)


def layer_order(labels: set[str]) -> list[str]:
    """Layers by their numbers, and what belongs to none last."""
    return sorted(labels, key=lambda label: (label == NO_LAYER, int(label) if label != NO_LAYER else 0))


def layer_label(layer: int | None) -> str:
    return NO_LAYER if layer is None else str(layer)


def heat_map_cells(tensors: Iterable[tuple[int | None, str, int, int]]) -> Rows:
    """Elements and changed elements of each kind of module in each layer.

    Args:
        tensors: layer, kind of module, number of elements, and number of changed elements of each tensor.
    """
    sums: dict[tuple[str, str], list[int]] = {}
    for layer, module, elements, count in tensors:
        cell = sums.setdefault((layer_label(layer), module), [0, 0])
        cell[0] += elements
        cell[1] += count
    return [
        {"layer": layer, "module": module, "elements": elements, "changed": count, "value": count / elements}
        for (layer, module), (elements, count) in sums.items()
        if elements
    ]


def module_labels(report: JsonReport) -> list[str]:
    """The kind of module of each tensor, after its component where two components have layers of one number."""
    tensors = report["tensors"]
    components = components_of((t["scope"], t["name"]) for t in tensors)
    return modules_by_component(components, [t["layer"] for t in tensors], [t["module"] for t in tensors])


def changed_cells(report: JsonReport) -> Rows:
    """Elements and changed elements of each kind of module in each layer of a report."""
    tensors = zip(report["tensors"], module_labels(report), strict=True)
    return heat_map_cells((t["layer"], module, t["elements"], changed_count(t)) for t, module in tensors)


def layer_sums(report: JsonReport) -> dict[tuple[str, int], dict[str, int]]:
    """Sums of the counts by component and layer; all layers are in one component where no two components have layers of one number."""
    tensors, sums = report["tensors"], dict[tuple[str, int], dict[str, int]]()
    for tensor, module in zip(tensors, module_labels(report), strict=True):
        if tensor["layer"] is not None:
            into = sums.setdefault((module.rpartition(" ")[0], tensor["layer"]), dict.fromkeys(COUNT_FIELDS, 0))
            for field in COUNT_FIELDS:
                into[field] += tensor[field] or 0
    return dict(sorted(sums.items()))


def rank_shares(tensor: dict[str, Any], field: str) -> list[float]:
    """Rank (or ``random_rank``) over full rank, for each matrix of a tensor for which it is known."""
    ranks = ((s[field], min(s["rows"], s["columns"])) for s in tensor["spectra"] or ())
    return [rank / full for rank, full in ranks if full and rank is not None]


def rank_cells(report: JsonReport, field: str) -> Rows:
    """Mean of rank over full rank for each kind of module in each layer."""
    shares: dict[tuple[str, str], list[float]] = {}
    for tensor, module in zip(report["tensors"], module_labels(report), strict=True):
        values = rank_shares(tensor, field)
        if values:
            shares.setdefault((layer_label(tensor["layer"]), module), []).extend(values)
    return [{"layer": layer, "module": module, "matrices": len(v), "value": sum(v) / len(v)} for (layer, module), v in shares.items()]


def label_of(tensor: dict[str, Any]) -> str:
    """A tensor's name, with the number of its part where it is one of several."""
    return tensor["name"] if tensor.get("part") is None else f"{tensor['name']}[{tensor['part']}]"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the chart of singular values."""

    label: str
    """What the legend calls it."""
    points: Rows
    is_random: bool


def spectra_by_module(report: JsonReport) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """The spectra of each kind of module that can be drawn, each after its tensor."""
    by_module: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for tensor, module in zip(report["tensors"], module_labels(report), strict=True):
        for spectrum in tensor["spectra"] or ():
            values = spectrum["singular_values"]
            if len(values) > 1 and values[0] > 0:
                by_module.setdefault(module, []).append((tensor, spectrum))
    return by_module


def chosen_spectra(report: JsonReport) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Label, tensor and spectrum of one matrix of each kind of module, from a middle layer.

    Where all matrices are of one kind, several of them are taken.
    """
    by_module = spectra_by_module(report)
    if len(by_module) == 1:
        ((module, matrices),) = by_module.items()
        picked = sorted({i * (len(matrices) - 1) // (MAX_SPECTRA_OF_ONE_MODULE - 1) for i in range(MAX_SPECTRA_OF_ONE_MODULE)})
        return [(f"{module}, matrix {i + 1} of {len(matrices)}", *matrices[i]) for i in picked]
    middle = [(m, *by_module[m][len(by_module[m]) // 2]) for m in module_order(set(by_module))]
    return [(m if t["layer"] is None else f"{m}, layer {t['layer']}", t, spectrum) for m, t, spectrum in middle][:MAX_SPECTRA]


def random_spectrum(rows: int, columns: int, points: int = 64) -> list[float]:
    """Singular values of a large matrix of independent random entries, from the largest, as shares of it.

    Marchenko and Pastur, "Distribution of eigenvalues for some sets of random matrices" (1967): the density of s in [1 - sqrt(q),
    1 + sqrt(q)], with q the ratio of the sides, is proportional to sqrt((s_max^2 - s^2) (s^2 - s_min^2)) / s.

    Args:
        rows, columns: shape of the matrix.
        points: how many values to return, at even steps of rank.
    """
    ratio = min(rows, columns) / max(rows, columns)
    low, high = 1 - math.sqrt(ratio), 1 + math.sqrt(ratio)
    s = low + (high - low) * (np.arange(20_000) + 0.5) / 20_000
    density = np.sqrt(np.maximum((high**2 - s**2) * (s**2 - low**2), 0)) / s
    share_above = 1 - np.cumsum(density) / max(density.sum(), np.finfo(float).tiny)  # all singular values of a very long matrix are alike
    wanted = np.linspace(0, 1, points, endpoint=False)
    return [float(v) / high for v in np.interp(wanted, share_above[::-1], s[::-1])]


def spectrum_lines(report: JsonReport) -> list[Line]:
    """The lines in the order of the legend: measured spectra first, then those of random matrices of at most three of the shapes."""
    lines, shapes = [], dict[str, tuple[int, int]]()
    for label, tensor, spectrum in chosen_spectra(report):
        values = spectrum["singular_values"]
        lines.append(Line(label, spectrum_points(label, label_of(tensor), [v / values[0] for v in values]), False))
        long, short = max(spectrum["rows"], spectrum["columns"]), min(spectrum["rows"], spectrum["columns"])
        shapes.setdefault(f"random, sides {three_digits(long / short).removesuffix('.00').removesuffix('.0')}:1", (long, short))
    for label, (long, short) in sorted(shapes.items(), key=lambda shape: shape[1][0] / shape[1][1]):
        points = spectrum_points(label, f"independent random entries, {long} x {short}", random_spectrum(long, short))
        lines.append(Line(label, points, True))
    return lines


def spectrum_points(label: str, name: str, values: list[float]) -> Rows:
    """Points of one line: singular value by rank, both as shares of the largest."""
    last = max(len(values) - 1, 1)
    kept = [(i / last, v) for i, v in enumerate(values) if v >= MIN_SINGULAR_VALUE]
    return [{"line": label, "tensor": name, "rank": x, "value": v, "share": percent(v)} for x, v in kept]
