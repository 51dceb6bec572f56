"""Small tensors are encoded and rebuilt together: the same bytes, the same errors, and few reads and writes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint.gather import gather, within
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.errors import BaseMismatchError, CkptdiffError
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.payloads import Payloads
from ckptdiff.io.parallel import Threads
from ckptdiff.io.source import LocalFile
from ckptdiff.patching import build_together, encode
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import Rebuilder, open_base
from ckptdiff.patching.recipes import PatchedTensor
from tests.support.checkpoints import BITS, TensorData, perturb, random_tensor, write_sharded

SHARES = (0.0, 0.002, 0.03, 0.4, 1.0)
COUNT = 120


def tensors(rng: np.random.Generator, shard: int) -> tuple[dict[str, TensorData], dict[str, TensorData]]:
    """Tensors of every dtype: without units, of few, and larger than what is done together; kept, moved, cast, grown and new ones."""
    old, new = dict[str, TensorData](), dict[str, TensorData]()
    for k in range(COUNT):
        name, dtype = f"layers.{shard}.{k:03d}", sorted(BITS)[k % len(BITS)]
        size = 8 * int(rng.choice([0, 1, 9, 300]) if k % 30 else 9000)
        old[name] = random_tensor(rng, dtype, [size])
        new[name] = perturb(rng, old[name], SHARES[k % len(SHARES)])
        if k % 40 == 7:
            del old[name]
        if k % 40 == 8:
            new[name] = random_tensor(rng, dtype, [size + 8])
    old["cast"], new["cast"] = random_tensor(rng, "BF16", [50]), random_tensor(rng, "F32", [50])
    return old, new


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    rng, folder = np.random.default_rng(24), tmp_path_factory.mktemp("small")
    shards = {f"s{k}.safetensors": tensors(rng, k) for k in range(2)}
    base = write_sharded(folder / "base", {name: old for name, (old, _) in shards.items()}, None)
    return base, write_sharded(folder / "target", {name: new for name, (_, new) in shards.items()}, None)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is done together."""
    monkeypatch.setattr(encode, "SMALL_TENSOR", 0)
    monkeypatch.setattr(build_together, "SMALL_TENSOR", 0)
    return monkeypatch


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("codec", [None, "sparse", "context", "raw"])
def test_the_same_patch_and_the_same_target(
    codec: str | None, pair: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for name in ("together", "alone"):
        if name == "alone":
            request.getfixturevalue("one_by_one")
        ckptdiff.make(*pair, tmp_path / name, codec=codec)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    ckptdiff.apply(pair[0], tmp_path / "together", tmp_path / "out alone")
    request.getfixturevalue("one_by_one").undo()
    ckptdiff.apply(pair[0], tmp_path / "together", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "out alone") == contents(pair[1])


@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_a_wrong_base_is_named(codec: str, pair: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """One bit of one small tensor among hundreds is another: the same tensor is named."""
    ckptdiff.make(*pair, tmp_path / "patch", codec=codec)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for name, data in contents(pair[0]).items():
        (wrong / name).write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:] if name == "s1.safetensors" else data)
    texts = list[str]()
    for _ in range(2):
        with pytest.raises(BaseMismatchError, match=r"its tensor \S+ has the digest [0-9a-f]{32}, expected [0-9a-f]{32}") as error:
            ckptdiff.apply(wrong, tmp_path / "patch", tmp_path / "out")
        texts.append(str(error.value))
        request.getfixturevalue("one_by_one")
    assert texts[0] == texts[1]


