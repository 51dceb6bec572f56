"""Checkpoints: weight files grouped into scopes (spec 3.1), and the other files beside them."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.aside import if_gone
from ckptdiff.dtypes import Bytes
from ckptdiff.errors import CheckpointError
from ckptdiff.hub import download, open_repo
from ckptdiff.hubid import HubId, parse_id
from ckptdiff.selection import matches, select
from ckptdiff.stfile import ByteSource, Header, LocalFile, WeightSource, read_header

INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(?P<variant>\.[^./]+)?\.json")
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<variant>\.[^./]+)?\.safetensors")
MAX_INDEX_JSON = 1 << 28
IS_A_PATCH = "{path}: is a ckptdiff patch, not a checkpoint; rebuild that with: ckptdiff apply BASE {path} -o OUT"

CONVERTERS = {
    ".bin": "load it with transformers and save_pretrained(..., safe_serialization=True)",
    ".pt": "load it with torch.load(weights_only=True) and safetensors.torch.save_file",
    ".pth": "load it with torch.load(weights_only=True) and safetensors.torch.save_file",
    ".ckpt": "load it with torch.load(weights_only=True) and safetensors.torch.save_file",
    ".gguf": "load it with transformers from_pretrained(..., gguf_file=NAME) and save_pretrained",
    ".distcp": "convert it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch, then safetensors.torch.save_file",
}

NOT_FETCHED = {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".pb", ".mlmodel"}
"""Files of a repo on the Hub that hold the weights once more, in other formats: left out unless they are asked for."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint: ``shape`` in elements, ``nbytes`` of data at ``offset`` of ``source``."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: ByteSource
    offset: int

    def readinto(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from ``start`` on."""
        self.source.readinto(self.offset + start, out)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file; ``path`` is relative to the checkpoint, with ``/``."""

    path: str
    scope: str
    file: WeightSource
    header: Header

    @property
    def tensors(self) -> list[Tensor]:
        """The file's tensors in the order of their data."""
        start = self.header.data_start
        return [Tensor(self.scope, t.name, t.dtype, t.shape, t.nbytes, self.file, start + t.begin) for t in self.header.tensors]


@dataclass(slots=True)
class Checkpoint:
    """A checkpoint whose headers are read.

    ``scopes`` maps scope and name to a tensor, ``others`` the path of each file without weights to a local file;
    ``left_out`` are the paths that do not belong to it by default, or as the caller asked; ``origin`` the repo and commit that it is from;
    ``in_memory`` says that its weights are no files.
    """

    path: Path
    is_file: bool
    weights: list[WeightFile]
    others: dict[str, Path]
    left_out: tuple[str, ...] = ()
    origin: HubId | None = None
    in_memory: bool = False
    scopes: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in self.weights:
            tensors = self.scopes.setdefault(file.scope, {})
            for tensor in file.tensors:
                if tensor.name in tensors:
                    self.close()
                    raise CheckpointError(
                        f"{file.file.name}: tensor {tensor.name} is also in {tensors[tensor.name].source.name}; "
                        "two files of one index must not share names: remove the stale shard"
                    )
                tensors[tensor.name] = tensor

    def scope(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a scope; a checkpoint with one scope gives that one whatever it is called (spec 10, step 3)."""
        if len(self.scopes) == 1:
            return next(iter(self.scopes.values()))
        return self.scopes.get(name)

    @property
    def kept(self) -> list[str]:
        """Paths of the other files that belong to it."""
        left_out = set(self.left_out)
        return [name for name in self.others if name not in left_out]

    @property
    def paths(self) -> list[Path]:
        """The checkpoint's own path and those of all its files."""
        return [self.path, *(file.file.path for file in self.weights), *self.others.values()]

    def check_unchanged(self) -> None:
        for file in self.weights:
            file.file.check_unchanged()

    def close(self) -> None:
        for file in self.weights:
            file.file.close()


@contextmanager
def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    needs_weights: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    scopes: Collection[str] = (),
    others: Collection[str] | None = None,
) -> Iterator[Checkpoint]:
    """Open one safetensors file, or a folder of them with or without index, here or on the Hub, and read its headers.

    ``include`` and ``exclude`` are globs of paths, as in :func:`ckptdiff.selection.select`. Weight files of ``scopes`` are
    taken although they are left out by default: a patch that was made with ``include`` names them. ``others``: of the Hub fetch
    only these of the files without weights; None for all.

    Raises:
        CheckpointError: it is missing, unreadable, has no safetensors weights, lacks a shard, or a header is broken.
        HubError: it cannot be fetched.
    """
    hub_id = parse_id(path)
    if hub_id is None:
        checkpoint = _read(Path(path), needs_weights, include, exclude, scopes)
    else:
        checkpoint = _fetch(hub_id, needs_weights, include, exclude, scopes, others)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def _fetch(
    hub_id: HubId,
    needs_weights: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    scopes: Collection[str],
    others: Collection[str] | None,
) -> Checkpoint:
    """Fetch what belongs to a checkpoint on the Hub into its cache, and open that."""
    repo = open_repo(hub_id)
    if "ckptdiff.json" in repo.files:
        raise CheckpointError(f"{hub_id}: is a ckptdiff patch, not a checkpoint; rebuild that with: ckptdiff pull {hub_id} -o OUT")
    kept, left_out = select(repo.files, [*include, *_named(repo.files, scopes)], exclude)
    if others is None:
        unused = {name for name in kept if Path(name).suffix in NOT_FETCHED and not matches(name, include)}
    else:
        unused = {name for name in kept if not name.endswith((".safetensors", ".safetensors.index.json")) and name not in others}
    names = [name for name in kept if name not in unused]
    if needs_weights and not any(name.endswith(".safetensors") for name in names):
        _refuse_weights(Path(str(hub_id)), list(repo.files))
    folder = download(repo, names)
    if repo.is_file:
        checkpoint = _read(folder / names[0], needs_weights, include, exclude, scopes)
    else:
        checkpoint = _open_files(folder, {name: folder / name for name in names}, names, needs_weights)
    checkpoint.left_out, checkpoint.origin = (*left_out, *sorted(unused)), repo.pinned
    return checkpoint


def _named(files: Iterable[str], scopes: Collection[str]) -> list[str]:
    """Globs of the weight files of scopes."""
    return [glob.escape(name) for name in files if name.endswith(".safetensors") and scope_of_name(name) in scopes]


def _read(path: Path, needs_weights: bool, include: Sequence[str], exclude: Sequence[str], scopes: Collection[str]) -> Checkpoint:
    try:
        if os.path.isdir(path):
            _refuse_hub_root(path)
            files = list_files(path)
        elif os.path.isfile(path):
            if path.suffix in CONVERTERS:
                _refuse_weights(path, [path.name])
            return Checkpoint(path, True, _open_weights({path.name: path}, {path.name: scope_of_name(path.name)}), {})
        else:
            raise CheckpointError(f"{path}: no such file or folder{if_gone(path)}")
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    if "ckptdiff.json" in files:
        raise CheckpointError(IS_A_PATCH.format(path=path))
    kept, left_out = select(files, [*include, *_named(files, scopes)], exclude)
    for name in kept:
        _check_regular(files[name])
    checkpoint = _open_files(path, files, kept, needs_weights)
    checkpoint.left_out = tuple(left_out)
    return checkpoint


def _open_files(path: Path, files: dict[str, Path], kept: Sequence[str], needs_weights: bool) -> Checkpoint:
    weights = {name: files[name] for name in kept if name.endswith(".safetensors")}
    if not weights and needs_weights:
        _refuse_weights(path, sorted(files))
    scope_of = _scopes(weights, {name: files[name] for name in kept if name not in weights})
    others = {name: file for name, file in files.items() if not name.endswith(".safetensors")}
    return Checkpoint(path, False, _open_weights(weights, scope_of), others)


def _refuse_hub_root(path: Path) -> None:
    if (path / "blobs").is_dir() and (path / "snapshots").is_dir():
        found = sorted(p.name for p in (path / "snapshots").iterdir())
        raise CheckpointError(f"{path}: is a repo of the Hub cache; give one of its snapshots: {', '.join(found[:5])}")


def list_files(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its relative path with ``/``, links followed, sorted by the path's UTF-8 bytes."""
    found: dict[str, Path] = {}
    _walk(folder, "", {Path(os.path.realpath(folder))}, found)
    return dict(sorted(found.items(), key=lambda item: item[0].encode()))


def _walk(folder: Path, prefix: str, above: set[Path], found: dict[str, Path]) -> None:
    for entry in os.scandir(folder):
        path, name = Path(entry.path), prefix + entry.name
        if not entry.is_dir():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise CheckpointError(f"{entry.path!a}: the file's name is not UTF-8: rename it") from None
            found[name] = path
            continue
        real = Path(os.path.realpath(path))
        if real in above:
            continue  # a link to a folder that this one lies in
        if any(real in parent.parents for parent in above):
            raise CheckpointError(f"{path}: a link to a folder that holds this one; remove it")
        _walk(path, name + "/", above | {real}, found)


def _check_regular(file: Path) -> None:
    if not os.path.isfile(file):
        what = "a link to a file that does not exist" if file.is_symlink() else "not a regular file"
        raise CheckpointError(f"{file}: {what}; restore it, remove it, or leave it out with --exclude")


def _refuse_weights(path: Path, names: list[str]) -> None:
    for name in names:
        converter = CONVERTERS.get(Path(name).suffix)
        if converter:
            raise CheckpointError(f"{path}: {name} is not safetensors, which ckptdiff needs: {converter}, then run again")
    raise CheckpointError(f"{path}: expected a .safetensors file or a folder that holds one, found none")


def _open_weights(files: dict[str, Path], scopes: dict[str, str]) -> list[WeightFile]:
    opened: list[WeightFile] = []
    try:
        for name, path in files.items():
            file = LocalFile(path)
            try:
                header = read_header(file)
                if "ckptdiff" in (header.metadata or {}):
                    raise CheckpointError(IS_A_PATCH.format(path=path))
                opened.append(WeightFile(name, scopes[name], file, header))
            except ValueError as error:
                file.close()
                raise CheckpointError(f"{path}: not a valid safetensors file: {error}") from None
            except CheckpointError:
                file.close()
                raise
    except CheckpointError:
        for weight in opened:
            weight.file.close()
        raise
    return opened


def scope_of_name(path: str) -> str:
    """Scope of a weight file that no index lists (spec 3.1, rules 2 and 3)."""
    folder, _, name = path.rpartition("/")
    match = SHARD.fullmatch(name)
    stem = match["stem"] + (match["variant"] or "") if match else name.removesuffix(".safetensors")
    return f"{folder}/{stem}" if folder else stem


def _scopes(weights: dict[str, Path], others: dict[str, Path]) -> dict[str, str]:
    """Scope of every weight file (spec 3.1); also checks that no shard is missing."""
    indexed: dict[str, str] = {}
    for name, path in others.items():
        folder, _, file_name = name.rpartition("/")
        match = INDEX.fullmatch(file_name)
        if not match:
            continue
        prefix = f"{folder}/" if folder else ""
        for shard in _shards_of_index(path):
            if prefix + shard not in weights:
                raise CheckpointError(f"{path}: lists the shard {shard}, which is missing: fetch it, or remove the stale index")
            indexed.setdefault(prefix + shard, prefix + match["stem"] + (match["variant"] or ""))
    _check_siblings([name for name in weights if name not in indexed], set(weights))
    scopes = {name: indexed.get(name) or scope_of_name(name) for name in weights}
    alone = {name for name in weights if name not in indexed and not SHARD.fullmatch(name)}
    taken = {scope for name, scope in scopes.items() if name not in alone}
    return {name: name if name in alone and scope in taken else scope for name, scope in scopes.items()}


def _shards_of_index(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_INDEX_JSON:
            raise CheckpointError(f"{path}: an index of {path.stat().st_size} bytes is too large (limit {MAX_INDEX_JSON})")
        weight_map = json.loads(path.read_bytes())["weight_map"]
        return sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: not a safetensors index: expected a JSON object with a weight_map") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _check_siblings(names: list[str], present: set[str]) -> None:
    """A file called K-of-N that no index lists needs its N - 1 siblings."""
    for name in names:
        match = SHARD.fullmatch(name)
        if match:
            for k in range(1, int(match["count"]) + 1):
                sibling = f"{match['stem']}-{k:05}-of-{match['count']}{match['variant'] or ''}.safetensors"
                if sibling not in present:
                    raise CheckpointError(f"{name}: its sibling {sibling} is missing: fetch it")
