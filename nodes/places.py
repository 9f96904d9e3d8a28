"""Where each node stands in the menu, by which words it is found, and which of its widgets are shown at once.

The rest of the widgets is advanced: folded away by the front end until asked for. Names, order and defaults are the nodes' own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from comfy_api.v0_0_2 import io

DRAW, JUDGE, TEACH, DISTIL, LOOK = "Draw", "Judge", "Teach", "Distil", "Look"

# Units of inputs, for their labels. A unit that depends on another widget is in the tooltip.
UNITS: dict[str, str] = {
    "width": "px", "height": "px", "rollback": "0-1", "denoise": "0-1", "confidence": "0-1", "min_probability": "0-1",
    "batch_size": "pictures", "at_once": "pictures", "max_batch": "pictures", "ema_half_life": "pictures", "updates": "steps",
    "teacher_nfe": "a picture", "base_draws": "a prompt", "differing": "0-1",
    "init_timestep": "1-999", "init_sigma": "sigma", "shots": "a class", "save_every": "steps", "candidates": "a picture",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Of one node: its part of the menu, other words for it, and the widgets shown at once (empty: all)."""

    room: str
    words: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


PLACES: dict[str, Place] = {
    "ApprenticeTinyWorld": Place(DRAW, ("demo", "example models", "no downloads")),
    "ApprenticePrompts": Place(DRAW, ("prompt list", "one prompt per line", "batch prompts")),
    "ApprenticeStudentSampler": Place(
        DRAW, ("turbo", "lcm", "lightning", "hyper", "dmd2", "schnell", "few step", "ksampler", "draft"),
        ("seed", "preset", "steps", "cfg", "denoise"),
    ),
    "ApprenticeSampler": Place(
        DRAW, ("adaptive", "gate", "all in one", "turbo", "lcm", "quality", "ksampler", "draft and refine"),
        ("prompt", "seed", "preset", "threshold", "value", "rollback", "teacher_steps"),
    ),
    "ApprenticeLoadStudent": Place(DRAW, ("turbo", "lcm", "diffusers", "unet loader"), ("student", "guidance")),
    "ApprenticeLoadEDM": Place(DRAW, ("edm", "sid", "pkl", "pixel network")),
    "ApprenticeSiDSampler": Place(DRAW, ("one step", "sid"), ("seed", "steps", "columns")),
    "ApprenticeTiltedStart": Place(
        DRAW, ("best of n noise", "seed search", "promising noise", "adaptive"),
        ("prompt", "candidates", "alpha", "seed", "preset", "steps", "cfg"),
    ),
    "ApprenticeFastDecode": Place(DRAW, ("taesd", "preview decode", "vae")),
    "ApprenticeJudge": Place(
        JUDGE, ("gate", "aesthetic", "score", "filter", "threshold", "adaptive", "quality", "pick"),
        ("prompt", "threshold", "value"),
    ),
    "ApprenticeExplore": Place(
        DRAW, ("best of n", "seed search", "variety", "budget", "search", "draw many", "adaptive"),
        ("prompt", "seed", "spend", "value", "variety"),
    ),
    "ApprenticeSource": Place(
        DRAW, ("student", "turbo", "lcm", "lightning", "few step", "ksampler"), ("preset", "steps", "cfg"),
    ),
    "ApprenticePictureSource": Place(DRAW, ("load images", "folder", "gan", "candidates")),
    "ApprenticeKeepBetter": Place(JUDGE, ("best of", "compare", "pick", "keep best")),
    "ApprenticeSplit": Place(JUDGE, ("filter", "gate", "switch", "rejected", "detailer", "upscale")),
    "ApprenticeMerge": Place(JUDGE, ("join batch", "put back", "rejected", "detailer", "upscale")),
    "ApprenticeLoadOracle": Place(
        JUDGE, ("aesthetic", "imagereward", "hps", "hpsv2", "hpsv3", "pickscore", "pick", "clip score", "reward model", "rating"),
        ("name", "kind"),
    ),
    "ApprenticeScore": Place(JUDGE, ("aesthetic", "imagereward", "hps", "pick", "rate", "rank")),
    "ApprenticeBestOf": Place(JUDGE, ("best of", "best of n", "pick", "select", "top", "filter", "aesthetic")),
    "ApprenticeCombineOracles": Place(JUDGE, ("ensemble", "vote", "mix")),
    "ApprenticeCascadeOracle": Place(
        JUDGE, ("two stage", "cheap first", "fast judge", "hpsv3", "defer", "ensemble"), ("band", "share", "differing")
    ),
    "ApprenticeOracleCompare": Place(LOOK, ("correlation", "aesthetic", "imagereward", "hps", "pick")),
    "ApprenticeTaste": Place(JUDGE, ("preference", "own judge", "clicks", "favourites", "aesthetic")),
    "ApprenticeLoadTaste": Place(JUDGE, ("preference", "own judge", "clicks", "aesthetic")),
    "ApprenticePromptKDOracle": Place(JUDGE, ("critic", "classifier", "own judge")),
    "ApprenticeCalibrate": Place(
        JUDGE, ("percentile", "distribution", "gate", "statistics"),
        ("prompts", "name", "max_prompts", "drafts_per_prompt", "batch_size", "width", "height", "preset"),
    ),
    "ApprenticeLoadCalibration": Place(JUDGE, ("percentile", "distribution", "gate")),
    "ApprenticeTeacher": Place(
        TEACH, ("refine", "img2img", "improve", "adaptive", "second pass", "ksampler"),
        ("strategy", "rollback", "steps", "cfg", "sampler_name", "scheduler", "seed"),
    ),
    "ApprenticeTeacherCost": Place(TEACH, ("budget", "nfe")),
    "ApprenticeRewardFinetune": Place(
        TEACH, ("train lora", "rlhf", "reward", "adjoint matching", "draft", "aesthetic", "imagereward", "hps"),
        ("prompts", "text", "name", "strength", "value", "width", "height", "quality"),
    ),
    "ApprenticeTasteFinetune": Place(
        TEACH, ("train lora", "preference", "dpo", "clicks", "my style", "own look"),
        ("taste", "name", "beta", "updates", "steps"),
    ),
    "ApprenticeSiDDistill": Place(
        DISTIL, ("train lora", "make turbo", "lcm", "one step", "distillation", "turbo"),
        ("prompts", "text", "name", "method", "width", "height", "quality"),
    ),
    "ApprenticePromptKDTeacher": Place(
        DISTIL, ("clip", "few shot", "promptsrc"), ("clip", "tokens", "labelled", "name", "quality")
    ),
    "ApprenticePromptKDDistill": Place(
        DISTIL, ("train classifier", "critic", "clip", "own judge"), ("clip", "pictures", "classes", "name", "augment", "quality")
    ),
    "ApprenticeLoadPromptKD": Place(DISTIL, ("critic", "classifier")),
    "ApprenticeDomainText": Place(DISTIL, ("critic", "new classes", "zero shot")),
    "ApprenticeClassify": Place(LOOK, ("tag", "label", "recognise", "clip")),
    "ApprenticeSort": Place(LOOK, ("filter", "group", "classes")),
    "ApprenticeReport": Place(LOOK, ("contact sheet", "grid", "before after", "histogram")),
    "ApprenticeSaveImages": Place(LOOK, ("save image", "png", "metadata")),
    "ApprenticeRewardCurve": Place(LOOK, ("loss curve", "training")),
}  # fmt: skip


