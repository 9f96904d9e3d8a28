"""Patches of other packs that may not know that they see a part of a batch are named in the report; no others are."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

import comfy.patcher_extension  # noqa: E402
from comfyui_apprentice.bridge.counting import Counter  # noqa: E402
from comfyui_apprentice.bridge.drawing import Drawing  # noqa: E402
from comfyui_apprentice.bridge.patches import careless_patches  # noqa: E402
from comfyui_apprentice.bridge.teacher import INFO, improve  # noqa: E402

SOURCE = '''
import functools

def wrapper(apply, args):
    return apply(args["input"], args["timestep"], **args["c"])

def attention(q, k, v, extra_options):
    return q, k, v

class Attention:
    def __call__(self, q, k, v, extra_options):
        return self.inner(q, k, v)

    def inner(self, q, k, v):
        return q

def after(args):
    return args["denoised"]

def around(executor, *args, **kwargs):
    return executor(*args, **kwargs)

@functools.wraps(around)
def decorated(executor, *args, **kwargs):
    return around(executor, *args, **kwargs)

def attend(func, *args, **kwargs):
    return func(*args, **kwargs)
'''


def pack(folder: Path, name: str, more: str = "") -> Any:
    """A pack's module, from a folder of packs."""
    file = folder / "custom_nodes" / name / "patches.py"
    file.parent.mkdir(parents=True)
    file.write_text(SOURCE + more)
    spec = importlib.util.spec_from_file_location(f"packs_{name.replace('-', '_')}_{folder.name}", file)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_wrapper(model: Any, function: Callable[..., Any], kind: str) -> None:
    model.add_wrapper_with_key(getattr(comfy.patcher_extension.WrappersMP, kind), "key", function)


def with_injection(model: Any, function: Callable[..., Any]) -> None:
    model.set_injections("key", [comfy.patcher_extension.PatcherInjection(function, function)])


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "wrapper of the network": lambda model, of: model.set_model_unet_function_wrapper(of.wrapper),
    "a part of it": lambda model, of: model.set_model_unet_function_wrapper(functools.partial(of.wrapper)),
    "attention patch": lambda model, of: model.set_model_attn2_patch(of.attention),
    "attention replaced": lambda model, of: model.set_model_attn2_replace(of.Attention(), "input", 1),
    "a bound method": lambda model, of: model.set_model_attn1_replace(of.Attention().inner, "middle", 0),
    "after guidance": lambda model, of: model.set_model_sampler_post_cfg_function(of.after),
    "guidance": lambda model, of: model.set_model_sampler_cfg_function(of.after),
    "around the model": lambda model, of: with_wrapper(model, of.around, "APPLY_MODEL"),
    "around the network": lambda model, of: with_wrapper(model, of.decorated, "DIFFUSION_MODEL"),
    "around sampling": lambda model, of: with_wrapper(model, of.around, "OUTER_SAMPLE"),
    "injected": lambda model, of: with_injection(model, of.around),
    "an object": lambda model, of: model.add_object_patch("diffusion_model.forward", of.around),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_pack_that_asks_nowhere_for_its_rows_is_named(way: str, tmp_path: Path) -> None:
    model = tiny.model("sd15")
    assert careless_patches(model) == []
    WAYS[way](model, pack(tmp_path, "careful", "# heeds extra_options['ad_params']['sub_idxs']"))
    assert careless_patches(model) == []
    WAYS[way](model, pack(tmp_path, "ComfyUI-Careless"))
    assert careless_patches(model) == ["ComfyUI-Careless"]


def test_attention_itself_knows_no_pictures(tmp_path: Path) -> None:
    model = tiny.model("sd15")
    model.model_options["transformer_options"]["optimized_attention_override"] = pack(tmp_path, "sage").attend
    assert careless_patches(model) == []


def test_comfyuis_own_patches_and_ours_are_not_named() -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode
    from comfy_extras.nodes_freelunch import FreeU_V2
    from comfy_extras.nodes_hypertile import HyperTile
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_sag import SelfAttentionGuidance
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    model = tiny.model("sd15")
    for node, settings in (
        (PerturbedAttentionGuidance, (3.0,)), (SelfAttentionGuidance, (0.5, 2.0)), (FreeU_V2, (1.3, 1.4, 0.9, 0.2)),
        (HyperTile, (256, 2, 0, False)), (EasyCacheNode, (0.2, 0.15, 0.95, False)), (TorchCompileModel, ("inductor",)),
    ):  # fmt: skip
        patch = node.execute if hasattr(node, "execute") else node().patch
        result = patch(model, *settings)
        model = result[0]
    assert model.model_options["transformer_options"] and careless_patches(Counter().attach(model)) == []


@pytest.mark.parametrize(("rows", "packed", "said"), [([1], 0, True), ([0, 1], 0, False), ([0, 1], 1, True)])
def test_it_is_said_where_the_teacher_draws_a_part(rows: list[int], packed: int, said: bool, tmp_path: Path) -> None:
    model, drafts = tiny.model("sd15"), {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    WAYS["wrapper of the network"](model, pack(tmp_path, "ComfyUI-Careless"))
    with torch.inference_mode():
        note = improve(
            model, tiny.text("sd15", 2), tiny.text("sd15"), drafts, rows, "refine", 0.5, Drawing(2, 2.0, "euler", "simple", 1),
            packed,
        )[INFO].note  # fmt: skip
    assert ("Patches by ComfyUI-Careless on the teacher may not know which pictures" in note) == said
