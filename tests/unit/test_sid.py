"""Score identity Distillation: every formula against the authors' numbers, or against a closed form."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.networks.edm import EDMPrecond, build_edm
from comfyui_apprentice.training import sid
from comfyui_apprentice.training.distill import Settings, Task, draw_steps, draws
from comfyui_apprentice.training.sid import Draws, Objective, Players, TimestepLevels
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "data" / "sid"
RECORDED = json.loads((DATA / "losses.json").read_text())
GENERATOR, FAKE = "loss_generator_alpha1.0_tmax800.safetensors", "loss_fake_noaug.safetensors"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def networks() -> dict[str, EDMPrecond]:
    weights = load_file(DATA / "loss_weights.safetensors")
    found = {}
    for name in ("teacher", "fake", "gen"):
        found[name] = build_edm(RECORDED["loss_weights.safetensors"]["config"])
        found[name].load_state_dict({k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")})
    return found


def largest(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def assert_gradients(network: EDMPrecond, recorded: dict[str, Tensor], prefix: str, order: list[str], scale: float) -> None:
    """The recorded gradients of single weights, and the norm of every one but those of key biases (zero but for rounding)."""
    gradients = {name: p.grad for name, p in network.named_parameters()}
    norms = recorded[f"f64.grad_{prefix}_norms"]
    for name, norm in zip(order, norms, strict=True):
        if not name.endswith("qkv.bias"):
            found = 0.0 if gradients[name] is None else gradients[name].norm().item()
            assert found == pytest.approx(norm.item(), rel=2e-5, abs=1e-6 * scale), name
    singles = [key for key in recorded if key.startswith(f"f64.grad_{prefix}.")]
    assert len(singles) >= 5
    for key in singles:
        assert largest(gradients[key.removeprefix(f"f64.grad_{prefix}.")], recorded[key]) < 4e-6 * scale, key


# ------------------------------------------------------------------------------------------------- goldens


def test_generator_loss_and_its_gradients_are_the_authors() -> None:
    recorded, nets = load_file(DATA / GENERATOR), networks()
    players = sid.edm_players(nets["teacher"], nets["fake"], nets["gen"])
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


def test_both_objectives_put_the_recorded_losses_together() -> None:
    """What ``train_step`` minimises, from the same randomness."""
    nets = networks()
    players = sid.edm_players(nets["teacher"], nets["fake"], nets["gen"])
    of_generator, of_fake = load_file(DATA / GENERATOR), load_file(DATA / FAKE)
    draws = Draws(of_generator["z"], of_generator["n"], of_generator["u"], of_generator["labels"])
    loss = sid.generator_objective(players, Objective(alpha=1.0), draws)
    assert loss.total.item() / 6 == pytest.approx(of_generator["f64.loss_scalar_lsg100"].item(), rel=1e-6)
    draws = Draws(of_fake["z"], of_fake["n"], of_fake["rnd_normal"], of_fake["labels"])
    loss = sid.fake_score_objective(players, Objective(), draws)
    assert loss.total.item() / 6 == pytest.approx(of_fake["f64.loss_scalar_ls1"].item(), rel=1e-6)


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
        found = sid.generator_loss(images, real, fake, alpha)
        weight = (images - real).abs().mean((1, 2, 3)).view(4, 1, 1, 1)
        # The paper's form: (1 - alpha) |f_phi - f_psi|^2 + (f_phi - f_psi)(f_psi - x_g).
        expected = ((1 - alpha) * (real - fake) ** 2 + (real - fake) * (fake - images)) / weight
        assert torch.allclose(found, expected, atol=1e-6)


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
    found = sid.timestep_level(u, sigmas)
    assert found.min() == 20 and found.max() == 979 and found.mean().item() == pytest.approx(499.5, abs=2)
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


def test_captions_are_dropped_only_where_the_fake_score_is_guided() -> None:
    assert Objective(kappa4=2.0).caption_dropout == 0
    assert Objective(kappa1=2.0).caption_dropout == Objective(kappa2=1.5).caption_dropout == 0.1


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


def test_an_iteration_with_nan_counts_it_and_leaves_finite_weights() -> None:
    nets = networks()
    players = sid.edm_players(nets["teacher"], nets["fake"], nets["gen"])
    recorded = load_file(DATA / GENERATOR)
    z = recorded["z"].clone()
    z[2] = math.nan
    result = sid.train_step(
        players, *optimisers(players), Objective(), z=z, u=recorded["u"], noise=recorded["n"],
        rnd_normal=torch.zeros(6, 1, 1, 1), labels=recorded["labels"],
    )  # fmt: skip
    assert result.dropped == 2 and math.isfinite(result.fake_loss) and math.isfinite(result.generator_loss)
    assert all(p.isfinite().all() for p in [*players.fake_parameters, *players.generator_parameters])
    everything = sid.train_step(
        players, *optimisers(players), Objective(), z=z * math.nan, u=recorded["u"], noise=recorded["n"],
        rnd_normal=torch.zeros(6, 1, 1, 1), labels=recorded["labels"],
    )  # fmt: skip
    assert everything.dropped == 12
    assert all(p.isfinite().all() for p in [*players.fake_parameters, *players.generator_parameters])


def test_gradients_are_cleaned_as_the_official_loop_does() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([math.nan, math.inf, -math.inf])
    sid.clean_gradients([parameter])
    assert parameter.grad.tolist() == [0.0, 1e5, -1e5]


def test_adversarial_losses_are_cross_entropies_of_the_encoder_s_channel_mean() -> None:
    features = torch.tensor([[1.0, 3.0], [30.0, 70.0]]).view(2, 2, 1, 1)
    logits = sid.discriminator_logits(features)
    assert logits.flatten().tolist() == [2.0, 50.0]
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    weight = torch.tensor([0.5, 0.25]).view(2, 1, 1, 1)
    expected = (softplus(-2) + softplus(-10)) / 2  # clamped at 10
    assert sid.adversarial_loss(logits, weight).flatten().tolist() == pytest.approx([expected / 0.5, expected / 0.25])
    sigma = torch.tensor([0.5, 0.5]).view(2, 1, 1, 1)  # lambda = 8
    found = sid.discriminator_loss(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), sigma)
    assert found.flatten().tolist() == pytest.approx([8 * math.log(2)] * 2)


def test_adversarial_iteration_mixes_both_losses_half_and_half() -> None:
    nets = networks()
    players = sid.edm_players(nets["teacher"], nets["fake"], nets["gen"])
    recorded = load_file(DATA / GENERATOR)
    draws = Draws(recorded["z"], recorded["n"], recorded["u"], recorded["labels"])
    plain = sid.generator_objective(players, Objective(alpha=1.0), draws).total
    mixed = sid.generator_objective(players, Objective(alpha=1.0, adversarial=0.01), draws).total
    images = sid.generate(players.generator, draws.z, draws.labels)
    sigma = sid.noise_level(draws.level)
    x = images + sigma * draws.noise
    logits = nets["fake"](x, sigma, draws.labels, return_features=True)[1].mean(1)
    weight = (images - nets["teacher"](x, sigma, draws.labels)).abs().mean((1, 2, 3))
    against = (torch.nn.functional.softplus(-logits).mean() / weight).sum() * images[0].numel() * 0.01
    assert mixed.item() == pytest.approx((0.5 * plain + 0.5 * against).item(), rel=1e-5)
    real = Objective(adversarial=0.01)
    with pytest.raises(ValueError, match="needs real pictures"):
        sid.fake_score_objective(players, real, draws)
    draws.real = torch.zeros_like(draws.z)
    assert sid.fake_score_objective(players, real, draws).total.isfinite()


# --------------------------------------------------------------------------------------------------- iterations


def optimisers(players: Players) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return tuple(
        torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.999)) for p in (players.fake_parameters, players.generator_parameters)
    )


def recorded_randomness() -> dict[str, Tensor]:
    recorded, other = load_file(DATA / GENERATOR), load_file(DATA / FAKE)
    return {
        "z": recorded["z"], "u": recorded["u"], "noise": recorded["n"], "labels": recorded["labels"],
        "z_fake": other["z"], "noise_fake": other["n"], "labels_fake": other["labels"], "rnd_normal": other["rnd_normal"],
    }  # fmt: skip


def test_an_iteration_is_the_fake_score_s_step_then_the_generator_s_against_the_new_fake_score() -> None:
    nets = networks()
    players = sid.edm_players(nets["teacher"], nets["fake"], nets["gen"])
    by_hand = copy.deepcopy(nets)
    draws = recorded_randomness()
    result = sid.train_step(players, *optimisers(players), Objective(alpha=1.0), **draws)
    assert result.fake_loss == pytest.approx(load_file(DATA / FAKE)["f64.loss_scalar_ls1"].item(), rel=1e-5)

    adam = {name: torch.optim.Adam(by_hand[name].parameters(), lr=1e-3, betas=(0.0, 0.999)) for name in ("fake", "gen")}
    by_hand["fake"].requires_grad_(True), by_hand["gen"].requires_grad_(True)
    with torch.no_grad():
        images = by_hand["gen"](2.5 * draws["z_fake"], torch.tensor(2.5), draws["labels_fake"])
    sigma = (1.2 * draws["rnd_normal"] - 1.2).exp()
    denoised = by_hand["fake"](images + sigma * draws["noise_fake"], sigma, draws["labels_fake"])
    ((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (denoised - images) ** 2).sum().div(6).backward()
    adam["fake"].step()
    images = by_hand["gen"](2.5 * draws["z"], torch.tensor(2.5), draws["labels"])
    sigma = sid.noise_level(draws["u"])
    x = images + sigma * draws["noise"]
    real, fake = by_hand["teacher"](x, sigma, draws["labels"]), by_hand["fake"](x, sigma, draws["labels"])
    weight = (images - real).abs().mean((1, 2, 3), keepdim=True).detach()
    ((real - fake) * (fake - images) / weight).sum().mul(100 / 6).backward()
    adam["gen"].step()
    for name in ("fake", "gen"):
        for key, value in by_hand[name].state_dict().items():
            if not key.endswith("qkv.bias"):  # see the goldens: their true gradient is 0, and Adam makes steps of rounding
                assert torch.allclose(nets[name].state_dict()[key], value, atol=2e-5), key


def test_accumulation_changes_memory_and_not_the_gradient() -> None:
    found = []
    for part in (0, 2):
        nets = networks()
        players = sid.edm_players(nets["teacher"], nets["fake"], nets["gen"])
        draws = recorded_randomness()
        plain = [torch.optim.SGD(p, lr=0.0) for p in (players.fake_parameters, players.generator_parameters)]
        sid.iterate(
            players, *plain, Objective(), Draws(draws["z_fake"], draws["noise_fake"], draws["rnd_normal"], draws["labels"]),
            Draws(draws["z"], draws["noise"], draws["u"], draws["labels"]), part=part,
        )  # fmt: skip
        found.append([p.grad.clone() for p in players.generator_parameters if p.grad is not None])
    assert len(found[0]) > 50
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-4 * whole.abs().max().item() + 1e-6)


def test_only_the_network_whose_turn_it_is_gets_gradients() -> None:
    nets = networks()
    players = sid.edm_players(nets["teacher"], nets["fake"], nets["gen"])
    sid.train_step(players, *optimisers(players), Objective(), **recorded_randomness())
    assert not any(p.requires_grad for p in [*nets["teacher"].parameters(), *nets["fake"].parameters()])
    assert all(p.requires_grad for p in nets["gen"].parameters())
    assert all(p.grad is None for p in nets["teacher"].parameters())


def test_a_gaussian_generator_learns_its_teacher_s_spread() -> None:
    """Data N(0, 0.5^2): teacher and fake score are linear denoisers, and the generator's scale must find 0.5."""
    teacher_variance = 0.25
    log_fake, scale = torch.nn.Parameter(torch.tensor(0.0)), torch.nn.Parameter(torch.tensor(1.2))

    def linear(variance: Tensor | float, x: Tensor, sigma: Tensor) -> Tensor:
        return variance / (variance + sigma**2) * x

    players = Players(
        lambda x, sigma, labels: linear(teacher_variance, x, sigma),
        lambda x, sigma, labels: linear(log_fake.exp(), x, sigma),
        lambda x, sigma, labels: scale * x / sigma,
        [log_fake],
        [scale],
    )
    fake, own = torch.optim.Adam([log_fake], lr=0.05, betas=(0.0, 0.999)), torch.optim.Adam([scale], lr=0.01, betas=(0.0, 0.999))
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        z, noise, z_fake, noise_fake = (torch.randn(64, 1, 4, 4, generator=generator) for _ in range(4))
        u, rnd_normal = torch.rand(64, 1, 1, 1, generator=generator), torch.randn(64, 1, 1, 1, generator=generator)
        sid.train_step(
            players, fake, own, Objective(alpha=1.0), z=z, u=u, noise=noise, rnd_normal=rnd_normal, z_fake=z_fake,
            noise_fake=noise_fake,
        )  # fmt: skip
    assert abs(scale.item()) == pytest.approx(0.5, abs=0.03)