def placed(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """``node``, whose schema is laid out as ``PLACES`` says."""
    define = node.define_schema.__func__  # type: ignore[attr-defined]

    def define_schema(cls: type[io.ComfyNode]) -> io.Schema:
        schema: io.Schema = define(cls)
        return laid_out(schema)

    node.define_schema = classmethod(define_schema)  # type: ignore[assignment, method-assign]
    return node


def laid_out(schema: io.Schema) -> io.Schema:
    """The schema with menu, words to search for, units in labels, and advanced widgets; a node without a place as it is."""
    place = PLACES.get(schema.node_id)
    if place is None:
        return schema
    schema.category = f"{schema.category}/{place.room}"
    if "search_aliases" in {each.name for each in fields(schema)}:  # newer ComfyUIs
        schema.search_aliases = list(place.words)
    for each in schema.inputs or []:
        if each.id in UNITS:
            each.display_name = f"{each.id} ({UNITS[each.id]})"
        if place.first and is_widget(each) and each.id not in place.first:
            each.extra_dict = {**each.extra_dict, "advanced": True}
    return schema


def is_widget(each: Any) -> bool:
    """Whether an input is a widget, and not a socket alone."""
    return isinstance(each, io.Int.Input | io.Float.Input | io.String.Input | io.Boolean.Input | io.Combo.Input) and not (
        each.force_input
    )
