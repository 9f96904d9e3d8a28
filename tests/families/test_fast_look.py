"""The quick look at latents: full-size pictures of every family, by what ComfyUI itself has for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.benchmarks.tiny_vaes import vae
from comfyui_apprentice.bridge.drafts import draw_drafts
from comfyui_apprentice.bridge.drawing import Drawing
from comfyui_apprentice.bridge.fast_decode import fast_decode
from comfyui_apprentice.bridge.latents import pixels_per_latent
from comfyui_apprentice.bridge.pixels import spatial_ratio, to_latents, to_pixels
from comfyui_apprentice.bridge.teacher import improve
from comfyui_apprentice.samplers.presets import CUSTOM
from safetensors.torch import save_file

tiny.start()

import comfy.latent_formats as formats  # noqa: E402
import comfy.ldm.models.autoencoder  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.taesd.taehv  # noqa: E402
import folder_paths  # noqa: E402

SIDES = {
    "SD15": 8, "SDXL": 8, "SD3": 8, "Flux": 8, "Flux2": 16, "SC_Prior": 42, "SC_B": 4, "LTXV": 32, "HunyuanVideo": 8,
    "Wan21": 8, "Wan22": 16, "HunyuanImage21": 32, "HunyuanVideo15": 16, "Mochi": 8, "Cosmos1CV8x8x8": 8, "ChromaRadiance": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", list(SIDES))
def test_the_fast_look_is_as_large_as_the_vaes_picture(name: str) -> None:
    kind = getattr(formats, name)()
    model = tiny.model("sd15")
    model.add_object_patch("latent_format", kind)
    kind.taesd_decoder_name = None
    frames = [1] if kind.latent_dimensions == 3 else []
    samples = torch.randn(2, kind.latent_channels, *frames, 2, 3, generator=torch.Generator().manual_seed(0))
    shown = fast_decode(model, {"samples": samples})
    assert shown.shape == (2, 2 * SIDES[name], 3 * SIDES[name], 3) and not torch.equal(shown[0], shown[1])


def test_a_latent_format_that_tells_its_ratio_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As newer ComfyUIs do; and one by another pack that is a kind of one we know is as large as that."""
    monkeypatch.setattr(formats.SD15, "spacial_downscale_ratio", 12, raising=False)
    assert pixels_per_latent(formats.SD15()) == 12
    assert pixels_per_latent(type("Other", (formats.Flux2,), {})()) == 16


@pytest.mark.parametrize(("name", "channels", "pixels"), [("wan21", 16, 8), ("wan22", 48, 16)])
def test_the_fast_look_of_a_video_family_is_its_small_decoders(
    name: str, channels: int, pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stock VAE nodes draw with the same file, each picture alone."""
    model, samples = tiny.model(name), torch.randn(2, channels, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    file = tmp_path / f"{model.get_model_object('latent_format').taesd_decoder_name}.safetensors"
    weights = tiny.fill(comfy.taesd.taehv.TAEHV(channels), 3).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, file)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    with torch.inference_mode():
        shown = fast_decode(model, {"samples": samples})
        stock = comfy.sd.VAE(sd={key: value.clone() for key, value in weights.items()})
        expected = torch.cat([stock.decode(sample[None])[0] for sample in samples]).clamp(0, 1)
    assert shown.shape == (2, 2 * pixels, 3 * pixels, 3)
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-4)


def wide() -> Any:
    """A stock VAE object of Flux 2's kind, 16 pixels a latent, with a network of its layout a quarter as wide."""
    conv, up = torch.zeros(512, 32, 3, 3), torch.zeros(512, 512, 3, 3)
    marks = {"decoder.conv_in.weight": conv, "bn.running_mean": torch.zeros(128), "decoder.up.3.upsample.conv.weight": up}
    made = comfy.sd.VAE(sd={**marks, "post_quant_conv.weight": torch.zeros(32, 32, 1, 1)})
    shape = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
    more = {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True}
    network = tiny.fill(comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=shape | more, embed_dim=32).eval(), 5)
    network.bn.reset_running_stats()
    made.first_stage_model, made.vae_dtype = network, torch.float32
    made.patcher = comfy.model_patcher.ModelPatcher(network, made.device, made.device)
    return made


def test_drafts_of_another_ratio_go_to_a_teacher_of_sixteen_pixels_a_latent_and_back() -> None:
    """1080 pixels have 135 latents of SDXL and none of Flux 2: there the picture grows to 1088, and comes back as it was."""
    sixteen, euler = wide(), Drawing(2, 2.0, "euler", "simple", 3)
    pictures = torch.rand(2, 24, 40, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert spatial_ratio(sixteen) == 16
        latents = to_latents(sixteen, pictures)
        assert latents.shape == (2, 128, 2, 3) and to_pixels(sixteen, latents).shape == (2, 32, 48, 3)
        drafts = draw_drafts(tiny.model("sdxl"), tiny.text("sdxl", 2), tiny.text("sdxl", seed=9), tiny.empty("sdxl", 2, 3, 5),
                             CUSTOM, euler)  # fmt: skip
        found = improve(
            tiny.model("flux2"), tiny.text("flux2", 2), tiny.text("flux2", seed=9), drafts, [1], "refine", 0.5, euler,
            vaes=(vae("sdxl"), sixteen),
        )["samples"]  # fmt: skip
    assert found.shape == drafts["samples"].shape and found.isfinite().all()
    assert torch.equal(found[0], drafts["samples"][0]) and not torch.equal(found[1], drafts["samples"][1])
