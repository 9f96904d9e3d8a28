"""Training on every family by the nodes themselves; what distils and tunes in all of them is in the matrix."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.bridge import training as bridge
from torch import Tensor

CPU = torch.device("cpu")
KINDS = ("sdxl", "sd3", "flux", "zimage", "qwen", "cascade")  # of sampling, and of what the network is told
QUICK = [name for name in tiny.FAMILIES if name not in ("sd15", "sdxl-v")]


@pytest.fixture(autouse=True)
def folder() -> Any:
    with training.folders() as folder:
        yield folder


def denoise_of(model: Any, texts: list[Any], shape: tuple[int, ...]) -> Any:
    with bridge.training():
        base = bridge.copy_network(model, torch.float32)
        return bridge.denoiser(base, torch.float32, bridge.Conditions(base, texts, shape))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_network_in_training_is_the_one_that_draws_and_reads_each_text_as_it_is(name: str) -> None:
    """Two texts of one length and one of another, in one batch; each is what the stock sampler denoises of it alone."""
    import comfy.sample
    import comfy.samplers

    model, latent = tiny.model(name), tiny.empty(name, 3)["samples"]
    texts = [tiny.text(name, 1, tokens, seed=row) for row, tokens in enumerate((6, 9, 6))]
    sigma = float(model.get_model_object("model_sampling").sigma_max) * 0.5
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    sigmas = torch.tensor([sigma, 0.0])
    expected = []
    with torch.inference_mode():
        for row, text in enumerate(texts):
            drawn = comfy.sample.sample_custom(
                model, noise[row : row + 1], 1.0, comfy.samplers.sampler_object("euler"), sigmas, text, text,
                latent[row : row + 1],
            )  # fmt: skip
            expected.append(model.model.process_latent_in(drawn))
    denoise = denoise_of(model, texts, tuple(latent.shape[1:]))
    level = torch.full((3, *[1] * (latent.ndim - 1)), sigma)
    with torch.no_grad():
        x = bridge.mix(model.model)(torch.zeros_like(noise), level, noise)
        found = denoise(x, level, torch.arange(3))
    whole = torch.cat(expected)
    assert float((found - whole).abs().max()) < 1e-4 * float(whole.abs().max())


@pytest.mark.parametrize(("name", "algorithm"), [(name, "path_kl") for name in KINDS] + [(name, "direct") for name in QUICK])
def test_the_other_ways_of_tuning(name: str, algorithm: str, folder: Path) -> None:
    model = tiny.model(name)
    made, _run, file, _report = training.tune(model, name, algorithm=algorithm, preset="custom").result
    assert training.lora_wrong(model, made, name, folder / "loras" / file) == ""


@pytest.mark.parametrize("name", KINDS)
def test_a_full_copy_draws_what_its_file_draws(name: str, folder: Path) -> None:
    import comfy.utils

    model, fresh = tiny.model(name), tiny.model(name, seed=5)
    made, _curve, samples, file = training.distil(model, name, method="full copy", steps=2, pictures=2).result
    fresh.model.load_model_weights(comfy.utils.load_torch_file(str(folder / "diffusion_models" / file)), "")
    drawn = training.drawn(made, name)
    assert torch.equal(drawn, training.drawn(fresh, name))
    assert not torch.equal(drawn, training.drawn(model, name)) and samples.shape[0] == len(training.LINES)


@pytest.mark.parametrize("name", ["sdxl", "flux", "zimage", "qwen"])
def test_computing_blocks_again_changes_no_gradient(name: str, folder: Path) -> None:
    """Core's blocks add in place to what a block that is run again begins with."""
    import comfy.utils

    model, tensors = tiny.model(name), []
    for again in (True, False):
        file = training.distil(model, name, f"{again}", gradient_checkpointing=again, pictures=2).result[3]
        tensors.append(comfy.utils.load_torch_file(str(folder / "loras" / file)))
    ups = [key for key in tensors[0] if "lora_up" in key]
    assert ups and all(torch.allclose(tensors[0][key], tensors[1][key], atol=2e-5) for key in ups)


