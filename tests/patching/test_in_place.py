"""``apply --in-place``: killed at any call it goes on to the target; what it must not write to it refuses by name."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors

import ckptdiff
from ckptdiff.io import unit_log
from ckptdiff.io.in_place import JOURNAL
from tests.support.checkpoints import TensorData, bf16, perturb, tree, write_sharded
from tests.support.killed_calls import in_fork, killed_at
from tests.support.refusals import refused
from tests.support.small_pair import Pair

UNIT = 1 << 21
BIG = (768, 1024)
"""Shape of a tensor of a block and a half, as F32."""


def shards(tensors: dict[str, TensorData], count: int) -> dict[str, dict[str, TensorData]]:
    return {f"model-{k + 1:05}-of-{count:05}.safetensors": dict(list(tensors.items())[k::count]) for k in range(count)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Pairs: of one layout; one in which one shard gets a longer header, and others move."""
    rng = np.random.default_rng(4)
    base = {f"layer.{k}": ("F32", BIG, rng.normal(0, 0.02, BIG).astype("<f4").tobytes()) for k in range(4)}
    base |= {"small": bf16([1.0, 2.0, 3.0]), "same": bf16(rng.normal(0, 1, (64, 64)))}
    target = {name: perturb(rng, value, 0.05) if name.startswith("layer") else value for name, value in base.items()}
    found = {}
    for layout, sides in {
        "alike": (shards(base, 2), shards(target, 2)),
        "moved": (shards(base, 3), {**shards({**target, "small": bf16([1.0] * 9), "more": bf16([5.0] * 7)}, 2)}),
    }.items():
        folder = tmp_path_factory.mktemp(f"a {layout}")
        for side, files in zip(("base", "target"), sides, strict=True):
            write_sharded(folder / side, files)
            (folder / side / "config.json").write_text(f'{{"side": "{side}"}}')
            (folder / side / "same.txt").write_text("same")
        (folder / "base" / "gone.txt").write_text("gone")
        ckptdiff.make(folder / "base", folder / "target", folder / "patch")
        found[layout] = Pair(folder / "base", folder / "target", folder / "patch")
    return found


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_log, "UNIT_BYTES", UNIT)


def copy_of(pair: Pair, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pair.base, folder)
    return folder


def assert_state(pair: Pair, out: Path) -> bool:
    """The folder is whole, or no reader takes it for whole; whether it is not."""
    if not (out / JOURNAL / "begun").exists():
        found = {name: digest for name, digest in tree(out).items() if not name.startswith(JOURNAL)}
        assert found in (tree(pair.base), tree(pair.target))
        return False
    for read in (
        lambda: ckptdiff.compare(out, pair.base),
        lambda: ckptdiff.verify(pair.patch, target=out),
        lambda: ckptdiff.verify(pair.patch, base=out),
        lambda: ckptdiff.apply(next(out.glob("*.safetensors")), pair.patch, out.with_name("other")),
        lambda: ckptdiff.make(pair.base, pair.target, out, overwrite=True),
    ):
        with pytest.raises(ckptdiff.CheckpointError, match=r"neither the base nor the target.*to go on: ckptdiff apply .* --in-place"):
            read()
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "call", "step"),
    [("alike", "fsync", 12), ("alike", "pwrite", 9), ("moved", "fsync", 15), ("moved", "replace", 2), ("moved", "unlink", 7)],
)
def test_killed_at_any_call_it_goes_on(call: str, layout: str, step: int, pairs: dict[str, Pair], tmp_path: Path) -> None:
    """With ``step`` 1 each call is tried, which takes minutes."""
    pair, out, nth, begun = pairs[layout], tmp_path / "a copy", 2, 0
    want = tree(pair.target)
    while killed_at(nth, call, partial(ckptdiff.apply_in_place, copy_of(pair, out), pair.patch, threads=1)):
        begun += assert_state(pair, out)
        if tree(out) != want:
            ckptdiff.apply_in_place(out, pair.patch)
        assert tree(out) == want, (call, nth)
        nth += step
    assert begun, nth


