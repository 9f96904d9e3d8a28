"""Adaptive collaboration of student and teacher (arXiv 2312.10835, Algorithm 1), on ComfyUI's LATENTs.

The student draws drafts; the teacher refines or regenerates those that an oracle rejected. Latents stay latents within one
family of models; between families they go through pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .comfy import (
    CARD,
    INFO,
    Conditioning,
    Latent,
    as_sampler,
    batch_noise,
    count_evaluations,
    draws_whole,
    family,
    fit_channels,
    model_fingerprint,
    model_name,
    pixels_per_latent,
    predict_x0,
    progress,
    sample_rows,
    sampler_name,
    step_cache,
    stock_sigmas,
    with_model,
    without_ratios,
)
from .comfy_patches import careless_patches
from .pixels import pad_mask, require_tensor, spatial_ratio, to_latents, to_pixels
from .schedules import (
    AUTO,
    CUSTOM,
    TILES,
    find_preset,
    initial_scale,
    preset_sigmas,
    recognise,
    refine_sigmas,
    rollback_of,
    rollback_sigma,
    sampling_kind,
)
from .students import sample_tcd

REFINE, REGENERATE = "refine", "regenerate"
STRATEGIES = (REFINE, REGENERATE)


@dataclass(frozen=True)
class Drawing:
    """The settings of one stock sampler run, and in their place what is connected.

    Attributes:
        sampler: A name, or a SAMPLER.
        sigmas: In place of steps, scheduler and denoise.
        guider: In place of the model's conditionings and cfg.
        noise: A NOISE, in place of the seed's.
    """

    steps: int
    cfg: float
    sampler: Any
    scheduler: str
    seed: int
    denoise: float = 1.0
    sigmas: Tensor | None = None
    guider: Any = None
    noise: Any = None

    def connected(self, sigmas: Any = None, sampler: Any = None, guider: Any = None, noise: Any = None) -> Drawing:
        """These settings with what is connected in their place.

        Raises:
            ValueError: SIGMAS that nobody can draw at.
        """
        if sigmas is not None and (sigmas.ndim != 1 or len(sigmas) < 2 or not bool(sigmas.isfinite().all())):
            raise ValueError(
                f"SIGMAS are at least two noise levels, and these are {len(sigmas.flatten())}: raise the steps or the denoise of "
                "the node that makes them."
            )
        return replace(
            self, sampler=self.sampler if sampler is None else sampler, sigmas=None if sigmas is None else sigmas.cpu(),
            guider=guider, noise=noise, seed=self.seed if noise is None else noise.seed,
        )  # fmt: skip

    def model(self, model: Any) -> Any:
        """``model``, or the guider's own, which must be the same.

        Raises:
            ValueError: It is another.
        """
        if self.guider is None:
            return model
        own = self.guider.model_patcher
        origin = getattr(own, "cached_patcher_init", None)  # in newer ComfyUIs a guider may load its model once more
        if own.model is not model.model and (origin is None or origin != getattr(model, "cached_patcher_init", None)):
            raise ValueError(
                f"The GUIDER draws with another model ({model_name(own)}) than the one connected ({model_name(model)}): connect "
                "the guider's model to this node too, or take the guider off."
            )
        return own

    def names_no_preset(self) -> bool:
        """Whether nothing is left for a preset to say: levels and sampler are connected."""
        return self.sigmas is not None and not isinstance(self.sampler, str)

    def first_noise(self, latent: Latent) -> Tensor:
        """The whole batch's noise."""
        noise: Tensor = batch_noise(latent, self.seed) if self.noise is None else self.noise.generate_noise(latent)
        return noise

    def levels(self, model: Any, denoise: float) -> Tensor:
        """The connected noise levels, or the stock sampler's."""
        return stock_sigmas(model, self.sampler, self.scheduler, self.steps, denoise) if self.sigmas is None else self.sigmas


