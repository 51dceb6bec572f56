"""What the patches of a chain do to the files without weights (spec section 10.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.errors import BaseMismatchError, UnsupportedError
from ckptdiff.format.index import OtherFile
from ckptdiff.io.parallel import READ_BYTES
from ckptdiff.io.source import chunks
from ckptdiff.patching import other_files
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.source_folder import Frames


@dataclass(frozen=True, slots=True)
class _History:
    """Where a file comes from, and what was done to it."""

    file: OtherFile
    """As the last patch has it."""
    base_sha256: str | None
    """SHA-256 of the base's file, where that is known."""
    frames: tuple[tuple[Frames, OtherFile], ...] = ()
    """The frames that its content follows from: beginning with the last that has all of it, if one has. None: it is the base's file."""

    @property
    def is_base(self) -> bool:
        """Whether it is the base's file."""
        return not self.frames or self.file.sha256 == self.base_sha256


@dataclass(slots=True)
class OtherFiles:
    """What a chain does to the files without weights, patch by patch."""

    histories: dict[str, _History] = field(default_factory=dict)
    """The files that the last patch gives, by path."""
    in_base: set[str] = field(default_factory=set)
    """Paths of files that the base is known to have, with or without weights."""
    _before: str = ""

    def add(self, patch: OpenPatch) -> None:
        """Go on by a patch, which follows the one before.

        Raises:
            BaseMismatchError: the patch before does not give what it needs.
        """
        if not self._before:
            removed = patch.index.removed if patch.index else ()
            self.in_base = {*removed, *(f.path for f in patch.base_files), *(o.path for o in patch.others if o.kind != "new")}
        self.histories = {other.path: self._history(patch, other) for other in patch.others}
        self._before = str(patch.path)

    def _history(self, patch: OpenPatch, other: OtherFile) -> _History:
        frame = ((patch.frames, other),) if other.kind != "same" else ()
        if not self._before:
            if other.kind == "same":
                return _History(other, other.sha256)
            return _History(other, other.base_sha256, frame)
        known = self.histories.get(other.path)
        if other.kind == "new":
            return _History(other, known.base_sha256 if known else None, frame)
        wanted = other.sha256 if other.kind == "same" else other.base_sha256
        if known is None or known.file.sha256 != wanted:
            found = "no such file" if known is None else f"one with {known.file.sha256}"
            raise BaseMismatchError(
                f"{patch.path}: needs the file {other.path} with the SHA-256 {wanted}, but {self._before} gives {found}"
            )
        before = () if known.is_base else known.frames
        return _History(other, known.base_sha256, before + frame if other.kind == "delta" else before)

    def check(self) -> None:
        """Raise UnsupportedError for the first file whose content only the base can tell."""
        for history in self.histories.values():
            if not history.is_base and len(history.frames) > 1 and history.frames[0][1].kind == "delta":
                frames, other = history.frames[1]
                raise UnsupportedError(
                    f"{frames.where(other)}: is coded against what an earlier patch makes of the base's file {other.path}: "
                    "only the base can tell what it becomes: give it (--base)"
                )

    def write(self, built: Path) -> Iterator[OtherFile]:
        """Write the frames of all files into a patch folder, one by one."""
        for path, history in self.histories.items():
            if history.is_base:
                yield OtherFile(path=path, size=history.file.size, sha256=history.file.sha256, kind="same")
            elif len(history.frames) == 1:
                yield _copied(*history.frames[0], built)
            else:
                yield _encoded(history, built)


def _copied(frames: Frames, other: OtherFile, built: Path) -> OtherFile:
    """Copy a frame as it is."""
    out = built / other.stored_path
    out.parent.mkdir(parents=True, exist_ok=True)
    with frames.open_other(other) as source, open(out, "xb") as sink:
        for piece in chunks(source, READ_BYTES):
            sink.write(piece)
    return other


def _encoded(history: _History, built: Path) -> OtherFile:
    """Rebuild a file of which a patch has all, and encode it anew."""
    places = [built.with_name(f"file-{k % 2}") for k in range(len(history.frames))]
    before: Path | None = None
    for place, (frames, other) in zip(places, history.frames, strict=True):
        place.unlink(missing_ok=True)
        other_files.rebuild(frames, other, before, place)
        before = place
    encoded = other_files.encode(history.file.path, places[-1], None, built)
    for place in set(places):
        place.unlink(missing_ok=True)
    return encoded
