"""A patch file taken apart, and put together again with digests, sizes, offsets and totals that are right."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from tests.fuzz.trees import dump
from tests.fuzz.vectors import BUILD, READER, Parts

BROKEN = (
    OverflowError,
    ValueError,
    IndexError,
    TypeError,
    KeyError,
    AttributeError,
    StopIteration,
    RecursionError,
    AssertionError,
    MemoryError,
    READER.PatchError,
)
"""What taking apart a patch that an earlier mutation broke may raise."""


class Opened:
    """A patch file taken apart without asking whether it is valid; :meth:`seal` puts it together again."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:8], "little")
        self.members = json.loads(data[8 : 8 + length])
        self.metadata = json.loads(self.members.pop("__metadata__")["ckptdiff"])
        parts = {name: data[8 + length + v["data_offsets"][0] : 8 + length + v["data_offsets"][1]] for name, v in self.members.items()}
        self.parts: dict[str, bytes] = parts
        self.header = next(name for name in parts if name.startswith("ckptdiff/header/"))
        content = READER.decode_frame(parts["ckptdiff/table"], 1 << 24)
        size = int.from_bytes(content[:4], "little")
        self.table, self.digests = json.loads(content[4 : 4 + size]), content[4 + size :]

    def target_header(self) -> bytes:
        """The target's header, decoded against what the table predicts."""
        return bytes(READER.decode_frame(self.parts[self.header], 1 << 24, _predicted(self.table["tensors"])))

    def seal(self, text: bytes | None = None, frame: bytes | None = None, totals: bool = True, metadata: bytes | None = None) -> bytes:
        """The patch file with digests, sizes and, if asked for, totals that are right. ``text``: of the table; ``frame``: it, stored."""
        raw = dump(self.table) if text is None else text
        made = BUILD.frame(len(raw).to_bytes(4, "little") + raw + self.digests) if frame is None else frame
        self.parts["ckptdiff/table"] = bytes(made)
        value = self.metadata
        if isinstance(value, dict):
            for key, name in (("table", "ckptdiff/table"), ("header", self.header), ("report", "ckptdiff/report")):
                if isinstance(value.get(key), str) and name in self.parts:
                    value[key] = BUILD.hex128(self.parts[name])
            if totals:
                value = {**value, "totals": _totals(self.table, value.get("totals"))}
            rest = {key: member for key, member in value.items() if key != "digest"}
            value = {**rest, "digest": BUILD.hex128(dump(rest))} if "digest" in value else rest
        sealed = dump(value) if metadata is None else metadata
        members: dict[str, Any] = {"__metadata__": {"ckptdiff": sealed.decode("utf-8", "surrogatepass")}}
        at = 0
        for name, data in self.parts.items():
            members[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
            at += len(data)
        head = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head + b"".join(self.parts.values())


def _predicted(entries: list[dict[str, Any]]) -> bytes:
    """The predicted header, for which no data is made but its length: a mutation may state any shape."""
    sizes = {e["name"]: (e["dtype"], e["shape"], range(BUILD.units(e) * BUILD.CARRIER[e["dtype"]])) for e in entries}
    return bytes(BUILD.header({name: SimpleNamespace(dtype=d, shape=s, data=data) for name, (d, s, data) in sizes.items()}))


def _totals(table: Any, old: Any) -> Any:
    try:
        return BUILD.totals_of(table)
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError):
        return old


def seal_identity(opened: Opened) -> None:
    """Let the target's identity be what follows from the table, as far as that has names and digests."""
    at, rows, found = 0, {}, opened.digests
    try:
        for e in opened.table["tensors"]:
            rows[e["name"]] = e, found[at : at + 16]
            at += {"copy": 0, "new": 24, "delta": 40, "same": 16}[e["kind"]]
        state = b""
        for name in sorted(rows, key=str.encode):
            e, digest = rows[name]
            digest = rows[e["of"]][1] if e["kind"] == "copy" else digest
            state += BUILD.canonical(["", name, e["dtype"], e["shape"], digest.hex()]) + b"\n"
        opened.metadata["target"]["identity"] = BUILD.hex128(state)
    except (TypeError, KeyError, ValueError, AttributeError):
        pass


def dump_in_order(value: Any) -> bytes:
    """JSON whose keys stay as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def listed(parts: Parts, name: str) -> Parts:
    """A folder whose index has the size and digests of one of its files."""
    root, _, member = name.partition("/")
    try:
        index = json.loads(parts[f"{root}/ckptdiff.json"])
        for item in index["files"]:
            if f"files/{item['path']}.zst" == member:
                item |= {"stored": len(parts[name]), "digest": BUILD.hex128(parts[name])}
        for shard in index["shards"]:
            if shard["path"] == member:
                digest = Opened(parts[name]).metadata["digest"]
                shard |= {"size": len(parts[name]), "sha256": BUILD.sha256(parts[name]), "digest": digest}
        rest = {key: value for key, value in index.items() if key != "digest"}
        return {**parts, f"{root}/ckptdiff.json": dump({**rest, "digest": BUILD.hex128(dump(rest))})}
    except BROKEN:
        return parts
