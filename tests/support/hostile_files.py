"""Files that a stranger could send, with correct digests, so that each fault is found as late as possible."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import xxhash
import zstandard

BITS = {"U8": 8, "BF16": 16}
DIGEST = "0" * 32
SHA = "0" * 64


def canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def hex128(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def frame(data: bytes, prefix: bytes = b"") -> bytes:
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    parameters = zstandard.ZstdCompressionParameters.from_level(1, write_content_size=True, write_dict_id=False)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(data)


def rle(length: int, magic: bool = True) -> bytes:
    """A zstd frame of one byte repeated, four bytes of it for each 128 KiB."""
    blocks, left = bytearray(), length
    while left:
        run = min(left, 1 << 17)
        left -= run
        blocks += (run << 3 | 2 | (left == 0)).to_bytes(3, "little") + b"\1"
    return (b"\x28\xb5\x2f\xfd" if magic else b"") + b"\xc0\x38" + length.to_bytes(8, "little") + bytes(blocks)


def sealed(value: dict[str, Any]) -> bytes:
    return canonical({**value, "digest": hex128(canonical(value))})


def header_of(rows: Iterable[tuple[str, str, Sequence[int]]]) -> bytes:
    """A safetensors header of (name, dtype, shape) rows, as common writers make it."""
    parts, at = ['"__metadata__":{"format":"pt"}'], 0
    for name, dtype, shape in rows:
        size = BITS[dtype] // 8
        for dim in shape:
            size *= dim
        dims = ",".join(map(str, shape))
        parts.append(f'{json.dumps(name, ensure_ascii=False)}:{{"dtype":"{dtype}","shape":[{dims}],"data_offsets":[{at},{at + size}]}}')
        at += size
    raw = ("{" + ",".join(parts) + "}").encode()
    return raw + b" " * (-len(raw) % 8)


def safetensors(path: Path, header: bytes, size: int = 0) -> Path:
    """A file with this header and so many zero bytes of data, as a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return path


def no_totals() -> dict[str, int]:
    return dict.fromkeys(("same", "delta", "new", "copy", "removed", "units", "changed"), 0)


def patch(
    path: Path,
    table: bytes,
    digests: bytes = b"",
    header: bytes = b'{"__metadata__":{"format":"pt"}}',
    payloads: bytes = b"",
    predicted: bytes | None = None,
    report: bytes | None = None,
    **metadata: Any,
) -> Path:
    """A patch file of these parts. ``metadata``: its members ``totals``, ``info``, ``base``; ``size`` and ``file`` of the target."""
    target = metadata.get("file", "t.safetensors")
    content = struct.pack("<I", len(table)) + table + digests
    stored = [("ckptdiff/table", frame(content)), (f"ckptdiff/header/{target}", frame(header, predicted or b""))]
    extra = {}
    if report is not None:
        stored.append(("ckptdiff/report", report))
        extra["report"] = hex128(report)
    stored.append(("ckptdiff/payloads", payloads))
    value = {
        "format": "ckptdiff",
        "version": 1,
        "table": hex128(stored[0][1]),
        "header": hex128(stored[1][1]),
        "base": {"identity": metadata.get("base_identity", DIGEST), "scope": "t", **metadata.get("base", {})},
        "target": {
            "identity": metadata.get("identity", DIGEST),
            "path": target,
            "scope": "t",
            "size": metadata.get("size", 8 + len(header)),
            "sha256": SHA,
        },
        "totals": no_totals() | metadata.get("totals", {}),
        "info": metadata.get("info", {}),
        **extra,
    }
    text, members, at = sealed(value).decode(), [], 0
    for name, data in stored:
        members.append(f'"{name}":{{"dtype":"U8","shape":[{len(data)}],"data_offsets":[{at},{at + len(data)}]}}')
        at += len(data)
    raw = ('{"__metadata__":{"ckptdiff":' + json.dumps(text, ensure_ascii=False) + "}," + ",".join(members) + "}").encode()
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(data for _, data in stored))
    return path


def entries_patch(path: Path, rows: Sequence[dict[str, Any]], payload: bytes = b"", **options: Any) -> Path:
    """A patch of whole entries (all of kind ``same``, ``delta`` or ``new``), with the digests that ``options`` and ``payload`` give."""
    header = header_of((row["name"], row["dtype"], row["shape"]) for row in rows)
    kinds = [row["kind"] for row in rows]
    units = sum(_elements(row["shape"]) for row in rows)
    totals = {kind: kinds.count(kind) for kind in ("same", "delta", "new", "copy")} | {"units": units}
    totals["changed"] = sum(row.get("changed", 0) for row in rows)
    digest = options.pop("digest", None) or xxhash.xxh3_128_digest(b"")
    hashed = xxhash.xxh3_64_digest(payload)
    made = {"same": digest, "delta": digest + digest + hashed, "new": digest + hashed, "copy": b""}
    digests = b"".join(made[kind] for kind in kinds)
    size = 8 + len(header) + sum(BITS[row["dtype"]] // 8 * _elements(row["shape"]) for row in rows)
    table = canonical({"removed": [], "tensors": rows})
    return patch(path, table, digests, header, payload, predicted=header, totals=totals, size=size, **options)


def _elements(shape: Sequence[int]) -> int:
    product = 1
    for dim in shape:
        product *= dim
    return product


def index(folder: Path, **members: Any) -> Path:
    """A patch folder of an index alone; ``members`` may be bytes of JSON, put in as they are."""
    value: dict[str, Any] = {
        "format": "ckptdiff-index",
        "version": 1,
        "info": {},
        "base": {"identity": DIGEST, "files": []},
        "target": {"identity": hex128(b"")},
        "shards": [],
        "files": [],
        "removed": [],
        "totals": no_totals(),
    }
    raw = {key: data for key, data in members.items() if isinstance(data, bytes)}
    value |= {key: member for key, member in members.items() if key not in raw} | {key: f"@{key}@" for key in raw}

    def filled(text: bytes) -> bytes:
        for key, data in raw.items():
            text = text.replace(b'"@%s@"' % key.encode(), data)
        return text

    digest = hex128(filled(canonical(value)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ckptdiff.json").write_bytes(filled(canonical({**value, "digest": digest})))
    return folder


def mask(path: Path, shapes: dict[str, Any], rows: dict[str, bytes]) -> Path:
    """A mask file whose rows are positions."""
    value = {"format": "ckptdiff-mask", "version": 1, "shapes": shapes}
    data = b"".join(rows[name] for name in sorted(rows))
    text = canonical({**value, "digest": hex128(data + canonical(value))}).decode()
    members, at = [f'"__metadata__":{{"ckptdiff-mask":{json.dumps(text, ensure_ascii=False)}}}'], 0
    for name in sorted(rows):
        size = len(rows[name])
        members.append(f'"{name}":{{"dtype":"U32","shape":[{size // 4}],"data_offsets":[{at},{at + size}]}}')
        at += size
    raw = ("{" + ",".join(members) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def file_row(path: str, size: int = 1) -> dict[str, Any]:
    return {"path": path, "size": size, "sha256": SHA}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
