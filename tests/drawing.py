"""A job of toys: pictures without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from comfyui_apprentice.bulk.items import Item
from comfyui_apprentice.bulk.job import Drawn, PictureError
from comfyui_apprentice.gate.verdict import Judgement, Verdict

FACTS = {"seed": 3}


def items(count: int) -> list[Item]:
    return [Item(number, f"prompt {number}") for number in range(count)]


def greys(prompts: Sequence[str], seed: int, nan: Sequence[str]) -> torch.Tensor:
    """[B, 8, 8, 3]: as grey as the batch's seed and the place say; NaN for prompts in ``nan``."""
    grey = torch.tensor([torch.nan if p in nan else (seed * 7 + place) % 100 / 100 for place, p in enumerate(prompts)])
    return grey.view(-1, 1, 1, 1).expand(-1, 8, 8, 3)


def judged(pictures: torch.Tensor, prompts: Sequence[str], seed: int) -> Verdict:
    """The lighter half passes."""
    rows = [Judgement(i, v, 0.5, v >= 0.5, prompts[i], seed, 2.0) for i, v in enumerate(pictures[:, 0, 0, 0].tolist())]
    return Verdict(tuple(rows), "toy", "f" * 16, "absolute", 0.5)


def toy(bad: Sequence[str] = (), nan: Sequence[str] = (), calls: list[list[str]] | None = None) -> Callable[..., Drawn]:
    """Pictures whose grey is made of the batch's seed and the place; ``bad`` prompts raise, ``nan`` ones give NaN."""

    def draw(part: Sequence[Item], seed: int) -> Drawn:
        prompts = [item.prompt for item in part]
        if calls is not None:
            calls.append(prompts)
        if hurt := [prompt for prompt in prompts if prompt in bad]:
            raise PictureError(f"no tokens for {hurt[0]}")
        pictures = greys(prompts, seed, nan)
        return Drawn(pictures, judged(pictures, prompts, seed))

    return draw


def stopping(draw: Callable[..., Drawn], after: int) -> tuple[Callable[..., Drawn], Callable[[], bool]]:
    """What draws likewise, and whether it has drawn so many pictures."""
    count = [0]

    def counted(part: Sequence[Item], seed: int) -> Drawn:
        made = draw(part, seed)
        count[0] += len(part)
        return made

    return counted, lambda: count[0] >= after