def test_no_engine_loads_what_is_neither(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair, out = pairs["alike"], copy_of(pairs["alike"], tmp_path / "out")
    nth = 1
    while not (out / JOURNAL / "redo-0").exists():  # killed while the first unit is copied
        assert killed_at(nth, "pwrite", partial(ckptdiff.apply_in_place, copy_of(pair, out), pair.patch, threads=1))
        nth += 1
    assert not (out / "config.json").exists() and not list(out.glob("*.index.json"))
    for path in out.glob("*.safetensors"):
        with pytest.raises(safetensors.SafetensorError):
            safetensors.safe_open(path, "np")
    ckptdiff.apply_in_place(out, pair.patch)
    assert tree(out) == tree(pair.target)


def test_only_changed_blocks_are_written(pairs: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_sharded(out, {"model.safetensors": {"w": bf16(np.zeros((4096, 1024))), "v": bf16([1.0])}}, index=None)
    shutil.copytree(out, tmp_path / "target")
    with open(tmp_path / "target" / "model.safetensors", "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\1")
    ckptdiff.make(out, tmp_path / "target", tmp_path / "patch")
    written, real = list[int](), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: written.append(len(data)) or real(fd, data, offset))
    ckptdiff.apply_in_place(out, tmp_path / "patch")
    assert tree(out) == tree(tmp_path / "target") and sum(written) <= 2 * (1 << 21) + 1000, written


@pytest.mark.parametrize("what", ["redo", "done", "ranges", "plan"])
def test_damaged_work_is_named_and_never_finished(what: str, pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair, out, nth = pairs["alike"], tmp_path / "out", 6
    while not (out / JOURNAL / "log").exists() or b'"committed":1' not in (out / JOURNAL / "log").read_bytes():
        assert killed_at(nth, "pwrite", partial(ckptdiff.apply_in_place, copy_of(pair, out), pair.patch, threads=1))
        nth += 1
    path = {"done": out / "model-00001-of-00002.safetensors", "redo": out / JOURNAL / "redo-1"}.get(what, out / JOURNAL / what)
    data = bytearray(path.read_bytes())
    data[{"done": 5000, "redo": 100}.get(what, len(data) // 2)] ^= 1
    path.write_bytes(data)
    with pytest.raises(ckptdiff.IntegrityError, match=f"{path.name}: .*take the checkpoint from elsewhere"):
        ckptdiff.apply_in_place(out, pair.patch)
    with pytest.raises(ckptdiff.CheckpointError, match="neither the base nor the target"):
        ckptdiff.compare(out, pair.target)


def test_what_is_refused_is_named_and_left_as_it_is(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["alike"]
    out = copy_of(pair, tmp_path / "out")
    shard = out / "model-00001-of-00002.safetensors"
    os.link(shard, tmp_path / "second")
    with refused(ckptdiff.OutputError, f"{shard}: has 2 names (hard links), all of which would change: copy it, or give -o OUT", tmp_path):
        ckptdiff.apply_in_place(out, pair.patch)
    shard.unlink()
    shard.symlink_to(tmp_path / "second")
    with refused(ckptdiff.OutputError, f"{shard}: is a link to {tmp_path / 'second'}, and nothing is written through links", tmp_path):
        ckptdiff.apply_in_place(out, pair.patch)
    (tmp_path / "link").symlink_to(out)
    with refused(ckptdiff.OutputError, f"{tmp_path / 'link'}: is a link to {out}: give that, or -o OUT", tmp_path):
        ckptdiff.apply_in_place(tmp_path / "link", pair.patch)
    with refused(ckptdiff.CheckpointError, "org/name: is no path here, and --in-place changes nothing elsewhere", tmp_path):
        ckptdiff.apply_in_place("org/name", pair.patch)
    cached = copy_of(pair, tmp_path / "models--org--name" / "snapshots" / "c0ffee")
    with refused(ckptdiff.OutputError, "is in the Hub's cache, which other programs read", tmp_path):
        ckptdiff.apply_in_place(cached, pair.patch)
    other = copy_of(pairs["moved"], tmp_path / "other")
    with refused(ckptdiff.BaseMismatchError, "does not have the 2 weight files that the patch was made from", tmp_path):
        ckptdiff.apply_in_place(other, pair.patch)


def test_a_wrong_base_is_refused_before_a_byte_is_changed(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair, out = pairs["alike"], copy_of(pairs["alike"], tmp_path / "out")
    with open(out / "model-00002-of-00002.safetensors", "r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"\1\2\3")
    before = tree(out)
    with refused(ckptdiff.BaseMismatchError, "is not the base of", tmp_path):
        ckptdiff.apply_in_place(out, pair.patch)
    assert tree(out) == before
    shutil.copytree(pair.target, tmp_path / "done")
    with refused(ckptdiff.BaseMismatchError, "is already the target of", tmp_path):
        ckptdiff.apply_in_place(tmp_path / "done", pair.patch)


def test_another_patch_and_another_run_are_refused_meanwhile(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair, out = pairs["alike"], copy_of(pairs["alike"], tmp_path / "out")

    def second(what: str, done: int, total: int) -> None:
        if what == "checking the patch":
            return
        with pytest.raises(ckptdiff.OutputError, match="another run of ckptdiff apply --in-place is changing it"):
            ckptdiff.apply_in_place(out, pair.patch)
        if what == "changing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="is neither base nor target now: run the same command again to go on"):
        ckptdiff.apply_in_place(out, pair.patch, progress=second)
    with pytest.raises(ckptdiff.OutputError, match=f"is being changed by another patch, {pair.patch}: go on with that one"):
        ckptdiff.apply_in_place(out, pairs["moved"].patch)
    ckptdiff.apply_in_place(out, pair.patch)
    assert tree(out) == tree(pair.target)


def test_a_disk_without_room_is_refused_or_gone_on_with(pairs: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, out = pairs["moved"], copy_of(pairs["moved"], tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1 << 20))  # type: ignore[attr-defined]
        with refused(ckptdiff.OutputError, "bytes are needed beside it, ", tmp_path) as info:
            ckptdiff.apply_in_place(out, pair.patch)
    assert "of them for 2 weight files in which data moves, 1,048,576 are free" in str(info.value)
    pair, out = pairs["alike"], copy_of(pairs["alike"], tmp_path / "other")

    def full() -> None:
        real = os.pwrite

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            if (out / JOURNAL / "redo-1").exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data, offset)

        os.pwrite = pwrite
        with pytest.raises(ckptdiff.OutputError, match="No space left on device: it is neither base nor target now: run the same command"):
            ckptdiff.apply_in_place(out, pair.patch, threads=1)

    assert in_fork(full) == 0
    ckptdiff.apply_in_place(out, pair.patch)
    assert tree(out) == tree(pair.target)


def test_a_limit_on_files_leaves_the_base(pairs: dict[str, Pair], tmp_path: Path) -> None:
    out = copy_of(pairs["moved"], tmp_path / "out")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(ckptdiff.OutputError, match="cannot be written: File too large"):
            ckptdiff.apply_in_place(out, pairs["moved"].patch)

    assert in_fork(limited) == 0 and tree(out) == tree(pairs["moved"].base)
