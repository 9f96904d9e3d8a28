"""Several processes: the same run, in less time. Two real ones that talk by gloo, started as ``accelerate launch`` does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.cli import app
from comfyui_apprentice.training.distill import Settings, distil
from comfyui_apprentice.training.edm_task import edm_task
from comfyui_apprentice.training.processes import Processes
from comfyui_apprentice.training.run_folder import RunFolder
from comfyui_apprentice.weights.edm_pickle import read_edm
from comfyui_apprentice.world.weights import CLIPS_FOLDER, CRITICS_FOLDER, EDM_FOLDER
from icons import save_icons
from launching import launch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

LARGE, SMALL = (CLIPS_FOLDER / f"tiny world {size}.safetensors" for size in ("large", "small"))
CRITIC, DIGITS = CRITICS_FOLDER / "tiny world critic.safetensors", EDM_FOLDER / "coloured digits teacher.safetensors"
TEACHER = Path(__file__).parents[1] / "data" / "sid" / "tiny_edm_snapshot.pkl"
SETTINGS = Settings(pictures=24, batch=8, fake_rate=1e-3, generator_rate=1e-3, augment=0.12)
OPTIONS = ["--pictures", "24", "--batch", "8", "--lr", "1e-3", "--glr", "1e-3", "--dropout", "0", "--samples-every", "0"]


def alone(folder: Path, settings: Settings = SETTINGS) -> dict[str, Tensor]:
    """What one process makes; without dropout, whose masks are each process's own."""
    return distil(edm_task(read_edm(TEACHER), dropout=0.0), settings, RunFolder(folder)).shadow


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To rounding, but for key biases: their true gradient is zero, so that Adam makes full steps of rounding noise."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if not key.endswith("qkv.bias"):
            assert torch.allclose(found[key], value, atol=1e-4), key  # three steps of up to 1e-3


def sid(out: Path) -> list[object]:
    return ["distill", "sid", TEACHER, "--out", out, *OPTIONS]


def teach(icons: Path, out: Path) -> list[object]:
    return ["distill", "promptkd-teacher", LARGE, icons / "pictures", "--epochs", 2, "--shots", 1, "--out", out]


def critic(icons: Path, out: Path, *more: object) -> list[object]:
    words = ["--words", icons / "words.txt", "--epochs", 2, "--weight", 100]
    return ["distill", "promptkd", LARGE, SMALL, icons / "pictures", *words, "--out", out, *more]


def tune(icons: Path, out: Path) -> list[object]:
    quick = ["--updates", 2, "--batch", 4, "--steps", 4, "--base-draws", 8, "--lr", 1e-3]
    return ["finetune", DIGITS, CRITIC, "--clip", SMALL, "--prompts", icons / "prompts.txt", "--out", out, *quick]


def run(command: list[object]) -> None:
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = save_icons(tmp_path_factory.mktemp("icons"))
    (base / "prompts.txt").write_text("\n".join(["red circle", "blue circle"] * 5), encoding="utf-8")
    return base


@pytest.fixture(scope="module")
def two(icons: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where two processes left what they made by every command that can share its work, and what they said."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("two")
    commands = [
        sid(folder / "student.safetensors"), ["stopped", TEACHER, folder], teach(icons, folder / "tokens.safetensors"),
        critic(icons, folder / "critic.safetensors"), tune(icons, folder / "tuned.safetensors"),
    ]  # fmt: skip
    return folder, launch(commands, folder)  # type: ignore[arg-type]


def test_two_processes_make_the_student_of_one(two: tuple[Path, str], tmp_path: Path) -> None:
    folder, said = two
    expected = alone(tmp_path / "alone")
    other = alone(tmp_path / "half", replace(SETTINGS, seed=1))
    with pytest.raises(AssertionError):  # the tolerance tells other pictures apart
        assert_close(other, expected)
    assert said.count("2 processes share every batch of 8") == 1
    assert said.count("a student of tiny_edm_snapshot.pkl after 24 pictures") == 1
    assert_close(read_edm(folder / "student.safetensors")[1], expected)
    checkpoints = torch.load(tmp_path / "alone" / "checkpoint.pt"), torch.load(folder / "student.run" / "checkpoint.pt")
    for network, weights in checkpoints[0]["networks"].items():
        assert_close(checkpoints[1]["networks"][network], weights)
    logged = RunFolder(folder / "student.run").losses()
    assert [entry["pictures"] for entry in logged] == [24]
    assert logged[0]["generator"] == pytest.approx(RunFolder(tmp_path / "alone").losses()[0]["generator"], rel=1e-3)


def test_when_one_process_is_told_to_stop_all_stop_at_that_step_and_one_can_go_on(
    two: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _said = two
    assert sorted(path.name for path in folder.glob("stopped-*")) == ["stopped-0-after-2", "stopped-1-after-2"]
    assert torch.load(folder / "run" / "checkpoint.pt")["step"] == 2
    shutil.copytree(folder / "run", tmp_path / "run")
    assert_close(alone(tmp_path / "run"), alone(tmp_path / "alone"))


def test_two_processes_make_the_critic_of_one(two: tuple[Path, str], icons: Path, tmp_path: Path) -> None:
    folder, said = two
    run(teach(icons, tmp_path / "tokens.safetensors"))
    run(critic(icons, tmp_path / "critic.safetensors"))
    run(critic(icons, tmp_path / "other.safetensors", "--seed", 1))
    assert said.count("6 classes from 24 pictures without labels") == 1
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("critic", "other"))
    shared = load_file(folder / "critic.safetensors")
    assert all(torch.allclose(one[key], shared[key], atol=1e-4) for key in one)
    assert not all(torch.allclose(one[key], other[key], atol=1e-4) for key in one)
    one, shared = (load_file(where / "tokens.safetensors") for where in (tmp_path, folder))
    assert all(torch.allclose(one[key], shared[key], atol=1e-5) for key in one)


def test_two_processes_tune_the_network_of_one(two: tuple[Path, str], icons: Path, tmp_path: Path) -> None:
    run(tune(icons, tmp_path / "tuned.safetensors"))
    one, shared = (read_edm(where / "tuned.safetensors")[1] for where in (tmp_path, two[0]))
    before = read_edm(DIGITS)[1]
    moved = max(float((one[key] - before[key]).abs().max()) for key in one)
    assert moved > 1e-4
    assert all((one[key] - shared[key]).abs().max() < 0.1 * moved for key in one if not key.endswith("qkv.bias"))


def test_a_batch_is_shared_out_evenly_or_not_at_all() -> None:
    rows = [Processes(rank, 3).rows(12) for rank in range(3)]
    assert [list(range(12))[part] for part in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match="make it a multiple of 3"):
        Processes(0, 3).rows(10)


def test_one_process_exchanges_nothing() -> None:
    one, parameter = Processes.launched(), torch.nn.Parameter(torch.ones(2))
    one.add_gradients([parameter])
    assert (one.count, one.main, parameter.grad) == (1, True, None)
    assert one.any(True) and not one.any(False) and one.total({"a": 2.0}) == {"a": 2.0}
