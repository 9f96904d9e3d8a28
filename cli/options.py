"""A command's options, made of a method's (see ``training.options``)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Annotated, Any, get_type_hints

import typer

from ..training.options import COMMAND, offers


class Device(str, Enum):
    """Where to compute; auto takes a GPU if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Precision(str, Enum):
    """What the networks compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Target(str, Enum):
    """What a critic learns from its teacher."""

    CLASSES = "classes"
    ODDS = "odds"


class Start(str, Enum):
    """How a critic's projector begins."""

    RANDOM = "random"
    WORDS = "words"


class Variety(str, Enum):
    """What keeps a student's variety beside SiD."""

    OFF = "off"
    ANCHOR = "anchor"
    CONSISTENCY = "consistency"


class Optimiser(str, Enum):
    """What learns."""

    ADAM = "adam"
    ADAM_8BIT = "adam8bit"
    ADAFACTOR = "adafactor"


_CHOICES: dict[str, type[Enum]] = {
    "device": Device, "precision": Precision, "critic_target": Target, "critic_start": Start, "variety": Variety,
    "optimiser": Optimiser,
}  # fmt: skip


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as a command: its parameters that are dataclasses of options are options by name on the command line."""
    hints = get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    parameters = [p for q in inspect.signature(function).parameters.values() for p in _parameters(q, hints, groups)]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        for group, kind in groups.items():
            chosen = {field: values.pop(name) for field, name, _ in offers(kind, COMMAND)}
            values[group] = kind(**{field: v.value if isinstance(v, Enum) else v for field, v in chosen.items()})
        function(**values)

    del command.__wrapped__  # type: ignore[attr-defined] # whose parameters are others
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _parameters(
    parameter: inspect.Parameter, hints: dict[str, Any], groups: dict[str, type]
) -> Iterator[inspect.Parameter]:
    """What stands for a parameter on the command line: itself, or its options."""
    if parameter.name not in groups:
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        return
    group = groups[parameter.name]
    types = get_type_hints(group)
    for field, name, offer in offers(group, COMMAND):
        kind, default = _CHOICES.get(offer.choices, types[field]), offer.default
        if offer.choices and default is not None:
            default = kind(default)
        flag = (f"--{name.replace('_', '-')}",) if offer.flag else ()
        info = typer.Option(*flag, help=offer.help, min=offer.least, max=offer.most)
        annotation = Annotated[kind | None if default is None else kind, info]  # type: ignore[valid-type]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
