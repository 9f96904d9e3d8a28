"""The bridge to ComfyUI's models for training: a MODEL's network as plain torch, its prompts as conditions, its noise levels.

ComfyUI computes in inference mode, and what was made there can't learn; so training works on a copy of the network, made
outside of it, with the MODEL's LoRAs already in the weights.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor, nn

from ..precision import DTYPES, native_bfloat16, warning
from ..samplers.schedules import sampling_kind
from ..training.lora import checkpoint_blocks, out_of_place, untrained
from ..training.progress import Screen
from .copies import another as another
from .copies import copied, twin_of
from .copies import copy_network as copy_network
from .latents import pixels_per_latent
from .memory import WholePatcher, patchers_of
from .progress import show_text
from .rows import Conditioning

Cancelled = comfy.model_management.InterruptProcessingException
PRECISIONS = ("auto", *DTYPES)


def place(networks: Sequence[Any]) -> tuple[torch.device, list[comfy.model_patcher.ModelPatcher]]:
    """Put networks on the computing device the way that ComfyUI counts: one ModelPatcher each, loaded whole.

    Returns the device, and the ModelPatchers, to be kept for as long as the networks are used. Everything else that ComfyUI
    holds there makes room. All that a run needs has to be placed at once, or the one makes room for the other.

    Args:
        networks: BaseModels, and other networks, which keep the ModelPatchers that they have.

    Raises:
        ValueError: They don't fit.
    """
    device = comfy.model_management.get_torch_device()
    comfy.model_management.unload_all_models()
    offload = comfy.model_management.unet_offload_device()
    patchers: list[comfy.model_patcher.ModelPatcher] = []
    for network in networks:
        _teachable(network)
        is_model = isinstance(network, comfy.model_base.BaseModel)
        patchers += [WholePatcher(network, load_device=device, offload_device=offload)] if is_model else patchers_of(network)
    comfy.model_management.load_models_gpu(patchers, force_full_load=True)
    return device, patchers


def _teachable(network: nn.Module) -> None:
    """Put ordinary tensors in the place of those of inference mode, which nothing can be differentiated through."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.detach().clone()


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


@contextmanager
def training() -> Iterator[None]:
    """Inside, gradients can be had from ComfyUI's networks: no inference mode, and newer ComfyUIs know (``in_training``).

    What was placed is let go at the end: ComfyUI's own lists would break if it were still there when Python collects it.

    Raises:
        ValueError: The network changes in place what its gradients need, in a way that ``out_of_place`` can't mend.
    """
    before = getattr(comfy.model_management, "in_training", None)
    try:
        if before is not None:
            comfy.model_management.in_training = True
        with torch.inference_mode(False):
            yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ValueError(
            "This model's network is made for drawing alone: it writes over what its gradients need (LTXV's does), so it can't "
            "be trained; choose another model."
        ) from error
    finally:
        if before is not None:
            comfy.model_management.in_training = before
        comfy.model_management.unload_all_models()


