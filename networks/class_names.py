"""Classes of the released class-conditional networks: their names, and which class each picture of a batch gets.

A network is told its class as a one-hot vector; one of all zeros is the unconditional case (EDM, arXiv 2206.00364).
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

import torch
from torch import Tensor

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

IN_TURN, RANDOM, BY_NUMBER, NONE = "each in turn", "random", "by number", "none"
_SETS = {"CIFAR-10": 10, "ImageNet": 1000}
_NAMED = re.compile(rf"({'|'.join(_SETS)}) (\d+)\b.*")


@lru_cache(maxsize=1)
def imagenet() -> tuple[str, ...]:
    """ImageNet's 1000 names in the order of its labels, which are torchvision's to tell; empty where it doesn't."""
    try:
        from torchvision.models import ResNet18_Weights

        return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    except (ImportError, AttributeError, KeyError):
        return ()


def class_names(classes: int) -> tuple[str, ...]:
    """The names of a network's ``classes``, recognised by their number; empty for sets that aren't known."""
    return {10: CIFAR10, 1000: imagenet()}.get(classes, ())


def class_name(label: int | None, classes: int) -> str:
    """What to call a class: its name, or "class 7"; nothing for no class."""
    if label is None:
        return ""
    names = class_names(classes)
    return names[label] if names else f"class {label}"


def label_choices() -> list[str]:
    """What an artist can choose from: ways to spread classes over a batch, then every class that has a name."""
    named = [f"{kind} {i}: {name}" for kind, count in _SETS.items() for i, name in enumerate(class_names(count))]
    return [IN_TURN, RANDOM, BY_NUMBER, NONE, *named]


def is_choice(choice: str) -> bool:
    """Whether ``choice`` is one of ``label_choices``; of a named class only the set and the number count."""
    match = _NAMED.fullmatch(choice)
    return choice in (IN_TURN, RANDOM, BY_NUMBER, NONE) or (match is not None and int(match[2]) < _SETS[match[1]])


def choose_labels(choice: str, number: int, seed: int, pictures: int, classes: int) -> list[int | None]:
    """The class of every picture of a batch; None is no class. Picture i's depends on its place alone.

    Args:
        choice: One of ``label_choices``.
        number: The class, for "by number".
        seed: For "random".
        pictures: How many.
        classes: How many classes the network knows; 0 for an unconditional one.

    Raises:
        ValueError: The network doesn't know that class.
    """
    if choice == NONE or (classes == 0 and choice in (IN_TURN, RANDOM)):
        return [None] * pictures
    if choice == IN_TURN:
        return [i % classes for i in range(pictures)]
    if choice == RANDOM:
        return [random.Random(f"{seed} {i}").randrange(classes) for i in range(pictures)]
    return [_single(choice, number, classes)] * pictures


def _single(choice: str, number: int, classes: int) -> int:
    match = _NAMED.fullmatch(choice)
    if match is None and choice != BY_NUMBER:
        raise ValueError(f"There is no label '{choice}'; choose '{IN_TURN}', '{RANDOM}', '{BY_NUMBER}', '{NONE}' or a class.")
    if classes == 0:
        raise ValueError(f"This network knows no classes, so there is no '{choice}'; choose '{NONE}' as its label.")
    if match is not None and _SETS[match[1]] != classes:
        raise ValueError(
            f"This network knows {classes} classes, but '{choice}' is one of {_SETS[match[1]]}; choose a class of its own, "
            f"or '{BY_NUMBER}'."
        )
    label = int(match[2]) if match else number
    if not 0 <= label < classes:
        raise ValueError(f"This network knows the classes 0 to {classes - 1}, so there is no class {label}.")
    return label


def one_hot(labels: list[int | None], classes: int) -> Tensor:
    """Label vectors [B, max(classes, 1)] of ``labels``: one-hot, or zeros for no class."""
    vectors = torch.zeros(len(labels), max(classes, 1))
    for row, label in enumerate(labels):
        if label is not None:
            vectors[row, label] = 1
    return vectors
