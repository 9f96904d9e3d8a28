"""A checkpoint that draws what an oracle likes, and keeps its variety: stochastic control in the graph (arXiv 2409.08861)."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.samplers
import numpy as np
import torch
from comfy_api.v0_0_2 import io
from PIL import Image
from torch import Tensor

from ..bridge import training as bridge
from ..bridge.drafts import known_preset, student_schedule
from ..bridge.drawing import Drawing
from ..bridge.fingerprints import model_fingerprint, model_name, part_fingerprint
from ..bridge.info import CARD
from ..bridge.progress import show_text
from ..charts.losses import loss_chart
from ..files import save_safetensors_atomically, write_atomically
from ..oracles.base import Oracle as OracleBase
from ..samplers.presets import AUTO, initial_scale
from ..training.control import Process
from ..training.finetune import Baseline, Settings, Task, card, check, finetune
from ..training.loop import Ema, Means, Watch, read_lines, read_log
from ..training.lora import Adapters, adaptable, checkpoint_blocks, in_half, lora_state_dict
from ..training.run_folder import RunFolder
from ..training.target import Target
from . import folders, types
from .distill import Claim, Clock, switched
from .folders import gather_prompts
from .types import CATEGORY, Oracle

TUNED = "tuned"
LEAST = 0.1  # noise to picture, below which the last step goes to the clean picture
SHOWN, SEEDS = 2, 4  # prompts and pictures of each that are drawn along the run


@dataclass(frozen=True)
class Recipe:
    """What the node is told beside the settings of the run."""

    name: str
    rank: int
    precision: str
    gradient_checkpointing: bool
    size: tuple[int, int]
    steps: int
    scheduler: str


class ApprenticeRewardFinetune(io.ComfyNode):
    """A LoRA that raises an oracle's reward at a price for every change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeRewardFinetune",
            display_name="Reward Finetune",
            category=CATEGORY,
            description="Teaches your model to draw what an oracle likes, and to keep its variety: reward against a price for "
            "every change, whose optimum is known. Saved as a LoRA that the stock loader takes. Cancel it whenever you like: "
            "with the same name it goes on where it was.",
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="What is tuned, of any family that draws pictures: SD, SDXL, SD3, Flux, Chroma, Z-Image, Qwen-Image, "
                    "Wan, the tiny world's teacher.",
                ),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input(
                    "vae", tooltip="Its VAE: the oracle looks at pictures. TAESD (in Load VAE) needs the least memory."
                ),
                Oracle.Input("oracle", tooltip="What judges. Without a gradient only weighted_regression can follow it."),
                io.Combo.Input(
                    "prompts", options=folders.prompt_files(), default=folders.BUNDLED,
                    tooltip="What is drawn while it learns: a .txt (one prompt a line) or .csv in ComfyUI's input folder, or "
                    "the bundled prompts of the tiny world.",
                ),  # fmt: skip
                io.String.Input(
                    "text", multiline=True, default="", tooltip="Prompts, one a line. If there are any, no file is read."
                ),
                io.Int.Input("max_prompts", default=24, min=1, max=100000, tooltip="How many prompts are used, at most."),
                io.String.Input("name", default="my tuned model", tooltip="Name of the LoRA, and of the run that is resumed."),
                io.Combo.Input(
                    "algorithm", options=types.COMBOS["algorithm"], default="adjoint_matching",
                    tooltip="adjoint_matching: reaches the optimal law, memory of one picture's step. path_kl: the same law, "
                    "straight through the sampler. weighted_regression: for oracles without gradient. preview: last step only, "
                    "a quick look that leads to no law. direct: for one-step students; each picture moves to a better one near.",
                ),  # fmt: skip
                io.Combo.Input(
                    "divergence", options=types.COMBOS["divergence"], default="kl",
                    tooltip="How a change is priced. kl is the usual; half_chi2 forbids large changes of few pictures, "
                    "forward_kl keeps every kind of picture alive. Others lie between.",
                ),  # fmt: skip
                io.Combo.Input(
                    "strength", options=types.COMBOS["strength"], default="target KL",
                    tooltip="What value means. target KL: how far the law may move, in nats a picture. target reward gain: by "
                    "how much the mean score shall rise. alpha: the price itself, in units of the score; lower is stronger.",
                ),  # fmt: skip
                io.Float.Input(
                    "value", default=1.0, min=1e-6, max=1e9, step=0.1, round=1e-6, tooltip="The number for the chosen strength."
                ),
                io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Rank of the LoRA."),
                io.Int.Input("updates", default=300, min=1, max=1000000, tooltip="Steps of the optimiser."),
                io.Int.Input("batch_size", default=8, min=1, max=4096, tooltip="Pictures a step."),
                io.Int.Input(
                    "at_once", default=1, min=0, max=4096, tooltip="Pictures in memory at a time; 0 for the whole batch."
                ),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of the pictures."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height of them."),
                io.Int.Input(
                    "steps", default=20, min=4, max=1000,
                    tooltip="Steps of a draw while it learns, always with fresh noise (eta 1), so that the start is forgotten.",
                ),  # fmt: skip
                types.scheduler(),
                io.Int.Input(
                    "regressed_steps", default=8, min=0, max=1000,
                    tooltip="adjoint_matching: steps of each draw that it learns from, a third of them the last; 0 for all.",
                ),  # fmt: skip
                io.Float.Input(
                    "learning_rate", default=0.0003, min=1e-8, max=1.0, step=0.0001, round=1e-8, tooltip="Highest learning rate."
                ),
                io.Int.Input(
                    "base_draws", default=16, min=8, max=100000,
                    tooltip="Pictures of the model as it was, for each prompt, from which strength and divergence follow. 16 are "
                    "a matter of minutes; 64 or more meet a target closely. With strength alpha and kl nothing follows from "
                    "them, and 8 are drawn.",
                ),  # fmt: skip
                io.Int.Input(
                    "rounds", default=4, min=1, max=1000, tooltip="weighted_regression: how often fresh pictures are drawn."
                ),
                io.Combo.Input(
                    "precision", options=types.COMBOS["training_precision"], default="auto",
                    tooltip="auto: bfloat16 where the GPU or CPU has it natively, float32 elsewhere.",
                ),  # fmt: skip
                io.Boolean.Input(
                    "gradient_checkpointing", default=True, tooltip="Computes a third more and needs far less memory."
                ),
                io.Int.Input(
                    "first_seed", default=0, min=0, max=0xFFFFFFFF, tooltip="Decides all randomness of the run."
                ),
                io.Int.Input("save_every", default=25, min=1, max=100000, tooltip="Steps between saves and pictures."),
                # A socket alone: ComfyUI saves the text that a node shows behind its widgets, where a new one would take it.
                io.String.Input(
                    "preset", default=AUTO, optional=True, force_input=True,
                    tooltip="direct: the name of the student's schedule (see Student Sampler), whose first noise level it draws "
                    "from and is tuned at. Left out (auto): what the model's card says, where Apprentice made or loaded it. "
                    "custom: the scheduler's highest level.",
                ),  # fmt: skip
            ],
            outputs=[
                io.Model.Output("tuned_model", display_name="tuned", tooltip="The model with the LoRA at strength 1."),
                io.String.Output("run", display_name="run", tooltip="The run's name, for Reward Curve."),
                io.String.Output("file", display_name="file", tooltip="The LoRA, as the stock loader lists it."),
                io.String.Output("report", display_name="report", tooltip="The strength in all its units, and what came of it."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        prompts: Any = None,
        name: Any = None,
        algorithm: Any = None,
        divergence: Any = None,
        strength: Any = None,
        precision: Any = None,
        scheduler: Any = None,
        preset: Any = None,
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        wrong = folders.check_run(name, "model", prompts)
        return wrong or types.check_combos(
            algorithm=algorithm, divergence=divergence, strength=strength, training_precision=precision, scheduler=scheduler,
            preset=preset,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        oracle: OracleBase,
        prompts: str,
        text: str,
        max_prompts: int,
        name: str,
        algorithm: str,
        divergence: str,
        strength: str,
        value: float,
        rank: int,
        updates: int,
        batch_size: int,
        at_once: int,
        width: int,
        height: int,
        steps: int,
        scheduler: str,
        regressed_steps: int,
        learning_rate: float,
        base_draws: int,
        rounds: int,
        precision: str,
        gradient_checkpointing: bool,
        first_seed: int,
        save_every: int,
        preset: str = AUTO,
    ) -> io.NodeOutput:
        recipe = Recipe(name, rank, precision, gradient_checkpointing, (width, height), steps, scheduler)
        settings = Settings(
            algorithm=algorithm, divergence=divergence, strength=strength, value=value, updates=updates, batch=batch_size,
            part=at_once, count=regressed_steps, last=max(regressed_steps // 3, 1), learning_rate=learning_rate,
            base_draws=base_draws, rounds=rounds, pool=base_draws, seed=first_seed,
        )  # fmt: skip
        lines = gather_prompts(prompts, text, max_prompts)
        parts = {"clip": part_fingerprint(clip), "vae": part_fingerprint(vae)}
        run = _Run(model, oracle, lines, recipe, settings, preset, parts)
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(line)) for line in lines]
        with bridge.training():
            run.prepare(encoded, vae)
            with run.claim.held():
                average, known = run.tune(save_every)
            return run.finish(average, known)


class _Run:
    """One fine-tuning of a ComfyUI model."""

    def __init__(
        self, model: Any, oracle: OracleBase, lines: list[str], recipe: Recipe, settings: Settings, preset: str,
        parts: dict[str, str],
    ) -> None:
        """What can be refused before anything is computed or written.

        Raises:
            ValueError: Model, oracle and settings don't fit, or another run has this name.
        """
        self.model, self.oracle, self.lines, self.recipe, self.settings = model, oracle, lines, recipe, settings
        self.name = folders.check_name(recipe.name, "model")
        self.folder = folders.run_folder(self.name)
        self.card = {key: value for key, value in model.attachments.get(CARD, {}).items() if key in ("preset", "sigmas")}
        direct = settings.algorithm == "direct"
        check(settings, 1 if direct else recipe.steps, oracle.differentiable)
        self.drawn = student_level(model, recipe, preset) if direct else Level(model)
        self.process = one_step(model, self.drawn.sigma) if direct else levels_of(model, recipe)
        adaptable(model.model.diffusion_model)
        self.shape = bridge.latent_shape(model, recipe.size)
        self.made, self.dtype = model_fingerprint(model), bridge.training_dtype(recipe.precision)
        drawn = {"model": self.made, "oracle": oracle.fingerprint(), "prompts": lines, **parts}
        self.facts: dict[str, Any] = {**drawn, "size": recipe.size, "precision": recipe.precision}
        facts: dict[str, Any] = {**asdict(recipe), **asdict(settings), **drawn}
        if direct:
            facts["level"] = self.facts["level"] = self.drawn.sigma
            self.card |= {"preset": self.drawn.preset} if self.drawn.preset else {}
        free = ("part", "gradient_checkpointing")
        self.claim = Claim(self.folder, facts, free)
        self.target = Target.of(folders.made_file("loras", self.name, "model"), facts, free)
        folders.check_target(self.target, "loras")

    def prepare(self, encoded: list[Any], vae: Any) -> None:
        """Make the network that learns; ``encoded`` are the prompts' conditionings."""
        base, decode = bridge.copy_network(self.drawn.model, self.dtype), bridge.Decoder(self.model, vae)
        conditions = bridge.Conditions(base, encoded, self.shape)
        device, self.patchers = bridge.place([base, decode.network, self.oracle.network])
        adapters = Adapters(base.diffusion_model, (TUNED,), self.recipe.rank, self.settings.seed)
        if self.recipe.gradient_checkpointing:
            checkpoint_blocks(base.diffusion_model, adapters)
        self.lora = adapters.of[TUNED]
        denoise = bridge.denoiser(base, self.dtype, conditions)
        drawn, judged = bridge.at_once(base, vae, self.shape, device)

        def reward(latents: Tensor, rows: Tensor) -> Tensor:
            return self.oracle.reward(decode(latents), [self.lines[int(i)] for i in rows]).float()

        self.decode = decode
        self.task = Task(
            switched(denoise, adapters, None), switched(denoise, adapters, TUNED), self.lora, reward, lambda rows: rows,
            len(self.lines), self.process, self.shape, device, self.oracle.differentiable, start_scale=self.drawn.scale,
            facts=self.facts, drawn_at_once=drawn, judged_at_once=min(judged, self.oracle.batch),
        )  # fmt: skip

    def tune(self, save_every: int) -> tuple[dict[str, Tensor], Baseline]:
        """Tune, or go on; the LoRA's moving average, and what the base earned."""
        bar, clock = bridge.Bar(self.settings.updates), Clock(self.settings.updates)
        album, first = Album(self.folder, self._sheet), Clock(0)

        def drawing(done: int, total: int, latents: Tensor) -> None:
            bar.show(done, lambda: bridge.preview(self.model, latents), total)
            first.total = total
            first.step(done)
            show_text(f"Pictures of the model as it is: {done:,} of {total:,} evaluations, {first.left(done)}")
            if bar.interrupted():
                raise KeyboardInterrupt

        def after_step(step: int, _ema: Ema) -> None:
            shown = album.add(step) if step % save_every == 0 or step == self.settings.updates else None
            bar.show(step, None if shown is None else lambda: self._preview(shown))
            clock.step(step)

        def report(step: int, pictures: int, means: Means) -> None:
            show_text(f"{step} of {self.settings.updates} steps, reward {means['reward']:.4g}, {clock.left(step)}")

        watch = Watch(
            report, max(1, min(10, self.settings.updates // 50)), self.folder.log, bar.interrupted, (bridge.Cancelled,),
            after_step=after_step, say=show_text,
        )  # fmt: skip
        try:
            album.add(0)
            ema, known = finetune(self.task, self.settings, self.folder.path, watch=watch, save_every=save_every, drawing=drawing)
            return ema.shadow, known
        except (KeyboardInterrupt, bridge.Cancelled):
            bar.stop()

    def _preview(self, latents: Tensor) -> Any:
        return bridge.preview(self.model, self.model.model.process_latent_in(latents))

    def _sheet(self) -> tuple[Tensor, Tensor, list[float]]:
        """Pictures [prompts, seeds, H, W, 3] by the network as it is now, their latents, and their rewards."""
        rows = torch.arange(min(SHOWN, len(self.lines))).repeat_interleave(SEEDS)
        latents = self.task.draw(rows, torch.Generator().manual_seed(self.settings.seed))
        with torch.no_grad():
            pictures = torch.cat([self.decode(part) for part in latents.split(self.task.judged_at_once)])
            rewards = self.oracle.reward(pictures, [self.lines[int(i)] for i in rows]).tolist()
        shown = self.model.model.process_latent_out(latents.float().cpu())
        return pictures.float().cpu().unflatten(0, (-1, SEEDS)), shown.unflatten(0, (-1, SEEDS)), rewards

    def finish(self, average: dict[str, Tensor], known: Baseline) -> io.NodeOutput:
        """Save the LoRA with its card, and hand the tuned model out."""
        about = card(self.settings, known, model_name(self.model), self.oracle.name)
        about |= {"teacher_fingerprint": self.made, **self.card}
        tensors = lora_state_dict(in_half(average), self.lora.names)
        file = self.target.file
        folders.check_target(self.target, "loras")
        save_safetensors_atomically(tensors, file, about | self.target.about)
        tuned = bridge.with_lora(self.model, dict(tensors))
        tuned.set_attachments(CARD, about)
        text = report_text(known, read_log(self.folder.log), self.task)
        show_text(f"Saved {file.name}.\n{text}")
        return io.NodeOutput(tuned, self.name, file.name, text)


@dataclass(frozen=True)
class Level:
    """Where a one-step student draws from.

    Attributes:
        model: As it is drawn with.
        sigma: The noise level.
        scale: Of the first noise, over ComfyUI's own.
        preset: With which preset it draws; "" where that is not known.
    """

    model: Any
    sigma: float = 0.0
    scale: float = 1.0
    preset: str = ""


def student_level(model: Any, recipe: Recipe, preset: str) -> Level:
    """The first level of the student's schedule: as its card says, or by the preset.

    Raises:
        ValueError: The preset is "auto" and there is no card, or it does not fit the model.
    """
    known = model.attachments.get(CARD, {})
    if preset == AUTO and (first := _first_level(known)):
        return Level(model, first, preset=str(known.get("preset", "")))
    preset = known_preset(model, preset)
    drawn, _sampler, sigmas = student_schedule(model, preset, Drawing(1, 1.0, "euler", recipe.scheduler, 0))
    first = float(sigmas[0])
    return Level(drawn, first, initial_scale(preset, first), preset)


def _first_level(known: dict[str, str]) -> float:
    """The first of the levels in a card; 0 where it names none."""
    try:
        first = float(json.loads(known.get("sigmas", "[]"))[0])
    except (ValueError, TypeError, LookupError):
        return 0.0
    return first if math.isfinite(first) and first > 0 else 0.0


def one_step(model: Any, sigma: float) -> Process:
    """From ``sigma`` to the picture at once."""
    return _process(model, torch.tensor([sigma, 0.0], dtype=torch.float64))


def levels_of(model: Any, recipe: Recipe) -> Process:
    """The model's own noise levels by a stock scheduler, drawn through with fresh noise."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), recipe.scheduler, recipe.steps)
    return _process(model, sigmas).ending_at(LEAST)


def _process(model: Any, sigmas: Tensor) -> Process:
    kind, _levels = bridge.noise_levels(model)
    return Process.flow(sigmas.double()) if kind == "flow" else Process.edm(sigmas.double())


def report_text(known: Baseline, log: list[dict[str, Any]], task: Task) -> str:
    """What the strength is in all units, and what came of it."""
    told = known.told()
    rewards = [float(entry["reward"]) for entry in log[-max(len(log) // 10, 1) :] if "reward" in entry]
    learned = f"; while it learned, at the end: {sum(rewards) / len(rewards):.4g}" if rewards else ""  # its log may be gone
    lines = [
        f"alpha {told['alpha']:.4g} ({known.name}; like {told['alpha_as_kl']:.4g} of kl for small changes)",
        f"the optimal law moves by {told['target_kl']:.3g} nats a picture ({told['target_kl'] / math.prod(task.shape):.2g} a "
        f"latent value), and its mean score is {told['target_reward']:.4g}",
        f"the model as it was: {told['base_reward']:.4g}{learned}",
    ]
    if told["ess"] < 8:
        lines.append("few base pictures carry the estimate: raise base_draws, or lower the strength")
    if (share := task.process.realised_share()) < 0.98 and task.process.steps > 1:
        lines.append(f"the levels start at little noise: about {share:.0%} of the change can be reached")
    return "\n".join(lines)


class Album:
    """Pictures along a run: a PNG each, and a line with reward and diversity in ``album.jsonl``."""

    def __init__(self, folder: RunFolder, draw: Any) -> None:
        self.file, self.draw, self.key = folder.album, draw, folder.key

    def entries(self) -> list[dict[str, Any]]:
        """What is there of this run, oldest first; damaged lines are left out."""
        found = read_lines(self.file, "step", "reward", "spread")
        return [entry for entry in found if entry.get("run", self.key) == self.key]

    def sheets(self) -> list[np.ndarray[Any, Any]]:
        """The pictures of the entries, but for those that are gone, damaged or of another size than the last."""
        sheets = []
        for entry in self.entries():
            with suppress(OSError, ValueError):
                sheets.append(np.asarray(Image.open(self._sheet(entry["step"])).convert("RGB")))
        return [sheet for sheet in sheets if sheet.shape == sheets[-1].shape]

    def _sheet(self, step: int) -> Path:
        return self.file.with_name(f"album_{step:06d}.png")

    def add(self, step: int) -> Tensor | None:
        """Draw and note, once for each step, however often a run is resumed; the latents of the first prompt."""
        kept = [entry for entry in self.entries() if entry["step"] < step]
        if len(kept) < len(self.entries()) and step == 0:
            return None
        pictures, latents, rewards = self.draw()
        spread = [float((x[:, None] - x[None]).flatten(2).norm(dim=2).sum() / (len(x) * (len(x) - 1))) for x in latents]
        entry = {"step": step, "reward": sum(rewards) / len(rewards), "spread": sum(spread) / len(spread), "run": self.key}
        rows = [torch.cat(list(row), 1) for row in pictures]
        sheet = Image.fromarray((torch.cat(rows).clamp(0, 1) * 255).round().byte().numpy())
        write_atomically(self._sheet(step), lambda part: sheet.save(part, "PNG"))
        text = "".join(json.dumps(e) + "\n" for e in [*kept, entry])
        write_atomically(self.file, lambda part: part.write_text(text, encoding="utf-8"))
        first: Tensor = latents[0]
        return first


class ApprenticeRewardCurve(io.ComfyNode):
    """What a fine-tuning did along its way."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeRewardCurve",
            display_name="Reward Curve",
            category=CATEGORY,
            description="Reward, change (KL) and variety along a run of Reward Finetune, and its pictures: where variety falls "
            "while the reward still rises, the oracle is being flattered.",
            inputs=[io.String.Input("run", default="my tuned model", tooltip="The run's name; connect Reward Finetune's run.")],
            outputs=[
                io.Image.Output("curve", display_name="curve", tooltip="Reward, KL, and variety against the model as it was."),
                io.Image.Output("pictures", display_name="pictures", tooltip="The same prompts and noise along the run."),
                io.String.Output("table", display_name="table", tooltip="The same as a table."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run: Any = None) -> str:
        """A run that went on has another curve."""
        try:
            return folders.digest(folders.run_folder(folders.check_name(str(run), "run")).log)
        except ValueError:
            return ""

    @classmethod
    def execute(cls, run: str) -> io.NodeOutput:
        folder = folders.run_folder(folders.check_name(run, "run"))
        album = Album(folder, None)
        entries, log, sheets = album.entries(), read_log(folder.log), album.sheets()
        if not entries or not sheets:
            raise ValueError(f"There is no run '{run}' in output/apprentice/training; run Reward Finetune first.")
        first = entries[0]["spread"] or 1.0
        points = [{"pictures": e["step"], "shown": e["reward"], "variety": e["spread"] / first} for e in entries]
        batch = max(log[-1]["pictures"] // max(log[-1]["step"], 1), 1) if log else 1
        learned = [{**entry, "pictures": entry["pictures"] / batch} for entry in log]
        titles = {
            "reward": "reward of the pictures that it learned from", "kl": "KL of the path to the model's own, nats a picture",
            "shown": "reward of the pictures shown", "variety": "variety of the pictures shown; 1 is the model as it was",
        }  # fmt: skip
        pictures = torch.from_numpy(np.stack(sheets)).float() / 255
        table = ["| step | reward | variety |", "| ---: | ---: | ---: |"]
        table += [f"| {e['step']} | {e['reward']:.4g} | {e['spread'] / first:.3f} |" for e in entries]
        return io.NodeOutput(loss_chart([*learned, *points], titles), pictures, "\n".join(table))

