"""Subgraphs for anybody's workflow: sockets for the models, and the method inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness import Graph, Node

from .graph import SETTINGS

GENERAL = SETTINGS | {"preset": "auto", "steps": 0, "teacher_steps": 20, "teacher_cfg": 5.0}


@dataclass
class Blueprint(Graph):
    """A graph with a boundary.

    Attributes:
        note: What it is for, in a sentence.
        inputs: Boundary inputs in order: name, and the (node, input)s that it goes to.
        outputs: Boundary outputs in order: name, and its (node, output).
        columns: Ids of nodes from left to right.
    """

    note: str = ""
    inputs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    outputs: dict[str, tuple[str, int]] = field(default_factory=dict)
    columns: tuple[tuple[str, ...], ...] = ()
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def gives(self, node: Node, **inputs: str) -> None:
        """Boundary inputs that go to inputs of ``node``; several nodes can take one."""
        for name, boundary in inputs.items():
            self.inputs.setdefault(boundary, []).append((node.key, name))


def improve() -> Blueprint:
    """Draft, judge, improve."""
    g = Blueprint("Student, teacher, VAE, oracle, prompts and an empty latent in; pictures, verdict and contact sheet out.")
    sampler = g.add("ApprenticeSampler", "1", **GENERAL)
    names = (
        "student",
        "teacher",
        "vae",
        "oracle",
        "positive",
        "negative",
        "prompt",
        "latent_image",
        "seed",
        "threshold",
        "value",
    )
    g.gives(sampler, **{name: name for name in names})
    g.outputs = {"IMAGE": ("1", 1), "LATENT": ("1", 0), "verdict": ("1", 2), "contact sheet": ("1", 3)}
    g.columns = (("1",),)
    return g


def calibrate() -> Blueprint:
    """Calibrate once, gate by percentile."""
    g = Blueprint(
        "The student's scores on the bundled prompts are kept under a name, and every later batch is gated by their percentile."
    )
    drawn = g.add(
        "ApprenticeCalibrate", "1", prompts="bundled", text="", name="my student", max_prompts=50, drafts_per_prompt=1,
        batch_size=4, width=1024, height=1024, first_seed=0, preset="auto", steps=0, cfg=1.0, sampler_name="dpmpp_2m",
        scheduler="karras",
    )  # fmt: skip
    sampler = g.add("ApprenticeSampler", "2", calibration=drawn[0], **GENERAL | {"threshold": "percentile", "value": 40.0})
    g.gives(drawn, model="student", clip="clip", vae="vae", oracle="oracle", name="name", width="width", height="height")
    g.gives(sampler, student="student", vae="vae", oracle="oracle")
    g.gives(sampler, **{n: n for n in ("teacher", "positive", "negative", "prompt", "latent_image", "seed", "value")})
    g.outputs = {"IMAGE": ("2", 1), "LATENT": ("2", 0), "verdict": ("2", 2), "contact sheet": ("2", 3), "histogram": ("1", 2)}
    g.columns = (("1",), ("2",))
    return g


def best() -> Blueprint:
    """Best of n, improved."""
    g = Blueprint("The student drafts a batch of one prompt, the best few are kept, and the teacher refines them.")
    drafts = g.add(
        "ApprenticeStudentSampler",
        "1",
        seed=0,
        preset="auto",
        steps=0,
        cfg=1.0,
        denoise=1.0,
        sampler_name="lcm",
        scheduler="normal",
    )
    pictures = g.add("VAEDecode", "2", samples=drafts[0])
    chosen = g.add("ApprenticeBestOf", "3", images=pictures[0], count=2, per_prompt=False, order="best first", latents=drafts[0])
    judged = g.add(
        "ApprenticeJudge", "4", images=chosen[0], prompt=chosen[3], threshold="worst share", value=1.0, drafts=chosen[1]
    )
    improved = g.add(
        "ApprenticeTeacher", "5", verdict=judged[0], drafts=chosen[1], strategy="refine", rollback=0.6, steps=20, cfg=5.0,
        sampler_name="dpmpp_2m", scheduler="karras", seed=1, max_batch=0,
    )  # fmt: skip
    drawn = g.add("VAEDecode", "6", samples=improved[0])
    better = g.add(
        "ApprenticeKeepBetter", "7", verdict=judged[0], drafts=chosen[1], improved=improved[0], draft_images=chosen[0],
        improved_images=drawn[0], margin=0.0,
    )  # fmt: skip
    g.gives(drafts, model="student", positive="positive", negative="negative", latent_image="latent_image", seed="seed")
    g.gives(improved, model="teacher", positive="positive", negative="negative")
    g.gives(chosen, oracle="oracle", prompt="prompt", count="count")
    for node in (judged, better):
        g.gives(node, oracle="oracle")
    for node in (pictures, drawn):
        g.gives(node, vae="vae")
    g.outputs = {"IMAGE": ("7", 1), "LATENT": ("7", 0), "verdict": ("7", 2)}
    g.columns = (("1", "2"), ("3", "4"), ("5", "6"), ("7",))
    return g


BLUEPRINTS: dict[str, Callable[[], Blueprint]] = {
    "Draft, judge, improve": improve, "Calibrate once, then gate": calibrate, "Best of N, then improve": best,
}  # fmt: skip
