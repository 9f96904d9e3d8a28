"""Several processes: the same run, in less time. Two real ones that talk by gloo, started as ``accelerate launch`` does."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.networks.edm_pickle import read_edm
from comfyui_apprentice.training.distill import Settings, distil
from comfyui_apprentice.training.edm_task import edm_task
from comfyui_apprentice.training.loop import Watch, read_log
from comfyui_apprentice.training.processes import Processes
from launching import launch
from torch import Tensor

TEACHER = Path(__file__).parents[1] / "data" / "sid" / "tiny_edm_snapshot.pkl"
SETTINGS = Settings(pictures=24, batch=8, fake_rate=1e-3, generator_rate=1e-3, augment=0.12)
OPTIONS = ["--pictures", "24", "--batch", "8", "--lr", "1e-3", "--glr", "1e-3", "--dropout", "0", "--samples-every", "0"]


def alone(checkpoint: Path, settings: Settings = SETTINGS) -> dict[str, Tensor]:
    """What one process makes; without dropout, whose masks are each process's own."""
    return distil(edm_task(read_edm(TEACHER), dropout=0.0), settings, checkpoint).shadow


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To rounding, but for key biases: their true gradient is zero, so that Adam makes full steps of rounding noise."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if not key.endswith("qkv.bias"):
            assert torch.allclose(found[key], value, atol=1e-4), key  # three steps of up to 1e-3


def test_two_processes_make_the_weights_of_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    expected = alone(tmp_path / "alone.pt")
    other = alone(tmp_path / "half.pt", replace(SETTINGS, seed=1))
    with pytest.raises(AssertionError):  # the tolerance tells other pictures apart
        assert_close(other, expected)
    out = tmp_path / "student.safetensors"
    said = launch("-m", "comfyui_apprentice.cli", "distill", "sid", str(TEACHER), "--out", str(out), *OPTIONS)
    assert said.count("2 processes share every batch of 8") == 1
    assert said.count("a student of tiny_edm_snapshot.pkl after 24 pictures") == 1
    assert_close(read_edm(out)[1], expected)
    one, two = torch.load(tmp_path / "alone.pt"), torch.load(tmp_path / "student.run" / "checkpoint.pt")
    for network, weights in one["networks"].items():
        assert_close(two["networks"][network], weights)
    logged = read_log(tmp_path / "student.run" / "loss.jsonl")
    assert [entry["pictures"] for entry in logged] == [24]
    assert logged[0]["generator"] == pytest.approx(one_log(tmp_path)["generator"], rel=1e-3)


def one_log(folder: Path) -> dict[str, float]:
    task, watch = edm_task(read_edm(TEACHER), dropout=0.0), Watch(log=folder / "alone.jsonl")
    distil(task, SETTINGS, folder / "logged.pt", watch=watch)
    return read_log(folder / "alone.jsonl")[0]


def test_when_one_process_is_told_to_stop_all_stop_at_that_step_and_one_can_go_on(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    launch(__file__, str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("stopped-*")) == ["stopped-0-after-2", "stopped-1-after-2"]
    assert torch.load(tmp_path / "run.pt")["step"] == 2
    assert_close(alone(tmp_path / "run.pt"), alone(tmp_path / "alone.pt"))


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


def worker(folder: Path) -> None:
    """One of several processes, of which the second is told to stop after two iterations."""
    processes, taken = Processes.launched(), []

    def counted(step: int, _ema: object) -> None:
        taken.append(step)

    watch = Watch(interrupted=lambda: processes.rank == 1 and len(taken) == 2, after_step=counted)
    try:
        distil(edm_task(read_edm(TEACHER), dropout=0.0), SETTINGS, folder / "run.pt", watch=watch, processes=processes)
    except KeyboardInterrupt:
        (folder / f"stopped-{processes.rank}-after-{len(taken)}").touch()
    processes.end()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
