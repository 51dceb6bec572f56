"""Any two checkpoints that hypothesis draws: make, then apply, gives the target back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptdiff
from tests.support.checkpoints import changed_units, tree, write
from tests.support.safetensors_views import library_view
from tests.support.strategies import FRAMES, pairs, quick


@pytest.mark.parametrize("codec", [None, "raw", "sparse", "context"])
@quick(50)
@given(pair=pairs(), frames=st.tuples(FRAMES, FRAMES))
def test_any_two_files_come_back(codec: str | None, pair: Any, frames: Any) -> None:
    """Any two files: the target comes back, the patch is sound, ``only`` gives the library the same tensors."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        base, target = (
            write(tmp / f"{side}.safetensors", tensors, metadata, pad, first)
            for side, tensors, (metadata, pad, first) in zip("bt", pair, frames, strict=True)
        )
        ckptdiff.make(base, target, tmp / "p", codec=codec, threads=1)
        ckptdiff.apply(base, tmp / "p", tmp / "out", threads=1)
        assert tree(tmp / "out") == tree(target)
        found = ckptdiff.verify(tmp / "p", base=base, target=target, threads=1)
        assert found.ok, found.problems
        info = ckptdiff.info(tmp / "p")
        assert [row.name for row in info.tensors] == list(pair[1])
        for row in info.tensors:
            old = pair[0].get(row.bases[0] if row.bases else "")
            if row.kind in ("same", "copy"):
                assert row.payload == 0 and row.changed == 0
            if row.kind == "delta":
                assert old and 1 <= row.changed <= row.units
                assert old[0] != row.dtype or row.changed == changed_units(old, pair[1][row.name])
        assert set(info.removed_tensors) == set(pair[0]) - {name for row in info.tensors for name in (row.name, *row.bases)}
        if pair[1]:
            ckptdiff.apply(base, tmp / "p", tmp / "only", only=["*"], threads=1)
            assert library_view((tmp / "only").read_bytes()) == pair[1]


@quick(30)
@given(pair=pairs(), shards=st.tuples(st.integers(1, 3), st.integers(1, 3)), indexed=st.booleans(), data=st.data())
def test_any_two_folders_come_back(pair: Any, shards: tuple[int, int], indexed: bool, data: Any) -> None:
    """Any two folders, each split at random, with any files beside the weights; and on from the target back to the base."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        for side, tensors, count in zip("bt", pair, shards, strict=True):
            places = {tensor: data.draw(st.integers(1, count)) for tensor in tensors}
            for k in range(1, count + 1):
                shard = {tensor: tensors[tensor] for tensor, place in places.items() if place == k}
                write(tmp / side / f"model-{k:05}-of-{count:05}.safetensors", shard)
            if indexed:
                weight_map = {tensor: f"model-{place:05}-of-{count:05}.safetensors" for tensor, place in places.items()}
                (tmp / side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
            for file, content in data.draw(st.dictionaries(st.sampled_from(["a.json", "b.txt", "é"]), st.binary(max_size=40))).items():
                (tmp / side / file).write_bytes(content)
        ckptdiff.make(tmp / "b", tmp / "t", tmp / "there", threads=1)
        ckptdiff.make(tmp / "t", tmp / "b", tmp / "back", threads=1)
        ckptdiff.apply(tmp / "b", tmp / "there", tmp / "t2", threads=1)
        ckptdiff.apply(tmp / "b", [tmp / "there", tmp / "back"], tmp / "b2", threads=1)
        assert tree(tmp / "t2") == tree(tmp / "t")
        assert tree(tmp / "b2") == tree(tmp / "b")
        found = ckptdiff.verify(tmp / "there", base=tmp / "b", target=tmp / "t", threads=1)
        assert found.ok, found.problems
