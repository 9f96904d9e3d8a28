"""One loss that distils and pleases: the tiny world's student by SiD towards the tilted teacher, beside plain SiD.

All arms start from the shipped student and draw as many pictures; those of SiD with one fake score network that has learned
the shipped student's pictures before. Tuned by the gate's oracle, on training prompts; measured by the judge, which nobody
was tuned by, on prompts that no training showed.
"""

from __future__ import annotations

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
from ..samplers.schedules import tiny_world_sigmas
from ..training.distill import Settings, Task, distil, draw_steps, draws
from ..training.finetune import finetune
from ..training.finetune_task import Settings as TuneSettings
from ..training.loop import Schedule, Watch, train
from ..training.lora import merge
from ..training.sid_iteration import Players, fake_score_objective
from ..training.tilted import Tilt
from ..world.recipe.concepts import training_prompts
from ..world.recipe.sampling import World
from ..world.recipe.sid import LEVELS, denoiser
from ..world.weights import DEFAULT_STUDENT, load_unet
from .control_loop import loop
from .control_tilted_toy import run as run_toy  # noqa: F401, by the command's --toy
from .control_world import SHAPE, Measured, Tuned, against, kept_run, mean_by_prompt, measure, row_of
from .figures import Claim, Figures, print_claims, print_table

matplotlib.use("Agg")

