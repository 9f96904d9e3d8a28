"""``python -m tests.faults --count 100 [--seed 0]``: so many kills; prints how many runs were resumed to the same bits."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> int:
    """0 if all is well."""
    import torch
    from faults import kills
    from harness import comfyui

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="Kills in all; three in ten are of a real ComfyUI.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    given = parser.parse_args()
    rng, killed, wrong = random.Random(given.seed), Counter[str](), list[str]()

    def tell(name: str, problem: str) -> None:
        killed[name] += 1
        wrong.extend([f"{name}: {problem}"] if problem else [])
        print(f"{sum(killed.values())} of {given.count}: {name}: {problem or 'the same bits'}", flush=True)

    served = given.count * 3 // 10
    with tempfile.TemporaryDirectory() as temporary, kills.commands() as commands:
        whole = {name: kills.whole_run(command, Path(temporary) / name) for name, command in commands.items()}
        for number in range(given.count - served):
            name = list(commands)[number % len(commands)]
            tell(name, kills.kill_command(commands[name], Path(temporary) / name, whole[name], rng))
    names = [list(kills.SERVED)[number % len(kills.SERVED)] for number in range(served)]
    if names:
        with tempfile.TemporaryDirectory() as temporary, comfyui(Path(temporary)) as calm:
            for name, problem in kills.kill_in_comfyui(calm, names, rng):
                tell(name, problem)
    each = ", ".join(f"{name} {count}" for name, count in killed.items())
    print(f"{sum(killed.values())} kills ({each}): {sum(killed.values()) - len(wrong)} resumed to the same bits.")
    for problem in wrong:
        print(problem)
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
