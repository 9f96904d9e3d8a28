"""The bridge to ComfyUI's sampling: noise, packing of part of a batch, counting, progress.

Everything that draws goes through stock functions (``comfy.sample``), so that with the whole batch the result is the
stock sampler's to the bit. What this file adds is that a *part* of a batch gets the noise it would have got in the
whole one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.k_diffusion.sampling as k_sampling
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor, nn

Latent = dict[str, Any]
Conditioning = list[list[Any]]
INFO = "apprentice"  # key in a LATENT for what later nodes need to know about the drafts

# Samplers that integrate a Brownian path instead of drawing white noise each step.
_BROWNIAN = frozenset({"dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"})


# ---------------------------------------------------------------------------------------------------- noise


def batch_noise(latent: Latent, seed: int) -> Tensor:
    """The stock noise of the whole batch: a function of the seed and of each picture's ``batch_index`` alone."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def step_noise(
    sampler_name: str, function: Callable[..., Any], whole: Tensor, sigmas: Tensor, seed: int, rows: Sequence[int]
) -> dict[str, Any]:
    """The ``noise_sampler`` option that gives ``rows`` the per-step noise they would get in the whole batch.

    Args:
        whole: A tensor of the whole batch's shape, on the sampling device.
        sigmas: The noise levels to be sampled.

    Returns:
        Options for ``KSAMPLER``; empty for samplers that draw no noise between steps.
    """
    if "noise_sampler" not in inspect.signature(function).parameters:
        return {}
    base = sampler_name.removesuffix("_gpu")
    if base in _BROWNIAN:
        positive = sigmas[sigmas > 0]
        if len(positive) == 0:
            return {}
        source = k_sampling.BrownianTreeNoiseSampler(
            whole, positive.min(), sigmas.max(), seed=seed, cpu=base == sampler_name
        )
    else:
        source = k_sampling.default_noise_sampler(whole, seed=seed)
    index = torch.as_tensor(list(rows), device=whole.device)
    return {"noise_sampler": lambda sigma, following: source(sigma, following)[index]}


class _RowsSampler(comfy.samplers.KSAMPLER):
    """A stock sampler over some rows of a batch, with the noise of those rows.

    Overrides ``sample`` only to learn the device and noise levels before the sampler starts; what is drawn is unchanged.
    """

    def __init__(self, stock: comfy.samplers.KSAMPLER, name: str, shape: torch.Size, rows: Sequence[int]) -> None:
        super().__init__(stock.sampler_function, dict(stock.extra_options), dict(stock.inpaint_options))
        self.name, self.shape, self.rows = name, shape, list(rows)

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        whole = torch.empty((self.shape[0], *noise.shape[1:]), dtype=noise.dtype, device=noise.device)
        seed = extra_args.get("seed")
        if "noise_sampler" not in self.extra_options and seed is not None:
            self.extra_options |= step_noise(self.name, self.sampler_function, whole, sigmas, seed, self.rows)
        if self.inpaint_options.get("random") and denoise_mask is not None:
            return self._sample_random_inpaint(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask,
                                               disable_pbar)  # fmt: skip
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def _sample_random_inpaint(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None,
        denoise_mask: Tensor,
        disable_pbar: bool,
    ) -> Tensor:
        """``ddim`` under a mask: the noise over the kept part is drawn by shape, so draw the whole batch's."""
        generator = torch.manual_seed(extra_args.get("seed", 41) + 1)
        kept = torch.randn((self.shape[0], *noise.shape[1:]), generator=generator, device="cpu")[self.rows]
        inner = self.sampler_function

        def with_noise(model: Any, *args: Any, **kwargs: Any) -> Tensor:
            model.noise = kept.to(noise)
            return inner(model, *args, **kwargs)

        stock = comfy.samplers.KSAMPLER(with_noise, self.extra_options, {})
        return stock.sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)


# ------------------------------------------------------------------------------------------ parts of a batch


def take_rows(value: Any, rows: Sequence[int], total: int) -> Any:
    """``value[rows]`` for a tensor that has one entry a picture of a batch of ``total``; a single entry holds for all.

    A tensor with another count is repeated to ``total`` first, as ComfyUI does with masks, hints and conditionings.
    """
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) <= 1:
        return value
    index = torch.as_tensor(list(rows), device=value.device) % len(value)
    return value[index]


def take_latent(latent: Latent, rows: Sequence[int]) -> Latent:
    """The latents, mask and indices of ``rows``."""
    total = len(latent["samples"])
    part = dict(latent)
    part["samples"] = latent["samples"][list(rows)]
    if "noise_mask" in latent:
        part["noise_mask"] = take_rows(latent["noise_mask"], rows, total)
    indices = latent.get("batch_index") or list(range(total))
    part["batch_index"] = [indices[row] for row in rows]
    return part


def take_conditioning(conditioning: Conditioning, rows: Sequence[int], total: int) -> Conditioning:
    """The conditioning of ``rows``: what holds one entry a picture is picked, everything else is kept.

    That is the text (one prompt a picture), its companions, and the hints of ControlNets.
    """
    picked = []
    for text, options in conditioning:
        options = {key: take_rows(value, rows, total) if _per_picture(value, total) else value
                   for key, value in options.items()}  # fmt: skip
        if options.get("control") is not None:
            options["control"] = _take_control(options["control"], rows, total)
        picked.append([take_rows(text, rows, total), options])
    return picked


