"""Fine-tuning a diffusion model by an oracle: ``control``'s algorithms as runs that can be stopped and resumed to the bit."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
from torch import nn

from . import control, control_losses
from .baseline import Baseline, Drawing, base_rewards, baseline
from .control import Problem, Report
from .diffusion_nft import GROUP, ForwardProcess
from .finetune_task import BLACK_BOX, ONE_STEP, Settings, Task
from .loop import Ema, Interrupted, Learner, Means, Watch, run
from .optimisers import check_optimiser, make_optimiser
from .processes import Processes
from .rounds import Rounds
from .run_folder import RunFolder


def check(settings: Settings, steps: int, differentiable: bool) -> None:
    """Whether ``settings`` fit a model that draws in ``steps`` steps, and the oracle.

    Raises:
        ValueError: They don't.
    """
    settings.check()
    check_optimiser(settings.optimiser)
    if not differentiable and settings.algorithm not in BLACK_BOX:
        raise ValueError("This oracle has no gradient; choose the algorithm 'diffusion_nft' or 'weighted_regression'.")
    if settings.algorithm == "diffusion_nft" and settings.divergence not in ("kl", "forward_kl"):
        raise ValueError("'diffusion_nft' can't price a change as you choose: its price is forward_kl; set divergence to that.")
    if settings.algorithm in ("preview", "direct") and settings.divergence != "kl":
        raise ValueError(f"'{settings.algorithm}' has a price of its own, so there is no divergence to choose; set it to 'kl'.")
    if settings.algorithm == "direct" and settings.strength != "alpha":
        raise ValueError("'direct' pays picture by picture and reaches no tilted law, so only 'alpha' can be its strength.")
    if settings.algorithm == "diffusion_nft" and steps != 1 and settings.batch % GROUP == 1:
        raise ValueError("'diffusion_nft' compares pictures of one prompt: take a batch_size of 2 or more, but not 4 n + 1.")
    if settings.algorithm == "direct" and steps != 1:
        raise ValueError("'direct' is for one-step students; choose 'adjoint_matching' or 'path_kl' for this model.")
    if settings.algorithm not in ONE_STEP and steps == 1:
        raise ValueError("A one-step student has no path to pay for; choose 'direct', or tune its teacher and distil again.")
    if settings.algorithm == "diffusion_nft" and steps == 1 and settings.strength != "alpha":
        raise ValueError("'diffusion_nft' in one step pays picture by picture, so only 'alpha' can be its strength.")


def finetune(
    task: Task, settings: Settings, folder: RunFolder, *, watch: Watch | None = None, save_every: int = 25,
    processes: Processes | None = None, drawing: Drawing | None = None,
) -> tuple[Ema, Baseline]:  # fmt: skip
    """Tune to the end; the moving average of what is learned, and what the base earned.

    Args:
        folder: Where checkpoint, base rewards and pools are kept, and resumed from.
        processes: This process among several; to rounding their number changes nothing but the time.
        drawing: Told of the base's pictures.

    Raises:
        KeyboardInterrupt: It was stopped, and saved; the same call goes on.
        FloatingPointError: A loss is no longer finite.
        ValueError: The settings don't fit the task, or the strength can't be had.
    """
    check(settings, task.process.steps, task.differentiable)
    processes = processes or Processes()
    processes.rows(settings.batch)
    watch = processes.watch(watch or Watch())
    base = baseline(base_rewards(task, settings, folder.base_rewards, watch.interrupted, drawing), settings)
    parameters = list(task.learned.parameters())
    optimiser = make_optimiser(settings.optimiser, parameters, settings.learning_rate, (0.9, 0.95))
    ema = Ema(task.learned, settings.ema_half_life)
    own: Rounds | ForwardProcess | None = None
    if settings.algorithm == "weighted_regression":
        own = Rounds(task, settings, base, folder, processes)
    elif settings.algorithm == "diffusion_nft":
        own = ForwardProcess(task, settings, base, processes, watch)

    def step(number: int, rng: torch.Generator) -> Means:
        optimiser.zero_grad(set_to_none=True)
        try:
            report = own.step(number, rng) if own else _tilt(task, settings, base, rng, processes, watch)
        except watch.cancelled_by as cancelled:
            raise Interrupted from cancelled
        processes.add_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        means = processes.total({"loss": report.loss, "reward": report.reward, "kl": report.kl})
        return {**means, "gradient": float(norm)}

    tuned = Learner(nn.ModuleDict({"learned": task.learned}), optimiser, settings.learning_rate)
    run(
        {"tuned": tuned}, step, settings.schedule, folder, ema=ema, ema_of=task.learned, seed=settings.seed,
        save_every=save_every, watch=watch, main_process=processes.main,
    )  # fmt: skip
    return ema, base


def _tilt(task: Task, settings: Settings, base: Baseline, rng: torch.Generator, processes: Processes, watch: Watch) -> Report:
    """This process's part of a batch of an algorithm that follows the reward's gradient; its part of the mean report."""
    reward = lambda x, rows: base.surrogate(task.reward(x, rows), rows)  # noqa: E731
    rows = torch.randint(task.prompts, (settings.batch,), generator=rng)
    seeds = torch.randint(2**62, (settings.batch,), generator=rng)
    steps = control.chosen_steps(task.process, settings.count, settings.last, rng) if task.process.steps > 1 else {}
    mine = torch.arange(settings.batch)[processes.rows(settings.batch)]
    total = {"loss": 0.0, "reward": 0.0, "kl": 0.0}
    for part in mine.split(settings.part or settings.batch):
        if processes.count == 1 and watch.interrupted():
            raise Interrupted
        problem, share = task.problem(rows[part], base.alpha, reward, seeds[part]), len(part) / settings.batch
        report = _algorithm(settings.algorithm, problem, steps, len(part), task.spread, share)
        for name in total:
            value = getattr(report, name)
            total[name] += share * (0.0 if math.isnan(value) else value)
    return Report(**total)


def _algorithm(name: str, problem: Problem, steps: control.Steps, batch: int, spread: float, scale: float) -> Report:
    """One part's gradients, times ``scale``; all noise is the problem's own."""
    unused = torch.Generator()
    if name == "adjoint_matching":
        return control_losses.adjoint_step(problem, unused, batch, steps, part=batch, scale=scale)
    if name == "path_kl":
        return control_losses.path_kl_step(problem, unused, batch, scale)
    if name == "direct":
        return control_losses.direct_step(problem, unused, batch, spread, scale)
    return control_losses.preview_step(problem, unused, batch, scale)


def card(settings: Settings, base: Baseline, teacher: str, oracle: str) -> dict[str, str]:
    """What a LoRA's metadata say of how it was made."""
    facts = {**asdict(settings), **base.summary(), "teacher": teacher, "oracle": oracle, "apprentice": "finetune"}
    return {key: str(value) for key, value in facts.items()}
