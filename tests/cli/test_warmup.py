"""After ``warmup`` no verb compiles anything, not even for another user without a home folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ckptdiff.cli import progress, warmup
from ckptdiff.errors import OutputError
from ckptdiff.kernels import cache, mask_ops
from ckptdiff.kernels.jit import jit
from tests.support.processes import AS_NOBODY, NOBODY, can_be_another_user, result_of, start

ROOT = Path(__file__).parents[2]
EVERY_VERB = "import sys; from pathlib import Path; from tests.support.every_verb import every_verb; every_verb(Path(sys.argv[1]))"


@pytest.mark.slow
def test_after_warmup_no_verb_compiles_anything(open_folder: Path) -> None:
    """Another user, without a home folder, runs them if root runs the tests: who reads kernels and cannot write any. The kernels are those
    of the whole test run, so they need not be compiled for this."""
    folder = str(cache.folders()[-1])
    command = [sys.executable, "-c", "from ckptdiff.cli.main import main; main()", "warmup"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert first.endswith(f" read, in {folder}\n") and " kernels compiled, " in first
    again = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert (again["folder"], again["compiled"]) == (folder, 0) and again["read"] == progress.KERNELS["warmup"]
    before = AS_NOBODY if can_be_another_user() else []
    if before:
        os.chown(open_folder, NOBODY, NOBODY)
    found = result_of(start(EVERY_VERB, str(open_folder), site=ROOT, cache=Path(folder), before=before))
    assert found["compiled"] == [] and found["read"] > 50


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Warm up one kernel instead of all."""

    def step() -> None:
        jit(mask_ops.zero_unmasked.py_func)(np.zeros(8, np.uint8), np.zeros(1, np.uint8))

    monkeypatch.setattr(warmup, "_steps", lambda folder: [step])
    yield


def test_what_warmup_gives(kernel_folder: Path, one_kernel: None) -> None:
    steps: list[tuple[str, int, int]] = []
    assert warmup.warm_up(lambda *step: steps.append(step)) == warmup.WarmUp(kernel_folder, read=0, compiled=1)
    assert steps == [("compiling", 0, 1), ("compiling", 1, 1)]
    assert warmup.warm_up() == warmup.WarmUp(kernel_folder, read=1, compiled=0)


def test_a_named_folder_that_cannot_be_written_is_an_error(kernel_folder: Path, one_kernel: None) -> None:
    """Although the user's own folder has them then: an image without its kernels must not look warm."""
    kernel_folder.write_text("a file")
    before = list(cache.read_files)
    with pytest.raises(OutputError) as caught:
        warmup.warm_up()
    assert str(caught.value) == (
        f"{kernel_folder}: {kernel_folder} is not a folder; 1 kernels are missing: name another folder by CKPTDIFF_CACHE_DIR, "
        "or run warmup as a user who may write this one"
    )
    assert cache.read_files == before
    with pytest.raises(OutputError) as again:
        warmup.warm_up()
    assert str(again.value) == str(caught.value) and len(cache.read_files) == len(before) + 1


def test_no_folder_at_all_is_an_error(kernel_folder: Path, one_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKPTDIFF_CACHE_DIR")
    monkeypatch.setattr(cache, "BESIDE_PACKAGE", kernel_folder)
    cache.folders.cache_clear()
    kernel_folder.write_text("a file")
    (kernel_folder.parent / "own").write_text("a file")
    with pytest.raises(OutputError, match=r"own/ckptdiff: .*own is not a folder; 1 kernels are missing: name"):
        warmup.warm_up()
