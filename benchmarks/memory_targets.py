"""What SiD Distill's LoRAs take of published networks at 1024 pixels: accounted at their true size, or run on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..bridge.entering import enter
from ..training.account import CONTEXT, GIB, Job, account, plan
from . import true_sizes
from .figures import Claim, Figures, print_table
from .startup import comfyui_home

CARDS = {"SDXL": 12, "Z-Image": 16, "Flux dev": 24, "Qwen-Image": 24}  # GiB
_IN_8_BITS = ("Flux dev", "Qwen-Image")
SMALL: dict[str, dict[str, Any]] = {  # a layer or two of each, for a machine without a GPU
    "SDXL": {"model_channels": 64, "context_dim": 64, "transformer_depth": [0, 0, 1, 1, 1, 1], "transformer_depth_middle": 1,
             "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1]},
    "Z-Image": {"dim": 384, "n_heads": 3, "n_kv_heads": 3, "n_layers": 2, "cap_feat_dim": 64},
    "Flux dev": {"hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 2, "context_in_dim": 64},
    "Qwen-Image": {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 64},
}  # fmt: skip


def run(quick: bool, say: Callable[[str], None], names: Sequence[str] = ()) -> Figures:
    """The plan of each network for its card, from rank 64 with Adam; nothing is computed.

    Raises:
        FileNotFoundError: There is no ComfyUI in ``$COMFYUI_PATH``.
    """
    enter(comfyui_home(), "--use-pytorch-cross-attention")
    from ..bridge.account import NetworkSketch
    from ..bridge.sketches import conditioning_of

    figures = Figures("memory-targets", {"side": 1024, "cards": CARDS})
    for name in names or (("SDXL",) if quick else tuple(CARDS)):
        base = true_sizes.base_of(name)
        sketch = NetworkSketch(base, conditioning_of(base, true_sizes.NETWORKS[name].tokens))
        job = Job(fp8=name in _IN_8_BITS)
        steps = plan(job, lambda asked, sketch=sketch: account(sketch, asked), CARDS[name] * GIB)  # type: ignore[misc]
        figures.rows += [
            {"network": name, "change": step.change, "GiB": round(step.account.total / GIB, 2), "card, GiB": CARDS[name]}
            for step in steps
        ]
        figures.findings[name] = [step.as_json() for step in steps]
        value = steps[-1].account.total / GIB
        figures.claims[f"{name.split()[0].lower().replace('-', '_')}_gib"] = Claim(value, value, value)
        say(f"{name}: {value:.2f} of {CARDS[name]} GiB after {len(steps) - 1} changes")
    print_table(figures.rows)
    return figures


def table(findings: dict[str, Any]) -> str:
    """Parts of the plans' last steps as Markdown, GiB."""
    lasts = {name: steps[-1] for name, steps in findings.items()}
    lines = ["| GiB | " + " | ".join(lasts) + " |", "| --- |" + " ---: |" * len(lasts)]
    names = [[part.partition(" (")[0].partition(", rank")[0] for part in last["parts"]] for last in lasts.values()]
    for number, name in enumerate(names[0]):
        sizes = [list(last["parts"].values())[number] / GIB for last in lasts.values()]
        lines.append(f"| {name} | " + " | ".join(f"{size:.2f}" for size in sizes) + " |")
    lines.append("| in all | " + " | ".join(f"{last['bytes'] / GIB:.2f}" for last in lasts.values()) + " |")
    lines.append("| of a card of | " + " | ".join(str(CARDS[name]) for name in lasts) + " |")
    jobs = [last["job"] for last in lasts.values()]
    lines.append("| rank, optimiser | " + " | ".join(f"{job['rank']}, {job['optimiser']}" for job in jobs) + " |")
    return "\n".join(lines)


def steps_table(findings: dict[str, Any]) -> str:
    """What each change leaves, from the job as asked on."""
    lines = ["| network | change | GiB |", "| --- | --- | ---: |"]
    for name, steps in findings.items():
        lines += [f"| {name} | {step['change'].partition(' (')[0]} | {step['bytes'] / GIB:.2f} |" for step in steps]
    return "\n".join(lines)


def run_on_gpu(small: bool, say: Callable[[str], None], names: Sequence[str] = (), iterations: int = 3) -> Figures:
    """Iterations of SiD Distill's own run on random weights of the true size: peak and seconds beside the account.

    Args:
        small: A layer or two instead, on whatever device there is, to see that it works.

    Raises:
        FileNotFoundError: There is no ComfyUI in ``$COMFYUI_PATH``.
        ValueError: There is no NVIDIA GPU.
    """
    if not small and not torch.cuda.is_available():
        raise ValueError("Networks of the true size need an NVIDIA GPU, and PyTorch finds none here: add --small to try it.")
    enter(comfyui_home(), "--use-pytorch-cross-attention", cpu=not torch.cuda.is_available())
    figures = Figures("gpu-memory", {"small": small, "iterations": iterations, "device": _device()})
    for name in names or tuple(CARDS):
        figures.rows.append(_measured(name, small, iterations))
        say(str(figures.rows[-1]))
    print_table(figures.rows)
    return figures


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _job(name: str, small: bool) -> Job:
    """What the account says fits the card."""
    if small:
        return Job(width=128, height=128, rank=4, apart=True, fp8=name in _IN_8_BITS, dtype="fp32")
    rank = {"SDXL": 64, "Z-Image": 16, "Flux dev": 64, "Qwen-Image": 8}[name]
    return Job(rank=rank, apart=True, fp8=name in _IN_8_BITS, optimiser="adafactor" if name == "Qwen-Image" else "adam")


def _measured(name: str, small: bool, iterations: int) -> dict[str, Any]:
    import comfy.model_management as management
    import comfy.model_patcher

    from ..bridge import training as bridge
    from ..bridge.account import NetworkSketch
    from ..bridge.sketches import conditioning_of
    from . import family_training
    from .memory import node_run, peak, stepper

    job = _job(name, small)
    base = true_sizes.base_of(name, "cpu", **(SMALL[name] if small else {}))
    true_sizes.fill(base.diffusion_model, job.fp8)
    texts = [conditioning_of(base, true_sizes.NETWORKS[name].tokens)] * 2
    accounted = account(NetworkSketch(base, texts[0]), job)
    model = comfy.model_patcher.ModelPatcher(base, management.get_torch_device(), management.unet_offload_device())
    with family_training.folders(), bridge.training():
        once = stepper(node_run(model, job, texts, "gpu"), job)
        once()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            seconds = _seconds(once, iterations)
            held, expected = torch.cuda.max_memory_allocated(), accounted.total - CONTEXT
        else:
            seconds, held = _seconds(once, iterations), peak(once)
            expected = sum(size for part, size in accounted.parts.items() if part.startswith(("activations", "gradients")))
    return {"network": name, "accounted, GiB": round(expected / GIB, 4), "peak, GiB": round(held / GIB, 4),
            "ratio": round(expected / held, 3), "seconds an iteration": round(seconds, 2)}  # fmt: skip


def _seconds(once: Callable[[], None], iterations: int) -> float:
    begun = time.perf_counter()
    for _ in range(iterations):
        once()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / iterations
