"""Killed runs of ``make`` and ``apply``: the same command goes on after the units that are finished, and trusts nothing that it finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.codecs import CODECS
from ckptdiff.io import unit_log
from ckptdiff.units import byte_size
from tests.support.checkpoints import bf16, perturb, tree, write_sharded
from tests.support.killed_calls import killed_at
from tests.support.kills import default_signals
from tests.support.process_pool import process_pool
from tests.support.resumed_kills import START
from tests.support.small_pair import Pair

UNIT = 1 << 21
SHAPE = (1536, 1024)
"""A block and a half, as BF16."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two shards with long tensors, of which codecs are tried; short ones; one of another name; a new one."""
    folder, rng = tmp_path_factory.mktemp("a pair"), np.random.default_rng(5)
    base = {f"layer.{k}": bf16(rng.normal(0, 0.02, SHAPE)) for k in range(4)}
    base |= {f"short.{k}": bf16(rng.normal(0, 0.02, (64, 64))) for k in range(4)} | {"last": bf16([0.5] * 7)}
    target = {name: perturb(rng, value, 0.05) if name[-1] in "0123" else value for name, value in base.items()}
    target["renamed"] = target.pop("last")
    target["new"] = bf16(rng.normal(0, 1, SHAPE))
    for side, tensors in (("base", base), ("target", target)):
        files = {f"model-{k + 1:05}-of-00002.safetensors": dict(list(tensors.items())[k::2]) for k in range(2)}
        write_sharded(folder / side, files)
        (folder / side / "config.json").write_text(json.dumps({"side": side}))
    ckptdiff.make(folder / "base", folder / "target", folder / "patch")
    return Pair(folder / "base", folder / "target", folder / "patch")


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_log, "UNIT_BYTES", UNIT)


Verb = Callable[..., object]


def verb_of(name: str, pair: Pair) -> tuple[Verb, dict[str, str]]:
    """A verb with its inputs, to be given the output, and the tree that it gives."""
    if name == "make":
        return partial(ckptdiff.make, pair.base, pair.target), tree(pair.patch)
    return partial(ckptdiff.apply, pair.base, pair.patch), tree(pair.target)


def work_in(folder: Path) -> Path | None:
    """The work folder of ``out``."""
    return next(folder.glob(".out.ckptdiff-*"), None)


def kill_with_units(verb: Verb, folder: Path, units: int = 3) -> Path:
    """Kill a run that has finished so many units; the work folder that it leaves."""
    nth = 2
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        assert killed_at(nth, "fsync", partial(verb, folder / "out", threads=1))
        work = work_in(folder)
        if work is not None and (work / "log").read_bytes().count(b'"done":') >= units:
            return work
        nth += 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["make", "apply"])
def test_killed_at_any_flush_it_goes_on(name: str, pair: Pair, tmp_path: Path) -> None:
    """Through several kills of one output; each run goes further."""
    verb, want = verb_of(name, pair)
    nth = 4
    while killed_at(nth, "fsync", partial(verb, tmp_path / "out", threads=1)):
        assert (tmp_path / "out").exists() or len(os.listdir(tmp_path)) == 1
        nth += 2  # what comes after the last unit has several flushes, too
    assert nth > 8
    assert tree(tmp_path / "out") == want and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["make", "apply"])
