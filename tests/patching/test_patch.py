"""Patches that are truncated, damaged, incomplete, of a newer version or beyond a limit are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.format.entry import Totals
from ckptdiff.format.index import Index
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.safetensors import header_json
from ckptdiff.format.sealed import seal
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import tree
from tests.support.refusals import refused, reseal
from tests.support.small_pair import Pair


def test_truncated_patches_are_refused(files: Pair, tmp_path: Path) -> None:
    whole = files.patch.read_bytes()
    for cut in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        files.patch.write_bytes(whole[:cut])
        with refused(ckptdiff.FormatError, "not a ckptdiff patch", tmp_path):
            ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")
    assert not ckptdiff.verify(files.patch).ok


def test_a_flipped_bit_in_a_payload_names_the_tensor(files: Pair, tmp_path: Path) -> None:
    whole = bytearray(files.patch.read_bytes())
    whole[-1] ^= 1
    files.patch.write_bytes(whole)
    with refused(ckptdiff.IntegrityError, "tensor b.weight: its payload has the digest", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")


def test_parts_of_a_folder_are_missing_or_swapped(folders: Pair, tmp_path: Path) -> None:
    shard = folders.patch / "patch" / "model-00002-of-00002.safetensors"
    stored = folders.patch / "files" / "config.json.zst"
    saved = shard.read_bytes(), stored.read_bytes()
    shard.unlink()
    with refused(ckptdiff.FormatError, "model-00002-of-00002.safetensors: is missing: fetch the patch again", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    shutil.copy(folders.patch / "patch" / "model-00001-of-00002.safetensors", shard)
    with refused(ckptdiff.IntegrityError, "fetch the patch again", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    shard.write_bytes(saved[0])
    stored.write_bytes(b"x" * len(saved[1]))
    with refused(ckptdiff.IntegrityError, "config.json.zst: has the digest", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")


def test_file_names_that_escape_are_refused(folders: Pair, tmp_path: Path) -> None:
    path = folders.patch / "ckptdiff.json"
    index = Index.from_bytes(path.read_bytes(), "index")
    for name in ("../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:evil"):
        value = json.loads(index.to_bytes())
        value["files"][0]["path"] = name
        del value["digest"]
        path.write_bytes(seal(value))
        with refused(ckptdiff.FormatError, "do not trust this patch", tmp_path):
            ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")


def test_a_newer_format_version_is_refused(files: Pair) -> None:
    with open_patch(files.patch) as patch:
        value = json.loads(patch.files[0].metadata.to_bytes())
    value["version"] = 2
    with pytest.raises(ckptdiff.UnsupportedError, match="format version 2, this ckptdiff reads 1: upgrade ckptdiff"):
        Metadata.from_bytes(seal({k: v for k, v in value.items() if k != "digest"}), "patch")


def test_a_missing_patch_is_refused(files: Pair, tmp_path: Path) -> None:
    for run in (lambda p: ckptdiff.apply(files.base, p, tmp_path / "out"), ckptdiff.verify, ckptdiff.info):
        with refused(ckptdiff.CheckpointError, "o such file", tmp_path):
            run(tmp_path / "nothing.safetensors")


def test_a_stored_table_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    """The file is sparse: 300 MB that take no space."""
    size = 300_000_000
    metadata = Metadata(
        base_identity=bytes(16),
        base_scope=None,
        base_files=None,
        target_path="t.safetensors",
        target_size=8,
        target_sha256="0" * 64,
        target_identity=bytes(16),
        target_scope="t",
        table=bytes(16),
        header=bytes(16),
        totals=Totals(),
    )
    rows = [("ckptdiff/table", "U8", [size], size), ("ckptdiff/header/t.safetensors", "U8", [0], 0)]
    raw = header_json([("__metadata__", f'{{"ckptdiff":{json.dumps(metadata.to_bytes().decode())}}}')], rows)
    with open(tmp_path / "p.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)
    with refused(ckptdiff.FormatError, "ckptdiff/table has 300000000 bytes, expected at most 34078720", tmp_path):
        ckptdiff.info(tmp_path / "p.safetensors")


def test_a_delta_against_a_base_file_beyond_the_limit(folders: Pair, tmp_path: Path) -> None:
    """The index is resealed to name a sparse base file of 2^26 + 1 bytes."""
    with open(folders.base / "config.json", "wb") as file:
        file.truncate((1 << 26) + 1)
    sha256 = tree(folders.base / "config.json")["."]
    reseal(folders.patch, lambda file: replace(file, base_sha256=sha256) if file.kind == "delta" else file)
    with refused(ckptdiff.FormatError, "is encoded against a base file of 67108865 bytes, more than 67108864", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
