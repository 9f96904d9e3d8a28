"""EDM's augmentation: the authors' numbers for the authors' draws, and every step against what it is by definition."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.training.augment import LABELS, SYM6, AugmentDraws, augment, downsample, reflected_margins, upsample, warp
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

# Made by NVlabs/edm's AugmentPipe with its draws recorded: four pictures 3x16x16, every step done to some and not to others.
GOLDEN = Path(__file__).parents[1] / "data" / "sid" / "augment.safetensors"


def metadata() -> dict[str, str]:
    with safe_open(GOLDEN, "pt") as file:
        return file.metadata()


def only(batch: int = 1, **given: float | list[float]) -> AugmentDraws:
    """Draws that do the ``given`` steps for sure (but where their gates are given too), and no other at p = 1."""
    values = {f.name: torch.full((batch,), 1.0 if f.name.endswith("_gate") else 0.0) for f in fields(AugmentDraws)}
    values["translate_frac"] = torch.zeros(2, batch)
    for name, value in given.items():
        shape = values[name].shape
        values[name] = torch.tensor(value).view(-1, 1).expand(shape) if len(shape) == 2 else torch.tensor(value).expand(batch)
        if not name.endswith("_gate") and f"{name}_gate" not in given:
            values[f"{name}_gate"] = torch.zeros(batch)
    return AugmentDraws(**values)


def wave(x: Tensor, y: Tensor, width: int, height: int) -> Tensor:
    """A smooth picture without symmetries at pixel coordinates that may lie between pixels: [1, 2, *x.shape].

    It is even about the centres of the border pixels, so its reflection there is the formula again.
    """
    u, v = math.pi * x / (width - 1), math.pi * y / (height - 1)
    return torch.stack([u.cos() + 0.5 * (2 * v).cos() + 0.3 * v.cos(), (u * 3).cos() * v.cos() + 0.2 * u.cos()])[None]


def pixels(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pixels' x and y."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return x, y


def moved_wave(forward: Tensor, height: int, width: int) -> Tensor:
    """``wave`` after its plane went through ``forward`` [3, 3], about the centre."""
    x, y = pixels(height, width)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2, 0], dtype=torch.float64)
    out = torch.stack([x, y, torch.ones_like(x)], -1) - centre
    source = out @ torch.linalg.inv(forward).T + centre
    return wave(source[..., 0], source[..., 1], width, height)


def affine(a: float = 1, b: float = 0, c: float = 0, d: float = 1, x: float = 0, y: float = 0) -> Tensor:
    return torch.tensor([[a, b, x], [c, d, y], [0, 0, 1]], dtype=torch.float64)


def clockwise(angle: float) -> Tensor:
    """As seen with y downwards."""
    return affine(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


# --------------------------------------------------------------------------------------------------- golden


def test_the_authors_draws_give_the_authors_pictures_and_labels() -> None:
    golden = load_file(GOLDEN)
    draws = AugmentDraws(**{f.name: golden[f"draws.{f.name}"] for f in fields(AugmentDraws)})
    given = golden["images"].float() / 127.5 - 1
    images, labels = augment(given, draws, float(metadata()["p"]))
    assert largest(images, golden["augmented"]) < 2e-5
    assert largest(labels, golden["labels"]) < 1e-6
    assert largest(given, golden["augmented"]) > 1  # the golden says something


def test_draws_come_in_the_authors_order() -> None:
    golden = load_file(GOLDEN)
    draws = AugmentDraws.draw(4, torch.Generator().manual_seed(int(metadata()["seed"])))
    for f in fields(AugmentDraws):
        torch.testing.assert_close(getattr(draws, f.name), golden[f"draws.{f.name}"], msg=f.name)


# ------------------------------------------------------------------------------------------------- the wavelet


def test_sym6_is_orthonormal_with_six_vanishing_moments() -> None:
    low = torch.tensor(SYM6, dtype=torch.float64)
    for shift in range(0, len(low), 2):
        product = (low[shift:] * low[: len(low) - shift]).sum().item()
        assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-11)
    k = torch.arange(12, dtype=torch.float64)
    high = low.flip(0) * (-1) ** k
    for moment in range(6):
        assert (high * (k / 11) ** moment).sum().item() == pytest.approx(0.0, abs=1e-11)
    assert abs((high * (k / 11) ** 6).sum().item()) > 1e-4


def test_the_filters_agree_with_convolutions() -> None:
    images = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    taps = torch.tensor(SYM6, dtype=torch.float64)
    kernel = torch.outer(taps, taps).expand(3, 1, 12, 12)
    fine = torch.nn.functional.conv_transpose2d(images, kernel, stride=2, padding=5, groups=3)
    assert largest(upsample(images), fine) < 1e-13
    assert largest(downsample(fine), torch.nn.functional.conv2d(fine, kernel, stride=2, groups=3)) < 1e-13


@pytest.mark.parametrize("margins", [(6, 6, 6, 6), (7, 6, 8, 10)])
def test_warp_by_nothing_changes_nothing(margins: tuple[int, int, int, int]) -> None:
    images = torch.randn(2, 3, 16, 11, dtype=torch.float64)
    still, nowhere = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1), torch.zeros(2, 2, dtype=torch.float64)
    assert largest(warp(images, still, nowhere, margins), images) < 1e-11


@pytest.mark.parametrize(
    ("scale", "shift", "margins"),
    [
        (1.0, (0.0, 0.0), (6, 6, 6, 6)),  # half a filter
        (1.0, (-3.5, 2.0), (10, 3, 4, 8)),  # left, right, top, bottom
        (2.0, (0.0, 0.0), (22, 22, 14, 14)),  # as much again as half the picture
        (4.0, (0.0, 0.0), (31, 31, 15, 15)),  # one reflection
        (0.1, (0.0, 0.0), (0, 0, 0, 0)),
    ],
)
def test_margins(scale: float, shift: tuple[float, float], margins: tuple[int, int, int, int]) -> None:
    linear = torch.stack([torch.eye(2) * scale, torch.eye(2) * 0.1])
    assert reflected_margins(linear, torch.tensor([shift, (0.0, 0.0)]), height=16, width=32) == margins


# --------------------------------------------------------------------------------------------------- one step


def test_no_probability_changes_nothing() -> None:
    images = torch.randn(64, 3, 8, 8)
    found, labels = augment(images, AugmentDraws.draw(64, torch.Generator().manual_seed(1)), p=0)
    assert torch.equal(found, images)
    assert labels.shape == (64, 9) and not labels.any()


def test_steps_that_are_off_change_nothing_and_keep_their_labels() -> None:
    images = torch.randn(64, 3, 8, 8)
    draws = AugmentDraws.draw(64, torch.Generator().manual_seed(1))
    found, labels = augment(images, draws, p=1, xflip=0, yflip=0, scale=0, rotate_frac=0, aniso=0, translate_frac=0)
    assert torch.equal(found, images)
    assert labels.shape == (64, 9) and not labels.any()


@pytest.mark.parametrize(("step", "axis"), [("xflip", 3), ("yflip", 2)])
def test_flips_mirror_exactly(step: str, axis: int) -> None:
    images = torch.randn(3, 3, 8, 10)
    found, labels = augment(images, only(3, **{step: [1.0, 0.0, 1.0]}), p=1)
    assert torch.equal(found[0], images[0].flip(axis - 1))
    assert torch.equal(found[1], images[1])
    assert torch.equal(found[2], images[2].flip(axis - 1))
    assert labels[:, LABELS.index(step)].tolist() == [1, 0, 1]
    assert labels.count_nonzero() == 2


def test_a_whole_shift_moves_pixels_and_reflects_at_the_border() -> None:
    images = torch.randn(1, 3, 16, 32, dtype=torch.float64)
    # The std is an eighth of each side: 0.75 and -1 of it are 3 pixels to the right and 2 pixels up.
    found, labels = augment(images, only(translate_frac=[0.75, -1.0]), p=1)
    assert largest(found[..., :14, 3:], images[..., 2:, :29]) < 1e-10
    assert largest(found[..., :14, :3], images[..., 2:, 1:4].flip(3)) < 1e-10
    assert labels.tolist() == [[0, 0, 0, 0, 0, 0, 0, 0.75, -1.0]]


@pytest.mark.parametrize(("size", "shift"), [((32, 32), (0.6, 0.3)), ((24, 40), (-1.1, 0.9))])
def test_a_fractional_shift_of_a_smooth_picture(size: tuple[int, int], shift: tuple[float, float]) -> None:
    height, width = size
    images = wave(*pixels(height, width), width, height)
    found, _ = augment(images, only(translate_frac=list(shift)), p=1)
    expected = moved_wave(affine(x=shift[0] * width / 8, y=shift[1] * height / 8), height, width)
    assert largest(found, expected) < 0.02
    assert largest(images, expected) > 0.3


@pytest.mark.parametrize(("u", "quarters"), [(0.0, 2), (0.75, 1), (0.25, 3)])
def test_turns_are_counter_clockwise(u: float, quarters: int) -> None:
    images = wave(*pixels(32, 32), 32, 32)
    found, labels = augment(images, only(rotate_frac=u), p=1)
    # sym6 is not quite symmetric: its centre lies 0.1 fine pixels off, and what is turned round is off by 0.1 pixels.
    assert largest(found, images.rot90(quarters, (2, 3))) < 0.035
    assert largest(images, images.rot90(quarters, (2, 3))) > 1
    angle = (2 * u - 1) * math.pi
    assert labels[0].tolist() == pytest.approx([0, 0, 0, math.cos(angle) - 1, math.sin(angle), 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(("amount", "factor"), [(5.0, 2.0), (-2.5, 0.5**0.5)])
def test_zoom_by_two_to_the_std(amount: float, factor: float) -> None:
    images = wave(*pixels(32, 32), 32, 32)
    found, labels = augment(images, only(scale=amount), p=1)
    assert largest(found, moved_wave(affine(factor, 0, 0, factor), 32, 32)) < 0.02
    assert labels.tolist() == [[0, 0, amount, 0, 0, 0, 0, 0, 0]]


def test_beyond_one_reflection_there_is_nothing() -> None:
    found, _ = augment(torch.ones(1, 1, 32, 32), only(scale=-15.0), p=1)
    assert found[0, 0, 0, 0].abs() < 1e-6
    assert found[0, 0, 16, 16] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("axis", "x", "y"), [(0.5, 2.0, 0.5), (0.75, 0.5, 2.0), (0.25, 0.5, 2.0)])
def test_stretch_along_an_axis(axis: float, x: float, y: float) -> None:
    images = wave(*pixels(32, 32), 32, 32)
    found, labels = augment(images, only(aniso=5.0, aniso_axis=axis), p=1)
    assert largest(found, moved_wave(affine(x, 0, 0, y), 32, 32)) < 0.03
    angle = (2 * axis - 1) * math.pi
    expected = [0, 0, 0, 0, 0, 5 * math.cos(angle), 5 * math.sin(angle), 0, 0]
    assert labels[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_axis_has_a_gate_of_its_own() -> None:
    images = wave(*pixels(32, 32), 32, 32)
    straight, labels = augment(images, only(aniso=5.0, aniso_axis=0.75, aniso_axis_gate=0.5), p=1)
    assert largest(straight, moved_wave(affine(2, 0, 0, 0.5), 32, 32)) < 0.03
    assert labels[0].tolist() == [0, 0, 0, 0, 0, 5, 0, 0, 0]
    unstretched, labels = augment(images, only(aniso=0.0, aniso_axis=0.7), p=1)
    assert torch.equal(unstretched, images) and not labels.any()


# ---------------------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("size", [(32, 32), (28, 40)])
def test_steps_follow_each_other(size: tuple[int, int]) -> None:
    """Flip, zoom, turn, stretch, shift: one matrix after the other, each by its definition."""
    height, width = size
    draws = only(
        xflip=1.0, yflip=1.0, scale=0.9, rotate_frac=0.6, aniso=1.2, aniso_axis=0.58, translate_frac=[0.5, -0.4]
    )  # fmt: skip
    zoom, stretch, angle, axis = 2**0.18, 2**0.24, 0.2 * math.pi, 0.16 * math.pi
    forward = (
        affine(x=0.5 * width / 8, y=-0.4 * height / 8)
        @ clockwise(-axis) @ affine(stretch, 0, 0, 1 / stretch) @ clockwise(axis)
        @ clockwise(-angle) @ affine(zoom, 0, 0, zoom) @ affine(-1, 0, 0, -1)
    )  # fmt: skip
    found, labels = augment(wave(*pixels(height, width), width, height), draws, p=1)
    assert largest(found, moved_wave(forward, height, width)) < 0.02
    expected = [1, 1, 0.9, math.cos(angle) - 1, math.sin(angle), 1.2 * math.cos(axis), 1.2 * math.sin(axis), 0.5, -0.4]
    assert labels[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_how_often_each_step_is_done() -> None:
    draws = AugmentDraws.draw(20000, torch.Generator().manual_seed(0))
    _, labels = augment(torch.zeros(20000, 1, 1, 1), draws, p=0.12)
    share = (labels != 0).double().mean(0).tolist()
    # A flip's coin halves its share; the axis points along x half of the time.
    assert share == pytest.approx([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12], abs=0.011)
    amounts = labels[:, 2][labels[:, 2] != 0]
    assert amounts.std().item() == pytest.approx(1, abs=0.06)
    assert labels[:, 3].amin().item() == pytest.approx(-2, abs=0.01)


def test_a_picture_does_not_depend_on_how_the_batch_is_split() -> None:
    images = torch.rand(24, 3, 16, 16) * 2 - 1
    draws = AugmentDraws.draw(24, torch.Generator().manual_seed(3))
    whole, labels = augment(images, draws, p=0.5)
    parts = [slice(0, 1), slice(1, 9), slice(9, 24)]
    found = [augment(images[part], draws.rows(part), p=0.5) for part in parts]
    assert largest(torch.cat([f[0] for f in found]), whole) < 2e-4
    assert torch.equal(torch.cat([f[1] for f in found]), labels)
    assert [len(draws.rows(part)) for part in parts] == [1, 8, 15]


def test_pictures_that_stay_keep_their_pixels_beside_others_that_move() -> None:
    images = torch.randn(2, 3, 16, 16)
    draws = only(2, scale=[0.0, 1.0])
    found, _ = augment(images, draws, p=1)
    assert torch.equal(found[0], images[0])
    assert largest(found[1], images[1]) > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(dtype: torch.dtype) -> None:
    images = (torch.rand(4, 3, 16, 16) * 2 - 1).to(dtype)
    draws = AugmentDraws.draw(4, torch.Generator().manual_seed(0))
    found, labels = augment(images, draws, p=1)
    expected, _ = augment(images.float(), draws, p=1)
    assert found.dtype == dtype
    assert labels.dtype == torch.promote_types(dtype, torch.float32)
    assert largest(found, expected) < {torch.float64: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]


def test_the_given_pictures_are_left_alone_and_no_pictures_are_none() -> None:
    images = torch.randn(8, 3, 8, 8)
    copy = images.clone()
    augment(images, AugmentDraws.draw(8, torch.Generator().manual_seed(0)), p=1)
    assert torch.equal(images, copy)
    found, labels = augment(images[:0], AugmentDraws.draw(0, torch.Generator()), p=1)
    assert found.shape == (0, 3, 8, 8) and labels.shape == (0, 9)


def test_draws_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="draws for 1 pictures, but 2"):
        augment(torch.zeros(2, 3, 8, 8), only(1))
