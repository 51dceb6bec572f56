"""Reports and overlaps as charts, HTML pages and CSV tables."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.pages import chart_data as chart_data
    from ckptdiff.pages import csv_tables as csv_tables
    from ckptdiff.pages import drawing as drawing
    from ckptdiff.pages import histograms as histograms
    from ckptdiff.pages import labels as labels
    from ckptdiff.pages import null_prose as null_prose
    from ckptdiff.pages import overlap_captions as overlap_captions
    from ckptdiff.pages import overlap_charts as overlap_charts
    from ckptdiff.pages import overlap_page as overlap_page
    from ckptdiff.pages import overlap_prose as overlap_prose
    from ckptdiff.pages import report_captions as report_captions
    from ckptdiff.pages import report_charts as report_charts
    from ckptdiff.pages import report_page as report_page
    from ckptdiff.pages import report_prose as report_prose
    from ckptdiff.pages import templating as templating
else:
    __getattr__ = submodules(__name__)
