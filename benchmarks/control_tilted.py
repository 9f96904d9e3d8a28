"""One loss that distils and pleases: the tiny world's student by SiD towards the tilted teacher, beside its rivals.

Every arm begins at the teacher and draws as many pictures while it learns: plain SiD; SiD towards the tilted teacher; half of
them SiD, the other half tuned (distil, then tune); a fifth tuned, since a teacher's take many steps, the others SiD of the tuned
teacher (tune, then distil). Tuned by the gate's oracle, on training prompts; measured by the judge, which nobody was tuned by, on
prompts that no training showed.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from ..networks.tiny_unet import Denoiser, TinyUNet
from ..training.distill import Settings, Task, distil
from ..training.finetune import finetune
from ..training.finetune_task import Settings as TuneSettings
from ..training.loop import Watch
from ..training.tilted import Tilt
from ..world.recipe.concepts import training_prompts
from ..world.recipe.sampling import World
from ..world.weights import DEFAULT_STUDENT, load_unet
from .control_loop import loop
from .control_tilted_toy import run as run_toy  # noqa: F401, by the command's --toy
from .control_world import Measured, Tuned, against, kept_run, mean_by_prompt, measure, row_of
from .figures import Claim, Figures, print_claims, print_table
from .sid_world import as_loras, prompted, with_lora

matplotlib.use("Agg")

Say = Callable[[str], None]
GUIDANCE, RANK = 1.5, 64  # of the teacher, and of the LoRAs, in every arm
STEPS, TEACHER_STEPS = 2, 12
PRICES = (0.01, 0.05)  # claims are about the first, which was chosen before, on training prompts, for full copies
PLAIN, THEN, FIRST = "plain SiD", "distil, then tune", "tune, then distil"
SHIPPED, TEACHER = "the shipped student", "the teacher, guided, 24 evaluations"
THEN_TUNED = TuneSettings(algorithm="direct", value=0.1, batch=16, base_draws=2, learning_rate=1e-3, ema_half_life=500)
TUNED_FIRST = TuneSettings(
    algorithm="path_kl", value=0.5, batch=12, base_draws=2, learning_rate=1e-3, count=6, last=2, ema_half_life=200,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is trained."""

    pictures: int  # that a student draws while it learns
    trained: int  # prompts
    prompts: int
    seeds: int
    looped: int  # prompts of the loop

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole plan, or a minute of it."""
        return cls(32, 16, 8, 2, 16) if quick else cls(1280, 512, 120, 4, 501)

    @property
    def words(self) -> list[str]:
        """The prompts of all training."""
        return [p.text() for p in training_prompts(self.trained, seed=4)]


def settings_of(pictures: int, seed: int = 0) -> Settings:
    """Of SiD, in every arm."""
    return Settings(
        pictures=pictures, batch=16, generator_rate=3e-4, fake_rate=1e-3, alpha=1.0, kappa4=GUIDANCE, steps=STEPS,
        generator_scale=1.0, ema_half_life=500, ema_rampup=0.3, decay=0.4, seed=seed,
    )  # fmt: skip


def task_of(world: World, teacher: TinyUNet, words: list[str], price: float | None, seed: int) -> Task:
    """SiD of ``teacher`` on prompts, whose numbers are the labels; with the oracle at a price, or without."""
    players, generator, fake = as_loras(teacher, RANK, seed)
    with torch.no_grad():
        contexts = world.context([*words, ""])

    def numbered(denoise: Callable[[Tensor, Tensor, Any], Tensor]) -> Callable[[Tensor, Tensor, Any], Tensor]:
        return lambda x, sigma, rows: denoise(x, sigma, contexts[rows])

    def reward(latents: Tensor, rows: Tensor) -> Tensor:
        pictures = ((world.decoder.decode(latents) + 1) / 2).movedim(1, -1)
        return world.oracle.reward(pictures, [words[int(row)] for row in rows])

    def labels(rng: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        return torch.randint(len(words), (batch,), generator=rng), torch.full((batch,), len(words))

    teaches, judges, draws = (numbered(each) for each in (players.teacher, players.fake, players.generator))
    players = replace(players, teacher=teaches, fake=judges, generator=draws)
    task = prompted(world, players, generator, fake, words)
    return replace(task, labels=labels, tilt=None if price is None else Tilt(reward, price))


def student(
    world: World, teacher: TinyUNet, plan: Plan, name: str, price: float | None, folder: Path, say: Say, pictures: int = 0,
    seed: int = 0,
) -> TinyUNet:  # fmt: skip
    """A student of ``teacher``, in ``plan.pictures`` or in ``pictures``; a run that is in ``folder`` goes on.

    Raises:
        ValueError: ``folder`` holds a run of this name with other settings.
    """
    settings = settings_of(pictures or plan.pictures, seed)
    task = task_of(world, teacher, plan.words, price, seed)
    watch = Watch(lambda step, _pictures, means: say(f"{name} {step}: {means['generator']:.4g}"), 10)
    run = kept_run(folder / name, settings, trained=plan.trained, price=price)
    ema = distil(task, settings, run, watch=watch, save_every=25)
    return with_lora(teacher, task.generator, ema.shadow)  # type: ignore[arg-type]


def tuned(network: TinyUNet, plan: Plan, name: str, settings: TuneSettings, pictures: int, folder: Path, say: Say) -> TinyUNet:
    """``network`` tuned by the oracle, as ``control`` does it: a student (``direct``), or a teacher."""
    world, of_student = World(), settings.algorithm == "direct"
    if of_student:
        world._students[DEFAULT_STUDENT] = Denoiser(copy.deepcopy(network))
    else:
        world.teacher = Denoiser(copy.deepcopy(network))
    settings = replace(settings, updates=max(pictures // settings.batch, 1))
    around = Tuned(world, 16, 0, student=of_student)
    watch = Watch(lambda step, _pictures, means: say(f"{name} {step}: reward {means['reward']:.2f}"), 25)
    run = kept_run(folder / f"{name}, tuning", settings, trained=plan.trained)
    ema, _base = finetune(around.task(plan.words, world.oracle), settings, run, watch=watch, save_every=25)
    return with_lora(network, around.lora, ema.shadow)


def name_of(price: float) -> str:
    """Of an arm."""
    return f"tilted, price {price:g}"


def students(world: World, plan: Plan, folder: Path, say: Say) -> dict[str, TinyUNet]:
    """Every arm's network, by name; the tilted one of the first price comes first."""
    teacher, half, fifth = load_unet("teacher"), plan.pictures // 2, plan.pictures // 5
    made = {name_of(price): student(world, teacher, plan, name_of(price), price, folder, say) for price in PRICES}
    made[PLAIN] = student(world, teacher, plan, PLAIN, None, folder, say)
    before = student(world, teacher, plan, THEN, None, folder, say, half)
    made[THEN] = tuned(before, plan, THEN, THEN_TUNED, plan.pictures - half, folder, say)
    pleased = tuned(load_unet("teacher"), plan, FIRST, TUNED_FIRST, fifth, folder, say)
    made[FIRST] = student(world, pleased, plan, FIRST, None, folder, say, plan.pictures - fifth)
    return made


