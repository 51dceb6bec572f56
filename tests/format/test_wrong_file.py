"""What stands in the place of a weight file (a Git LFS pointer, a web page, an error message) is named, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.format.wrong_file import describe_wrong_file
from tests.support.small_pair import Pair

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345678\n"
FETCH = "which a server sent instead of the file: fetch the file again, logged in where it is gated, for example with: hf download "
LOOKS = {
    "lfs": (POINTER, "it is a Git LFS pointer, not the file itself: run git lfs pull in its folder"),
    "annex": (b"/annex/objects/SHA256E-s10--" + b"0" * 64 + b".safetensors\n", "run git annex get . in its folder"),
    "html": (b"<!DOCTYPE html>\n<html><head><title> Sign in </title></head>" + b"x" * 500, f'it is an HTML page ("Sign in"), {FETCH}'),
    "html without a title": (b"\n  <html lang='en'><body>404</body></html>", f"it is an HTML page, {FETCH}"),
    "json": (b'{"error":"Access to model org/m is restricted."}', 'it is a JSON message ("Access to model org/m is restricted."), which'),
    "json, indented": (b'{\n  "message": "Not Found",\n  "status": 404\n}', 'it is a JSON message ("Not Found"), which a server sent'),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', f'it is an XML message ("AccessDenied"), {FETCH}'),
    "text": (b"Entry not found", f'it is a message ("Entry not found"), {FETCH}'),
    "401": (b"Invalid username or password.", f'it is a message ("Invalid username or password."), {FETCH}'),
    "zip": (b"PK\x03\x04\0\0\x08\x08" + bytes(100), "it is a zip archive, as torch.save writes: load it with torch.load"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(100), "it is a GGUF file"),
    "config": (b'{"architectures": ["LlamaForCausalLM"]}', "it is a JSON text"),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_no_weight_file_is_named(look: str, files: Pair, folders: Pair, tmp_path: Path) -> None:
    """In a checkpoint and as a patch, in every verb that reads one."""
    data, words = LOOKS[look]
    for path in (files.base, folders.target / "model-00002-of-00002.safetensors", files.patch):
        path.write_bytes(data)
    calls = (
        lambda: ckptdiff.make(files.base, files.target, tmp_path / "out"),
        lambda: ckptdiff.compare(folders.base, folders.target),
        lambda: ckptdiff.make(folders.base, folders.target, tmp_path / "out"),
        lambda: ckptdiff.info(files.patch),
    )
    for call in calls:
        with pytest.raises(ckptdiff.CkptdiffError) as caught:
            call()
        assert words in str(caught.value) and ".safetensors: not a " in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x88\0\0\0\0\0\0\0{", b"weights", bytes(100), b"accessories"])
def test_other_bytes_are_nothing_known(data: bytes) -> None:
    assert describe_wrong_file(data) is None or data == b"{}"
