"""Options said once: what a node and a command make of a dataclass, and how people follow a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch
import typer
from comfyui_apprentice.cli.options import with_options
from comfyui_apprentice.training import progress as following
from comfyui_apprentice.training.distill import Settings
from comfyui_apprentice.training.finetune_options import FinetuneOptions
from comfyui_apprentice.training.options import COMMAND, NODE, given, offers, option
from comfyui_apprentice.training.progress import Clock, Progress, Screen
from comfyui_apprentice.training.promptkd_options import CriticOptions, TeacherOptions
from comfyui_apprentice.training.sid_options import SidOptions
from typer.testing import CliRunner


@dataclass(frozen=True)
class Choices:
    rank: int = option(8, "Rank.", least=1, most=64, command=None)
    batch: int = option(4, "Pictures a step.", least=1, node={"name": "batch_size", "most": 99}, command={"default": None})
    precision: str = option("fp32", "What it computes in.", choices="precision", node=None)
    augment: bool = option(True, "Crops.", node=None)
    force: bool = option(False, "Overwrite.", node=None, flag=True)


def test_node_and_command_have_each_their_own_name_default_and_range() -> None:
    node, command = ({name: offer for _field, name, offer in offers(Choices, where)} for where in (NODE, COMMAND))
    assert list(node) == ["rank", "batch_size"] and list(command) == ["batch", "precision", "augment", "force"]
    assert (node["batch_size"].default, node["batch_size"].most) == (4, 99)
    assert (command["batch"].default, command["batch"].least, command["batch"].most) == (None, 1, None)


def test_a_command_takes_options_by_name_and_refuses_what_is_out_of_range(tmp_path: Path) -> None:
    taken: list[Choices] = []
    app = typer.Typer()

    @app.command()
    @with_options
    def run(file: Annotated[Path, typer.Argument()], options: Choices) -> None:
        taken.append(options)

    invoke = lambda *arguments: CliRunner().invoke(app, [str(tmp_path), *arguments]).exit_code  # noqa: E731
    assert invoke() == 0 and taken[-1] == Choices(batch=None)
    assert invoke("--batch", "2", "--precision", "bf16", "--no-augment", "--force") == 0
    assert taken[-1] == Choices(batch=2, precision="bf16", augment=False, force=True)
    assert invoke("--batch", "0") == invoke("--precision", "fp8") == invoke("--rank", "2") == invoke("--no-force") == 2


def test_a_command_leaves_to_the_preset_what_it_was_not_given() -> None:
    options = SidOptions(**{**dict.fromkeys(name for name, *_ in offers(SidOptions, COMMAND)), "alpha": 1.1})
    assert given(options, COMMAND, Settings) == {"alpha": 1.1}
    assert given(SidOptions(), NODE, Settings)["kappa1"] == 1.5


@pytest.mark.parametrize("options", [SidOptions, FinetuneOptions, TeacherOptions, CriticOptions])
@pytest.mark.parametrize("where", [NODE, COMMAND])
def test_defaults_are_in_range_and_every_option_is_explained(options: type, where: str) -> None:
    for _field, name, offer in offers(options, where):
        assert offer.help, name
        if isinstance(offer.default, int | float):
            assert (offer.least is None or offer.default >= offer.least) and (offer.most is None or offer.default <= offer.most)


def test_the_time_left_counts_from_where_a_run_was_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0, 160.0, 5000.0])
    monkeypatch.setattr(following.time, "monotonic", lambda: next(now))
    clock = Clock()
    assert clock.left(50, 100) == "estimating the time left"
    clock.step(50)
    assert clock.left(51, 60) == "about 9 min left"  # a step took a minute
    assert clock.left(51, 60) == "about 12 h 15 min left"


def test_a_run_is_shown_step_by_step_with_what_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following.time, "monotonic", lambda: 0.0)
    shown: list[object] = []

    class Recorder(Screen):
        def bar(self, done: int, total: int, text: str = "", preview: object = None) -> None:
            shown.append((done, total, text, preview and preview()))

        def say(self, text: str) -> None:
            shown.append(text)

    stopped: list[bool] = []
    progress = Progress(Recorder(lambda: bool(stopped)), 1000, look=lambda step, _: (lambda: f"after {step}"), preview=len)
    progress.drawing(4, 8, torch.zeros(2))
    watch = progress.watch
    assert watch.after_step and watch.report
    watch.after_step(1, {})
    watch.report(1, 16, {"loss": 0.5})
    watch.say("16 MB a save")
    estimating = "estimating the time left"
    assert shown == [
        (4, 8, f"Pictures of the model as it is: 4 of 8 evaluations, {estimating}", 2), (1, 1000, "", "after 1"),
        f"1 of 1,000 steps, 16 pictures seen, loss 0.5, {estimating}", "16 MB a save",
    ]  # fmt: skip
    stopped.append(True)
    with pytest.raises(KeyboardInterrupt):
        progress.drawing(8, 8, torch.zeros(2))
