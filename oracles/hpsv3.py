"""HPSv3 (arXiv 2508.03789): Qwen2-VL-7B reads picture and prompt, and a small head says how good and how sure.

Only for machines with the memory: 17 GB of weights in bfloat16. Needs transformers 4.52 or newer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import read_json, reading
from .base import Oracle
from .preprocess import normalise, resize_pil
from .towers import Weights, below, count_layers, load_exactly

PATCH, MERGE, FRAMES = 14, 2, 2  # pixels a patch; patches a token, along each side; a still picture counts as two frames
PIXELS = 256 * 28 * 28  # every picture is brought to about this size
REWARD, PICTURE = "<|Reward|>", "<|image_pad|>"
# The authors' question, word for word, since the weights were trained on it (see data/README.md).
QUESTION = Path(__file__).parent / "data" / "hpsv3_question.txt"
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>{pictures}<|vision_end|>"
    "{question}<|im_end|>\n<|im_start|>assistant\n"
)


def smart_size(height: int, width: int, pixels: int = PIXELS, factor: int = PATCH * MERGE) -> tuple[int, int]:
    """Qwen2-VL's ``smart_resize``: multiples of ``factor``, about ``pixels`` in all, the sides' ratio nearly kept."""
    h, w = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    scale = math.sqrt(height * width / pixels)
    if h * w > pixels:
        return max(factor, math.floor(height / scale / factor) * factor), max(factor, math.floor(width / scale / factor) * factor)
    if h * w < pixels:
        return math.ceil(height / scale / factor) * factor, math.ceil(width / scale / factor) * factor
    return h, w


def patches(image: Tensor) -> tuple[Tensor, Tensor]:
    """Qwen2-VL's view of one picture [1, H, W, 3] in 0..1: patches [N, 3 * 2 * 14 * 14], and (frames, rows, columns) [1, 3]."""
    height, width = smart_size(*image.shape[1:3])
    x = normalise(resize_pil(image, height, width)).repeat(FRAMES, 1, 1, 1)
    rows, columns = height // PATCH, width // PATCH
    x = x.reshape(FRAMES, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    x = x.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, 3 * FRAMES * PATCH * PATCH)
    return x, torch.tensor([[1, rows, columns]], device=image.device)


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    with reading(Path(path).name, "pull it again with 'apprentice models pull hpsv3'"):
        tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens([REWARD])
    return tokenizer


class HPSv3Network(nn.Module):
    """Qwen2-VL without its language head, and the ranking head (hidden, 1024, 16, 2) in float32."""

    def __init__(self, config: Mapping[str, Any], head: Weights) -> None:
        super().__init__()
        from transformers import Qwen2VLConfig, Qwen2VLModel

        self.model = Qwen2VLModel(Qwen2VLConfig(**config))
        sizes = [head[f"{i}.weight"].shape for i in (0, 3, 5)]
        self.rm_head = nn.Sequential(
            nn.Linear(*sizes[0][::-1]), nn.ReLU(), nn.Dropout(0.05), nn.Linear(*sizes[1][::-1]), nn.ReLU(),
            nn.Linear(*sizes[2][::-1]),
        )  # fmt: skip

    def forward(self, ids: Tensor, pixels: Tensor, grid: Tensor, reward: int) -> Tensor:
        """(mean, log-variance-like sigma) [2] of one question ``ids`` [1, T], read out at the token ``reward``.

        Positions simply count, as in the authors' code, which calls the language model without Qwen's positions in space.
        """
        place = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
        hidden = self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=place, pixel_values=pixels, image_grid_thw=grid,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        return self.rm_head(hidden[0, ids[0] == reward][0].float())


def to_transformers(weights: Weights) -> dict[str, Tensor]:
    """The checkpoint's names, of transformers before 4.52, under those of today's ``Qwen2VLModel``."""
    converted = {}
    for key, value in weights.items():
        key = key.removeprefix("model.") if key.startswith(("model.language_model.", "model.visual.")) else key
        if key.startswith("model."):
            key = "language_model." + key.removeprefix("model.")
        if not key.startswith(("lm_head.", "rm_head.")):
            converted[f"model.{key}"] = value
        elif key.startswith("rm_head."):
            converted[key] = value.float()
    return converted


