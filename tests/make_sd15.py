"""A checkpoint with the true SD1.5 layout and random weights, small enough to run in a test; with a LoRA and a ControlNet.

Made from ComfyUI's own classes: ``python make_sd15.py COMFYUI MODELS``. CLIP-L keeps its size (the stock loader knows no
other), the U-Net has two levels of 320 channels, attention in the first (37 M), and the VAE is a TAESD.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

home, models = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = sys.argv[:1] + ["--cpu"]
sys.path.insert(0, str(home))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.cldm.cldm  # noqa: E402
import comfy.clip_model  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.taesd.taesd  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

UNET = {
    "image_size": 32, "in_channels": 4, "model_channels": 320, "num_res_blocks": [1, 1], "channel_mult": (1, 1),
    "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": [1, 0], "transformer_depth_middle": 1,
    "context_dim": 768, "use_linear_in_transformer": False, "legacy": False,
}  # fmt: skip


def filled(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Random but tame weights: ComfyUI's layers start out uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            state[key] = value
        elif value.ndim > 1:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=generator) * 0.7 * fan_in**-0.5
        else:
            state[key] = torch.ones_like(value) if key.endswith("weight") or value.ndim == 0 else torch.zeros_like(value)
    return state


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Save in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}, path)


def main() -> None:
    """Write checkpoint, LoRA and ControlNet."""
    ops = comfy.ops.disable_weight_init
    unet = UNetModel(
        **UNET, out_channels=4, transformer_depth_output=[1, 1, 0, 0], dtype=torch.float32, device="cpu", operations=ops
    )
    config = json.loads((home / "comfy" / "sd1_clip_config.json").read_text())
    text = comfy.clip_model.CLIPTextModel(config, torch.float32, "cpu", ops)
    weights = {f"model.diffusion_model.{k}": v for k, v in filled(unet, 1).items()}
    clip = {k: v for k, v in filled(text, 2).items() if k != "text_projection.weight"}
    weights |= {f"cond_stage_model.transformer.{k}": v for k, v in clip.items()}
    weights |= {f"first_stage_model.{k}": v for k, v in filled(comfy.taesd.taesd.TAESD(), 3).items()}
    save(weights, models / "checkpoints" / "mini_sd15.safetensors")

    name = "input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    generator = torch.Generator().manual_seed(4)
    lora = {
        f"lora_unet_{name}.lora_up.weight": torch.randn(320, 4, generator=generator),
        f"lora_unet_{name}.lora_down.weight": torch.randn(4, 320, generator=generator),
        f"lora_unet_{name}.alpha": torch.tensor(4.0),
    }
    save(lora, models / "loras" / "mini.safetensors")

    control = comfy.cldm.cldm.ControlNet(**UNET, hint_channels=3, dtype=torch.float32, device="cpu", operations=ops)
    save({f"control_model.{k}": v for k, v in filled(control, 5).items()}, models / "controlnet" / "mini.safetensors")


if __name__ == "__main__":
    main()
