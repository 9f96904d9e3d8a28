"""The example for whoever asks how their own look stays at a few steps."""

from __future__ import annotations

from typing import Any

from harness import Node
from workflow_file import Page

from . import weights
from .graph import group
from .real import SCENES, Real

NAME = "my_lora.safetensors"
TAUGHT = """a lighthouse on a cliff in a storm
portrait of an old fisherman, soft window light
a glass teapot with blooming tea on a wooden table
a fox in fresh snow at dawn
an empty street in the rain at night
a child reading under a tree in autumn
a bowl of ripe tomatoes and basil
a small boat on a calm lake, mountains behind"""
SETTINGS = """| | model | student | width, height | kappa4 |
| --- | --- | --- | --- | --- |
| SDXL | checkpoint, your LoRA | the checkpoint with Lightning's, DMD2's or LCM's LoRA; or Turbo, with `base` SDXL | 1024 | 1.5 |
| Flux | dev, your LoRA | dev with a Turbo or Hyper LoRA | 768 to 1024 | 1 |
| Z-Image | Z-Image, your LoRA | Z-Image-Turbo | 1024 | 1.5 |
| Qwen-Image | Qwen-Image, your LoRA | Qwen-Image with Lightning's LoRA | 1024 | 1.5 |"""


def _draw(g: Real, key: str, student: Any, words: tuple[Node, Node], latent: Any, vae: Any, preset: str) -> Node:
    """Four steps of a student, decoded."""
    drafts = g.add(
        "ApprenticeStudentSampler", key, model=student, positive=words[0][0], negative=words[1][0], latent_image=latent, seed=12,
        preset=preset, steps=4, cfg=1.0, denoise=1.0, sampler_name="lcm", scheduler="sgm_uniform",
    )  # fmt: skip
    return g.add("VAEDecode", str(int(key) + 1), samples=drafts[0], vae=vae)


def keep_my_look() -> Real:
    """A checkpoint with an artist's LoRA, taught to draw in four steps from SDXL-Lightning on."""
    g = Real()
    base = g.checkpoint("1", weights.SDXL)
    mine, fast = g.lora("2", base[0], NAME), g.lora("3", base[0], weights.LIGHTNING["name"])
    words = g.words(base[1], SCENES, "")
    blank = g.blank(words[0], 1024)
    student = g.add(
        "ApprenticeSiDDistill", "4", model=mine[0], clip=base[1], prompts="bundled", text=TAUGHT, name="my look in 4 steps",
        method="LoRA", rank=64, pictures=6000, batch_size=8, at_once=1, width=1024, height=1024, steps=4, alpha=1.0, kappa1=1.0,
        kappa2=1.0, kappa4=1.5, generator_rate=2e-5, fake_rate=1e-4, ema_half_life=500.0, precision="auto",
        gradient_checkpointing=True, first_seed=0, save_every=50, student=fast[0], vae=base[2], quality="keep my look",
        made_for="teacher",
    )  # fmt: skip
    kept = _draw(g, "5", student[0], words, blank[0], base[2], "auto")
    g.add("SaveImage", "7", images=kept[0], filename_prefix="apprentice/my_look")
    habit = g.lora("8", fast[0], NAME)
    before = _draw(g, "9", habit[0], words, blank[0], base[2], "sdxl-lightning")
    g.add("PreviewImage", "11", images=before[0])
    g.add("PreviewImage", "12", images=student[1])
    g.page = Page(
        "Keep my look: my LoRA in four steps",
        "Your LoRA was trained on the slow model; on a fast one it washes out. Here *SiD Distill* teaches **your checkpoint with "
        "your LoRA** to draw in four steps. It begins at a student that exists, here SDXL with **Lightning's** LoRA, so that "
        "hundreds of iterations do.\n\n"
        "Out comes a LoRA in models/loras, for your checkpoint with your LoRA on it. With `made_for` *base* the file holds the "
        "look too, and *student* is for the fast model. Cancel it when you like: it goes on from there.\n\n"
        "Put your file's name into both LoRA loaders, and prompts like those that you draw into `text`: hundreds, with your "
        "trigger word. Below, for comparison, your LoRA put straight on Lightning.\n\n"
        f"With quality *as set* and these numbers:\n\n{SETTINGS}",
        ((group("1  Your checkpoint, your LoRA, a fast one", "1 2 3"), group("2  Teach it four steps", "4", "12"),
          group("3  What to draw", "20 21 22"), group("4  Your look in four steps", "5 6", "7")),
         (group("For comparison: your LoRA put on Lightning", "8 9 10", "11"),)),
        (("2", "lora_name"), ("8", "lora_name"), ("4", "text"), ("20", "text"), ("5", "seed")), ("7",),
    )  # fmt: skip
    return g


EXAMPLES = {"keep-my-look": keep_my_look}
