"""Pictures along a run, so that people see what it changes: a page each, and a line with reward and variety."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import write_atomically
from .run_folder import RunFolder, read_lines


class Album:
    """The album of a run's folder."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.key = folder, folder.key

    def entries(self) -> list[dict[str, Any]]:
        """What is there of this run, oldest first; damaged lines are left out."""
        lines = read_lines(self.folder.album, "step", "reward", "spread")
        return [entry for entry in lines if entry.get("run", self.key) == self.key]

    def pages(self) -> list[np.ndarray[Any, Any]]:
        """The pictures of the entries, but for those that are gone, damaged or of another size than the last."""
        pages = []
        for entry in self.entries():
            with suppress(OSError, ValueError):
                pages.append(np.asarray(Image.open(self.folder.album_page(entry["step"])).convert("RGB")))
        return [page for page in pages if page.shape == pages[-1].shape]

    def has_begun(self) -> bool:
        """Whether the network was drawn with before it learned: that can't be done again."""
        return bool(self.entries())

    def add(self, step: int, pictures: Tensor, latents: Tensor, rewards: list[float]) -> Tensor:
        """Note a page, once for each step, however often a run is resumed; the latents of the first prompt.

        Args:
            pictures: [prompts, seeds, H, W, 3] in 0..1.
            latents: [prompts, seeds, ...].
            rewards: Of all pictures.
        """
        kept = [entry for entry in self.entries() if entry["step"] < step]
        spread = [float((x[:, None] - x[None]).flatten(2).norm(dim=2).sum() / (len(x) * (len(x) - 1))) for x in latents]
        entry = {"step": step, "reward": sum(rewards) / len(rewards), "spread": sum(spread) / len(spread), "run": self.key}
        rows = [torch.cat(list(row), 1) for row in pictures]
        page = Image.fromarray((torch.cat(rows).clamp(0, 1) * 255).round().byte().numpy())
        write_atomically(self.folder.album_page(step), lambda part: page.save(part, "PNG"))
        text = "".join(json.dumps(e) + "\n" for e in [*kept, entry])
        write_atomically(self.folder.album, lambda part: part.write_text(text, encoding="utf-8"))
        first: Tensor = latents[0]
        return first
