"""The one training loop: resumable to the bit, EMA, accumulation, several processes, progress, interruption.

A run is a function of its seed and its settings alone. Every step draws its randomness from a generator seeded by
(seed, step), the learning rate is a function of the pictures seen, and a checkpoint holds weights, EMA and optimisers;
so a run that was stopped and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..files import bytes_of, human_size, require_space
from ..weights.torch_archive import read_tree
from .run_folder import RunFolder

Means = dict[str, float]
# (step, picture count so far, losses averaged since the last report)
Report = Callable[[int, int, Means], None]


@dataclass(frozen=True)
class Schedule:
    """Batch size and learning rate as functions of pictures seen: linear warm-up, constant, cosine decay to 1 %."""

    pictures: int
    batch: int
    learning_rate: float
    warmup: float = 0.02
    decay: float = 0.5

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return math.ceil(self.pictures / self.batch)

    def factor(self, step: int) -> float:
        """The learning rate of ``step`` (0-based) as a part of the highest."""
        done = step / self.steps
        if done < self.warmup:
            return (done + 1 / self.steps) / self.warmup
        if done < 1 - self.decay or self.decay == 0:
            return 1.0
        phase = (done - (1 - self.decay)) / self.decay
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase))


class Ema:
    """Exponential moving average of parameters: e <- d e + (1 - d) p, with d ramped up over the first pictures.

    ``half_life`` is in pictures, 0 for no average; as in EDM it never exceeds ``rampup`` of the pictures seen so far. (By hand:
    ``torch.optim.swa_utils.AveragedModel`` takes the first weights whole, knows no ramp-up, and deep-copies the network, hooks
    and all, where runs keep tensors.)
    """

    def __init__(self, model: nn.Module, half_life: float, rampup: float = 0.1) -> None:
        self.half_life, self.rampup = half_life, rampup
        self.shadow = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, seen: int, batch: int) -> None:
        """Fold in the weights after a step on ``batch`` pictures, before which ``seen`` had been seen."""
        half_life = min(self.half_life, max(seen * self.rampup, 1e-8))
        decay = 0.5 ** (batch / half_life) if half_life else 0.0
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of all randomness of one step (a CPU generator, so that devices agree)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFFFFFFFFFFFFFF)


# -------------------------------------------------------------------------------------------------------- runs


class Interrupted(Exception):  # noqa: N818 - it names what happened
    """Raised by a step that was stopped before it had changed anything."""


@dataclass
class Learner:
    """A network that learns, its optimiser, its highest learning rate, and for which part of the run it waits first."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    learning_rate: float
    delay: float = 0.0

    def set_rate(self, schedule: Schedule, step: int) -> None:
        """Set the learning rate of ``step``; 0 while the learner waits."""
        waits = step < self.delay * schedule.steps
        for group in self.optimiser.param_groups:
            group["lr"] = 0.0 if waits else self.learning_rate * schedule.factor(step)


@dataclass
class Watch:
    """Who is told of a run, and who may stop it.

    Attributes:
        report: Called every ``report_every`` steps, as often as the folder's log gets a line.
        interrupted: Asked after each step, and by long steps between their parts.
        cancelled_by: What networks raise by themselves when somebody cancels.
        on_save: Called after each save with the moving average, if there is one, and the pictures seen: samples and plots.
        after_step: Called after each step with the steps done and the averaged weights; none where nothing is averaged.
        say: Told before the work begins what each save takes on the disk.
    """

    report: Report | None = None
    report_every: int = 100
    interrupted: Callable[[], bool] = lambda: False
    cancelled_by: tuple[type[BaseException], ...] = ()
    on_save: Callable[[Ema, int], None] | None = None
    after_step: Callable[[int, Mapping[str, Tensor]], None] | None = None
    say: Callable[[str], None] = lambda _sentence: None


_COUNTERS = ("taken", "counter.taken")
"""Steps counted beside the weights, in the checkpoints of versions up to 0.4; like averages that nobody asked for, left there."""


