"""How fast and how lean one training step of SiD is, beside the same step written plainly: the published loop.

The step is that of the official CIFAR-10 run on a network small enough for a CPU: DDPM++ of 32 channels at 32x32, three
networks, both halves, both of Adam's steps and the moving average, in one thread (``--threads`` says otherwise). Every
variant has a process of its own, so that its peak memory is its own; the processes take their steps in turn, so that other
work on the machine slows all of them alike, and what is compared is the ratio within a turn.
"""

from __future__ import annotations

import copy
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..networks.edm import EDMPrecond, build_edm
from ..precision import autocast, native_bfloat16
from ..samplers.schedules import INIT_SIGMA
from ..training.augment import AugmentDraws, augment
from ..training.loop import Ema
from ..training.sid import Labels, fake_score_loss, generator_loss, log_normal_level, noise_level
from ..training.sid_iteration import Draws, Objective, clean_gradients, edm_players, iterate
from .figures import Array, Claim, Figures

BATCH, RATE, HALF_LIFE, GIB = 32, 1e-5, 500_000, 2**30
CONFIG: dict[str, Any] = {
    "img_resolution": 32, "img_channels": 3, "augment_dim": 9, "model_type": "SongUNet", "embedding_type": "positional",
    "encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1],
    "model_channels": 32, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip
OFFICIAL = "0.38 to 0.45 CPU seconds a picture and 3.8 GiB, the authors' loop on a machine like ours"


@dataclass(frozen=True)
class Variant:
    """One way to take the step.

    Attributes:
        name: In the table.
        part: Pictures at a time; 0 for the whole batch.
        bfloat16: Autocast to bfloat16.
        plain: The plain baseline of this file.
    """

    name: str
    part: int = 0
    bfloat16: bool = False
    plain: bool = False


PLAIN = Variant("written plainly", plain=True)
VARIANTS = (
    PLAIN, Variant("whole batch"), Variant("16 at a time", part=16), Variant("8 at a time", part=8),
    Variant("bfloat16, whole batch", bfloat16=True), Variant("bfloat16, 8 at a time", part=8, bfloat16=True),
)  # fmt: skip

# ------------------------------------------------------------------------------------- the step, written plainly


def plain_step(nets: Networks, for_fake: Draws, for_generator: Draws) -> None:
    """One iteration as published (Algorithm 1 and the official loop): whole batches, all three graphs kept until the end."""
    start = torch.full((len(for_fake), 1, 1, 1), INIT_SIGMA)
    # The fake score.
    _only(nets.fake, nets)
    nets.fake_optimiser.zero_grad(set_to_none=True)
    images = nets.generator(INIT_SIGMA * for_fake.z, start)
    assert for_fake.augment is not None
    images, augment_labels = augment(images, for_fake.augment, Objective.augment)
    sigma = log_normal_level(for_fake.level)
    denoised = nets.fake(images + sigma * for_fake.noise, sigma, None, augment_labels)
    (fake_score_loss(images, denoised, sigma).sum() / len(images)).backward()
    clean_gradients(nets.fake.parameters())
    nets.fake_optimiser.step()
    # The generator.
    _only(nets.generator, nets)
    nets.generator_optimiser.zero_grad(set_to_none=True)
    images = nets.generator(INIT_SIGMA * for_generator.z, start)
    sigma = noise_level(for_generator.level)
    x = images + sigma * for_generator.noise
    y_real, y_fake = nets.teacher(x, sigma), nets.fake(x, sigma)
    (generator_loss(images, y_real, y_fake).sum() * (100 / len(images))).backward()
    clean_gradients(nets.generator.parameters())
    nets.generator_optimiser.step()


def _only(learner: nn.Module, nets: Networks) -> None:
    for network in (nets.teacher, nets.fake, nets.generator):
        network.requires_grad_(network is learner)


# ----------------------------------------------------------------------------------------------------- our step


@dataclass
class Networks:
    """Three networks of one shape and what trains two of them."""

    teacher: EDMPrecond
    fake: EDMPrecond
    generator: EDMPrecond
    fake_optimiser: torch.optim.Optimizer
    generator_optimiser: torch.optim.Optimizer

    @classmethod
    def make(cls, config: dict[str, Any], seed: int = 0) -> Networks:
        """Random ones: what they know costs nothing."""
        torch.manual_seed(seed)
        teacher = build_edm(config).eval()
        fake, generator = copy.deepcopy(teacher), copy.deepcopy(teacher)
        adam = [torch.optim.Adam(n.parameters(), RATE, betas=(0.0, 0.999), eps=1e-8) for n in (fake, generator)]
        return cls(teacher, fake, generator, *adam)


def draw(rng: torch.Generator, batch: int, config: dict[str, Any], fake: bool) -> Draws:
    """The randomness of half a step."""
    shape = (batch, config["img_channels"], config["img_resolution"], config["img_resolution"])
    z, noise = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    level = (torch.randn if fake else torch.rand)(batch, 1, 1, 1, generator=rng)
    labels: Labels = None
    return Draws(z, noise, level, labels, augment=AugmentDraws.draw(batch, rng) if fake else None)


def stepper(variant: Variant, config: dict[str, Any] = CONFIG, batch: int = BATCH) -> tuple[Networks, Callable[[], None]]:
    """Networks, and one training step of them on a batch, the moving average of the generator included."""
    nets, rng = Networks.make(config), torch.Generator().manual_seed(1)
    players, objective = edm_players(nets.teacher, nets.fake, nets.generator), Objective()
    ema = Ema(nets.generator, HALF_LIFE)

    def step() -> None:
        for_fake, for_generator = (draw(rng, batch, config, fake) for fake in (True, False))
        if variant.plain:
            plain_step(nets, for_fake, for_generator)
        else:
            with autocast(variant.bfloat16):
                iterate(
                    players, nets.fake_optimiser, nets.generator_optimiser, objective, for_fake, for_generator, part=variant.part
                )
        ema.update(nets.generator, batch, batch)

    return nets, step


# -------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Turn:
    """What one step took: CPU and wall seconds, and the most memory that the process has held so far, in bytes."""

    cpu: float
    wall: float
    peak: float


def peak_memory() -> float:
    """The most memory that this process has held, in bytes."""
    if sys.platform.startswith("linux"):
        # Not getrusage's ru_maxrss: a process that was forked and then executed begins with its parent's.
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def timed(step: Callable[[], None]) -> Turn:
    """Take one step."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return Turn(time.process_time() - cpu, time.perf_counter() - wall, peak_memory())


def _serve(variant: Variant, connection: Connection, threads: int) -> None:
    """The life of a variant's process: a step each time it is asked."""
    torch.set_num_threads(threads)
    _, step = stepper(variant)
    while connection.recv():
        connection.send(timed(step))


@contextmanager
def running(variant: Variant) -> Iterator[Callable[[], Turn]]:
    """A process that takes a step of ``variant`` at each call.

    Raises:
        ChildProcessError: At a call, if the process has died.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(variant, there, torch.get_num_threads()), daemon=True)
    process.start()
    there.close()

    def turn() -> Turn:
        try:
            here.send(True)
            return here.recv()
        except (EOFError, BrokenPipeError) as error:
            raise ChildProcessError(f"The process of '{variant.name}' has died; is there enough memory?") from error

    try:
        yield turn
    finally:
        process.kill()
        process.join()


def measure(variants: Sequence[Variant], turns: int, say: Callable[[str], None]) -> dict[Variant, list[Turn]]:
    """Steps of all variants by turns. The first turn warms up and is left out, but for its peak, which is the process's."""
    measured: dict[Variant, list[Turn]] = {variant: [] for variant in variants}
    with ExitStack() as stack:
        take = {variant: stack.enter_context(running(variant)) for variant in variants}
        for number in range(turns + 1):
            say(f"turn {number} of {turns}" if number else "warming up")
            for variant in variants:
                took = take[variant]()
                if number:
                    measured[variant].append(took)
    return measured


# ------------------------------------------------------------------------------------------------------ figures


def row(variant: Variant, turns: Sequence[Turn], plain: Sequence[Turn], batch: int = BATCH) -> dict[str, Any]:
    """One line of the table; ratios are of the steps of one turn, medians over the turns."""
    seconds = np.array([t.cpu for t in turns]) / batch
    ratios = np.array([p.cpu / t.cpu for t, p in zip(turns, plain, strict=True)])
    peak, plain_peak = turns[-1].peak, plain[-1].peak
    return {
        "step": variant.name, "steps/s": float(np.median([1 / t.wall for t in turns])),
        "CPU s a picture": float(np.median(seconds)), "spread": f"{seconds.min():.3f} to {seconds.max():.3f}",
        "times as fast as plain": float(np.median(ratios)), "spread of that": f"{ratios.min():.2f} to {ratios.max():.2f}",
        "peak (GiB)": peak / GIB, "of plain's": peak / plain_peak,
    }  # fmt: skip


def compare(measured: dict[Variant, list[Turn]], batch: int = BATCH) -> Figures:
    """The table, and the claims for the fastest of our steps in float32."""
    plain = measured[PLAIN]
    ours = [v for v in measured if not v.plain and not v.bfloat16]
    best = min(ours, key=lambda v: float(np.median([t.cpu for t in measured[v]])))
    figures = Figures("sid_speed", {
        "config": CONFIG, "batch": batch, "turns": len(plain), "threads": torch.get_num_threads(), "precision": "float32",
        "step": best.name,
        "augmentation": Objective.augment, "official": OFFICIAL, "peak": "of the process, in GiB (2^30 bytes)",
    })  # fmt: skip
    figures.rows = [row(variant, turns, plain, batch) for variant, turns in measured.items()]
    seconds = np.array([t.cpu for t in measured[best]]) / batch
    peak = measured[best][-1].peak
    figures.claims = {
        "sid_cpu_seconds_per_image": _spread(seconds),
        "sid_peak_gb": Claim(peak / GIB, peak / GIB, peak / GIB),
        "sid_speed_ratio_to_plain": _spread(np.array([p.cpu / t.cpu for p, t in zip(plain, measured[best], strict=True)])),
        "sid_memory_ratio_to_plain": Claim(*[peak / plain[-1].peak] * 3),
    }
    return figures


def _spread(values: Array) -> Claim:
    """The median, and least and most."""
    return Claim(float(np.median(values)), float(values.min()), float(values.max()))


def run(quick: bool = False, say: Callable[[str], None] = print) -> Figures:
    """Measure, print the table and the claims. Needs about 10 GiB of memory. bfloat16 only where the CPU has it natively."""
    variants = [v for v in VARIANTS if native_bfloat16() or not v.bfloat16]
    if len(variants) < len(VARIANTS):
        say("This CPU has no native bfloat16: those rows are left out.")
    figures = compare(measure(variants[:3] if quick else variants, 2 if quick else 6, say))
    figures.show()
    print(f"\n{figures.settings['step']}, {figures.settings['precision']}; official: {OFFICIAL}")
    return figures
