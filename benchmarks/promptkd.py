"""PromptKD on icons of a vendor that neither CLIP has seen: zero-shot against distilled, base and novel names, three seeds.

The protocol is the paper's base-to-novel one (arXiv 2403.02781, sec. 4.1): the teacher's tokens learn from a few labelled
pictures of the base classes, the student from unlabelled pictures of all; base and novel accuracy are each among the classes of
their half. Test pictures show the same icons in poses and on backgrounds that no training picture has. Always the last epoch is
reported.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import write_atomically
from ..networks.prompted_clip import PromptedClip, PromptTokens
from ..oracles.clip_files import ClipFile, load_clip
from ..oracles.promptkd import Critic, CriticNetwork
from ..training import critic as critics
from ..training.domain_data import FixedPictures
from ..training.promptkd import frozen_text_features
from ..training.promptkd_runs import Settings, SourceSettings
from ..training.run_folder import RunFolder
from ..world.domain import SIZE, domain_names, domain_pictures
from ..world.recipe.critic import GATING, GATING_DRAFTS
from ..world.weights import CLIPS_FOLDER
from . import promptkd_few as few
from . import promptkd_gate as gate
from .figures import Claim, Figures, mean_of_seeds, percent, print_claims, print_table
from .promptkd_data import accuracy, harmonic

matplotlib.use("Agg")

SHOTS = 4
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seeds: int
    pictures: tuple[int, ...]  # unlabelled pictures, the most last
    steps: int  # of the student
    teacher_epochs: int
    gate: gate.Plan
    few_seeds: int  # of critics from ``few.PICTURES``

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole plan, or a few minutes of it."""
        if quick:
            return cls(1, (1920,), 1440, 10, gate.Plan((480, 480), (24, 4), 60, 1), 1)
        return cls(3, (60, 120, 240, 480, 960, 1920), 4800, 20, gate.Plan((1920, GATING_DRAFTS), (20, GATING.epochs), 501, 2), 10)


class Icons:
    """The domain: ``train`` and ``test`` pictures, prepared for CLIP, with their classes [N]."""

    def __init__(self) -> None:
        self.names = list(domain_names())
        self.base = math.ceil(len(self.names) / 2)
        train, self.train_labels = domain_pictures(train=True, backgrounds=2)
        test, self.test_labels = domain_pictures(train=False, backgrounds=4, seed=1)
        self.train, self.test = FixedPictures([train], SIZE), FixedPictures([test], SIZE).pixels

    def halves(self) -> tuple[tuple[str, range], tuple[str, range]]:
        """The classes of either half."""
        return ("base", range(self.base)), ("novel", range(self.base, len(self.names)))

    def few(self, shots: int, seed: int) -> Tensor:
        """Rows of ``shots`` training pictures of every base class."""
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train), generator=rng)
        return torch.cat([order[self.train_labels[order] == c][:shots] for c in range(self.base)])


class Part:
    """Some of the training pictures, as a run draws from them."""

    def __init__(self, pictures: FixedPictures, rows: Sequence[int]) -> None:
        self.pictures, self.rows = pictures, rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], epoch: int) -> Tensor:
        """See ``training.promptkd.Pictures``."""
        return self.pictures.batch([self.rows[i] for i in indices], epoch)


def clip(size: str) -> ClipFile:
    """The recipe's ``large`` or ``small`` CLIP, freshly read: towers are hooked for good."""
    return load_clip(CLIPS_FOLDER / f"tiny world {size}.safetensors")


# ---------------------------------------------------------------------------------------------------- accuracies


def accuracies(encode: Callable[[Tensor], Tensor], text: Tensor, icons: Icons) -> dict[str, float]:
    """Top-1 of base and novel names and their harmonic mean, in percent; ``encode`` gives unit features [B, D]."""
    return harmonic({
        name: 100 * accuracy(encode, text, zip(icons.test.split(100), icons.test_labels.split(100), strict=True), classes)
        for name, classes in icons.halves()
    })  # fmt: skip


def zero_shot(size: str, icons: Icons) -> dict[str, float]:
    """A plain CLIP with the mean of its templates."""
    model = clip(size)
    plain = PromptedClip(model.network, None, None, model.tokenizer)
    return accuracies(plain.encode_pictures, frozen_text_features(plain, icons.names, model.templates), icons)


def prompted(icons: Icons, seed: int, plan: Plan, folder: Path) -> critics.Teacher:
    """The large CLIP with tokens learned from four labelled pictures of each base class (PromptSRC)."""
    rows = icons.few(SHOTS, seed)
    settings = SourceSettings(
        epochs=plan.teacher_epochs, batch=4, learning_rate=0.0025, gaussian_mean=0.75 * plan.teacher_epochs, seed=seed
    )
    return critics.make_teacher(
        clip("large"), icons.names[: icons.base], Part(icons.train, rows.tolist()), icons.train_labels[rows].tolist(), settings,
        RunFolder(folder / f"teacher_{seed}"),
    )  # fmt: skip


