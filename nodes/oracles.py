"""Oracles from files, and what can be done with one besides gating: score, pick the best, combine, compare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge import tiny_world as loader
from ..bridge.latents import latents_of_list, masks_of
from ..bridge.memory import prefers_half
from ..bridge.pixels import as_rgb
from ..bridge.progress import shown
from ..bridge.scoring import score_list, seen_of, uncertainty
from ..charts.comparison import comparison_chart
from ..files import reading
from ..gate.calibration import Calibration as CalibrationData
from ..gate.selection import agreement, best_of, best_together
from ..oracles.base import Oracle as OracleBase
from ..oracles.base import one_prompt_each, remarks
from ..oracles.deferred import Deferred
from ..oracles.ensemble import WEIGHTED, Ensemble, Member
from ..oracles.registry import KINDS, detect, load
from ..oracles.tiny import TinyWorldOracle
from ..precision import warning_of
from ..samplers.presets import AUTO
from ..weights import catalogue
from ..weights.checkpoints import read_weights
from . import folders, types
from .types import CATEGORY, COMBOS, Calibration, Oracle, check_combos

WORLD, WORLD_NAME = "tiny world", "tiny world oracle"
# Where the companions of some oracles lie after ``apprentice models pull``.
_CLIP_L14, _QWEN_TOKENIZER = "clip-vit-large-patch14.safetensors", "HPSv3_tokenizer.json"


def _prompt() -> io.String.Input:
    return io.String.Input(
        "prompt", multiline=True, default="", tooltip="What the pictures should show: one for all, or a list with one a picture."
    )


class ApprenticeLoadOracle(io.ComfyNode):
    """A published preference model from a local file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeLoadOracle",
            display_name="Load Oracle",
            category=CATEGORY,
            description="ImageReward, PickScore, HPSv2, HPSv2.1, HPSv3, the aesthetic predictors, CLIP score or CLIP-IQA, from a "
            "file in models/oracles. Nothing is downloaded: 'apprentice models pull' does that.",
            inputs=[
                io.Combo.Input(
                    "name", options=[WORLD, *folders.oracle_choices()], default=WORLD,
                    tooltip="The built-in oracle, or a file in models/oracles (.safetensors, or .pt and .bin read as data only). "
                    "Those that are not here yet are listed with the command that fetches them.",
                ),  # fmt: skip
                io.Combo.Input(
                    "kind", options=COMBOS["kind"], default=AUTO, optional=True,
                    tooltip="Which oracle the file is. auto tells by its contents; CLIP-IQA must be chosen by hand.",
                ),  # fmt: skip
                io.Combo.Input(
                    "clip", options=[AUTO, *folders.clip_files()], default=AUTO, optional=True,
                    tooltip="For the aesthetic predictors: OpenAI's CLIP ViT-L/14, from models/oracles or models/clip_vision.",
                ),  # fmt: skip
                io.String.Input(
                    "open_clip_model", default="", optional=True,
                    tooltip="For CLIP score and CLIP-IQA: open_clip's name of the architecture, such as ViT-B-16-SigLIP. Empty "
                    "reads it off the file, which works for OpenAI's and LAION's CLIPs.",
                ),  # fmt: skip
                io.Combo.Input(
                    "precision", options=COMBOS["precision"], default=AUTO, optional=True,
                    tooltip="auto is fp16 where ComfyUI would use it, and fp32 on a CPU.",
                ),  # fmt: skip
                io.Boolean.Input(
                    "on_demand", default=False, optional=True,
                    tooltip="Read the file when a picture first needs it, and not before: for a cascade's heavy oracle. Other "
                    "nodes need it at once.",
                ),  # fmt: skip
            ],
            outputs=[Oracle.Output("oracle", display_name="oracle", tooltip="For Judge, Keep Better, Score and the rest.")],
        )

    @classmethod
    def validate_inputs(cls, name: Any = None, kind: Any = None, clip: Any = None, precision: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        if isinstance(name, str) and name != WORLD and (wrong := folders.missing_oracle(name, clip or "")):
            return wrong
        if clip != AUTO and folders.is_missing(clip, folders.ORACLES, "clip_vision"):
            return f"There is no file '{clip}' in models/oracles or models/clip_vision; choose CLIP ViT-L/14."
        return check_combos(kind=kind, precision=precision)

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, **_: Any) -> str:
        """Another file under the same name is another oracle."""
        path = folders.oracle_file(name) if isinstance(name, str) else None
        return folders.stamp_of(path) or str(name)

    @classmethod
    def execute(
        cls, name: str, kind: str = AUTO, clip: str = AUTO, open_clip_model: str = "", precision: str = AUTO,
        on_demand: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        if name == WORLD:
            world = Deferred(WORLD_NAME, TinyWorldOracle, loader.load_world_oracle) if on_demand else loader.load_world_oracle()
            return io.NodeOutput(world)
        path, wrong = folders.oracle_file(name), folders.missing_oracle(name, clip)
        if path is None or wrong:  # a name that came over a wire, or was left out
            raise ValueError(wrong)
        read = partial(_read, path, kind, clip, open_clip_model.strip(), precision)
        if on_demand:
            later = Deferred(*_promised(path, kind), read)
            return io.NodeOutput(later, ui=shown(f"{later.name}, read when a picture needs it"))
        oracle = read()
        slow = warning_of(oracle.network, str(comfy.model_management.get_torch_device()))
        size = sum(p.numel() for p in oracle.network.parameters()) / 1e6
        return io.NodeOutput(oracle, ui=shown(f"{oracle.name}, {size:.0f} M parameters" + (slow and f". {slow}")))


def _promised(path: Path, kind: str) -> tuple[str, type[OracleBase]]:
    """Name and class of the oracle in a file that isn't read: by ``kind``, or by the name that it is published under.

    Raises:
        ValueError: Neither tells.
    """
    known = catalogue.oracle_of(path.name) if kind == AUTO else kind
    if not known:
        raise ValueError(f"What '{path.name}' is can't be told without reading it; choose its kind, or switch on_demand off.")
    return KINDS[known].title, KINDS[known].load_class()


def _read(path: Path, kind: str, clip: str, open_clip_model: str, precision: str) -> OracleBase:
    """The oracle in a file, in the precision that was chosen."""
    oracle = _load(path, kind, clip, open_clip_model)
    with torch.inference_mode(False):  # what is cast in it can't teach any more
        if precision == "fp16" or (precision == AUTO and prefers_half(oracle.network)):
            oracle.fingerprint()  # of the weights as they are in the file
            oracle.network.half()
        elif precision == "fp32":
            oracle.fingerprint()
            oracle.network.float()
    return oracle


def _load(path: Path, kind: str, clip: str, open_clip_model: str) -> OracleBase:
    # Outside of inference mode, so that a reward can be differentiated later on.
    with torch.inference_mode(False), reading(path.name, "choose another file or kind"):
        weights = read_weights(path)
        kind = detect(weights, path.name) if kind == AUTO else kind
        options: dict[str, Any] = {}
        if kind.startswith("aesthetic"):
            tower = folders.model_file(_CLIP_L14 if clip == AUTO else clip, folders.ORACLES, "clip_vision")
            options["clip"] = tower
        elif kind == "hpsv3":
            options["tokenizer"] = path.with_name(_QWEN_TOKENIZER) if path.with_name(_QWEN_TOKENIZER).is_file() else None
        elif kind.startswith("clip"):
            options["model"] = open_clip_model or None
            if kind == "clip-score" and "openai" in path.name.lower():
                options["quick_gelu"] = True
        return load(kind, weights, **options)


class ApprenticeScore(io.ComfyNode):
    """Scores without a gate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeScore",
            display_name="Score",
            category=CATEGORY,
            description="What an oracle thinks of every picture: as a list of numbers, and as text.",
            is_input_list=True,
            inputs=[
                Oracle.Input("oracle", tooltip="Who judges."),
                io.Image.Input("images", tooltip="The pictures."),
                _prompt(),
            ],
            outputs=[
                io.Float.Output("scores", display_name="scores", is_output_list=True, tooltip="One number a picture."),
                io.String.Output("text", display_name="text", tooltip="The same as a table."),
                io.Float.Output(
                    "uncertainty", display_name="uncertainty", is_output_list=True,
                    tooltip="Of an ensemble: how far its members disagree. Of HPSv3: its sigma. Of the others: 0.",
                ),  # fmt: skip
            ],
        )

    @classmethod
    def execute(cls, oracle: list[OracleBase], images: list[Tensor], prompt: list[str]) -> io.NodeOutput:
        prompts = one_prompt_each(prompt, sum(map(len, images)))
        scores = score_list(oracle[0], images, prompts)
        rest = iter(prompts)
        unsure = [value for batch in images for value in uncertainty(oracle[0], batch, [next(rest) for _ in batch])]
        text = score_table(oracle[0].name, scores, prompts, unsure)
        if warning := remarks(oracle[0], as_rgb(images), prompts):
            text += f"\n\n{warning}"
        return io.NodeOutput(scores, text, unsure, ui=shown(_brief(scores, warning)))


def _brief(scores: list[float], warning: str) -> str:
    """The first scores, as there is room for on a node."""
    listed = ", ".join(f"#{i} {score:.3g}" for i, score in enumerate(scores[:8])) + ", …" * (len(scores) > 8)
    return listed + (warning and f". {warning}")


def score_table(name: str, scores: list[float], prompts: list[str], unsure: list[float]) -> str:
    """A Markdown table, a line a picture."""
    doubt = any(unsure)
    lines = [
        f"| picture | {name} |" + (" uncertainty |" if doubt else "") + " prompt |",
        "| --- | ---: |" + (" ---: |" if doubt else "") + " --- |",
    ]
    for i, (value, prompt, width) in enumerate(zip(scores, prompts, unsure, strict=True)):
        middle = f" {width:.3g} |" if doubt else ""
        lines.append(f"| {i} | {value:.4g} |{middle} {' '.join(prompt.split())} |")
    return "\n".join(lines)


class ApprenticeBestOf(io.ComfyNode):
    """The best n of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeBestOf",
            display_name="Best of Batch",
            category=CATEGORY,
            description="Keeps the n pictures that the oracle likes best, with their latents, masks and prompts.",
            is_input_list=True,
            inputs=[
                Oracle.Input("oracle", tooltip="Who judges."),
                io.Image.Input("images", tooltip="The pictures to choose from."),
                _prompt(),
                io.Int.Input("count", default=1, min=1, max=4096, tooltip="How many to keep."),
                io.Boolean.Input(
                    "per_prompt", default=False,
                    tooltip="Keep so many of each prompt, instead of so many in all. Right for oracles whose scores mean nothing "
                    "between prompts, such as PickScore and HPSv2.",
                ),  # fmt: skip
                io.Combo.Input(
                    "order", options=COMBOS["order"], default="best first", tooltip="How the kept pictures are sorted."
                ),
                io.Latent.Input("latents", optional=True, tooltip="Their latents, kept in step."),
                io.Mask.Input("masks", optional=True, tooltip="Their masks, kept in step."),
                types.variety(optional=True),
            ],
            outputs=[
                io.Image.Output("best_images", display_name="IMAGE", tooltip="The best."),
                io.Latent.Output("latent", display_name="LATENT", tooltip="Their latents, where given."),
                io.Mask.Output("best_masks", display_name="MASK", tooltip="Their masks, where given."),
                io.String.Output("prompts", display_name="prompts", is_output_list=True, tooltip="Their prompts."),
                io.Float.Output("scores", display_name="scores", is_output_list=True, tooltip="Their scores."),
                io.Int.Output("indices", display_name="indices", is_output_list=True, tooltip="Their old places, from 0."),
            ],
        )

    @classmethod
    def validate_inputs(cls, order: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return check_combos(order=order[0] if isinstance(order, list) else order)

    @classmethod
    def execute(
        cls, oracle: list[OracleBase], images: list[Tensor], prompt: list[str], count: list[int], per_prompt: list[bool],
        order: list[str], latents: list[dict[str, Any]] | None = None, masks: list[Tensor] | None = None,
        variety: Sequence[float] = (0.0,),
    ) -> io.NodeOutput:  # fmt: skip
        pictures = [picture for batch in images for picture in batch]
        prompts = one_prompt_each(prompt, len(pictures))
        if not per_prompt[0] and not oracle[0].comparable_across_prompts and len(set(prompts)) > 1:
            raise ValueError(
                f"Scores of {oracle[0].name} mean nothing between different prompts, so there is no best of them all; switch "
                f"per_prompt on."
            )
        scores = score_list(oracle[0], images, prompts)
        groups = prompts if per_prompt[0] else None
        if variety[0]:
            seen = seen_of(oracle[0], images, latents)
            rows = best_together(scores, seen, count[0], variety[0], groups)
        else:
            rows = best_of(scores, count[0], groups)
        if order[0] == "batch order":
            rows.sort()
        if len({pictures[row].shape for row in rows}) > 1:
            raise ValueError("The best pictures have different sizes, and one batch holds one size; keep one (count 1).")
        latent = latents_of_list(latents, rows, len(pictures)) if latents else None
        warning = remarks(oracle[0], as_rgb(images), prompts)
        mask = masks_of(masks, rows, len(pictures)) if masks else None
        kept = "kept " + ", ".join(f"#{i} ({scores[i]:.3g})" for i in rows) + (warning and f". {warning}")
        best = torch.stack([pictures[row] for row in rows]) if rows else images[0][:0]
        return io.NodeOutput(best, latent, mask, [prompts[i] for i in rows], [scores[i] for i in rows], rows, ui=shown(kept))


class ApprenticeCombineOracles(io.ComfyNode):
    """Two oracles as one; chain it for more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeCombineOracles",
            display_name="Combine Oracles",
            category=CATEGORY,
            description="Two oracles as one: the weighted mean of their z-scores, or a vote. Each one's scale is that of its own "
            "calibration. Chain it for more than two.",
            inputs=[
                Oracle.Input("oracle_a", tooltip="The one."),
                Calibration.Input("calibration_a", tooltip="Its calibration: makes its scores comparable with the other's."),
                Oracle.Input("oracle_b", tooltip="The other."),
                Calibration.Input("calibration_b", tooltip="Its calibration, on the same student and prompts."),
                io.Float.Input("weight_a", default=1.0, min=0.0, max=1000.0, step=0.05, tooltip="The one's say."),
                io.Float.Input("weight_b", default=1.0, min=0.0, max=1000.0, step=0.05, tooltip="The other's say."),
                io.Combo.Input(
                    "combination", options=COMBOS["combination"], default=WEIGHTED,
                    tooltip="weighted: mean of z-scores, 0 is an average draft. vote: share, 0 to 1, of the oracles for which "
                    "the picture is at least as good as their median draft.",
                ),  # fmt: skip
            ],
            outputs=[Oracle.Output("oracle", display_name="oracle", tooltip="Knows its members' disagreement; see Score.")],
        )

    @classmethod
    def validate_inputs(cls, combination: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return check_combos(combination=combination)

    @classmethod
    def execute(
        cls, oracle_a: OracleBase, calibration_a: CalibrationData, oracle_b: OracleBase, calibration_b: CalibrationData,
        weight_a: float, weight_b: float, combination: str,
    ) -> io.NodeOutput:  # fmt: skip
        members = []
        for oracle, calibration, weight in ((oracle_a, calibration_a, weight_a), (oracle_b, calibration_b, weight_b)):
            calibration.require_oracle(oracle.fingerprint())
            members.append(Member.calibrated(oracle, weight, calibration.scores))
        return io.NodeOutput(Ensemble(members, combination))


class ApprenticeOracleCompare(io.ComfyNode):
    """Where two oracles agree and where not."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeOracleCompare",
            display_name="Compare Oracles",
            category=CATEGORY,
            description="Ranks a batch by two oracles: their rank correlation, every picture at its two scores, and the pictures "
            "they differ on most.",
            is_input_list=True,
            inputs=[
                Oracle.Input("oracle_a", tooltip="The one; along the plot."),
                Oracle.Input("oracle_b", tooltip="The other; up the plot."),
                io.Image.Input("images", tooltip="The pictures."),
                _prompt(),
            ],
            outputs=[
                io.Image.Output("chart", display_name="chart", tooltip="One picture; preview it or save it."),
                io.String.Output("text", display_name="text", tooltip="Correlations and disagreements in words."),
                io.Float.Output("spearman", display_name="spearman", tooltip="Spearman's rank correlation, -1 to 1."),
            ],
        )

    @classmethod
    def execute(
        cls, oracle_a: list[OracleBase], oracle_b: list[OracleBase], images: list[Tensor], prompt: list[str]
    ) -> io.NodeOutput:
        pictures = as_rgb(images)
        prompts = one_prompt_each(prompt, len(pictures))
        scores = score_list(oracle_a[0], images, prompts), score_list(oracle_b[0], images, prompts)
        agreed, (a, b) = agreement(*scores), (oracle_a[0].name, oracle_b[0].name)
        lines = [
            f"{a} and {b} on {len(pictures)} pictures: Spearman {agreed.spearman:.3f}, Kendall {agreed.kendall:.3f}."
        ]
        lines += [
            f"#{i}: rank {agreed.ranks_a[i]:g} and {agreed.ranks_b[i]:g} (scores {scores[0][i]:.4g} and {scores[1][i]:.4g}), "
            f"{' '.join(prompts[i].split())}"
            for i in agreed.disagreements()
        ]
        lines += dict.fromkeys(filter(None, (remarks(oracle, pictures, prompts) for oracle in (oracle_a[0], oracle_b[0]))))
        return io.NodeOutput(comparison_chart(pictures, scores, (a, b), agreed), "\n".join(lines), agreed.spearman)
