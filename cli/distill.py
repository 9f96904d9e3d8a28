"""``apprentice distill``: ``sid``, one-step students of EDM's pixel-space networks; ``promptkd``, critics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .promptkd import promptkd, promptkd_teacher
from .running import (
    Device,
    Finite,
    Precision,
    Threads,
    check_out,
    check_precision,
    pick_device,
    progress_bar,
    say,
    set_threads,
    stop_signals,
    told_in_words,
)

if TYPE_CHECKING:
    from ..training.distill import Settings, Task
    from ..training.loop import Ema, Watch
    from ..training.processes import Processes
    from ..training.run_folder import Differences, RunFolder

distill = typer.Typer(no_args_is_help=True, help="Distil teachers into students: one-step generators, and critics.")
distill.command(cls=Finite)(promptkd)
distill.command(cls=Finite)(promptkd_teacher)

_FREE = ("pictures", "part")  # what may change while a run goes on
_PRESETS = (
    "A published run's settings; options given beside it win. The paper's FIDs, not measured here: cifar10-uncond 1.923, "
    "cifar10-cond 1.710, imagenet64-cond 1.524, ffhq64 1.550, afhqv2-64 1.628."
)


@distill.command(cls=Finite)
def sid(
    teacher: Annotated[Path, typer.Argument(help="An EDM network: .pkl, or .safetensors from 'apprentice convert'.")],
    out: Annotated[Path, typer.Option(help="The student's file (.safetensors); Load EDM Network draws with it.")],
    preset: Annotated[str | None, typer.Option(help=_PRESETS)] = None,
    pictures: Annotated[int | None, typer.Option(min=1, help="Pictures that the generator draws in all; 20,000.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures an iteration, over all processes; 32.")] = None,
    part: Annotated[int | None, typer.Option(min=1, help="Pictures at a time: less memory, the same result.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the fake score network; 1e-5.")] = None,
    glr: Annotated[float | None, typer.Option(help="Learning rate of the generator; 1e-5.")] = None,
    alpha: Annotated[float | None, typer.Option(help="SiD's alpha; 1.2. Try 1.0 where training is unstable.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=16, help="Steps of the student; 1.")] = None,
    augment: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability of EDM's augmentations; 0.12 where the teacher knows them.")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Of the networks that learn, while they do; the teacher's own.")
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="A folder of real pictures (PNG, JPEG): adds SiDA's adversarial loss. Without classes.")
    ] = None,
    adversarial: Annotated[float | None, typer.Option(min=0, help="Factor of that loss; 0.01 with --real.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all randomness; 0.")] = None,
    work: Annotated[Path | None, typer.Option(help="The run's folder: checkpoint, losses, samples; OUT with .run.")] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")] = Device.AUTO,
    precision: Annotated[
        Precision | None, typer.Option(help="fp32; fp16 on an NVIDIA GPU for the presets that were trained so.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Iterations between checkpoints.")] = 250,
    samples_every: Annotated[int, typer.Option(min=0, help="Iterations between grids of samples; 0 for none.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    threads: Threads = None,
) -> None:
    """Distil an EDM network by SiD (arXiv 2404.04057), without pictures. Ctrl-C saves; the same command goes on from there.

    With several GPUs: accelerate launch -m comfyui_apprentice.cli distill sid TEACHER --out STUDENT.safetensors
    """
    given = {
        "pictures": pictures, "batch": batch, "part": part, "fake_rate": lr, "generator_rate": glr, "alpha": alpha,
        "steps": steps, "augment": augment, "seed": seed,
        "adversarial": 0.01 if real and adversarial is None else adversarial,
    }  # fmt: skip
    with told_in_words():
        run = _prepare(
            teacher, out, work, preset, {key: value for key, value in given.items() if value is not None}, device.value,
            precision.value if precision else None, dropout, real, threads,
        )  # fmt: skip
        try:
            if not run.finished(force):
                run.go(save_every, samples_every)
        finally:
            run.processes.end()


def _prepare(
    teacher: Path, out: Path, work: Path | None, preset: str | None, given: dict[str, Any], device: str, precision: str | None,
    dropout: float | None, real: Path | None, threads: int | None,
) -> _Run:  # fmt: skip
    """Read the teacher and check the options.

    Raises:
        ValueError: An option is wrong, or does not suit the teacher or the machine.
        OSError: The teacher can't be read.
    """
    from ..training.edm_task import edm_task, fit_settings
    from ..training.processes import Processes
    from ..training.run_folder import RunFolder
    from ..weights.checkpoints import sha256
    from ..weights.edm_pickle import read_edm

    if out.suffix != ".safetensors":
        raise ValueError(f"{out.name} must end in .safetensors.")
    if teacher.exists() and out.exists() and teacher.samefile(out):
        raise ValueError(f"{out.name} is the teacher; give the student another name.")
    settings, halved = _settings(preset, given)
    if bool(settings.adversarial) != bool(real):
        raise ValueError("--real and --adversarial go together: give a folder of pictures and a factor above 0, or neither.")
    processes = Processes.launched()
    processes.rows(settings.batch)
    device = pick_device(device, processes)
    precision = precision or ("fp16" if halved and device.startswith("cuda") else "fp32")
    config, weights = read_edm(teacher)
    set_threads(threads, device, sum(weight.numel() for weight in weights.values()))
    fitted = fit_settings(settings, config, precision)
    if given.get("augment") and not fitted.augment:
        raise ValueError(f"{teacher.name} was trained without EDM's augmentation and can't be told of it: leave --augment out.")
    task = edm_task((config, weights), name=teacher.name, device=device, precision=precision, dropout=dropout, real=real)
    if processes.main:
        check_precision(precision, device)
    folder = RunFolder(work or out.with_suffix(".run"))
    return _Run(task, fitted, config, teacher.name, sha256(teacher), out, folder, precision, dropout, processes)


def _settings(preset: str | None, given: dict[str, Any]) -> tuple[Settings, bool]:
    """The settings, and whether the preset's published run computed in float16."""
    from ..training.distill import Settings
    from ..training.edm_task import EDM_PRESETS, HALF_EPS

    if preset is not None and preset not in EDM_PRESETS:
        raise ValueError(f"There is no preset '{preset}' for EDM networks; there are {', '.join(EDM_PRESETS)}.")
    base = Settings(augment=0.12) if preset is None else EDM_PRESETS[preset].settings
    return replace(base, **given), base.eps == HALF_EPS


