"""The plans of making and rebuilding, run by other executors than threads: the same bytes."""

from __future__ import annotations

import io
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint.pairing import pair as pair_of
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.io.parallel import Threads, no_progress
from ckptdiff.patching.compare_on_host import compare_on_host
from ckptdiff.patching.encode_options import EncodeOptions
from ckptdiff.patching.encode_pair import encode_pair
from ckptdiff.patching.encode_plan import EncodeJob
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import Rebuilder, open_base
from ckptdiff.patching.target_files import outputs_of, write_files, write_others
from ckptdiff.patching.write import PatchContents, encoded_files, write_patch
from tests.support.checkpoints import random_tensor, tree, write_sharded

MIB = 1 << 20


class Processes:
    """An executor that runs each job in a fresh process, in a shuffled order."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments, self.ran = name, arguments, list[Any]()

    def __call__(self, work: Callable[[Any], Any], jobs: Iterable[Any]) -> Generator[Any, None, None]:
        plan = list(jobs)
        order = random.Random(len(plan)).sample(range(len(plan)), len(plan))
        results = {number: self.run(plan[number]) for number in order}
        self.ran += [plan[number] for number in order]
        yield from (results[number] for number in range(len(plan)))

    def run(self, job: Any) -> Any:
        command = [sys.executable, "-m", "tests.support.job_process"]
        given = pickle.dumps((self.name, (*self.arguments, job)))
        done = subprocess.run(command, input=given, capture_output=True, cwd=Path(__file__).resolve().parents[2])
        assert done.returncode == 0, done.stderr.decode()
        return pickle.loads(done.stdout)


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


def test_jobs_in_fresh_processes_shuffled_give_the_same_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = pair
    ckptdiff.make(base, target, tmp_path / "patch")
    with open_checkpoint(base, with_files=True) as old, open_checkpoint(target, with_files=True) as new:
        processes = Processes("encode", base, target)
        encoded = encode_pair(old, new, pair_of(old, new), EncodeOptions(None, compare_on_host, 1, processes), io.BytesIO(), no_progress)
        contents = PatchContents(encoded, {}, None)
        write_patch(contents, tmp_path / "again", encoded_files(contents, tmp_path / "again"))
    assert tree(tmp_path / "again") == tree(tmp_path / "patch")
    encoding = [job for job in processes.ran if isinstance(job, EncodeJob)]
    codecs = {job.target[1]: job.codec for job in encoding if job.codec}
    assert codecs == {"dense": "raw", "new": "raw", "still": "context"} and len(encoding) == 16

    with open_patch(tmp_path / "patch") as patch, open_base(base, [patch]) as old:
        rebuilder = Rebuilder(old, [patch], Processes("rebuild", base, tmp_path / "patch", tmp_path / "out"))
        write_files(rebuilder, tmp_path / "out", outputs_of(rebuilder), no_progress)
        write_others(rebuilder, tmp_path / "out", tmp_path / "scratch")
    assert tree(tmp_path / "out") == tree(target)


@pytest.mark.parametrize("groups", [1, 2, 7])
@pytest.mark.parametrize("codec", [None, "context", "sparse", "raw"])
def test_the_size_of_jobs_changes_no_byte(pair: tuple[Path, Path], tmp_path: Path, groups: int, codec: str | None) -> None:
    base, target = pair
    ckptdiff.make(base, target, tmp_path / "patch", codec=codec)
    with open_checkpoint(base, with_files=True) as old, open_checkpoint(target, with_files=True) as new:
        options = EncodeOptions(codec, compare_on_host, groups, Threads(3, groups * MIB))
        encoded = encode_pair(old, new, pair_of(old, new), options, io.BytesIO(), no_progress)
        contents = PatchContents(encoded, {}, None)
        write_patch(contents, tmp_path / "again", encoded_files(contents, tmp_path / "again"))
    assert tree(tmp_path / "again") == tree(tmp_path / "patch")