@dataclass(frozen=True)
class Info:
    """What later nodes need to know about a batch of latents that Apprentice drew; travels in the LATENT.

    Attributes:
        nfe: Network evaluations spent on each picture by the node that made the batch.
        seed: The seed that, with the picture's place, names its noise.
        source: The latents that the drafts were drawn over [B, C, H, W].
        denoise: Part of the way that was drawn.
        family: The latent family.
        note: For people.
        student: Fingerprint of the student that drew it; empty where the teacher did.
        schedule: The student's noise levels and guidance in words; likewise.
        mark: ``mark_of`` the samples that all this is true of.
    """

    nfe: tuple[float, ...]
    seed: int
    source: Tensor
    denoise: float
    family: str
    note: str = ""
    student: str = ""
    schedule: str = ""
    mark: str = ""


def mark_of(samples: Tensor) -> str:
    """Sixteen hex digits that change with every value and the shape of ``samples``."""
    values: Any = samples.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.blake2b(repr(tuple(samples.shape)).encode(), digest_size=8)
    digest.update(values)
    return digest.hexdigest()


def with_info(latent: Latent, samples: Tensor, info: Info) -> Latent:
    """``latent`` with new ``samples``, and what is known of them."""
    return {**latent, "samples": samples, INFO: replace(info, mark=mark_of(samples))}


def info_of(latent: Latent) -> Info | None:
    """What is known of ``latent``, unless a node in between has changed it: upscaled, flipped, cropped, composited, repeated."""
    info = latent.get(INFO)
    return info if isinstance(info, Info) and info.mark == mark_of(latent["samples"]) else None


def family_of(latent: Latent) -> str:
    """The latent family of ``latent``, "" where nobody knows. Alone of what travels it outlives a change that keeps channels."""
    info = latent.get(INFO)
    return info.family if isinstance(info, Info) and info.source.shape[1] == latent["samples"].shape[1] else ""


def draw_drafts(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    preset: str,
    drawing: Drawing,
    callback: Any = None,
) -> Latent:
    """The student's drafts: exactly the stock sampler at the preset's noise levels.

    Args:
        preset: Read for its sampler alone where noise levels are connected, and not at all where a sampler is, too.
        callback: ComfyUI's preview callback; a bar of its own without.

    Raises:
        ValueError: The preset does not fit the model or the number of steps, or the latents don't fit the model.
    """
    require_tensor(latent)
    own = drawing.model(model)
    preset = CUSTOM if drawing.names_no_preset() else known_preset(model, preset)
    model = own
    latent = fit_channels(model, latent)
    rows = range(len(latent["samples"]))
    noise = drawing.first_noise(latent)
    student = model_fingerprint(model)
    denoise = drawing.denoise if drawing.sigmas is None else rollback_of(drawing.sigmas, model.get_model_object("model_sampling"))
    model, sampler, sigmas = student_schedule(model, preset, drawing, tiles_of(model, latent))
    if preset != CUSTOM and drawing.sigmas is None and denoise == 1:
        noise = noise * initial_scale(preset, float(sigmas[0]))
    samples, nfe = sample_rows(
        model, latent, rows, noise=noise, sigmas=sigmas, sampler=sampler, cfg=drawing.cfg, positive=positive,
        negative=negative, seed=drawing.seed, guider=with_model(drawing.guider, model) if drawing.guider else None,
        callback=callback or progress(model, max(len(sigmas) - 1, 1)),
    )  # fmt: skip
    info = Info(
        tuple(nfe), drawing.seed, latent["samples"], denoise, family(model), student=student,
        schedule=schedule_in_words(preset, sampler, sigmas, drawing.cfg, drawing.guider),
    )  # fmt: skip
    return with_info(latent, samples, info)


def known_preset(model: Any, preset: str) -> str:
    """``preset``, or for "auto" what ``chosen_preset`` finds.

    Raises:
        ValueError: The model says nothing of itself.
    """
    return preset if preset != AUTO else chosen_preset(model)[0]


