"""These rows of this batch: one mechanism that looks everywhere a batch of pictures has one entry for each.

It knows how ComfyUI reads what it is handed (which entry belongs to picture i of n), but needs torch alone: tensors, plain
containers, and objects that hold tensors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

Latent = dict[str, Any]
Conditioning = list[list[Any]]
Place = Callable[[int, int, int], int]  # (picture, entries, pictures) -> entry

# Companions of a text that ComfyUI's models read one row a picture, beginning anew when there are fewer rows than pictures; any
# other tensor is taken for that when it has as many rows as there are pictures, or texts.
_REPEATED = frozenset({
    "pooled_output", "attention_mask", "cross_attn_controlnet", "conditioning_llama3", "conditioning_lyrics",
    "conditioning_mt5xl", "attention_mask_mt5xl", "conditioning_byt5small", "noise_concat", "time_conditioning",
    "time_dim_concat", "stable_cascade_prior", "camera_conditions", "audio_embed", "face_video_pixels", "pose_video_latent",
    "reference_motion", "control_video", "keyframe_idxs", "ref_latent", "reference_latents", "vace_frames", "vace_mask",
    "model_conds",
})  # fmt: skip
# Those that it spreads evenly over the pictures.
_SPREAD = frozenset({"concat_latent_image", "concat_mask", "concat_image"})
# Those of which every entry goes to every picture, and what is no tensor.
_SHARED = frozenset({"gligen", "unclip_conditioning", "control"})


def is_whole(rows: Sequence[int], total: int) -> bool:
    """Whether ``rows`` are all the pictures of the batch, in its order."""
    return list(rows) == list(range(total))


def take_rows(value: Any, rows: Sequence[int], total: int) -> Any:
    """``value[rows]`` for a tensor that has one entry a picture of a batch of ``total``; a single entry holds for all.

    A tensor with fewer begins anew, as ComfyUI does with texts, masks and hints. The whole batch gets ``value`` as it is.
    """
    return _take_tensor(value, rows, total, _repeated)


def take_mask(mask: Tensor, rows: Sequence[int], total: int, ndim: int = 4) -> Tensor:
    """The part of a mask for ``rows``, as ComfyUI reads it for latents of ``ndim`` dimensions.

    Over pictures (4) every leading dimension counts pictures: [H, W], [B, H, W], [B, 1, H, W], [B, 1, T, H, W]. Over videos (5)
    only [B, 1, T, H, W] does; anything shorter holds the frames of one mask for all.
    """
    if is_whole(rows, total) or (ndim == 5 and mask.ndim < 5):
        return mask
    if ndim == 4 and (mask.ndim == 2 or mask[0].numel() != math.prod(mask.shape[-2:])):
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
    taken: Tensor = take_rows(mask, rows, total)
    return taken


def take_latent(latent: Latent, rows: Sequence[int]) -> Latent:
    """The latents, mask and indices of ``rows``."""
    total = len(latent["samples"])
    part = dict(latent)
    part["samples"] = latent["samples"][list(rows)]
    if latent.get("noise_mask") is not None:
        part["noise_mask"] = take_mask(latent["noise_mask"], rows, total, latent["samples"].ndim)
    indices = latent.get("batch_index") or list(range(total))
    part["batch_index"] = [indices[row] for row in rows]
    return part


def take_conditioning(
    conditioning: Conditioning, rows: Sequence[int], total: int, ndim: int = 4, controls: dict[Any, Any] | None = None
) -> Conditioning:
    """The conditioning of ``rows``, wherever it holds one entry a picture: texts and their companions, references, masks, hints.

    A conditioning of fewer texts than pictures gives each row what it gets in the whole batch.

    Args:
        ndim: Dimensions of the latents that it is for.
        controls: ControlNets taken so far. Those that share one, as positive and negative do, must go on sharing it, or ComfyUI
            runs it for each: hand the same dictionary to both.
    """
    if is_whole(rows, total):
        return conditioning
    controls = {} if controls is None else controls
    picked = []
    for text, options in conditioning:
        taken = _take_options(text, options, rows, total, ndim)
        if options.get("control") is not None:
            taken["control"] = _take_control(options["control"], rows, total, controls)
        picked.append([take_rows(text, rows, total), taken])
    return picked


def _take_options(text: Any, options: dict[str, Any], rows: Sequence[int], total: int, ndim: int) -> dict[str, Any]:
    counts = {total, len(text)} if isinstance(text, Tensor) else {total}
    taken = {}
    for key, value in options.items():
        if key in _SHARED or value is None:
            taken[key] = value
        elif key == "mask":
            taken[key] = _take_area_mask(value, rows, total, ndim, options)
        elif key == "clip_vision_output":
            taken[key] = _take_attributes(value, rows, total)
        elif key in _SPREAD:
            taken[key] = _take_tensor(value, rows, total, _spread)
        else:
            taken[key] = _take_nested(value, rows, total, None if key in _REPEATED else counts)
    return taken


def _repeated(row: int, count: int, total: int) -> int:
    """Which of ``count`` entries picture ``row`` gets where they begin anew (``repeat_to_batch_size``)."""
    return row % count if count < total else row


def _spread(row: int, count: int, total: int) -> int:
    """The same where they are spread evenly (``resize_to_batch_size``)."""
    if count > total:
        return min(round(row * ((count - 1) / (total - 1))), count - 1)
    return min(math.floor((row + 0.5) * (count / total)), count - 1)


def _take_tensor(value: Any, rows: Sequence[int], total: int, place: Place) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) <= 1 or is_whole(rows, total):
        return value
    return value[torch.as_tensor([place(row, len(value), total) for row in rows], dtype=torch.long, device=value.device)]


def _take_nested(value: Any, rows: Sequence[int], total: int, counts: Collection[int] | None) -> Any:
    """The rows of every tensor in ``value``; with ``counts``, only of those with so many entries."""
    if isinstance(value, Tensor):
        picked = counts is None or (value.ndim > 1 and len(value) in counts)
        return take_rows(value, rows, total) if picked else value
    if type(value) in (list, tuple):
        return type(value)(_take_nested(item, rows, total, counts) for item in value)
    if type(value) is dict:
        return {key: _take_nested(item, rows, total, counts) for key, item in value.items()}
    if hasattr(value, "process_cond") and isinstance(value.cond, (Tensor, list)):  # one of ComfyUI's CONDs
        part = copy.copy(value)
        part.cond = _take_nested(value.cond, rows, total, None)
        return part
    return value


def _take_attributes(value: Any, rows: Sequence[int], total: int) -> Any:
    """An object that holds tensors (what a CLIP vision model gives)."""
    part = copy.copy(value)
    for name, held in vars(value).items():
        setattr(part, name, take_rows(held, rows, total))
    return part


def _take_area_mask(mask: Tensor, rows: Sequence[int], total: int, ndim: int, options: dict[str, Any]) -> Tensor:
    """The mask of a conditioning: [H, W] or [B, H, W], and over videos the frames of one for all."""
    if mask.ndim == ndim - 2:
        return mask
    taken: Tensor = take_rows(mask, rows, total)
    if options.get("set_area_to_bounds") and taken is not mask:
        # The bounds are those of all masks; of more masks than pictures ComfyUI applies the first ones.
        taken = torch.cat([taken, mask])
    return taken


def _take_control(control: Any, rows: Sequence[int], total: int, taken: dict[Any, Any]) -> Any:
    """A ControlNet and those before it, with the hints of ``rows``; or what was ``taken`` for it."""
    if control in taken:
        return taken[control]
    part = control.copy() if hasattr(control, "copy") else copy.copy(control)
    hint = getattr(control, "cond_hint_original", None)
    taken[control] = part
    if hasattr(part, "sub_idxs"):  # Advanced-ControlNet picks for itself, as it does for AnimateDiff's windows
        part.sub_idxs, part.full_latent_length, part.context_length = list(rows), total, len(rows)
    elif isinstance(hint, Tensor) and getattr(getattr(control, "vae", None), "latent_dim", 2) != 3:  # a video VAE: frames
        part.cond_hint_original = take_rows(hint, rows, total)
        # What is joined to a hint has as many rows as the hint.
        places = [_repeated(row, len(hint), total) if len(hint) > 1 else 0 for row in rows]
        part.extra_concat_orig = [take_rows(extra, places, max(len(hint), 2)) for extra in control.extra_concat_orig]
    if getattr(control, "previous_controlnet", None) is not None:
        part.set_previous_controlnet(_take_control(control.previous_controlnet, rows, total, taken))
    return part
