"""Types of our own that travel between nodes, and inputs that several nodes share."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy.cli_args import args
from comfy_api.v0_0_2 import io
from comfy_execution.validation import validate_node_input

from ..bridge.teacher import STRATEGIES
from ..bridge.training import PRECISIONS
from ..gate.cascade import BANDS
from ..gate.overrides import read_overrides
from ..gate.thresholds import MODES, UNITS
from ..oracles.ensemble import COMBINATIONS
from ..oracles.promptkd import MEASURES
from ..oracles.registry import KINDS
from ..samplers.explore import BUDGET, PRICE
from ..samplers.presets import AUTO, CUSTOM, PRESETS
from ..training.fdivergence import DIVERGENCES
from ..training.finetune_task import ALGORITHMS, STRENGTHS
from ..training.optimisers import OPTIMISERS
from ..training.promptkd_runs import STARTS, TARGETS
from ..training.qualities import QUALITIES, SID_QUALITIES
from ..training.sid_options import FULL, LORA, MADE_FOR
from ..training.variety import VARIETIES

CATEGORY = "Apprentice"

Oracle = io.Custom("ORACLE")
Verdict = io.Custom("VERDICT")
Calibration = io.Custom("CALIBRATION")
PromptKDTeacher = io.Custom("PROMPTKD_TEACHER")
Critic = io.Custom("CRITIC")
Source = io.Custom("SOURCE")

FULL_DECODE, FAST_DECODE = "full decode", "fast decode"

# The combos of our nodes, for ``check_combos``: ComfyUI does not check the values of V3 combos itself.
COMBOS: dict[str, list[str]] = {
    "preset": [*PRESETS, CUSTOM, AUTO],
    "threshold": list(MODES),
    "strategy": list(STRATEGIES),
    "look": [FULL_DECODE, FAST_DECODE],
    "kind": [AUTO, *KINDS],
    "precision": [AUTO, "fp32", "fp16"],
    "order": ["best first", "batch order"],
    "combination": list(COMBINATIONS),
    "band": list(BANDS),
    "method": [LORA, FULL],
    "training_precision": list(PRECISIONS),
    "measure": list(MEASURES),
    "critic_target": list(TARGETS),
    "critic_start": list(STARTS),
    "algorithm": list(ALGORITHMS),
    "divergence": list(DIVERGENCES),
    "strength": list(STRENGTHS),
    "quality": list(QUALITIES),
    "sid_quality": list(SID_QUALITIES),
    "made_for": list(MADE_FOR),
    "spend": [BUDGET, PRICE],
    "variety": list(VARIETIES),
    "optimiser": list(OPTIMISERS),
}


def forgets() -> bool:
    """Whether ComfyUI forgets each result once it is used (--cache-none): what is asked for late runs again, from the start."""
    return bool(getattr(args, "cache_none", False))


def choices(name: str) -> list[str]:
    """What a combo offers now: packs that load after this one add samplers and schedulers to ComfyUI's lists."""
    if name == "sampler_name":
        return list(comfy.samplers.SAMPLER_NAMES)
    return list(comfy.samplers.SCHEDULER_NAMES) if name == "scheduler" else COMBOS[name]


def check_combos(**values: Any) -> bool | str:
    """``validate_inputs`` for combos: True, or a sentence that names the input and the choices.

    What is connected has no value yet (None) and is not checked.
    """
    for name, value in values.items():
        if isinstance(value, str) and value not in choices(name):
            return f"{name} is '{value}', which is not one of: {', '.join(choices(name))}."
    return True


def without_nodes_texts(**values: Any) -> dict[str, Any]:
    """Values of combos that came late, for ``check_combos``, without a node's old text, which front ends save behind its widgets.

    Such a text is longer than any choice, or has lines, or is a sentence, or is empty; ``schema.read`` takes the default for it.
    """
    return {name: value for name, value in values.items() if not isinstance(value, str) or not _is_text(value)}


def _is_text(value: str) -> bool:
    return not value or len(value) > _LONGEST_CHOICE or "\n" in value or value.rstrip().endswith(".")


_LONGEST_CHOICE = 24


