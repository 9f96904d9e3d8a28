"""PromptKD's own protocols on data sets of photos: base-to-novel and cross-dataset (arXiv 2403.02781, sec. 4.1).

The official code reports the epoch that is best on the test split. Here the last epoch is the result; the other number stands
beside it under its own name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..networks.prompted_clip import PromptedClip, PromptedStudent
from ..oracles.clip_files import load_clip
from ..training import critic as critics
from ..training.domain_data import DomainPictures, few_shot
from ..training.promptkd import frozen_text_features
from ..training.promptkd_runs import Settings, SourceSettings
from ..training.run_folder import RunFolder
from .data_sets import DATA_SETS, Split, folder_split, read_split
from .figures import Figures, mean_of_seeds, percent, print_table

Say = Callable[[str], None]
Halves = dict[str, range]


@dataclass(frozen=True)
class Task:
    """What is measured, and with which models.

    Attributes:
        tokens: The teacher's learned tokens; without them, and without shots, it is zero-shot.
        shots: Pictures of each base class that the teacher learns from, where there are no tokens.
        across: Cross-dataset: one accuracy over all classes instead of base and novel.
    """

    data: Path
    dataset: str
    teacher: Path
    student: Path
    tokens: Path | None
    shots: int
    seeds: int
    epochs: int
    weight: float
    depth: int
    across: bool

    def split(self) -> Split:
        """The data set."""
        return read_split(self.data, self.dataset) if self.dataset else folder_split(self.data)

    def parts(self, split: Split) -> Halves:
        """The classes whose accuracy is reported, by name."""
        if self.across:
            return {"all classes": range(len(split.classes))}
        base, novel = split.halves()
        return {"base": base, "novel": novel}


def device() -> str:
    """Where to compute."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def harmonic(accuracies: dict[str, float]) -> dict[str, float]:
    """With the harmonic mean of base and novel beside them."""
    if "novel" not in accuracies:
        return accuracies
    base, novel = accuracies["base"], accuracies["novel"]
    return {**accuracies, "harmonic mean": 2 * base * novel / max(base + novel, 1e-9)}


def run(task: Task, say: Say) -> Figures:
    """Measure a teacher, a zero-shot student and the distilled one.

    Raises:
        ValueError: The data set isn't laid out as it should be, or the models don't fit each other.
        OSError: A file can't be read.
    """
    split = task.split()
    named = task.dataset or task.data.name
    figures = Figures(f"promptkd on {named}", {"classes": len(split.classes), "pictures": len(split.train), "device": device()})
    results: dict[str, list[dict[str, float]]] = {"small, zero-shot": [zero_shot(task, split)]}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(task.seeds):
            for name, accuracies in one_seed(task, split, seed, Path(folder) / str(seed)).items():
                results.setdefault(name, []).append(harmonic(accuracies))
                say(f"seed {seed}: {name} {accuracies}")
    for name, runs in results.items():
        means = {part: percent(mean_of_seeds([accuracies[part] for accuracies in runs])) for part in runs[0]}
        figures.rows.append({"model": name, "seeds": len(runs), **means})
    for part in task.parts(split):
        figures.claims[part.replace(" ", "_")] = mean_of_seeds([f[part] for f in results["small, distilled: last epoch"]])
    print_table(figures.rows)
    if task.dataset and not task.across:
        base, novel = DATA_SETS[task.dataset].published
        print(f"Published for ViT-B/16 (not measured here, the best epoch on the test split): base {base}, novel {novel}.")
    return figures


def test_batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The test pictures with their labels."""
    pictures, labels = DomainPictures([item.path for item in split.test], size, augment=False), [i.label for i in split.test]
    for start in range(0, len(labels), 100):
        rows = range(start, min(start + 100, len(labels)))
        yield pictures.batch(rows, 0), torch.tensor(labels[start : start + 100])


def measured(task: Task, split: Split, encode: Callable[[Tensor], Tensor], text: Tensor, size: int) -> dict[str, float]:
    """Accuracies in percent."""
    return {
        name: 100 * accuracy(encode, text, test_batches(split, size), classes)
        for name, classes in task.parts(split).items()
    }


def zero_shot(task: Task, split: Split) -> dict[str, float]:
    """The small CLIP as it is."""
    model = load_clip(task.student)
    model.network.to(device())
    plain = PromptedClip(model.network, None, None, model.tokenizer)
    text = frozen_text_features(plain, split.classes, critics.templates_of(model))
    return harmonic(measured(task, split, plain.encode_pictures, text, model.picture_size))


def one_seed(task: Task, split: Split, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Teacher and student of one seed: the last epoch, and, apart, the one that is best on the test split."""
    teacher = taught(task, split, seed, folder / "teacher")
    size, small, best = teacher.clip.picture_size, load_clip(task.student), dict.fromkeys(task.parts(split), 0.0)
    text = teacher.features(split.classes)
    results = {"large, teacher": measured(task, split, teacher.clip.encode_pictures, text, size)}
    small.network.to(device())

    def after_epoch(_epoch: int, student: PromptedStudent, features: Tensor) -> None:
        accuracies = measured(task, split, student, features, size)
        best.update({name: max(best[name], value) for name, value in accuracies.items()})

    critic = critics.make_critic(
        "measured", teacher, small, split.classes, DomainPictures([i.path for i in split.train], size, augment=True, seed=seed),
        Settings(epochs=task.epochs, weight=task.weight, seed=seed), RunFolder(folder / "student"), depth=task.depth,
        save_every=10**9, after_epoch=after_epoch,
    )  # fmt: skip
    results["small, distilled: last epoch"] = measured(task, split, critic.network.student, critic.network.text_features, size)
    results["small, distilled: best epoch on the test split, as the official code reports"] = best
    return results


def taught(task: Task, split: Split, seed: int, folder: Path) -> critics.Teacher:
    """The teacher: with tokens from a file, learned here from the base classes, or zero-shot."""
    large = load_clip(task.teacher)
    large.network.to(device())
    if task.tokens or not task.shots:
        teacher = critics.load_teacher(large, task.tokens)
        teacher.clip.to(device())
        return teacher
    base = split.halves()[0]
    chosen = few_shot([item for item in split.train if item.label in base], task.shots, seed)
    pictures = DomainPictures([item.path for item in chosen], large.picture_size, augment=True, seed=seed)
    settings = SourceSettings(epochs=20, batch=4, learning_rate=0.0025, seed=seed)
    names, labels = [split.classes[i] for i in base], [item.label for item in chosen]
    return critics.make_teacher(large, names, pictures, labels, settings, RunFolder(folder), save_every=10**9)


def accuracy(
    encode: Callable[[Tensor], Tensor], text_features: Tensor, batches: Iterable[tuple[Tensor, Tensor]], classes: Sequence[int]
) -> float:
    """The share of pictures whose best class is theirs, over (pixels [B, 3, S, S], labels [B]).

    Args:
        encode: Pictures to unit features [B, D]: a student, or a teacher's ``encode_pictures``.
        text_features: [C, D].
        classes: The classes that count (base, or novel); the best is sought among these, and pictures of others are left out.

    Raises:
        ValueError: There are no pictures.
    """
    chosen, right, total = torch.as_tensor(list(classes)), 0, 0
    text = text_features[chosen]
    with torch.no_grad():
        for pixels, labels in batches:
            rows = torch.isin(labels, chosen)
            if rows.any():
                best = (encode(pixels[rows].to(text.device)) @ text.T).argmax(1).cpu()
                right += int((chosen[best] == labels[rows]).sum())
                total += int(rows.sum())
    if total == 0:
        raise ValueError("There are no pictures to measure on.")
    return right / total
