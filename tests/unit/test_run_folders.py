"""Run folders: whose they are, what is kept in them, and what deletions, kills, damage and full disks do to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_apprentice import files
from comfyui_apprentice.benchmarks import control_toy as toy
from comfyui_apprentice.cli import app
from comfyui_apprentice.files import DiskFull, save_safetensors_atomically, write_atomically
from comfyui_apprentice.gate.controller import FileController, load
from comfyui_apprentice.training import distill
from comfyui_apprentice.training.baseline import base_rewards
from comfyui_apprentice.training.finetune import finetune
from comfyui_apprentice.training.finetune_task import Settings, Task
from comfyui_apprentice.training.loop import Schedule, Watch, train
from comfyui_apprentice.training.run_folder import RunFolder
from torch import Tensor
from typer.testing import CliRunner

TEACHER = Path(__file__).parents[1] / "data" / "sid" / "tiny_edm_snapshot.pkl"
SHORT = ["--pictures", "8", "--batch", "4", "--save-every", "1", "--samples-every", "0", "--device", "cpu"]
QUICK = Settings(value=0.5, updates=4, batch=8, count=4, last=1, learning_rate=1e-2, base_draws=16, pool=16, rounds=2)
POOLS = replace(QUICK, algorithm="weighted_regression")
SCHEDULE = Schedule(pictures=80, batch=8, learning_rate=0.01)


def task(shift: float = 0.0, seed: int = 0, **facts: Any) -> Task:
    """The 1-D mixture, with an oracle that ``shift`` makes another."""
    network = toy.Control(seed)

    def labelled(denoise: Any) -> Any:
        return lambda x, sigma, rows: denoise(x, sigma)

    def reward(x: Tensor, rows: Tensor) -> Tensor:
        return toy.reward(x - shift)

    return Task(labelled(toy.denoise), labelled(network), network, reward, lambda rows: rows, 2, toy.levels(8), (1,), facts=facts)


def regression() -> tuple[torch.nn.Linear, Callable[[torch.Generator, int], Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, lambda g, n: (model(x := torch.randn(n, 4, generator=g))[:, 0] - x.sum(1)).square().mean()


def sid(out: Path, *more: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["distill", "sid", str(TEACHER), "--out", str(out), *SHORT, *more])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def killed(*_: Any, **__: Any) -> Any:
    raise SystemExit(9)


# ------------------------------------------------------------------------------------------------ other settings


def test_a_run_killed_before_its_first_checkpoint_holds_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, out = distill.distil, tmp_path / "a.safetensors"
    monkeypatch.setattr(distill, "distil", killed)
    sid(out, "--alpha", "1.2", code=9)
    assert json.loads((tmp_path / "a.run" / "run.json").read_text())["alpha"] == 1.2  # written before the work
    monkeypatch.setattr(distill, "distil", real)
    assert "alpha was 1.2 and is 1.0" in sid(out, "--alpha", "1.0", code=2)
    sid(out, "--alpha", "1.2")


def test_a_run_that_is_refused_before_its_first_checkpoint_leaves_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise ValueError("no such strength")

    real, out = distill.distil, tmp_path / "a.safetensors"
    monkeypatch.setattr(distill, "distil", refused)
    sid(out, "--alpha", "1.2", code=2)
    monkeypatch.setattr(distill, "distil", real)
    sid(out, "--alpha", "1.0")


def test_a_record_of_an_older_version_is_asked_only_for_what_it_has(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "run.json").write_text('{"alpha": 1.0}')
    folder.checkpoint.touch()
    folder.check({"alpha": 1.0, "prompts": ["a"]})
    with pytest.raises(ValueError, match=r"with another alpha \(alpha was 1.0 and is 2.0\): take another name, or delete"):
        folder.check({"alpha": 2.0, "prompts": ["a"]})


@pytest.mark.parametrize(
    "changes", [{"oracle": "b"}, {"prompts": ["x", "z"]}, {"size": [64, 32]}, {"model": "n"}, {"seed": 1}, {"base_draws": 24}]
)
def test_base_rewards_of_another_run_are_drawn_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Under the same name: else the strength would be found from another oracle's or prompts' scores."""
    facts = {"oracle": "a", "prompts": ["x", "y"], "size": [64, 64], "model": "m"}
    settings = replace(POOLS, base_draws=16)
    file = tmp_path / "base_rewards.json"
    first = base_rewards(task(**facts), settings, file, lambda: False)
    asked = replace(settings, **{key: value for key, value in changes.items() if key not in facts})
    other = task(1.0, **{**facts, **{key: value for key, value in changes.items() if key in facts}})
    found = base_rewards(other, asked, file, lambda: False)
    assert torch.equal(found, base_rewards(other, asked, tmp_path / "alone.json", lambda: False))
    assert found.shape != first.shape or not torch.equal(found, first)


def test_base_rewards_of_the_same_run_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = base_rewards(task(oracle="a"), QUICK, tmp_path / "r.json", lambda: False)
    monkeypatch.setattr(Task, "draw", killed)
    assert torch.equal(first, base_rewards(task(oracle="a"), replace(QUICK, part=3), tmp_path / "r.json", lambda: False))