def qwen_config(weights: Weights) -> dict[str, Any]:
    """Qwen2-VL-7B's configuration, with the sizes of ``weights``."""
    text = below(weights, "model.language_model.")
    vocabulary, hidden = text["embed_tokens.weight"].shape
    return {
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "text_config": {
            "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": count_layers(text, r"^layers\.(\d+)\."),
            "intermediate_size": text["layers.0.mlp.gate_proj.weight"].shape[0],
            "num_attention_heads": hidden // 128, "num_key_value_heads": text["layers.0.self_attn.k_proj.weight"].shape[0] // 128,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "hidden_size": hidden, "embed_dim": weights["model.visual.patch_embed.proj.weight"].shape[0],
            "depth": count_layers(weights, r"^model\.visual\.blocks\.(\d+)\."), "num_heads": 16,
        },
    }  # fmt: skip


class HumanPreferenceScore3(Oracle):
    """The mean that HPSv3 predicts; about 0 is poor, 10 and more is very good. ``uncertainty`` gives its sigma.

    Args:
        weights: ``HPSv3.safetensors``.
        tokenizer: Qwen2-VL's ``tokenizer.json``; beside the weights under ``HPSv3_tokenizer.json`` when pulled.
        config: Qwen2-VL's ``config.json`` (a path or its contents), where it isn't the 7B's.

    Raises:
        ValueError: The machine lacks the memory, or the weights don't fit.
    """

    differentiable = True
    comparable_across_prompts = True
    batch = 1

    def __init__(
        self,
        weights: Weights,
        tokenizer: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        name: str = "HPSv3",
    ) -> None:
        if tokenizer is None:
            raise ValueError(f"{name} needs Qwen2-VL's tokenizer.json; pull it with 'apprentice models pull hpsv3'.")
        require_memory(weights, name)
        self.name, self.tokenizer = name, str(tokenizer)
        named = to_transformers(weights)
        sizes = read_json(Path(config)) if isinstance(config, (str, os.PathLike)) else config
        kind = next(iter(named.values())).dtype

        def make() -> nn.Module:
            network = HPSv3Network(sizes or qwen_config(named), below(named, "rm_head."))
            torch.nn.Module.to(network.model, kind if kind in (torch.bfloat16, torch.float16) else torch.float32)
            return network

        self.network: Any = load_exactly(make, named, name)

    def predict(self, image: Tensor, prompt: str) -> Tensor:
        """(mean, sigma) [2] of one picture [1, H, W, 3] in 0..1."""
        pixels, grid = patches(image)
        ids = self.question(prompt, pixels.shape[0] // MERGE**2).to(image.device)
        return self.network(ids, pixels.to(self.dtype), grid, _tokenizer(self.tokenizer).token_to_id(REWARD))

    def question(self, prompt: str, tokens: int) -> Tensor:
        """Token ids [1, T] of the authors' question, with room for a picture of ``tokens`` tokens."""
        asked = QUESTION.read_text(encoding="utf-8").replace("{text_prompt}", prompt)
        text = _CHAT.format(pictures=PICTURE * tokens, question="{question}").replace("{question}", asked)
        return torch.tensor([_tokenizer(self.tokenizer).encode(text, add_special_tokens=False).ids])

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        said = [self.predict(images[i : i + 1], prompt)[0] for i, prompt in enumerate(prompts)]
        return torch.stack(said) if said else images.new_zeros(0)

    def uncertainty(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Its sigma [B] for each picture."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            said = [self.predict(images[i : i + 1].to(device), prompt)[1].cpu() for i, prompt in enumerate(prompts)]
        return torch.stack(said) if said else torch.zeros(0)


def require_memory(weights: Weights, name: str) -> None:
    """Refuse with a sentence, instead of swapping for an hour.

    Raises:
        ValueError: Less memory is free than a second copy of the weights takes.
    """
    import psutil

    needed, free = sum(w.numel() * w.element_size() for w in weights.values()), psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{name} needs {needed / 2**30:.0f} GB of memory and this machine has {free / 2**30:.0f} GB free; choose a smaller "
            f"oracle, such as HPSv2.1 or ImageReward."
        )
