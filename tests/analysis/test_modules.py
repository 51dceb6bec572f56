"""Names of tensors from many families of models give their layer, kind of module, expert and component."""

from __future__ import annotations

import pytest

from ckptdiff.analysis.modules import (
    KINDS,
    REST,
    RULES,
    component_of,
    components_of,
    expert_of,
    layer_of,
    module_of,
    modules_by_component,
    packing,
)

NAMES = {
    "model.layers.3.self_attn.k_proj.weight": (3, "k"),
    "model.layers.31.self_attn.v_proj.weight": (31, "v"),
    "model.layers.3.self_attn.q_proj.weight": (3, "q"),
    "model.layers.3.self_attn.k_proj.bias": (3, "bias"),
    "model.layers.0.mlp.gate_proj.weight": (0, "gate"),
    "model.layers.0.mlp.gate.weight": (0, "router"),
    "model.layers.0.mlp.experts.5.down_proj.weight": (0, "experts"),
    "model.layers.0.mlp.shared_experts.up_proj.weight": (0, "up"),
    "model.layers.0.mlp.shared_expert_gate.weight": (0, "router"),
    "model.layers.0.block_sparse_moe.gate.weight": (0, "router"),
    "model.layers.0.block_sparse_moe.experts.0.w1.weight": (0, "experts"),
    "model.embed_tokens.weight": (None, "embedding"),
    "lm_head.weight": (None, "lm_head"),
    "model.norm.weight": (None, "norm"),
    "model.layers.9.input_layernorm.weight": (9, "norm"),
    "model.layers.1.self_attn.q_norm.weight": (1, "norm"),
    "model.layers.1.pre_feedforward_layernorm.weight": (1, "norm"),
    "transformer.h.2.attn.c_attn.weight": (2, "qkv"),
    "transformer.h.2.attn.c_proj.weight": (2, "o"),
    "transformer.h.2.mlp.c_proj.weight": (2, "down"),
    "transformer.h.2.mlp.c_fc.weight": (2, "up"),
    "transformer.h.2.ln_1.weight": (2, "norm"),
    "transformer.ln_f.weight": (None, "norm"),
    "h.0.ln_1.bias": (0, "bias"),
    "wte.weight": (None, "embedding"),
    "transformer.wpe.weight": (None, "embedding"),
    "gpt_neox.layers.4.attention.query_key_value.weight": (4, "qkv"),
    "gpt_neox.layers.4.attention.dense.weight": (4, "o"),
    "gpt_neox.layers.4.mlp.dense_h_to_4h.weight": (4, "up"),
    "gpt_neox.layers.4.mlp.dense_4h_to_h.weight": (4, "down"),
    "gpt_neox.embed_in.weight": (None, "embedding"),
    "embed_out.weight": (None, "lm_head"),
    "gpt_neox.final_layer_norm.weight": (None, "norm"),
    "model.layers.5.self_attn.kv_a_proj_with_mqa.weight": (5, "kv"),
    "model.layers.5.self_attn.kv_b_proj.weight": (5, "kv"),
    "model.layers.5.self_attn.q_a_proj.weight": (5, "q"),
    "model.layers.5.self_attn.kv_a_layernorm.weight": (5, "norm"),
    "model.layers.5.mlp.gate.e_score_correction_bias": (5, "bias"),
    "layers.3.attention.wq.weight": (3, "q"),
    "layers.3.feed_forward.w2.weight": (3, "down"),
    "output.weight": (None, "lm_head"),
    "tok_embeddings.weight": (None, "embedding"),
    "model.layers.2.self_attn.qkv_proj.weight": (2, "qkv"),
    "model.layers.2.mlp.gate_up_proj.weight": (2, "gate_up"),
    "model.layers.0.mlp.experts.gate_up_proj": (0, "experts"),
    "model.layers.0.mlp.router.weight": (0, "router"),
    "model.layers.0.mlp.down_proj.weight_scale": (0, "down"),
    "x": (None, "other"),
    "model.language_model.layers.7.self_attn.o_proj.weight": (7, "o"),
    "model.layers.0.self_attn.rotary_emb.inv_freq": (0, "other"),
    "bert.encoder.layer.3.attention.self.query.weight": (3, "q"),
    "bert.encoder.layer.3.attention.output.dense.weight": (3, "o"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_give_layer_and_kind(name: str) -> None:
    assert (layer_of(name), module_of(name)) == NAMES[name]


def test_every_kind_has_a_place_and_a_name() -> None:
    assert {kind for kind, _ in RULES} | {"other"} == set(KINDS)
    assert {kind for _, kind in NAMES.values()} == set(KINDS)


def test_experts_are_told_by_number() -> None:
    assert expert_of("model.layers.0.mlp.experts.17.down_proj.weight") == 17
    assert expert_of("model.layers.0.block_sparse_moe.experts.0.w1.weight") == 0
    assert expert_of("model.layers.0.mlp.experts.gate_up_proj") is None and expert_of("model.layers.0.mlp.experts.gate_up_proj", 3) == 3
    assert expert_of("model.layers.0.mlp.shared_experts.up_proj.weight") is None and expert_of("model.layers.3.mlp.up_proj", 2) is None


COMPONENTS = {
    ("model", "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"): "vision_tower",
    ("model", "model.language_model.layers.7.self_attn.o_proj.weight"): "language_model",
    ("model", "visual.blocks.0.attn.qkv.weight"): "visual",
    ("model", "model.multi_modal_projector.linear_1.weight"): "multi_modal_projector",
    ("model", "model.layers.0.mlp.up_proj.weight"): "",
    ("unet/diffusion_pytorch_model", "down_blocks.0.attentions.0.proj_in.weight"): "unet",
    ("text_encoder/model", "text_model.encoder.layers.0.self_attn.q_proj.weight"): "text_encoder/text_model",
}


def test_components_are_folders_of_a_pipeline_and_towers() -> None:
    assert {place: component_of(*place) for place in COMPONENTS} == COMPONENTS
    assert components_of([("model", "lm_head.weight"), ("model", "visual.merger.mlp.0.weight")]) == [REST, "visual"]
    assert components_of([("model", "bert.encoder.layer.0.output.dense.weight")] * 2) == ["", ""]


def test_kinds_name_their_component_only_where_layers_of_two_have_one_number() -> None:
    assert modules_by_component(["visual", REST], [0, 0], ["q", "q"]) == ["visual q", f"{REST} q"]
    assert modules_by_component(["visual", REST], [0, 1], ["q", "q"]) == ["q", "q"]
    assert modules_by_component(["visual", REST], [None, None], ["q", "q"]) == ["q", "q"]


def test_packed_numbers_are_told_by_dtype_and_name() -> None:
    blocks = packing("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8")
    assert "two values a byte" in blocks and "bytes" in blocks and packing("model.embed_tokens.weight", "F4").startswith("FP4")
    assert "32 bits" in packing("model.layers.0.self_attn.q_proj.qweight", "I32")
    for name, dtype in (("model.layers.0.mlp.up_proj.weight", "U8"), ("position_ids", "I32"), ("w_blocks", "BF16"), ("scales", "F8_E8M0")):
        assert packing(name, dtype) == ""
