"""Targets: JSON, safetensors headers, masks and stored reports."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import xxhash

import ckptdiff
from ckptdiff.analysis.modules import KINDS
from ckptdiff.analysis.report_stored import unpack as unpack_report
from ckptdiff.cli.render_report import print_report
from ckptdiff.errors import CkptdiffError
from ckptdiff.format import canonical
from ckptdiff.format.safetensors import read_header
from ckptdiff.patching.memory import BytesFile
from ckptdiff.subnetwork.mask import Mask
from tests.fuzz.engine import Disagreement, Outcome, Rng, Target
from tests.fuzz.trees import dump, mutate_text, mutate_tree
from tests.fuzz.vectors import BUILD, READER, SPEC, scenarios
from tests.support.checkpoints import bf16, perturb, random_tensor, write
from tests.support.mutations import mutate
from tests.support.sample_reports import grouped, total

LARGEST = 1 << 20
"""Elements of a mask that are looked at one by one."""


def depth(value: Any) -> int:
    """How deep arrays and objects nest."""
    deepest, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        deepest += 1
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c)]
    return deepest


# --- canonical JSON ------------------------------------------------------------------------------------------------


def json_seeds() -> list[bytes]:
    """Metadata, tables' JSON and indexes of the vectors, and a value of each kind."""
    found = [b"{}", b'{"a":[{},null,true,false,0,-1,18446744073709551615,-9223372036854775808,"\\u0000\\n\\"\\\\\xc3\xa9"]}']
    for _, _, parts in scenarios():
        for name, data in parts.items():
            if name.endswith("ckptdiff.json"):
                found.append(data)
            elif name.startswith("patch") and name.endswith(".safetensors"):
                text = BUILD.re.search(rb'"ckptdiff":("(?:[^"\\]|\\.)*")', data)
                try:
                    found += [json.loads(text[1]).encode()] if text else []
                except (ValueError, UnicodeEncodeError):
                    pass
    return list(dict.fromkeys(found))[::6]


def mutate_json(rng: Rng, data: bytes) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_text(rng, data)
    if rng.random() < 0.5 or depth(value) > 100:
        return mutate_text(rng, data)
    return dump(mutate_tree(rng, value))


def run_json(data: bytes) -> Outcome:
    """The same objects are canonical to both; the specification leaves to a reader whether it refuses nesting deeper than 64."""
    try:
        found, error = canonical.load_object(data, "json"), None
    except CkptdiffError as refused:
        found, error = None, refused
    try:
        expected = READER.canonical_json(data)
    except READER.PatchError:
        expected = None
    if (expected is not None and not isinstance(expected, dict)) or (error is not None and expected is not None and depth(expected) > 64):
        expected = None
    if found != expected or (error is not None and error.kind != "format") or (found is not None and dump(found) != data):
        raise Disagreement(f"{error or 'accepted'}, but the minimal reader has {str(expected)[:80]}") from error
    return Outcome(True, "accepted" if error is None else error.kind)


# --- safetensors headers -------------------------------------------------------------------------------------------


