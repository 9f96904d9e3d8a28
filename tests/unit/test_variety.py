"""What keeps a student's variety: closed forms of the teacher's way, losses that vanish where they should, and whole runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from comfyui_apprentice.training import variety as v
from comfyui_apprentice.training.distill import Settings
from comfyui_apprentice.training.sid import add_noise
from comfyui_apprentice.training.sid_iteration import Draws, Objective, generator_objective
from sid_goldens import recorded_players
from torch import Tensor

MEAN, STD = 0.7, 0.5


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """D of pictures that are N(MEAN, STD^2) in every element."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def on_the_way(x: Tensor, sigma: float | Tensor, lower: float | Tensor) -> Tensor:
    """Where the probability flow of ``gaussian`` takes ``x`` from ``sigma`` to ``lower``, exactly."""
    return MEAN + (x - MEAN) * torch.as_tensor((STD**2 + lower**2) / (STD**2 + sigma**2)).sqrt()


def flow_gaussian(x: Tensor, t: Tensor) -> Tensor:
    """Likewise of flow models, whose x is (1 - t) y + t n."""
    return MEAN + (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2) * (x - (1 - t) * MEAN)


def levels(first: float, last: float, steps: int) -> list[float]:
    return torch.linspace(math.log(first), math.log(last), steps + 1, dtype=torch.float64).exp().tolist()


def test_the_whole_way_leads_to_the_picture_of_the_probability_flow() -> None:
    x = 10 * torch.randn(5, 1, 2, 2, dtype=torch.float64)
    target = v.anchor_target(gaussian, x, [*levels(10.0, 1e-3, 4000), 0.0])
    assert torch.allclose(target, on_the_way(x, 10.0, 0.0), atol=2e-3)


def test_the_way_of_flow_models_is_the_same_formula() -> None:
    """At t = 1 the law is N(0, 1), and the flow of Gaussians is y = mean + std z."""
    z = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    target = v.anchor_target(flow_gaussian, z, (1 - torch.arange(4001, dtype=torch.float64) / 4000).tolist())
    assert torch.allclose(target, MEAN + STD * z, atol=2e-3)


def test_a_part_of_the_way_is_dp_dmd_s_mean_velocity_as_a_picture() -> None:
    """At t = 1, x_1 - v is where the mean velocity v = (x_1 - x_K) / (1 - t_K) leads."""
    start, reached, t = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2), 0.75
    assert torch.allclose(v.straight_end(start, reached, 1.0, t), start - (start - reached) / (1 - t), atol=1e-5)


def test_where_the_teacher_goes_straight_every_part_of_its_way_has_the_same_end() -> None:
    picture, start = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    for path in ([1.0, 0.6], [1.0, 0.9, 0.3], [1.0, 0.5, 0.0]):
        assert torch.allclose(v.anchor_target(lambda x, level: picture, start, path), picture, atol=1e-5)


def test_the_anchor_of_several_steps_goes_as_far_as_the_student_s_second() -> None:
    even = lambda first, steps: [first * (1 - i / steps) for i in range(steps + 1)]  # noqa: E731
    whole = v.variety_of("anchor", (1.0,), even).path
    assert len(whole) == 13 and whole[0] == 1.0 and whole[-1] == 0.0
    several = v.variety_of("anchor", (1.0, 0.7, 0.4), even).path
    assert several[-1] == 0.7 and several[:-1] == tuple(level for level in whole if level > 0.7)


def test_consistency_is_nothing_for_the_flow_s_own_map_and_something_for_the_teacher() -> None:
    """In the limit of short steps; the teacher's own D is not consistent."""
    path = torch.tensor([*levels(10.0, 1e-3, 4000), 0.0], dtype=torch.float64)
    place = torch.randint(len(path) - 1, (256,))
    x = MEAN + (STD**2 + path[place] ** 2).sqrt().view(-1, 1, 1, 1) * torch.randn(256, 1, 2, 2, dtype=torch.float64)

    def loss(student: v.Denoised) -> float:
        return v.consistency_loss(student, gaussian, x, place, path).mean().item()

    assert loss(lambda x, level: on_the_way(x, level, 0.0)) < 0.02 * loss(gaussian)


def test_at_the_lowest_level_the_target_is_the_picture_and_the_student_is_not_asked_at_zero() -> None:
    asked = []

    def student(x: Tensor, level: Tensor) -> Tensor:
        asked.append(level)
        return torch.zeros_like(x)

    x = torch.randn(2, 1, 2, 2)
    loss = v.consistency_loss(student, lambda x, level: x / 2, x, torch.tensor([1, 1]), torch.tensor([1.0, 0.5, 0.0]))
    weight = 0.5**0.5 / 0.5 / ((1 / 0.5 + 0.5**0.5 / 0.5) / 2)
    assert torch.allclose(loss, weight * v.pseudo_huber(x / 2)) and all(bool((level > 0).all()) for level in asked)


@pytest.mark.parametrize("kind", [v.ANCHOR, v.CONSISTENCY])
def test_the_loss_stands_beside_sid_s_and_leaves_out_pictures_that_are_nan(kind: str) -> None:
    nets, players = recorded_players()
    shape = players.generator(torch.zeros(1, *_shape(nets)), torch.ones(1, 1, 1, 1), _labels(nets, 1)).shape[1:]
    made = Draws(torch.randn(6, *shape), torch.randn(6, *shape), torch.rand(6, 1, 1, 1), _labels(nets, 6))
    plain = Objective(alpha=1.0, generator_scale=1.0)
    more = replace(plain, variety=v.variety_of(kind, plain.sigmas, v.karras_path))
    difference = generator_objective(players, more, made).total - generator_objective(players, plain, made).total
    alone = [
        generator_objective(players, o, made.rows(slice(0, 5))).total for o in (more, plain)
    ]
    assert difference > 0
    made.z[5] = math.nan
    without = generator_objective(players, more, made)
    assert without.dropped == 1 and without.total.item() == pytest.approx(alone[0].item(), rel=1e-4)


def _shape(nets: dict[str, torch.nn.Module]) -> tuple[int, int, int]:
    network = nets["teacher"]
    return int(network.img_channels), int(network.img_resolution), int(network.img_resolution)  # type: ignore[arg-type]


def _labels(nets: dict[str, torch.nn.Module], count: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.arange(count), int(nets["teacher"].label_dim)).float()  # type: ignore[arg-type]


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="variety is 'wide', not one of: off, anchor, consistency"):
        Settings(variety="wide")


def test_noise_of_sid_s_own_form_starts_the_way() -> None:
    """The anchor begins where the student does: at sigma_0 z."""
    seen: list[Tensor] = []

    def teacher(x: Tensor, level: Tensor, labels: object) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    z = torch.randn(2, 1, 2, 2)
    kind = v.Variety(v.ANCHOR, (2.5, 1.0, 0.0), 1.0)
    v.variety_loss(kind, teacher, teacher, None, None, 1.0, add_noise, z, z, torch.rand(2, 1, 1, 1), z, 1)
    assert torch.equal(seen[0], 2.5 * z)
