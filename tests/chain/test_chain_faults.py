"""What goes wrong with chains: other bases and runs, forks, gaps, torn and foreign objects, second publishers, full disks, damage."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.chain.documents import read_chain
from ckptdiff.chain.history import read_history
from ckptdiff.chain.names import PatchName
from ckptdiff.chain.writer import ChainWriter
from ckptdiff.io import store as stores
from ckptdiff.io.store_urls import open_store
from tests.support.chains import check_steps, training_run, weights
from tests.support.checkpoints import bf16, tree, write
from tests.support.commands import CKPTDIFF, run


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    return training_run(tmp_path / "run", 5)


@pytest.fixture
def chain(checkpoints: list[Path], tmp_path: Path) -> Path:
    ckptdiff.chain_add(tmp_path / "chain", checkpoints[:4], keyframe_every=3)
    return tmp_path / "chain"


def step_folder(chain: Path, step: int) -> Path:
    (folder,) = (chain / "steps").glob(f"{step:012}-*")
    return folder


# --- other bases, runs and steps ---


def test_checkpoints_of_another_run(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    other, before, out = training_run(tmp_path / "other", 4, seed=2), tree(chain), tmp_path / "out"
    add, restore = partial(ckptdiff.chain_add, chain), partial(ckptdiff.chain_restore, chain)
    twice = [checkpoints[4], tmp_path / "run" / ".." / "run" / "checkpoint-400"]
    wrong_base, checkpoint = ckptdiff.BaseMismatchError, ckptdiff.CheckpointError
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (wrong_base, r"is not of the chain .* its identity is", lambda: restore(200, out, base=other[1])),
        (wrong_base, r"is not of the chain", lambda: add(checkpoints[4], base=other[2])),
        (wrong_base, r"is step 300 of .*, which comes after step 200: give the", lambda: restore(200, out, base=checkpoints[3])),
        (wrong_base, r"step 0 of .* is its base, .*: is it of another run\?", lambda: add(other[0])),
        (ckptdiff.IntegrityError, r"is not the file that step 200 of .* has", lambda: add(other[2])),
        (checkpoint, r"is that step itself: copy it", lambda: restore(200, out, base=checkpoints[2])),
        (checkpoint, r"has no step 500: it has 3 steps, 100 to 300", lambda: restore(500, out, base=checkpoints[0])),
        (checkpoint, r"step 150 comes before step 300, the last of", lambda: add(checkpoints[4], step=150)),
        (checkpoint, r"was made with --keyframe-every 3 and --codec auto, which stay", lambda: add(checkpoints[4], keyframe_every=4)),
        (checkpoint, r"both are step 400: give one of them", lambda: add(twice)),
        (checkpoint, r"'newest' says no steps to keep", lambda: ckptdiff.chain_prune(chain, "newest")),
        (ckptdiff.FormatError, r"is not a chain: it has no chain\.json; ckptdiff", lambda: ckptdiff.chain_list(tmp_path / "run")),
        (ckptdiff.OutputError, r"is not a chain, and not empty: it has ", lambda: ckptdiff.chain_add(tmp_path / "run", checkpoints)),
        (ckptdiff.StoreError, r"no: no such folder; create it first", lambda: ckptdiff.chain_add(tmp_path / "no" / "chain", checkpoints)),
    ]
    for kind, text, call in cases:
        with pytest.raises(kind, match=text):
            call()
    after = {name: digest for name, digest in tree(chain).items() if not name.startswith("epochs/")}
    assert after == {name: digest for name, digest in before.items() if not name.startswith("epochs/")}


# --- what lies in the folder ---


def test_a_torn_step_is_written_again(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    torn = step_folder(chain, 300)
    (torn / "ckptdiff.json").unlink()
    verified = ckptdiff.chain_verify(chain)
    assert [problem.message for problem in verified.problems] == [
        f"{chain}/HEAD.json: names step 300, but the chain has 2 steps, 100 to 200"
    ]
    assert verified.notes == (f"steps/{torn.name} is torn: its publisher was killed, or is at work",)
    ckptdiff.chain_add(chain, checkpoints)
    assert not torn.exists() and ckptdiff.chain_verify(chain).ok and not ckptdiff.chain_verify(chain).notes
    check_steps(chain, checkpoints, tmp_path, [300, 400])


def test_a_gap(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    shutil.rmtree(step_folder(chain, 200))
    with pytest.raises(ckptdiff.FormatError, match=r"step 300: is out of reach: there is a gap before step 300, which does not follow"):
        ckptdiff.chain_restore(chain, 300, tmp_path / "out", base=checkpoints[0])
    assert [problem.kind for problem in ckptdiff.chain_verify(chain).problems] == ["format"]
    assert "out of reach" in run("chain", "list", chain).stdout
    with pytest.raises(ckptdiff.CheckpointError, match=r"step 300 is out of reach, as patches before it are missing: verify it"):
        ckptdiff.chain_prune(chain, "last:1", base=checkpoints[0])
    with pytest.raises(ckptdiff.CheckpointError, match="step 200 comes before step 300, the last of"):
        ckptdiff.chain_add(chain, checkpoints)
    ckptdiff.chain_add(chain, checkpoints[3:], base=checkpoints[0])  # a keyframe brings the end of the chain in reach again
    check_steps(chain, checkpoints, tmp_path, [100, 400])


def test_a_fork_is_told_by_name(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    name = step_folder(chain, 300).name
    shutil.copytree(step_folder(chain, 300), chain / "steps" / name.replace("000000000300-000000000200", "000000000350-000000000200"))
    for call in (ckptdiff.chain_list, lambda chain: ckptdiff.chain_add(chain, checkpoints)):
        with pytest.raises(
            ckptdiff.FormatError, match=r"is forked: .*: the second starts from step 200, and leaves out step 300: move one of"
        ):
            call(chain)
    result = run("chain", "verify", chain)
    assert result.exit_code == 1 and result.stdout.startswith("format: ") and "forked" in result.stdout


def test_foreign_files_do_no_harm(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    (chain / "notes.txt").write_text("mine")
    (chain / "steps" / "000000000999").mkdir()
    (chain / "steps" / "000000000999" / "ckptdiff.json").write_text("{}")
    ckptdiff.chain_add(chain, checkpoints)
    assert ckptdiff.chain_list(chain).foreign == ("steps/000000000999/ckptdiff.json", "notes.txt")
    ckptdiff.chain_prune(chain, "400", base=checkpoints[0])
    assert (chain / "notes.txt").exists() and (chain / "steps" / "000000000999" / "ckptdiff.json").exists()
    assert ckptdiff.chain_verify(chain).ok
    check_steps(chain, checkpoints, tmp_path, [400])


def test_a_step_under_a_false_name(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    """Names choose; digests decide."""
    first, second = step_folder(chain, 200), step_folder(chain, 300)
    second.rename(tmp_path / "aside")
    first.rename(second)
    (tmp_path / "aside").rename(first)
    with pytest.raises(ckptdiff.BaseMismatchError, match="was made from a base with the identity"):
        ckptdiff.chain_restore(chain, 300, tmp_path / "out", base=checkpoints[0])
    with pytest.raises(ckptdiff.IntegrityError, match="which is not what its name says"):
        ckptdiff.chain_list(chain)
    assert {problem.kind for problem in ckptdiff.chain_verify(chain).problems} == {"integrity"}


def test_damage_is_found(checkpoints: list[Path], chain: Path) -> None:
    file = step_folder(chain, 200) / "patch" / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    assert any("model-00001" in problem.message for problem in ckptdiff.chain_verify(chain).problems)
    with pytest.raises(ckptdiff.IntegrityError, match=r"step 200 of .* is damaged, so that .* was not removed"):
        ckptdiff.chain_add(chain, checkpoints, remove_originals=True)
    assert weights(checkpoints[2]), "the only good copy stays"


@pytest.mark.parametrize("name", ["HEAD.json", "epochs/000001.json"])
def test_a_document_of_another_chain(name: str, chain: Path, tmp_path: Path) -> None:
    ckptdiff.chain_add(tmp_path / "other-chain", training_run(tmp_path / "other", 2, seed=2))
    shutil.copy(tmp_path / "other-chain" / name, chain / name)
    assert [problem.message.partition(": is of a chain with the base ")[0] for problem in ckptdiff.chain_verify(chain).problems] == [
        f"{chain}/{name}"
    ]


# --- publishers ---


def test_a_second_publisher_shuts_the_first_out(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    store = open_store(chain)
    document = read_chain(store)
    assert document is not None
    first = ChainWriter.take_over(store, document)
    before = tree(chain / "steps")
    ckptdiff.chain_add(chain, checkpoints)
    ckptdiff.make(checkpoints[3], checkpoints[4], tmp_path / "patch")
    name = PatchName(450, 300, *[step_folder(chain, 400).name.split("-")[k] for k in (2, 3)], first.epoch, False, False)
    with pytest.raises(ckptdiff.OutputError, match=r"another publisher has taken over \(epoch 3, this one has 2\): run one at a time"):
        first.put(name, tmp_path / "patch")
    history = read_history(store)
    assert history.torn == [] and [step.number for step in history.steps] == [100, 200, 300, 400]
    assert before.items() <= tree(chain / "steps").items()


def test_two_take_over_at_one_moment(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both list the same epochs; only one can make the next one."""
    store = open_store(chain)
    document = read_chain(store)
    assert document is not None
    monkeypatch.setattr("ckptdiff.chain.writer.highest_epoch", lambda store: 1)
    with pytest.raises(ckptdiff.OutputError, match=r"has taken over|takes over at this moment"):
        ChainWriter.take_over(store, document)  # it sees, as it looks again, that it is not alone with its listing
    with pytest.raises(ckptdiff.OutputError, match="another publisher takes over at this moment: run one at a time"):
        ChainWriter.take_over(store, document)


