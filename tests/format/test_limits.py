"""Each limit of spec section 11 on both sides: the largest value that is allowed is accepted, and one more is refused.

The vectors ``*_limit*``, ``*_2_53``, ``*_65`` and their like hold the other limits; those here need large files, made when they are needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptdiff
from ckptdiff import CheckpointError, FormatError, Mask
from ckptdiff.analysis import report_model as rows_module
from ckptdiff.checkpoint.weight_map import WeightMap, read_weight_map
from ckptdiff.format import canonical, index, json_scan, safe_paths, safetensors, sealed, table
from ckptdiff.format.entry import Entry
from ckptdiff.format.index import Index
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.table import Table
from ckptdiff.format.zstd_frame import decompress
from ckptdiff.patching import patch_limits
from ckptdiff.patching import write as writer
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.memory import BytesFile
from tests.support import hostile_files as made
from tests.support.checkpoints import tensor, write
from tests.support.vectors import READER

EMPTY = b'{"removed":[],"tensors":[]}'


def both_sides(take: Callable[[int], Any], limit: int, text: str, kind: type[Exception] = FormatError) -> None:
    take(limit)
    with pytest.raises(kind, match=text):
        take(limit + 1)


def rows(n: int) -> list[tuple[str, str, list[int]]]:
    return [(f"t{k}", "U8", [0]) for k in range(n)]


# --- JSON ----------------------------------------------------------------------------------------------------------


def test_integers_have_a_limit() -> None:
    for text in ("%d", "-%d"):
        both_sides(lambda n, text=text: canonical.loads(text.encode() % n), 2**53 - 1, "is too large an integer", ValueError)  # type: ignore[misc]
        both_sides(lambda n, text=text: READER.strict_json(text.encode() % n), 2**53 - 1, "not strict JSON", READER.PatchError)  # type: ignore[misc]
    for text in ("9" * 5000, "-0", "1e3", "1.0"):
        with pytest.raises(ValueError, match="integer"):
            canonical.loads(text.encode())


def test_nesting_has_a_limit() -> None:
    for first, last in ((b"[", b"]"), (b'{"":', b"}"), (b'[{"":', b"}]")):
        step = first.count(b"[") + first.count(b"{")

        def text(n: int, first: bytes = first, last: bytes = last, step: int = step) -> bytes:
            return first * (n // step) + b"[" * (n % step) + b"1" + b"]" * (n % step) + last * (n // step)

        both_sides(lambda n, text=text: canonical.loads(text(n)), 64, "nested too deeply", ValueError)  # type: ignore[misc]
        both_sides(lambda n, text=text: READER.strict_json(text(n)), 64, "nests too deeply", READER.PatchError)  # type: ignore[misc]


def test_nodes_are_counted_outside_strings_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    both_sides(
        lambda n: canonical.loads(b"[" + b"0," * (n - 1) + b"0]", nodes=n - n % 2), 100, "101 braces, brackets and commas", ValueError
    )
    quiet = b'{"a\\\\":"{[,\\"{[,","\\\\\\"[":[{}]}'
    assert json_scan.count_nodes(quiet) == 4
    for chunk in range(1, len(quiet) + 1):
        monkeypatch.setattr(json_scan, "SCAN_BYTES", chunk)
        assert json_scan.count_nodes(quiet) == 4, chunk


def test_objects_are_read_part_by_part_as_if_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every size of chunk and batch; what stands between parts, or what is missing, is seen."""
    text = b'{"a":[{"x":[1,2]},"],\\"[",[],0],"b":[],"c":{"a":[3]}}'
    items = [("", "a", []), *(("a", "", item) for item in ({"x": [1, 2]}, '],"[', [], 0)), ("", "b", []), ("", "c", {"a": [3]})]
    for chunk in (1, 2, 3, 7, 20, len(text)):
        monkeypatch.setattr(json_scan, "SCAN_BYTES", chunk)
        monkeypatch.setattr(canonical, "BATCH_NODES", chunk % 7)
        assert list(canonical.members(text, {"a": 9, "b": 9}, 9, exact=True)) == items
        for k in range(len(text)):
            for broken in (text[:k] + text[k + 1 :], text[:k] + b" " + text[k:], text[:k] + b"," + text[k:]):
                if chunk in (3, 20) and b" " not in broken[k : k + 1]:
                    whole = _outcome(lambda broken=broken: canonical.load_object(broken, ""))  # type: ignore[misc]
                    parts = _outcome(lambda broken=broken: list(canonical.members(broken, {"a": 9, "b": 9}, 9, exact=True)))  # type: ignore[misc]
                    assert whole == parts, broken


