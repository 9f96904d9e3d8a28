"""Latents as ComfyUI hands them from node to node: channels, families, and how many pixels a latent stands for."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import torch
from torch import Tensor

from .info import INFO, info_of, with_info
from .pixels import to_pixels
from .rows import Latent, take_latent, take_rows

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def fit_channels(model: comfy.model_patcher.ModelPatcher, latent: Latent) -> Latent:
    """``latent`` with the model's number of channels where it is empty, as the stock sampler does it.

    Newer ComfyUIs note in an empty latent how many pixels a latent was taken for, so that it can be made as large as it was
    asked for; like the stock sampler this hands that on to ComfyUI and takes it off.

    Raises:
        ValueError: It isn't empty and belongs to another kind of model.
    """
    wanted = model.get_model_object("latent_format").latent_channels
    taken = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {key: latent[key] for key in RATIOS if key in latent and key in taken}
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)
    if samples.shape[1] != wanted:
        raise ValueError(
            f"These latents have {samples.shape[1]} channels, but the model draws in {wanted}: they come from another "
            f"family of models. Encode the picture with this model's VAE, or connect both VAEs."
        )
    return {**without_ratios(latent), "samples": samples}


def without_ratios(latent: Latent) -> Latent:
    """``latent`` without what an empty latent notes of its size in pixels."""
    return {key: value for key, value in latent.items() if key not in RATIOS}


def family(model: comfy.model_patcher.ModelPatcher) -> str:
    """The model's latent family: two models of one family can pass latents to each other."""
    return type(model.get_model_object("latent_format")).__name__


# Where ComfyUI's latent formats don't tell yet; any other takes 8 pixels.
_PIXELS = {
    "Flux2": 16, "Wan22": 16, "SC_Prior": 42, "SC_B": 4, "LTXV": 32, "HunyuanImage21": 32, "HunyuanImage21Refiner": 16,
    "HunyuanVideo15": 16, "ChromaRadiance": 1,
}  # fmt: skip


def pixels_per_latent(kind: Any) -> int:
    """Pixels that a latent of this latent format stands for, along a side."""
    ratios = (_PIXELS[base.__name__] for base in type(kind).__mro__ if base.__name__ in _PIXELS)
    return int(getattr(kind, "spacial_downscale_ratio", None) or next(ratios, 8))


def decode_rows(vae: Any, samples: Tensor, rows: list[int]) -> Tensor:
    """The pictures of the batch [B, H, W, C]; those that are not in ``rows``, which nobody looks at, are black."""
    pictures = to_pixels(vae, samples[rows])
    whole = pictures.new_zeros(len(samples), *pictures.shape[1:])
    whole[rows] = pictures
    return whole


def replace_rows(
    drafts: dict[str, Any], improved: dict[str, Any], draft_images: Tensor, improved_images: Tensor | None, rows: list[int]
) -> tuple[dict[str, Any], Tensor]:
    """Latents and pictures of the drafts, with ``rows`` from the improved ones.

    Raises:
        ValueError: They differ in size.
    """
    latent = {key: value for key, value in drafts.items() if key != INFO}
    if not rows or improved_images is None:
        return latent, draft_images
    _same_size("drafts", drafts["samples"].shape[-2:], improved["samples"].shape[-2:])
    _same_size("draft images", draft_images.shape[1:3], improved_images.shape[1:3])
    samples, images = drafts["samples"].clone(), draft_images.clone()
    samples[rows], images[rows] = improved["samples"][rows].to(samples), improved_images[rows].to(images)
    return {**latent, "samples": samples}, images


def _same_size(what: str, before: Any, after: Any) -> None:
    if tuple(before) != tuple(after):
        raise ValueError(
            f"The {what} are {before[1]} x {before[0]} and the improved ones {after[1]} x {after[0]}, so they can't be in one "
            f"batch: change both alike before Keep Better, or the result after it."
        )


def latents_of_list(latents: list[dict[str, Any]], rows: list[int], total: int) -> dict[str, Any]:
    """The latents of ``rows``, counted through a list of batches.

    Raises:
        ValueError: There isn't one for each picture, or those wanted can't be one batch.
    """
    if len(latents) == 1:
        return latents_of(latents[0], rows, total)
    places = [(batch, row) for batch, latent in enumerate(latents) for row in range(len(latent["samples"]))]
    if len(places) != total:
        raise ValueError(f"There are {len(places)} latents for {total} pictures; connect the batches they were decoded from.")
    parts = [latents_of(latents[batch], [row], len(latents[batch]["samples"])) for batch, row in (places[row] for row in rows)]
    joined = dict(parts[0])
    try:
        joined["samples"] = torch.cat([part["samples"] for part in parts])
        if any("noise_mask" in part for part in parts):
            if not all("noise_mask" in part for part in parts):
                raise ValueError("Some of the best pictures' latents have a mask and some have none; give all or none a mask.")
            joined["noise_mask"] = torch.cat([part["noise_mask"] for part in parts])
    except RuntimeError as error:
        raise ValueError("The best pictures' latents have different sizes and can't be one batch; keep one (count 1).") from error
    joined["batch_index"] = [index for part in parts for index in part["batch_index"]]
    return joined


def latents_of(latent: dict[str, Any], rows: list[int], total: int) -> dict[str, Any]:
    """The latents of ``rows``.

    Raises:
        ValueError: There isn't one for each picture.
    """
    if len(latent["samples"]) != total:
        count = len(latent["samples"])
        raise ValueError(f"There are {count} latents for {total} pictures; connect the batch they were decoded from.")
    part = take_latent(latent, rows)
    part.pop(INFO, None)  # it tells of the whole batch
    return part


def part_of(latent: Latent, rows: list[int]) -> Latent:
    """The latents of ``rows``, with their masks, places, and what they cost."""
    info, total = info_of(latent), len(latent["samples"])
    part = latents_of(latent, rows, total)
    if info is None:
        return part
    costs = tuple(info.nfe[row] for row in rows)
    return with_info(part, part["samples"], replace(info, nfe=costs, source=take_rows(info.source, rows, total)))


def put_back(whole: Tensor, part: Tensor, rows: list[int], what: str) -> Tensor:
    """``whole`` [B, ...] with ``rows`` from ``part``, in order.

    Raises:
        ValueError: Their numbers or sizes differ.
    """
    if len(part) != len(rows):
        raise ValueError(f"{len(rows)} {what} were rejected, but {len(part)} came back; connect all of them, as one batch.")
    if part.shape[1:] != whole.shape[1:]:
        before, after = (" x ".join(map(str, batch.shape[1:])) for batch in (whole, part))
        raise ValueError(
            f"The whole batch's {what} measure {before} and the rejected came back as {after}, so they can't be one batch: scale "
            f"the whole batch alike before it is merged, or the rejected ones back."
        )
    merged = whole.clone()
    merged[rows] = part.to(merged)
    return merged


def masks_of(masks: list[Tensor], rows: list[int], total: int) -> Tensor:
    """The masks of ``rows``; one mask holds for all.

    Raises:
        ValueError: There is neither one nor one for each picture.
    """
    each = [row for m in masks for row in m.reshape(-1, *m.shape[-2:])]
    if len(each) not in (1, total):
        raise ValueError(f"There are {len(each)} masks for {total} pictures; give one for all, or one for each.")
    if len(each) == 1 or not rows:
        taken: Tensor = take_rows(each[0][None], rows, total)
        return taken
    if len({each[row].shape for row in rows}) > 1:
        raise ValueError("The best pictures' masks have different sizes and can't be one batch; keep one (count 1).")
    return torch.stack([each[row] for row in rows])