def test_finished_units_are_not_done_again(name: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, want = verb_of(name, pair)
    work = kill_with_units(verb, tmp_path / "x")
    units, jobs, notes = (work / "log").read_bytes().count(b'"done":'), [0], list[str]()
    counted = {"make": "pack", "apply": "unpack"}[name]
    for codec in CODECS.values():
        real = getattr(codec, counted)
        monkeypatch.setattr(codec, counted, lambda *given, real=real: (jobs.__setitem__(0, jobs[0] + 1), real(*given))[1])
    verb(tmp_path / "x" / "out", threads=2, noted=notes.append)
    resumed, jobs[0] = jobs[0], 0
    verb(tmp_path / "again", threads=2)
    assert resumed < jobs[0] and units >= 3
    assert notes == [f"going on after the {byte_size(units * UNIT)} that an earlier run had finished (--fresh starts over)"]
    assert tree(tmp_path / "x" / "out") == want == tree(tmp_path / "again") and os.listdir(tmp_path / "x") == ["out"]


@pytest.mark.parametrize("name", ["make", "apply"])
@pytest.mark.parametrize("what", ["data", "log", "torn log", "first line", "no data"])
def test_damaged_work_is_done_again(what: str, name: str, pair: Pair, tmp_path: Path) -> None:
    verb, want = verb_of(name, pair)
    work = kill_with_units(verb, tmp_path / "x")
    data = work / "spool" if name == "make" else work / "result" / "model-00001-of-00002.safetensors"
    path = data if "data" in what else work / "log"
    content = bytearray(path.read_bytes())
    if what == "no data":
        path.unlink()
    else:
        content[{"log": len(content) * 2 // 3, "first line": 40}.get(what, 5000 % len(content))] ^= 4
        path.write_bytes(content[: len(content) - (7 if what == "torn log" else 0)])
    notes = list[str]()
    verb(tmp_path / "x" / "out", noted=notes.append)
    assert tree(tmp_path / "x" / "out") == want and os.listdir(tmp_path / "x") == ["out"]
    assert "data" not in what or "some of the unfinished work of an earlier run is damaged, and is done again" in notes


@pytest.mark.parametrize("name", ["make", "apply"])
def test_work_of_other_inputs_or_options_is_removed_and_said(name: str, pair: Pair, tmp_path: Path) -> None:
    mine = Pair(*(Path(shutil.copytree(path, tmp_path / path.name)) for path in (pair.base, pair.target, pair.patch)))
    verb, want = verb_of(name, mine)
    left = kill_with_units(verb, tmp_path / "x")
    shutil.copytree(left, tmp_path / "kept")

    def again(wanted: str, **options: object) -> None:
        shutil.rmtree(tmp_path / "x")
        (tmp_path / "x").mkdir()
        shutil.copytree(tmp_path / "kept", left)
        notes = list[str]()
        verb(tmp_path / "x" / "out", noted=notes.append, **options)
        assert wanted in " ".join(notes) if wanted else notes == []
        assert os.listdir(tmp_path / "x") == ["out"]

    removed = "unfinished work of an earlier run was removed, as it is of another {}: starting over"
    again("going on after")
    again("", fresh=True)
    again(removed.format("options"), **({"only": ["layer.*"]} if name == "apply" else {"codec": "sparse"}))
    os.utime(mine.base / "model-00001-of-00002.safetensors")
    again(removed.format("base"))
    assert tree(tmp_path / "x" / "out") == want


def test_a_forced_codec_that_drops_what_does_not_change(pair: Pair, tmp_path: Path) -> None:
    verb = partial(ckptdiff.make, pair.base, pair.base, codec="raw")
    verb(tmp_path / "want")
    kill_with_units(verb, tmp_path / "x", 2)
    verb(tmp_path / "x" / "out")
    assert tree(tmp_path / "x" / "out") == tree(tmp_path / "want")


def test_a_chain_goes_on(pair: Pair, tmp_path: Path) -> None:
    ckptdiff.make(pair.target, pair.base, tmp_path / "back")
    verb = partial(ckptdiff.apply, pair.base, [pair.patch, tmp_path / "back"])
    kill_with_units(verb, tmp_path / "x", 2)
    verb(tmp_path / "x" / "out")
    assert tree(tmp_path / "x" / "out") == tree(pair.base)


def test_a_second_run_takes_no_work_that_is_under_way(pair: Pair, tmp_path: Path) -> None:
    verb, want = verb_of("apply", pair)
    kill_with_units(verb, tmp_path / "x")
    other = list[str]()

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "rebuilding" and not other:
            other.append("started")
            verb(tmp_path / "x" / "out", noted=other.append)

    with pytest.raises(ckptdiff.OutputError, match="out: was created while the output was built, and was left as it is; run again"):
        verb(tmp_path / "x" / "out", progress=meanwhile)
    assert other == ["started"]
    assert tree(tmp_path / "x" / "out") == want and os.listdir(tmp_path / "x") == ["out"]


def test_a_wrong_base_removes_what_was_finished(pair: Pair, tmp_path: Path) -> None:
    base = Path(shutil.copytree(pair.base, tmp_path / "base"))
    with open(base / "model-00002-of-00002.safetensors", "r+b") as file:
        file.seek(-50, os.SEEK_END)
        file.write(b"\1\2\3\4")
    (tmp_path / "x").mkdir()
    with pytest.raises(ckptdiff.BaseMismatchError):
        ckptdiff.apply(base, pair.patch, tmp_path / "x" / "out")
    assert not os.listdir(tmp_path / "x")


@pytest.mark.parametrize("name", ["make", "apply"])
def test_an_interrupt_tells_what_an_earlier_run_left(name: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything was done anew: it said that nothing unfinished was left behind."""
    verb, _ = verb_of(name, pair)
    work = kill_with_units(verb, tmp_path)
    module = sys.modules[f"ckptdiff.verbs.{name}"]

    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_destination", interrupted)
    with pytest.raises(KeyboardInterrupt) as told:
        verb(tmp_path / "out")
    text = "what an earlier run has finished is kept: run the same command again to go on, with --fresh to start over; to drop it: rm -r "
    assert str(told.value) == f"{text}{work}"
    shutil.rmtree(work)
    with pytest.raises(KeyboardInterrupt) as told:
        verb(tmp_path / "out")
    assert not str(told.value)


def test_workers_check_what_was_finished(pair: Pair, tmp_path: Path) -> None:
    """All of it at once: unit by unit, all but one of them would wait."""
    kill_with_units(partial(ckptdiff.apply, pair.base, pair.patch), tmp_path, 4)
    notes = list[str]()
    with process_pool(2) as pool:
        ckptdiff.apply(pair.base, pair.patch, tmp_path / "out", ray="local", noted=notes.append)
    assert "going on after the " in notes[0] and tree(tmp_path / "out") == tree(pair.target) and pool.submitted


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "kept"), [(UNIT, True), (1 << 26, False)])
def test_an_interrupt_keeps_finished_units_and_says_so(unit: int, kept: bool, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "an out"
    code = START.replace("main()", "")
    code += "from ckptdiff.patching.target_files import write_others as real\nfrom ckptdiff.verbs import apply\nimport os, signal\n"
    code += "apply.write_others = lambda *given: os.kill(os.getpid(), signal.SIGTERM) or real(*given)\nmain()\n"
    command = [sys.executable, "-c", code, str(unit), "apply", str(pair.base), str(pair.patch), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=default_signals)
    assert done.returncode == 130 and done.stderr.startswith("ckptdiff: interrupted; "), done
    work = next(tmp_path.glob(".an out.ckptdiff-*"), None)
    if not kept:
        assert work is None and done.stderr.endswith("nothing unfinished was left behind\n")
        return
    assert "are finished and kept: run the same command again to go on, " in done.stderr and f"rm -r '{work}'" in done.stderr
    notes = list[str]()
    ckptdiff.apply(pair.base, pair.patch, out, noted=notes.append)
    assert "going on after" in notes[0] and tree(out) == tree(pair.target) and os.listdir(tmp_path) == ["an out"]
