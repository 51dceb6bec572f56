"""The plans of making and rebuilding, run by other executors than threads: the same bytes."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint.pairing import pair as pair_of
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.io.parallel import Threads, no_progress
from ckptdiff.patching.compare_on_host import compare_on_host
from ckptdiff.patching.encode_options import EncodeOptions
from ckptdiff.patching.encode_pair import encode_pair
from ckptdiff.patching.write import PatchContents, encoded_files, write_patch
from tests.support.checkpoints import random_tensor, tree, write_sharded
from tests.support.process_pool import process_pool

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two shards: long tensors of which none, all and few units changed, for which codecs are tried; short, new and cast ones."""
    rng = np.random.default_rng(19)
    dense = rng.bytes(10 * MIB)
    sparse = np.frombuffer(rng.bytes(5 * MIB), "<u2")
    few = sparse.copy()
    few[rng.integers(len(few), size=1000)] += 1
    short, cast = rng.bytes(64), rng.standard_normal(40, np.float32)
    old = {
        "a.safetensors": {"still": ("BF16", [5 * MIB], dense), "dense": ("BF16", [5 * MIB], dense), "short": ("U8", [64], short)},
        "b.safetensors": {"sparse": ("BF16", [5, MIB // 2], sparse.tobytes()), "cast": ("F32", [40], cast.tobytes())},
    }
    new = {
        "a.safetensors": {
            "still": old["a.safetensors"]["still"],
            "dense": ("BF16", [5 * MIB], rng.bytes(10 * MIB)),
            "short": ("U8", [64], short[::-1]),
        },
        "b.safetensors": {
            "sparse": ("BF16", [5, MIB // 2], few.tobytes()),
            "cast": ("BF16", [40], (cast.view("<u4") >> 16).astype("<u2").tobytes()),
            "new": random_tensor(rng, "I8", [300]),
        },
    }
    return write_sharded(tmp_path / "base", old), write_sharded(tmp_path / "target", new)


def test_processes_do_the_jobs_and_give_the_same_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """What goes to the workers of Ray, by every verb that has them: pickled, into processes that open the files for themselves."""
    base, target = pair
    tuned, patch, again, out = (tmp_path / name for name in ("tuned", "patch", "again", "out"))
    ckptdiff.make(base, target, patch)
    shutil.copytree(target, tuned)
    with process_pool(2) as pool:
        made = ckptdiff.make(base, target, again, ray="local")
        assert tree(again) == tree(patch) and made.codecs == {"raw": 3, "context": 2}
        assert pool.submitted > 8
        ckptdiff.apply(base, patch, out, ray="local")
        assert tree(out) == tree(target)
        for update in (target, patch):
            assert ckptdiff.report(base, update, rank="all", ray="local") == ckptdiff.report(base, update, rank="all")
        assert ckptdiff.overlap([patch, tuned], base, ray="local").to_json() == ckptdiff.overlap([patch, tuned], base).to_json()
        given = {"base": base, "target": out}
        assert ckptdiff.verify(patch, **given, ray="local") == ckptdiff.verify(patch, **given)
        _flip(out / "a.safetensors")
        _flip(patch / "patch" / "b.safetensors")
        found = ckptdiff.verify(patch, **given, ray="local")
        assert found == ckptdiff.verify(patch, **given) and len(found.problems) >= 3


@pytest.mark.parametrize("place", ["base", "patch", "out"])
def test_workers_take_urls_of_this_machine_and_none_of_stores(pair: tuple[Path, Path], tmp_path: Path, place: str) -> None:
    """A URL of this machine was refused as that of a store."""
    ckptdiff.make(*pair, tmp_path / "patch")
    places = {name: f"{tmp_path}/{name}" for name in ("base", "patch", "out")}
    with process_pool(2):
        ckptdiff.apply(*{**places, place: f"file://{places[place]}"}.values(), ray="local")
        assert tree(tmp_path / "out") == tree(pair[1])
        with pytest.raises(ckptdiff.UnsupportedError) as raised:
            ckptdiff.apply(*{**places, place: "memory://there/x"}.values(), ray="local")
    what = "memory://there/x: is in a store, which workers of Ray neither read nor write"
    assert str(raised.value) == f"{what}: leave --ray out, or give a path that all machines see"


def test_no_verb_has_workers_read_a_store(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, store = pair[0], "memory://there/x"
    for call in (
        lambda: ckptdiff.make(base, store, tmp_path / "out", ray="local"),
        lambda: ckptdiff.verify(base, base=store, ray="local"),
        lambda: ckptdiff.report(base, store, ray="local"),
        lambda: ckptdiff.overlap([base, base], store, ray="local"),
    ):
        with pytest.raises(ckptdiff.CkptdiffError, match=r"memory://there/x: is in a store, which workers of Ray neither read nor write"):
            call()


def _flip(path: Path) -> None:
    """Change the last byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_errors_of_workers_are_those_of_this_process(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = pair
    ckptdiff.make(base, target, tmp_path / "patch")
    _flip(base / "a.safetensors")
    with process_pool(2):
        texts = []
        for options in ({}, {"ray": "local"}):
            with pytest.raises(ckptdiff.BaseMismatchError, match=r"is not the base of .*its tensor short has the digest") as raised:
                ckptdiff.apply(base, tmp_path / "patch", tmp_path / "out", **options)
            texts.append(str(raised.value))
        assert texts[0] == texts[1] and {path.name for path in tmp_path.iterdir()} == {"base", "target", "patch"}


@pytest.mark.parametrize("codec", [None, "context", "sparse", "raw"])
def test_the_size_of_jobs_changes_no_byte(pair: tuple[Path, Path], tmp_path: Path, codec: str | None) -> None:
    base, target = pair
    ckptdiff.make(base, target, tmp_path / "patch", codec=codec)
    for groups in (1, 2, 7):
        again = tmp_path / f"again-{groups}"
        with open_checkpoint(base, with_files=True) as old, open_checkpoint(target, with_files=True) as new:
            options = EncodeOptions(codec, compare_on_host, groups, Threads(3, groups * MIB))
            encoded = encode_pair(old, new, pair_of(old, new), options, io.BytesIO(), no_progress)
            contents = PatchContents(encoded, {}, None)
            write_patch(contents, again, encoded_files(contents, again))
        assert tree(again) == tree(tmp_path / "patch")
