"""What all pages share: one HTML file that needs no network, with a sentence, figures, charts and tables.

Names come from files that may be hostile. They are escaped in the markup and in the JSON; besides, the page's content security
policy lets only its own scripts run, told by digest, and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ckptdiff.errors import visible
from ckptdiff.pages.drawing import Chart, libraries, theme, vega_lite_version
from ckptdiff.pages.report_prose import percent

Cell = tuple[str, "str | float | None"]
"""What a cell shows, and what it sorts by."""
Columns = Sequence[tuple[str, str]]
"""Headings, and whether their columns hold ``text`` or a ``number``."""
SHOWN = 200
"""Rows laid out at first, so that a page of thousands opens and sorts at once; a button shows all."""


def clean(text: str) -> str:
    """Escaped, with what cannot be seen or turns the writing direction written out."""
    return escape(visible(text))


def prose(text: str) -> str:
    """The same, with no line break before a percent sign."""
    return clean(text).replace(" %", "&nbsp;%")


def share_cell(value: float | None) -> Cell:
    return percent(value), value


def row_html(cells: Iterable[str], kinds: Iterable[str], hidden: bool = False) -> str:
    """A row whose first cell heads it."""
    first, *rest = (
        f'<td class="text">{clean(c)}</td>' if kind == "text" else f"<td>{clean(c)}</td>" for c, kind in zip(cells, kinds, strict=True)
    )
    head = first.replace('<td class="text">', '<th scope="row">', 1).removesuffix("</td>").replace(".", ".<wbr>")
    return f"<tr{' hidden' if hidden else ''}>{head}</th>{''.join(rest)}</tr>"


def table_html(name: str, title: str, note: str, heads: str, rows: Iterable[str], above: str = "") -> str:
    """A titled table that scrolls by itself; ``note``: a line above it."""
    return f"""<h2 id="{name}-title">{clean(title)}</h2>
<p class="soft">{prose(note)}</p>
{above}<div class="table" tabindex="0" role="region" aria-labelledby="{name}-title"><table id="{name}" aria-labelledby="{name}-title">
<thead><tr>{heads}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table></div>"""


def small_table(name: str, title: str, note: str, columns: Columns, rows: Sequence[Sequence[str]]) -> str:
    """A table as it stands; nothing if it has no rows."""
    heads = "".join(f'<th scope="col" class="{kind}">{clean(head)}</th>' for head, kind in columns)
    kinds = [kind for _, kind in columns]
    return table_html(name, title, note, heads, (row_html(row, kinds) for row in rows)) if rows else ""


def tensor_table(note: str, columns: Columns, rows: Sequence[Sequence[Cell]]) -> str:
    """The table of tensors with its filter; page.js sorts and filters it."""
    if not rows:
        return ""
    kinds = [kind for _, kind in columns]
    heads = (f'<th scope="col" aria-sort="none" class="{kind}"><button>{clean(name)}</button></th>' for name, kind in columns)
    body = (row_html((text for text, _ in row), kinds, i >= SHOWN) for i, row in enumerate(rows))
    above = f"""<p class="filter"><label for="filter">Names that contain</label> <input id="filter" type="search" autocomplete="off">
<span id="shown" role="status">{len(rows):,} tensors</span> <button id="more" hidden>Show all</button></p>
"""
    note = f"Click a heading to sort, again to turn the order round. {note}"
    return table_html("tensors", "Each tensor", note, "".join(heads), body, above)


def figures_html(figures: Iterable[tuple[str, str, str]]) -> str:
    """Cards of a name, a value and a few words."""
    cards = (
        f'<div><dt>{clean(name)}</dt><dd class="value">{prose(value)}</dd><dd>{prose(text)}</dd></div>' for name, value, text in figures
    )
    return f'<dl class="figures">{"".join(cards)}</dl>'


def chart_html(chart: Chart, caption: str) -> str:
    label = clean(f"{chart.title}. {chart.description}")
    return f"""<figure aria-labelledby="title-{chart.name}"><figcaption><h3 id="title-{chart.name}">{clean(chart.title)}</h3>
<p>{prose(caption)}</p></figcaption><div class="chart" id="chart-{chart.name}" role="group" aria-label="{label}"></div></figure>"""


def charts_html(drawn: Sequence[Chart], texts: dict[str, str]) -> str:
    """Places for the charts, each with its caption."""
    if not drawn:
        return ""
    return f"<h2>Pictures</h2><div class='charts'>{''.join(chart_html(chart, texts[chart.name]) for chart in drawn)}</div>"


def left_out_html(kinds: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Tensors that were not compared: what is said of them, and their names."""
    lists = "".join(
        f"<details><summary>{len(names):,} {text}</summary><ul>{''.join(f'<li>{clean(name)}</li>' for name in names)}</ul></details>"
        for text, names in kinds
        if names
    )
    return f"<h2>Not compared</h2>{lists}" if lists else ""


def definitions_html(found: Iterable[tuple[str, str]]) -> str:
    """Each figure with its formula."""
    items = "".join(f"<dt>{clean(name)}</dt><dd>{clean(text)}</dd>" for name, text in found)
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


def page_html(
    title: str, headline: str, body: Iterable[str], drawn: Sequence[Chart], columns: Columns, rows: Sequence[Sequence[Cell]]
) -> str:
    """The text of an HTML file; ``columns`` and ``rows``: of the table of tensors in ``body``."""
    data = {
        "charts": {chart.name: fitted(chart.spec) for chart in drawn},
        "themes": {"light": theme(), "dark": theme(dark=True)},
        "columns": [kind for _, kind in columns],
        "shown": SHOWN,
        "rows": [[value for _, value in row] for row in rows],
    }
    folder = files("ckptdiff.pages")
    scripts = [bundled(), folder.joinpath("page.js").read_text("utf-8")]
    return PAGE.format(
        policy=escape(policy(scripts)),
        title=clean(title),
        style=folder.joinpath("page.css").read_text("utf-8"),
        headline=prose(headline),
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
