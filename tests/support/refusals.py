"""Expect a refusal that names its cause in one line and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.format.index import Index, OtherFile


def reseal(patch: Path, change: Callable[[OtherFile], OtherFile]) -> None:
    """Change the entries of other files in a patch folder's index, and make its digest right again."""
    path = patch / "ckptdiff.json"
    index = Index.from_bytes(path.read_bytes(), "index")
    path.write_bytes(replace(index, files=tuple(map(change, index.files))).to_bytes())


@contextmanager
def refused(
    error: type[ckptdiff.CkptdiffError], text: str, folder: Path, kind: str | None = None
) -> Iterator[pytest.ExceptionInfo[ckptdiff.CkptdiffError]]:
    """Expect an error whose message holds ``text``, and a folder that is as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(error) as info:
        yield info
    assert text in str(info.value), str(info.value)
    assert kind is None or info.value.kind == kind
    assert "\n" not in str(info.value)
    assert sorted(folder.rglob("*")) == before
