"""EDM's networks: the authors' numbers, the published models' keys and sizes, and what must hold in closed form."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.networks import edm_layers as layers
from comfyui_apprentice.networks.edm import EDMPrecond, build_edm
from comfyui_apprentice.networks.edm_unets import DhariwalUNet, SongUNet
from comfyui_apprentice.networks.preconditioning import karras_sigmas
from comfyui_apprentice.networks.tiny_unet import heun
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

DATA = Path(__file__).parents[1] / "data" / "sid"
FILES = json.loads((DATA / "edm.json").read_text())["files"]
PRECONDS = ("precond_ddpmpp_cond_aug", "precond_ncsnpp_uncond_aug")
INPUTS = ("x", "sigma", "labels", "augment_labels")
COPIES = [1, 2]  # of the four recorded pictures: from eight on, a CPU takes its own path
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}

DDPMPP = {"model_type": "SongUNet", "model_channels": 128, "channel_mult": [2, 2, 2], "resample_filter": [1, 1]}
NCSNPP = {
    "model_type": "SongUNet", "model_channels": 128, "channel_mult": [2, 2, 2], "resample_filter": [1, 3, 3, 1],
    "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
}  # fmt: skip
TINY_ADM = {
    "model_type": "DhariwalUNet", "img_resolution": 16, "img_channels": 3, "label_dim": 10, "augment_dim": 9,
    "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "dropout": 0.0,
}  # fmt: skip
TINY_SONG = {**TINY_ADM, "model_type": "SongUNet", "model_channels": 16}


def recorded_network(name: str, dtype: torch.dtype = torch.float32) -> tuple[EDMPrecond, dict[str, Tensor]]:
    recorded = load_file(DATA / f"{name}.safetensors")
    network = build_edm(FILES[name]["config"]).eval()
    network.load_state_dict({k.removeprefix("weights."): v for k, v in recorded.items() if k.startswith("weights.")})
    return network.to(dtype), recorded


def teacher(dtype: torch.dtype = torch.float32) -> EDMPrecond:
    weights = load_file(DATA / "loss_weights.safetensors")
    network = build_edm(FILES["loss_weights"]["config"]).eval()
    network.load_state_dict({k.removeprefix("teacher."): v for k, v in weights.items() if k.startswith("teacher.")})
    return network.to(dtype)


def random_network(config: dict, seed: int = 0) -> EDMPrecond:
    """With every weight alive: the authors' initialisation silences most blocks."""
    torch.manual_seed(seed)
    network = build_edm(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel() if parameter.ndim > 1 else 25))
    return network


