"""``apprentice distill``: ``sid``, one-step students of EDM's pixel-space networks; ``promptkd``, critics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..training.optimisers import check_optimiser
from ..training.options import COMMAND, chosen, given
from ..training.sid_options import SidExtras, SidOptions
from .options import with_options
from .promptkd import promptkd, promptkd_teacher
from .running import (
    CommandRun,
    Finite,
    RunOptions,
    check_precision,
    check_suffix,
    launched,
    pick_device,
    set_threads,
    told_in_words,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.distill import Settings, Task
    from ..training.processes import Processes

distill = typer.Typer(no_args_is_help=True, help="Distil teachers into students: one-step generators, and critics.")
distill.command(cls=Finite)(promptkd)
distill.command(cls=Finite)(promptkd_teacher)

_FREE = ("pictures", "part")  # what may change while a run goes on


@distill.command(cls=Finite)
@with_options
def sid(
    teacher: Annotated[Path, typer.Argument(help="An EDM network: .pkl, or .safetensors from 'apprentice convert'.")],
    out: Annotated[Path, typer.Option(help="The student's file (.safetensors); Load EDM Network draws with it.")],
    options: SidOptions,
    extras: SidExtras,
    flags: RunOptions,
) -> None:
    """Distil an EDM network by SiD (arXiv 2404.04057), without pictures. Ctrl-C saves; the same command goes on from there.

    With several GPUs: accelerate launch -m comfyui_apprentice.cli distill sid TEACHER --out STUDENT.safetensors
    """
    from ..weights.checkpoints import sha256
    from ..weights.edm_pickle import read_edm

    with told_in_words():
        check_suffix(out)
        if teacher.exists() and out.exists() and teacher.samefile(out):
            raise ValueError(f"{out.name} is the teacher; give the student another name.")
        settings, halved = _settings(options, extras)
        with launched() as processes:
            processes.rows(settings.batch)
            device = pick_device(flags.device, processes)
            precision = options.precision or ("fp16" if halved and device.startswith("cuda") else "fp32")
            options = replace(options, precision=precision)
            config, weights = read_edm(teacher)
            set_threads(flags.threads, device, sum(weight.numel() for weight in weights.values()))
            start = None if options.student is None else read_edm(options.student)
            task, settings = _task((config, weights), start, teacher.name, settings, options, device)
            if processes.main:
                check_precision(precision, device)
            _run(task, settings, options, config, teacher.name, sha256(teacher), out, flags, processes)


def _settings(options: SidOptions, extras: SidExtras) -> tuple[Settings, bool]:
    """The settings, and whether the preset's published run computed in float16.

    Raises:
        ValueError: There is no such preset, or options contradict each other.
    """
    from ..training.distill import Settings
    from ..training.edm_task import EDM_PRESETS, HALF_EPS

    if options.preset is not None and options.preset not in EDM_PRESETS:
        raise ValueError(f"There is no preset '{options.preset}' for EDM networks; there are {', '.join(EDM_PRESETS)}.")
    base = Settings(augment=0.12) if options.preset is None else EDM_PRESETS[options.preset].settings
    check_optimiser(extras.optimiser)
    wanted = given(options, COMMAND, Settings) | given(extras, COMMAND, Settings)
    if options.real and options.adversarial is None:
        wanted["adversarial"] = 0.01
    settings = replace(base, **wanted)
    if bool(settings.adversarial) != bool(options.real):
        raise ValueError("--real and --adversarial go together: give a folder of pictures and a factor above 0, or neither.")
    return settings, base.eps == HALF_EPS


def _task(
    teacher: Any, start: Any, name: str, settings: Settings, options: SidOptions, device: str
) -> tuple[Task, Settings]:
    """What is distilled, and the settings that suit it.

    Raises:
        ValueError: An option does not suit the teacher or the machine.
    """
    from ..training.edm_task import edm_task, fit_settings

    fitted = fit_settings(settings, teacher[0], options.precision)
    if options.augment and not fitted.augment:
        raise ValueError(f"{name} was trained without EDM's augmentation and can't be told of it: leave --augment out.")
    more = chosen(options, "precision", "dropout", "real")
    return edm_task(teacher, name=name, device=device, start=start, **more), fitted


def _facts(task: Task, settings: Settings, options: SidOptions, fingerprint: str) -> dict[str, Any]:
    """What the run is made of."""
    from ..training.critic import digest
    from ..weights.checkpoints import sha256

    real = getattr(task.real, "files", ())
    more = {"teacher": fingerprint, "precision": options.precision, "dropout": options.dropout, "real": len(real)}
    if options.student is not None:
        more["student"] = sha256(options.student)
    if real:
        more["pictures_of"] = digest([f"{file.name} {file.stat().st_size}" for file in real])
    return {**asdict(settings), **more}


def _run(
    task: Task, settings: Settings, options: SidOptions, config: dict[str, Any], teacher: str, fingerprint: str, out: Path,
    flags: RunOptions, processes: Processes,
) -> None:  # fmt: skip
    """Train from where the run is to its end, and write the student.

    Raises:
        KeyboardInterrupt: It was stopped, and saved; people have been told.
        FloatingPointError: A loss is no longer finite.
        ValueError: The student's file is in the way, the folder holds another run, or it has gone further than it shall.
    """
    from ..training.distill import distil, left_out
    from ..training.edm_task import Samples, save_student

    def say(text: str) -> None:
        if processes.main:
            typer.echo(text)

    steps, batch = settings.schedule.steps, settings.batch
    run = CommandRun(out, flags, processes, _facts(task, settings, options, fingerprint), _FREE)
    seen = run.folder.pictures_seen(batch)
    if seen > steps * batch:
        raise ValueError(f"The run in {run.folder.path} has seen {seen:,} pictures already: ask for more with --pictures.")
    if run.target.is_ours and seen == steps * batch:
        say(f"{out} is finished after {seen:,} pictures. To go on, raise --pictures.")
        return
    if processes.count > 1:
        say(f"{processes.count} processes share every batch of {batch}.")
    samples, every = Samples(task, run.folder, settings.steps), options.samples_every

    def look(step: int, average: Mapping[str, Tensor]) -> None:
        if every and (step % every == 0 or step == steps):
            samples(average, step * batch)

    with run.followed("Distilling", steps, batch, "pictures", look) as progress:
        if every and not seen and processes.main:
            samples(task.generator.state_dict(), 0)
        ema = distil(task, settings, run.folder, watch=progress.watch, save_every=options.save_every, processes=processes)
    if processes.main:
        about = run.target.about
        save_student(ema.shadow, config, out, settings, teacher, fingerprint, options.precision, about)
    say(
        f"{out}: a student of {teacher} after {steps * batch:,} pictures. {left_out(run.folder.losses())}Losses, samples: "
        f"{run.folder.path}"
    )
