"""Kills at seeded random moments: a run that was killed and resumed ends in the bits of one that was left alone.

Commands are run in forks of this process, so that a kill costs no start of Python; nodes in a real ComfyUI, which is killed and
started again.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from costs import SERVERS
from harness import Comfy, Graph, GraphError, comfyui
from hub import FILE, UNPINNED, Hub, imitation
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "tests" / "data" / "sid" / "tiny_edm_snapshot.pkl"
WORLD = ROOT / "world"
LIMIT = 600.0
"""Seconds after which a run counts as hung."""


# --------------------------------------------------------------------------------------------------- what was made


def made(folder: Path, name: str = "") -> dict[str, Any]:
    """All that a run has left in a folder, by name; ``name`` is the run's own, wherever it stands."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "job.lock"))
    return {str(path.relative_to(folder)).replace(name or "\0", "NAME"): _content(path) for path in paths}


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                ours = ("date", "apprentice_run")  # the latter is a digest of settings that has the name in it
                card = {key: value for key, value in (file.metadata() or {}).items() if key not in ours}
            return load_file(path), card
        except Exception:  # no safetensors file but the hub's bytes
            return path.read_bytes()
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".jsonl":
        ours = ("seconds_a_step", "run")  # the time that it took, and a digest of settings that has the name in it
        return [{k: v for k, v in json.loads(line).items() if k not in ours} for line in path.read_text().splitlines()]
    if path.suffix == ".json" and path.name != "base_rewards.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key != "name"}
    return path.read_bytes()


def difference(a: Any, b: Any, where: str = "") -> str:
    """The first place where two results are not the same bits; "" if there is none."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"
        return next(filter(None, (difference(value, b[key], f"{where}/{key}") for key, value in a.items())), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return next(filter(None, (difference(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b, strict=True)))), "")
    return "" if a == b else where


# ------------------------------------------------------------------------------------------------- commands, forked


@dataclass(frozen=True)
class Command:
    """A command whose files lie in the folder that it is given."""

    name: str
    run: Callable[[Path], Any]


class Forked:
    """A fork that runs a command, and is killed after so many seconds or at its so-many-th dealing with files."""

    def __init__(self, command: Command, folder: Path, dealing: int = 0) -> None:
        counted, self.log = folder.with_suffix(".dealings"), folder.with_suffix(".log")
        self.counted, self.began = counted, time.monotonic()
        self.pid = os.fork()
        if self.pid:
            return
        code, seen = 70, [0]
        try:
            sink = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            seen = _count_dealings(dealing)
            command.run(folder)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.setprofile(None)
            counted.write_text(str(seen[0]))
            sys.stdout.flush()
            os._exit(code)

    def end(self, after: float = LIMIT) -> int:
        """Wait for the end, and kill after so many seconds; the exit code, or minus the signal."""
        timer = threading.Timer(max(after - (time.monotonic() - self.began), 0.0), os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        finally:
            timer.cancel()


_DEALINGS = {
    "open", "write", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "remove", "serialize_file", "write_record",
    "write_end_of_file",
}  # fmt: skip


def _count_dealings(last: int) -> list[int]:
    """Count what is done with files, its beginning and its end; SIGKILL at the ``last`` of them, 0 for none."""
    seen = [0]

    def hook(_frame: Any, event: str, function: Any) -> None:
        if event not in ("c_call", "c_return") or function.__name__ not in _DEALINGS or isinstance(function.__self__, str):
            return
        seen[0] += 1
        if seen[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(hook)
    return seen


def whole_run(command: Command, folder: Path) -> tuple[dict[str, Any], float, int]:
    """What the command makes if it is left alone, how long it takes, and how often it deals with files."""
    began = time.monotonic()
    run = Forked(command, folder)
    if code := run.end():
        raise AssertionError(f"{command.name} ended with {code}: {run.log.read_text()[-2000:]}")
    return made(folder), time.monotonic() - began, int(run.counted.read_text())


def kill_command(command: Command, folder: Path, whole: tuple[dict[str, Any], float, int], rng: random.Random) -> str:
    """Kill the command at a random moment, let the same command go on, and compare; "" if all is well."""
    expected, seconds, dealings = whole
    moment = rng.random()
    by_file = rng.random() < 0.5
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        run = Forked(command, folder, 1 + int(moment * dealings) if by_file else 0)
        code = run.end(LIMIT if by_file else moment * seconds)
        if code == -signal.SIGKILL:
            break
        if code:
            return f"ended with {code}: {run.log.read_text()[-2000:]}"
        moment *= 0.7  # it was done before the blow fell
    again = Forked(command, folder)
    if code := again.end():
        return f"killed at {moment:.3f} {'of its files' if by_file else 'of its time'}, then ended with {code}: " + (
            again.log.read_text()[-2000:]
        )
    wrong = difference(expected, made(folder))
    return f"killed at {moment:.3f} {'of its files' if by_file else 'of its time'}: {wrong} differs" if wrong else ""


def apprentice(*arguments: object) -> None:
    """A command as from a terminal."""
    from comfyui_apprentice.cli import app

    app([str(argument) for argument in arguments], standalone_mode=True)


def ended(run: Callable[[], None]) -> None:
    """``run``, whose exit with 0 is no exception."""
    try:
        run()
    except SystemExit as end:
        if end.code:
            raise


def distill(folder: Path) -> None:
    """``apprentice distill sid``: 6 iterations."""
    ended(lambda: apprentice(
        "distill", "sid", TEACHER, "--out", folder / "student.safetensors", "--pictures", 24, "--batch", 4, "--save-every", 2,
        "--samples-every", 3, "--device", "cpu", "--glr", "1e-3", "--lr", "1e-3", "--force",
    ))  # fmt: skip


def finetune(folder: Path, algorithm: str = "adjoint_matching") -> None:
    """``apprentice finetune`` by the tiny world's critic: 4 steps."""
    folder.mkdir(exist_ok=True)
    prompts = folder.with_suffix(".txt")
    prompts.write_text("red circle\nblue circle\n" * 5)
    ended(lambda: apprentice(
        "finetune", WORLD / "edm" / "coloured digits teacher.safetensors", WORLD / "critics" / "tiny world critic.safetensors",
        "--clip", WORLD / "clips" / "tiny world small.safetensors", "--prompts", prompts, "--out", folder / "tuned.safetensors",
        "--algorithm", algorithm, "--updates", 4, "--batch", 4, "--steps", 4, "--base-draws", 8, "--save-every", 1, "--rounds", 2,
        "--lr", "1e-3", "--device", "cpu", "--force",
    ))  # fmt: skip