def test_other_bytes_under_the_name_of_a_step(checkpoints: list[Path], chain: Path, tmp_path: Path) -> None:
    store = open_store(chain)
    document = read_chain(store)
    assert document is not None
    name = PatchName.parse(f"steps/{step_folder(chain, 300).name}/ckptdiff.json")
    assert name is not None
    publisher = ChainWriter.take_over(store, document)
    ckptdiff.make(checkpoints[2], checkpoints[3], tmp_path / "same")
    assert sum(publisher.put(name, tmp_path / "same").values()) == read_history(store).size(name), "the same bytes may be put again"
    ckptdiff.make(checkpoints[2], checkpoints[3], tmp_path / "other", codec="raw")
    with pytest.raises(ckptdiff.OutputError, match="is there already, with other bytes: does anything but ckptdiff write there"):
        publisher.put(name, tmp_path / "other")


def test_an_interrupt_while_a_patch_is_put(checkpoints: list[Path], chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had been put is gone again, as the message of an interrupt says."""
    before, real = tree(chain / "steps"), stores.FolderStore.put_file

    def interrupted(store: stores.FolderStore, key: str, path: Path) -> bool:
        if "00002-of" in key:
            raise KeyboardInterrupt
        return real(store, key, path)

    monkeypatch.setattr(stores.FolderStore, "put_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ckptdiff.chain_add(chain, checkpoints)
    assert tree(chain / "steps") == before and not [path for path in chain.iterdir() if path.name.startswith(".")]


# --- disks ---


def test_a_full_disk(checkpoints: list[Path], chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write fails, what was there stays, and the next run completes it."""
    before, left, real = tree(chain / "steps"), [0], stores.sync

    def failing(path: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(stores, "sync", failing)
    for writes in (3, 8, 14):
        left[0] = writes
        with pytest.raises(ckptdiff.StoreError, match="cannot be written: the disk is full; free some space, and run again"):
            ckptdiff.chain_add(chain, checkpoints)
        assert before.items() <= tree(chain / "steps").items()
        assert [step.number for step in read_history(open_store(chain)).steps][:3] == [100, 200, 300]
    monkeypatch.undo()
    ckptdiff.chain_add(chain, checkpoints)
    assert ckptdiff.chain_verify(chain).ok
    check_steps(chain, checkpoints, tmp_path, [400])


def test_a_read_only_chain() -> None:
    """It can be listed, verified and restored from, but not added to."""
    powerless = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []  # root, but bound by modes
    if powerless and not shutil.which("setpriv"):
        pytest.skip("needs setpriv, from util-linux, when run as root")
    folder = Path(tempfile.mkdtemp())
    try:
        steps = [write(folder / f"step-{k}.safetensors", {"a": bf16([1.0, 2.0 + k])}) for k in range(3)]
        ckptdiff.chain_add(folder / "chain", steps[:2])
        for path in [folder / "chain", *(folder / "chain").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        for arguments, code, text in (
            (["verify", "chain"], 0, "no problem in 1 step"),
            (["restore", "chain", "1", "-o", "out.safetensors", "--base", "step-0.safetensors"], 0, "the same bytes"),
            (["add", "chain", "step-1.safetensors", "step-2.safetensors"], 3, "cannot be written: Permission denied"),
        ):
            done = subprocess.run([*powerless, *CKPTDIFF, "chain", *arguments], capture_output=True, text=True, cwd=folder)
            assert done.returncode == code and text in done.stdout + done.stderr and "Traceback" not in done.stderr, done
    finally:
        for path in [folder / "chain", *(folder / "chain").rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)
