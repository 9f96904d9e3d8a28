"""``apprentice prefer``: an EDM network learns from clicks alone (Diffusion-DPO, arXiv 2311.12908); others in Taste Finetune."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..training.options import COMMAND, given
from ..training.preference_options import PreferenceOptions
from .options import with_options
from .running import CommandRun, RunOptions, check_suffix, launched, pick_device, read_lines, set_threads, told_in_words

if TYPE_CHECKING:
    from ..training.clicks import ClickedPicture, Clicks
    from ..training.preference import Player, Preferences


@with_options
def prefer(
    network: Annotated[Path, typer.Argument(help="An EDM network: .pkl, or .safetensors from 'apprentice convert'.")],
    clicks: Annotated[Path, typer.Argument(help="A file of clicks (.jsonl), as the Draft Board keeps them.")],
    prompts: Annotated[Path, typer.Option(help="A text file: what each class shall show, a line a class, as it was clicked on.")],
    out: Annotated[Path, typer.Option(help="The tuned network (.safetensors); Load EDM Network draws with it.")],
    options: PreferenceOptions,
    flags: RunOptions,
) -> None:
    """Teach a network what was clicked, without any oracle. Ctrl-C saves; the same command goes on from there."""
    from ..files import save_safetensors_atomically
    from ..training.clicks import ClickFile
    from ..training.edm_task import build_network
    from ..training.preference import PreferenceSettings
    from ..training.preference import prefer as learn
    from ..weights.checkpoints import sha256
    from ..weights.edm_pickle import read_edm, snapshot_metadata

    with told_in_words(), launched() as processes:
        check_suffix(out)
        settings, file = PreferenceSettings(**given(options, COMMAND, PreferenceSettings)), ClickFile(clicks)
        there, lines = file.read(), read_lines(prompts)
        if not there.pairs:
            raise ValueError(f"{clicks} holds no clicks; click on the Draft Board, and name the file of that taste.")
        device, snapshot = pick_device(flags.device, processes), read_edm(network)
        set_threads(flags.threads, device, sum(weight.numel() for weight in snapshot[1].values()))
        edm = build_network(snapshot, network.name)
        pictures = _given(edm, there, lines)
        if foreign := _foreign(edm, there, clicks.name):
            typer.echo(foreign)
        facts = {**asdict(settings), "steps": options.steps, "network": sha256(network), "clicks": file.state(), "prompts": lines}
        run = CommandRun(out, flags, processes, facts, ("part",))
        with run.followed("Learning", settings.updates) as progress:
            ema = learn(
                _player(edm, pictures, options.steps, device), pictures, settings, run.folder, watch=progress.watch,
                save_every=options.save_every,
            )  # fmt: skip
        about = {"apprentice": "taste", "teacher": network.name, "clicks": str(len(there.pairs)), **run.target.about}
        about |= snapshot_metadata(snapshot[0])
        save_safetensors_atomically({key: value.cpu() for key, value in ema.shadow.items()}, out, about)
        typer.echo(f"{out}: {network.name}, taught by {len(there.pairs)} clicks, {pictures.known} pictures by their own noise.")


def _given(edm: Any, clicks: Clicks, lines: tuple[str, ...]) -> Preferences:
    """The clicked pictures at the network's size, in -1..1; kept latents of an EDM network are its pictures.

    Raises:
        ValueError: A prompt was clicked on that is no class's, or there isn't a prompt for every class.
    """
    import torch

    from ..training.click_origins import EDM, stock_noise
    from ..training.preference import Preferences

    classes = int(edm.label_dim)
    if len(lines) != max(classes, 1):
        raise ValueError(f"There are {len(lines)} prompts, and the network has {classes} classes: give {max(classes, 1)}.")
    shape = (int(edm.img_channels), int(edm.img_resolution), int(edm.img_resolution))
    keys = clicks.clicked
    place, images, noise, rows = {key: i for i, key in enumerate(keys)}, [], [], []
    for key in keys:
        picture = clicks.pictures[key]
        if classes and picture.prompt not in lines:
            raise ValueError(f"There are clicks on '{picture.prompt}', which is no line of the prompts: add it at its class.")
        origin = picture.origin if picture.origin is not None and picture.origin.fits(EDM, shape) else None
        images.append(_image(picture, shape) if origin is None else torch.from_numpy(origin.latents.astype("float32")))
        if origin is not None and origin.seed is not None:
            noise.append(stock_noise(shape, origin.seed, origin.place))
        else:
            noise.append(torch.full(shape, torch.nan))
        rows.append(lines.index(picture.prompt) if classes else 0)
    pairs = [(place[better], place[worse]) for better, worse in clicks.pairs]
    return Preferences(torch.stack(images), torch.stack(noise), torch.tensor(rows), pairs)


def _foreign(edm: Any, clicks: Clicks, name: str) -> str:
    """A sentence on clicked pictures that another family of models drew; "" where there are none.

    Raises:
        ValueError: All were, of those of which that is known.
    """
    from ..training.click_origins import EDM

    channels = int(edm.img_channels)
    origins = [o for key in clicks.clicked if (o := clicks.pictures[key].origin) is not None]
    foreign = [o for o in origins if o.family not in ("", EDM) or len(o.latents) != channels]
    if not foreign:
        return ""
    which = f"latents of {len(foreign[0].latents)} channels{f', {foreign[0].family}' if foreign[0].family else ''}"
    if len(foreign) == len(origins):
        raise ValueError(
            f"The pictures in {name} were drawn by another family of models ({which}), and this network draws pictures of "
            f"{channels} channels: teach that model by Taste Finetune, or click on this network's own pictures."
        )
    return f"{len(foreign)} of {len(clicks.clicked)} pictures are another model's ({which}), and are taken as they look."


def _image(picture: ClickedPicture, shape: tuple[int, int, int]) -> Any:
    """The small picture that was kept, at the network's size."""
    import torch
    from torch.nn import functional as F

    pixels = torch.from_numpy(picture.pixels.copy()).movedim(-1, 0)[None].float() / 127.5 - 1
    resized = F.interpolate(pixels, shape[1:], mode="bicubic", antialias=True).clamp(-1, 1)[0]
    return resized if shape[0] == 3 else resized.mean(0, keepdim=True).expand(shape)


def _player(edm: Any, pictures: Preferences, steps: int, device: str) -> Player:
    """The network as it was and a copy that learns, at EDM's levels."""
    import torch
    from torch.nn import functional as F

    from ..networks.preconditioning import karras_sigmas
    from ..training.control import Process
    from ..training.preference import Player
    from ..training.sid import edm_denoise

    edm.to(device).train(False).requires_grad_(False)
    tuned, classes = copy.deepcopy(edm).requires_grad_(True), int(edm.label_dim)
    labels = F.one_hot(pictures.rows, classes).float().to(device) if classes else None

    def of(network: Any) -> Any:
        denoise = edm_denoise(network)
        return lambda x, sigma, which: denoise(
            x, sigma.float().view(-1, 1, 1, 1), labels[which] if labels is not None else None
        ).float()  # fmt: skip

    levels = Process.edm(karras_sigmas(steps, 0.002, 80.0).double()).ending_at(0.1)
    return Player(of(edm), of(tuned), tuned, levels, float(pictures.pictures.std()), torch.device(device))
