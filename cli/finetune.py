"""``apprentice finetune``: an EDM network that draws what an oracle likes (arXiv 2409.08861); others are tuned in ComfyUI."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..training.finetune_options import FinetuneExtras, FinetuneOptions
from ..training.optimisers import check_optimiser
from ..training.options import COMMAND, given
from .options import with_options
from .running import CommandRun, RunOptions, check_suffix, launched, pick_device, read_lines, set_threads, told_in_words

if TYPE_CHECKING:
    from torch import Tensor

    from ..oracles.base import Oracle
    from ..training.finetune_task import Settings, Task
    from ..training.processes import Processes


@with_options
def finetune(
    network: Annotated[Path, typer.Argument(help="An EDM network: .pkl, or .safetensors from 'apprentice convert'.")],
    oracle: Annotated[Path, typer.Argument(help="Who judges: a critic of PromptKD (with --clip), or a published oracle's file.")],
    prompts: Annotated[Path, typer.Option(help="A text file: what each class shall show, a line a class.")],
    out: Annotated[Path, typer.Option(help="The tuned network (.safetensors); Load EDM Network draws with it.")],
    options: FinetuneOptions,
    extras: FinetuneExtras,
    flags: RunOptions,
) -> None:
    """Tune a network by an oracle, at a price for every change. Ctrl-C saves; the same command goes on from there.

    With several GPUs: accelerate launch -m comfyui_apprentice.cli finetune …
    """
    from ..training.finetune_task import Settings

    with told_in_words(), launched() as processes:
        check_suffix(out)
        learns = given(extras, COMMAND, Settings)
        settings = Settings(**given(options, COMMAND, Settings), **learns, pool=options.base_draws)
        settings.check()
        check_optimiser(settings.optimiser)
        judge = _oracle(oracle, options.small_clip)
        _tune(network, judge, read_lines(prompts), settings, options, out, flags, processes)


def _tune(
    file: Path, judge: Oracle, lines: tuple[str, ...], settings: Settings, options: FinetuneOptions, out: Path, flags: RunOptions,
    processes: Processes,
) -> None:  # fmt: skip
    from ..files import save_safetensors_atomically
    from ..training.edm_task import build_network
    from ..training.finetune import card
    from ..training.finetune import finetune as tune
    from ..weights.checkpoints import sha256
    from ..weights.edm_pickle import read_edm, snapshot_metadata

    device, snapshot, fingerprint = pick_device(flags.device, processes), read_edm(file), sha256(file)
    judging = sum(p.numel() for p in judge.network.parameters())
    set_threads(flags.threads, device, judging + sum(weight.numel() for weight in snapshot[1].values()))
    task = _task(build_network(snapshot, file.name), judge, lines, options.steps, device)
    task.facts = {"steps": options.steps, "network": fingerprint, "oracle": judge.fingerprint(), "prompts": lines}
    run = CommandRun(out, flags, processes, {**asdict(settings), **task.facts}, ("part",))
    with run.followed("Tuning", settings.updates) as progress:
        ema, base = tune(
            task, settings, run.folder, watch=progress.watch, save_every=options.save_every, processes=processes,
            drawing=progress.drawing,
        )  # fmt: skip
    if not processes.main:
        return
    about = card(settings, base, file.name, judge.name) | {"teacher_fingerprint": fingerprint, **run.target.about}
    about |= snapshot_metadata(snapshot[0])
    save_safetensors_atomically({key: value.cpu() for key, value in ema.shadow.items()}, out, about)
    strength = "alpha {alpha:.4g}, {target_kl:.3g} nats a picture".format(**base.summary())
    typer.echo(f"{out}: {file.name} tuned by {judge.name}, {strength}.")


def _oracle(file: Path, clip: Path | None) -> Oracle:
    """A critic, or a published oracle.

    Raises:
        ValueError: A critic needs its CLIP.
    """
    from ..oracles.clip_files import load_clip
    from ..oracles.promptkd import KIND, PromptKDOracle, load_critic
    from ..oracles.registry import detect, load
    from ..weights.checkpoints import read_metadata, read_weights

    if read_metadata(file).get("apprentice") == KIND:
        if clip is None:
            raise ValueError(f"{file.name} is a critic: give the small CLIP that it was made from with --clip.")
        return PromptKDOracle(load_critic(file, load_clip(clip).network), "logit")
    kind = detect(read_weights(file), file.name)
    options: dict[str, Any] = {"clip": clip} if clip is not None else {}
    return load(kind, file, **options)


def _task(network: Any, judge: Oracle, lines: tuple[str, ...], steps: int, device: str) -> Task:
    """What is tuned: a whole copy of the network, since EDM's layers resample within; a prompt a class.

    Raises:
        ValueError: There isn't a prompt for every class.
    """
    import torch
    from torch.nn import functional as F

    from ..networks.preconditioning import karras_sigmas
    from ..training.control import Process
    from ..training.finetune_task import Task
    from ..training.sid import edm_denoise

    classes, channels, size = int(network.label_dim), int(network.img_channels), int(network.img_resolution)
    if len(lines) != max(classes, 1):
        raise ValueError(f"There are {len(lines)} prompts, and the network has {classes} classes: give {max(classes, 1)}.")
    network.to(device).train(False).requires_grad_(False)
    tuned = copy.deepcopy(network).requires_grad_(True)
    judge.network.to(device)

    def denoiser(of: Any) -> Callable[[Tensor, Tensor, Any], Tensor]:
        denoise = edm_denoise(of)
        return lambda x, sigma, labels: denoise(x, sigma.float().view(-1, 1, 1, 1), labels).float()

    def reward(x: Tensor, rows: Tensor) -> Tensor:
        pictures = ((x + 1) / 2).expand(-1, 3, -1, -1).movedim(1, -1)
        return judge.reward(pictures, [lines[int(i)] for i in rows]).float()

    def labels(rows: Tensor) -> Tensor | None:
        return F.one_hot(rows, classes).float().to(device) if classes else None

    levels = Process.edm(karras_sigmas(steps, 0.002, 80.0).double()).ending_at(0.1)
    return Task(
        denoiser(network), denoiser(tuned), tuned, reward, labels, len(lines), levels, (channels, size, size),
        torch.device(device), judge.differentiable,
    )  # fmt: skip
