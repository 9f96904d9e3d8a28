"""Training of every family at tiny size, by the nodes themselves: SiD Distill and Reward Finetune, on random networks.

Nothing is drawn well after two iterations of random weights. What is checked is that gradients reach every LoRA, that the
file is one that the stock loader takes whole, and that the MODEL handed out draws what the file draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..oracles.base import Oracle
from . import tiny_families as tiny

LINES = ("a castle", "a long road by the sea")  # of different lengths
SID: dict[str, Any] = {
    "prompts": "bundled", "text": "\n".join(LINES), "method": "LoRA", "rank": 2, "pictures": 4, "batch_size": 2, "at_once": 0,
    "steps": 1, "alpha": 1.0, "kappa1": 1.5, "kappa2": 1.5, "kappa4": 1.5, "generator_rate": 1e-3, "fake_rate": 1e-3,
    "ema_half_life": 8.0, "precision": "fp32", "gradient_checkpointing": True, "first_seed": 1, "save_every": 100,
}  # fmt: skip
REWARD: dict[str, Any] = {
    "prompts": "bundled", "text": "\n".join(LINES), "max_prompts": 2, "algorithm": "adjoint_matching", "divergence": "kl",
    "strength": "alpha", "value": 0.1, "rank": 2, "updates": 1, "batch_size": 2, "at_once": 8, "steps": 4,
    "scheduler": "simple", "regressed_steps": 2, "learning_rate": 1e-3, "base_draws": 8, "rounds": 1, "precision": "fp32",
    "gradient_checkpointing": True, "first_seed": 1, "save_every": 100,
}  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """Stands where CLIP does: a text of the family with a token a letter."""

    family: str

    def tokenize(self, line: str) -> str:
        """The line."""
        return line

    def encode_from_tokens_scheduled(self, line: str) -> list[list[Any]]:
        """A CONDITIONING."""
        return tiny.text(self.family, 1, len(line) + 1, seed=len(line))


class Red(Oracle):
    """How red a picture is: an oracle with a gradient and next to no weights."""

    name, differentiable, reads_prompts = "red", True, False

    def __init__(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.network = nn.Linear(3, 1, bias=False).requires_grad_(False)
            self.network.weight.copy_(torch.tensor([[1.0, -0.5, -0.5]]))

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B]."""
        return self.network(images).flatten(1).mean(1)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Stands where a VAE's network does: latents' channels to colours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.colours = nn.Parameter(torch.linspace(-0.5, 0.5, 3 * channels).view(3, channels))

    def decode(self, latents: Tensor) -> Tensor:
        """Colours of latents [B, C, ...]."""
        return torch.einsum("dc,bc...->bd...", self.colours, latents).sigmoid()


def vae(name: str) -> Any:
    """What training by an oracle asks of a VAE; the stock ones have tests of their own."""
    family = tiny.FAMILIES[name]
    network = Decoder(family.channels)
    return SimpleNamespace(
        first_stage_model=network, process_output=lambda x: x, latent_dim=3 if family.video else 2,
        decode=lambda latents: network.decode(latents).movedim(1, -1),
    )  # fmt: skip


@contextmanager
def folders() -> Iterator[Path]:
    """ComfyUI's output folder and those of what is trained, empty and for a while."""
    import folder_paths

    kinds, output = ("loras", "diffusion_models"), folder_paths.get_output_directory()
    before = {kind: folder_paths.folder_names_and_paths[kind] for kind in kinds}
    with TemporaryDirectory() as temporary:
        try:
            folder_paths.set_output_directory(temporary)
            for kind in kinds:
                (Path(temporary) / kind).mkdir()
                folder_paths.folder_names_and_paths[kind] = ([str(Path(temporary) / kind)], before[kind][1])
            yield Path(temporary)
        finally:
            folder_paths.set_output_directory(output)
            folder_paths.folder_names_and_paths.update(before)


def _side(model: Any, family: str) -> int:
    """In pixels, of the smallest pictures that the family draws."""
    from ..bridge.latents import pixels_per_latent

    return tiny.FAMILIES[family].side * pixels_per_latent(model.get_model_object("latent_format"))


def distil(model: Any, family: str, name: str = "student", **changes: Any) -> Any:
    """What SiD Distill answers: MODEL, curve, samples, file."""
    from ..nodes.distill import ApprenticeSiDDistill

    side = _side(model, family)
    with torch.inference_mode():
        return ApprenticeSiDDistill.execute(model, Encoder(family), name=name, width=side, height=side, **{**SID, **changes})


def tune(model: Any, family: str, name: str = "tuned", **changes: Any) -> Any:
    """What Reward Finetune answers: MODEL, run, file, report."""
    from ..nodes.finetune import ApprenticeRewardFinetune

    side = _side(model, family)
    with torch.inference_mode():
        return ApprenticeRewardFinetune.execute(
            model, Encoder(family), vae(family), Red(), name=name, width=side, height=side, **{**REWARD, **changes}
        )


def drawn(model: Any, family: str) -> Tensor:
    """Latents of two pictures by the stock sampler."""
    return tiny.stock(model, tiny.empty(family, 2), tiny.text(family, 2), tiny.text(family, 1, seed=9), seed=3)


def lora_wrong(model: Any, student: Any, family: str, file: Path) -> str:
    """Why a LoRA of ``model`` is not what it should be; "" if it is."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    tensors = comfy.utils.load_torch_file(str(file))
    layers = sum(key.endswith(".alpha") for key in tensors)
    taken = comfy.lora.load_lora(dict(tensors), comfy.lora.model_lora_keys_unet(model.model, {}))
    if len(taken) != layers or len(tensors) != 3 * layers:
        return f"the stock loader takes {len(taken)} of {layers} layers"
    stuck = sum(not bool(value.any()) for key, value in tensors.items() if "lora_up" in key)
    if stuck > layers // 4:
        return f"no gradient reaches {stuck} of {layers} layers"
    loaded = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]
    out, again = drawn(student, family), drawn(loaded, family)
    if not bool(out.isfinite().all()) or torch.equal(out, drawn(model, family)):
        return "the LoRA changes nothing, or everything to NaN"
    return "" if torch.equal(out, again) else "the file draws something else than the MODEL"
