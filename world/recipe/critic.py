"""Stage ``critic``: a critic for what the tiny world's student draws, by PromptKD from its drafts; none has a label."""

from __future__ import annotations

from pathlib import Path

from ...benchmarks.promptkd_gate import critic_of_drafts
from ...benchmarks.world import World
from ...oracles.clip_files import load_clip
from ...oracles.promptkd import save_critic
from ...training.critic import load_teacher
from ..weights import CLIPS_FOLDER, CRITICS_FOLDER
from .clips import LICENCE

DRAFTS, EPOCHS = 1920, 20


def run(work: Path, target: Path = CRITICS_FOLDER) -> None:
    """Distil it from the large CLIP without prompt tokens, on the small one."""
    large, small = (load_clip(CLIPS_FOLDER / f"tiny world {size}.safetensors") for size in ("large", "small"))
    critic = critic_of_drafts(World(), load_teacher(large), small, DRAFTS, EPOCHS, work / "critic")
    about = {"teacher": large.name, "pictures": str(DRAFTS), "epochs": str(EPOCHS), "licence": LICENCE}
    save_critic(critic, target / "tiny world critic.safetensors", about)
