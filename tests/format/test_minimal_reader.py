"""The minimal reader, written from the spec alone, agrees with the package."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint import scopes
from ckptdiff.patching.patch_limits import MAX_ALL_DESCRIBED, MAX_ALL_PIECES
from tests.support import hostile_files as made
from tests.support.checkpoints import tree
from tests.support.mutations import mutate
from tests.support.random_pairs import random_pair
from tests.support.vectors import READER, VECTORS, Vector, run_minimal, run_package

COUNT, BATCH = 500, 25


@pytest.mark.parametrize("batch", range(COUNT // BATCH))
def test_both_readers_agree_on_random_patches(batch: int, tmp_path: Path) -> None:
    """Each patch gives the exact target with both; a mutated one is accepted or refused by both."""
    for k in range(BATCH):
        rng = np.random.default_rng([batch, k])
        folder = tmp_path / str(k)
        folder.mkdir()
        base, target = random_pair(rng, folder)
        patch = folder / f"patch{target.suffix}"
        ckptdiff.make(base, target, patch, codec=[None, "raw", "sparse", "context"][k % 4], force=True)
        ckptdiff.apply(base, patch, folder / "ours")
        READER.apply(base, [patch], folder / "theirs")
        assert tree(folder / "ours") == tree(folder / "theirs") == tree(target)
        assert ckptdiff.verify(patch, base=base, target=target).ok
        chosen = patch if patch.is_file() else rng.choice([path for path in sorted(patch.rglob("*")) if path.is_file()])
        chosen.write_bytes(mutate(rng, chosen.read_bytes()))
        (ours, our_message), (theirs, their_message) = (
            run(base, [patch], folder / f"out{i}") for i, run in enumerate((run_package, run_minimal))
        )
        assert (ours == "success") == (theirs == "success"), (k, ours, our_message, theirs, their_message)


@pytest.mark.parametrize(
    "name",
    ["m-00001-of-00002.a.b", "m-0000\u0661-of-00002", "a\nm-00001-of-00002", "m-00001-of-00002.bf16", "m-00001-of-00002", "m-1-of-2"],
)
def test_both_readers_see_the_same_scopes(name: str, tmp_path: Path) -> None:
    path = f"{name}.safetensors"
    assert list(READER.group(str(tmp_path), [path], [])) == [scopes.scope_of_name(path)]


@pytest.mark.parametrize(
    "name", ["m.safetensors.index.json", "m.safetensors.index.fp16.json", "m.safetensors.index.a.b.json", "a\nm.safetensors.index.json"]
)
def test_both_readers_see_the_same_indexes(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"weight_map":{"w":"x.safetensors"}}')
    read = READER.read_index(str(tmp_path), name)
    found = READER.group(str(tmp_path), ["x.safetensors"], [read] if read else [])
    assert list(found) == list(
        scopes.scopes_of(["x.safetensors"], {name: tmp_path / name} if scopes.is_index(name) else {}, False).of_file.values()
    )


def test_output_paths_that_a_file_system_takes_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: that is an error of the machine, not of the patch, and nothing is written over another."""
    vector = next(path for path in VECTORS if path.stem == "ok_path_differs_in_case")
    base, patches = Vector.unpack(vector, tmp_path).inputs(tmp_path)
    create = READER.create
    monkeypatch.setattr(READER, "create", lambda path: create(path.replace("readme", "Readme")))
    with pytest.raises(FileExistsError):
        READER.apply(base, patches, tmp_path / "out")
    assert not (tmp_path / "out").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["base", "patch"]


def test_limits_of_the_minimal_reader() -> None:
    """Those of section 11 that no vector is small enough for, on both sides."""
    limit = (1 << 16) - len('{"x":""}')
    assert READER.info({"x": "k" * limit}) and not READER.info({"x": "k" * (limit + 1)})
    with pytest.raises(READER.PatchError, match="not strict JSON"):
        READER.document(b" " * (1 << 24), "ckptdiff", READER.METADATA)
    with pytest.raises(READER.PatchError, match="this ckptdiff is too large"):
        READER.document(b" " * ((1 << 24) + 1), "ckptdiff", READER.METADATA)
    limits = {"entries": 1 << 18, "removed": 1 << 18, "pieces": MAX_ALL_PIECES, "described": MAX_ALL_DESCRIBED, "size": 1 << 42}
    for key, most in limits.items():
        for more in (0, 1):
            sums = dict.fromkeys(limits, 0) | {key: most // 2}
            last = {**sums, key: most // 2 + more}
            shards = [
                SimpleNamespace(
                    entries=range(row["entries"]),
                    removed=range(row["removed"]),
                    pieces=row["pieces"],
                    described=row["described"],
                    metadata={"target": {"size": row["size"]}},
                )
                for row in (sums, last)
            ]
            refused = False
            try:
                READER.Patch.check_sums(SimpleNamespace(shards=shards))
            except READER.PatchError as error:
                refused = "too much in all patch files together" in error.message
            assert refused == bool(more), key


@pytest.mark.slow
def test_files_of_the_minimal_reader() -> None:
    def named(n: int) -> None:
        base = {"identity": made.DIGEST, "files": [], "scope": None}
        base["files"] = [made.file_row(f"{k:05}.safetensors") for k in range(n)]
        value = {key: made.DIGEST for key in ("table", "header")} | {"format": "ckptdiff", "version": 1, "info": {}, "base": base}
        target = {"identity": made.DIGEST, "scope": "t", "path": "t.safetensors", "size": 8}
        READER.document(made.sealed({**value, "target": target, "totals": made.no_totals()}), "ckptdiff", READER.METADATA)

    named(1 << 15)
    with pytest.raises(READER.PatchError, match="this ckptdiff names too many files"):
        named((1 << 15) + 1)
