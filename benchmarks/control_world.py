"""The tiny world's teacher and student tuned by one judge, measured by the other: parts of ``benchmarks.control``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..networks.preconditioning import karras_sigmas
from ..oracles.tiny import TinyWorldOracle
from ..precision import autocast
from ..samplers.schedules import tiny_world_sigmas
from ..training.control import Process, rollout
from ..training.fdivergence import NoOptimumError, alpha_for_reward, solve_dual
from ..training.finetune_task import Settings, Task
from ..training.lora import Adapters
from ..training.run_folder import RunFolder
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.frechet import frechet, reference
from ..world.recipe.sampling import World, unit_noise
from ..world.weights import SIGMA_MAX
from .figures import Array, Claim, bootstrap

STEPS, LEAST = 10, 0.15  # of the process, and its lowest noise
SHAPE = (32, 8, 8)
TUNED = "tuned"


def process() -> Process:
    """EDM's levels; the highest is far from every picture, so at eta 1 the start is forgotten.

    They end where little is left to decide: below, a LoRA's slightest change costs many nats and nobody sees it.
    """
    return Process.edm(karras_sigmas(STEPS, LEAST, SIGMA_MAX).double())


class Tuned:
    """The teacher, or its student in one step, with a LoRA.

    Args:
        world: Its network is changed for good: a LoRA hangs on it, which is off unless it is asked for.
    """

    def __init__(self, world: World, rank: int, seed: int, student: bool = False) -> None:
        self.world = world
        self.around = world.student() if student else world.teacher
        self.process = Process.edm([*tiny_world_sigmas(1), 0.0]) if student else process()
        self.adapters = Adapters(self.around.network, (TUNED,), rank, seed)
        self.lora = self.adapters.of[TUNED]

    def denoise(self, name: str | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """D(x, sigma, word vectors) with the LoRA ``name``, or without."""

        def network(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            with self.adapters.on(name), autocast():
                denoised: Tensor = self.around(x, sigma.float(), context)
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
            self.denoise(None), self.denoise(TUNED), self.lora, reward, lambda rows: contexts[rows], len(words), self.process,
            SHAPE,
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Pictures of held-out prompts, by everything that they are judged by; rows are prompts, columns seeds."""

    oracle: Array
    judge: Array
    features: Array
    pictures: Tensor

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


def point_of(m: Measured) -> dict[str, float]:
    """For plots."""
    scores = {"oracle": float(m.oracle.mean()), "judge": float(m.judge.mean())}
    return {**scores, "diversity": m.diversity(), "Frechet": m.frechet()}


def against(before: Measured, after: Measured) -> dict[str, Claim]:
    """What tuning changed, with intervals by prompts."""
    return {
        "reward_gain": mean_by_prompt(after.oracle - before.oracle),
        "unseen_judge_gain": mean_by_prompt(after.judge - before.judge),
        "diversity_ratio": bootstrap(lambda i: after.diversity(i) / before.diversity(i), len(before.oracle), 400),
    }


def black_box_claims(before: Measured, path: Measured, black_box: Measured) -> dict[str, Claim]:
    """What an oracle teaches that only scores, and which part that is of what path KL gains by its gradient."""
    changed, rise = against(before, black_box), (path.oracle - before.oracle).mean(1)
    gain = (black_box.oracle - before.oracle).mean(1)
    return {
        "blackbox_reward_gain": changed["reward_gain"], "blackbox_unseen_gain": changed["unseen_judge_gain"],
        "blackbox_diversity_ratio": changed["diversity_ratio"],
        "blackbox_over_path_kl": bootstrap(lambda i: float(gain[i].mean() / rise[i].mean()), len(gain)),
    }  # fmt: skip


def evaluations(settings: Settings, prompts: int, steps: int) -> int:
    """Passes of the network in a whole run, forward ones; a pass backward counts two. Draws and base rewards are among them.

    Of each picture: its draw; what is computed again on the way back; base and tuned network at each step that is learned from.
    """
    noisy, count = steps - 1, min(settings.count or steps - 1, max(steps - 1, 1))
    forward, backward = {
        "adjoint_matching": (steps + noisy + 2 * count, noisy + count), "path_kl": (2 * (steps + noisy), steps + noisy),
        "weighted_regression": (2, 1), "preview": (steps, 1), "direct": (2, 1),
        "diffusion_nft": (steps + 2 * count, count) if steps > 1 else (6, 2),
    }[settings.algorithm]  # fmt: skip
    pools = settings.rounds * settings.pool if settings.algorithm == "weighted_regression" else 0
    return settings.updates * settings.batch * (forward + 2 * backward) + (pools + settings.draws) * prompts * steps


