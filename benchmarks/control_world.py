"""The tiny world's teacher tuned by one judge, measured by the other: parts of ``benchmarks.control``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..networks.tiny_unet import karras_sigmas
from ..oracles.tiny import TinyWorldOracle
from ..training.control import Process, rollout
from ..training.finetune import Task
from ..training.loop import autocast
from ..training.lora import Adapters
from ..world.recipe.concepts import held_out_prompts
from ..world.weights import SIGMA_MAX
from .adaptive import reference
from .figures import Array, Claim, bootstrap, frechet
from .world import World, unit_noise

STEPS, LEAST = 10, 0.15  # of the process, and its lowest noise
SHAPE = (32, 8, 8)
TUNED = "tuned"


def process() -> Process:
    """EDM's levels; the highest is far from every picture, so at eta 1 the start is forgotten.

    They end where little is left to decide: below, a LoRA's slightest change costs many nats and nobody sees it.
    """
    return Process.edm(karras_sigmas(STEPS, LEAST, SIGMA_MAX).double())


class Tuned:
    """The teacher with a LoRA.

    Args:
        world: Its teacher is changed for good: a LoRA hangs on it, which is off unless it is asked for.
    """

    def __init__(self, world: World, rank: int, seed: int) -> None:
        self.world = world
        self.adapters = Adapters(world.teacher.network, (TUNED,), rank, seed)
        self.lora = self.adapters.of[TUNED]

    def denoise(self, name: str | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """D(x, sigma, word vectors) with the LoRA ``name``, or without."""

        def network(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            with self.adapters.on(name), autocast():
                denoised: Tensor = self.world.teacher(x, sigma.float(), context)
                return denoised.float()

        return network

    def task(self, prompts: Sequence[str], oracle: TinyWorldOracle) -> Task:
        """Tune for these prompts by this oracle, on decoded pictures."""
        words = list(prompts)
        with torch.no_grad():
            contexts = self.world.context(words)

        def reward(latents: Tensor, rows: Tensor) -> Tensor:
            decoded = self.world.decoder.decode(latents)
            return oracle.reward(((decoded + 1) / 2).movedim(1, -1), [words[int(i)] for i in rows])

        return Task(
            self.denoise(None), self.denoise(TUNED), self.lora, reward, lambda rows: contexts[rows], len(words), process(), SHAPE
        )


@dataclass(frozen=True)
class Measured:
    """Pictures of held-out prompts, by everything that they are judged by; rows are prompts, columns seeds."""

    oracle: Array
    judge: Array
    features: Array
    pictures: Tensor

    def score(self, judge: bool) -> Claim:
        """Mean score, by prompt."""
        return mean_by_prompt(self.judge if judge else self.oracle)

    def diversity(self, index: Array | slice = slice(None)) -> float:
        """Mean of 1 - cosine between the judge's features of two pictures of a prompt."""
        f = self.features[index]
        seeds = f.shape[1]
        return float(np.mean([1 - (f[:, a] * f[:, b]).sum(-1) for a in range(seeds) for b in range(a)]))

    def frechet(self) -> float:
        """Distance to the real pictures in the judge's features."""
        return frechet(self.features.reshape(-1, self.features.shape[-1]), *reference())


def mean_by_prompt(values: Array) -> Claim:
    """The mean of [prompts, seeds], its interval by prompts."""
    means = values.mean(1)
    return bootstrap(lambda index: float(means[index].mean()), len(means))


def measure(world: World, draw: Callable[[list[str], Tensor], Tensor], prompts: int, seeds: int) -> Measured:
    """``draw`` (prompts, unit noise) -> latents, on held-out prompts."""
    words = [p.text() for p in held_out_prompts()[:prompts] for _ in range(seeds)]
    pictures = world.pictures(draw(words, unit_noise(len(words), 77)))
    shape = (prompts, seeds)
    with torch.no_grad():
        oracle, judge = (o.score(pictures, words).double().numpy().reshape(shape) for o in (world.oracle, world.judge))
        features = world.features(pictures).double().numpy().reshape(*shape, -1)
    return Measured(oracle, judge, features, pictures)


def by_teacher(tuned: Tuned, name: str | None) -> Callable[[list[str], Tensor], Tensor]:
    """Draws by the process that tuning is made for, without guidance."""

    def draw(words: list[str], noise: Tensor) -> Tensor:
        task = tuned.task(words, tuned.world.oracle)
        rng, parts = torch.Generator().manual_seed(5), []
        for rows in torch.arange(len(words)).split(48):
            problem = task.problem(rows, 1.0)
            start = noise[rows] * SIGMA_MAX
            network, noises = problem.tuned if name else problem.base, partial(torch.randn, start.shape, generator=rng)
            parts.append(rollout(problem.process, network, start, noises)[-1])
        return torch.cat(parts)

    return draw


def by_student(
    world: World, student: Callable[[Tensor, Tensor, Tensor], Tensor], sigma: float
) -> Callable[[list[str], Tensor], Tensor]:
    """Draws in one step."""

    def draw(words: list[str], noise: Tensor) -> Tensor:
        parts = []
        for rows in torch.arange(len(words)).split(48):
            with torch.no_grad():
                context = world.context([words[i] for i in rows])
                parts.append(student(noise[rows] * sigma, torch.full((len(rows),), sigma), context))
        return torch.cat(parts)

    return draw
