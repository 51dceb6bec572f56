"""The spec says what the code does: its tables, its examples, its worked patch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import xxhash

import ckptdiff
from ckptdiff import applier, dtypes, manifest, patchfile, paths, stfile, table
from ckptdiff.analysis import stored
from ckptdiff.codecs import CODECS, context, planes, sparse
from ckptdiff.digests import BLOCK, tensor_digest
from ckptdiff.dtypes import CASTS, DTYPES
from tests.checkpoints import BITS, tensor, tree, write

SPEC = (Path(__file__).resolve().parents[1] / "spec" / "ckptdiff-v1.md").read_text()


def section(number: str) -> str:
    return SPEC.split(f"\n{number} ")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]


def test_the_dtype_table() -> None:
    found = {}
    for names, bits, carrier, order, _ in rows(section("## 4.")):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = (int(bits), int(carrier), order == "float")
    assert found == {d.name: (d.bits, d.carrier, d.is_float) for d in DTYPES.values()}
    assert {name: bits for name, (bits, _, _) in found.items()} == BITS


def test_the_cast_table() -> None:
    assert {tuple(re.findall(r"`(\w+)`", f"{a} {b}")) for a, b, _ in rows(section("## 8."))} == set(CASTS)


def test_the_codec_table() -> None:
    names = [re.sub("`", "", row[0]) for row in rows(section("## 7."))]
    assert names == ["raw", "sparse", "context"] and list(CODECS) == names


def test_the_limits() -> None:
    stated = [[int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?!\^)", value)] for _, value in rows(section("## 11."))]
    assert stated[0] == [stfile.MAX_HEADER]
    assert stated[1] == [table.MAX_TABLE]
    assert stated[2] == [patchfile.MAX_STORED_TABLE, patchfile.MAX_STORED_HEADER]
    assert stated[3] == [manifest.MAX_INDEX]
    assert stated[4] == [patchfile.MAX_STORED_REPORT, stored.MAX_REPORT]
    assert stated[5] == [stfile.MAX_TENSORS]
    assert (stfile.MAX_RANK, dtypes.MAX_SIZE) == (32, 2**48) and "32; 2^48, and so their product without zeros; 2^48 bytes" in section(
        "## 11."
    )
    assert stated[7] == [1, stfile.MAX_NAME]
    assert stated[8] == [table.MAX_CODED_BLOCK, planes.MAX_WINDOW]
    assert stated[10] == [manifest.MAX_PREFIX]
    assert stated[11] == [manifest.MAX_WINDOW]
    assert stated[12] == [applier.MAX_CHAIN]
    assert f"2^21 = {BLOCK:,} bytes" in SPEC
    assert f"1 to {paths.MAX_PATH:,} bytes" in SPEC and f"1 to {paths.MAX_COMPONENT} bytes" in SPEC


def test_the_error_kinds() -> None:
    kinds = {re.sub("`", "", row[0]) for row in rows(section("## 13."))}
    classes = (ckptdiff.FormatError, ckptdiff.UnsupportedError, ckptdiff.IntegrityError, ckptdiff.CheckpointError)
    assert kinds == {error.kind for error in classes} | {"wrong_base", "already_target"}


def test_the_sparse_example() -> None:
    text = re.search(r"`(02 11 [0-9a-f ]+)` \(spaces added\)", SPEC)
    assert text
    old = np.full(8, 0x3F80, "<u2")
    new = old.copy()
    new[1], new[6] = 0x3F81, 0x3F7E
    coded = sparse.encode(old.view(np.uint8), new.view(np.uint8), DTYPES["BF16"])
    assert coded == (bytes.fromhex(text[1]), 2)


def test_the_context_example() -> None:
    text = re.search(r"The block: `(01 03 7f [0-9a-f ]+)` \(spaces added\)", SPEC)
    assert text
    old = np.full(8, 0x3F80, "<u2")
    new = old.copy()
    new[1], new[6] = 0x3F81, 0x3F7E
    coded = context.encode(old.view(np.uint8), new.view(np.uint8), DTYPES["BF16"])
    assert coded == (bytes.fromhex(text[1]), 2)


def test_the_tensor_digest() -> None:
    data = bytes(range(256)) * (BLOCK // 256) + b"tail"
    leaves = [xxhash.xxh3_128_digest(data[:BLOCK]), xxhash.xxh3_128_digest(b"tail")]
    assert tensor_digest(leaves) == xxhash.xxh3_128_digest(leaves[0] + leaves[1])


def test_the_worked_patch(tmp_path: Path) -> None:
    """The hex dump of appendix A is a whole patch: it rebuilds its target from its base."""
    dump = SPEC.split("## Appendix A")[1]
    lines = re.findall(r"^[0-9a-f]{8}: ((?:[0-9a-f]{2} ?)+) ", dump, re.MULTILINE)
    (tmp_path / "patch.safetensors").write_bytes(bytes.fromhex("".join(lines)))
    old = np.full(8, 0x3F80, "<u2")
    new = old.copy()
    new[1], new[6] = 0x3F81, 0x3F7E
    base = write(tmp_path / "base.safetensors", {"w": tensor("BF16", (8,), old)}, {"format": "pt"})
    target = write(tmp_path / "target.safetensors", {"w": tensor("BF16", (8,), new)}, {"format": "pt"})
    ckptdiff.apply(base, tmp_path / "patch.safetensors", tmp_path / "out.safetensors")
    assert tree(tmp_path / "out.safetensors") == tree(target)
    assert ckptdiff.verify(tmp_path / "patch.safetensors", base=base, target=target).ok
