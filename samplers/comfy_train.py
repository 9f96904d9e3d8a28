"""The bridge to ComfyUI's models for training: a MODEL's network as plain torch, its prompts as conditions, its noise levels.

ComfyUI computes in inference mode, and what was made there can't learn; so training works on a copy of the network, made
outside of it, with the MODEL's LoRAs already in the weights.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import latent_preview
import torch
from torch import Tensor, nn

from ..precision import DTYPES, native_bfloat16, warning
from .comfy import Conditioning
from .schedules import sampling_kind

Cancelled = comfy.model_management.InterruptProcessingException
PRECISIONS = ("auto", *DTYPES)


def copy_network(model: comfy.model_patcher.ModelPatcher, dtype: torch.dtype) -> Any:
    """``model``'s BaseModel with a diffusion network of its own, frozen, on the CPU, in ``dtype``.

    LoRAs and other patches of ``model`` are in the copy's weights. Call outside of inference mode.
    """
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    network = copy.deepcopy(model.model.diffusion_model).to("cpu", dtype).requires_grad_(False)
    network.dtype = dtype
    twin = _around(model.model, network)
    twin.manual_cast_dtype = None
    return twin.train(False)


def _around(base: Any, network: nn.Module) -> Any:
    """A BaseModel like ``base`` around another diffusion network; all else is shared."""
    twin = copy.copy(base)
    twin.__dict__ = {**base.__dict__, "_modules": dict(base._modules)}
    twin.current_patcher = None
    twin.diffusion_model = network
    return twin


def place(bases: Sequence[Any]) -> tuple[torch.device, list[comfy.model_patcher.ModelPatcher]]:
    """Put networks on the computing device the way that ComfyUI counts: one ModelPatcher each, loaded whole.

    Returns the device, and the ModelPatchers, to be kept for as long as the networks are used. Everything else that ComfyUI
    holds there makes room.
    """
    device = comfy.model_management.get_torch_device()
    comfy.model_management.unload_all_models()
    offload = comfy.model_management.unet_offload_device()
    patchers = [comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=offload) for base in bases]
    comfy.model_management.load_models_gpu(patchers, force_full_load=True)
    return device, patchers


def training_dtype(precision: str) -> torch.dtype:
    """The dtype that a choice of ``PRECISIONS`` means on this machine; "auto": bfloat16 where it is native, else float32.

    Who asks for what is slow here reads so in ComfyUI's log.
    """
    device = str(comfy.model_management.get_torch_device())
    if precision == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    if slow := warning(DTYPES[precision], device):
        logging.warning("Apprentice: %s", slow)
    return DTYPES[precision]


def denoiser(base: Any, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """D(x, sigma [B, 1, 1, 1], conditions by name) as the MODEL's own sampling computes it, in ``dtype``'s autocast."""

    def denoise(x: Tensor, sigma: Tensor, labels: Any) -> Tensor:
        mixed = torch.autocast(x.device.type, dtype) if dtype != torch.float32 else nullcontext()
        with mixed:
            return base.apply_model(x, sigma.flatten(), **labels).float()

    return denoise


def conditions(base: Any, prompts: Sequence[Conditioning], shape: Sequence[int]) -> dict[str, Tensor]:
    """What the network is given of every prompt, by name: tensors with a row a prompt, on the CPU.

    Args:
        prompts: Conditionings of single prompts, as CLIP gives them.
        shape: Of one latent, (C, H, W); SDXL is told the size of the picture.
    """
    noise = torch.zeros(1, *shape)
    height, width = (side * 8 for side in shape[-2:])
    rows: list[dict[str, Tensor]] = []
    for conditioning in prompts:
        text, options = conditioning[0]
        found = base.extra_conds(
            cross_attn=text, noise=noise, device=torch.device("cpu"), width=width, height=height, prompt_type="positive",
            **{key: value for key, value in options.items() if key not in ("width", "height")},
        )  # fmt: skip
        rows.append({key: cond.cond.detach().cpu() for key, cond in found.items() if isinstance(cond.cond, Tensor)})
    return {key: _stack([row[key] for row in rows]) for key in rows[0]}


def _stack(tensors: list[Tensor]) -> Tensor:
    """Rows of one length: shorter texts are repeated to the longest, which changes nothing that attention sees."""
    if tensors[0].ndim == 3:
        longest = max(t.shape[1] for t in tensors)
        tensors = [t if t.shape[1] == longest else t.repeat(1, -(-longest // t.shape[1]), 1)[:, :longest] for t in tensors]
    return torch.cat(tensors)


def noise_levels(model: comfy.model_patcher.ModelPatcher) -> tuple[str, Tensor]:
    """The kind of the model's sampling ("discrete", "flow", "edm", "cascade"), and its training levels [timesteps], rising."""
    sampling = model.get_model_object("model_sampling")
    return sampling_kind(sampling), sampling.sigmas.detach().float().cpu().clone()


def mix(base: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """How the model mixes pictures and noise: (images, sigma, noise) -> x; images + sigma noise but for flow models."""

    def noising(images: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return base.model_sampling.noise_scaling(sigma, noise, images, False)

    return noising


def preview(model: comfy.model_patcher.ModelPatcher, latents: Tensor) -> Any:
    """The first of ``latents`` as ComfyUI's progress bar shows previews, or None where previews are switched off."""
    previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))
    return previewer.decode_latent_to_preview_image("JPEG", latents) if previewer else None


class Bar:
    """ComfyUI's progress bar of the node that runs, and its cancel button.

    ComfyUI ends a node from within its bar, or from any layer, when the artist cancels, which would be in the middle of a step:
    here it is only remembered, so that the run can be saved first.
    """

    def __init__(self, total: int) -> None:
        self.bar, self.total, self.cancelled = comfy.utils.ProgressBar(total), total, False

    def show(self, step: int, shown: Callable[[], Any] | None = None) -> None:
        """``step`` of the total is done; ``shown`` makes a preview."""
        try:
            self.bar.update_absolute(step, self.total, shown() if shown else None)
        except Cancelled:
            self.cancelled = True

    def interrupted(self) -> bool:
        """Whether the artist pressed cancel."""
        self.cancelled = self.cancelled or bool(comfy.model_management.processing_interrupted())
        return self.cancelled

    def stop(self) -> NoReturn:
        """End the node the way ComfyUI ends one that was cancelled."""
        comfy.model_management.interrupt_current_processing(False)
        raise Cancelled


def with_lora(model: comfy.model_patcher.ModelPatcher, tensors: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """A clone of ``model`` with a LoRA on it, at strength 1, exactly as the stock LoraLoader puts it there."""
    from comfy.sd import load_lora_for_models

    return load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]


def with_weights(model: comfy.model_patcher.ModelPatcher, network: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of the same kind whose diffusion network is ``network``."""
    twin = _around(model.model, network)
    return comfy.model_patcher.ModelPatcher(twin, load_device=model.load_device, offload_device=model.offload_device)


def decoder(model: comfy.model_patcher.ModelPatcher, vae: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The VAE as a function that can be differentiated: the network's latents [B, C, h, w] to pictures [B, H, W, 3] in 0..1.

    On a copy, since ComfyUI's own weights can't be differentiated through. Call outside of inference mode.
    """
    network = copy.deepcopy(vae.first_stage_model).to(device, torch.float32).requires_grad_(False).eval()

    def decode(latents: Tensor) -> Tensor:
        pixels: Tensor = vae.process_output(network.decode(model.model.process_latent_out(latents.float())).float())
        return pixels.movedim(1, -1)[..., :3]

    return decode
