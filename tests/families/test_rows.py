"""Part of a batch: picture i is the same whether it is drawn with the others or without, wherever a batch holds its part.

Equal means to rounding: the largest difference is below 1e-4 of the pictures' spread (float32; other matrix sizes round
otherwise).
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from torch import Tensor, nn

ROWS = ([1], [1, 2, 3], [3, 0])


def part(patcher: Any, latent: dict[str, Any], rows: list[int], positive: Any, negative: Any, *, cfg: float = 2.0,
         pack: int = 0, sampler: str = "euler") -> Tensor:  # fmt: skip
    """``rows`` of what ``tiny.stock`` draws."""
    from comfyui_apprentice.bridge.guiders import stock_sigmas
    from comfyui_apprentice.bridge.noise import batch_noise
    from comfyui_apprentice.bridge.sampling import sample_rows

    with torch.inference_mode():
        return sample_rows(
            patcher, latent, rows, noise=batch_noise(latent, 1), sigmas=stock_sigmas(patcher, sampler, "simple", 2, 1.0),
            sampler=sampler, cfg=cfg, positive=positive, negative=negative, seed=1, pack=pack,
        )[0]  # fmt: skip


def same(a: Tensor, b: Tensor, whole: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) < 1e-4 * float(whole.std())


def holds(patcher: Any, latent: dict[str, Any], positive: Any, negative: Any, cfg: float = 2.0) -> None:
    """Every part of the batch is that part of the stock sampler's, the whole batch to the bit."""
    total = len(latent["samples"])
    whole = tiny.stock(patcher, latent, positive, negative, cfg=cfg)
    assert torch.equal(part(patcher, latent, list(range(total)), positive, negative, cfg=cfg), whole)
    for rows in ROWS:
        rows = [row for row in rows if row < total]
        drawn = part(patcher, latent, rows, positive, negative, cfg=cfg)
        assert same(drawn, whole[rows], whole), (rows, float((drawn - whole[rows]).abs().max() / whole.std()))


