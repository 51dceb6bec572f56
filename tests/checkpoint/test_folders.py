"""Folders as file systems have them: Hub caches, links, loops of links, and names in any script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import perturb, random_tensor, tree, write
from tests.support.layouts import to_hub_cache
from tests.support.roundtrips import file_kinds, put, roundtrip


def test_snapshots_of_a_hub_cache(tmp_path: Path, two_folders: tuple[Path, Path]) -> None:
    """Base and target whose files are links to blobs named by hash; results are plain files."""
    put(two_folders[0], {"config.json": "old", "sub/a.json": "=", "b.json": "="})
    put(two_folders[1], {"config.json": "new", "sub/a.json": "=", "b.json": "="})
    base, target = (to_hub_cache(folder, tmp_path / f"cache {folder.name}") for folder in two_folders)
    info = roundtrip(tmp_path, base, target)
    assert file_kinds(info) == {"config.json": "delta", "sub/a.json": "same", "b.json": "same"}
    assert not any(path.is_symlink() for path in (tmp_path / "the output").rglob("*"))
    assert tree(tmp_path / "the output") == tree(two_folders[1])
    (tmp_path / "file").mkdir()
    roundtrip(tmp_path / "file", base / "model.safetensors", target / "model.safetensors")


@pytest.mark.parametrize("link", ["a link", "z link"])
def test_a_linked_folder(tmp_path: Path, two_folders: tuple[Path, Path], rng: np.random.Generator, link: str) -> None:
    """A folder reachable under two names is in the result under both names."""
    write(two_folders[1] / "real" / "model.safetensors", {"w": random_tensor(rng, "F32", [4])})
    put(two_folders[1] / "real", {"config.json": "{}"})
    (two_folders[1] / link).symlink_to("real")
    ckptdiff.make(*two_folders, tmp_path / "p")
    ckptdiff.apply(two_folders[0], tmp_path / "p", tmp_path / "out")
    wanted = {"model.safetensors", *(f"{name}/{file}" for name in ("real", link) for file in ("model.safetensors", "config.json"))}
    assert set(tree(tmp_path / "out")) == wanted


def test_a_folder_that_links_to_itself(tmp_path: Path, two_folders: tuple[Path, Path]) -> None:
    """A loop of links does not hang, and is not followed."""
    wanted = tree(put(two_folders[1], {"sub/config.json": "{}"}))
    (two_folders[1] / "sub" / "up").symlink_to("..")
    ckptdiff.make(*two_folders, tmp_path / "p")
    ckptdiff.apply(two_folders[0], tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted


def test_paths_with_spaces_and_other_scripts(tmp_path: Path, rng: np.random.Generator) -> None:
    """Folders and files with spaces, accents, CJK, emoji, brackets, quotes and a leading dash or dot."""
    home = tmp_path / "mes modèles 模型 😀"
    w = random_tensor(rng, "BF16", [6, 6])
    stems = ("weights é", "sub dir/模型-00001-of-00001", "-dash", "[a]*?", ".hidden/x")
    names = [f"{stem}.safetensors" for stem in stems]
    for name in names:
        write(home / "base it's" / name, {"w": w})
        write(home / 'target "q"' / name, {"w": perturb(rng, w, 0.1)})
    put(home / "base it's", {"tökenizer 词.json": "1" * 50, "--help": "x", "%s{}": "y"})
    put(home / 'target "q"', {"tökenizer 词.json": "1" * 51, "--help": "z", "%s{}": "y"})
    info = roundtrip(home, home / "base it's", home / 'target "q"')
    assert info.totals.delta == len(names)
    (home / "f").mkdir()
    roundtrip(home / "f", home / "base it's" / names[0], home / 'target "q"' / names[0])
