"""SiD's equations: every formula against the authors' numbers, or against a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_apprentice.training import sid
from comfyui_apprentice.training.sid import TimestepLevels
from safetensors.torch import load_file
from sid_goldens import DATA, FAKE, GENERATOR, RECORDED, assert_gradients, largest, networks, recorded_players
from torch import Tensor


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------- goldens


def test_generator_loss_and_its_gradients_are_the_authors() -> None:
    recorded, (nets, players) = load_file(DATA / GENERATOR), recorded_players()
    z, u, n, labels = (recorded[key] for key in ("z", "u", "n", "labels"))
    sigma = sid.noise_level(u, 800)
    assert largest(sigma, recorded["f64.sigma"]) < 1e-5
    images = sid.generate(players.generator, z, labels)
    assert largest(images, recorded["f64.images"]) < 5e-6
    images.retain_grad()
    x = images + sigma * n
    y_real, y_fake = players.teacher(x, sigma, labels), players.fake(x, sigma, labels)
    assert largest(y_real, recorded["f64.y_real"]) < 5e-6 and largest(y_fake, recorded["f64.y_fake"]) < 5e-6
    assert largest(sid.sid_weight(images, y_real), recorded["f64.weight_factor"]) < 1e-6
    loss = sid.generator_loss(images, y_real, y_fake, alpha=1.0)
    assert largest(loss, recorded["f64.loss"]) < 5e-6
    total = loss.sum() * 100 / len(z)
    assert total.item() == pytest.approx(recorded["f64.loss_scalar_lsg100"].item(), rel=1e-6)
    total.backward()
    assert largest(images.grad, recorded["f64.grad_images"]) < 1e-4
    assert_gradients(nets["gen"], recorded, "gen", RECORDED[GENERATOR]["grad_norms_order"], scale=400)


def test_fake_score_loss_and_its_gradients_are_the_authors() -> None:
    recorded, nets = load_file(DATA / FAKE), networks()
    labels, sigma = recorded["labels"], sid.log_normal_level(recorded["rnd_normal"])
    assert largest(sigma, recorded["f64.sigma"]) < 1e-6
    images = sid.generate(sid.edm_denoise(nets["gen"]), recorded["z"], labels).detach().requires_grad_()
    denoised = nets["fake"](images + sigma * recorded["n"], sigma, labels)
    assert largest(denoised, recorded["f64.y_fake"]) < 5e-6
    loss = sid.fake_score_loss(images, denoised, sigma)
    assert largest(loss, recorded["f64.loss"]) < 2e-5
    (loss.sum() / len(images)).backward()
    assert (loss.sum() / len(images)).item() == pytest.approx(recorded["f64.loss_scalar_ls1"].item(), rel=1e-6)
    assert largest(images.grad, recorded["f64.grad_images"]) < 1e-5
    assert_gradients(nets["fake"], recorded, "fake", RECORDED[FAKE]["grad_norms_order"], scale=60)


# -------------------------------------------------------------------------------------------- closed forms


def test_noise_level_runs_from_the_least_to_the_level_of_tmax() -> None:
    assert sid.noise_level(torch.tensor(0.0)).item() == pytest.approx(0.002, rel=1e-4)
    assert sid.noise_level(torch.tensor(1.0), tmax=1000).item() == pytest.approx(80.0, rel=1e-5)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert sid.noise_level(torch.tensor(0.5), tmax=800).item() == pytest.approx((high + 0.6 * (low - high)) ** 7, rel=1e-5)


def test_generator_loss_for_a_gaussian_teacher_and_fake_is_the_formula_by_hand() -> None:
    """D(x) = (s^2 x) / (s^2 + sigma^2) for data N(0, s^2): with known networks every term can be written out."""
    images, noise, sigma = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.full((4, 1, 1, 1), 0.7)
    x = images + sigma * noise
    real, fake = 0.25 / (0.25 + 0.49) * x, 1.0 / (1.0 + 0.49) * x
    for alpha in (0.5, 1.0, 1.2):
        loss = sid.generator_loss(images, real, fake, alpha)
        weight = (images - real).abs().mean((1, 2, 3)).view(4, 1, 1, 1)
        # The paper's form: (1 - alpha) |f_phi - f_psi|^2 + (f_phi - f_psi)(f_psi - x_g).
        expected = ((1 - alpha) * (real - fake) ** 2 + (real - fake) * (fake - images)) / weight
        assert torch.allclose(loss, expected, atol=1e-6)


def test_no_gradient_flows_through_the_weight() -> None:
    images = torch.randn(2, 1, 2, 2, requires_grad=True)
    assert not sid.sid_weight(images, images * 0.5).requires_grad
    assert sid.sid_weight(images, images).flatten().tolist() == pytest.approx([1e-5, 1e-5])


def test_epsilon_weight_makes_the_picture_s_error_that_of_noise_and_of_velocity() -> None:
    sigma = torch.tensor([0.05, 0.7, 12.0], dtype=torch.float64).view(3, 1, 1, 1)
    rng = torch.Generator().manual_seed(0)
    images, noise, eps = (torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=rng) for _ in range(3))
    denoised = images + sigma * noise - sigma * eps  # a network that predicts eps
    loss = sid.fake_score_loss(images, denoised, sigma, sid.epsilon_weight)
    assert torch.allclose(loss, (eps - noise) ** 2)
    a, s = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    velocity = (a * noise - s * images) - (a * (a * (images + sigma * noise)) - denoised) / s  # v - v_psi
    snr = 1 / sigma**2
    assert torch.allclose(loss, snr / (snr + 1) * velocity**2)


def test_timesteps_are_whole_uniform_and_within_their_bounds() -> None:
    sigmas = torch.arange(1000.0)
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    level = sid.timestep_level(u, sigmas)
    assert level.min() == 20 and level.max() == 979 and level.mean().item() == pytest.approx(499.5, abs=2)
    assert sid.timestep_level(torch.tensor(0.9999999), sigmas).item() == 979


def test_guidance_extrapolates_from_empty_to_given_and_costs_nothing_at_one() -> None:
    calls = []

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(x))
        return x * 0 + labels.view(-1, 1, 1, 1)

    x, sigma = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 1, 1)
    given, empty = torch.tensor([5.0, 7.0]), torch.tensor([1.0, 1.0])
    assert sid.guided(denoise, x, sigma, given, empty, 2.0)[:, 0, 0, 0].tolist() == [9.0, 13.0]
    assert sid.guided(denoise, x, sigma, given, empty, 1.0)[:, 0, 0, 0].tolist() == [5.0, 7.0]
    assert calls == [4, 2]
    with pytest.raises(ValueError, match="empty condition"):
        sid.guided(denoise, x, sigma, given, None, 2.0)


def test_few_steps_renoise_the_last_picture_and_learn_in_the_last_step_only() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    z, between = torch.ones(1, 1, 1, 1), [torch.full((1, 1, 1, 1), 2.0)]
    drawn = sid.generate(lambda x, sigma, labels: scale * x, z, None, (3.0, 1.0), between)
    assert drawn.item() == pytest.approx(0.5 * (0.5 * 3 + 2.0))
    drawn.sum().backward()
    assert scale.grad.item() == pytest.approx(3.5)  # the input of the last step, as if it were given


# ---------------------------------------------------------------------------------------------- NaN, adversary


def test_samples_with_nan_drop_out_of_both_losses() -> None:
    images, real, fake = (torch.randn(3, 1, 2, 2) for _ in range(3))
    whole = sid.generator_loss(images[1:], real[1:], fake[1:])
    real[0, 0, 0, 1] = math.nan
    assert torch.equal(sid.generator_loss(images, real, fake), whole)
    sigma = torch.rand(3, 1, 1, 1) + 0.5
    fake[2] = math.nan
    assert torch.equal(sid.fake_score_loss(images, fake, sigma), sid.fake_score_loss(images[:2], fake[:2], sigma[:2]))


def test_adversarial_losses_are_cross_entropies_of_the_encoder_s_channel_mean() -> None:
    features = torch.tensor([[1.0, 3.0], [30.0, 70.0]]).view(2, 2, 1, 1)
    logits = sid.discriminator_logits(features)
    assert logits.flatten().tolist() == [2.0, 50.0]
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    weight = torch.tensor([0.5, 0.25]).view(2, 1, 1, 1)
    expected = (softplus(-2) + softplus(-10)) / 2  # clamped at 10
    assert sid.adversarial_loss(logits, weight).flatten().tolist() == pytest.approx([expected / 0.5, expected / 0.25])
    sigma = torch.tensor([0.5, 0.5]).view(2, 1, 1, 1)  # lambda = 8
    loss = sid.discriminator_loss(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), sigma)
    assert loss.flatten().tolist() == pytest.approx([8 * math.log(2)] * 2)


def test_discrete_levels_serve_both_halves() -> None:
    levels = TimestepLevels(torch.linspace(0.03, 14.6, 1000))
    u = torch.rand(5, 1, 1, 1)
    assert torch.equal(levels.of_fake(u), levels.of_generator(u)) and levels.of_fake(u).shape == (5, 1, 1, 1)


