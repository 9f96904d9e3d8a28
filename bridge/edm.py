"""The bridge to EDM's pixel-space networks and to SiD's students.

A snapshot becomes a native MODEL, which stock samplers run on unchanged. ``draw_sid`` draws with SiD's students of any kind.

ComfyUI's own EDM preconditioning (``ModelType.EDM``) computes D = c_skip x + c_out F(c_in x; ln(sigma) / 4), as
``networks.edm.EDMPrecond`` does; the network that it is given is F alone.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ..files import reading
from ..networks import edm
from ..samplers.edm import sid_sigmas, start_scale
from ..samplers.schedules import INIT_SIGMA, INIT_TIMESTEP
from ..weights.edm_pickle import UNET, read_edm
from .drafts import schedule_in_words
from .fingerprints import model_fingerprint
from .info import Info, with_info
from .latents import family, fit_channels
from .memory import WholePatcher
from .noise import batch_noise
from .progress import progress
from .rows import Conditioning, Latent
from .sampling import sample_rows

RGB = 3
# EDM's range of noise levels (arXiv 2206.00364, Table 1), for networks that do not narrow it.
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0
# Measured: DDPM++ takes 12 kB a pixel in float32, NCSN++ 8 and ADM 15.
_BYTES_PER_PIXEL = 16_000


class EDMPixels(comfy.latent_formats.LatentFormat):
    """Pixels as latents: [B, 3, H, W] in -1..1, one cell a pixel."""

    scale_factor = 1.0
    latent_channels = RGB
    spacial_downscale_ratio = 1

    def __init__(self) -> None:
        self.latent_rgb_factors = torch.eye(RGB).tolist()


class EDMConfig(comfy.supported_models_base.BASE):
    """What ComfyUI wants to know of the family."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    latent_format = EDMPixels
    supported_inference_dtypes: ClassVar[list[torch.dtype]] = [torch.float32]


# ----------------------------------------------------------------------------------------------------- network


class NativeEDM(nn.Module):
    """F behind the signature of ComfyUI's networks; its state dict is the snapshot's.

    Args:
        precond: The network; its F is taken over, not copied.
    """

    def __init__(self, precond: edm.EDMPrecond) -> None:
        super().__init__()
        self.model = precond.model
        self.dtype = torch.float32
        self.img_resolution, self.label_dim = precond.img_resolution, precond.label_dim
        # Levels of the network are named after their grids: 32x32, 16x16, 8x8.
        self.coarsest = 2 ** (len({name.split("_")[0] for name in precond.model.enc}) - 1)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, control: Any = None,
        transformer_options: dict[str, Any] | None = None, class_labels: Tensor | None = None, **_extra: Any,
    ) -> Tensor:  # fmt: skip
        """F(x; timesteps, class_labels), wrapped by whatever other packs have put around a network.

        Args:
            x: c_in x [B, 3, H, W].
            timesteps: c_noise [B].
            class_labels: [B, label_dim].
        """
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return run.execute(x, timesteps, context, control, options, class_labels=class_labels)

    def _forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None, control: Any, transformer_options: dict[str, Any],
        class_labels: Tensor | None = None, **_extra: Any,
    ) -> Tensor:  # fmt: skip
        # Embeddings stay in float32 where the grid is computed in float16, as in ``EDMPrecond``; no augmentation labels.
        labels = None if class_labels is None else class_labels.float()
        f: Tensor = self.model(x, timesteps.float(), labels)
        return f


