"""Composition of patch folders: shards, files without weights, long chains, real pairs; and what stays bounded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError, CheckpointError, UnsupportedError
from ckptdiff.io import open_files
from ckptdiff.patching.compose import facts_of
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import SHARED_DATA, TensorData, bf16, tree, write_sharded
from tests.support.composed import chain, check_composed, moved
from tests.support.real_pairs import BASE, TARGETS


def folder(path: Path, state: dict[str, TensorData], files: dict[str, bytes]) -> Path:
    """A checkpoint of two shards, an index, and other files."""
    names = list(state)
    write_sharded(path, {f"model-{k + 1:05}-of-00002.safetensors": {n: state[n] for n in names[k::2]} for k in range(2)})
    for name, data in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)
    return path


def states(count: int) -> list[dict[str, TensorData]]:
    rng = np.random.default_rng(0)
    found = [{name: bf16(rng.normal(0, 0.02, (20, 50))) for name in "abc"}]
    for _ in range(count):
        found.append({name: moved(rng, data, 9) for name, data in found[-1].items()})
    return found


def folders(tmp_path: Path, files: Sequence[dict[str, bytes]]) -> tuple[list[Path], list[Path]]:
    """Folders with these other files, and the patches between them."""
    made = [folder(tmp_path / f"step-{k}", state, some) for k, (state, some) in enumerate(zip(states(len(files) - 1), files, strict=True))]
    patches = [tmp_path / f"patch-{k}" for k in range(len(made) - 1)]
    for k, patch in enumerate(patches):
        ckptdiff.make(made[k], made[k + 1], patch, codec="sparse")
    return made, patches


TEXT = b"common text " * 30


def test_shards_and_files_are_those_of_the_direct_patch(tmp_path: Path) -> None:
    """Files that stay, change once, change and come back, appear, and go."""
    made, patches = folders(
        tmp_path,
        [
            {"same": TEXT, "once": TEXT, "back": TEXT, "sub/gone": TEXT},
            {"same": TEXT, "once": TEXT, "back": TEXT + b"1", "sub/gone": TEXT},
            {"same": TEXT, "once": TEXT + b"2", "back": TEXT, "new": TEXT},
            {"same": TEXT, "once": TEXT + b"2", "back": TEXT, "new": TEXT},
        ],
    )
    composed = check_composed(made, patches, tmp_path / "composed")
    ckptdiff.make(made[0], made[-1], tmp_path / "direct", codec="sparse")
    assert tree(composed) == tree(tmp_path / "direct")
    through = check_composed(made, patches, tmp_path / "through", base=made[0], codec="sparse")
    assert tree(through) == tree(tmp_path / "direct")


def test_a_file_that_appears_and_changes_is_known(tmp_path: Path) -> None:
    files = [{"new": TEXT + b"%d" % k} if k else {"other": TEXT} for k in range(4)]
    made, patches = folders(tmp_path, files)
    composed = check_composed(made, patches, tmp_path / "composed")
    ckptdiff.make(made[0], made[-1], tmp_path / "direct", codec="sparse")
    assert tree(composed) == tree(tmp_path / "direct")


def test_a_file_that_changes_twice_needs_the_base(tmp_path: Path) -> None:
    made, patches = folders(tmp_path, [{"config.json": TEXT + b"%d" % k} for k in range(3)])
    text = "patch-1/files/config.json.zst: is coded against what an earlier patch makes of the base's file config.json: only the base"
    with pytest.raises(UnsupportedError, match=text):
        ckptdiff.compose(patches, output=tmp_path / "composed")
    composed = check_composed(made, patches, tmp_path / "composed", base=made[0])
    ckptdiff.make(made[0], made[-1], tmp_path / "direct")
    assert tree(composed) == tree(tmp_path / "direct")
    with pytest.raises(BaseMismatchError, match="is one file; give the folder"):
        ckptdiff.compose(patches, made[0] / "model-00001-of-00002.safetensors", output=tmp_path / "wrong")


def test_a_file_that_the_patch_before_does_not_give(tmp_path: Path) -> None:
    """Two chains of the same weights, but with other files: the identities fit."""
    patches = []
    for name in ("one", "two"):
        patches.append(folders(tmp_path / name, [{"config.json": name.encode() * 9 + b"%d" % min(k, 1)} for k in range(3)])[1])
    text = r"patch-1: needs the file config.json with the SHA-256 [0-9a-f]{64}, but .*patch-0 gives one with [0-9a-f]{64}$"
    with pytest.raises(BaseMismatchError, match=text):
        ckptdiff.compose([patches[0][0], patches[1][1]], output=tmp_path / "composed")


def test_parts_of_a_folder_and_mixed_kinds(tmp_path: Path) -> None:
    patches = folders(tmp_path, [{}, {}, {}])[1]
    with pytest.raises(CheckpointError, match="is one file of a patch folder: give the folder"):
        ckptdiff.compose([patches[0] / "patch" / "model-00001-of-00002.safetensors"], output=tmp_path / "composed")
    opened = [ckptdiff.Patch.open(patch) for patch in patches]
    with pytest.raises(CheckpointError, match="patch-0: is a patch folder: give the paths of the patches, and an output"):
        ckptdiff.compose(opened)
    for patch in opened:
        patch.close()
    with pytest.raises(CheckpointError, match="the patch is closed"):
        ckptdiff.compose(opened)


@pytest.mark.parametrize("through", [False, True])
def test_a_chain_longer_than_apply_takes(tmp_path: Path, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more files are open than a process with few may have, and with the base the parts of a long chain follow each other."""
    monkeypatch.setattr(open_files, "capacity", lambda: 4)
    files, patches = chain(tmp_path, states(70))
    options = {"base": files[0], "codec": "sparse"} if through else {}
    composed = check_composed(files, patches, tmp_path / "composed", **options)
    ckptdiff.make(files[0], files[-1], tmp_path / "direct", codec="sparse")
    assert composed.read_bytes() == (tmp_path / "direct").read_bytes()
    result = ckptdiff.compose(patches, output=composed, overwrite=True, **options)
    assert (result.patches, result.patches_size) == (70, sum(patch.stat().st_size for patch in patches))
    if through:
        in_memory = ckptdiff.compose([ckptdiff.Patch.open(patch) for patch in patches], files[0], codec="sparse")
        assert in_memory.to_bytes() == composed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if "ckptdiff" in path.name) == []


