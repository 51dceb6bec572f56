"""Bases made of pieces (spec section 8): random ones, in chains, by both readers; and chains that shift."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.format.entry import Entry, Piece
from ckptdiff.format.payloads import Payloads
from ckptdiff.patching import output
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import scratch_size
from tests.support.checkpoints import tensor, write
from tests.support.pieces import make_patch, random_base, random_target
from tests.support.strategies import examples_run
from tests.support.vectors import READER

BLOCK = 1 << 21


def outcome_of(apply: object, base: Path, patches: list[Path], out: Path) -> bytes | str:
    """The file that a reader writes, or the kind of its error."""
    try:
        apply(base, patches, out)  # type: ignore[operator]
    except (ckptdiff.CkptdiffError, READER.PatchError) as error:
        return error.kind
    return out.read_bytes()


@pytest.mark.slow
@settings(max_examples=examples_run(700), deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 5))
def test_both_readers_agree_on_random_chains(seed: int, length: int) -> None:
    """About 2,000 patches if all run. The target comes back; and both say the same where a later checkpoint is given as the base."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, tensors, patches = Path(name), random_base(rng), list[Path]()
        states = [write(folder / "0.safetensors", tensors)]
        for k in range(1, length + 1):
            tensors, told = random_target(rng, tensors)
            states.append(write(folder / f"{k}.safetensors", tensors))
            codec = [None, "context", "sparse", "raw"][int(rng.integers(4))]
            patches.append(make_patch(states[-2], states[-1], folder / f"p{k}.safetensors", told, codec))
        for number, state in enumerate(states):
            ours = outcome_of(ckptdiff.apply, state, patches, folder / f"ours-{number}")
            theirs = outcome_of(READER.apply, state, patches, folder / f"theirs-{number}")
            if number and ours != theirs:  # the package does not look at what the target does not need (spec 10, chains)
                assert theirs in ("wrong_base", "already_target")
                theirs = states[-1].read_bytes()
            assert ours == theirs and (number or ours == states[-1].read_bytes())
        assert ckptdiff.verify(patches[0], base=states[0], target=states[1]).ok


def test_a_chain_of_half_block_shifts_is_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 64 patches shifts a tensor by half a block: every block of every patch is decoded once, and scratch is counted."""
    rng, size, half = np.random.default_rng(64), 3 * BLOCK // 2, BLOCK // 2
    data = np.frombuffer(rng.bytes(size), np.uint8)
    states, patches = [write(tmp_path / "0.safetensors", {"w": tensor("U8", [size], data)})], list[Path]()
    for k in range(1, 65):
        data = np.concatenate([data[half:], data[:half]])
        data[k] ^= 1
        states.append(write(tmp_path / f"{k % 2}-next.safetensors", {"w": tensor("U8", [size], data)}))
        told = {"w": [Piece("w", half, size - half), Piece("w", 0, half)]}
        patches.append(make_patch(states[-2], states[-1], tmp_path / f"p{k}.safetensors", told, "sparse"))
    decoded: list[tuple[str, int]] = []
    read = Payloads.read_blocks

    def read_blocks(self: Payloads, entry: Entry, first: int, last: int) -> list[memoryview]:
        decoded.extend((self.source.name, k) for k in range(first, last))
        return read(self, entry, first, last)

    monkeypatch.setattr(Payloads, "read_blocks", read_blocks)
    ckptdiff.apply(states[0], patches, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == states[-1].read_bytes()
    assert len(decoded) == len(set(decoded)) == 64 * 2

    chain = [open_patch(path) for path in patches]
    opened = [patch.__enter__() for patch in chain]
    assert scratch_size(opened) == 63 * size
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: output.shutil._ntuple_diskusage(0, 0, 63 * size))  # type: ignore[attr-defined]
    with pytest.raises(ckptdiff.OutputError, match="bytes are needed"):
        ckptdiff.apply(states[0], patches, tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()
    for patch in chain:
        patch.__exit__(None, None, None)


def test_a_wrong_base_names_what_the_pieces_name(tmp_path: Path) -> None:
    old = {name: tensor("U8", [4], bytes([k] * 4)) for k, name in enumerate("abc")}
    new = {"fused": tensor("U8", [12], bytes([0, 0, 0, 9] + [1] * 4 + [2] * 4))}
    base, target = write(tmp_path / "base.safetensors", old), write(tmp_path / "target.safetensors", new)
    told = {"fused": [Piece(name, 0, 4) for name in "abc"]}
    patch = make_patch(base, target, tmp_path / "patch.safetensors", told)
    wrong = write(tmp_path / "wrong.safetensors", {**old, "c": tensor("U8", [4], bytes(4))})
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"what stands for fused \(from a, b, c\) has the digest") as raised:
        ckptdiff.apply(wrong, patch, tmp_path / "out")
    assert raised.value.kind == "wrong_base"
    lacking = write(tmp_path / "lacking.safetensors", {**old, "c": tensor("U8", [3], bytes(3))})
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"its tensor c has 3 units, expected 4 or more"):
        ckptdiff.apply(lacking, patch, tmp_path / "out")
    with pytest.raises(ckptdiff.BaseMismatchError, match="is already the target") as raised:
        ckptdiff.apply(target, patch, tmp_path / "out")
    assert raised.value.kind == "already_target"
    info = ckptdiff.info(patch)
    assert info.tensors[0].bases == ("a", "b", "c") and info.removed_tensors == ()


def test_pieces_of_very_many_tensors_take_linear_time(tmp_path: Path) -> None:
    """Of 20,000 tensors, for each of which all pieces were once looked at; and none is longer than its target."""
    count = 20_000
    base = write(tmp_path / "base.safetensors", {f"t{k}": tensor("U8", [2], bytes([k % 256, 1])) for k in range(count)})
    target = write(
        tmp_path / "target.safetensors", {"all": tensor("U8", [2 * count], bytes(b for k in range(count) for b in (k % 256, 1)))}
    )
    told = [Piece(f"t{k}", 0, 2) for k in range(count)]
    patch = make_patch(base, target, tmp_path / "patch.safetensors", {"all": told})
    started = time.process_time()
    ckptdiff.apply(base, patch, tmp_path / "out.safetensors", threads=1)
    print(f"{count:,} pieces: {time.process_time() - started:.2f} s of CPU")
    assert (tmp_path / "out.safetensors").read_bytes() == target.read_bytes()
    with pytest.raises(ValueError, match=r"all: 20001 pieces of 40001 units for a target of 40000"):
        make_patch(base, target, tmp_path / "again", {"all": [*told, Piece("t0", 1, 1)]})


def test_load_target_says_that_its_temporary_folder_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    states = [write(tmp_path / "0.safetensors", {"w": tensor("U8", [4000], bytes(4000))})]
    for k in (1, 2):
        states.append(write(tmp_path / f"{k}.safetensors", {"w": tensor("U8", [4000], bytes([k]) * 4000)}))
        told = {"w": [Piece("w", 2000, 2000), Piece("w", 0, 2000)]}
        make_patch(states[-2], states[-1], tmp_path / f"p{k}.safetensors", told, "sparse")
    patches = [tmp_path / "p1.safetensors", tmp_path / "p2.safetensors"]
    assert ckptdiff.load_target(states[0], patches)["w"].eq(2).all()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(ckptdiff.OutputError, match="cannot be written: File too large"):
            ckptdiff.load_target(states[0], patches)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: output.shutil._ntuple_diskusage(0, 0, 3999))  # type: ignore[attr-defined]
    with pytest.raises(ckptdiff.OutputError, match="4,000 bytes are needed, 3,999 are free"):
        ckptdiff.load_target(states[0], patches)