def check_inputs(node: type[io.ComfyNode], input_types: Any, **values: Any) -> bool | str:
    """``check_combos``, and instead of ComfyUI what is connected: samplers and schedulers may come over old-style wires.

    Those are lists of choices, as the stock KSampler's inputs are, or "*"; what comes over them is checked when it is there.

    Args:
        input_types: What ``validate_inputs`` is given under this name: the type of each output that is connected, by input.
    """
    received = input_types[0] if isinstance(input_types, list) else input_types
    inputs = node.INPUT_TYPES()
    for name, kind in (received or {}).items():
        wanted = next(inputs[part][name][0] for part in ("required", "optional") if name in inputs.get(part, {}))
        listed = name in ("sampler_name", "scheduler") and (isinstance(kind, list | tuple) or kind == "*")
        if not listed and not validate_node_input(kind, wanted):
            return f"{name} takes {wanted}, and what is connected gives {'a choice' if isinstance(kind, list) else kind}."
    return check_combos(**values)


def seed(tooltip: str) -> io.Int.Input:
    """A seed widget."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def preset() -> io.Combo.Input:
    """The choice of student schedule."""
    return io.Combo.Input(
        "preset",
        options=COMBOS["preset"],
        default=AUTO,
        tooltip="The schedule that the student was made for. 'auto' takes what the model's card or its file's name says for "
        "certain, and else tells which there are for such a model. 'custom' uses sampler_name and scheduler like a KSampler.",
    )


def student_steps(name: str = "steps") -> io.Int.Input:
    """The student's number of steps."""
    return io.Int.Input(
        name, default=0, min=0, max=100, tooltip="Steps of the student; 0 takes the number its authors recommend."
    )


def cfg(name: str, default: float, who: str) -> io.Float.Input:
    """Classifier-free guidance."""
    return io.Float.Input(
        name, default=default, min=0.0, max=100.0, step=0.1, round=0.01,
        tooltip=f"Guidance of the {who}. Above 1 every step costs two network evaluations.",
    )  # fmt: skip


def denoise() -> io.Float.Input:
    """Part of the way that is drawn."""
    return io.Float.Input(
        "denoise", default=1.0, min=0.01, max=1.0, step=0.01,
        tooltip="1 draws from noise. Below 1 the picture in latent_image is edited: the less, the closer it stays.",
    )  # fmt: skip


def threshold() -> io.Combo.Input:
    """How the gate is set."""
    return io.Combo.Input(
        "threshold",
        options=COMBOS["threshold"],
        default="worst share",
        tooltip="What value means. " + " ".join(f"{mode}: {unit.words}." for mode, unit in UNITS.items()),
    )


def value() -> io.Float.Input:
    """The number of the gate."""
    return io.Float.Input(
        "value", default=0.5, min=-1000000.0, max=1000000.0, step=0.01, round=0.0001,
        tooltip="The number for the chosen threshold: a score, a share 0-1, a percentile 0-100, evaluations a picture, or a "
        "gain in score.",
    )  # fmt: skip


def look() -> io.Combo.Input:
    """What the oracle judges by."""
    return io.Combo.Input(
        "look", options=COMBOS["look"], default=FULL_DECODE, optional=True,
        tooltip="What the oracle sees: the VAE's pictures, or ComfyUI's fast preview decode (TAESD where present), which saves "
        "decoding every draft. The final pictures are always the VAE's.",
    )  # fmt: skip


def controller() -> io.String.Input:
    """Which controller a running gate uses."""
    return io.String.Input(
        "controller", default="default", optional=True,
        tooltip="For running: the name of the controller, whose memory is output/apprentice/controllers/<name>.json. Delete the "
        "file to start it anew.",
    )  # fmt: skip


def confidence() -> io.Float.Input:
    """How sure a guaranteed gate is."""
    return io.Float.Input(
        "confidence", default=0.9, min=0.5, max=0.999, step=0.01, round=0.001, optional=True,
        tooltip="For guaranteed: how sure it shall be that the promise holds. More needs a larger calibration.",
    )  # fmt: skip


def spend() -> io.Combo.Input:
    """What bounds a search."""
    return io.Combo.Input(
        "spend", options=COMBOS["spend"], default=BUDGET,
        tooltip="What value is. budget: evaluations a picture on average; the price that follows is told. price: what an "
        "evaluation must bring in score; the average that follows is told.",
    )  # fmt: skip


