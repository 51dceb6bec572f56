"""``Updater`` and the client: patches, chains and the base in any order, in both ways, and failures of one rank of two."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError, CheckpointError, CkptdiffError, IntegrityError, UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
save_file = pytest.importorskip("safetensors.torch").save_file

from ckptdiff.engines import record  # noqa: E402
from ckptdiff.engines.placed import check_values, prepare_values  # noqa: E402
from ckptdiff.engines.updater import Updater, Wanted  # noqa: E402
from ckptdiff.engines.vllm_client import Client  # noqa: E402
from ckptdiff.engines.ways import Move, ThroughMirror, Way  # noqa: E402
from tests.support.engine_model import Plain, Served, checkpoint, moved  # noqa: E402

BASE = checkpoint()
STATES = {"sft": moved(BASE), "grpo": moved(BASE, 0.4, 7)}
STEPS = {1: moved(BASE, 0.05, 11)}
STEPS[2] = moved(STEPS[1], 0.05, 12)
STEPS[5] = moved(STEPS[2], 0.05, 13)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, patches of it, and a chain."""
    made = tmp_path_factory.mktemp("engine")
    save_file(BASE, made / "base.safetensors")
    for name, state in STATES.items():
        (made / name).write_bytes(ckptdiff.diff(BASE, state).to_bytes())
    (made / "sft-context").write_bytes(ckptdiff.diff(BASE, STATES["sft"], codec="context").to_bytes())
    (made / "sft-grpo").write_bytes(ckptdiff.diff(STATES["sft"], STATES["grpo"]).to_bytes())
    with ckptdiff.Publisher(made / "chain", base=BASE, threads=1) as publisher:
        for step, state in STEPS.items():
            publisher.publish(state, step)
    return made


def way(kind: str, model: Served, base: str) -> Way:
    if kind == "mirror":
        return ThroughMirror(base, lambda mirror, _: lambda: model.load_weights(mirror.items()), 1)
    served = record(model, base, threads=1)
    if kind == "move":
        return Move(model, served, base)
    check = partial(check_values, model, served)
    return ThroughMirror(base, lambda mirror, loaded: prepare_values(model, served, mirror, loaded) or pytest.fail("no places"), 1, check)


def update(updater: Updater, **wanted: Any) -> None:
    updater.stage(Wanted(**wanted))
    updater.apply()


@pytest.mark.parametrize(("kind", "model_type"), [("move", Served), ("move", Plain), ("mirror", Served), ("values", Plain)])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_any_order(kind: str, model_type: type[Served], rank: int, ranks: int, work: Path) -> None:
    model = model_type(BASE, rank, ranks)
    updater = Updater(way(kind, model, str(work / "base.safetensors")), 1)

    def served(state: Any) -> bool:
        same = model.content() == model_type(state, rank, ranks).content()
        return same and updater.state()["identity"] == ckptdiff.identity(state)

    for name in ("sft", "grpo", "sft-context", "sft-grpo", "sft"):
        update(updater, patch=str(work / name))
        assert served(STATES["grpo" if name.endswith("grpo") else "sft"]), name
    with pytest.raises(BaseMismatchError, match=r"is at [0-9a-f]+ already, where .*sft leads") as caught:
        update(updater, patch=str(work / "sft"))
    assert caught.value.kind == "already_target" and served(STATES["sft"])
    update(updater, base=True)
    assert served(BASE) and updater.state()["step"] is None
    with pytest.raises(BaseMismatchError, match=r"sft-grpo starts from [0-9a-f]+, which it does not know how to get back to"):
        update(updater, patch=str(work / "sft-grpo"))
    update(updater, patch=str(work / "grpo"))
    update(updater, chain=str(work / "chain"), step=1)  # first back to the base of both
    assert served(STEPS[1]) and updater.state()["step"] == 1
    update(updater, chain=str(work / "chain"), step=2)
    assert served(STEPS[2])
    updater.undo(ckptdiff.identity(STEPS[1]))
    updater.undo(ckptdiff.identity(STEPS[1]))
    assert served(STEPS[1]) and updater.state()["step"] == 1
    update(updater, chain=str(work / "chain"))
    assert served(STEPS[5]) and updater.state()["step"] == 5
    with pytest.raises(CkptdiffError, match="which comes after step 1"):
        update(updater, chain=str(work / "chain"), step=1)
    with pytest.raises(BaseMismatchError, match="starts from"):
        update(updater, base=True)
    with pytest.raises(BaseMismatchError, match="its last update did not start from"):
        updater.undo(ckptdiff.identity(BASE))
    assert served(STEPS[5])


