"""Algorithm 1 of arXiv 2312.10835, on numbers: line by line, both strategies, and what must never happen."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_apprentice.gate.decision import judge, keep_better
from comfyui_apprentice.gate.thresholds import absolute
from comfyui_apprentice.samplers.adaptive import Collaboration, adaptive_collaboration, refine, regenerate
from torch import Tensor

NAN = math.nan
Z = torch.tensor([1.0, 2.0, 3.0, 4.0])


def collaborate(
    rho: list[float], improved: list[float], tau: float | Tensor = 0.5, margin: float = 0.0
) -> tuple[Collaboration, list[list[int]]]:
    """S doubles the noise, T takes it from 100; the scores are given. Also the places that T was asked for."""
    asked: list[list[int]] = []

    def teacher(start: Tensor, rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return 100 - start

    def oracle(x: Tensor, rows: Tensor) -> Tensor:
        return torch.where(x > 50, torch.tensor(improved)[rows], torch.tensor(rho)[rows])

    return adaptive_collaboration(lambda z: 2 * z, oracle, teacher, Z, tau, regenerate(Z), margin), asked


def test_the_weak_ones_alone_go_to_the_teacher_and_the_better_of_two_stays_in_its_place() -> None:
    result, asked = collaborate([0.9, 0.1, 0.5, 0.3], [0.0, 0.7, 0.0, 0.2])
    assert asked == [[1, 3]]
    assert result.x.tolist() == [2, 98, 6, 8]
    assert result.rho.tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3])
    assert result.rejected.tolist() == [False, True, False, True]
    assert result.replaced.tolist() == [False, True, False, False]


def test_without_a_margin_every_rejected_picture_is_the_teachers_as_in_the_paper() -> None:
    result, _ = collaborate([0.9, 0.1, 0.5, 0.3], [0.0, 0.0, 0.0, 0.0], margin=-math.inf)
    assert result.x.tolist() == [2, 98, 6, 96] and result.replaced.equal(result.rejected)


def test_the_teacher_is_not_called_where_all_pass_and_draws_all_where_none_does() -> None:
    result, asked = collaborate([0.9, 0.8, 0.7, 0.6], [1.0] * 4)
    assert not asked and result.x.tolist() == [2, 4, 6, 8]
    result, asked = collaborate([0.9, 0.8, 0.7, 0.6], [1.0] * 4, tau=math.inf)
    assert asked == [[0, 1, 2, 3]] and result.x.tolist() == [99, 98, 97, 96]


def test_an_empty_batch_is_an_empty_batch() -> None:
    z = torch.zeros(0, 3, 4, 4)
    result = adaptive_collaboration(lambda z: z, lambda x, _: x.mean((1, 2, 3)), lambda x, _: x, z, 0.5, regenerate(z))
    assert result.x.shape == z.shape and result.rho.shape == result.rejected.shape == (0,)


def test_each_picture_may_have_a_threshold_of_its_own() -> None:
    _, asked = collaborate([0.5, 0.5, 0.5, 0.5], [1.0] * 4, tau=torch.tensor([0.4, 0.5, 0.6, NAN]))
    assert asked == [[2, 3]]


def test_a_draft_without_a_score_goes_to_the_teacher_and_a_teachers_picture_without_one_never_stays() -> None:
    result, asked = collaborate([NAN, NAN, 0.1, 0.9], [0.2, NAN, NAN, 1.0])
    assert asked == [[0, 1, 2]]
    assert result.x.tolist() == [99, 4, 6, 8]


def test_refinement_starts_from_the_draft_with_its_own_noise_at_the_rollbacks_level() -> None:
    starts: list[Tensor] = []

    def teacher(start: Tensor, rows: Tensor) -> Tensor:
        starts.append(start)
        return start

    eps, flow = torch.tensor([0.1, 0.2, 0.3, 0.4]), lambda x, sigma, noise: (1 - sigma) * x + sigma * noise
    rho = torch.tensor([0.0, 1.0, 1.0, 0.0])
    adaptive_collaboration(lambda z: 2 * z, lambda _, rows: rho[rows], teacher, Z, 0.5, refine(0.25, eps, flow))
    torch.testing.assert_close(starts[0], torch.tensor([0.75 * 2 + 0.25 * 0.1, 0.75 * 8 + 0.25 * 0.4]))


@pytest.mark.parametrize("margin", [-math.inf, 0.0, 0.15])
def test_the_gates_verdicts_are_those_of_the_algorithm(margin: float) -> None:
    """What Judge and Keep Better decide, on many scores with ties and NaNs."""
    generator = torch.Generator().manual_seed(0)
    rho, rho_t = ((10 * torch.rand(40, generator=generator)).round() / 10 for _ in range(2))
    rho[3], rho[7], rho_t[7], rho_t[9] = NAN, NAN, NAN, NAN
    z = torch.arange(40)
    scores = torch.cat([rho, rho_t])
    result = adaptive_collaboration(lambda z: z, lambda x, _: scores[x], lambda x, _: x + 40, z, 0.5, regenerate(z), margin)
    verdict = judge(absolute(rho.tolist(), 0.5), rho.tolist(), [""] * 40, oracle="", fingerprint="", mode="absolute", value=0.5)
    assert verdict.rejected == result.rejected.nonzero().flatten().tolist()
    after = keep_better(verdict, {row: float(rho_t[row]) for row in verdict.rejected}, margin)
    assert [j.decision == "improved" for j in after] == result.replaced.tolist()
    torch.testing.assert_close(torch.tensor([j.score for j in after]), result.rho, equal_nan=True)