def test_one_patch_is_a_chain_too(tmp_path: Path) -> None:
    """Of which the report is left out, and nothing else."""
    files, patches = chain(tmp_path, states(1), None)
    found = ckptdiff.report(files[0], files[1], rank="none")
    ckptdiff.make(files[0], files[1], tmp_path / "reported", report=found)
    composed = check_composed(files, [tmp_path / "reported"], tmp_path / "composed")
    assert composed.read_bytes() == patches[0].read_bytes()


def test_what_a_patch_records_stays(tmp_path: Path) -> None:
    """The first patch's base and its repo, the last one's target."""
    patches = chain(tmp_path, states(2))[1]
    ckptdiff.compose(patches, output=tmp_path / "composed")
    with open_patch(patches[0]) as first, open_patch(patches[1]) as last, open_patch(tmp_path / "composed") as both:
        assert (both.base_identity, both.base_files) == (first.base_identity, first.base_files)
        assert (both.target_identity, both.info) == (last.target_identity, {})
        assert both.files[0].metadata.target_sha256 == last.files[0].metadata.target_sha256
    first_facts = {"base_repo": "org/base", "base_revision": "1", "target_repo": "org/x", "tied": {"h": "t"}, "other": 1}
    last_facts = {"base_repo": "org/x", "target_repo": "org/y", "target_revision": "3", "tied": {"a": "b"}}
    assert facts_of(first_facts, last_facts) == {
        "base_repo": "org/base",
        "base_revision": "1",
        "target_repo": "org/y",
        "target_revision": "3",
        "tied": {"a": "b"},
    }


@pytest.mark.skipif(not BASE.is_dir(), reason=f"the real checkpoint pairs are not at {SHARED_DATA}")
@pytest.mark.parametrize("names", [TARGETS[:1], TARGETS])
def test_real_pairs(names: list[str], tmp_path: Path) -> None:
    """Steps between real checkpoints: each half of the way, which is made by taking every other changed element."""
    made = [BASE]
    for name in names:
        half = tmp_path / f"half-{name}"
        shutil.copytree(SHARED_DATA / name, half)
        old, new = (np.fromfile(path / "model.safetensors", "<u2") for path in (made[-1], SHARED_DATA / name))
        if len(old) == len(new):
            where = np.flatnonzero(old != new)[::2]
            new[where[where > 50_000]] = old[where[where > 50_000]]  # behind the header
            (half / "model.safetensors").write_bytes(new.tobytes())
        made += [half, SHARED_DATA / name]
    patches = [tmp_path / f"patch-{k}" for k in range(len(made) - 1)]
    for k, patch in enumerate(patches):
        ckptdiff.make(made[k], made[k + 1], patch, codec="sparse")
    ckptdiff.make(BASE, made[-1], tmp_path / "direct", codec="sparse")
    assert tree(check_composed(made, patches, tmp_path / "composed")) == tree(tmp_path / "direct")
    files = [folder / "model.safetensors" for folder in made]
    alone = [tmp_path / f"alone-{k}" for k in range(len(patches))]
    for k, patch in enumerate(alone):
        ckptdiff.make(files[k], files[k + 1], patch, codec="sparse")
    ckptdiff.make(files[0], files[-1], tmp_path / "one", codec="sparse")
    assert check_composed(files, alone, tmp_path / "added").read_bytes() == (tmp_path / "one").read_bytes()
    through = check_composed(made, patches, tmp_path / "through", base=BASE, codec="sparse")
    assert tree(through) == tree(tmp_path / "direct")
