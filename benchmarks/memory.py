"""The account of a training's memory beside what it takes: whole iterations of SiD, by the node's own networks, on the CPU.

Accounted is what ``training.account`` says without computing anything (on the meta device). Measured is what PyTorch's allocator
reports to its profiler during an iteration, over what is held before it; both beside weights and optimisers, which are counted
exactly. In float32, with PyTorch's fused attention, as on a card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..training.account import SID_LORA, Job, sid_activations
from . import family_training as training
from . import tiny_families as tiny
from .figures import Claim, Figures, print_table
from .startup import comfyui_home

MIB = 2**20
WIDER: dict[str, dict[str, Any]] = {  # of tiny families, so that activations are what is measured
    "sdxl": {"model_channels": 128, "transformer_depth": [1, 2], "transformer_depth_output": [1, 1, 2, 2]},
    "sd3": {
        "depth": 4,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 256}},
    },
    "flux": {"hidden_size": 256, "num_heads": 2, "axes_dim": [16, 56, 56], "depth": 2, "depth_single_blocks": 3},
    "zimage": {"n_layers": 4},
    "qwen": {"num_layers": 4, "num_attention_heads": 2},
    "wan21": {"dim": 256, "ffn_dim": 1024, "num_layers": 4},
}
SIDES = {"sdxl": 256, "sd3": 384, "flux": 384, "zimage": 384, "qwen": 384, "wan21": 384}
WAYS: dict[str, dict[str, Any]] = {
    "all kept": {"checkpointing": False}, "blocks again": {"checkpointing": True},
    "pass by pass": {"checkpointing": True, "apart": True},
}  # fmt: skip


def peak(work: Callable[[], object]) -> int:
    """Bytes that PyTorch's CPU allocator hands out at most during ``work``, over those before, by its profiler."""
    with TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0), key=lambda e: e["ts"])
    totals = [event["args"]["Total Allocated"] for event in memory]
    return int(max(totals) - (totals[0] - memory[0]["args"]["Bytes"]))


def wider(name: str) -> Any:
    """A family's MODEL, wider than the tiny one."""
    before = tiny.FAMILIES[name]
    tiny.FAMILIES[name] = tiny.Family(**{**vars(before), "network": {**before.network, **WIDER[name]}})
    try:
        return tiny.model(name)
    finally:
        tiny.FAMILIES[name] = before


def node_run(model: Any, job: Job, texts: list[Any], name: str) -> Any:
    """SiD Distill's own run of this job, with its networks made and placed. Inside of ``bridge.training.training``."""
    from ..bridge.transplant import Models
    from ..nodes.distill import _Run
    from ..training.sid_options import SidExtras, SidOptions

    options = SidOptions(
        name=name, rank=job.rank, batch=job.part, width=job.width, height=job.height, precision=job.dtype,
        gradient_checkpointing=job.checkpointing,
    )  # fmt: skip
    run = _Run(Models(model), None, options, SidExtras(optimiser=job.optimiser), {"prompts": []})
    run.job = job
    run.prepare(texts)
    return run


def stepper(run: Any, job: Job) -> Callable[[], None]:
    """One iteration of a run, with optimisers of its own, and no gradient left after it."""
    from ..training.distill import draws
    from ..training.optimisers import make_optimiser
    from ..training.sid_iteration import iterate

    task, settings = run.task, run.settings
    objective = task.objective(settings, 1)
    fake, generator = (
        make_optimiser(settings.optimiser, parameters, 1e-5, (0.0, 0.999))
        for parameters in (task.players.fake_parameters, task.players.generator_parameters)
    )

    def once() -> None:
        rng = torch.Generator().manual_seed(1)
        halves = [draws(task, objective, rng, job.part, half).to(task.device) for half in (True, False)]
        iterate(task.players, fake, generator, objective, *halves, part=job.part)
        generator.zero_grad(set_to_none=True)

    return once


def iteration(model: Any, job: Job, texts: list[Any], name: str) -> tuple[int, int]:
    """Accounted and measured bytes of the second iteration, gradients included."""
    from ..bridge import training as bridge
    from ..bridge.account import NetworkSketch

    with training.folders(), bridge.training():
        run = node_run(model, job, texts, name)
        once = stepper(run, job)
        once()
        measured = peak(once)
        gradients = 4 * sum(parameter.numel() for parameter in run.task.players.fake_parameters)
        return sid_activations(NetworkSketch(model.model, texts[0]), job) + gradients, measured


def run(quick: bool, say: Callable[[str], None], names: Sequence[str] = ()) -> Figures:
    """Every family and way of holding activations, with one and two pictures at a time.

    Raises:
        FileNotFoundError: There is no ComfyUI in ``$COMFYUI_PATH``.
    """
    comfyui_home()
    tiny.start("--use-pytorch-cross-attention")
    names = names or (("sdxl", "qwen") if quick else tuple(WIDER))
    figures = Figures("memory", {"families": list(names), "sides": {name: SIDES[name] for name in names}, "rank": 8})
    ratios: list[float] = []
    for name in names:
        for label, way in WAYS.items():
            for part in (1,) if quick else (1, 2):
                job = Job(SID_LORA, SIDES[name], SIDES[name], part, 8, dtype="fp32", **way)
                texts = [tiny.text(name, 1, 12, seed) for seed in range(3)]
                accounted, measured = iteration(wider(name), job, texts, name)
                ratios.append(accounted / measured)
                figures.rows.append(
                    {"network": name, "activations": label, "at once": part, "accounted, MiB": round(accounted / MIB, 2),
                     "measured, MiB": round(measured / MIB, 2), "ratio": round(ratios[-1], 3)}
                )  # fmt: skip
                say(f"{name}, {label}, {part}: {ratios[-1]:.3f}")
    low, high = float(np.min(ratios)), float(np.max(ratios))
    figures.claims["memory_account_ratio"] = Claim(float(np.median(ratios)), low, high)
    print_table(figures.rows)
    print(f"memory_account_ratio: median {np.median(ratios):.3f}, all between {low:.3f} and {high:.3f}")
    return figures
