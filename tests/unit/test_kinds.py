"""What files of weights are, by the names that published ones have."""

from __future__ import annotations

import pytest
from comfyui_apprentice.weights.kinds import kind_of, packing_of

NAMES = {
    "a LoRA": [
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "transformer.blocks.0.attn.to_q.lora_A.weight",
        "diffusion_model.layers.0.attention.qkv.lora_up.weight", "lycoris_unet_mid.hada_w1_a", "lora_te1_x.lokr_w1",
        "unet.down_blocks.0.attn1.processor.to_q_lora.down.weight", "diffusion_model.blocks.0.norm3.diff",
    ],
    "a VAE": [
        "decoder.conv_in.weight", "first_stage_model.encoder.down.0.block.0.conv1.weight", "encoder.down_blocks.0.conv1.weight",
        "decoder.conv1.weight", "post_quant_conv.weight", "decoder.layers.0.weight",
    ],
    "a text encoder": [
        "text_model.encoder.layers.0.mlp.fc1.weight", "encoder.block.0.layer.0.SelfAttention.k.weight", "shared.weight",
        "model.layers.0.self_attn.q_proj.weight", "model.language_model.layers.0.self_attn.k_proj.weight",
        "transformer.resblocks.0.ln_1.weight", "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "enc.blk.0.attn_k.weight", "token_embd.weight",
    ],
    "a ControlNet": [
        "control_model.input_blocks.0.0.weight", "controlnet_cond_embedding.conv_in.weight", "controlnet_blocks.0.weight",
    ],
    "an embedding (textual inversion)": ["emb_params", "clip_g"],
    "an image encoder (CLIP Vision)": ["vision_model.encoder.layers.0.mlp.fc1.weight"],
    "an IP-Adapter": ["ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"],
    "": ["model.diffusion_model.input_blocks.0.0.weight", "double_blocks.0.img_attn.qkv.weight", "conv_in.weight"],
}  # fmt: skip
PACKED = {
    "packed in 4 bits by bitsandbytes (NF4, FP4)": "double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4",
    "packed in 4 bits for Nunchaku (SVDQuant)": "single_transformer_blocks.0.mlp_fc1.wscales",
    "packed in 4 bits (NVFP4)": "layers.0.attention.qkv.weight_scale_2",
    "": "double_blocks.0.img_attn.qkv.scale_weight",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_a_file_is_known_by_a_name_in_it(kind: str, name: str) -> None:
    assert kind_of(["unknown.weight", name]) == kind


@pytest.mark.parametrize(("packing", "name"), list(PACKED.items()))
def test_a_packing_is_known_by_what_it_keeps_beside_weights(packing: str, name: str) -> None:
    assert packing_of(["double_blocks.0.img_attn.qkv.weight", name]) == packing
