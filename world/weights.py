"""The tiny world's weight files, and the parts of it that need no ComfyUI."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..networks.tiny_autoencoder import TinyAutoencoder
from ..networks.tiny_clip import TinyClip
from ..networks.tiny_text import MAX_TOKENS, TinyTextEncoder, Vocabulary
from ..networks.tiny_unet import TinyUNet
from ..oracles.tiny import TinyWorldOracle

FOLDER = Path(__file__).parent / "weights"
CLIPS_FOLDER = Path(__file__).parent / "clips"  # PromptKD's CLIPs, and pictures of a domain
CRITICS_FOLDER = Path(__file__).parent / "critics"  # made from them
EDM_FOLDER = Path(__file__).parent / "edm"  # pixel-space networks to try Load EDM Network with
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0  # the noise levels that teacher and students were trained between
DEFAULT_STUDENT = "consistency"
GUIDANCE = 2.0  # the classifier-free guidance that the students were distilled with

# PromptKD's CLIPs, as open_clip's configs: heads are 32 wide.
CLIP_SHAPES: dict[str, dict[str, int]] = {
    "large": {"width": 160, "layers": 6, "text_width": 96, "text_layers": 2, "embed": 96},
    "small": {"width": 64, "layers": 3, "text_width": 64, "text_layers": 2, "embed": 64},
}
CLIP_HEAD_WIDTH = 32


def read(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of ``weights/<name>.safetensors``.

    Raises:
        FileNotFoundError: The file is not there; the installation is incomplete.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"The tiny world's weights '{path.name}' are missing; install Apprentice again.")
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def students() -> list[str]:
    """Names of the students that ship, the default first.

    The default is named even where its file is missing: then the node says so when it runs, and the pack still loads.
    """
    names = {path.stem.removeprefix("student_") for path in FOLDER.glob("student_*.safetensors")}
    return sorted(names | {DEFAULT_STUDENT}, key=lambda name: (name != DEFAULT_STUDENT, name))


def _float(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() for key, value in tensors.items()}


@lru_cache(maxsize=2)
def load_oracle(name: str) -> TinyWorldOracle:
    """The CLIP that gates (``oracle``) or the one that only judges results (``judge``)."""
    tensors, metadata = read(name)
    words = Vocabulary(json.loads(metadata["words"]))
    network = TinyClip(len(words), **json.loads(metadata["shape"]))
    network.load_state_dict(_float(tensors))
    return TinyWorldOracle(network.train(False).requires_grad_(False), words, f"tiny world {name}")


def clip_config(size: str, words: int) -> dict[str, Any]:
    """open_clip's config of PromptKD's ``large`` or ``small`` CLIP: 64x64 pictures and ``words`` token ids."""
    shape = CLIP_SHAPES[size]
    vision = {
        "image_size": 64, "patch_size": 8, "width": shape["width"], "layers": shape["layers"], "head_width": CLIP_HEAD_WIDTH,
    }  # fmt: skip
    text = {
        "context_length": MAX_TOKENS, "vocab_size": words, "width": shape["text_width"],
        "heads": shape["text_width"] // CLIP_HEAD_WIDTH, "layers": shape["text_layers"],
    }  # fmt: skip
    return {"embed_dim": shape["embed"], "vision_cfg": vision, "text_cfg": text}


def make_clip(size: str, words: int) -> Any:
    """That CLIP, untrained."""
    import open_clip

    return open_clip.CLIP(**clip_config(size, words))


def load_text() -> tuple[TinyTextEncoder, Vocabulary]:
    """Text encoder and vocabulary as plain torch."""
    tensors, metadata = read("text")
    words = Vocabulary(json.loads(metadata["words"]))
    encoder = TinyTextEncoder(len(words))
    encoder.load_state_dict(_float(tensors))
    return encoder.train(False).requires_grad_(False), words


def load_unet(name: str) -> TinyUNet:
    """A U-Net (``teacher``, ``student_consistency``) as plain torch."""
    unet = TinyUNet()
    unet.load_state_dict(_float(read(name)[0]))
    return unet.train(False).requires_grad_(False)


def load_autoencoder() -> TinyAutoencoder:
    """The autoencoder as plain torch."""
    model = TinyAutoencoder()
    model.load_state_dict(_float(read("autoencoder")[0]))
    return model.train(False).requires_grad_(False)


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """bfloat16 copies of matrices and kernels; vectors stay float32, where it costs nothing."""
    return {k: v.to(torch.bfloat16) if v.ndim > 1 else v.float() for k, v in tensors.items()}