class EDMModel(comfy.model_base.BaseModel):
    """BaseModel with EDM preconditioning around ``NativeEDM``; its conditioning is a label vector a picture."""

    def __init__(self, config: EDMConfig, network: NativeEDM, device: torch.device | None = None) -> None:
        kind = comfy.model_base.ModelType.EDM
        super().__init__(config, model_type=kind, device=device, unet_model=lambda **_: network)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The label vectors [B, label_dim]; called once for each conditioning, before anything is drawn.

        Raises:
            ValueError: Pictures or labels are of another kind than the network's.
        """
        if (noise := kwargs.get("noise")) is not None:
            self._check_size(noise.shape)
        labels = kwargs.get("cross_attn")
        if labels is None or self.diffusion_model.label_dim == 0:
            return {}
        if labels.shape[-1] != self.diffusion_model.label_dim:
            raise ValueError(
                f"This conditioning has {labels.shape[-1]} numbers, but the network knows {self.diffusion_model.label_dim} "
                f"classes: connect the conditioning of its own Load EDM Network."
            )
        # One vector a picture; several come only of nodes that join conditionings, and then say the same together.
        return {"class_labels": comfy.conds.CONDRegular(labels.mean(1))}

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Any = None) -> int:
        """Bytes that one evaluation takes beside the weights; ComfyUI's formula is made for latents, which are far fewer."""
        return input_shape[0] * math.prod(input_shape[2:]) * _BYTES_PER_PIXEL

    def _check_size(self, shape: torch.Size) -> None:
        size, multiple = self.diffusion_model.img_resolution, self.diffusion_model.coarsest
        if len(shape) != 4 or shape[1] != RGB:
            raise ValueError(
                f"These latents have {shape[1]} channels, but the network draws pixels in {RGB}: connect the empty latent of "
                f"Load EDM Network, or encode the picture with its VAE."
            )
        if shape[2] % multiple or shape[3] % multiple:
            raise ValueError(
                f"The network draws pictures of {size}x{size}, or at least of a multiple of {multiple}, but these latents are "
                f"{shape[3]}x{shape[2]}: connect the empty latent of Load EDM Network."
            )


# ----------------------------------------------------------------------------------------------------- loading

# Another class or batch size runs the loader again; while the network is still about, its file is not read again.
_LOADED: WeakValueDictionary[tuple[str, int, int], comfy.model_patcher.ModelPatcher] = WeakValueDictionary()


def load_edm(path: str | os.PathLike[str]) -> comfy.model_patcher.ModelPatcher:
    """The network in an EDM or SiD snapshot (.pkl), or in what ``apprentice convert`` made of one, as a MODEL.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It is something else, or damaged.
        ValueError: It holds a network that can't be built or doesn't draw RGB.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    key = (str(file), file.stat().st_mtime_ns, file.stat().st_size)
    model = _LOADED.get(key)
    if model is None:
        # Outside of inference mode, so that a trainer can start from it.
        with torch.inference_mode(False), reading(file.name):
            model = _LOADED[key] = native_edm(_read_network(file))
    return model


def native_edm(precond: edm.EDMPrecond) -> comfy.model_patcher.ModelPatcher:
    """``precond`` as a MODEL, which takes over its weights.

    Raises:
        ValueError: It doesn't draw RGB.
    """
    if precond.img_channels != RGB:
        raise ValueError(f"This network draws in {precond.img_channels} channels; only RGB, which has {RGB}, can be shown.")
    config = EDMConfig({"in_channels": RGB})
    config.sampling_settings.update(
        sigma_data=precond.sigma_data,
        sigma_min=max(_SIGMA_MIN, precond.sigma_min),
        sigma_max=min(_SIGMA_MAX, precond.sigma_max),
    )
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    # Weights stay float32 and are cast as they are used, as in ``EDMPrecond``.
    half = precond.use_fp16 and comfy.model_management.should_use_fp16(device)
    config.set_inference_dtype(torch.float32, torch.float16 if half else None)
    network = NativeEDM(precond.train(False).requires_grad_(False)).to(offload)
    model = EDMModel(config, network, device=offload)
    # Whole: EDM's blocks reach into their layers for weights, which ComfyUI would leave behind when it loads in part.
    return WholePatcher(model, load_device=device, offload_device=offload)


def _read_network(file: Path) -> edm.EDMPrecond:
    config, weights = read_edm(file)
    if config.get("_class_name") == UNET:
        raise ValueError(
            f"{file.name} is a U-Net of Stable Diffusion (SiD-LSG), not an EDM network: turn it into safetensors with "
            f"'apprentice convert' and load that with Load Student."
        )
    return edm.restore_edm(config, weights, file.name)


def network_of(model: comfy.model_patcher.ModelPatcher) -> NativeEDM:
    """The EDM network in a MODEL that ``load_edm`` made.

    Raises:
        ValueError: It is another model.
    """
    network = getattr(model.model, "diffusion_model", None)
    if not isinstance(network, NativeEDM):
        raise ValueError("This model is not an EDM network: connect the one of Load EDM Network.")
    return network


# ------------------------------------------------------------------------------------------ latents and pixels


def pixel_vae() -> comfy.sd.VAE:
    """ComfyUI's own VAE that changes nothing: pictures in 0..1 are latents in -1..1."""
    # In float32: the half precision that ComfyUI would take on a GPU has fewer levels than a picture.
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)


