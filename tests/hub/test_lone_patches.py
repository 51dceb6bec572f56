"""A patch file that lies alone in a repo of the Hub is a patch for every command, and a base too; cards claim only what was compared."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint.recognition import is_patch
from ckptdiff.format.index import Index
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.patch_file import PatchParts, write_patch_file
from ckptdiff.io.source import read_bytes
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import perturb, tensor, tree, write
from tests.support.hub_client import CARD, Client
from tests.support.hub_state import Hub

pytest.importorskip("huggingface_hub")
CONFIG = b'{"model_type": "llama"}\n'


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A weight file and two steps of its training."""
    rng = np.random.default_rng(8)
    state = {name: tensor("BF16", (48, 64), rng.integers(0x3C00, 0x3E00, (48, 64)).astype("<u2")) for name in ("q.weight", "v.weight")}
    paths = []
    for step in range(3):
        paths.append(write(tmp_path / f"step{step}" / "model.safetensors", state, {"format": "pt"}))
        state = {name: perturb(rng, value, 0.05) for name, value in state.items()}
    return paths


def base_repo(hub: Hub, model: Path) -> None:
    hub.add("org/base", {"model.safetensors": model.read_bytes(), "config.json": CONFIG, "README.md": CARD})


SESSION = """
import json, sys
from click.testing import CliRunner
from ckptdiff.cli.main import main
done = [CliRunner().invoke(main, arguments) for arguments in json.load(sys.stdin)]
json.dump([{"code": r.exit_code, "stdout": r.stdout, "stderr": r.stderr} for r in done], sys.stdout)
"""


