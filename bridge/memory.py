"""The one rule of residency: every network of ours sits in a ModelPatcher, and ComfyUI loads and unloads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn


def prefers_half(network: nn.Module) -> bool:
    """Whether ComfyUI would rather compute ``network`` in float16 on this machine's device; never on a CPU."""
    device = comfy.model_management.get_torch_device()
    size = sum(p.numel() for p in network.parameters())
    return bool(comfy.model_management.should_use_fp16(device, model_params=size))


def room() -> int | None:
    """Bytes that are free on the computing device once nothing of ComfyUI's is left there; None on a CPU."""
    device = comfy.model_management.get_torch_device()
    if comfy.model_management.is_device_cpu(device):
        return None
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    return int(comfy.model_management.get_free_memory(device))


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher that is on one device whole, or refused: plain torch layers can't be split between devices."""

    def partially_load(self, device_to: torch.device, *_: Any, **options: Any) -> Any:
        """All that is not there yet.

        Raises:
            ValueError: There is no room for it.
        """
        missing = self.model_size() - self.loaded_size()
        free = comfy.model_management.get_free_memory(device_to)
        if not comfy.model_management.is_device_cpu(device_to) and missing > free:
            raise ValueError(
                f"A network that must be on one device whole needs {missing / 2**30:.1f} GiB there, and {free / 2**30:.1f} GiB "
                "are free: choose fp16, or a smaller oracle, CLIP or model."
            )
        return super().partially_load(device_to, **{**options, "extra_memory": 1e32})

    def partially_unload(self, *_: Any, **__: Any) -> int:
        """Nothing, so that ComfyUI takes all of it."""
        return 0


def patchers_of(network: nn.Module) -> list[WholePatcher]:
    """The ModelPatchers of a network: one for each network that it is made of, whoever else that belongs to."""
    parts = getattr(network, "residents", None)
    if parts is not None:
        return list(dict.fromkeys(patcher for part in parts() for patcher in patchers_of(part)))
    patcher = network.__dict__.get("apprentice_patcher")
    if patcher is None:
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        # In a module of our own: ModelPatcher writes attributes, some of which transformers' classes don't let anybody set.
        patcher = WholePatcher(nn.ModuleList([network]), device, offload)
        # On the network itself, so that both go when nobody needs the oracle any more.
        network.__dict__["apprentice_patcher"] = patcher
    return [patcher]


@contextmanager
def on_device(network: nn.Module) -> Iterator[torch.device]:
    """Have ComfyUI load ``network`` (an oracle's) on its device, making room and offloading as for its own models.

    Raises:
        ValueError: There is no room for it.
    """
    patchers = patchers_of(network)
    with torch.inference_mode(False):  # what is moved in inference mode can't teach any more
        comfy.model_management.load_models_gpu(patchers, force_full_load=True)
    yield patchers[0].load_device
