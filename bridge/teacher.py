"""The teacher's half of Algorithm 1 (arXiv 2312.10835) on ComfyUI's LATENTs: it refines or regenerates rejected drafts.

Latents stay latents within one family of models; between families they go through pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..samplers.schedules import refine_sigmas, rollback_sigma
from .counting import count_evaluations
from .drawing import Drawing
from .fingerprints import model_fingerprint
from .guiders import draws_whole, step_cache
from .info import INFO, Info, family_of, info_of, with_info
from .latents import family, without_ratios
from .patches import careless_patches
from .pixels import pad_mask, require_tensor, spatial_ratio, to_latents, to_pixels
from .progress import progress
from .rows import Conditioning, Latent
from .sampling import sample_rows

REFINE, REGENERATE = "refine", "regenerate"
STRATEGIES = (REFINE, REGENERATE)


def teacher_evaluations(model: Any, strategy: str, rollback: float, drawing: Drawing) -> float:
    """Network evaluations that ``improve`` will spend on one picture: counted with a stand-in for the network.

    ``model`` may be the student, where it is of the teacher's family. An estimate for samplers that choose their own steps;
    conditionings of several entries cost more.

    Raises:
        ValueError: ``rollback`` is not in 0..1.
    """
    model = drawing.guider.model_patcher if drawing.guider else model
    sigmas = drawing.levels(model, 1.0)
    if strategy == REFINE:
        sigmas = refine_sigmas(sigmas, rollback_sigma(rollback, model.get_model_object("model_sampling")))
    return float(count_evaluations(model, drawing.sampler, sigmas, drawing.cfg, drawing.guider))


def improve(
    model: Any, positive: Conditioning, negative: Conditioning, drafts: Latent, rows: Sequence[int], strategy: str,
    rollback: float, drawing: Drawing, pack: int = 0, vaes: tuple[Any, Any] | None = None, callback: Any = None,
) -> Latent:  # fmt: skip
    """``drafts`` with the pictures ``rows`` improved by the teacher (Algorithm 1, lines 6-9).

    "refine" takes a draft back to the noise level of ``rollback`` and draws it anew from there; "regenerate" draws it
    from the student's own starting point, as if there had been no draft.

    Args:
        drawing: The teacher's settings; its ``denoise`` is not used.
        pack: Rejected pictures in one pass; 0 for all at once.
        vaes: The student's and the teacher's VAE; needed only between different latent families.
        callback: ComfyUI's preview callback; a bar of its own without.

    Raises:
        ValueError: The families differ and there are not two VAEs, or a setting is out of range.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"The strategy is one of {', '.join(STRATEGIES)}, not '{strategy}'.")
    require_tensor(drafts)
    model = drawing.model(model)
    drafts = without_ratios(drafts)
    info = info_of(drafts)
    foreign = _is_foreign(model, drafts)
    start = _through_pixels(drafts, drafts["samples"], rows, vaes) if foreign else drafts
    if strategy == REFINE:
        sigma = rollback_sigma(rollback, model.get_model_object("model_sampling"))
        sigmas = refine_sigmas(drawing.levels(model, 1.0), sigma)
        note = f"refined from rollback {rollback:g}, sigma {sigma:.4g}, in {max(len(sigmas) - 1, 0)} steps"
    else:
        denoise = info.denoise if info else 1.0
        start = _source(drafts, start, info, rows, vaes if foreign else None)
        sigmas = drawing.levels(model, denoise)
        note = f"regenerated in {max(len(sigmas) - 1, 0)} steps{_lost(drafts, info)}"
    if cache := step_cache(model):
        note += f" with {cache}, which skips steps by the batch: the pictures depend on which others were rejected"
    if why := draws_whole(model, drawing.sampler, drawing.guider):
        note += f"; the whole batch was drawn for them, as {why}" * (len(rows) < len(start["samples"]))
    elif (len(rows) < len(start["samples"]) or 0 < pack < len(rows)) and (packs := careless_patches(model)):
        note += (
            f". Patches by {' and '.join(packs)} on the teacher may not know which pictures of the batch they see: what they "
            "keep for each picture could go to another; if so, let the teacher draw all (worst share 1)"
        )
    passes = -(-len(rows) // pack) if pack else 1
    drawn, evaluations = sample_rows(
        model, start, rows, noise=drawing.first_noise(start), sigmas=sigmas, sampler=drawing.sampler,
        cfg=drawing.cfg, positive=positive, negative=negative, seed=drawing.seed, pack=pack, guider=drawing.guider,
        callback=callback or progress(model, max(len(sigmas) - 1, 1), passes),
    )  # fmt: skip
    if foreign and vaes and len(drawn):
        drawn = _back_through_pixels(drawn, drafts["samples"], vaes)
    origin = info or Info((), 0, _unknown_source(drafts), 1.0, family_of(drafts) or ("" if foreign else family(model)))
    origin = replace(origin, note=note, teacher=model_fingerprint(model))
    return _replaced(drafts, rows, drawn, evaluations, drawing, origin)


def _replaced(
    drafts: Latent, rows: Sequence[int], drawn: Tensor, evaluations: list[float], drawing: Drawing, origin: Info
) -> Latent:
    samples = drafts["samples"].clone()
    samples[list(rows)] = drawn.to(samples)
    nfe = [0.0] * len(samples)
    for row, count in zip(rows, evaluations, strict=True):
        nfe[row] = count
    info = replace(origin, nfe=tuple(nfe), seed=drawing.seed, student="", schedule="")
    return with_info(drafts, samples, info)


def _is_foreign(model: Any, drafts: Latent) -> bool:
    """Whether drafts and teacher live in different latent spaces: by name where known, else by channels."""
    if origin := family_of(drafts):
        return origin != family(model)
    kind, samples = model.get_model_object("latent_format"), drafts["samples"]
    return (samples.shape[1], samples.ndim - 2) != (kind.latent_channels, kind.latent_dimensions)


def _through_pixels(latent: Latent, samples: Tensor, rows: Sequence[int], vaes: tuple[Any, Any] | None) -> Latent:
    """``latent`` with its ``rows`` of ``samples`` in the teacher's space; the other rows, which nobody draws, are empty."""
    if vaes is None or vaes[0] is None or vaes[1] is None:
        raise ValueError(
            "Student and teacher draw in different latent spaces, so the drafts must go through pixels: connect the "
            "student's VAE to vae and the teacher's VAE to teacher_vae."
        )
    pictures = to_pixels(vaes[0], samples[list(rows)])
    if len(pictures) != len(rows):
        raise ValueError(
            "Drafts of several frames can't go through pixels to another family of models: use a teacher of the student's family."
        )
    encoded = to_latents(vaes[1], pictures)
    whole = encoded.new_zeros(len(samples), *encoded.shape[1:])
    whole[list(rows)] = encoded
    mask, size = latent.get("noise_mask"), (pictures.shape[1], pictures.shape[2])
    masked = {} if mask is None else {"noise_mask": pad_mask(mask, size, spatial_ratio(vaes[1]))}
    return {**latent, **masked, "samples": whole}


def _back_through_pixels(drawn: Tensor, drafts: Tensor, vaes: tuple[Any, Any]) -> Tensor:
    """What the teacher drew, in the student's space and in the drafts' size."""
    ratio = spatial_ratio(vaes[0])
    height, width = (side * ratio for side in drafts.shape[-2:])
    return to_latents(vaes[0], to_pixels(vaes[1], drawn)[:, :height, :width])


def _source(
    drafts: Latent, start: Latent, info: Info | None, rows: Sequence[int], vaes: tuple[Any, Any] | None
) -> Latent:
    """What the student's drafts were drawn over: an empty batch, or the encoded picture of img2img and inpainting."""
    if info is None:
        return {**start, "samples": _unknown_source(start)}
    if torch.count_nonzero(info.source) == 0:
        return {**start, "samples": torch.zeros_like(start["samples"])}
    return _through_pixels(drafts, info.source, rows, vaes) if vaes else {**drafts, "samples": info.source}


def _unknown_source(latent: Latent) -> Tensor:
    """What latents by another sampler, or changed since, may count as drawn over: an empty batch, or under a mask they
    themselves, whose kept part is the picture's."""
    samples: Tensor = latent["samples"]
    return torch.zeros_like(samples) if latent.get("noise_mask") is None else samples


def _lost(drafts: Latent, info: Info | None) -> str:
    """For the note, that drafts over a picture were changed, so that the picture is no longer theirs."""
    once = drafts.get(INFO)
    if info is not None or not isinstance(once, Info) or drafts.get("noise_mask") is not None:
        return ""
    return " without the picture they were drawn over, as they were changed since" if torch.count_nonzero(once.source) else ""
