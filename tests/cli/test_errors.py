"""Errors as users and scripts meet them: always one JSON object, no control characters, and the true cause."""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zstandard

import ckptdiff
from ckptdiff.cli.main import main
from ckptdiff.machine import machine_error
from ckptdiff.patching import other_files, output
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import bf16, perturb, write
from tests.support.commands import CKPTDIFF, error_of, run
from tests.support.small_pair import Pair, tensors

WITH_JSON = [name for name, command in main.commands.items() if any(option.name == "json_output" for option in command.params)]
STEERING = "\x7f\x85\x9b\u061c\u200e\u200f\u202a\u202e\u2066\u2069\u2028\x1b"
"""DEL, control characters of C1, bidirectional controls, a line separator, escape."""


def test_the_commands_that_print_json() -> None:
    assert WITH_JSON == ["make", "apply", "compose", "info", "verify", "compare", "report", "overlap", "mask", "push", "pull", "warmup"]


# --- usage errors ---


WRONG = [[], ["--no-such-option"], ["--threads", "many"], ["a", "b", "c", "d", "-o"]]


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in WITH_JSON for wrong in WRONG if wrong or name != "warmup"])
def test_usage_errors_are_one_json_object(name: str, wrong: list[str]) -> None:
    """Whether they are found before ``--json`` is, or after; the text for a person is on stderr as ever."""
    for arguments in ([name, "--json", *wrong], [name, *wrong, "--json"]):
        if arguments[-2:] == ["-o", "--json"]:  # is the value of -o then
            continue
        result = run(*arguments)
        assert result.exit_code == 2, result
        error = error_of(result)
        assert error["kind"] == "usage" and error["message"] and result.stderr.endswith(f"Error: {error['message']}\n")


