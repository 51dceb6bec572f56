"""The numbers that the charts draw and the sentences name, computed from a report's JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ckptdiff.analysis.modules import KINDS

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
RANDOM_LABEL = "random "
"""Start of the labels of computed spectra, those of random matrices."""


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
    """Modules in the order in which a model uses them."""
    return sorted(modules, key=lambda m: (KINDS.index(m) if m in KINDS else len(KINDS), m))


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


def changed_cells(report: JsonReport) -> Rows:
    """Elements and changed elements of each kind of module in each layer of a report."""
    return heat_map_cells((t["layer"], t["module"], t["elements"], changed_count(t)) for t in report["tensors"])


def rank_shares(tensor: dict[str, Any], field: str) -> list[float]:
    """Rank (or ``random_rank``) over full rank, for each matrix of a tensor for which it is known."""
    ranks = ((s[field], min(s["rows"], s["columns"])) for s in tensor["spectra"] or ())
    return [rank / full for rank, full in ranks if full and rank is not None]


def rank_cells(report: JsonReport, field: str) -> Rows:
    """Mean of rank over full rank for each kind of module in each layer."""
    shares: dict[tuple[str, str], list[float]] = {}
    for tensor in report["tensors"]:
        values = rank_shares(tensor, field)
        if values:
            shares.setdefault((layer_label(tensor["layer"]), tensor["module"]), []).extend(values)
    return [{"layer": layer, "module": module, "matrices": len(v), "value": sum(v) / len(v)} for (layer, module), v in shares.items()]


def label_of(tensor: dict[str, Any]) -> str:
    """A tensor's name, with the number of its part where it is one of several."""
    return tensor["name"] if tensor.get("part") is None else f"{tensor['name']}[{tensor['part']}]"


def chosen_spectra(report: JsonReport) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, tensor name and spectrum of one matrix of each kind of module, from a middle layer.

    Where all matrices are of one kind, several of them are taken.
    """
    by_module: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for tensor in report["tensors"]:
        for spectrum in tensor["spectra"] or ():
            values = spectrum["singular_values"]
            if len(values) > 1 and values[0] > 0:
                by_module.setdefault(tensor["module"], []).append((label_of(tensor), spectrum))
    if len(by_module) == 1:
        ((module, matrices),) = by_module.items()
        picked = sorted({i * (len(matrices) - 1) // (MAX_SPECTRA_OF_ONE_MODULE - 1) for i in range(MAX_SPECTRA_OF_ONE_MODULE)})
        return [(f"{module} {i + 1}", *matrices[i]) for i in picked]
    return [(m, *by_module[m][len(by_module[m]) // 2]) for m in module_order(set(by_module))][:MAX_SPECTRA]


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


def spectrum_lines(report: JsonReport) -> tuple[Rows, list[str]]:
    """Points of all lines, and the lines' labels: measured spectra first, then those of random matrices of at most three of the shapes."""
    points: Rows = []
    labels: list[str] = []
    shapes: dict[str, tuple[int, int]] = {}
    for label, name, spectrum in chosen_spectra(report):
        labels.append(label)
        values = spectrum["singular_values"]
        points += spectrum_points(label, name, "measured", [v / values[0] for v in values])
        long, short = max(spectrum["rows"], spectrum["columns"]), min(spectrum["rows"], spectrum["columns"])
        shapes.setdefault(f"{RANDOM_LABEL}{long / short:.2g}:1", (long, short))
    for shape, (long, short) in list(shapes.items())[:3]:
        labels.append(shape)
        points += spectrum_points(shape, f"independent random entries, {long} x {short}", "random", random_spectrum(long, short))
    return points, labels


def spectrum_points(label: str, name: str, kind: str, values: list[float]) -> Rows:
    """Points of one line: singular value by rank, both as shares of the largest."""
    last = max(len(values) - 1, 1)
    kept = [(i / last, v) for i, v in enumerate(values) if v >= MIN_SINGULAR_VALUE]
    return [{"line": label, "tensor": name, "kind": kind, "rank": x, "value": v} for x, v in kept]
