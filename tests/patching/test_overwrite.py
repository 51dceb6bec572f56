"""What an output may take the place of, and what it must not: inputs, folders of others, files that appear meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.patching import output
from tests.support.checkpoints import tree, write
from tests.support.refusals import refused
from tests.support.small_pair import Pair, tensors


def test_an_output_that_exists(files: Pair, folders: Pair, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with refused(ckptdiff.OutputError, "out: exists; choose another output, or give --overwrite", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out")
    with refused(ckptdiff.OutputError, "a folder cannot take its place", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"
    ckptdiff.apply(files.base, files.patch, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == tree(files.target)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("mine")
    with refused(ckptdiff.OutputError, "is neither a checkpoint nor a patch, and --overwrite replaces nothing else", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "documents", overwrite=True)


def test_overwriting_a_folder(folders: Pair, tmp_path: Path) -> None:
    ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("edited")
    ckptdiff.apply(folders.base, folders.patch, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == tree(folders.target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "patch", "target"]


def test_what_overwrite_does_not_replace(files: Pair, folders: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, text in (("pipe", "is not a regular file, which --overwrite does not replace"), ("link", "is a link, which --overwrite")):
        with refused(ckptdiff.OutputError, text, tmp_path):
            ckptdiff.apply(files.base, files.patch, tmp_path / name, overwrite=True)
    (tmp_path / "projects" / "deep").mkdir(parents=True)
    write(tmp_path / "projects" / "deep" / "model.safetensors", tensors()[0])
    with refused(ckptdiff.OutputError, "is neither a checkpoint nor a patch", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "projects", overwrite=True)
    ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    with refused(ckptdiff.OutputError, "holds the current folder", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out", overwrite=True)


def test_an_output_that_comes_into_being_meanwhile_is_kept(files: Pair, folders: Pair, tmp_path: Path) -> None:
    def appear(what: str, done: int, total: int) -> None:
        if not (tmp_path / "late").exists():
            (tmp_path / "late").write_text("mine")

    for pair in (files, folders):
        with pytest.raises(ckptdiff.OutputError, match="late: "):
            ckptdiff.make(pair.base, pair.target, tmp_path / "late", progress=appear)
        assert (tmp_path / "late").read_text() == "mine"
        (tmp_path / "late").unlink()


def test_a_file_that_a_link_of_the_base_leads_to_is_an_input(files: Pair, folders: Pair, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    os.rename(folders.base / "model.safetensors", tmp_path / "store" / "weights.safetensors")
    (folders.base / "model.safetensors").symlink_to(tmp_path / "store" / "weights.safetensors")
    with refused(ckptdiff.OutputError, "the output is the input", tmp_path):
        ckptdiff.apply(folders.base, files.patch, tmp_path / "store" / "weights.safetensors", overwrite=True)
    with refused(ckptdiff.OutputError, "the output holds the input", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "store", overwrite=True)


def test_an_output_that_is_an_input(files: Pair, folders: Pair, tmp_path: Path) -> None:
    links = {"symlink": os.symlink, "hardlink": os.link}
    for name, link in links.items():
        link(files.base, tmp_path / name)
    (tmp_path / "sub").mkdir()
    for out in (files.base, tmp_path / "symlink", tmp_path / "hardlink", tmp_path / "sub" / ".." / "base.safetensors", files.patch):
        with refused(ckptdiff.OutputError, "the output is the input", tmp_path):
            ckptdiff.apply(files.base, files.patch, out, overwrite=True)
    with refused(ckptdiff.OutputError, "the output is the input", tmp_path):
        ckptdiff.make(files.base, files.target, files.target, overwrite=True)
    for out in (folders.base / "out", folders.patch / "out"):
        with refused(ckptdiff.OutputError, "the output lies in the input", tmp_path):
            ckptdiff.apply(folders.base, folders.patch, out)
    with refused(ckptdiff.OutputError, "the output holds the input", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path, overwrite=True)


def test_a_missing_parent_and_an_unwritable_one(files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.OutputError, "no such folder; create it first", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "no" / "out.safetensors")
    with refused(ckptdiff.OutputError, "target.safetensors: no such folder; create it first", tmp_path):
        ckptdiff.apply(files.base, files.patch, files.target / "out.safetensors")


def test_too_little_space_is_seen_before_anything_is_written(files: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with refused(ckptdiff.OutputError, "bytes are needed, 100 are free; free some space, or write elsewhere", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")
