"""Kinds of hostile files, and how each is made in a size: ``CASES`` for ``hostile_inputs.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from tests.support import hostile_files as made

Make = Callable[[Path, int], list[Path]]
CASES: dict[str, tuple[int, str, Make]] = {}


def case(n: int, run: str = "info") -> Callable[[Make], Make]:
    """A case: ``n`` of the smaller size, and what to run on the paths that it gives."""

    def add(make: Make) -> Make:
        CASES[make.__name__] = n, run, make
        return make

    return add


MB = 1 << 20
TABLES: dict[str, tuple[bytes, bytes, bytes]] = {
    "table_of_objects": (b'{"removed":[],"tensors":[', b"{},", b"{}]}"),
    "table_of_arrays": (b'{"removed":[],"tensors":[', b"[],", b"[]]}"),
    "table_of_numbers": (b'{"removed":[],"tensors":[', b"1000,", b"1]}"),
    "table_of_strings": (b'{"removed":[],"tensors":[', b'"ab",', b'""]}'),
    "table_entry_of_objects": (b'{"removed":[],"tensors":[{"name":[', b"{},", b"{}]}]}"),
    "table_nested": (b'{"removed":[],"tensors":', b"[", b"]"),
    "table_nested_objects": (b'{"removed":[],"tensors":[', b'{"":' * 60 + b"1" + b"}" * 60 + b",", b"1]}"),
    "table_of_members": (b'{"', b'":1,"x', b'":1}'),
    "table_entry_shape": (b'{"removed":[],"tensors":[{"shape":[', b"1,", b"1]}]}"),
    "table_entry_blocks": (b'{"removed":[],"tensors":[{"blocks":[', b"0,", b"0]}]}"),
    "table_removed_repeated": (b'{"removed":[', b'"a",', b'"b"],"tensors":[]}'),
    "table_number_of_megabytes": (b'{"removed":[],"tensors":[', b"1", b"]}"),
    "table_float_of_megabytes": (b'{"removed":[],"tensors":[0.', b"1", b"]}"),
    "table_key_of_megabytes": (b'{"removed":[],"tensors":[{"', b"k", b'":1}]}'),
    "table_name_of_megabytes": (b'{"removed":["', b"k", b'"],"tensors":[]}'),
    "table_wide_text": ('{"removed":["😀'.encode(), b"k", b'"],"tensors":[]}'),
    "table_of_backslashes": (b'{"removed":["', b"\\\\", b'"],"tensors":[]}'),
    "table_of_quotes": (b'{"removed":["', b'\\"', b'"],"tensors":[]}'),
    "table_string_without_end": (b'{"removed":["', b'\\",', b""),
    "table_of_commas": (b"", b",", b""),
    "table_of_closing_brackets": (b"{", b"]", b"}"),
    "table_of_zeros": (b"", b"\0", b""),
}
"""Tables of 8 and 32 MB: what begins them, what is repeated, what ends them."""


def _tables() -> None:
    for name, (first, repeated, last) in TABLES.items():

        def make(folder: Path, n: int, first: bytes = first, repeated: bytes = repeated, last: bytes = last) -> list[Path]:
            return [made.patch(folder / "p", first + repeated * (n // len(repeated)) + last)]

        CASES[name] = 8 * MB - 200, "info", make


_tables()


def rows(n: int, **members: Any) -> list[dict[str, Any]]:
    return [{"name": f"t{k}", "dtype": "U8", "shape": [0], "kind": "same", **members} for k in range(n)]


@case(1 << 15)
def tensors_empty(folder: Path, n: int) -> list[Path]:
    return [made.entries_patch(folder / "p", rows(n))]


@case(1 << 15, "verify")
def tensors_empty_verified(folder: Path, n: int) -> list[Path]:
    return tensors_empty(folder, n)


@case(1 << 15, "apply")
def tensors_empty_applied(folder: Path, n: int) -> list[Path]:
    base = made.safetensors(folder / "base.safetensors", made.header_of((f"t{k}", "U8", [0]) for k in range(n)))
    return [base, *tensors_empty(folder, n)]


@case(1 << 12, "apply")
def tensors_empty_in_a_chain(folder: Path, n: int) -> list[Path]:
    base = made.safetensors(folder / "base.safetensors", made.header_of((f"t{k}", "U8", [0]) for k in range(n)))
    return [base, *(made.entries_patch(folder / f"p{k}", rows(n)) for k in range(4))]


@case(1 << 17)
def tensors_too_many(folder: Path, n: int) -> list[Path]:
    return [made.patch(folder / "p", made.canonical({"removed": [], "tensors": rows(n + 1)}))]


@case(1 << 15)
def tensors_of_32_dimensions(folder: Path, n: int) -> list[Path]:
    return [made.entries_patch(folder / "p", rows(n, shape=[0] + [1000] * 4 + [1] * 27))]


@case(1900)
def tensors_of_long_wide_names(folder: Path, n: int) -> list[Path]:
    return [made.entries_patch(folder / "p", [{**row, "name": f"😀{k:04000}"} for k, row in enumerate(rows(n))])]


@case(1 << 15)
def tensors_that_copy_one(folder: Path, n: int) -> list[Path]:
    table = [rows(1)[0], *({**row, "name": f"c{k}", "kind": "copy", "of": "t0"} for k, row in enumerate(rows(n - 1)))]
    return [made.entries_patch(folder / "p", table)]


@case(1 << 15)
def names_removed(folder: Path, n: int) -> list[Path]:
    names = sorted(f"r{k}" for k in range(n))
    return [made.patch(folder / "p", made.canonical({"removed": names, "tensors": []}), totals={"removed": n})]


@case((1 << 17) - 1)
def blocks_of_nothing(folder: Path, n: int) -> list[Path]:
    row = {"name": "t", "dtype": "U8", "shape": [n << 21], "kind": "delta", "codec": "sparse", "blocks": [0] * n, "changed": 1}
    return [made.entries_patch(folder / "p", [row])]


@case(1 << 13, "blocks")
def blocks_read_one_by_one(folder: Path, n: int) -> list[Path]:
    row = {"name": "t", "dtype": "U8", "shape": [n << 21], "kind": "delta", "codec": "sparse", "blocks": [1] * n, "changed": 1}
    return [made.entries_patch(folder / "p", [row], bytes(n))]


@case(128, "verify")
def blocks_that_expand(folder: Path, n: int) -> list[Path]:
    plane = made.rle(1 << 21, magic=False)
    block = bytes([len(plane) & 127 | 128, len(plane) >> 7] if len(plane) > 127 else [len(plane)]) + plane
    row = {"name": "t", "dtype": "U8", "shape": [n << 21], "kind": "new", "codec": "raw", "blocks": [len(block)] * n}
    leaf = xxhash.xxh3_128_digest(b"\1" * (1 << 21))
    return [made.entries_patch(folder / "p", [row], block * n, digest=xxhash.xxh3_128_digest(leaf * n))]


def in_header(first: bytes, repeated: bytes, last: bytes) -> Make:
    """The decoded target header of a patch."""

    def make(folder: Path, n: int) -> list[Path]:
        text = first + repeated * (n // len(repeated)) + last
        return [made.patch(folder / "p", b'{"removed":[],"tensors":[]}', header=text + b" " * (-len(text) % 8))]

    return make


def in_file(first: bytes, repeated: bytes, last: bytes) -> Make:
    """The header of a checkpoint."""

    def make(folder: Path, n: int) -> list[Path]:
        return [made.safetensors(folder / "m.safetensors", first + repeated * (n // len(repeated)) + last)]

    return make


HEADERS = {
    "of_objects": (b"{", b'"":{},', b'"":{}}'),
    "of_one_member": (b'{"a":[', b"{},", b"{}]}"),
    "with_much_metadata": (b'{"__metadata__":{', b'"":"",', b'"":""}}'),
    "of_wide_text": ('{"__metadata__":{"":"😀'.encode(), b"k", b'"}}'),
    "nested": (b'{"a":', b"[", b"]}"),
    "of_spaces": (b"{}", b" ", b" "),
}
for _name, _parts in HEADERS.items():
    CASES[f"target_header_{_name}"] = 8 * MB - 200, "info", in_header(*_parts)
    CASES[f"header_{_name}"] = 8 * MB - 200, "checkpoint", in_file(*_parts)
CASES["header_over_the_limit"] = 25_000_000, "checkpoint", in_file(b"{", b'"":{},', b'"":{}}')


@case(1 << 15, "checkpoint")
def header_of_tensors(folder: Path, n: int) -> list[Path]:
    return [made.safetensors(folder / "m.safetensors", made.header_of((f"t{k}", "U8", [0]) for k in range(n)))]


def in_index(member: str, first: bytes, repeated: bytes, last: bytes) -> Make:
    def make(folder: Path, n: int) -> list[Path]:
        return [made.index(folder / "p", **{member: first + repeated * (n // len(repeated)) + last})]

    return make


INDEXES = {
    "index_of_objects": ("files", b"[", b"{},", b"{}]"),
    "index_of_nested_objects": ("removed", b"[", b'{"":' * 60 + b"1" + b"}" * 60 + b",", b"1]"),
    "index_of_info": ("info", b'{"x":[', b"[],", b"[]]}"),
    "index_of_text": ("info", '{"x":"😀'.encode(), b"k", b'"}'),
    "index_of_removed": ("removed", b"[", b'"ab",', b'"b"]'),
    "index_of_shards": ("shards", b"[", b'{"target":"a"},', b"{}]"),
}
for _name, _index in INDEXES.items():
    CASES[_name] = 4 * MB - 400, "info", in_index(*_index)


@case(1 << 13)
def index_of_deep_paths(folder: Path, n: int) -> list[Path]:
    return [made.index(folder / "p", removed=sorted("a/" * 479 + str(k) for k in range(n)))]


@case(1 << 13)
def index_of_paths_of_32_parts(folder: Path, n: int) -> list[Path]:
    files = sorted((f"{k}/" + "b/" * 30 + "c" for k in range(n - 1)), key=str.encode)
    return [made.index(folder / "p", files=[{**made.file_row(path), "kind": "same"} for path in files])]


@case(1 << 13)
def index_of_base_files(folder: Path, n: int) -> list[Path]:
    base = {"identity": made.DIGEST, "files": [made.file_row(f"{k:05}.safetensors") for k in range(n)]}
    return [made.index(folder / "p", base=base)]


@case(16)
def index_of_shards_of_spaces(folder: Path, n: int) -> list[Path]:
    """Each target header is 32 MB of spaces: a few kB as stored."""
    return _shards(folder, n, b'{"removed":[],"tensors":[]}', b"{}" + b" " * (32 * MB - 2))


@case(4)
def index_of_shards_of_names(folder: Path, n: int) -> list[Path]:
    names = made.canonical({"removed": sorted(f"{k:0120}" for k in range(1 << 17)), "tensors": []})
    return _shards(folder, n, names, b"{}      ", totals={"removed": 1 << 17})


def _shards(folder: Path, n: int, table: bytes, header: bytes, **metadata: Any) -> list[Path]:
    listed = []
    for k in range(n):
        name = f"{k:05}.safetensors"
        path = made.patch(folder / "p" / "patch" / name, table, header=header, file=name, **metadata)
        digest = json.loads(json.loads(path.read_bytes()[8:].split(b',"ckptdiff/table"')[0] + b"}")["__metadata__"]["ckptdiff"])["digest"]
        listed.append({**made.file_row(f"patch/{name}", path.stat().st_size), "target": name, "digest": digest})
    return [made.index(folder / "p", target={"identity": made.DIGEST}, shards=listed)]


@case(1)
def shards_of_pieces(folder: Path, n: int) -> list[Path]:
    """Each has as many as all may have together, so that the second is refused."""
    count = 1 << 20
    pieces = [["w" if k % 2 else "v", k, 1] for k in range(count)]
    header = made.header_of([("t0", "U8", [count])])
    table = made.canonical({"removed": [], "tensors": rows(1, shape=[count], base={"pieces": pieces})})
    options = {"predicted": header, "totals": {"same": 1, "units": count}, "size": 8 + len(header) + count}
    return _shards(folder, n, table, header, digests=bytes(16), **options)


@case(64 * MB, "verify")
def other_file_that_expands(folder: Path, n: int) -> list[Path]:
    data = made.rle(n)
    (folder / "p" / "files").mkdir(parents=True)
    (folder / "p" / "files" / "a.txt.zst").write_bytes(data)
    row = {**made.file_row("a.txt", n), "sha256": made.sha256(b"\1" * n), "kind": "new", "stored": len(data), "digest": made.hex128(data)}
    return [made.index(folder / "p", files=[row])]


@case(4 * MB)
def metadata_of_info(folder: Path, n: int) -> list[Path]:
    return [made.patch(folder / "p", b'{"removed":[],"tensors":[]}', info={"x": [[]] * (n // 3)})]


@case(1 << 13)
def metadata_of_base_files(folder: Path, n: int) -> list[Path]:
    base = {"files": [made.file_row(f"{k:05}.safetensors") for k in range(n)]}
    return [made.patch(folder / "p", b'{"removed":[],"tensors":[]}', base=base, identity=made.hex128(b""))]


REPORTS: dict[str, tuple[bytes, bytes, bytes]] = {
    "report_of_objects": (b'{"schema":"ckptdiff-report/1","tensors":[', b"{},", b"{}]}"),
    "report_nested": (b'{"schema":"ckptdiff-report/1","tensors":', b"[", b"]}"),
    "report_of_floats": (b'{"schema":"ckptdiff-report/1","moves":[', b"1e9,", b"1]}"),
    "report_of_wide_text": ('{"schema":"😀'.encode(), b"k", b'"}'),
    "report_of_names": (b'{"schema":"ckptdiff-report/1","added":[', b'"ab",', b'""]}'),
    "report_number_of_megabytes": (b'{"schema":', b"1", b"}"),
}
for _name, _report in REPORTS.items():

    def _make(folder: Path, n: int, row: tuple[bytes, bytes, bytes] = _report) -> list[Path]:
        stored = made.frame(row[0] + row[1] * (n // len(row[1])) + row[2])
        return [made.patch(folder / "p", b'{"removed":[],"tensors":[]}', report=stored)]

    CASES[_name] = 8 * MB - 200, "report", _make


def other_members(n: int) -> bytes:
    return b"{%s}" % b",".join(b'"%06x":1' % k for k in range(n // 11))


@case(8 * MB - 200)
def table_of_other_members(folder: Path, n: int) -> list[Path]:
    return [made.patch(folder / "p", other_members(n))]


@case(8 * MB - 200, "report")
def report_of_other_members(folder: Path, n: int) -> list[Path]:
    return [made.patch(folder / "p", b'{"removed":[],"tensors":[]}', report=made.frame(other_members(n)))]


@case(1 << 12, "apply")
def tensors_cut_from_a_long_one(folder: Path, n: int) -> list[Path]:
    """Of 16 MB each: read for each of them that would be 256 GB."""
    base = made.safetensors(folder / "base.safetensors", made.header_of([("w", "U8", [16 * MB])]), 16 * MB)
    table = rows(n, shape=[1], base={"pieces": [["w", 0, 1]]})
    return [base, made.entries_patch(folder / "p", table, digest=xxhash.xxh3_128_digest(xxhash.xxh3_128_digest(b"\0")))]


@case(1 << 18, "info")
def pieces_of_one_tensor(folder: Path, n: int) -> list[Path]:
    """As many as a table may have, each of another tensor than its neighbours."""
    pieces = [["w" if k % 2 else "v", k, 1] for k in range(n)]
    return [made.entries_patch(folder / "p", rows(1, shape=[n], base={"pieces": pieces}))]


@case(1 << 13, "report")
def report_of_tensors(folder: Path, n: int) -> list[Path]:
    from ckptdiff.analysis.modules import KINDS
    from ckptdiff.analysis.report_model import Report, TensorReport
    from ckptdiff.analysis.sparsity import Counts, Tolerance

    tensors = tuple(TensorReport("", f"t{k}", "BF16", (2, 2), k, KINDS[0], Counts(), None, None) for k in range(n))
    stored = Report("", "", Tolerance(0.0, 0.0), "none", tensors, (), (), (), (), (), (), ())
    return [made.patch(folder / "p", b'{"removed":[],"tensors":[]}', report=made.frame(made.canonical(stored.to_json())))]


@case(200, "mask")
def mask_of_huge_tensors(folder: Path, n: int) -> list[Path]:
    names = [f"t{k:04}" for k in range(n)]
    return [made.mask(folder / "m", {name: [1 << 32] for name in names}, {name: b"\5\0\0\0" for name in names})]


@case(8 * MB - 400, "mask")
def mask_shape_of_many_numbers(folder: Path, n: int) -> list[Path]:
    return [made.mask(folder / "m", {"t": [(1 << 48) - 1] * (n // 16)}, {"t": b"\5\0\0\0"})]


@case(1 << 14, "mask")
def mask_of_tensors(folder: Path, n: int) -> list[Path]:
    names = [f"t{k:06}" for k in range(n)]
    return [made.mask(folder / "m", {name: [1 << 32] for name in names}, {name: b"\5\0\0\0" for name in names})]


@case(4 * MB, "mask")
def mask_of_objects(folder: Path, n: int) -> list[Path]:
    return [made.mask(folder / "m", {"t": [{}] * (n // 3)}, {"t": b"\5\0\0\0"})]


MAPS: dict[str, tuple[bytes, bytes, bytes]] = {
    "weight_map_of_objects": (b'{"weight_map":{', b'"":{},', b'"":{}}}'),
    "weight_map_nested": (b'{"weight_map":', b"[", b"}"),
    "weight_map_of_wide_text": ('{"weight_map":{"😀'.encode(), b"k", b'":"m.safetensors"}}'),
    "weight_map_of_utf_16": tuple(text.encode("utf-16-le") for text in ('{"\u2200":0,"weight_map":[', '{"":0},', "0]}")),
    "weight_map_of_one_long_name": (b'{"weight_map":{"a":"', b"k", b'"}}'),
}
for _name, _map in MAPS.items():

    def _make_map(folder: Path, n: int, row: tuple[bytes, bytes, bytes] = _map) -> list[Path]:
        made.safetensors(folder / "c" / "m.safetensors", b"{}      ")
        (folder / "c" / "m.safetensors.index.json").write_bytes(row[0] + row[1] * (n // len(row[1])) + row[2])
        return [folder / "c"]

    CASES[_name] = 8 * MB - 200, "checkpoint", _make_map


@case(1 << 16, "checkpoint")
def weight_map_of_tensors(folder: Path, n: int) -> list[Path]:
    made.safetensors(folder / "c" / "m.safetensors", b"{}      ")
    text = json.dumps({"weight_map": {f"model.layers.0.mlp.experts.{k}.weight": "m.safetensors" for k in range(n)}})
    (folder / "c" / "m.safetensors.index.json").write_text(text)
    return [folder / "c"]
