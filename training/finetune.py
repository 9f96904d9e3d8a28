"""Fine-tuning a diffusion model by an oracle: ``control``'s algorithms as runs that can be stopped and resumed to the bit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import save_safetensors_atomically, write_atomically
from ..weights.checkpoints import read_metadata, read_weights
from . import control, control_losses
from .control import Problem, Process, Report
from .fdivergence import DualSolution, alpha_for_kl, alpha_for_reward, divergence, kl_to_base, solve_dual, surrogate_reward
from .loop import Ema, Interrupted, Learner, Means, Schedule, Watch, run, step_generator
from .processes import Processes

ALGORITHMS = ("adjoint_matching", "path_kl", "weighted_regression", "preview", "direct")
STRENGTHS = ("alpha", "target KL", "target reward gain")
_FEWEST = 64  # base rewards a prompt, below which lambda is a guess

Labels = Any
Labelled = Callable[[Tensor, Tensor, Labels], Tensor]
"""D(x [N, ...], sigma or time [N], labels of N pictures)."""


@dataclass(frozen=True)
class Settings:
    """A run's settings.

    Attributes:
        algorithm: One of ``ALGORITHMS``.
        divergence: See ``fdivergence.divergence``.
        strength: What ``value`` means, one of ``STRENGTHS``. alpha is in units of the reward and per picture.
        value: alpha; or nats a picture; or by how much the mean reward shall rise.
        updates: Optimiser steps.
        batch: Pictures a step.
        part: Pictures in memory at a time; 0 for the whole batch.
        count: Steps of the process that are regressed on, 0 for all; ``last`` of them are the last.
        clip: Largest norm of a step's gradient.
        base_draws: Pictures of the base for each prompt, whose rewards give lambda and the strength.
        rounds: Of weighted regression: each draws ``pool`` pictures for each prompt.
    """

    algorithm: str = "adjoint_matching"
    divergence: str = "kl"
    strength: str = "alpha"
    value: float = 1.0
    updates: int = 200
    batch: int = 8
    part: int = 0
    count: int = 8
    last: int = 3
    learning_rate: float = 1e-4
    clip: float = 1.0
    base_draws: int = _FEWEST
    rounds: int = 4
    pool: int = 64
    ema_half_life: float = 500.0
    seed: int = 0

    def check(self) -> None:
        """Whether the choices exist.

        Raises:
            ValueError: One doesn't.
        """
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"There is no algorithm '{self.algorithm}'; choose one of: {', '.join(ALGORITHMS)}.")
        if self.strength not in STRENGTHS:
            raise ValueError(f"There is no strength '{self.strength}'; choose one of: {', '.join(STRENGTHS)}.")
        if not self.value > 0:
            raise ValueError(f"The strength's value is {self.value:g}; it must be above 0.")
        divergence(self.divergence)

    @property
    def draws(self) -> int:
        """Pictures of the base for each prompt: few, where neither strength nor divergence nor weights follow from them."""
        told_alone = self.strength == "alpha" and self.divergence == "kl" and self.algorithm != "weighted_regression"
        return min(self.base_draws, 8) if told_alone else self.base_draws

    @property
    def schedule(self) -> Schedule:
        """Warm-up, constant, a cosine at the end."""
        return Schedule(self.updates * self.batch, self.batch, self.learning_rate, warmup=0.05, decay=0.5)


@dataclass
class Task:
    """What is tuned.

    Attributes:
        base: The network as it was, without guidance.
        tuned: The same network with what is learned.
        learned: What is learned: a LoRA, mostly.
        reward: (pictures or latents [B, ...], numbers of their prompts [B]) -> rewards [B].
        labels: Numbers of prompts [N] -> the network's conditions.
        prompts: How many there are.
        process: How pictures are drawn.
        shape: Of one picture or latent.
        differentiable: Whether the reward is.
        spread: Standard deviation of a picture or latent, the unit of what ``direct`` pays for.
        start_scale: Of the noise that drawing starts from, over the process's own.
        facts: Who draws and who judges, for what is kept on disk: network, oracle, prompts, size, as JSON can hold them.
        drawn_at_once, judged_at_once: Pictures in memory at a time where nothing is learned, which takes far less of it.
    """

    base: Labelled
    tuned: Labelled
    learned: nn.Module
    reward: Callable[[Tensor, Tensor], Tensor]
    labels: Callable[[Tensor], Labels]
    prompts: int
    process: Process
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"
    differentiable: bool = True
    spread: float = 1.0
    start_scale: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    drawn_at_once: int = 32
    judged_at_once: int = 32

    def key(self, **more: Any) -> str:
        """Names what follows from the facts and from ``more``: kept files carry it, and are made anew where it differs."""
        levels = [value.tolist() for value in (self.process.a, self.process.b, self.process.times)]
        told = [dict(self.facts), self.prompts, self.shape, levels, self.process.eta, self.start_scale, more]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def problem(
        self, rows: Tensor, alpha: float, reward: Callable[[Tensor, Tensor], Tensor] | None = None, seeds: Tensor | None = None
    ) -> Problem:
        """The control problem of a batch with these prompts [B].

        Args:
            seeds: [B] of all noise of each picture, so that it doesn't depend on who is drawn beside it.
        """
        judged = reward or self.reward
        own = [torch.Generator().manual_seed(int(seed)) for seed in seeds] if seeds is not None else []

        def noise(generator: torch.Generator, like: Tensor) -> Tensor:
            if not own:
                return control.unit_noise(generator, like)
            return torch.stack([torch.randn(like.shape[1:], generator=source) for source in own]).to(like)

        def with_labels(network: Labelled) -> control.Denoise:
            return lambda x, time, which: network(x, time, self.labels(rows[which.to(rows.device)]))

        def start(generator: torch.Generator, count: int) -> Tensor:
            unit = noise(generator, torch.zeros(count, *self.shape, device=self.device))
            return unit * (float(self.process.b[0]) * self.start_scale)

        return Problem(
            with_labels(self.base), with_labels(self.tuned), lambda x: judged(x, rows), alpha, self.process, start, noise
        )

    def draw(
        self, rows: Tensor, generator: torch.Generator, tuned: bool = True, step: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """Pictures of these prompts [B], by the tuned network or the base; how many at once changes nothing.

        Args:
            step: Told after every step of some of them how those look.
        """
        seeds = torch.randint(2**62, (len(rows),), generator=generator)
        drawn = []
        for r, s in zip(rows.split(self.drawn_at_once), seeds.split(self.drawn_at_once), strict=True):
            problem = self.problem(r, 1.0, seeds=s)
            if step is not None:
                problem = replace(problem, base=_telling(problem.base, step), tuned=_telling(problem.tuned, step))
            drawn.append(problem.draw(generator, len(r), tuned)[-1])
        return torch.cat(drawn)

    @torch.no_grad()
    def judge(self, pictures: Tensor, rows: Tensor) -> Tensor:
        """Rewards [B], float32 on the CPU."""
        parts = zip(pictures.split(self.judged_at_once), rows.split(self.judged_at_once), strict=True)
        return torch.cat([self.reward(x, r).float().cpu() for x, r in parts])


def _telling(network: control.Denoise, step: Callable[[Tensor], None]) -> control.Denoise:
    """``network``, telling what it answers."""

    def denoise(x: Tensor, time: Tensor, which: Tensor) -> Tensor:
        denoised = network(x, time, which)
        step(denoised)
        return denoised

    return denoise


# ------------------------------------------------------------------------------------------------- what base earns


@dataclass(frozen=True)
class Baseline:
    """The base's rewards [prompts, draws], and what follows: the strength, and lambda for each prompt."""

    rewards: Tensor
    alpha: float
    solutions: list[DualSolution]
    name: str

    @property
    def lam(self) -> Tensor:
        """lambda of each prompt."""
        return torch.tensor([solution.lam for solution in self.solutions], dtype=torch.float32)

    def surrogate(self, values: Tensor, rows: Tensor) -> Tensor:
        """The reward whose KL optimum is the divergence's; rewards as they are for KL."""
        if self.name == "kl":
            return values
        return surrogate_reward(values, self.lam.to(values)[rows.to(values.device)], self.alpha, self.name)

    def weights(self, rewards: Tensor, rows: Tensor, rounds: int) -> Tensor:
        """w^(1 / rounds) of rewards [N], of mean 1 for each prompt, as one round of weighted regression counts them."""
        y = (rewards.double() - self.lam.double()[rows]) / self.alpha
        raw = (divergence(self.name).log_weight(y) / rounds).exp()
        sums = torch.zeros(len(self.solutions), dtype=raw.dtype).index_add_(0, rows, raw)
        means = sums / rows.bincount(minlength=len(sums)).clamp(min=1)
        return (raw / means.clamp(min=1e-12)[rows]).float()

    def told(self) -> dict[str, float]:
        """For people: the strength in all its units, means over prompts."""
        kl = sum(kl_to_base(s) for s in self.solutions) / len(self.solutions)
        gained = sum(float((r * s.weights).mean()) for r, s in zip(self.rewards.double(), self.solutions, strict=True))
        return {
            "alpha": self.alpha, "alpha_as_kl": self.alpha * divergence(self.name).stiffness, "target_kl": kl,
            "target_reward": gained / len(self.solutions), "base_reward": float(self.rewards.mean()),
            "ess": min(s.ess for s in self.solutions),
        }  # fmt: skip


