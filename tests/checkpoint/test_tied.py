"""Names of one tensor, such as a head's that is tied to the embedding: they count once in a patch, and are all found when it is applied."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.errors import UnsupportedError
from ckptdiff.patching.torch_dtypes import flat_bytes, memory_range

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
safetensors_torch = pytest.importorskip("safetensors.torch")

State = dict[str, Any]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def moved(state: State, step: int = 1) -> State:
    """Some units of each tensor one higher, those of one memory once; ties stay."""
    seen: dict[int, Any] = {}
    for part in state.values():
        if part.data_ptr() not in seen:
            new = seen[part.data_ptr()] = part.detach().clone()
            new.view(torch.int16).view(-1)[::3] += step
    return {name: seen[part.data_ptr()] for name, part in state.items()}


def small(tied: bool = True) -> State:
    """The embedding first, as in a model; the head is it, or a copy."""
    torch.manual_seed(0)
    weight = torch.randn(40, 16).bfloat16()
    return {EMBEDDING: weight, "model.norm.weight": torch.ones(16).bfloat16(), HEAD: weight if tied else weight.clone()}


def same(model: State, expected: State) -> bool:
    """Whether a model has the expected content under each of its names."""
    return all(torch.equal(part.view(torch.int16), expected[name].view(torch.int16)) for name, part in model.items())


def only(state: State, *names: str) -> State:
    return {name: state[name].clone() for name in names}


HOLDERS = {
    "both names": lambda old: dict(zip(old, moved(old, 0).values(), strict=True)),
    "both names, the head first": lambda old: dict(reversed(moved(old, 0).items())),
    "as save_pretrained keeps it": lambda old: only(old, EMBEDDING, "model.norm.weight"),
    "as save_model keeps it": lambda old: only(old, HEAD, "model.norm.weight"),
    "untied copies": lambda old: only(old, EMBEDDING, HEAD, "model.norm.weight"),
    "behind a wrapper": lambda old: {f"module.{name}": part for name, part in moved(old, 0).items()},
}


@pytest.mark.parametrize("codec", ["sparse", "context"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_patch_of_a_tied_model_applies_to_any_of_its_forms(holder: str, codec: str) -> None:
    old = small()
    new = moved(old)
    patch = ckptdiff.Patch.from_bytes(ckptdiff.diff(old, new, codec=codec).to_bytes())
    assert patch.names == (EMBEDDING, "model.norm.weight")
    model = HOLDERS[holder](old)
    before = {name: part.clone() for name, part in model.items()}
    loaded = patch.load(model)
    for _ in range(2):
        loaded.apply_()
        assert same({name.removeprefix("module."): part for name, part in model.items()}, new)
        loaded.revert_()
        assert same(model, before)
    patch.apply_(model)
    assert same({name.removeprefix("module."): part for name, part in model.items()}, new)


@pytest.mark.parametrize("base", HOLDERS)
def test_the_base_may_be_of_any_form(base: str) -> None:
    """A delta, whatever the base calls the tensor; and a head that the target ties takes the embedding's content."""
    old = small()
    new = moved(old)
    held = HOLDERS[base](old)
    patch = ckptdiff.diff(held, new)
    assert (patch.totals.delta, patch.totals.new, patch.totals.copy) == (2, 0, 0) and patch.names == (EMBEDDING, "model.norm.weight")
    patch.apply_(held)
    assert same({name.removeprefix("module."): part for name, part in held.items()}, new)


def test_identity_counts_a_tensor_once() -> None:
    """One identity for a tied model, its file without a head, and a state dict in any order of its other names."""
    old, new = small(), moved(small())
    tied = ckptdiff.diff(old, new)
    files = ckptdiff.diff(only(old, EMBEDDING, "model.norm.weight"), only(new, EMBEDDING, "model.norm.weight"))
    assert (tied.base_identity, tied.target_identity) == (files.base_identity, files.target_identity)
    untied = ckptdiff.diff(small(False), moved(small(False)))
    assert untied.names == (HEAD, EMBEDDING, "model.norm.weight") and untied.target_identity != tied.target_identity


def test_only_names_of_one_tensor_are_tied() -> None:
    """The same memory in another shape or dtype, a part of it, and tensors of no elements are tensors of their own."""
    memory = torch.arange(64, dtype=torch.int16)
    state = {
        "a": memory,
        "shape": memory.view(8, 8),
        "dtype": memory.view(torch.bfloat16),
        "part": memory[:32],
        "no": memory[:0],
        "none": memory[:0],
        "b": memory,
    }
    assert set(ckptdiff.diff(state, state).names) == set(state) - {"b"}
    numbers = {name: part.numpy() for name, part in {"x": memory, "y": memory}.items()}
    assert ckptdiff.diff(numbers, numbers).names == ("x",)


