"""Weighted regression in rounds, for oracles without a gradient: pictures are drawn, scored, and learned by their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import save_safetensors_atomically
from ..weights.checkpoints import read_metadata, read_weights
from . import control, control_losses
from .baseline import Baseline
from .control import Problem, Report
from .finetune_task import Settings, Task
from .loop import step_generator
from .processes import Processes
from .run_folder import RunFolder


class Rounds:
    """Weighted regression in rounds: own pictures, scored, then denoised by their weights."""

    def __init__(self, task: Task, settings: Settings, base: Baseline, folder: RunFolder, processes: Processes) -> None:
        self.task, self.settings, self.base, self.folder, self.processes = task, settings, base, folder, processes
        self.round, self.pool = -1, dict[str, Tensor]()
        learned = {name: list(value.shape) for name, value in task.learned.named_parameters()}
        self.key = task.key(learned=learned, **asdict(replace(settings, part=0)))

    def step(self, number: int, rng: torch.Generator) -> Report:
        """Step ``number`` of the run."""
        of_round = min(number * self.settings.rounds // self.settings.updates, self.settings.rounds - 1)
        if of_round != self.round:
            self.pool, self.round = self._pool(of_round), of_round
        elif not self.folder.pool(of_round).exists():  # deleted, and it can't be drawn again: what drew it has learned since
            self._keep(of_round)
        batch, noisy = self.settings.batch, torch.tensor(control.noisy_steps(self.task.process))
        chosen = torch.randint(len(self.pool["rows"]), (batch,), generator=rng)
        levels = noisy[torch.randint(len(noisy), (batch,), generator=rng)]
        noise, loss = torch.randn(batch, *self.task.shape, generator=rng), 0.0
        rows = torch.arange(batch)[self.processes.rows(batch)]
        for part in rows.split(self.settings.part or batch):
            share = self._loss(chosen[part], levels[part], noise[part]) * (len(part) / batch)
            share.backward()
            loss += share.item()
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
        if (kept := self._kept(self.folder.pool(number))) is not None:
            return kept
        rows = torch.arange(self.task.prompts).repeat_interleave(self.settings.pool)
        rng = step_generator(self.settings.seed + 104_729, number)
        pictures = self.task.draw(rows, rng, tuned=number > 0)
        rewards = self.task.judge(pictures, rows)
        pool = {"rows": rows, "pictures": pictures.float().cpu(), "rewards": rewards}
        pool["weights"] = self.base.weights(rewards, rows, self.settings.rounds)
        if number:
            pool |= {_LEARNED + name: value.detach().cpu().clone() for name, value in self.task.learned.named_parameters()}
        self.pool = pool
        self._keep(number)
        return pool

    def _keep(self, number: int) -> None:
        save_safetensors_atomically(self.pool, self.folder.pool(number), {"key": self.key})

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