Drawing = Callable[[int, int, Tensor], None]
"""Told of the base's pictures while they are drawn: evaluations done, evaluations in all, some pictures as they look now. It may
raise KeyboardInterrupt."""


def base_rewards(
    task: Task, settings: Settings, file: Path, interrupted: Callable[[], bool], drawing: Drawing | None = None
) -> Tensor:
    """Rewards [prompts, draws] of the base's pictures; drawn once, kept in ``file``, and drawn anew if that is another run's.

    Raises:
        KeyboardInterrupt: ``interrupted`` said so; what was drawn is kept.
    """
    key = task.key(draws=settings.draws, seed=settings.seed)
    known = _read_rewards(file, key, settings.draws)[: task.prompts]
    done, total = (count * settings.draws * task.process.steps for count in (len(known), task.prompts))

    def step(pictures: Tensor) -> None:
        nonlocal done
        done += len(pictures)
        if drawing is not None:
            drawing(done, total, pictures)

    for prompt in range(len(known), task.prompts):
        if interrupted():
            raise KeyboardInterrupt
        rows, rng = torch.full((settings.draws,), prompt), step_generator(settings.seed + 7_919, prompt)
        pictures = task.draw(rows, rng, tuned=False, step=step)
        known.append(task.judge(pictures, rows).double().tolist())
        text = json.dumps({"key": key, "rewards": known})
        write_atomically(file, lambda part, text=text: part.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    return torch.tensor(known)


def _read_rewards(file: Path, key: str, draws: int) -> list[list[float]]:
    """What ``file`` holds of a run with this key; nothing if it is another's, or damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        rows = [[float(value) for value in row] for row in kept["rewards"]] if kept["key"] == key else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return rows if all(len(row) == draws for row in rows) else []


def baseline(rewards: Tensor, settings: Settings) -> Baseline:
    """Strength and lambdas from the base's rewards [prompts, draws].

    Raises:
        ValueError: The target can't be reached, or no density is optimal, or the oracle has no score.
    """
    if broken := int((~rewards.isfinite()).sum()):
        raise ValueError(
            f"The oracle has no score for {broken} of {rewards.numel()} pictures of the model as it was; choose another "
            "precision, oracle or VAE, and another name for the run."
        )
    alpha = settings.value
    if settings.strength == "target KL":
        alpha = alpha_for_kl(rewards, settings.value, settings.divergence)
    elif settings.strength == "target reward gain":
        alpha = alpha_for_reward(rewards, float(rewards.double().mean()) + settings.value, settings.divergence)
    return Baseline(rewards, alpha, [solve_dual(row, alpha, settings.divergence) for row in rewards], settings.divergence)


# ------------------------------------------------------------------------------------------------------------ runs


def check(settings: Settings, steps: int, differentiable: bool) -> None:
    """Whether ``settings`` fit a model that draws in ``steps`` steps, and the oracle.

    Raises:
        ValueError: They don't.
    """
    settings.check()
    if not differentiable and settings.algorithm != "weighted_regression":
        raise ValueError("This oracle has no gradient; choose the algorithm 'weighted_regression'.")
    if settings.algorithm in ("preview", "direct") and settings.divergence != "kl":
        raise ValueError(f"'{settings.algorithm}' has a price of its own, so there is no divergence to choose; set it to 'kl'.")
    if settings.algorithm == "direct" and settings.strength != "alpha":
        raise ValueError("'direct' pays picture by picture and reaches no tilted law, so only 'alpha' can be its strength.")
    if settings.algorithm == "direct" and steps != 1:
        raise ValueError("'direct' is for one-step students; choose 'adjoint_matching' or 'path_kl' for this model.")
    if settings.algorithm != "direct" and steps == 1:
        raise ValueError("A one-step student has no path to pay for; choose 'direct', or tune its teacher and distil again.")


def finetune(
    task: Task, settings: Settings, folder: Path, *, watch: Watch | None = None, save_every: int = 25,
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
    told, processes = watch or Watch(), processes or Processes()
    processes.rows(settings.batch)
    watch = replace(told, interrupted=lambda: processes.any(told.interrupted())) if processes.count > 1 else told
    known = baseline(base_rewards(task, settings, folder / "base_rewards.json", watch.interrupted, drawing), settings)
    optimiser = torch.optim.Adam(task.learned.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95))
    stage = _Regression(task, settings, known, folder, processes) if settings.algorithm == "weighted_regression" else None
    number = _Counter()

    def step(rng: torch.Generator) -> Means:
        optimiser.zero_grad(set_to_none=True)
        try:
            found = stage.step(number.value, rng) if stage else _tilt(task, settings, known, rng, processes, told)
        except watch.cancelled_by as cancelled:
            raise Interrupted from cancelled
        processes.add_gradients(list(task.learned.parameters()))
        norm = torch.nn.utils.clip_grad_norm_(task.learned.parameters(), settings.clip)
        optimiser.step()
        number.value += 1
        means = processes.total({"loss": found.loss, "reward": found.reward, "kl": found.kl})
        return {**means, "gradient": float(norm)}

    both = nn.ModuleDict({"learned": task.learned, "counter": number})
    ema = run(
        {"tuned": Learner(both, optimiser, settings.learning_rate)}, step, settings.schedule, folder / "checkpoint.pt",
        ema=Ema(task.learned, settings.ema_half_life), ema_of=task.learned, seed=settings.seed, save_every=save_every,
        watch=watch, main_process=processes.main,
    )  # fmt: skip
    return ema, known


class _Counter(nn.Module):
    """Steps taken, saved with the run."""

    taken: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))

    @property
    def value(self) -> int:
        return int(self.taken)

    @value.setter
    def value(self, value: int) -> None:
        self.taken.fill_(value)


def _tilt(task: Task, settings: Settings, known: Baseline, rng: torch.Generator, processes: Processes, watch: Watch) -> Report:
    """This process's part of a batch of an algorithm that follows the reward's gradient; its part of the mean report."""
    reward = lambda x, rows: known.surrogate(task.reward(x, rows), rows)  # noqa: E731
    rows = torch.randint(task.prompts, (settings.batch,), generator=rng)
    seeds = torch.randint(2**62, (settings.batch,), generator=rng)
    steps = control.chosen_steps(task.process, settings.count, settings.last, rng) if task.process.steps > 1 else {}
    mine = torch.arange(settings.batch)[processes.rows(settings.batch)]
    total = {"loss": 0.0, "reward": 0.0, "kl": 0.0}
    for part in mine.split(settings.part or settings.batch):
        if processes.count == 1 and watch.interrupted():
            raise Interrupted
        problem, share = task.problem(rows[part], known.alpha, reward, seeds[part]), len(part) / settings.batch
        found = _algorithm(settings.algorithm, problem, steps, len(part), task.spread, share)
        for name in total:
            value = getattr(found, name)
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


class _Regression:
    """Weighted regression in rounds: own pictures, scored, then denoised by their weights."""

    def __init__(self, task: Task, settings: Settings, known: Baseline, folder: Path, processes: Processes) -> None:
        self.task, self.settings, self.known, self.folder, self.processes = task, settings, known, folder, processes
        self.round, self.pool = -1, dict[str, Tensor]()
        learned = {name: list(value.shape) for name, value in task.learned.named_parameters()}
        self.key = task.key(learned=learned, **asdict(replace(settings, part=0)))

    def step(self, number: int, rng: torch.Generator) -> Report:
        """Step ``number`` of the run."""
        of_round = min(number * self.settings.rounds // self.settings.updates, self.settings.rounds - 1)
        if of_round != self.round:
            self.pool, self.round = self._pool(of_round), of_round
        elif not self._file(of_round).exists():  # somebody has deleted it, and it can't be drawn again: what drew has learned
            self._keep(of_round)
        batch, noisy = self.settings.batch, torch.tensor(control.noisy_steps(self.task.process))
        chosen = torch.randint(len(self.pool["rows"]), (batch,), generator=rng)
        levels = noisy[torch.randint(len(noisy), (batch,), generator=rng)]
        noise, loss = torch.randn(batch, *self.task.shape, generator=rng), 0.0
        mine = torch.arange(batch)[self.processes.rows(batch)]
        for part in mine.split(self.settings.part or batch):
            found = self._loss(chosen[part], levels[part], noise[part]) * (len(part) / batch)
            found.backward()
            loss += found.item()
        return Report(loss, float(self.pool["rewards"].mean()) / self.processes.count, 0.0)

    def _loss(self, part: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
        task, rows = self.task, self.pool["rows"][part]
        problem = task.problem(rows, 1.0)
        pictures, weights = (self.pool[name][part].to(task.device) for name in ("pictures", "weights"))
        return control_losses.weighted_regression_step(
            problem.tuned, self._drew(problem), task.process, pictures, weights, levels.to(task.device), noise.to(task.device)
        )

    def _drew(self, problem: Problem) -> control.Denoise:
        """The network that drew the round's pictures: the base, later what was learned when the round began."""
        if self.round == 0:
            return problem.base

        def denoise(x: Tensor, time: Tensor, which: Tensor) -> Tensor:
            with _as_it_was(self.task.learned, self.pool):
                return problem.tuned(x, time, which)

        return denoise

    def _pool(self, number: int) -> dict[str, Tensor]:
        """The pictures of a round, with rewards and weights; drawn by the network as it is when the round begins, and kept."""
        if (kept := self._kept(self._file(number))) is not None:
            return kept
        rows = torch.arange(self.task.prompts).repeat_interleave(self.settings.pool)
        rng = step_generator(self.settings.seed + 104_729, number)
        pictures = self.task.draw(rows, rng, tuned=number > 0)
        rewards = self.task.judge(pictures, rows)
        pool = {"rows": rows, "pictures": pictures.float().cpu(), "rewards": rewards}
        pool["weights"] = self.known.weights(rewards, rows, self.settings.rounds)
        if number:
            pool |= {_LEARNED + name: value.detach().cpu().clone() for name, value in self.task.learned.named_parameters()}
        self.pool = pool
        self._keep(number)
        return pool

    def _file(self, number: int) -> Path:
        return self.folder / f"pool_{number}.safetensors"

    def _keep(self, number: int) -> None:
        save_safetensors_atomically(self.pool, self._file(number), {"key": self.key})

    def _kept(self, file: Path) -> dict[str, Tensor] | None:
        """The round's pictures if they are this run's; None if there are none, another run's, or damaged ones."""
        try:
            return read_weights(file) if file.exists() and read_metadata(file).get("key") == self.key else None
        except ValueError:
            return None


_LEARNED = "learned."  # of a pool: what was learned when its round began


@contextmanager
def _as_it_was(learned: nn.Module, pool: dict[str, Tensor]) -> Iterator[None]:
    """What is learned, as it was when the pool was drawn; for the block, in which nothing may be differentiated."""
    parameters = dict(learned.named_parameters())
    now = {name: value.data for name, value in parameters.items()}
    try:
        for name, value in parameters.items():
            value.data = pool[_LEARNED + name].to(value.device)
        yield
    finally:
        for name, value in parameters.items():
            value.data = now[name]


def card(settings: Settings, known: Baseline, teacher: str, oracle: str) -> dict[str, str]:
    """What a LoRA's metadata say of how it was made."""
    facts = {**replace(settings).__dict__, **known.told(), "teacher": teacher, "oracle": oracle, "apprentice": "finetune"}
    return {key: str(value) for key, value in facts.items()}
