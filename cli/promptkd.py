"""``apprentice distill promptkd`` and ``promptkd-teacher``: critics for your own pictures (arXiv 2403.02781)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..training.options import COMMAND, given
from ..training.promptkd_options import CriticOptions, TeacherOptions, TowerOptions
from .options import with_options
from .running import CommandRun, RunOptions, check_suffix, launched, place, read_lines, told_in_words

_LARGE = "A large CLIP with both towers: .safetensors, OpenAI's .pt; open_clip's, OpenAI's or transformers' layout."
_Clip = Annotated[Path, typer.Argument(help=_LARGE)]
_Out = Annotated[Path, typer.Option(help="The file that is made (.safetensors).")]


@with_options
def promptkd_teacher(
    clip: _Clip,
    labelled: Annotated[Path, typer.Argument(help="A folder with a subfolder of pictures for every class, named as the class.")],
    out: _Out,
    options: TeacherOptions,
    flags: RunOptions,
) -> None:
    """Teach a large CLIP a domain from a few labelled pictures (PromptSRC): tokens for 'promptkd --tokens'. Ctrl-C saves."""
    from ..oracles.clip_files import load_clip
    from ..training import critic as critics
    from ..training.domain_data import DomainPictures, few_shot, labelled_folder
    from ..training.promptkd_runs import SourceSettings

    with told_in_words(), launched() as processes:
        check_suffix(out)
        classes, items = labelled_folder(labelled)
        chosen, large = few_shot(items, options.shots, options.seed), load_clip(clip)
        pictures = DomainPictures([item.path for item in chosen], large.picture_size, augment=True, seed=options.seed)
        settings = SourceSettings(**given(options, COMMAND, SourceSettings), gaussian_mean=0.75 * options.epochs)
        run = CommandRun(out, flags, processes, critics.facts_of(settings, large, classes, pictures))
        place([large.network], flags, options.precision, processes)
        with run.followed("Distilling", settings.schedule(len(pictures)).steps) as progress:
            teacher = critics.make_teacher(
                large, classes, pictures, [item.label for item in chosen], settings, run.folder, save_every=options.save_every,
                watch=progress.watch, processes=processes,
            )  # fmt: skip
        if processes.main:
            about = {"classes": str(len(classes)), "pictures": str(len(pictures)), **run.target.about}
            critics.save_tokens(teacher, out, about)
            typer.echo(f"{out}: prompt tokens for {large.name}, {len(classes)} classes from {len(pictures)} pictures.")


@with_options
def promptkd(
    teacher: _Clip,
    student: Annotated[Path, typer.Argument(help="The small CLIP that becomes the critic, for pictures of the same size.")],
    pictures: Annotated[Path, typer.Argument(help="A folder with pictures of your subject; no labels are needed.")],
    words: Annotated[Path, typer.Option(help="A text file with the words that the critic shall know, one a line.")],
    out: _Out,
    options: CriticOptions,
    tower: TowerOptions,
    flags: RunOptions,
) -> None:
    """Distil a small critic for a domain from unlabelled pictures by PromptKD. Ctrl-C saves; the same command goes on from there.

    With several GPUs: accelerate launch -m comfyui_apprentice.cli distill promptkd …
    """
    from ..oracles.clip_files import load_clip
    from ..oracles.promptkd import save_critic
    from ..training import critic as critics
    from ..training.domain_data import DomainPictures, captions, pictures_in
    from ..training.promptkd import own_of
    from ..training.promptkd_runs import ODDS, Settings

    with told_in_words(), launched() as processes:
        check_suffix(out)
        classes, large, small = read_lines(words), load_clip(teacher), load_clip(student)
        teach = critics.load_teacher(large, options.tokens, read_lines(options.templates) if options.templates else ())
        domain = DomainPictures(pictures_in(pictures), large.picture_size, options.augment, options.seed)
        settings = Settings(**given(options, COMMAND, Settings), **given(tower, COMMAND, Settings))
        prompts = captions(domain.paths) if settings.target == ODDS else []
        own = own_of(prompts, classes) if prompts else None
        facts = critics.facts_of(
            settings, small, classes, domain, teach, depth=options.depth, augment=options.augment,
            prompts=critics.digest(prompts) if prompts else None,
        )  # fmt: skip
        run = CommandRun(out, flags, processes, facts)
        place([teach.clip, small.network], flags, options.precision, processes)
        with run.followed("Distilling", settings.schedule(len(domain)).steps) as progress:
            critic = critics.make_critic(
                out.stem, teach, small, classes, domain, settings, run.folder, depth=options.depth,
                sources=None if options.augment else domain.sources(), save_every=options.save_every, watch=progress.watch,
                processes=processes, own=own,
            )  # fmt: skip
        if processes.main:
            about = {"teacher": teach.name, "pictures": str(len(domain)), "epochs": str(options.epochs), **run.target.about}
            save_critic(critic, out, about)
            typer.echo(f"{out}: {len(classes)} classes from {len(domain)} pictures without labels. Losses: {run.folder.log}")
