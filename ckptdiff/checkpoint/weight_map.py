"""The shards that the index of a sharded checkpoint, ``*.safetensors.index.json``, lists."""

from __future__ import annotations

import json
from pathlib import Path

from ckptdiff.errors import CheckpointError
from ckptdiff.format.json_scan import count_nodes

MAX_INDEX_JSON = 1 << 25
"""Bytes of an index."""
MAX_INDEX_NODES = 1 << 19
"""Braces, brackets and commas of an index, which has about one for each tensor."""


def shards_of_index(path: Path) -> list[str]:
    """The shards that an index lists, sorted.

    Raises:
        CheckpointError: it cannot be read, is larger than any model needs, or is not an index.
    """
    try:
        size = path.stat().st_size
        if size > MAX_INDEX_JSON:
            raise CheckpointError(f"{path}: an index of {size} bytes is too large (limit {MAX_INDEX_JSON})")
        data = path.read_bytes()
        nodes = count_nodes(data)
        if nodes > MAX_INDEX_NODES:
            raise CheckpointError(f"{path}: an index with {nodes} braces, brackets and commas is too large (limit {MAX_INDEX_NODES})")
        weight_map = json.loads(data.decode("utf-8-sig"))["weight_map"]  # not UTF-16, in which the count of nodes would be wrong
        return sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: not a safetensors index: expected a JSON object with a weight_map") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
