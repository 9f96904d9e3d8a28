"""CLIP towers built to fit given weights: open_clip's and transformers' layouts, sizes read off the tensors.

The libraries do the networks; what is here only tells them how large to make them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..files import UnreadableFile, reading
from ..networks.limits import build_to_fit, refuse_hollow

Weights = Mapping[str, Tensor]

_MADE = ("position_ids", "attn_mask")


def load_exactly(make: Callable[[], nn.Module], weights: Weights, what: str) -> Any:
    """The network that ``make`` makes with ``weights``, frozen, in evaluation mode; it is made only if they fit it.

    Raises:
        UnreadableFile: A weight is missing or of another shape, so the network would be partly random; or the file has
            weights that the network has no place for; or no such network can be built.
    """
    with reading(what, "choose another file or oracle"):
        refuse_hollow(weights, what)
        network = build_to_fit(make, weights, lambda sketch: _compare(sketch, weights, what))
        state = network.state_dict()
        given = {key: value.to(state[key].dtype) for key, value in weights.items() if key in state}
        network.load_state_dict(given, strict=False)
        return network.train(False).requires_grad_(False)


def _compare(network: nn.Module, weights: Weights, what: str) -> None:
    state = network.state_dict()
    # Buffers that old versions of the libraries saved; the network makes them itself.
    given = {key: value for key, value in weights.items() if key in state or not key.endswith(_MADE)}
    missing = sorted(state.keys() - given.keys() - {key for key in state if key.endswith(_MADE)})
    unknown = sorted(given.keys() - state.keys())
    wrong = sorted(key for key in state.keys() & given.keys() if state[key].shape != given[key].shape)
    for keys, why in ((missing, "lack"), (unknown, "hold, without a place for it,"), (wrong, "have in another shape")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UnreadableFile(
                f"These are not the weights of {what}: they {why} '{keys[0]}'{more}; choose another file or oracle."
            )


def below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with ``prefix``, without it."""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def count_layers(weights: Weights, pattern: str) -> int:
    """How many different numbers stand at the group of ``pattern`` in the names."""
    return len({match[1] for key in weights if (match := re.search(pattern, key))})


def heads_of(width: int) -> int:
    """Attention heads of a published CLIP tower of that width: 64 channels a head, 80 for ViT-H; 16 for test sizes."""
    if width == 1280:
        return 16
    return width // 64 if width >= 128 else max(width // 16, 1)


# ------------------------------------------------------------------------------- what a file may say of its network

_PARTS = frozenset({"vision_cfg", "text_cfg", "vision", "text", "vision_config", "text_config"})
_SIZES = frozenset({
    "embed_dim", "image_size", "patch_size", "width", "layers", "heads", "head_width", "mlp_ratio", "output_dim",
    "input_resolution", "context_length", "vocab_size", "pad_id", "eos_id", "quick_gelu", "no_ln_pre", "final_ln_after_pool",
    "no_causal_mask", "embed_cls", "output_tokens", "attentional_pool", "attn_pooler_queries", "attn_pooler_heads",
    "ls_init_value", "proj_bias", "init_logit_bias", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_channels", "max_position_embeddings", "projection_dim", "eos_token_id", "bos_token_id",
    "pad_token_id", "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor", "logit_scale_init_value",
})  # fmt: skip
_WORDS = {
    "pool_type": ("tok", "avg", "argmax", "first", "last", "none"), "pos_embed_type": ("learnable", "sin_cos_2d"),
    "proj_type": ("linear", "none"), "hidden_act": ("gelu", "quick_gelu"),
}  # fmt: skip


