"""``apprentice finetune``: an EDM network that draws what an oracle likes (arXiv 2409.08861); others are tuned in ComfyUI."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .running import (
    Device,
    Threads,
    check_out,
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
    from torch import Tensor

    from ..oracles.base import Oracle
    from ..training.finetune import Settings, Task
    from ..training.processes import Processes

_ALGORITHMS = "adjoint_matching, path_kl, weighted_regression (for oracles without gradient), preview (leads to no law)."


def finetune(
    network: Annotated[Path, typer.Argument(help="An EDM network: .pkl, or .safetensors from 'apprentice convert'.")],
    oracle: Annotated[Path, typer.Argument(help="Who judges: a critic of PromptKD (with --clip), or a published oracle's file.")],
    prompts: Annotated[Path, typer.Option(help="A text file: what each class shall show, a line a class.")],
    out: Annotated[Path, typer.Option(help="The tuned network (.safetensors); Load EDM Network draws with it.")],
    clip: Annotated[Path | None, typer.Option(help="A critic's small CLIP, or an aesthetic predictor's.")] = None,
    algorithm: Annotated[str, typer.Option(help=_ALGORITHMS)] = "adjoint_matching",
    divergence: Annotated[
        str, typer.Option(help="kl, half_chi2, half_chi2_kl, forward_kl, js2, jeffreys, alpha:0.5.")
    ] = "kl",
    strength: Annotated[str, typer.Option(help="What --value is: 'target KL', 'target reward gain' or 'alpha'.")] = "target KL",
    value: Annotated[float, typer.Option(help="Nats a picture, a gain of the mean score, or the price itself.")] = 0.5,
    updates: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 16,
    part: Annotated[int, typer.Option(min=0, help="Pictures in memory at a time; 0 for all.")] = 0,
    steps: Annotated[int, typer.Option(min=4, help="Steps of a draw while it learns.")] = 20,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-4,
    base_draws: Annotated[int, typer.Option(min=8, help="Pictures of the network as it was, for each prompt.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Of weighted regression.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of all randomness.")] = 0,
    work: Annotated[Path | None, typer.Option(help="The run's folder: checkpoint, losses; OUT with .run.")] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")] = Device.AUTO,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 25,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    threads: Threads = None,
) -> None:
    """Tune a network by an oracle, at a price for every change. Ctrl-C saves; the same command goes on from there.

    With several GPUs: accelerate launch -m comfyui_apprentice.cli finetune …
    """
    from ..training.finetune import Settings

    with told_in_words(), launched() as processes:
        check_suffix(out)
        settings = Settings(
            algorithm=algorithm, divergence=divergence, strength=strength, value=value, updates=updates, batch=batch, part=part,
            learning_rate=lr, base_draws=base_draws, pool=base_draws, rounds=rounds, seed=seed,
        )  # fmt: skip
        settings.check()
        judge, where = _oracle(oracle, clip), pick_device(device.value, processes)
        _tune(network, judge, read_lines(prompts), settings, steps, where, out, work, save_every, threads, processes, force)


def _tune(
    file: Path, judge: Oracle, lines: tuple[str, ...], settings: Settings, steps: int, device: str, out: Path,
    work: Path | None, save_every: int, threads: int | None, processes: Processes, force: bool,
) -> None:  # fmt: skip
    from ..files import save_safetensors_atomically
    from ..training.edm_task import build_network
    from ..training.finetune import card
    from ..training.finetune import finetune as tune
    from ..weights.checkpoints import sha256
    from ..weights.edm_pickle import read_edm, snapshot_metadata

    snapshot, fingerprint = read_edm(file), sha256(file)
    judging = sum(p.numel() for p in judge.network.parameters())
    set_threads(threads, device, judging + sum(weight.numel() for weight in snapshot[1].values()))
    task = _task(build_network(snapshot, file.name), judge, lines, steps, device)
    task.facts = {"steps": steps, "network": fingerprint, "oracle": judge.fingerprint(), "prompts": lines}
    facts = {**asdict(settings), **task.facts}
    target = check_out(out, force, facts, ("part",))
    with (
        claim(work or out.with_suffix(".run"), facts, ("part",), processes) as folder,
        watched("Tuning", folder, settings.updates, processes) as watch,
    ):
        ema, known = tune(task, settings, folder.path, watch=watch, save_every=save_every, processes=processes)
    if not processes.main:
        return
    about = card(settings, known, file.name, judge.name) | {"teacher_fingerprint": fingerprint, **target.about}
    about |= snapshot_metadata(snapshot[0])
    save_safetensors_atomically({key: value.cpu() for key, value in ema.shadow.items()}, out, about)
    told = known.told()
    typer.echo(f"{out}: {file.name} tuned by {judge.name}, alpha {told['alpha']:.4g}, {told['target_kl']:.3g} nats a picture.")


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
    from ..training.finetune import Task
    from ..training.sid import edm_denoise

    classes, channels, size = int(network.label_dim), int(network.img_channels), int(network.img_resolution)
    if len(lines) != max(classes, 1):
        raise ValueError(f"There are {len(lines)} prompts, and the network has {classes} classes: give {max(classes, 1)}.")
    network.to(device).eval().requires_grad_(False)
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
