"""Ids, push, pull and remote reading, with the real client against a Hub on this machine (``tests/support/hub_server.py``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xxhash

from ckptdiff.format import canonical
from tests.cli.test_main import CKPTDIFF
from tests.support.checkpoints import tensor, write
from tests.support.hub_server import TOKEN, Fault, Hub, environment, running
from tests.support.warm_process import run_command

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow


class Client:
    """ckptdiff on one machine: its home holds the Hub's cache. ``cold``: each command starts Python anew, as a user's does."""

    def __init__(self, hub: Hub, folder: Path, token: str | None = TOKEN, cold: bool = False) -> None:
        self.folder, self.cold = folder, cold
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.environment |= environment(hub, folder / "home", token)
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: object, code: int = 0, **more: str) -> SimpleNamespace:
        """Run a command; its output must not hold the token."""
        words, environment = [str(argument) for argument in arguments], self.environment | more
        done: Any
        if self.cold:
            done = subprocess.run([*CKPTDIFF, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)
        else:
            done = run_command(words, self.folder, environment, timeout=120)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert TOKEN not in done.stdout + done.stderr
        return SimpleNamespace(stdout=done.stdout, stderr=done.stderr)


def checkpoint(folder: Path, step: int) -> Path:
    """A model of two shards; ``step`` changes some of its weights and one line of its tokenizer."""
    rng = np.random.default_rng(5)
    for k in (1, 2):
        units = rng.integers(0x3C00, 0x3E00, (64, 128)).astype("<u2")
        for n in range(step):
            units[n :: 7 + n] += 1 + n
        shard = {
            f"layers.{k}.q_proj.weight": tensor("BF16", units.shape, units),
            f"norm{k}": tensor("F32", (4,), bytes(16)),
        }
        write(folder / f"model-0000{k}-of-00002.safetensors", shard)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}\n')
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": list(range(2000)), "step": step}))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CARD = b"---\nlicense: apache-2.0\n---\n# base\n"


@pytest.fixture(params=["lfs", "xet"])
def any_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "hub", xet=request.param == "xet") as hub:
        yield hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [checkpoint(tmp_path / f"model{step}", step) for step in range(3)]


MADE: dict[tuple[str, ...], dict[str, bytes]] = {}
"""The files of each patch by its options: one is made once, since repos with the same files have the same commits here."""


def publish(hub: Hub, client: Client, models: list[Path], *options: str) -> None:
    """A base repo, and a patch from it made by id and pushed. Drawing a stored report (``--report``) takes most of a push."""
    if "org/base" not in hub.repos:
        hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    if options not in MADE:
        client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse", *options)
        MADE[options] = files_of(client.folder / "patch")
    for path, data in MADE[options].items():
        (client.folder / "patch" / path).parent.mkdir(parents=True, exist_ok=True)
        (client.folder / "patch" / path).write_bytes(data)
    learn(hub, client.folder / "patch")
    client.run("push", "patch", "me/patch")


def learn(hub: Hub, patch: Path) -> None:
    if hub.cas:
        for path in patch.rglob("*"):
            if path.is_file():
                hub.learn(path.read_bytes())


def test_there_and_back(any_hub: Hub, models: list[Path], tmp_path: Path) -> None:
    publish(any_hub, Client(any_hub, tmp_path / "a", cold=True), models, "--report")
    other = Client(any_hub, tmp_path / "b", cold=True)
    shown = other.run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1]) and "SHA-256 as the patch states" in shown.stdout


def test_a_chain_of_two(any_hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(any_hub, tmp_path / "a")
    publish(any_hub, client, models)
    client.run("make", models[1], models[2], "-o", "second", "--base-repo", "me/patch", "--codec", "sparse")
    learn(any_hub, tmp_path / "a" / "second")
    client.run("push", "second", "me/second", "--license", "mit")
    other = Client(any_hub, tmp_path / "b")
    done = json.loads(other.run("pull", "me/second", "-o", "out", "--json").stdout)
    assert files_of(tmp_path / "b" / "out") == files_of(models[2])
    assert [p.split("@")[0] for p in done["patches"]] == ["me/patch", "me/second"] and done["base"].startswith("org/base@")


def test_a_base_with_more_shards_than_were_taken(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """A leftover set beside the model, which nobody but the repo's owner can remove: left out by make, and so by pull."""
    leftover = {f"model-0000{k}-of-00003.safetensors": files_of(models[0])["model-00001-of-00002.safetensors"] for k in (1, 2, 3)}
    hub.add("org/base", files_of(models[0]) | leftover | {"README.md": CARD})
    client = Client(hub, tmp_path / "a")
    client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse", "--exclude", "*-of-00003*")
    client.run("push", "patch", "me/patch")
    other = Client(hub, tmp_path / "b")
    other.run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1])
    fetched = {path.name for path in (tmp_path / "b" / "home").rglob("*.safetensors")}
    assert not fetched & set(leftover) and "model-00001-of-00002.safetensors" in fetched


