"""Stage ``critic``: a critic for what the tiny world's student draws, by PromptKD from its drafts; none has a label."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...files import save_safetensors_atomically
from ...oracles.clip_files import ClipFile, load_clip
from ...oracles.preprocess import resize_and_crop, round_half_even
from ...oracles.promptkd import Critic, save_critic
from ...training.critic import Teacher, load_teacher, make_critic
from ...training.domain_data import FixedPictures
from ...training.loop import Watch
from ...training.promptkd import own_of
from ...training.promptkd_runs import ODDS, WORDS, Settings
from ...training.run_folder import RunFolder
from ..weights import CLIPS_FOLDER, CRITICS_FOLDER
from .clips import LICENCE
from .concepts import CONCEPTS, training_prompts
from .sampling import World, some_noise, unit_noise

DRAFTS, EPOCHS, STUDENT_STEPS = 1920, 20, 2
PART = 1000  # drafts in a file
# Of the critic that gates: the whole small tower learns, from drafts and their mirror images, by what the gate will use.
GATING = Settings(
    epochs=8, batch=32, warmup_epochs=0, blocks=3, tower_rate=2e-3, target=ODDS, start=WORDS, held_out=0.05
)
GATING_DRAFTS = 20_000


def critic_of_drafts(world: World, teacher: Teacher, small: ClipFile, drafts: int, epochs: int, folder: Path) -> Critic:
    """A critic for what the student draws, from its drafts of training prompts, as published."""
    prompts = [p.text() for p in training_prompts(drafts)]
    pictures = world.pictures(world.draft(prompts, unit_noise(drafts, 3), STUDENT_STEPS, seed=900).latents)
    domain = FixedPictures([pictures], teacher.clip.picture_size)
    return make_critic(
        "drafts", teacher, small, CONCEPTS, domain, Settings(epochs=epochs), RunFolder(folder / "drafts"),
        sources=domain.sources(), save_every=10**9,
    )  # fmt: skip


class Mirrored:
    """Drafts, uint8 [N, 64, 64, 3], and after them their mirror images, as ``training.promptkd`` draws them.

    The teacher scores a mirror image otherwise than the draft (it decides alike on nine in ten), and looking costs it a tenth of
    what drawing another draft costs the student.
    """

    def __init__(self, drafts: Tensor, size: int) -> None:
        self.drafts, self.size = drafts, size

    def __len__(self) -> int:
        return 2 * len(self.drafts)

    def batch(self, indices: Sequence[int], epoch: int) -> Tensor:
        """Normalised pictures [B, 3, S, S]."""
        count = len(self.drafts)
        pictures = [self.drafts[i] if i < count else self.drafts[i - count].flip(1) for i in indices]
        return resize_and_crop(torch.stack(pictures).float() / 255, self.size, round_half_even)

    def sources(self) -> list[str]:
        """What tells these pictures from others: for stored features."""
        return [hashlib.sha256(self.drafts.numpy().tobytes()).hexdigest(), "mirrored"]


def many_drafts(world: World, count: int, folder: Path) -> tuple[Tensor, list[str]]:
    """``count`` drafts of training prompts, uint8 [N, 64, 64, 3], and their prompts; drawn once and kept in ``folder``."""
    prompts, parts = [p.text() for p in training_prompts(count)], []
    for start in range(0, count, PART):
        path, rows = folder / f"drafts_{start:06d}.safetensors", range(start, min(start + PART, count))
        if not path.exists():
            drawn = world.draft([prompts[i] for i in rows], some_noise(list(rows), 3), STUDENT_STEPS, seed=900 + start)
            pictures = (world.pictures(drawn.latents) * 255).round().byte()
            folder.mkdir(parents=True, exist_ok=True)
            save_safetensors_atomically({"pictures": pictures}, path, {})
        parts.append(load_file(path)["pictures"][: len(rows)])
    return torch.cat(parts), prompts


def gating_critic(
    world: World, teacher: Teacher, small: ClipFile, drafts: int, settings: Settings, folder: Path, watch: Watch | None = None
) -> Critic:
    """A critic that decides as ``teacher`` does on the student's drafts; resumes from what lies in ``folder``."""
    pictures, prompts = many_drafts(world, drafts, folder)
    domain = Mirrored(pictures, teacher.clip.picture_size)
    return make_critic(
        "gating", teacher, small, CONCEPTS, domain, settings, RunFolder(folder / "gating"), sources=domain.sources(),
        save_every=200, watch=watch, own=own_of([*prompts, *prompts], CONCEPTS),
    )  # fmt: skip


def run(work: Path, target: Path = CRITICS_FOLDER) -> None:
    """Distil the one that ships, as published, from the large CLIP without prompt tokens, on the small one."""
    large, small = (load_clip(CLIPS_FOLDER / f"tiny world {size}.safetensors") for size in ("large", "small"))
    critic = critic_of_drafts(World(), load_teacher(large), small, DRAFTS, EPOCHS, work / "critic")
    about = {"teacher": large.name, "pictures": str(DRAFTS), "epochs": str(EPOCHS), "licence": LICENCE}
    save_critic(critic, target / "tiny world critic.safetensors", about)