def empty_latent(model: comfy.model_patcher.ModelPatcher, batch_size: int) -> Latent:
    """Nothing drawn yet, in the network's size: ``samples`` [B, 3, R, R] of zeros."""
    size = network_of(model).img_resolution
    device = comfy.model_management.intermediate_device()
    return {"samples": torch.zeros(batch_size, RGB, size, size, device=device)}


def draws_pixels(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether the model's latents are the pictures themselves."""
    return isinstance(model.get_model_object("latent_format"), EDMPixels)


def pixels(samples: Tensor) -> Tensor:
    """Pictures [B, H, W, 3] in 0..1 of pixel latents [B, 3, H, W], as ``pixel_vae`` decodes them."""
    return ((samples + 1) / 2).clamp(0, 1).movedim(1, -1)


# ----------------------------------------------------------------------------------------------------- drawing

# What ComfyUI calls it: take the denoised picture, add noise of the next level, denoise again.
_RENOISING = "lcm"
_SEEDS = 1 << 64


def draw_sid(
    model: Any, positive: Conditioning, latent: Latent, seed: int, steps: int = 1, init_sigma: float = INIT_SIGMA,
    init_timestep: int = INIT_TIMESTEP, callback: Any = None,
) -> Latent:  # fmt: skip
    """SiD's pictures. Each depends on the seed and its place in the batch alone, as the stock samplers' noise does.

    Args:
        model: A MODEL of EDM's or of Stable Diffusion's kind.
        positive: Class or prompt. There is no negative: guidance is trained into these students.
        latent: Empty, or a picture to edit, which the noise is then added to.
        callback: ComfyUI's preview callback; a bar of its own without.

    Raises:
        ValueError: It is a flow model, or the latents are not the model's.
    """
    latent = fit_channels(model, latent)
    sampling = model.get_model_object("model_sampling")
    sigmas = sid_sigmas(sampling, steps, init_sigma, init_timestep)
    noise = batch_noise(latent, seed) * start_scale(float(sigmas[0]), float(sampling.sigma_max))
    samples, nfe = sample_rows(
        model, latent, range(len(latent["samples"])), noise=noise, sigmas=sigmas, sampler=_renoising(latent, seed), cfg=1.0,
        positive=positive, negative=positive, seed=seed, callback=callback or progress(model, steps),
    )  # fmt: skip
    info = Info(
        tuple(nfe), seed, latent["samples"], 1.0, family(model), student=model_fingerprint(model),
        schedule=schedule_in_words("sid", _RENOISING, sigmas, 1.0),
    )  # fmt: skip
    return with_info(latent, samples, info)


def _renoising(latent: Latent, seed: int) -> comfy.samplers.KSAMPLER:
    """The sampler, with noise between the steps that, like the first, knows only the seed and each picture's place.

    ComfyUI draws it for the batch as a whole, so that it depends on how many pictures there are; and from the seed of the first
    noise, so that some releases (0.3.75) give the first noise once more.
    """
    steps = itertools.count(1)

    def fresh(sigma: Tensor, following: Tensor) -> Tensor:
        return batch_noise(latent, (seed + next(steps)) % _SEEDS).to(sigma.device)

    return comfy.samplers.ksampler(_RENOISING, {"noise_sampler": fresh})
