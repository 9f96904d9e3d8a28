"""The training loop: resuming, averages, logs, several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.training.loop import Ema, Learner, Schedule, Watch, run, train
from comfyui_apprentice.training.run_folder import RunFolder
from torch import Tensor

SCHEDULE = Schedule(pictures=320, batch=8, learning_rate=0.01)


def regression() -> tuple[torch.nn.Linear, Callable[[torch.Generator, int], Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)

    def loss(generator: torch.Generator, size: int) -> Tensor:
        x = torch.randn(size, 4, generator=generator)
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    return model, loss


def interrupted_after(calls: int) -> Callable[[], bool]:
    steps = iter(range(1000))
    return lambda: next(steps) == calls - 1


def test_training_resumed_is_training_never_stopped_to_the_bit(tmp_path: Path) -> None:
    model, loss = regression()
    whole = train(model, loss, SCHEDULE, RunFolder(tmp_path / "whole"), seed=5)
    model, loss = regression()
    with pytest.raises(KeyboardInterrupt):
        train(model, loss, SCHEDULE, RunFolder(tmp_path / "part"), seed=5, watch=Watch(interrupted=interrupted_after(14)))
    torch.manual_seed(99)
    model, loss = regression()
    resumed = train(model, loss, SCHEDULE, RunFolder(tmp_path / "part"), seed=5)
    for key, value in whole.shadow.items():
        assert torch.equal(value, resumed.shadow[key])
    assert not list(tmp_path.glob("*.part"))


def logged(folder: RunFolder) -> list[tuple[int, int, float]]:
    return [(e["step"], e["pictures"], e["loss"]) for e in folder.losses()]


def test_log_of_a_resumed_run_reads_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole, part = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "part")
    model, loss = regression()
    train(model, loss, SCHEDULE, whole, watch=Watch(report_every=10), save_every=7)
    model, loss = regression()
    with pytest.raises(KeyboardInterrupt):
        train(model, loss, SCHEDULE, part, watch=Watch(report_every=10, interrupted=interrupted_after(23)))
    with part.log.open("a") as file:  # what a crash leaves: later than the checkpoint, and torn
        file.write(json.dumps({"step": 30, "pictures": 240, "loss": 9.9}) + '\n{"step": 40, "pic')
    model, loss = regression()
    train(model, loss, SCHEDULE, part, watch=Watch(report_every=10), save_every=7)
    assert logged(part) == logged(whole)
    assert [entry[0] for entry in logged(part)] == [10, 20, 30, 40]


def descent(folder: RunFolder, stop_after: int = 1000, ema: bool = True) -> tuple[torch.nn.ModuleDict, list[int]]:
    """A run whose steps follow their numbers, with a moving average or without."""
    torch.manual_seed(0)
    model, numbers = torch.nn.ModuleDict({"learned": torch.nn.Linear(4, 1)}), list[int]()
    optimiser = torch.optim.Adam(model.parameters())

    def step(number: int, rng: torch.Generator) -> dict[str, float]:
        numbers.append(number)
        optimiser.zero_grad()
        loss = (model["learned"](torch.randn(8, 4, generator=rng)) - number).square().mean()
        loss.backward()
        optimiser.step()
        return {"loss": loss.item()}

    average = Ema(model, 100) if ema else None
    run(
        {"model": Learner(model, optimiser, 0.01)}, step, SCHEDULE, folder, ema=average, ema_of=model if ema else None,
        watch=Watch(interrupted=lambda: len(numbers) == stop_after),
    )  # fmt: skip
    return model, numbers


@pytest.mark.parametrize("ema", [True, False])
def test_steps_are_handed_their_numbers_however_often_a_run_is_resumed(tmp_path: Path, ema: bool) -> None:
    whole, numbers = descent(RunFolder(tmp_path / "whole"), ema=ema)
    assert numbers == list(range(40))
    with pytest.raises(KeyboardInterrupt):
        descent(RunFolder(tmp_path / "part"), 14, ema)
    resumed, numbers = descent(RunFolder(tmp_path / "part"), ema=ema)
    assert numbers == list(range(14, 40))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("counter", ["taken", "counter.taken"])
def test_a_run_begun_by_an_earlier_version_goes_on(tmp_path: Path, counter: str) -> None:
    """Which counted steps beside the weights, and averaged what nobody asked for."""
    whole, _ = descent(RunFolder(tmp_path / "whole"), ema=False)
    folder = RunFolder(tmp_path / "part")
    with pytest.raises(KeyboardInterrupt):
        descent(folder, 14, ema=False)
    state = torch.load(folder.checkpoint, weights_only=True)
    state["networks"]["model"][counter] = torch.tensor(14)
    state["ema"] = dict(state["networks"]["model"])
    torch.save(state, folder.checkpoint)
    resumed, numbers = descent(folder, ema=False)
    assert numbers[0] == 14
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    state["networks"]["model"]["foreign"] = torch.zeros(1)
    torch.save(state, folder.checkpoint)
    with pytest.raises(ValueError, match="is damaged, or another run's"):
        descent(folder, ema=False)


def test_schedule_is_a_function_of_pictures_seen() -> None:
    schedule = Schedule(pictures=1000, batch=10, learning_rate=1.0, warmup=0.1, decay=0.5)
    rates = [schedule.factor(i) for i in range(schedule.steps)]
    assert rates[0] < 0.2 and rates[9] == pytest.approx(1.0) and rates[40] == 1.0 and rates[99] < 0.05
    assert rates[50:] == sorted(rates[50:], reverse=True)
    constant = Schedule(pictures=100, batch=10, learning_rate=1.0, warmup=0.0, decay=0.0)
    assert {constant.factor(i) for i in range(10)} == {1.0}


def test_average_forgets_by_half_in_its_half_life_and_follows_at_once_in_the_beginning() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = Ema(model, half_life=100, rampup=0.05)
    model.weight.data.fill_(1.0)
    ema.update(model, seen=0, batch=10)
    assert ema.shadow["weight"].item() == 1.0  # nothing seen before: the half-life is 0
    model.weight.data.fill_(0.0)
    ema.update(model, seen=10_000, batch=100)
    assert ema.shadow["weight"].item() == pytest.approx(0.5)
    ema.update(model, seen=1_000, batch=50)  # 0.05 * 1,000 pictures are the half-life here
    assert ema.shadow["weight"].item() == pytest.approx(0.25)


def test_a_half_life_of_nothing_is_no_average() -> None:
    model = torch.nn.Linear(1, 1)
    ema = Ema(model, half_life=0.0)
    for seen in (0, 4, 1000):
        model.weight.data += 0.1
        ema.update(model, seen, 4)
        assert torch.equal(ema.shadow["weight"], model.weight)


def test_training_that_diverges_says_so_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    model, _ = regression()
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(model, lambda g, n: model.weight.sum() * float("nan"), Schedule(80, 8, 0.1), RunFolder(tmp_path / "x"))
    assert not RunFolder(tmp_path / "x").checkpoint.exists()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("save_every", [1, 500])
def test_weights_that_are_no_numbers_stop_the_run_before_they_are_saved(tmp_path: Path, save_every: int) -> None:
    """The last step's loss is finite: only the weights tell."""
    model, loss = regression()
    steps = []

    def poisoned(generator: torch.Generator, batch: int) -> Tensor:
        value = loss(generator, batch)
        steps.append(1)
        if len(steps) == 4:
            value.register_hook(lambda gradient: gradient * float("nan"))
        return value

    folder = RunFolder(tmp_path / "x")
    with pytest.raises(FloatingPointError, match="no longer finite after 4 steps; lower the learning rate"):
        train(model, poisoned, Schedule(32, 8, 0.1), folder, save_every=save_every)
    assert folder.checkpoint.exists() == (save_every == 1)
    if save_every == 1:
        kept = torch.load(folder.checkpoint, weights_only=True)
        assert kept["step"] == 3 and all(value.isfinite().all() for value in kept["networks"]["model"].values())
        model, loss = regression()
        train(model, loss, Schedule(32, 8, 0.1), folder)  # goes on from there
