"""Names of tensors from many families of models give their layer and kind of module."""

from __future__ import annotations

import pytest

from ckptdiff.analysis.modules import KINDS, RULES, layer_of, module_of

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
