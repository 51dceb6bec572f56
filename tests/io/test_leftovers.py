"""What a killed run left of an output: readers say where it is and touch nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.hub.ids import parse_id
from tests.support.killed_runs import left_by_a_killed_run
from tests.support.refusals import refused
from tests.support.small_pair import Pair


def test_readers_say_where_a_killed_run_left_the_old_output_and_touch_nothing(folders: Pair, tmp_path: Path) -> None:
    for name in ("patch", "base"):
        work = left_by_a_killed_run(tmp_path, f".{name}.ckptdiff-abcdefgh", result="half")
        os.rename(tmp_path / name, work / "old")
    for name, read in (
        ("patch", lambda path: ckptdiff.info(path)),
        ("patch", lambda path: ckptdiff.verify(path)),
        ("patch", lambda path: ckptdiff.report_patch(path)),
        ("base", lambda path: ckptdiff.apply(path, tmp_path / ".patch.ckptdiff-abcdefgh" / "old", tmp_path / "new")),
        ("base", lambda path: ckptdiff.compare(path, folders.target)),
        ("base", lambda path: ckptdiff.report(path, folders.target)),
        ("base", lambda path: ckptdiff.compare(path / "model.safetensors", folders.target)),
    ):
        aside = tmp_path / f".{name}.ckptdiff-abcdefgh" / "old"
        text = (
            f"a command that was killed while it replaced {tmp_path / name} left the old one in {aside}: run it again, or put it back: mv "
        )
        with refused(ckptdiff.CheckpointError, text, tmp_path):
            read(tmp_path / name)


def test_what_a_killed_run_left_is_no_id_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert parse_id("models/out") is not None
    left_by_a_killed_run(tmp_path / "models", old="mine")
    assert parse_id("models/out") is None
