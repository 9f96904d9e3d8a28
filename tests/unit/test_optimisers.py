"""Optimisers that take less memory: what they keep, that runs go on to the bit, and whose run it is."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.files import bytes_of
from comfyui_apprentice.training import optimisers
from comfyui_apprentice.training.distill import Settings
from comfyui_apprentice.training.loop import Learner, Schedule, run
from comfyui_apprentice.training.optimisers import (
    ADAFACTOR,
    ADAM,
    ADAM_8BIT,
    OPTIMISERS,
    check_optimiser,
    make_optimiser,
    state_bytes,
)
from comfyui_apprentice.training.run_folder import RunFolder
from comfyui_apprentice.training.target import Target
from torch import nn

LIBRARIES = {"bitsandbytes": "bitsandbytes.optim", "torchao": "torchao.optim"}


def only(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no other library were installed; skips without it."""
    module = optimisers._installed(LIBRARIES[library])
    if module is None:
        pytest.skip(f"{library} is not installed")
    monkeypatch.setattr(optimisers, "_installed", lambda name: module if name == LIBRARIES[library] else None)


@pytest.fixture(params=[ADAM, ADAFACTOR, *LIBRARIES])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in LIBRARIES:
        return str(request.param)
    only(request.param, monkeypatch)
    return ADAM_8BIT


class Weights(nn.Module):
    """A matrix that is large enough for 8 bits, one that isn't, and a kernel."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        shapes = (64, 128), (8, 4), (16, 32, 3, 3)
        self.all = nn.ParameterList([nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes])


def learned(kind: str, folder: Path, until: int) -> Weights:
    weights = Weights()
    optimiser = make_optimiser(kind, weights.parameters(), 0.0, (0.0, 0.999))

    def step(number: int, rng: torch.Generator) -> dict[str, float]:
        for value in weights.parameters():
            value.grad = torch.randn(value.shape, generator=rng)
        optimiser.step()
        return {"loss": 0.0}

    over = iter(range(100))
    run({"it": Learner(weights, optimiser, 1e-2)}, step, Schedule(6, 1, 1.0), RunFolder(folder), over=lambda: next(over) >= until)
    return weights


def test_a_run_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole = learned(kind, tmp_path / "whole", 99)
    weights = Weights()
    learned(kind, tmp_path / "parts", 4)
    again = learned(kind, tmp_path / "parts", 99)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole.parameters(), weights.parameters(), strict=True))


def test_what_is_kept_is_what_is_accounted(kind: str) -> None:
    weights = Weights()
    optimiser = make_optimiser(kind, weights.parameters(), 1e-3, (0.0, 0.999))
    for value in weights.parameters():
        value.grad = torch.ones_like(value)
    optimiser.step()
    kept = bytes_of(optimiser.state_dict()["state"])
    assert 0 <= kept - state_bytes(kind, [value.shape for value in weights.parameters()]) <= 3 * 2100  # steps, tables of codes


@pytest.mark.parametrize("library", LIBRARIES)
def test_eight_bits_learn_about_what_adam_learns(library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(library, monkeypatch)
    pairs = zip(learned(ADAM, tmp_path / "a", 99).parameters(), learned(ADAM_8BIT, tmp_path / "b", 99).parameters(), strict=True)
    assert all(float((a - b).detach().abs().max()) < 0.02 for a, b in pairs)


def test_adafactor_s_rate_is_the_given_one_whatever_the_weights_are() -> None:
    """A LoRA's B starts at 0, where PyTorch's own relative rate would be a thousandth."""
    weight = nn.Parameter(torch.zeros(32, 16))
    optimiser = make_optimiser(ADAFACTOR, [weight], 1e-3, (0.0, 0.999))
    weight.grad = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0).expand(32, 16).clone()
    optimiser.step()
    assert torch.allclose(weight, -1e-3 * weight.grad, rtol=1e-3)


def test_without_a_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers, "import_module", lambda name: import_module("no_such_module_" + name.partition(".")[0]))
    with pytest.raises(ValueError, match=r"pip install bitsandbytes .* or choose adafactor"):
        check_optimiser(ADAM_8BIT)
    with pytest.raises(ValueError, match="There is no optimiser 'sgd'; choose one of: adam, adam8bit, adafactor"):
        check_optimiser("sgd")
    assert [check_optimiser(kind) for kind in (ADAM, ADAFACTOR)] == [None, None]


def test_sizes_are_the_closed_forms() -> None:
    shape = [(4096, 64)]
    assert state_bytes(ADAM, shape) == 8 * 4096 * 64
    assert state_bytes(ADAM_8BIT, shape) == 2 * (4096 * 64 + 4 * 1024)
    assert state_bytes(ADAFACTOR, shape) == 4 * (4096 + 64)


# --------------------------------------------------------------------------------------- runs of before, and other runs


def test_a_run_of_before_goes_on_and_its_file_is_known(tmp_path: Path) -> None:
    finetuned = {**asdict(Settings()), "name": "old"}
    facts = {key: value for key, value in finetuned.items() if key not in ("optimiser", "variety")}
    assert finetuned["optimiser"] == ADAM
    RunFolder(tmp_path).claim(facts)
    before = (tmp_path / "run.json").read_text()
    RunFolder(tmp_path).claim(finetuned)
    assert (tmp_path / "run.json").read_text() == before and "optimiser" not in before
    file = tmp_path / "made.safetensors"
    assert Target.of(file, facts).mark == Target.of(file, finetuned).mark


@pytest.mark.parametrize(("begun", "asked"), [("off", "anchor"), ("anchor", "off")])
def test_what_keeps_the_variety_is_of_the_run_too(begun: str, asked: str, tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(asdict(Settings(variety=begun)))
    with pytest.raises(ValueError, match=f"variety was {begun} and is {asked}"):
        RunFolder(tmp_path).check(asdict(Settings(variety=asked)))


@pytest.mark.parametrize(("begun", "asked"), [(ADAM, ADAFACTOR), (ADAFACTOR, ADAM)])
def test_another_optimiser_is_another_run(begun: str, asked: str, tmp_path: Path) -> None:
    def facts(kind: str) -> dict[str, Any]:
        return {**asdict(Settings(optimiser=kind)), "name": "it"}

    RunFolder(tmp_path).claim(facts(begun))
    RunFolder(tmp_path).check(facts(begun))
    with pytest.raises(ValueError, match=f"optimiser was {begun} and is {asked}"):
        RunFolder(tmp_path).check(facts(asked))
    assert Target.of(tmp_path / "x", facts(begun)).mark != Target.of(tmp_path / "x", facts(asked)).mark


def test_the_choices_of_node_and_command_are_these() -> None:
    from comfyui_apprentice.cli.options import Optimiser

    assert tuple(choice.value for choice in Optimiser) == OPTIMISERS
