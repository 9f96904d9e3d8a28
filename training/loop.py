"""The one training loop: resumable to the bit, EMA, accumulation, several processes, progress, interruption.

A run is a function of its seed and its settings alone. Every step draws its randomness from a generator seeded by
(seed, step), the learning rate is a function of the pictures seen, and a checkpoint holds weights, EMA and optimisers;
so a run that was stopped and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import bytes_of, human_size, require_space, write_atomically
from ..weights.torch_archive import read_tree
from .run_folder import RECORD

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

    ``half_life`` is in pictures, 0 for no average; as in EDM it never exceeds ``rampup`` of the pictures seen so far.
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
        report: Called every ``report_every`` steps.
        log: The same as JSON lines, one a report; cut back to where a run resumes.
        interrupted: Asked after each step, and by long steps between their parts.
        cancelled_by: What networks raise by themselves when somebody cancels.
        on_save: Called after each save with the moving average and the pictures seen, for samples and plots.
        after_step: Called after each step with the steps done, once the moving average is up to date.
        say: Told before the work begins what each save takes on the disk.
    """

    report: Report | None = None
    report_every: int = 100
    log: Path | None = None
    interrupted: Callable[[], bool] = lambda: False
    cancelled_by: tuple[type[BaseException], ...] = ()
    on_save: Callable[[Ema, int], None] | None = None
    after_step: Callable[[int, Ema], None] | None = None
    say: Callable[[str], None] = lambda _sentence: None


@dataclass
class _Progress:
    """Where a run is: saved with it, so that reports do not depend on interruptions."""

    step: int = 0
    sums: Means = field(default_factory=dict)
    since: int = 0

    def add(self, losses: Means) -> None:
        self.since += 1
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def means(self) -> Means:
        means = {key: value / self.since for key, value in self.sums.items()}
        self.sums, self.since = {}, 0
        return means


def run(
    learners: Mapping[str, Learner],
    step: Callable[[torch.Generator], Means],
    schedule: Schedule,
    checkpoint: Path,
    *,
    ema: Ema,
    ema_of: nn.Module,
    seed: int = 0,
    save_every: int = 500,
    watch: Watch | None = None,
    main_process: bool = True,
) -> Ema:
    """Take the steps of ``schedule`` and return the moving average of ``ema_of``.

    Resumes from ``checkpoint`` when that file is there; saves to it every ``save_every`` steps, when interrupted, and
    at the end.

    Args:
        learners: What learns, by name.
        step: One whole step, optimisers included, with the step's generator; returns its losses by name. It may raise
            ``Interrupted``.
        main_process: False in all but one of several processes: only one writes and reports.

    Raises:
        KeyboardInterrupt: The run was interrupted; the checkpoint is up to date.
        FloatingPointError: A loss or a weight is no longer finite; the last checkpoint is from before.
        DiskFull: There is no room for what it saves; told before the work, as far as the disk doesn't fill meanwhile.
        ValueError: The checkpoint is damaged, or another run's.
    """
    watch = watch or Watch()
    progress = _resume(checkpoint, learners, ema)
    folder = _Folder(checkpoint)

    def check_weights() -> None:
        """Before every save, since a loss may be finite still when weights no longer are."""
        parameters = {name: list(learner.network.parameters()) for name, learner in learners.items()}
        parameters["moving average"] = [ema.shadow[key] for key, _ in ema_of.named_parameters()]
        for name, values in parameters.items():
            if not all(bool(value.isfinite().all()) for value in values):
                raise FloatingPointError(
                    f"Weights ('{name}') are no longer finite after {progress.step} steps; lower the learning rate. The last "
                    "checkpoint is from before."
                )

    check_weights()
    if main_process and progress.step < schedule.steps:
        _look_at_disk(checkpoint, learners, ema, schedule.steps - progress.step > save_every, watch)
    if main_process and watch.log is not None:
        _cut_log(watch.log, progress.step)
    started, first = time.monotonic(), progress.step
    for number in range(progress.step, schedule.steps):
        for learner in learners.values():
            learner.set_rate(schedule, number)
        try:
            losses = step(step_generator(seed, number))
        except Interrupted as stopped:
            check_weights()
            if main_process:
                folder.save(learners, ema, progress)
            raise KeyboardInterrupt from stopped
        for name, value in losses.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"The loss '{name}' became {value} at step {number}; lower the learning rate.")
        ema.update(ema_of, number * schedule.batch, schedule.batch)
        progress.step = number + 1
        progress.add(losses)
        if watch.after_step:
            watch.after_step(progress.step, ema)
        if progress.since >= watch.report_every or progress.step == schedule.steps:
            _tell(watch, progress, schedule, (time.monotonic() - started) / (progress.step - first), main_process)
        stop = watch.interrupted()
        if stop or progress.step % save_every == 0 or progress.step == schedule.steps:
            check_weights()
            if main_process:
                folder.save(learners, ema, progress)
            if watch.on_save and main_process:
                watch.on_save(ema, progress.step * schedule.batch)
        if stop:
            raise KeyboardInterrupt
    return ema