def distilled(teacher: critics.Teacher, icons: Icons, count: int, seed: int, plan: Plan, folder: Path) -> Critic:
    """A student of ``teacher`` from the first ``count`` training pictures, without their labels."""
    epochs = max(round(plan.steps * 8 / count), 2)
    settings = Settings(epochs=epochs, seed=seed)
    run = RunFolder(folder / f"student_{seed}_{count}_{id(teacher)}")
    sources = [str(i) for i in range(count)]
    part = Part(icons.train, range(count))
    return critics.make_critic(
        "icons", teacher, clip("small"), icons.names, part, settings, run, sources=sources, save_every=10**9
    )


# -------------------------------------------------------------------------------------------------------- speed


def best_ratio(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> Claim:
    """CPU time of ``first`` over that of ``second``, taken in turns: the median over rounds and its 95 % interval."""
    ratios = []
    for i in range(rounds + 1):
        times = []
        for call in (first, second):
            started = time.process_time()
            call()
            times.append(time.process_time() - started)
        if i:  # the first round warms up
            ratios.append(times[0] / times[1])
    values = np.array(ratios)
    rng = np.random.default_rng(0)
    medians = [np.median(values[rng.integers(len(values), size=len(values))]) for _ in range(2000)]
    lo, hi = np.percentile(medians, [2.5, 97.5])
    return Claim(float(np.median(values)), float(lo), float(hi))


@torch.inference_mode()
def speed(student: CriticNetwork, teacher: critics.Teacher, icons: Icons, rounds: int) -> Claim:
    """Pictures a second of the student over those of the teacher, batches of 32."""
    pixels = icons.test[:32]
    return best_ratio(lambda: teacher.clip.encode_pictures(pixels), lambda: student.student(pixels), rounds)


@torch.inference_mode()
def hook_cost(rounds: int) -> Claim:
    """Time of a ViT-B/16 with four tokens a block at depth 9, over the same arithmetic written out without hooks; minus 1."""
    import open_clip

    shape = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64}
    text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
    torch.manual_seed(0)
    plain = open_clip.CLIP(512, shape, text).eval().requires_grad_(False).visual  # type: ignore[arg-type]
    hooked = open_clip.CLIP(512, shape, text).eval().requires_grad_(False)  # type: ignore[arg-type]
    hooked.visual.load_state_dict(plain.state_dict())
    tokens = PromptTokens.random(9, 4, 768, torch.Generator().manual_seed(0)).requires_grad_(False)
    prompted_clip = PromptedClip(hooked, tokens, None, None)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))

    def by_hand() -> Tensor:
        x = plain.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([plain.class_embedding.expand(len(x), 1, -1), x], 1) + plain.positional_embedding
        x = plain.ln_pre(torch.cat([x, tokens.blocks[0].expand(len(x), -1, -1)], 1))
        for i, block in enumerate(plain.transformer.resblocks):
            if 0 < i < 9:
                x = torch.cat([x[:, :-4], tokens.blocks[i].expand(len(x), -1, -1)], 1)
            x = block(x)
        return plain.ln_post(x)[:, 0] @ plain.proj

    torch.testing.assert_close(F.normalize(by_hand(), dim=-1), prompted_clip.encode_pictures(pixels), atol=1e-4, rtol=1e-4)
    ratio = best_ratio(lambda: hooked.visual(pixels), by_hand, rounds)
    return Claim(ratio.value - 1, ratio.lo - 1, ratio.hi - 1)


# ---------------------------------------------------------------------------------------------------------- run


def same_decisions(critic: Critic, teacher: critics.Teacher, icons: Icons) -> list[float]:
    """Per share rejected (10 to 90 %): for how many test pictures student and teacher decide alike, each by its own worst.

    Both score a picture by the probability of its own name among all.
    """
    text = critic.network.text_features
    with torch.no_grad():
        theirs, ours = [], []
        for pixels, labels in zip(icons.test.split(100), icons.test_labels.split(100), strict=True):
            logits = teacher.clip.scale * teacher.clip.encode_pictures(pixels) @ text.T
            theirs.append(logits.softmax(1).gather(1, labels[:, None])[:, 0])
            logits = critic.network.student.logits(critic.network.student(pixels), text)
            ours.append(logits.softmax(1).gather(1, labels[:, None])[:, 0])
    return alike(torch.cat(theirs), torch.cat(ours))


def alike(one: Tensor, other: Tensor) -> list[float]:
    """For which part of the pictures two judges' scores [N] give the same decision, each rejecting its own worst 10 to 90 %."""
    ranks = [scores.argsort().argsort() / len(scores) for scores in (one, other)]
    return [float(((ranks[0] < s) == (ranks[1] < s)).float().mean()) for s in np.linspace(0.1, 0.9, 9)]


