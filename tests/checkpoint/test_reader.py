"""Checkpoints that cannot be read, or are none, are refused with the reason and the next step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.recognition import is_patch
from tests.support.checkpoints import perturb, random_tensor, write, write_raw, write_sharded
from tests.support.refusals import refused
from tests.support.roundtrips import roundtrip
from tests.support.small_pair import Pair, tensors


def test_truncated_and_flipped_bases(files: Pair, tmp_path: Path) -> None:
    whole = files.base.read_bytes()
    files.base.write_bytes(whole[:-1])
    with refused(ckptdiff.CheckpointError, "not a valid safetensors file: its tensors end at byte", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")
    files.base.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused(ckptdiff.BaseMismatchError, "its tensor c has the digest", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "save_pretrained(..., safe_serialization=True)"),
        ("model.pt", "torch.load(weights_only=True)"),
        ("model.gguf", "gguf_file=NAME"),
        ("weights.distcp", "dcp_to_torch"),
    ],
)
def test_weights_that_are_not_safetensors(name: str, words: str, files: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / name).write_bytes(b"x")
    for path in (folder, folder / name):
        with refused(ckptdiff.CheckpointError, words, tmp_path):
            ckptdiff.make(files.base, path, tmp_path / "out")


def test_no_weights_at_all(files: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"x")
    with refused(ckptdiff.CheckpointError, "expected a .safetensors file or a folder that holds one, found none", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    with refused(ckptdiff.CheckpointError, "notes.txt: not a valid safetensors file: it has 1 bytes, too few", tmp_path):
        ckptdiff.make(files.base, folder / "notes.txt", tmp_path / "out")


def test_a_hub_cache_repo_and_a_patch_are_no_checkpoints(files: Pair, folders: Pair, tmp_path: Path) -> None:
    (tmp_path / "models--org--name" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "models--org--name" / "blobs").mkdir()
    with refused(ckptdiff.CheckpointError, "is a repo of the Hub cache; give one of its snapshots: abc", tmp_path):
        ckptdiff.make(files.base, tmp_path / "models--org--name", tmp_path / "out")
    with refused(ckptdiff.CheckpointError, "is a ckptdiff patch, not a checkpoint", tmp_path):
        ckptdiff.make(files.patch, files.target, tmp_path / "out")


def test_patterns_that_match_nothing(files: Pair, folders: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.CheckpointError, "--rename '^transformer=model': matches none of the 3 tensors of", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out", rename=["^transformer=model"])
    for option in ("include", "exclude"):
        with refused(ckptdiff.CheckpointError, "the glob '*.onnx' matches no file of", tmp_path):
            ckptdiff.make(folders.base, folders.target, tmp_path / "out", **{option: ["*.onnx"]})


def test_missing_shards_are_named(tmp_path: Path) -> None:
    base, _ = tensors()
    shards = {f"model-0000{k}-of-00003.safetensors": {n: base[n]} for k, n in enumerate(base, 1)}
    folder = write_sharded(tmp_path / "sharded", shards)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with refused(ckptdiff.CheckpointError, "lists the shard model-00002-of-00003.safetensors, which is missing", tmp_path):
        ckptdiff.compare(folder, folder)
    (folder / "model.safetensors.index.json").unlink()
    with refused(ckptdiff.CheckpointError, "its sibling model-00002-of-00003.safetensors is missing", tmp_path):
        ckptdiff.compare(folder, folder)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("counts", [None, FIRST, SECOND])
def test_the_same_name_in_two_shards(counts: str | None, tmp_path: Path, rng: np.random.Generator) -> None:
    """The tensor counts that the index names, or else that of the first file; the other one is rebuilt too, from what counts."""
    one, two = random_tensor(rng, "BF16", [40, 40]), random_tensor(rng, "BF16", [40, 40])
    moved = [perturb(rng, data, 0.02) for data in (one, two)]
    for name, (a, b) in {"base": (one, two), "target": moved}.items():
        folder = write_sharded(tmp_path / name, {FIRST: {"w": a, "a": one}, SECOND: {"w": b}}, None)
        if counts:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": counts, "a": FIRST, "b": SECOND}}))
    with open_checkpoint(tmp_path / "base") as base:
        assert base.scopes["model"]["w"].source.name.endswith(counts or FIRST)
        assert [key.file for key in base.uncounted] == [FIRST if counts == SECOND else SECOND]
    info = roundtrip(tmp_path, tmp_path / "base", tmp_path / "target")
    kinds = {(row.file, row.name): row.kind for row in info.tensors}
    other = FIRST if counts == SECOND else SECOND
    assert kinds == {(FIRST, "a"): "same", (counts or FIRST, "w"): "delta", (other, "w"): "delta"}
    assert ckptdiff.compare(tmp_path / "base", tmp_path / "base").same


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "expected a JSON object with a weight_map"),
        ("[", "expected a JSON object with a weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "lists the shard ../x.safetensors, which is missing"),
    ],
)
def test_broken_indexes_are_refused(text: str, words: str, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", {"model.safetensors": tensors()[0]}, None)
    (folder / "model.safetensors.index.json").write_text(text)
    with refused(ckptdiff.CheckpointError, words, tmp_path):
        ckptdiff.compare(folder, folder)


def test_an_index_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", {"model.safetensors": tensors()[0]}, None)
    (folder / "model.safetensors.index.json").symlink_to("/proc/self/mem")  # a regular file whose first bytes nobody can read
    with refused(ckptdiff.CheckpointError, "model.safetensors.index.json: cannot be read: Input/output error", tmp_path):
        ckptdiff.compare(folder, folder)


def test_names_that_no_file_system_takes(files: Pair, tmp_path: Path) -> None:
    name = tmp_path / ("x" * 300)
    for call in (
        lambda: ckptdiff.apply(files.base, name, tmp_path / "out"),
        lambda: ckptdiff.apply(name, files.patch, tmp_path / "out"),
        lambda: ckptdiff.verify(name),
        lambda: ckptdiff.verify(files.patch, base=name),
        lambda: ckptdiff.verify(files.patch, target=name),
        lambda: ckptdiff.info(name),
        lambda: ckptdiff.compare(name, name),
    ):
        with refused(ckptdiff.CheckpointError, "x" * 300, tmp_path):
            call()
    with refused(ckptdiff.OutputError, "File name too long", tmp_path):
        ckptdiff.make(files.base, files.target, name)


def test_odd_things_in_a_folder(files: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write(folder / "model.safetensors", tensors()[0])
    (folder / "link").symlink_to(tmp_path / "nowhere")
    with refused(ckptdiff.CheckpointError, "link: a link to a file that does not exist", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with refused(ckptdiff.CheckpointError, "pipe: not a regular file", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    (folder / "pipe").unlink()
    (folder / "a:b.txt").write_text("x")
    with refused(ckptdiff.CheckpointError, "holds a backslash, a colon or a control character: rename the file", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    ckptdiff.make(files.base, folder, tmp_path / "out", exclude=["a:*"])


def test_a_checkpoint_that_changes_while_it_is_read(files: Pair, tmp_path: Path) -> None:
    def touch(what: str, done: int, total: int) -> None:
        os.utime(files.target, ns=(1, done))

    with refused(ckptdiff.CheckpointError, "was changed by another program while it was read", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out.safetensors", progress=touch)


def test_fifos_are_refused_and_not_waited_for(files: Pair, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with refused(ckptdiff.CheckpointError, "pipe: not a regular file", tmp_path):
        ckptdiff.info(tmp_path / "pipe")
    found = ckptdiff.verify(files.patch, target=tmp_path / "pipe")
    assert [problem.message for problem in found.problems] == [f"{tmp_path / 'pipe'}: not a regular file"]


@pytest.mark.parametrize(
    ("header", "is_one"),
    [
        ('{"__metadata__":{"ckptdiff":"{}"}}', True),
        ('{"__metadata__":{"ckptdif\\u0066":"{}"}}', True),
        ('{"__metadata__":{"of":"ckptdiff"}}', False),
        ('{"__metadata__":{"\\u0061":"{}"}}', False),
        ('{"ckptdiff":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', False),
        ('{"__metadata__":{"ckptdiff":"{}"}', False),
        ('{"__metadata__":{"format":"pt"}}', False),
    ],
)
def test_a_patch_is_told_by_its_metadata(header: str, is_one: bool, tmp_path: Path) -> None:
    """However its key is spelled; most headers show at once that they have none."""
    path = write_raw(tmp_path / "m.safetensors", header)
    assert is_patch(path) == is_patch(tmp_path) == is_one
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_patch(path)