def train(
    model: nn.Module,
    loss: Callable[[torch.Generator, int], Tensor],
    schedule: Schedule,
    checkpoint: Path,
    *,
    seed: int = 0,
    ema_half_life: float = 20_000,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    save_every: int = 500,
    watch: Watch | None = None,
) -> Ema:
    """Minimise ``loss(generator, batch)`` over the parameters of ``model`` with AdamW; see ``run``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)

    def step(generator: torch.Generator) -> Means:
        value = loss(generator, schedule.batch)
        if torch.isfinite(value):  # else ``run`` stops before the weights are touched
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
        return {"loss": value.item()}

    learners = {"model": Learner(model, optimiser, schedule.learning_rate)}
    return run(
        learners, step, schedule, checkpoint, ema=Ema(model, ema_half_life), ema_of=model, seed=seed,
        save_every=save_every, watch=watch,
    )  # fmt: skip


def _tell(watch: Watch, progress: _Progress, schedule: Schedule, seconds: float, main_process: bool) -> None:
    means = progress.means()
    pictures = progress.step * schedule.batch
    if not main_process:
        return
    if watch.log is not None:
        line = json.dumps({"step": progress.step, "pictures": pictures, **means, "seconds_a_step": round(seconds, 4)})
        watch.log.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it meanwhile
        with watch.log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    if watch.report:
        watch.report(progress.step, pictures, means)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; what is no line of one, be it torn by a crash or damaged, is left out."""
    return [e for e in read_lines(path, "step", "pictures") if all(isinstance(v, (int, float)) for v in e.values())]


def read_lines(path: Path, *numbers: str) -> list[dict[str, Any]]:
    """The JSON objects of a text, one a line, that have all these ``numbers``; other lines are left out."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and all(type(entry.get(name)) in (int, float) for name in numbers):
            entries.append(entry)
    return entries


def _cut_log(path: Path, step: int) -> None:
    """Leave only what was reported up to ``step``: what came after a checkpoint is done again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [json.dumps(entry) + "\n" for entry in read_log(path) if entry["step"] <= step]
    write_atomically(path, lambda part: part.write_text("".join(kept), encoding="utf-8"))


class _Folder:
    """Where a run is saved. If somebody deletes the folder meanwhile, the next save makes it again, its record too."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.record = checkpoint, checkpoint.with_name(RECORD)
        self.told = self.record.read_bytes() if self.record.exists() else None

    def save(self, learners: Mapping[str, Learner], ema: Ema, progress: _Progress) -> None:
        """One checkpoint, over the one before."""
        if (told := self.told) is not None and not self.record.exists():
            write_atomically(self.record, lambda part: part.write_bytes(told))
        state = {
            "networks": {name: learner.network.state_dict() for name, learner in learners.items()},
            "optimisers": {name: learner.optimiser.state_dict() for name, learner in learners.items()},
            "ema": ema.shadow,
            "step": progress.step,
            "sums": progress.sums,
            "since": progress.since,
        }
        write_atomically(self.checkpoint, lambda temporary: torch.save(state, temporary), bytes_of(state))


def _look_at_disk(checkpoint: Path, learners: Mapping[str, Learner], ema: Ema, again: bool, watch: Watch) -> None:
    """Tell what a save takes, and refuse to begin where there is no room: ``again`` if more than one will be saved."""
    size = bytes_of(ema.shadow)
    for learner in learners.values():
        learnt = [p for group in learner.optimiser.param_groups for p in group["params"]]
        size += bytes_of(learner.network.state_dict()) + 2 * bytes_of(learnt)  # Adam keeps two numbers for each
    there, told = checkpoint.exists(), f"each save of this run takes {human_size(size)}, over the one before"
    if again or there:
        told += f", and while it is written {human_size(2 * size)}"
    watch.say(f"{told[0].upper()}{told[1:]}.")
    require_space(checkpoint, size * (1 + (again and not there)), told)


def _resume(path: Path, learners: Mapping[str, Learner], ema: Ema) -> _Progress:
    if not path.exists():
        return _Progress()
    try:
        state = read_tree(path, mapped=False)  # it will be written over
        for name, learner in learners.items():
            learner.network.load_state_dict(state["networks"][name])
            learner.optimiser.load_state_dict(state["optimisers"][name])
        for key, value in state["ema"].items():
            ema.shadow[key].copy_(value)
        return _Progress(int(state["step"]), dict(state["sums"]), int(state["since"]))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises a dozen kinds for bad files
        raise ValueError(
            f"'{path.name}' of the run '{path.parent.name}' is damaged, or another run's: delete the run's folder to begin anew."
        ) from error