@pytest.mark.parametrize("times", [1, 2])
def test_a_mirror_that_cannot_be_loaded_is_taken_back(times: int, work: Path) -> None:
    model, failing = Served(BASE), [0]

    def push(mirror: Any) -> None:
        for k, (name, tensor) in enumerate(mirror.items()):
            if k == 9 and failing[0]:
                failing[0] -= 1
                raise OSError("gone")
            model.load(name, tensor)

    updater = Updater(ThroughMirror(str(work / "base.safetensors"), lambda mirror, _: lambda: push(mirror), 1), 1)
    failing[0] = times
    if times == 1:
        with pytest.raises(UnsupportedError, match=r"its loader failed \(OSError: gone\); the weights are what they were"):
            update(updater, patch=str(work / "sft"))
        assert model.content() == Served(BASE).content()
        update(updater, patch=str(work / "sft"))
        assert model.content() == Served(STATES["sft"]).content()
        return
    with pytest.raises(IntegrityError, match=r"could not be taken back \(gone\): load it anew"):
        update(updater, patch=str(work / "sft"))
    for call in (updater.apply, lambda: updater.undo(ckptdiff.identity(BASE))):
        with pytest.raises(IntegrityError, match=r"the engine: an update failed .* load it anew"):
            call()


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_values_that_something_else_wrote_are_seen_at_the_next_update(rank: int, ranks: int, work: Path) -> None:
    model = Plain(BASE, rank, ranks)
    updater = Updater(way("values", model, str(work / "base.safetensors")), 1)
    update(updater, patch=str(work / "sft"))
    units = model.layers_1_o_proj.data.view(torch.int16)
    units[-1, -1] ^= 1
    before = model.content()
    with pytest.raises(BaseMismatchError, match=r"layers\.1\.self_attn\.o_proj\.weight: was changed since the last update"):
        update(updater, patch=str(work / "grpo"))
    assert model.content() == before
    units[-1, -1] ^= 1
    update(updater, patch=str(work / "grpo"))
    assert model.content() == Plain(STATES["grpo"], rank, ranks).content()


def test_what_is_asked_for_must_be_clear(work: Path) -> None:
    for wanted in ({}, {"patch": "a", "chain": "b"}, {"base": True, "step": 3}, {"step": 1}):
        with pytest.raises(CheckpointError, match="names one of a patch, a chain"):
            Wanted(**wanted)  # type: ignore[arg-type]
    updater = Updater(way("move", Served(BASE), str(work / "base.safetensors")), 1)
    with pytest.raises(CheckpointError, match="no update is prepared: stage one first"):
        updater.apply()
    with pytest.raises(CkptdiffError, match="nowhere"):
        update(updater, patch=str(work / "nowhere"))
    assert updater.state()["error"]["kind"] == "checkpoint"


class Ranks:
    """A :class:`ckptdiff.engines.vllm_client.Server` of two ranks in this process, as strict about sessions as vLLM."""

    def __init__(self, work: Path) -> None:
        self.models = [Served(BASE, rank, 2) for rank in (0, 1)]
        self.updaters = [Updater(way("move", model, str(work / "base.safetensors")), 1) for model in self.models]
        self.open, self.paused, self.version, self.calls = False, False, "default", list[str]()
        self.failing, self.resets = False, 0

    def call(self, name: str, **fields: Any) -> Any:
        self.calls.append(name)
        if name == "start_weight_update":
            if self.open:
                raise CheckpointError("already active")
            self.open = True
        elif name == "update_weight_version":
            self.version = fields["new_version"]
        elif name == "finish_weight_update":
            if not self.open:
                raise CheckpointError("without a matching start")
            self.open, self.version = False, fields.get("weight_version", self.version)
        elif name == "update_weights":
            self._update(**fields["update_info"])

    def _update(self, action: str, to: str = "", **wanted: Any) -> None:
        assert self.open and (action == "stage") != self.paused
        for rank, updater in enumerate(self.updaters):
            if action == "stage":
                updater.stage(Wanted(**wanted))
            elif action == "undo":
                updater.undo(to)
            elif self.failing and rank == 1:
                self.open = False
                raise CheckpointError("rank 1 failed")
            else:
                updater.apply()

    def states(self) -> list[dict[str, Any]]:
        return [updater.state() for updater in self.updaters]

    def close(self) -> None:
        self.open = False

    def pause(self, mode: str) -> None:
        self.paused = True

    def reset(self) -> None:
        self.resets += 1

    def resume(self) -> None:
        self.paused = False

    def serve(self, state: Any) -> bool:
        return all(model.content() == Served(state, rank, 2).content() for rank, model in enumerate(self.models)) and not self.paused


def test_a_client_drives_all_ranks_or_none(work: Path) -> None:
    server = Ranks(work)
    client = Client(server)
    updated = client.update(patch=str(work / "sft"))
    assert server.serve(STATES["sft"]) and server.version == updated.identity == ckptdiff.identity(STATES["sft"])
    assert set(updated.timings) == {"stage", "pause", "apply", "resume", "paused"} and updated.nbytes == (work / "sft").stat().st_size
    with pytest.raises(BaseMismatchError, match="already") as caught:
        client.update(patch=str(work / "sft"))
    assert caught.value.kind == "already_target"
    server.failing = True
    with pytest.raises(CheckpointError, match="rank 1 failed"):
        client.update(patch=str(work / "grpo"))
    assert server.serve(STATES["sft"]) and server.version == ckptdiff.identity(STATES["sft"]) and not server.open
    server.failing = False
    client.update(base=True)
    assert server.serve(BASE)


def test_a_client_follows_a_chain_and_makes_good_what_a_killed_one_left(work: Path) -> None:
    server = Ranks(work)
    client = Client(server)
    begun = time.monotonic()
    taken = [updated.step for updated in client.follow(str(work / "chain"), interval=0.01, until=lambda _: time.monotonic() > begun + 0.1)]
    assert taken == [5] and server.serve(STEPS[5]) and server.version == f"5-{ckptdiff.identity(STEPS[5])}"
    server.open, server.paused, server.version = True, True, "stale"  # killed after apply, before finish
    assert not list(Client(server).follow(str(work / "chain"), until=lambda _: True))
    assert not server.open and not server.paused and server.resets == 2 and server.version == f"5-{ckptdiff.identity(STEPS[5])}"
    server.updaters[0].way = way("move", Served(BASE, 0, 2), str(work / "base.safetensors"))
    with pytest.raises(IntegrityError, match="the ranks serve different weights"):
        client.state()
