"""The spec says what the code does: its tables, its examples, its worked patch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import xxhash

import ckptdiff
from ckptdiff.analysis import report_stored
from ckptdiff.checkpoint import weight_map
from ckptdiff.codecs import CODECS, planes
from ckptdiff.errors import SHOWN
from ckptdiff.format import canonical, dtypes, entry, json_scan, patch_file, safe_paths, safetensors, sealed, table, tensor_type
from ckptdiff.format.digests import BLOCK, tensor_digest
from ckptdiff.format.dtypes import CASTS, DTYPES
from ckptdiff.patching import chain, patch_limits
from tests.support.checkpoints import BITS, tensor, tree, write
from tests.support.codec_checks import encode

SPEC = (Path(__file__).resolve().parents[2] / "spec" / "ckptdiff-v1.md").read_text()
FLAT = " ".join(SPEC.split())
"""The same without its lines."""


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
    """Every row of section 11 states what the code holds to."""

    def number(text: str) -> int:
        base, _, power = text.replace(",", "").partition("^")
        return int(base) ** int(power or 1)

    stated = [[number(text) for text in re.findall(r"\d[\d,]*(?:\^\d+)?", value)] for _, value in rows(section("## 11."))]
    assert stated == [
        [safetensors.MAX_HEADER],
        [table.MAX_TABLE],
        [patch_file.MAX_STORED_TABLE, patch_file.MAX_STORED_HEADER],
        [sealed.MAX_INDEX, sealed.MAX_INDEX, sealed.MAX_INFO, sealed.MAX_REPO],
        [patch_file.MAX_STORED_REPORT, report_stored.MAX_REPORT],
        [tensor_type.MAX_TENSORS, tensor_type.MAX_TENSORS, safetensors.MAX_MEMBER_NODES],
        [*[patch_limits.MAX_ALL_TENSORS] * 2, *(getattr(patch_limits, f"MAX_ALL_{what}") for what in ("PIECES", "DESCRIBED", "BYTES"))],
        [sealed.MAX_FILES, sealed.MAX_FILES],
        [tensor_type.MAX_RANK, dtypes.MAX_SIZE, dtypes.MAX_SIZE],
        [1, tensor_type.MAX_NAME],
        [table.MAX_PIECES, dtypes.MAX_SIZE],
        [safe_paths.MAX_PATH, safe_paths.MAX_COMPONENTS, safe_paths.MAX_COMPONENT, safe_paths.MAX_PATH],
        [entry.MAX_CODED_BLOCK, planes.MAX_PLANE_WINDOW],
        [dtypes.MAX_FILE],
        [sealed.MAX_DELTA_FILE],
        [sealed.MAX_FILE_WINDOW],
        [chain.MAX_CHAIN],
        [canonical.MAX_INTEGER, json_scan.MAX_DEPTH],
    ]
    assert canonical.MAX_INTEGER == 2**53 - 1
    limits = " ".join(section("## 11.").split())
    assert f"at most {canonical.MAX_NODES:,} of them in an index or metadata, {safetensors.MAX_MEMBER_NODES:,} in one member" in limits
    assert f"in one entry of a table {table.MAX_ENTRY_NODES} and one for each 2^21" in limits
    assert f"A table nests {table.MAX_ENTRY_DEPTH} deep" in limits
    assert f"2^21 = {BLOCK:,} bytes" in SPEC
    assert (
        f"1 to {safe_paths.MAX_PATH:,} bytes of UTF-8, 1 to {safe_paths.MAX_COMPONENTS} components of 1 to {safe_paths.MAX_COMPONENT} bytes"
        in FLAT
    )


def test_security_states_the_same_limits() -> None:
    text = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text()
    for stated in (
        f"{tensor_type.MAX_TENSORS:,} tensors a file, {patch_limits.MAX_ALL_TENSORS:,} in all files of a patch",
        f"; {table.MAX_PIECES:,} pieces of bases a table, {patch_limits.MAX_ALL_PIECES:,} in all of a patch; ",
        f"{safetensors.MAX_HEADER >> 20} MiB of JSON in a header or table, "
        f"{patch_limits.MAX_ALL_DESCRIBED >> 20} MiB\nof these in all of a patch",
        f"{sealed.MAX_INDEX >> 20} MiB for an index or metadata, {report_stored.MAX_REPORT >> 20} MiB for a report",
        f"; {sealed.MAX_FILES:,} files; ",
        f"{dtypes.MAX_FILE >> 40} TiB a weight file, {patch_limits.MAX_ALL_BYTES >> 40} TiB a model",
        f"integers below 2^{canonical.MAX_INTEGER.bit_length()}; JSON {json_scan.MAX_DEPTH} deep",
        f"up to {sealed.MAX_DELTA_FILE >> 20} MiB old and new",
        f"of an index 8 x its bytes, at most {weight_map.MAX_INDEX_JSON >> 20} MiB",
        f"at most {SHOWN} characters of a name",
    ):
        assert stated in text, stated
    assert safetensors.MAX_HEADER == table.MAX_TABLE


def test_the_error_kinds() -> None:
    kinds = {re.sub("`", "", row[0]) for row in rows(section("## 13."))}
    classes = (ckptdiff.FormatError, ckptdiff.UnsupportedError, ckptdiff.IntegrityError, ckptdiff.CheckpointError)
    assert kinds == {error.kind for error in classes} | {"wrong_base", "already_target"}


def test_the_sparse_example() -> None:
    text = re.search(r"`(02 11 [0-9a-f ]+)` \(spaces added\)", FLAT)
    assert text
    old = np.full(8, 0x3F80, "<u2")
    new = old.copy()
    new[1], new[6] = 0x3F81, 0x3F7E
    coded = encode("sparse", old.view(np.uint8), new.view(np.uint8), DTYPES["BF16"])
    assert coded == (bytes.fromhex(text[1]), 2)


def test_the_context_example() -> None:
    text = re.search(r"The block: `(01 03 7f [0-9a-f ]+)` \(spaces added\)", FLAT)
    assert text
    old = np.full(8, 0x3F80, "<u2")
    new = old.copy()
    new[1], new[6] = 0x3F81, 0x3F7E
    coded = encode("context", old.view(np.uint8), new.view(np.uint8), DTYPES["BF16"])
    assert coded == (bytes.fromhex(text[1]), 2)


def test_the_raw_example() -> None:
    text = re.search(r"`(00 80 81 00 [0-9a-f ]+)` \(spaces added\)", FLAT)
    assert text
    new = np.array([0x3F80, 0x3F81, 0x4000], "<u2").view(np.uint8)
    assert encode("raw", np.zeros(6, np.uint8), new, DTYPES["BF16"])[0] == bytes.fromhex(text[1])


def root(number: int, degree: int) -> int:
    """The root of a number, rounded down, by integers alone."""
    low, high = 0, 1 << number.bit_length() // degree + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle)
    return low


def listed_shares() -> list[int]:
    rows = re.findall(r"^ *(\d+): ([0-9a-f ]+)$", SPEC.split("## Appendix B")[1], re.MULTILINE)
    shares = [[int(word, 16) for word in words.split()] for _, words in rows]
    assert [int(k) for k, _ in rows] == list(range(0, 257, 10)) and {len(row) for row in shares[:-1]} == {10}
    return [share for row in shares for share in row]


def test_the_list_of_shares() -> None:
    """T(k) is exact: the 256th root of an integer, rounded down."""
    assert listed_shares() == [root(1 << 32 * 256 - k, 256) for k in range(257)]


def test_the_list_of_rates_and_the_widths() -> None:
    """With the list integers of 53 bits suffice, but for code, range and what is multiplied by them (7.5.2)."""
    shares = listed_shares()

    def share(a: int) -> int:
        k = (a >> 16) % 256
        return shares[k] - ((shares[k] - shares[k + 1]) * (a % 2**16) >> 16) >> (a >> 24)

    found = {int(r): (int(w), int(added)) for r, w, added in re.findall(r"(\d+): (\d+), (\d+)", SPEC.split("## Appendix B")[1])}
    weights = {r: (2 + (r - 1) % 2) * 2 ** (2 + (r - 1 >> 1)) for r in range(1, 51)}
    assert found == {r: (w, w * share(w) // (2**32 - share(w)) >> 8) for r, w in weights.items()}
    assert max(w * share(w) for w in weights.values()) < 2**56
    most_n, most_e, k = 16 * max(added for _, added in found.values()) + 15, 16 * 2**19 + 15, 24 * 2**16  # N - (N >> 4) + x <= 16 x + 15
    pace, slow = (most_n + k) * 2**16 // k, k * 2**16 // (most_e + k)
    longest = (2**26 * 2**16 // slow + 1) + max(weights.values())
    assert longest * pace < 2**47 and (most_n + k) * 2**16 < 2**39 and 2**22 * (655360 // 16) < 2**39
    assert 2**21 * max(weights.values()) < 2**49


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