@dataclass
class _Run:
    """A run that is ready to go."""

    task: Task
    settings: Settings
    config: dict[str, Any]
    teacher: str
    fingerprint: str
    out: Path
    folder: RunFolder
    precision: str
    dropout: float | None
    processes: Processes

    @property
    def whole(self) -> int:
        """Pictures of the whole run."""
        return self.settings.schedule.steps * self.settings.batch

    def say(self, text: str) -> None:
        """Once, however many processes there are."""
        if self.processes.main:
            typer.echo(text)

    def finished(self, force: bool) -> bool:
        """Whether there is nothing left to do, and say so.

        Raises:
            ValueError: The student's file is in the way, or the run has gone further than it shall.
        """
        seen = self.folder.pictures_seen(self.settings.batch)
        if seen > self.whole:
            raise ValueError(f"The run in {self.folder.path} has seen {seen:,} pictures already: ask for more with --pictures.")
        target = check_out(self.out, force, self._facts, _FREE)
        if target.is_ours and seen == self.whole:
            self.say(f"{self.out} is finished after {seen:,} pictures. To go on, raise --pictures.")
            return True
        return False

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What the run is told; every picture of a folder is looked at for it, so once."""
        from ..training.critic import digest

        real = getattr(self.task.real, "files", ())
        more = {"teacher": self.fingerprint, "precision": self.precision, "dropout": self.dropout, "real": len(real)}
        if real:
            more["pictures_of"] = digest([f"{file.name} {file.stat().st_size}" for file in real])
        return {**asdict(self.settings), **more}

    def go(self, save_every: int, samples_every: int) -> None:
        """Train from where the run is to its end, and write the student.

        Raises:
            KeyboardInterrupt: It was stopped, and saved; people have been told.
            FloatingPointError: A loss is no longer finite.
            ValueError: The folder holds another run.
        """
        from ..training.distill import distil
        from ..training.edm_task import save_student
        from ..training.target import Target

        if self.processes.count > 1:
            self.say(f"{self.processes.count} processes share every batch of {self.settings.batch}.")
        try:
            with self._held(), stop_signals() as stopped, self._watch(samples_every, stopped) as watch:
                ema = distil(
                    self.task, self.settings, self.folder.checkpoint, watch=watch, save_every=save_every, processes=self.processes
                )
        except KeyboardInterrupt:
            seen = self.folder.pictures_seen(self.settings.batch)
            self.say(f"Stopped: {seen:,} of {self.whole:,} pictures are saved in {self.folder.path}. The same command goes on.")
            raise
        if self.processes.main:
            about = Target.of(self.out, self._facts, _FREE).about
            save_student(ema.shadow, self.config, self.out, self.settings, self.teacher, self.fingerprint, self.precision, about)
        self.say(f"{self.out}: a student of {self.teacher} after {self.whole:,} pictures. Losses, samples: {self.folder.path}")

    def _held(self) -> AbstractContextManager[None]:
        """Hold the folder; how long the run goes and how many pictures are computed at a time may change, and nothing else.

        Raises:
            ValueError: It holds another run, or another process works in it.
        """
        if not self.processes.main:
            return nullcontext()
        return self.folder.held(self._facts, _FREE, self._refusal)

    def _refusal(self, other: Differences) -> str:
        found = "; ".join(f"{key} was {was} and is {now}" for key, (was, now) in other.items())
        return f"{self.folder.path} holds another run ({found}): give the same options, another --work, or delete it."

    @contextmanager
    def _watch(self, samples_every: int, stopped: Callable[[], bool]) -> Iterator[Watch]:
        """A bar with an estimate, or lines where there is no terminal; samples; the log of losses."""
        from ..training.edm_task import Samples
        from ..training.loop import Watch

        if not self.processes.main:
            yield Watch(interrupted=stopped)
            return
        samples = Samples(self.task, self.folder.path, self.settings.steps)
        done = self.folder.pictures_seen(self.settings.batch) // self.settings.batch
        if samples_every and not done:
            samples(self.task.generator.state_dict(), 0)
        with progress_bar("Distilling", self.settings.schedule.steps, done) as (advance, report):

            def after_step(step: int, ema: Ema) -> None:
                advance(step, ema)
                if samples_every and (step % samples_every == 0 or step == self.settings.schedule.steps):
                    samples(ema.shadow, step * self.settings.batch)

            yield Watch(report, 10, self.folder.log, stopped, after_step=after_step, say=say)
