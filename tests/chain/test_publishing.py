"""States published in memory and followed: every version comes back bit for bit, in any order of publishing, rejecting and resuming."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.chain.history import read_history
from ckptdiff.io.store_urls import open_store
from tests.support.states import State, check_chain, copy_of, first_state, next_state, same, states
from tests.support.strategies import quick

ACTIONS = st.lists(st.sampled_from(["publish", "publish", "publish", "reject", "resume", "again", "follow"]), min_size=3, max_size=12)


def result(version: Any) -> ckptdiff.Version:
    found: ckptdiff.Version = version.result() if isinstance(version, Future) else version
    return found


@given(ACTIONS, st.booleans(), st.sampled_from(["sparse", "sparse", "context"]), st.integers(1, 4), st.integers(0, 1 << 20))
@quick(25)
def test_any_sequence(actions: list[str], acknowledged: bool, codec: str, every: int, seed: int) -> None:
    chain = f"memory://publishing-{seed}-{os.getpid()}"
    pytest.importorskip("fsspec")
    rng, base, known, step = np.random.default_rng(seed), first_state(seed), dict[int, State](), 0
    options: dict[str, Any] = {"base": base, "codec": codec, "keyframe_every": every, "threads": 1, "acknowledged": acknowledged}
    publisher = ckptdiff.Publisher(chain, **options)
    model, at = copy_of(base), ckptdiff.Subscriber(chain, threads=1)
    keyframe_due = False
    try:
        for action in actions:
            if action == "publish":
                step += int(rng.integers(1, 5))
                known[step] = next_state(known[max(known)] if known else base, rng)
                version = publisher.publish(known[step], step=step)
                assert (version.step, version.identity) == (step, ckptdiff.identity(known[step]))
                assert (version.keyframe_size > 0) >= (keyframe_due and len(known) > 1)
                keyframe_due = False
                if acknowledged and rng.random() < 0.7:
                    publisher.ack(version)
                elif acknowledged:
                    publisher.reject(version)
                    del known[step]
                    keyframe_due = True
            elif action == "reject" and known and not acknowledged:
                publisher.reject(max(known))
                keyframe_due = True
            elif action == "resume":
                last = publisher.resume()
                keyframe_due = False
                assert (last.step if last else 0) == max(known, default=0)
            elif action == "again":
                publisher = ckptdiff.Publisher(chain, **options)
                keyframe_due = False
                publisher.resume()
            elif action == "follow" and known and at.step != max(known):
                at.stage().apply_(model)
                assert same(model, known[max(known)]) and at.step == max(known)
        check_chain(chain, known, base)
        steps = read_history(open_store(chain)).steps
        assert [s.number for s in steps] == sorted(known) and all(s.follows for s in steps)
    finally:
        import fsspec

        fsspec.filesystem("memory").rm(chain.removeprefix("memory:/"), recursive=True)


@pytest.mark.parametrize("worker", ["thread", "process"])
@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_workers(tmp_path: Path, worker: Any, codec: str) -> None:
    """The caller may change the state as soon as publish returns."""
    run = states(7)
    with ckptdiff.Publisher(tmp_path / "chain", base=run[0], keyframe_every=3, codec=codec, worker=worker, threads=1) as publisher:
        state, waiting = copy_of(run[0]), list[Any]()
        for step, new in enumerate(run[1:], 1):
            for name in state:
                state[name][...] = new[name]
            waiting.append(publisher.publish(state, step=step))
            for name in state:
                state[name][...] = 0
        assert [result(version).step for version in waiting] == list(range(1, 8))
        with pytest.raises(ckptdiff.CheckpointError, match="step 7 is there already: publish a step above 7"):
            publisher.publish(run[7], step=7).result()
        publisher.reject(7)
        assert publisher.publish(run[3], step=8).result().keyframe_size
        assert publisher.resume().step == 8  # type: ignore[union-attr]
        publisher.publish(run[4], step=9).result()
    with pytest.raises(ckptdiff.CheckpointError, match="this publisher is closed: make another one"):
        publisher.publish(run[4], step=10)
    check_chain(tmp_path / "chain", dict(enumerate([*run[1:], run[3], run[4]], 1)), run[0])
    assert sorted(os.listdir(tmp_path / "chain")) == ["HEAD.json", "chain.json", "epochs", "keyframes", "steps"]


def test_the_command_line_reads_what_was_published(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    base = {"w": torch.randn(50, 40).bfloat16(), "b": torch.randn(40)}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    state, chain = {name: tensor.clone() for name, tensor in base.items()}, tmp_path / "chain"
    with ckptdiff.Publisher(chain, base=tmp_path / "base", keyframe_every=2) as publisher:
        for step in range(1, 6):
            state["w"] += 0.01 * torch.randn(50, 40).bfloat16()
            publisher.publish(state, step=10 * step)
    assert [row.step for row in ckptdiff.chain_list(chain).steps] == [10, 20, 30, 40, 50]
    found = ckptdiff.chain_verify(chain)
    assert found.ok and not found.notes
    save_file(state, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    for where in (tmp_path / "base", tmp_path / "base" / "model.safetensors"):
        ckptdiff.chain_restore(chain, 50, tmp_path / "restored.safetensors", base=where, overwrite=True)
        assert (tmp_path / "restored.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    ckptdiff.chain_prune(chain, ["50"], base=tmp_path / "base")
    model = {name: tensor.clone() for name, tensor in base.items()}
    ckptdiff.Subscriber(chain).stage().apply_(model)
    assert torch.equal(model["w"], state["w"])


def test_a_chain_of_files_goes_on_from_memory(tmp_path: Path) -> None:
    """What ``chain add`` began, by whatever codec, a publisher goes on with, and an engine follows."""
    run, chain = states(4), tmp_path / "chain"
    numpy_file = pytest.importorskip("safetensors.numpy")
    files = [tmp_path / f"step-{k}.safetensors" for k in range(3)]
    for path, state in zip(files, run, strict=False):
        numpy_file.save_file(state, path)
    ckptdiff.chain_add(chain, files)
    with ckptdiff.Publisher(chain, base=files[0]) as publisher:
        assert publisher.resume().step == 2  # type: ignore[union-attr]
        publisher.publish(run[3], step=3)
    check_chain(chain, dict(enumerate(run[1:4], 1)), run[0])


def test_refusals_of_a_publisher(tmp_path: Path) -> None:
    run, chain = states(3), tmp_path / "chain"
    publisher = ckptdiff.Publisher(chain, base=run[0])
    publisher.publish(run[1], step=5)
    for step, text in ((5, "step 5 is there already"), (4, "step 4 comes before step 5, the last one"), (-1, "step -1: expected a whole")):
        with pytest.raises(ckptdiff.CheckpointError, match=text):
            publisher.publish(run[2], step=step)
    with pytest.raises(ckptdiff.CheckpointError, match="lacks the tensor a, which the base has"):
        publisher.publish({"b": run[2]["b"]}, step=6)
    with pytest.raises(ckptdiff.CheckpointError, match="step 5 does not wait to be acknowledged: no step does"):
        publisher.ack(5)
    with pytest.raises(ckptdiff.CheckpointError, match="step 4 is not the last one: only that can be rejected"):
        publisher.reject(4)
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"is a chain of the base .*, but the base that was given has the identity"):
        ckptdiff.Publisher(chain, base=run[1])
    with pytest.raises(ckptdiff.CheckpointError, match="was made with keyframe_every=50 and codec='sparse', which stay"):
        ckptdiff.Publisher(chain, base=run[0], codec="context")
    with pytest.raises(ckptdiff.CheckpointError, match="worker='fork': expected 'process', 'thread' or None"):
        ckptdiff.Publisher(chain, base=run[0], worker="fork")  # type: ignore[arg-type]
    second = ckptdiff.Publisher(chain, base=run[0])
    with pytest.raises(ckptdiff.OutputError, match=r"has steps already: call resume\(\)"):
        second.publish(run[2], step=6)
    assert second.resume() is not None
    with pytest.raises(ckptdiff.OutputError, match="another publisher has taken over"):
        publisher.publish(run[2], step=6)
    with pytest.raises(ckptdiff.OutputError, match=r"the last publish failed \(.*another publisher has taken over.*call resume"):
        publisher.publish(run[2], step=6)
    second.publish(run[2], step=6)
    check_chain(chain, {5: run[1], 6: run[2]}, run[0])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ckptdiff.OutputError, match="is not a chain, and not empty: it has file"):
        ckptdiff.Publisher(tmp_path / "other", base=run[0])


def test_a_gap_and_a_fork_are_named(tmp_path: Path) -> None:
    run, chain = states(4), tmp_path / "chain"
    with ckptdiff.Publisher(chain, base=run[0]) as publisher:
        for step in (1, 2, 3):
            publisher.publish(run[step], step=step)
    shutil.copytree(chain, tmp_path / "forked")
    (second,) = chain.glob("steps/000000000002-*")
    second.unlink()
    with pytest.raises(ckptdiff.FormatError, match="step 3 is out of reach: there is a gap before step 3"):
        ckptdiff.Publisher(chain, base=run[0]).resume()
    with pytest.raises(ckptdiff.FormatError, match="step 3 is out of reach: there is a gap before step 3"):
        ckptdiff.Subscriber(chain).stage()
    (second,) = (tmp_path / "forked").glob("steps/000000000002-*")
    shutil.copy(second, second.with_name(second.name.replace("000000000002-000000000001", "000000000003-000000000001")))
    with pytest.raises(ckptdiff.FormatError, match="is forked"):
        ckptdiff.Publisher(tmp_path / "forked", base=run[0])


def test_refusals_of_a_subscriber(tmp_path: Path) -> None:
    run, chain = states(4), tmp_path / "chain"
    publisher = ckptdiff.Publisher(chain, base=run[0])
    with pytest.raises(ckptdiff.BaseMismatchError, match="has no step yet: the model stays at the base"):
        ckptdiff.Subscriber(chain).stage()
    assert ckptdiff.Subscriber(chain).latest() is None
    for step in (1, 2, 3):
        publisher.publish(run[step], step=step)
    one, two = ckptdiff.Subscriber(chain).stage(to=1), ckptdiff.Subscriber(chain, at=run[1]).stage(to=2)
    model = copy_of(run[0])
    with pytest.raises(ckptdiff.BaseMismatchError):
        two.apply_(model)  # a step was missed
    assert same(model, run[0])
    one.apply_(model)
    with pytest.raises(ckptdiff.BaseMismatchError) as caught:
        ckptdiff.Subscriber(chain).stage(to=1).apply_(model)
    assert caught.value.kind == "already_target" and same(model, run[1])
    three = ckptdiff.Subscriber(chain, at=ckptdiff.identity(run[3]))
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"the model is at step 3 of .*, already: there is nothing to do") as caught:
        three.stage()
    assert caught.value.kind == "already_target"
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"the model is at step 3 of .*, which comes after step 2"):
        three.stage(to=2)
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"the model is not of the chain .*was its step withdrawn"):
        ckptdiff.Subscriber(chain, at=first_state(9)).stage()
    with pytest.raises(ckptdiff.CheckpointError, match="has no step 7"):
        ckptdiff.Subscriber(chain).stage(to=7)
    with pytest.raises(ckptdiff.FormatError, match=r"is not a chain: it has no chain.json; a publisher makes one"):
        ckptdiff.Subscriber(tmp_path / "nothing")
    (last,) = chain.glob("steps/000000000003-*")
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    with pytest.raises(ckptdiff.IntegrityError):
        ckptdiff.Subscriber(chain, at=run[2]).stage()


def test_what_was_decoded_against_one_model_is_applied_to_another(tmp_path: Path) -> None:
    run, chain = states(1), tmp_path / "chain"
    with ckptdiff.Publisher(chain, base=run[0]) as publisher:
        publisher.publish(run[1], step=1)
    one, other = copy_of(run[0]), copy_of(run[0])
    staged = ckptdiff.Subscriber(chain).stage(model=one)
    staged.apply_(other)
    assert same(other, run[1]) and same(one, run[0]) and {"find", "fetch", "compose", "load", "apply"} == staged.timings.keys()


@pytest.mark.parametrize("codec", ["sparse", "context"])
def test_an_error_leaves_the_model_as_it_was(tmp_path: Path, codec: str) -> None:
    """Also where several patches are applied one after another, and the last of them fails."""
    run, chain = states(3), tmp_path / "chain"
    with ckptdiff.Publisher(chain, base=run[0], codec=codec) as publisher:
        for step in (1, 2, 3):
            publisher.publish(run[step], step=step)
    staged, model = ckptdiff.Subscriber(chain).stage(), copy_of(run[0])
    model["b"].flags.writeable = False
    with pytest.raises(ckptdiff.UnsupportedError, match="read-only memory"):
        staged.apply_(model)
    assert same(model, run[0])
    model["b"] = model["b"].copy()
    staged.apply_(model)
    assert same(model, run[3])


def test_after_a_failed_write_it_goes_on(tmp_path: Path) -> None:
    """The disk is full, or the head cannot be written: the step is in the chain, or it is not, and resume finds out."""
    run, chain = states(5), tmp_path / "chain"
    publisher = ckptdiff.Publisher(chain, base=run[0])
    publisher.publish(run[1], step=1)
    shutil.rmtree(chain / "steps")
    (chain / "steps").touch()  # no folder can be made
    with pytest.raises(ckptdiff.CkptdiffError):
        publisher.publish(run[2], step=2)
    (chain / "steps").unlink()
    fresh = ckptdiff.Publisher(chain, base=run[0])
    assert fresh.resume() is None
    (chain / "HEAD.json").unlink()
    (chain / "HEAD.json").mkdir()
    with pytest.raises(ckptdiff.StoreError):
        fresh.publish(run[3], step=3)
    (chain / "HEAD.json").rmdir()
    with pytest.raises(ckptdiff.OutputError, match=r"the last publish failed .*: call resume\(\)"):
        fresh.publish(run[4], step=4)
    assert fresh.resume().step == 3  # type: ignore[union-attr]
    fresh.publish(run[4], step=4)
    check_chain(chain, {3: run[3], 4: run[4]}, run[0])


def test_a_head_that_was_not_replaced_is_not_followed(tmp_path: Path) -> None:
    """As a publisher leaves it that was killed between its last patch and HEAD.json."""
    run, chain = states(3), tmp_path / "chain"
    with ckptdiff.Publisher(chain, base=run[0], threads=1) as publisher:
        publisher.publish(run[1], step=1)
        head = (chain / "HEAD.json").read_bytes()
        publisher.publish(run[2], step=2)
    (chain / "HEAD.json").write_bytes(head)
    subscriber, model = ckptdiff.Subscriber(chain, threads=1), copy_of(run[0])
    subscriber.stage(2).apply_(model)
    assert subscriber.step == 2 and same(model, run[2])
    assert subscriber.latest().step == 2  # type: ignore[union-attr]


def test_keyframes_bound_the_patches_of_a_step(tmp_path: Path) -> None:
    """Also where a publisher was killed between a patch and its keyframe: the next one puts that first (spec/chain-v1.md, 6)."""
    run, chain = states(8), tmp_path / "chain"
    with ckptdiff.Publisher(chain, base=run[0], keyframe_every=2, threads=1) as publisher:
        for step in range(1, 6):
            publisher.publish(run[step], step=step)
    keyframes = sorted((chain / "keyframes").iterdir())
    steps = [read_history(open_store(chain)).plan(at) for at in range(5)]
    assert [len(plan or ()) for plan in steps] == [1, 2, 1, 2, 1] and [path.name[:12] for path in keyframes] == [f"{k:012}" for k in (3, 5)]
    keyframes[-1].unlink()
    assert len(read_history(open_store(chain)).plan(4) or ()) == 3
    with ckptdiff.Publisher(chain, base=run[0], threads=1) as publisher:
        assert publisher.resume().step == 5  # type: ignore[union-attr]
        publisher.publish(run[6], step=6)
    history = read_history(open_store(chain))
    assert history.steps[4].keyframe is not None and [len(history.plan(at) or ()) for at in range(6)] == [1, 2, 1, 2, 1, 2]
    check_chain(chain, {step: run[step] for step in range(1, 7)}, run[0])
