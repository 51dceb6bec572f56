"""Numbers drawn by the charts and named by the sentences, from a report's JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ckptdiff.analysis.modules import KINDS

Report = dict[str, Any]
Rows = list[dict[str, Any]]

NO_LAYER = "none"
SMALLEST_RATIO = 1e-7
"""Singular values below this share of the largest are rounding noise of single precision, and left out."""
MOST_SPECTRA, MOST_ALIKE = 8, 5
RANDOM = "random "
"""Start of the labels of spectra that are not measured."""


def changed(counts: dict[str, Any]) -> int:
    return int(counts["elements"] - counts["bit_identical"])


def share(counts: dict[str, Any]) -> float:
    """Share of elements that changed."""
    return changed(counts) / counts["elements"] if counts["elements"] else 0.0


def in_order(modules: set[str]) -> list[str]:
    """Modules in the order in which a model uses them."""
    return sorted(modules, key=lambda m: (KINDS.index(m) if m in KINDS else len(KINDS), m))


def layer_order(labels: set[str]) -> list[str]:
    return sorted(labels, key=lambda label: (label == NO_LAYER, int(label) if label != NO_LAYER else 0))


def layer_label(layer: int | None) -> str:
    return NO_LAYER if layer is None else str(layer)


def place_cells(tensors: Iterable[tuple[int | None, str, int, int]]) -> Rows:
    """Changed and all elements of each module of each layer; of each tensor: layer, module, elements, changed."""
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


def change_cells(report: Report) -> Rows:
    """Changed and all elements of each module of each layer."""
    return place_cells((t["layer"], t["module"], t["elements"], changed(t)) for t in report["tensors"])


def shares_of_rank(tensor: dict[str, Any], field: str) -> list[float]:
    """Rank, or the rank of a random update, divided by the most it can be: one of each matrix of a tensor."""
    found = ((s[field], min(s["rows"], s["columns"])) for s in tensor["spectra"] or ())
    return [rank / full for rank, full in found if full and rank is not None]


def rank_cells(report: Report, field: str) -> Rows:
    """Mean share of rank of each module of each layer."""
    shares: dict[tuple[str, str], list[float]] = {}
    for tensor in report["tensors"]:
        for share in shares_of_rank(tensor, field):
            shares.setdefault((layer_label(tensor["layer"]), tensor["module"]), []).append(share)
    return [{"layer": layer, "module": module, "matrices": len(v), "value": sum(v) / len(v)} for (layer, module), v in shares.items()]


def chosen_spectra(report: Report) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, name and spectrum of one matrix of each module, from the middle layer that has one; of one module alone, several."""
    by_module: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for tensor in report["tensors"]:
        for spectrum in tensor["spectra"] or ():
            values = spectrum["singular_values"]
            if len(values) > 1 and values[0] > 0:
                by_module.setdefault(tensor["module"], []).append((tensor["name"], spectrum))
    if len(by_module) == 1:
        ((module, found),) = by_module.items()
        picked = sorted({i * (len(found) - 1) // (MOST_ALIKE - 1) for i in range(MOST_ALIKE)})
        return [(f"{module} {i + 1}", *found[i]) for i in picked]
    return [(m, *by_module[m][len(by_module[m]) // 2]) for m in in_order(set(by_module))][:MOST_SPECTRA]


def random_spectrum(rows: int, columns: int, points: int = 64) -> list[float]:
    """Singular values of a large matrix of independent random entries over the largest, by rank (Marchenko and Pastur's law)."""
    ratio = min(rows, columns) / max(rows, columns)
    low, high = 1 - math.sqrt(ratio), 1 + math.sqrt(ratio)
    s = low + (high - low) * (np.arange(20_000) + 0.5) / 20_000
    density = np.sqrt(np.maximum((high**2 - s**2) * (s**2 - low**2), 0)) / s
    share_above = 1 - np.cumsum(density) / max(density.sum(), np.finfo(float).tiny)  # a long enough matrix has all at one
    wanted = np.linspace(0, 1, points, endpoint=False)
    return [float(v) / high for v in np.interp(wanted, share_above[::-1], s[::-1])]


def spectrum_lines(report: Report) -> tuple[Rows, list[str]]:
    """Points of all lines, and the lines' labels: measured first, then random ones of the same shapes (three shapes at most)."""
    points: Rows = []
    labels: list[str] = []
    shapes: dict[str, tuple[int, int]] = {}
    for label, name, spectrum in chosen_spectra(report):
        labels.append(label)
        values = spectrum["singular_values"]
        points += curve(label, name, "measured", [v / values[0] for v in values])
        long, short = max(spectrum["rows"], spectrum["columns"]), min(spectrum["rows"], spectrum["columns"])
        shapes.setdefault(f"{RANDOM}{long / short:.2g}:1", (long, short))
    for shape, (long, short) in list(shapes.items())[:3]:
        labels.append(shape)
        points += curve(shape, f"independent random entries, {long} x {short}", "random", random_spectrum(long, short))
    return points, labels


def curve(label: str, name: str, kind: str, values: list[float]) -> Rows:
    last = max(len(values) - 1, 1)
    kept = [(i / last, v) for i, v in enumerate(values) if v >= SMALLEST_RATIO]
    return [{"line": label, "tensor": name, "kind": kind, "rank": x, "value": v} for x, v in kept]
