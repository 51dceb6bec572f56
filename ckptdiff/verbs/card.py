"""The model card of a patch's repo: what push writes stands between two comments, beside whatever the owner of the repo writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptdiff.analysis.report_model import Report
from ckptdiff.hub.ids import HubId
from ckptdiff.obtaining import HOW_TO_GET_IT
from ckptdiff.pages.null_prose import NULL_COLUMNS, null_table_rows
from ckptdiff.pages.report_prose import findings, headline
from ckptdiff.units import byte_size, count_in_words, percent, percent_of, short_number, size_ratio, three_digits
from ckptdiff.verbs.info import PatchInfo

BEGIN = "<!-- ckptdiff push writes what follows, up to the closing comment -->"
END = "<!-- ckptdiff push wrote what stands above -->"


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that a card states."""

    patch: PatchInfo
    repo: HubId
    """The repo of the patch."""
    base: HubId
    """The repo and commit of the base."""
    report: Report | None
    checked: tuple[str, ...]
    """What was checked, in Markdown."""
    picture: str | None
    """Path in the repo of the picture of where weights changed."""
    endpoint: str
    """Address of the Hub, for links."""


def card_text(facts: Facts, existing: str | None) -> str:
    """The card's Markdown.

    Args:
        facts: what the part that push writes states.
        existing: the repo's card, if there is one. The new part takes the place of the one that an earlier push wrote, or comes last.
    """
    return with_part(_part(facts), existing)


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """The facts that the card of a chain states."""

    repo: HubId
    base: HubId | None
    """The repo and commit of the base, if the chain records them."""
    base_identity: str
    steps: str
    """How many, and which."""
    last: int
    """The last step."""
    size: int
    """Bytes of all patches."""


def chain_card_text(facts: ChainFacts, existing: str | None) -> str:
    """The Markdown of the card of a chain's repo; ``existing`` is as of :func:`card_text`."""
    name = facts.repo.repo.partition("/")[2]
    base = f"`{facts.base.repo}` at commit `{facts.base.revision}`" if facts.base else f"the checkpoint of identity `{facts.base_identity}`"
    lines = [
        f"# {_escaped(name)}",
        "",
        f"The checkpoints of a training run, as a ckptdiff chain of {byte_size(facts.size)}. This command rebuilds one of them, every file "
        "of it byte for byte; without `--step` it fetches the chain:",
        "",
        "```sh",
        f"# to get ckptdiff, {HOW_TO_GET_IT}",
        f"ckptdiff pull {facts.repo} --step {facts.last} -o step-{facts.last}{'' if facts.base else ' --base BASE'}",
        "```",
        "",
        *_table(("", ""), [("base", base), ("steps", facts.steps), ("patches", f"{byte_size(facts.size)} ({facts.size:,} bytes)")]),
        "",
        "Before it was published, every patch was checked by its digests, and that each follows from the one before it.",
        "",
    ]
    return with_part("\n".join(lines), existing)


def with_part(text: str, existing: str | None) -> str:
    """A card with the part that push writes in its place."""
    part = f"{BEGIN}\n{text}{END}\n"
    if existing is None or not existing.strip():
        return part
    head, begin, rest = existing.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        return existing.rstrip() + "\n\n" + part
    return head + part + tail.removeprefix("\n")


def _part(facts: Facts) -> str:
    """The part of the card that push writes."""
    patch, name = facts.patch, facts.repo.repo.partition("/")[2]
    base = f"[{facts.base.repo}]({facts.endpoint}/{facts.base.repo}/tree/{facts.base.revision})"
    lines = [
        f"# {_escaped(name)}",
        "",
        f"What training changed in {base}, as a ckptdiff patch: {byte_size(patch.patch_size)} "
        f"for a model of {byte_size(patch.target_size)}, {size_ratio(patch.target_size, patch.patch_size)}. "
        "This command rebuilds the model, every file of it byte for byte:",
        "",
        "```sh",
        f"# to get ckptdiff, {HOW_TO_GET_IT}",
        f"ckptdiff pull {facts.repo} -o {name}{'' if patch.is_folder else '.safetensors'}",
        "```",
        "",
        *_table(("", ""), _size_rows(facts)),
    ]
    if facts.report is not None:
        lines += ["", "## What training changed", "", *_report_lines(facts.report, facts.picture)]
    lines += ["", "## What was checked before it was published", "", *(f"- {line}" for line in facts.checked), ""]
    return "\n".join(lines) + "\n"


def _size_rows(facts: Facts) -> list[tuple[str, str]]:
    patch, totals = facts.patch, facts.patch.totals
    return [
        ("base", f"`{facts.base.repo}` at commit `{facts.base.revision}`"),
        ("patch", f"{byte_size(patch.patch_size)} ({patch.patch_size:,} bytes)"),
        ("model", f"{byte_size(patch.target_size)} ({patch.target_size:,} bytes) in {len(patch.files)} files"),
        ("tensors", f"{totals.delta:,} changed, {totals.same:,} the same, {totals.new + totals.copy:,} added, {totals.removed:,} removed"),
        ("elements changed", f"{totals.changed:,} of {totals.units:,} ({percent_of(totals.changed, totals.units)})"),
    ]


def _report_lines(report: Report, picture: str | None) -> list[str]:
    totals, rank = report.totals, report.rank
    rows = [
        ("bit-identical weights (update sparsity by bits)", percent(totals.sparsity)),
    ]
    if report.complete and totals.elements:
        tolerance = f"weights within {short_number(report.tolerance.atol)} (update sparsity of [arXiv 2505.11711](https://arxiv.org/abs/2505.11711))"
        rows.append((tolerance, percent(totals.within_atol / totals.elements)))
    if rank is not None:
        rows.append((f"mean rank of the update over full rank, {rank.matrices:,} matrices", percent(rank.rank_share)))
        rows.append(("mean rank of a random update as sparse over full rank", percent(rank.random_rank_share)))
        rows.append(("mean stable rank", three_digits(rank.stable_rank)))
    value = report.to_json()
    nulls = null_table_rows(value)
    kinds = [
        (_escaped(kind), count_in_words(counts.elements), percent(counts.changed / counts.elements))
        for kind, counts in report.modules.items()
    ]
    first = f"{percent(1 - totals.sparsity)} of the weights changed."
    if report.complete:
        first = " ".join(filter(None, (headline(value), findings(value))))
    beside = _table(("beside nulls (95 %)", *(name for name, _ in NULL_COLUMNS[1:])), [tuple(row) for row in nulls]) if nulls else []
    lines = [first, "", *_table(("", ""), rows), *([""] * bool(beside)), *beside, "", *_table(("kind", "weights", "changed"), kinds)]
    return lines + (["", f"![Where weights changed, by layer and kind]({picture})"] if picture else [])


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows)]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is; what cannot be seen is left out."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#!&~$" else c for c in text if c.isprintable())
