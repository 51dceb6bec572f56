"""Blocks of files that kernels read, several at once: the same patches, targets and errors as one by one, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff import kernels
from ckptdiff.codecs import context
from ckptdiff.errors import CkptdiffError, OutputError
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io import parallel
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import LocalFile
from ckptdiff.patching import build_files, encode
from tests.support.checkpoints import TensorData, bf16, random_tensor, write

Files = tuple[Path, Path]
UNITS = BLOCK // 2
"""Units of bf16 in a block."""


def moved(rng: np.random.Generator, data: TensorData, *shares: float) -> TensorData:
    """A tensor of which a share of the units moved by a few ulps: one share for each part of equal size."""
    dtype, shape, raw = data
    units = np.frombuffer(raw, f"<u{len(raw) // int(np.prod(shape))}").copy()
    for part, share in zip(np.array_split(np.arange(len(units)), len(shares)), shares, strict=True):
        chosen = part[rng.random(len(part)) < share]
        units[chosen] += rng.integers(1, 4, len(chosen)).astype(units.dtype)
    return dtype, shape, units.tobytes()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Tensors of several blocks: with few changes, none, many, and some of each; blocks that are short, of all widths, cast and new."""
    rng, folder = np.random.default_rng(11), tmp_path_factory.mktemp("blocks")
    old = {
        "few": bf16(rng.normal(0, 0.02, 3 * UNITS + 5000)),
        "mixed": bf16(rng.normal(0, 0.02, 5 * UNITS)),
        "dense": bf16(rng.normal(0, 0.02, 2 * UNITS + 100)),
        "same": bf16(rng.normal(0, 0.02, 2 * UNITS)),
        "tail": bf16(rng.normal(0, 0.02, 2 * UNITS + 3)),
        "hardly": bf16(rng.normal(0, 0.02, UNITS // 2)),
        "bytes": random_tensor(rng, "F8_E4M3", [2 * BLOCK + 70_000]),
        "floats": random_tensor(rng, "F32", [BLOCK // 4 + 20_000]),
        "doubles": random_tensor(rng, "F64", [BLOCK // 8 + 20_000]),
        "integers": random_tensor(rng, "I16", [UNITS + 40_000]),
        "small": bf16(rng.normal(0, 0.02, 100)),
    }
    shares = {"mixed": (0.01, 0.3, 0.01, 0.0, 0.0001), "dense": (0.4,), "same": (0.0,), "hardly": (1e-5,)}
    new = {name: moved(rng, data, *shares.get(name, (0.02,))) for name, data in old.items()}
    old["cast"], new["cast"] = bf16(rng.normal(0, 1, UNITS // 2)), random_tensor(rng, "F32", [UNITS // 2])
    new["new"] = random_tensor(rng, "BF16", [70_000])
    return write(folder / "base.safetensors", old), write(folder / "target.safetensors", new)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Blocks are worked on together, although the checkpoint is small; as they are where one thread is given sixteen."""
    for module in (encode, build_files):
        monkeypatch.setattr(module, "LARGE_CHECKPOINT", 0)
    monkeypatch.setattr(parallel, "LIGHTER_FROM", 1 << 22)
    monkeypatch.setattr(parallel, "JOB_BYTES", 1 << 26)
    return monkeypatch


@pytest.fixture
def calls(together: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How many blocks kernels that read files have done, by what they do."""
    done = {"encode": 0, "decode": 0}

    def count(module: Any, name: str) -> None:
        run = getattr(module, name)

        def counted(*args: Any) -> list[Any]:
            found: list[Any] = run(*args)
            done[name] += len(found)
            return found

        together.setattr(module, name, counted)

    count(kernels.encode_files, "encode")
    count(kernels.decode_files, "decode")
    yield done


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are worked on one by one."""
    for module in (encode, build_files):
        monkeypatch.setattr(module, "LARGE_CHECKPOINT", 1 << 62)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("codec", [None, "context"])
def test_the_same_patch_and_the_same_target(codec: str | None, threads: int, pair: Files, calls: dict[str, int], tmp_path: Path) -> None:
    ckptdiff.make(*pair, tmp_path / "together.safetensors", codec=codec, threads=threads)
    assert calls["encode"] >= (12 if threads == 1 else 4)
    ckptdiff.apply(pair[0], tmp_path / "together.safetensors", tmp_path / "out.safetensors", threads=threads)
    assert calls["decode"] >= (12 if threads == 1 else 4)
    assert (tmp_path / "out.safetensors").read_bytes() == pair[1].read_bytes()
    with pytest.MonkeyPatch.context() as patched:
        alone(patched)
        before = dict(calls)
        ckptdiff.make(*pair, tmp_path / "alone.safetensors", codec=codec, threads=threads)
        ckptdiff.apply(pair[0], tmp_path / "alone.safetensors", tmp_path / "out.safetensors", threads=threads, overwrite=True)
        assert before == calls
    assert (tmp_path / "alone.safetensors").read_bytes() == (tmp_path / "together.safetensors").read_bytes()
    assert ckptdiff.verify(tmp_path / "together.safetensors", base=pair[0], target=pair[1], threads=threads).ok


def both_ways(do: Callable[[], object], error: type[Exception]) -> str:
    """The text of the error that something ends with, together and alone."""
    texts = list[str]()
    for one_by_one in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            if one_by_one:
                alone(patched)
            with pytest.raises(error) as found:
                do()
        texts.append(str(found.value))
    assert texts[0] == texts[1]
    return texts[0]


@pytest.mark.parametrize("name", ["few", "same", "mixed", "bytes", "doubles", "tail"])
def test_a_wrong_base_is_named(name: str, pair: Files, together: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One bit of one block of a tensor is another, in an unchanged unit, or in one that moved."""
    ckptdiff.make(*pair, tmp_path / "patch.safetensors", codec="context")
    data = bytearray(pair[0].read_bytes())
    at = data.index(f'"{name}":'.encode())
    begin = int(re.findall(rb'"data_offsets":\[(\d+),', bytes(data[at : at + 200]))[0]) + 8 + int.from_bytes(data[:8], "little")
    data[begin + 70_001] ^= 1
    (tmp_path / "wrong.safetensors").write_bytes(data)
    out = tmp_path / "out.safetensors"
    text = both_ways(
        lambda: ckptdiff.apply(tmp_path / "wrong.safetensors", tmp_path / "patch.safetensors", out), ckptdiff.BaseMismatchError
    )
    assert f"its tensor {name} has the digest" in text and not out.exists()


def test_payloads_that_break_a_rule_are_named(pair: Files, together: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Payloads as a writer with a fault would write them, which their digests do not tell: the same block of the same tensor is named."""
    ckptdiff.make(*pair, tmp_path / "patch.safetensors", codec="context")
    file, whole = PatchFile(LocalFile(tmp_path / "patch.safetensors")), (tmp_path / "patch.safetensors").read_bytes()
    rng = np.random.default_rng(3)
    together.setattr("ckptdiff.verbs.apply.check_stored", lambda *args, **kwargs: None)
    for entry in [entry for entry in file.table.entries if entry.codec == "context" and entry.nbytes > BLOCK]:
        for _ in range(3):
            data = bytearray(whole)
            data[file.payloads.offsets[entry.name] + int(rng.integers(entry.payload_size))] ^= 1 << int(rng.integers(8))
            (tmp_path / "damaged.safetensors").write_bytes(data)
            out = tmp_path / "out.safetensors"
            text = both_ways(lambda: ckptdiff.apply(pair[0], tmp_path / "damaged.safetensors", out, threads=1), CkptdiffError)  # noqa: B023
            assert f"tensor {entry.name}" in text and not out.exists()


def test_a_target_that_is_cut_short_meanwhile(pair: Files, together: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel that cannot read a block says no more; what is done then says which file ends too soon."""
    target = tmp_path / "target.safetensors"
    data = pair[1].read_bytes()
    run = kernels.encode_files.encode

    def cut(*args: Any) -> list[Any]:
        os.truncate(target, len(data) // 3)
        return run(*args)

    together.setattr(kernels.encode_files, "encode", cut)
    target.write_bytes(data)
    with pytest.raises(ckptdiff.CheckpointError, match=r"target.safetensors: ends at byte \d+, expected \d+ or more: truncated\?"):
        ckptdiff.make(pair[0], target, tmp_path / "patch.safetensors", codec="context", threads=1)
    assert not (tmp_path / "patch.safetensors").exists()


def test_a_full_disk_is_told(pair: Files, together: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel that cannot write a block says no more; what is done then gives the reason."""
    ckptdiff.make(*pair, tmp_path / "patch.safetensors", codec="context")
    run = kernels.decode_files.decode
    together.setattr(kernels.decode_files, "decode", lambda ranges, *args: run([part._replace(out=1 << 20) for part in ranges], *args))

    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "no space")

    together.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="the disk is full"):
        ckptdiff.apply(pair[0], tmp_path / "patch.safetensors", tmp_path / "out.safetensors")
    together.undo()
    assert not (tmp_path / "out.safetensors").exists()


def test_kernels_stop_where_they_must(tmp_path: Path) -> None:
    """Too many changes, no room, the end of a file, another form, a code that is too long: all before that is done."""
    rng = np.random.default_rng(2)
    old = rng.integers(0, 1 << 16, 1 << 16).astype("<u2")
    new = old.copy()
    new[5 * 8192 : 6 * 8192 : 2] += 1
    paths = [tmp_path / "old", tmp_path / "new"]
    for path, units in zip(paths, (old, new), strict=True):
        path.write_bytes(units.tobytes())
    dtype, size = DTYPES["BF16"], 1 << 14
    with LocalFile(paths[0]).descriptor() as base, LocalFile(paths[1]).descriptor() as target:
        blocks = [kernels.encode_files.FileBlock(base, k * size, target, k * size, size) for k in range(20)]
        assert len(kernels.encode_files.encode(blocks, dtype, 100, 1)) == 5
        assert len(kernels.encode_files.encode(blocks, dtype, 5000, 1)) == 8  # where the files end
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kernels.encode_files, "ROOM", 100)
            patched.setattr(kernels.encode_files, "_kept", kernels.file_reads.ThreadArguments())
            assert len(kernels.encode_files.encode(blocks, dtype, 5001, 1)) == 5
        ranges = [kernels.decode_files.FileRange(base, k * size, target, 0, 0, -1, 0, size) for k in range(20)]
        assert len(kernels.decode_files.decode(ranges, dtype, 1)) == 8
        for other in ({"coded": kernels.decode_files.MOST_CODED + 1}, {"coded": 4, "patch": 1 << 20}, {"coded": 10}, {"out": 1 << 20}):
            assert len(kernels.decode_files.decode([*ranges[:3], ranges[3]._replace(**other), *ranges[4:]], dtype, 1)) == 3


def test_memory_that_a_kernel_has_the_address_of_is_kept(tmp_path: Path) -> None:
    """Scratch memory of the same names may be exchanged for larger one between two calls."""
    old = np.arange(BLOCK // 2, dtype=np.uint16)
    new = old.copy()
    new[::1000] += 1
    (tmp_path / "pair").write_bytes(old.tobytes() + new.tobytes())
    with open(tmp_path / "pair", "rb") as file:
        fd, dtype = file.fileno(), DTYPES["BF16"]
        block = kernels.encode_files.FileBlock(fd, 0, fd, BLOCK, BLOCK)
        (found,) = kernels.encode_files.encode([block], dtype, BLOCK // 32, context.ADAPTIVE)
        (tmp_path / "coded").write_bytes(found.coded)
        with open(tmp_path / "coded", "rb") as coded:
            place = kernels.decode_files.FileRange(fd, 0, coded.fileno(), 0, len(found.coded), -1, 0, BLOCK)
            (built,) = kernels.decode_files.decode([place], dtype, context.ADAPTIVE)
            for name in ("base", "target", "read", "coded", "positions", "zigzags", "raw", "words"):
                scratch(name, 1 << 25, np.uint8)
            assert kernels.encode_files.encode([block], dtype, BLOCK // 32, context.ADAPTIVE) == [found]
            assert kernels.decode_files.decode([place], dtype, context.ADAPTIVE) == [built]
    assert (built.leaf, built.changed) == (found.leaf, len(new[::1000]))
