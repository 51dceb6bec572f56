"""push: the card, what is sent, what is never published, and a push that fails or is killed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from ckptdiff.obtaining import HOW_TO_GET_IT
from tests.support.commands import CKPTDIFF
from tests.support.hub_client import CARD, Client, files_of, made, publish
from tests.support.hub_state import TOKEN, Fault, Hub

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow


def test_the_card_says_what_the_report_found_and_keeps_its_owners_text(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """It parses with the client, keeps its owner's text, and its figures are those of ``report --json``."""
    from huggingface_hub import ModelCard

    from ckptdiff.units import percent

    client = Client(hub, tmp_path / "a")
    publish(hub, client, models, "--report")
    files = hub.tree("me/patch")
    card = ModelCard(files["README.md"].decode(), ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["library_name"]) == ("org/base", "finetune", "ckptdiff")
    assert data["license"] == "apache-2.0" and data["tags"] == ["ckptdiff", "patch"]
    report = json.loads(client.run("report", "me/patch", "--json").stdout)
    totals, rank = report["totals"], report["rank"]
    assert f"| {percent(totals['bit_identical'] / totals['elements'])} |" in card.text
    assert f"| {percent(totals['within_atol'] / totals['elements'])} |" in card.text and f"| {percent(rank['rank_share'])} |" in card.text
    assert f"```sh\n# to get ckptdiff, {HOW_TO_GET_IT}\nckptdiff pull me/patch -o patch\n```\n" in card.text
    assert hub.repos["org/base"].branches["main"] in card.text
    assert files["config.json"] == (models[1] / "config.json").read_bytes()
    mine = files["README.md"].decode().replace("tags:", "language: en\ntags:\n- mine") + "\nMy own words.\n"
    hub.add("me/patch", files | {"README.md": mine.encode(), "notes.txt": b"mine"})
    client.run("push", "patch", "me/patch")
    again = hub.tree("me/patch")["README.md"].decode()
    assert again.count("# patch") == 1 and "My own words." in again and "language: en" in again and "- mine" in again
    assert hub.tree("me/patch")["notes.txt"] == b"mine"