def latent_shape(model: comfy.model_patcher.ModelPatcher, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the latents of one picture of ``size`` (width, height): (C, h, w), or (C, 1, h, w) where they are videos.

    Raises:
        ValueError: The model doesn't draw pictures.
    """
    latent = model.get_model_object("latent_format")
    if latent.latent_dimensions not in (2, 3):
        raise ValueError("This model draws no pictures, so it can't be trained here; connect one that draws pictures or videos.")
    scale = pixels_per_latent(latent)
    frames = (1,) if latent.latent_dimensions == 3 else ()
    return (latent.latent_channels, *frames, size[1] // scale, size[0] // scale)


class Conditions:
    """What the network is given of every prompt, as ComfyUI's own sampling gives it, asked for by numbers of prompts.

    Args:
        base: The BaseModel.
        prompts: Conditionings of single prompts, as CLIP gives them.
        shape: Of one latent, see ``latent_shape``; some networks are told the size of the picture.

    Raises:
        ValueError: A prompt's conditioning changes along the sampling.
    """

    def __init__(self, base: Any, prompts: Sequence[Conditioning], shape: Sequence[int]) -> None:
        self._given = [_conds(base, conditioning, shape) for conditioning in prompts]
        self._kinds = [tuple((name, _form(cond.cond)) for name, cond in sorted(given.items())) for given in self._given]

    def __len__(self) -> int:
        return len(self._given)

    def groups(self, numbers: Sequence[int]) -> list[list[int]]:
        """Places in ``numbers`` whose prompts one call of the network can take: texts of one length, constants of one value."""
        groups: dict[Any, list[int]] = {}
        for place, number in enumerate(numbers):
            groups.setdefault(self._kinds[number], []).append(place)
        return list(groups.values())

    def of(self, numbers: Sequence[int]) -> dict[str, Any]:
        """``apply_model``'s arguments for prompts of one group, a row each."""
        first, *others = [self._given[number] for number in numbers]
        return {name: cond.concat([other[name] for other in others]) for name, cond in first.items()}


def _conds(base: Any, conditioning: Conditioning, shape: Sequence[int]) -> dict[str, Any]:
    """ComfyUI's own COND objects of one prompt, by name, on the CPU."""
    if len(conditioning) != 1:
        raise ValueError(
            "The text encoder gives a prompt several conditionings, as hooks scheduled along the sampling do; training needs "
            "one: connect a CLIP without scheduled hooks."
        )
    text, options = conditioning[0]
    options = {key: value for key, value in options.items() if key not in ("width", "height")}  # the picture's size is told
    noise, device = torch.zeros(1, *shape), torch.device("cpu")
    with torch.no_grad():
        given = comfy.samplers.process_conds(
            base, noise, {"positive": comfy.sampler_helpers.convert_cond([[text, options]])}, device, torch.zeros_like(noise),
            seed=0,
        )["positive"][0]["model_conds"]  # fmt: skip
    return {name: _detached(cond.process_cond(batch_size=1, area=None)) for name, cond in given.items()}


def _detached(cond: Any) -> Any:
    """Tensors of inference mode, as text encoders give them, can't be part of what learns."""
    value = cond.cond
    if isinstance(value, Tensor):
        cond.cond = value.detach().cpu().clone()
    elif isinstance(value, list):
        cond.cond = [v.detach().cpu().clone() if isinstance(v, Tensor) else v for v in value]
    return cond


def _form(value: Any) -> Any:
    """Equal for what can be one batch."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(map(_form, value)) if isinstance(value, list) else repr(value)


def denoiser(
    base: Any, dtype: torch.dtype, conditions: Conditions, **more: Any
) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """D(x, sigma [B, ...], numbers of prompts [B]) as the MODEL's own sampling computes it, in ``dtype``'s autocast.

    Prompts whose texts differ in length go through the network apart, each as it is. The meta device knows no autocast.

    Args:
        **more: Of ComfyUI's ``transformer_options``.
    """

    def together(x: Tensor, sigma: Tensor, numbers: list[int]) -> Tensor:
        options = {"sigmas": sigma, "cond_or_uncond": [0], **more}
        denoised: Tensor = base.apply_model(x, sigma, transformer_options=options, **conditions.of(numbers))
        return denoised.float()

    def denoise(x: Tensor, sigma: Tensor, prompts: Tensor) -> Tensor:
        mixed = nullcontext() if dtype == torch.float32 or x.is_meta else torch.autocast(x.device.type, dtype)
        numbers, sigma = prompts.tolist(), sigma.flatten()
        places = conditions.groups(numbers)
        with mixed, out_of_place():
            parts = [together(x[rows], sigma[rows], [numbers[row] for row in rows]) for rows in places]
        order = torch.tensor([row for rows in places for row in rows], device=x.device)
        return torch.cat(parts)[order.argsort()]

    return denoise


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
    """The first of ``latents``, as the network has them, the way ComfyUI's progress bar shows previews; None without previews."""
    previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))
    return previewer.decode_latent_to_preview_image("JPEG", latents) if previewer else None


def at_once(base: Any, vae: Any, shape: Sequence[int], device: torch.device, most: int = 32) -> tuple[int, int]:
    """How many pictures of this shape the network can draw, and the VAE decode, in the memory that is free, without gradients.

    By ComfyUI's own estimates; a quarter of the memory is left alone.
    """
    free = 0.75 * comfy.model_management.get_free_memory(device)
    decoding = getattr(vae, "memory_used_decode", lambda shape, dtype: 0)
    needs = (lambda n: base.memory_required([n, *shape]), lambda n: decoding((n, *shape), torch.float32))
    counts = [2**k for k in range(most.bit_length())]
    drawn, decoded = (max([n for n in counts if need(n) <= free], default=1) for need in needs)
    return drawn, decoded


