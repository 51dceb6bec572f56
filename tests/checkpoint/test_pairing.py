"""Which base tensor stands for a target tensor: by name, by content, by a prefix, by a rule; and copies within the target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.casts import CASTS
from tests.support.checkpoints import perturb, random_tensor, tensor, write_sharded
from tests.support.refusals import refused
from tests.support.roundtrips import CODECS, pair, roundtrip
from tests.support.small_pair import Pair


def test_added_and_removed_tensors_are_listed(tmp_path: Path, rng: np.random.Generator) -> None:
    """Tensors that only one side has: ``new``, and listed as removed."""
    shared, old, new = (random_tensor(rng, "F32", [8, 8]) for _ in range(3))
    rows = pair(tmp_path, {"shared": shared, "old": old, "öld 2": old}, {"shared": shared, "new": new})
    assert {name: row.kind for name, row in rows.items()} == {"shared": "same", "new": "new"}
    info = ckptdiff.info(tmp_path / "the patch")
    assert info.removed_tensors == ("old", "öld 2")
    assert (info.totals.same, info.totals.new, info.totals.removed) == (1, 1, 2)


def test_renamed_with_the_same_content(tmp_path: Path, rng: np.random.Generator) -> None:
    """A tensor under an unrelated new name is found by its content: no payload, the old name recorded."""
    w, v = random_tensor(rng, "F32", [40, 40]), random_tensor(rng, "BF16", [3])
    rows = pair(tmp_path, {"transformer.h.0.w": w, "v": v}, {"layers.0.weight": w, "other": v})
    assert (rows["layers.0.weight"].kind, rows["layers.0.weight"].payload, rows["layers.0.weight"].bases) == (
        "same",
        0,
        ("transformer.h.0.w",),
    )
    assert (rows["other"].kind, rows["other"].bases) == ("same", ("v",))
    assert ckptdiff.info(tmp_path / "the patch").removed_tensors == ()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
def test_renamed_by_prefix_and_changed(tmp_path: Path, rng: np.random.Generator, prefix: str, forward: bool, codec: str | None) -> None:
    """The prefixes of DataParallel, torch.compile and head models come or go, while the values change."""
    plain = {f"layers.{i}.weight": random_tensor(rng, "BF16", [8, 8]) for i in range(3)}
    changed = {name: perturb(rng, data, 0.02) for name, data in plain.items()}
    base, target = (plain, {prefix + n: d for n, d in changed.items()}) if forward else ({prefix + n: d for n, d in plain.items()}, changed)
    rows = pair(tmp_path, base, target, codec=codec)
    assert {row.kind for row in rows.values()} == {"delta"}
    assert {(row.name, *row.bases) for row in rows.values()} == set(zip(target, base, strict=True))


@pytest.mark.parametrize("rules", [["^decoder\\.=transformer."], ["^decoder=tmp", "^tmp\\.(.*)=transformer.\\1"]])
def test_renamed_by_rule_and_changed(tmp_path: Path, rng: np.random.Generator, rules: list[str]) -> None:
    """``--rename REGEX=REPL`` turns the target's names into the base's; several rules apply in turn."""
    base = {f"transformer.{i}.w": random_tensor(rng, "F32", [8, 8]) for i in range(3)}
    target = {name.replace("transformer", "decoder"): perturb(rng, data, 0.02) for name, data in base.items()}
    rows = pair(tmp_path, base, target, rename=rules)
    assert {(row.name, *row.bases, row.kind) for row in rows.values()} == {(t, b, "delta") for t, b in zip(target, base, strict=True)}


def test_renames_that_swap_and_share(tmp_path: Path, rng: np.random.Generator) -> None:
    """Two names change places, and two targets stand on one base tensor."""
    base = {"a": random_tensor(rng, "F32", [8, 8]), "b": random_tensor(rng, "F32", [8, 8])}
    target = {"a": perturb(rng, base["b"], 0.02), "b": perturb(rng, base["a"], 0.02), "b2": perturb(rng, base["a"], 0.03)}
    rows = pair(tmp_path, base, target, rename=["^a$=x", "^b2?$=a", "^x$=b"])
    assert {(row.name, *row.bases) for row in rows.values()} == {("a", "b"), ("b", "a"), ("b2", "a")}


@pytest.mark.parametrize("codec", CODECS)
def test_an_untied_copy_is_stored_once(tmp_path: Path, rng: np.random.Generator, codec: str | None) -> None:
    """A target tensor that repeats another one is stored once."""
    embed, fresh = random_tensor(rng, "BF16", [30, 8]), random_tensor(rng, "F32", [9])
    changed = perturb(rng, embed, 0.1)
    rows = pair(tmp_path, {"embed": embed}, {"embed": changed, "head": changed, "n1": fresh, "n2": fresh, "n3": fresh}, codec=codec)
    assert {name: (row.kind, *row.bases) for name, row in rows.items()} == {
        "embed": ("delta", "embed"), "head": ("copy", "embed"), "n1": ("new",), "n2": ("copy", "n1"), "n3": ("copy", "n1"),
    }  # fmt: skip


def test_copies_across_shards(tmp_path: Path, rng: np.random.Generator) -> None:
    """A copy may name a tensor of an earlier shard or of a later one."""
    a, b = random_tensor(rng, "BF16", [30, 8]), random_tensor(rng, "F32", [30])
    a2, b2 = perturb(rng, a, 0.1), perturb(rng, b, 0.1)
    base = write_sharded(tmp_path / "base", {"model-00001-of-00002.safetensors": {"a": a}, "model-00002-of-00002.safetensors": {"b": b}})
    shards = {"model-00001-of-00002.safetensors": {"a": a2, "early": b2}, "model-00002-of-00002.safetensors": {"b": b2, "late": a2}}
    info = roundtrip(tmp_path, base, write_sharded(tmp_path / "target", shards))
    assert {row.name: (row.kind, *row.bases) for row in info.tensors} == {
        "a": ("delta", "a"), "early": ("copy", "b"), "b": ("delta", "b"), "late": ("copy", "a"),
    }  # fmt: skip


def test_copy_of_an_adapted_tensor(tmp_path: Path) -> None:
    """Tensors that are ``same`` only after a cast, under two names, and a copy of them; and one that is ``same`` under another name."""
    base, wide = CASTS["BF16-F32"]
    new = tensor("F32", wide[1], wide[2][:-4] + b"\1\1\1\1")
    rows = pair(tmp_path, {"w": base, "x": new}, {"w": wide, "w2": wide, "x": wide, "y": new, "z": new})
    assert {name: (row.kind, *row.bases) for name, row in rows.items()} == {
        "w": ("same", "w"), "w2": ("copy", "w"), "x": ("copy", "w"), "y": ("same", "x"), "z": ("same", "x"),
    }  # fmt: skip


@pytest.mark.parametrize("rule", ["nothing", "=x", "(=x", r"a=\9", "a{99999999999999}=x", "(" * 3000 + ")" * 3000 + "=x"])
def test_bad_rename_rules_are_refused(rule: str, files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.CheckpointError, "--rename", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out.safetensors", rename=[rule])