def test_what_a_push_sends(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    client.run("make", models[0], models[1], "-o", "patch")
    refused = client.run("push", "patch", "me/patch", code=3).stderr
    assert "does not say which repo has its base: push with --base-repo org/name" in refused
    shown = client.run("push", "patch", "me/patch", "--base-repo", "org/base", "--dry-run").stdout
    assert "nothing was sent" in shown and "me/patch" not in hub.repos and "base_model: org/base" in shown
    client.run("push", "patch", "me/patch", "--base-repo", "org/base", "--private", "-m", "first")
    assert hub.repos["me/patch"].private
    hub.received.clear()
    client.run("push", "patch", "me/patch", "--base-repo", "org/base", "--revision", "next")
    assert not [line for line in hub.received if line.startswith("PUT /lfs")], "large files are there already"
    done = json.loads(client.run("push", "patch", "me/patch", "--base-repo", "org/base", "--create-pr", "--json").stdout)
    assert "/discussions/1" in done["commit"]["pull_request"]
    assert client.run("push", "patch", "me/patch", "--base-repo", "org/nobody", code=3).stderr.count("no such repo") == 1
    other = client.run("make", models[1], models[2], "-o", "p2", "--base-repo", "org/base", code=3).stderr
    assert "not the same checkpoint" in other
    Client(hub, tmp_path / "b", token=None).run("pull", "me/patch", "-o", "out", code=3)


def test_a_push_makes_no_temporary_folder_that_a_kill_would_leave(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    publish(hub, client, models)
    (tmp_path / "temporary").mkdir()
    os.utime(tmp_path / "temporary", (1, 1))
    shown = client.run("push", "patch", "me/patch", "--dry-run", TMPDIR=str(tmp_path / "temporary")).stdout
    assert "nothing was sent" in shown and (tmp_path / "temporary").stat().st_mtime == 1


def test_stale_files_go(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    publish(hub, client, models)
    tree_before = hub.tree("me/patch")
    hub.add("me/patch", tree_before | {"patch/old.safetensors": b"old", "notes.txt": b"mine"})
    client.run("push", "patch", "me/patch")
    assert "patch/old.safetensors" not in hub.tree("me/patch") and "notes.txt" in hub.tree("me/patch")


def test_secrets_are_not_published(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    (models[1] / ".env").write_text("X=1")
    (models[1] / "run.sh").write_text(f"export HF_TOKEN={TOKEN}")
    client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse", "--include", ".env")
    said = client.run("push", "patch", "me/patch", code=3).stderr
    assert ".env (by its name)" in said and "run.sh (holds a Hugging Face token)" in said and "me/patch" not in hub.repos


def test_a_broken_patch_is_not_published(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse")
    file = tmp_path / "a" / "patch" / "patch" / "model-00002-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert (
        "does not verify, so it was not published" in client.run("push", "patch", "me/patch", code=3).stderr and "me/patch" not in hub.repos
    )


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("POST .*/commit/", 1, status=412), "the repo has changed meanwhile: run again"),
        (Fault("POST .*/commit/", 1, status=403), "your token may not do this"),
        (Fault("POST .*/batch", 9, status=401), "there is no valid token"),
        (Fault("PUT /lfs", 99, status=400), "error: me/patch: "),
        (Fault("POST .*/commit/", 1, kind="cut", after=10), "cannot be reached"),
    ],
)
def test_a_push_that_fails_leaves_the_repo_as_it_was(hub: Hub, models: list[Path], tmp_path: Path, fault: Fault, text: str) -> None:
    client = Client(hub, tmp_path / "a")
    made(hub, client, models)
    hub.faults = [fault]
    assert text in client.run("push", "patch", "me/patch", code=3).stderr
    assert list(hub.tree("me/patch")) == [".gitattributes"]
    hub.faults, sent = [], {line for line in hub.received if line.startswith("PUT /lfs") and line.rpartition("/")[2] in hub.objects}
    hub.received.clear()
    client.run("push", "patch", "me/patch")
    assert not sent & set(hub.received), "what was sent is not sent again"
    Client(hub, tmp_path / "b").run("pull", "me/patch", "-o", "out")


def test_a_push_that_is_killed_goes_on(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """Killed while files are on their way: the repo is as it was, and what had arrived is not sent again."""
    client = Client(hub, tmp_path / "a", cold=True)
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    for k in range(12):
        (models[1] / f"extra{k}.txt").write_text(f"file {k} " * 50)
    client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse")
    hub.faults = [Fault("PUT /lfs", 999, kind="slow")]
    command = [*CKPTDIFF, "push", "patch", "me/patch"]
    process = subprocess.Popen(command, cwd=client.folder, env=client.environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(hub.objects) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    arrived = set(hub.objects)
    assert arrived and list(hub.tree("me/patch")) == [".gitattributes"]
    time.sleep(0.5)  # those on their way
    arrived = set(hub.objects)
    hub.faults = []
    hub.received.clear()
    client.run("push", "patch", "me/patch")
    again = {line.rpartition("/")[2] for line in hub.received if line.startswith("PUT /lfs")}
    assert again and not again & arrived and len(again | arrived) >= 14
    Client(hub, tmp_path / "b", cold=True).run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1])


def test_a_wrong_token_is_not_shown(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    secret = "hf_" + "WrongWrongWrongWrongWrongWrongWrong"
    publish(hub, Client(hub, tmp_path / "a"), models)
    client = Client(hub, tmp_path / "b", token=secret)
    hub.repos["me/patch"].private = True
    for arguments in (("pull", "me/patch", "-o", "out"), ("push", tmp_path / "a" / "patch", "me/other"), ("info", "me/patch", "--json")):
        done = client.run(*arguments, code=3)
        assert secret not in done.stdout + done.stderr and "error" in done.stderr
    assert secret.encode() not in b"".join(files_of(tmp_path / "a" / "patch").values())
