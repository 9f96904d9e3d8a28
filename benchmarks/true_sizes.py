"""Published diffusion networks by their configurations, at their true size: made without memory, or of random weights.

No file of theirs is here; ComfyUI's own classes make the same layers, whose numbers of parameters a test holds to the published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_SDXL: dict[str, Any] = {
    "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "num_classes": "sequential", "adm_in_channels": 2816, "in_channels": 4, "model_channels": 320,
    "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4],
    "transformer_depth_middle": 10, "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_temporal_attention": False,
    "use_temporal_resblock": False,
}  # fmt: skip
_FLUX: dict[str, Any] = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
    "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
_ZIMAGE: dict[str, Any] = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30,
    "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
_QWEN: dict[str, Any] = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}


@dataclass(frozen=True)
class Network:
    """A published network.

    Attributes:
        config: Its class in ``comfy.supported_models``; of several, the first that this ComfyUI has.
        network: Its ``unet_config``.
        parameters: As published, in thousands of millions.
        tokens: Of a long prompt.
    """

    config: tuple[str, ...]
    network: dict[str, Any]
    parameters: float
    tokens: int


NETWORKS = {
    "SDXL": Network(("SDXL",), _SDXL, 2.57, 77),
    "Z-Image": Network(("ZImage", "Lumina2"), _ZIMAGE, 6.15, 256),
    "Flux dev": Network(("Flux",), _FLUX, 11.9, 256),
    "Qwen-Image": Network(("QwenImage",), _QWEN, 20.4, 256),
}


def base_of(name: str, device: str = "meta", dtype: torch.dtype = torch.bfloat16, **smaller: Any) -> Any:
    """The BaseModel; on a device with memory its weights are whatever was there.

    Args:
        **smaller: Other numbers of the configuration, such as fewer layers.
    """
    import comfy.supported_models

    network = NETWORKS[name]
    kind = next(getattr(comfy.supported_models, each) for each in network.config if hasattr(comfy.supported_models, each))
    config = kind({**network.network, **smaller})
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, "", device=device)


def fill(network: nn.Module, fp8: bool) -> None:
    """Random weights, small and finite, quickly: pieces of one million numbers; the layers' in 8 bits if so asked."""
    piece = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)) * 0.02
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is None:
                continue
            linear = isinstance(module, nn.Linear) and name == "weight"
            dtype = torch.float8_e4m3fn if fp8 and linear else value.dtype
            numbers, size = piece.to(dtype), value.numel()
            filled = numbers.repeat(size // len(piece) + 1)[:size].view(value.shape)
            module._parameters[name] = nn.Parameter(filled, requires_grad=False)
        if fp8 and isinstance(module, nn.Linear):
            module.comfy_cast_weights = True  # type: ignore[assignment]
