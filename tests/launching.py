"""Two processes of one run that talk by gloo, started by ``accelerate launch``.

Starting them is most of the cost, so they run several commands, one after the other. As a script this is what each process
runs: ``python launching.py COMMANDS.json``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCH_SECONDS = 1000.0
"""For all commands of a launch; generous."""


def launch(commands: Sequence[Sequence[str]], folder: Path) -> str:
    """Run the commands of ``apprentice`` in two processes and return what they print.

    ``accelerate launch --cpu`` would start one, unless it has MPI; so it starts two as for GPUs, and is told to take the CPU.
    """
    listed = folder / "commands.json"
    listed.write_text(json.dumps([list(map(str, command)) for command in commands]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port), __file__, str(listed),
    ]  # fmt: skip
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    on_the_cpu = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, "PYTHONPATH": paths, **on_the_cpu}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LAUNCH_SECONDS)
    # gloo's threads now and then abort a process that has done all its work, as the interpreter ends; what was made is checked.
    assert done.returncode == 0 or "SIGABRT" in done.stderr, done.stdout + done.stderr
    return done.stdout


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """In each process: the commands, each as if it were alone but for the connection, which is kept to the end."""
    from comfyui_apprentice.cli import app
    from comfyui_apprentice.training.processes import Processes

    end = Processes.end
    Processes.end = lambda self: self.accelerator.wait_for_everyone()  # type: ignore[method-assign]
    for command in commands:
        if command[0] == "stopped":
            stopped_run(Path(command[1]), Path(command[2]))
        else:
            app(list(command), standalone_mode=False)
    end(Processes.launched())


def stopped_run(teacher: Path, folder: Path) -> None:
    """A distillation in which the second process is told to stop after two iterations."""
    from comfyui_apprentice.training.distill import Settings, distil
    from comfyui_apprentice.training.edm_task import edm_task
    from comfyui_apprentice.training.loop import Watch
    from comfyui_apprentice.training.processes import Processes
    from comfyui_apprentice.training.run_folder import RunFolder
    from comfyui_apprentice.weights.edm_pickle import read_edm

    processes, taken = Processes.launched(), []

    def counted(step: int, _average: object) -> None:
        taken.append(step)

    watch = Watch(interrupted=lambda: processes.rank == 1 and len(taken) == 2, after_step=counted)
    settings = Settings(pictures=24, batch=8, fake_rate=1e-3, generator_rate=1e-3, augment=0.12)
    try:
        distil(edm_task(read_edm(teacher), dropout=0.0), settings, RunFolder(folder / "run"), watch=watch, processes=processes)
    except KeyboardInterrupt:
        (folder / f"stopped-{processes.rank}-after-{len(taken)}").touch()


if __name__ == "__main__":
    run_all(json.loads(Path(sys.argv[1]).read_text()))
