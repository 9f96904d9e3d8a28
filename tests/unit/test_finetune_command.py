"""``apprentice finetune``: an EDM network tuned by a critic, stopped and resumed, and told in words what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfyui_apprentice.cli import app
from comfyui_apprentice.training import control_losses
from comfyui_apprentice.training.run_folder import RunFolder
from comfyui_apprentice.weights.checkpoints import read_metadata
from comfyui_apprentice.weights.edm_pickle import read_edm
from comfyui_apprentice.world.weights import CLIPS_FOLDER, CRITICS_FOLDER, EDM_FOLDER
from typer.testing import CliRunner

TEACHER = EDM_FOLDER / "coloured digits teacher.safetensors"
CRITIC, SMALL = CRITICS_FOLDER / "tiny world critic.safetensors", CLIPS_FOLDER / "tiny world small.safetensors"
QUICK = ["--updates", "4", "--batch", "4", "--steps", "6", "--base-draws", "8", "--save-every", "1", "--lr", "1e-3"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """One for each digit; the critic knows none, but it can still be flattered."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(["red circle", "blue circle"] * 5), encoding="utf-8")
    return path


def run(prompts: Path, out: Path, *more: str, code: int = 0) -> str:
    arguments = [str(TEACHER), str(CRITIC), "--clip", str(SMALL), "--prompts", str(prompts), "--out", str(out), *QUICK, *more]
    result = CliRunner().invoke(app, ["finetune", *arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("algorithm", ["adjoint_matching", "weighted_regression"])
def test_a_network_is_tuned_and_read_again(prompts: Path, tmp_path: Path, algorithm: str) -> None:
    out = tmp_path / "tuned.safetensors"
    assert "nats a picture" in run(prompts, out, "--algorithm", algorithm)
    (before, old), (after, new) = read_edm(TEACHER), read_edm(out)
    assert {k: v for k, v in after.items() if k != "use_fp16"} == {k: v for k, v in before.items() if k != "use_fp16"}
    assert any(not torch.equal(old[key], new[key]) for key in old)
    card = read_metadata(out)
    assert card["algorithm"] == algorithm and card["oracle"].startswith("tiny world critic") and float(card["alpha"]) > 0
    assert len(RunFolder(tmp_path / "tuned.run").losses()) >= 1
    before_again = out.read_bytes()
    assert "such as 'tuned 2', or add --force" in run(prompts, out, "--algorithm", algorithm, "--seed", "7", code=2)
    assert out.read_bytes() == before_again
    run(prompts, out, "--algorithm", algorithm)  # its own file


def test_a_stopped_run_goes_on_to_the_same_network(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(prompts, tmp_path / "whole.safetensors")
    real, taken = control_losses.adjoint_step, []

    def interrupted(*arguments: object, **options: object) -> object:
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(control_losses, "adjoint_step", interrupted)
    assert "Stopped: 2 of 4 steps" in run(prompts, tmp_path / "cut.safetensors", code=130)
    monkeypatch.setattr(control_losses, "adjoint_step", real)
    run(prompts, tmp_path / "cut.safetensors")
    whole, cut = (read_edm(tmp_path / f"{name}.safetensors")[1] for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_what_is_wrong_is_told_in_words(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    assert "There is no algorithm 'magic'" in run(prompts, out, "--algorithm", "magic", code=2)
    assert "can't be seen on" in run(prompts, out, "--value", "99", code=2)
    prompts.write_text("one\n", encoding="utf-8")
    assert "There are 1 prompts, and the network has 10 classes" in run(prompts, out, code=2)
    arguments = ["finetune", str(TEACHER), str(CRITIC), "--prompts", str(prompts), "--out", str(out)]
    said = CliRunner().invoke(app, arguments).output
    assert "--clip" in said


OUT = ["--out", "x.safetensors"]
NUMBERS = [
    (["finetune", "a.pkl", "b.safetensors", "--prompts", "p.txt", *OUT], ["--value", "--lr"]),
    (["distill", "sid", "a.pkl", *OUT], ["--lr", "--glr", "--alpha", "--augment", "--dropout", "--adversarial"]),
    (["distill", "promptkd", "a", "b", "c", "--words", "d", *OUT], ["--lr", "--weight", "--temperature"]),
    (["distill", "promptkd-teacher", "a", "b", *OUT], ["--lr"]),
    (["bench", "promptkd"], ["--weight"]),
    (["prefer", "a.pkl", "b.jsonl", "--prompts", "p.txt", *OUT], ["--beta", "--lr"]),
]


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_of_commands_are_numbers(number: str) -> None:
    """NaN passes a parser's min and max."""
    for words, options in NUMBERS:
        for option in options:
            result = CliRunner().invoke(app, [*words, f"{option}={number}"])
            said = " ".join(result.output.replace("│", " ").split())
            assert result.exit_code == 2 and option in said, said
            assert f"is {number}; it must be a number" in said or "Input should be" in said, said