def random(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("texts", [4, 2, 3])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_texts_one_a_picture_or_fewer(name: str, texts: int) -> None:
    holds(tiny.model(name), tiny.empty(name, 4), tiny.text(name, texts), tiny.text(name, 2, seed=9))


@pytest.mark.parametrize("name", ["sdxl", "flux", "cascade"])
def test_text_and_pooled_text_are_picked_each_by_its_own_count(name: str) -> None:
    positive = tiny.text(name, 2, pooled_output=random(3, tiny.FAMILIES[name].pooled))
    holds(tiny.model(name), tiny.empty(name, 4), positive, tiny.text(name, seed=9))


def test_places_are_those_of_comfyuis_own_functions() -> None:
    import comfy.utils
    from comfyui_apprentice.bridge.rows import _repeated, _spread

    for total in range(2, 12):
        for count in range(1, 16):
            entries = torch.arange(count)
            rows = range(total)
            assert [_repeated(r, count, total) for r in rows] == comfy.utils.repeat_to_batch_size(entries, total).tolist()
            assert [_spread(r, count, total) for r in rows] == comfy.utils.resize_to_batch_size(entries, total).tolist()


# --------------------------------------------------------------------------------------------------------- masks


def masks(name: str, total: int, frames: int) -> dict[str, Tensor]:
    """Every shape that the stock KSampler takes, by name."""
    side = tiny.FAMILIES[name].side
    shapes: dict[str, tuple[int, ...]] = {
        "[H, W]": (side, side), "[1, H, W]": (1, side, side), "[B, H, W]": (total, side, side),
        "[B, 1, H, W]": (total, 1, side, side), "fewer": (2, 1, side, side), "larger": (total, 1, 2 * side, 2 * side),
        "[1, 1, H, W]": (1, 1, side, side), "[B, 1, 1, H, W]": (total, 1, 1, side, side),
    }  # fmt: skip
    if tiny.FAMILIES[name].video:
        shapes |= {"frames": (frames, 1, side, side), "[B, 1, T, H, W]": (total, 1, frames, side, side),
                   "videos, fewer": (2, 1, frames, side, side)}  # fmt: skip
    rng = torch.Generator().manual_seed(3)
    return {key: (torch.rand(shape, generator=rng) > 0.5).float() for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["sd15", "flux", "qwen", "wan21", "wan22"])
def test_masks_of_every_shape_that_the_stock_sampler_takes(name: str) -> None:
    frames = 2 if name.startswith("wan") else 1
    latent = tiny.empty(name, 3, frames=frames)
    latent["samples"] = random(*latent["samples"].shape)
    patcher = tiny.model(name)
    for mask in masks(name, 3, frames).values():
        holds(patcher, {**latent, "noise_mask": mask}, tiny.text(name, 3), tiny.text(name, seed=9))


def test_part_of_a_latent_under_a_mask_is_a_latent_that_the_stock_sampler_draws_alike() -> None:
    """What Best of Batch and Sort hand out."""
    from comfyui_apprentice.bridge.latents import latents_of

    for name, frames in (("sd15", 1), ("wan21", 2)):
        patcher, negative = tiny.model(name), tiny.text(name, seed=9)
        latent = {"samples": random(*tiny.empty(name, 3, frames=frames)["samples"].shape)}
        for mask in masks(name, 3, frames).values():
            whole = tiny.stock(patcher, {**latent, "noise_mask": mask}, tiny.text(name), negative)
            kept = latents_of({**latent, "noise_mask": mask}, [2, 0], 3)
            assert same(tiny.stock(patcher, kept, tiny.text(name), negative), whole[[2, 0]], whole)


def test_masks_of_conditionings() -> None:
    left = torch.zeros(4, 8, 8)
    for i in range(4):
        left[i, : 2 * i + 2, :4] = 1
    for mask in (left, left[:2], left[:1], left[0]):
        for more in ({"mask_strength": 0.7}, {"mask_strength": 1.0, "set_area_to_bounds": True}):
            positive = tiny.text("sd15", 4, mask=mask, **more) + tiny.text("sd15", 2, seed=3)
            holds(tiny.model("sd15"), tiny.empty("sd15", 4), positive, tiny.text("sd15", seed=9))
    positive = tiny.text("wan21", 3, mask=(random(3, 8, 8) > 0).float()) + tiny.text("wan21", seed=3)
    holds(tiny.model("wan21"), tiny.empty("wan21", 3, frames=3), positive, tiny.text("wan21", seed=9))


@pytest.mark.parametrize("name", ["sdxl", "flux", "wan21"])
def test_an_empty_row_among_pictures_is_drawn_over_what_it_is_there(name: str) -> None:
    """ComfyUI shifts latents into the model's space unless all are empty."""
    latent = tiny.empty(name, 3)
    latent["samples"][::2] = random(*latent["samples"][::2].shape)
    latent["noise_mask"] = torch.ones(3, 1, *latent["samples"].shape[-2:])
    latent["noise_mask"][..., :4] = 0
    patcher = tiny.model(name)
    whole = tiny.stock(patcher, latent, tiny.text(name), tiny.text(name, seed=9))
    assert same(part(patcher, latent, [1], tiny.text(name), tiny.text(name, seed=9)), whole[[1]], whole)


# ------------------------------------------------------------------------------------------- references and hints


@pytest.mark.parametrize("name", ["flux", "flux2", "qwen"])
@pytest.mark.parametrize("count", [4, 2, 1])
def test_references_one_a_picture_or_fewer(name: str, count: int) -> None:
    shape = tiny.empty(name, 1)["samples"].shape[1:]
    references = [random(count, *shape), random(1, *shape, seed=8)]
    positive = tiny.text(name, 4, reference_latents=references)
    holds(tiny.model(name), tiny.empty(name, 4), positive, tiny.text(name, reference_latents=references, seed=9))


def filling(name: str) -> Any:
    """The family's model for filling in: it sees the picture and the mask beside the latents."""
    family = tiny.FAMILIES[name]
    more = {"sd15": {"in_channels": 9}, "flux": {"in_channels": 96}, "wan21": {"in_dim": 36, "model_type": "t2v"}}[name]
    kind = {"sd15": family.config, "flux": ("FluxInpaint",), "wan21": ("WAN21_I2V",)}[name]
    tiny.FAMILIES["filling"] = tiny.Family(kind, {**family.network, **more}, family.newer, family.text, family.pooled)
    try:
        return tiny.model("filling")
    finally:
        del tiny.FAMILIES["filling"]


@pytest.mark.parametrize("name", ["sd15", "flux", "wan21"])
@pytest.mark.parametrize("count", [4, 3, 2, 1, 5])
def test_pictures_and_masks_of_models_for_filling_in(name: str, count: int) -> None:
    frames = 2 if name == "wan21" else 1
    latent = tiny.empty(name, 4, frames=frames)
    shape = latent["samples"].shape[1:]
    mask = (random(count, 1, *shape[1:]) > 0).float()
    if name == "flux":
        mask = torch.nn.functional.interpolate(mask, scale_factor=8)
    given = {"concat_latent_image": random(count, *shape), "concat_mask": mask}
    holds(filling(name), latent, tiny.text(name, 4, **given), tiny.text(name, seed=9, **given))


class Hinted(nn.Module):
    """A ControlNet's network that adds the hint itself."""

    dtype = torch.float32

    def forward(self, x: Tensor, hint: Tensor, **_: Any) -> dict[str, list[Tensor]]:
        small = torch.nn.functional.adaptive_avg_pool2d(hint, (4, 4))
        return {"input": [], "middle": [small.repeat(1, 64, 1, 1)[:, :64]], "output": []}


def control(hint: Tensor, extra: list[Tensor] | None = None) -> Any:
    from comfy.controlnet import ControlNet

    device = torch.device("cpu")
    return ControlNet(Hinted(), load_device=device).set_cond_hint(hint, 3.0, extra_concat=extra or [])


@pytest.mark.parametrize(("hints", "extras"), [(4, 4), (4, 2), (2, 4), (1, 4), (4, 1), (3, 2), (4, 0)])
def test_hints_of_control_nets_and_what_is_joined_to_them(hints: int, extras: int) -> None:
    extra = [random(extras, 1, 64, 64)] if extras else []
    net = control(random(hints, 3, 64, 64), extra)
    net.set_previous_controlnet(control(random(2, 3, 64, 64, seed=5)))
    before = net.cond_hint_original
    positive = tiny.text("sd15", 4, control=net, control_apply_to_uncond=True)
    holds(tiny.model("sd15"), tiny.empty("sd15", 4), positive, tiny.text("sd15", seed=9))
    assert net.cond_hint_original is before and len(net.extra_concat_orig) == len(extra)


def test_control_nets_that_positive_and_negative_share_stay_shared() -> None:
    """So that both go through the network, and through the ControlNet, in one batch."""
    net, sizes = control(random(4, 3, 64, 64)), []
    patcher = tiny.model("sd15")

    def count(network: Any, given: dict[str, Any]) -> Tensor:
        sizes.append(len(given["input"]))
        return network(given["input"], given["timestep"], **given["c"])

    patcher.set_model_unet_function_wrapper(count)
    positive, negative = (tiny.text("sd15", 4, seed=seed, control=net) for seed in (1, 2))
    part(patcher, tiny.empty("sd15", 4), [1, 2, 3], positive, negative)
    assert sizes == [6, 6]


def test_advanced_control_nets_are_told_the_rows() -> None:
    from comfyui_apprentice.bridge.rows import take_conditioning

    net = control(random(4, 3, 64, 64))
    net.copy = lambda: SimpleNamespace(sub_idxs=None)
    taken = take_conditioning(tiny.text("sd15", 4, control=net), [3, 1], 4)[0][1]["control"]
    assert (taken.sub_idxs, taken.full_latent_length, taken.context_length) == ([3, 1], 4, 2)


def test_what_a_vision_model_saw_is_picked_and_what_is_for_all_is_kept() -> None:
    import comfy.clip_vision
    import comfy.conds
    from comfyui_apprentice.bridge.rows import take_conditioning

    seen = comfy.clip_vision.Output()
    seen.penultimate_hidden_states, seen.image_embeds = random(4, 5, 6), random(2, 6)
    held = copy.copy(seen)
    boxes = ("position", object(), [(random(1, 768), 1, 1, 0, 0)])
    positive = tiny.text(
        "sd15", 4, clip_vision_output=seen, unclip_conditioning=[{"clip_vision_output": seen, "strength": 1.0}], gligen=boxes,
        vace_frames=[random(2, 3)], vace_strength=[1.0], model_conds={"a": comfy.conds.CONDRegular(random(2, 3)),
        "b": comfy.conds.CONDConstant(3)}, unknown={"of pictures": [random(4, 2)], "other": random(3, 2)}, area=(8, 8, 0, 0),
    )  # fmt: skip
    options = take_conditioning(positive, [3, 1, 1], 4)[0][1]
    assert torch.equal(options["clip_vision_output"]["penultimate_hidden_states"], seen.penultimate_hidden_states[[3, 1, 1]])
    assert torch.equal(options["clip_vision_output"].image_embeds, seen.image_embeds[[1, 1, 1]])
    assert vars(held) == vars(seen)
    assert options["unclip_conditioning"][0]["clip_vision_output"] is seen and options["gligen"] is boxes
    assert len(options["vace_frames"][0]) == len(options["model_conds"]["a"].cond) == 3
    assert options["model_conds"]["b"].cond == 3 and options["vace_strength"] == [1.0] and options["area"] == (8, 8, 0, 0)
    assert torch.equal(options["unknown"]["of pictures"][0], positive[0][1]["unknown"]["of pictures"][0][[3, 1, 1]])
    assert options["unknown"]["other"] is positive[0][1]["unknown"]["other"]


# --------------------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize("pictures", [4, 2])
def test_patches_that_go_by_place_are_told_the_rows(pictures: int) -> None:
    """IP-Adapter's protocol: one reference a picture, picked by ``ad_params`` where there are some."""
    tints, seen = random(pictures, 1, 1), []

    def tint(out: Tensor, options: dict[str, Any]) -> Tensor:
        count = len(out) // len(options["cond_or_uncond"])
        rows, total = list(range(count)), count
        if options.get("ad_params") is not None:
            rows, total = options["ad_params"]["sub_idxs"], options["ad_params"]["full_length"]
            seen.append((options["apprentice_rows"]["rows"], options["apprentice_rows"]["total"]))
        each = torch.cat([tints, tints[-1:].expand(total, 1, 1)])[:total][rows]
        return out + each.repeat(len(options["cond_or_uncond"]), 1, 1)

    patcher = tiny.model("sd15")
    patcher.set_model_attn2_output_patch(tint)
    holds(patcher, tiny.empty("sd15", 4), tiny.text("sd15", 4), tiny.text("sd15", seed=9))
    assert ([3, 0], 4) in seen and "ad_params" not in patcher.model_options["transformer_options"]


# ------------------------------------------------------------------------------------ latents changed on their way


def changes(drafts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What stock nodes between student and teacher make of ``drafts``."""
    import comfy_extras.nodes_post_processing  # noqa: F401 - before nodes_latent, with which newer ComfyUIs have it in a circle
    from comfy_extras.nodes_latent import LatentBatch, LatentMultiply

    import nodes

    mirrored = {**drafts, "samples": drafts["samples"].flip(0)}
    return {
        "upscaled": nodes.LatentUpscaleBy().upscale(drafts, "bilinear", 1.5)[0],
        "flipped": nodes.LatentFlip().flip(drafts, "y-axis: horizontally")[0],
        "rotated": nodes.LatentRotate().rotate(drafts, "90 degrees")[0],
        "cropped": nodes.LatentCrop().crop(drafts, 48, 64, 0, 0)[0],
        "composited": nodes.LatentComposite().composite(drafts, mirrored, 16, 16)[0],
        "blended": nodes.LatentBlend().blend(drafts, mirrored, 0.5)[0],
        "repeated": nodes.RepeatLatentBatch().repeat(drafts, 2)[0],
        "joined": LatentBatch.execute(drafts, drafts)[0],
        "multiplied": LatentMultiply.execute(drafts, 1.01)[0],
        "reordered": mirrored,
    }


def improved(patcher: Any, drafts: dict[str, Any], strategy: str, rows: list[int] | None = None, **more: Any) -> Any:
    from comfyui_apprentice.bridge.drawing import Drawing
    from comfyui_apprentice.bridge.teacher import improve

    rows = list(range(len(drafts["samples"]))) if rows is None else rows
    with torch.inference_mode():
        return improve(
            patcher, tiny.text("sd15"), tiny.text("sd15", seed=9), drafts, rows, strategy, 1.0,
            Drawing(2, 2.0, "euler", "simple", 1), **more,
        )  # fmt: skip


def drafted(patcher: Any, latent: dict[str, Any], denoise: float = 1.0) -> dict[str, Any]:
    from comfyui_apprentice.bridge.drafts import draw_drafts
    from comfyui_apprentice.bridge.drawing import Drawing

    with torch.inference_mode():
        drawing = Drawing(2, 2.0, "euler", "simple", 4, denoise)
        return draw_drafts(patcher, tiny.text("sd15"), tiny.text("sd15", seed=9), latent, "custom", drawing)


@pytest.mark.parametrize("over", ["nothing", "a picture"])
def test_what_travels_with_latents_is_believed_only_while_they_are_the_same(over: str) -> None:
    from comfyui_apprentice.bridge.info import info_of
    from comfyui_apprentice.bridge.teacher import INFO

    patcher, latent = tiny.model("sd15"), tiny.empty("sd15", 2)
    if over == "a picture":
        latent["samples"] = random(*latent["samples"].shape)
    drafts = drafted(patcher, latent, 0.6 if over == "a picture" else 1.0)
    assert info_of(drafts) is not None and info_of({**drafts, "samples": drafts["samples"].clone()}) is not None
    for name, changed in changes(drafts).items():
        assert info_of(changed) is None, name
        # Regenerated from nothing at the size that they have now, not from what the drafts were drawn over.
        new = improved(patcher, changed, "regenerate")
        nothing = {**changed, "samples": torch.zeros_like(changed["samples"])}
        assert torch.equal(new["samples"], tiny.stock(patcher, nothing, tiny.text("sd15"), tiny.text("sd15", seed=9))), name
        assert ("without the picture" in new[INFO].note) == (over == "a picture"), name
        refined = improved(patcher, changed, "refine")
        assert torch.equal(refined["samples"], tiny.stock(patcher, changed, tiny.text("sd15"), tiny.text("sd15", seed=9))), name


def test_latents_of_unknown_origin_belong_to_the_teacher_that_drew_them() -> None:
    from comfyui_apprentice.bridge.info import family_of
    from comfyui_apprentice.bridge.teacher import INFO
    from comfyui_apprentice.nodes.sample import ApprenticeTeacher

    patcher = tiny.model("sd15")
    unknown = {"samples": random(2, 4, 8, 8)}
    once = improved(patcher, unknown, "refine", [1])
    assert once[INFO].family == family_of(once) == "SD15" and torch.equal(once["samples"][0], unknown["samples"][0])
    for strategy in ("refine", "regenerate"):
        twice = improved(patcher, once, strategy, [1])
        assert twice[INFO].family == "SD15" and twice["samples"].isfinite().all()
    nothing = {"samples": torch.zeros(2, 4, 8, 8)}
    drawn = tiny.stock(patcher, nothing, tiny.text("sd15"), tiny.text("sd15", seed=9))
    assert same(improved(patcher, once, "regenerate", [1])["samples"][1:], drawn[1:], drawn)
    verdict = SimpleNamespace(rejected=[1], stopped=False)
    asked = ApprenticeTeacher.check_lazy_status(
        verdict=verdict, drafts=once, model=patcher, positive=[], negative=[], vae=None, teacher_vae=None
    )
    assert asked == []


def test_a_change_does_not_hide_the_family_of_the_drafts() -> None:
    """SD1.5 and SDXL have four channels each: flipped drafts of the one are still no latents of the other."""
    drafts = drafted(tiny.model("sd15"), tiny.empty("sd15", 2))
    for changed in changes(drafts).values():
        with pytest.raises(ValueError, match="different latent spaces"):
            improved(tiny.model("sdxl"), changed, "refine")


def test_drafts_and_improvements_of_two_sizes_are_told_in_a_sentence() -> None:
    from comfyui_apprentice.bridge.latents import replace_rows

    small, large = {"samples": torch.zeros(2, 4, 8, 8)}, {"samples": torch.zeros(2, 4, 12, 12)}
    with pytest.raises(ValueError, match=r"The drafts are 8 x 8 and the improved ones 12 x 12.*change both"):
        replace_rows(small, large, torch.zeros(2, 64, 64, 3), torch.zeros(2, 96, 96, 3), [1])
    with pytest.raises(ValueError, match="The draft images are 64 x 64 and the improved ones 96 x 96"):
        replace_rows(small, small, torch.zeros(2, 64, 64, 3), torch.zeros(2, 96, 96, 3), [1])


# ------------------------------------------------------------------------------------------------------ evaluations


def told_and_counted(patcher: Any, name: str, sampler: str, cfg: float = 2.0, rollback: float = 0.6) -> tuple[float, float]:
    """Evaluations as Teacher Cost tells them, and as they go through the network."""
    from comfyui_apprentice.bridge.drawing import Drawing
    from comfyui_apprentice.bridge.teacher import improve, teacher_evaluations

    rows, drawing, counted = [], Drawing(5, cfg, sampler, "normal", 1), patcher.clone()

    def count(network: Any, given: dict[str, Any]) -> Tensor:
        rows.append(len(given["input"]))
        return network(given["input"], given["timestep"], **given["c"])

    counted.set_model_unet_function_wrapper(count)
    drafts = {"samples": random(*tiny.empty(name, 2, height=16, width=16)["samples"].shape)}
    with torch.inference_mode():
        told = teacher_evaluations(patcher, "refine", rollback, drawing)
        improve(counted, tiny.text(name), tiny.text(name, seed=9), drafts, [1], "refine", rollback, drawing)
    return told, sum(rows)


def samplers() -> list[str]:
    tiny.start()
    import comfy.samplers

    return list(comfy.samplers.SAMPLER_NAMES)


@pytest.mark.parametrize(("name", "cfg"), [("sd15", 2.0), ("flux", 1.0), ("wan21", 2.0), ("cascade", 1.0)])
def test_evaluations_told_are_the_counted_ones_by_sampler(name: str, cfg: float) -> None:
    patcher, wrong = tiny.model(name), []
    for sampler in samplers()[:: 1 if name in ("sd15", "flux") else 3]:  # of further kinds a third
        if sampler != "dpm_adaptive":  # it chooses its steps by the network's answers, so what is told is an estimate
            told, counted = told_and_counted(patcher, name, sampler, cfg)
            if told != counted:
                wrong.append((sampler, told, counted))
    assert not wrong


def guided(kind: str) -> tuple[str, Any]:
    import comfy_extras.nodes_pag
    import comfy_extras.nodes_sag
    import comfy_extras.nodes_slg

    if kind == "pag":
        return "sd15", comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(tiny.model("sd15"), 3.0)[0]
    if kind == "sag":
        return "sd15", comfy_extras.nodes_sag.SelfAttentionGuidance.execute(tiny.model("sd15"), 0.5, 2.0)[0]
    guidance = comfy_extras.nodes_slg
    if kind == "slg":
        return "sd3", guidance.SkipLayerGuidanceDiT.execute(tiny.model("sd3"), 3.0, 0.1, 0.6, "0", "0")[0]
    return "sd3", guidance.SkipLayerGuidanceDiTSimple.execute(tiny.model("sd3"), 0.1, 0.6, "0", "0")[0]


@pytest.mark.parametrize("kind", ["pag", "sag", "slg", "slg, simple"])
def test_evaluations_told_include_the_passes_of_other_guidance(kind: str) -> None:
    name, patcher = guided(kind)
    for cfg in (2.0, 1.0):
        told, counted = told_and_counted(patcher, name, "heun", cfg, rollback=1.0)
        assert told == counted


def test_evaluations_of_a_sampler_that_looks_into_the_network_are_estimated() -> None:
    import comfy.samplers
    from comfyui_apprentice.bridge.counting import count_evaluations

    def curious(model: Any, x: Tensor, sigmas: Tensor, **_: Any) -> Tensor:
        return x * len(list(model.inner_model.inner_model.diffusion_model.parameters()))

    sampler, sigmas = comfy.samplers.KSAMPLER(curious), torch.tensor([9.0, 3.0, 1.0, 0.0])
    assert [count_evaluations(tiny.model("sd15"), sampler, sigmas, cfg) for cfg in (1.0, 2.0)] == [3, 6]


def test_caches_that_skip_steps_by_the_batch_are_told_in_the_report() -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
    from comfyui_apprentice.bridge.teacher import INFO

    drafts = {"samples": random(2, 4, 8, 8)}
    for node in (EasyCacheNode, LazyCacheNode):
        patcher = node.execute(tiny.model("sd15"), 0.2, 0.15, 0.95, False)[0]
        note = improved(patcher, drafts, "refine", [1])[INFO].note
        assert node.__name__.removesuffix("Node") in note and "depend on which others were rejected" in note
    assert "depend" not in improved(tiny.model("sd15"), drafts, "refine", [1])[INFO].note


def test_every_sampler_gives_each_row_the_noise_it_has_in_the_batch() -> None:
    patcher, latent = tiny.model("sd15"), tiny.empty("sd15", 3)
    for sampler in samplers():
        whole = part(patcher, latent, [0, 1, 2], tiny.text("sd15", 3), tiny.text("sd15", seed=9), sampler=sampler)
        drawn = part(patcher, latent, [2, 1], tiny.text("sd15", 3), tiny.text("sd15", seed=9), sampler=sampler)
        assert same(drawn, whole[[2, 1]], whole), sampler
