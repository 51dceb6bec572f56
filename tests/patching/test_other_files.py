"""Files that are not weights: added, removed, changed, streamed, left out, and by glob."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import bf16, tree, write
from tests.support.roundtrips import file_kinds, put, roundtrip


def test_other_files_come_back(tmp_path: Path, two_folders: tuple[Path, Path], rng: np.random.Generator) -> None:
    """Files added, removed, changed, equal, empty, in subfolders, without an ending, and of random bytes."""
    noise = rng.bytes(100_000)
    put(two_folders[0], {
        "config.json": '{"a": 1}', "gone.txt": "old", "sub/gone too": "", "sub/deep/er/vocab.json": "[1, 2]" * 1000, "equal": "=" * 5000,
        "to empty": "full", "from empty": "", "still empty": "", "noise.bin": noise,
    })  # fmt: skip
    put(two_folders[1], {
        "config.json": '{"a": 2}', "added.txt": "new" * 100, "added/empty": "", "sub/deep/er/vocab.json": "[1, 2]" * 999 + "[3]",
        "equal": "=" * 5000, "to empty": "", "from empty": "full", "still empty": "", "noise.bin": noise[:50_000] + b"!" + noise[50_000:],
    })  # fmt: skip
    info = roundtrip(tmp_path, *two_folders)
    assert file_kinds(info) == {
        "config.json": "delta", "added.txt": "new", "added/empty": "new", "sub/deep/er/vocab.json": "delta", "equal": "same",
        "to empty": "delta", "from empty": "new", "still empty": "same", "noise.bin": "delta",
    }  # fmt: skip
    assert info.removed_files == ("gone.txt", "sub/gone too")
    stored = {row.path: row.stored for row in info.files}
    assert stored["noise.bin"] < 1000 and stored["sub/deep/er/vocab.json"] < 100 and stored["equal"] == 0


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize("start", [b"", b"\x37\xa4\x30\xec", b"\x28\xb5\x2f\xfd"], ids=["plain", "zstd dictionary", "zstd frame"])
def test_prefixes_that_look_like_something_else(tmp_path: Path, two_folders: tuple[Path, Path], start: bytes, size: int) -> None:
    """A base file that is tiny, or begins with a magic number of zstd, is still a raw prefix."""
    put(two_folders[0], {"f": start + b"abcdefgh" * size, "tiny": b"x" * size})
    put(two_folders[1], {"f": start + b"abcdefgh" * size + b"Z", "tiny": start + b"x" * (size + 1)})
    assert file_kinds(roundtrip(tmp_path, *two_folders)) == {"f": "delta", "tiny": "delta"}


def test_files_over_the_limit_are_streamed(
    tmp_path: Path, two_folders: tuple[Path, Path], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files or bases over the limit for deltas are stored whole, streamed; those at the limit are not."""
    import ckptdiff.patching.other_files

    monkeypatch.setattr(ckptdiff.patching.other_files, "MAX_DELTA_FILE", 100_000)
    big, limit, small = rng.bytes(3_000_000), rng.bytes(100_000), rng.bytes(1000)
    put(two_folders[0], {"big": big, "shrunk": big, "grown": small, "limit": limit, "equal": big})
    put(two_folders[1], {"big": big[:-1], "shrunk": big[:1000], "grown": big, "limit": limit[::-1], "equal": big, "added": big + big})
    info = roundtrip(tmp_path, *two_folders)
    assert file_kinds(info) == {"big": "new", "shrunk": "new", "grown": "new", "limit": "delta", "equal": "same", "added": "new"}
    twice = tmp_path / "again"
    ckptdiff.make(*two_folders, twice)
    assert tree(twice) == tree(tmp_path / "the patch")


LEFT_OUT = [
    "optimizer.pt", "sub/optimizer.bin", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin", "a.lock",
    ".cache/huggingface/x", "runs/events", "wandb/log", "checkpoint-5/optimizer.pt", "global_step7/x", "__pycache__/m.pyc", "latest",
    ".git/config", ".git/objects/ab/cd", "sub/.git/HEAD",
]  # fmt: skip


def test_training_state_is_left_out_and_listed(tmp_path: Path, two_folders: tuple[Path, Path]) -> None:
    """Version control, caches and training state stay out of the patch; the result lists what was left out."""
    put(two_folders[0], dict.fromkeys([*LEFT_OUT, "config.json"], "old"))
    wanted = tree(put(two_folders[1], {"config.json": "new"}))
    put(two_folders[1], dict.fromkeys(LEFT_OUT, "new"))
    for folder in two_folders:
        write(folder / "checkpoint-5" / "model.safetensors", {"w": bf16([1])})
    made = ckptdiff.make(*two_folders, tmp_path / "p")
    ckptdiff.apply(two_folders[0], tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted
    assert made.files == ("config.json",) and made.removed_files == ()
    assert set(made.left_out) == {*LEFT_OUT, "checkpoint-5/model.safetensors"}
    assert sorted(path.name for path in (tmp_path / "p" / "files").rglob("*")) == ["config.json.zst"]


def test_include_takes_files_and_exclude_beats_it(tmp_path: Path, two_folders: tuple[Path, Path]) -> None:
    """``include`` takes files that are left out by default, ``exclude`` leaves others out and beats it."""
    names = ["optimizer.pt", "runs/a", "runs/b", "README.md", "docs/x.md", "config.json"]
    put(two_folders[0], dict.fromkeys(names, "old"))
    put(two_folders[1], dict.fromkeys(names, "new"))
    made = ckptdiff.make(*two_folders, tmp_path / "p", include=["optimizer*", "runs/*"], exclude=["*.md", "runs/b"])
    ckptdiff.apply(two_folders[0], tmp_path / "p", tmp_path / "out")
    assert made.files == ("config.json", "optimizer.pt", "runs/a")
    assert set(made.left_out) == {"runs/b", "README.md", "docs/x.md"}
    everything = tree(two_folders[1])
    assert tree(tmp_path / "out") == {name: everything[name] for name in ("config.json", "optimizer.pt", "runs/a", "model.safetensors")}


def test_other_weight_formats_are_other_files(tmp_path: Path, two_folders: tuple[Path, Path], rng: np.random.Generator) -> None:
    """``.bin``, ``.gguf`` and ``.pt`` beside safetensors weights are kept as files."""
    old, new = rng.bytes(5000), rng.bytes(10)
    names = ("pytorch_model.bin", "model.gguf", "w.pt", "w.pth", "w.ckpt", "model.safetensors.bak")
    put(two_folders[0], dict.fromkeys(names, old))
    put(two_folders[1], dict.fromkeys(names, old + new))
    assert file_kinds(roundtrip(tmp_path, *two_folders)) == dict.fromkeys(names, "delta")


def test_a_file_beside_a_folder_of_its_stored_name(tmp_path: Path, two_folders: tuple[Path, Path]) -> None:
    """``x`` is stored as ``x.zst``, and the target also has a folder ``x.zst``."""
    put(two_folders[1], {"x": "a file", "x.zst.zst": "another file"})
    assert set(file_kinds(roundtrip(tmp_path, *two_folders))) == {"x", "x.zst.zst"}
    put(two_folders[1], {"x.zst/y": "in a folder"})
    with pytest.raises(ckptdiff.CheckpointError, match="would be a file and a folder in the patch: rename one, or leave it out"):
        ckptdiff.make(*two_folders, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
