"""A handful of kills; ``python -m tests.faults --count 100`` makes as many as you like."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import kills
from harness import Comfy


@pytest.fixture(scope="module")
def commands() -> Iterator[dict[str, kills.Command]]:
    with kills.commands() as commands:
        yield commands


@pytest.mark.parametrize("name", ["distill", "finetune in rounds", "models pull", "draw"])
def test_a_killed_command_goes_on_to_the_same_bits(name: str, commands: dict[str, kills.Command], tmp_path: Path) -> None:
    whole = kills.whole_run(commands[name], tmp_path / "run")
    assert kills.kill_command(commands[name], tmp_path / "run", whole, random.Random(name)) == ""


def test_a_run_in_a_killed_comfyui_goes_on_to_the_same_bits(comfy: Comfy) -> None:
    names = ["Reward Finetune", "calibrate"]
    assert list(kills.kill_in_comfyui(comfy, names, random.Random(0))) == [(name, "") for name in names]


def test_a_difference_of_one_bit_or_one_file_is_found(tmp_path: Path) -> None:
    """And what kills may change is left out: times, the lock, the run's own name."""
    for folder, name, seconds, loss in (("a", "one", 1.0, 0.5), ("b", "two", 2.0, 0.5), ("c", "one", 1.0, 0.5000001)):
        place = tmp_path / folder
        place.mkdir()
        (place / f"{name}.jsonl").write_text(f'{{"loss": {loss}, "seconds_a_step": {seconds}}}\n')
        (place / ".lock").write_text(name)
    one, two, three = (kills.made(tmp_path / folder, name) for folder, name in (("a", "one"), ("b", "two"), ("c", "one")))
    assert kills.difference(one, two) == "" and kills.difference(one, three) == "/NAME.jsonl/0/loss"
    (tmp_path / "b" / ".x.1.2.part").mkdir()
    (tmp_path / "b" / ".x.1.2.part" / "file").touch()
    assert ".x.1.2.part/file" in kills.difference(one, kills.made(tmp_path / "b", "two"))
