"""A report as one HTML page that needs no network: first what training changed in one sentence, then the numbers, then each tensor.

Names in a report come from files that may be hostile. They are escaped in the markup and in the JSON; besides, the page's
content security policy lets only its own scripts run, told by digest, and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

from ckptdiff.analysis.charts import Chart, charts, libraries, theme, vega_lite_version
from ckptdiff.analysis.series import Report, share, shares_of_rank
from ckptdiff.analysis.words import captions, decimal, definitions, headline, key_figures, percent
from ckptdiff.canonical import visible

Cell = tuple[str, "str | float | None"]
"""What a cell shows, and what it sorts by."""
COLUMNS = [
    ("name", "text"),
    ("layer", "number"),
    ("kind", "text"),
    ("dtype", "text"),
    ("shape", "number"),
    ("changed", "number"),
    ("one ulp", "number"),
    ("grew", "number"),
    ("in tolerance", "number"),
    ("rank", "number"),
    ("random rank", "number"),
    ("stable rank", "number"),
    ("rows 5–95 %", "number"),
    ("columns 5–95 %", "number"),
]
SHOWN = 200
"""Rows laid out at first, so that a page of thousands opens and sorts at once; a button shows all."""
GROUP_COLUMNS = ["kind", "elements", "changed", "in tolerance", "… rounded", "… relative", "one ulp", "grew"]


def clean(text: str) -> str:
    """Escaped, with what cannot be seen or turns the writing direction written out."""
    return escape(visible(text))


def prose(text: str) -> str:
    """The same, with no line break before a percent sign."""
    return clean(text).replace(" %", "&nbsp;%")


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite ones; None where there are none."""
    kept = [v for v in values if v is not None and math.isfinite(v)]
    return sum(kept) / len(kept) if kept else None


def part(counts: dict[str, Any], field: str) -> float | None:
    """Share of the changed elements."""
    count = counts["elements"] - counts["bit_identical"]
    return counts[field] / count if count else None


def share_cell(value: float | None) -> Cell:
    return percent(value), value


def span_cell(quantiles: list[float] | None) -> Cell:
    """The 0.05 and 0.95 quantiles; sorts by how far they lie apart."""
    if not quantiles:
        return percent(None), None
    return f"{percent(quantiles[1])[:-2]}–{percent(quantiles[5])}", quantiles[5] - quantiles[1]


def tensor_cells(tensor: dict[str, Any]) -> list[Cell]:
    """One row of the table of tensors, in the order of COLUMNS."""
    name = "/".join(filter(None, (tensor["scope"], tensor["name"])))
    shape = " × ".join(map(str, tensor["shape"])) or "scalar"
    stable = mean([s["stable_rank"] for s in tensor["spectra"] or ()])
    layer = tensor["layer"]
    elements = tensor["elements"]
    return [
        (name, name),
        ("–" if layer is None else str(layer), layer),
        (tensor["module"], tensor["module"]),
        (tensor["dtype"], tensor["dtype"]),
        (shape, elements),
        share_cell(share(tensor)),
        share_cell(part(tensor, "one_ulp")),
        share_cell(part(tensor, "up")),
        share_cell(tensor["within_atol"] / elements if elements else None),
        share_cell(mean(shares_of_rank(tensor, "rank"))),
        share_cell(mean(shares_of_rank(tensor, "random_rank"))),
        (decimal(stable), stable),
        span_cell(tensor["rows"]),
        span_cell(tensor["columns"]),
    ]


def row_html(cells: Iterable[str], kinds: Iterable[str], hidden: bool = False) -> str:
    """A row whose first cell heads it."""
    first, *rest = (
        f'<td class="text">{clean(c)}</td>' if kind == "text" else f"<td>{clean(c)}</td>" for c, kind in zip(cells, kinds, strict=True)
    )
    head = first.replace('<td class="text">', '<th scope="row">', 1).removesuffix("</td>").replace(".", ".<wbr>")
    return f"<tr{' hidden' if hidden else ''}>{head}</th>{''.join(rest)}</tr>"


def tensor_table(rows: list[list[Cell]]) -> str:
    """The table of tensors with its filter; page.js sorts and filters it."""
    if not rows:
        return ""
    kinds = [kind for _, kind in COLUMNS]
    heads = (f'<th scope="col" aria-sort="none" class="{kind}"><button>{clean(name)}</button></th>' for name, kind in COLUMNS)
    body = "\n".join(row_html((text for text, _ in row), kinds, i >= SHOWN) for i, row in enumerate(rows))
    return f"""<h2 id="tensors-title">Each tensor</h2>
<p class="soft">Click a heading to sort, again to turn the order round. “one ulp” and “grew” are shares of the changed elements.</p>
<p class="filter"><label for="filter">Names that contain</label> <input id="filter" type="search" autocomplete="off">
<span id="shown" role="status">{len(rows):,} tensors</span> <button id="more" hidden>Show all</button></p>
<div class="table" tabindex="0" role="region" aria-labelledby="tensors-title"><table id="tensors" aria-labelledby="tensors-title">
<thead><tr>{"".join(heads)}</tr></thead><tbody>
{body}
</tbody></table></div>"""


