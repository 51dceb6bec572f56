"""Pages opened in a real browser with a probe added, and PNG files as pixels."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage
--virtual-time-budget=20000""".split()

ATTACK = "</script><img src=x onerror=\"document.title='owned'\">{{7*7}}\u202e'&\ud800"

PROBE = """
(async () => {
  const violations = [];
  document.addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective));
  while (document.documentElement.dataset.drawn !== "yes") await new Promise((done) => setTimeout(done, 50));
  const table = document.getElementById("tensors");
  const column = (i) => Array.from(table.tBodies[0].rows).map((row) => row.cells[i].textContent);
  const heads = Array.from(table.tHead.rows[0].cells);
  const sorts = () => heads.map((head) => head.getAttribute("aria-sort"));
  const found = { title: document.title, images: document.images.length, charts: {}, sorted: [], names: column(0), sortable: heads.length };
  for (const place of document.querySelectorAll(".chart")) {
    const svg = place.querySelector("svg");
    const box = svg?.getBoundingClientRect();
    const marks = svg?.querySelectorAll(".mark-rect path, .mark-line path, .mark-symbol path").length;
    found.charts[place.id.slice(6)] = { marks, width: box?.width, height: box?.height, label: place.getAttribute("aria-label") };
  }
  heads.forEach((head, i) => {
    const button = head.querySelector("button");
    button.click(); const first = column(i), way = sorts()[i];
    button.click(); const second = column(i), back = sorts()[i];
    found.sorted.push({ first, second, way, back, others: sorts().filter((s) => s !== "none").length, keyboard: button.tabIndex === 0 });
  });
  const input = document.getElementById("filter");
  const type = (text) => { input.value = text; input.dispatchEvent(new Event("input")); };
  type(".0.SELF_attn q_proj");
  found.filtered = Array.from(table.tBodies[0].rows).filter((row) => row.offsetParent).map((row) => row.cells[0].textContent);
  found.shown = document.getElementById("shown").textContent;
  type("");
  found.first = Array.from(table.tBodies[0].rows).filter((row) => row.offsetParent).length;
  document.getElementById("more").click();
  found.unfiltered = Array.from(table.tBodies[0].rows).filter((row) => row.offsetParent).length;
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.background = getComputedStyle(document.body).backgroundColor;
  found.inks = ["p", "td", "dd", ".soft", "thead th"].map((s) => getComputedStyle(document.querySelector(s)).color);
  const inked = document.querySelector(".chart svg .role-axis-label text");
  found.ink = inked && getComputedStyle(inked).fill;
  found.grounds = Array.from(document.querySelectorAll(".chart svg"), (svg) => getComputedStyle(svg).backgroundColor);
  document.querySelectorAll("details").forEach((part) => (part.open = true));
  found.clipped = Array.from(document.querySelectorAll(".table"))
    .filter((frame) => frame.scrollWidth > frame.clientWidth)
    .map((frame) => [frame.firstElementChild.id, frame.previousElementSibling.textContent]);
  found.headline = document.querySelector(".headline").textContent;
  found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  found.violations = violations;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
"""


def browse(text: str, folder: Path, *flags: str) -> dict[str, Any]:
    """Open a page with the probe added, and give what the probe found; nothing may be said on the console."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    before, end, after = text.rpartition("</body>")
    text = f"{before}<script>{PROBE}</script>{end}{after}"
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    result = open_page(path, "--enable-logging=stderr", "--v=0", "--dump-dom", *flags)
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    found = re.search(r'<pre id="result">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def open_page(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser that ends when the page has been drawn."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={path.parent / 'profile'}", *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def printed(text: str, folder: Path, *flags: str) -> Path:
    """A page as a PDF file."""
    path, pdf = folder / "page.html", folder / "page.pdf"
    path.write_text(text, encoding="utf-8")
    result = open_page(path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", *flags)
    assert pdf.exists(), result.stderr[-2000:]
    return pdf


def value(text: str) -> float:
    """What a cell of numbers shows, its first number; missing ones below all."""
    return float(re.match(r"[\d.]+", text)[0]) if text[0].isdigit() else -1.0  # type: ignore[index]


def png_bytes(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and unpacked rows of a PNG; checks every chunk's CRC."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, packed, size = 8, b"", (0, 0)
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        assert struct.unpack(">I", data[position + 8 + length : position + 12 + length])[0] == zlib.crc32(kind + body)
        size = struct.unpack(">II", body[:8]) if kind == b"IHDR" else size
        packed += body if kind == b"IDAT" else b""
        position += 12 + length
    return *size, zlib.decompress(packed)
