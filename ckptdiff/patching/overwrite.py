"""What ``--overwrite`` may replace: a checkpoint or a patch, in which all files are accounted for."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ckptdiff.checkpoint.scopes import INDEX_FILE, scope_of_name
from ckptdiff.errors import CkptdiffError, OutputError
from ckptdiff.format.canonical import quote
from ckptdiff.format.index import INDEX_NAME, Index
from ckptdiff.format.sealed import MAX_INDEX

CONFIG_NAMES = ("config.json", "model_index.json")
"""Files that, beside weights, show that a folder is a checkpoint."""

COMPANION_NAMES = {
    *("config.json", "generation_config.json", "model_index.json", "adapter_config.json", "scheduler_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "image_processor_config.json", "video_preprocessor_config.json"),
    *("quantization_config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"),
}
"""Names of the files that transformers, diffusers, peft and tokenizers save beside weights."""


def refuse_kind(out: Path, folder: bool) -> None:
    """Raise OutputError unless ``out`` is a folder (or else a regular file) and no link."""
    if out.is_symlink() or not (out.is_dir() or out.is_file()):
        raise OutputError(f"{out}: is {'a link' if out.is_symlink() else 'not a regular file'}, which --overwrite does not replace")
    if out.is_dir() != folder:
        raise OutputError(f"{out}: a {'folder' if folder else 'file'} cannot take its place; choose another output")


def refuse_existing(out: Path, folder: bool, overwrite: bool, new: Collection[str]) -> None:
    """Raise an error if ``out`` exists and may not be replaced.

    A folder may be replaced if it is a checkpoint or a patch, and each of its files is one of these: a file that the new output has too;
    a file that the index of an old patch lists; weights, or their index, of the same folder and scope as new ones (which may have other
    shards); a file with one of the :data:`COMPANION_NAMES`, in a folder in which the new output has files.

    Args:
        out: the output, an absolute path.
        folder: whether the new output is a folder.
        overwrite: whether the caller asked for it.
        new: paths of the new output's files, relative to it.

    Raises:
        OutputError: it may not be replaced; the message says why. OSError: it cannot be read.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputError(f"{out}: exists; choose another output, or give --overwrite")
    refuse_kind(out, folder)
    if not folder:
        return
    if any(out.iterdir()) and not _is_ours(out):
        raise OutputError(f"{out}: is neither a checkpoint nor a patch, and --overwrite replaces nothing else; choose another output")
    names = list(_files_below(out))  # not earlier: to list a home folder or a whole disk would take minutes
    foreign = sorted(set(names) - _replaceable(out, names, set(new)), key=os.fsencode)
    if foreign:
        more = f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else ""
        raise OutputError(
            f"{out}: --overwrite would delete {', '.join(map(quote, foreign[:5]))}{more}, which neither the new output "
            "has nor, as far as can be told, the old one had: move them away, or choose another output"
        )
    if out in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(f"{out}: holds the current folder, so --overwrite does not replace it; choose another output")
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: is read-only, so --overwrite does not replace it; choose another output")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a patch; or a checkpoint, with weights at its root, or with a configuration there and weights below."""
    if (folder / INDEX_NAME).exists() or any(folder.glob("*.safetensors")):
        return True
    return any((folder / name).exists() for name in CONFIG_NAMES) and any(folder.rglob("*.safetensors"))


def _files_below(folder: Path) -> Iterator[str]:
    """Relative paths of all files and links below a folder; links are not followed."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        for name in (*files, *(name for name in folders if os.path.islink(os.path.join(root, name)))):
            yield os.path.relpath(os.path.join(root, name), folder)


def _replaceable(out: Path, names: list[str], new: set[str]) -> set[str]:
    """The paths that the new output has, or that can be shown to belong to the old one; see :func:`refuse_existing`."""
    scopes = {scope_of_name(name) for name in new if name.endswith(".safetensors")}
    folders = {os.path.dirname(name) for name in new}
    return {
        name
        for name in names
        if _scope_of_weights(name) in scopes or (os.path.dirname(name) in folders and os.path.basename(name) in COMPANION_NAMES)
    } | (new | _members_of_old_patch(out))


def _scope_of_weights(name: str) -> str | None:
    """Scope of a weight file, or of an index, by its name (spec 3.1); None for any other file."""
    folder, _, base = name.rpartition("/")
    index = INDEX_FILE.fullmatch(base)
    if index is None:
        return scope_of_name(name) if name.endswith(".safetensors") else None
    stem = index["stem"] + (index["variant"] or "")
    return f"{folder}/{stem}" if folder else stem


def _members_of_old_patch(out: Path) -> set[str]:
    """Paths of the files that the index of an old patch folder lists; none if there is no index, or it is broken."""
    try:
        if (out / INDEX_NAME).stat().st_size > MAX_INDEX:
            return set()
        index = Index.from_bytes((out / INDEX_NAME).read_bytes(), INDEX_NAME)
    except (OSError, CkptdiffError):
        return set()
    members = {other.stored_path for other in index.files if other.kind != "same"}
    return {INDEX_NAME, *(shard.path for shard in index.shards), *members}