def claims_of(measured: dict[str, Measured]) -> dict[str, Claim]:
    """What the first tilted student earned, with intervals by prompts."""
    ours = measured[name_of(PRICES[0])]
    plain = against(measured[PLAIN], ours)
    return {
        "tilted_student_gain": plain["unseen_judge_gain"],
        "tilted_student_gain_over_teacher": mean_by_prompt(ours.judge - measured[TEACHER].judge),
        "tilted_student_gain_over_distil_then_tune": mean_by_prompt(ours.judge - measured[THEN].judge),
        "tilted_student_gain_over_tune_then_distil": mean_by_prompt(ours.judge - measured[FIRST].judge),
        "tilted_student_reward_gain": plain["reward_gain"],
        "tilted_student_variety": plain["diversity_ratio"],
    }


def run(quick: bool, plot: Path, say: Say, work: Path | None = None) -> Figures:
    """Train every arm, measure all, close the loop with the tilted student.

    Args:
        work: Where runs are kept, and gone on with when they were stopped; None for a folder that is gone afterwards.

    Raises:
        FileNotFoundError: The tiny world's weights are not there.
        ValueError: ``work`` holds runs with other settings.
    """
    plan, world = Plan.of(quick), World()
    with tempfile.TemporaryDirectory() as temporary:
        made = students(world, plan, work or Path(temporary), say)
    world._students |= {name: Denoiser(network) for name, network in made.items()}

    def draft(words: list[str], noise: Tensor, name: str = DEFAULT_STUDENT) -> Tensor:
        return world.draft(words, noise, STEPS, student=name).latents

    ways: dict[str, Callable[[list[str], Tensor], Tensor]] = {name: partial(draft, name=name) for name in made}
    ways |= {SHIPPED: draft, TEACHER: lambda words, noise: world.redraw(words, noise, TEACHER_STEPS).latents}
    measured: dict[str, Measured] = {}
    for name, way in ways.items():
        say(f"measuring {name}")
        measured[name] = measure(world, way, plan.prompts, plan.seeds)
    figures = Figures("control-tilted", {
        "plan": vars(plan), "prices": PRICES, "steps": STEPS, "training": vars(settings_of(plan.pictures)),
    })  # fmt: skip
    order = [PLAIN, *(name for name in measured if name != PLAIN)]
    figures.rows = [row_of(name, measured[name], against(measured[PLAIN], measured[name])) for name in order]
    figures.claims = claims_of(measured)
    print_table(figures.rows)
    say("the loop")
    figures.findings["loop"], claims = loop(world, made, plan.looped)
    figures.claims |= claims
    print_table(figures.findings["loop"])
    print_claims(figures.claims)
    draw(figures, plot)
    return figures


def draw(figures: Figures, path: Path) -> None:
    """Variety over the score of either judge, an arm each."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
    for axis, judge in zip(axes, ("oracle", "judge"), strict=True):
        for number, row in enumerate(figures.rows):
            axis.plot(row[judge], row["diversity"], "os^Dv*P"[number % 7], color=f"C{number}", markersize=9, label=row["law"])
        axis.set(xlabel="judge that nobody was tuned by" if judge == "judge" else "oracle that tuned")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("variety (1 - cosine of two pictures of a prompt)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
