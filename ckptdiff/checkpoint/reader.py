"""Checkpoints opened: the files of a folder, or of a repo on the Hub, that belong to one (spec 3.1)."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path, PurePosixPath

from ckptdiff.checkpoint.contents import Checkpoint, WeightFile
from ckptdiff.checkpoint.dcp import open_dcp
from ckptdiff.checkpoint.dcp_metadata import is_dcp_folder, is_dcp_part
from ckptdiff.checkpoint.other_formats import CONVERTERS, other_formats, refuse_excluded, refuse_without_safetensors
from ckptdiff.checkpoint.recognition import is_patch_folder, is_patch_repo, patch_error
from ckptdiff.checkpoint.scopes import Scopes, is_index, possible_scopes, scope_of_name, scopes_of, scopes_of_recorded
from ckptdiff.checkpoint.selection import Selection, exclude_option, matches, select
from ckptdiff.errors import CheckpointError, CkptdiffError
from ckptdiff.format.index import INDEX_NAME
from ckptdiff.format.patch_file import is_patch_header
from ckptdiff.format.safetensors import UnusualHeaderError, read_header
from ckptdiff.hub.ids import HubId, parse_id
from ckptdiff.hub.repo import cached, download, open_repo
from ckptdiff.hub.repo_store import RepoStore
from ckptdiff.io.folder import Listing, list_folder, list_store
from ckptdiff.io.in_place import check_whole
from ckptdiff.io.leftovers import if_gone
from ckptdiff.io.places import Place, is_file, is_there, open_file, place_of, size_of
from ckptdiff.io.store_path import StorePath


@dataclass(frozen=True, slots=True)
class RecordedBase:
    """What a patch records of its base."""

    weights: Mapping[str, int]
    """Size of each weight file in bytes, by path."""
    scopes: Collection[str] = ()
    """The scopes that the patch needs."""
    others: Collection[str] = ()
    """Paths of the other files that it needs."""


@contextmanager
def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    needs_weights: bool = True,
    with_files: bool = False,
    selection: Selection | None = None,
    recorded: RecordedBase | None = None,
    by_ranges: bool = False,
) -> Iterator[Checkpoint]:
    """Open one safetensors file, or a folder of them with or without index, here or on the Hub, and read its headers.

    A local folder without such files that torch.distributed.checkpoint (DCP) wrote is opened as one file of the tensors of its model.

    Args:
        path: a file, a folder, the URL of an object or of the objects below it, or an id on the Hub.
        needs_weights: whether a checkpoint without weight files is refused.
        with_files: whether files without weights are needed too.
        selection: which files belong to it; None if the caller has no such options, which messages then do not advise. Weight files and
            indexes may be links out of the folder in any case.
        recorded: what a patch records of its base. Only these files are opened if they all exist with these sizes; otherwise (a base may
            be sharded differently) the whole checkpoint is.
        by_ranges: of a checkpoint on the Hub that is not in the cache, read only the ranges that are asked for, instead of fetching files.

    Raises:
        CheckpointError: it does not exist, cannot be read, has no safetensors weights, lacks a shard, has a broken header, or has a link
            out of its folder that ``selection`` does not allow.
        HubError: it cannot be fetched. StoreError: its store cannot be read.
    """
    hub_id = parse_id(path)
    opener = _Opener(needs_weights, with_files, selection or Selection(), selection is not None, recorded or RecordedBase({}), by_ranges)
    checkpoint = opener.read(place_of(path)) if hub_id is None else opener.fetch(hub_id)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


@dataclass(frozen=True, slots=True)
class _Opener:
    """The steps of :func:`open_checkpoint`, with its arguments."""

    needs_weights: bool
    with_files: bool
    selection: Selection
    can_exclude: bool
    recorded: RecordedBase
    by_ranges: bool

    # --- on this machine, and in stores ---

    def read(self, path: Place) -> Checkpoint:
        """Open a file or folder."""
        if isinstance(path, StorePath):
            listing = list_store(path)
            return self._read_file(listing.files[""]) if "" in listing.files else self._read_listed(path, listing)
        check_whole(path)
        try:
            if os.path.isdir(path):
                return self._read_folder(path)
            if os.path.isfile(path):
                return self._read_file(path)
        except OSError as error:
            raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
        raise CheckpointError(f"{path}: no such file or folder{if_gone(path)}")

    def _read_file(self, path: Place) -> Checkpoint:
        refuse_excluded(path, [path.name], self.selection.exclude)
        try:
            return _open({path.name: path}, Scopes({path.name: scope_of_name(path.name)}), path, {}, is_file=True)
        except CheckpointError:
            if path.suffix in CONVERTERS:
                refuse_without_safetensors(path, [path.name], (), can_include=False)
            raise

    def _read_folder(self, path: Path) -> Checkpoint:
        _refuse_hub_root(path)
        if os.path.lexists(path / INDEX_NAME):
            raise patch_error(path)
        sizes = {name: file.stat().st_size for name in self.recorded.weights if os.path.isfile(file := path / name)}
        if self._has_recorded(sizes) and not self.with_files:
            return self._open_recorded(path, _indexes_above(path, sizes))
        return self._read_listed(path, list_folder(path, follow_links=self.selection.follow_links))

    def _read_listed(self, path: Place, listing: Listing) -> Checkpoint:
        """Open a folder whose files are listed."""
        found = {name: listing.files[name] for name in self.recorded.weights if name in listing.files}
        sizes = {name: size_of(place) for name, place in found.items() if is_file(place)}
        chosen, out = self._select([*listing.files, *(name for name in listing.outside if name.endswith("/"))])
        if is_patch_folder({name: listing.files[name] for name in chosen if name in listing.files}):
            raise patch_error(path)
        left_out = set(out)
        kept = self._without_links(path, [name for name in chosen if self._is_wanted(listing.again.get(name), name, left_out)], listing)
        files = {name: file for name, file in listing.files.items() if name in kept or name not in listing.outside}
        if self._has_recorded(sizes):
            return self._open_recorded(path, [name for name in files if is_index(name)], kept, files)
        for name in kept:
            self._check_regular(files[name], name)
        checkpoint = self._open_files(path, files, kept)
        checkpoint.followed = _followed(listing, kept)
        gone = {*listing.files, *listing.outside, *listing.skipped} - set(kept) - set(checkpoint.followed)
        if checkpoint.is_dcp:
            gone = set(filterfalse(is_dcp_part, gone))
        checkpoint.left_out = tuple(sorted(gone, key=str.encode))
        return checkpoint

    def _is_wanted(self, real: str | None, name: str, left_out: Collection[str]) -> bool:
        """Whether a file that a link within the checkpoint leads to is taken: not if the file itself, at ``real``, is left out."""
        return real not in left_out or matches(name, self.selection.include)

    def _without_links(self, path: Place, kept: Iterable[str], listing: Listing) -> dict[str, None]:
        """The kept paths, without links out of the folder that are not followed.

        A caller without options to select files stores none of them in a patch, and may follow links to files.

        Raises:
            CheckpointError: such a link leads to a file that is needed, and the caller has options to leave it out or to follow it.
        """
        taken, refused = dict[str, None](), []
        for name in kept:
            allowed = name not in listing.outside or _is_weights(name) or self.selection.follow_links or not self.can_exclude
            if name.endswith("/"):
                if not self.selection.follow_links:
                    refused.append(name)  # it may hold weights
            elif allowed or (self.with_files and not is_there(listing.files[name])):
                taken[name] = None
            elif self.with_files:
                refused.append(name)
        if refused and self.can_exclude:
            first, more = refused[0], f" (and {len(refused) - 1} more links)" if len(refused) > 1 else ""
            raise CheckpointError(
                f"{path / first}: a link out of the checkpoint, to {listing.outside[first]}{more}: "
                f"leave it out with {exclude_option(*refused[:3])}, or take what it leads to with --follow-links"
            )
        return taken

    def _check_regular(self, file: Place, name: str) -> None:
        """Raise CheckpointError if a file that is needed is a broken link, or a device or pipe."""
        if (self.with_files or _is_weights(name)) and not is_file(file):
            what = "a link to a file that does not exist" if os.path.islink(file) else "not a regular file"
            way_on = f", or leave it out with {exclude_option(name)}" if self.can_exclude else ""
            raise CheckpointError(f"{file}: {what}; restore it or remove it{way_on}")

    # --- on the Hub ---

    def fetch(self, hub_id: HubId) -> Checkpoint:
        """Fetch the files that belong to a checkpoint on the Hub into its cache, unless they are read by ranges, and open them."""
        repo = open_repo(hub_id)
        if is_patch_repo(repo):
            raise patch_error(str(hub_id))
        kept, left_out = self._select(repo.files)
        sizes = {name: repo.files[name].size for name in self.recorded.weights if name in repo.files}
        whole = not self._has_recorded(sizes)
        weights = [name for name in kept if _is_weights(name)] if whole else [*sizes, *filter(is_index, repo.files)]
        others = {name for name in self.recorded.others if name in repo.files}
        if self.with_files:
            others |= {name for name in set(kept) - set(other_formats(kept)) if not _is_weights(name)}
            others |= {name for name in kept if matches(name, self.selection.include)}
        names = [name for name in repo.files if name in weights or name in others]
        if self.needs_weights and not any(name.endswith(".safetensors") for name in names):
            refuse_without_safetensors(hub_id, list(repo.files), left_out, self.can_exclude, self.selection.exclude)
        folder: Place = cached(repo, names) or StorePath(RepoStore(repo)) if self.by_ranges else download(repo, names)
        if repo.is_file:
            checkpoint = self._read_file(folder / names[0])
        elif whole:
            checkpoint = self._open_files(folder, {name: folder / name for name in names}, names)
        else:
            checkpoint = self._open_recorded(folder, [name for name in names if is_index(name)], others)
        checkpoint.left_out, checkpoint.origin = tuple(name for name in repo.files if name not in names), repo.pinned
        return checkpoint

    # --- in both places ---

    def _select(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Split paths as :func:`select` does, but take the weight files of scopes that the patch needs: ``make`` may have been told to."""
        names, scopes = list(names), self.recorded.scopes
        named = [glob.escape(name) for name in names if name.endswith(".safetensors") and not possible_scopes(name).isdisjoint(scopes)]
        return select(names, [*self.selection.include, *named], self.selection.exclude)

    def _has_recorded(self, sizes: Mapping[str, int]) -> bool:
        """Whether all weight files that the patch records exist with these sizes."""
        return bool(sizes) and sizes == self.recorded.weights

    def _open_recorded(
        self, path: Place, indexes: Iterable[str], others: Iterable[str] = (), listed: Mapping[str, Place] | None = None
    ) -> Checkpoint:
        """Open just the weight files that the patch records; ``listed``: where files are, of those that were listed."""

        def places(names: Iterable[str]) -> dict[str, Place]:
            return {name: (listed or {}).get(name) or path / name for name in names}

        weights = places(self.recorded.weights)
        scopes = scopes_of_recorded(weights, places(indexes), self.recorded.scopes)
        names = [name for name in (*others, *self.recorded.others) if not name.endswith(".safetensors")]
        return _open(weights, scopes, path, places(names))

    def _open_files(self, path: Place, files: Mapping[str, Place], kept: Iterable[str]) -> Checkpoint:
        """Open the weight files among the kept ones, or, where there are none, what torch.distributed.checkpoint wrote."""
        weights = {name: files[name] for name in kept if name.endswith(".safetensors")}
        if not weights and isinstance(path, Path) and is_dcp_folder(path):
            file, left_out = open_dcp(path)
            others = {name: other for name, other in files.items() if not is_dcp_part(name)}
            return Checkpoint(path, False, [file], others, is_dcp=True, left_out_tensors=tuple(left_out))
        if not weights and self.needs_weights:
            refuse_without_safetensors(path, sorted(files), set(files) - set(kept), self.can_exclude, self.selection.exclude)
        indexes = {name: file for name, file in files.items() if is_index(name)}
        used = {name: indexes.pop(name) for name in kept if name in indexes}
        scopes = scopes_of(weights, used, self.can_exclude, unused=indexes)
        others = {name: file for name, file in files.items() if not name.endswith(".safetensors")}
        others |= {name: path / name for name in self.recorded.others if name not in others}
        return _open(weights, scopes, path, others)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or is_index(name)


