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


def toy(bad: Sequence[str] = (), nan: Sequence[str] = (), calls: list[list[str]] | None = None) -> Callable[..., Drawn]:
    """Pictures whose grey is made of the batch's seed and the place; ``bad`` prompts raise, ``nan`` ones give NaN."""

    def draw(part: Sequence[Item], seed: int) -> Drawn:
        prompts = [item.prompt for item in part]
        if calls is not None:
            calls.append(prompts)
        if hurt := [prompt for prompt in prompts if prompt in bad]:
            raise PictureError(f"no tokens for {hurt[0]}")
        grey = torch.tensor([(seed * 7 + place) % 100 / 100 for place in range(len(part))])
        grey[[i for i, prompt in enumerate(prompts) if prompt in nan]] = torch.nan
        judgements = [
            Judgement(place, value, 0.5, value >= 0.5, prompts[place], seed, 2.0) for place, value in enumerate(grey.tolist())
        ]
        return Drawn(grey.view(-1, 1, 1, 1).expand(-1, 8, 8, 3), Verdict(tuple(judgements), "toy", "f" * 16, "absolute", 0.5))

    return draw


def stopping(draw: Callable[..., Drawn], after: int) -> tuple[Callable[..., Drawn], Callable[[], bool]]:
    """What draws likewise, and whether it has drawn so many pictures."""
    count = [0]

    def counted(part: Sequence[Item], seed: int) -> Drawn:
        made = draw(part, seed)
        count[0] += len(part)
        return made

    return counted, lambda: count[0] >= after
