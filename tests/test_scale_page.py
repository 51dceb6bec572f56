"""docs/scale.md says what benchmarks/scale.json gives, and the model in it is the plan's."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import random_tensor, write_sharded
from tests.support.documents import ROOT, text_of

BENCHMARKS = str(ROOT / "benchmarks")
sys.path.append(BENCHMARKS)  # as the script's folder is, when it runs
scale_tables = import_module("scale_tables")
sys.path.remove(BENCHMARKS)
DATA = json.loads(scale_tables.DATA.read_text())


def test_the_page_has_the_tables_of_its_data() -> None:
    page = text_of("docs/scale.md")
    assert scale_tables.written_page(page, DATA) == page, "python benchmarks/scale_tables.py --write"
    assert page.count("(not measured)") == len(DATA["assumed"]["media"]) == 3


def test_more_workers_are_never_slower_and_each_bound_counts_somewhere() -> None:
    bounds = set()
    for medium in DATA["assumed"]["media"].values():
        for model in scale_tables.MODELS:
            for verb in ("make", "apply"):
                cost = scale_tables.costs(DATA, model, verb)
                found = [scale_tables.wall(DATA, cost, medium, count) for count in scale_tables.WORKERS]
                assert [seconds for seconds, _ in found] == sorted((seconds for seconds, _ in found), reverse=True)
                bounds |= {what for _, what in found}
    assert {"reading", "driver"} <= bounds


def test_what_apply_reads_is_its_plan(tmp_path: Path) -> None:
    """The page derives the bytes of ``apply`` from the target's size: a real plan agrees within its headers."""
    rng = np.random.default_rng(1)
    old = {"a.safetensors": {f"t{k}": random_tensor(rng, "BF16", [900, 1000]) for k in range(4)}}
    new = {"a.safetensors": {name: (dtype, shape, data[:-2] + b"ab") for name, (dtype, shape, data) in old["a.safetensors"].items()}}
    base, target = write_sharded(tmp_path / "base", old), write_sharded(tmp_path / "target", new)
    ckptdiff.make(base, target, tmp_path / "patch")
    plan = ckptdiff.plan_apply(base, tmp_path / "patch", tmp_path / "out")
    payloads = plan.work.hashed
    assert plan.work.read == 4 * 1_800_000 + payloads
    assert plan.out_size == pytest.approx(4 * 1_800_000, rel=0.001) and plan.work.jobs == plan.work.blocks