def pull(hub: Hub, folder: Path) -> None:
    """``apprentice models pull`` of a pinned and an unpinned file, in small pieces."""
    from dataclasses import replace

    from comfyui_apprentice.weights import catalogue, download
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = 4096
    os.environ["NO_PROXY"] = "127.0.0.1"
    catalogue.FILES = (FILE, replace(UNPINNED, local="second.safetensors"))  # type: ignore[assignment]
    fetch = download.pull
    download.pull = lambda file, place, **options: fetch(file, place, hub.endpoint, **options)
    ended(lambda: apprentice("models", "pull", "--all", "--folder", folder))


def draw(folder: Path) -> None:
    """``apprentice draw`` of 10 pictures with sheets; what draws them is plain grey."""
    import torch
    from comfyui_apprentice.bulk.items import Item
    from comfyui_apprentice.bulk.job import Drawn, Job, run
    from comfyui_apprentice.bulk.manifest import Manifest
    from comfyui_apprentice.gate.verdict import Judgement, Verdict

    def grey(part: Sequence[Item], seed: int) -> Drawn:
        judgements = tuple(Judgement(place, seed + place, 3.0, True, item.prompt, seed, 2.0) for place, item in enumerate(part))
        levels = torch.tensor([(seed + place) % 50 / 50 for place in range(len(part))])
        return Drawn(levels.view(-1, 1, 1, 1).expand(-1, 16, 16, 3), Verdict(judgements, "grey", "f" * 16, "absolute", 3.0))

    manifest = Manifest(folder, {"seed": 7})
    with manifest.held():
        run(Job([Item(i, f"grey {i}") for i in range(10)], 3, 7, 5), grey, manifest, lambda *_: None)


@contextmanager
def commands() -> Iterator[dict[str, Command]]:
    """All commands that run without a ComfyUI, by name."""
    import comfyui_apprentice.training.finetune  # noqa: F401
    import huggingface_hub  # noqa: F401
    import open_clip  # noqa: F401 - all of them so that forks needn't
    import typer.testing  # noqa: F401

    with imitation() as hub:
        hub.piece, hub.pause = 8192, 0.01
        runs = {
            "distill": distill, "finetune": finetune, "finetune in rounds": lambda f: finetune(f, "weighted_regression"),
            "models pull": functools.partial(pull, hub), "draw": draw,
        }  # fmt: skip
        yield {name: Command(name, run) for name, run in runs.items()}


# --------------------------------------------------------------------------------------------------- a real ComfyUI


