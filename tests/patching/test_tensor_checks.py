"""``verify`` checks small tensors together: the same problems, in the same order and words, as one by one; and few reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.format.digests import identity
from ckptdiff.format.patch_file import PatchFile, PatchParts, write_patch_file
from ckptdiff.format.safetensors import read_header
from ckptdiff.format.table import Table
from ckptdiff.io.source import LocalFile, read_bytes
from ckptdiff.verbs import verify
from tests.support.checkpoints import BITS, perturb, random_tensor, write, write_sharded

COUNT = 150
Files = tuple[Path, Path, Path]
"""A base, its target and a patch."""


@pytest.fixture(scope="module", params=["context", "sparse"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Tensors of all dtypes, without units, small, and too large to be checked together; kept, moved and new ones."""
    rng, folder = np.random.default_rng(7), tmp_path_factory.mktemp("checks")
    old = {f"t{k:03d}": random_tensor(rng, sorted(BITS)[k % len(BITS)], [8 * (k % 7) if k % 30 else 90_000]) for k in range(COUNT)}
    new = {name: perturb(rng, data, (0.0, 0.05, 0.5)[k % 3]) for k, (name, data) in enumerate(old.items())}
    del old["t010"], old["t020"]
    base, target = write(folder / "base.safetensors", old), write(folder / "target.safetensors", new)
    ckptdiff.make(base, target, folder / "patch.safetensors", codec=request.param)
    return base, target, folder / "patch.safetensors"


