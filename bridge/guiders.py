"""ComfyUI's samplers, schedulers and guiders: by name or as connected, and which of them look at the batch as a whole."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from .rows import Conditioning

# Guiders of ComfyUI whose guidance of a picture depends on the batch: PerpNegGuider projects all pictures at once.
_BY_BATCH = frozenset({"Guider_PerpNeg"})
_NOISE_BY_PLACE = {"SD_X4Upscaler", "HunyuanImage21Refiner", "HunyuanVideo15_SR_Distilled"}


def step_cache(model: comfy.model_patcher.ModelPatcher) -> str:
    """The cache (EasyCache, LazyCache) on ``model`` that skips steps by how little the batch as a whole changes; or ""."""
    return str(getattr(model.model_options.get("transformer_options", {}).get("easycache"), "name", ""))


def stock_sigmas(
    model: comfy.model_patcher.ModelPatcher, sampler: str | comfy.samplers.Sampler, scheduler: str, steps: int, denoise: float
) -> Tensor:
    """The noise levels that the stock KSampler would use.

    Raises:
        ValueError: ComfyUI has no such sampler or scheduler; a choice that is connected can't be checked any earlier.
    """
    for what, given, choices in (
        ("sampler_name", sampler, comfy.samplers.SAMPLER_NAMES), ("scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES),
    ):  # fmt: skip
        if isinstance(given, str) and given not in choices:
            raise ValueError(f"{what} is '{given}', which is not one of: {', '.join(choices)}.")
    stock = comfy.samplers.KSampler(
        model, steps=steps, device=model.load_device, sampler=sampler_name(sampler), scheduler=scheduler, denoise=denoise,
        model_options=model.model_options,
    )  # fmt: skip
    return stock.sigmas


def stock_guider(
    model: comfy.model_patcher.ModelPatcher, positive: Conditioning, negative: Conditioning, cfg: float
) -> comfy.samplers.CFGGuider:
    """The guidance of the stock KSampler."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def with_model(guider: Any, model: comfy.model_patcher.ModelPatcher) -> Any:
    """A copy of ``guider`` that draws with ``model``, which is its own model or a clone of it."""
    options, changed = options_of(guider), copy.copy(guider)
    shared = options is guider.model_patcher.model_options
    changed.model_patcher = model
    changed.model_options = model.model_options if shared else comfy.model_patcher.create_model_options_clone(options)
    return changed


def options_of(guider: Any) -> dict[str, Any]:
    """What a guider hands to its model."""
    options: dict[str, Any] = getattr(guider, "model_options", guider.model_patcher.model_options)
    return options


def sampler_of(sampler: str | comfy.samplers.Sampler) -> comfy.samplers.Sampler:
    """A SAMPLER, by name or as it is."""
    return comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler


def sampler_name(sampler: str | comfy.samplers.Sampler) -> str:
    """The name that ``sampler`` has in ComfyUI's list, or goes by."""
    if isinstance(sampler, str):
        return sampler
    function = getattr(sampler, "sampler_function", type(sampler))
    short = getattr(function, "__name__", type(function).__name__).removeprefix("sample_").removesuffix("_function")
    return str(getattr(sampler, "apprentice_name", short.replace("unipc", "uni_pc")))


def draws_whole(
    model: comfy.model_patcher.ModelPatcher, sampler: str | comfy.samplers.Sampler, guider: Any = None
) -> str:
    """Why pictures can't be drawn apart by these, so that the whole batch must be; "" where they can.

    Another pack's sampler may draw noise between the steps that only it knows to draw; another pack's guider may keep its
    conditionings in a way of its own; some guidance depends on the whole batch; some of ComfyUI's models of upscaling add noise
    to the pictures that they are shown, drawn for all at once.
    """
    if noisy := _NOISE_BY_PLACE & {kind.__name__ for kind in type(model.model).__mro__}:
        return f"the model {noisy.pop()} draws noise for all pictures at once"
    stock = sampler_of(sampler)
    if guider is not None and not isinstance(getattr(guider, "original_conds", None), dict):
        return f"the guider {type(guider).__name__} keeps its conditionings to itself"
    if type(guider).__name__ in _BY_BATCH:
        return f"the guider {type(guider).__name__} weighs the batch as a whole"
    if type(stock) is not comfy.samplers.KSAMPLER:
        return f"the sampler {sampler_name(stock)} is one of its own kind"
    if hasattr(stock, "apprentice_name") or stock.sampler_function.__module__.startswith("comfy."):
        return ""
    inner = [value for value in stock.extra_options.values() if isinstance(value, comfy.samplers.Sampler)]
    functions = [getattr(each, "sampler_function", None) for each in (stock, *inner)]
    if all(function and "noise_sampler" not in inspect.signature(function).parameters for function in functions):
        return ""
    return f"the sampler {sampler_name(stock)} draws noise of its own"


def predict_x0(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone whose network's output is read as the picture itself (the stock ModelSamplingDiscrete node's "x0")."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, "x0", False)[0]


def as_sampler(function: Callable[..., Tensor], name: str) -> comfy.samplers.KSAMPLER:
    """A sampler function of our own in ComfyUI's wrapper."""
    sampler = comfy.samplers.KSAMPLER(function)
    sampler.apprentice_name = name
    return sampler