def variety(**more: Any) -> io.Float.Input:
    """What a difference between pictures of one prompt is worth."""
    return io.Float.Input(
        "variety", default=0.0, min=0.0, max=1000000.0, step=0.1, round=0.0001, **more,
        tooltip="For several pictures of one prompt: the score that a distance of 1 between two of them is worth (1 - cosine of "
        "what the oracle sees of them, or else of their latents). 0 keeps the best, however alike.",
    )  # fmt: skip


def overrides() -> io.String.Input:
    """The artist's choices by hand."""
    return io.String.Input(
        "overrides", default="", optional=True,
        tooltip="Pictures accepted or sent to the teacher by hand. The Draft Board writes this: click a picture there.",
    )  # fmt: skip


def stop_after_judging() -> io.Boolean.Input:
    """Whether the artist looks before the teacher works."""
    return io.Boolean.Input(
        "stop_after_judging", default=False, optional=True,
        tooltip="Run to the judge and no further: look at the drafts, choose by hand where you disagree, switch this off and "
        "queue again. Then only the teacher runs.",
    )  # fmt: skip


def check_overrides(text: Any) -> bool | str:
    """``validate_inputs`` for ``overrides``. What is connected has no value yet."""
    try:
        read_overrides(text if isinstance(text, str) else "")
    except ValueError as error:
        return str(error)
    return True


def strategy() -> io.Combo.Input:
    """What the teacher does."""
    return io.Combo.Input(
        "strategy",
        options=COMBOS["strategy"],
        default="refine",
        tooltip="refine: take the draft back to a noise level and draw it anew from there, keeping its composition. "
        "regenerate: draw it from scratch.",
    )


def rollback() -> io.Float.Input:
    """The noise level of a refinement."""
    return io.Float.Input(
        "rollback", default=0.6, min=0.0, max=1.0, step=0.01,
        tooltip="For refine: how far back, as a fraction of the training timesteps (or of flow time). 0 keeps the draft, "
        "1 starts from noise. The node shows the noise level (sigma) that follows.",
    )  # fmt: skip


def teacher_steps(name: str = "steps") -> io.Int.Input:
    """The teacher's number of steps."""
    return io.Int.Input(
        name, default=20, min=1, max=1000,
        tooltip="Steps of the teacher's whole schedule; a refinement takes only those below its noise level.",
    )  # fmt: skip


def sampler_name(optional: bool = False) -> io.Combo.Input:
    """A stock sampler."""
    return io.Combo.Input(
        "sampler_name", options=choices("sampler_name"), default="dpmpp_2m", optional=optional, tooltip="ComfyUI's sampler."
    )


def scheduler(optional: bool = False) -> io.Combo.Input:
    """A stock scheduler."""
    return io.Combo.Input(
        "scheduler", options=choices("scheduler"), default="karras", optional=optional, tooltip="ComfyUI's noise schedule."
    )


def teacher_settings() -> list[Any]:
    """How the teacher improves a draft."""
    return [strategy(), rollback(), teacher_steps(), cfg("cfg", 2.0, "teacher"), sampler_name(), scheduler()]


def margin() -> io.Float.Input:
    """By how much the teacher must be better."""
    return io.Float.Input(
        "margin", default=0.0, min=-1000000.0, max=1000000.0, step=0.01, round=0.0001,
        tooltip="The teacher's picture replaces the draft only if it scores more than this above it.",
    )  # fmt: skip


def connected(prefix: str = "", who: str = "", lazy: bool = False, extra: dict[str, Any] | None = None) -> list[Any]:
    """SIGMAS, SAMPLER, GUIDER and NOISE, for ``Drawing.connected``: as SamplerCustomAdvanced takes them."""
    tooltips: dict[str, tuple[Any, str]] = {
        "sigmas": (io.Sigmas, "Any schedule, as SamplerCustomAdvanced takes it. Wins over preset, steps, scheduler and denoise."),
        "sampler": (io.Sampler, "Any sampler. Wins over sampler_name and the preset's."),
        "guider": (io.Guider, "Any guidance. Wins over positive, negative and cfg; its model must be the one connected."),
        "noise": (io.Noise, "Any noise. Wins over seed."),
    }
    who = f" The {who}'s." if who else ""
    return [
        kind.Input(prefix + name, optional=True, lazy=lazy or None, extra_dict=extra, tooltip=tooltip + who)
        for name, (kind, tooltip) in tooltips.items()
    ]
