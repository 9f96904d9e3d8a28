"""Between latents and pictures, with stock VAE objects of image and video kinds; pairs of student and teacher of two families."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.benchmarks.tiny_vaes import vae
from comfyui_apprentice.bridge.drafts import draw_drafts
from comfyui_apprentice.bridge.drawing import Drawing
from comfyui_apprentice.bridge.fast_decode import fast_decode
from comfyui_apprentice.bridge.latents import fit_channels
from comfyui_apprentice.bridge.pixels import as_pictures, pad_mask, pad_to, spatial_ratio, to_latents, to_pixels
from comfyui_apprentice.bridge.teacher import improve
from comfyui_apprentice.samplers.presets import CUSTOM
from torch import Tensor

EULER = Drawing(2, 2.0, "euler", "simple", 3)


class Sized:
    """A VAE that is exact: latents are pixels folded by ``ratio``; it refuses pictures that don't fit, as networks do."""

    latent_dim = 2

    def __init__(self, ratio: int, seen: list[int] | None = None) -> None:
        self.ratio, self.seen = ratio, [] if seen is None else seen

    def spacial_compression_encode(self) -> int:
        return self.ratio

    def encode(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return torch.nn.functional.pixel_unshuffle(images.movedim(-1, 1), self.ratio)

    def decode(self, samples: Tensor) -> Tensor:
        self.seen.append(len(samples))
        return torch.nn.functional.pixel_shuffle(samples, self.ratio).movedim(1, -1)


def drafted(name: str, batch: int) -> dict[str, Any]:
    with torch.inference_mode():
        return draw_drafts(
            tiny.model(name), tiny.text(name, batch), tiny.text(name, seed=9), tiny.empty(name, batch, 4, 4), CUSTOM, EULER
        )


@pytest.mark.parametrize(("student", "teacher"), [("sdxl", "qwen"), ("wan21", "flux")])
def test_a_teacher_of_another_family_redraws_one_picture_alone(student: str, teacher: str) -> None:
    """Batches that are refined, in every pair, are in the matrix."""
    drafts = drafted(student, 1)
    with torch.inference_mode():
        found = improve(
            tiny.model(teacher), tiny.text(teacher), tiny.text(teacher, seed=9), drafts, [0], "regenerate", 0.5, EULER,
            vaes=(vae(student), vae(teacher)),
        )["samples"]  # fmt: skip
    assert found.shape == drafts["samples"].shape and found.isfinite().all() and not torch.equal(found, drafts["samples"])


@pytest.mark.parametrize("name", ["sd15", "flux", "qwen", "wan21"])
def test_each_picture_goes_its_way_alone(name: str) -> None:
    """By a VAE for video a batch would be one video, whose frames know of each other."""
    pictures = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latents = to_latents(vae(name), pictures)
        assert latents.shape == (2, 16 if name != "sd15" else 4, *([1] if tiny.FAMILIES[name].video else []), 2, 3)
        alone = torch.cat([to_latents(vae(name), picture[None]) for picture in pictures])
        torch.testing.assert_close(latents, alone, rtol=1e-4, atol=1e-4)
        shown = to_pixels(vae(name), latents)
    assert shown.shape == (2, 16, 24, 3)


def test_a_video_stays_in_its_family() -> None:
    with torch.inference_mode():
        drafts = draw_drafts(
            tiny.model("wan21"), tiny.text("wan21"), tiny.text("wan21"), tiny.empty("wan21", 1, 4, 4, 2), CUSTOM, EULER
        )
        with pytest.raises(ValueError, match="several frames"):
            improve(
                tiny.model("flux"), tiny.text("flux"), tiny.text("flux"), drafts, [0], "refine", 0.5, EULER,
                vaes=(vae("wan21"), vae("flux")),
            )  # fmt: skip


def test_only_the_rejected_go_through_the_vaes() -> None:
    drafts, seen = drafted("sdxl", 3), list[int]()
    encoder, teacher = Sized(8, seen), tiny.model("flux")
    student_vae = SimpleNamespace(
        encode=lambda images: seen.append(len(images)) or torch.zeros(len(images), 4, 4, 4), latent_dim=2,
        decode=lambda samples: seen.append(len(samples)) or torch.rand(len(samples), 32, 32, 3),
    )  # fmt: skip
    teacher_vae = SimpleNamespace(
        encode=lambda images: encoder.encode(images)[:, :16], latent_dim=2,
        decode=lambda samples: seen.append(len(samples)) or torch.rand(len(samples), 32, 32, 3),
    )  # fmt: skip
    with torch.inference_mode():
        vaes = (student_vae, teacher_vae)
        improve(teacher, tiny.text("flux", 3), tiny.text("flux"), drafts, [1], "refine", 0.5, EULER, vaes=vaes)
    assert set(seen) == {1}


def test_a_side_that_is_no_multiple_is_padded_and_cropped_back() -> None:
    pictures = torch.rand(2, 24, 40, 3)
    wide = Sized(16)
    latents = to_latents(wide, pictures)
    assert latents.shape == (2, 3 * 256, 2, 3)
    back = to_pixels(wide, latents)
    assert torch.equal(back[:, :24, :40], pictures) and torch.equal(back[:, 24:, :40], pictures[:, -1:].expand(-1, 8, -1, -1))
    assert pad_to(pictures, 8) is pictures


def test_a_mask_stays_over_its_part_of_a_padded_picture() -> None:
    mask = torch.zeros(24, 40)
    mask[12:] = 1
    for shape in ((24, 40), (1, 24, 40), (2, 1, 24, 40), (2, 1, 3, 24, 40)):
        padded = pad_mask(mask.expand(shape), (24, 40), 16)
        assert padded.shape == (*shape[:-2], 32, 48)
        assert torch.equal(padded[..., :24, :40], mask.expand(shape)) and bool((padded[..., 24:, :] == 1).all())
    small = mask[::8, ::8]  # a mask of latents
    assert pad_mask(small, (24, 40), 16).shape == (32, 48) and pad_mask(small, (24, 40), 8) is small


def test_pictures_of_any_kind_are_three_channels_of_float32() -> None:
    rgb = torch.rand(2, 4, 5, 3)
    assert as_pictures(rgb).data_ptr() == rgb.data_ptr()
    assert torch.equal(as_pictures(torch.cat([rgb, rgb[..., :1]], -1)), rgb)
    assert torch.equal(as_pictures(rgb[..., :1]), rgb[..., :1].expand(-1, -1, -1, 3))
    assert as_pictures(rgb.half()).dtype == as_pictures(rgb.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "flux2", "zimage", "qwen", "wan21", "wan22"])