def plain_sizes(config: Any, what: str) -> dict[str, Any]:
    """``config`` if it holds numbers under the names of sizes and nothing else.

    Libraries fetch or open what a configuration names (a text tower of the hub, a pretrained picture tower, a folder), and a
    file's configuration is a stranger's.

    Raises:
        ValueError: It holds more.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{what} says no sizes of its network but a {type(config).__name__}; choose another file.")
    for key, value in config.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if key in _PARTS:
            plain_sizes(value, what)
        elif value not in _WORDS[key] if key in _WORDS else not (
            key in _SIZES and all(item is None or type(item) in (bool, int, float) for item in numbers)
        ):
            raise ValueError(f"{what} says '{key}' of its network, which is no size, so it isn't loaded; choose another file.")
    return dict(config)


def _refuse_hub(model: str, text: Mapping[str, Any]) -> None:
    """Texts of some of open_clip's models are read by what lies on Hugging Face's hub, which nothing here asks."""
    if named := text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise ValueError(
            f"open_clip's {model} reads texts with '{named}' from Hugging Face's hub, which Apprentice doesn't ask for anything; "
            f"choose a model with a text tower of its own, such as ViT-L-14 or ViT-H-14."
        )


# ------------------------------------------------------------------------------------------------- open_clip


def open_clip_config(weights: Weights, head_width: int | None = None) -> dict[str, Any]:
    """``embed_dim``, ``vision_cfg`` and ``text_cfg`` of an open_clip CLIP (ViT or ResNet) that fits ``weights``.

    ``head_width`` are the channels of an attention head where it isn't the published rule of ``heads_of``; it can't be read off.
    """
    text_width = weights["ln_final.weight"].shape[0]
    text = {
        "context_length": weights["positional_embedding"].shape[0],
        "vocab_size": weights["token_embedding.weight"].shape[0],
        "width": text_width,
        "heads": text_width // head_width if head_width else heads_of(text_width),
        "layers": count_layers(weights, r"^transformer\.resblocks\.(\d+)\."),
    }
    visual = below(weights, "visual.")
    if "layer1.0.conv1.weight" in visual:
        side = round((visual["attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        vision: dict[str, Any] = {
            "layers": [count_layers(visual, rf"^layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)],
            "width": visual["layer1.0.conv1.weight"].shape[0],
            "image_size": side * 32,
            "patch_size": None,
        }
    else:
        vision = vit_config(visual)
        vision["head_width"] = head_width or vision["width"] // vision["heads"]
        vision.pop("heads")
        vision.pop("output_dim")
    return {"embed_dim": weights["text_projection"].shape[1], "vision_cfg": vision, "text_cfg": text}


def vit_config(visual: Weights) -> dict[str, Any]:
    """Sizes of an open_clip ``VisionTransformer``."""
    width, _, patch, _ = visual["conv1.weight"].shape
    side = round((visual["positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "layers": count_layers(visual, r"^transformer\.resblocks\.(\d+)\."),
        "heads": heads_of(width),
        "mlp_ratio": visual["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        "output_dim": visual["proj"].shape[1],
    }


def build_open_clip(
    weights: Weights, what: str, model: str | None = None, config: dict[str, Any] | None = None, quick_gelu: bool = False
) -> Any:
    """An open_clip CLIP with ``weights``.

    Args:
        model: A name that open_clip knows ("ViT-H-14"); without it, ``config``, else the sizes are read off the weights.
        config: ``embed_dim``, ``vision_cfg``, ``text_cfg`` as in open_clip's model configs.
        quick_gelu: OpenAI's activation; their weights need it. Names that end in "-quickgelu" imply it.

    Raises:
        ValueError: open_clip has no such model, or the weights don't fit it.
    """
    import open_clip

    if model is not None:
        if model not in open_clip.list_models():
            raise ValueError(f"open_clip has no model '{model}'; choose one of its names, such as ViT-L-14 or ViT-H-14.")
        _refuse_hub(model, open_clip.get_model_config(model)["text_cfg"])

        def make() -> Any:
            device = torch.get_default_device()
            return open_clip.create_model(model, pretrained=None, device=device, force_quick_gelu=quick_gelu)

        return load_exactly(make, weights, f"{what} with {model}")
    given = plain_sizes(config, what) if config else open_clip_config(weights)
    sizes = {key: value for key, value in given.items() if key != "quick_gelu"}
    quick = quick_gelu or bool((config or {}).get("quick_gelu", False))
    return load_exactly(lambda: open_clip.CLIP(**sizes, quick_gelu=quick), weights, what)


def build_vit(visual: Weights, what: str, config: dict[str, Any] | None = None, quick_gelu: bool = True) -> Any:
    """The picture tower alone: pictures [B, 3, S, S] to features [B, output_dim].

    ``config`` may be OpenAI's (``input_resolution, patch_size, width, layers, heads, output_dim``).
    """
    from open_clip.transformer import QuickGELU, VisionTransformer

    sizes = vit_config(visual)
    for key, value in plain_sizes(config or {}, what).items():
        sizes["image_size" if key == "input_resolution" else key] = value
    activation = QuickGELU if quick_gelu else nn.GELU
    return load_exactly(lambda: VisionTransformer(**sizes, act_layer=activation), visual, what)


# ---------------------------------------------------------------------------------------------- transformers


def hf_clip_config(weights: Weights) -> dict[str, Any]:
    """``text_config``, ``vision_config`` and ``projection_dim`` of a transformers CLIP that fits ``weights``."""
    text, vision = below(weights, "text_model."), below(weights, "vision_model.")
    text_width, vision_width = text["final_layer_norm.weight"].shape[0], vision["embeddings.class_embedding"].shape[0]
    patch = vision["embeddings.patch_embedding.weight"].shape[-1]
    side = round((vision["embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5)
    return {
        "projection_dim": weights["visual_projection.weight"].shape[0],
        "text_config": {
            "vocab_size": text["embeddings.token_embedding.weight"].shape[0],
            "hidden_size": text_width,
            "intermediate_size": text["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": count_layers(text, r"^encoder\.layers\.(\d+)\."),
            "num_attention_heads": heads_of(text_width),
            "max_position_embeddings": text["embeddings.position_embedding.weight"].shape[0],
        },
        "vision_config": {
            "hidden_size": vision_width,
            "intermediate_size": vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": count_layers(vision, r"^encoder\.layers\.(\d+)\."),
            "num_attention_heads": heads_of(vision_width),
            "patch_size": patch,
            "image_size": side * patch,
        },
    }


def build_hf_clip(weights: Weights, what: str, config: dict[str, Any] | None = None, activation: str = "gelu") -> Any:
    """A transformers ``CLIPModel`` with ``weights``; ``config`` overrides sizes (keys ``text``/``text_config`` and so on)."""
    from transformers import CLIPConfig, CLIPModel

    sizes = hf_clip_config(weights)
    given = plain_sizes(config or {}, what)
    for part in ("text", "vision"):
        tower = sizes[f"{part}_config"]
        tower |= {"hidden_act": activation, "eos_token_id": 49407} if part == "text" else {"hidden_act": activation}
        tower |= given.get(f"{part}_config") or given.get(part) or {}
        tower["projection_dim"] = sizes["projection_dim"]
    return load_exactly(lambda: CLIPModel(CLIPConfig(**sizes)), weights, what)


def is_hf_clip(weights: Weights) -> bool:
    """Whether a CLIP is in transformers' layout."""
    return "vision_model.embeddings.class_embedding" in weights


