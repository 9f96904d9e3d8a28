"""U-Nets as diffusers stores them, in the terms of the LDM U-Net that ComfyUI builds: files, config, structure, guidance.

A published student is a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, or the weights alone. Where
there is a config, diffusers itself reads it: it builds the network without memory (torch's "meta" device), and what it
built is looked at. Without one, names and shapes of the weights say everything but the number of attention heads, which the
known families tell. Nothing here reads weights or knows ComfyUI: the results are shapes, names and arguments.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import NAME_BYTES, UnreadableFile, parse_json
from .limits import refuse_immodest, without_memory

CONFIG, SCHEDULER, WEIGHTS = "config.json", "scheduler_config.json", "diffusion_pytorch_model"
METADATA_CONFIG = "diffusers_config"
"""Where a ``.safetensors`` file that stands alone keeps its config, as JSON, in its metadata."""

Shapes = Mapping[str, tuple[int, ...]]

_CLASS = "UNet2DConditionModel"
# diffusers' own order: full precision before half, safetensors before pickles.
_WEIGHT_FILES = tuple(f"{WEIGHTS}{variant}.{kind}" for kind in ("safetensors", "bin") for variant in ("", ".fp16"))
_INDEX_FILES = tuple(f"{WEIGHTS}.{kind}.index{variant}.json" for kind in ("safetensors", "bin") for variant in ("", ".fp16"))
_SUBFOLDERS = ("", "unet", "transformer")

# What ComfyUI's U-Net has built in. A config that says otherwise describes a network that it would compute wrongly.
_BUILT_IN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"), "norm_num_groups": (32,), "norm_eps": (1e-5,), "center_input_sample": (False,),
    "flip_sin_to_cos": (True,), "freq_shift": (0,), "downsample_padding": (1,), "mid_block_scale_factor": (1,),
    "dual_cross_attention": (False,), "resnet_time_scale_shift": ("default",), "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,), "time_embedding_type": ("positional",), "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,), "class_embed_type": (None,),
    "num_class_embeds": (None,), "class_embeddings_concat": (False,), "encoder_hid_dim_type": (None,),
    "cross_attention_norm": (None,), "attention_type": ("default",), "addition_embed_type": (None, "text_time"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
}  # fmt: skip
_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear"}  # diffusers' name -> LDM's


_USUAL_WEIGHTS = 2_000  # SDXL's U-Net has 1,680


class StudentError(UnreadableFile):
    """A U-Net that can't be used; the message is one sentence for people."""


# ----------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class UNetFiles:
    """The files of one network.

    Attributes:
        name: What to call it in messages.
        weights: One file, or the shards.
        config: Its ``config.json``.
        scheduler: The ``scheduler_config.json`` of the pipeline it lies in.
    """

    name: str
    weights: tuple[Path, ...]
    config: Path | None = None
    scheduler: Path | None = None


def find_folder(path: Path) -> Path | None:
    """The folder with config and weights: ``path``, or its ``unet`` or ``transformer``; None where there is none."""
    folders = (path / sub for sub in _SUBFOLDERS)
    return next((f for f in folders if (f / CONFIG).is_file() and _first(f, (*_WEIGHT_FILES, *_INDEX_FILES))), None)


def find_files(path: Path) -> UNetFiles:
    """The files of the network at ``path``: a file of weights, or a folder as diffusers saves it, or a whole pipeline.

    Raises:
        StudentError: There is no network there, or a shard is missing.
    """
    if path.is_file():
        return UNetFiles(path.name, (path,))
    folder = find_folder(path) or path
    if whole := _first(folder, _WEIGHT_FILES):
        weights: tuple[Path, ...] = (whole,)
    elif index := _first(folder, _INDEX_FILES):
        weights = _shards(index, path.name)
    else:
        raise StudentError(f"{path.name} holds no network as diffusers saves it: it needs {CONFIG} and {WEIGHTS}.safetensors.")
    pipeline = folder.parent if folder.name in _SUBFOLDERS else folder
    return UNetFiles(path.name, weights, _first(folder, (CONFIG,)), _first(pipeline / "scheduler", (SCHEDULER,)))


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _shards(index: Path, name: str) -> tuple[Path, ...]:
    listed = read_json(index.read_bytes(), f"{name}'s {index.name}").get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) and _is_plain(file) for file in listed.values()):
        raise StudentError(f"{name}'s {index.name} lists no shards in its folder: download the file again.")
    shards = tuple(index.with_name(file) for file in sorted(set(listed.values())))
    for shard in shards:
        if not shard.is_file():
            raise StudentError(f"{name} lacks {shard.name}, one of its {len(shards)} files of weights: download it too.")
    return shards