def inputs(batch: int = 8, size: int = 16, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.tensor([0.002, 0.02, 0.2, 0.5, 1.0, 2.5, 10.0, 80.0])[:batch]
    x = torch.randn(batch, 3, size, size, generator=generator) * (1 + sigma.view(-1, 1, 1, 1))
    labels = torch.eye(10)[torch.arange(batch)]
    return x, sigma, labels, torch.randn(batch, 9, generator=generator)


def largest(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


# ------------------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("name", PRECONDS)
def test_denoised_pictures_are_the_authors(name: str, copies: int, dtype: torch.dtype) -> None:
    network, recorded = recorded_network(name, dtype)
    recorded = {k: torch.cat([v] * copies) if k in INPUTS or k.startswith("f64.D_") else v for k, v in recorded.items()}
    cases = [key for key in recorded if key.startswith("f64.D_")]
    assert len(cases) == (4 if "_cond_" in name else 2)
    for key in cases:
        _, labels, augment = key.removeprefix("f64.").split("_")
        d = network(
            recorded["x"],
            recorded["sigma"],
            recorded["labels"] if labels == "labels" else None,
            recorded["augment_labels"] if augment == "aug" else None,
        )
        assert d.dtype == dtype
        assert largest(d, recorded[key]) < TOLERANCE[dtype], key


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("name", PRECONDS)
def test_raw_output_and_gradients_are_the_authors(name: str, copies: int, dtype: torch.dtype) -> None:
    network, recorded = recorded_network(name, dtype)
    tolerance = TOLERANCE[dtype]
    x, sigma, labels, augment = (torch.cat([recorded[k]] * copies) if k in recorded else None for k in INPUTS)
    x = x.to(dtype).requires_grad_()
    s = sigma.to(dtype).view(-1, 1, 1, 1)
    f = network.model(x / (s**2 + 0.25).sqrt(), s.flatten().log() / 4, labels, augment)
    assert largest(f, torch.cat([recorded["f64.F"]] * copies)) < tolerance

    r = torch.cat([recorded["r"]] * copies) / copies
    (network(x, sigma, labels, augment) * r).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert largest(x.grad[:4] * copies, recorded["f64.grad_x"]) < tolerance
    singles = [key for key in recorded if key.startswith("f64.grad_param.")]
    assert len(singles) >= 7
    for key in singles:
        expected = recorded[key]
        scale = max(1.0, expected.abs().max().item())
        # Summed over cells and pictures: the authors' float32 gradients are off by up to 2.7e-5.
        assert largest(gradients[key.removeprefix("f64.grad_param.")], expected) < 6 * tolerance * scale, key
    for key, norm in zip(FILES[name]["parameters"], recorded["f64.grad_norms"].tolist(), strict=True):
        if not key.endswith("qkv.bias"):  # keys' biases have no gradient but rounding
            assert gradients[key].norm().item() == pytest.approx(norm, rel=2 * tolerance, abs=tolerance), key


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_heun_sampler_is_the_authors_call_by_call(dtype: torch.dtype) -> None:
    """The state is float64, as theirs; with a float32 network their own code is off by 1.5e-5."""
    network, recorded = teacher(dtype), load_file(DATA / "sampler_heun5.safetensors")
    settings = FILES["sampler_heun5"]["config"]
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        d = network(x, sigma, recorded["labels"]).double()
        calls.append((x, sigma, d))
        return d

    sigmas = karras_sigmas(settings["num_steps"], settings["sigma_min"], settings["sigma_max"], settings["rho"])
    with torch.no_grad():
        end = heun(denoise, recorded["latents"].double(), sigmas)
    tolerance = 2e-5 if dtype == torch.float32 else 3e-7  # karras_sigmas rounds to float32
    assert largest(end, recorded["f64.x_end"]) < tolerance
    assert len(calls) == 9
    for (x, sigma, d), x_, sigma_, d_ in zip(
        calls, recorded["f64.call_x"], recorded["f64.call_sigma"], recorded["f64.call_D"], strict=True
    ):
        torch.testing.assert_close(sigma, sigma_.expand(3), rtol=1e-7, atol=0)
        assert largest(x, x_) < max(tolerance, 1e-7 * sigma_.item())
        assert largest(d, d_) < tolerance
        assert largest(network(x_, sigma_, recorded["labels"]), d_) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sid_draws_in_one_step_as_the_authors(dtype: torch.dtype) -> None:
    """G(z) = D(2.5 z, 2.5); zero augmentation labels, with which SiD trains, are the same as none."""
    network, recorded = teacher(dtype), load_file(DATA / "sampler_sid1.safetensors")
    z, labels = recorded["latents"], recorded["labels"]
    for augment in (None, torch.zeros(3, 9)):
        d = network(2.5 * z.double(), torch.full((3, 1, 1, 1), 2.5), labels, augment)
        assert largest(d, recorded["f64.x_end"]) < TOLERANCE[dtype]


# ---------------------------------------------------------------------------------- published models and keys


@pytest.mark.parametrize(
    ("config", "millions", "entries"),
    [
        ({**DDPMPP, "img_resolution": 32, "label_dim": 10, "augment_dim": 9}, 55.735299, 427),
        ({**NCSNPP, "img_resolution": 32, "augment_dim": 9}, 56.397827, 432),
        ({**DDPMPP, "img_resolution": 64, "augment_dim": 9, "channel_mult": [1, 2, 2, 2]}, 61.805571, 553),
        ({**NCSNPP, "img_resolution": 64, "augment_dim": 9, "channel_mult": [1, 2, 2, 2]}, 62.761091, 563),
        ({"img_resolution": 64, "label_dim": 1000}, 295.899267, 553),  # ADM on ImageNet: the defaults
    ],
    ids=["cifar10-cond-vp", "cifar10-uncond-ve", "ffhq-vp", "ffhq-ve", "imagenet-adm"],
)
def test_published_models_have_their_sizes(config: dict, millions: float, entries: int) -> None:
    with torch.device("meta"):
        network = build_edm({**config, "img_channels": 3})
    assert sum(p.numel() for p in network.parameters()) == round(millions * 1e6)
    assert len(network.state_dict()) == entries


def test_adm_has_the_authors_keys_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {
            k: tuple(v.shape)
            for k, v in build_edm({"img_resolution": 64, "img_channels": 3, "label_dim": 1000}).state_dict().items()
        }
    assert shapes["model.map_label.weight"] == (768, 1000)
    assert "model.map_label.bias" not in shapes
    assert shapes["model.map_layer0.weight"] == (768, 192)
    assert shapes["model.enc.64x64_conv.weight"] == (192, 3, 3, 3)
    assert shapes["model.enc.32x32_down.conv0.resample_filter"] == (1, 1, 2, 2)
    # A resampling block of ADM has no weights on its skip, only the filter.
    assert [k for k in shapes if k.startswith("model.enc.32x32_down.skip")] == ["model.enc.32x32_down.skip.resample_filter"]
    assert shapes["model.enc.32x32_block0.affine.weight"] == (768, 768)
    assert shapes["model.enc.32x32_block2.qkv.weight"] == (1152, 384, 1, 1)
    assert "model.enc.64x64_block0.qkv.weight" not in shapes
    assert all(f"model.dec.32x32_block{i}.qkv.weight" in shapes for i in range(4))
    assert shapes["model.dec.8x8_in0.qkv.weight"] == (2304, 768, 1, 1)
    assert "model.dec.8x8_in1.qkv.weight" not in shapes
    assert shapes["model.dec.64x64_block3.skip.weight"] == (192, 384, 1, 1)
    assert list(shapes)[-4:] == ["model.out_norm.weight", "model.out_norm.bias", "model.out_conv.weight", "model.out_conv.bias"]


def test_skip_architectures_have_the_authors_keys() -> None:
    config = {**TINY_SONG, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}
    shapes = {k: tuple(v.shape) for k, v in build_edm(config).state_dict().items() if "aux" in k}
    assert shapes == {
        "model.enc.8x8_aux_down.resample_filter": (1, 1, 4, 4),
        "model.enc.8x8_aux_skip.weight": (16, 3, 1, 1),
        "model.enc.8x8_aux_skip.bias": (16,),
        "model.dec.8x8_aux_norm.weight": (32,),
        "model.dec.8x8_aux_norm.bias": (32,),
        "model.dec.8x8_aux_conv.weight": (3, 32, 3, 3),
        "model.dec.8x8_aux_conv.bias": (3,),
        "model.dec.16x16_aux_up.resample_filter": (1, 1, 4, 4),
        "model.dec.16x16_aux_norm.weight": (16,),
        "model.dec.16x16_aux_norm.bias": (16,),
        "model.dec.16x16_aux_conv.weight": (3, 16, 3, 3),
        "model.dec.16x16_aux_conv.bias": (3,),
    }


@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
def test_every_architecture_trains(encoder: str, decoder: str) -> None:
    config = {**TINY_SONG, "encoder_type": encoder, "decoder_type": decoder, "resample_filter": [1, 3, 3, 1]}
    network = random_network(config)
    network(*inputs()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# ------------------------------------------------------------------------------------------------ initialisation


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_a_fresh_adm_only_scales(sigma: float) -> None:
    """Its last layer starts at zero, so F = 0 and D = c_skip x."""
    x, _, labels, augment = inputs()
    d = build_edm(TINY_ADM)(x, torch.tensor(sigma), labels, augment)
    torch.testing.assert_close(d, x * 0.25 / (sigma**2 + 0.25))


@pytest.mark.parametrize(
    ("config", "key", "bound"),
    [
        # Glorot: sqrt(6 / (inputs + outputs)); Kaiming: sqrt(1/3) sqrt(3 / inputs), which is 1 / sqrt(inputs).
        (TINY_SONG, "model.map_layer1.weight", math.sqrt(6 / 128)),
        (TINY_SONG, "model.dec.8x8_block1.conv0.weight", math.sqrt(6 / (9 * (48 + 32)))),
        (TINY_SONG, "model.dec.8x8_block1.conv1.weight", 1e-5 * math.sqrt(6 / (9 * 64))),
        (TINY_SONG, "model.dec.8x8_block1.qkv.weight", math.sqrt(0.2 * 6 / 128)),
        (TINY_SONG, "model.dec.16x16_aux_conv.weight", 1e-5 * math.sqrt(6 / (9 * 19))),
        (TINY_ADM, "model.map_layer1.weight", 1 / 16),
        (TINY_ADM, "model.map_layer1.bias", 1 / 16),
        (TINY_ADM, "model.dec.8x8_block0.conv0.weight", 1 / math.sqrt(9 * 256)),
        (TINY_ADM, "model.dec.8x8_block0.qkv.bias", 1 / math.sqrt(128)),
    ],
)
def test_layers_start_as_the_authors_do(config: dict, key: str, bound: float) -> None:
    torch.manual_seed(0)
    values = build_edm(config).state_dict()[key]
    assert 0.97 * bound < values.abs().max().item() <= bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_other_starting_values() -> None:
    torch.manual_seed(0)
    song, adm = build_edm({**TINY_SONG, **{"embedding_type": "fourier"}}).state_dict(), build_edm(TINY_ADM).state_dict()
    assert all(not v.any() for k, v in song.items() if k.endswith("bias"))
    for key in ("map_augment.weight", "enc.8x8_block0.conv1.weight", "enc.8x8_block0.conv1.bias", "dec.8x8_in0.proj.weight"):
        assert not adm[f"model.{key}"].any()
    assert adm["model.map_label.weight"].std().item() == pytest.approx(1, rel=0.05)
    assert song["model.map_noise.freqs"].std().item() == pytest.approx(16, rel=0.8)


# --------------------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("config", [TINY_SONG, TINY_ADM], ids=["song", "adm"])
def test_no_label_is_the_zero_label_and_one_level_serves_all(config: dict) -> None:
    network, (x, _, _, augment) = random_network(config), inputs()
    d = network(x, torch.tensor(2.5), None, augment)
    torch.testing.assert_close(network(x, torch.full((8, 1, 1, 1), 2.5), torch.zeros(8, 10), augment), d)
    torch.testing.assert_close(network(x, torch.full((8,), 2.5, dtype=torch.float64), torch.zeros(1, 10), augment), d)
    assert d.is_contiguous()


@pytest.mark.parametrize("config", [TINY_SONG, TINY_ADM], ids=["song", "adm"])
def test_a_picture_does_not_depend_on_its_neighbours(config: dict) -> None:
    network, (x, sigma, labels, augment) = random_network(config), inputs()
    together = network(x, sigma, labels, augment)
    for i in range(8):
        alone = network(x[i : i + 1], sigma[i : i + 1], labels[i : i + 1], augment[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TINY_SONG, TINY_ADM], ids=["song", "adm"])
def test_features_come_with_the_picture(config: dict) -> None:
    network, arguments = random_network(config), inputs()
    d, features = network(*arguments, return_features=True)
    assert features.shape == (8, 2 * config["model_channels"], 8, 8)
    assert torch.equal(d, network(*arguments))
    seen: list[Tensor] = []
    network.model.enc["8x8_block0"].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network(*arguments)
    assert torch.equal(seen[0], features)


@pytest.mark.parametrize("config", [TINY_SONG, TINY_ADM], ids=["song", "adm"])
def test_checkpointing_changes_nothing_but_memory(config: dict) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = random_network({**config, "dropout": 0.3}).train()
        network.model.checkpointing = checkpointing
        torch.manual_seed(3)
        network(*inputs()).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_training_drops_labels_and_activations() -> None:
    x, sigma, labels, _ = inputs()
    network = random_network({**TINY_SONG, "label_dropout": 1.0})
    assert not torch.allclose(network(x, sigma, labels), network(x, sigma))
    torch.testing.assert_close(network.train()(x, sigma, labels), network(x, sigma))
    network = random_network({**TINY_SONG, "dropout": 0.5}).train()
    assert not torch.allclose(network(x, sigma), network(x, sigma))
    network.eval()
    assert torch.equal(network(x, sigma), network(x, sigma))


def test_half_precision_is_for_gpus_and_double_is_followed() -> None:
    x, sigma, labels, augment = inputs()
    network = random_network(TINY_SONG)
    d = network(x, sigma, labels, augment)
    network.use_fp16 = True
    assert torch.equal(network(x, sigma, labels, augment), d)
    assert torch.equal(network(x.double(), sigma, labels, augment), d)
    with torch.autocast("cpu", torch.bfloat16):
        assert largest(network(x, sigma, labels, augment), d) < 0.2
    wide = network.double()(x, sigma, labels, augment)
    assert wide.dtype == torch.float64
    assert largest(wide, d) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_half_precision_on_a_gpu() -> None:
    x, sigma, labels, augment = (t.cuda() for t in inputs())
    network = random_network({**TINY_ADM, "use_fp16": True}).cuda()
    d = network(x, sigma, labels, augment)
    assert d.dtype == torch.float32
    network.use_fp16 = False
    exact = network(x, sigma, labels, augment)
    assert 0 < largest(d, exact) < 0.1


def test_frozen_network_passes_gradients_on() -> None:
    network, (x, sigma, labels, augment) = random_network(TINY_SONG), inputs()
    x.requires_grad_()
    expected = torch.autograd.grad(network(x, sigma, labels, augment).square().sum(), x)[0]
    frozen = copy.deepcopy(network).requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(frozen(x, sigma, labels, augment).square().sum(), x)[0], expected)


# ---------------------------------------------------------------------------------------------- building blocks


@pytest.mark.parametrize("size", [5, 32], ids=["small", "large"])  # a normalisation each
@pytest.mark.parametrize("modulated", [False, True])
def test_the_cpus_own_path_gives_what_the_plain_layers_give(size: int, modulated: bool) -> None:
    torch.manual_seed(0)
    x, modulation = 2 + torch.randn(8, 8, size, size), torch.randn(8, 16) if modulated else None
    norm, conv = layers.GroupNorm(8, 1e-6), layers.Conv2d(8, 4, 3, layers.Init(xavier=True))
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    own = layers.norm_silu_conv(x.contiguous(memory_format=torch.channels_last), norm, conv, modulation)
    plain = [layers.norm_silu_conv(row, norm, conv, None if modulation is None else modulation[i : i + 1])
             for i, row in enumerate(x.split(1))]  # fmt: skip
    torch.testing.assert_close(own, torch.cat(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_box_needs_no_filter(direction: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(
        layers.resample(x, direction, None), layers.resample(x, direction, layers.outer_filter([1, 1])), rtol=1e-6, atol=1e-6
    )


def test_filters_keep_a_constant_away_from_the_edge() -> None:
    x, kernel = torch.ones(1, 2, 8, 8), layers.outer_filter([1, 3, 3, 1])
    for direction, size in (("up", 16), ("down", 4)):
        y = layers.resample(x, direction, kernel)
        assert y.shape == (1, 2, size, size)
        torch.testing.assert_close(y[..., 1:-1, 1:-1], torch.ones(1, 2, size - 2, size - 2))
        assert (y[..., 0] < 1).all()


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_reordered_resampling_convolutions_are_the_plain_ones(taps: list[int]) -> None:
    init = layers.Init(xavier=True, bias=1.0)
    x, kernel = torch.randn(2, 4, 8, 8), layers.outer_filter(taps)
    up = layers.Conv2d(4, 6, 1, init, "up", taps)
    torch.testing.assert_close(up(x), F.conv2d(layers.resample(x, "up", kernel), up.weight, up.bias), rtol=1e-5, atol=1e-5)
    down, pad = layers.FusedDownConv2d(4, 6, 3, init, "down", taps), 1 + (len(taps) - 1) // 2
    wide = F.conv2d(x, down.weight, padding=pad)
    expected = F.conv2d(wide, kernel.expand(6, -1, -1, -1), stride=2, groups=6) + down.bias[:, None, None]
    torch.testing.assert_close(down(x), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ build_edm


def test_configurations_may_name_their_class() -> None:
    for key, name in (("class_name", "training.networks.EDMPrecond"), ("_class_name", "EDMPrecond")):
        assert isinstance(build_edm({**TINY_SONG, key: name}).model, SongUNet)
    sida = {**TINY_ADM, "class_name": "EDMPrecond_EncoderDecoder", "model_type": "DhariwalUNet_EncoderDecoder"}
    assert isinstance(build_edm(sida).model, DhariwalUNet)
    network = build_edm({**TINY_SONG, "sigma_min": 0.01, "sigma_max": 50, "sigma_data": 0.7, "use_fp16": True})
    assert (network.sigma_min, network.sigma_max, network.sigma_data, network.use_fp16) == (0.01, 50, 0.7, True)
    assert (network.img_resolution, network.img_channels, network.label_dim) == (16, 3, 10)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"class_name": "training.networks.VPPrecond"}, "preconditioned by VPPrecond"),
        ({"_class_name": "iDDPMPrecond"}, "preconditioned by iDDPMPrecond"),
        ({"model_type": "UNet"}, "model_type is 'UNet'"),
        ({"encoder_type": "resnet"}, "encoder_type is 'resnet'"),
        ({"decoder_type": "residual"}, "decoder_type is 'residual'"),
        ({"embedding_type": "sine"}, "embedding_type is 'sine'"),
        ({"beta_d": 19.9, "M": 1000}, "Unknown in the configuration of a SongUNet: M, beta_d"),
        ({"model_type": "DhariwalUNet", "resample_filter": [1, 1]}, "of a DhariwalUNet: resample_filter"),
        ({"in_channels": 3}, "in_channels"),
        ({"img_resolution": 15}, "cannot be halved"),
    ],
)
def test_other_configurations_are_refused_in_a_sentence(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_edm({**TINY_SONG, **change})


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="lacks img_resolution and img_channels"):
        build_edm({"model_type": "SongUNet"})


@pytest.mark.parametrize("grid", [32, 64])
def test_one_modulation_for_a_large_batch_takes_the_fused_group_norm(grid: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, modulation = torch.randn(8, 64, grid, grid, generator=generator), torch.randn(1, 128, generator=generator)
    norm = layers.GroupNorm(64, 1e-5)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    scale, shift = modulation.chunk(2, dim=1)
    weight, bias = norm.weight * (scale[0] + 1), torch.addcmul(shift[0], norm.bias, scale[0] + 1)
    expected = F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
    assert torch.equal(layers._norm_on_fast_path(x, norm, modulation), expected)