@pytest.mark.parametrize("tied", [{"x": HEAD}, {HEAD: "x"}, {EMBEDDING: HEAD}, {"": ""}, {HEAD: EMBEDDING, EMBEDDING: HEAD}], ids=str)
def test_names_from_strangers_mislead_nobody(tied: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a patch states as further names only those count that name no entry, of an entry that is there."""
    old = small(False)
    new = moved(old)
    patch = ckptdiff.diff(old, new)
    monkeypatch.setattr("ckptdiff.patching.patch.OpenPatch.tied", tied)
    patch.apply_(old)
    assert same(old, new)


def test_a_base_that_is_tied_where_the_target_is_not() -> None:
    old, new = small(), moved(small(False))
    new[HEAD].view(torch.int16)[0, :5] += 1
    patch = ckptdiff.diff(old, new)
    assert (patch.totals.delta, patch.totals.new) == (3, 0)
    with pytest.raises(UnsupportedError, match=r"share memory, but the target of the patch gives them different contents"):
        patch.apply_(dict(old))
    model = only(old, EMBEDDING, HEAD, "model.norm.weight")
    patch.apply_(model)
    assert same(model, new)


def test_the_file_that_it_gives_is_without_the_other_names(tmp_path: Path) -> None:
    """``apply`` rebuilds what save_file writes of the names that count; ``load_target`` gives all names."""
    old, new = small(), moved(small())
    kept = (EMBEDDING, "model.norm.weight")
    for name, side in (("base", old), ("target", new)):
        safetensors_torch.save_file(only(side, *kept), tmp_path / f"{name}.safetensors", {"format": "pt"})
    (tmp_path / "patch.safetensors").write_bytes(ckptdiff.diff(old, new).to_bytes())
    ckptdiff.apply(tmp_path / "base.safetensors", tmp_path / "patch.safetensors", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "target.safetensors").read_bytes()
    found = ckptdiff.load_target(tmp_path / "base.safetensors", tmp_path / "patch.safetensors")
    assert found.keys() == new.keys() and same(found, new) and found[HEAD] is found[EMBEDDING]


def test_save_model_of_safetensors(tmp_path: Path) -> None:
    """It keeps the name that comes first in the alphabet, which is the head's."""

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(40, 16, dtype=torch.bfloat16)
            self.a_head = torch.nn.Linear(16, 40, bias=False, dtype=torch.bfloat16)
            self.a_head.weight = self.embed.weight

    old, new = Tied(), Tied()
    new.load_state_dict(moved(old.state_dict()))
    safetensors_torch.save_model(old, str(tmp_path / "base.safetensors"))
    held = safetensors_torch.load_file(tmp_path / "base.safetensors")
    assert list(held) == ["a_head.weight"]
    patch = ckptdiff.diff(old, new)
    assert patch.names == ("embed.weight",)
    patch.apply_(held)
    assert same(held, new.state_dict())
    patch.apply_(old)
    assert same(old.state_dict(), new.state_dict())
    ckptdiff.diff(held, old).apply_(new)
    assert same(new.state_dict(), held | {"embed.weight": held["a_head.weight"]})


def test_save_pretrained_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[transformers]'")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=40,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    old, new = (transformers.LlamaForCausalLM(config).bfloat16() for _ in range(2))
    new.load_state_dict(moved(old.state_dict()))
    for name, model in (("base", old), ("target", new)):
        model.save_pretrained(tmp_path / name)
    held = safetensors_torch.load_file(tmp_path / "base" / "model.safetensors")
    assert EMBEDDING in held and HEAD not in held
    patch = ckptdiff.diff(old, new)
    ckptdiff.make(tmp_path / "base" / "model.safetensors", tmp_path / "target" / "model.safetensors", tmp_path / "patch.safetensors")
    files = ckptdiff.info(tmp_path / "patch.safetensors")
    assert (patch.base_identity, patch.target_identity) == (files.base_identity, files.target_identity)
    patch.apply_(held)
    assert same(held, new.state_dict())
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    patch.apply_(loaded)
    assert same(loaded.state_dict(), new.state_dict())
    ckptdiff.Patch.open(tmp_path / "patch.safetensors").apply_(old)
    assert same(old.state_dict(), new.state_dict())


def test_memory_stays_resizable() -> None:
    """An array over a model's memory must not forbid torch to resize that."""
    old, new = small(), moved(small())
    ckptdiff.diff(old, new).apply_(old)
    for part in (*old.values(), *new.values()):
        size = part.untyped_storage().nbytes()
        part.untyped_storage().resize_(0)
        part.untyped_storage().resize_(size)


def test_memory_that_was_freed() -> None:
    """It is neither read nor written: the error comes first, with and without ``check``."""
    old, new = small(), moved(small())
    loaded = ckptdiff.diff(old, new).load(old)
    old[EMBEDDING].untyped_storage().resize_(0)
    for check in (True, False):
        with pytest.raises(UnsupportedError, match=rf"the model: {EMBEDDING}: its memory was freed, as FSDP does between uses: gather the"):
            loaded.apply_(check=check)
    assert torch.equal(old["model.norm.weight"], torch.ones(16).bfloat16()) and not loaded.applied
    with pytest.raises(UnsupportedError, match=r"the new tensors: lm_head\.weight: its memory was freed"):
        ckptdiff.diff(new, only(new, EMBEDDING) | {HEAD: old[HEAD]})


def test_numpy_sees_memory_as_long_as_it_looks() -> None:
    """A tensor is kept alive by an array over its memory."""
    code = "import torch, numpy\nfrom ckptdiff.patching.torch_dtypes import flat_bytes\n"
    code += "flat = [flat_bytes(torch.full((1 << 16,), k, dtype=torch.uint8), 'x') for k in range(200)]\n"
    code += "assert all((row == k).all() for k, row in enumerate(flat))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_where_memory_lies() -> None:
    """A part of a tensor's bytes lies where it is, not where they begin."""
    tensor = torch.arange(100, dtype=torch.int16)
    flat = flat_bytes(tensor[8:], "x")
    assert memory_range(flat) == ("cpu", tensor.data_ptr() + 16, 184)
    for part in (flat[6:20], flat[2:][4:18], flat.view(np.int16)[3:10].view(np.uint8)):
        assert memory_range(part) == ("cpu", tensor.data_ptr() + 22, 14)
    assert memory_range(np.asarray(flat_bytes(np.arange(4), "x")))[2] == 32
