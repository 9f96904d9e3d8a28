"""``apprentice distill promptkd`` and ``promptkd-teacher``: critics for your own pictures (arXiv 2403.02781)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .running import (
    Device,
    Precision,
    Threads,
    check_out,
    check_precision,
    check_suffix,
    claim,
    launched,
    pick_device,
    read_lines,
    set_threads,
    told_in_words,
    watched,
)

if TYPE_CHECKING:
    from ..training.processes import Processes

_LARGE = "A large CLIP with both towers: .safetensors, OpenAI's .pt; open_clip's, OpenAI's or transformers' layout."
_WORK = "The run's folder: checkpoint, losses; OUT with .run."
_Clip = Annotated[Path, typer.Argument(help=_LARGE)]
_Out = Annotated[Path, typer.Option(help="The file that is made (.safetensors).")]
_Epochs = Annotated[int, typer.Option(min=2, help="How often every picture is seen.")]
_Work = Annotated[Path | None, typer.Option(help=_WORK)]
_Seed = Annotated[int, typer.Option(min=0, help="Of all randomness.")]
_Device = Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")]
_Precision = Annotated[Precision, typer.Option(help="What the CLIPs compute in.")]
_SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite OUT.")]


def promptkd_teacher(
    clip: _Clip,
    labelled: Annotated[Path, typer.Argument(help="A folder with a subfolder of pictures for every class, named as the class.")],
    out: _Out,
    shots: Annotated[int, typer.Option(min=1, help="Pictures of every class, at most.")] = 16,
    epochs: _Epochs = 20,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 4,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.0025,
    seed: _Seed = 0,
    work: _Work = None,
    device: _Device = Device.AUTO,
    precision: _Precision = Precision.FP32,
    save_every: _SaveEvery = 500,
    force: _Force = False,
    threads: Threads = None,
) -> None:
    """Teach a large CLIP a domain from a few labelled pictures (PromptSRC): tokens for 'promptkd --tokens'. Ctrl-C saves."""
    from ..oracles.clip_files import load_clip
    from ..oracles.promptkd import tower_hash
    from ..training import critic as critics
    from ..training.domain_data import DomainPictures, few_shot, labelled_folder
    from ..training.promptkd import SourceSettings

    with told_in_words(), launched() as processes:
        check_suffix(out)
        classes, items = labelled_folder(labelled)
        chosen, large = few_shot(items, shots, seed), load_clip(clip)
        pictures = DomainPictures([item.path for item in chosen], large.picture_size, augment=True, seed=seed)
        settings = SourceSettings(
            epochs=epochs, batch=batch, learning_rate=lr, precision=precision.value, seed=seed, gaussian_mean=0.75 * epochs
        )
        facts = {
            **asdict(settings), "clip": tower_hash(large.network.visual), "classes": classes,
            "pictures": critics.digest(pictures.sources()),
        }  # fmt: skip
        target = check_out(out, force, facts)
        _place([large.network], device, precision, threads, processes)
        with (
            claim(work or out.with_suffix(".run"), facts, (), processes) as folder,
            watched("Distilling", folder, settings.schedule(len(pictures)).steps, processes) as watch,
        ):
            teacher = critics.make_teacher(
                large, classes, pictures, [item.label for item in chosen], settings, folder.path, save_every=save_every,
                watch=watch, processes=processes,
            )  # fmt: skip
        if processes.main:
            about = {"classes": str(len(classes)), "pictures": str(len(pictures)), **target.about}
            critics.save_tokens(teacher, out, about)
            typer.echo(f"{out}: prompt tokens for {large.name}, {len(classes)} classes from {len(pictures)} pictures.")


def promptkd(
    teacher: _Clip,
    student: Annotated[Path, typer.Argument(help="The small CLIP that becomes the critic, for pictures of the same size.")],
    pictures: Annotated[Path, typer.Argument(help="A folder with pictures of your subject; no labels are needed.")],
    words: Annotated[Path, typer.Option(help="A text file with the words that the critic shall know, one a line.")],
    out: _Out,
    tokens: Annotated[Path | None, typer.Option(help="The teacher's prompt tokens; without them it is zero-shot.")] = None,
    templates: Annotated[Path | None, typer.Option(help="Sentences with {} for a zero-shot teacher, one a line.")] = None,
    epochs: _Epochs = 20,
    batch: Annotated[int, typer.Option(min=2, help="Pictures a step.")] = 8,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.005,
    weight: Annotated[
        float, typer.Option(help="Factor of the loss, a mean over classes: lower it with few of them. Published: 1000 or 200.")
    ] = 1000.0,
    temperature: Annotated[float, typer.Option(help="Of both models' probabilities.")] = 1.0,
    depth: Annotated[int, typer.Option(min=1, help="Blocks with prompt tokens; the authors: 9, and 3 across data sets.")] = 9,
    augment: Annotated[
        bool, typer.Option(help="Random crops and mirrorings, as published. Without, the teacher looks at each picture once.")
    ] = True,
    seed: _Seed = 0,
    work: _Work = None,
    device: _Device = Device.AUTO,
    precision: _Precision = Precision.FP32,
    save_every: _SaveEvery = 500,
    force: _Force = False,
    threads: Threads = None,
) -> None:
    """Distil a small critic for a domain from unlabelled pictures by PromptKD. Ctrl-C saves; the same command goes on from there.

    With several GPUs: accelerate launch -m comfyui_apprentice.cli distill promptkd …
    """
    from ..oracles.clip_files import load_clip
    from ..oracles.promptkd import save_critic, tower_hash
    from ..training import critic as critics
    from ..training.domain_data import DomainPictures, pictures_in
    from ..training.promptkd import Settings

    with told_in_words(), launched() as processes:
        check_suffix(out)
        classes, large, small = read_lines(words), load_clip(teacher), load_clip(student)
        teach = critics.load_teacher(large, tokens, read_lines(templates) if templates else ())
        domain = DomainPictures(pictures_in(pictures), large.picture_size, augment, seed)
        settings = Settings(
            epochs=epochs, batch=batch, learning_rate=lr, temperature=temperature, weight=weight, precision=precision.value,
            seed=seed,
        )  # fmt: skip
        facts = {
            **asdict(settings), "depth": depth, "clip": tower_hash(small.network.visual), "teacher": critics.fingerprint(teach),
            "classes": classes, "pictures": critics.digest(domain.sources()), "augment": augment,
        }  # fmt: skip
        target = check_out(out, force, facts)
        _place([teach.clip, small.network], device, precision, threads, processes)
        with (
            claim(work or out.with_suffix(".run"), facts, (), processes) as folder,
            watched("Distilling", folder, settings.schedule(len(domain)).steps, processes) as watch,
        ):
            critic = critics.make_critic(
                out.stem, teach, small, classes, domain, settings, folder.path, depth=depth,
                sources=None if augment else domain.sources(), save_every=save_every, watch=watch, processes=processes,
            )  # fmt: skip
        if processes.main:
            about = {"teacher": teach.name, "pictures": str(len(domain)), "epochs": str(epochs), **target.about}
            save_critic(critic, out, about)
            typer.echo(f"{out}: {len(classes)} classes from {len(domain)} pictures without labels. Losses: {folder.log}")


def _place(networks: Sequence[Any], device: Device, precision: Precision, threads: int | None, processes: Processes) -> None:
    """The networks onto the device, and PyTorch's threads as they suit them."""
    import torch

    where = pick_device(device.value, processes)
    set_threads(threads, where, sum(p.numel() for network in networks for p in network.parameters()))
    if processes.main:
        check_precision(precision.value, where)
    for network in networks:
        network.to(where, torch.float16 if precision == Precision.FP16 else torch.float32)