def test_damaged_payloads_are_named(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads that their digests do not protect, as a writer with a fault would write them: one bit of one small tensor's is another."""
    ckptdiff.make(*pair, tmp_path / "patch", codec="context")
    payloads, blocks, seen, wrong = Payloads.read, Payloads.read_blocks, list[str](), set[str]()

    def damaged(data: list[memoryview], names: list[str]) -> list[memoryview]:
        return [memoryview(bytes([part[0] ^ 64, *part[1:]])) if name in wrong else part for name, part in zip(names, data, strict=True)]

    def read_payloads(self: Payloads, entries: Any) -> list[memoryview]:
        seen.extend(entry.name for entry in entries)
        return damaged(payloads(self, entries), [entry.name for entry in entries])

    def read_blocks(self: Payloads, entry: Any, *where: int) -> list[memoryview]:
        data = blocks(self, entry, *where)
        return damaged(data, [entry.name] * len(data))

    monkeypatch.setattr(Payloads, "read", read_payloads)
    monkeypatch.setattr(Payloads, "read_blocks", read_blocks)
    ckptdiff.apply(pair[0], tmp_path / "patch", tmp_path / "out")
    assert len(seen) > COUNT / 4
    for name in sorted(seen)[::5]:
        wrong.clear()
        wrong.add(name)
        with pytest.raises(CkptdiffError, match=rf"tensor {name}[:,]"):
            ckptdiff.apply(pair[0], tmp_path / "patch", tmp_path / "out", overwrite=True)


def test_small_tensors_with_large_payloads_are_built_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A patch from a stranger may state as much for a tensor of a few bytes as a block may have: of many, that would be held at once."""
    ckptdiff.make(*pair, tmp_path / "patch", codec="sparse")
    with open_patch(tmp_path / "patch") as patch, open_base(pair[0], [patch]) as base:
        file = patch.files[0]
        rebuilder = Rebuilder(base, [patch], Threads(1))
        entry = next(entry for entry in file.table.entries if entry.kind == "delta" and entry.nbytes <= 1000)
        recipe = rebuilder.recipe(0, file, entry)
        assert isinstance(recipe, PatchedTensor) and build_together.can_join(recipe)
        assert build_together.can_join(replace(recipe, entry=entry._replace(blocks=(build_together.SMALL_TENSOR,))))
        assert not build_together.can_join(replace(recipe, entry=entry._replace(blocks=(build_together.SMALL_TENSOR + 1,))))


def test_groups_have_no_more_bytes_than_a_block() -> None:
    sizes = [65536] * 40 + [1] * 5 + [65535]
    groups = list(within(range(3, len(sizes)), sizes.__getitem__, BLOCK))
    assert [k for group in groups for k in group] == list(range(3, len(sizes)))
    assert [sum(sizes[k] for k in group) for group in groups] == [BLOCK, 5 * 65536 + 5 + 65535]
    assert list(within([], sizes.__getitem__, BLOCK)) == []


def test_composed_through_the_base(tmp_path: Path) -> None:
    """The target of a chain that is read as it is built, tensor by tensor: no read goes beyond one of them."""
    rng = np.random.default_rng(8)
    old = {f"t{k}": random_tensor(rng, "BF16", [64]) for k in range(40)}
    new = {name: perturb(rng, data, 0.1) for name, data in old.items()}
    base, target = (write_sharded(tmp_path / side, {"m.safetensors": data}, None) for side, data in (("base", old), ("target", new)))
    ckptdiff.make(base, target, tmp_path / "there", codec="context")
    ckptdiff.make(target, base, tmp_path / "back", codec="context")
    steps = [tmp_path / "there", tmp_path / "back", tmp_path / "there"]
    ckptdiff.compose(steps, base=base, output=tmp_path / "composed", codec="context")
    ckptdiff.apply(base, tmp_path / "composed", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(target)


def test_reads_and_writes_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 tensors that lie one behind the other: a read or a write takes many of them."""
    rng = np.random.default_rng(5)
    old = {f"t{k:04d}": random_tensor(rng, "BF16", [64]) for k in range(2000)}
    new = {name: perturb(rng, data, 0.03) for name, data in old.items()}
    base, target = (write_sharded(tmp_path / side, {"m.safetensors": data}, None) for side, data in (("base", old), ("target", new)))
    calls = {"read": 0, "write": 0}
    readinto, pwrite = LocalFile.readinto, os.pwrite

    def counted_read(self: LocalFile, offset: int, out: Any) -> None:
        calls["read"] += 1
        readinto(self, offset, out)

    def counted_write(fd: int, data: Any, offset: int) -> int:
        calls["write"] += 1
        return pwrite(fd, data, offset)

    monkeypatch.setattr(LocalFile, "readinto", counted_read)
    monkeypatch.setattr(os, "pwrite", counted_write)
    ckptdiff.make(base, target, tmp_path / "patch")
    with open_checkpoint(base) as checkpoint:
        every = checkpoint.weights[0].tensors
        calls["read"] = 0
        data = gather([*every[:1500], every[3], *every[1500:]], [0, *(128 * (k + 1) for k in range(2001))], "test")
        assert calls["read"] == 3 and data[128 * 1500 :][:128].tobytes() == old["t0003"][2]
    calls["read"] = 0
    ckptdiff.apply(base, tmp_path / "patch", tmp_path / "out")
    assert 0 < calls["read"] < 250 and 0 < calls["write"] < 50
