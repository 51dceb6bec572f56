"""``load_through``: a served model, fused and sharded, becomes the target bit for bit, or stays as it was and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError, CkptdiffError, FormatError, IntegrityError, UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.engines import load_through, record  # noqa: E402
from tests.support.engine_model import Served, checkpoint, moved  # noqa: E402

BASE = checkpoint()
SFT, GRPO = moved(BASE), moved(BASE, 0.4, 7)
TO_SFT, TO_GRPO = ckptdiff.diff(BASE, SFT), ckptdiff.diff(BASE, GRPO)


def contents(state: Any, rank: int = 0, ranks: int = 1) -> dict[str, bytes]:
    return Served(state, rank, ranks).content()


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2), (3, 4)])
@pytest.mark.parametrize("digests", ["whole", "sampled"])
def test_a_rank_switches_between_fine_tunes(rank: int, ranks: int, digests: Any) -> None:
    model = Served(BASE, rank, ranks)
    served = record(model, BASE, digests=digests, threads=1)
    assert served.identity == ckptdiff.identity(BASE) and model.content() == contents(BASE, rank, ranks)
    states = ((TO_SFT, False, SFT), (TO_SFT, True, BASE), (TO_GRPO, False, GRPO), (TO_GRPO, True, BASE), (TO_SFT, False, SFT))
    for patch, back, state in states:
        load_through(model, patch, back=back, verify=served, threads=1)
        assert model.content() == contents(state, rank, ranks) and served.identity == ckptdiff.identity(state)


@pytest.mark.parametrize("codec", ["sparse", "context", "raw"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_codecs_and_dtypes(codec: str, dtype: str) -> None:
    base = checkpoint(dtype=getattr(torch, dtype))
    target = moved(base)
    patch, model = ckptdiff.diff(base, target, codec=codec), Served(base)
    load_through(model, patch, verify=record(model, base, threads=1), base=base, threads=1)
    assert model.content() == contents(target)


def test_changes_alone() -> None:
    model = Served(BASE)
    changes = list(TO_SFT.changes())
    load_through(model, changes)
    assert model.content() == contents(SFT)
    load_through(model, changes, back=True)
    assert model.content() == contents(BASE)
    with pytest.raises(UnsupportedError, match="verify= needs a patch"):
        load_through(model, changes, verify=record(model, BASE))


def refused(error: type[CkptdiffError], words: str, model: Served, patch: Any = TO_SFT, **options: Any) -> CkptdiffError:
    """What load_through raises; the model must be as it was."""
    before = model.content()
    with pytest.raises(error, match=words) as caught:
        load_through(model, patch, threads=1, **options)
    assert model.content() == before
    return caught.value


def test_relative_updates_know_where_they_start() -> None:
    model = Served(BASE, 1, 2)
    served = record(model, BASE, threads=1)
    load_through(model, TO_SFT, verify=served, threads=1)
    again = refused(BaseMismatchError, "is at [0-9a-f]{32} already, where the patch leads", model, verify=served)
    assert isinstance(again, BaseMismatchError) and again.kind == "already_target"
    missed = refused(BaseMismatchError, "was a step missed, or is it of another base", model, TO_GRPO, verify=served)
    assert isinstance(missed, BaseMismatchError) and missed.kind == "wrong_base"
    model.norm.data[3] += 1
    refused(BaseMismatchError, r"model\.norm\.weight: was changed since", model, TO_SFT, back=True, verify=served)


def test_a_record_needs_the_base_that_is_served() -> None:
    with pytest.raises(BaseMismatchError, match=r"tensor model\.embed_tokens\.weight: is not that of the base"):
        record(Served(SFT), BASE)
    with pytest.raises(UnsupportedError, match=r"is served in torch\.float32, expected the checkpoint's torch\.bfloat16"):
        record(Served({name: tensor.float() for name, tensor in BASE.items()}), BASE)
    with pytest.raises(UnsupportedError, match=r"Module has no load_weights: give loader="):
        record(torch.nn.Module(), BASE)
    model = Served(BASE)
    with pytest.raises(UnsupportedError, match="are loaded to one place"):
        record(model, BASE | {"again.0.norm.weight": BASE["model.norm.weight"].clone()}, loader=two_names(model))


def two_names(model: Served) -> Callable[[Iterable[tuple[str, Any]]], None]:
    def load(weights: Iterable[tuple[str, Any]]) -> None:
        for name, tensor in weights:
            model.load("model.norm.weight" if name.startswith("again") else name, tensor)

    return load


def test_patches_of_other_tensors_are_refused() -> None:
    model = Served(BASE)
    served = record(model, BASE, threads=1)
    fewer = {name: tensor for name, tensor in SFT.items() if name != "model.norm.weight"}
    refused(UnsupportedError, r"do not have the same tensors \(model\.norm\.weight\)", model, ckptdiff.diff(BASE, fewer), verify=served)
    refused(UnsupportedError, "only the base tells what changes", model, ckptdiff.diff(BASE, SFT, codec="context"), verify=served)


LOADERS = {
    "casts": (lambda t: t.float(), r"its loader casts it from torch\.bfloat16 to torch\.float32"),
    "computes": (lambda t: t + 1, r"its loader does more than copy it \(aten\.add\.Tensor\)"),
    "reads": (lambda t: t[: t.reshape(-1)[0].item()], r"does more than copy it \(aten\._local_scalar_dense"),
    "fails": (lambda t: t.missing, r"its loader failed \(AttributeError"),
    "cuts": (lambda t: t[:1], "its loader failed|writes to the model by aten.fill_|puts it elsewhere"),
    "stages": (lambda t: torch.empty_like(t).copy_(t), r"does more than copy it \(aten\.empty_like"),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("after", [0, 9])
def test_loaders_that_do_more_than_copy(name: str, after: int) -> None:
    """They are refused at the first such tensor, and what moved before is taken back."""
    how, words = LOADERS[name]

    class Odd(Served):
        odd, count = False, 0

        def load(self, name: str, tensor: Any) -> None:
            self.count += 1
            super().load(name, how(tensor) if self.odd and self.count > after and "norm" not in name else tensor)

    model = Odd(BASE)
    served = record(model, BASE, threads=1)
    model.odd, model.count = True, 0
    error: list[type[CkptdiffError]] = [UnsupportedError]
    if after:  # the loader does the same when it takes back
        model.count = -(10**6)
        calls = iter(range(10**6))
        model.load = lambda name, tensor: Served.load(model, name, how(tensor) if next(calls) == after else tensor)  # type: ignore[method-assign]
    refused(error[0], words, model, verify=served)
    model.load = lambda name, tensor: Served.load(model, name, tensor)  # type: ignore[method-assign]
    load_through(model, TO_SFT, verify=served, threads=1)
    assert model.content() == contents(SFT)


def test_contiguous_copies_are_followed() -> None:
    """A loader may copy what it is given on the way, as long as the bits stay."""

    class Careful(Served):
        def load(self, name: str, tensor: Any) -> None:
            super().load(name, tensor.t().contiguous().t().clone() if tensor.dim() == 2 else tensor.detach())

    model = Careful(BASE, 1, 2)
    load_through(model, TO_SFT, verify=record(model, BASE, threads=1), threads=1)
    assert model.content() == contents(SFT, 1, 2)


@pytest.mark.parametrize("what", ["skips", "elsewhere", "twice", "replaces", "writes"])
def test_loaders_that_change_their_ways(what: str) -> None:
    class Changing(Served):
        changed, wrong = False, True

        def load(self, name: str, tensor: Any) -> None:
            mine = self.changed and name.endswith("1.input_layernorm.weight")
            if mine and what == "elsewhere":
                self.layers_0_input_layernorm.data.copy_(tensor)
            elif mine and what == "replaces":
                self.norm = torch.nn.Parameter(self.norm.clone(), requires_grad=False)
            elif mine and what == "writes" and self.wrong:
                self.wrong = False
                self.norm.data.add_(1)
            elif not (mine and what == "skips"):
                for _ in range(1 + (mine and what == "twice")):
                    super().load(name, tensor)

    model = Changing(BASE)
    served = record(model, BASE, threads=1)
    model.changed = True
    words = {"skips": "made 0 copies of it, expected 1", "elsewhere": "puts it elsewhere", "twice": "puts it elsewhere"}
    words |= {"replaces": "its loader replaced tensors", "writes": r"writes to the model by aten\.add_\.Tensor"}
    if what == "replaces":
        with pytest.raises(IntegrityError, match=r"norm\.weight: has other memory than when the record wa"):
            load_through(model, TO_SFT, verify=served, threads=1)
        return
    refused(UnsupportedError, words[what], model, verify=served)


def test_what_cannot_be_taken_back_is_said_and_remembered() -> None:
    class Failing(Served):
        failing = -1

        def load(self, name: str, tensor: Any) -> None:
            if self.failing == 0:
                raise OSError("gone")
            super().load(name, tensor)
            self.failing -= 1

    model = Failing(BASE)
    served = record(model, BASE, threads=1)
    model.failing = 5
    with pytest.raises(IntegrityError, match=r"an update failed \(.*gone.*, and could not be taken back \(.*gone.*: load it anew"):
        load_through(model, TO_SFT, verify=served, threads=1)
    model.failing = -1
    refused(BaseMismatchError, "its content is unknown: an update failed", model, verify=served)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("after", [1, 12, 21])
def test_an_update_that_is_stopped_is_taken_back(error: type[BaseException], after: int) -> None:
    class Stopped(Served):
        left = 10**9

        def load(self, name: str, tensor: Any) -> None:
            super().load(name, tensor)
            self.left -= 1
            if self.left == 0:
                raise error

    model = Stopped(BASE)
    served = record(model, BASE, threads=1)
    model.left = after
    with pytest.raises((error, UnsupportedError)):
        load_through(model, TO_GRPO, verify=served, threads=1)
    assert model.content() == contents(BASE) and served.identity == ckptdiff.identity(BASE)
    load_through(model, TO_GRPO, verify=served, threads=1)
    assert model.content() == contents(GRPO)


def test_a_broken_patch_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Served(BASE)
    served = record(model, BASE, threads=1)
    from ckptdiff.engines import carriers

    given = carriers.coded_changes
    monkeypatch.setattr(carriers, "coded_changes", lambda file, entry: ((s, p, z + (p == p[-1])) for s, p, z in given(file, entry)))
    refused(IntegrityError, "came out with the digest .* not that which the patch states", model, verify=served)

    def torn(file: Any, entry: Any) -> Any:
        if "1.mlp" in entry.name:
            raise FormatError("torn")
        return given(file, entry)

    monkeypatch.setattr(carriers, "coded_changes", torn)
    refused(FormatError, "torn", model, verify=served)


def test_nothing_outside_the_model_is_intercepted() -> None:
    """Copies of the loader to memory of its own, and of other threads to any, are made."""
    scratch, other = torch.zeros(4), torch.zeros(4)

    class Busy(Served):
        def load(self, name: str, tensor: Any) -> None:
            scratch.copy_(torch.ones(4))
            super().load(name, tensor)

    model = Busy(BASE)
    served = record(model, BASE, threads=1)
    scratch.zero_()
    load_through(model, TO_SFT, verify=served, threads=1)
    other.copy_(torch.ones(4))
    assert scratch.tolist() == other.tolist() == [1, 1, 1, 1] and model.content() == contents(SFT)
