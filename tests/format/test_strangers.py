"""Input from strangers that once took far too much time or memory, or ended in a traceback; and output of ours that no reader accepted."""

from __future__ import annotations

import fnmatch
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import ckptdiff
from ckptdiff import CheckpointError, FormatError, Mask
from ckptdiff.analysis import report_stored
from ckptdiff.checkpoint.weight_map import read_weight_map
from ckptdiff.format import canonical, zstd_frame
from ckptdiff.format.entry import Entry
from ckptdiff.format.payloads import Payloads
from ckptdiff.format.table import Table
from ckptdiff.hub import repo
from ckptdiff.hub.ids import HubId
from ckptdiff.hub.repo import RemoteFile, Repo
from ckptdiff.io import source
from ckptdiff.patching import write as writer
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.patch_limits import MAX_ALL_DESCRIBED, MAX_ALL_TENSORS
from ckptdiff.subnetwork import mask_file
from ckptdiff.verbs import verify
from tests.support import hostile_files as made
from tests.support.checkpoints import bf16, tensor, tree, write, write_sharded
from tests.support.vectors import READER

# --- JSON ----------------------------------------------------------------------------------------------------------


def members(n: int) -> bytes:
    return b"{%s}" % b",".join(b'"%06x":1' % k for k in range(n))


def test_an_object_that_is_read_part_by_part_has_few_members() -> None:
    """Three million of them took 600 MB and 20 s, since unknown ones are named only when all have been read."""
    text = members(64)
    with pytest.raises(ckptdiff.UnsupportedError, match='unknown member "000000"'):
        Table.from_bytes(made.frame(struct.pack("<I", len(text)) + text), "here")
    text = members(65)
    with pytest.raises(FormatError, match="here: bad JSON: it has more than 64 members"):
        Table.from_bytes(made.frame(struct.pack("<I", len(text)) + text), "here")
    with pytest.raises(FormatError, match="here: bad JSON: it has more than 64 members"):
        report_stored.unpack(made.frame(text), "here", "t")


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    """A stored report's JSON."""
    rng = np.random.default_rng(5)
    sides = [write(tmp_path / f"{k}.safetensors", {"layers.0.q_proj.weight": bf16(rng.normal(0, 1, (8, 8)))}) for k in range(2)]
    found = ckptdiff.report(*sides, rank="all")
    value: dict[str, Any] = json.loads(zstd_frame.decompress(found.to_bytes(), report_stored.MAX_REPORT, "here"))
    return value


@pytest.mark.parametrize("key", [b'"\\u0074ensors":', b'"tensors"' + b" " * 300 + b":"], ids=["escape", "space"])
def test_keys_of_a_report_may_be_written_in_any_way(key: bytes, report: dict[str, Any]) -> None:
    """An array that is not seen as one to divide is read all the same."""
    text = canonical.dumps(report)
    plain, odd = (report_stored.unpack(made.frame(text.replace(b'"tensors":', name)), "here", "t") for name in (b'"tensors":', key))
    assert plain == odd and len(plain.tensors) == 1
    with pytest.raises(FormatError, match=r"here.tensors\[0\]: expected an object, found int"):
        report_stored.unpack(made.frame(canonical.dumps({**report, "tensors": [1]}).replace(b'"tensors":', key)), "here", "t")


def test_singular_values_fall(report: dict[str, Any]) -> None:
    """What is far above the first has no place in a picture: divided by it, it may be infinite."""
    values = report["tensors"][0]["spectra"][0]["singular_values"]
    assert values == sorted(values, reverse=True) and report_stored.unpack(made.frame(canonical.dumps(report)), "here", "t")
    values[:2] = [1e-300, 1e300]
    with pytest.raises(FormatError, match=r"here.tensors\[0\].spectra\[0\].singular_values: expected them from the largest on"):
        report_stored.unpack(made.frame(canonical.dumps(report)), "here", "t")


