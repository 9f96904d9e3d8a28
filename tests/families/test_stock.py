"""The tiny families are what the pack's tests take them for: ComfyUI's own samplers draw with each, and texts matter."""

from __future__ import annotations

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_stock_sampler_draws_with_it_and_another_text_is_another_picture(name: str) -> None:
    patcher, latent = tiny.model(name), tiny.empty(name, 2)
    drawn = tiny.stock(patcher, latent, tiny.text(name, 2), tiny.text(name, seed=9))
    assert drawn.shape == latent["samples"].shape and drawn.isfinite().all() and drawn.std() > 0
    assert not torch.allclose(drawn, tiny.stock(patcher, latent, tiny.text(name, 2, seed=5), tiny.text(name, seed=9)))
