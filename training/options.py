"""Options of a training method, said once: name, default, range and help, from which node and command are made.

A method's options are the fields of a dataclass, each an ``option``. ``nodes.schema`` makes a node's inputs of them and
``cli.options`` a command's options; where the two differ in a name, a default, a range or a text, the field says both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

NODE, COMMAND = "node", "command"


@dataclass(frozen=True)
class Offer:
    """How an option is offered by a node, or by a command.

    Attributes:
        default: None in commands: a preset, or the method, says.
        name: There; "" for the field's own.
        least, most: The range, both included; None without an end.
        step, round: Of a node's widget.
        choices: The name of a list of texts.
        optional: Comes behind a node's sockets and may be missing from old workflows.
        socket: Of a node: no widget.
        lines: A text of several lines.
        flag: Of a command: --name alone, without --no-name.
    """

    default: Any
    help: str = ""
    name: str = ""
    least: float | None = None
    most: float | None = None
    step: float | None = None
    round: float | None = None
    choices: str = ""
    optional: bool = False
    socket: bool = False
    lines: bool = False
    flag: bool = False


def option(
    default: Any, help: str = "", *, node: Mapping[str, Any] | None = {}, command: Mapping[str, Any] | None = {}, **both: Any
) -> Any:  # fmt: skip
    """A field that is an option.

    Args:
        node: What of an ``Offer`` is different in the node; None if it has no such input.
        command: Likewise for the command.
        **both: What is the same, see ``Offer``.
    """
    shared, places = {"default": default, "help": help, **both}, {NODE: node, COMMAND: command}
    return field(default=default, metadata={k: Offer(**{**shared, **more}) for k, more in places.items() if more is not None})


def offers(options: type, where: str) -> Iterator[tuple[str, str, Offer]]:
    """(field, name, offer) of all that is offered by the node, or by the command."""
    for each in fields(options):
        if (offer := each.metadata.get(where)) is not None:
            yield each.name, offer.name or each.name, offer


def given(options: Any, where: str, kind: type) -> dict[str, Any]:
    """What was chosen there, of all that is a field of ``kind`` too; but for what was left open (None)."""
    names = {each.name for each in fields(kind)}
    values = {field: getattr(options, field) for field, _name, _offer in offers(type(options), where) if field in names}
    return {field: value for field, value in values.items() if value is not None}


def chosen(options: Any, *names: str) -> dict[str, Any]:
    """Some options by name, for what a run is made of."""
    return {name: getattr(options, name) for name in names}


# --------------------------------------------------------------------------------------- options of several methods

SEEDS = 0xFFFFFFFF


def precision_option(**command: Any) -> Any:
    """What networks compute in."""
    return option(
        "auto", "auto: bfloat16 where the GPU or CPU has it natively, float32 elsewhere.", node={"choices": "training_precision"},
        command={"choices": "precision", **command} if command else None,
    )  # fmt: skip


def seed_option(**command: Any) -> Any:
    """Of all randomness."""
    return option(
        0, "Of all randomness.", least=0, command=command,
        node={"name": "first_seed", "most": SEEDS, "help": "Decides all randomness of the run."},
    )  # fmt: skip


def checkpointing_option() -> Any:
    """Whether blocks are computed again."""
    return option(True, "Computes a third more and needs far less memory.", command=None)


def optimiser_option(how: str) -> Any:
    """What learns; ``how`` the method's own differs."""
    return option(
        "adam", choices="optimiser", optional=True,
        help=f"adam: 8 bytes beside every number that learns. adam8bit: 2 (needs bitsandbytes or torchao). adafactor: next to "
        f"none, {how}",
    )  # fmt: skip


def side_option(which: str) -> Any:
    """Width or height of what a node draws."""
    return option(512, which, least=16, most=16384, step=8, command=None)


def rate_option(default: float, help: str, least: float, most: float, command: float | None = None) -> Any:
    """The highest learning rate; ``command`` has another default."""
    return option(
        default, node={"help": help, "least": least, "most": most, "step": 0.0001, "round": least},
        command={"name": "lr", "help": "Highest learning rate.", "default": default if command is None else command},
    )  # fmt: skip
