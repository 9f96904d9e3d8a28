"""Other packs' patches on a MODEL: which of them may not know that they see a part of a batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_patcher
import folder_paths
import torch

# A patch that goes by the picture's place asks for these in its options: AnimateDiff's protocol, and ours (``tell_rows``).
_ASKS = ("sub_idxs", "ad_params", "apprentice_rows")
# Where ComfyUI keeps what packs put around the network and inside it; attention itself knows no pictures, and is left out.
_OPTIONS = (
    "model_function_wrapper", "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function", "denoise_mask_function",
)  # fmt: skip
_TRANSFORMER_OPTIONS = ("patches", "patches_replace", "wrappers")
# What is no pack: ComfyUI itself but for its folder of packs, PyTorch, and this one.
_KNOWN = tuple(
    Path(file).resolve().parents[up] for file, up in ((folder_paths.__file__, 0), (torch.__file__, 0), (__file__, 1))
)


def careless_patches(model: comfy.model_patcher.ModelPatcher) -> list[str]:
    """The packs whose patches on ``model`` see the batch, and whose code asks nowhere which of its pictures it sees."""
    options = model.model_options
    inside = options.get("transformer_options", {})
    places = [
        *(options.get(key) for key in _OPTIONS), *(inside.get(key) for key in _TRANSFORMER_OPTIONS), model.wrappers,
        [injection.inject for injections in model.injections.values() for injection in injections],
        {key: value for key, value in model.object_patches.items() if key.startswith("diffusion_model")},
    ]  # fmt: skip
    files = {file for function in _functions(places) if (file := _file_of(function)) is not None}
    return sorted({_pack_of(file) for file in files if _is_foreign(file) and not _asks(file)})


def _functions(value: Any) -> Iterator[Callable[..., Any]]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _functions(item)
    elif callable(value):
        yield value


def _file_of(function: Any) -> Path | None:
    """Where a function, or the class of an object that can be called, is written."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)  # a bound method hands on its function's
    file = code.co_filename if code else getattr(inspect.getmodule(type(function)), "__file__", None)
    return Path(file) if file else None


def _is_foreign(file: Path) -> bool:
    if "custom_nodes" in file.parts and not file.resolve().is_relative_to(_KNOWN[-1]):
        return True
    return not any(file.resolve().is_relative_to(folder) for folder in _KNOWN)


@lru_cache(maxsize=256)
def _asks(file: Path) -> bool:
    """Whether the file that a patch is in speaks a protocol of rows."""
    try:
        text = file.read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return False
    return any(word in text for word in _ASKS)


def _pack_of(file: Path) -> str:
    """The pack's folder, for people; the file's own name outside of any."""
    places = [i for i, part in enumerate(file.parts) if part == "custom_nodes"]
    return Path(file.parts[places[-1] + 1]).stem if places and places[-1] + 1 < len(file.parts) else file.stem
