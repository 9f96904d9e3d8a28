"""Network evaluations: counted while they happen, and foretold with a stand-in for the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor

from .guiders import options_of, sampler_of, stock_guider


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


class _StandIn:
    """Takes a model's place under a sampler: its noise levels and guidance, and for a network the best guess at random pictures.

    It answers to what ComfyUI calls a guider, a model, and the model's patcher.
    """

    def __init__(self, guider: comfy.samplers.CFGGuider) -> None:
        self.model_patcher, self.cfg, self.rows = guider.model_patcher, guider.cfg, 0
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self.inner_model = self.current_patcher = self
        self.guider: Any = copy.copy(guider)
        self.guider.conds = {key: [{"model_conds": {}, "uuid": key}] for key in guider.original_conds}
        self.guider.inner_model = self
        # The second model of ComfyUI's DualModelGuider.
        self.guider.uncond_inner, self.guider._uncond_conds = self, self.guider.conds.get("negative")

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Any:
        options = dict(model_options)
        options["sampler_post_cfg_function"] = [self._forgiving(f) for f in model_options.get("sampler_post_cfg_function", [])]
        return self.guider.predict_noise(x, sigma, options, seed)

    def _forgiving(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function after guidance that wants what only the network leaves behind (SAG) evaluates it once."""

        def call(given: dict[str, Any]) -> Any:
            try:
                return function(given)
            except Exception:  # by strangers, on a network that isn't there
                self.rows += len(given["input"])
                return given["denoised"]

        return call

    def apply_model(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        self.rows += len(x)
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        ones, zeros = torch.ones_like(x), torch.zeros_like(x)
        picture = self.model_sampling.noise_scaling(level, zeros, ones)
        noise = self.model_sampling.noise_scaling(level, ones, zeros)
        return x * picture / (picture**2 + noise**2)

    def memory_required(self, *_: Any, **__: Any) -> int:
        return 0

    def get_free_memory(self, *_: Any, **__: Any) -> int:
        return 1  # more than is required; newer ComfyUIs ask the patcher

    def prepare_state(self, *_: Any, **__: Any) -> None:
        pass

    def apply_hooks(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def count_evaluations(
    model: comfy.model_patcher.ModelPatcher, sampler: str | comfy.samplers.Sampler, sigmas: Tensor, cfg: float, guider: Any = None
) -> int:
    """Network evaluations that ``sampler`` spends on one picture, with guidance and its companions (PAG, SAG, skipped layers).

    The sampler is run on a few numbers with a stand-in for the network. It is an estimate for one that chooses its own steps, and
    for one that looks into the network: one evaluation a step, two with guidance. A ``guider`` counts in place of model and cfg.
    """
    if len(sigmas) < 2:
        return 0
    guider = guider or stock_guider(model, [], [], cfg)
    kind = guider.model_patcher.get_model_object("latent_format")
    shape = (1, kind.latent_channels, *[8] * kind.latent_dimensions)
    options = comfy.model_patcher.create_model_options_clone(options_of(guider))
    options.pop("model_function_wrapper", None)  # how the network is called, not how often
    options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
    with torch.random.fork_rng(devices=[]):
        noise, given = torch.randn(shape, generator=torch.Generator().manual_seed(0)), {"model_options": options, "seed": 0}
        try:
            network = _StandIn(guider)
            sampler_of(sampler).sample(network, sigmas.cpu(), given, None, noise, torch.zeros(shape), disable_pbar=True)
        except Exception:  # by strangers, on a network that isn't there
            return (len(sigmas) - 1) * (1 if getattr(guider, "cfg", cfg) == 1 else 2)
    return network.rows
