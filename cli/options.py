"""A command's options, made of a method's (see ``training.options``)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Annotated, Any, Optional, get_type_hints

import typer

from ..training.options import COMMAND, Offer, offers


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


_CHOICES: dict[str, type[Enum]] = {"device": Device, "precision": Precision}


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as a command: its parameters that are dataclasses of options are options by name on the command line."""
    hints = get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    parameters = [p for q in inspect.signature(function).parameters.values() for p in _parameters(q, hints, groups)]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        for group, kind in groups.items():
            fields = {field: _plain(values.pop(name)) for field, name, _ in offers(kind, COMMAND)}
            values[group] = kind(**fields)
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
    kind = groups[parameter.name]
    types = get_type_hints(kind)
    for field, name, offer in offers(kind, COMMAND):
        annotation: Any = Annotated.__class_getitem__((_kind(types[field], offer), _typer(name, offer)))  # type: ignore[attr-defined]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(offer), annotation=annotation)


def _kind(kind: Any, offer: Offer) -> Any:
    kind = _CHOICES.get(offer.choices, kind)
    return Optional[kind] if offer.default is None else kind  # noqa: UP045 - the type is a value here


def _typer(name: str, offer: Offer) -> Any:
    names = (f"--{name.replace('_', '-')}",) if offer.flag else ()
    return typer.Option(*names, help=offer.help, min=offer.least, max=offer.most)


def _default(offer: Offer) -> Any:
    return _CHOICES[offer.choices](offer.default) if offer.choices and offer.default is not None else offer.default


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
