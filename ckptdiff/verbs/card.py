"""The model card of a patch's repo: a part of ours between two comments, beside whatever its owner wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptdiff.analysis.report_model import Report
from ckptdiff.hub.ids import HubId
from ckptdiff.pages.report_prose import headline
from ckptdiff.units import byte_size, count_in_words, percent, percent_of, size_ratio
from ckptdiff.verbs.info import PatchInfo

BEGIN = "<!-- ckptdiff push writes what follows, up to the closing comment -->"
END = "<!-- ckptdiff push wrote what stands above -->"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card says: the patch, its repo and its base's, a report if there is one, what was checked, and a picture's path."""

    patch: PatchInfo
    repo: HubId
    base: HubId
    report: Report | None
    checked: tuple[str, ...]
    picture: str | None
    endpoint: str


def card_text(facts: Facts, own: str | None) -> str:
    """The card's Markdown: ``own`` with our part put in, or in the place of the one that an earlier push wrote."""
    ours = f"{BEGIN}\n{_ours(facts)}{END}\n"
    if own is None or not own.strip():
        return ours
    head, begin, rest = own.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        return own.rstrip() + "\n\n" + ours
    return head + ours + tail.removeprefix("\n")


def _ours(facts: Facts) -> str:
    patch, name = facts.patch, facts.repo.repo.partition("/")[2]
    base = f"[{facts.base.repo}]({facts.endpoint}/{facts.base.repo}/tree/{facts.base.revision})"
    lines = [
        f"# {_cell(name)}",
        "",
        f"What training changed in {base}, as a [ckptdiff](https://pypi.org/project/ckptdiff/) patch: {byte_size(patch.patch_size)} "
        f"for a model of {byte_size(patch.target_size)}, {size_ratio(patch.target_size, patch.patch_size)}. "
        "These two lines rebuild the model, every file of it byte for byte:",
        "",
        "```sh",
        "pip install ckptdiff",
        f"ckptdiff pull {facts.repo} -o {name}{'' if patch.is_folder else '.safetensors'}",
        "```",
        "",
        *_table(("", ""), _sizes(facts)),
    ]
    if facts.report is not None:
        lines += ["", "## What training changed", "", *_report(facts.report, facts.picture)]
    lines += ["", "## What was checked before it was published", "", *(f"- {line}" for line in facts.checked), ""]
    return "\n".join(lines) + "\n"


def _sizes(facts: Facts) -> list[tuple[str, str]]:
    patch, totals = facts.patch, facts.patch.totals
    return [
        ("base", f"`{facts.base.repo}` at commit `{facts.base.revision}`"),
        ("patch", f"{byte_size(patch.patch_size)} ({patch.patch_size:,} bytes)"),
        ("model", f"{byte_size(patch.target_size)} ({patch.target_size:,} bytes) in {len(patch.files)} files"),
        ("tensors", f"{totals.delta:,} changed, {totals.same:,} the same, {totals.new + totals.copy:,} added, {totals.removed:,} removed"),
        ("elements changed", f"{totals.changed:,} of {totals.units:,} ({percent_of(totals.changed, totals.units)})"),
    ]


def _report(report: Report, picture: str | None) -> list[str]:
    totals, rank = report.totals, report.rank
    rows = [
        ("bit-identical weights (update sparsity by bits)", percent(totals.sparsity)),
    ]
    if report.complete and totals.elements:
        tolerance = f"weights within {report.tolerance.atol:g} (update sparsity of [arXiv 2505.11711](https://arxiv.org/abs/2505.11711))"
        rows.append((tolerance, percent(totals.within_atol / totals.elements)))
    if rank is not None:
        rows.append((f"mean rank of the update over full rank, {rank.matrices} matrices", percent(rank.rank_share)))
        rows.append(("the same of an update as sparse, scattered at random", percent(rank.random_rank_share)))
        rows.append(("mean stable rank", f"{rank.stable_rank:.1f}"))
    kinds = [
        (_cell(kind), count_in_words(counts.elements), percent(counts.changed / counts.elements)) for kind, counts in report.modules.items()
    ]
    first = headline(report.to_json()) if report.complete else f"{percent(1 - totals.sparsity)} of the weights changed."
    lines = [first, "", *_table(("", ""), rows), "", *_table(("kind", "weights", "changed"), kinds)]
    return lines + (["", f"![Where weights changed, by layer and kind]({picture})"] if picture else [])


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows)]


def _cell(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#!&~$" else c for c in text if c.isprintable())
