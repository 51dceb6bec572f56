"""verify: every problem is collected, and with a base everything that changed is decoded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import ckptdiff
from ckptdiff.format.digests import identity
from ckptdiff.format.patch_file import PatchParts, write_patch_file
from ckptdiff.format.table import Table
from ckptdiff.io.source import read_bytes
from ckptdiff.patching.patch import open_patch
from tests.support.commands import run
from tests.support.refusals import reseal
from tests.support.small_pair import Pair


def test_verify_collects_every_problem(folders: Pair, tmp_path: Path) -> None:
    for path in sorted((folders.patch / "patch").iterdir()):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    (folders.target / "config.json").write_text("other")
    (folders.target / "tokenizer.json").unlink()
    (folders.base / "config.json").write_text("other")
    result = run("verify", folders.patch, "--base", folders.base, "--target", folders.target)
    assert result.exit_code == 1
    for text in (
        "tensor a.weight: its payload",
        "tensor b.weight: its payload",
        "config.json: has 5 bytes",
        "tokenizer.json: cannot be opened",
    ):
        assert text in result.stdout
    assert "config.json: its SHA-256" in result.stdout or result.stdout.count("config.json") >= 2
    assert re.search(r"\n\d+ problems in \d+ checks of patch and base and rebuilt files\n", result.stdout)


def test_verify_with_a_base_decodes_what_changed(files: Pair, folders: Pair, tmp_path: Path) -> None:
    """A tensor and a file whose stored forms are whole, but do not give what the patch states."""
    with open_patch(files.patch) as opened:
        file = opened.files[0]
        sizes = ((file.payloads.offsets[entry.name], entry.payload_size) for entry in file.table.entries if entry.has_payload)
        payload = [read_bytes(file.source, offset, size) for offset, size in sizes]
        entries = tuple(e._replace(digest=bytes(16)) if e.name == "b.weight" else e for e in file.table.entries)
        found = identity(("target", e.name, e.dtype, e.shape, e.digest) for e in entries)
        metadata = replace(file.metadata, target_identity=found)
        with open(tmp_path / "wrong.safetensors", "wb") as out:
            write_patch_file(out, metadata, PatchParts(Table.of(entries), file.header.raw, None, payload))
    assert ckptdiff.verify(tmp_path / "wrong.safetensors").ok
    (problem,) = ckptdiff.verify(tmp_path / "wrong.safetensors", base=files.base).problems
    assert problem.kind == "integrity" and "tensor b.weight: rebuilt with the digest" in problem.message

    reseal(folders.patch, lambda file: replace(file, sha256="0" * 64) if file.kind == "delta" else file)
    assert ckptdiff.verify(folders.patch).ok
    (problem,) = ckptdiff.verify(folders.patch, base=folders.base).problems
    assert problem.kind == "integrity" and "config.json: decodes to" in problem.message
