"""What a tensor's name tells about its place in a model: its component, its layer, the kind of its module, its expert."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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

EXPERT = re.compile(r"(?:^|\.)(?:local_)?experts\.([0-9]{1,9})\.")
TOWER = re.compile(
    r"(?:^|\.)(vision_tower|vision_model|vision_encoder|visual|image_encoder|language_model|text_model|text_encoder|audio_tower|audio_model"
    r"|audio_encoder|speech_encoder|multi_modal_projector|mm_projector|embed_vision|embed_audio|encoder|decoder)\."
)
"""Names by which multimodal and two-sided models call their parts. The outermost one counts."""
REST = "the rest"
"""Component of the tensors that are in no named one, beside others that are."""

PACKINGS = (
    ("U8", r"_blocks$|_packed$", "packed numbers, two values a byte: what is counted are bytes"),
    ("I8", r"_packed$", "packed numbers, two values a byte: what is counted are bytes"),
    ("I32", r"(^|[._])(qweight|qzeros|weight_packed)$", "packed numbers, several values in 32 bits: what is counted are words of 32 bits"),
    ("F4", r"", "FP4, stored packed, two values a byte: what is counted are values"),
    ("F6_E2M3", r"", "FP6, stored packed, four values in three bytes: what is counted are values"),
    ("F6_E3M2", r"", "FP6, stored packed, four values in three bytes: what is counted are values"),
)
"""Dtypes and names of tensors that hold more values than elements, or elements of less than a byte: as MXFP4 (``_blocks``, ``_packed``),
GPTQ and AWQ (``qweight``, ``qzeros``) and compressed-tensors (``weight_packed``) are saved."""


def packing(name: str, dtype: str) -> str:
    """What the elements of a tensor of packed numbers are, in words; empty for any other."""
    return next((words for of, pattern, words in PACKINGS if of == dtype and re.search(pattern, name)), "")


def expert_of(name: str, part: int | None = None) -> int | None:
    """Number of the expert that a tensor belongs to, or that part ``part`` of a stacked one is; None if it is no single expert's."""
    match = EXPERT.search(name)
    return int(match.group(1)) if match else part if module_of(name) == "experts" else None


def component_of(scope: str, name: str) -> str:
    """The component of a pipeline (its scope's folder, spec 3.1), and the tower in it, as ``text_encoder/text_model``; may be empty."""
    tower = TOWER.search(name)
    return "/".join(filter(None, (scope.rpartition("/")[0], tower.group(1) if tower else "")))


def components_of(places: Iterable[tuple[str, str]]) -> list[str]:
    """The component of each tensor, given its scope and name; the same empty one for all where the names tell less than two."""
    found = [component_of(scope, name) for scope, name in places]
    return [component or REST for component in found] if len(set(found)) > 1 else [""] * len(found)


def modules_by_component(components: Sequence[str], layers: Sequence[int | None], modules: Sequence[str]) -> list[str]:
    """The kind of module of each tensor, after its component where two components have a layer of the same number."""
    owners: dict[int | None, set[str]] = {}
    for component, layer in zip(components, layers, strict=True):
        owners.setdefault(layer, set()).add(component)
    owners.pop(None, None)
    if all(len(found) < 2 for found in owners.values()):
        return list(modules)
    return [f"{component} {module}" for component, module in zip(components, modules, strict=True)]


def layer_of(name: str) -> int | None:
    """Number of the layer that a tensor belongs to; None if its name tells none."""
    match = LAYER.search(name)
    return int(match.group(1)) if match else None


def module_of(name: str) -> str:
    """Kind of the module that a tensor belongs to; ``other`` if no rule fits its name."""
    return next((kind for kind, pattern in _COMPILED if pattern.search(name)), "other")
