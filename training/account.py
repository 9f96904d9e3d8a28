"""What a training run holds on its card at most, part by part, and what to turn down, in order, until it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from .metering import Pass
from .optimisers import ADAFACTOR, ADAM, ADAM_8BIT, state_bytes

SID_LORA, SID_FULL, REWARD = METHODS = ("SiD LoRA", "SiD full copy", "Reward Finetune")
GIB = 2**30
CONTEXT = 3 * GIB // 4  # of CUDA itself, about half a GiB, and of its libraries' workspaces; an estimate
SLACK = 0.9  # of the account, below which a card's free memory certainly doesn't do
_LEAST_RANK, _LEAST_SIDE = 8, 512
UNACCOUNTED = RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError
"""What networks raise that don't run without values."""


@dataclass(frozen=True)
class Job:
    """What decides how much a run holds.

    Attributes:
        method: One of ``METHODS``.
        width, height: Of the pictures.
        part: Pictures at a time.
        rank: Of the LoRAs.
        checkpointing: Whether blocks are computed again.
        apart: Whether each pass of a network is computed again as a whole, picture by picture (``recompute.apart``).
        fp8: Whether the frozen base is in 8 bits.
        packed: Whether it is packed as GGUF does.
        optimiser: See ``optimisers``.
        dtype: What networks compute in, "bf16" or the like.
        guided: Whether the fake score in its training, the same where it judges, and the teacher have guidance.
        varied: Whether a loss that keeps the variety is beside SiD's, with a pass of the generator more.
        pleased: Whether an oracle's reward is beside SiD's loss.
    """

    method: str = SID_LORA
    width: int = 1024
    height: int = 1024
    part: int = 1
    rank: int = 64
    checkpointing: bool = True
    apart: bool = False
    fp8: bool = False
    optimiser: str = ADAM
    dtype: str = "bf16"
    guided: tuple[bool, bool, bool] = (True, True, True)
    varied: bool = False
    pleased: bool = False
    packed: bool = False

    @property
    def base(self) -> str:
        """What the frozen base is kept in, in a word."""
        return "GGUF" if self.packed else "fp8" if self.fp8 else self.dtype


