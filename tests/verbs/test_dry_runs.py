"""Dry runs of ``make`` and ``apply``: what they say is what a run does, and they do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ckptdiff
from ckptdiff.cli.main import main
from ckptdiff.format.safetensors import read_header
from ckptdiff.io.parallel import Threads
from ckptdiff.io.source import LocalFile
from tests.support.checkpoints import random_tensor, tree, write_sharded

MIB = 1 << 20
PROCESS = """
import pathlib
from ckptdiff.cli.main import main
try:
    main()
finally:
    print(next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


@dataclass
class Seen:
    """What runs do."""

    jobs: int = 0
    read: int = 0
    """Bytes that jobs read of files."""
    outside: int = 0
    """Bytes that are read of tensors and payloads by anything else."""
    starts: dict[str, int] = field(default_factory=dict)
    """Where the tensors of each file begin."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Counts jobs and bytes from now on."""
    seen, inside, run, readinto = Seen(), threading.local(), Threads.__call__, LocalFile.readinto
    lock = threading.Lock()

    def counted(self: Threads, work: Callable[[Any], Any], jobs: Iterable[Any]) -> Generator[Any, None, None]:
        def noted(job: Any) -> Any:
            inside.job = True
            try:
                with lock:
                    seen.jobs += 1
                return work(job)
            finally:
                inside.job = False

        yield from run(self, noted, jobs)

    def read(self: LocalFile, offset: int, out: Any) -> None:
        with lock:
            if getattr(inside, "job", False):
                seen.read += len(out)
            elif self.name.endswith(".safetensors"):
                seen.outside += max(0, offset + len(out) - seen.starts.get(self.name, 1 << 20))
        readinto(self, offset, out)

    monkeypatch.setattr(Threads, "__call__", counted)
    monkeypatch.setattr(LocalFile, "readinto", read)
    return seen


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Shards of long, short, empty, cast, cut and longer tensors, all of which have their names."""
    rng = np.random.default_rng(3)
    long = np.frombuffer(rng.bytes(9 * MIB), "<u2")
    moved = long.copy()
    moved[rng.integers(len(long), size=5000)] += 1
    cast, table = rng.standard_normal(3 * MIB // 4, np.float32), rng.bytes(600)
    old = {
        "a.safetensors": {"long": ("BF16", [9, MIB // 2], long.tobytes()), "same": ("U8", [5 * MIB], rng.bytes(5 * MIB))},
        "b.safetensors": {"cast": ("F32", [len(cast)], cast.tobytes()), "table": ("BF16", [30, 10], table), "gone": ("U8", [3], b"abc")},
    }
    new = {
        "a.safetensors": {"long": ("BF16", [9, MIB // 2], moved.tobytes()), "same": old["a.safetensors"]["same"]},
        "b.safetensors": {
            "cast": ("BF16", [len(cast)], (cast.view("<u4") >> 16).astype("<u2").tobytes()),
            "table": ("BF16", [40, 10], table + rng.bytes(200)),
            "empty": ("F32", [0, 4], b""),
        },
    }
    return write_sharded(tmp_path / "base", old), write_sharded(tmp_path / "target", new)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("codec", [None, "raw"])
def test_jobs_and_bytes_are_those_of_the_run(pair: tuple[Path, Path], tmp_path: Path, seen: Seen, threads: int, codec: str | None) -> None:
    base, target = pair
    planned = ckptdiff.plan_make(base, target, tmp_path / "patch", codec=codec, threads=threads)
    assert seen.jobs == seen.read == 0
    assert planned.pairs.by_means == {"name": 4} and planned.pairs.new == planned.pairs.removed == 1 and not planned.pairs.sampled
    made = ckptdiff.make(base, target, tmp_path / "patch", codec=codec, threads=threads)
    # A cast base is of no use by raw, and is hashed once more
    assert planned.work.exact is False
    assert 0 < seen.jobs <= planned.work.jobs and 0 < seen.read <= planned.work.read + planned.work.hashed
    assert made.patch_size <= planned.patch_at_most and made.target_size == planned.target_size and made.files == planned.files
    seen.jobs = seen.read = 0
    applying = ckptdiff.plan_apply(base, tmp_path / "patch", tmp_path / "out", threads=threads)
    assert seen.jobs == seen.read == 0
    applied = ckptdiff.apply(base, tmp_path / "patch", tmp_path / "out", threads=threads)
    assert applying.work.exact and (seen.jobs, seen.read) == (applying.work.jobs, applying.work.read)
    assert (applied.tensors, applied.size) == (applying.work.tensors, applying.out_size == applied.size and applied.size)
    assert applied.files == (*applying.weight_files, *applying.files)


def test_a_plan_of_equal_layouts_is_exact(tmp_path: Path, seen: Seen) -> None:
    rng = np.random.default_rng(4)
    old = {f"{k}.safetensors": {f"t{k}.{i}": random_tensor(rng, "BF16", [300 + i, 1700 * (k + 1)]) for i in range(4)} for k in range(3)}
    new = {
        path: {name: (dtype, shape, bytes(reversed(data)) if name.endswith("1") else data) for name, (dtype, shape, data) in rows.items()}
        for path, rows in old.items()
    }
    base, target = write_sharded(tmp_path / "base", old), write_sharded(tmp_path / "target", new)
    planned = ckptdiff.plan_make(base, target, tmp_path / "patch")
    ckptdiff.make(base, target, tmp_path / "patch")
    assert planned.work.exact and (seen.jobs, seen.read) == (planned.work.jobs, planned.work.read + planned.work.hashed)


def test_nothing_is_read_but_headers_and_nothing_is_written(pair: tuple[Path, Path], tmp_path: Path, seen: Seen) -> None:
    base, target = pair
    ckptdiff.make(base, target, tmp_path / "patch")
    for path in tmp_path.rglob("*.safetensors"):
        file = LocalFile(path)
        seen.starts[file.name] = read_header(file).data_start
        file.close()
    before, seen.outside = tree(tmp_path), 0
    ckptdiff.plan_make(base, target, tmp_path / "other")
    assert seen.outside <= 2 * 2 * (1 << 17)  # the first bytes of a file are read together with its header's length
    ckptdiff.plan_apply(base, tmp_path / "patch", tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_chain_that_cuts_and_casts(tmp_path: Path, seen: Seen) -> None:
    """Tensors of which a later patch takes parts are built on the way, in scratch: their jobs and bytes count too."""
    rng = np.random.default_rng(6)
    fused = (rng.standard_normal(3 * MIB // 2, np.float32).view("<u4") >> 16).astype("<u2").tobytes()
    states = [
        {"m.safetensors": {"qkv": ("BF16", [1536, 1024], fused)}},
        {"m.safetensors": {"qkv": ("BF16", [1536, 1024], fused[:-4] + b"1234")}},
        {"m.safetensors": {name: ("BF16", [512, 1024], fused[k * MIB : (k + 1) * MIB - 4] + b"1234") for k, name in enumerate("qkv")}},
    ]
    paths = [write_sharded(tmp_path / str(k), state) for k, state in enumerate(states)]
    patches = [tmp_path / "one", tmp_path / "two"]
    for k, patch in enumerate(patches):
        ckptdiff.make(paths[k], paths[k + 1], patch)
    planned = ckptdiff.plan_apply(paths[0], patches, tmp_path / "out")
    seen.jobs = seen.read = 0
    ckptdiff.apply(paths[0], patches, tmp_path / "out")
    assert planned.scratch_size > 0 and (seen.jobs, seen.read) == (planned.work.jobs, planned.work.read)


def test_memory_is_within_what_the_plan_says(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = pair
    for verb, words in (("make", [target, "-o", tmp_path / "patch"]), ("apply", [tmp_path / "patch", "-o", tmp_path / "out"])):
        command = [sys.executable, "-c", PROCESS, verb, str(base), *map(str, words)]
        plan = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        assert json.loads(plan)["memory"] / 3 < 1024 * int(found) < json.loads(plan)["memory"]


def test_what_a_dry_run_refuses(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = map(str, pair)
    run = CliRunner().invoke(main, ["make", base, target, "-o", str(tmp_path / "p"), "--dry-run", "--report"])
    assert run.exit_code == 2 and "--report does not go with --dry-run" in run.stderr
    run = CliRunner().invoke(main, ["make", "org/name", target, "-o", str(tmp_path / "p"), "--dry-run"])
    assert run.exit_code == 3 and "org/name: a dry run fetches nothing from the Hub" in run.stderr
    (existing := tmp_path / "existing").mkdir()
    with pytest.raises(ckptdiff.OutputError, match="exists"):
        ckptdiff.plan_make(base, target, existing)
    with pytest.raises(ckptdiff.FormatError, match="1 to 64 patches"):
        ckptdiff.plan_apply(base, [target] * 65, tmp_path / "out")
    with pytest.raises(ckptdiff.CheckpointError, match="nothing of"):
        other = write_sharded(tmp_path / "other", {"x.safetensors": {"z": random_tensor(np.random.default_rng(1), "F32", [70_000])}})
        ckptdiff.plan_make(base, other, tmp_path / "p")


def test_the_text_of_a_plan(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = map(str, pair)
    text = CliRunner().invoke(main, ["make", base, target, "-o", str(tmp_path / "p"), "--dry-run", "--threads", "2"]).stdout
    for line in ("4 by name, 1 without a base, 1 removed", "headers alone", "on 2 threads", "not written", "free"):
        assert line in text
    ckptdiff.make(base, target, tmp_path / "p")
    text = CliRunner().invoke(main, ["apply", base, str(tmp_path / "p"), "-o", str(tmp_path / "out"), "--dry-run"]).stdout
    assert "1 same" in text and "neither the base's content nor payloads are checked" in text