def _is_plain(file: str) -> bool:
    """Whether a shard's name is that of a file in the index's own folder."""
    return Path(file).name == file != "" and file.isprintable() and len(os.fsencode(file)) <= NAME_BYTES


def read_json(text: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``text``; ``what`` names its source.

    Raises:
        UnreadableFile: It isn't one.
    """
    value = parse_json(text, what, "download it again")
    if not isinstance(value, dict):
        raise StudentError(f"{what} holds no JSON object: download it again.")
    return value


# ---------------------------------------------------------------------------------------------------- config


def is_unet(keys: Iterable[str]) -> bool:
    """Whether weights of these names are a U-Net's, or a piece of one, in diffusers' format."""
    names = set(keys)
    return "conv_in.weight" in names and any(key.startswith("down_blocks.0.") for key in names)


def build_skeleton(config: Mapping[str, Any], name: str, weights: int = _USUAL_WEIGHTS) -> nn.Module:
    """The network that ``config`` describes, as diffusers builds it, without memory for its weights, of which there are so many.

    Raises:
        StudentError: It is another class's config, diffusers is not installed or refuses it, or ComfyUI's U-Net can't compute
            such a network.
    """
    kind = config.get("_class_name", _CLASS)
    if kind != _CLASS:
        raise StudentError(f"{name} is of diffusers' class {str(kind)[:60]}; students are U-Nets that draw from text, {_CLASS}.")
    refuse_immodest(config, name)
    # Here and not above: diffusers takes seconds to import, and most people never need it.
    try:
        from diffusers import UNet2DConditionModel
    except (ImportError, RuntimeError) as error:
        raise StudentError(
            f"Reading {name}'s config needs the library diffusers: run 'pip install diffusers' in ComfyUI's Python."
        ) from error
    try:
        with without_memory(weights):
            network = UNet2DConditionModel.from_config(dict(config))
    except Exception as error:  # whatever a wrong value leads to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StudentError(f"{name}'s config is not one that diffusers can build a U-Net from ({reason}).") from error
    _refuse_others(network.config, name)
    return network


def _refuse_others(config: Mapping[str, Any], name: str) -> None:
    for key, supported in _BUILT_IN.items():
        if config.get(key, supported[0]) not in supported:
            raise StudentError(f"{name}'s U-Net has {key} = {config[key]!r}, which ComfyUI's U-Net can't compute "
                               f"(it knows {' and '.join(map(repr, supported))}).")  # fmt: skip
    for block in (*config["down_block_types"], *config["up_block_types"]):
        if block not in _BLOCKS:
            raise StudentError(f"{name}'s U-Net has blocks of the kind {block}, which ComfyUI's U-Net doesn't have.")


def prediction(scheduler: Mapping[str, Any], name: str) -> str | None:
    """What the network predicts by its pipeline's scheduler: "epsilon", "v_prediction", "sample", or None: it says nothing.

    Raises:
        StudentError: Something else.
    """
    kind = scheduler.get("prediction_type")
    if kind is not None and kind not in _PREDICTIONS:
        raise StudentError(f"{name}'s scheduler says that it predicts {kind!r}; known are {', '.join(_PREDICTIONS)}.")
    return kind


def sampling_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's noise levels as ComfyUI's ``sampling_settings``; empty where it names none that ComfyUI knows."""
    settings: dict[str, Any] = {}
    schedule = _BETAS.get(scheduler.get("beta_schedule", ""))
    if schedule and {"beta_start", "beta_end"} <= scheduler.keys():
        settings = {"beta_schedule": schedule, "linear_start": scheduler["beta_start"], "linear_end": scheduler["beta_end"]}
    if scheduler.get("rescale_betas_zero_snr"):
        settings["zsnr"] = True
    return settings


# ------------------------------------------------------------------------------------------------- structure


@dataclass(frozen=True)
class Structure:
    """What ComfyUI must build.

    Attributes:
        unet_config: Arguments of ComfyUI's ``UNetModel``, complete but for dtype and device.
        guidance_width: Width of LCM's guidance embedding (``time_cond_proj_dim``); 0 for a network without.
        size_width: Width of the embedding of each of SDXL's six sizes (``addition_time_embed_dim``).
    """

    unet_config: dict[str, Any]
    guidance_width: int = 0
    size_width: int = 256


def structure(shapes: Shapes, config: Mapping[str, Any] | None, name: str) -> Structure:
    """The structure of a U-Net, by its config where there is one, otherwise by its weights.

    Args:
        shapes: Shapes of the weights under diffusers' names.
        config: What ``config.json`` says.
        name: What to call it in messages.

    Raises:
        StudentError: It is not a whole U-Net, or not one that ComfyUI's U-Net can compute.
    """
    if config is None:
        shape = _Shape(shapes, name)
        return Structure(shape.unet_config() | _usual_heads(shape), shape.guidance_width())
    skeleton: Any = build_skeleton(config, name, max(len(shapes), _USUAL_WEIGHTS))
    shape = _Shape({key: tuple(value.shape) for key, value in skeleton.state_dict().items()}, name)
    full: Mapping[str, Any] = skeleton.config
    unet_config = shape.unet_config() | _heads(skeleton, name)
    if full.get("upcast_attention"):
        unet_config["attn_precision"] = torch.float32
    only_cross = full.get("only_cross_attention", False)
    if only_cross is True:
        raise StudentError(f"{name}'s U-Net has no self-attention at all, which ComfyUI's U-Net can't compute.")
    if only_cross and any(only_cross):
        unet_config["disable_self_attentions"] = list(only_cross)
    return Structure(unet_config, shape.guidance_width(), full.get("addition_time_embed_dim") or 256)


class _Shape:
    """Names and shapes of a U-Net's weights, and what follows from them."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        self.shapes, self.name = shapes, name
        self.prefixes = {key[:i] for key in shapes for i, letter in enumerate(key) if letter == "."}

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self.shapes:
            raise StudentError(f"{self.name} is not a whole U-Net: it has no '{key}'.")
        return tuple(self.shapes[key])

    def count(self, prefix: str) -> int:
        """How many of ``prefix.0``, ``prefix.1``… there are in a row."""
        number = 0
        while f"{prefix}.{number}" in self.prefixes:
            number += 1
        return number

    def depth(self, prefix: str) -> int:
        return self.count(f"{prefix}.transformer_blocks")

    def guidance_width(self) -> int:
        return self.shapes["time_embedding.cond_proj.weight"][1] if "time_embedding.cond_proj" in self.prefixes else 0

    def attention(self) -> str:
        """Where the first attention is.

        Raises:
            StudentError: There is none.
        """
        query = min((key for key in self.shapes if key.endswith(".attn2.to_k.weight")), default=None)
        if query is None:
            raise StudentError(f"{self.name} is a U-Net without cross-attention: only networks that draw from text work here.")
        return query.split(".transformer_blocks.")[0]

    def unet_config(self) -> dict[str, Any]:
        """Arguments of ComfyUI's ``UNetModel``, but for the attention heads."""
        if "class_embedding" in self.prefixes:
            raise StudentError(f"{self.name} is a U-Net with class embeddings, which this node doesn't read.")
        base, inputs = self.shape("conv_in.weight")[:2]
        levels = self.count("down_blocks")
        resnets = [self.count(f"down_blocks.{i}.resnets") for i in range(levels)]
        widths = [self.shape(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
        if any(width % base for width in widths):
            raise StudentError(f"{self.name}'s U-Net has {widths} channels; ComfyUI's has whole multiples of the first.")
        downwards = [(i, j) for i in range(levels) for j in range(resnets[i])]
        upwards = [(i, j) for i in range(levels) for j in range(resnets[-1 - i] + 1)]
        attention = self.attention()
        sizes = "add_embedding" in self.prefixes
        return {
            "image_size": 32, "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False,
            "use_temporal_attention": False, "use_temporal_resblock": False,
            "in_channels": inputs, "out_channels": self.shape("conv_out.weight")[0],
            "model_channels": base, "channel_mult": [width // base for width in widths], "num_res_blocks": resnets,
            "transformer_depth": [self.depth(f"down_blocks.{i}.attentions.{j}") for i, j in downwards],
            "transformer_depth_middle": self.middle(),
            # ComfyUI takes these from the end, the way up being the way down reversed.
            "transformer_depth_output": [self.depth(f"up_blocks.{i}.attentions.{j}") for i, j in reversed(upwards)],
            "context_dim": self.shape(f"{attention}.transformer_blocks.0.attn2.to_k.weight")[1],
            "use_linear_in_transformer": len(self.shape(f"{attention}.proj_in.weight")) == 2,
            "num_classes": "sequential" if sizes else None,
            "adm_in_channels": self.shape("add_embedding.linear_1.weight")[1] if sizes else None,
        }  # fmt: skip

    def middle(self) -> int:
        """Depth of the middle's transformer; -1 for a middle without one, -2 for no middle, as ComfyUI counts."""
        if "mid_block" not in self.prefixes:
            return -2
        return self.depth("mid_block.attentions.0") if "mid_block.attentions" in self.prefixes else -1


def _heads(skeleton: nn.Module, name: str) -> dict[str, Any]:
    """ComfyUI knows one width of a head for the whole network, or one number of heads."""
    attentions: list[Any] = [module for key, module in skeleton.named_modules() if key.endswith(".attn1")]
    numbers = {module.heads for module in attentions}
    widths = {module.to_q.out_features // module.heads for module in attentions}
    if len(widths) == 1:
        return {"num_heads": -1, "num_head_channels": widths.pop()}
    if len(numbers) == 1:
        return {"num_heads": numbers.pop(), "num_head_channels": -1}
    raise StudentError(f"{name}'s U-Net varies both number and width of its attention heads, which ComfyUI's can't.")


def _usual_heads(shape: _Shape) -> dict[str, Any]:
    """By family: SD 1.x has 8 heads at every level; SD 2.x and SDXL have heads of 64 channels."""
    attention = shape.attention()
    if len(shape.shape(f"{attention}.proj_in.weight")) == 4:
        return {"num_heads": 8, "num_head_channels": -1}
    if shape.shape(f"{attention}.proj_in.weight")[0] % 64:
        raise StudentError(f"{shape.name} has no config, and its U-Net is of an unknown family: put its {CONFIG} beside it, "
                           f"both in a folder, the weights as {WEIGHTS}.safetensors.")  # fmt: skip
    return {"num_heads": -1, "num_head_channels": 64}


# -------------------------------------------------------------------------------------------------- guidance


def guidance_embedding(guidance: float, width: int) -> Tensor:
    """LCM's embedding [width] of the guidance scale omega (arXiv 2310.04378, section 4.3; ``w = guidance - 1`` in diffusers).

    The sinusoids are those of diffusers' ``get_guidance_scale_embedding``: 1000 w times frequencies from 1 down to 1e-4.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.tensor(guidance - 1.0) * 1000.0 * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))


class GuidedTimeEmbed(nn.Sequential):
    """ComfyUI's ``time_embed`` with LCM's guidance: what diffusers' ``TimestepEmbedding`` does with a condition.

    The layers keep their names, so LoRAs and saved weights find them; ``cond_proj.weight`` and the embedding ``guidance``
    come beside them, and make the guidance part of the model's state and fingerprint.
    """

    guidance: Tensor

    def __init__(self, time_embed: nn.Sequential, cond_proj: nn.Module, guidance: Tensor) -> None:
        super().__init__(*time_embed)
        self.cond_proj = cond_proj
        self.register_buffer("guidance", guidance)

    def forward(self, t_emb: Tensor) -> Tensor:
        """``t_emb`` [B, channels] to [B, 4 channels]."""
        # A copy, since ComfyUI loads models in inference mode, and a LoRA's training can't keep such tensors for backward.
        hidden = t_emb + self.cond_proj(self.guidance.to(t_emb, copy=True))
        for index in range(len(self) - 1):  # the last is cond_proj
            hidden = self[index](hidden)
        return hidden
