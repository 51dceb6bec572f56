"""The command line as a user meets it: processes, exit codes, streams, signals, full disks and read-only folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.cli.main import main
from tests.support.checkpoints import bf16, perturb, tree, write
from tests.support.commands import CKPTDIFF, error_of, run
from tests.support.small_pair import Pair


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CKPTDIFF, *map(str, arguments)], capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_every_command_has_help_and_h() -> None:
    names = list(main.commands)
    assert names == "make apply compose info verify compare report overlap mask chain push pull demo warmup".split()
    for arguments in ([], *([name] for name in names)):
        short, long = run(*arguments, "-h"), run(*arguments, "--help")
        assert short.exit_code == long.exit_code == 0
        assert short.stdout == long.stdout and "Usage: " in short.stdout


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == f"ckptdiff, version {ckptdiff.__version__}\n"


def test_make_prints_what_a_person_wants_to_know(folders: Pair, tmp_path: Path) -> None:
    result = run("make", folders.base, folders.target, "-o", tmp_path / "p")
    assert result.exit_code == 0 and result.stderr == ""
    assert "1 same, 2 changed, 0 added, 0 removed" in result.stdout
    assert re.search(r"elements changed  +\d+ of 2,592 \(\d+\.\d\d %\)", result.stdout)
    assert re.search(r"\d[\d.]* k?B for a target of .* times smaller", result.stdout)
    assert re.search(r"time  \d+\.\d\d s", result.stdout)
    assert "README.md, config.json, model.safetensors.index.json, tokenizer.json" in result.stdout


def test_the_whole_circle(folders: Pair, tmp_path: Path) -> None:
    assert run("apply", folders.base, folders.patch, "-o", tmp_path / "out").exit_code == 0
    assert tree(tmp_path / "out") == tree(folders.target)
    result = run("verify", folders.patch, "--base", folders.base, "--target", tmp_path / "out")
    assert result.exit_code == 0 and re.fullmatch(r"ok: patch and base and rebuilt files: \d+ checks\n", result.stdout)
    result = run("info", folders.patch, "--tensors")
    assert result.exit_code == 0 and "a.weight" in result.stdout and "context" in result.stdout
    assert tree(folders.target)["config.json"] in result.stdout
    result = run("compare", folders.target, tmp_path / "out")
    assert result.exit_code == 0 and "2,592 (100 %)" in result.stdout


def test_json_is_one_object_on_stdout(folders: Pair, tmp_path: Path) -> None:
    made = json.loads(run("make", folders.base, folders.target, "-o", tmp_path / "p", "--json").stdout)
    assert made["totals"]["delta"] == 2 and made["patch_size"] == sum(p.stat().st_size for p in (tmp_path / "p").rglob("*") if p.is_file())
    applied = json.loads(run("apply", folders.base, folders.patch, "-o", tmp_path / "out", "--json").stdout)
    assert applied["tensors"] == 3 and applied["size"] == sum(p.stat().st_size for p in folders.target.iterdir())
    described = json.loads(run("info", folders.patch, "--json").stdout)
    assert {file["path"]: file["sha256"] for file in described["files"]} == tree(folders.target)
    assert json.loads(run("verify", folders.patch, "--json").stdout)["ok"] is True
    compared = json.loads(run("compare", folders.base, folders.target, "--json").stdout)
    assert compared["same"] is False and "tensors" not in compared
    rows = json.loads(run("compare", folders.base, folders.target, "--json", "--tensors").stdout)["tensors"]
    assert sum(row["identical"] for row in rows) == compared["identical"] == 2592 - made["totals"]["changed"]


def test_exit_codes_are_those_of_the_table(files: Pair, folders: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("compare", files.base, files.base).exit_code == 0
    assert run("compare", files.base, files.target).exit_code == 1
    assert run("verify", files.patch, "--target", files.base).exit_code == 1
    assert run("verify", files.base).exit_code == 1
    assert run("make", files.base).exit_code == run("make", files.base, files.target, "-o", out, "--codec", "x").exit_code == 2
    assert run("nothing").exit_code == run("compare", files.base, files.base, "--atol", "-1").exit_code == 2
    for arguments in (["info", out], ["verify", out], ["compare", out, out], ["apply", files.base, out, "-o", tmp_path / "x"]):
        result = run(*arguments)
        assert result.exit_code == 3 and result.stdout == "" and result.stderr.startswith("ckptdiff: error: "), result


def test_a_patch_applied_twice_has_its_own_kind(files: Pair, tmp_path: Path) -> None:
    result = run("apply", files.target, files.patch, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 3 and error_of(result)["kind"] == "already_target"
    result = run("apply", files.patch, files.patch, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 3 and error_of(result)["kind"] == "checkpoint"


def test_files_that_may_run_are_listed_before_anything_is_written(folders: Pair, tmp_path: Path) -> None:
    (folders.target / "modeling.py").write_text("print('hello')")
    assert run("make", folders.base, folders.target, "-o", tmp_path / "p").exit_code == 0
    (folders.base / "model.safetensors").unlink()
    result = run("apply", folders.base, tmp_path / "p", "-o", tmp_path / "out")
    assert result.exit_code == 3 and not (tmp_path / "out").exists()
    assert "files that other tools may run, read them before you use them: modeling.py\n" in result.stderr


def test_only_gives_one_file(folders: Pair, tmp_path: Path) -> None:
    assert run("apply", folders.base, folders.patch, "-o", tmp_path / "part.safetensors", "--only", "b.*").exit_code == 0
    assert run("compare", folders.target, tmp_path / "part.safetensors", "--json").exit_code == 1
    part = json.loads(run("compare", tmp_path / "part.safetensors", folders.target, "--json").stdout)
    assert part["identical"] == part["elements"] == 30 and sorted(part["only_in_b"]) == ["a.weight", "c"]


def test_files_left_out_are_listed_and_can_be_taken(folders: Pair, tmp_path: Path) -> None:
    (folders.target / "optimizer.pt").write_bytes(b"state")
    (folders.target / ".git").mkdir()
    (folders.target / ".git" / "HEAD").write_text("ref")
    result = run("make", folders.base, folders.target, "-o", tmp_path / "p")
    assert "left out  .git/HEAD, optimizer.pt\n" in result.stdout
    result = run("make", folders.base, folders.target, "-o", tmp_path / "q", "--include", "optimizer.pt", "--exclude", "README*", "--json")
    assert "optimizer.pt" in json.loads(result.stdout)["files"] and json.loads(result.stdout)["left_out"] == [
        ".git/HEAD",
        "README.md",
    ]


def test_weights_of_a_trainer_s_checkpoints_are_left_out(folders: Pair, tmp_path: Path) -> None:
    """A trainer's output folder holds older checkpoints, whole or not, which do not belong to the model."""
    write(folders.target / "checkpoint-500" / "model.safetensors", {"a": bf16([1.0])})
    (folders.target / "checkpoint-900").mkdir()
    (folders.target / "checkpoint-900" / "model.safetensors").write_bytes(b"half written")
    made = json.loads(run("make", folders.base, folders.target, "-o", tmp_path / "p", "--json").stdout)
    assert made["left_out"] == ["checkpoint-500/model.safetensors", "checkpoint-900/model.safetensors"]
    made = json.loads(run("make", folders.base, folders.target, "-o", tmp_path / "q", "--json", "--include", "checkpoint-500/*").stdout)
    assert made["left_out"] == ["checkpoint-900/model.safetensors"] and made["totals"]["new"] == 1
    assert run("apply", folders.base, tmp_path / "q", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "checkpoint-500" / "model.safetensors").is_file()