def _per_picture(value: Any, total: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and len(value) == total > 1


def _take_control(control: Any, rows: Sequence[int], total: int) -> Any:
    part = control.copy()
    if part.cond_hint_original is not None:
        part.cond_hint_original = take_rows(part.cond_hint_original, rows, total)
    if control.previous_controlnet is not None:
        part.set_previous_controlnet(_take_control(control.previous_controlnet, rows, total))
    return part


# --------------------------------------------------------------------------------------------------- counting


class Counter:
    """Counts network evaluations: rows that went through the network (one CFG step on one picture counts two)."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """ComfyUI's wrapper protocol."""
        self.rows += len(x)
        return executor(x, *args, **kwargs)

    def attach(self, model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
        """A clone of ``model`` that counts."""
        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "apprentice_count", self)
        return clone


# --------------------------------------------------------------------------------------------------- sampling


def stock_sigmas(model: comfy.model_patcher.ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float) -> Tensor:
    """The noise levels that the stock KSampler would use."""
    stock = comfy.samplers.KSampler(
        model, steps=steps, device=model.load_device, sampler=sampler, scheduler=scheduler, denoise=denoise,
        model_options=model.model_options,
    )  # fmt: skip
    return stock.sigmas


def sample_rows(
    model: comfy.model_patcher.ModelPatcher,
    latent: Latent,
    rows: Sequence[int],
    *,
    noise: Tensor,
    sigmas: Tensor,
    sampler: str | comfy.samplers.KSAMPLER,
    cfg: float,
    positive: Conditioning,
    negative: Conditioning,
    seed: int,
    pack: int = 0,
    callback: Any = None,
) -> tuple[Tensor, list[float]]:
    """Sample the pictures ``rows`` of a batch, each with the noise that it has in the whole batch.

    With all rows in one pack this is ``comfy.sample.sample_custom`` on the batch, to the bit.

    Args:
        latent: The whole batch: ``samples`` [B, C, H, W], and mask and indices where there are any.
        noise: The whole batch's noise [B, C, H, W].
        sigmas: Noise levels, falling; the last is 0.
        sampler: A sampler's name, or one made by hand.
        pack: Pictures at a time; 0 for all at once.
        callback: ComfyUI's preview callback, for the progress bar.

    Returns:
        Latents [len(rows), C, H, W] and each picture's network evaluations.
    """
    total = len(latent["samples"])
    name = sampler if isinstance(sampler, str) else getattr(sampler, "apprentice_name", "")
    stock = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    # Its step size follows the error of the whole batch, so only alone is a picture independent of the others.
    pack = 1 if name == "dpm_adaptive" else pack or max(len(rows), 1)
    samples, evaluations = [], []
    for start in range(0, len(rows), pack):
        part_rows = rows[start : start + pack]
        part = take_latent(latent, part_rows)
        counter = Counter()
        drawn = comfy.sample.sample_custom(
            counter.attach(model), noise[list(part_rows)], cfg, _RowsSampler(stock, name, noise.shape, part_rows), sigmas,
            take_conditioning(positive, part_rows, total), take_conditioning(negative, part_rows, total),
            part["samples"], noise_mask=part.get("noise_mask"), callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        )  # fmt: skip
        samples.append(drawn)
        evaluations += [counter.rows / len(part_rows)] * len(part_rows)
    return torch.cat(samples) if samples else latent["samples"][:0], evaluations


def progress(model: comfy.model_patcher.ModelPatcher, steps: int, packs: int = 1) -> Any:
    """A preview callback whose bar runs once over all packs."""
    stock = latent_preview.prepare_callback(model, steps * packs)
    if packs == 1:
        return stock
    done = 0

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        nonlocal done
        stock(min(done, steps * packs - 1), x0, x, steps * packs)
        done += 1

    return callback


def fit_channels(model: comfy.model_patcher.ModelPatcher, latent: Latent) -> Latent:
    """``latent`` with the model's number of channels where it is empty, as the stock sampler does it.

    Raises:
        ValueError: It isn't empty and belongs to another kind of model.
    """
    wanted = model.get_model_object("latent_format").latent_channels
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    if samples.shape[1] != wanted:
        raise ValueError(
            f"These latents have {samples.shape[1]} channels, but the model draws in {wanted}: they come from another "
            f"family of models. Encode the picture with this model's VAE, or connect both VAEs."
        )
    return {**latent, "samples": samples}


def predict_x0(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone whose network's output is read as the picture itself (the stock ModelSamplingDiscrete node's "x0")."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, "x0", False)[0]


def as_sampler(function: Callable[..., Tensor], name: str) -> comfy.samplers.KSAMPLER:
    """A sampler function of our own in ComfyUI's wrapper."""
    sampler = comfy.samplers.KSAMPLER(function)
    sampler.apprentice_name = name
    return sampler


def show_text(text: str) -> None:
    """Show ``text`` on the node that is running, as the stock nodes show progress text."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


def family(model: comfy.model_patcher.ModelPatcher) -> str:
    """The model's latent family: two models of one family can pass latents to each other."""
    return type(model.get_model_object("latent_format")).__name__


# ------------------------------------------------------------------------------------------- helper networks


@contextmanager
def on_device(network: nn.Module) -> Iterator[torch.device]:
    """Have ComfyUI load ``network`` (an oracle's) on its device, making room and offloading as for its own models."""
    patcher = getattr(network, "apprentice_patcher", None)
    if patcher is None:
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        patcher = comfy.model_patcher.ModelPatcher(network, device, offload)
        # On the network itself, so that both go when nobody needs the oracle any more.
        network.__dict__["apprentice_patcher"] = patcher
    comfy.model_management.load_models_gpu([patcher])
    yield patcher.load_device