def test_pools_of_another_run_are_drawn_anew(tmp_path: Path) -> None:
    finetune(task(oracle="a"), POOLS, RunFolder(tmp_path / "used"))
    (tmp_path / "used" / "checkpoint.pt").unlink()
    found, _ = finetune(task(1.0, oracle="b"), POOLS, RunFolder(tmp_path / "used"))
    alone, _ = finetune(task(1.0, oracle="b"), POOLS, RunFolder(tmp_path / "alone"))
    assert all(torch.equal(found.shadow[key], alone.shadow[key]) for key in alone.shadow)


# ------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_is_told_beside_a_checkpoint_and_healed_without(tmp_path: Path, content: bytes) -> None:
    folder, facts = RunFolder(tmp_path), {"alpha": 1.0}
    (tmp_path / "run.json").write_bytes(content)
    folder.claim(facts)
    assert json.loads((tmp_path / "run.json").read_text())["alpha"] == 1.0
    folder.checkpoint.touch()
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"its run.json is missing or damaged"):
        folder.claim(facts)


def test_damaged_lines_of_the_log_are_left_out_and_the_rest_is_kept(tmp_path: Path) -> None:
    good = [{"step": step, "pictures": 8 * step, "loss": 0.5} for step in (1, 2, 3)]
    torn = [b'{"step": 1', b"7", b"null", b'{"loss": 1}', b'{"step": "x", "pictures": 1}', b"\xff\xfe\x00", b"[" * 100_000, b""]
    lines = [json.dumps(entry).encode() for entry in good]
    (tmp_path / "loss.jsonl").write_bytes(b"\n".join([lines[0], *torn, lines[1], lines[2], b'{"step": 4, "pict']))
    folder = RunFolder(tmp_path)
    assert folder.losses() == good
    model, loss = regression()
    train(model, loss, SCHEDULE, folder, watch=Watch(report_every=5))
    assert [entry["step"] for entry in folder.losses()] == [5, 10]


@pytest.mark.parametrize("content", [b"", b"[[1.0, 2.0]]", b'{"key": 1}', b"7", b'{"key": "KEY", "rewards": [[1, "x"], 3]}',
                                     b'{"key": "KEY", "rewards": [[1.0]]}', b"\xff"])  # fmt: skip
def test_damaged_base_rewards_are_drawn_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "base_rewards.json"
    right = base_rewards(task(), QUICK, file, lambda: False)
    file.write_bytes(content.replace(b"KEY", json.loads(file.read_text())["key"].encode()))
    assert torch.equal(base_rewards(task(), QUICK, file, lambda: False), right)


