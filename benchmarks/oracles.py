"""What oracles cost against their authors' path, and what each threshold makes of an oracle that is only so good.

Speed: published architectures at base size with random weights, ours and the reference in the same process by turns, so that
only the ratio counts. Memory: each path in a process of its own. Gates: the tiny world's drafts and teacher's pictures, judged by
scores whose accuracy is dialled. Fast look: how well scores on ComfyUI's preview decode agree with those on the full picture.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..gate.calibration import Calibration
from ..gate.controller import State, step
from ..gate.decision import Situation, gate_scores
from ..gate.selection import agreement
from ..gate.thresholds import MODES, Gate
from ..oracles.base import Oracle
from ..world.recipe.concepts import held_out_prompts
from ..world.recipe.sampling import World, unit_noise
from ..world.weights import read
from .figures import Array, Claim, Figures, bootstrap, print_claims, print_table
from .layouts import image_reward_shapes, random_weights

KINDS = ("clip-score", "hpsv2", "pickscore", "imagereward")
BATCHES = (1, 16)
ACCURACIES = (0.55, 0.65, 0.75, 0.85, 0.95, 1.0)
STUDENT_STEPS, TEACHER_STEPS, TARGET, ALPHA, CONFIDENCE = 2, 9, 0.5, 0.3, 0.9
GROUP = 8  # pictures that are judged together

# ------------------------------------------------------------------------------------------------------ speed

Path_ = Callable[[list[Image.Image], list[str]], Tensor]


def _photos(count: int) -> list[Image.Image]:
    """Smooth coloured noise at an odd size; what is on a picture costs nothing."""
    noise = torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(noise, (481, 640), mode="bicubic").clamp(0, 1).movedim(1, -1)
    return [Image.fromarray((p * 255).byte().numpy()) for p in large]


def _as_images(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures]).astype(np.float32) / 255)


def paths(kind: str) -> tuple[Oracle, Path_]:
    """Our oracle, and the way its authors score, on the same random weights at base size."""
    torch.manual_seed(0)
    if kind == "pickscore":
        return _pickscore()
    if kind == "imagereward":
        return _image_reward()
    return _open_clip(kind)


def _open_clip(kind: str) -> tuple[Oracle, Path_]:
    import open_clip

    from .. import oracles
    from ..oracles.preprocess import resize_and_pad

    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def reference(pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        if kind == "hpsv2":
            pixels = torch.cat([resize_and_pad(_as_images([p])) for p in pictures])
        else:
            pixels = torch.stack([transform(p) for p in pictures])
        with torch.no_grad():
            image = F.normalize(model.encode_image(pixels), dim=-1)
            cosine = (image * F.normalize(model.encode_text(tokenizer(prompts)), dim=-1)).sum(-1)
        return cosine if kind == "hpsv2" else (100 * cosine).clamp(min=0)

    return oracles.load(kind, model.state_dict()), reference


def _pickscore() -> tuple[Oracle, Path_]:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from .. import oracles
    from ..oracles.tokenizers import clip_tokens

    # The defaults are ViT-B/32.
    config = CLIPConfig(text_config={"hidden_act": "gelu", "eos_token_id": 49407}, vision_config={"hidden_act": "gelu"})
    model, processor = CLIPModel(config).eval(), CLIPImageProcessor()

    def reference(pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            text = model.text_projection(model.text_model(input_ids=clip_tokens(prompts)).pooler_output)
            return model.logit_scale.exp() * (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)

    return oracles.load("pickscore", model.state_dict()), reference


def _image_reward() -> tuple[Oracle, Path_]:
    """The authors' ``score`` takes one picture and one prompt at a time."""
    import open_clip

    from ..oracles.image_reward import TOKENS, ImageReward, ImageRewardNetwork
    from ..oracles.preprocess import CLIP_MEAN, CLIP_STD
    from ..oracles.tokenizers import bert_tokens

    # BLIP's base picture tower, and half of its layers of text.
    oracle = ImageReward(random_weights(image_reward_shapes(768, 12, 768, 6)))
    network: ImageRewardNetwork = oracle.network
    transform = open_clip.image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)

    def reference(pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        with torch.no_grad():
            said = [network(transform(p)[None], *bert_tokens([t], TOKENS)) for p, t in zip(pictures, prompts, strict=True)]
        return torch.cat(said)

    return oracle, reference


def speed(kind: str, repeats: int) -> list[dict[str, Any]]:
    """Scores a second of both paths at each batch size, by turns, and the ratio of each pair of turns."""
    oracle, reference = paths(kind)
    return [_timed(kind, oracle, reference, batch, repeats) for batch in BATCHES]


def _timed(kind: str, oracle: Oracle, reference: Path_, batch: int, repeats: int) -> dict[str, Any]:
    pictures, prompts = _photos(batch), ["a cup of coffee on a wooden table"] * batch
    images = _as_images(pictures)
    runs = (lambda: oracle.score(images, prompts), lambda: reference(pictures, prompts))
    difference = float((runs[0]() - runs[1]()).abs().max())
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for sink, run_once in zip(times, runs, strict=True):
            began = time.perf_counter()
            run_once()
            sink.append(time.perf_counter() - began)
    ratios = np.array(times[1]) / np.array(times[0])
    return {
        "oracle": kind, "batch": batch, "ours (scores/s)": batch / float(np.median(times[0])),
        "reference (scores/s)": batch / float(np.median(times[1])), "ratio": float(np.median(ratios)),
        "spread": f"{ratios.min():.2f} to {ratios.max():.2f}", "largest difference": difference,
    }  # fmt: skip


def _resident(key: str) -> float:
    """``VmRSS`` or its peak ``VmHWM`` of this process, in MiB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{key}:"))) / 1024


def _peak(kind: str, ours: bool, batch: int, answer: Any) -> None:
    torch.set_num_threads(1)
    oracle, reference = paths(kind)
    pictures, prompts = _photos(batch), ["a cup of coffee on a wooden table"] * batch
    # From here on only: making the networks needs more than using them does.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    if ours:
        oracle.score(_as_images(pictures), prompts)
    else:
        reference(pictures, prompts)
    answer.put(_resident("VmHWM") - before)


def peak_memory(kind: str, ours: bool, batch: int) -> float:
    """What scoring once by one of the two paths adds to the memory of a fresh process that holds the network, in MiB.

    Linux only: NaN elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return math.nan
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak, args=(kind, ours, batch, answer))
    process.start()
    peak = float(answer.get(timeout=600))
    process.join()
    return peak