SID: dict[str, Any] = {
    "prompts": "bundled", "text": "red heart on blue\npizza", "method": "LoRA", "rank": 4, "pictures": 12, "batch_size": 2,
    "at_once": 0, "width": 64, "height": 64, "steps": 1, "alpha": 1.0, "kappa1": 1.0, "kappa2": 1.0, "kappa4": 1.0,
    "generator_rate": 1e-4, "fake_rate": 1e-4, "ema_half_life": 8.0, "precision": "fp32", "gradient_checkpointing": False,
    "first_seed": 0, "save_every": 1,
}  # fmt: skip
REWARD: dict[str, Any] = {
    "prompts": "bundled", "text": "red heart on blue\npizza", "max_prompts": 2, "algorithm": "weighted_regression",
    "divergence": "kl", "strength": "alpha", "value": 0.5, "rank": 4, "updates": 4, "batch_size": 4, "at_once": 4, "width": 64,
    "height": 64, "steps": 4, "scheduler": "karras", "regressed_steps": 2, "learning_rate": 1e-3, "base_draws": 8, "rounds": 2,
    "precision": "fp32", "gradient_checkpointing": False, "first_seed": 0, "save_every": 1,
}  # fmt: skip


def training_graph(node: str, name: str) -> Graph:
    """SiD Distill or Reward Finetune of the tiny world."""
    g = Graph()
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    if node == "ApprenticeSiDDistill":
        g.add(node, "run", model=world[0], clip=world[2], vae=world[3], name=name, **SID)
    else:
        g.add(node, "run", model=world[0], clip=world[2], vae=world[3], oracle=world[4], name=name, **REWARD)
        g.add("PreviewAny", "shown", source=["run", 3])
    return g


def train(node: str, comfy: Comfy, name: str) -> None:
    """The node's run of that name, to its end."""
    comfy.run(training_graph(node, name))


def calibrate(comfy: Comfy, name: str) -> None:
    """``apprentice calibrate`` in that ComfyUI: 12 drafts."""
    from comfyui_apprentice.cli import app
    from typer.testing import CliRunner

    arguments = ["calibrate", name, "--max-prompts", "12", "--batch-size", "2", "--url", comfy.url]
    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        raise GraphError(result.output)


SERVED: dict[str, Callable[[Comfy, str], None]] = {
    "SiD Distill": functools.partial(train, "ApprenticeSiDDistill"),
    "Reward Finetune": functools.partial(train, "ApprenticeRewardFinetune"),
    "calibrate": calibrate,
}


def made_in(base: Path, name: str) -> dict[str, Any]:
    """What a run of that name has left in a ComfyUI."""
    found = made(base / "output" / "apprentice" / "training" / name, name)
    for folder in ("models/loras", "models/calibrations"):
        found |= {path.suffix: _content(path) for path in (base / folder).glob(f"{name}.*")}
        found[f"{folder} left"] = [path.name for path in (base / folder).glob(f".{name}*.part")]
    return found


def kill_in_comfyui(calm: Comfy, names: Sequence[str], rng: random.Random) -> Iterator[tuple[str, str]]:
    """For each of ``SERVED``'s ``names``: kill a second ComfyUI over the same folders while it runs, let ``calm`` go on with the
    same run, and compare with a run that ``calm`` was left alone with.

    Yields:
        The name, and what is wrong; "" if all is well.
    """
    whole: dict[str, tuple[dict[str, Any], float]] = {}
    for number, name in enumerate(names):
        if name not in whole:
            began = time.monotonic()
            SERVED[name](calm, called := f"whole {list(SERVED).index(name)}")
            whole[name] = made_in(calm.base, called), time.monotonic() - began
        before = set(SERVERS)
        with comfyui(calm.base, log=calm.base / "killed.log") as doomed:
            (process,) = SERVERS - before
            called = _killed_run(doomed, name, f"killed {number}", process, whole[name][1], rng)
        SERVED[name](calm, called)
        wrong = difference(whole[name][0], made_in(calm.base, called))
        yield name, f"{wrong} differs" if wrong else ""


def _killed_run(comfy: Comfy, kind: str, called: str, process: int, seconds: float, rng: random.Random) -> str:
    """Begin a run and kill ComfyUI within it; if it is done before, begin another. Its name."""
    moment = rng.random()
    for attempt in range(100):
        name, failed = f"{called} {attempt}", threading.Event()

        def run(name: str = name, failed: threading.Event = failed) -> None:
            try:
                SERVED[kind](comfy, name)
            except Exception:  # ComfyUI is gone
                failed.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(moment * seconds)
        if thread.is_alive():
            os.kill(process, signal.SIGKILL)
            thread.join(LIMIT)
            if failed.is_set():
                return name
            raise AssertionError(f"{kind} did not notice that its ComfyUI was killed")
        moment *= 0.7
    raise AssertionError(f"{kind} was always done before it could be killed")