def problems(patch: Path, base: Path) -> list[str]:
    """What is found, which must be what is found one by one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "find_all", lambda checks: [check() for check in checks])
        alone = ckptdiff.verify(patch, base=base, threads=1)
    for threads in (1, 3):
        reports = list[tuple[str, int, int]]()
        found = ckptdiff.verify(patch, base=base, threads=threads, progress=lambda *report: reports.append(report))  # noqa: B023
        assert found == alone
        assert [done for _, done, _ in reports] == list(range(1, found.checked + 1))
    return [problem.message for problem in alone.problems]


def damaged(path: Path, out: Path, change: Callable[[bytearray, int, int], None], every: int) -> Path:
    """A copy of a checkpoint of which every so manieth tensor with units is changed, given where it begins and ends."""
    file, data = LocalFile(path), bytearray(path.read_bytes())
    header = read_header(file)
    for info in [info for info in header.tensors if info.nbytes][::every]:
        change(data, header.data_start + info.begin, header.data_start + info.end)
    out.write_bytes(data)
    return out


def flip(data: bytearray, begin: int, end: int) -> None:
    """Change one bit of a tensor."""
    data[(begin + end) // 2] ^= 4


def rewritten(patch: Path, out: Path, change: Callable[[PatchFile, dict[str, Any], bytearray], None]) -> Path:
    """A patch whose entries and payloads are changed, and sealed again."""
    file = PatchFile(LocalFile(patch))
    entries, payload = {entry.name: entry for entry in file.table.entries}, bytearray()
    for entry in file.table.entries:
        payload += read_bytes(file.source, file.payloads.offsets[entry.name], entry.payload_size)
    change(file, entries, payload)
    found = identity((file.metadata.target_scope, e.name, e.dtype, e.shape, e.digest) for e in entries.values())
    table = Table.of(list(entries.values()))
    with open(out, "wb") as written:
        metadata = replace(file.metadata, target_identity=found, totals=table.totals)
        write_patch_file(written, metadata, PatchParts(table, file.header.raw, None, [bytes(payload)]))
    return out


def test_nothing_is_wrong(files: Files) -> None:
    base, _, patch = files
    assert problems(patch, base) == []


@pytest.mark.parametrize("every", [1, 9, 100])
def test_a_wrong_base(every: int, files: Files, tmp_path: Path) -> None:
    base, _, patch = files
    found = problems(patch, damaged(base, tmp_path / "wrong.safetensors", flip, every))
    assert len(found) >= 100 // every
    assert all("has the digest" in text for text in found)


def test_the_target_as_base(files: Files) -> None:
    _, target, patch = files
    (found,) = problems(patch, target)
    assert "is already the target" in found


def test_a_base_without_some_tensors(files: Files, tmp_path: Path) -> None:
    base, _, patch = files
    shutil.copy(base, tmp_path / "base.safetensors")
    data = (tmp_path / "base.safetensors").read_bytes().replace(b'"t031"', b'"u031"').replace(b'"t100"', b'"u100"')
    (tmp_path / "base.safetensors").write_bytes(data)
    assert [text.count("it has no tensor") for text in problems(patch, tmp_path / "base.safetensors")] == [1, 1]


def test_damaged_payloads(files: Files, tmp_path: Path) -> None:
    """Bytes that have other digests than the table states: the tensors that they belong to are named, and what cannot be decoded."""
    base, _, patch = files
    file, data = PatchFile(LocalFile(patch)), bytearray(patch.read_bytes())
    chosen = [entry for entry in file.table.entries if entry.payload_size][::7]
    for entry in chosen:
        data[file.payloads.offsets[entry.name] + entry.payload_size // 2] ^= 16
    (tmp_path / "damaged.safetensors").write_bytes(data)
    found = problems(tmp_path / "damaged.safetensors", base)
    assert [text for text in found if "its payload has the digest" in text] == [
        text for entry in chosen for text in found if f"tensor {entry.name}: its payload" in text
    ]
    assert len(found) > len(chosen)


def test_entries_that_state_something_else(files: Files, tmp_path: Path) -> None:
    """Digests and numbers of changes that no decoder gives, in a patch that is whole."""
    base, _, patch = files

    def change(file: PatchFile, entries: dict[str, Any], payload: bytearray) -> None:
        some = [name for name, entry in entries.items() if entry.kind == "delta"]
        for name in some[::11]:
            entries[name] = entries[name]._replace(digest=bytes(16))
        for name in (name for name in some[5::11] if 1 < entries[name].changed):
            entries[name] = entries[name]._replace(changed=entries[name].changed - 1)

    found = problems(rewritten(patch, tmp_path / "other.safetensors", change), base)
    assert sum("rebuilt with the digest" in text for text in found) > 5
    assert sum("its blocks change" in text for text in found) > 2


def test_a_file_that_ends_too_soon(files: Files, tmp_path: Path) -> None:
    """The base is cut short once it is open: every tensor behind the cut is named."""
    base, _, patch = files
    copy = tmp_path / "base.safetensors"
    shutil.copy(base, copy)
    readinto, size = LocalFile.readinto, copy.stat().st_size

    def cut(self: LocalFile, offset: int, out: Any) -> None:
        if self.path == copy and os.path.getsize(copy) == size and offset > 50_000:
            os.truncate(copy, size // 2)
        readinto(self, offset, out)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LocalFile, "readinto", cut)
        found = [problem.message for problem in ckptdiff.verify(patch, base=copy, threads=1).problems]
    assert len(found) > 20 and all("truncated? fetch it again" in text for text in found)


def test_reads_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 tensors and payloads that lie one behind the other: a read takes many of them."""
    rng = np.random.default_rng(5)
    old = {f"t{k:04d}": random_tensor(rng, "BF16", [64]) for k in range(2000)}
    new = {name: perturb(rng, data, 0.03) for name, data in old.items()}
    base, target = (write_sharded(tmp_path / side, {"m.safetensors": data}, None) for side, data in (("base", old), ("target", new)))
    ckptdiff.make(base, target, tmp_path / "patch")
    count, readinto = [0], LocalFile.readinto

    def counted(self: LocalFile, offset: int, out: Any) -> None:
        count[0] += 1
        readinto(self, offset, out)

    monkeypatch.setattr(LocalFile, "readinto", counted)
    assert ckptdiff.verify(tmp_path / "patch", base=base, threads=1).ok
    assert 0 < count[0] < 200
