"""A node's inputs, made of a method's options (see ``training.options``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from comfy_api.v0_0_2 import io

from ..training.options import NODE, Offer, offers
from ..training.qualities import AS_SET, settings_of
from . import types

T = TypeVar("T")


def inputs_of(options: type) -> list[Any]:
    """The inputs of a node, in the order of the options."""
    hints = get_type_hints(options)
    return [_input(name, hints[field], offer) for field, name, offer in offers(options, NODE)]


def before(place: str, inputs: list[Any], socket: Any) -> list[Any]:
    """``inputs`` with a socket before the one called ``place``."""
    at = [each.id for each in inputs].index(place)
    return [*inputs[:at], socket, *inputs[at:]]


def read(options: type[T], inputs: Mapping[str, Any]) -> T:
    """The options of a node that was given these ``inputs``, of which ``quality`` may set others."""
    values = {field: _value(inputs.get(name, offer.default), offer) for field, name, offer in offers(options, NODE)}
    return options(**{**values, **settings_of(options, inputs.get("quality"))})


def _value(given: Any, offer: Offer) -> Any:
    """As given; of an optional choice what is no choice is the default: see ``qualities.settings_of``."""
    stray = offer.choices and offer.optional and given not in types.choices(offer.choices)
    return offer.default if stray else given


def quality(words: str = "quality", more: str = "") -> io.Combo.Input:
    """The one choice that sets the rest.

    Args:
        words: The name of the list of choices.
        more: What is said of those that other nodes don't have.
    """
    return io.Combo.Input(
        "quality", options=types.choices(words), default=AS_SET, optional=True,
        tooltip="quick: a first look. good: the numbers that the widgets come with, or more. paper: the published run's. These "
        "three set how long and how much is learned, whatever the widgets say; as set: the widgets count. Pictures, time and "
        "memory are told before it starts." + more,
    )  # fmt: skip


def _input(name: str, kind: type, offer: Offer) -> Any:
    """The input of one option."""
    shared: dict[str, Any] = {"default": offer.default, "tooltip": offer.help, "optional": offer.optional}
    numbers: dict[str, Any] = {"min": offer.least, "max": offer.most, "step": offer.step}
    if offer.choices:
        return io.Combo.Input(name, options=types.choices(offer.choices), **shared)
    if kind is bool:
        return io.Boolean.Input(name, **shared)
    if kind is int:
        return io.Int.Input(name, **shared, **numbers)
    if kind is float:
        return io.Float.Input(name, **shared, **numbers, round=offer.round)
    return io.String.Input(name, **shared, multiline=offer.lines, force_input=offer.socket or None)
