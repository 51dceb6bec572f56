"""Python processes without a home folder, or as another user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptdiff

NOBODY = 65534
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all,+dac_read_search"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"),
]
"""What makes a command another user's, who has no more rights than others, but to read what lies below root's closed folders."""


def can_be_another_user() -> bool:
    """Only root can, by setpriv."""
    return os.geteuid() == 0 and shutil.which("setpriv") is not None


needs_root = pytest.mark.skipif(not can_be_another_user(), reason="only root can become another user, by setpriv")


def start(
    code: str,
    *arguments: str,
    site: Path = Path(ckptdiff.__file__).parents[1],
    cache: Path | None = None,
    before: tuple[str, ...] | list[str] = (),
    **options: Any,
) -> subprocess.Popen[str]:
    """Start Python code; ``site``: where the package is, ``cache``: CKPTDIFF_CACHE_DIR, ``before``: a command before Python's."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    more = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "CKPTDIFF_CACHE_DIR": str(cache or "")}
    environment = {**kept, **more, **options.pop("env", {})}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": "/"}
    return subprocess.Popen([*before, sys.executable, "-c", code, *arguments], env=environment, **pipes, **options)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)