def test_integers_of_a_report_are_those_of_every_language(report: dict[str, Any]) -> None:
    report["moves"]["ulp"][0]["count"] = 2**53
    with pytest.raises(FormatError, match="here: bad JSON: 9007199254740992 is too large an integer"):
        report_stored.unpack(made.frame(canonical.dumps(report)), "here", "t")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_an_index_of_shards_is_utf_8(encoding: str, tmp_path: Path) -> None:
    """Of another encoding braces and commas would be counted wrong: in UTF-16 U+2200 has the byte of a quotation mark."""
    path, text = tmp_path / "m.safetensors.index.json", json.dumps({"weight_map": {"w\u2200": "m.safetensors"}}, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    with pytest.raises(CheckpointError, match="not a safetensors index: expected a JSON object with a weight_map"):
        read_weight_map(path)
    path.write_bytes(text.encode())
    assert read_weight_map(path) == {"w\u2200": "m.safetensors"}


# --- one tensor as the base of many --------------------------------------------------------------------------------

LONG = 2 << 21
LEAVES = [xxhash.xxh3_128_digest(bytes(1 << 21))] * 2
WHOLE = xxhash.xxh3_128_digest(b"".join(LEAVES))
MANY = 40


def cuts(path: Path, byte: bytes, **options: Any) -> Path:
    """A patch of ``MANY`` tensors of one byte each, all cut from the base's long one."""
    rows = [{"name": f"t{k:02}", "dtype": "U8", "shape": [1], "kind": "same", "base": {"pieces": [["w", 0, 1]]}} for k in range(MANY)]
    header = made.header_of((row["name"], "U8", [1]) for row in rows)  # type: ignore[misc]
    one = xxhash.xxh3_128_digest(xxhash.xxh3_128_digest(byte))
    return made.patch(
        path,
        made.canonical({"removed": [], "tensors": rows}),
        one * MANY,
        header,
        predicted=header,
        totals={"same": MANY, "units": MANY},
        size=8 + len(header) + MANY,
        **options,
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes read, of files that are called base."""
    found: list[int] = []
    read = source.LocalFile.readinto

    def readinto(self: source.LocalFile, offset: int, out: Any) -> None:
        if self.path.name.startswith("base"):
            found.append(len(memoryview(out)))
        read(self, offset, out)

    monkeypatch.setattr(source.LocalFile, "readinto", readinto)
    return found


def test_a_tensor_that_is_cut_into_many_is_read_once(tmp_path: Path, counted: list[int]) -> None:
    base = made.safetensors(tmp_path / "base.safetensors", made.header_of([("w", "U8", [LONG])]), LONG)
    patch = cuts(tmp_path / "p", b"\0")
    ckptdiff.apply(base, patch, tmp_path / "out", threads=1)
    assert (tmp_path / "out").read_bytes().endswith(bytes(MANY)) and sum(counted) < 1.1 * LONG
    READER.apply(base, [patch], tmp_path / "by the minimal reader")
    assert tree(tmp_path / "by the minimal reader") == tree(tmp_path / "out")
    counted.clear()
    assert ckptdiff.verify(patch, base=base, threads=2).ok and sum(counted) < 1.1 * LONG


def test_a_wrong_base_of_many_is_read_once(tmp_path: Path, counted: list[int]) -> None:
    base = made.safetensors(tmp_path / "base.safetensors", made.header_of([("w", "U8", [LONG])]), LONG)
    patch = cuts(tmp_path / "p", b"\1")
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"what stands for t00 \(from w\) has the digest"):
        ckptdiff.apply(base, patch, tmp_path / "out", threads=1)
    assert sum(counted) < 2.1 * LONG
    counted.clear()
    problems = ckptdiff.verify(patch, base=base, threads=2).problems
    assert {problem.kind for problem in problems} == {"wrong_base"} and len(problems) == MANY and sum(counted) < 2.1 * LONG


def test_a_tensor_of_a_chain_that_is_cut_into_many_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its blocks once, and of each of the many no more than the first; what is cut off is checked too."""
    base = made.safetensors(tmp_path / "base.safetensors", made.header_of([("w", "U8", [LONG])]), LONG)
    row = {"name": "w", "dtype": "U8", "shape": [LONG], "kind": "delta", "codec": "sparse", "blocks": [6, 0], "changed": 1}
    header = made.header_of([("w", "U8", [LONG])])
    payload = bytes.fromhex("011100000000")  # one unit, the first, down by one: 255
    target = xxhash.xxh3_128_digest(xxhash.xxh3_128_digest(b"\xff" + bytes((1 << 21) - 1)) + LEAVES[1])

    def first(digest: bytes) -> Path:
        return made.patch(
            tmp_path / "p1",
            made.canonical({"removed": [], "tensors": [row]}),
            digest + WHOLE + xxhash.xxh3_64_digest(payload),
            header,
            payload,
            header,
            totals={"delta": 1, "units": LONG, "changed": 1},
            size=8 + len(header) + LONG,
            identity="1" * 32,
        )

    chain = [first(target), cuts(tmp_path / "p2", b"\xff", base_identity="1" * 32)]
    blocks: list[int] = []
    read = Payloads.read_blocks

    def read_blocks(self: Payloads, entry: Entry, begin: int, end: int) -> list[memoryview]:
        blocks.extend(range(begin, end))
        return read(self, entry, begin, end)

    monkeypatch.setattr(Payloads, "read_blocks", read_blocks)
    ckptdiff.apply(base, chain, tmp_path / "out", threads=1)
    assert (tmp_path / "out").read_bytes().endswith(b"\xff" * MANY) and blocks.count(1) == 1
    chain[0] = first(bytes(16))
    for apply in (lambda out: ckptdiff.apply(base, chain, out), lambda out: READER.apply(base, chain, out)):
        with pytest.raises((ckptdiff.IntegrityError, READER.PatchError), match=r"w.* has a wrong digest|tensor w: rebuilt with the digest"):
            apply(tmp_path / "again")


@pytest.mark.parametrize("steps", [1, 2])
def test_an_unchanged_tensor_of_a_chain_that_is_cut_into_many_is_read_once(tmp_path: Path, counted: list[int], steps: int) -> None:
    base = made.safetensors(tmp_path / "base.safetensors", made.header_of([("w", "U8", [LONG])]), LONG)
    header = made.header_of([("w", "U8", [LONG])])
    chain = []
    for k in range(steps):
        path, row = tmp_path / f"p{k}", {"name": "w", "dtype": "U8", "shape": [LONG], "kind": "same"}
        options = {"size": 8 + len(header) + LONG, "identity": str(k + 1) * 32, "base_identity": str(k) * 32 if k else "0" * 32}
        text = made.canonical({"removed": [], "tensors": [row]})
        chain.append(made.patch(path, text, WHOLE, header, predicted=header, totals={"same": 1, "units": LONG}, **options))
    chain.append(cuts(tmp_path / "last", b"\0", base_identity=str(steps) * 32))
    ckptdiff.apply(base, chain, tmp_path / "out", threads=1)
    assert (tmp_path / "out").read_bytes().endswith(bytes(MANY)) and sum(counted) < 1.1 * LONG


def test_the_files_of_a_chain_are_looked_up_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search went through all files: of 2^15 of them half a thousand million."""
    for step in range(3):
        write(tmp_path / str(step) / "m.safetensors", {"w": tensor("U8", (1,), bytes([step]))})
        for k in range(20):
            (tmp_path / str(step) / f"{k}.txt").write_text(f"{step} {k}" * 30)
    for step in range(2):
        ckptdiff.make(tmp_path / str(step), tmp_path / str(step + 1), tmp_path / f"p{step}")
    asked = []
    others = OpenPatch.others.fget
    assert others is not None
    monkeypatch.setattr(OpenPatch, "others", property(lambda self: (asked.append(self), others(self))[1]))
    ckptdiff.apply(tmp_path / "0", [tmp_path / "p0", tmp_path / "p1"], tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "2") and len(asked) < 20


def test_stored_files_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may need a window of 128 MB, whatever the number of threads."""
    for side in ("base", "target"):
        write(tmp_path / side / "m.safetensors", {"w": tensor("U8", (1,), b"1")})
    for k in range(8):
        (tmp_path / "target" / f"{k}.txt").write_text(f"{k}" * 100)
    ckptdiff.make(tmp_path / "base", tmp_path / "target", tmp_path / "p")
    lock, now, most = threading.Lock(), [0], [0]
    decode = verify.other_files.decode

    def counted(*args: Any) -> Iterator[bytes]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        yield from decode(*args)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(verify.other_files, "decode", counted)
    assert ckptdiff.verify(tmp_path / "p", threads=8).ok and most == [1] and now == [0]


def test_few_globs_name_many_files_of_a_repo() -> None:
    """The client tries each on each file."""

    def repo_of(paths: list[str], folder: str = "", is_file: bool = False) -> Repo:
        return Repo(HubId("org/model"), "org/model", "0" * 40, folder, {path: RemoteFile(path, 1) for path in paths}, is_file)

    patch = [f"{folder}/{k}{ending}" for folder, ending in (("patch", ".safetensors"), ("files", ".zst")) for k in range(500)]
    others = ["ckptdiff.json", "[a].safetensors", "files/b.txt", "patches/c.safetensors", "README.md", "files/zst", "x/.zst", "patch/d.zst"]
    for wanted in (patch, [*patch, "ckptdiff.json"], patch[:90], [*patch, *others]):
        for folder in ("", "some [folder]"):
            found = repo._glob_patterns(repo_of([*patch, *others], folder), sorted(wanted))
            inside = [f"{folder}/{path}" if folder else path for path in [*patch, *others]]
            kept = [path for path in [*inside, "elsewhere/a.zst"] if any(fnmatch.fnmatch(path, glob) for glob in found)]
            assert {path.removeprefix(f"{folder}/") for path in kept} - {"elsewhere/a.zst"} == set(wanted) and len(found) <= repo.MAX_GLOBS
            assert "elsewhere/a.zst" not in kept or not folder
    assert repo._glob_patterns(repo_of(["a.zst"], "files", is_file=True), ["a.zst"]) == ["files/a.zst"]


# --- what we write, others can read --------------------------------------------------------------------------------


def test_names_of_tied_tensors_have_room() -> None:
    shared = np.ones(4, np.float32)

    def made_of(n: int) -> ckptdiff.Patch:
        return ckptdiff.diff({"a": shared * 2}, {f"module.layers.{k:05}.shared.weight": shared for k in range(n)})

    assert len(ckptdiff.Patch.from_bytes(made_of(800).to_bytes()).names) == 1
    with pytest.raises(CheckpointError, match=r"further names of tensors that share memory take \d+ bytes, a patch has room for 65536"):
        made_of(1200)


def test_make_writes_no_folder_that_no_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in range(2):
        write_sharded(tmp_path / str(side), {f"{k}.safetensors": {f"w{k}": tensor("U8", (1,), bytes([side]))} for k in "ab"}, None)
    monkeypatch.setattr(writer, "MAX_ALL_DESCRIBED", 300)
    with pytest.raises(CheckpointError, match="1: its tables and headers have more than 300 bytes: patch its parts one by one"):
        ckptdiff.make(tmp_path / "0", tmp_path / "1", tmp_path / "p")
    assert not (tmp_path / "p").exists()
    write_sharded(tmp_path / "renamed", {f"{k}.safetensors": {f"v{k}": tensor("U8", (1,), bytes(1))} for k in "ab"}, None)
    monkeypatch.setattr(writer, "MAX_ALL_PIECES", 1)
    with pytest.raises(CheckpointError, match="renamed: its bases have 2 pieces, a patch at most 1: patch its parts one by one"):
        ckptdiff.make(tmp_path / "0", tmp_path / "renamed", tmp_path / "p", rename=["v=w"])


def test_masks_that_no_reader_takes_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Mask.from_arrays({name: [True] for name in "ab"})
    for limit, text in (("MAX_TENSORS", "a mask of 2 tensors"), ("MAX_HEADER", "whose header has")):
        with monkeypatch.context() as patched:
            patched.setattr(mask_file, limit, 1)
            with pytest.raises(CheckpointError, match=text):
                small.save(tmp_path / "m")
    small.save(tmp_path / "m")
    assert Mask.load(tmp_path / "m") == small


LARGE = {
    "DeepSeek-V3": ("", 62, 256, [("weight", "F8_E4M3", 1, 7), ("weight_scale_inv", "F32", 128, 1)]),
    "Kimi-K2.5": (
        "language_model.",
        61,
        384,
        [("weight_packed", "I32", 8, 4), ("weight_scale", "BF16", 32, 1), ("weight_shape", "I32", 1024, 1)],
    ),
}
"""The experts of the largest models: prefix of names, layers, experts, and the tensors of a matrix with the blocks of each."""


@pytest.mark.parametrize("model", LARGE)
def test_the_largest_models_fit(model: str) -> None:
    """Where all tensors change: tables and headers together, and the report of a model in FP8."""
    prefix, layers, experts, parts = LARGE[model]
    tensors = described = rows = 0
    for layer in range(1, layers):
        for part, dtype, share, blocks in parts:
            shape, name = [7168, 2048 // min(share, 2048)], f"{prefix}model.layers.{layer}.mlp.experts.{experts - 1}.down_proj.{part}"
            entry = {
                "name": name,
                "dtype": dtype,
                "shape": shape,
                "kind": "delta",
                "codec": "sparse",
                "blocks": [999999] * blocks,
                "changed": 9999999,
            }
            header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [9999999999, 9999999999]}}
            counts = dict.fromkeys(report_stored.COUNT_FIELDS, 14680064)
            row = {"scope": "model", "name": name, "dtype": dtype, "shape": shape, "layer": layer, "module": "experts", "spectra": None}
            row |= {"rows": [0.01234] * 7, "columns": [0.01234] * 7, **counts}
            tensors += 3 * experts
            described += 3 * experts * (len(canonical.dumps(entry)) + 40 + len(canonical.dumps(header)))
            rows += 3 * experts * (len(canonical.dumps(row)) + 1)
    assert tensors < MAX_ALL_TENSORS and described < MAX_ALL_DESCRIBED
    if model == "DeepSeek-V3":
        assert rows < report_stored.MAX_REPORT