class NodeScreen(Screen):
    """ComfyUI's progress bar and text of the node that runs, and its cancel button.

    ComfyUI ends a node from within its bar, or from any layer, when the artist cancels, which would be in the middle of a step:
    here it is only remembered, so that the run can be saved first.
    """

    cancelled_by = (Cancelled,)

    def __init__(self, total: int) -> None:
        super().__init__(comfy.model_management.processing_interrupted)
        self.progress_bar, self.cancelled = comfy.utils.ProgressBar(total), False

    def bar(self, done: int, total: int, text: str = "", preview: Callable[[], Any] | None = None) -> None:
        """See ``Screen``."""
        try:
            self.progress_bar.update_absolute(done, total, preview() if preview else None)
        except Cancelled:
            self.cancelled = True
        if text:
            self.say(text)

    def say(self, text: str) -> None:
        """See ``Screen``."""
        show_text(text)

    def interrupted(self) -> bool:
        """Whether the artist pressed cancel."""
        self.cancelled = self.cancelled or super().interrupted()
        return self.cancelled

    def stop(self) -> NoReturn:
        """End the node the way ComfyUI ends one that was cancelled."""
        comfy.model_management.interrupt_current_processing(False)
        raise Cancelled


@contextmanager
def borrowed(networks: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Networks of others, on the computing device in ``dtype`` for a while; afterwards as they were, to the bit."""
    before = [(value, value.data) for network in networks for value in (*network.parameters(), *network.buffers())]
    try:
        for network in networks:
            network.to(dtype)
        _device, _kept = place(networks)
        yield
    finally:
        comfy.model_management.unload_all_models()
        for value, data in before:
            value.data = data


def with_lora(model: comfy.model_patcher.ModelPatcher, tensors: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """A clone of ``model`` with a LoRA on it, at strength 1, exactly as the stock LoraLoader puts it there."""
    from comfy.sd import load_lora_for_models

    return load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]


def with_weights(model: comfy.model_patcher.ModelPatcher, network: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of the same kind whose diffusion network is ``network``, its weights kept as stock loaders keep a float16 file.

    What training put on the network is taken off.
    """
    twin = twin_of(model.model, untrained(network))
    cast: list[Any] = [m for m in network.modules() if hasattr(m, "comfy_cast_weights")]
    if cast:
        possible, size = twin.model_config.supported_inference_dtypes, sum(p.numel() for p in network.parameters())
        dtype = comfy.model_management.unet_dtype(model_params=size, supported_dtypes=possible, weight_dtype=torch.float16)
        twin.manual_cast_dtype = comfy.model_management.unet_manual_cast(dtype, model.load_device, possible)
        network.to(dtype).dtype = dtype
        for module in cast:
            module.comfy_cast_weights = twin.manual_cast_dtype is not None
    return comfy.model_patcher.ModelPatcher(twin, load_device=model.load_device, offload_device=model.offload_device)


class Decoder:
    """The VAE as a function that can be differentiated: the network's latents to pictures [B, H, W, 3] in 0..1.

    On a copy, since ComfyUI's own weights can't be differentiated through; in bfloat16 where the GPU has it. Image VAEs compute
    their blocks again in the backward pass, so memory is that of one block (``apprentice bench decoder-memory``). VAEs for video
    carry frames from block to block, which can't be computed again.

    Attributes:
        network: The copy, on the CPU until it is placed.
    """

    def __init__(self, model: comfy.model_patcher.ModelPatcher, vae: Any) -> None:
        device = comfy.model_management.get_torch_device()
        half = device.type != "cpu" and native_bfloat16(str(device))
        self.vae, self.dtype = vae, torch.bfloat16 if half else torch.float32
        self.latent_format = copy.copy(model.model.latent_format)  # some hold tensors, of inference mode as loaders make them
        own = {name: value.clone() for name, value in vars(self.latent_format).items() if isinstance(value, Tensor)}
        vars(self.latent_format).update(own)
        self.network = copied(vae.first_stage_model, self.dtype).train(False)
        if getattr(vae, "latent_dim", 2) == 2:
            checkpoint_blocks(self.network, smallest=True)

    def __call__(self, latents: Tensor) -> Tensor:
        """Pictures of latents [B, C, ...]; frames count as pictures."""
        with out_of_place():
            decoded = self.network.decode(self.latent_format.process_out(latents.float()).to(self.dtype))
            pixels: Tensor = self.vae.process_output(decoded.float().clone()).movedim(1, -1)
        return pixels.reshape(-1, *pixels.shape[-3:])[..., :3]
