"""``apprentice plan``: what a training holds on its card at most, by part, before anything is loaded or computed."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.account import GIB, REWARD, SID_FULL, SID_LORA, UNACCOUNTED, Job, Sketch, Step, account, plan, verdict
from .options import Optimiser, Precision
from .running import told_in_words


class Method(str, Enum):
    """What is trained."""

    SID = "sid"
    SID_FULL = "sid-full"
    REWARD = "reward"


_METHODS = {Method.SID: SID_LORA, Method.SID_FULL: SID_FULL, Method.REWARD: REWARD}


def plan_memory(
    model: Annotated[Path, typer.Argument(help="A diffusion model's file (.safetensors, .gguf); its header alone is read.")],
    method: Annotated[Method, typer.Option(help="SiD Distill as LoRA or as full copy, or Reward Finetune.")] = Method.SID,
    width: Annotated[int, typer.Option(min=16, max=16384, help="Of the pictures.")] = 1024,
    height: Annotated[int, typer.Option(min=16, max=16384, help="Of them.")] = 1024,
    at_once: Annotated[int, typer.Option(min=1, max=8192, help="Pictures in memory at a time.")] = 1,
    rank: Annotated[int, typer.Option(min=1, max=1024, help="Of LoRAs.")] = 64,
    checkpointing: Annotated[bool, typer.Option(help="Whether blocks are computed again.")] = True,
    fp8: Annotated[bool, typer.Option("--fp8", help="The base loaded in 8 bits; of itself for a file that is.")] = False,
    optimiser: Annotated[Optimiser, typer.Option(help="See SiD Distill.")] = Optimiser.ADAM,
    precision: Annotated[Precision, typer.Option(help="What networks compute in.")] = Precision.BF16,
    guidance: Annotated[bool, typer.Option(help="SiD: whether any kappa is another number than 1.")] = True,
    tokens: Annotated[int, typer.Option(min=1, max=16384, help="Of the longest prompt.")] = 256,
    vae: Annotated[Path | None, typer.Option(help="Beside an oracle: the VAE's file; its weights alone count.")] = None,
    oracle: Annotated[Path | None, typer.Option(help="The oracle's file, of Reward Finetune or beside SiD; likewise.")] = None,
    card: Annotated[float | None, typer.Option(help="GiB of the card; left out, of the GPU that is here.")] = None,
    comfyui: Annotated[Path | None, typer.Option(envvar="COMFYUI_PATH", help="The ComfyUI that knows the model.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What a training holds on its card at most, by part, and what to turn down, in order. Nothing is loaded or computed.

    Accounted, not measured on a GPU; see docs/memory.md.
    """
    job = Job(
        _METHODS[method], width, height, at_once, rank, checkpointing, False, fp8, optimiser.value, precision.value,
        (guidance, guidance, guidance),
    )  # fmt: skip
    with told_in_words():
        _check(card)
        others = [_there(file) for file in (vae, oracle) if file is not None]
        sketch, job = _sketch(model, replace(job, pleased=bool(others)), comfyui, tokens, others)
        room = _room(card)
        steps = _steps(sketch, job, room or 0.0, model.name, type(sketch.base).__name__)
    if json:
        typer.echo(json_format.dumps({"model": model.name, "room": room, "steps": [step.as_json() for step in steps]}, indent=1))
        return
    typer.echo(table(steps, room))


def _check(card: float | None) -> None:
    """Raises: ValueError: The card is no size."""
    if card is not None and not (math.isfinite(card) and card > 0):
        raise ValueError(f"--card is {card}; it must be the GiB of a card, such as 16.")


def _there(file: Path) -> Path:
    """Raises: FileNotFoundError: It is no file."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    return file


def _room(card: float | None) -> float | None:
    """Bytes of the card; None where there is none."""
    import torch

    if card is not None:
        return card * GIB
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _sketch(model: Path, job: Job, comfyui: Path | None, tokens: int, others: Sequence[Path]) -> tuple[Any, Job]:
    """The network on the meta device, and the job with what its file says.

    Raises:
        ValueError: There is no ComfyUI, or it doesn't know the network.
        FileNotFoundError: A file is missing.
    """
    from ..bridge.entering import enter

    if comfyui is None:
        raise ValueError("The model's class is ComfyUI's own: give its folder with --comfyui, or set COMFYUI_PATH.")
    enter(comfyui, "--use-pytorch-cross-attention")
    from ..bridge.account import NetworkSketch
    from ..bridge.sketches import conditioning_of, header, sketched

    tensors, packed = header(model)
    if packed and job.method == SID_FULL:
        raise ValueError("Packed weights (GGUF) can't learn themselves: take --method sid, or the same model in bf16 or fp16.")
    base, small = sketched(tensors, model.name)
    texts = conditioning_of(base, tokens)
    judge = sum(file.stat().st_size for file in others)
    job = replace(job, fp8=(job.fp8 or small) and not packed, packed=bool(packed))
    return NetworkSketch(base, texts, None, judge, packed), job


_TRAINED = "HiDream", "StableCascade_C"  # whose networks look at values, or take more than a text
_SECOND = "StableCascade_B"


def _steps(sketch: Sketch, job: Job, room: float, name: str, kind: str = "") -> list[Step]:
    """``plan``. Raises: ValueError: The network, of this ``kind``, doesn't run without values."""
    try:
        return plan(job, lambda turned: account(sketch, turned), room)
    except UNACCOUNTED as error:
        if kind == _SECOND:
            raise ValueError(f"{name} is Stable Cascade's second stage, which follows no prompt: give stage C.") from error
        trained = "it can be trained all the same" if kind in _TRAINED else "if it can't be trained, the node says so at once"
        of = f" ({kind})" if kind else ""
        raise ValueError(
            f"{name}{of} can't be accounted for: its network looks at values, or takes more than a text; {trained}."
        ) from error


def table(steps: Sequence[Step], room: float | None) -> str:
    """A plan for people: the job as asked by part, what each change leaves, and a sentence."""
    parts = [(name, f"{size / GIB:.2f}") for name, size in steps[0].account.parts.items()]
    rows = [*parts, ("in all, GiB", f"{steps[0].account.total / GIB:.2f}"), ("", "")]
    rows += [(f"{step.change}, then", f"{step.account.total / GIB:.2f}") for step in steps[1:]]
    if len(steps) > 1:
        rows += [("", ""), *((f"then: {name}", f"{size / GIB:.2f}") for name, size in steps[-1].account.parts.items())]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}} {size:>7}".rstrip() for name, size in rows]
    return "\n".join([*lines, "", verdict(steps, room) if room is not None else "Give --card GIB to see what fits."])
