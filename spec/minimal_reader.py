# SPDX-License-Identifier: Apache-2.0
"""A minimal, complete reader of ckptdiff patches, written from ckptdiff-v1.md alone: the format in one file.

It is for learning and for checking other readers, not for speed. Comments name the sections of the specification.
Needs zstandard, numpy and xxhash. Usage: python minimal_reader.py apply BASE PATCH [PATCH...] OUT
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile

import numpy as np
import xxhash
import zstandard

BLOCK = 1 << 21  # section 2: bytes of tensor data that are coded together
U64 = np.uint64
# Section 4: name -> (bits, carrier in bytes, is the order that of floats).
DTYPES = {"BOOL": (8, 1, 0), "U8": (8, 1, 0), "I8": (8, 1, 0), "F8_E8M0": (8, 1, 0), "U16": (16, 2, 0),
          "I16": (16, 2, 0), "U32": (32, 4, 0), "I32": (32, 4, 0), "U64": (64, 8, 0), "I64": (64, 8, 0),
          "F8_E5M2": (8, 1, 1), "F8_E4M3": (8, 1, 1), "F8_E5M2FNUZ": (8, 1, 1), "F8_E4M3FNUZ": (8, 1, 1),
          "F16": (16, 2, 1), "BF16": (16, 2, 1), "F32": (32, 4, 1), "F64": (64, 8, 1), "C64": (64, 4, 1),
          "F4": (4, 1, 0), "F6_E2M3": (6, 1, 0), "F6_E3M2": (6, 1, 0)}
FLOATS = {"F16", "BF16", "F32"}  # section 8: those between which numbers are cast


class PatchError(Exception):
    """A patch or base that is to be rejected; ``kind`` is one of section 13."""

    def __init__(self, kind, message):
        super().__init__(kind, message)
        self.kind, self.message = kind, message


def need(condition, message, kind="format"):
    if not condition:
        raise PatchError(kind, message)


# ---- Section 2: canonical JSON --------------------------------------------------------------------------------------

def canonical(value):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")


def depth(value):
    """How deep arrays and objects nest."""
    items = value.values() if type(value) is dict else value if type(value) is list else None
    return 0 if items is None else 1 + max(map(depth, items), default=0)


def strict_json(raw):
    """JSON without floats, repeated keys, lone surrogates, large integers or deep nesting."""
    def refuse(text):
        raise ValueError(f"{text[:30]} is not allowed")

    def integer(text):
        return refuse(text) if text == "-0" or len(text) > 17 or abs(int(text)) >= 1 << 53 else int(text)

    def unique(pairs):
        return dict(pairs) if len({key for key, _ in pairs}) == len(pairs) else refuse("a repeated key")
    try:
        value = json.loads(raw.decode("utf-8"), parse_float=refuse, parse_constant=refuse, parse_int=integer,
                           object_pairs_hook=unique)
        need(depth(value) <= 64, "the JSON nests too deeply")
        return value, canonical(value)  # canonical() fails on a lone surrogate
    except (ValueError, RecursionError) as error:
        raise PatchError("format", f"not strict JSON: {error}") from None


def canonical_json(raw):
    value, again = strict_json(raw)
    need(again == raw, "the JSON is not in its canonical form")
    return value


# ---- Schemas: a dict of members ("x?" is optional), a list of one schema, or a test of one value --------------------

def text(value):
    return type(value) is str


def count(value):
    return type(value) is int and value >= 0  # type(): True is no integer


def file_size(value):  # section 11
    return count(value) and value <= 1 << 40


def dtype(value):
    need(not text(value) or value in DTYPES, f"unknown dtype {value!r}", "unsupported")
    return text(value)


def shape(value):  # limits of section 11
    return type(value) is list and len(value) <= 32 and all(count(n) and n <= 1 << 48 for n in value)


def xxh(value):
    return text(value) and re.fullmatch("[0-9a-f]{32}", value)


def sha(value):
    return text(value) and re.fullmatch("[0-9a-f]{64}", value)


def name(value):
    return text(value) and 0 < len(value.encode()) <= 4096


def piece(value):  # section 6: [name, first, units], or [null, 0, units]
    return (type(value) is list and len(value) == 3 and (name(value[0]) or value[0] is None and value[1] == 0)
            and count(value[1]) and count(value[2]) and value[2] >= 1 and value[1] + value[2] <= 1 << 48)


def safe_path(value):  # section 9
    parts = value.encode().split(b"/") if text(value) else [b""]
    return (len(parts) <= 32 and all(0 < len(p) <= 250 and p not in (b".", b"..") and p.lower() != b".git" and not p.lower().startswith(b".ckptdiff-") for p in parts)
            and len(value.encode()) <= 1024 and value != "ckptdiff.json" and not re.search("[\\\\:\x00-\x1f\x7f]", value))


def scope_id(value):
    return text(value) and len(value.encode()) <= 1024


def info(value):  # section 5.1: the known members are short strings, and an object of strings; others are ignored
    return type(value) is dict and len(canonical(value)) <= 1 << 16 and all(text(value.get(key, "")) and len(value.get(key, "").encode()) <= 256 for key in (
        "base_repo", "base_revision", "target_repo", "target_revision")) and (
        type(value.get("tied", {})) is dict and all(map(text, value.get("tied", {}).values())))


TOTALS = dict.fromkeys(("same", "delta", "new", "copy", "removed", "units", "changed"), count)
FILE = {"path": safe_path, "size": file_size, "sha256": sha}
METADATA = {"format": text, "version": count, "digest": xxh, "table": xxh, "header": xxh, "report?": xxh,
            "totals": TOTALS, "info": info, "base": {"identity": xxh, "scope": lambda v: v is None or scope_id(v), "files?": [FILE]},
            "target": {"identity": xxh, "scope": scope_id, "path": safe_path, "size": file_size, "sha256?": sha}}
INDEX = {"format": text, "version": count, "digest": xxh, "info": info, "target": {"identity": xxh}, "totals": TOTALS,
         "base": {"identity": xxh, "files": [FILE]}, "removed": [safe_path], "files": [lambda v: type(v) is dict],
         "shards": [{"target": safe_path, "path": safe_path, "size": file_size, "sha256": sha, "digest": xxh}]}
FILES = {"same": {**FILE, "kind": text}, "new": {**FILE, "kind": text, "stored": file_size, "digest": xxh}}
FILES["delta"] = {**FILES["new"], "base_sha256": sha}
ENTRY = {"name": name, "dtype": dtype, "shape": shape, "kind": text, "counts?": lambda v: v is False}
BASE = {"dtype?": dtype, "pieces?": lambda v: type(v) is list and all(map(piece, v))}
CODED = {"codec": text, "blocks": [lambda v: count(v) and v <= 1 << 24]}
ENTRIES = {"same": {**ENTRY, "base?": BASE}, "delta": {**ENTRY, "base?": BASE, "changed": count, **CODED},
           "new": {**ENTRY, **CODED}, "copy": {**ENTRY, "of": name}}


def check(value, schema, what, elsewhere=()):
    if type(schema) is dict:
        need(type(value) is dict, f"{what} is not an object")
        known = {key.rstrip("?") for key in schema}
        for key in value:  # section 12; a member that belongs to another kind is known, but out of place
            need(key in known or key in elsewhere, f"{what} has the unknown member {key!r}", "unsupported")
            need(key in known, f"{what} has the member {key!r}, which is not for its kind")
        for key in schema:
            need(key.endswith("?") or key in value, f"{what} lacks the member {key!r}")
            if key.rstrip("?") in value:
                check(value[key.rstrip("?")], schema[key], what + "." + key.rstrip("?"))
    elif type(schema) is list:
        need(type(value) is list, f"{what} is not a list")
        for item in value:
            check(item, schema[0], what)
    else:
        need(schema(value), f"{what} is out of order: {str(value)[:60]!r}")


def check_kind(value, schemas, what):
    need(type(value) is dict and text(value.get("kind")), f"{what} has no kind")
    need(value["kind"] in schemas, f"{what} has the unknown kind {value['kind']!r}", "unsupported")
    check(value, schemas[value["kind"]], what, {key.rstrip("?") for s in schemas.values() for key in s})


def check_sorted(names, what):
    keys = [n.encode() for n in names]
    need(all(a < b for a, b in zip(keys, keys[1:])), f"{what} are not sorted, or not unique")


def document(raw, form, schema):
    """The metadata of a patch file or the index of a folder, checked in the order of section 13."""
    need(len(raw) <= 1 << 24, f"this {form} is too large")
    value = canonical_json(raw)
    need(type(value) is dict and value.get("format") == form, f"this is not a {form}")
    need(type(value.get("version")) is int, "no version")
    need(value["version"] == 1, f"version {value['version']}", "unsupported")
    for key in value:
        need(key in schema or key + "?" in schema, f"{form} has the unknown member {key!r}", "unsupported")
    need(xxh(value.get("digest")), "no digest, or none of 32 digits")
    rest = canonical({key: v for key, v in value.items() if key != "digest"})
    need(xxhash.xxh3_128_hexdigest(rest) == value["digest"], f"the digest of the {form} is wrong", "integrity")
    check(value, schema, form)
    if "files" in value["base"]:
        check_sorted([f["path"] for f in value["base"]["files"]], "base.files")
    named = value["base"].get("files", []), *(value.get(key, []) for key in ("shards", "files", "removed"))
    need(sum(map(len, named)) <= 1 << 15, f"this {form} names too many files")
    return value


# ---- zstd: one frame that fills its bytes, decoded to no more than its limit ----------------------------------------

MAGIC = b"\x28\xb5\x2f\xfd"


def frame_header(data):
    """Walk over one frame (RFC 8878, 3.1.1); its content size or None, its window, and whether it has a checksum."""
    def field(size):
        nonlocal at
        at += size
        need(at <= len(data), "a zstd frame is cut short")
        return int.from_bytes(data[at - size:at], "little")
    at = 4
    need(data[:4] == MAGIC, "not a zstd frame")
    flags = field(1)
    single = flags >> 5 & 1
    need(flags & 8 == 0, "a zstd frame has a reserved bit set")
    window = 0 if single else field(1)
    window = (1 << 10 + (window >> 3)) // 8 * (8 + (window & 7))
    need(field((0, 1, 2, 4)[flags & 3]) == 0, "a zstd frame asks for a dictionary")
    size_bytes = (single, 2, 4, 8)[flags >> 6]
    size = field(size_bytes) + 256 * (size_bytes == 2) if size_bytes else None
    last = False
    while not last:
        block = field(3)
        last, kind = block & 1, block >> 1 & 3
        need(kind != 3, "a zstd frame has a reserved block type")
        field(1 if kind == 1 else block >> 3)
    field(4 * (flags >> 2 & 1))
    need(at == len(data), "there are bytes after a zstd frame")
    return size, size if single else window, flags >> 2 & 1


def primed(prefix):
    return zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None


def decode_frame(data, limit, prefix=b""):
    """A frame of at most ``limit`` bytes of content, which it states (sections 5.2 and 6)."""
    size = frame_header(data)[0]
    need(size is not None and size <= limit, f"a zstd frame states the size {size}")
    try:
        return zstandard.ZstdDecompressor(dict_data=primed(prefix)).decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PatchError("format", f"bad zstd frame: {error}") from None


# ---- Section 5.3: safetensors files ---------------------------------------------------------------------------------

def size_of(kind, dims):
    elements = math.prod(n for n in dims if n)
    bits = 0 if 0 in dims else elements * DTYPES[kind][0]
    need(elements <= 1 << 48 and bits % 8 == 0 and bits <= 8 << 48, f"no tensor can be {kind} {dims}")
    return bits // 8


def parse_header(raw, data_size):
    """The ``__metadata__`` and the tensors (name, dtype, shape, begin, end) of a header, in order of their data."""
    stripped = raw.rstrip(b" \t\n\r")
    need(raw[:1] == b"{" and stripped[-1:] == b"}", "the header is not one JSON object and white space")
    need(data_size is None or data_size <= 1 << 40, "the file is too large")
    header, _ = strict_json(stripped)
    metadata = header.pop("__metadata__", {})
    need(len(header) <= 1 << 17, "too many tensors")
    need(type(metadata) is dict and len(metadata) <= 1 << 16 and all(map(text, metadata.values())), "__metadata__ is not an object of strings")
    tensors = []
    for key, value in header.items():
        need(name(key) and type(value) is dict and value.keys() == {"dtype", "shape", "data_offsets"}, f"tensor {key!r}")
        kind, dims, offsets = value["dtype"], value["shape"], value["data_offsets"]
        need(text(kind) and kind in DTYPES and shape(dims) and type(offsets) is list and len(offsets) == 2
             and all(count(n) and n <= 1 << 48 for n in offsets), f"tensor {key!r} is out of order")
        need(offsets[1] - offsets[0] == size_of(kind, dims), f"the size of tensor {key!r} is not that of its data")
        tensors.append((key, kind, dims, *offsets))
    tensors.sort(key=lambda t: t[3:])  # stable: equals stay in the order written
    end = 0
    for tensor in tensors:
        need(tensor[3] == end, f"hole or overlap before tensor {tensor[0]!r}")
        end = tensor[4]
    need(end == data_size or data_size is None, "the data ends elsewhere than the file")
    return metadata, tensors


class Weights:
    """A safetensors file; begin and end count from the start of its data."""

    def __init__(self, path):
        self.path, self.start, size = path, 0, os.path.getsize(path)
        length = int.from_bytes(self.read(0, 8), "little")
        need(size >= 8 and length <= min(1 << 25, size - 8), "the header does not fit in the file")
        self.raw, self.start = self.read(8, 8 + length), 8 + length
        self.metadata, self.tensors = parse_header(self.raw, size - self.start)

    def read(self, begin, end):
        with open(self.path, "rb") as file:
            file.seek(self.start + begin)
            return file.read(end - begin)


class Tensor:
    """The bytes of one tensor in a file."""

    def __init__(self, weights, kind, dims, begin, end):
        self.weights, self.dtype, self.shape, self.begin, self.size = weights, kind, dims, begin, end - begin

    def read(self, begin, end):
        return self.weights.read(self.begin + min(begin, self.size), self.begin + min(end, self.size))

    def digest(self):  # section 3.2
        return tensor_digest(self.read(at, at + BLOCK) for at in range(0, self.size, BLOCK))


def tensor_digest(blocks):
    return xxhash.xxh3_128_digest(b"".join(xxhash.xxh3_128_digest(block) for block in blocks))


# ---- Section 10, step 1: patch files and patch folders --------------------------------------------------------------

class Entry:
    """An entry of a table with its digests; ``pieces`` is None where its base is the tensor of its own name."""

    def __init__(self, fields):
        self.__dict__.update({"blocks": [], "counts": True, **fields})
        base = fields.get("base", {})
        need(base or "base" not in fields, f"{self.name!r}: base is empty")
        self.base_dtype, self.pieces = base.get("dtype", self.dtype), base.get("pieces")
        self.size = size_of(self.dtype, self.shape)
        self.units = self.size // DTYPES[self.dtype][1]
        need("dtype" not in base or self.base_dtype != self.dtype, f"{self.name!r}: base.dtype is the entry's own")
        need(has_rule(self.base_dtype, self.dtype), f"{self.name!r}: no such cast")
        if self.pieces is not None:
            self.check_pieces()
        if self.kind in ("delta", "new"):
            need(self.codec in ("raw", "sparse", "context"), f"{self.name!r}: codec {self.codec!r}", "unsupported")
            need(self.kind == "delta" or self.codec == "raw", f"{self.name!r}: a new tensor is coded raw")
            need(len(self.blocks) == -(-self.size // BLOCK), f"{self.name!r}: wrong number of blocks")
        need(self.kind != "delta" or 1 <= self.changed <= self.units, f"{self.name!r}: changed is out of range")

    def check_pieces(self):  # section 6
        need(any(key is not None for key, _, _ in self.pieces), f"{self.name!r}: no piece of its base has a name")
        need(sum(units for _, _, units in self.pieces) <= self.units, f"{self.name!r}: its pieces are longer than it is")
        need(self.pieces != [[self.name, 0, self.units]], f"{self.name!r}: its piece is what stands for it anyway")
        need(self.pieces[-1][0] is not None, f"{self.name!r}: its last piece is of zeros")
        for (key, first, units), (key_after, first_after, _) in zip(self.pieces, self.pieces[1:]):
            need(key != key_after or key is not None and first + units != first_after, f"{self.name!r}: two pieces could be one")

    def base_names(self):
        """The names of the base tensors that it is made from."""
        if self.kind not in ("same", "delta"):
            return set()
        return {self.name} if self.pieces is None else {key for key, _, _ in self.pieces if key is not None}


class PatchFile:
    def __init__(self, path):
        self.weights = weights = Weights(path)
        need("ckptdiff" in weights.metadata, "this is not a ckptdiff patch")
        meta_text = weights.metadata["ckptdiff"]
        self.metadata = meta = document(meta_text.encode(), "ckptdiff", METADATA)  # 5.1
        header_name = "ckptdiff/header/" + meta["target"]["path"].split("/")[-1]
        heads = [("ckptdiff/table", "table", 34_078_720), (header_name, "header", 34_078_720)]
        if "report" in meta:
            heads.append(("ckptdiff/report", "report", 1 << 24))  # 5.4: checked here, and not needed to rebuild
        stored = {t[0]: weights.read(*t[3:]) for t in weights.tensors if t[0] in [key for key, _, _ in heads]}
        need([t[0] for t in weights.tensors[:len(heads)]] == [key for key, _, _ in heads], "no table, no header or no report first")
        for key, member, limit in heads:
            need(len(stored[key]) <= limit, f"the {member} is too large")
        for key, member, limit in heads:
            need(xxhash.xxh3_128_hexdigest(stored[key]) == meta[member], f"the {member}'s digest is wrong", "integrity")
        self.described = self.read_table(decode_frame(stored["ckptdiff/table"], 1 << 25))
        self.described += self.read_header(decode_frame(stored[header_name], 1 << 25, self.predicted_header()))
        # Section 5: the patch's own header is exactly what the metadata and the table imply.
        members, end = [b'{"__metadata__":{"ckptdiff":' + canonical(meta_text) + b"}"], 0
        payloads = ("ckptdiff/payloads", sum(sum(e.blocks) for e in self.entries))
        for key, size in [(key, len(stored[key])) for key, _, _ in heads] + [payloads]:
            members.append(b'%s:{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}' % (
                canonical(key), size, end, end + size))
            end += size
        expected = b",".join(members) + b"}"
        need(weights.raw == expected + b" " * (-len(expected) % 8), "the patch's header is not what it must be")
        at = sum(map(len, stored.values()))
        for entry in self.entries:
            entry.payload, at = (at, at + sum(entry.blocks)), at + sum(entry.blocks)

    def check_payloads(self):  # the last of section 10, step 1
        for entry in self.entries:
            need(entry.kind in ("same", "copy") or xxhash.xxh3_64_digest(self.weights.read(*entry.payload)) == entry.payload_digest,
                 f"{entry.name!r}: the payload's digest is wrong", "integrity")

    def read_table(self, raw):  # section 6
        length = int.from_bytes(raw[:4], "little")
        need(4 + length <= len(raw), "the table is cut short")
        table = canonical_json(raw[4:4 + length])
        check(table, {"removed": [name], "tensors": [lambda v: type(v) is dict]}, "table")
        self.removed = table["removed"]
        check_sorted(self.removed, "removed names")
        need(len(table["tensors"]) <= 1 << 17 and len(self.removed) <= 1 << 17, "too many tensors")
        self.entries = []
        for fields in table["tensors"]:
            check_kind(fields, ENTRIES, "entry")
            self.entries.append(Entry(fields))
        self.pieces = sum(len(e.pieces or ()) for e in self.entries)
        need(self.pieces <= 1 << 20, "too many pieces")
        need(len({e.name for e in self.entries}) == len(self.entries), "two entries have the same name")
        scope = self.metadata["base"]["scope"]
        need(scope is not None or not self.removed and all(e.kind in ("new", "copy") for e in self.entries),
             "entries need a base, but base.scope is null")
        totals = {k: sum(e.kind == k for e in self.entries) for k in ENTRIES}
        totals.update(removed=len(self.removed), units=sum(e.units for e in self.entries),
                      changed=sum(e.changed for e in self.entries if e.kind == "delta"))
        need(totals == self.metadata["totals"], "totals do not agree with the table")
        at = 4 + length
        for e in self.entries:
            sizes = (0 if e.kind == "copy" else 16, 16 if e.kind == "delta" else 0, 8 if e.kind in ("delta", "new") else 0)
            e.digest, e.base_digest, e.payload_digest = (raw[at + sum(sizes[:i]):at + sum(sizes[:i + 1])]
                                                         for i in range(3))
            e.base_digest = e.base_digest or e.digest
            at += sum(sizes)
        need(at == len(raw), "the table's digests have the wrong length")
        return len(raw)

    def predicted_header(self):  # section 5.2
        members, at = [b'{"__metadata__":{"format":"pt"}'], 0
        for e in self.entries:
            dims = ",".join(map(str, e.shape)).encode()
            members.append(b'%s:{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}' % (
                canonical(e.name), e.dtype.encode(), dims, at, at + e.size))
            at += e.size
        header = b",".join(members) + b"}"
        return header + b" " * (-len(header) % 8)

    def read_header(self, raw):  # section 5.2
        self.header = raw
        tensors = parse_header(raw, None)[1]
        need([t[:3] for t in tensors] == [(e.name, e.dtype, e.shape) for e in self.entries],
             "the target's header does not hold the table's tensors")
        for entry, tensor in zip(self.entries, tensors):
            entry.begin = 8 + len(raw) + tensor[3]
        need(8 + len(raw) + sum(e.size for e in self.entries) == self.metadata["target"]["size"],
             "target.size is not the size of the target")
        return len(raw)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


class Patch:
    """A patch file or a patch folder (section 9), checked without its base."""

    def __init__(self, path):
        self.path, self.folder, self.files = path, os.path.isdir(path), []
        alone = path
        if self.folder and not os.path.isfile(os.path.join(path, "ckptdiff.json")):  # section 9: a folder of one patch file
            self.folder, alone = False, self.only_file()
        if self.folder:
            self.open_folder()
        else:
            self.shards = [PatchFile(alone)]
            need(alone == path or "files" in self.shards[0].metadata["base"], "a patch folder's patch file, without its ckptdiff.json")
            self.identities = tuple(self.shards[0].metadata[side]["identity"] for side in ("base", "target"))
            self.base_files = self.shards[0].metadata["base"].get("files")
        self.check_scopes()
        if self.base_files is not None:
            need(self.identity() == self.identities[1], "target.identity is not that of the tables")
            need(self.base_files or not any("sha256" in s.metadata["target"] and e.kind in ("same", "delta")
                                            for s in self.shards for e in s.entries), "base.files is empty, but entries need a base")
        for shard in self.shards:
            shard.check_payloads()

    def only_file(self):
        found = sorted(os.path.join(place, file) for place, _, files in os.walk(self.path) for file in files if file.endswith(".safetensors"))
        found = [file for file in found if file.startswith(os.path.join(self.path, "patch", ""))] or found
        need(len(found) == 1, "the folder has no ckptdiff.json, nor one patch file only")
        return found[0]

    def stored(self, path, size, what):
        full = os.path.join(self.path, path)
        need(os.path.isfile(full), f"the patch lacks {path}")
        need(os.path.getsize(full) == size, f"the size of {path} is not that in the {what}", "integrity")
        return full

    def open_folder(self):
        index_path = os.path.join(self.path, "ckptdiff.json")
        need(os.path.getsize(index_path) <= 1 << 24, "the index is too large")
        with open(index_path, "rb") as file:
            index = document(file.read(), "ckptdiff-index", INDEX)
        self.identities = tuple(index[side]["identity"] for side in ("base", "target"))
        self.files, self.base_files = index["files"], index["base"]["files"]
        for item in self.files:
            check_kind(item, FILES, "file")
            need(not item["path"].endswith(".safetensors"), "a weight file is not a shard")
            need(item["kind"] != "delta" or item["size"] <= 1 << 26, "the file is too large for a delta")
        targets = [shard["target"] for shard in index["shards"]]
        check_sorted(targets, "shards")
        check_sorted([item["path"] for item in self.files], "files")
        check_sorted(index["removed"], "removed files")
        outputs = targets + [item["path"] for item in self.files]
        directories = {path[:i] for path in outputs for i, char in enumerate(path) if char == "/"}
        need(len(set(outputs)) == len(outputs) and not directories & set(outputs), "two output paths collide")
        need(not set(outputs) & set(index["removed"]), "an output path is removed too")
        places = {item["path"] + ".zst" for item in self.files if item["kind"] != "same"}
        need(not places & {path[:i] for path in places for i, char in enumerate(path) if char == "/"}, "two stored places collide")
        for shard in index["shards"]:
            need(shard["target"].endswith(".safetensors"), "a shard is not a weight file")
            need(shard["path"] == "patch/" + shard["target"], "a shard's patch file is not at its place")
        self.shards = []
        for shard in index["shards"]:
            full = self.stored(shard["path"], shard["size"], "index")
            self.shards.append(PatchFile(full))
            meta = self.shards[-1].metadata
            self.check_sums()  # section 11
            need(meta["digest"] == shard["digest"], f"{shard['path']} is not the index's", "integrity")
            need(meta["target"]["path"] == shard["target"], f"{shard['path']} is for another target")
            need((meta["base"]["identity"], meta["target"]["identity"]) == self.identities, "identities differ")
            need("files" not in meta["base"], "base.files stands in a patch folder's patch file")
            need("report" not in meta or len(self.shards) == 1, "a report stands in another than the first shard's patch file")
        totals = {key: sum(shard.metadata["totals"][key] for shard in self.shards) for key in TOTALS}
        need(totals == index["totals"], "totals do not agree with the shards")
        for item in self.files:
            if item["kind"] != "same":
                with open(self.stored(f"files/{item['path']}.zst", item["stored"], "index"), "rb") as file:
                    item["frame"] = file.read()
                need(xxhash.xxh3_128_hexdigest(item["frame"]) == item["digest"],
                     f"the digest of files/{item['path']}.zst is wrong", "integrity")

    def check_sums(self):
        need(sum(len(s.entries) for s in self.shards) <= 1 << 18 and sum(len(s.removed) for s in self.shards) <= 1 << 18
             and sum(s.pieces for s in self.shards) <= 1 << 20 and sum(s.described for s in self.shards) <= 1 << 27
             and sum(s.metadata["target"]["size"] for s in self.shards) <= 1 << 42, "too much in all patch files together")

    def identity(self):  # section 3.2
        rows, scopes = [], {scope: names for scope, names in self.scopes.items() if names}
        for scope in sorted(scopes, key=str.encode):
            for e in (scopes[scope][n][1] for n in sorted(scopes[scope], key=str.encode)):
                digest = (scopes[scope][e.of][1] if e.kind == "copy" else e).digest
                rows.append(canonical([scope if len(scopes) > 1 else "", e.name, e.dtype, e.shape, digest.hex()]) + b"\n")
        return xxhash.xxh3_128_hexdigest(b"".join(rows))

    def check_scopes(self):  # sections 3.1 and 6: what holds of the patch files of one scope, or one base scope, together
        self.scopes, taken, removed, paired = {}, set(), {}, {}  # scopes: of each the entries that count, by name
        for shard in self.shards:  # in order of path
            scope, base_scope = shard.metadata["target"]["scope"], shard.metadata["base"]["scope"]
            need(paired.setdefault(scope, base_scope) == base_scope, f"scope {scope!r} is paired with two scopes")
            need(base_scope not in removed or not shard.removed, "removed names stand in the first file of a base scope only")
            removed.setdefault(base_scope, shard.removed)
            names = self.scopes.setdefault(scope, {})
            for e in shard.entries:
                need(not e.counts or e.name not in names, f"of two files of a scope the tensor {e.name!r} counts")
                if e.counts:
                    names[e.name] = (shard, e)
                taken |= {(base_scope, n) for n in {e.name} | e.base_names()}
        need(not taken & {(scope, n) for scope, names in removed.items() for n in names}, "a removed tensor is in the target, or is a base")
        for shard in self.shards:
            names = self.scopes[shard.metadata["target"]["scope"]]
            for e in shard.entries:
                need(e.counts or (e.name in names if self.folder else self.base_files is None), f"the entry {e.name!r} does not count, and no other does")
                if e.kind == "copy":
                    of = names.get(e.of, (None, e))[1]
                    need(of.kind != "copy" and of.dtype == e.dtype and of.shape == e.shape, f"{e.name!r}: bad copy")


# ---- Section 7: codecs ----------------------------------------------------------------------------------------------

class Reader:
    """Reads the coded form of one block."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        self.at += size
        need(self.at <= len(self.data), "a coded block is cut short")
        return self.data[self.at - size:self.at]

    def varint(self):  # section 2
        value = 0
        for i in range(5):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                need((byte or i == 0) and value < 1 << 32, "a varint is not minimal, or too large")
                return value
        raise PatchError("format", "a varint is too long")

    def plane(self, length):  # section 7.1
        size = self.varint() if length else 0
        if size == 0:
            return np.frombuffer(self.take(length), np.uint8)
        frame = MAGIC + self.take(size)
        content, window, checksum = frame_header(frame)
        need(not checksum and content in (None, length), "a plane's frame has a checksum or another size")
        need(window <= 1 << 21, "the window of a plane's frame is too large")
        try:
            plane = zstandard.ZstdDecompressor().decompress(frame, max_output_size=length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PatchError("format", f"a plane's frame is bad: {error}") from None
        need(len(plane) == length, "a plane has another length")
        return np.frombuffer(plane, np.uint8)

    def integers(self, n, width):
        """n integers of ``width`` bytes, plane by plane, lowest first."""
        values = np.zeros(n, U64)
        for k in range(width):
            values |= self.plane(n).astype(U64) << U64(8 * k)
        return values

    def escaped(self, n, width, planes):
        values = self.integers(n, planes)
        if planes < width:
            escape = (1 << 8 * planes) - 1
            where = np.flatnonzero(values == U64(escape))
            high = self.integers(len(where), width)
            need(not (high > U64((1 << 8 * width) - 1 - escape)).any(), "an escaped value is too large")
            values[where] += high
        return values

    def end(self):
        need(self.at == len(self.data), "a coded block has bytes left over")


def decode_raw(coded, size, carrier):  # section 7.3
    reader = Reader(coded)
    values = reader.integers(size // carrier, carrier)
    reader.end()
    return values.astype(f"<u{carrier}").tobytes()


def decode_sparse(coded, base, carrier, is_float):  # section 7.4; returns the block and how many units changed
    if not coded:
        return base, 0
    units, bits = np.frombuffer(base, f"<u{carrier}").astype(U64), 8 * carrier
    reader = Reader(coded)
    n = reader.varint()
    need(1 <= n <= len(units), "n is out of range")
    widths = reader.take(1)[0]
    g, w = widths & 15, widths >> 4
    need(1 <= g <= 3 and 1 <= w <= carrier, "a width is out of range")
    at = np.cumsum(reader.escaped(n, 3, g).astype(np.int64) + 1) - 1
    z = reader.escaped(n, carrier, w)
    reader.end()
    need(at[-1] < len(units), "a position is past the end of the block")
    mask, half = U64((1 << bits) - 1), U64(1 << bits - 1)
    need(not (z == mask).any(), "a distance is too large")
    z = z + U64(1)
    distance = np.where(z & U64(1), ~(z >> U64(1)), z >> U64(1))  # section 7.2, modulo 2^64
    x = units[at]
    if is_float:
        x = np.where(x & half, mask - x, x + half)
    x = (x + distance) & mask
    if is_float:
        x = np.where(x & half, x - half, mask - x)
    units[at] = x
    return units.astype(f"<u{carrier}").tobytes(), n


class RawBits:  # section 7.5.1
    def __init__(self, data):
        self.data, self.at = data, 0
        self.words = [int.from_bytes(data[i:i + 8], "little") for i in range(0, len(data) + 8, 4)]  # each with the next

    def raw(self, k):
        if k > 32:
            return self.raw(32) | self.raw(k - 32) << 32
        word, shift = self.at >> 5, self.at & 31
        self.at += k
        return (self.words[word] >> shift) & (1 << k) - 1 if word < len(self.words) else 0

    def end(self):
        need((self.at + 7) // 8 == len(self.data), "raw bits are missing or left over")
        need(self.at % 8 == 0 or self.data[-1] >> self.at % 8 == 0, "a raw bit behind the last is set")


SHARES = [math.floor(2 ** (32 - k / 256)) for k in range(257)]


def share(a):  # section 7.5.2
    q = a % 2 ** 24
    high, next_ = SHARES[q >> 16], SHARES[(q >> 16) + 1]
    return high - ((high - next_) * (q % 2 ** 16) >> 16) >> (a >> 24)


class RangeDecoder:  # section 7.5.2
    def __init__(self, data):
        need(data[-1:] != b"\0", "the range coded bytes end with a zero")
        self.data, self.at, self.range = data, 8, 2 ** 64 - 1
        self.code = int.from_bytes((data + bytes(8))[:8], "big")
        self.check()

    def check(self):
        need(self.code < self.range >> 32 << 32, "the range coded bytes leave the range")

    def narrow(self, start, range_):
        self.code, self.range = self.code - start, range_
        while self.range < 1 << 48:
            self.code = self.code << 16 | int.from_bytes((self.data[self.at:self.at + 2] + bytes(2))[:2], "big")
            self.range, self.at = self.range << 16, self.at + 2

    def bit(self, context):  # a context is a list [p, n]
        p, n = context
        bound = (self.range >> 16) * max(p >> 6, 1)
        bit = self.code < bound
        context[:] = p + (((bit << 22) - p) * (655360 // (10 * n + 16)) >> 16), min(n + 1, 255)
        self.narrow(0 if bit else bound, bound if bit else self.range - bound)
        return int(bit)

    def distance(self, contexts, m, bits):
        octave = 0
        while octave < m - 1 and self.bit(contexts.setdefault(octave, [1 << 21, 0])):
            octave += 1
        node = 1
        for _ in range(min(octave, 3)):
            node = 2 * node + self.bit(contexts.setdefault((octave, node), [1 << 21, 0]))
        rest = octave - min(octave, 3)
        return node << rest | bits.raw(rest)


def decode_adaptive(reader, bits, classes, m):  # section 7.5.2; yields (position, D, side)
    lo, hi, rate, weights = bits.raw(8), bits.raw(8), 0, {}
    need(lo <= hi, "lo is above hi")
    for c in range(lo, hi + 1):
        rate = max(rate - 1, 0) + step(bits) if c > lo else bits.raw(6)
        need(0 <= rate <= 50, "a rate is out of range")
        weights[c] = 2 + (rate - 1) % 2 << 2 + (rate - 1 >> 1) if rate else 0
    coder = RangeDecoder(reader.take(len(reader.data) - reader.at))
    contexts = {}  # class -> (for distances, for sides), once it has changed
    a, stayed, seen, expected, pace = 0, 0, 0, 0, 1 << 16
    for i, c in enumerate(classes):
        weight = weights.get(c, 0)
        if weight == 0:
            continue
        bound = (coder.range >> 32) * share((a + weight) * pace >> 16)
        if coder.code < bound:
            a, stayed = a + weight, stayed + weight
            if a * pace >> 16 >= 1 << 26:
                coder.narrow(0, bound)
                a = 0
                coder.check()
            continue
        coder.narrow(bound, (coder.range >> 32) * share(a * pace >> 16) - bound)
        seen += (weight * share(weight) // (2 ** 32 - share(weight)) >> 8) - (seen >> 4)
        expected += min(stayed >> 8, 1 << 19) - (expected >> 4)
        pace = (seen + (24 << 16) << 16) // (expected + (24 << 16))
        if c not in contexts:
            near = min(contexts, key=lambda other: (abs(other - c), other), default=None)
            contexts[c] = tuple({key: [p, min(n, 1)] for key, (p, n) in kind.items()} for kind in contexts.get(near, ({}, {})))
        distances, sides = contexts[c]
        distance = coder.distance(distances, m, bits)
        octave = distance.bit_length() - 1
        side = bits.raw(1) if octave < 3 else coder.bit(sides.setdefault(octave, [1 << 21, 0]))
        yield i, distance, side
        a = stayed = 0
        coder.check()
    need(coder.at >= len(coder.data), "range coded bytes are left over")


def number(bits):  # section 7.5.3
    k = 0
    while bits.raw(1):
        k += 1
        need(k < 16, "a number is too large")
    return 2 ** k - 1 + bits.raw(k)


def step(bits):  # section 7.5.3
    e = number(bits)
    return -(e + 1) // 2 if e & 1 else e // 2


def table(bits, tokens):  # section 7.5.3; a list of (token, frequency, start) by slot
    last, common = bits.raw(8), bits.raw(8)
    need(last < tokens and common <= last, "a table's last or commonest token is out of range")
    f = {}
    for t in range(last + 1):
        if t != common:
            b = bits.raw(4)
            j = min(b - 1, 3)
            f[t] = (2 ** j + bits.raw(j)) << b - 1 - j if b else 0
    f[common] = 2 ** 14 - sum(f.values())
    need(f[common] >= 1 and f[last] > 0, "a table's frequencies do not sum up, or its last is 0")
    slots = []
    for t in range(last + 1):
        slots += [(t, f[t], len(slots))] * f[t]
    return slots


def decode_static(reader, bits, classes, m):  # section 7.5.3; yields (position, D, side)
    lo, hi, r, c = bits.raw(8), bits.raw(8), bits.raw(3), bits.raw(3)
    need(lo <= hi, "lo is above hi")
    width, phase, rows, columns = 1, 0, None, None
    if r or c:
        width, phase = bits.raw(22), bits.raw(22)
        need(phase < width <= len(classes), "bad rows")
        rows = [bits.raw(r) for _ in range(-(-(phase + len(classes)) // width))]
        columns = [bits.raw(c) for _ in range(width)]
    levels, count, group, groups = 2 ** r + 2 ** c - 1, bits.raw(6) + 1, 0, []
    for _ in range((hi - lo + 1) * levels):
        group += step(bits)
        need(0 <= group < count, "there is no such group")
        groups.append(group)
    tables = [table(bits, 8 * (m - 2)) for _ in range(count)]
    states = [int.from_bytes(reader.take(4), "little") for _ in range(4)]
    need(min(states) >= 1 << 16, "a state is too small")
    words = reader.take(len(reader.data) - reader.at)
    need(len(words) % 2 == 0, "half a word")
    words = iter(np.frombuffer(words, "<u2").tolist())
    for i, class_ in enumerate(classes):
        level = rows[(phase + i) // width] + columns[(phase + i) % width] if rows else 0
        x = states[i % 4]
        t, f, start = tables[groups[(min(max(class_, lo), hi) - lo) * levels + level]][x & 0x3FFF]
        x = f * (x >> 14) + (x & 0x3FFF) - start
        if x < 1 << 16:
            word = next(words, None)
            need(word is not None, "words are missing")
            x = x << 16 | word
        states[i % 4] = x
        if 0 < t < 8:
            yield i, t, bits.raw(1)
        elif t:
            k = 3 + (t - 8 >> 3)
            yield i, (4 + t % 4 << k - 2) + bits.raw(k - 2), t >> 2 & 1
    need(next(words, None) is None and set(states) == {1 << 16}, "words are left over, or a state does not end at 2^16")


def decode_context(coded, base, dtype):  # section 7.5; returns the block and how many units changed
    if not coded:
        return base, 0
    carrier, is_float = DTYPES[dtype][1:]
    m, reader = 8 * carrier, Reader(coded)
    form = reader.take(1)[0]
    need(form == 1 or form == 2 and carrier < 8, "an unknown form")
    bits = RawBits(reader.take(reader.varint()))
    units = np.frombuffer(base, f"<u{carrier}").tolist()
    shift = {"F16": 10, "BF16": 7, "F32": 23, "C64": 23, "F64": 52}.get(dtype, m - 8)
    classes = [x >> shift & (31 if dtype == "F16" else 255) for x in units]
    top, changed = 1 << m - 1, 0
    for i, distance, side in (decode_adaptive if form == 1 else decode_static)(reader, bits, classes, m):
        x, down = units[i], side != (is_float and units[i] >= top)
        need(distance < top + down, "a distance is too large")
        x = (2 * top - 1 - x if x >= top else x + top) if is_float else x  # section 7.2
        x = (x - distance if down else x + distance) % (2 * top)
        units[i] = (x - top if x >= top else 2 * top - 1 - x) if is_float else x
        changed += 1
    bits.end()
    need(changed, "a block that is not empty changes nothing")
    return np.array(units, f"<u{carrier}").tobytes(), changed


# ---- Section 8: adapting the base -----------------------------------------------------------------------------------

def has_rule(base, target):
    return {base, target} <= FLOATS or DTYPES[base][1] == DTYPES[target][1]


def cast(data, base, target):
    """Units of the base's dtype as units of the target's: by way of F32, whose units fit into x, where both are of FLOATS."""
    if base == target or not {base, target} <= FLOATS:
        return data
    x = np.frombuffer(data, f"<u{DTYPES[base][1]}").astype(np.int64)
    if base == "BF16":
        x = x << 16
    elif base == "F16":
        x = widened(x)
    if target == "BF16":
        nan = x & 0x7FFFFFFF > 0x7F800000
        x = np.where(nan, x >> 16 | 64, x + 0x7FFF + (x >> 16 & 1) >> 16)
    elif target == "F16":
        x = narrowed(x)
    return x.astype(f"<u{DTYPES[target][1]}").tobytes()


def widened(x):
    """F16 to F32."""
    sign, a = (x & 0x8000) << 16, x & 0x7FFF
    tiny = a.astype("<f4").view("<u4").astype(np.int64) - (24 << 23)  # a subnormal number is a / 2^24
    normal = (a << 13) + (112 << 23)
    return sign | np.where(a >= 0x7C00, 0x7F800000 | a << 13, np.where(a >= 0x400, normal, np.where(a, tiny, 0)))


def narrowed(x):
    """F32 to F16."""
    sign, a = x >> 16 & 0x8000, x & 0x7FFFFFFF
    y = a - 0x38000000
    normal = np.minimum(y + 0xFFF + (y >> 13 & 1) >> 13, 0x7C00)
    mantissa, k = a & 0x7FFFFF | 0x800000, np.clip(126 - (a >> 23), 1, 40)
    tiny = mantissa + (1 << k - 1) - 1 + (mantissa >> k & 1) >> k
    number = np.where(a >= 0x38800000, normal, np.where(a >> 23 < 102, 0, tiny))
    return sign | np.where(a > 0x7F800000, 0x7E00 | a >> 13 & 0x3FF, number)


def adapted(e):
    """The adapted base of an entry, block by block: runs of units of base tensors, and of zeros where there is no tensor."""
    source, target = DTYPES[e.base_dtype][1], DTYPES[e.dtype][1]
    room, parts = BLOCK // target, []
    with contextlib.ExitStack() as opened:
        paths = {tensor.weights.path for tensor, _, _ in e.runs if tensor}
        files = {path: opened.enter_context(open(path, "rb", buffering=0)) for path in paths}
        for tensor, first, units in e.runs:
            while units:
                n = min(units, room)
                if tensor:
                    file = files[tensor.weights.path]
                    file.seek(tensor.weights.start + tensor.begin + first * source)
                    parts.append(file.read(n * source))
                else:
                    parts.append(bytes(n * source))  # which every cast leaves zeros
                first, units, room = first + n, units - n, room - n
                if room == 0:
                    yield cast(b"".join(parts), e.base_dtype, e.dtype)
                    room, parts = BLOCK // target, []
    if parts:
        yield cast(b"".join(parts), e.base_dtype, e.dtype)


# ---- Sections 3.1 and 3.3: the scopes of a base ----------------------------------------------------------------------

INDEX_FILE = re.compile(r"((?:.*/)?)([^/]+)\.safetensors\.index(\.[^./]+)?\.json", re.S)
SHARD_FILE = re.compile(r"((?:.*/)?)([^/]+)-([0-9]{5,})-of-([0-9]{5,})(\.[^./]+)?\.safetensors", re.S)
LEFT_OUT = {".git", ".cache", "__pycache__", ".ipynb_checkpoints"}


def base_need(condition, message):
    need(condition, message, "checkpoint")


class Scope:
    """The weight files of a scope of a base, by path, and of the indexes that give the scope what they say: name -> path."""

    def __init__(self):
        self.files, self.maps = {}, []

    def tensors(self):
        """The tensors that count, by name."""
        found = {}
        for file in sorted(self.files):
            try:
                weights = Weights(self.files[file])
            except PatchError as error:
                raise PatchError("checkpoint", f"{self.files[file]}: {error.message}") from None
            base_need("ckptdiff" not in weights.metadata, f"{self.files[file]} is a patch")
            for key, *rest in weights.tensors:
                found.setdefault(key, {})[file] = Tensor(weights, *rest)
        return {key: self.counting(key, tensors) for key, tensors in found.items()}

    def counting(self, key, tensors):
        named = [shards[key] for shards in self.maps if shards.get(key) in tensors]
        return tensors[named[0] if named else min(tensors)]


def base_scopes(path, recorded, wanted, needed):
    """The scopes by id. ``recorded``: path -> size of base.files; ``wanted``: every base.scope; ``needed``: whether there must be weights."""
    if os.path.isfile(path):
        alone = Scope()
        alone.files[""] = path
        return {"": alone}  # one scope only: its id does not matter
    base_need(os.path.isdir(path), "there is no base")
    base_need(not os.path.lexists(os.path.join(path, "ckptdiff.json")), "the base is a patch")
    full = {file: os.path.join(path, file) for file in recorded}
    if recorded and all(os.path.isfile(full[f]) and os.path.getsize(full[f]) == size for f, size in recorded.items()):
        folders = {""} | {file[:i + 1] for file in recorded for i, char in enumerate(file) if char == "/"}
        found = [folder + n for folder in folders for n in os.listdir(os.path.join(path, folder))]
        indexes = [i for i in (read_index(path, file) for file in sorted(found)) if i and set(i[1].values()) <= set(recorded)]
        scopes = group(path, recorded, indexes)
        return scopes if len(scopes) == 1 or wanted <= set(scopes) else group(path, recorded, [])
    found = sorted(file for file in files_below(path, os.path.realpath(path))
                   if LEFT_OUT.isdisjoint(file.split("/")[:-1]) or possible_scopes(file) & wanted)
    weights, indexes = [file for file in found if file.endswith(".safetensors")], [file for file in found if INDEX_FILE.fullmatch(file)]
    for file in weights + indexes:
        base_need(os.path.isfile(os.path.join(path, file)), f"{file} is no file")
    base_need(weights or not needed, "the base has no weight file")
    indexes = [read_index(path, file) for file in indexes]
    for index in indexes:
        base_need(index, "an index is broken")
        base_need(set(index[1].values()) <= set(weights), "an index lists a file that is missing")
    check_complete(weights, indexes)
    return group(path, weights, indexes)


def files_below(root, real_root, prefix="", linked=False):
    """Paths of all that is no folder, through links to folders that section 3.3 follows."""
    folder = os.path.join(root, prefix)
    with os.scandir(folder) as entries:
        entries = list(entries)
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            base_need(False, f"the name {entry.name!a} is not UTF-8")
        path, real = prefix + entry.name, os.path.realpath(entry.path)
        if not os.path.isdir(entry.path):
            yield path
        elif not entry.is_symlink():
            yield from files_below(root, real_root, path + "/", linked)
        elif not linked and is_within(real, real_root) and not is_within(os.path.realpath(folder), real) and (
                LEFT_OUT.isdisjoint(os.path.relpath(real, real_root).split(os.sep))):
            yield from files_below(root, real_root, path + "/", True)


def is_within(path, folder):
    return os.path.commonpath([path, folder]) == folder


def read_index(folder, file):
    """The scope that an index gives and its weight_map, name -> path; None of what is no index."""
    match = INDEX_FILE.fullmatch(file)
    if not match or not os.path.isfile(os.path.join(folder, file)):
        return None
    try:
        file.encode()  # a path is UTF-8
        with open(os.path.join(folder, file), "rb") as stream:
            shards = json.loads(stream.read().decode("utf-8-sig"))["weight_map"]
            return match[1] + match[2] + (match[3] or ""), {key: match[1] + shard for key, shard in shards.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def scope_of_shard(file):
    """What rule 2 makes of a path; None if its name has another form."""
    match = SHARD_FILE.fullmatch(file)
    return match and match[1] + re.sub(r"(?<=.)\.safetensors\Z", "", match[2], flags=re.S) + (match[5] or "")


def stem_of(file):
    return file[:-len(".safetensors")] if file.endswith(".safetensors") else file


def possible_scopes(file):
    return {scope_of_shard(file), stem_of(file), file} if file.endswith(".safetensors") else set()


def check_complete(weights, indexes):
    """Section 3.3: no shard may be missing of those that no index lists, and whose scope none gives."""
    listed, numbers = {}, {}
    for scope, shards in indexes:
        for shard in shards.values():
            listed.setdefault(shard, scope)
    given = set(listed.values())
    for file in weights:
        match = SHARD_FILE.fullmatch(file)
        if match and file not in listed and scope_of_shard(file) not in given:
            numbers.setdefault(match.group(1, 2, 4, 5), set()).add(int(match[3]))
    for (_, _, n, _), found in numbers.items():
        first = min(min(found), 1)
        base_need(int(n) <= len(found) and found.issuperset(range(first, first + int(n))), "a shard is missing")


def group(path, weights, indexes):
    """Section 3.1 for these weight files and indexes, in order of path: the scopes by id."""
    listed, scopes = {}, {}
    for scope, shards in indexes:
        for shard in shards.values():
            listed.setdefault(shard, scope)

    def put(file, scope):
        scopes.setdefault(scope, Scope()).files[file] = os.path.join(path, file)
    weights = sorted(weights)
    for file in weights:  # rule 1
        if file in listed:
            put(file, listed[file])
    by_index, alone = set(scopes), []
    for file in weights:  # rule 2
        scope = scope_of_shard(file)
        if file not in listed and scope is not None and scope not in by_index:
            put(file, scope)
        elif file not in listed:
            alone.append(file)
    ruled = set(scopes)
    for file in alone:  # rule 3
        put(file, file if stem_of(file) in ruled else stem_of(file))
    for scope, shards in indexes:
        if scope in scopes:
            scopes[scope].maps.append(shards)
    return scopes


# ---- Section 10, steps 3 to 6 ---------------------------------------------------------------------------------------

class Base:
    """A base, or the target of the patch before, as a patch sees it: scope -> name -> tensor, of the tensors that count."""

    def __init__(self, path, patch, before=None):
        self.path, scopes = path, {}
        if before is None:  # section 3.3
            wanted = {s.metadata["base"]["scope"] for s in patch.shards} - {None}
            found = base_scopes(path, {f["path"]: f["size"] for f in patch.base_files or ()}, wanted, bool(patch.shards))
            scopes = {scope: files.tensors() for scope, files in found.items()}
        else:  # section 10, step 2: what counts is as the patch before says
            places = {s: os.path.join(path, s.metadata["target"]["path"]) if before.folder else path for s in before.shards}
            files = {s: Weights(place) for s, place in places.items()}
            for scope, names in before.scopes.items():
                begins = {key: e.begin - files[s].start for key, (s, e) in names.items()}
                scopes[scope] = {key: Tensor(files[s], e.dtype, e.shape, begins[key], begins[key] + e.size) for key, (s, e) in names.items()}
        self.scopes = {scope: tensors for scope, tensors in scopes.items() if tensors}

    def tensors(self, scope):
        """The tensors of a scope by name, of the only scope if there is but one; None where there is no such scope."""
        return next(iter(self.scopes.values())) if len(self.scopes) == 1 else self.scopes.get(scope)

    def is_target(self, patch):
        """Whether it holds what every entry of kind delta gives that counts, and there is one."""
        deltas = [(s.metadata["target"]["scope"], e) for s in patch.shards for e in s.entries if e.kind == "delta" and e.counts]
        found = [((self.tensors(scope) or {}).get(e.name), e) for scope, e in deltas]
        return bool(found) and all(t and (t.dtype, t.shape) == (e.dtype, e.shape) for t, e in found) and all(
            t.digest() == e.digest for t, e in found)


def find_base(base, patch):
    """Step 3 without digests: give every entry of kind same or delta the runs of units that its base is made of."""
    for shard in patch.shards:
        for e in shard.entries:
            if e.kind in ("same", "delta"):
                scope = shard.metadata["base"]["scope"]
                tensors = base.tensors(scope)
                need(tensors is not None, f"the base has no scope {scope!r}", "wrong_base")
                e.runs = [run(tensors, e, *p) for p in e.pieces or [(e.name, 0, None)]]
                e.runs.append((None, 0, e.units - sum(units for _, _, units in e.runs)))


def run(tensors, e, key, first, units):
    """The tensor of a piece, with where it begins and how many units it has: as many as both have, where that is None."""
    if key is None:
        return None, first, units
    tensor = tensors.get(key)
    need(tensor, f"the base lacks {key!r}", "wrong_base")
    need(tensor.dtype == e.base_dtype, f"the base's {key!r} has another dtype", "wrong_base")
    most = tensor.size // DTYPES[tensor.dtype][1]
    units = min(most, e.units) if units is None else units
    need(first + units <= most, f"the base's {key!r} has too few units", "wrong_base")
    return tensor, first, units


def check_base(base, patch):
    """Step 3: the digests of adapted bases, and the base's other files."""
    for shard in patch.shards:
        for e in shard.entries:
            need(e.kind not in ("same", "delta") or tensor_digest(adapted(e)) == e.base_digest,
                 f"what stands for {e.name!r} has another digest", "wrong_base")
    for item in patch.files:
        if item["kind"] != "new":
            item["base"] = os.path.join(base.path, item["path"])
            need(os.path.isfile(item["base"]), f"the base lacks {item['path']}", "wrong_base")
            need(sha256(item["base"]) == item.get("base_sha256", item["sha256"]),
                 f"the base's {item['path']} is another", "wrong_base")


def build_tensor(weights, e):
    """Step 4: the blocks of the target tensor."""
    carrier, is_float = DTYPES[e.dtype][1:]
    at, changed = e.payload[0] if e.blocks else 0, 0
    bases = adapted(e) if e.kind != "new" else None
    for i, begin in enumerate(range(0, e.size, BLOCK)):
        end = min(begin + BLOCK, e.size)
        base = next(bases) if bases else b""
        if e.kind == "same":
            block = base
        else:
            coded = weights.read(at, at + e.blocks[i])
            at += e.blocks[i]
            if e.codec == "sparse":
                block, n = decode_sparse(coded, base, carrier, is_float)
            elif e.codec == "context":
                block, n = decode_context(coded, base, e.dtype)
            else:
                block = decode_raw(coded, end - begin, carrier)
                unit = f"<u{carrier}"
                n = e.kind == "delta" and int((np.frombuffer(block, unit) != np.frombuffer(base, unit)).sum())
            changed += n
        yield block
    need(e.kind != "delta" or changed == e.changed, f"{e.name!r}: another number of units changed")


def write_tensor(file, weights, e):
    leaves = []
    for block in build_tensor(weights, e):
        file.write(block)
        leaves.append(xxhash.xxh3_128_digest(block))
    need(xxhash.xxh3_128_digest(b"".join(leaves)) == e.digest, f"{e.name!r} has a wrong digest", "integrity")


def create(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "x+b")


def rebuild(base, patch, out):
    find_base(base, patch)
    total = sum(s.metadata["target"]["size"] for s in patch.shards)
    if total > shutil.disk_usage(os.path.dirname(out)).free:  # section 14; no error of the patch
        raise OSError(errno.ENOSPC, f"no space for {total} bytes")
    check_base(base, patch)
    places = [os.path.join(out, s.metadata["target"]["path"]) if patch.folder else out for s in patch.shards]
    outputs = dict(zip(patch.shards, places))
    for shard, place in outputs.items():  # step 5, weight files: all but the copies
        with create(place) as file:
            file.truncate(shard.metadata["target"]["size"])
            file.write(len(shard.header).to_bytes(8, "little") + shard.header)
            for e in shard.entries:
                if e.kind != "copy":
                    file.seek(e.begin)
                    write_tensor(file, shard.weights, e)
    for shard, place in outputs.items():
        with open(place, "r+b") as file:
            for e in shard.entries:
                if e.kind == "copy":
                    source, of = patch.scopes[shard.metadata["target"]["scope"]][e.of]
                    with open(outputs[source], "rb") as source_file:
                        source_file.seek(of.begin)
                        file.seek(e.begin)
                        for at in range(0, e.size, BLOCK):
                            file.write(source_file.read(min(BLOCK, e.size - at)))
            os.fsync(file.fileno())
    if patch.folder:
        os.makedirs(out, exist_ok=True)
    for item in patch.files:
        with create(os.path.join(out, item["path"])) as file:
            rebuild_file(item, file)
            file.flush()
            os.fsync(file.fileno())


def rebuild_file(item, file):  # section 9, `files`
    digest, size = hashlib.sha256(), 0
    if item["kind"] == "same":
        source = open(item["base"], "rb")
    else:
        prefix = b""
        if item["kind"] == "delta":
            need(os.path.getsize(item["base"]) <= 1 << 26, "the base's file is too large for a delta")
            with open(item["base"], "rb") as base:
                prefix = base.read()
        content, window, _ = frame_header(item["frame"])
        need(window <= 1 << 27, "the window of a file's frame is too large")
        need(content in (None, item["size"]), f"{item['path']} states another size", "integrity")
        decoder = zstandard.ZstdDecompressor(dict_data=primed(prefix), max_window_size=1 << 27)
        source = decoder.stream_reader(item["frame"])
    with source:
        try:
            for chunk in iter(lambda: source.read(1 << 20), b""):
                digest.update(chunk)
                size += len(chunk)
                need(size <= item["size"], f"{item['path']} is larger than stated", "integrity")
                file.write(chunk)
        except zstandard.ZstdError as error:
            raise PatchError("format", f"bad zstd frame: {error}") from None
    need((size, digest.hexdigest()) == (item["size"], item["sha256"]), f"{item['path']} came out wrong", "integrity")


def apply(base_path, patch_paths, out_path):
    """Rebuild at ``out_path``, which must not exist yet, the target of the last patch (section 10)."""
    out_path = os.path.abspath(out_path)
    if os.path.lexists(out_path):
        raise FileExistsError(errno.EEXIST, "the output place is taken", out_path)
    need(1 <= len(patch_paths) <= 64, "a chain is of 1 to 64 patches")
    patches = [Patch(path) for path in patch_paths]  # step 1
    for before, after in zip(patches, patches[1:]):  # step 2
        need(before.identities[1] == after.identities[0], "a patch does not fit the one before", "wrong_base")
    with tempfile.TemporaryDirectory(prefix=".ckptdiff-", dir=os.path.dirname(out_path)) as temporary:
        given = base = Base(base_path, patches[0])
        for i, patch in enumerate(patches):
            place = os.path.join(temporary, str(i))
            try:
                rebuild(base, patch, place)
            except PatchError as error:
                already = error.kind == "wrong_base" and given.is_target(patches[-1])
                raise PatchError("already_target" if already else error.kind, error.message) from None
            base = Base(place, patches[i + 1], patch) if i + 1 < len(patches) else None
        os.rename(place, out_path)  # step 6


def main():
    if len(sys.argv) < 5 or sys.argv[1] != "apply":
        sys.exit("usage: minimal_reader.py apply BASE PATCH [PATCH...] OUT")
    try:
        apply(sys.argv[2], sys.argv[3:-1], sys.argv[-1])
    except PatchError as error:  # README.md: the last line begins with the kind
        sys.exit(f"{error.kind}: {error.message}".replace("\n", " ").encode("utf-8", "backslashreplace").decode())
    except OSError as error:
        print(f"io: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