def test_usage_errors_of_the_library_s_callers(files: Pair) -> None:
    for arguments, text in (
        (["report", files.base, "--json"], "is not a patch: give BASE and TARGET, or a patch alone."),
        (["report", files.patch, "--json", "--atol", "1"], "--atol needs BASE too"),
        (["verify", files.patch, "--json", "--hub", "a/b", "--base", files.base], "--hub compares a checkpoint with a repo"),
        (["push", "p", "a/b@c", "--revision", "d", "--json"], "give the branch once"),
        (["make", files.base, files.target, "-o", ".", "--json"], "cannot be written to; give a new name"),
        (["compare", "a", "b", "--json", "--atol", "inf"], "expected a finite number"),
        (["nothing", "--json"], "No such command 'nothing'"),
        (["--nothing", "info", "x", "--json"], "No such option"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and error_of(result)["kind"] == "usage" and text in error_of(result)["message"], result


def test_usage_errors_print_nothing_on_stdout_where_json_is_not_asked_for(files: Pair) -> None:
    assert run("make", files.base).stdout == run("nothing").stdout == ""
    assert run("info", "--", "--json").stdout == ""  # a path of that name


def test_a_run_that_is_interrupted_prints_an_object(files: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptdiff.verbs.info.info", partial(_raise, KeyboardInterrupt()))
    result = run("info", files.patch, "--json")
    assert result.exit_code == 130 and error_of(result)["kind"] == "interrupted"


def test_stdout_that_cannot_be_written(files: Pair) -> None:
    """The error says so, and does not try to print on stdout what went wrong there."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*CKPTDIFF, "info", str(files.patch), "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3 and done.stderr == "ckptdiff: error: standard output: No space left on device\n"


# --- names that steer a terminal ---


@pytest.fixture
def evil(tmp_path: Path) -> Pair:
    """Tensors and files with names that no terminal must see; DEL and escape may not be in a path (spec 9)."""
    shown = "".join(c for c in STEERING if c not in "\x7f\x1b")
    base, target = tensors()
    names = {"a.weight": f"a{STEERING}.weight", "b.weight": f"b{STEERING}", "c": "c"}
    for folder, state, extra in (("base", base, f"x{shown}.txt"), ("target", target, f"y{shown}.py")):
        write(tmp_path / folder / f"m{shown}.safetensors", {names[name]: value for name, value in state.items()} | {extra: bf16([1.0])})
        (tmp_path / folder / extra).write_text(folder)
    return Pair(tmp_path / "base", tmp_path / "target", tmp_path / f"patch{shown}")


def test_no_output_steers_a_terminal(evil: Pair, tmp_path: Path) -> None:
    shown = evil.patch.name.removeprefix("patch")
    done = [run("make", evil.base, evil.target, "-o", evil.patch)]
    out = tmp_path / f"out{shown}"
    commands: list[list[object]] = [
        ["info", evil.patch, "--tensors"],
        ["apply", evil.base, evil.patch, "-o", out],
        ["verify", evil.patch, "--base", evil.base, "--target", evil.base],
        ["compare", evil.base, out, "--tensors"],
        ["report", evil.base, evil.target, "--tensors", "--rank", "none"],
        ["overlap", evil.target, out, "--base", evil.base, "--tensors"],
        ["mask", evil.target, "--base", evil.base, "-o", tmp_path / f"mask{shown}"],
        ["report", evil.base],
        ["make", evil.base],
        ["info", f"no{STEERING}"],
        ["info", evil.patch, f"--{STEERING}"],
        ["verify", evil.patch, "--hub", f"a{STEERING}"],
        ["pull", f"a{STEERING}", "-o", "x"],
        [f"no{STEERING}"],
    ]
    for command in commands:
        done += [run(*command), run(*command, "--json", *(["--overwrite"] if command[0] in ("apply", "mask") else []))]
    for result in done:
        assert result.exit_code in (0, 1, 2, 3) and (result.exception is None or isinstance(result.exception, SystemExit)), result
        for text in (result.stdout, result.stderr):
            assert not [c for c in text if c != "\n" and not c.isprintable()], text
        if result.stdout.startswith("{"):
            json.loads(result.stdout)
    assert done[0].exit_code == done[1].exit_code == done[3].exit_code == 0
    assert "\\u202e" in done[1].stdout and "\\u009b" in done[1].stdout and "\\u007f" in done[1].stdout
    described = json.loads(done[2].stdout)
    assert f"b{STEERING}" in [row["name"] for row in described["tensors"]], "JSON gives the very names"


def test_json_is_json_in_any_encoding(files: Pair, tmp_path: Path) -> None:
    write(tmp_path / "ü.safetensors", tensors()[0])
    command = [*CKPTDIFF, "compare", str(tmp_path / "ü.safetensors"), str(tmp_path / "nö"), "--json"]
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin"})
        assert "nö: no such file or folder" in json.loads(done.stdout.decode("ascii"))["error"]["message"]


# --- errors of this machine ---


def _raise(error: BaseException, *_: object, **__: object) -> None:
    raise error


WITHOUT_LLVM = """
import atexit, sys
sys.modules["llvmlite"] = None
lines = lambda: open("/proc/self/status")
atexit.register(lambda: print([line.split()[1] for line in lines() if line.startswith("VmPeak:")][0], file=sys.stderr))
from ckptdiff.cli.main import main
main()
"""
"""Runs a command in which LLVM's library cannot be imported, and prints the kB of address space that it took until then."""


@pytest.mark.parametrize("verb", ["make", "apply", "mask"])
def test_too_little_memory_is_not_a_fault_of_the_output(verb: str, files: Pair, tmp_path: Path) -> None:
    """Where everything but LLVM's library fits: with a little more LLVM itself would run out of memory, and end the process."""
    inputs = {"make": [files.base, files.target], "apply": [files.base, files.patch], "mask": [files.patch, "--base", files.base]}[verb]
    words = [verb, *map(str, inputs), "-o", str(tmp_path / "out"), "--json", "--threads", "1"]
    before = subprocess.run([sys.executable, "-c", WITHOUT_LLVM, *words], capture_output=True, text=True)
    assert before.returncode == 3, before
    (library,) = Path(importlib.util.find_spec("llvmlite").origin).parent.glob("binding/libllvmlite.*")  # type: ignore[union-attr, arg-type]
    most = int(before.stderr.split()[-1]) + library.stat().st_size // 2048
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (most << 10, most << 10))
    done = subprocess.run([*CKPTDIFF, *words], capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 3, done
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "resources" and "cannot be written" not in error["message"]
    assert f"{most:,} kB" in error["message"] and "(ulimit -v)" in error["message"]
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_library_that_cannot_be_loaded_while_an_output_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As llvmlite says it: an OSError without a code, after one that names the cause."""
    (tmp_path / "broken_library.py").write_text(
        "try:\n    raise OSError('libthing.so: failed to map segment from shared object')\n"
        "except OSError:\n    raise OSError('Could not find libthing.so. This could mean anything')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ckptdiff.CkptdiffError) as info, output.build_beside(tmp_path / "out"):
        import broken_library  # type: ignore[import-not-found]  # noqa: F401
    assert info.value.kind == "resources"
    assert str(info.value) == "a library cannot be loaded: libthing.so: failed to map segment from shared object"
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["broken_library.py"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "out of memory: free some, raise the limit, or give --threads 1"),
        (OSError(12, "Cannot allocate memory"), "out of memory: free some"),
        (RuntimeError("can't start new thread"), "no more threads can be started: raise the limit on processes (ulimit -u)"),
        (ImportError("libthing.so.1: cannot open shared object file"), "a library cannot be loaded: libthing.so.1: cannot open"),
        (PermissionError(13, "Permission denied", "/some/file"), "/some/file: Permission denied"),
    ],
)
def test_errors_of_the_machine_are_one_line(error: Exception, text: str, files: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptdiff.verbs.info.info", partial(_raise, error))
    result = run("info", files.patch, "--json")
    assert result.exit_code == 3 and text in error_of(result)["message"]
    assert result.stderr == f"ckptdiff: error: {error_of(result)['message']}\n"
    assert error_of(result)["kind"] == ("output" if isinstance(error, PermissionError) else "resources")


def test_a_frame_that_zstd_lacks_memory_for_is_not_called_broken(folders: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class Starved:
        eof = False

        def __init__(self, **_: object) -> None: ...
        def decompressobj(self) -> Starved:
            return self

        def decompress(self, _: bytes, **__: object) -> bytes:
            raise zstandard.ZstdError("zstd decompressor error: Allocation error : not enough memory")

    with open_patch(folders.patch) as opened:
        monkeypatch.setattr(zstandard, "ZstdDecompressor", Starved)
        other = next(file for file in opened.others if file.kind == "new")
        for read in (lambda: list(other_files.decode(opened, other, None)), lambda: ckptdiff.info(folders.patch)):
            with pytest.raises(ckptdiff.CkptdiffError, match="out of memory") as info:
                read()
            assert info.value.kind == "resources"


def test_other_errors_are_not_the_machine_s() -> None:
    for error in (ValueError("x"), OSError(28, "No space left on device"), RuntimeError("x"), ckptdiff.FormatError("x")):
        assert machine_error(error) is None


# --- paths that are not there ---


@pytest.mark.parametrize(
    "command",
    [
        "make NO target -o z", "make base NO -o z", "apply NO patch -o z", "apply base NO -o z", "apply base patch NO -o z", "info NO",
        "verify NO", "verify patch --base NO", "verify patch --target NO", "verify NO --hub a/b", "compare NO base", "compare base NO",
        "compare base target --base NO", "report NO", "report NO target", "report base NO", "report NO patch", "overlap NO",
        "overlap NO --base base", "overlap patch NO --base base", "overlap patch --base NO", "mask NO -o z", "mask NO --base base -o z",
        "mask patch --base NO -o z", "push NO me/x", "pull a/b -o z --base NO",
    ],
)  # fmt: skip
def test_a_path_that_is_not_there_is_called_so(command: str, files: Pair, tmp_path: Path) -> None:
    names = {"NO": tmp_path / "nö such", "base": files.base, "target": files.target, "patch": files.patch, "z": tmp_path / "z"}
    result = run(*(names.get(word, word) for word in command.split()))
    assert result.exit_code == 3 and result.stderr == f"ckptdiff: error: {tmp_path}/nö such: no such file or folder\n", result.stderr
    assert not (tmp_path / "z").exists()


def test_a_mistyped_path_that_could_be_an_id(tmp_path: Path) -> None:
    """It is looked up on the Hub, and the error says first that there is no such path."""
    pytest.importorskip("huggingface_hub")
    base = write(tmp_path / "base.safetensors", tensors()[0])
    code = "from ckptdiff.cli.main import main; main()"
    for more in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        command = [sys.executable, "-c", code, "overlap", "runs/patch", "--base", str(base)]
        environment = {"PATH": "/usr/bin", "HOME": str(tmp_path), **more}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 3 and done.stderr.startswith("ckptdiff: error: runs/patch: no such file or folder here, "), done.stderr


# --- chains ---


def test_siblings_given_as_a_chain(files: Pair, tmp_path: Path) -> None:
    state = {name: perturb(np.random.default_rng(4), value, 0.02) for name, value in tensors()[1].items()}
    other = write(tmp_path / "other.safetensors", state)
    ckptdiff.make(files.base, other, tmp_path / "sibling.safetensors")
    ckptdiff.make(files.target, other, tmp_path / "next.safetensors")
    for chain in (["patch", "sibling"], ["sibling", "patch"], ["patch", "next", "sibling"]):
        paths = [tmp_path / f"{name}.safetensors" for name in chain]
        result = run("apply", files.base, *paths, "-o", tmp_path / "out", "--json")
        assert result.exit_code == 3 and error_of(result)["kind"] == "wrong_base"
        text = f"{paths[-1]} and {paths[0]}: both are made from the same base, "
        assert text in error_of(result)["message"] and "apply one of them" in error_of(result)["message"]
    assert not (tmp_path / "out").exists()
