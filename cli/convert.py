"""``apprentice convert``: pickled weights and published snapshots become safetensors, read as data only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="A .pt, .pth, .bin, .ckpt, .pkl or .pth.tar file.")],
    target: Annotated[Path | None, typer.Argument(help="Where the safetensors file goes; beside the source if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Write the weights in SOURCE as safetensors. Nothing in SOURCE is ever run.

    Of an EDM, SiD or SiD-LSG snapshot (.pkl) the network's configuration is kept as well, in the metadata. Of TorchScript
    archives (OpenAI's CLIPs) the weights are taken, of PromptKD's checkpoints (.pth.tar) the state dict.
    """
    from ..weights.checkpoints import UnsafeCheckpoint, to_safetensors

    target = target or source.with_name(source.name.partition(".pth.tar")[0]).with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise typer.BadParameter(f"{target.name} must end in .safetensors.")
    if target.exists() and source.exists() and target.samefile(source):
        raise typer.BadParameter(f"{source.name} is safetensors already; give another target to copy it.")
    if target.exists() and not force:
        raise typer.BadParameter(f"{target} is there already; add --force to overwrite it.")
    try:
        tensors = to_safetensors(source, target)
    except (UnsafeCheckpoint, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{target}: {tensors} tensors from {source.name}")