def row_of(name: str, m: Measured, changed: dict[str, Claim]) -> dict[str, Any]:
    """For the table."""
    point = point_of(m)
    return {
        "law": name, "oracle": round(point["oracle"], 2), "gain": within(changed["reward_gain"]),
        "judge": round(point["judge"], 2), "gain of it": within(changed["unseen_judge_gain"]),
        "diversity": round(point["diversity"], 3), "over before": within(changed["diversity_ratio"]),
        "Frechet": round(point["Frechet"], 3),
    }  # fmt: skip


def within(claim: Claim) -> str:
    """A value and its interval, short."""
    return f"{claim.value:.2f} ({claim.lo:.2f} to {claim.hi:.2f})"


def measure(world: World, draw: Callable[[list[str], Tensor], Tensor], prompts: int, seeds: int) -> Measured:
    """``draw`` (prompts, unit noise) -> latents, on held-out prompts."""
    words = [p.text() for p in held_out_prompts()[:prompts] for _ in range(seeds)]
    pictures = world.pictures(draw(words, unit_noise(len(words), 77)))
    shape = (prompts, seeds)
    with torch.no_grad():
        oracle, judge = (o.score(pictures, words).double().numpy().reshape(shape) for o in (world.oracle, world.judge))
        features = world.features(pictures).double().numpy().reshape(*shape, -1)
    return Measured(oracle, judge, features, pictures)


def kept_run(path: Path, settings: Any, **more: Any) -> RunFolder:
    """The folder of a run with these settings, new or to go on with.

    Raises:
        ValueError: It holds a run with others.
    """
    run = RunFolder(path, "give another --work")
    run.claim({**asdict(settings), **more})
    return run


def drawn_by(tuned: Tuned, name: str | None) -> Callable[[list[str], Tensor], Tensor]:
    """Draws by the process that tuning is made for, without guidance; with the LoRA ``name``, or without."""

    def draw(words: list[str], noise: Tensor) -> Tensor:
        task = tuned.task(words, tuned.world.oracle)
        rng, parts = torch.Generator().manual_seed(5), []
        for rows in torch.arange(len(words)).split(48):
            problem = task.problem(rows, 1.0)
            start = noise[rows] * float(problem.process.b[0])
            network, noises = problem.tuned if name else problem.base, partial(torch.randn, start.shape, generator=rng)
            parts.append(rollout(problem.process, network, start, noises)[-1])
        return torch.cat(parts)

    return draw


def exact_laws(base: Measured, gains: Sequence[float], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What the optimal laws earn, without any tuning: the base's many pictures of each prompt, weighed by w.

    Args:
        gains: By how much the oracle's mean score rises; the strength is solved for, the same for all prompts.
        names: Divergences.

    Returns:
        For each divergence, as far as its pictures reach: alpha, both judges' means, the diversity, and the effective number
        of pictures a prompt.
    """
    rewards, lines = torch.from_numpy(base.oracle), dict[str, list[dict[str, Any]]]()
    for name in names:
        for gain in gains:
            try:
                alpha = alpha_for_reward(rewards, float(rewards.mean()) + gain, name)
                solutions = [solve_dual(row, alpha, name) for row in rewards]
            except (ValueError, NoOptimumError):
                continue
            w = np.stack([s.weights.numpy() for s in solutions]) / rewards.shape[1]
            lines.setdefault(name, []).append({
                "alpha": alpha, "oracle": float((w * base.oracle).sum(1).mean()), "judge": float((w * base.judge).sum(1).mean()),
                "diversity": weighed_diversity(base.features, w), "ess": float(np.mean([s.ess for s in solutions])),
            })  # fmt: skip
    return lines


def weighed_diversity(features: Array, weights: Array) -> float:
    """``Measured.diversity`` of pictures that count by their weights [prompts, draws], which sum to 1 for each prompt."""
    alike = np.einsum("pad,pbd->pab", features, features)
    pairs = weights[:, :, None] * weights[:, None, :] * (1 - np.eye(weights.shape[1]))
    return float(np.mean(((1 - alike) * pairs).sum((1, 2)) / pairs.sum((1, 2))))