def _outcome(run: Callable[[], Any]) -> bool:
    try:
        run()
    except (ValueError, FormatError):
        return False
    return True


# --- safetensors headers -------------------------------------------------------------------------------------------


def test_headers_have_a_limit() -> None:
    def read(n: int) -> None:
        safetensors.read_header(BytesFile(struct.pack("<Q", n) + b"{}" + b" " * (n - 2), "here"))

    both_sides(read, safetensors.MAX_HEADER, "its header would have 33554433 bytes", ValueError)
    both_sides(lambda n: safetensors.parse_header(made.header_of([("t", "U8", [n])]), n), 2**40, "bytes of data, more than", ValueError)
    both_sides(lambda n: READER.parse_header(made.header_of([("t", "U8", [n])]), n), 2**40, "too large", READER.PatchError)
    for parse, kind in ((safetensors.parse_header, ValueError), (READER.parse_header, READER.PatchError)):
        both_sides(lambda n, parse=parse: parse(made.header_of([("k" * n, "U8", [0])]), 0), 4096, "name|tensor", kind)  # type: ignore[misc]
        both_sides(lambda n, parse=parse: parse(made.header_of([("k", "U8", [0] * n)]), 0), 32, "shape|out of order", kind)  # type: ignore[misc]


@pytest.mark.slow
def test_members_of_a_header() -> None:
    def metadata(n: int) -> bytes:
        return b'{"__metadata__":{%s}}' % b",".join(b'"%d":""' % k for k in range(n))

    both_sides(lambda n: safetensors.parse_header(made.header_of(rows(n)), 0), 2**17, "holds more than 131072 tensors", ValueError)
    both_sides(lambda n: safetensors.parse_header(metadata(n), 0), 2**16, "65537 braces, brackets and commas", ValueError)
    both_sides(lambda n: READER.parse_header(made.header_of(rows(n)), 0), 2**17, "too many tensors", READER.PatchError)
    both_sides(lambda n: READER.parse_header(metadata(n), 0), 2**16, "not an object of strings", READER.PatchError)


# --- patch files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [table.MAX_TABLE, safetensors.MAX_HEADER, rows_module.MAX_REPORT], ids=["table", "header", "report"])
def test_decoded_sizes_have_a_limit(limit: int) -> None:
    both_sides(lambda n: decompress(made.rle(n), limit, "here"), limit, "must state a content size of at most")
    both_sides(lambda n: READER.decode_frame(made.rle(n), limit), limit, "states the size", READER.PatchError)


def test_stored_sizes_have_a_limit() -> None:
    """By the patch's own header, before any of them is read."""

    class Hollow(BytesFile):
        def __init__(self, data: bytes, size: int) -> None:
            super().__init__(data, "here")
            self.size = size

        def readinto(self, offset: int, out: Any) -> None:
            data = bytes(self.data[offset : offset + len(out)])
            memoryview(out)[: len(data)] = data

    def opened(sizes: dict[str, int]) -> None:
        found = {"ckptdiff/table": 1, "ckptdiff/header/t.safetensors": 1, "ckptdiff/report": 1, "ckptdiff/payloads": 0} | sizes
        value = {
            "format": "ckptdiff",
            "version": 1,
            "base": {"identity": made.DIGEST, "scope": "t"},
            "target": {"identity": made.DIGEST, "path": "t.safetensors", "scope": "t", "size": 8},
            "totals": made.no_totals(),
            "info": {},
            **dict.fromkeys(("table", "header", "report"), made.DIGEST),
        }
        members: list[tuple[str, Any, list[int], int]] = [(name, "U8", [size], size) for name, size in found.items()]
        first = [("__metadata__", f'{{"ckptdiff":{canonical.quote(made.sealed(value).decode())}}}')]
        raw = safetensors.header_json(first, members)
        PatchFile(Hollow(struct.pack("<Q", len(raw)) + raw, 8 + len(raw) + sum(found.values())))

    for name, limit in (("table", 34_078_720), ("header/t.safetensors", 34_078_720), ("report", 1 << 24)):
        with pytest.raises(ckptdiff.IntegrityError, match="has the digest"):
            opened({f"ckptdiff/{name}": limit})
        with pytest.raises(FormatError, match=f"{name} has {limit + 1} bytes, expected at most {limit}"):
            opened({f"ckptdiff/{name}": limit + 1})