def run(quick: bool, plot: Path, say: Say, work: Path | None = None) -> Figures:
    """Measure; draws accuracy over the number of unlabelled pictures into ``plot``.

    Args:
        work: Where drafts, runs and the parts' results are kept; a stopped benchmark goes on with what is there.

    Raises:
        FileNotFoundError: The CLIPs or the pictures are not there.
    """
    plan, icons = Plan.of(quick), Icons()
    figures = Figures("promptkd", {"plan": asdict(plan), "classes": len(icons.names), "test pictures": len(icons.test)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        gates = kept(folder / "gates.json", lambda: asdict(gate.measure(clip, plan.gate, folder, say)))
        little = kept(folder / "few.json", lambda: few_pictures(icons, plan, folder, say))
        found = kept(folder / "icons.json", lambda: measure_icons(icons, plan, folder, say, quick))
    figures.rows = found["rows"]
    figures.claims = {name: Claim(**claim) for part in (found, gates, little) for name, claim in part["claims"].items()}
    figures.findings = {
        "curve": found["curve"], "same decisions on icons by share": found["decisions"], "gates": gates["rows"],
        "few pictures": little["rows"],
    }  # fmt: skip
    print_table(figures.rows)
    print_table(gates["rows"])
    print_claims(figures.claims)
    draw(found["curve"], found["plain"], found["taught"], plot)
    return figures


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` finds, or found before: its result is kept in ``path``."""
    if not path.exists():
        text = json.dumps(measure(), indent=1, default=_plain) + "\n"
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Claim) else float(value)


def few_pictures(icons: Icons, plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Critics from few pictures against the plain small CLIP."""
    found, plain = [], zero_shot("small", icons)
    for seed in range(plan.few_seeds):
        part = Part(icons.train, few.chosen(few.PICTURES, len(icons.train), seed))
        settings, teacher = replace(few.GENTLE, seed=seed), critics.load_teacher(clip("large"))
        critic = few.critic_of_few(clip, teacher, icons.names, part, settings, folder / f"few_{seed}")
        found.append(accuracies(critic.network.student, critic.network.text_features, icons))
        say(f"{few.PICTURES} pictures, seed {seed}: {found[-1]} (plain: {plain})")
    claim, rows = few.gain(found, plain)
    return {"claims": {"few_pictures_gain": claim}, "rows": rows}


def measure_icons(icons: Icons, plan: Plan, folder: Path, say: Say, quick: bool) -> dict[str, Any]:
    """Zero-shot against distilled on icons, as published, over the number of pictures."""
    plain = {size: zero_shot(size, icons) for size in ("small", "large")}
    taught: list[dict[str, float]] = []
    students: dict[str, list[dict[str, float]]] = {}
    decisions: list[list[float]] = []
    for seed in range(plan.seeds):
        teacher = prompted(icons, seed, plan, folder)
        taught.append(accuracies(teacher.clip.encode_pictures, teacher.features(icons.names), icons))
        say(f"seed {seed}: teacher {taught[-1]}")
        for count in plan.pictures:
            critic = distilled(teacher, icons, count, seed, plan, folder)
            percents = accuracies(critic.network.student, critic.network.text_features, icons)
            students.setdefault(str(count), []).append(percents)
            say(f"seed {seed}: student of {count} pictures {percents}")
        decisions.append(same_decisions(critic, teacher, icons))
    of_plain = distilled(critics.load_teacher(clip("large")), icons, plan.pictures[-1], 0, plan, folder)
    most = students[str(plan.pictures[-1])]
    results = [
        ("small, zero-shot", [plain["small"]]), ("small, distilled from the zero-shot large", [
            accuracies(of_plain.network.student, of_plain.network.text_features, icons)]),
        ("small, distilled from the prompted large", most), ("large, zero-shot", [plain["large"]]), ("large, prompted", taught),
    ]  # fmt: skip
    claims = {f"{half}_gain": mean_of_seeds([f[half] - plain["small"][half] for f in most]) for half in ("base", "novel")}
    claims["speed_ratio"] = speed(critic.network, teacher, icons, 5 if quick else 30)
    claims["hook_cost"] = hook_cost(3 if quick else 30)
    rows = [{"model": name, "seeds": len(each), **_means(each)} for name, each in results]
    return {
        "rows": rows, "claims": claims, "curve": students, "plain": plain, "taught": taught, "decisions": decisions,
    }  # fmt: skip


def _means(results: list[dict[str, float]]) -> dict[str, str]:
    """Over seeds, for the table."""
    return {key: percent(mean_of_seeds([result[key] for result in results])) for key in results[0]}


def draw(
    students: dict[str, list[dict[str, float]]], plain: dict[str, dict[str, float]], taught: list[dict[str, float]], path: Path
) -> None:
    """Accuracy over unlabelled pictures, base and novel, with the zero-shot models and the teacher as lines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for axis, half in zip(axes, ("base", "novel"), strict=True):
        counts = [int(c) for c in students]
        values = np.array([[f[half] for f in results] for results in students.values()])
        axis.plot(counts, values.mean(1), "o-", color="#346eb4", label="small, distilled")
        axis.fill_between(counts, values.min(1), values.max(1), color="#346eb4", alpha=0.2)
        axis.axhline(plain["small"][half], color="#888", label="small, zero-shot")
        axis.axhline(plain["large"][half], color="#d08030", linestyle="--", label="large, zero-shot")
        axis.axhline(np.mean([f[half] for f in taught]), color="#d08030", label="large, prompted")
        axis.set(xscale="log", title=f"{half} names", xlabel="unlabelled pictures")
        axis.set_xticks(counts, [str(c) for c in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("top-1 accuracy, %")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