# ------------------------------------------------------------------------------------------------------ gates


@dataclass
class Pictures:
    """Drafts and the teacher's pictures of the same prompts and noise, by the unseen judge."""

    prompts: list[str]
    draft: Array
    teacher: Array
    nfe: tuple[float, float]


def draw(count: int, seeds: int, say: Callable[[str], None]) -> tuple[Pictures, World, Tensor]:
    """``count`` held-out prompts, ``seeds`` drafts of each and the teacher's answers; and the drafts' latents."""
    world, prompts = World(), [p.text() for p in held_out_prompts()[:count]]
    rows = [p for p in prompts for _ in range(seeds)]
    noise = unit_noise(len(rows), 3)
    say(f"{count} prompts, {seeds} drafts each")
    drafts, teacher = world.draft(rows, noise, STUDENT_STEPS), world.redraw(rows, noise, TEACHER_STEPS)
    scores = [world.judge.score(world.pictures(d.latents), rows).double().numpy() for d in (drafts, teacher)]
    return Pictures(rows, scores[0], scores[1], (drafts.nfe, teacher.nfe)), world, drafts.latents


def dialled(quality: Array, accuracy: float, rng: np.random.Generator) -> Array:
    """Scores that order two pictures rightly with probability ``accuracy`` (0.5 to 1), for Gaussian quality.

    With correlation rho between score and quality that probability is 1/2 + asin(rho) / pi, so rho = sin(pi (accuracy - 1/2)).
    """
    rho = math.sin(math.pi * (accuracy - 0.5))
    z = (quality - quality.mean()) / quality.std()
    return rho * z + math.sqrt(max(1 - rho * rho, 0)) * rng.standard_normal(len(z))


def gates(p: Pictures, accuracy: float, repeats: int = 20) -> list[dict[str, Any]]:
    """Every mode, set to send half of the drafts to the teacher, or to promise at most ``ALPHA`` worse ones."""
    outcomes: dict[str, list[tuple[float, float, float]]] = {}
    half = len(p.prompts) // 2
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        both = dialled(np.concatenate([p.draft, p.teacher]), accuracy, rng)
        draft, teacher = both[: len(p.draft)], both[len(p.draft) :]
        calibration = Calibration(
            tuple(draft[half:].tolist()), "dialled", prompts=tuple(p.prompts[half:]),
            teacher_scores=tuple(teacher[half:].tolist()),
        )  # fmt: skip
        for mode in MODES:
            accepted = _accepted(mode, draft[:half].tolist(), p.prompts[:half], calibration, p.nfe)
            quality = np.where(accepted, p.draft[:half], p.teacher[:half])
            worse = (p.draft[:half] < p.teacher[:half])[accepted].mean() if accepted.any() else 0.0
            gain = quality.mean() - p.draft[:half].mean()
            outcomes.setdefault(mode, []).append((float((~accepted).mean()), float(gain), float(worse)))
    rows = []
    for mode, values in outcomes.items():
        share, gain, worse = np.mean(values, axis=0)
        rows.append({
            "threshold": mode, "accuracy": accuracy, "share to the teacher": float(share),
            "NFE": p.nfe[0] + float(share) * p.nfe[1], "gain (judge)": float(gain), "accepted worse than teacher": float(worse),
        })  # fmt: skip
    return rows


