"""Which noise a picture starts from, chosen by what the student makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge.drafts import draw_drafts
from ..bridge.drawing import Drawing
from ..bridge.latents import fit_channels
from ..bridge.noise import batch_noise
from ..bridge.pixels import as_rgb, require_tensor, to_pixels
from ..bridge.progress import show_text, shown
from ..bridge.scoring import score
from ..oracles.base import Oracle as OracleBase
from ..oracles.base import one_prompt_each, remarks
from ..training.control import tilted_choice, tilted_weights
from . import types
from .types import CATEGORY, Oracle


@dataclass(frozen=True)
class ChosenNoise:
    """A NOISE, as SamplerCustomAdvanced takes it: this noise for this batch, and a seed for what is drawn between steps."""

    seed: int
    noise: Tensor

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """The noise, like ``latent["samples"]``.

        Raises:
            ValueError: It was chosen for another batch.
        """
        asked, have = tuple(latent["samples"].shape), tuple(self.noise.shape)
        if asked != have:
            raise ValueError(
                f"Tilted Start chose noise of the shape {have}, and this sampler draws {asked}: connect the same empty latent to "
                "both, and use a model of the same family."
            )
        return self.noise


class ApprenticeTiltedStart(io.ComfyNode):
    """The initial law, tuned: each picture starts from the noise that promises most, but not always."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeTiltedStart",
            display_name="Tilted Start",
            category=CATEGORY,
            description="Drafts every picture from several noises with the fast student, and picks one by the oracle's score. "
            "From the same noise the teacher draws much the same picture, so it starts where something good is to be expected.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="What drafts: the student. One step says most of what a noise will become."),
                io.Conditioning.Input("positive", tooltip="What to draw, encoded by the student's CLIP."),
                io.Conditioning.Input("negative", tooltip="What to avoid; without effect at CFG 1."),
                io.Latent.Input("latent_image", tooltip="The empty latent that SamplerCustomAdvanced gets too."),
                io.Vae.Input("vae", tooltip="Decodes the drafts."),
                Oracle.Input("oracle", tooltip="Who judges the drafts."),
                io.String.Input(
                    "prompt", multiline=True, default="", tooltip="What the pictures should show: one for all, or a list."
                ),
                io.Int.Input(
                    "candidates", default=8, min=2, max=1024, tooltip="Noises for each picture; each costs a draft and a score."
                ),
                io.Float.Input(
                    "alpha",
                    default=1.0,
                    min=1e-6,
                    max=1e6,
                    step=0.1,
                    round=1e-6,
                    tooltip="How much is left to chance, in units of the score: noises are picked in proportion to exp(score / "
                    "alpha). Near 0 the best always wins; large numbers pick blindly.",
                ),  # fmt: skip
                types.seed("Decides the candidates and the choice. Candidate k is the noise of seed + k."),
                types.preset(),
                io.Int.Input(
                    "steps",
                    default=1,
                    min=0,
                    max=100,
                    tooltip="Steps of a draft; 0 takes the number the student's authors recommend.",
                ),
                types.cfg("cfg", 1.0, "student"),
                types.sampler_name(optional=True),
                types.scheduler(optional=True),
            ],
            outputs=[
                io.Noise.Output("noise", display_name="noise", tooltip="For SamplerCustomAdvanced, in place of RandomNoise."),
                io.String.Output("report", display_name="report", tooltip="Each picture's candidates and choice."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, preset: Any = None, sampler_name: Any = None, scheduler: Any = None, input_types: Any = None
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        given = {"preset": preset, "sampler_name": sampler_name, "scheduler": scheduler}
        values = {name: value[0] if isinstance(value, list) else value for name, value in given.items()}
        return types.check_inputs(cls, input_types, **values)

    @classmethod
    def execute(
        cls, model: list[Any], positive: list[Any], negative: list[Any], latent_image: list[dict[str, Any]], vae: list[Any],
        oracle: list[OracleBase], prompt: list[str], candidates: list[int], alpha: list[float], seed: list[int],
        preset: list[str], steps: list[int], cfg: list[float], sampler_name: list[str] | None = None,
        scheduler: list[str] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        require_tensor(latent_image[0])
        latent = fit_channels(model[0], latent_image[0])
        prompts = one_prompt_each(prompt, len(latent["samples"]))
        seeds = [(seed[0] + k) % 2**64 for k in range(candidates[0])]
        ways = ((sampler_name or ["dpmpp_2m"])[0], (scheduler or ["karras"])[0])
        scores, remark = [], ""
        for number, one in enumerate(seeds):
            show_text(f"candidate {number + 1} of {len(seeds)}")
            drawing = Drawing(steps[0], cfg[0], *ways, one)
            drafts = draw_drafts(model[0], positive[0], negative[0], latent, preset[0], drawing)
            pictures = to_pixels(vae[0], drafts["samples"])
            scores.append(score(oracle[0], pictures, prompts))
            remark = remark or remarks(oracle[0], as_rgb([pictures]), prompts)
        promised = torch.tensor(scores, dtype=torch.float64).T
        picked = tilted_choice(promised, alpha[0], torch.Generator().manual_seed(seed[0])).tolist()
        whole = {k: batch_noise(latent, seeds[k]) for k in set(picked)}
        noises = torch.stack([whole[k][i] for i, k in enumerate(picked)])
        report = f"{promised_in_words(promised, picked, seeds, alpha[0])} {remark}".strip()
        return io.NodeOutput(ChosenNoise(seed[0], noises), report, ui=shown(report.splitlines()[-1]))


def promised_in_words(promised: Tensor, picked: list[int], seeds: list[int], alpha: float) -> str:
    """A table for people, and what was gained by the drafts."""
    lines = ["| picture | seed | its draft's score | mean of all | best | candidates that count |", "| ---: " * 6 + "|"]
    weights = tilted_weights(promised, alpha)
    best = promised.nan_to_num(nan=-torch.inf).amax(1)
    for i, (row, k) in enumerate(zip(promised, picked, strict=True)):
        effective = 1 / float(weights[i].square().sum())
        lines.append(f"| {i} | {seeds[k]} | {row[k]:.4g} | {row.nanmean():.4g} | {best[i]:.4g} | {effective:.1f} of {len(row)} |")
    chosen = torch.stack([row[k] for row, k in zip(promised, picked, strict=True)])
    lines += ["", f"The chosen drafts score {chosen.nanmean():.4g} on average, all candidates {promised.nanmean():.4g}."]
    if broken := int(promised.isnan().sum()):
        lines[-1] += f" {broken} of {promised.numel()} drafts have no score (NaN) and were passed over."
    return "\n".join(lines)