def _indexes_above(path: Path, weights: Iterable[str]) -> list[str]:
    """Paths of the indexes that can list these weight files: those in their folders, and in the folders above."""
    folders = {folder.as_posix() for name in weights for folder in PurePosixPath(name).parents}
    names = (f"{folder}/{found}" if folder != "." else found for folder in sorted(folders) for found in os.listdir(path / folder))
    return sorted((name for name in names if is_index(name)), key=os.fsencode)


def _followed(listing: Listing, kept: Collection[str]) -> dict[str, Place]:
    """Where links out of the folder lead, of those whose files are kept; a link to a folder counts once."""
    folders = tuple(name for name in listing.outside if name.endswith("/") and any(other.startswith(name) for other in kept))
    files = (name for name in listing.outside if name in kept and not name.startswith(folders))
    return {name: listing.outside[name] for name in sorted((*folders, *files), key=str.encode)}


def _refuse_hub_root(path: Path) -> None:
    """Raise CheckpointError for a folder of the Hub's cache that holds several snapshots of a repo."""
    if (path / "blobs").is_dir() and (path / "snapshots").is_dir():
        snapshots = sorted(p.name for p in (path / "snapshots").iterdir())
        raise CheckpointError(f"{path}: is a repo of the Hub cache; give one of its snapshots: {', '.join(snapshots[:5])}")


