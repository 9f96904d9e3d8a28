"""Every family of diffusion models at tiny size: random weights in ComfyUI's own classes, with the true layout.

``start()`` makes the ComfyUI in ``$COMFYUI_PATH`` importable in this process; nothing here needs a server or a file.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bridge.entering import enter


def start(*flags: str) -> None:
    """Import ComfyUI for the CPU, with ``flags`` of its command line; a second call does nothing."""
    enter(Path(os.environ["COMFYUI_PATH"]), *flags)


def _newer() -> bool:
    """Whether this ComfyUI names more of Flux's parameters than 0.3.75."""
    import comfy.ldm.flux.model

    return "txt_ids_dims" in inspect.getsource(comfy.ldm.flux.model)


@dataclass(frozen=True)
class Family:
    """How a family is made tiny.

    Attributes:
        config: Name of its class in ``comfy.supported_models``; of several, the first that this ComfyUI has.
        network: Its ``unet_config``.
        newer: What newer ComfyUIs want beside that.
        text: Width of its text embeddings.
        pooled: Width of its pooled text; 0 for none.
        channels: Of its latents.
        video: Latents are [B, C, T, H, W].
        masked: Its conditionings carry an ``attention_mask``.
        second: Layers of the second text encoder that it reads; 0 for none.
        v_prediction: Read as a v-prediction model.
        side: Of the smallest latents that it draws.
    """

    config: tuple[str, ...]
    network: dict[str, Any]
    newer: dict[str, Any] = field(default_factory=dict)
    text: int = 32
    pooled: int = 0
    channels: int = 4
    video: bool = False
    masked: bool = False
    second: int = 0
    v_prediction: bool = False
    side: int = 8