def test_discrete_levels_serve_both_halves() -> None:
    levels = TimestepLevels(torch.linspace(0.03, 14.6, 1000))
    u = torch.rand(5, 1, 1, 1)
    assert torch.equal(levels.of_fake(u), levels.of_generator(u)) and levels.of_fake(u).shape == (5, 1, 1, 1)


# ----------------------------------------------------------------------------------------------- draws of a run


def text_task(**changes: object) -> Task:
    """Captions are 1, 2, 3, ... and the empty one is 0; both networks are never called."""
    nothing = Players(lambda *_: None, lambda *_: None, lambda *_: None, [], [])

    def labels(rng: torch.Generator, batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"text": torch.arange(1.0, batch + 1)[:, None]}, {"text": torch.zeros(batch, 1)}

    return Task(nothing, torch.nn.Identity(), torch.nn.Identity(), (1, 2, 2), labels, lambda steps: (1.0,) * steps, **changes)


def test_steps_are_drawn_evenly_from_one_to_the_most() -> None:
    rng = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw_steps(rng, 4) for _ in range(4000)]), minlength=6)
    assert counts[0] == counts[5] == 0 and (counts[1:5] - 1000).abs().max() < 120
    assert {draw_steps(rng, 1) for _ in range(20)} == {1}


@pytest.mark.parametrize(("settings", "fake", "dropped"), [
    (Settings(kappa1=1.5), True, 0.1), (Settings(kappa2=1.5), True, 0.1), (Settings(kappa1=1.5), False, 0.0),
    (Settings(kappa4=1.5), True, 0.0),
])  # fmt: skip
def test_a_tenth_of_the_captions_is_dropped_in_the_guided_fake_score_s_half_alone(
    settings: Settings, fake: bool, dropped: float
) -> None:
    task = text_task()
    found = draws(task, task.objective(settings, 1), torch.Generator().manual_seed(0), 5000, fake)
    empty = found.labels["text"][:, 0] == 0
    assert empty.float().mean().item() == pytest.approx(dropped, abs=0.02 if dropped else 0)
    assert torch.equal(found.labels["text"][~empty, 0], torch.arange(1.0, 5001)[~empty])


def test_flow_models_mix_pictures_and_noise_their_own_way_in_every_place() -> None:
    """x = (1 - sigma) images + sigma noise: with D the identity every x can be read off."""
    mix = lambda images, sigma, noise: (1 - sigma) * images + sigma * noise  # noqa: E731
    seen: list[Tensor] = []

    def identity(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        seen.append(x)
        return x

    z, between, noise = (torch.randn(2, 1, 2, 2) for _ in range(3))
    levels = TimestepLevels(torch.linspace(0.001, 1, 1000))
    objective = Objective(sigmas=(1.0, 0.5), levels=levels, noising=mix, weight=sid.epsilon_weight)
    draws_ = Draws(z, noise, torch.full((2, 1, 1, 1), 0.5), between=[between])
    sid.fake_score_objective(Players(identity, identity, identity, [], []), objective, draws_)
    images, sigma = 0.5 * z + 0.5 * between, levels.of_fake(draws_.level)
    assert torch.equal(seen[0], z) and torch.allclose(seen[1], images)
    assert torch.allclose(seen[2], (1 - sigma) * images + sigma * noise)