@pytest.mark.parametrize(
    ("name", "variety"), [("sdxl", "consistency"), ("flux", "anchor"), ("zimage", "anchor"), ("qwen", "consistency")]
)
def test_a_student_that_keeps_its_variety_learns_something_else_and_its_lora_is_the_stock_loader_s(
    name: str, variety: str, folder: Path
) -> None:
    import comfy.utils

    model, tensors = tiny.model(name), []
    for kind in ("off", variety):
        made, _curve, _samples, file = training.distil(model, name, kind, steps=2, variety=kind, pictures=2).result
        tensors.append(comfy.utils.load_torch_file(str(folder / "loras" / file)))
    assert training.lora_wrong(model, made, name, folder / "loras" / file) == ""
    assert any(not torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_two_lengths_of_text_make_two_calls_and_equal_ones_one() -> None:
    model = tiny.model("zimage")
    texts = [tiny.text("zimage", 1, tokens, seed=tokens) for tokens in (5, 8)]
    denoise = denoise_of(model, texts, (16, 8, 8))
    calls: list[int] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: calls.append(len(given[0])) if type(module).__name__ == "NextDiT" else None
    )
    with hook, torch.no_grad():
        denoise(torch.randn(4, 16, 8, 8), torch.full((4, 1, 1, 1), 0.5), torch.tensor([0, 1, 0, 0]))
        denoise(torch.randn(2, 16, 8, 8), torch.full((2, 1, 1, 1), 0.5), torch.tensor([1, 1]))
    assert calls == [3, 1, 2]


# ------------------------------------------------------------------------------------------------------- refusals


def encoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were encoded."""
    lines: list[str] = []
    real = training.Encoder.encode_from_tokens_scheduled
    monkeypatch.setattr(training.Encoder, "encode_from_tokens_scheduled", lambda s, line: lines.append(line) or real(s, line))
    return lines


@pytest.mark.parametrize(
    ("call", "changes", "words"),
    [
        (training.distil, {"made_for": "student"}, "connect one"),
        (training.tune, {"algorithm": "direct", "strength": "target KL"}, "only 'alpha'"),
        (training.tune, {"algorithm": "preview", "divergence": "half_chi2"}, "set it to 'kl'"),
        (training.tune, {"blind": True}, "weighted_regression"),
    ],
)
def test_a_refusal_comes_before_texts_are_encoded_and_leaves_no_folder(
    call: Any, changes: dict[str, Any], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, given = encoding(monkeypatch), dict(changes)
    if given.pop("blind", False):
        monkeypatch.setattr(training.Red, "differentiable", False)
    with pytest.raises(ValueError, match=words):
        call(tiny.model("flux"), "flux", **given)
    assert lines == [] and not (folder / "apprentice").exists()


def test_a_network_that_writes_over_what_gradients_need_is_refused_in_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = {
        "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2,
        "caption_channels": 32, "num_layers": 1,
    }  # fmt: skip
    monkeypatch.setitem(tiny.FAMILIES, "ltxv", tiny.Family(("LTXV",), network, channels=128, video=True, masked=True))
    with pytest.raises(ValueError, match="made for drawing alone"):
        training.distil(tiny.model("ltxv"), "ltxv")
    assert not list(folder.glob("*/*.safetensors"))


def test_another_run_of_this_name_is_refused_before_texts_are_encoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("wan21")
    training.distil(model, "wan21")
    before = (folder / "apprentice" / "training" / "student" / "run.json").read_bytes()
    lines = encoding(monkeypatch)
    with pytest.raises(ValueError, match="another rank"):
        training.distil(model, "wan21", rank=3)
    assert lines == []
    assert (folder / "apprentice" / "training" / "student" / "run.json").read_bytes() == before


def test_conditionings_that_change_along_the_sampling_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = lambda self, line: tiny.text("wan21", 1) * 2  # noqa: E731
    monkeypatch.setattr(training.Encoder, "encode_from_tokens_scheduled", twice)
    with pytest.raises(ValueError, match="without scheduled hooks"):
        training.distil(tiny.model("wan21"), "wan21")


# -------------------------------------------------------------------------------------------------------- decoders


def stock_vae(name: str) -> Any:
    import comfy.ldm.models.autoencoder
    import comfy.sd
    from comfyui_apprentice.benchmarks.tiny_vaes import vae

    if name != "kl":
        return vae(name)
    config = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
              "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    found = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    found.first_stage_model = tiny.fill(comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=config, embed_dim=4))
    found.process_output = lambda image: torch.clamp((image + 1.0) / 2.0, min=0.0, max=1.0)
    return found


@pytest.mark.parametrize(("name", "family"), [("kl", "sdxl"), ("sdxl", "sdxl"), ("wan21", "wan21")])
def test_decoders_have_the_vae_s_pictures_and_plain_backpropagation_s_gradients(name: str, family: str) -> None:
    model, vae = tiny.model(family), stock_vae(name)
    latents = torch.randn(2, *tiny.empty(family)["samples"].shape[1:-2], 2, 3, generator=torch.Generator().manual_seed(3))

    def plain(x: Tensor) -> Tensor:
        decoded = network.decode(model.model.process_latent_out(x))
        return vae.process_output(decoded.clone()).movedim(1, -1).flatten(0, -4)

    with torch.inference_mode(False):
        network = copy.deepcopy(vae.first_stage_model)
        found = [(decode(x := latents.clone().requires_grad_()), x) for decode in (bridge.Decoder(model, vae), plain)]
        weights = torch.randn(found[0][0].shape, generator=torch.Generator().manual_seed(4))
        gradients = [torch.autograd.grad((pictures * weights).sum(), x)[0] for pictures, x in found]
    assert found[0][0].shape[0] == 2 and found[0][0].shape[-1] == 3 and torch.equal(found[0][0], found[1][0])
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[1].abs().max())) and gradients[1].abs().max() > 0


def test_a_decoder_holds_one_block_for_its_gradients() -> None:
    from comfyui_apprentice.benchmarks.control_memory import Held

    latents = torch.randn(1, 4, 16, 16)

    def held(vae: Any) -> int:
        with torch.inference_mode(False):
            decode, x = bridge.Decoder(tiny.model("sdxl"), vae), latents.clone().requires_grad_()
            return Held().measure(lambda: decode(x).sum().backward())

    blocks, whole = stock_vae("kl"), stock_vae("kl")
    whole.latent_dim = 3  # nothing is computed again
    assert held(blocks) < held(whole) / 2


def test_the_help_page_has_the_computed_table_of_memory() -> None:
    from comfyui_apprentice.benchmarks import decoder_memory

    page = Path(decoder_memory.__file__).parents[1] / "web/docs/ApprenticeRewardFinetune/en.md"
    text, rows = page.read_text(encoding="utf-8"), decoder_memory.run().rows
    assert len(rows) == 4
    for row in rows:
        assert " | ".join(["| " + row["VAE"], *(f"{gib:.1f}" for name, gib in row.items() if name != "VAE")]) in text


def test_video_latents_have_one_frame_and_sound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bridge.latent_shape(tiny.model("qwen"), (64, 32)) == (16, 1, 4, 8)
    assert bridge.latent_shape(tiny.model("sdxl"), (64, 32)) == (4, 4, 8)
    assert bridge.latent_shape(tiny.model("flux2"), (64, 32)) == (128, 2, 4)
    model = tiny.model("sdxl")
    monkeypatch.setattr(type(model.get_model_object("latent_format")), "latent_dimensions", 1)
    with pytest.raises(ValueError, match="draws no pictures"):
        bridge.latent_shape(model, (64, 32))


def test_newer_comfyuis_are_told_that_this_is_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "in_training", False, raising=False)
    with bridge.training():
        assert comfy.model_management.in_training and not torch.is_inference_mode_enabled()
    assert not comfy.model_management.in_training


def test_augmented_assignments_are_out_of_place_in_training_and_calls_are_not() -> None:
    from comfyui_apprentice.training.lora import out_of_place

    def block(x: Tensor) -> tuple[Tensor, Tensor]:
        kept = x
        x += 1
        x -= 0.5
        x *= 2
        x /= 4
        called = torch.zeros(3)
        called.add_(1)
        return kept, x + called

    given = torch.arange(3.0)
    with out_of_place():
        kept, result = block(given)
    assert torch.equal(kept, torch.arange(3.0)) and torch.equal(result, (torch.arange(3.0) + 0.5) / 2 + 1)
    with torch.no_grad(), out_of_place():
        block(given)
    assert not torch.equal(given, torch.arange(3.0)), "drawing stays as it was"