def test_info_and_report_read_no_payload(hub: Hub, tmp_path: Path) -> None:
    """Of a patch of 40 MB; the server counts what it sends."""
    rng = np.random.default_rng(1)
    write(tmp_path / "base" / "model.safetensors", {"w": tensor("U8", (1000,), bytes(1000)), "x": tensor("U8", (8,), bytes(8))})
    new = {"w": tensor("U8", (1000,), bytes([1]) + bytes(999)), "big": tensor("U8", (40_000_000,), rng.integers(0, 256, 40_000_000, "u1"))}
    write(tmp_path / "new" / "model.safetensors", new | {"x": tensor("U8", (8,), bytes([7]) * 8)})
    client = Client(hub, tmp_path / "a")
    client.run("make", tmp_path / "base", tmp_path / "new", "-o", "patch")
    hub.add("me/big", files_of(tmp_path / "a" / "patch"))
    for arguments in (
        ("info", "me/big"),
        ("report", "me/big"),
        ("apply", tmp_path / "base", "me/big", "-o", "w.safetensors", "--only", "w"),
    ):
        hub.sent.clear()
        client.run(*arguments)
        assert 0 < sum(hub.sent.values()) < 50_000, hub.sent
    assert not (tmp_path / "a" / "home" / "hub").exists() and (tmp_path / "a" / "w.safetensors").exists()


