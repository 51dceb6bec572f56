"""What ``--overwrite`` may replace: a checkpoint or a patch, and no file in it that could be somebody else's."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ckptdiff.checkpoint.scopes import INDEX, scope_of_name
from ckptdiff.errors import CkptdiffError, OutputError
from ckptdiff.format.canonical import quote
from ckptdiff.format.index import INDEX_NAME, Index
from ckptdiff.format.sealed import MAX_INDEX

MARKS = ("config.json", "model_index.json")
"""Files that, beside weights, show that a folder is a checkpoint."""

SAVED = {
    *("config.json", "generation_config.json", "model_index.json", "adapter_config.json", "scheduler_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "image_processor_config.json", "video_preprocessor_config.json"),
    *("quantization_config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"),
}
"""Names under which transformers, diffusers, peft and tokenizers save what belongs to weights."""


def refuse_kind(out: Path, folder: bool) -> None:
    """Raise OutputError unless what is at ``out`` is a folder, or a regular file, and no link."""
    if out.is_symlink() or not (out.is_dir() or out.is_file()):
        raise OutputError(f"{out}: is {'a link' if out.is_symlink() else 'not a regular file'}, which --overwrite does not replace")
    if out.is_dir() != folder:
        raise OutputError(f"{out}: a {'folder' if folder else 'file'} cannot take its place; choose another output")


def refuse_existing(out: Path, folder: bool, overwrite: bool, new: Collection[str]) -> None:
    """Refuse to replace what is at ``out``, if anything is.

    A folder goes if it is a checkpoint or a patch, and each of its files is one of these: a file that the new output has too; one that
    the index of an old patch lists; weights of the same scope as new ones in the same folder, sharded otherwise, and their index; a file
    called as those that are saved beside weights, in a folder in which the new output has files.

    Args:
        new: paths of the new output's files, relative to it.

    Raises:
        OutputError: it may not be replaced; the message names what stands against it. OSError: it cannot be read.
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
    names = list(_names(out))  # now, as a home or a disk would take minutes
    foreign = sorted(set(names) - _accounted(out, names, set(new)), key=os.fsencode)
    if foreign:
        more = f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else ""
        raise OutputError(
            f"{out}: --overwrite would delete {', '.join(map(quote, foreign[:5]))}{more}, which the new output does not have, nor did the "
            "old one, as far as can be told: move them away, or choose another output"
        )
    if out in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(f"{out}: holds the current folder, so --overwrite does not replace it; choose another output")
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: is read-only, so --overwrite does not replace it; choose another output")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a patch, or holds weights at its root, or below it beside a configuration."""
    if (folder / INDEX_NAME).exists() or any(folder.glob("*.safetensors")):
        return True
    return any((folder / name).exists() for name in MARKS) and any(folder.rglob("*.safetensors"))


def _names(folder: Path) -> Iterator[str]:
    """All that is below a folder and is no folder itself; links are not followed."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        for name in (*files, *(name for name in folders if os.path.islink(os.path.join(root, name)))):
            yield os.path.relpath(os.path.join(root, name), folder)


def _accounted(out: Path, names: list[str], new: set[str]) -> set[str]:
    """Those of the names that the new output has, or the old one can be shown to have had."""
    scopes = {scope_of_name(name) for name in new if name.endswith(".safetensors")}
    folders = {os.path.dirname(name) for name in new}
    return {name for name in names if _scope(name) in scopes or (os.path.dirname(name) in folders and os.path.basename(name) in SAVED)} | (
        new | _listed(out)
    )


def _scope(name: str) -> str | None:
    """Scope of weights by their name, or by that of their index (spec 3.1)."""
    folder, _, base = name.rpartition("/")
    index = INDEX.fullmatch(base)
    if index is None:
        return scope_of_name(name) if name.endswith(".safetensors") else None
    stem = index["stem"] + (index["variant"] or "")
    return f"{folder}/{stem}" if folder else stem


def _listed(out: Path) -> set[str]:
    """What the index of an old patch folder says that it consists of; nothing if there is none, or it is broken."""
    try:
        if (out / INDEX_NAME).stat().st_size > MAX_INDEX:
            return set()
        index = Index.from_bytes((out / INDEX_NAME).read_bytes(), INDEX_NAME)
    except (OSError, CkptdiffError):
        return set()
    members = {other.stored_path for other in index.files if other.kind != "same"}
    return {INDEX_NAME, *(shard.path for shard in index.shards), *members}
