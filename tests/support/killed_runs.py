"""What a killed run leaves beside its output."""

from __future__ import annotations

from pathlib import Path

WORK = ".out.ckptdiff-abcdefgh"


def left_by_a_killed_run(parent: Path, name: str = WORK, **content: str) -> Path:
    """A work folder whose run is gone, as :mod:`ckptdiff.io.leftovers` says what it holds."""
    folder = parent / name
    folder.mkdir(mode=0o700)
    (folder / "ckptdiff-work").touch()
    for member, text in content.items():
        (folder / member).mkdir()
        (folder / member / "file").write_text(text)
    return folder


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("base", "target", "patch"))