@pytest.mark.parametrize("damage", [lambda b: b[:99], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_a_damaged_pool_is_drawn_anew_and_a_damaged_checkpoint_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole, _ = finetune(task(), POOLS, RunFolder(tmp_path))
    checkpoint, pool = tmp_path / "checkpoint.pt", tmp_path / "pool_0.safetensors"
    checkpoint.unlink()
    pool.write_bytes(damage(pool.read_bytes()))
    again, _ = finetune(task(), POOLS, RunFolder(tmp_path))
    assert all(torch.equal(whole.shadow[key], again.shadow[key]) for key in whole.shadow)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(ValueError, match=r"'checkpoint.pt' of the run '.*' is damaged"):
        finetune(task(), POOLS, RunFolder(tmp_path))


def test_a_folder_deleted_in_mid_run_is_made_again_with_its_record_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    facts, settings = {"alpha": 1.0}, replace(POOLS, updates=12)

    def tune(name: str, stop_at: int = 99, delete_at: int = 99, **more: Any) -> Any:
        folder = RunFolder(tmp_path / name)

        def after_step(step: int, _average: Any) -> None:
            if step == delete_at:
                shutil.rmtree(folder.path)

        asked = iter(range(1000))
        watch = Watch(report_every=1, after_step=after_step, interrupted=lambda: next(asked) - 2 == stop_at)
        with folder.held(facts):
            return finetune(task(**more), settings, folder, watch=watch, save_every=2)[0].shadow

    whole = tune("whole")
    with pytest.raises(KeyboardInterrupt):  # deleted within the second round; killed once it has been saved again
        tune("cut", stop_at=9, delete_at=8)
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["alpha"] == 1.0
    assert (tmp_path / "cut" / "pool_1.safetensors").exists()
    again = tune("cut", seed=5)
    assert all(torch.equal(whole[key], again[key]) for key in whole)


# ---------------------------------------------------------------------------------------------------------- locks


HOLD = """
import sys
from pathlib import Path
from comfyui_apprentice.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).held({"alpha": 1.2}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_in_one_folder_are_told_and_the_lock_of_a_killed_one_does_not_block(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a.run")
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    before = sorted(tmp_path.rglob("*"))
    said = sid(tmp_path / "a.safetensors", "--alpha", "1.2", code=2)
    assert "Another process works on the run 'a.run'" in said and sorted(tmp_path.rglob("*")) == before
    other.kill()
    other.communicate()
    with folder.held({"alpha": 1.2}), pytest.raises(ValueError, match="Another process works"):
        folder.held({"alpha": 1.2}).__enter__()  # nor two in one process
    with folder.held({"alpha": 1.2}):
        pass


def judge_many(path: Path, name: str, count: int) -> None:
    for number in range(count):
        FileController(path).judge([0.5], [f"{name} {number}"], 0.5, "oracle", "an oracle")


def test_two_processes_on_one_controller_file_count_every_picture(tmp_path: Path) -> None:
    """400 judged are 400 counted; 209 were."""
    path, fork = tmp_path / "default.json", multiprocessing.get_context("fork")
    judges = [fork.Process(target=judge_many, args=(path, name, 200)) for name in ("a", "b")]
    for judge in judges:
        judge.start()
    for judge in judges:
        judge.join()
    assert [judge.exitcode for judge in judges] == [0, 0]
    assert load(path).pictures == 400 and len(load(path).judged) == 400


# ------------------------------------------------------------------------------------------- kills and full disks


def dead_process() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_what_killed_processes_left_is_swept_when_a_run_takes_its_folder_and_nothing_else(tmp_path: Path) -> None:
    dead, own, live = dead_process(), os.getpid(), os.getppid()
    left = [f".checkpoint.pt.7.{dead}.part", f".pool_0.safetensors.{own}.part", f".x.{dead}.part"]
    kept = [f".checkpoint.pt.7.{live}.part", f"checkpoint.pt.{dead}.part", ".judge.safetensors.0123456789ab.part", "notes.part",
            ".judge.safetensors.012345678901.part", f".x.{dead}.partial"]  # fmt: skip
    for name in [*left, *kept]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / left[0]).unlink()
    (tmp_path / left[0]).mkdir()
    (tmp_path / left[0] / ".tmpAbCdEf").write_bytes(b"x")  # what safetensors writes to
    with RunFolder(tmp_path).held({}):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".lock", "run.json"])


def test_what_a_killed_process_left_of_a_file_is_swept_when_it_is_written_again(tmp_path: Path) -> None:
    """A student's, beside those of others: up to a checkpoint each."""
    left, other = (tmp_path / f".{name}.7.{dead_process()}.part" for name in ("a.safetensors", "b.safetensors"))
    left.mkdir()
    other.mkdir()
    save_safetensors_atomically({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "a.safetensors"])


def nearly_full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))


def test_a_disk_too_full_for_a_runs_saves_is_told_before_the_work_with_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one checkpoint is kept, however often it saves."""
    said: list[str] = []
    model, loss = torch.nn.Linear(1000, 1000, bias=False), killed
    nearly_full(monkeypatch, 25_000_000)
    with pytest.raises(DiskFull, match=r"each save of this run takes 16 MB, .* while it is written 32 MB, and 25 MB are free"):
        train(model, loss, SCHEDULE, RunFolder(tmp_path / "run"), save_every=2, watch=Watch(say=said.append))
    assert said == ["Each save of this run takes 16 MB, over the one before, and while it is written 32 MB."]
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    nearly_full(monkeypatch, 33_000_000)
    train(model, lambda g, n: model(torch.ones(1000)).sum(), SCHEDULE, RunFolder(tmp_path / "run"), save_every=2)
    size = (tmp_path / "run" / "checkpoint.pt").stat().st_size
    assert 15_000_000 < size < 17_000_000 and len(list((tmp_path / "run").iterdir())) == 2  # and the log


def test_a_run_of_the_command_tells_what_a_save_takes(tmp_path: Path) -> None:
    assert "Each save of this run takes" in sid(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "write",
    [
        lambda part: part.write_text("x" * 100_000),
        lambda part: (part.symlink_to("/dev/full"), torch.save({"a": torch.zeros(100_000)}, part)),
        lambda part: (part.symlink_to("/dev/full"), part.write_bytes(b"x" * 100_000)),
    ],
)
def test_a_disk_that_fills_up_while_a_file_is_written_is_told_and_leaves_the_old_one(
    tmp_path: Path, write: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.pt"
    write_atomically(target, lambda part: part.write_text("old"))

    def full(part: Path) -> None:
        write(part)
        if not part.is_symlink():  # as safetensors says it, which writes to a file of its own
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskFull, match=r"The disk is too full: 'a.pt' takes .*, and .* are free where '.*' lies; make room"):
        write_atomically(target, full)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    nearly_full(monkeypatch, 10)
    with pytest.raises(DiskFull, match=r"'a\.safetensors' takes 4 kB, and 10 bytes are free"):
        save_safetensors_atomically({"x": torch.zeros(1000)}, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == [target]


def test_a_command_whose_disk_is_full_says_so_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: SimpleNamespace(free=500))
    said = sid(tmp_path / "a.safetensors", code=2)
    assert "The disk is too full" in said and "make room and run it again" in said
    monkeypatch.undo()
    sid(tmp_path / "a.safetensors", "--alpha", "1.0")  # other settings, perhaps smaller ones, may have the folder
