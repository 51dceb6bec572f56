"""The schema of reports."""

from __future__ import annotations

import json
from pathlib import Path

SCHEMA = json.loads((Path(__file__).parents[2] / "spec" / "report.schema.json").read_text())
