"""Two processes of one run that talk by gloo, started as ``accelerate launch`` does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(*what: str) -> str:
    """Run it in two processes and return what they print.

    ``accelerate launch --cpu`` would start one, unless it has MPI; so it starts two as for GPUs, and is told to take the CPU.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port), *what,
    ]  # fmt: skip
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    on_the_cpu = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, "PYTHONPATH": paths, **on_the_cpu}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    # gloo's threads now and then abort a process that has done all its work, as the interpreter ends; what was made is checked.
    assert done.returncode == 0 or "SIGABRT" in done.stderr, done.stdout + done.stderr
    return done.stdout
