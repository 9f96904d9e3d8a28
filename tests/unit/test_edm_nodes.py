"""SiD's noise levels, class labels and grids, with torch alone."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_apprentice.networks import class_names
from comfyui_apprentice.networks.class_names import choose_labels, class_name, is_choice, label_choices, one_hot
from comfyui_apprentice.samplers.edm import sid_levels, sid_sigmas, start_scale, tile
from comfyui_apprentice.samplers.presets import preset_sigmas
from comfyui_apprentice.samplers.schedules import timestep_sigma


class ContinuousEDM:
    """Stands for the sampling of an EDM network."""


class CONST:
    """Stands for a flow model's."""


class Discrete:
    """Stable Diffusion's."""

    num_timesteps = 1000
    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tensor(timestep_sigma(float(timestep)))


def test_one_step_starts_where_the_papers_start() -> None:
    assert sid_sigmas(ContinuousEDM()).tolist() == [2.5, 0.0]
    assert sid_levels(Discrete()) == [625.0]
    # SiD-LSG's input is sqrt(1 - abar_625) z
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[625]
    sigma = sid_sigmas(Discrete())[0].double()
    torch.testing.assert_close(sigma / (1 + sigma**2).sqrt(), (1 - abar).sqrt(), rtol=1e-5, atol=0)


def test_few_steps_fall_evenly() -> None:
    assert sid_levels(ContinuousEDM(), 4) == [2.5, 1.875, 1.25, 0.625]
    for n in range(1, 17):
        assert sid_levels(Discrete(), n) == [math.floor(625 * (n - i) / n + 1e-9) for i in range(n)]
    assert sid_levels(Discrete(), 3, init_timestep=999) == [999.0, 666.0, 333.0]
    for n in (1, 2, 3, 4):
        assert torch.equal(sid_sigmas(Discrete(), n), preset_sigmas("sid-lsg", n))


def test_flow_models_and_impossible_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="flow model"):
        sid_levels(CONST())
    for steps in (0, 17):
        with pytest.raises(ValueError, match="1 to 16 steps"):
            sid_levels(ContinuousEDM(), steps)


def test_the_highest_level_starts_from_sigma_too() -> None:
    assert start_scale(2.5, 80.0) == 1.0
    for sigma in (80.0, 79.9999, 14.6146):
        assert start_scale(sigma, 80.0 if sigma > 15 else sigma) * math.sqrt(1 + sigma**2) == pytest.approx(sigma)


def test_labels_spread_over_a_batch() -> None:
    assert choose_labels("each in turn", 0, 0, 12, 10) == [*range(10), 0, 1]
    assert choose_labels("by number", 7, 0, 2, 10) == [7, 7]
    assert choose_labels("CIFAR-10 7: horse", 0, 0, 2, 10) == [7, 7]
    assert choose_labels("ImageNet 999: whatever it is called", 0, 0, 1, 1000) == [999]
    for choice in ("each in turn", "random", "none"):
        assert choose_labels(choice, 0, 0, 3, 0) == [None] * 3
    assert choose_labels("none", 0, 0, 2, 10) == [None, None]


def test_random_labels_depend_on_seed_and_place_alone() -> None:
    many = choose_labels("random", 0, 5, 1000, 10)
    assert choose_labels("random", 0, 5, 3, 10) == many[:3]
    assert choose_labels("random", 0, 6, 1000, 10) != many
    assert all(60 < many.count(label) < 140 for label in range(10))


@pytest.mark.parametrize(
    ("choice", "number", "classes", "message"),
    [
        ("by number", 10, 10, "no class 10"),
        ("by number", -1, 10, "no class -1"),
        ("by number", 0, 0, "knows no classes"),
        ("CIFAR-10 7: horse", 0, 0, "knows no classes"),
        ("CIFAR-10 7: horse", 0, 1000, "knows 1000 classes"),
        ("CIFAR-10 12: x", 0, 10, "no class 12"),
        ("horse", 0, 10, "There is no label 'horse'"),
    ],
)
def test_wrong_labels_are_one_sentence(choice: str, number: int, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        choose_labels(choice, number, 0, 1, classes)
    assert str(caught.value).count(". ") == 0


def test_every_choice_is_one_and_names_are_told() -> None:
    choices = label_choices()
    assert len(choices) == len(set(choices)) == 4 + 10 + 1000
    assert all(is_choice(choice) for choice in choices)
    assert choices[4] == "CIFAR-10 0: airplane" and choices[14] == "ImageNet 0: tench"
    assert is_choice("ImageNet 3: named otherwise elsewhere")
    assert not any(is_choice(choice) for choice in ("horse", "CIFAR-10 10: x", "ImageNet 1000: x", "ImageNet", ""))
    assert [class_name(7, classes) for classes in (10, 1000, 4)] == ["horse", class_names.imagenet()[7], "class 7"]
    assert class_name(None, 10) == ""


def test_without_torchvision_classes_go_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    class_names.imagenet.cache_clear()
    try:
        assert class_names.imagenet() == ()
        assert class_name(7, 1000) == "class 7"
        assert len(label_choices()) == 14
        assert choose_labels("ImageNet 7: cock", 0, 0, 1, 1000) == [7]
    finally:
        class_names.imagenet.cache_clear()


def test_label_vectors() -> None:
    assert torch.equal(one_hot([1, None, 0], 3), torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 0, 0]]))
    assert one_hot([None], 0).shape == (1, 1)


def test_tiles_lie_row_by_row() -> None:
    images = torch.arange(5.0)[:, None, None, None].expand(5, 2, 3, 1)
    assert tile(images)[0, ::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 0]]
    assert tile(images, 2)[0, ::2, ::3, 0].tolist() == [[0, 1], [2, 3], [4, 0]]
    assert tile(images, 50).shape == (1, 2, 15, 1)
    assert torch.equal(tile(images[:1]), images[:1])
    assert tile(images[:4]).shape == (1, 4, 6, 1)