def _accepted(mode: str, scores: list[float], prompts: list[str], calibration: Calibration, nfe: tuple[float, float]) -> Array:
    """Who passes, judged in groups as they would come."""
    values = {
        "absolute": float(np.median(calibration.scores)), "worst share": TARGET, "percentile": 100 * TARGET,
        "budget": nfe[0] + TARGET * nfe[1], "expected gain": 0.0, "running": TARGET, "guaranteed": ALPHA,
    }  # fmt: skip
    accepted: list[bool] = []
    state = State()
    for start in range(0, len(scores), GROUP):
        part, asked = scores[start : start + GROUP], prompts[start : start + GROUP]
        gate: Gate
        if mode == "running":
            state, gate = step(state, part, [str(start + i) for i in range(len(part))], TARGET)
        else:
            needs = mode in ("percentile", "guaranteed")
            situation = Situation(asked, confidence=CONFIDENCE)
            gate = gate_scores(part, mode, values[mode], calibration if needs else None, nfe[0], nfe[1], situation)
        accepted += gate.accepted
    return np.array(accepted)


def fast_look(p: Pictures, world: World, latents: Tensor) -> Claim:
    """Spearman's correlation of the oracle's scores on the linear preview with those on the full picture, over the drafts."""
    from ..networks.tiny_autoencoder import FOLD

    preview = json.loads(read("autoencoder")[1]["preview"])
    inner = F.pixel_shuffle(latents, FOLD).movedim(1, -1)
    small = inner @ torch.tensor(preview["factors"]) + torch.tensor(preview["bias"])
    shown = F.interpolate(small.movedim(-1, 1), (64, 64), mode="bicubic").movedim(1, -1)
    quick = world.oracle.score(((shown + 1) / 2).clamp(0, 1), p.prompts).numpy()
    full = world.oracle.score(world.pictures(latents), p.prompts).numpy()
    return bootstrap(lambda index: agreement(quick[index].tolist(), full[index].tolist()).spearman, len(quick), draws=300)


# -------------------------------------------------------------------------------------------------------- all


def run(quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print) -> Figures:
    """Measure, print the tables and the claims, draw the plot."""
    repeats, prompts = (3, 48) if quick else (5, 160)
    figures = Figures("oracles", {
        "repeats": repeats, "prompts": prompts, "group": GROUP, "target": TARGET, "alpha": ALPHA, "confidence": CONFIDENCE,
        "sizes": "base (ViT-B), random weights", "threads": torch.get_num_threads(),
    })  # fmt: skip
    for kind in KINDS:
        say(f"speed and memory: {kind}")
        rows = speed(kind, repeats)
        for row in rows:
            ours, theirs = (peak_memory(kind, mine, row["batch"]) for mine in (True, False))
            row |= {"ours (MiB)": round(ours), "reference (MiB)": round(theirs)}
            figures.claims[f"speed_ratio_{kind.replace('-', '_')}_{row['batch']}"] = _spread(row)
        figures.rows += rows
    pictures, world, latents = draw(prompts, 2, say)
    dial = [row for accuracy in ACCURACIES for row in gates(pictures, accuracy)]
    figures.findings["thresholds"] = dial
    figures.claims["fast_look_rank_correlation"] = fast_look(pictures, world, latents)
    print_table(figures.rows)
    print()
    print_table(dial)
    print()
    print_claims(figures.claims)
    if plot:
        draw_plot(dial, plot)
        say(f"plot: {plot}")
    return figures


def _spread(row: dict[str, Any]) -> Claim:
    low, high = (float(part) for part in row["spread"].split(" to "))
    return Claim(row["ratio"], low, high)


def draw_plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Gain and share over the oracle's accuracy, a line a threshold mode."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    for mode in MODES:
        series = [r for r in rows if r["threshold"] == mode]
        for axis, key in zip(axes, ("gain (judge)", "share to the teacher", "accepted worse than teacher"), strict=True):
            axis.plot([r["accuracy"] for r in series], [r[key] for r in series], "o-", ms=4, label=mode)
            axis.set(xlabel="accuracy of the oracle", title=key)
            axis.grid(alpha=0.2)
    axes[2].axhline(ALPHA, color="0.6", ls=":")
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
