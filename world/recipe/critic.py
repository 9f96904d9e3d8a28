"""Stage ``critic``: a critic for what the tiny world's student draws, by PromptKD from its drafts; none has a label."""

from __future__ import annotations

from pathlib import Path

from ...oracles.clip_files import ClipFile, load_clip
from ...oracles.promptkd import Critic, save_critic
from ...training.critic import Teacher, load_teacher, make_critic
from ...training.domain_data import FixedPictures
from ...training.promptkd_runs import Settings
from ...training.run_folder import RunFolder
from ..weights import CLIPS_FOLDER, CRITICS_FOLDER
from .clips import LICENCE
from .concepts import CONCEPTS, training_prompts
from .sampling import World, unit_noise

DRAFTS, EPOCHS, STUDENT_STEPS = 1920, 20, 2


def critic_of_drafts(world: World, teacher: Teacher, small: ClipFile, drafts: int, epochs: int, folder: Path) -> Critic:
    """A critic for what the student draws, from its drafts of training prompts."""
    prompts = [p.text() for p in training_prompts(drafts)]
    pictures = world.pictures(world.draft(prompts, unit_noise(drafts, 3), STUDENT_STEPS, seed=900).latents)
    domain = FixedPictures([pictures], teacher.clip.picture_size)
    return make_critic(
        "drafts", teacher, small, CONCEPTS, domain, Settings(epochs=epochs), RunFolder(folder / "drafts"),
        sources=domain.sources(), save_every=10**9,
    )  # fmt: skip


def run(work: Path, target: Path = CRITICS_FOLDER) -> None:
    """Distil it from the large CLIP without prompt tokens, on the small one."""
    large, small = (load_clip(CLIPS_FOLDER / f"tiny world {size}.safetensors") for size in ("large", "small"))
    critic = critic_of_drafts(World(), load_teacher(large), small, DRAFTS, EPOCHS, work / "critic")
    about = {"teacher": large.name, "pictures": str(DRAFTS), "epochs": str(EPOCHS), "licence": LICENCE}
    save_critic(critic, target / "tiny world critic.safetensors", about)