Say = Callable[[str], None]
GUIDANCE = 1.5  # of the teacher, as the shipped student was distilled with
FAKE_RATE = 3e-4
STEPS, TEACHER_STEPS = 2, 12
PRICES = (0.01, 0.05)  # the first was chosen on training prompts, and is what claims are about; at 0.5 nothing is gained
SHIPPED, PLAIN, THEN, FAKE, TEACHER = (
    "the shipped student", "plain SiD", "tuned directly, alpha 0.1", "fake score", "the teacher, guided, 24 evaluations",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is trained."""

    pictures: int  # that a student draws while it learns
    before: int  # that the fake score network learns from before
    batch: int
    trained: int  # prompts
    prompts: int
    seeds: int
    looped: int  # prompts of the loop

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole plan, or a minute of it."""
        return cls(8, 8, 4, 16, 8, 2, 16) if quick else cls(3840, 2400, 16, 512, 120, 4, 960)

    @property
    def settings(self) -> Settings:
        """Of every arm."""
        return Settings(
            pictures=self.pictures, batch=self.batch, generator_rate=1e-4, fake_rate=FAKE_RATE, alpha=1.0, kappa4=GUIDANCE,
            steps=STEPS, generator_scale=1.0, ema_half_life=500, ema_rampup=0.3, warmup=0.05, decay=0.3,
        )  # fmt: skip


def task_of(world: World, generator: TinyUNet, fake: TinyUNet, trained: int, price: float | None) -> Task:
    """SiD on ``trained`` training prompts, whose numbers are the labels; with the oracle at a price, or without."""
    prompts = [p.text() for p in training_prompts(trained, seed=4)]
    with torch.no_grad():
        contexts = world.context([*prompts, ""])

    def numbered(network: TinyUNet) -> Callable[[Tensor, Tensor, Any], Tensor]:
        around = denoiser(network)
        return lambda x, sigma, rows: around(x, sigma, contexts[rows])

    def reward(latents: Tensor, rows: Tensor) -> Tensor:
        pictures = ((world.decoder.decode(latents) + 1) / 2).movedim(1, -1)
        return world.oracle.reward(pictures, [prompts[int(row)] for row in rows])

    def labels(rng: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        return torch.randint(trained, (batch,), generator=rng), torch.full((batch,), trained)

    for network in (generator, fake):
        network.requires_grad_(True)
    learned = list(fake.parameters()), list(generator.parameters())
    players = Players(numbered(load_unet("teacher")), numbered(fake), numbered(generator), *learned)
    return Task(
        players, generator, fake, SHAPE, labels, lambda steps: tuple(tiny_world_sigmas(steps)),
        LEVELS, tilt=None if price is None else Tilt(reward, price),
    )  # fmt: skip


def fitted_fake(world: World, plan: Plan, folder: Path, say: Say) -> TinyUNet:
    """The teacher, taught to be the shipped student's score; in all arms the start, so that they soon have a true gradient."""
    fake, settings = load_unet("teacher"), plan.settings
    task = task_of(world, load_unet(f"student_{DEFAULT_STUDENT}"), fake, plan.trained, None)
    task.generator.requires_grad_(False)
    schedule = Schedule(plan.before, plan.batch, FAKE_RATE, 0.05, 0.5)
    run = kept_run(folder / FAKE, schedule, trained=plan.trained)

    def loss(rng: torch.Generator, batch: int) -> Tensor:
        objective = task.objective(settings, draw_steps(rng, STEPS))
        return fake_score_objective(task.players, objective, draws(task, objective, rng, batch, True)).total / batch

    watch = Watch(lambda step, _pictures, means: say(f"{FAKE} {step}: {means['loss']:.4g}"), 25)
    fake.load_state_dict(train(fake, loss, schedule, run, ema_half_life=200, watch=watch, save_every=50).shadow)
    return fake


def student(world: World, plan: Plan, name: str, price: float | None, folder: Path, say: Say, seed: int = 0) -> TinyUNet:
    """One arm; a run that is in ``folder`` goes on.

    Raises:
        ValueError: ``folder`` holds a run of this name with other settings.
    """
    generator, fake = load_unet(f"student_{DEFAULT_STUDENT}"), fitted_fake(world, plan, folder, say)
    settings = replace(plan.settings, seed=seed)
    task = task_of(world, generator, fake, plan.trained, price)
    watch = Watch(lambda step, _pictures, means: say(f"{name} {step}: {means['generator']:.4g}"), 10)
    run = kept_run(folder / name, settings, before=plan.before, trained=plan.trained, price=price)
    generator.load_state_dict(distil(task, settings, run, watch=watch, save_every=25).shadow)
    return generator.eval().requires_grad_(False)


def tuned(world: World, plan: Plan, folder: Path, say: Say) -> TinyUNet:
    """Distil, then tune: the shipped student by ``direct`` as ``control`` does it, on the same prompts and as many pictures."""
    settings = TuneSettings(
        algorithm="direct", value=0.1, updates=max(plan.pictures // plan.batch, 1), batch=plan.batch, base_draws=2,
        learning_rate=1e-3, ema_half_life=500,
    )  # fmt: skip
    around = Tuned(World(), 16, 0, student=True)
    task = around.task([p.text() for p in training_prompts(plan.trained, seed=4)], world.oracle)
    watch = Watch(lambda step, _pictures, means: say(f"{THEN} {step}: reward {means['reward']:.2f}"), 25)
    ema, _base = finetune(task, settings, kept_run(folder / THEN, settings, trained=plan.trained), watch=watch, save_every=25)
    around.lora.load_state_dict(ema.shadow)
    network = load_unet(f"student_{DEFAULT_STUDENT}")
    merge(network, around.lora)
    return network


def name_of(price: float) -> str:
    """Of an arm."""
    return f"tilted, price {price:g}"


def students(world: World, plan: Plan, folder: Path, say: Say) -> dict[str, TinyUNet]:
    """Every arm's network, by name; the tilted one of the first price comes first."""
    arms: dict[str, float | None] = {name_of(price): price for price in PRICES}
    made = {name: student(world, plan, name, price, folder, say) for name, price in {**arms, PLAIN: None}.items()}
    return made | {THEN: tuned(world, plan, folder, say)}


def claims_of(measured: dict[str, Measured]) -> dict[str, Claim]:
    """What the first tilted student earned, with intervals by prompts."""
    ours = measured[name_of(PRICES[0])]
    plain = against(measured[PLAIN], ours)
    return {
        "tilted_student_gain": plain["unseen_judge_gain"],
        "tilted_student_gain_over_teacher": mean_by_prompt(ours.judge - measured[TEACHER].judge),
        "tilted_student_gain_over_tuned": mean_by_prompt(ours.judge - measured[THEN].judge),
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
    figures = Figures("control-tilted", {"plan": vars(plan), "prices": PRICES, "steps": STEPS, "training": vars(plan.settings)})
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
