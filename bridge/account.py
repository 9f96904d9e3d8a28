"""Sizes of a MODEL's training on the meta device, where nothing is read or computed; see ``training.account``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.ldm.modules.attention as attention
import torch
from torch import Tensor, nn

from ..precision import DTYPES
from ..training.account import SID_FULL, Job
from ..training.lora import Adapters, checkpoint_blocks, switched
from ..training.metering import OnCard, Pass, measured
from ..training.recompute import apart
from .copies import FP8, around_copy, cast_each_time, copied, packed_bytes
from .latents import pixels_per_latent
from .rows import Conditioning
from .training import Conditions, denoiser


class NetworkSketch:
    """A ``training.account.Sketch`` of ComfyUI's networks.

    Args:
        base: The BaseModel, on any device.
        conditioning: Of one prompt, as long as they get.
        vae: Of Reward Finetune.
        judge: Bytes of its oracle's weights.
        packed: Bytes of the base's weights in a GGUF file; those of a base that is loaded are counted here.
    """

    def __init__(self, base: Any, conditioning: Conditioning, vae: Any = None, judge: int = 0, packed: int = 0) -> None:
        self.base, self.conditioning, self.vae, self.judge = base, conditioning, vae, judge
        self.packed = packed or packed_bytes(base)
        self._passes: dict[Any, Pass] = {}
        self._judged: dict[Any, Pass] = {}

    def weights(self, job: Job) -> int:
        """See ``Sketch``."""
        return self.packed or _bytes(self._twin(job).diffusion_model)

    def learned(self, job: Job) -> Sequence[Sequence[int]]:
        """See ``Sketch``."""
        network = self.base.diffusion_model
        if job.method == SID_FULL:
            return [parameter.shape for parameter in network.parameters()]
        twin = self._twin(job)
        return [value.shape for value in Adapters(twin.diffusion_model, ("one",), job.rank).of["one"].parameters()]

    def passed(self, job: Job, rows: int, learns: bool) -> Pass:
        """See ``Sketch``."""
        key = rows, learns, replace(job, part=1, optimiser="", guided=(True, True, True), varied=False, pleased=False)
        if key not in self._passes:
            self._passes[key] = self._measure(job, rows, learns)
        return self._passes[key]

    def _measure(self, job: Job, rows: int, learns: bool) -> Pass:
        dtype, shape = DTYPES[job.dtype], latent_size(self.base, job)
        twin, adapters = self._twin(job, job.method == SID_FULL), None
        learned: list[Tensor] = []
        if job.method != SID_FULL:
            adapters = Adapters(twin.diffusion_model, ("one",), job.rank)
            learned = list(adapters.of["one"].parameters())
        elif learns:
            learned = list(twin.diffusion_model.requires_grad_().parameters())
        for parameter in learned:
            parameter.requires_grad_(learns)
        card = OnCard(dtype)
        card.entered(twin.diffusion_model)
        if job.checkpointing:
            checkpoint_blocks(twin.diffusion_model, adapters)
        denoise = denoiser(twin, dtype, Conditions(self.base, [self.conditioning], shape), **OPTIONS)
        if adapters is not None:
            denoise = switched(denoise, adapters, "one")
        if job.apart:
            denoise = apart(denoise)
        x, sigma = torch.empty(rows, *shape, device="meta"), torch.empty(rows, *[1] * len(shape), device="meta")
        labels = torch.zeros(rows, dtype=torch.long)
        with card:
            return measured(lambda start: denoise(start, sigma, labels), x, learned if learns else ())

    def judged(self, job: Job) -> tuple[int, Pass]:
        """See ``Sketch``; of the oracle its weights alone."""
        if self.vae is None:
            return self.judge, Pass(0, 0)
        dtype = torch.bfloat16 if job.dtype == "bf16" else torch.float32
        network = copied(self.vae.first_stage_model, dtype, device="meta")
        key = job.part, job.width, job.height
        if key not in self._judged:
            card = OnCard()
            card.entered(network)
            if getattr(self.vae, "latent_dim", 2) == 2:
                checkpoint_blocks(network, smallest=True)
            x = torch.empty(job.part, *latent_size(self.base, job), device="meta", dtype=dtype)
            with card:
                self._judged[key] = measured(network.decode, x)
        return self.judge + _bytes(network), self._judged[key]


    def _twin(self, job: Job, learns: bool = False) -> Any:
        """The base on the meta device as the job holds it: frozen, in 8 bits where that is asked for; or float32, to learn.

        Packed weights stand there in 8 bits, which their layers unpack, too, when they compute, and keep until they are done.
        """
        base, full = self.base, job.method == SID_FULL
        twin = around_copy(base, torch.float32 if learns else DTYPES[job.dtype], not full, "meta")
        twin._modules["model_sampling"] = copy.deepcopy(base.model_sampling).to("meta")
        if (job.fp8 or self.packed) and not full:
            for layer in twin.diffusion_model.modules():
                if isinstance(layer, nn.Linear) and hasattr(layer, "comfy_cast_weights") and layer.weight.dtype not in FP8:
                    layer.weight = nn.Parameter(layer.weight.to(FP8[0]), requires_grad=False)
                    layer.comfy_cast_weights = True  # type: ignore[assignment]
            if not self.packed:
                cast_each_time(twin.diffusion_model)
        return twin


def _pytorch_attention(_function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What cards use; others ask how much memory is free, or are not for the meta device."""
    return attention.attention_pytorch(*args, **kwargs)  # type: ignore[no-any-return]


OPTIONS = {"optimized_attention_override": _pytorch_attention}


def longest(encoded: Sequence[Conditioning]) -> Conditioning:
    """The prompt with the longest text."""
    return max(encoded, key=lambda conditioning: conditioning[0][0].shape[1])


def latent_size(base: Any, job: Job) -> tuple[int, ...]:
    """Of one latent of the job's pictures; see ``training.latent_shape``."""
    latent = base.latent_format
    scale = pixels_per_latent(latent)
    frames = (1,) if latent.latent_dimensions == 3 else ()
    return (latent.latent_channels, *frames, job.height // scale, job.width // scale)


def _bytes(network: nn.Module) -> int:
    values = {id(v): v for v in (*network.parameters(), *network.buffers())}
    return sum(v.numel() * v.element_size() for v in values.values())
