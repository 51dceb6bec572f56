"""Makes and applies a small patch on import, so that processes forked afterwards (``warm_process.py``) have the kernels loaded, and the
libraries that the Hub's client needs; the client itself, which reads the environment while it is imported, each of them imports anew."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import altair  # noqa: F401
import click  # noqa: F401
import rich.console  # noqa: F401

import ckptdiff
import ckptdiff.cli.main
from tests.support.checkpoints import bf16, write

with tempfile.TemporaryDirectory() as _name:
    _folder = Path(_name)
    _base = write(_folder / "base.safetensors", {"w": bf16([1.0] * 256)})
    _target = write(_folder / "target.safetensors", {"w": bf16([1.0] * 250 + [1.5] * 6)})
    for _codec in ("context", "sparse"):
        ckptdiff.make(_base, _target, _folder / _codec, codec=_codec, threads=1)
        ckptdiff.apply(_base, _folder / _codec, _folder / f"{_codec}.out", threads=1)

with contextlib.suppress(ImportError):
    import huggingface_hub.file_download
    import huggingface_hub.hf_api  # noqa: F401
for _module in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[_module]
