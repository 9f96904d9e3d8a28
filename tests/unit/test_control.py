"""Stochastic control: closed forms for Gaussians, discrete identities, and small problems solved to the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import control_toy as toy
from comfyui_apprentice.benchmarks.control_memory import Held
from comfyui_apprentice.training import control, control_losses
from comfyui_apprentice.training.control import Problem, Process
from comfyui_apprentice.training.fdivergence import solve_dual
from torch import Tensor, nn

GAUSSIAN = json.loads((Path(__file__).parents[1] / "data" / "control" / "gaussian_closed_form.json").read_text())
CASES = [(case, name) for case in GAUSSIAN["cases"] for name in case["schedules"]]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Gaussian:
    """The exact solution for a prior N(m, S) and r = c.x - (x - q)'Q(x - q) / 2."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.m, self.S = tensor(case["m"]), tensor(case["S"])
        reward, dim = case["reward"], len(case["m"])
        self.c = tensor(reward.get("c", [0.0] * dim))
        self.Q = tensor(reward.get("Q", [[0.0] * dim] * dim))
        self.q = tensor(reward.get("q", [0.0] * dim))
        self.alpha = case["alpha"]

    def reward(self, x: Tensor) -> Tensor:
        gap = x - self.q
        return x @ self.c - torch.einsum("...i,ij,...j->...", gap, self.Q, gap) / 2

    def posterior(self, x: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x0 given x_t = x."""
        gain = a * self.S @ torch.linalg.inv(a * a * self.S + b * b * torch.eye(len(self.m), dtype=torch.float64))
        return self.m + (x - a * self.m) @ gain.T, self.S - a * gain @ self.S

    def value(self, x: Tensor, a: float, b: float) -> Tensor:
        """v(t, x) = alpha log E[exp(r(x0) / alpha) | x_t = x]."""
        mean, cov = self.posterior(x, a, b)
        linear, eye = self.c + self.Q @ self.q, torch.eye(len(self.m), dtype=torch.float64)
        precision = torch.linalg.inv(cov) + self.Q / self.alpha
        h = torch.linalg.solve(cov, mean) + linear / self.alpha
        exponent = (h @ torch.linalg.solve(precision, h) - mean @ torch.linalg.solve(cov, mean)) / 2
        exponent = exponent - self.q @ self.Q @ self.q / (2 * self.alpha)
        return self.alpha * (exponent - torch.logdet(eye + cov @ self.Q / self.alpha) / 2)


@pytest.mark.parametrize(("case", "name"), CASES, ids=lambda v: v if isinstance(v, str) else v["id"])
def test_every_prediction_moves_by_the_gradient_of_the_value(case: dict[str, Any], name: str) -> None:
    """The table's networks before and after, from its own value function by the conversions."""
    exact = Gaussian(case)
    for point in case["schedules"][name]["points"]:
        x, a, b = tensor(point["x"]).requires_grad_(), point["a"], point["b"]
        value = exact.value(x, a, b)
        (grad,) = torch.autograd.grad(value, x)
        assert value.item() == pytest.approx(point["v"], rel=1e-6, abs=1e-6)
        close = {"atol": 1e-6, "rtol": 1e-6}
        torch.testing.assert_close(grad, tensor(point["grad_v"]), **close)
        score = grad / exact.alpha  # control's eq. 4
        torch.testing.assert_close(point["g2"] * score, tensor(point["u_drift"]), **close)  # eq. 3
        for what, shift in (("score", score), ("denoised", b**2 / a * score), ("eps", -b * score)):
            torch.testing.assert_close(tensor(point[f"{what}_pre"]) + shift, tensor(point[f"{what}_star"]), **close)
        if name == "flow":
            moved = tensor(point["eps_star"]) - tensor(point["denoised_star"])
            before = tensor(point["eps_pre"]) - tensor(point["denoised_pre"])
            torch.testing.assert_close(before - point["t"] / (1 - point["t"]) * score, moved, **close)


def test_the_share_of_a_linear_reward_that_is_realised_on_sd15() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = float((1 - betas).prod())
    start = (1 / bar - 1) ** 0.5
    assert [round(Process.edm([start, 0.0], eta).realised_share(), 3) for eta in (1.0, 0.5, 0.0)] == [0.995, 0.739, 0.0]


BARS = tensor([0.005, 0.1, 0.5, 0.9, 1.0])
PROCESSES = {
    "edm": Process.edm([10.0, 3, 1, 0.3, 0]), "vp": Process(BARS.sqrt(), (1 - BARS).sqrt(), tensor([4, 3, 2, 1, 0])),
    "flow": Process.flow([0.99, 0.7, 0.4, 0.1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_known_picture_is_noised_as_the_levels_say(kind: str, eta: float) -> None:
    """Where x0 is certain, a step takes a x0 + b eps to a' x0 + b' eps', whatever eta is; at eta 1 as DDPM's posterior."""
    process = PROCESSES[kind]
    process = Process(process.a, process.b, process.times, eta)
    for k in range(process.steps):
        forward, pull, s = process.step(k)
        a, b, a2, b2 = (float(v) for v in (process.a[k], process.b[k], process.a[k + 1], process.b[k + 1]))
        assert forward * a + pull == pytest.approx(a2)
        assert (forward * b) ** 2 + s * s == pytest.approx(b2 * b2)
        if eta == 1.0 and b2:
            # Bayes: x' | x, x0 with x = (a / a') x' + noise of variance b^2 - (a b' / a')^2.
            variance = 1 / (1 / b2**2 + (a / a2) ** 2 / (b**2 - (a * b2 / a2) ** 2))
            assert s * s == pytest.approx(variance)


def every(process: Process) -> control.Steps:
    """All steps with noise."""
    return control.chosen_steps(process, 0, 0, torch.Generator())


def test_at_eta_one_the_end_forgets_the_start() -> None:
    """Exactly: for unit Gaussian data the correlation of x_K and x_0 is a small a_T, at eta 0 it is 1."""
    for eta, expected in ((1.0, 0.0), (0.0, 1.0)):
        process = Process.edm([*torch.logspace(1.7, -2, 400).tolist(), 0.0], eta)
        memory = 1.0
        for k in range(process.steps):
            forward, pull, _s = process.step(k)
            memory *= forward + pull / (1 + float(process.b[k]) ** 2)
        start = math.sqrt(1 + float(process.b[0]) ** 2)
        assert memory * start == pytest.approx(expected, abs=0.03)
        assert process.realised_share() == pytest.approx(1 - memory**2 * start**2, abs=0.03)


def test_the_lean_adjoint_is_the_gradient_of_the_reward_through_the_base_process() -> None:
    """With the same noise, -grad r / alpha pulled back is the derivative of -r(x_K) / alpha by the state at that level."""
    process, rng = Process.edm([5.0, 2, 1, 0.5, 0]), torch.Generator().manual_seed(0)
    noises = [torch.randn(6, 1, generator=rng, dtype=torch.float64) for _ in range(process.steps)]
    left = iter(noises)
    start = torch.randn(6, 1, generator=rng, dtype=torch.float64) * 5
    states = control.rollout(process, toy.denoise, start, lambda: next(left))
    _values, gradient = control_losses.reward_gradient(toy.reward, states[-1])
    adjoints = control_losses.lean_adjoint(process, toy.denoise, states, -gradient / 0.5)
    assert len(adjoints) == process.steps
    for level in (1, 2, 3):
        x = at = states[level].clone().requires_grad_()
        for k in range(level, process.steps):
            forward, pull, s = process.step(k)
            x = forward * x + pull * toy.denoise(x, process.time(k, x)) + s * noises[k]
        (expected,) = torch.autograd.grad(-toy.reward(x).sum() / 0.5, at)
        torch.testing.assert_close(adjoints[level - 1], expected)


def test_the_exact_control_has_no_gradient_on_average() -> None:
    """For a Gaussian prior and a linear reward the adjoint is known without error, so the loss is 0 at the optimum."""
    process, alpha, c = Process.edm([20.0, 8, 3, 1, 0.4, 0.1, 0]), 0.5, 0.8

    def base(x: Tensor, sigma: Tensor, _which: Tensor) -> Tensor:
        return x / (1 + sigma[:, None] ** 2)

    # The discrete optimum of each step: the base pulls the reward's gradient back by known factors.
    back, shift = 1.0, [0.0] * process.steps
    for k in range(process.steps - 1, -1, -1):
        forward, pull, s = process.step(k)
        shift[k] = s * s / pull * back * c / alpha
        back *= forward + pull / (1 + float(process.b[k]) ** 2)

    def tuned(x: Tensor, sigma: Tensor, which: Tensor) -> Tensor:
        moved = torch.tensor([shift[int((process.b - t).abs().argmin())] for t in sigma])[:, None]
        return base(x, sigma, which) + moved.to(x) + 0 * parameter

    parameter = nn.Parameter(torch.zeros(()))
    problem = Problem(base, tuned, lambda x: c * x[:, 0], alpha, process, lambda g, n: torch.randn(n, 1, generator=g) * 20)
    report = control_losses.adjoint_step(problem, torch.Generator().manual_seed(0), 64, every(process))
    assert report.loss == pytest.approx(0, abs=1e-9)
    # Its cost is the KL of the path: half the squared shift of each step in units of its noise.
    cost = sum((process.step(k)[1] * shift[k] / process.step(k)[2]) ** 2 / 2 for k in control.noisy_steps(process))
    assert report.kl == pytest.approx(cost, rel=1e-5)


def test_levels_of_little_noise_are_left_to_the_last_step() -> None:
    whole = Process.edm([10.0, 3, 1, 0.3, 0.05, 0.01, 0])
    assert whole.ending_at(0.1).b.tolist() == [10.0, 3, 1, 0.3, 0]
    assert whole.ending_at(100.0).b.tolist() == [10.0, 3, 0]
    assert Process.flow([1.0, 0.5, 0.02, 0]).ending_at(0.1).times.tolist() == [1.0, 0.5, 0]


def test_steps_are_the_last_ones_and_a_random_rest() -> None:
    process = Process.edm([*torch.linspace(10, 0.5, 20).tolist(), 0.0])
    assert control.noisy_steps(process) == list(range(19))  # the last step, to the clean picture, has no noise
    seen: set[int] = set()
    for seed in range(40):
        steps = control.chosen_steps(process, 6, 3, torch.Generator().manual_seed(seed))
        assert len(steps) == 6 and list(steps)[-3:] == [16, 17, 18] and list(steps) == sorted(steps)
        seen |= set(steps)
    assert seen == set(range(19))
    assert every(process) == dict.fromkeys(range(19), 1.0)


def test_the_reported_kl_of_chosen_steps_is_on_average_that_of_all() -> None:
    """Over every choice that there is, each as likely: the mean is the full sum, exactly."""
    process = Process.edm([8.0, 4, 2, 1.5, 1, 0.5, 0.2, 0])
    base = lambda x, sigma, which: x / (1 + sigma[:, None] ** 2)  # noqa: E731
    parameter = nn.Parameter(torch.zeros(()))

    def tuned(x: Tensor, sigma: Tensor, which: Tensor) -> Tensor:
        return base(x, sigma, which) + 0.1 / sigma[:, None] + 0 * parameter  # the last steps cost most

    problem = Problem(base, tuned, lambda x: x[:, 0], 1.0, process, lambda g, n: torch.randn(n, 1, generator=g) * 8)

    def kl(steps: control.Steps) -> float:
        return control_losses.adjoint_step(problem, torch.Generator().manual_seed(0), 2, steps).kl

    choices = {}
    for seed in range(60):
        steps = control.chosen_steps(process, 4, 2, torch.Generator().manual_seed(seed))
        choices[tuple(steps)] = steps
    assert len(choices) == 6  # two of the four early ones
    whole = kl(every(process))
    expected = sum((process.step(k)[1] * 0.1 / float(process.b[k]) / process.step(k)[2]) ** 2 / 2 for k in range(6))
    assert whole == pytest.approx(expected, rel=1e-5)
    costs = [kl(steps) for steps in choices.values()]
    assert sum(costs) / 6 == pytest.approx(whole, rel=1e-5) and max(costs) > 1.001 * min(costs)


def solved(alpha: float, divergence: str, **settings: Any) -> tuple[float, float]:
    samples = toy.solve(alpha, divergence, **{"steps": 30, "updates": 150, "batch": 256, "draws": 10_000, **settings}).samples
    return float((samples > 0).float().mean()), float(toy.reward(samples[:, None]).mean())


def exact(alpha: float, divergence: str) -> tuple[float, float]:
    x = toy.exact_quantiles(alpha, divergence, 20_000).float()
    return float((x > 0).float().mean()), float(toy.reward(x[:, None]).mean())


@pytest.mark.parametrize(("divergence", "alpha"), [("kl", 0.5), ("half_chi2", 0.7)])
def test_adjoint_matching_reaches_the_tilted_law(divergence: str, alpha: float) -> None:
    before = exact(1e6, "kl")
    for reached, expected, base in zip(solved(alpha, divergence), exact(alpha, divergence), before, strict=True):
        assert abs(reached - expected) < 0.3 * abs(expected - base)


def tune(step: Any, updates: int, alpha: float = 0.5) -> Tensor:
    """The toy by another algorithm: samples after ``updates`` of Adam."""
    process, network, rng = toy.levels(15), toy.Control(0), torch.Generator().manual_seed(0)

    def start(generator: torch.Generator, size: int) -> Tensor:
        return torch.randn(size, 1, generator=generator) * toy.SIGMA_MAX

    problem = Problem(toy.denoise, network, toy.reward, alpha, process, start)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(updates):
        optimiser.zero_grad()
        step(problem, rng)
        optimiser.step()
    return problem.draw(torch.Generator().manual_seed(1), 20_000)[-1][:, 0]


def test_path_kl_reaches_the_tilted_law_and_without_a_price_it_collapses() -> None:
    tilted = tune(lambda problem, rng: control_losses.path_kl_step(problem, rng, 128), 100)
    assert float((tilted > 0).float().mean()) == pytest.approx(exact(0.5, "kl")[0], abs=0.12)
    collapsed = tune(lambda problem, rng: control_losses.path_kl_step(problem, rng, 128), 25, alpha=1e-3)
    assert float((collapsed > 0).float().mean()) > 0.97
    assert collapsed.std() < 0.4 * tilted.std()


def test_a_preview_raises_the_reward_at_once() -> None:
    samples = tune(lambda problem, rng: control_losses.preview_step(problem, rng, 128), 10)
    assert float(toy.reward(samples[:, None]).mean()) > exact(1e6, "kl")[1] + 0.01


def test_direct_tuning_moves_every_picture_to_its_proximal_point() -> None:
    """r = -k (x - q)^2 / 2 and G(z) = z: x goes to (alpha x / spread^2 + k q) / (alpha / spread^2 + k)."""
    k, q, alpha, spread = 2.0, 1.5, 0.5, 0.7
    line, rng = nn.Linear(1, 1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        line.weight.fill_(1)
        line.bias.fill_(0)
    problem = Problem(
        lambda x, _t, _w: x, lambda x, _t, _w: line(x), lambda x: -k * (x[:, 0] - q) ** 2 / 2, alpha, Process.edm([1.0, 0.0]),
        lambda g, n: torch.randn(n, 1, generator=g),
    )  # fmt: skip
    optimiser = torch.optim.Adam(line.parameters(), lr=0.02)
    for _ in range(400):
        optimiser.zero_grad()
        control_losses.direct_step(problem, rng, 256, spread)
        optimiser.step()
    stiff = alpha / spread**2
    assert line.weight.item() == pytest.approx(stiff / (stiff + k), abs=0.01)
    assert line.bias.item() == pytest.approx(k * q / (stiff + k), abs=0.02)


def test_weighted_regression_leads_to_the_weighted_law() -> None:
    """In one round, on own pictures with the weights of the optimum; oracles need no gradient."""
    process, network, rng = toy.levels(60), toy.Control(0), torch.Generator().manual_seed(0)
    start = torch.randn(20_000, 1, generator=rng) * toy.SIGMA_MAX
    x0 = control.rollout(process, toy.denoise, start, lambda: torch.randn(20_000, 1, generator=rng))[-1]
    weights = solve_dual(toy.reward(x0), 0.5).weights.float()
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(400):
        rows, levels = torch.randint(20_000, (512,), generator=rng), torch.randint(60, (512,), generator=rng)
        noise = torch.randn(512, 1, generator=rng)
        optimiser.zero_grad()
        control_losses.weighted_regression_step(network, toy.denoise, process, x0[rows], weights[rows], levels, noise).backward()
        optimiser.step()
    final = control.rollout(process, network, start, lambda: torch.randn(20_000, 1, generator=rng))[-1]
    assert float((final > 0).float().mean()) == pytest.approx(exact(0.5, "kl")[0], abs=0.1)


def test_weighted_regression_learns_nothing_of_errors_in_the_drawing() -> None:
    """Pictures that no network drew, but weights of 1: there is nothing to learn, though a plain regression would."""
    process, network, rng = toy.levels(60), toy.Control(0), torch.Generator().manual_seed(0)
    wrong, ones = torch.randn(256, 1, generator=rng) + 5, torch.ones(256)
    levels, noise = torch.randint(60, (256,), generator=rng), torch.randn(256, 1, generator=rng)
    drew = network.forward
    control_losses.weighted_regression_step(network, drew, process, wrong, ones, levels, noise).backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-4 for p in network.parameters())
    control_losses.weighted_regression_step(network, drew, process, wrong, 2 * ones, levels, noise).backward()
    assert max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None) > 1e-2


def test_a_tuned_start_makes_up_for_a_process_with_memory() -> None:
    """At eta 0 only the start decides; picked by the exact value of a linear reward, the law is the tilted one."""
    alpha, c, sigma = 0.5, 0.4, 10.0
    var = 1 + sigma**2

    def value(x: Tensor) -> Tensor:
        # x0 | x ~ N(x / var, sigma^2 / var): v = c x / var + c^2 sigma^2 / (2 alpha var)
        return c * x[:, 0] / var + c * c * sigma**2 / (2 * alpha * var)

    nu = lambda g, n: torch.randn(n, 1, generator=g) * math.sqrt(var)  # noqa: E731

    def tilted_start(generator: torch.Generator, count: int) -> Tensor:
        drawn = nu(generator, count * 64)
        places = control.tilted_choice(value(drawn).view(count, 64), alpha, generator)
        return drawn.view(count, 64, 1)[torch.arange(count), places]

    process = Process.edm([*torch.logspace(1, -2, 200).tolist(), 0.0], eta=0.0)
    base = lambda x, s, _which: x / (1 + s[:, None] ** 2)  # noqa: E731
    means = []
    for begin in (nu, tilted_start):
        x = begin(torch.Generator().manual_seed(0), 20_000)
        means.append(float(control.rollout(process, base, x, lambda: torch.zeros(1))[-1].mean()))
    # The start knows of x0 all but a hundredth; v(T, .) tilts by c / alpha times that.
    assert means[0] == pytest.approx(0, abs=0.03)
    assert means[1] > 0.09 * c / alpha


def test_a_start_without_a_score_is_passed_over() -> None:
    nan, rng = math.nan, torch.Generator().manual_seed(0)
    values = tensor([[nan, 1.0, 3.0], [nan, nan, -5.0], [nan, nan, nan], [-math.inf, 2.0, math.inf]])
    for alpha in (1e-6, 1.0, 1e6):
        weights = control.tilted_weights(values, alpha)
        assert bool(weights.isfinite().all()) and torch.allclose(weights.sum(1), torch.ones(4, dtype=weights.dtype))
        assert not weights[0, 0] and weights[1].tolist() == [0, 0, 1] and weights[2].tolist() == [1 / 3] * 3
        assert weights[3].tolist() == [0, 0, 1]
        assert torch.equal(weights[:1, 1:], (values[:1, 1:] / alpha).softmax(1))
    assert all(control.tilted_choice(values, 1.0, rng)[1] == 2 for _ in range(20))


def test_what_cannot_be_a_process_is_refused() -> None:
    with pytest.raises(ValueError, match="to 0 at the end"):
        Process.edm([10.0, 1.0, 0.1])
    with pytest.raises(ValueError, match="must fall"):
        Process.edm([1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="has no gradient"):
        control_losses.reward_gradient(lambda x: x.detach()[:, 0], torch.zeros(2, 1))


@pytest.mark.parametrize("algorithm", ["adjoint_matching", "path_kl"])
def test_memory_is_that_of_one_network_however_many_steps_there_are(algorithm: str) -> None:
    def bytes_held(steps: int) -> int:
        network = toy.Control(0, width=256)
        start = lambda g, n: torch.randn(n, 1, generator=g) * toy.SIGMA_MAX  # noqa: E731
        problem = Problem(toy.denoise, network, toy.reward, 0.5, toy.levels(steps), start)
        rng = torch.Generator().manual_seed(0)
        if algorithm == "adjoint_matching":
            return Held().measure(lambda: control_losses.adjoint_step(problem, rng, 64, every(problem.process), part=64))
        return Held().measure(lambda: control_losses.path_kl_step(problem, rng, 64))

    few, many = bytes_held(8), bytes_held(64)
    # A step more holds its state, 64 numbers, and nothing of the network, whose layers are 256 wide.
    assert (many - few) / 56 <= 2 * 64 * 4
    assert few < 12 * 64 * 256 * 4 * 2
