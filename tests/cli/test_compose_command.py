"""The command ``compose``: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import bf16
from tests.support.commands import error_of, run
from tests.support.composed import chain, direct, moved


@pytest.fixture
def steps(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    """Three files, and the patches between them."""
    rng = np.random.default_rng(0)
    first = bf16(rng.normal(0, 0.02, (40, 50)))
    second = moved(rng, first, 30)
    return chain(tmp_path, [{"w": first}, {"w": second}, {"w": moved(rng, second, 30)}])


def test_it_writes_the_direct_patch(steps: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    files, patches = steps
    result = run("compose", *patches, "-o", tmp_path / "composed")
    assert result.exit_code == 0 and result.stderr == ""
    assert "0 same, 1 changed, 0 added, 0 removed" in result.stdout
    assert re.search(r"patch  [\d.]+ k?B for 2 patches of [\d.]+ k?B\n", result.stdout)
    assert (tmp_path / "composed").read_bytes() == direct(files, tmp_path / "direct").read_bytes()
    again = run("compose", *patches, "-o", tmp_path / "composed", "--base", files[0], "--overwrite", "--json")
    found = json.loads(again.stdout)
    assert (found["patches"], found["patches_size"]) == (2, sum(patch.stat().st_size for patch in patches))
    assert found["patch_size"] == (tmp_path / "composed").stat().st_size
    assert (tmp_path / "composed").read_bytes() == direct(files, tmp_path / "smallest", None).read_bytes()


def test_outputs_that_are_inputs_are_refused(steps: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    files, patches = steps
    before = [path.read_bytes() for path in (*files, *patches)]
    for out, more in ((patches[0], ()), (patches[1], ()), (files[0], ("--base", files[0]))):
        result = run("compose", *patches, "-o", out, "--overwrite", "--json", *more)
        assert result.exit_code == 3 and "the output is the input" in error_of(result)["message"]
    result = run("compose", *patches, "-o", tmp_path / "gone" / "composed", "--json")
    assert result.exit_code == 3 and error_of(result)["kind"] == "output"
    assert run("compose", *patches, "-o", "-").exit_code == 2
    assert [path.read_bytes() for path in (*files, *patches)] == before


def test_errors_say_what_to_do(steps: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    files, patches = steps
    ckptdiff.make(files[1], files[2], patches[1], codec="context", overwrite=True)
    for arguments, kind, text in (
        (patches, "unsupported", "patch-1.safetensors: tensor w: is coded by context, and is changed by other patches too: only the base"),
        (patches[::-1], "wrong_base", "put the patches in the order in which they were made"),
        (
            [*patches, "--codec", "context"],
            "checkpoint",
            "codec 'context': expected sparse, the only one that needs no base: give the base",
        ),
        ([*patches, "--base", files[2]], "already_target", "is already the target"),
        ([patches[0], files[0]], "format", "not a ckptdiff patch"),
    ):
        result = run("compose", *arguments, "-o", tmp_path / "composed", "--json")
        assert result.exit_code == 3 and (error_of(result)["kind"], text in error_of(result)["message"]) == (kind, True), result.stdout
    assert not (tmp_path / "composed").exists()
