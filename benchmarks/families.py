"""Which families of models the pack draws rightly with, on the ComfyUI that is installed: each at tiny size, each check.

The weights are random, so this says nothing of pictures. It says that the pack draws what the stock sampler draws on the
family's own shapes, texts and noise levels: to the bit where the whole batch is drawn, to rounding where part of it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from . import family_training as training
from . import tiny_families as tiny
from .figures import Claim, Figures, print_table
from .startup import comfyui_home

SEED, STEPS, CFG, PICTURES = 5, 3, 2.0, 3
NOTHING = "-"  # there is nothing to check in this family
PAIRED = ("sdxl", "flux", "zimage", "qwen", "wan21")  # families whose pairs of student and teacher are tried, each with each
ROUNDING = 1e-4  # of the largest value of the latents


@dataclass
class Case:
    """A family's models, texts and empty latents."""

    family: str

    @cached_property
    def student(self) -> Any:
        """A MODEL, made in inference mode as ComfyUI's loaders make it."""
        with torch.inference_mode():
            return tiny.model(self.family, seed=1)

    @cached_property
    def teacher(self) -> Any:
        """Another of the same family."""
        with torch.inference_mode():
            return tiny.model(self.family)

    @property
    def positive(self) -> Any:
        """A text for each picture."""
        return tiny.text(self.family, PICTURES)

    @property
    def negative(self) -> Any:
        """One text for all."""
        return tiny.text(self.family, 1, seed=9)

    @property
    def latent(self) -> dict[str, Any]:
        """Empty."""
        return tiny.empty(self.family, PICTURES)

    @cached_property
    def whole(self) -> Tensor:
        """What the stock sampler draws on the teacher."""
        return self.stock(self.teacher)

    def drawing(self, cfg: float = CFG, sampler: str = "euler") -> Any:
        """Settings of a stock sampler."""
        from ..bridge.drawing import Drawing

        return Drawing(STEPS, cfg, sampler, "simple", SEED)

    @cached_property
    def drafts(self) -> dict[str, Any]:
        """The student's, at the stock sampler's noise levels."""
        from ..bridge.drafts import draw_drafts
        from ..samplers.presets import CUSTOM

        with torch.inference_mode():
            return draw_drafts(self.student, self.positive, self.negative, self.latent, CUSTOM, self.drawing(1.0))

    def improved(self, rows: list[int], strategy: str, teacher: Any = None, positive: Any = None, **latent: Any) -> Tensor:
        """``rows`` of the drafts by the teacher."""
        from ..bridge.teacher import improve

        with torch.inference_mode():
            drafts = {**self.drafts, **latent}
            redrawn = improve(
                teacher or self.teacher, positive or self.positive, self.negative, drafts, rows, strategy, 0.6, self.drawing()
            )
        return redrawn["samples"]

    def stock(self, model: Any, cfg: float = CFG, **latent: Any) -> Tensor:
        """The stock KSampler on the same inputs."""
        whole = {**self.latent, **latent}
        return tiny.stock(model, whole, self.positive, self.negative, seed=SEED, steps=STEPS, cfg=cfg)


EVERYONE = list(range(PICTURES))


@cache
def case_of(family: str) -> Case:
    """The family's, made once in a process: checks read its models and latents, and change none."""
    return Case(family)


def gate_open(case: Case) -> str:
    """The drafts are the stock sampler's."""
    return same(case.drafts["samples"], case.stock(case.student, 1.0))


def gate_shut(case: Case) -> str:
    """All redrawn is the stock sampler on the teacher."""
    return same(case.improved(EVERYONE, "regenerate"), case.whole)


def part(case: Case) -> str:
    """Each picture redrawn alone is the one of the whole batch; the others stay drafts."""
    for row in EVERYONE:
        drawn = case.improved([row], "regenerate")
        others = [i for i in EVERYONE if i != row]
        if wrong := close(drawn[row], case.whole[row]) or same(drawn[others], case.drafts["samples"][others]):
            return wrong
    return ""


def refinement(case: Case, drafts: Tensor) -> Tensor:
    """What the stock sampler makes of drafts [B, ...], from a noise level of 0.6 on."""
    import comfy.sample
    import comfy.samplers

    from ..bridge.guiders import stock_sigmas
    from ..samplers.schedules import refine_sigmas, rollback_sigma

    start = rollback_sigma(0.6, case.teacher.get_model_object("model_sampling"))
    sigmas = refine_sigmas(stock_sigmas(case.teacher, "euler", "simple", STEPS, 1.0), start)
    with torch.inference_mode():
        drawn: Tensor = comfy.sample.sample_custom(
            case.teacher, comfy.sample.prepare_noise(drafts, SEED), CFG, comfy.samplers.sampler_object("euler"), sigmas,
            case.positive, case.negative, drafts, seed=SEED,
        )  # fmt: skip
    return drawn