def group_table(report: Report) -> str:
    """The kinds of tensors, as a small table."""
    rows = []
    for group in report["modules"]:
        unchanged = [group[field] / (group["elements"] or 1) for field in ("within_atol", "within_atol_rounded", "within_rtol")]
        values = [share(group), *unchanged, part(group, "one_ulp"), part(group, "up")]
        rows.append(row_html([group["module"], f"{group['elements']:,}", *map(percent, values)], ["text", *["number"] * 7]))
    if not rows:
        return ""
    heads = "".join(f'<th scope="col" class="{"text" if i == 0 else "number"}">{name}</th>' for i, name in enumerate(GROUP_COLUMNS))
    return f"""<h2 id="kinds-title">Each kind of tensor</h2>
<p class="soft">“in tolerance” counts unchanged elements as the paper does; “rounded” as its code, “relative” by |base|. “one ulp” and
“grew” are shares of the changed elements.</p>
<div class="table" tabindex="0" role="region" aria-labelledby="kinds-title"><table aria-labelledby="kinds-title">
<thead><tr>{heads}</tr></thead><tbody>
{"".join(rows)}
</tbody></table></div>"""


def figures_html(report: Report) -> str:
    cards = (
        f'<div><dt>{clean(name)}</dt><dd class="value">{prose(value)}</dd><dd>{prose(text)}</dd></div>'
        for name, value, text in key_figures(report)
    )
    return f'<dl class="figures">{"".join(cards)}</dl>'


def chart_html(chart: Chart, caption: str) -> str:
    label = clean(f"{chart.title}. {chart.description}")
    return f"""<figure aria-labelledby="title-{chart.name}"><figcaption><h3 id="title-{chart.name}">{clean(chart.title)}</h3>
<p>{prose(caption)}</p></figcaption><div class="chart" id="chart-{chart.name}" role="group" aria-label="{label}"></div></figure>"""


def charts_html(report: Report, drawn: list[Chart]) -> str:
    if not drawn:
        return ""
    texts = captions(report)
    return f"<h2>Pictures</h2><div class='charts'>{''.join(chart_html(chart, texts[chart.name]) for chart in drawn)}</div>"


def one_sided_html(report: Report) -> str:
    """Tensors that were not compared."""
    kinds = (
        ("added", "only in the target"),
        ("removed", "only in the base"),
        ("unpaired", "on both sides, but of different shapes or types"),
    )
    found = [(text, report[kind]) for kind, text in kinds if report[kind]]
    lists = (
        f"<details><summary>{len(names):,} {text}</summary><ul>{''.join(f'<li>{clean(name)}</li>' for name in names)}</ul></details>"
        for text, names in found
    )
    return f"<h2>Not compared</h2>{''.join(lists)}" if found else ""


def definitions_html(report: Report) -> str:
    items = "".join(f"<dt>{clean(name)}</dt><dd>{clean(text)}</dd>" for name, text in definitions(report))
    return f'<h2>What the figures are</h2><dl class="definitions">{items}</dl>'


def fitted(spec: dict[str, Any]) -> dict[str, Any]:
    """As wide as the page lets it be."""
    return {**spec, "width": "container", "autosize": {"type": "fit-x", "contains": "padding", "resize": True}}


def script_json(value: Any) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(scripts: list[str]) -> str:
    """A content security policy that allows these scripts and nothing else."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def bundled() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    altair, vl_convert = libraries()
    script: str = vl_convert.javascript_bundle(vl_version=vega_lite_version(altair, vl_convert))
    return script.replace("\r", "").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def render_page(report: Report) -> str:
    """The report as the text of an HTML file."""
    drawn = charts(report)
    rows = [tensor_cells(tensor) for tensor in report["tensors"]]
    data = {
        "charts": {chart.name: fitted(chart.spec) for chart in drawn},
        "themes": {"light": theme(), "dark": theme(dark=True)},
        "columns": [kind for _, kind in COLUMNS],
        "shown": SHOWN,
        "rows": [[value for _, value in row] for row in rows],
    }
    folder = files("ckptdiff.analysis")
    scripts = [bundled(), folder.joinpath("page.js").read_text("utf-8")]
    body = [figures_html(report), charts_html(report, drawn), group_table(report), tensor_table(rows)]
    body += [one_sided_html(report), definitions_html(report)]
    return PAGE.format(
        policy=escape(policy(scripts)),
        title=clean(" → ".join(filter(None, (report["base"], report["target"])))),
        style=folder.joinpath("page.css").read_text("utf-8"),
        headline=prose(headline(report)),
        body="\n".join(body),
        data=script_json(data),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style><noscript><style>tr[hidden] {{ display: table-row; }}</style></noscript></head>
<body><main>
<h1>{title}</h1>
<p class="headline">{headline}</p>
{body}
</main>
<script type="application/json" id="data">{data}</script>
{scripts}
</body></html>
"""
