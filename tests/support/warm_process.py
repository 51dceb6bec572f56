"""Commands in processes that are forked from one that has loaded the package and its kernels: this takes a third of a cold start."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.warm_kernels"])


def run_command(arguments: list[str], folder: Path, environment: Mapping[str, str], timeout: float) -> SimpleNamespace:
    """Run the command line in a process of its own; gives ``returncode``, ``stdout`` and ``stderr``.

    Raises:
        TimeoutError: it took longer than ``timeout`` seconds, and was killed.
    """
    streams = [folder / f".{name}" for name in ("stdout", "stderr")]
    child = SERVER.Process(target=_command, args=(arguments, folder, dict(environment), streams))
    child.start()
    child.join(timeout)
    if child.exitcode is None:
        child.kill()
        raise TimeoutError(f"{arguments}: not done after {timeout} s")
    stdout, stderr = (stream.read_text() for stream in streams)
    for stream in streams:
        stream.unlink()
    return SimpleNamespace(returncode=child.exitcode, stdout=stdout, stderr=stderr)


def _command(arguments: list[str], folder: Path, environment: dict[str, str], streams: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, 1):
        file = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    loaded = [name for name in ("huggingface_hub", "hf_xet") if name in sys.modules]
    assert not loaded, f"{loaded} would have read another environment"
    from ckptdiff.cli.main import main

    main(arguments)
