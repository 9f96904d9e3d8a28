"""The bridge to ComfyUI's U-Net: a network in diffusers' format becomes a MODEL, with LCM's guidance where it has one.

What ComfyUI's own loader does, for networks of any size, with nothing dropped in silence: a weight that is missing, left over
or of another shape is an error.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor, nn

from ..networks.diffusers_unet import GuidedTimeEmbed, Structure, StudentError, guidance_embedding
from ..networks.limits import TooManyParts, of_limited_size, refuse_hollow
from .guiders import predict_x0

DTYPES: dict[str, torch.dtype | None] = {
    "default": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fn_fast": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip
"""What weights can be kept in: the choices of ComfyUI's Load Diffusion Model, and the plain ones."""

# Of what ComfyUI finds: packed numbers (fp4) are four to the one that is counted.
_MOST_MISSING, _SPARE_NUMBERS = 4, 64 << 20
_GUIDANCE = {"time_embedding.cond_proj.weight": "time_embed.cond_proj.weight"}
_MODEL_TYPES = {
    "epsilon": comfy.model_base.ModelType.EPS, "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
    "sample": comfy.model_base.ModelType.EPS,
}  # fmt: skip


def build(
    weights: dict[str, Tensor], structure: Structure, name: str, *, guidance: float, weight_dtype: str = "default",
    prediction: str | None = None, sampling: dict[str, Any] | None = None,
) -> comfy.model_patcher.ModelPatcher:  # fmt: skip
    """A MODEL of a U-Net in diffusers' format.

    Args:
        weights: Under diffusers' names; emptied, so that they are not held twice.
        structure: Its structure.
        name: What to call it in messages.
        guidance: LCM's guidance scale, for a network that has an embedding for it.
        weight_dtype: A key of ``DTYPES``.
        prediction: "epsilon", "v_prediction" or "sample"; None for what ComfyUI takes it for.
        sampling: ``sampling_settings`` that differ from the family's.

    Raises:
        StudentError: The weights don't fit the structure.
    """
    refuse_hollow(weights, name)
    config = _family(structure.unet_config)(structure.unet_config)
    config.unet_config.update(structure.unet_config)  # the class sets its family's heads; this network may have others
    config.sampling_settings.update(sampling or {})
    _set_dtype(config, weights, weight_dtype)
    translated = _translate(weights, config.unet_config)
    _check_sketch(config, structure, translated, name)
    model = config.get_model(translated, "")
    if prediction is not None:
        model.model_type = _MODEL_TYPES[prediction]
        model.model_sampling = comfy.model_base.model_sampling(config, model.model_type)
    if structure.size_width != 256 and hasattr(model, "embedder"):
        model.embedder = openaimodel.Timestep(structure.size_width)
    if structure.guidance_width:
        _add_guidance(model.diffusion_model, guidance, structure.guidance_width)
        translated["time_embed.guidance"] = model.diffusion_model.time_embed.guidance
    offload = comfy.model_management.unet_offload_device()
    model = model.to(offload)
    model.load_model_weights(translated, "")
    patcher = comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), offload)
    return predict_x0(patcher) if prediction == "sample" else patcher


def load_other(
    weights: dict[str, Tensor], name: str, *, guidance: float, weight_dtype: str = "default",
    metadata: dict[str, str] | None = None,
) -> comfy.model_patcher.ModelPatcher:  # fmt: skip
    """A MODEL of anything that ComfyUI's own loader knows: its own layouts, and the transformers that it converts.

    A U-Net with guidance that ComfyUI saved (Save Model) keeps its guidance embedding.

    Raises:
        StudentError: ComfyUI doesn't know it.
    """
    refuse_hollow(weights, name)
    _refuse_larger(weights, name, metadata)
    projection = next((key for key in weights if key.endswith(_GUIDANCE["time_embedding.cond_proj.weight"])), None)
    cond_proj = weights.pop(projection) if projection else None
    for key in [key for key in weights if key.endswith("time_embed.guidance")]:
        weights.pop(key)
    options: dict[str, Any] = {"fp8_optimizations": True} if weight_dtype.endswith("_fast") else {}
    if DTYPES[weight_dtype] is not None:
        options["dtype"] = DTYPES[weight_dtype]
    patcher = comfy.sd.load_diffusion_model_state_dict(weights, model_options=options, metadata=metadata)
    if patcher is None:
        raise StudentError(f"{name} is no diffusion model that ComfyUI knows: choose a U-Net in diffusers' format.")
    if cond_proj is not None:
        network = patcher.model.diffusion_model
        _add_guidance(network, guidance, cond_proj.shape[1])
        network.time_embed.load_state_dict({"cond_proj.weight": cond_proj}, strict=False)
    return patcher


