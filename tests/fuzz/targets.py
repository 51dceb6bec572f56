"""All targets by name."""

from __future__ import annotations

from tests.fuzz import blocks, containers, documents

TARGETS = {target.name: target for target in [*documents.TARGETS, *containers.TARGETS, *blocks.TARGETS]}
