"""Bytes and pauses of the updates beside those of a full reload, drawn as the charts of ckptdiff's own pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptdiff.pages.drawing import MAIN_COLOUR, SECOND_COLOUR, draw_charts, write_charts_as_png


def draw(synced: list[Any], full_size: int, reload_seconds: float, folder: Path) -> list[Path]:
    """Write the charts as PNG files; needs the extra ``report``."""
    rows = [{"step": row.version.step, "bytes": row.version.patch_size, "pause": 1000 * row.updated.timings["paused"]} for row in synced]

    def beside(field: str, title: str, full: float) -> Any:
        def drawn(altair: Any, _: Any) -> Any:
            y = altair.Y(f"{field}:Q", title=title, scale=altair.Scale(type="log", nice=True))
            lines = (
                altair.Chart(altair.Data(values=rows))
                .mark_line(point=True, color=MAIN_COLOUR)
                .encode(altair.X("step:Q", axis=altair.Axis(tickMinStep=1, format="d")), y)
            )
            rule = altair.Chart(altair.Data(values=[{field: full}])).mark_rule(color=SECOND_COLOUR, strokeDash=[6, 4]).encode(y)
            return (lines + rule).properties(height=220)

        return drawn

    plans = [
        ("bytes", "Bytes of each update; dashed: the full checkpoint", "Bytes by step", beside("bytes", "bytes", full_size)),
        ("pause", "Pause of each update; dashed: a full reload", "Milliseconds by step", beside("pause", "ms", 1000 * reload_seconds)),
    ]
    return write_charts_as_png(draw_charts(plans, None), folder)
