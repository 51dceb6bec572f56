"""What all pages share: one HTML file that needs no network, with a sentence, figures, charts and tables.

Names come from files that may be hostile. Jinja2 escapes every expression of the templates, and the JSON cannot end its element. Besides,
the page's content security policy lets only its own scripts run, told by digest, and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ckptdiff.errors import visible
from ckptdiff.lazy import jinja2, markupsafe
from ckptdiff.pages.drawing import Chart, libraries, theme, vega_lite_version
from ckptdiff.units import MISSING, percent

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Cell = tuple[str, "str | float | None"]
"""What a cell of the table of tensors shows, and the value by which it is sorted."""
Columns = Sequence[tuple[str, str]]
"""Headings, and whether their columns hold ``text`` or a ``number``."""
ROWS_SHOWN_AT_FIRST = 200
"""Rows of the table of tensors that are laid out at first, so that a page of thousands opens and sorts at once; a button shows all."""
MOST_OPEN_ROWS = 20
"""Rows of a small table up to which it is open."""
PIECES_JOINED = 4096
"""Pieces of a page that are joined as soon as they are rendered: a page of 90,000 tensors has five million small ones."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a title, and a note above it. The first cell of each row is the row's heading."""

    name: str
    """Its id in the page."""
    title: str
    note: str
    columns: Columns
    rows: Sequence[Sequence[str]]
    sortable = False

    @property
    def collapsed(self) -> bool:
        """Whether it opens at a click only, and on paper."""
        return len(self.rows) > MOST_OPEN_ROWS

    def text_rows(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The heading and the other cells of each row."""
        return ((row[0], row[1:]) for row in self.rows)


@dataclass(frozen=True, slots=True)
class TensorTable:
    """The table of all tensors, which page.js sorts and filters. The first cell of each row is the tensor's name."""

    note: str
    """What its columns mean, where their headings do not say it."""
    columns: Columns
    rows: Sequence[Sequence[Cell]]
    name = "tensors"
    title = "Each tensor"
    sortable = True
    collapsed = False

    def text_rows(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The name and the text of the other cells of each row."""
        return ((row[0][0], [text for text, _ in row[1:]]) for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page says, from top to bottom."""

    title: str
    headline: str
    """The result in one short sentence."""
    findings: str
    """What else is to say, in a few sentences; may be empty."""
    figures: Sequence[tuple[str, str, str]]
    """Name, value and a short explanation of each key figure."""
    charts: Sequence[Chart]
    captions: Mapping[str, str]
    """What each chart's numbers mean, by the chart's name."""
    tables: Sequence[Table]
    """Small tables; those without rows are left out."""
    tensors: TensorTable
    left_out: Sequence[tuple[str, Sequence[str]]]
    """Why tensors were not compared, and their names; none of these lists is empty."""
    definitions: Sequence[tuple[str, str]]
    """Each figure with its formula and source."""


def share_cell(value: float | None) -> Cell:
    """A cell that shows a share in percent, and is sorted by it."""
    return percent(value), value


def path_of(scope: str, name: str) -> str:
    """A tensor's name after its scope."""
    return "/".join(filter(None, (scope, name)))


def label_cells(path: str, start: str, layer: int | None, module: str) -> list[Cell]:
    """The first cells of a tensor's row: its path without its start, by all of which it is sorted and found; its layer; its kind."""
    return [(path[len(start) :], path), (MISSING if layer is None else str(layer), layer), (module, module)]


@cache
def environment() -> Environment:
    """The templates' environment: it escapes every expression, and writes out what cannot be seen or turns the writing direction."""
    markup = markupsafe.Markup
    dot, line = markup(".<wbr>"), markup("_<wbr>")

    def shown(value: object) -> object:
        return value if isinstance(value, markup) else visible(str(value))

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("ckptdiff.pages", "templates"),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Sentences are not broken before a percent sign, nor behind that of a bound; names may be broken after each dot and underline.

    def prose(text: str) -> Markup:
        escaped = markup.escape(visible(text)).replace(" %", markup("&nbsp;%"))
        return escaped.replace("&lt; ", markup("&lt;&nbsp;")).replace("&gt; ", markup("&gt;&nbsp;"))

    templates.filters["prose"] = prose
    templates.filters["breakable"] = lambda name: markup.escape(visible(name)).replace("_", line).replace(".", dot)
    templates.filters["thousands"] = "{:,}".format
    templates.globals["zip"] = partial(zip, strict=True)
    return templates


def render(page: Page) -> str:
    """The text of an HTML file."""
    libraries()
    templates, folder = environment(), files("ckptdiff.pages")
    scripts = [bundled(), folder.joinpath("page.js").read_text("utf-8")]
    stream = templates.get_template("page.html.j2").stream(
        page=page,
        policy=policy(scripts),
        style=markupsafe.Markup(folder.joinpath("page.css").read_text("utf-8")),
        data=script_json(page_data(page)),
        scripts=[markupsafe.Markup(script) for script in scripts],
        rows_shown=ROWS_SHOWN_AT_FIRST,
    )
    stream.enable_buffering(PIECES_JOINED)
    return "".join(stream)


def page_data(page: Page) -> dict[str, Any]:
    """What page.js draws and sorts."""
    return {
        "charts": {chart.name: fitted(chart.spec) for chart in page.charts},
        "theme": theme(),
        "columns": [kind for _, kind in page.tensors.columns],
        "shown": ROWS_SHOWN_AT_FIRST,
        "rows": [[value for _, value in row] for row in page.tensors.rows],
    }


def fitted(spec: dict[str, Any]) -> dict[str, Any]:
    """A chart that is as wide as the page lets it be."""
    return {**spec, "width": "container", "autosize": {"type": "fit-x", "contains": "padding", "resize": True}}


def script_json(value: Any) -> Markup:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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
