"""The index of a sharded checkpoint, ``*.safetensors.index.json``: which shard holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ckptdiff.errors import CheckpointError
from ckptdiff.format.json_scan import count_nodes
from ckptdiff.io.places import Place, is_file, read_file, size_of

MAX_INDEX_JSON = 1 << 25
"""Bytes of an index."""
MAX_INDEX_NODES = 1 << 19
"""Braces, brackets and commas of an index, which has about one for each tensor."""


WeightMap = Mapping[str, str]
"""The shard that an index names for each tensor, by the tensor's name."""


def read_weight_map(path: Place) -> WeightMap:
    """The weight map of an index.

    Raises:
        CheckpointError: it cannot be read, is larger than any model needs, or is not an index.
    """
    try:
        if not is_file(path):
            raise CheckpointError(f"{path}: not a regular file")
        size = size_of(path)
        if size > MAX_INDEX_JSON:
            raise CheckpointError(f"{path}: an index of {size} bytes is too large (limit {MAX_INDEX_JSON})")
        data = path.read_bytes() if isinstance(path, Path) else read_file(path)
        nodes = count_nodes(data)
        if nodes > MAX_INDEX_NODES:
            raise CheckpointError(f"{path}: an index with {nodes} braces, brackets and commas is too large (limit {MAX_INDEX_NODES})")
        weight_map = json.loads(data.decode("utf-8-sig"))["weight_map"]  # not UTF-16, in which the count of nodes would be wrong
        return {name: str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: not a safetensors index: expected a JSON object with a weight_map") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
