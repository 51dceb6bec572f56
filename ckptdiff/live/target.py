"""A patch's target without its weights on the disk: its tensors in memory, its other files in a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckptdiff.errors import cut
from ckptdiff.format.dtypes import Bytes
from ckptdiff.io.parallel import default_threads, threads_for
from ckptdiff.io.places import Place, read_file
from ckptdiff.io.work_folder import work_folder
from ckptdiff.live.names import scope_of
from ckptdiff.patching.chain import check_chain, explained_order
from ckptdiff.patching.output import check_space, explain_write_errors
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.provenance import recorded_base
from ckptdiff.patching.rebuild import Rebuilder, ScratchTensors, check_stored, open_base, scratch_size
from ckptdiff.patching.recipes import RebuildJob
from ckptdiff.patching.target_files import write_others
from ckptdiff.patching.torch_dtypes import flat_bytes, new_tensor

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]


def load_target(
    base: PathLike | None, patches: PathLike | Sequence[PathLike], *, scope: str | None = None, threads: int | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a patch's target in memory, rebuilt and checked; nothing is written to the disk.

    Args:
        base: the checkpoint that the first patch was made from: a file, a folder or an id on the Hub. None: the one that the patch records.
        patches: a patch file, a folder or an id on the Hub; or several, in order.
        scope: which scope of a target with several (a pipeline of models).
        threads: how many to use.

    Raises:
        UnsupportedError: torch lacks a dtype, or there are several scopes and none was asked for. Others as :func:`ckptdiff.apply`.
    """
    with open_target(base, patches, threads=threads, with_files=False) as target:
        return target.tensors(scope)


class Target:
    """An open base and an open chain of patches."""

    def __init__(self, rebuilder: Rebuilder) -> None:
        self._rebuilder = rebuilder

    def tensors(self, scope: str | None = None) -> dict[str, torch.Tensor]:
        """The tensors of one scope of the target, that is of the last patch, under all their names."""
        rebuilder, last = self._rebuilder, len(self._rebuilder.chain) - 1
        patch = rebuilder.chain[last]
        wanted = scope_of(patch, scope)
        with rebuilder.explained(), explain_write_errors(Path(tempfile.gettempdir())):
            rows = [(entry, rebuilder.recipe(last, file, entry)) for (id_, _), (file, entry) in patch.entries.items() if id_ == wanted]
        tensors = {entry.name: new_tensor(entry.dtype, entry.shape, f"{patch.path}: tensor {cut(entry.name)}") for entry, _ in rows}

        memory = [np.asarray(flat_bytes(tensors[entry.name], entry.name)) for entry, _ in rows]

        def sink(job: RebuildJob, data: Bytes) -> None:
            memory[job.tensor][job.start : job.start + len(data)] = data

        with rebuilder.explained(), closing(rebuilder.rebuild([recipe for _, recipe in rows], sink)) as results:
            for _ in results:
                pass
        rebuilder.base.check_unchanged()
        return tensors | {name: tensors[kept] for name, kept in patch.tied.items() if kept in tensors and name not in tensors}

    def write_files(self, folder: Path) -> list[str]:
        """Write the target's files without weights, such as config and tokenizer, into a folder; returns their paths.

        A lone patch file holds none; then the base's are written.
        """
        if self._rebuilder.chain[-1].index is not None:
            write_others(self._rebuilder, folder, folder.with_name("scratch"))
            return [other.path for other in self._rebuilder.chain[-1].others]
        base = self._rebuilder.base
        beside = _files_beside(base.path) if base.is_file else base.others
        chosen = {name: path for name, path in beside.items() if path.suffix in COMPANION_SUFFIXES and not name.startswith(".")}
        for name, path in chosen.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(read_file(path))
        return list(chosen)


def _files_beside(path: Place) -> Mapping[str, Place]:
    """The files of the folder that a file lies in; of an object alone none are known."""
    return {file.name: file for file in path.parent.iterdir() if file.is_file()} if isinstance(path, Path) else {}


COMPANION_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py"}
"""Suffixes of the files of a model's configuration, tokenizer and code."""


@contextmanager
def open_target(
    base: PathLike | None, patches: PathLike | Sequence[PathLike], *, threads: int | None = None, with_files: bool = True
) -> Iterator[Target]:
    """Open a base and patches, as :func:`load_target` takes them, and check the patches.

    ``with_files``: whether :meth:`Target.write_files` will be called.
    """
    names = [patches] if isinstance(patches, (str, os.PathLike)) else list(patches)
    with ExitStack() as stack:
        with explained_order(base, names):
            chain = [stack.enter_context(open_patch(name)) for name in names]
        check_chain(chain)
        for patch in chain:
            check_stored(patch)
        origin = base if base is not None else recorded_base(names[0])
        use_base_files = with_files and chain[-1].index is None  # a lone patch file holds none itself
        opened = open_base(origin, chain, only_weights=not with_files, with_files=use_base_files)
        folder = stack.enter_context(work_folder(Path(tempfile.gettempdir()), "ckptdiff-tensors-")).path
        check_space(folder, scratch_size(chain))
        scratch = stack.enter_context(closing(ScratchTensors(folder)))
        execute = threads_for(threads or default_threads(), chain[-1].output_size)
        yield Target(Rebuilder(stack.enter_context(opened), chain, execute, scratch))