def test_a_chain_with_weights_that_are_left_out_by_default(folders: Pair, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    state = {"exp_avg": bf16(rng.normal(0, 1, (64, 64)))}
    models = [folders.base, folders.target, shutil.copytree(folders.target, tmp_path / "third")]
    for model in models:
        write(model / "optimizer.safetensors", state)
        state = {"exp_avg": perturb(rng, state["exp_avg"], 0.01)}
    for k in (0, 1):
        made = run("make", models[k], models[k + 1], "-o", tmp_path / f"p{k}", "--include", "optimizer*", "--json")
        assert json.loads(made.stdout)["totals"]["new"] == 0
    assert run("verify", tmp_path / "p0", "--base", models[0]).exit_code == 0
    result = run("apply", models[0], tmp_path / "p0", tmp_path / "p1", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert tree(tmp_path / "out") == tree(models[2])


def test_paths_with_spaces_unicode_and_dashes(files: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "mit Leerzeichen ü \U0001f600"
    folder.mkdir()
    shutil.copy(files.base, folder / "-base 1.safetensors")
    shutil.copy(files.target, folder / "ziel ü.safetensors")
    result = process("make", "--", "-base 1.safetensors", "ziel ü.safetensors", cwd=folder)
    assert result.returncode == 2 and "Missing option" in result.stderr
    assert process("make", "-o", "der patch.safetensors", "--", "-base 1.safetensors", "ziel ü.safetensors", cwd=folder).returncode == 0
    assert process("apply", "-o", "out ü", "--", "-base 1.safetensors", "der patch.safetensors", cwd=folder).returncode == 0
    assert tree(folder / "out ü") == tree(files.target)


@pytest.mark.parametrize("tensors", [[], ["--tensors"]])
def test_a_reader_that_has_gone_has_an_exit_code_of_its_own(folders: Pair, tensors: list[str]) -> None:
    """Not that of a difference, nor that of a failed check."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        command = [*CKPTDIFF, "compare", folders.base, folders.target, *tensors]
        result = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["info", "nothing"], 3)])
def test_stdout_that_the_caller_has_closed_changes_no_exit_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ckptdiff", *arguments]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=lambda: os.close(1))
    assert result.returncode == code and "Traceback" not in result.stderr


def test_demo_keeps_its_files_where_told(tmp_path: Path) -> None:
    result = run("demo", tmp_path / "d")
    assert result.exit_code == 0, result.output
    assert "synthetic" in result.stdout and "times smaller" in result.stdout and "ok: patch and base and rebuilt files" in result.stdout
    ran = re.findall(r"^\$ ckptdiff (.*)$", result.stdout, re.MULTILINE)
    assert [line.split()[0] for line in ran] == ["make", "info", "report", "apply", "verify", "compare"]
    assert ran[2].endswith("--rank none") and "update sparsity" in result.stdout
    last = result.stdout.split(f"$ ckptdiff {ran[-1]}\n")[1]
    assert re.match(r" *verdict  identical files\n", last), "what is rebuilt is the target"
    listed = re.findall(r"^  ckptdiff (.*)$", last, re.MULTILINE)
    names = {"base": "BASE", "tuned": "TARGET", "patch": "PATCH", "rebuilt": "OUT"}
    assert listed == [" ".join(names.get(Path(word).name, word) if "/" in word else word for word in line.split()) for line in ran]
    assert tree(tmp_path / "d" / "tuned") == tree(tmp_path / "d" / "rebuilt")
    again = run("demo", tmp_path / "d")
    assert again.exit_code == 3 and "exists and is not an empty folder" in again.stderr


def test_demo_fails_where_a_command_of_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptdiff.verbs import verify

    broken = ckptdiff.VerifyResult((verify.Problem("integrity", "made up"),), 1, True, True)
    monkeypatch.setattr(verify, "verify", lambda *_, **__: broken)
    result = run("demo", tmp_path / "d")
    assert result.exit_code == 3 and "error: ckptdiff verify ended with 1" in result.stderr


def test_a_hangup_that_the_caller_ignores_stays_ignored(files: Pair) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("info", files.patch).exit_code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_progress_bars_only_where_a_person_watches(files: Pair, tmp_path: Path) -> None:
    if not shutil.which("script"):
        pytest.skip("needs the command script, from util-linux or bsdutils")
    command = " ".join([*map(repr, CKPTDIFF), "make", str(files.base), str(files.target), "-o", str(tmp_path / "p")])
    watched = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True)
    assert watched.returncode == 0 and "comparing" in watched.stdout
    assert "comparing" not in process("make", files.base, files.target, "-o", tmp_path / "q").stderr


# --- interrupts, full disks, read-only folders ---


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A pair that takes long enough to interrupt: 160 MB a file."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    layer = bf16(rng.normal(0, 0.02, (2048, 2048)))
    moved = perturb(rng, layer, 0.02)
    write(folder / "base.safetensors", {f"layer.{k}": layer for k in range(20)})
    write(folder / "target.safetensors", {f"layer.{k}": moved if k % 2 else perturb(rng, layer, 0.3) for k in range(20)})
    ckptdiff.make(folder / "base.safetensors", folder / "target.safetensors", folder / "patch.safetensors")
    yield Pair(folder / "base.safetensors", folder / "target.safetensors", folder / "patch.safetensors")
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("verb", ["make", "apply"])
def test_a_signal_in_the_middle_leaves_nothing_that_looks_finished(verb: str, signum: signal.Signals, large: Pair, tmp_path: Path) -> None:
    inputs = {"make": [large.base, large.target], "apply": [large.base, large.patch]}[verb]
    command = [*CKPTDIFF, verb, *map(str, inputs), "-o", str(tmp_path / "out.safetensors")]
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell that runs the tests with & ignores it
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.001)
    child.send_signal(signum)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode != 0, "it was over before the signal came"
    assert not (tmp_path / "out.safetensors").exists()
    if signum != signal.SIGKILL:
        assert child.returncode == 130 and stderr == "ckptdiff: interrupted; nothing unfinished was left behind\n"
        assert list(tmp_path.iterdir()) == []
    else:
        assert all(path.name.startswith(".out.safetensors.ckptdiff-") for path in tmp_path.iterdir())


def test_a_full_disk(files: Pair, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        (disk / "filler").write_bytes(b"x" * 60 * 1024)
        result = run("make", files.base, files.target, "-o", disk / "patch.safetensors", "--codec", "raw")
        again = run("apply", files.base, files.patch, "-o", disk / "out.safetensors")
        left = [path.name for path in disk.iterdir()]
    finally:
        subprocess.run(["umount", disk], check=True)
    assert result.exit_code == again.exit_code == 3
    assert "the disk is full; free some space, or write elsewhere. Nothing was left behind" in result.stderr
    assert "bytes are needed" in again.stderr or "the disk is full" in again.stderr
    assert left == ["filler"]


def test_a_read_only_folder_and_an_unreadable_base() -> None:
    powerless = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []  # root, but bound by modes
    if powerless and not shutil.which("setpriv"):
        pytest.skip("needs setpriv, from util-linux, when run as root")
    folder = Path(tempfile.mkdtemp())
    try:
        base = write(folder / "base.safetensors", {"a": bf16([1.0, 2.0])})
        target = write(folder / "target.safetensors", {"a": bf16([1.0, 3.0])})
        ckptdiff.make(base, target, folder / "patch.safetensors")
        (folder / "secret.safetensors").write_bytes(base.read_bytes())
        (folder / "secret.safetensors").chmod(0)
        folder.chmod(0o555)
        cases = [(base, "Permission denied"), (folder / "secret.safetensors", "cannot be opened: Permission denied")]
        for source, text in cases:
            arguments = ["apply", str(source), str(folder / "patch.safetensors"), "-o", str(folder / "out.safetensors")]
            result = subprocess.run([*powerless, *CKPTDIFF, *arguments], capture_output=True, text=True)
            assert result.returncode == 3 and text in result.stderr and "Traceback" not in result.stderr, result
        assert sorted(path.name for path in folder.iterdir()) == [
            "base.safetensors",
            "patch.safetensors",
            "secret.safetensors",
            "target.safetensors",
        ]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
