"""What each way of fine-tuning holds in memory for its backward passes, on the tiny world's U-Net, over the number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..networks.preconditioning import karras_sigmas
from ..training import control, control_losses
from ..training.control import Problem, Process
from ..world.recipe.sampling import World, unit_noise
from ..world.weights import SIGMA_MAX
from .control_world import LEAST, TUNED, Tuned
from .figures import Claim, Figures, print_table

MIB = 2**20


class Held:
    """How many bytes autograd holds for backward passes at most, whatever machine it runs on; parameters count when held."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def measure(self, call: Callable[[], object]) -> int:
        """The peak during ``call``."""
        held = self

        class Kept:
            def __init__(self, value: Tensor) -> None:
                self.value, self.size = value, value.untyped_storage().nbytes()
                held.now += self.size
                held.peak = max(held.peak, held.now)

            def __del__(self) -> None:
                held.now -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
            call()
        return self.peak


def through_everything(problem: Problem, generator: torch.Generator, batch: int) -> None:
    """Gradients of the reward straight through the sampler, with nothing computed again: what others are compared with."""
    process, x = problem.process, problem.start(generator, batch)
    which = torch.arange(batch)
    for k in range(process.steps):
        forward, pull, s = process.step(k)
        x = forward * x + pull * problem.tuned(x, process.time(k, x), which)
        x = x + s * problem.noise(generator, x) if s else x
    (-problem.reward(x).mean()).backward()


def calls(problem: Problem, batch: int) -> dict[str, Callable[[], object]]:
    """One update of each algorithm."""
    rng, process = torch.Generator().manual_seed(0), problem.process

    def weighted() -> None:
        levels = torch.arange(batch) % len(control.noisy_steps(process))
        pictures, ones = unit_noise(batch, 0), torch.ones(batch)
        noise = unit_noise(batch, 1)
        control_losses.weighted_regression_step(problem.tuned, problem.base, process, pictures, ones, levels, noise).backward()

    steps = control.chosen_steps(process, 6, 2, rng)
    return {
        "adjoint_matching": partial(control_losses.adjoint_step, problem, rng, batch, steps, part=batch),
        "path_kl": partial(control_losses.path_kl_step, problem, rng, batch),
        "preview": partial(control_losses.preview_step, problem, rng, batch),
        "weighted_regression": weighted,
        "plain backpropagation": partial(through_everything, problem, rng, batch),
    }


def run(quick: bool, say: Callable[[str], None], counts: Sequence[int] = (), batch: int = 4) -> Figures:
    """MiB for each algorithm and number of steps, and beside them what one picture's network and judge take.

    Args:
        counts: Numbers of steps, if not the usual ones.
        batch: Pictures at a time, up to 4.

    Raises:
        FileNotFoundError: The tiny world's weights are not there.
    """
    counts = counts or ((4, 8) if quick else (10, 20, 40))
    tuned = Tuned(World(), 16, 0)
    figures = Figures("control-memory", {"steps": counts, "batch": batch})
    rows = torch.arange(batch)
    held: dict[str, list[float]] = {}
    for steps in counts:
        task = tuned.task(["panda", "pizza", "rose", "car"], tuned.world.oracle)
        task.process = Process.edm(karras_sigmas(steps, LEAST, SIGMA_MAX).double())
        for name, call in calls(task.problem(rows, 1.0), batch).items():
            held.setdefault(name, []).append(Held().measure(call) / MIB)
            tuned.lora.zero_grad(set_to_none=True)
        say(f"{steps} steps")
    figures.rows = [
        {"algorithm": name, **{f"{n} steps, MiB": round(m, 1) for n, m in zip(counts, mib, strict=True)}}
        for name, mib in held.items()
    ]
    figures.findings["parts"] = parts(tuned, batch)
    first, last = counts[0], counts[-1]
    growth = {name: mib[-1] / mib[0] for name, mib in held.items()}
    value = growth["adjoint_matching"]
    figures.claims["memory_growth"] = Claim(value, value, value)
    print_table(figures.rows)
    print(f"alone, MiB: {figures.findings['parts']}")
    print(
        f"memory_growth (adjoint matching, {last} steps over {first}): {value:.3f}; plain: {growth['plain backpropagation']:.2f}"
    )
    return figures


def parts(tuned: Tuned, batch: int) -> dict[str, float]:
    """MiB of one forward and backward pass of the network, and of decoder and oracle."""
    task = tuned.task(["panda", "pizza", "rose", "car"], tuned.world.oracle)
    x, rows, sigma = unit_noise(batch, 0), torch.arange(batch), torch.ones(batch)
    network: Callable[[], Any] = lambda: tuned.denoise(TUNED)(x, sigma, task.labels(rows)).sum().backward()  # noqa: E731
    judge: Callable[[], Any] = lambda: control_losses.reward_gradient(lambda y: task.reward(y, rows), x)  # noqa: E731
    mib = {"network": round(Held().measure(network) / MIB, 1), "decoder and oracle": round(Held().measure(judge) / MIB, 1)}
    tuned.lora.zero_grad(set_to_none=True)
    return mib
