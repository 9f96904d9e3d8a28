"""The tiny world as ComfyUI's own types: MODEL, CLIP, VAE, CONTROL_NET, so that stock nodes run on it unchanged.

Weights are read once and kept; everything sits in a ModelPatcher, so that memory belongs to ComfyUI.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import comfy.controlnet
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from einops import rearrange
from torch import Tensor

from ..networks.tiny_autoencoder import COMPRESSION, FOLD, LATENT_CHANNELS, SIGMA_DATA, TinyAutoencoder
from ..networks.tiny_text import END, MAX_TOKENS, PAD, START, TinyTextEncoder, Vocabulary
from ..networks.tiny_unet import TinyControlNet, TinyUNet
from ..oracles.tiny import TinyWorldOracle
from ..world.weights import SIGMA_MAX, SIGMA_MIN, load_oracle, read, students
from .info import CARD

__all__ = ["load_clip", "load_control", "load_student", "load_teacher", "load_vae", "load_world_oracle", "students"]

STUDENT_PRESET = "tiny-world"  # of both students
_OPS = comfy.ops.manual_cast


class TinyWorldLatent(comfy.latent_formats.LatentFormat):
    """32 channels on a grid of 8x8 pixels a cell; already scaled. Previews unfold two by two cells of 8 channels."""

    scale_factor = 1.0
    latent_channels = LATENT_CHANNELS
    spacial_downscale_ratio = COMPRESSION

    def __init__(self) -> None:
        preview = json.loads(read("autoencoder")[1]["preview"])
        self.latent_rgb_factors = preview["factors"]
        self.latent_rgb_factors_bias = preview["bias"]
        self.latent_rgb_factors_reshape = lambda x: rearrange(
            x, "b (c i j) h w -> b c (h i) (w j)", i=FOLD, j=FOLD
        )


class TinyWorldConfig(comfy.supported_models_base.BASE):
    """What ComfyUI wants to know of the family."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = TinyWorldLatent
    sampling_settings = {"sigma_data": SIGMA_DATA, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
    memory_usage_factor = 0.1
    supported_inference_dtypes = [torch.float32]


class _NativeUNet(TinyUNet):
    """``TinyUNet`` that lets other packs wrap the network, as ComfyUI's own networks do."""

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, control: Any = None, transformer_options: Any = None, **extra: Any
    ) -> Tensor:
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(super().forward, self, wrappers)
        return run.execute(x, timesteps, context, control, options, **extra)


class TinyWorldModel(comfy.model_base.BaseModel):
    """BaseModel with EDM preconditioning around ``TinyUNet``."""

    def __init__(self, config: TinyWorldConfig, device: torch.device | None = None) -> None:
        super().__init__(config, model_type=comfy.model_base.ModelType.EDM, device=device, unet_model=_NativeUNet)


def model_of(tensors: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """A U-Net of the tiny world with these weights, as a MODEL."""
    config = TinyWorldConfig({"in_channels": 4})  # "in_channels" is what ComfyUI asks to tell inpainting models
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = comfy.ops.disable_weight_init
    offload = comfy.model_management.unet_offload_device()
    model = TinyWorldModel(config, device=offload)
    model.load_model_weights({key: value.float() for key, value in tensors.items()}, "")
    return comfy.model_patcher.ModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(), offload_device=offload
    )


@lru_cache(maxsize=1)
def load_teacher() -> comfy.model_patcher.ModelPatcher:
    """The teacher as a MODEL; sample it with classifier-free guidance of about 2."""
    return model_of(read("teacher")[0])


@lru_cache(maxsize=4)
def load_student(name: str) -> comfy.model_patcher.ModelPatcher:
    """A student as a MODEL; sample it at CFG 1 with the ``tiny-world`` preset.

    Raises:
        ValueError: There is no such student.
    """
    if name not in students():
        raise ValueError(f"The tiny world has no student '{name}'; choose one of: {', '.join(students())}.")
    tensors, about = read(f"student_{name}")
    model = model_of(tensors)
    model.set_attachments(CARD, {"preset": STUDENT_PRESET, **about})
    return model


