"""Checkpoints whose tensors are made from pieces of others, told by hand."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ckptdiff.checkpoint.adapt import joined
from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.pairing import Counterpart, Pairing, pair
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.format.dtypes import is_castable
from ckptdiff.format.entry import Piece
from ckptdiff.io.parallel import Threads, no_progress
from ckptdiff.patching.compare_on_host import compare_on_host
from ckptdiff.patching.encode_options import EncodeOptions
from ckptdiff.patching.encode_pair import encode_pair
from ckptdiff.patching.write import PatchContents, write_file
from tests.support.casts import cast_bits
from tests.support.checkpoints import BITS, TensorData, carrier, random_tensor, tensor

Pieces = Mapping[str, Sequence[Piece]]
"""What the tensors of a target are made from, by name."""
FLOATS = ("F16", "BF16", "F32")
DTYPES = ("BF16", "F16", "F32", "U8", "F8_E4M3", "I16", "F64", "I32")
"""Those whose elements are units."""


def make_patch(base: Path, target: Path, patch: Path, pieces: Pieces, codec: str | None = None) -> Path:
    """Write the patch of two files, whose pieces are told for some tensors."""
    with open_checkpoint(base) as old, open_checkpoint(target) as new, open(patch, "wb") as out:
        options = EncodeOptions(codec, compare_on_host, 1, Threads(2))
        encoded = encode_pair(old, new, paired_by_hand(old, new, pieces), options, io.BytesIO(), no_progress)
        write_file(PatchContents(encoded, {}, None), out)
    return patch


def paired_by_hand(base: Checkpoint, target: Checkpoint, pieces: Pieces) -> Pairing:
    """The pairs of two checkpoints of one scope, of which some tensors are told what they are made from."""
    ((scope, tensors),) = target.scopes.items()
    pairing = pair(base, target)
    known = base.scopes[pairing.scopes[scope] or ""]
    for name, row in pieces.items():
        pairing.counterparts[tensors[name].key] = Counterpart(joined(row, known.__getitem__, tensors[name]), "parts")
    return pairing


def units_of(data: TensorData) -> np.ndarray:
    return np.frombuffer(data[2], f"<u{carrier(data[0])}")


def adapted(base: Mapping[str, TensorData], pieces: Sequence[Piece], dtype: str, units: int) -> np.ndarray:
    """The units that a target tensor of a dtype and size stands against: spec section 8, once more."""
    source = next(base[piece.name][0] for piece in pieces if piece.name is not None)
    width = carrier(source)
    runs = [
        np.zeros(piece.units, f"<u{width}") if piece.name is None else units_of(base[piece.name])[piece.first : piece.first + piece.units]
        for piece in pieces
    ]
    joined = np.concatenate(runs)
    if source != dtype and source in FLOATS and dtype in FLOATS:
        joined = cast_bits(f"{source}-{dtype}", joined)
    out = np.zeros(units, f"<u{carrier(dtype)}")
    out[: len(joined)] = joined
    return out


def random_base(rng: np.random.Generator) -> dict[str, TensorData]:
    """A few short tensors, some of one dtype."""
    chosen = rng.choice(DTYPES, size=int(rng.integers(1, 3)))
    return {f"t{k}": random_tensor(rng, str(rng.choice(chosen)), [int(rng.integers(1, 40))]) for k in range(int(rng.integers(1, 5)))}


def random_target(rng: np.random.Generator, base: Mapping[str, TensorData]) -> tuple[dict[str, TensorData], dict[str, list[Piece]]]:
    """Tensors made from pieces of a base's and changed a little; some keep a name, some are new, some are told nothing of."""
    target, told = dict[str, TensorData](), dict[str, list[Piece]]()
    for k in range(int(rng.integers(1, 5))):
        name = str(rng.choice([*base, f"n{k}"]))
        source = str(rng.choice([data[0] for data in base.values()]))
        dtype = str(rng.choice([source, *(other for other in DTYPES if is_castable(source, other))]))
        pieces = random_pieces(rng, {key: data for key, data in base.items() if data[0] == source})
        size = sum(piece.units for piece in pieces) + int(rng.choice([0, 0, 1, 5]))
        units = adapted(base, pieces, dtype, size)
        changed = rng.random(size) < rng.choice([0, 0.1, 1])
        units[changed] ^= rng.integers(1, 256, size=int(changed.sum())).astype(units.dtype)
        target[name] = tensor(dtype, [size * 8 * carrier(dtype) // BITS[dtype]], units)
        if rng.random() < 0.8:
            told[name] = pieces
        else:
            told.pop(name, None)
    return target, told


def random_pieces(rng: np.random.Generator, tensors: Mapping[str, TensorData]) -> list[Piece]:
    """Runs of tensors, and zeros between them; at least one has a name."""
    pieces = list[Piece]()
    for _ in range(int(rng.integers(1, 5))):
        name = str(rng.choice(list(tensors)))
        length = len(units_of(tensors[name]))
        first = int(rng.choice([0, int(rng.integers(length))]))
        pieces.append(Piece(name, first, int(rng.integers(1, length - first + 1))))
        if rng.random() < 0.2:
            pieces.append(Piece(None, 0, int(rng.integers(1, 5))))
    return pieces
