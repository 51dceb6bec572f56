"""Headers of safetensors files come back byte for byte: order, metadata, padding, spelling, and any name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import perturb, random_tensor, tensor, write, write_raw
from tests.support.roundtrips import pair, roundtrip


def test_tensors_in_another_order(tmp_path: Path, rng: np.random.Generator) -> None:
    """The target stores the same tensors backwards: nothing to store but the order."""
    base = {f"t{i}": random_tensor(rng, "F32", [i + 1, 4]) for i in range(6)}
    rows = pair(tmp_path, base, dict(reversed(base.items())))
    assert list(rows) == list(reversed(base)) and {row.kind for row in rows.values()} == {"same"}


METADATA: list[tuple[dict[str, str] | None, bool]] = [
    (None, True),
    ({}, True),
    ({"format": "pt"}, True),
    ({"format": "pt"}, False),
    ({"b": "2", "a": "1", "": ""}, True),
    ({"a": "1", "b": "2", "": ""}, False),
    ({"naïve": "模型 😀 \x7f", 'q"\\\n': "\t\x00\x1f"}, True),
    ({"big": "x" * 100_000}, False),
]


@pytest.mark.parametrize("case", range(len(METADATA)))
def test_metadata_comes_back(tmp_path: Path, rng: np.random.Generator, case: int) -> None:
    """``__metadata__`` absent, empty, reordered, in other scripts, large, before or after the tensors."""
    metadata, first = METADATA[case]
    other, other_first = METADATA[case - 1]
    w = random_tensor(rng, "F16", [20])
    base = write(tmp_path / "base.safetensors", {"w": w}, other, first=other_first)
    target = write(tmp_path / "target.safetensors", {"w": perturb(rng, w, 0.1)}, metadata, first=first)
    assert roundtrip(tmp_path, base, target).totals.delta == 1


@pytest.mark.parametrize("pad", range(1, 17))
def test_header_padding_comes_back(tmp_path: Path, rng: np.random.Generator, pad: int) -> None:
    """Headers padded to any multiple, or by any number of spaces, come back as they were."""
    w = random_tensor(rng, "F16", [20])
    base = write(tmp_path / "base.safetensors", {"w": w}, pad=17 - pad)
    for k, target in enumerate([
        write(tmp_path / "0.safetensors", {"w": perturb(rng, w, 0.1)}, pad=pad),
        write_raw(tmp_path / "1.safetensors", '{"w":{"dtype":"F16","shape":[20],"data_offsets":[0,40]}}' + " " * (pad - 1), w[2]),
    ]):  # fmt: skip
        (tmp_path / str(k)).mkdir()
        roundtrip(tmp_path / str(k), base, target)


HEADERS = {
    "indented": json.dumps({"__metadata__": {"k": "v"}, "w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, indent=3),
    "keys in another order": '{"w":{"data_offsets":[0,4],"shape":[2],"dtype":"F16"}}',
    "escaped names": '{"\\u0077":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"__metadata__":{"\\u00e9\\/":"\\ud83d\\ude00"}}',
    "metadata between": '{"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"__metadata__":{},'
    '"v":{"dtype":"F16","shape":[],"data_offsets":[2,4]}}',
    "not in order of data": '{"v":{"dtype":"F16","shape":[1],"data_offsets":[2,4]},"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}',
    "empty ones between": '{"z":{"dtype":"F16","shape":[0],"data_offsets":[4,4]},"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},'
    '"y":{"dtype":"I8","shape":[0],"data_offsets":[4,4]},"x":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
    "white space": '{ "w"\n:\t{"dtype" : "F16", "shape":[ 2 ]\r,"data_offsets":[0 ,4] } }   ',
}


@pytest.mark.parametrize("case", HEADERS)
def test_unusual_headers_come_back(tmp_path: Path, case: str) -> None:
    """Valid headers that no common writer writes come back byte for byte, with and without a base like them."""
    plain = write(tmp_path / "plain.safetensors", {"w": tensor("F16", [2], b"abcd")})
    odd = write_raw(tmp_path / "odd.safetensors", HEADERS[case], b"abce")
    for name, base, target in (("there", plain, odd), ("back", odd, plain)):
        (tmp_path / name).mkdir()
        roundtrip(tmp_path / name, base, target)


NAMES = [
    "double \"quotes\" and 'single'",
    "back\\slash\\n",
    "\x00\x01\x1f\x7f\b\f\n\r\t",
    "😀 模型 ñ é e\u0301",
    "\u2028\u2029\ufeff\uffff\U0010ffff",
    " ",
    "../../etc/passwd",
    "ckptdiff/table",
    "tensor/w",
    "__metadata__2",
    "</script>&amp;%s{0}",
    "long" * 1000,
    "😀" * 1000,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_comes_back(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    """Any name that a header can hold: of a delta, a new tensor, a copy, and a removed one."""
    w, n = random_tensor(rng, "F32", [4, 4]), random_tensor(rng, "F32", [7])
    base = {name: w, "gone" + name: n, "same" + name: w}
    rows = pair(tmp_path, base, {name: perturb(rng, w, 0.1), "new" + name: perturb(rng, n, 1), "same" + name: w})
    assert [rows[name].kind, rows["new" + name].kind, rows["same" + name].kind] == ["delta", "new", "same"]
    assert ckptdiff.info(tmp_path / "the patch").removed_tensors == ("gone" + name,)


@pytest.mark.parametrize("name", ["n" * 4096, "😀" * 1024], ids=["ascii", "emoji"])
def test_the_longest_name(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    """A name of 4,096 bytes, the limit of spec section 11, with a payload."""
    w = random_tensor(rng, "F32", [4, 4])
    assert pair(tmp_path, {name: w}, {name: perturb(rng, w, 0.1)})[name].kind == "delta"
