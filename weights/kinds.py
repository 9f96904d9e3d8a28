"""What a file of weights is, by the names in it: for sentences to people who gave one kind of file where another was wanted."""

from __future__ import annotations

import re
from collections.abc import Collection

_PACKED = (
    (r"\.quant_state\.bitsandbytes__", "packed in 4 bits by bitsandbytes (NF4, FP4)"),
    (r"\.(wscales|wzeros|smooth_orig)$", "packed in 4 bits for Nunchaku (SVDQuant)"),
    (r"\.weight_scale_2$", "packed in 4 bits (NVFP4)"),
)
_LORA = r"[._](lora_(up|down|A|B)|hada_w1_a|lokr_w1|lokr_w1_a|diff|diff_b|dora_scale|oft_blocks)(\.|$)|[._]lora\.(up|down)\."
_TEXTS = (
    r"(^|\.)text_model\.(encoder|embeddings)\.", r"^shared\.weight$",
    r"^(transformer\.)?encoder\.block\.0\.layer\.0\.SelfAttention\.", r"^((language_)?model\.)*layers\.0\.self_attn\.",
    r"^transformer\.resblocks\.0\.", r"^(token_embd\.weight$|enc\.blk\.0\.|blk\.0\.attn_)",
)  # fmt: skip
_OTHERS = (
    (_LORA, "a LoRA"),
    (r"^(control_model|controlnet_\w+)\.|^(controlnet_cond_embedding|input_hint_block)\.", "a ControlNet"),
    (r"^(ip_adapter|image_proj)\.", "an IP-Adapter"),
    (r"^(emb_params|string_to_param|clip_[lg])\b", "an embedding (textual inversion)"),
    (r"^(vision_model|visual)\.", "an image encoder (CLIP Vision)"),
    *((pattern, "a text encoder") for pattern in _TEXTS),
    (r"^((first_stage_model|vae)\.)?(encoder|decoder)\.|^(quant_conv|post_quant_conv)\.", "a VAE"),
)


def packing_of(names: Collection[str]) -> str:
    """How a network's weights are packed, "packed in 4 bits by ..."; "" where they are plain, or nobody knows."""
    return _first(_PACKED, names)


def kind_of(names: Collection[str]) -> str:
    """What a file with tensors of these names is that is no diffusion network: "a LoRA", "a VAE"; "" where nobody knows."""
    return _first(_OTHERS, names)


def _first(kinds: Collection[tuple[str, str]], names: Collection[str]) -> str:
    return next((kind for pattern, kind in kinds if any(re.search(pattern, name) for name in names)), "")