REWRITE = (
    "from safetensors.torch import load_file, save_file; "
    "save_file({{name or 'unnamed': tensor for name, tensor in load_file({0!r}).items()}}, {1!r}, metadata={{'format': 'pt'}})"
)
"""How to write a file again with a header as the safetensors library writes it, in Python."""


def _open(weights: Mapping[str, Place], scopes: Scopes, path: Place, others: dict[str, Place], is_file: bool = False) -> Checkpoint:
    """A checkpoint of these weight files and others."""
    return Checkpoint(path, is_file, _open_weights(weights, scopes.of_file), others, weight_maps=scopes.weight_maps)


def _open_weights(files: Mapping[str, Place], scopes: dict[str, str]) -> list[WeightFile]:
    """Open weight files and read their headers; after an error none stays open."""
    opened: list[WeightFile] = []
    try:
        for name, path in files.items():
            file = open_file(path)
            try:
                header = read_header(file)
                if is_patch_header(header):
                    raise patch_error(path)
                opened.append(WeightFile(name, scopes[name], file, header))
            except UnusualHeaderError as error:
                file.close()
                again = REWRITE.format(str(path), f"{str(path).removesuffix('.safetensors')}.rewritten.safetensors")
                raise CheckpointError(
                    f"{path}: {error}; the safetensors library accepts that, ckptdiff does not, as other readers may not either: "
                    f"rewrite the file in Python: {again}"
                ) from None
            except ValueError as error:
                file.close()
                raise CheckpointError(f"{path}: not a valid safetensors file: {error}") from None
            except CkptdiffError:
                file.close()
                raise
    except CkptdiffError:
        for weight in opened:
            weight.file.close()
        raise
    return opened
