"""make: the same bytes every time, an output of any name, and an unknown codec refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import perturb, random_tensor, tree, write
from tests.support.layouts import busy
from tests.support.refusals import refused
from tests.support.roundtrips import put
from tests.support.small_pair import Pair

OUTPUT_NAMES = {"long": "n" * 250, "emoji": "😀" * 60, "spool": "spool", "scratch": "scratch", "patch": "patch", "index": "ckptdiff.json"}


@pytest.mark.parametrize("name", OUTPUT_NAMES.values(), ids=OUTPUT_NAMES)
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.timeout(15)
def test_any_output_name(tmp_path: Path, rng: np.random.Generator, name: str, kind: str) -> None:
    """The names of patch and output are free: long ones, and those of ckptdiff's own scratch files."""
    w = random_tensor(rng, "F32", [200, 200])
    for k, folder in enumerate(("a", "b", "c")):
        write(tmp_path / folder / "model.safetensors", {"w": perturb(rng, w, 0.02) if k else w})
        put(tmp_path / folder, {"tokenizer.json": f"tokens {k}" * 10})
    a, b, c = (tmp_path / f / "model.safetensors" if kind == "file" else tmp_path / f for f in ("a", "b", "c"))
    for place in ("1", "2", "out"):
        (tmp_path / place).mkdir()
    ckptdiff.make(a, b, tmp_path / "1" / name)
    ckptdiff.make(b, c, tmp_path / "2" / name)
    ckptdiff.apply(a, [tmp_path / "1" / name, tmp_path / "2" / name], tmp_path / "out" / name)
    assert tree(tmp_path / "out" / name) == tree(c)
    assert {path.name for place in ("1", "2", "out") for path in (tmp_path / place).iterdir()} == {name}


def test_patches_of_folders_are_deterministic(tmp_path: Path, rng: np.random.Generator) -> None:
    """1, 2 and 8 threads, a second run, and another place for the inputs: the same bytes in every file."""
    base, target = busy(tmp_path, rng)
    for name, threads in {"one": 1, "two": 2, "eight": 8, "again": 8}.items():
        ckptdiff.make(base, target, tmp_path / name, threads=threads)
        assert tree(tmp_path / name) == tree(tmp_path / "one"), name
    shutil.copytree(base, tmp_path / "elsewhere" / "x")
    shutil.copytree(target, tmp_path / "elsewhere" / "y")
    ckptdiff.make(tmp_path / "elsewhere" / "x", tmp_path / "elsewhere" / "y", tmp_path / "p5", threads=3)
    assert tree(tmp_path / "p5") == tree(tmp_path / "one")


def test_patches_of_files_are_deterministic(tmp_path: Path, rng: np.random.Generator) -> None:
    """The same for a patch file, also in another process."""
    base, target = busy(tmp_path, rng)
    a, b = base / "model-00001-of-00002.safetensors", target / "model-00002-of-00003.safetensors"
    a, b = shutil.copyfile(a, tmp_path / "a.safetensors"), shutil.copyfile(b, tmp_path / "b.safetensors")
    for name, threads in {"one": 1, "two": 2, "eight": 8, "again": 1}.items():
        ckptdiff.make(a, b, tmp_path / name, threads=threads)
        assert tree(tmp_path / name) == tree(tmp_path / "one"), name
    code = "import sys, ckptdiff; ckptdiff.make(*sys.argv[1:], threads=2)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, a, b, tmp_path / "other"], check=True, env=environment)
    assert tree(tmp_path / "other") == tree(tmp_path / "one")


def test_an_unknown_codec(files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.CheckpointError, "unknown codec 'zip': expected one of raw, sparse, context", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out.safetensors", codec="zip")


def test_names_in_the_hubs_cache_are_taken_for_sha256_if_asked(files: Pair, tmp_path: Path) -> None:
    """A cache as the Hub's client lays it out: what it calls a file is its SHA-256, unless somebody renamed it."""
    base, target = files.base, files.target
    right = hashlib.sha256(base.read_bytes()).hexdigest()
    recorded = dict[str, str]()
    for name in (right, "0" * 64, "a" * 40):  # the last is the name of a small file: Git's hash
        cache = tmp_path / f"models--org--{name[:4]}"
        for folder in ("blobs", "snapshots/main"):
            (cache / folder).mkdir(parents=True)
        shutil.copyfile(base, cache / "blobs" / name)
        link = cache / "snapshots" / "main" / base.name
        link.symlink_to(Path("..", "..", "blobs", name))
        for trust in (False, True):
            patch = tmp_path / f"{name[:4]}-{trust}.safetensors"
            ckptdiff.make(link, target, patch, trust_hub_cache=trust)
            recorded[patch.name] = ckptdiff.info(patch).base_files[0]["sha256"]
    assert recorded.pop("0000-True.safetensors") == "0" * 64
    assert set(recorded.values()) == {right}
