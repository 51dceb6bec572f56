"""Scopes and doubled names as the minimal reader alone reads them from names and indexes (spec 3.1)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.vectors import READER


def scopes(folder: Path, paths: list[str], **indexes: list[str]) -> dict[str, list[str]]:
    """The files of each scope. ``indexes``: the files that each lists, by its path, with ``_`` for ``.``."""
    named = {f"{key.replace('_', '.')}.json": files for key, files in indexes.items()}
    for name, files in named.items():
        (folder / name).write_text(json.dumps({"weight_map": {f"t{i}": file for i, file in enumerate(files)}}))
    read = [READER.read_index(str(folder), name) for name in sorted(named)]
    found = READER.group(str(folder), [f"{path}.safetensors" for path in paths], read)
    return {scope: [file.removesuffix(".safetensors") for file in value.files] for scope, value in found.items()}


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("model-00001-of-00002", "model"),
        ("model-00001-of-000163", "model"),
        ("model-000001-of-00163", "model"),
        ("x/model-1234567-of-1234567.fp16", "x/model.fp16"),
        ("model-0001-of-00002", "model-0001-of-00002"),
        ("model-00001-of-0002", "model-00001-of-0002"),
        ("model-00001-of-0000\u0662", "model-00001-of-0000\u0662"),
        ("model-00001-of-00002.a.b", "model-00001-of-00002.a.b"),
        ("model.safetensors-00001-of-00002", "model"),
        ("model.safetensors.safetensors-00001-of-00002.fp16", "model.safetensors.fp16"),
        ("x/.safetensors-00001-of-00002", "x/.safetensors"),
        ("model-00001-of-00002.safetensors", "model.safetensors"),
        ("model.safetensors", "model.safetensors"),
        ("a\n.safetensors-00001-of-00002", "a\n"),
    ],
)
def test_the_scope_of_a_name(name: str, scope: str, tmp_path: Path) -> None:
    assert scopes(tmp_path, [name]) == {scope: [name]}


def test_files_that_an_index_of_their_scope_does_not_list(tmp_path: Path) -> None:
    """Each is a scope of its own; without an index they are one."""
    listed, stale = ["model-00001-of-00002", "model-00002-of-00002"], ["model-00001-of-00003", "model-00002-of-00003"]
    every = [*listed, *stale, "model"]
    alone = {path: [path] for path in stale}
    weights = [f"{path}.safetensors" for path in listed]
    found = scopes(tmp_path, every, model_safetensors_index=weights)
    assert found == {"model": listed, **alone, "model.safetensors": ["model"]}
    together = {"model": sorted([*listed, *stale]), "model.safetensors": ["model"]}
    assert scopes(tmp_path, every) == together
    other = scopes(tmp_path, every, other_safetensors_index=weights[:1])
    assert other == {"other": listed[:1], "model": sorted([*listed[1:], *stale]), "model.safetensors": ["model"]}


def test_the_index_of_another_scope_says_nothing_of_doubled_names(tmp_path: Path) -> None:
    """Two indexes list the second file, of which the first by path gives its scope."""
    files = ["a.safetensors", "b.safetensors"]
    maps = {"m.safetensors.index.json": {"w": files[1], "v": files[0]}, "n.safetensors.index.json": {"v": files[1]}}
    for name, weight_map in maps.items():
        (tmp_path / name).write_text(json.dumps({"weight_map": weight_map}))
    (scope,) = READER.group(str(tmp_path), files, [READER.read_index(str(tmp_path), name) for name in maps]).values()
    assert list(scope.files) == files
    assert {name: scope.counting(name, {file: file for file in files}) for name in "vwx"} == {"v": files[0], "w": files[1], "x": files[0]}


@pytest.mark.parametrize("paths", [["\U00010000", "\uffee"], ["a-b", "a/b", "a0"]])
def test_the_first_path_is_that_of_the_lowest_bytes(paths: list[str]) -> None:
    assert READER.Scope().counting("w", {path: path for path in paths}) == min(paths, key=str.encode)
