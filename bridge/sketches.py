"""A diffusion network from the header of its file alone: ComfyUI's own class for it, on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import comfy.model_detection
import torch
from torch import Tensor

from ..files import opened_safetensors, reading, refuse_impostors
from ..weights.gguf import is_gguf, read_gguf_header
from ..weights.kinds import kind_of, packing_of
from .copies import FP8
from .rows import Conditioning

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": FP8[0],
    "F8_E5M2": FP8[1], "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "I8": torch.int8, "BOOL": torch.bool,
}  # fmt: skip
_WIDTHS = "context_dim", "context_in_dim", "cap_feat_dim", "joint_attention_dim", "text_dim", "caption_channels"
_IN_FOLDERS = "unet/diffusion_pytorch_model.safetensors"
_UNTOLD = {"qwen_image": 3584, "wan2.1": 4096, "sd3": 4096}  # widths of texts that are the class's default


def header(file: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of a safetensors or GGUF file by name, on the meta device: no weight is read. And GGUF's bytes, else 0.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder, another kind of file, or damaged.
    """
    if file.is_dir():
        raise ValueError(
            f"{file.name} is a folder: give one file, such as a checkpoint, or {_IN_FOLDERS} of a folder in diffusers' layout."
        )
    refuse_impostors(file)
    if is_gguf(file):
        told = read_gguf_header(file)
        with reading(file.name):
            tensors = {key: torch.empty(shape, dtype=torch.bfloat16, device="meta") for key, shape in told.shapes.items()}
        return tensors, told.nbytes
    with opened_safetensors(file) as opened:
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
        return {
            key: torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype(), torch.uint8), device="meta")
            for key, part in slices.items()
        }, 0


def sketched(tensors: dict[str, Tensor], name: str) -> tuple[Any, bool]:
    """The BaseModel for these tensors, its network on the meta device, and whether most of its weights are in 8 bits.

    Raises:
        ValueError: ComfyUI doesn't know such a network, or its weights are packed so that nothing can be trained over them.
    """
    refuse_packed(tensors, name)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    network = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    if not network:
        prefix, network = "", dict(tensors)
    small = sum(value.numel() for value in network.values() if value.dtype in FP8)
    config, network, prefix = _known(network, prefix)
    if config is None:
        raise ValueError(_unknown(tensors, name))
    config.scaled_fp8 = None  # cast layer by layer all the same, and each layer has one number more
    config.set_inference_dtype(torch.bfloat16, None)
    return config.get_model(network, prefix, device="meta"), 2 * small > sum(value.numel() for value in network.values())


def refuse_packed(tensors: dict[str, Tensor], name: str) -> None:
    """Raises: ValueError: Weights are packed so that nothing can be trained over them."""
    sizes = [(value.numel(), value.is_floating_point()) for value in tensors.values()]
    whole = 2 * sum(size for size, floating in sizes if not floating) > sum(size for size, _ in sizes)
    if packing := packing_of(tensors) or ("packed in whole numbers" if whole else ""):
        raise ValueError(
            f"The weights of {name} are {packing}, and nothing can be trained over them: give the same model in bf16, fp16, fp8 "
            "or GGUF."
        )


def _known(network: dict[str, Tensor], prefix: str) -> tuple[Any, dict[str, Tensor], str]:
    """ComfyUI's configuration of a network, None where it has none, and the tensors in its layout; see Load Diffusion Model."""
    detection = comfy.model_detection
    config = _asked(detection.model_config_from_unet, network, prefix)
    if config is None and (converted := _asked(detection.convert_diffusers_mmdit, dict(network), "")):
        network, prefix = converted, ""
        config = _asked(detection.model_config_from_unet, network, prefix)
    if config is None:
        config = _asked(detection.model_config_from_diffusers_unet, network)
    return config, network, prefix


def _asked(detect: Callable[..., Any], *given: Any) -> Any:
    """What ComfyUI answers; None where it looks for tensors that other networks have."""
    with suppress(LookupError, ValueError, TypeError, AttributeError):
        return detect(*given)
    return None


def _unknown(tensors: dict[str, Tensor], name: str) -> str:
    """Why no network could be made of these tensors."""
    if kind := kind_of(tensors):
        return f"{name} is {kind}, no diffusion network: give a checkpoint, or a file of models/diffusion_models."
    return (
        f"{name} holds no diffusion network that ComfyUI knows by its weights: give a checkpoint, or a file of "
        "models/diffusion_models."
    )


def conditioning_of(base: Any, tokens: int) -> Conditioning:
    """What a text of ``tokens`` tokens is to the network, all zeros."""
    config = base.model_config.unet_config
    width = next((int(config[key]) for key in _WIDTHS if isinstance(config.get(key), int)), 0)
    width = width or _embedded(config) or _UNTOLD.get(str(config.get("image_model")), 4096)
    options: dict[str, Any] = {"pooled_output": torch.zeros(1, _pooled(config))}
    if config.get("image_model") in ("lumina2", "qwen_image"):
        options["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
    return [[torch.zeros(1, tokens, width), options]]


def _embedded(config: dict[str, Any]) -> int:
    """Of SD3."""
    return int(config.get("context_embedder_config", {}).get("params", {}).get("in_features", 0))


def _pooled(config: dict[str, Any]) -> int:
    if config.get("num_classes") == "sequential":  # SDXL's is told with six numbers about the size
        return 1280
    return int(config.get("vec_in_dim") or config.get("adm_in_channels") or 1)