def test_every_command_takes_ids(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    publish(hub, client, models)
    hub.add("org/tuned", files_of(models[1]), branch="v1")
    client.run("make", "org/base@main", "hf://org/tuned@v1", "-o", "p2")
    recorded = json.loads(client.run("info", "p2", "--json").stdout)["extra"]
    assert recorded["target_repo"] == "org/tuned" and recorded["base_revision"] == hub.repos["org/base"].branches["main"]
    client.run("apply", "org/base", "me/patch", "-o", "out")
    assert files_of(tmp_path / "a" / "out") == files_of(models[1])
    client.run("verify", "me/patch", "--base", "org/base", "--target", "out")
    client.run("compare", "org/tuned@v1", "out")
    client.run("report", "org/base", "me/patch", "--rank", "none")
    shared = client.run("overlap", "me/patch", "org/tuned@v1", "--base", "org/base", "--json").stdout
    assert json.loads(client.run("overlap", "org/tuned@v1", "me/patch", "p2", "--json").stdout)["pairs"][2]["jaccard"] == 1.0
    assert client.run("overlap", "me/patch", "org/tuned@v1", "--json").stdout.replace(f"@{recorded['base_revision']}", "") == shared
    client.run("make", "hf://org/base/model-00001-of-00002.safetensors", models[1] / "model-00001-of-00002.safetensors", "-o", "x")
    assert "ckptdiff pull me/patch -o OUT" in client.run("compare", "me/patch", "out", code=3).stderr


def test_live_patches_find_their_base(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """``Patch.open`` and ``load_target`` by id; the base is the repo that the patch names."""
    pytest.importorskip("torch", reason="torch is not installed")
    client = Client(hub, tmp_path / "a")
    publish(hub, client, models)
    code = """
import ckptdiff, numpy as np
from safetensors.torch import load_file
from pathlib import Path
import sys
target = {k: v for f in Path(sys.argv[1]).glob("*.safetensors") for k, v in load_file(f).items()}
base = {k: v for f in Path(sys.argv[2]).glob("*.safetensors") for k, v in load_file(f).items()}
with ckptdiff.Patch.open("me/patch") as patch:
    patch.apply_(base)
for found in (base, ckptdiff.load_target(None, "me/patch")):
    assert found.keys() == target.keys() and all((found[k] == target[k]).all() for k in target)
try: patch.load(base)
except ckptdiff.CheckpointError as error: print(error)
"""
    command = [sys.executable, "-c", code, str(models[1]), str(models[0])]
    done = subprocess.run(command, cwd=client.folder, env=client.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("the patch is closed: open it again\n"), done.stderr


def test_verify_against_a_repo(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    hub.add("org/tuned", files_of(models[1]))
    hub.sent.clear()
    client.run("verify", models[1], "--hub", "org/tuned")
    assert sum(hub.sent.values()) < 20_000
    other = client.run("verify", models[2], "--hub", "org/tuned", code=1).stdout
    assert "model-00001-of-00002.safetensors: its SHA-256 is" in other and "tokenizer.json" in other and "config.json" not in other
    (models[1] / "config.json").write_text("{}")
    assert "config.json: as git counts it its SHA-1" in client.run("verify", models[1], "--hub", "org/tuned", code=1).stdout
    os.rename(models[0], tmp_path / "store")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "unet").symlink_to(tmp_path / "store")
    hub.add("org/linked", {f"unet/{name}": data for name, data in files_of(tmp_path / "store").items()})
    client.run("verify", tmp_path / "linked", "--hub", "org/linked")


# --- push ---


def test_the_card(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """It parses with the client, keeps its owner's text, and its figures are those of ``report --json``."""
    from huggingface_hub import ModelCard

    from ckptdiff.pages.report_prose import percent

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
    assert "ckptdiff pull me/patch -o patch" in card.text and hub.repos["org/base"].branches["main"] in card.text
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


# --- pull ---


def pushed(hub: Hub, models: list[Path], tmp_path: Path) -> Client:
    publish(hub, Client(hub, tmp_path / "a"), models)
    return Client(hub, tmp_path / "b")


def test_offline_with_a_warm_cache(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    cold = client.run("pull", "me/patch", "-o", "out", code=3, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, and the cache has no files of it" in cold.stderr
    client.run("pull", "me/patch", "-o", "out")
    hub.requests.clear()
    client.run("pull", "me/patch", "-o", "again", HF_HUB_OFFLINE="1")
    assert not hub.requests and files_of(tmp_path / "b" / "again") == files_of(models[1])


def test_bases_that_are_not_as_they_were(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    base = hub.repos["org/base"]
    base.gated = True
    assert "org/base: is gated: ask for access at" in client.run("pull", "me/patch", "-o", "out", code=3).stderr
    base.gated = False
    del base.commits[base.branches["main"]]
    hub.add("org/base", files_of(models[0]))
    notes = client.run("pull", "me/patch", "-o", "rewritten").stderr
    assert "is gone from org/base" in notes and files_of(tmp_path / "b" / "rewritten") == files_of(models[1])
    del base.commits[base.branches["main"]]
    hub.add("org/base", files_of(models[2]))
    hub.sent.clear()
    said = client.run("pull", "me/patch", "-o", "other", code=3).stderr
    assert "is gone, and on the main branch" in said and "not the same checkpoint" in said
    assert not [line for line in hub.sent if "resolve" in line and "org/base" in line], "nothing large is fetched before"
    del hub.repos["org/base"]
    assert "the base of me/patch@" in client.run("pull", "me/patch", "-o", "gone", code=3).stderr
    client.run("pull", "me/patch", "-o", "local", "--base", models[0])
    assert files_of(tmp_path / "b" / "local") == files_of(models[1])
    assert not any((tmp_path / "b" / name).exists() for name in ("out", "other", "gone"))


def test_a_renamed_base(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    hub.repos["new/home"] = hub.repos.pop("org/base")
    hub.moved["org/base"] = "new/home"
    assert "the base org/base is called new/home now" in client.run("pull", "me/patch", "-o", "out").stderr


def test_a_chain_that_goes_round(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """A commit cannot name itself, a branch can."""
    client = pushed(hub, models, tmp_path)
    index = json.loads(hub.tree("me/patch")["ckptdiff.json"])
    del index["digest"]
    index["info"] = {"base_repo": "me/patch", "base_revision": "main"}
    digest = xxhash.xxh3_128_hexdigest(canonical.dumps(index))
    sealed = canonical.dumps({**index, "digest": digest})
    hub.add("me/patch", hub.tree("me/patch") | {"ckptdiff.json": sealed})
    assert "goes round in a circle" in client.run("pull", "me/patch", "-o", "out", code=3).stderr


@pytest.mark.parametrize("what", ["nobody/here", "me/patch@v9"])
def test_repos_that_are_not_there(hub: Hub, models: list[Path], tmp_path: Path, what: str) -> None:
    client = pushed(hub, models, tmp_path)
    said = client.run("pull", what, "-o", "out", code=3).stderr
    assert ("no such repo" if what == "nobody/here" else "has no revision v9") in said


# --- faults ---


FAULTS = {
    "a busy server": [Fault("GET /me/patch/resolve", 2, status=503), Fault("GET /org/base/resolve", 1, status=500)],
    "too many requests": [Fault("GET /org/base/resolve", 1, status=429, headers={"Retry-After": "0"})],
    "a download cut short": [Fault("GET /org/base/resolve.*safetensors", 1, kind="cut", after=5000)],
    "slow bytes": [Fault("resolve", 5, kind="slow")],
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_pull_survives(hub: Hub, models: list[Path], tmp_path: Path, name: str) -> None:
    client = pushed(hub, models, tmp_path)
    hub.faults = [Fault(f.pattern, f.times, f.status, f.kind, f.after, f.headers) for f in FAULTS[name]]
    try:
        client.run("pull", "me/patch", "-o", "out")
    except AssertionError:  # a clear error, and the next run completes
        assert not (tmp_path / "b" / "out").exists()
        client.run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1]) and all(not fault.times for fault in hub.faults[:1])


def test_wrong_bytes_are_found(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    hub.faults = [Fault("GET /org/base/resolve.*safetensors", 9, kind="flip")]
    said = client.run("pull", "me/patch", "-o", "out", code=3).stderr
    assert "error: " in said and not (tmp_path / "b" / "out").exists()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("POST .*/commit/", 1, status=412), "the repo has changed meanwhile: run again"),
        (Fault("POST .*/commit/", 1, status=403), "your token may not do this"),
        (Fault("POST .*/batch", 9, status=401), "your token is not valid"),
        (Fault("PUT /lfs", 99, status=400), "error: me/patch: "),
        (Fault("POST .*/commit/", 1, kind="cut", after=10), "cannot be reached"),
    ],
)
def test_a_push_that_fails_leaves_the_repo_as_it_was(hub: Hub, models: list[Path], tmp_path: Path, fault: Fault, text: str) -> None:
    client = Client(hub, tmp_path / "a")
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse")
    hub.faults = [fault]
    assert text in client.run("push", "patch", "me/patch", code=3).stderr
    assert list(hub.tree("me/patch")) == [".gitattributes"]
    hub.faults, sent = [], {line for line in hub.received if line.startswith("PUT /lfs") and line.rpartition("/")[2] in hub.objects}
    hub.received.clear()
    client.run("push", "patch", "me/patch")
    assert not sent & set(hub.received), "what was sent is not sent again"
    Client(hub, tmp_path / "b").run("pull", "me/patch", "-o", "out")


def test_a_wrong_token_is_not_shown(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    secret = "hf_" + "WrongWrongWrongWrongWrongWrongWrong"
    publish(hub, Client(hub, tmp_path / "a"), models)
    client = Client(hub, tmp_path / "b", token=secret)
    hub.repos["me/patch"].private = True
    for arguments in (("pull", "me/patch", "-o", "out"), ("push", tmp_path / "a" / "patch", "me/other"), ("info", "me/patch", "--json")):
        done = client.run(*arguments, code=3)
        assert secret not in done.stdout + done.stderr and "error" in done.stderr
    assert secret.encode() not in b"".join(files_of(tmp_path / "a" / "patch").values())


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