def _family(unet_config: dict[str, Any]) -> type[Any]:
    """The class of ComfyUI's that fits, or for networks of other sizes the one that is conditioned alike."""
    exact = next((c for c in comfy.supported_models.models if c.matches(unet_config)), None)
    if exact is not None:
        return exact
    if unet_config["adm_in_channels"] is not None:
        return comfy.supported_models.SDXL
    return comfy.supported_models.SD20 if unet_config["context_dim"] == 1024 else comfy.supported_models.SD15


def _set_dtype(config: Any, weights: dict[str, Tensor], weight_dtype: str) -> None:
    """What the weights are kept in and what is computed in, as ComfyUI's loader decides."""
    supported = list(config.supported_inference_dtypes)
    dtype = DTYPES[weight_dtype] or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )  # fmt: skip
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    if weight_dtype.endswith("_fast"):
        config.optimizations["fp8"] = True


def _translate(weights: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    """``weights`` under ComfyUI's names; those it has no name for keep theirs. Empties ``weights``."""
    names = comfy.utils.unet_to_diffusers(unet_config) | _GUIDANCE
    return {names.get(key, key): weights.pop(key) for key in list(weights)}


def _check(network: nn.Module, weights: dict[str, Tensor], unet_config: dict[str, Any], name: str) -> None:
    wanted = network.state_dict()
    diffusers_name = {ours: theirs for theirs, ours in (comfy.utils.unet_to_diffusers(unet_config) | _GUIDANCE).items()
                      if not theirs.startswith("class_embedding")}  # fmt: skip
    if missing := sorted(wanted.keys() - weights.keys()):
        raise StudentError(f"{name} lacks {len(missing)} of its weights, '{diffusers_name.get(missing[0], missing[0])}' first: "
                           f"it is incomplete, or its config is another network's.")  # fmt: skip
    if extra := sorted(weights.keys() - wanted.keys()):
        raise StudentError(f"{name} has {len(extra)} weights that ComfyUI's U-Net has no place for, '{extra[0]}' first: it is "
                           f"another kind of network, or its config is another network's.")  # fmt: skip
    for key, value in wanted.items():
        if weights[key].shape != value.shape:
            raise StudentError(f"{name}'s weight '{diffusers_name.get(key, key)}' is {list(weights[key].shape)} and should be "
                               f"{list(value.shape)}: its config is another network's.")  # fmt: skip


def _check_sketch(config: Any, structure: Structure, weights: dict[str, Tensor], name: str) -> None:
    """Build the network without memory, and compare it with what the file holds, before it gets any."""
    with of_limited_size(len(weights)):
        sketch = config.get_model(weights, "", device=torch.device("meta")).diffusion_model
    unet = {key: value for key, value in weights.items() if key != _GUIDANCE["time_embedding.cond_proj.weight"]}
    cond_proj = weights.get(_GUIDANCE["time_embedding.cond_proj.weight"])
    if structure.guidance_width and (cond_proj is None or cond_proj.shape != (sketch.model_channels, structure.guidance_width)):
        raise StudentError(f"{name} lacks the guidance embedding that its config names, or it is of another size.")
    _check(sketch, unet if structure.guidance_width else weights, config.unet_config, name)


def _refuse_larger(weights: dict[str, Tensor], name: str, metadata: dict[str, str] | None) -> None:
    """Refuse weights by which ComfyUI would build a network far larger than they are."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(weights)
    unet = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)} or weights
    try:
        config = comfy.model_detection.model_config_from_unet(unet, "", metadata=metadata)
        if config is None:  # ComfyUI translates it first, or refuses it
            return
        with of_limited_size(len(unet)):
            sketch = config.get_model(unet, "", device=torch.device("meta"))
        wanted = sum(value.numel() for value in sketch.diffusion_model.state_dict().values())
    except TooManyParts:
        raise
    except Exception:  # ComfyUI's loader says by itself what it doesn't like
        return
    if wanted > _MOST_MISSING * sum(value.numel() for value in weights.values()) + _SPARE_NUMBERS:
        raise StudentError(f"{name} names a network of {wanted / 1e6:.0f} M parameters and holds far fewer: use another file.")


def _add_guidance(network: Any, guidance: float, width: int) -> None:
    """Put LCM's guidance into the timestep embedding of ComfyUI's U-Net."""
    first = network.time_embed[0]
    # Of the class that the other layers have, so that memory, casting and LoRAs work on it as on them.
    cond_proj = type(first)(width, first.in_features, bias=False, dtype=first.weight.dtype, device=first.weight.device)
    network.time_embed = GuidedTimeEmbed(network.time_embed, cond_proj, guidance_embedding(guidance, width))