def run_all(client: Client, *commands: tuple[object, ...]) -> list[SimpleNamespace]:
    """Run commands one after the other in one process: the imports of a start take longer than these commands."""
    text = json.dumps([list(map(str, command)) for command in commands])
    command = [sys.executable, "-c", SESSION]
    done = subprocess.run(command, input=text, cwd=client.folder, env=client.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [SimpleNamespace(**row) for row in json.loads(done.stdout)]


def lone_patch(hub: Hub, models: list[Path], folder: Path) -> Path:
    """A patch file that names ``org/base`` at its commit, made without asking for it."""
    patch = folder / "patch.safetensors"
    ckptdiff.make(models[0], models[1], folder / "bare.safetensors", codec="sparse")
    return rewritten(
        folder / "bare.safetensors", patch, info={"base_repo": "org/base", "base_revision": hub.repos["org/base"].branches["main"]}
    )


def rewritten(patch: Path, out: Path, **changes: object) -> Path:
    """A patch file with other metadata, sealed again; the payloads stay."""
    with open_patch(patch) as opened:
        file = opened.files[0]
        places = ((file.payloads.offsets[entry.name], entry.payload_size) for entry in file.table.entries if entry.has_payload)
        payload = [read_bytes(file.source, *place) for place in places]
        metadata: Metadata = replace(file.metadata, **changes)  # type: ignore[arg-type]
        with open(out, "wb") as sink:
            write_patch_file(sink, metadata, PatchParts(file.table, file.header.raw, file.report, payload))
    return out


# --- what a patch is ---


@pytest.mark.slow
def test_every_command_reads_a_lone_patch_on_the_hub(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    made, dry, pushed, info, alone, both, overlap, mask, verify, pull, *refused = run_all(
        client,
        ("make", models[0], models[1], "-o", "lone.safetensors", "--base-repo", "org/base", "--codec", "sparse", "--json"),
        ("push", "lone.safetensors", "me/lone", "--dry-run"),
        ("push", "lone.safetensors", "me/lone"),
        ("info", "me/lone", "--json"),
        ("report", "me/lone", "--json"),
        ("report", "org/base", "me/lone", "--rank", "none", "--json"),
        ("overlap", "me/lone", "--json"),
        ("mask", "me/lone", "-o", "mask", "--json"),
        ("verify", "me/lone", "--base", "org/base", "--target", models[1]),
        ("pull", "me/lone", "-o", "out.safetensors"),
        ("make", "me/lone", models[2], "-o", "x"),
        ("compare", models[0], "me/lone"),
    )
    assert "ckptdiff pull me/lone -o lone.safetensors" in dry.stdout and pushed.code == 0
    assert sorted(hub.tree("me/lone")) == [".gitattributes", "README.md", "patch/model.safetensors"]
    changed = json.loads(made.stdout)["totals"]["changed"]
    assert changed == json.loads(info.stdout)["totals"]["changed"] > 0
    for report in (alone, both):
        totals = json.loads(report.stdout)["totals"]
        assert totals["elements"] - totals["bit_identical"] == changed
    assert json.loads(overlap.stdout)["base"] == f"base@{hub.repos['org/base'].branches['main']}"
    assert json.loads(mask.stdout)["elements"] == changed
    assert verify.code == pull.code == 0, verify.stdout + pull.stderr
    assert (tmp_path / "a" / "out.safetensors").read_bytes() == models[1].read_bytes()
    for result in refused:
        assert result.code == 3
        assert "is a ckptdiff patch, not a checkpoint; rebuild its target with: ckptdiff pull me/lone" in result.stderr


@pytest.mark.slow
def test_a_lone_patch_is_a_base(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """``make --base-repo``, ``push`` and ``pull`` follow it as they follow a patch folder."""
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    *_, wrong, pushed, pull, overlap = run_all(
        client,
        ("make", models[0], models[1], "-o", "one.safetensors", "--base-repo", "org/base", "--codec", "sparse"),
        ("push", "one.safetensors", "me/one"),
        ("make", models[1], models[2], "-o", "two.safetensors", "--base-repo", "me/one", "--codec", "sparse"),
        ("make", models[2], models[1], "-o", "x", "--base-repo", "me/one"),
        ("push", "two.safetensors", "me/two", "--license", "mit"),
        ("pull", "me/two", "-o", "out.safetensors", "--json"),
        ("overlap", "me/two"),
    )
    assert wrong.code == 3 and "is not what the patch in me/one@" in wrong.stderr
    assert pushed.code == 0 and "that commit gives its base" in hub.tree("me/two")["README.md"].decode()
    assert (tmp_path / "a" / "out.safetensors").read_bytes() == models[2].read_bytes()
    done = json.loads(pull.stdout)
    assert [patch.split("@")[0] for patch in done["patches"]] == ["me/one", "me/two"] and done["verified"] is True
    assert overlap.code == 3 and "is itself a patch: rebuild its target with ckptdiff pull" in overlap.stderr


@pytest.mark.slow
def test_a_lone_patch_that_was_uploaded_by_hand(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """It may have any name; but a model whose only weight file lies in a folder called ``patch`` is not a patch."""
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    patch = lone_patch(hub, models, tmp_path)
    hub.add("me/hand", {"my-update.safetensors": patch.read_bytes(), "notes.txt": b"mine"})
    hub.add("org/odd", {"patch/model.safetensors": models[0].read_bytes()})
    pull, report, compare, info, odd, *named, notes = run_all(
        client,
        ("pull", "me/hand", "-o", "out.safetensors"),
        ("report", "me/hand", "--json"),
        ("compare", "org/odd", models[0]),
        ("info", "org/odd"),
        ("report", "org/odd"),
        ("info", "hf://me/hand/my-update.safetensors"),
        ("report", models[0], "hf://me/hand/my-update.safetensors", "--rank", "none"),
        ("info", "hf://me/hand/notes.txt"),
    )
    assert pull.code == compare.code == 0, pull.stderr + compare.stderr
    assert (tmp_path / "a" / "out.safetensors").read_bytes() == models[1].read_bytes()
    assert json.loads(report.stdout)["totals"]["elements"] == 2 * 48 * 64
    assert info.code == 3 and "not a ckptdiff patch, but a plain safetensors file" in info.stderr
    assert (
        [result.code for result in named] == [0, 0]
        and notes.code == 3
        and "notes.txt: not a ckptdiff patch: it has 4 bytes" in notes.stderr
    )
    assert odd.code == 2 and "is not a patch: give BASE and TARGET" in odd.stderr


def test_a_folder_with_a_lone_patch(models: list[Path], tmp_path: Path) -> None:
    """The folder that one gets by fetching a repo with a lone patch file is a patch too."""
    folder = tmp_path / "snapshot"
    (folder / "patch").mkdir(parents=True)
    ckptdiff.make(models[0], models[1], folder / "patch" / "model.safetensors")
    assert is_patch(folder) and is_patch(folder / "patch") and not is_patch(models[0].parent)
    assert ckptdiff.info(folder).totals == ckptdiff.info(folder / "patch" / "model.safetensors").totals
    ckptdiff.apply(models[0], folder, tmp_path / "out.safetensors")
    assert tree(tmp_path / "out.safetensors") == tree(models[1])
    with pytest.raises(ckptdiff.CheckpointError, match="snapshot: is a ckptdiff patch, not a checkpoint"):
        ckptdiff.compare(folder, models[0])


def test_a_file_that_is_named_is_what_it_is(models: list[Path], tmp_path: Path) -> None:
    """A file is recognized whatever its name, and so is a shard of a patch folder."""
    for name in ("ckptdiff.json", "update"):
        ckptdiff.make(models[0], models[1], tmp_path / name)
        assert is_patch(tmp_path / name) and not ckptdiff.info(tmp_path / name).is_folder
    ckptdiff.make(models[0].parent, models[1].parent, tmp_path / "folder")
    assert ckptdiff.info(tmp_path / "folder" / "patch" / "model.safetensors").totals.delta == 2
    for path in (tmp_path / "folder" / "ckptdiff.json", tmp_path / "nothing.txt"):
        path.touch()
        assert not is_patch(path)
        with pytest.raises(ckptdiff.FormatError, match=f"{path.name}: not a ckptdiff patch: "):
            ckptdiff.info(path)


def test_a_patch_folder_that_lost_its_index(models: list[Path], tmp_path: Path) -> None:
    """Its one shard must not pass for a lone patch file: the config would be missing from what it gives."""
    for model, text in zip(models, "ab", strict=False):
        (model.parent / "config.json").write_text(text)
    ckptdiff.make(models[0].parent, models[1].parent, tmp_path / "patch")
    (tmp_path / "patch" / "ckptdiff.json").unlink()
    with pytest.raises(ckptdiff.FormatError, match=r"model\.safetensors: belongs to a patch folder, but its ckptdiff\.json is missing"):
        ckptdiff.apply(models[0].parent, tmp_path / "patch", tmp_path / "out")


# --- what was compared ---


def test_a_patch_of_files_lists_its_base_s(models: list[Path], tmp_path: Path) -> None:
    ckptdiff.make(models[0], models[1], tmp_path / "patch.safetensors")
    rewritten(tmp_path / "patch.safetensors", tmp_path / "empty.safetensors", base_files=())
    with pytest.raises(ckptdiff.FormatError, match=r"empty\.safetensors: its table needs a base, but the patch lists no file of it"):
        ckptdiff.info(tmp_path / "empty.safetensors")
    ckptdiff.make(models[0].parent, models[1].parent, tmp_path / "folder")
    index = tmp_path / "folder" / "ckptdiff.json"
    index.write_bytes(replace(Index.from_bytes(index.read_bytes(), "index"), base_files=()).to_bytes())
    with pytest.raises(ckptdiff.FormatError, match=r"patch/model\.safetensors: its table needs a base, but the patch lists no file of it"):
        ckptdiff.info(tmp_path / "folder")


@pytest.mark.slow
def test_a_card_claims_only_what_was_compared(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    patch = lone_patch(hub, models, tmp_path)
    unlisted = rewritten(patch, tmp_path / "unlisted.safetensors", base_files=None)
    memory = rewritten(patch, tmp_path / "memory.safetensors", base_files=(), target_sha256=None)
    shown, *refused = run_all(client, *(("push", path, "me/patch", "--dry-run") for path in (patch, unlisted, memory)))
    for result in refused:
        assert result.code == 3 and "needs a base but lists no file of it, so nothing shows whether org/base has it" in result.stderr
    assert "- `ckptdiff verify`: digests of its table, header and all payloads\n" in shown.stdout
    assert "- SHA-256 of one weight file of its base: as the Hub states it of `org/base` at that commit\n" in shown.stdout
    base = hub.repos["org/base"].commits[hub.repos["org/base"].branches["main"]]
    base["model.safetensors"].lfs = False  # the Hub states no SHA-256 of it then
    (shown,) = run_all(client, ("push", patch, "me/patch", "--dry-run"))
    assert "- not its base: of none of the weight files that the patch lists does the Hub state a SHA-256 in `org/base`\n" in shown.stdout
    assert "SHA-256 of one" not in shown.stdout and "me/patch" not in hub.repos


@pytest.mark.slow
def test_pull_says_the_same_weights_only_where_it_compared(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    patch = lone_patch(hub, models, tmp_path)
    hub.add("me/whole", {"patch/model.safetensors": patch.read_bytes()})
    memory = rewritten(patch, tmp_path / "memory.safetensors", base_files=(), target_sha256=None)
    hub.add("me/memory", {"patch/model.safetensors": memory.read_bytes()})
    repo = hub.repos["org/base"]
    del repo.commits[repo.branches["main"]]
    hub.add("org/base", {"model.safetensors": models[0].read_bytes(), "LICENSE": b"another commit"})
    whole, unlisted, missing = run_all(
        client,
        ("pull", "me/whole", "-o", "whole.safetensors"),
        ("pull", "me/memory", "-o", "memory.safetensors"),
        ("pull", "me/whole", "-o", "other", "--base", "no/such/folder"),
    )
    assert "is gone from org/base; " in whole.stderr and "has the same weights, by SHA-256" in whole.stderr
    assert "SHA-256 as the patch states" in whole.stdout
    assert "is used instead: digests are compared as it is read" in unlisted.stderr and "same weights" not in unlisted.stderr
    assert "digests as the patch states" in unlisted.stdout and "SHA-256" not in unlisted.stdout
    for name in ("whole", "memory"):
        assert (tmp_path / "a" / f"{name}.safetensors").read_bytes() == models[1].read_bytes()
    assert missing.code == 3 and missing.stderr == "ckptdiff: error: no/such/folder: no such file or folder\n"