@dataclass(frozen=True)
class Account:
    """Bytes by part, at the moment when most is held."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size >= GIB // 20)
        return f"{self.total / GIB:.1f} GiB ({parts})"


class Sketch(Protocol):
    """A network without memory, of which sizes can be asked."""

    def weights(self, job: Job) -> int:
        """Bytes of the network that is frozen, or of one that learns (float32)."""

    def learned(self, job: Job) -> Sequence[Sequence[int]]:
        """Shapes of what one of the networks learns."""

    def passed(self, job: Job, rows: int, learns: bool) -> Pass:
        """Of one pass of ``rows`` pictures and back; to what is learned too, if it ``learns``."""

    def judged(self, job: Job) -> tuple[int, Pass]:
        """Bytes of VAE and oracle, and their pass."""


def account(sketch: Sketch, job: Job) -> Account:
    """What ``job`` holds at most."""
    shapes = sketch.learned(job)
    numbers = sum(_size(shape) for shape in shapes)
    copies = 1 if job.method == REWARD else 2
    lora = job.method != SID_FULL
    parts = {f"base ({job.base}, frozen)": sketch.weights(job)}
    if lora:
        name = "LoRA" if copies == 1 else "LoRAs of student and fake score"
        parts[f"{name}, rank {job.rank} (fp32)"] = 4 * copies * numbers
    else:
        parts["student and fake score (fp32)"] = 4 * copies * numbers
    parts["student's average"] = 4 * numbers
    parts[f"optimiser's states ({job.optimiser})"] = copies * state_bytes(job.optimiser, shapes)
    parts["gradients"] = 4 * numbers
    step = 4 * numbers if job.optimiser == ADAM else 0  # Adam's own work, all tensors at once
    weights, judged = sketch.judged(job) if job.method == REWARD or job.pleased else (0, Pass(0, 0))
    parts["VAE and oracle" if weights else "text encoders, VAE (put away)"] = weights
    if job.method == REWARD:
        held = max(sketch.passed(job, job.part, True).peak, judged.peak)
    else:  # the oracle's way back comes while SiD's passes are held
        held = sid_activations(sketch, job) + judged.peak
    again = "blocks computed again" if job.checkpointing else "all kept"
    parts[f"activations ({again}{', pass by pass' if job.apart else ''})"] = max(held, step)
    return Account({**parts, "CUDA and workspace (estimate)": CONTEXT})


def sid_activations(sketch: Sketch, job: Job) -> int:
    """What SiD's passes hold at most (``sid_iteration``): the fake score's step, and the generator's.

    In the generator's, its own pass, the fake score's and the teacher's are there together until the backward pass has gone
    through them, last first; guidance doubles a pass's pictures. Pass by pass, one picture's pass is there at a time.
    """
    if job.apart:
        rows = job.part * (3 + job.guided[1] + job.guided[2])
        return sketch.passed(job, 1, True).peak + 2 * rows * job.width * job.height  # latents: 64 bytes for 8 x 8 pixels
    own, judging, teaching = (job.part * (2 if guided else 1) for guided in job.guided)
    generator = sketch.passed(job, job.part, True)
    fake, teacher = sketch.passed(job, judging, False), sketch.passed(job, teaching, False)
    backwards = [generator.peak, generator.kept + fake.peak, generator.kept + fake.kept + teacher.peak]
    if job.varied:
        backwards.append(generator.kept + fake.kept + teacher.kept + generator.peak)
    return max(sketch.passed(job, own, True).peak, *backwards)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


# ------------------------------------------------------------------------------------------------------ what to turn down


def turned_down(job: Job) -> Iterator[tuple[str, Job]]:
    """One change after the other, each on top of those before: from those that cost nothing to those that cost most."""
    if job.part != 1:
        yield "at_once 1", (job := replace(job, part=1))
    if not job.checkpointing:
        yield "gradient_checkpointing on (a third slower)", (job := replace(job, checkpointing=True))
    if not job.apart and job.method != REWARD:
        yield "pass by pass (a quarter slower; taken by itself where it is needed)", (job := replace(job, apart=True))
    while job.method != SID_FULL and job.rank > _LEAST_RANK:
        yield f"rank {job.rank // 2}", (job := replace(job, rank=job.rank // 2))
    if not job.fp8 and not job.packed and job.method != SID_FULL:
        yield "base in fp8 (weight_dtype of Load Diffusion Model)", (job := replace(job, fp8=True))
    for kind in (ADAM_8BIT, ADAFACTOR):
        if state_bytes(kind, [(4096, 4096)]) < state_bytes(job.optimiser, [(4096, 4096)]):
            yield f"optimiser {kind}", (job := replace(job, optimiser=kind))
    while min(job.width, job.height) > _LEAST_SIDE:
        job = replace(job, width=_smaller(job.width), height=_smaller(job.height))
        yield f"{job.width} x {job.height}", job


def _smaller(side: int) -> int:
    return max(_LEAST_SIDE, side * 3 // 4 // 64 * 64)


@dataclass(frozen=True)
class Step:
    """A row of a plan: what was changed last, and the account of the job then."""

    change: str
    job: Job
    account: Account

    def as_json(self) -> dict[str, Any]:
        """For files."""
        return {"change": self.change, "bytes": self.account.total, "parts": dict(self.account.parts), "job": asdict(self.job)}


def plan(job: Job, accounted: Callable[[Job], Account], room: float) -> list[Step]:
    """The job as it is, and what is turned down until it fits into ``room`` bytes, or nothing is left to turn down."""
    steps = [Step("as asked", job, accounted(job))]
    for change, smaller in turned_down(job):
        if steps[-1].account.total <= room:
            break
        steps.append(Step(change, smaller, accounted(smaller)))
    return steps


def verdict(steps: Sequence[Step], room: float) -> str:
    """One sentence on a plan: that it fits, what to turn down, or that nothing helps."""
    first, last = steps[0].account.total, steps[-1].account.total
    needs = f"needs about {first / GIB:.1f} GiB, and {room / GIB:.1f} GiB are free"
    if first <= room:
        return f"This run {needs}: it fits."
    changes = ", ".join(step.change for step in steps[1:])
    if last <= room:
        return f"This run {needs}: turn down, in this order, {changes}; it then takes {last / GIB:.1f} GiB."
    return f"This run {needs}; with all turned down ({changes}) it is {last / GIB:.1f} GiB: take a smaller model or another card."
