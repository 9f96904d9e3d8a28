"""SiD's iteration: what is minimised, in what order, from which draws, and what NaN and processes can't spoil."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from comfyui_apprentice.training import sid, sid_iteration
from comfyui_apprentice.training.distill import Settings, Task, draw_steps, draws
from comfyui_apprentice.training.sid import TimestepLevels
from comfyui_apprentice.training.sid_iteration import Draws, Objective, Players
from comfyui_apprentice.training.variety import ANCHOR, CONSISTENCY, OFF, karras_path, variety_of
from safetensors.torch import load_file
from sid_goldens import DATA, FAKE, GENERATOR, recorded_players, recorded_randomness, train_step
from torch import Tensor


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_both_objectives_put_the_recorded_losses_together() -> None:
    """What ``train_step`` minimises, from the same randomness."""
    _nets, players = recorded_players()
    of_generator, of_fake = load_file(DATA / GENERATOR), load_file(DATA / FAKE)
    draws = Draws(of_generator["z"], of_generator["n"], of_generator["u"], of_generator["labels"])
    loss = sid_iteration.generator_objective(players, Objective(alpha=1.0), draws)
    assert loss.total.item() / 6 == pytest.approx(of_generator["f64.loss_scalar_lsg100"].item(), rel=1e-6)
    draws = Draws(of_fake["z"], of_fake["n"], of_fake["rnd_normal"], of_fake["labels"])
    loss = sid_iteration.fake_score_objective(players, Objective(), draws)
    assert loss.total.item() / 6 == pytest.approx(of_fake["f64.loss_scalar_ls1"].item(), rel=1e-6)


def test_captions_are_dropped_only_where_the_fake_score_is_guided() -> None:
    assert Objective(kappa4=2.0).caption_dropout == 0
    assert Objective(kappa1=2.0).caption_dropout == Objective(kappa2=1.5).caption_dropout == 0.1


def test_an_iteration_with_nan_counts_it_and_leaves_finite_weights() -> None:
    _nets, players = recorded_players()
    recorded = load_file(DATA / GENERATOR)
    z = recorded["z"].clone()
    z[2] = math.nan
    others = {"u": recorded["u"], "noise": recorded["n"], "rnd_normal": torch.zeros(6, 1, 1, 1), "labels": recorded["labels"]}
    result = train_step(players, {"z": z, **others}, Objective())
    assert result.dropped == 2 and math.isfinite(result.fake_loss) and math.isfinite(result.generator_loss)
    assert all(p.isfinite().all() for p in [*players.fake_parameters, *players.generator_parameters])
    everything = train_step(players, {"z": z * math.nan, **others}, Objective())
    assert everything.dropped == 12
    assert all(p.isfinite().all() for p in [*players.fake_parameters, *players.generator_parameters])


@pytest.mark.parametrize(
    ("who", "kind"), [("teacher", OFF), ("fake", OFF), ("generator", OFF), ("on the way", ANCHOR), ("on the way", CONSISTENCY)]
)
@pytest.mark.parametrize("part", [0, 2])
def test_a_picture_with_nan_costs_itself_alone(who: str, kind: str, part: int) -> None:
    """Whoever makes it: the weights move as if the picture had not been there, since 0 times NaN never comes to them."""
    moved = []
    for spoilt in (True, False):
        _nets, players = recorded_players()
        for name in ("teacher", "fake", "generator"):
            setattr(players, name, _spoiling(getattr(players, name), name, who if spoilt else ""))
        path = variety_of(kind, (2.5,), karras_path) if kind != OFF else None
        made = [_with_marks(recorded, spoilt) for recorded in _halves()]
        slow = [torch.optim.SGD(p, lr=1e-9) for p in (players.fake_parameters, players.generator_parameters)]
        result = sid_iteration.iterate(players, *slow, Objective(variety=path), *made, part=part, batch=6)
        dropped = {"fake": (1, 1), "generator": (1, 1)}.get(who, (0, 1))
        assert (result.fake_dropped, result.generator_dropped) == (dropped if spoilt else (0, 0))
        moved.append([p.grad for p in players.generator_parameters if p.grad is not None])
    assert sum(bool(gradient.any()) for gradient in moved[1]) > 50
    for without, expected in zip(*moved, strict=True):
        assert torch.allclose(without, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item() + 1e-6)


def _halves() -> list[Draws]:
    draws = recorded_randomness()
    return [
        Draws(draws["z_fake"], draws["noise_fake"], draws["rnd_normal"], draws["labels"]),
        Draws(draws["z"], draws["noise"], draws["u"], draws["labels"]),
    ]


def _with_marks(draws: Draws, spoilt: bool) -> Draws:
    """The six pictures, the third marked; or the other five."""
    marks = (torch.arange(6) == 2).view(6, 1)
    marked = replace(draws, labels={"class_labels": draws.labels, "marked": marks})
    return marked if spoilt else marked.rows(~marks[:, 0])


def _spoiling(denoise: sid.Denoise, name: str, who: str) -> sid.Denoise:
    """The network ``name``, which answers NaN to what is marked if it is ``who``; "on the way" is the teacher of the variety."""

    def spoil(x: Tensor, sigma: Tensor, labels: dict[str, Tensor]) -> Tensor:
        bad = who == name or (who == "on the way" and name == "teacher" and not torch.is_grad_enabled())
        rows = labels["marked"].view(-1, 1, 1, 1) & bad
        return denoise(x + torch.where(rows, math.nan, 0.0), sigma, labels["class_labels"])

    return spoil


def test_gradients_are_cleaned_as_the_official_loop_does() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([math.nan, math.inf, -math.inf])
    sid_iteration.clean_gradients([parameter])
    assert parameter.grad.tolist() == [0.0, 1e5, -1e5]


def test_adversarial_iteration_mixes_both_losses_half_and_half() -> None:
    nets, players = recorded_players()
    recorded = load_file(DATA / GENERATOR)
    draws = Draws(recorded["z"], recorded["n"], recorded["u"], recorded["labels"])
    plain = sid_iteration.generator_objective(players, Objective(alpha=1.0), draws).total
    mixed = sid_iteration.generator_objective(players, Objective(alpha=1.0, adversarial=0.01), draws).total
    images = sid.generate(players.generator, draws.z, draws.labels)
    sigma = sid.noise_level(draws.level)
    x = images + sigma * draws.noise
    logits = nets["fake"](x, sigma, draws.labels, return_features=True)[1].mean(1)
    weight = (images - nets["teacher"](x, sigma, draws.labels)).abs().mean((1, 2, 3))
    against = (torch.nn.functional.softplus(-logits).mean() / weight).sum() * images[0].numel() * 0.01
    assert mixed.item() == pytest.approx((0.5 * plain + 0.5 * against).item(), rel=1e-5)
    real = Objective(adversarial=0.01)
    with pytest.raises(ValueError, match="needs real pictures"):
        sid_iteration.fake_score_objective(players, real, draws)
    draws.real = torch.zeros_like(draws.z)
    assert sid_iteration.fake_score_objective(players, real, draws).total.isfinite()


def test_an_iteration_is_the_fake_score_s_step_then_the_generator_s_against_the_new_fake_score() -> None:
    nets, players = recorded_players()
    by_hand = copy.deepcopy(nets)
    draws = recorded_randomness()
    result = train_step(players, draws, Objective(alpha=1.0))
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
    gradients = []
    for part in (0, 2):
        _nets, players = recorded_players()
        draws = recorded_randomness()
        plain = [torch.optim.SGD(p, lr=0.0) for p in (players.fake_parameters, players.generator_parameters)]
        sid_iteration.iterate(
            players, *plain, Objective(), Draws(draws["z_fake"], draws["noise_fake"], draws["rnd_normal"], draws["labels"]),
            Draws(draws["z"], draws["noise"], draws["u"], draws["labels"]), part=part,
        )  # fmt: skip
        gradients.append([p.grad.clone() for p in players.generator_parameters if p.grad is not None])
    assert len(gradients[0]) > 50
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-4 * whole.abs().max().item() + 1e-6)


def test_only_the_network_whose_turn_it_is_gets_gradients() -> None:
    nets, players = recorded_players()
    train_step(players, recorded_randomness(), Objective())
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
    used = (torch.optim.Adam([log_fake], 0.05, betas=(0.0, 0.999)), torch.optim.Adam([scale], 0.01, betas=(0.0, 0.999)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        z, noise, z_fake, noise_fake = (torch.randn(64, 1, 4, 4, generator=generator) for _ in range(4))
        u, rnd_normal = torch.rand(64, 1, 1, 1, generator=generator), torch.randn(64, 1, 1, 1, generator=generator)
        randomness = {"z": z, "u": u, "noise": noise, "rnd_normal": rnd_normal, "z_fake": z_fake, "noise_fake": noise_fake}
        train_step(players, randomness, Objective(alpha=1.0), used)
    assert abs(scale.item()) == pytest.approx(0.5, abs=0.03)


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
    drawn = draws(task, task.objective(settings, 1), torch.Generator().manual_seed(0), 5000, fake)
    empty = drawn.labels["text"][:, 0] == 0
    assert empty.float().mean().item() == pytest.approx(dropped, abs=0.02 if dropped else 0)
    assert torch.equal(drawn.labels["text"][~empty, 0], torch.arange(1.0, 5001)[~empty])


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
    sid_iteration.fake_score_objective(Players(identity, identity, identity, [], []), objective, draws_)
    images, sigma = 0.5 * z + 0.5 * between, levels.of_fake(draws_.level)
    assert torch.equal(seen[0], z) and torch.allclose(seen[1], images)
    assert torch.allclose(seen[2], (1 - sigma) * images + sigma * noise)
