"""Ids of repos on the Hub, and how they are told from local paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptdiff import CheckpointError
from ckptdiff.hub.ids import HubId, parse_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("org/name@refs/pr/3", HubId("org/name", "refs/pr/3")),
        (
            "Qwen/Qwen2.5-0.5B@060db6499f32faf8b98477b0a26969ef7d8b9987",
            HubId("Qwen/Qwen2.5-0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987"),
        ),
        ("hf://org/name", HubId("org/name")),
        ("hf://org/name@main/unet/fp16", HubId("org/name", "main", "unet/fp16")),
        ("hf://org/name/unet/", HubId("org/name", None, "unet")),
        ("hf://org/name@refs/pr/1/unet", HubId("org/name", "refs/pr/1", "unet")),
        ("hf://org/name@refs%2Fpr%2F1/unet", HubId("org/name", "refs/pr/1", "unet")),
        (Path("hf://org/name@main"), HubId("org/name", "main")),
        (Path("org/name"), HubId("org/name")),
    ],
)
def test_ids_are_taken_apart(text: str, expected: HubId) -> None:
    assert parse_id(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "./org/name",
        "/org/name",
        "../x",
        "a/b/c",
        "~/x",
        "org/",
        "org//name",
        "org/name@",
        "org/na me",
        "a--b/c",
        "a/b..c",
        ".a/b",
        "",
    ],
)
def test_what_is_no_id_is_a_local_path(text: str) -> None:
    assert parse_id(text) is None


@pytest.mark.parametrize("text", ["hf://org", "hf:/", "hf://org/name@a b", "hf:///name", "hf://datasets/org/name@x@y"])
def test_broken_ids_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="is not hf://org/name"):
        parse_id(text)


def test_a_subfolder_stays_in_its_repo() -> None:
    with pytest.raises(CheckpointError, match="cannot lie outside of its repo"):
        parse_id("hf://org/name/../../x")


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_id("org/name") == HubId("org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_id("org/name") is None and parse_id("hf://org/name") == HubId("org/name")
    (tmp_path / "org" / "dangling").symlink_to("nowhere")
    assert parse_id("org/dangling") is None


def test_text_of_an_id() -> None:
    for text in ("org/name", "org/name@v1", "hf://org/name/unet", "hf://org/name@v1/unet"):
        assert str(parse_id(text)) == text