class _Tokenizer:
    """Words with weights, in rows of 16 tokens, in the shape that CLIP tokenizers of ComfyUI answer in."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        self.words = Vocabulary(json.loads(read("text")[1]["words"]))

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_kwargs: Any) -> dict[str, list[Any]]:
        parsed = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
        words = [
            (token, weight, index)
            for index, (segment, weight) in enumerate(parsed, 1)
            for token in self.words.word_ids(comfy.sd1_clip.unescape_important(segment))
        ]
        room = MAX_TOKENS - 2
        rows = []
        for start in range(0, max(len(words), 1), room):
            row = [(START, 1.0, 0), *words[start : start + room], (END, 1.0, 0)]
            row += [(PAD, 1.0, 0)] * (MAX_TOKENS - len(row))
            rows.append(row if return_word_ids else [pair[:2] for pair in row])
        return {"tiny": rows}

    def untokenize(self, pairs: list[tuple[int, float]]) -> list[tuple[tuple[int, float], str]]:
        names = ["", "", "", "<unknown>", *self.words.words]
        return [(pair, names[pair[0]]) for pair in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class _TextModel(torch.nn.Module, comfy.sd1_clip.ClipTokenWeightEncoder):
    """``TinyTextEncoder`` behind the interface of ComfyUI's text models."""

    special_tokens = {"start": START, "end": END, "pad": PAD}

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__()
        tensors, metadata = read("text")
        self.transformer = TinyTextEncoder(len(json.loads(metadata["words"])) + 4, ops=_OPS)
        self.transformer.load_state_dict({key: value.float() for key, value in tensors.items()})
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """There are no layers to choose from."""

    def reset_clip_options(self) -> None:
        """See ``set_clip_options``."""

    def encode(self, tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
        device = self.transformer.position.device
        vectors = self.transformer(torch.tensor(tokens, device=device))
        return vectors.float(), vectors[:, 0].float()

    def encode_token_weights(self, token_weight_pairs: dict[str, list[Any]]) -> Any:
        return super().encode_token_weights(token_weight_pairs["tiny"])

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        return self.transformer.load_state_dict(sd, strict=False)


@lru_cache(maxsize=1)
def load_clip() -> comfy.sd.CLIP:
    """The text encoder as a CLIP; prompt weights such as (red:1.3) work."""
    target = comfy.supported_models_base.ClipTarget(_Tokenizer, _TextModel)
    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32})


class TinyWorldVAE(comfy.sd.VAE):
    """The autoencoder as a VAE: 8 pixels a cell, 32 channels."""

    def __init__(self) -> None:
        # The stock identity VAE sets every attribute that other code may ask for; what differs is replaced below.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
        model = TinyAutoencoder()
        model.load_state_dict({key: value.float() for key, value in read("autoencoder")[0].items()})
        self.first_stage_model = _TwoWay(model.train(False))
        self.latent_channels = LATENT_CHANNELS
        self.downscale_ratio = self.upscale_ratio = COMPRESSION
        self.memory_used_encode = lambda shape, dtype: 512 * shape[2] * shape[3] * 4
        self.memory_used_decode = lambda shape, dtype: 512 * shape[2] * shape[3] * COMPRESSION**2 * 4
        self.size = None
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.model_size()


class _TwoWay(torch.nn.Module):
    """``TinyAutoencoder`` with the lenient signatures that ``comfy.sd.VAE`` calls."""

    def __init__(self, autoencoder: TinyAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def encode(self, pixels: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.autoencoder.encode(pixels)

    def decode(self, latents: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.autoencoder.decode(latents)


@lru_cache(maxsize=1)
def load_vae() -> TinyWorldVAE:
    """The autoencoder as a VAE."""
    return TinyWorldVAE()


@lru_cache(maxsize=1)
def load_control() -> comfy.controlnet.ControlNet:
    """The ControlNet for edges (white lines on black, as the stock Canny node draws them)."""
    network = TinyControlNet(operations=comfy.ops.disable_weight_init)
    network.load_state_dict({key: value.float() for key, value in read("control")[0].items()})
    return comfy.controlnet.ControlNet(
        network.train(False),
        compression_ratio=COMPRESSION,
        load_device=comfy.model_management.get_torch_device(),
        manual_cast_dtype=None,
    )


@lru_cache(maxsize=1)
def load_world_oracle() -> TinyWorldOracle:
    """The oracle that gates."""
    with torch.inference_mode(False):  # so that its reward can be differentiated
        return load_oracle("oracle")