def header_seeds() -> list[bytes]:
    """Base files of the vectors, without what follows the first few bytes of their data."""
    found = [data for _, _, parts in scenarios() for name, data in parts.items() if name == "base.safetensors" and len(data) < 4000]
    tensors = {name: BUILD.T(name, [12], bytes(12 * bits // 8)) for name, bits in BUILD.BITS.items()}
    odd = {
        "": BUILD.T("U8", [0], b""),
        "é\n": BUILD.T("F32", [], bytes(4)),
        "z": BUILD.T("U8", [0, 7], b""),
        "n" * 4096: BUILD.T("U8", [1], b"1"),
    }
    return [*list(dict.fromkeys(found))[::4], BUILD.weights(tensors), BUILD.weights(odd), BUILD.weights({})]


def mutate_header(rng: Rng, data: bytes) -> bytes:
    """The header as a tree or as text, its length right again, or any bytes of the file."""
    length = int.from_bytes(data[:8], "little")
    raw, rest = data[8 : 8 + length], data[8 + length :]
    kind = rng.random()
    if kind < 0.15 or len(raw) != length:
        return mutate(rng, data)
    try:
        value = json.loads(raw)
        made = json.dumps(mutate_tree(rng, value), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        made = None
    raw = mutate_text(rng, raw) if made is None or kind < 0.5 else made + b" " * (-len(made) % 8)
    return len(raw).to_bytes(8, "little") + raw + (mutate(rng, rest) if rng.random() < 0.1 else rest)


def run_header(data: bytes) -> Outcome:
    """Both readers see the same tensors at the same places."""
    try:
        header, error = read_header(BytesFile(data, "file")), None
    except ValueError as refused:
        header, error = None, refused
    length = int.from_bytes(data[:8], "little")
    try:
        READER.need(len(data) >= 8 and length <= min(1 << 25, len(data) - 8), "the header does not fit in the file")
        metadata, tensors = READER.parse_header(data[8 : 8 + length], len(data) - 8 - length)
        parts = json.loads(data[8 : 8 + length].rstrip(b" "))
        expected = None if depth(parts) > 64 and error else (metadata, [(n, d, tuple(s), b, e) for n, d, s, b, e in tensors])
    except READER.PatchError:
        expected = None
    found = header and (header.metadata or {}, [(t.name, t.dtype, t.shape, t.begin, t.end) for t in header.tensors])
    if found != expected:
        raise Disagreement(f"{error or found}, but the minimal reader has {str(expected)[:200]}") from error
    return Outcome(True, "accepted" if error is None else "checkpoint")


# --- masks ---------------------------------------------------------------------------------------------------------


def seal_mask(value: Any, tensors: Sequence[tuple[str, str, list[int], bytes]]) -> bytes:
    """A mask file whose digest is right; ``value`` is the metadata without it."""
    value = {key: member for key, member in value.items() if key != "digest"} if isinstance(value, dict) else value
    try:
        digest = xxhash.xxh3_128(b"".join(data for *_, data in tensors) + BUILD.canonical(value)).hexdigest()
    except UnicodeEncodeError:
        digest = "0" * 32
    text = dump({**value, "digest": digest} if isinstance(value, dict) else value).decode("utf-8", "surrogatepass")
    members: dict[str, Any] = {"__metadata__": {"ckptdiff-mask": text}}
    at = 0
    for name, dtype, shape, data in tensors:
        members[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + b"".join(data for *_, data in tensors)


def open_mask(data: bytes) -> tuple[dict[str, Any], list[tuple[str, str, list[int], bytes]], bool]:
    """The metadata, the tensors, and whether the digest is right, by the minimal reader; raises its error."""
    length = int.from_bytes(data[:8], "little")
    READER.need(len(data) >= 8 and length <= len(data) - 8, "no header")
    start = 8 + length
    metadata, tensors = READER.parse_header(data[8:start], len(data) - start)
    READER.need(metadata.keys() == {"ckptdiff-mask"}, "other metadata")
    value = READER.canonical_json(metadata["ckptdiff-mask"].encode())
    READER.need(isinstance(value, dict), "no object")
    rest = BUILD.canonical({key: member for key, member in value.items() if key != "digest"})
    parts = [(name, dtype, shape, data[start + begin : start + end]) for name, dtype, shape, begin, end in tensors]
    return value, parts, value.get("digest") == xxhash.xxh3_128(data[start:] + rest).hexdigest()


def expected_mask(data: bytes) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    """Shape and elements of each tensor, by spec/mask-v1.md, or the minimal reader's error."""
    need, (value, tensors, sealed) = READER.need, open_mask(data)
    need(value.get("format") == "ckptdiff-mask" and value.keys() == {"format", "version", "shapes", "digest"}, "members")
    need(type(value["version"]) is int and value["version"] == 1 and sealed, "version, or digest")
    shapes, found, order = value["shapes"], {}, []
    need(type(shapes) is dict and shapes.keys() >= {name for name, *_ in tensors}, "names")
    for name, shape in shapes.items():
        need(READER.name(name) and type(shape) is list and len(shape) <= 32 and all(map(READER.count, shape)), "shape")
        need(BUILD.math.prod(shape) <= 1 << 48, "too many elements")
        found[name] = tuple(shape), list[int]()
    for name, dtype, dims, raw in tensors:
        shape = shapes[name]
        n = BUILD.math.prod(shape)
        need(len(dims) == 1 and dtype in ("U8", "U32"), "form")
        if dtype == "U8":
            need(len(raw) == -(-n // 8), "size")
            where = np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")).tolist()
        else:
            where = np.frombuffer(raw, "<u4").tolist()
            need(n <= 1 << 32 and all(a < b for a, b in itertools.pairwise(where)), "not rising")
        need(where and where[-1] < n, "no elements, or one past the end")
        need((dtype == "U32") == (4 * len(where) < -(-n // 8) and n <= 1 << 32), "the other form is smaller")
        found[name] = tuple(shape), where
        order.append((dtype == "U8", name.encode()))
    need(order == sorted(order), "order")
    return found


def mask_seeds() -> list[bytes]:
    """Masks of both forms, and of shapes of all sorts."""
    head = {"format": "ckptdiff-mask", "version": 1}
    some = [
        [("a", "U32", [1], b"\1\0\0\0"), ("b", "U8", [2], b"\xff\1")],
        [("w", "U8", [1], b"\x80")],
        [("x/y", "U32", [2], b"\0\0\0\0\xff\0\0\0")],
        [],
        [("b", "U8", [1], b"\4")],
    ]
    shapes = [{"a": [5, 60], "b": [3, 3]}, {"w": [8]}, {"x/y": [1, 256, 2]}, {}, {"a": [7], "b": [3], "none": [0, 4]}]
    return [seal_mask({**head, "shapes": s}, tensors) for s, tensors in zip(shapes, some, strict=True)]


def mutate_mask(rng: Rng, data: bytes) -> bytes:
    """Metadata as a tree, or tensors, sealed again; now and then any bytes."""
    try:
        value, tensors, _ = open_mask(data)
    except (READER.PatchError, UnicodeEncodeError):
        return mutate_header(rng, data)
    kind = rng.integers(8)
    if kind == 0:
        return mutate(rng, data)
    if kind <= 3 or not tensors or not isinstance(value.get("shapes"), dict):
        return seal_mask(mutate_tree(rng, value), tensors)
    at = int(rng.integers(len(tensors)))
    name, dtype, shape, raw = tensors[at]
    if kind == 4:
        tensors.insert(int(rng.integers(len(tensors) + 1)), (name + "é", dtype, shape, raw))
        value["shapes"] = {**value["shapes"], name + "é": value["shapes"].get(name, [8])}
    elif kind == 5:
        del tensors[at]
        if rng.random() < 0.5:  # else the mask knows the tensor, and has none of its elements
            value["shapes"] = {k: v for k, v in value["shapes"].items() if k != name}
    else:
        width = 4 if dtype == "U32" else 1
        raw = mutate(rng, raw)
        raw = raw[: len(raw) - len(raw) % width] or raw
        dtype = str(rng.choice(["U8", "U32", dtype, dtype]))
        tensors[at] = (name, dtype, [len(raw) // (4 if dtype == "U32" else 1)], raw)
        if rng.random() < 0.5:
            n = 8 * len(raw) if dtype == "U8" else int.from_bytes(raw[-4:], "little") + int(rng.integers(3))
            value["shapes"] = {**value["shapes"], name: [n]}
    return seal_mask(value, tensors)


def run_mask(data: bytes) -> Outcome:
    """A mask is refused, or has the elements that its file has; saved again it has the same elements."""
    try:
        expected = expected_mask(data)
        if sum(BUILD.math.prod(shape) for shape, _ in expected.values()) > LARGEST:
            return Outcome(True, "too large to run")
    except READER.PatchError:
        expected = None
    with tempfile.TemporaryDirectory(prefix="ckptdiff-fuzz-") as folder:
        path = Path(folder) / "mask"
        path.write_bytes(data)
        try:
            mask = Mask.load(path)
        except CkptdiffError as error:
            if expected is not None or error.kind == "checkpoint":
                raise Disagreement(f"{error}, but it holds {str(expected)[:200]}") from error
            return Outcome(error.kind != "integrity" and _mask_is_sealed(data), error.kind)
        if expected is None:
            raise Disagreement(f"{mask} is accepted, but breaks the specification")
        found = {name: (mask.shapes[name], np.flatnonzero(mask.flags(name)).tolist()) for name in mask.shapes}
        if found != expected or mask.counts != {name: len(where) for name, (_, where) in expected.items() if where}:
            raise Disagreement(f"{mask} has other elements than its file")
        mask.save(Path(folder) / "again")
        if Mask.load(Path(folder) / "again") != mask:
            raise Disagreement(f"{mask} is another when it has been saved")
    return Outcome(True, "accepted")


def _mask_is_sealed(data: bytes) -> bool:
    try:
        return open_mask(data)[2]
    except (READER.PatchError, UnicodeEncodeError):
        return False


# --- stored reports ------------------------------------------------------------------------------------------------


@lru_cache
def report_schema() -> Any:
    return jsonschema.Draft202012Validator(json.loads((SPEC / "report.schema.json").read_text()))


@lru_cache
def report_seeds() -> list[bytes]:
    """A report as ``make --report`` stores it, in its frame and in one made by hand."""
    rng = np.random.default_rng(3)
    shapes = {"model.layers.0.q_proj.weight": (6, 8), "model.layers.1.mlp.up_proj.weight": (5, 8), "model.norm.weight": (8,)}
    base = {name: bf16(rng.normal(0, 0.02, shape)) for name, shape in shapes.items()} | {"i": random_tensor(rng, "I64", (5,))}
    with tempfile.TemporaryDirectory(prefix="ckptdiff-fuzz-") as folder:
        paths = Path(folder) / "base.safetensors", Path(folder) / "target.safetensors"
        write(paths[0], base)
        write(paths[1], {name: perturb(rng, data, 0.1) for name, data in base.items()})
        stored = ckptdiff.report(*paths).to_bytes()
    return [stored, bytes(BUILD.frame(_content(stored)[0]))]


def mutate_report(rng: Rng, data: bytes) -> bytes:
    """The JSON as a tree, mostly with sums that agree, or as text, in a frame again; or the frame."""
    text = b"".join(_content(data))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return mutate(rng, data)
    kind = rng.random()
    if kind < 0.1:
        return mutate(rng, data)
    if kind < 0.2:
        return bytes(BUILD.frame(mutate_text(rng, text)))
    part = str(rng.choice(["tensors", "tensors", "moves", "settings", ""]))
    if part and isinstance(value, dict) and part in value:
        value = {**value, part: mutate_tree(rng, value[part])}
    else:
        value = mutate_tree(rng, value)
    try:
        value = summed(value) if rng.random() < 0.9 else value
    except (TypeError, KeyError, AttributeError, ArithmeticError, ValueError):
        pass
    return bytes(BUILD.frame(json.dumps(value).encode("utf-8", "surrogatepass")))


def summed(value: dict[str, Any]) -> dict[str, Any]:
    """A report whose sums and means are those of its tensors."""
    tensors = value["tensors"]
    layers = sorted(grouped(tensors, "layer"), key=lambda row: row["layer"])
    modules = sorted((row for row in grouped(tensors, "module") if row["elements"]), key=lambda row: KINDS.index(row["module"]))
    taken = [row for t in tensors if t["module"] != "norm" for row in t["spectra"] or ()]
    rows = [row for row in taken if row["stable_rank"]]
    means: dict[str, Any] | None = None
    if rows:
        shares = {"rank_share": "rank", "effective_share": "effective_rank", "random_rank_share": "random_rank"}
        means = {key: math.fsum(r[name] / min(r["rows"], r["columns"]) for r in rows) / len(rows) for key, name in shares.items()}
        means |= {"stable_rank": math.fsum(r["stable_rank"] for r in rows) / len(rows)}
        means |= {"matrices": len(rows), "unchanged": len(taken) - len(rows)}
    return {**value, "totals": total(tensors), "layers": layers, "modules": modules, "rank": means}


def _content(data: bytes) -> list[bytes]:
    try:
        return [READER.decode_frame(data, 1 << 24)]
    except READER.PatchError:
        return []


def run_report(data: bytes) -> Outcome:
    """A report is refused, or is what the schema says, and can be shown."""
    content = _content(data)
    try:
        report = unpack_report(data, "report", "target")
    except CkptdiffError as error:
        if error.kind not in ("format", "unsupported"):
            raise Disagreement(f"a report is refused as {error.kind}") from error
        return Outcome(bool(content), error.kind)
    value = json.loads(content[0])
    wrong = next(report_schema().iter_errors(value), None)
    if wrong is not None or {**report.to_json(), "target": ""} != value:
        raise Disagreement(f"accepted, but by the schema {wrong and wrong.message[:200]}")
    with redirect_stdout(StringIO()):
        print_report(report, True)
    return Outcome(True, "accepted")


TARGETS = [
    Target("json", json_seeds, mutate_json, run_json, 20000),
    Target("header", header_seeds, mutate_header, run_header, 20000),
    Target("mask", mask_seeds, mutate_mask, run_mask, 4000),
    Target("report", report_seeds, mutate_report, run_report, 4000),
]
