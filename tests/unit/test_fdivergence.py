"""Optimal laws under f-divergences: against quadrature tables, closed forms, and each divergence's own definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.training.fdivergence import (
    DIVERGENCES,
    NoOptimumError,
    alpha_for_kl,
    alpha_for_reward,
    divergence,
    expected_reward,
    kl_to_base,
    solve_dual,
    surrogate_reward,
    wright_omega,
)
from torch import Tensor

TABLE = json.loads((Path(__file__).parents[1] / "data" / "control" / "fdiv_table.json").read_text())
NAMES = {"chi2_half": "half_chi2", "chi2kl": "half_chi2_kl", "forward_kl": "forward_kl"}
ALL = [*DIVERGENCES, "alpha:0.3", "alpha:0.7", "alpha:-0.5", "alpha:1.6"]


def f_of(name: str) -> Callable[[Tensor], Tensor]:
    """The canonical f that a name stands for, written out."""
    order = float(name.removeprefix("alpha:")) if name.startswith("alpha:") else 0.0
    half_chi2, kl = lambda t: (t - 1) ** 2 / 2, lambda t: t * t.log() - t + 1
    return {
        "kl": kl, "half_chi2": half_chi2, "half_chi2_kl": lambda t: half_chi2(t) + kl(t),
        "forward_kl": lambda t: -t.log() + t - 1,
        "js2": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(), "jeffreys": lambda t: (t - 1) * t.log(),
    }.get(name, lambda t: (t ** (1 - order) - (1 - order) * t - order) / (order * (order - 1)))  # fmt: skip


def grid() -> tuple[Tensor, Tensor]:
    """A quadrature of the table's prior: points, and their probabilities."""
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    base = TABLE["base"]
    density = torch.zeros_like(x)
    for w, m, s in zip(base["w"], base["mean"], base["std"], strict=True):
        density += w * torch.exp(-((x - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi))
    return x, density / density.sum()


def bump(x: Tensor) -> Tensor:
    return torch.exp(-(((x - 2.4) / 0.9) ** 2) / 2)


def name_of(golden: str) -> str:
    return NAMES.get(golden, golden.replace("_", ":"))


@pytest.mark.parametrize("row", [r for r in TABLE["rows"] if r["alpha"]], ids=lambda r: f"{r['divergence']}-{r['alpha']}")
def test_the_optimum_is_the_tables(row: dict[str, Any]) -> None:
    x, p = grid()
    rewards = bump(x) if row["reward"] == "bump" else torch.tanh(x)
    solution = solve_dual(rewards, row["alpha"], name_of(row["divergence"]), p)
    q = p * solution.weights
    assert solution.lam == pytest.approx(row["lam"], abs=1e-5)
    assert float(q @ rewards) == pytest.approx(row["E_r"], abs=1e-5)
    assert float(q @ x) == pytest.approx(row["mean"], abs=1e-5)
    assert float(q[x > 0].sum()) == pytest.approx(row["mode_mass_right"], abs=1e-5)
    cost = float(p @ f_of(name_of(row["divergence"]))(solution.weights.clamp(min=1e-300)))
    assert cost == pytest.approx(row["D_f"], abs=1e-5)
    assert float(q @ rewards) - row["alpha"] * cost == pytest.approx(row["objective"], abs=1e-5)
    assert 1 / float(p @ solution.weights.square()) == pytest.approx(row["ess_fraction"], abs=1e-5)
    density = torch.tensor(row["density_at"], dtype=torch.float64)
    places = torch.searchsorted(x, torch.tensor([-4 + 0.25 * i for i in range(33)], dtype=torch.float64) - 1e-9)
    torch.testing.assert_close(q[places] / (x[1] - x[0]), density, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_every_divergence_is_canonical_and_its_parts_belong_together(name: str) -> None:
    div, f = divergence(name), f_of(name)
    t = torch.cat([torch.ones(1), torch.linspace(0.05, 6, 60)]).double().requires_grad_()
    (slope,) = torch.autograd.grad(f(t).sum(), t, create_graph=True)
    assert float(f(t)[0]) == pytest.approx(0, abs=1e-12) and float(slope[0]) == pytest.approx(0, abs=1e-12)
    (curvature,) = torch.autograd.grad(slope.sum(), t)
    torch.testing.assert_close(curvature, div.curvature(t.detach()))
    y = slope.detach().requires_grad_()
    torch.testing.assert_close(div.weight(y).detach(), t.detach())
    (steepness,) = torch.autograd.grad(div.log_weight(y).sum(), y)
    torch.testing.assert_close(steepness, 1 / (t.detach() * curvature))


@pytest.mark.parametrize("name", ALL)
def test_nothing_does_better_than_the_optimum(name: str) -> None:
    """Moving a little mass anywhere lowers E_q[r] - alpha D_f."""
    rng = torch.Generator().manual_seed(0)
    r = torch.rand(400, generator=rng, dtype=torch.float64)
    solution, f = solve_dual(r, 0.6, name, bound=1.0), f_of(name)

    def objective(w: Tensor) -> float:
        return float((w * r).mean() - 0.6 * f(w.clamp(min=1e-300)).mean())

    best = objective(solution.weights)
    for _ in range(50):
        moved = torch.randn(400, generator=rng, dtype=torch.float64) * 0.05 * solution.weights.clamp(min=0.01)
        moved = (solution.weights + moved - moved.mean()).clamp(min=0)
        assert objective(moved / moved.mean()) < best


def test_wright_omega_solves_its_equation_everywhere() -> None:
    z = torch.tensor([-700.0, -30, -1, 0, 0.5, 1, 2, 30, 1e6], dtype=torch.float64, requires_grad=True)
    u = wright_omega(z)
    torch.testing.assert_close(u + u.exp(), z)
    (gradient,) = torch.autograd.grad(u.sum(), z)
    torch.testing.assert_close(gradient, 1 / (1 + u.exp()))


def test_kl_has_its_closed_form() -> None:
    r = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solution = solve_dual(r, 0.7)
    assert solution.lam == pytest.approx(0.7 * math.log(float((r / 0.7).exp().mean())), abs=1e-9)
    torch.testing.assert_close(solution.weights, (r / 0.7).softmax(0) * 1000)


def test_the_standard_error_is_the_spread_over_samples() -> None:
    rng = torch.Generator().manual_seed(2)
    for name in ("kl", "half_chi2", "js2", "jeffreys"):
        lams, errors = [], []
        for _ in range(150):
            solution = solve_dual(torch.randn(200, generator=rng, dtype=torch.float64).sigmoid(), 1.5, name)
            lams.append(solution.lam)
            errors.append(solution.standard_error)
        assert sum(errors) / 150 == pytest.approx(float(torch.tensor(lams).std()), rel=0.15), name


def zeta(s: float) -> float:
    n = 20_000
    return sum(k**-s for k in range(1, n)) + n ** (1 - s) / (s - 1) + n**-s / 2


@pytest.mark.parametrize("dim", [3, 4, 6])
def test_where_forward_kl_has_no_density_it_says_so(dim: int) -> None:
    """N(0, I_d) under exp(-|x|^2 / 2) has an optimum only for alpha >= 1 / zeta(d / 2)."""
    x = torch.randn(200_000, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    r, least = torch.exp(-x.square().sum(1) / 2), 1 / zeta(dim / 2)
    for bound in (None, 1.0):
        with pytest.raises(NoOptimumError, match=r"No density is optimal .* Raise alpha"):
            solve_dual(r, 0.8 * least, "forward_kl", bound=bound)
        assert solve_dual(r, 1.25 * least, "forward_kl", bound=bound).weights.mean() == pytest.approx(1)
    assert solve_dual(r, 0.1 * least, "kl").weights.mean() == pytest.approx(1)


def test_in_two_dimensions_forward_kl_always_has_one() -> None:
    x = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert solve_dual(torch.exp(-x.square().sum(1) / 2), 0.15, "forward_kl").ess > 10


def test_a_plateau_of_best_pictures_is_no_single_one() -> None:
    assert solve_dual(torch.tensor([0.0] * 90 + [1.0] * 10), 0.01, "forward_kl").weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("name", ["kl", "half_chi2_kl", "js2", "forward_kl", "jeffreys", "alpha:0.5"])
def test_the_surrogate_reward_makes_a_kl_problem_with_the_same_optimum(name: str) -> None:
    r = torch.rand(500, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    solution = solve_dual(r, 0.5, name, bound=1.0)
    again = solve_dual(surrogate_reward(r, solution.lam, 0.5, name), 0.5, "kl")
    torch.testing.assert_close(again.weights, solution.weights)
    assert again.lam == pytest.approx(0, abs=1e-9)


def test_equal_stiffness_is_equal_cost_of_a_small_tilt() -> None:
    r = torch.rand(20_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    spreads = [float(solve_dual(r, 20 / divergence(name).stiffness, name, bound=1.0).weights.std()) for name in ALL]
    assert max(spreads) / min(spreads) < 1.02


@pytest.mark.parametrize("name", ["kl", "half_chi2", "jeffreys", "js2"])
def test_strength_by_a_target(name: str) -> None:
    r = torch.randn(1000, generator=torch.Generator().manual_seed(5), dtype=torch.float64).sigmoid()
    by_kl = solve_dual(r, alpha_for_kl(r, 0.2, name), name)
    assert kl_to_base(by_kl) == pytest.approx(0.2, abs=1e-6)
    by_reward = solve_dual(r, alpha_for_reward(r, 0.6, name), name)
    assert expected_reward(r, by_reward) == pytest.approx(0.6, abs=1e-6)


def test_a_target_for_several_prompts_is_for_their_mean() -> None:
    r = torch.randn(3, 300, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * torch.tensor([[1.0], [2.0], [0.1]])
    alpha = alpha_for_kl(r, 0.3)
    assert sum(kl_to_base(solve_dual(row, alpha)) for row in r) / 3 == pytest.approx(0.3, abs=1e-6)


def test_bad_input_is_told_in_words() -> None:
    r = torch.rand(10)
    for bad, words in (
        (lambda: solve_dual(r, 0.0), "must be above 0"),
        (lambda: solve_dual(torch.tensor([1.0, math.nan]), 1.0), "finite numbers"),
        (lambda: solve_dual(torch.zeros(0), 1.0), "finite numbers"),
        (lambda: solve_dual(r, 1.0, "chi"), "There is no divergence 'chi'"),
        (lambda: solve_dual(r, 1.0, "alpha:x"), "There is no divergence"),
        (lambda: solve_dual(r + 1, 1.0, "js2", bound=1.0), "above the bound"),
        (lambda: alpha_for_kl(r, 9.0), "can't be seen on 10 samples"),
        (lambda: alpha_for_reward(r, 5.0), "out of reach"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()