def test_the_fast_look_is_a_full_size_picture_of_each(name: str) -> None:
    patcher, latent = tiny.model(name), tiny.empty(name, 2)
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(1))
    shown = fast_decode(patcher, latent)
    assert shown.shape[0] == 2 and shown.shape[-1] == 3 and shown.shape[1] == shown.shape[2] >= 64
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1 and not torch.equal(shown[0], shown[1])


def test_an_empty_latent_of_newer_comfyuis_becomes_as_large_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As core does it there: by the ratio that the latent was made for, which then goes."""
    import comfy.sample

    told: dict[str, Any] = {}

    def newer(
        model: Any, latent_image: Tensor, downscale_ratio_spacial: Any = None, downscale_ratio_temporal: Any = None
    ) -> Tensor:
        told.update(spacial=downscale_ratio_spacial, temporal=downscale_ratio_temporal)
        return torch.zeros(len(latent_image), 128, 4, 4)

    latent = {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}
    assert "downscale_ratio_spacial" not in fit_channels(tiny.model("sdxl"), latent)  # which this ComfyUI doesn't know
    monkeypatch.setattr(comfy.sample, "fix_empty_latent_channels", newer)
    fitted = fit_channels(tiny.model("flux2"), latent)
    assert fitted["samples"].shape == (1, 128, 4, 4) and "downscale_ratio_spacial" not in fitted
    assert told == {"spacial": 8, "temporal": None}


def test_latents_of_sound_and_video_are_refused_in_a_sentence() -> None:
    nested = SimpleNamespace(is_nested=True)
    calls = (
        lambda: draw_drafts(tiny.model("wan21"), [], [], {"samples": nested}, CUSTOM, EULER),
        lambda: improve(tiny.model("wan21"), [], [], {"samples": nested}, [0], "refine", 0.5, EULER),
        lambda: fast_decode(tiny.model("wan21"), {"samples": nested}),
    )
    for call in calls:
        with pytest.raises(ValueError, match="sound and video in one"):
            call()


def test_the_ratio_is_the_vaes_own() -> None:
    assert [spatial_ratio(v) for v in (vae("sd15"), vae("qwen"), Sized(16))] == [8, 8, 16]