def chosen_preset(model: Any) -> tuple[str, str]:
    """The preset that a model's card names, or else its file where ComfyUI keeps the name; and why, for people.

    Raises:
        ValueError: Neither does.
    """
    card = model.attachments.get(CARD, {})
    if card.get("preset"):
        return str(card["preset"]), str(card.get("why", "its card says so"))
    loader = getattr(model, "cached_patcher_init", None)  # newer ComfyUIs: the loader and what it was called with
    files = [Path(given).name for given in loader[1] if isinstance(given, str)] if loader else []
    if found := preset_by_name(model, files):
        return found
    raise ValueError(
        "The preset 'auto' needs a model with a card, as SiD Distill and Load Student give it, and this one has none: choose the "
        "preset that the student was made for."
    )


def tiles_of(model: Any, latent: Latent) -> float:
    """The size of the pictures in tiles of 16 x 16 pixels."""
    ratio = pixels_per_latent(model.get_model_object("latent_format"))
    return float(latent["samples"].shape[-1] * latent["samples"].shape[-2] * (ratio / 16) ** 2)


def preset_by_name(model: Any, names: Sequence[str]) -> tuple[str, str] | None:
    """The preset for models of this kind that one of ``names`` says for certain, and why, for people."""
    found = recognise(names)
    if found is None or find_preset(found[0])[0].kind != sampling_kind(model.get_model_object("model_sampling")):
        return None
    return found[0], f"it is called {found[1]}"


def student_schedule(model: Any, preset: str, drawing: Drawing, tiles: float = TILES) -> tuple[Any, Any, Tensor]:
    """The model, sampler and noise levels with which a student draws pictures of ``tiles`` times 16 x 16 pixels.

    Raises:
        ValueError: The preset does not fit the model or the number of steps.
    """
    preset = known_preset(model, preset)
    if preset == CUSTOM:
        return model, drawing.sampler, replace(drawing, steps=drawing.steps or 4).levels(model, drawing.denoise)
    found, steps = find_preset(preset, drawing.steps if drawing.sigmas is None else 0)
    model = predict_x0(model) if found.predicts_x0 else model
    sampler: Any = as_sampler(sample_tcd, "tcd") if found.sampler == "tcd" else found.sampler
    sampler = sampler if isinstance(drawing.sampler, str) else drawing.sampler
    if drawing.sigmas is not None:
        return model, sampler, drawing.sigmas
    return model, sampler, preset_sigmas(preset, steps, model.get_model_object("model_sampling"), drawing.denoise, tiles)


def schedule_in_words(preset: str, sampler: Any, sigmas: Tensor, cfg: float, guider: Any = None) -> str:
    """What the student's drafts depend on beside its weights; equal texts mean equal schedules."""
    levels = " ".join(f"{float(sigma):.4g}" for sigma in sigmas)
    guidance = f"CFG {cfg:g}" if guider is None else f"{type(guider).__name__} {_numbers(vars(guider))}".rstrip()
    options = _numbers(getattr(sampler, "extra_options", {}))
    return f"{preset}, {sampler_name(sampler)}{f' ({options})' if options else ''} at {levels}, {guidance}"


def _numbers(named: dict[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in sorted(named.items()) if isinstance(value, (bool, int, float)))


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
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    drafts: Latent,
    rows: Sequence[int],
    strategy: str,
    rollback: float,
    drawing: Drawing,
    pack: int = 0,
    vaes: tuple[Any, Any] | None = None,
    callback: Any = None,
) -> Latent:
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
    known = info or Info((), 0, _unknown_source(drafts), 1.0, family_of(drafts) or ("" if foreign else family(model)))
    return _replaced(drafts, rows, drawn, evaluations, drawing, known, note)


def _replaced(
    drafts: Latent, rows: Sequence[int], drawn: Tensor, evaluations: list[float], drawing: Drawing, known: Info, note: str
) -> Latent:
    samples = drafts["samples"].clone()
    samples[list(rows)] = drawn.to(samples)
    nfe = [0.0] * len(samples)
    for row, count in zip(rows, evaluations, strict=True):
        nfe[row] = count
    info = Info(tuple(nfe), drawing.seed, known.source, known.denoise, known.family, note)
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
