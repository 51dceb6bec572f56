"""What a tensor's name tells about its place in a transformer: its layer, and the kind of its module."""

from __future__ import annotations

import re

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block_list)\.([0-9]{1,9})\.")
MAX_LAYER = 10**9 - 1
"""A longer number in a name does not count as that of a layer, as programs that read a report's JSON may have no room for it."""

RULES: tuple[tuple[str, str], ...] = (
    ("bias", r"(^|[._])bias$"),
    ("norm", r"norm|(^|\.)ln_\w+\."),
    ("router", r"(^|\.)(router|gate|shared_expert_gate)(\.|$)"),
    ("experts", r"(^|\.)(experts|local_experts)\."),
    ("lm_head", r"(^|\.)(lm_head|embed_out)\.|^output\."),
    ("embedding", r"(^|\.)(embed_tokens|wte|wpe|embed_in|tok_embeddings|word_embeddings|position_embeddings|embeddings?|shared)\b"),
    ("qkv", r"(^|\.)(c_attn|query_key_value|qkv_proj|qkv|Wqkv|W_pack|in_proj)\b"),
    ("kv", r"(^|\.)(kv_proj|kv_a_proj_with_mqa|kv_b_proj|wkv\w*|key_value)\b"),
    ("q", r"(^|\.)(q_proj|q_a_proj|q_b_proj|wq|wq_a|wq_b|query|to_q)\b"),
    ("k", r"(^|\.)(k_proj|wk|key|to_k)\b"),
    ("v", r"(^|\.)(v_proj|wv|value|to_v)\b"),
    ("down", r"(^|\.)(down_proj|w2|fc2|fc_out|dense_4h_to_h|wo_mlp)\b|(^|\.)mlp\.c_proj\b"),
    ("o", r"(^|\.)(o_proj|wo|out_proj|to_out)\b|(attn|attention|self_attn)\.(c_proj|dense)\b|attention\.output\.dense\b"),
    ("gate_up", r"(^|\.)(gate_up_proj|w13|gate_up)\b"),
    ("gate", r"(^|\.)(gate_proj|w1)\b"),
    ("up", r"(^|\.)(up_proj|w3|c_fc|fc1|fc_in|dense_h_to_4h)\b"),
)
"""Kinds of modules and patterns of tensor names, in the order in which they are tried. They fit Llama, Qwen, Mistral, Mixtral, Gemma,
GPT-2, GPT-NeoX, Phi and DeepSeek MoE."""

_COMPILED = tuple((kind, re.compile(pattern)) for kind, pattern in RULES)
KINDS = (
    "embedding",
    "q",
    "k",
    "v",
    "kv",
    "qkv",
    "o",
    "gate",
    "up",
    "gate_up",
    "down",
    "experts",
    "router",
    "norm",
    "bias",
    "lm_head",
    "other",
)
"""All kinds, in the order of a model."""
APART = ("norm", "bias", "embedding")
"""Kinds that are reported apart from the weight matrices, as the paper reports layer norms (arXiv 2505.11711, figure 3)."""


def layer_of(name: str) -> int | None:
    """Number of the layer that a tensor belongs to; None if its name tells none."""
    match = LAYER.search(name)
    return int(match.group(1)) if match else None


def module_of(name: str) -> str:
    """Kind of the module that a tensor belongs to; ``other`` if no rule fits its name."""
    return next((kind for kind, pattern in _COMPILED if pattern.search(name)), "other")