@dataclass
class _State:
    """Everything that a checkpoint holds: networks, optimisers, average, and where the run is.

    The sums are those of reports, which so don't depend on interruptions.
    """

    learners: Mapping[str, Learner]
    ema: Ema | None
    ema_of: nn.Module | None
    step: int = 0
    sums: Means = field(default_factory=dict)
    since: int = 0

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The moving average; nothing where nothing is averaged."""
        return {} if self.ema is None else self.ema.shadow

    def add(self, losses: Means, batch: int) -> None:
        """Count a step."""
        for name, value in losses.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"The loss '{name}' became {value} at step {self.step}; lower the learning rate.")
        if self.ema is not None and self.ema_of is not None:
            self.ema.update(self.ema_of, self.step * batch, batch)
        self.step += 1
        self.since += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> Means:
        """Since the last report."""
        means = {key: value / self.since for key, value in self.sums.items()}
        self.sums, self.since = {}, 0
        return means

    def check_weights(self) -> None:
        """Before every save, since a loss may be finite still when weights no longer are."""
        weights = {name: list(learner.network.parameters()) for name, learner in self.learners.items()}
        if self.ema_of is not None:
            weights["moving average"] = [self.averaged[key] for key, _ in self.ema_of.named_parameters()]  # type: ignore[misc]
        for name, values in weights.items():
            if not all(bool(value.isfinite().all()) for value in values):
                raise FloatingPointError(
                    f"Weights ('{name}') are no longer finite after {self.step} steps; lower the learning rate. The last "
                    "checkpoint is from before."
                )

    def look_at_disk(self, folder: RunFolder, again: bool, say: Callable[[str], None]) -> None:
        """Tell what a save takes, and refuse to begin where there is no room: ``again`` if more than one will be saved."""
        size = bytes_of(self.averaged)
        for learner in self.learners.values():
            learnt = [p for group in learner.optimiser.param_groups for p in group["params"]]
            size += bytes_of(learner.network.state_dict()) + 2 * bytes_of(learnt)  # Adam keeps two numbers for each
        there, what = folder.checkpoint.exists(), f"each save of this run takes {human_size(size)}, over the one before"
        if again or there:
            what += f", and while it is written {human_size(2 * size)}"
        say(f"{what[0].upper()}{what[1:]}.")
        require_space(folder.checkpoint, size * (1 + (again and not there)), what)

    def save(self, folder: RunFolder, main_process: bool) -> None:
        """One checkpoint, of weights that are numbers."""
        self.check_weights()
        if not main_process:
            return
        folder.save(
            {
                "networks": {name: learner.network.state_dict() for name, learner in self.learners.items()},
                "optimisers": {name: learner.optimiser.state_dict() for name, learner in self.learners.items()},
                "ema": self.averaged, "step": self.step, "sums": self.sums, "since": self.since,
            }
        )  # fmt: skip

    def resume(self, folder: RunFolder) -> None:
        """Go on where the folder's checkpoint is, if there is one."""
        if not folder.checkpoint.exists():
            return
        try:
            state = read_tree(folder.checkpoint, mapped=False)  # it will be written over
            for name, learner in self.learners.items():
                weights = {key: value for key, value in state["networks"][name].items() if key not in _COUNTERS}
                learner.network.load_state_dict(weights)
                learner.optimiser.load_state_dict(state["optimisers"][name])
            for key, value in self.averaged.items():
                value.copy_(state["ema"][key])
            self.step, self.sums, self.since = int(state["step"]), dict(state["sums"]), int(state["since"])
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # torch raises a dozen kinds for bad files
            raise ValueError(
                f"'{folder.checkpoint.name}' of the run '{folder.path.name}' is damaged, or another run's: delete the run's "
                "folder to begin anew."
            ) from error


def run(
    learners: Mapping[str, Learner], step: Callable[[int, torch.Generator], Means], schedule: Schedule, folder: RunFolder, *,
    ema: Ema | None = None, ema_of: nn.Module | None = None, seed: int = 0, save_every: int = 500, watch: Watch | None = None,
    main_process: bool = True, over: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Take the steps of ``schedule``; ``ema`` follows ``ema_of``.

    Resumes from the folder's checkpoint when there is one; saves every ``save_every`` steps, when interrupted, and at the end.

    Args:
        learners: What learns, by name.
        step: One whole step, optimisers included, with its 0-based number and its generator; returns its losses by name. It
            may raise ``Interrupted``.
        main_process: False in all but one of several processes: only one writes and reports.
        over: Asked before each step: whether the run is at its end before its last step, in all processes alike.

    Raises:
        KeyboardInterrupt: The run was interrupted; the checkpoint is up to date.
        FloatingPointError: A loss or a weight is no longer finite; the last checkpoint is from before.
        DiskFull: There is no room for what it saves; told before the work, as far as the disk doesn't fill meanwhile.
        ValueError: The checkpoint is damaged, or another run's.
    """
    watch, state = watch or Watch(), _State(learners, ema, ema_of)
    state.resume(folder)
    state.check_weights()
    if main_process and state.step < schedule.steps:
        state.look_at_disk(folder, schedule.steps - state.step > save_every, watch.say)
    if main_process:
        folder.cut_log(state.step)
    started, first = time.monotonic(), state.step
    for number in range(state.step, schedule.steps):
        if over():
            break
        for learner in learners.values():
            learner.set_rate(schedule, number)
        try:
            losses = step(number, step_generator(seed, number))
        except Interrupted as stopped:
            state.save(folder, main_process)
            raise KeyboardInterrupt from stopped
        state.add(losses, schedule.batch)
        if watch.after_step:
            watch.after_step(state.step, state.averaged)
        done = state.step == schedule.steps or over()
        if state.since >= watch.report_every or done:
            seconds = (time.monotonic() - started) / (state.step - first)
            _report(watch, folder if main_process else None, state, schedule.batch, seconds)
        stop = watch.interrupted()
        if stop or done or state.step % save_every == 0:
            state.save(folder, main_process)
            if watch.on_save and main_process and ema is not None:
                watch.on_save(ema, state.step * schedule.batch)
        if stop:
            raise KeyboardInterrupt


def train(
    model: nn.Module, loss: Callable[[torch.Generator, int], Tensor], schedule: Schedule, folder: RunFolder, *, seed: int = 0,
    ema_half_life: float = 20_000, weight_decay: float = 0.01, clip: float = 1.0, save_every: int = 500,
    watch: Watch | None = None,
) -> Ema:  # fmt: skip
    """Minimise ``loss(generator, batch)`` over the parameters of ``model`` with AdamW; see ``run``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)

    def step(_number: int, generator: torch.Generator) -> Means:
        value = loss(generator, schedule.batch)
        if torch.isfinite(value):  # else ``run`` stops before the weights are touched
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
        return {"loss": value.item()}

    learners, ema = {"model": Learner(model, optimiser, schedule.learning_rate)}, Ema(model, ema_half_life)
    run(learners, step, schedule, folder, ema=ema, ema_of=model, seed=seed, save_every=save_every, watch=watch)
    return ema


def _report(watch: Watch, folder: RunFolder | None, state: _State, batch: int, seconds: float) -> None:
    """To the log and to whoever watches; to nobody without a folder."""
    means, pictures = state.means(), state.step * batch
    if folder is None:
        return
    folder.note({"step": state.step, "pictures": pictures, **means, "seconds_a_step": round(seconds, 4)})
    if watch.report:
        watch.report(state.step, pictures, means)
