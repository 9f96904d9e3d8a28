"""The student's drafts: which preset, sampler and noise levels, and the stock sampler at those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..samplers.presets import AUTO, CUSTOM, TILES, choice_for, find_preset, initial_scale, preset_sigmas, recognise
from ..samplers.schedules import rollback_of, sampling_kind
from ..samplers.students import sample_tcd
from .counting import count_evaluations
from .drawing import Drawing
from .fingerprints import model_fingerprint
from .guiders import as_sampler, predict_x0, sampler_name, with_model
from .info import CARD, Info, with_info
from .latents import family, fit_channels, pixels_per_latent
from .pixels import require_tensor
from .progress import progress
from .rows import Conditioning, Latent
from .sampling import sample_rows


def draw_drafts(
    model: Any, positive: Conditioning, negative: Conditioning, latent: Latent, preset: str, drawing: Drawing,
    callback: Any = None,
) -> Latent:  # fmt: skip
    """The student's drafts: exactly the stock sampler at the preset's noise levels.

    Args:
        preset: Read for its sampler alone where noise levels are connected, and not at all where a sampler is, too.
        callback: ComfyUI's preview callback; a bar of its own without.

    Raises:
        ValueError: The preset does not fit the model or the number of steps, or the latents don't fit the model.
    """
    plan = plan_drafts(model, latent, preset, drawing)
    rows = range(len(plan.latent["samples"]))
    samples, nfe = plan.draw(
        rows, drawing.first_noise(plan.latent), drawing.seed, positive, negative,
        callback or progress(plan.model, max(len(plan.sigmas) - 1, 1)),
    )  # fmt: skip
    plain = drawing.noise is None and plan.denoise == 1 and "noise_mask" not in latent and not bool(latent["samples"].any())
    return with_info(plan.latent, samples, replace(plan.info(tuple(nfe), drawing.seed), plain_noise=plain))


@dataclass(frozen=True)
class Plan:
    """How a student will draw: everything but the noise and the words.

    Attributes:
        latent: What is drawn over, with the model's channels.
        scale: Of the first noise; see ``presets.initial_scale``.
        student: Its fingerprint.
        schedule: In words.
    """

    model: Any
    latent: Latent
    sampler: Any
    sigmas: Tensor
    cfg: float
    guider: Any
    scale: float
    denoise: float
    student: str
    schedule: str

    def draw(
        self, rows: Sequence[int], noise: Tensor, seed: int, positive: Conditioning, negative: Conditioning, callback: Any
    ) -> tuple[Tensor, list[float]]:
        """Latents of the pictures ``rows`` and their evaluations.

        Args:
            noise: Unit noise of the whole batch.
            seed: Of the noise between steps.
        """
        return sample_rows(
            self.model, self.latent, rows, noise=noise if self.scale == 1 else noise * self.scale, sigmas=self.sigmas,
            sampler=self.sampler, cfg=self.cfg, positive=positive, negative=negative, seed=seed,
            guider=with_model(self.guider, self.model) if self.guider else None, callback=callback,
        )  # fmt: skip

    def evaluations(self) -> float:
        """Network evaluations of one draft, foretold; what it costs is counted."""
        return float(count_evaluations(self.model, self.sampler, self.sigmas, self.cfg, self.guider))

    def info(self, nfe: tuple[float, ...], seed: int) -> Info:
        """What later nodes need to know of drafts that cost ``nfe``."""
        return Info(
            nfe, seed, self.latent["samples"], self.denoise, family(self.model), student=self.student, schedule=self.schedule
        )


def plan_drafts(model: Any, latent: Latent, preset: str, drawing: Drawing) -> Plan:
    """How ``draw_drafts`` draws; the errors are its own."""
    require_tensor(latent)
    drawn_with = drawing.model(model)
    preset = CUSTOM if drawing.names_no_preset() else known_preset(model, preset)
    latent = fit_channels(drawn_with, latent)
    student = model_fingerprint(drawn_with)
    sampling = drawn_with.get_model_object("model_sampling")
    denoise = drawing.denoise if drawing.sigmas is None else rollback_of(drawing.sigmas, sampling)
    model, sampler, sigmas = student_schedule(drawn_with, preset, drawing, tiles_of(drawn_with, latent))
    scaled = preset != CUSTOM and drawing.sigmas is None and denoise == 1
    return Plan(
        model, latent, sampler, sigmas, drawing.cfg, drawing.guider, initial_scale(preset, float(sigmas[0])) if scaled else 1.0,
        denoise, student, schedule_in_words(preset, sampler, sigmas, drawing.cfg, drawing.guider),
    )  # fmt: skip


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
    if named := preset_by_name(model, files):
        return named
    raise ValueError(
        "The preset 'auto' can't tell what the student was made as, since neither a card nor its file's name says so. This is "
        f"{choice_for(_classes(model), sampling_kind(model.get_model_object('model_sampling')))}."
    )


def _classes(model: Any) -> list[str]:
    """The names of its configuration's class and of that's ancestors, by which families are told."""
    return [cls.__name__ for cls in type(getattr(model.model, "model_config", None)).__mro__]


def tiles_of(model: Any, latent: Latent) -> float:
    """The size of the pictures in tiles of 16 x 16 pixels."""
    ratio = pixels_per_latent(model.get_model_object("latent_format"))
    return float(latent["samples"].shape[-1] * latent["samples"].shape[-2] * (ratio / 16) ** 2)


def preset_by_name(model: Any, names: Sequence[str]) -> tuple[str, str] | None:
    """The preset for models of this kind that one of ``names`` says for certain, and why, for people."""
    recognised = recognise(names)
    if recognised is None or find_preset(recognised[0])[0].kind != sampling_kind(model.get_model_object("model_sampling")):
        return None
    return recognised[0], f"it is called {recognised[1]}"


def student_schedule(model: Any, preset: str, drawing: Drawing, tiles: float = TILES) -> tuple[Any, Any, Tensor]:
    """The model, sampler and noise levels with which a student draws pictures of ``tiles`` times 16 x 16 pixels.

    Raises:
        ValueError: The preset does not fit the model or the number of steps.
    """
    preset = known_preset(model, preset)
    if preset == CUSTOM:
        return model, drawing.sampler, replace(drawing, steps=drawing.steps or 4).levels(model, drawing.denoise)
    row, steps = find_preset(preset, drawing.steps if drawing.sigmas is None else 0)
    model = predict_x0(model) if row.predicts_x0 else model
    sampler: Any = as_sampler(sample_tcd, "tcd") if row.sampler == "tcd" else row.sampler
    sampler = sampler if isinstance(drawing.sampler, str) else drawing.sampler
    if drawing.sigmas is not None:
        return model, sampler, drawing.sigmas
    sampling = model.get_model_object("model_sampling")
    return model, sampler, preset_sigmas(preset, steps, sampling, drawing.denoise, tiles, _classes(model))


def schedule_in_words(preset: str, sampler: Any, sigmas: Tensor, cfg: float, guider: Any = None) -> str:
    """What the student's drafts depend on beside its weights; equal texts mean equal schedules."""
    levels = " ".join(f"{float(sigma):.4g}" for sigma in sigmas)
    guidance = f"CFG {cfg:g}" if guider is None else f"{type(guider).__name__} {_numbers(vars(guider))}".rstrip()
    options = _numbers(getattr(sampler, "extra_options", {}))
    return f"{preset}, {sampler_name(sampler)}{f' ({options})' if options else ''} at {levels}, {guidance}"


def _numbers(named: dict[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in sorted(named.items()) if isinstance(value, (bool, int, float)))