def refined(case: Case) -> str:
    """All refined is the stock sampler from the drafts, from that noise level on; one refined is its row."""
    drafts = case.drafts["samples"]
    expected = refinement(case, drafts)
    if torch.equal(expected, drafts):
        return "nothing was drawn"
    return same(case.improved(EVERYONE, "refine"), expected) or close(case.improved([1], "refine")[1], expected[1])


def masked(case: Case) -> str:
    """Under a mask, all and one redrawn, as the stock sampler."""
    latent = case.latent["samples"]
    mask = torch.zeros(PICTURES, latent.shape[-2], latent.shape[-1])
    for row in EVERYONE:
        mask[row, : latent.shape[-2] * (row + 1) // PICTURES] = 1
    whole = case.stock(case.teacher, noise_mask=mask)
    drawn = case.improved(EVERYONE, "regenerate", noise_mask=mask)
    return same(drawn, whole) or close(case.improved([1], "regenerate", noise_mask=mask)[1], whole[1])


def prompts(case: Case) -> str:
    """Of prompts with texts of different lengths, each picture is the one drawn from its own line alone."""
    from ..bridge.drafts import draw_drafts
    from ..bridge.prompts import join
    from ..samplers.presets import CUSTOM

    lines = [tiny.text(case.family, 1, tokens, seed=row) for row, tokens in enumerate((7, 12, 5))]
    with torch.inference_mode():
        drawn = draw_drafts(case.student, join(lines), case.negative, case.latent, CUSTOM, case.drawing())["samples"]
    for row, line in enumerate(lines):
        alone = {**tiny.empty(case.family, 1), "batch_index": [row]}
        expected = tiny.stock(case.student, alone, line, case.negative, seed=SEED, steps=STEPS, cfg=CFG)
        if wrong := close(drawn[row], expected[0]):
            return wrong
    return ""


def evaluations(case: Case) -> str:
    """The evaluations told in advance are those counted."""
    from ..bridge.teacher import teacher_evaluations

    count = tiny.Count()
    case.improved([0, 2], "regenerate", count.on(case.teacher))
    foreseen = teacher_evaluations(case.teacher, "regenerate", 0.6, case.drawing())
    return "" if count.rows == 2 * foreseen else f"{foreseen:g} told, {count.rows / 2:g} counted"


def presets(case: Case) -> str:
    """Every preset for models of this kind draws, at levels that fall, with as many evaluations as steps."""
    from ..bridge.drafts import draw_drafts
    from ..bridge.drawing import Drawing
    from ..samplers.presets import CUSTOM, PRESETS, preset_sigmas
    from ..samplers.schedules import sampling_kind

    sampling = case.student.get_model_object("model_sampling")
    one, text = tiny.empty(case.family, 1), tiny.text(case.family, 1)
    fitting = [name for name, preset in PRESETS.items() if name != CUSTOM and preset.kind == sampling_kind(sampling)]
    for name in fitting:
        sigmas, count = preset_sigmas(name, 0, sampling), tiny.Count()
        if not bool((sigmas.diff() < 0).all()):
            return f"{name}: the levels don't fall"
        with torch.inference_mode():
            drawn = draw_drafts(
                count.on(case.student), text, case.negative, one, name, Drawing(0, 1.0, "euler", "simple", SEED)
            )
        if not bool(drawn["samples"].isfinite().all()) or count.rows != len(sigmas) - 1:
            return f"{name}: {count.rows} evaluations for {len(sigmas) - 1} steps"
    return ""


def references(case: Case) -> str:
    """With a reference a picture, where the family looks at any, one redrawn is its row of the whole batch."""
    rng, shape = torch.Generator().manual_seed(3), case.latent["samples"].shape
    shown = [torch.randn(shape, generator=rng)]
    positive = tiny.text(case.family, PICTURES, reference_latents=shown)
    try:
        whole = tiny.stock(case.teacher, case.latent, positive, case.negative, seed=SEED, steps=STEPS)
    except AttributeError:  # newer ComfyUIs' Lumina 2 has Z-Image's way with references, and not the weights for it
        return NOTHING
    if not close(whole, case.whole):
        return NOTHING
    return close(case.improved([1], "regenerate", positive=positive)[1], whole[1])


def other_families(case: Case) -> str:
    """Drafts of other families are refined, by way of pictures where latents differ; those that aren't rejected stay."""
    from ..bridge.teacher import improve
    from .tiny_vaes import vae

    if case.family not in PAIRED:
        return NOTHING
    for name in PAIRED:
        if name == case.family:
            continue
        vaes, drafts = (vae(name), vae(case.family)), case_of(name).drafts
        with torch.inference_mode():
            drawn = improve(
                case.teacher, case.positive, case.negative, drafts, [2], "refine", 0.6, case.drawing(), vaes=vaes
            )["samples"]  # fmt: skip
        wrong = close(drawn[2], _by_pictures(case, name, drafts["samples"], vaes)) or same(drawn[:2], drafts["samples"][:2])
        if wrong:
            return f"{name}: {wrong}"
    return ""


def _by_pictures(case: Case, student: str, drafts: Tensor, vaes: tuple[Any, Any]) -> Tensor:
    """What the stock sampler and the VAEs make of the last of ``drafts``, in its own latents."""
    from ..bridge.pixels import to_latents, to_pixels

    spaces = {type(model.get_model_object("latent_format")) for model in (case.teacher, case_of(student).student)}
    if len(spaces) == 1:
        return refinement(case, drafts)[-1]
    with torch.inference_mode():
        seen = to_latents(vaes[1], to_pixels(vaes[0], drafts[-1:]))
        batch = seen.expand(PICTURES, *seen.shape[1:])
        return to_latents(vaes[0], to_pixels(vaes[1], refinement(case, batch)[-1:]))[0]


def distilled(case: Case) -> str:
    """SiD Distill makes a LoRA that the stock loader takes whole, and hands out what the file draws."""
    with training.folders() as folder:
        student, _curve, _samples, file = training.distil(case.teacher, case.family, pictures=2).result
        return training.lora_wrong(case.teacher, student, case.family, folder / "loras" / file)


def tuned(case: Case) -> str:
    """So does Reward Finetune, by adjoint matching."""
    with training.folders() as folder:
        model, _run, file, _report = training.tune(case.teacher, case.family).result
        return training.lora_wrong(case.teacher, model, case.family, folder / "loras" / file)


CHECKS: dict[str, Callable[[Case], str]] = {
    "gate open": gate_open, "gate shut": gate_shut, "one of three": part, "refined": refined, "masked": masked,
    "prompts": prompts, "evaluations": evaluations, "presets": presets, "references": references,
    "other families": other_families, "distilled": distilled, "tuned": tuned,
}  # fmt: skip


def same(drawn: Tensor, expected: Tensor) -> str:
    """Why they differ in a bit; "" if they don't."""
    if drawn.shape != expected.shape:
        return f"shape {tuple(drawn.shape)} instead of {tuple(expected.shape)}"
    return "" if torch.equal(drawn, expected) else f"off by {float((drawn - expected).abs().max()):.2g}"


def close(drawn: Tensor, expected: Tensor) -> str:
    """Why they differ by more than rounding; "" if they don't."""
    off = float((drawn - expected).abs().max() / expected.abs().max())
    return "" if off <= ROUNDING else f"off by {off:.2g} of the largest"


def checked(case: Case, check: str) -> str:
    """"" where it is right, ``NOTHING`` where nothing is to be right, else what is wrong; an error is told, not raised."""
    try:
        return CHECKS[check](case)
    except Exception as error:  # whatever a family brings must not end the table
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def run(say: Callable[[str], None] = print) -> Figures:
    """Check everything in the ComfyUI of ``$COMFYUI_PATH`` and print the table.

    Raises:
        FileNotFoundError: There is no ComfyUI there.
    """
    comfyui_home()
    os.environ.setdefault("TQDM_DISABLE", "1")
    tiny.start()
    import comfyui_version

    figures = Figures("families", {"comfyui": comfyui_version.__version__, "rounding": ROUNDING})
    wrong: list[str] = []
    for family in tiny.FAMILIES:
        say(family)
        outcomes = {check: checked(case_of(family), check) for check in CHECKS}
        verdicts = {check: why if why == NOTHING else "no" if why else "yes" for check, why in outcomes.items()}
        figures.rows.append({"family": family, **verdicts})
        wrong += [f"{family}, {check}: {why}" for check, why in outcomes.items() if why not in ("", NOTHING)]
    figures.findings["wrong"] = wrong
    cells = [row[check] for row in figures.rows for check in CHECKS if row[check] != NOTHING]
    right = cells.count("yes") / len(cells)
    figures.claims["families_right"] = Claim(right, right, right)
    print(f"ComfyUI {comfyui_version.__version__}")
    print_table(figures.rows)
    print(*wrong, sep="\n")
    return figures
