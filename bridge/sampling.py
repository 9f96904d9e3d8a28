"""Part of a batch through ComfyUI's own samplers.

Everything that draws goes through stock functions (``comfy.sample``), so that with the whole batch the result is the
stock sampler's to the bit. What this file adds is that a *part* of a batch gets the noise it would have got in the
whole one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from .counting import Counter, count_evaluations
from .guiders import draws_whole, sampler_name, sampler_of, stock_guider, with_model
from .noise import RowsSampler
from .prompts import for_rows, groups
from .rows import Conditioning, Latent, is_whole, take_latent, take_rows


def tell_rows(model_options: dict[str, Any], rows: Sequence[int], total: int) -> None:
    """Tell a model's patches which pictures of a batch of ``total`` they are going to see.

    ``ad_params`` is the protocol of AnimateDiff's windows, which IP-Adapter and its like follow; ``apprentice_rows`` is ours.
    With the whole batch nothing is said.
    """
    if not is_whole(rows, total):
        options = model_options.setdefault("transformer_options", {})
        options.setdefault("ad_params", {"sub_idxs": list(rows), "full_length": total, "context_length": len(rows)})
        options["apprentice_rows"] = {"rows": list(rows), "total": total}


def sample_rows(
    model: comfy.model_patcher.ModelPatcher, latent: Latent, rows: Sequence[int], *, noise: Tensor, sigmas: Tensor,
    sampler: str | comfy.samplers.Sampler, cfg: float, positive: Conditioning, negative: Conditioning, seed: int, pack: int = 0,
    callback: Any = None, guider: Any = None,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """Sample the pictures ``rows`` of a batch, each with the noise that it has in the whole batch.

    With all rows in one pack this is ComfyUI's SamplerCustomAdvanced on the batch, to the bit. Prompts with texts of
    different lengths are drawn in a pack for each length (``bridge.prompts``). Where ``draws_whole`` tells why, all pictures
    are drawn for the sake of ``rows``.

    Args:
        latent: The whole batch: ``samples`` [B, C, H, W], and mask and indices where there are any.
        noise: The whole batch's noise [B, C, H, W].
        sigmas: Noise levels, falling; the last is 0.
        sampler: A sampler's name, or one made by hand.
        pack: Pictures at a time; 0 for all at once.
        callback: ComfyUI's preview callback, for the progress bar.
        guider: A GUIDER, in place of cfg, positive and negative; its model is ``model``.

    Returns:
        Latents [len(rows), C, H, W] and each picture's network evaluations.
    """
    total, ndim = len(latent["samples"]), latent["samples"].ndim
    name, stock = sampler_name(sampler), sampler_of(sampler)
    guider = guider or stock_guider(model, positive, negative, cfg)
    parts = [list(range(total))] if rows else []
    if whole := draws_whole(model, stock, guider):
        conds = {}
    else:
        conds = conditionings_of(guider)
        # Its step size follows the error of the whole batch, so only alone is a picture independent of the others.
        alone = name == "dpm_adaptive" or _counts_texts(model, conds)
        pack = 1 if alone else pack or max(len(rows), 1)
        parts = [group[i : i + pack] for group in groups(list(conds.values()), rows) for i in range(0, len(group), pack)]
    samples, evaluations = dict[int, Tensor](), dict[int, float]()
    for part_rows in parts:
        part, counter = take_latent(latent, part_rows), Counter()
        drawn = _for_rows(guider, conds, part_rows, total, ndim, counter).sample(
            take_rows(noise, part_rows, total), _among(part["samples"], latent["samples"]),
            stock if whole else RowsSampler(stock, name, latent["samples"].shape, part_rows), sigmas,
            denoise_mask=part.get("noise_mask"), callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        ).to(comfy.model_management.intermediate_device())  # fmt: skip
        samples |= dict(zip(part_rows, drawn, strict=True))
        spent = counter.rows or count_evaluations(model, stock, sigmas, cfg, guider) * len(part_rows)
        evaluations |= dict.fromkeys(part_rows, spent / len(rows if whole else part_rows))
    if not rows:
        return latent["samples"][:0], []
    return torch.stack([samples[row] for row in rows]), [evaluations[row] for row in rows]


def _counts_texts(model: comfy.model_patcher.ModelPatcher, conds: dict[str, Conditioning]) -> bool:
    """Whether ComfyUI would take the tokens of all texts of a batch for those of one, as it does for OmniGen2."""
    several = any(text is not None and len(text) > 1 for entries in conds.values() for text, _options in entries)
    return several and type(model.model).__name__ == "Omnigen2"


def conditionings_of(guider: Any) -> dict[str, Conditioning]:
    """A guider's conditionings by its own names, as nodes pass them."""
    kept = {"cross_attn", "uuid"}
    conditionings: dict[str, Conditioning] = {}
    for name, entries in guider.original_conds.items():
        conditionings[name] = [
            [entry.get("cross_attn"), {k: v for k, v in entry.items() if k not in kept and (k != "model_conds" or v)}]
            for entry in entries
        ]
    return conditionings


def _for_rows(
    guider: Any, conds: dict[str, Conditioning], rows: Sequence[int], total: int, ndim: int, counter: Counter
) -> Any:
    """A copy of ``guider`` for ``rows``, whose model is counted and told of them."""
    part = with_model(guider, counter.attach(guider.model_patcher))
    tell_rows(part.model_options, rows, total)
    controls: dict[Any, Any] = {}
    picked = {name: for_rows(conditioning, rows, total, ndim, controls) for name, conditioning in conds.items()}
    if picked:
        part.original_conds = {name: comfy.sampler_helpers.convert_cond(entries) for name, entries in picked.items()}
    return part


def _among(part: Tensor, whole: Tensor) -> Tensor:
    """``part`` as ComfyUI takes it in ``whole``: empty latents stay unshifted only where the whole batch is empty.

    Empty rows among others get the smallest number there is, which vanishes in the shift.
    """
    if torch.count_nonzero(part) or not torch.count_nonzero(whole):
        return part
    return part + torch.finfo(part.dtype).tiny