_UNET: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2],
    "transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0], "transformer_depth_middle": 1, "context_dim": 32,
    "use_spatial_transformer": True, "legacy": False, "num_heads": 4, "num_head_channels": -1, "adm_in_channels": None,
    "use_linear_in_transformer": False,
}  # fmt: skip
_SDXL = {
    **_UNET, "model_channels": 64, "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "adm_in_channels": 2816, "num_classes": "sequential", "use_linear_in_transformer": True,
}  # fmt: skip
_SD3 = {
    "in_channels": 16, "patch_size": 2, "depth": 1, "adm_in_channels": 2048, "num_patches": 1024, "pos_embed_max_size": 32,
    "pos_embed_scaling_factor": None, "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
}  # fmt: skip
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 32,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 14, 14],
    "theta": 10000, "qkv_bias": True,
}  # fmt: skip
_FLUX_NEWER = {"txt_ids_dims": [], "yak_mlp": False, "txt_norm": False}
_FLUX2 = {
    **_FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
    "axes_dim": [8, 8, 8, 8], "theta": 2000, "qkv_bias": False, "guidance_embed": True, "global_modulation": True,
    "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
_CHROMA = {
    **_FLUX, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 64,
    "n_layers": 2,
}  # fmt: skip
del _CHROMA["vec_in_dim"]
_LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": 32, "n_layers": 2,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [16, 16, 16],
    "axes_lens": [300, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 2.0, "multiple_of": 32,
}  # fmt: skip
_ZIMAGE = {
    **_LUMINA, "dim": 256, "axes_dims": [32, 48, 48], "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
_QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 1, "attention_head_dim": 128,
    "num_attention_heads": 1, "joint_attention_dim": 32,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 512, "in_dim": 16, "dim": 64,
    "ffn_dim": 128, "freq_dim": 256, "text_dim": 32, "out_dim": 16, "num_heads": 2, "num_layers": 1, "window_size": (-1, -1),
    "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
_CASCADE = {
    "stable_cascade_stage": "c", "c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]],
}  # fmt: skip
_PIXART = {
    "image_model": "pixart_sigma", "num_heads": 2, "hidden_size": 64, "micro_condition": False, "depth": 1, "input_size": 128,
    "pe_interpolation": 2, "model_max_length": 300, "caption_channels": 32,
}  # fmt: skip

_HIDREAM = {
    "image_model": "hidream", "attention_head_dim": 32, "axes_dims_rope": [16, 8, 8], "caption_channels": [32, 32],
    "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 1], "num_attention_heads": 2, "num_routed_experts": 4,
    "num_activated_experts": 2, "num_layers": 1, "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 64,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "sd15": Family(("SD15",), _UNET),
    "sdxl": Family(("SDXL",), _SDXL, pooled=1280),
    "sdxl-v": Family(("SDXL",), _SDXL, pooled=1280, v_prediction=True),
    "sd3": Family(("SD3",), _SD3, pooled=2048, channels=16),
    "flux": Family(("Flux",), {**_FLUX, "guidance_embed": True}, _FLUX_NEWER, pooled=768, channels=16),
    "schnell": Family(("FluxSchnell",), {**_FLUX, "guidance_embed": False}, _FLUX_NEWER, pooled=768, channels=16),
    "flux2": Family(("Flux2",), _FLUX2, {**_FLUX_NEWER, "txt_ids_dims": [3]}, channels=128),
    "chroma": Family(("Chroma",), _CHROMA, {"txt_ids_dims": [], "vec_in_dim": None}, pooled=768, channels=16),
    "zimage": Family(("ZImage", "Lumina2"), _ZIMAGE, channels=16, masked=True),
    "lumina2": Family(("Lumina2",), _LUMINA, channels=16, masked=True),
    "qwen": Family(("QwenImage",), _QWEN, channels=16, video=True, masked=True),
    "wan21": Family(("WAN21_T2V",), _WAN, channels=16, video=True),
    "wan22": Family(("WAN22_T2V",), {**_WAN, "in_dim": 48, "out_dim": 48}, channels=48, video=True),
    "cascade": Family(("Stable_Cascade_C",), _CASCADE, text=1280, pooled=1280, channels=16),
    "pixart": Family(("PixArtSigma",), _PIXART, side=34),
    "hidream": Family(("HiDream",), _HIDREAM, pooled=64, channels=16, second=2),
}


def fill(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random but tame weights: ComfyUI's layers start out uninitialised."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if not p.is_floating_point():
                continue
            if p.ndim >= 2:
                p.copy_(torch.randn(p.shape, generator=rng) / math.sqrt(p[0].numel()))
            elif name.endswith(("weight", "scale")):
                p.copy_(1 + 0.1 * torch.randn(p.shape, generator=rng))
            else:
                p.copy_(0.02 * torch.randn(p.shape, generator=rng))
        for name, buffer in network.named_buffers():
            if name.endswith("pos_embed"):  # SD3's comes from the file, too, and is whatever memory held till then
                buffer.copy_(torch.randn(buffer.shape, generator=rng))
    return network


_MADE: dict[tuple[str, int], tuple[Family, Any]] = {}  # making Stable Cascade's noise levels takes ComfyUI most of a second


def _base(name: str, seed: int) -> Any:
    """The family's BaseModel, of ordinary tensors, as every MODEL of it begins."""
    import comfy.model_base
    import comfy.supported_models

    family = FAMILIES[name]
    made_of, base = _MADE.get((name, seed), (None, None))
    if made_of is family:
        return base
    kind = next(getattr(comfy.supported_models, c) for c in family.config if hasattr(comfy.supported_models, c))
    config = kind({**family.network, **(family.newer if _newer() else {})})
    if family.v_prediction:
        config.model_type = lambda sd, prefix="": comfy.model_base.ModelType.V_PREDICTION
    with torch.inference_mode(False):
        base = config.get_model({}, "", device=None)
        fill(base.diffusion_model, seed)
    _MADE[name, seed] = family, base.eval()
    return base


def model(name: str, seed: int = 0) -> Any:
    """The family's MODEL, new at each call: what outlives its MODEL is a leak to ComfyUI, which then collects garbage."""
    start()
    import comfy.model_management
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(
        copy.deepcopy(_base(name, seed)), load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )  # fmt: skip


def text(name: str, rows: int = 1, tokens: int = 7, seed: int = 0, **more: Any) -> list[list[Any]]:
    """A CONDITIONING of ``rows`` different texts of ``tokens`` tokens, with what the family's text encoder adds."""
    family, rng = FAMILIES[name], torch.Generator().manual_seed(1000 + seed)
    # ComfyUI's CLIP always puts it there, None where the family has none.
    options: dict[str, Any] = {"pooled_output": torch.randn(rows, family.pooled, generator=rng) if family.pooled else None}
    if family.masked:
        options["attention_mask"] = torch.ones(rows, tokens, dtype=torch.long)
    if family.second:
        options["conditioning_llama3"] = torch.randn(rows, family.second, tokens, family.text, generator=rng)
    return [[torch.randn(rows, tokens, family.text, generator=rng), {**options, **more}]]


def empty(name: str, batch: int = 3, height: int = 0, width: int = 0, frames: int = 1) -> dict[str, Tensor]:
    """The LATENT that the family's stock node makes; a small square if not told otherwise."""
    family = FAMILIES[name]
    height, width = height or family.side, width or family.side
    return {"samples": torch.zeros((batch, family.channels, *([frames] if family.video else []), height, width))}


def stock(
    patcher: Any, latent: dict[str, Any], positive: Any, negative: Any, *, seed: int = 1, steps: int = 2, cfg: float = 2.0,
    sampler: str = "euler", scheduler: str = "simple", denoise: float = 1.0,
) -> Tensor:  # fmt: skip
    """What the stock KSampler draws."""
    start()
    import nodes

    with torch.inference_mode():
        drawn = nodes.common_ksampler(patcher, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise)
    return drawn[0]["samples"]


class Count:
    """Rows that go through a MODEL, by a wrapper that every family calls."""

    def __init__(self) -> None:
        self.rows = 0

    def on(self, patcher: Any) -> Any:
        """A clone that is counted."""
        import comfy.patcher_extension

        def wrapper(executor: Callable[..., Any], x: Tensor, *given: Any, **options: Any) -> Any:
            self.rows += len(x)
            return executor(x, *given, **options)

        clone = patcher.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "count", wrapper)
        return clone
