"""A graph of the tiny world, described node by node, with its page: what the example workflows begin with."""

from __future__ import annotations

from typing import Any

from harness import Graph, Node
from workflow_file import Group, Page

PROMPTS = """glossy red heart on blue
panda face on yellow
purple square on orange
strawberry on pink
crescent moon on black
rainbow on white
burger on green
red angry face on gray"""
SETTINGS: dict[str, Any] = {
    "seed": 12, "preset": "tiny-world", "steps": 2, "cfg": 1.0, "denoise": 1.0, "threshold": "worst share", "value": 0.5,
    "strategy": "refine", "rollback": 0.7, "teacher_steps": 16, "teacher_cfg": 2.0, "sampler_name": "dpmpp_2m",
    "scheduler": "karras", "margin": 0.0,
}  # fmt: skip
Row = tuple[Group, ...]
SIZES = "64 x 64 pixels, one picture a line"


def group(title: str, *columns: str) -> Group:
    """A frame around columns of nodes, each told as ids with blanks between."""
    return Group(title, tuple(tuple(column.split()) for column in columns))


START = group("1  Models and prompts", "1 2 3 4")


class Example(Graph):
    """A graph that begins with the tiny world, prompts, an empty negative, and an empty batch."""

    def __init__(self, text: str = PROMPTS) -> None:
        super().__init__()
        self.world = self.add("ApprenticeTinyWorld", "1", student="consistency")
        self.lines = self.add("ApprenticePrompts", "2", clip=self.world[2], text=text)
        self.negative = self.add("CLIPTextEncode", "3", clip=self.world[2], text="")
        self.latent = self.add("EmptyLatentImage", "4", width=64, height=64, batch_size=self.lines[2])
        self.page = Page("", "", ())

    def on(self, title: str, note: str, *rows: Row, shown: str = "", results: str = "", muted: str = "") -> Example:
        """This, with its page; ``shown`` as "node.widget", and everything else as ids, with blanks between."""
        widgets = tuple((entry.split(".")[0], entry.split(".")[1]) for entry in shown.split())
        self.page = Page(title, note, rows, widgets, tuple(results.split()), tuple(muted.split()))
        return self

    def draft(self, key: str, model: Any, seed: int, steps: int, preset: str = "tiny-world") -> Node:
        """A student's drafts of the batch."""
        return self.add(
            "ApprenticeStudentSampler", key, model=model, positive=self.lines[0], negative=self.negative[0],
            latent_image=self.latent[0], seed=seed, preset=preset, steps=steps, cfg=1.0, denoise=1.0, sampler_name="lcm",
            scheduler="normal",
        )  # fmt: skip

    def artist(self, key: str, oracle: Any, **changes: Any) -> Node:
        """The all-in-one node, with other or further inputs."""
        world = self.world
        inputs = {
            "student": world[1], "teacher": world[0], "vae": world[3], "oracle": oracle, "positive": self.lines[0],
            "negative": self.negative[0], "prompt": self.lines[1], "latent_image": self.latent[0], **SETTINGS, **changes,
        }  # fmt: skip
        return self.add("ApprenticeSampler", key, **inputs)

    def decode(self, key: str, samples: Any) -> Node:
        """Pictures of the world's latents."""
        return self.add("VAEDecode", key, samples=samples, vae=self.world[3])

    def calibrate(self, key: str, oracle: Any, name: str = "tiny world example") -> Node:
        """The student's scores on some of the bundled prompts."""
        return self.add(
            "ApprenticeCalibrate", key, model=self.world[1], clip=self.world[2], vae=self.world[3], oracle=oracle,
            prompts="bundled", text="", name=name, max_prompts=24, drafts_per_prompt=2, batch_size=8, width=64,
            height=64, first_seed=0, preset="tiny-world", steps=2, cfg=1.0, sampler_name="dpmpp_2m", scheduler="karras",
        )  # fmt: skip

    def distil(self, key: str, model: Any, name: str, **inputs: Any) -> Node:
        """A one-step student of ``model``."""
        return self.add(
            "ApprenticeSiDDistill", key, model=model, clip=self.world[2], prompts="bundled", text="", name=name, batch_size=16,
            at_once=0, width=64, height=64, steps=1, alpha=1.0, kappa1=1.0, kappa2=1.0, kappa4=1.5, precision="auto",
            gradient_checkpointing=False, first_seed=0, save_every=50, **inputs, vae=self.world[3],
        )  # fmt: skip

    def one_step(self, key: str, model: Any) -> Node:
        """What a one-step student draws of the batch."""
        return self.add(
            "ApprenticeSiDSampler", key, model=model, positive=self.lines[0], latent_image=self.latent[0], seed=7, steps=1,
            vae=self.world[3], columns=4,
        )  # fmt: skip

    def prompt_teacher(self, key: str) -> Node:
        """A large CLIP as PromptKD's teacher."""
        return self.add(
            "ApprenticePromptKDTeacher", key, clip="tiny world large.safetensors", tokens="none", labelled="none",
            name="my teacher", shots=16, epochs=20, batch_size=4, learning_rate=0.0025, precision="auto", first_seed=0,
            templates="",
        )  # fmt: skip
