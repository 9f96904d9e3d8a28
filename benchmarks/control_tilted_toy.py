"""SiD towards the tilted teacher on ``control_toy``'s mixture, where the tilted law is known exactly.

Teacher and fake score are exact: the latter is the posterior mean over fresh pictures of the generator. What learns is a
one-step generator, a small network that begins as one wide Gaussian over both modes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

from ..training.sid import EdmLevels
from ..training.sid_iteration import Draws, Objective, Players, generator_objective
from ..training.tilted import Tilt
from . import control_toy as toy
from .control_toy import Outcome
from .figures import Figures, mean_of_seeds, print_claims, print_table

matplotlib.use("Agg")

PRICE = 0.5  # that of ``control``'s mixture
BANK, WIDTH = 2048, 0.05  # pictures that the fake score is of, and how far each is smoothed, as they are few in places
LEVELS = EdmLevels(tmax=800)
OURS, HALF, BESIDE = "tilted, SiD's alpha 1", "tilted, SiD's alpha 0.5", "reward beside SiD's own weights"


class Generator(nn.Module):
    """z [B, 1] to x [B, 1]."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, 1),
            )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        """[B, 1] -> [B, 1]."""
        drawn: Tensor = 2.5 * z + self.net(2 * z)
        return drawn


def posterior_mean(bank: Tensor) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The exact denoiser of a sample [N, 1] smoothed by ``WIDTH``: the fake score network that has learned all there is."""

    def denoise(x: Tensor, sigma: Tensor, _labels: Any) -> Tensor:
        nearest = (-((x - bank[:, 0]) ** 2) / (2 * (sigma**2 + WIDTH**2))).softmax(1) @ bank
        mean: Tensor = (WIDTH**2 * x + sigma**2 * nearest) / (WIDTH**2 + sigma**2)
        return mean

    return denoise


def solve(
    alpha: float, way: str, *, updates: int = 2000, batch: int = 256, rate: float = 3e-3, seed: int = 0, draws: int = 100_000
) -> Outcome:
    """Distil towards the law tilted at price ``alpha``, and draw; CPU seconds are those of the updates."""
    generator, rng = Generator(seed), torch.Generator().manual_seed(seed)
    started, reward = time.process_time(), lambda x, _labels: toy.reward(x)
    tilt = None if way == BESIDE else Tilt(reward, alpha)
    objective = Objective(0.5 if way == HALF else 1.0, levels=LEVELS, generator_scale=1.0, tilt=tilt)
    optimiser = torch.optim.Adam(generator.parameters(), rate, (0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        z, noise, bank = (torch.randn(count, 1, generator=rng) for count in (batch, batch, BANK))
        with torch.no_grad():
            fake = posterior_mean(generator(bank))
        players = Players(
            lambda x, sigma, _labels: toy.denoise(x, sigma[:, 0]), fake, lambda x, sigma, _labels: generator(x / sigma), [], []
        )
        optimiser.zero_grad(set_to_none=True)
        loss = generator_objective(players, objective, Draws(z, noise, torch.rand(batch, 1, generator=rng))).total
        if tilt is None:
            loss = loss - toy.reward(generator(z)).sum() / alpha
        (loss / batch).backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    seconds = time.process_time() - started
    with torch.no_grad():
        samples = generator(torch.randn(draws, 1, generator=torch.Generator().manual_seed(seed + 1)))[:, 0]
    return Outcome(samples, seconds)


def run(quick: bool, plot: Path, say: Callable[[str], None]) -> Figures:
    """Each way against the exact law; the plot shows densities."""
    seeds, updates = (1, 200) if quick else (3, 2000)
    figures, drawn = Figures("control-tilted-toy", {"price": PRICE, "seeds": seeds, "updates": updates}), dict[str, Tensor]()
    exact = toy.exact_quantiles(PRICE, "kl", 50_000).float()
    for way in (OURS, HALF, BESIDE):
        measures: dict[str, list[float]] = {"W1": [], "P(x>0)": [], "E r": [], "std where x>0": [], "CPU seconds": []}
        for seed in range(seeds):
            outcome = solve(PRICE, way, updates=updates, seed=seed)
            for key, value in zip(measures, (toy.wasserstein(outcome.samples, PRICE, "kl"), *_told(outcome.samples),
                                             outcome.seconds), strict=True):  # fmt: skip
                measures[key].append(value)
            say(f"{way}, seed {seed}: W1 {measures['W1'][-1]:.4f} in {outcome.seconds:.0f} CPU seconds")
        truth = dict(zip(("P(x>0)", "E r", "std where x>0"), _told(exact), strict=True))
        drawn[way] = outcome.samples
        claims = {key: mean_of_seeds(values) for key, values in measures.items()}
        cells = {key: str(claim) + (f" (exact {truth[key]:.3f})" if key in truth else "") for key, claim in claims.items()}
        figures.rows.append({"way": way, "seeds": seeds, **cells})
        figures.claims |= {f"tilted_toy_{name}": claims[key] for name, key in (("w1", "W1"), ("std", "std where x>0"))
                           if way == OURS}  # fmt: skip
    print_table(figures.rows)
    print_claims(figures.claims)
    draw({"exact": exact, **drawn}, plot)
    return figures


def _told(x: Tensor) -> tuple[float, float, float]:
    return float((x > 0).float().mean()), float(toy.reward(x[:, None]).mean()), float(x[x > 0].std())


def draw(samples: dict[str, Tensor], path: Path) -> None:
    """Histograms."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for number, (name, x) in enumerate(samples.items()):
        color = "0.2" if number == 0 else f"C{number}"
        axis.hist(x.numpy(), bins=160, range=(-4, 4), density=True, histtype="step", color=color, label=name)
    axis.set(title=f"1-D mixture tilted at price {PRICE:g}", xlabel="x", ylabel="density")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