def entry(**members: Any) -> Entry:
    return Entry.read({"name": "t", "dtype": "U8", "shape": [1], "kind": "same", **members}, "here")


def test_entries_have_limits() -> None:
    block = {"kind": "new", "codec": "raw"}
    both_sides(lambda n: entry(**block, blocks=[n]), 2**24, "expected 1 sizes of at most 16777216 bytes")
    both_sides(lambda n: entry(shape=[n, 0]), 2**48, "one above 281474976710656")
    both_sides(lambda n: entry(shape=[n]), 2**48, "one above|no whole size")
    both_sides(lambda n: entry(shape=[2**24, n, 0]), 2**24, "no whole size of at most")
    for text in ("name", "of"):
        both_sides(lambda n, text=text: entry(**{"kind": "copy", "of": "x", text: "k" * n}), 4096, "expected 1 to 4096 bytes")  # type: ignore[misc]
    both_sides(lambda n: entry(base={"pieces": [["é" * (n // 2) + "k" * (n % 2), 0, 1]]}), 4096, "expected 1 to 4096 bytes, found 4097")
    both_sides(lambda n: Table.from_bytes(_table(["k" * n]), "here"), 4096, "expected 1 to 4096 bytes")


def _table(removed: list[str]) -> bytes:
    content = canonical.dumps({"removed": removed, "tensors": []})
    return made.frame(struct.pack("<I", len(content)) + content)


@pytest.mark.slow
def test_counts_of_a_table() -> None:
    both_sides(lambda n: Table.from_bytes(_table([f"{k:06}" for k in range(n)]), "here"), 2**17, "removed: expected at most 131072 items")

    def tensors(n: int) -> None:
        text = canonical.dumps(
            {"removed": [], "tensors": [{"name": f"{k}", "dtype": "U8", "shape": [0], "kind": "same"} for k in range(n)]}
        )
        Table.from_bytes(made.frame(struct.pack("<I", len(text)) + text + bytes(16 * n)), "here")

    both_sides(tensors, 2**17, "tensors: expected at most 131072 items")


def test_metadata_has_limits(tmp_path: Path) -> None:
    def info(n: int, key: str = "x") -> None:
        made.patch(tmp_path / "p", EMPTY, info={key: "k" * n})
        ckptdiff.info(tmp_path / "p")

    both_sides(info, (1 << 16) - len('{"x":""}'), "info: has 65537 bytes, expected at most 65536")
    both_sides(lambda n: info(n, "base_repo"), 256, "info.base_repo: has 257 bytes, expected at most 256")
    with pytest.raises(FormatError, match="has 16777217 bytes, expected at most 16777216"):
        Metadata.from_bytes(b" " * ((1 << 24) + 1), "here")
    with pytest.raises(FormatError, match="bad JSON"):
        Metadata.from_bytes(b" " * (1 << 24), "here")
    base = {"files": [made.file_row("a.safetensors", 2**40)]}
    made.patch(tmp_path / "p", EMPTY, base=base, identity=made.hex128(b""))
    assert ckptdiff.info(tmp_path / "p").base_files[0]["size"] == 2**40


@pytest.mark.slow
def test_files_of_a_patch_file(tmp_path: Path) -> None:
    def files(n: int) -> None:
        base = {"files": [made.file_row(f"{k:05}.safetensors") for k in range(n)]}
        made.patch(tmp_path / "p", EMPTY, base=base, identity=made.hex128(b""))
        ckptdiff.info(tmp_path / "p")

    both_sides(files, 2**15, "base.files: names 32769 files, expected at most 32768")


# --- patch folders -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_files_of_an_index(tmp_path: Path) -> None:
    """In all its lists together."""

    def named(n: int) -> None:
        files = [{**made.file_row(f"a{k:05}"), "kind": "same"} for k in range(n - 2)]
        base = {"identity": made.DIGEST, "files": [made.file_row("m.safetensors")]}
        ckptdiff.info(made.index(tmp_path / "p", files=files, removed=["gone"], base=base))

    both_sides(named, 2**15, "names 32769 files, expected at most 32768")
    with pytest.raises(CheckpointError, match="a patch of 32769 files, which take"):
        _index(removed=tuple(f"{k}" for k in range(2**15 + 1))).to_bytes()
    assert _index(removed=tuple(f"{k}" for k in range(2**15))).to_bytes()


def _index(**members: Any) -> Index:
    empty: dict[str, Any] = {"base_files": (), "shards": (), "files": (), "removed": (), "totals": table.Totals()}
    return Index(base_identity=bytes(16), target_identity=bytes(16), **(empty | members))


def test_bytes_of_an_index(tmp_path: Path) -> None:
    (tmp_path / "ckptdiff.json").write_bytes(b" " * (1 << 24))
    with pytest.raises(FormatError, match="bad JSON"):
        ckptdiff.info(tmp_path)
    (tmp_path / "ckptdiff.json").write_bytes(b" " * ((1 << 24) + 1))
    with pytest.raises(FormatError, match="has 16777217 bytes, expected at most 16777216"):
        ckptdiff.info(tmp_path)


def test_sizes_of_files_have_a_limit() -> None:
    def other(n: int, kind: str = "same", key: str = "size") -> None:
        more = {"stored": 1, "digest": made.DIGEST} if kind != "same" else {}
        more |= {"base_sha256": made.SHA} if kind == "delta" else {}
        index.OtherFile.read({**made.file_row("a"), **more, "kind": kind, key: n}, "here")

    both_sides(other, 2**40, "size: expected 0 to 1099511627776, found 1099511627777")
    both_sides(lambda n: other(n, "new", "stored"), 2**40, "stored: expected 0 to 1099511627776")
    both_sides(lambda n: other(n, "delta"), 2**26, "size: expected 0 to 67108864")
    both_sides(lambda n: sealed.FileRef.read(made.file_row("a", n), "here"), 2**40, "size: expected 0 to")


def test_sums_of_all_patch_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the limits themselves the spec's table is compared; here that each counts what it says, over all files."""
    row = {"name": "t", "dtype": "U8", "shape": [2], "kind": "same", "base": {"pieces": [["u", 0, 1], ["v", 0, 1]]}}
    listed, target = [], {"identity": made.DIGEST}
    for name in ("a.safetensors", "b.safetensors"):
        text, header = canonical.dumps({"removed": ["x"], "tensors": [row]}), made.header_of([("t", "U8", [2])])
        options = {"totals": {"same": 1, "removed": 1, "units": 2}, "predicted": header, "header": header, "size": 8 + len(header) + 2}
        path = made.patch(tmp_path / "p" / "patch" / name, text, bytes(16), file=name, **options)  # type: ignore[arg-type]
        with open(path, "rb") as file:
            size, digest = path.stat().st_size, PatchFile(BytesFile(file.read(), "here")).digest.hex()
        listed.append({**made.file_row(f"patch/{name}", size), "target": name, "digest": digest})
    folder = made.index(tmp_path / "p", target=target, shards=listed)
    content = 4 + len(text) + 16 + len(header)
    sums = {"tensors": 2, "removed tensors": 2, "pieces": 4}
    sums |= {"bytes of tables and headers": 2 * content, "bytes to rebuild": 2 * (10 + len(header))}
    for what, found in sums.items():
        monkeypatch.setitem(patch_limits.FOLDER_LIMITS, what, found)
        with pytest.raises(FormatError, match="hold the same tensor of one scope"):
            ckptdiff.info(folder)
        monkeypatch.setitem(patch_limits.FOLDER_LIMITS, what, found - 1)
        with pytest.raises(FormatError, match=rf"b.safetensors: with the files before it there are {found} {what}, expected at most"):
            ckptdiff.info(folder)
        monkeypatch.setitem(patch_limits.FOLDER_LIMITS, what, found)


def test_paths_have_limits() -> None:
    both_sides(lambda n: safe_paths.safe_path("k" * n, "here"), 250, "has a component longer than 250 bytes")
    both_sides(lambda n: safe_paths.safe_path("/".join("k" * n), "here"), 32, "has 33 components, expected at most 32")
    assert safe_paths.safe_path("/".join(["m" * 204] * 5), "here")
    with pytest.raises(FormatError, match="has 1025 bytes, expected 1 to 1024"):
        safe_paths.safe_path("/".join(["m" * 204] * 4 + ["m" * 205]), "here")


def test_paths_that_clash_are_neighbours() -> None:
    assert safe_paths.conflicting_path(["a.b", "a/c", "a-b", "ab", "a0/c"]) is None
    for clash in (["a.b", "a/c/d", "a-b", "a"], ["b/a", "b/a"], ["a/b/c", "a/b.c", "a/b"]):
        assert safe_paths.conflicting_path(clash) in clash and safe_paths.conflicting_path(clash[::-1]) in clash
    assert safe_paths.conflicting_path(f"{k}/{j}" for k in range(50) for j in range(50)) is None


# --- chains, masks, indexes of shards ------------------------------------------------------------------------------


def test_chains_have_a_limit() -> None:
    class Link:
        base_identity = target_identity = bytes(16)
        path = Path("p")

    both_sides(lambda n: check_chain([Link()] * n), 64, "a chain has 1 to 64 patches, found 65")  # type: ignore[list-item]


def test_masks_have_limits(tmp_path: Path) -> None:
    def shape(dims: list[int]) -> Mask:
        return Mask.load(made.mask(tmp_path / "m", {"t": dims}, {"t": struct.pack("<I", 5)}))

    both_sides(lambda n: shape([1] * (n - 1) + [1000]), 32, "expected a list of at most 32 integers")
    both_sides(lambda n: shape([n]), 2**32, "expected U8 for 4294967297 elements")
    one = shape([2**16, 2**16])
    assert one.counts == {"t": 1} and one.rows["t"].tolist() == [5]
    two = Mask.load(made.mask(tmp_path / "m", {"t": [2**16, 2**16]}, {"t": struct.pack("<II", 5, 2**32 - 1)}))
    assert Mask.union(one, two) == two and Mask.intersection(one, two) == one and one.shared(two) == 1 and two.random(1).total == 2


def test_indexes_of_shards_have_limits(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"

    def padded(n: int) -> WeightMap:
        path.write_bytes(b'{"weight_map":{"a":"m.safetensors"}}'.ljust(n))
        return read_weight_map(path)

    both_sides(padded, 1 << 25, "an index of 33554433 bytes is too large", CheckpointError)

    def recipes(n: int) -> WeightMap:
        path.write_bytes(b'{"weight_map":{"a":"m.safetensors"},"x":[' + b"0," * (n - 4) + b"0]}")
        return read_weight_map(path)

    both_sides(recipes, 1 << 19, "an index with 524289 braces, brackets and commas is too large", CheckpointError)


def test_make_refuses_what_no_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [write(tmp_path / f"{k}.safetensors", {name: tensor("U8", (1,), bytes([k])) for name in "ab"}) for k in range(2)]
    for limit, text in (("MAX_TENSORS", "2 tensors in one file, a patch at most 1"), ("MAX_ALL_TENSORS", "2 tensors, a patch at most 1")):
        with monkeypatch.context() as patched:
            patched.setattr(writer, limit, 1)
            with pytest.raises(CheckpointError, match=f"1.safetensors: has {text}: patch its parts one by one"):
                ckptdiff.make(*sides, tmp_path / "patch")
    monkeypatch.setattr(table, "MAX_TABLE", 10)
    with pytest.raises(CheckpointError, match=r"its 2 tensors and 0 removed names make a table of \d+ bytes, expected at most 10"):
        ckptdiff.make(*sides, tmp_path / "patch")
    assert not (tmp_path / "patch").exists()


def test_a_report_counts_distances_within_the_limit_of_integers(tmp_path: Path) -> None:
    """Moves of 2^52 ulps and more stand in the last bin, so that a report holds no integer above 2^53 - 1."""
    moves = [1, 2**52 - 1, 2**52, 2**53, 2**61]
    both = [tensor("I64", (5,), struct.pack("<5q", *row)) for row in ([0] * 5, moves)]
    sides = [write(tmp_path / f"{k}.safetensors", {"w": side}) for k, side in enumerate(both)]
    found = ckptdiff.report(*sides, rank="none")
    bins = [(row["from"], row["to"], row["count"]) for row in found.to_json()["moves"]["ulp"]]
    assert bins == [(1, 1, 1), (2**51, 2**52 - 1, 1), (2**52, None, 3)]
    ckptdiff.make(*sides, tmp_path / "patch", report=found)
    assert ckptdiff.report_patch(tmp_path / "patch").ulps == found.ulps