# transformers' names within a layer -> open_clip's.
_LAYER_NAMES = (
    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)  # fmt: skip


def _layers_to_open_clip(tower: Weights) -> dict[str, Tensor]:
    """The transformer's layers; open_clip keeps query, key and value in one matrix."""
    converted = {}
    for i in range(count_layers(tower, r"^encoder\.layers\.(\d+)\.")):
        source, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            parts = [tower[f"{source}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            converted[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            converted |= {f"{block}.{ours}.{kind}": tower[f"{source}.{theirs}.{kind}"] for theirs, ours in _LAYER_NAMES}
    return converted


def hf_vision_to_open_clip(weights: Weights) -> dict[str, Tensor]:
    """transformers' CLIP picture tower (``vision_model.*``, ``visual_projection``) under open_clip's ``visual.*`` names."""
    vision = below(weights, "vision_model.")
    converted = {
        "class_embedding": vision["embeddings.class_embedding"],
        "positional_embedding": vision["embeddings.position_embedding.weight"],
        "conv1.weight": vision["embeddings.patch_embedding.weight"],
        "proj": weights["visual_projection.weight"].T.contiguous(),
        **_layers_to_open_clip(vision),
    }
    for kind in ("weight", "bias"):
        converted[f"ln_pre.{kind}"] = vision[f"pre_layrnorm.{kind}"]  # transformers' own spelling
        converted[f"ln_post.{kind}"] = vision[f"post_layernorm.{kind}"]
    return {f"visual.{key}": value for key, value in converted.items()}


def hf_to_open_clip(weights: Weights) -> dict[str, Tensor]:
    """A whole transformers CLIP under open_clip's names."""
    text = below(weights, "text_model.")
    return {
        **hf_vision_to_open_clip(weights),
        **_layers_to_open_clip(text),
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T.contiguous(),
        "logit_scale": weights["logit_scale"],
    }
