"""A checkpoint that draws what an oracle likes, and keeps its variety: stochastic control in the graph (arXiv 2409.08861)."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge import training as bridge
from ..bridge.account import NetworkSketch, longest
from ..bridge.copies import check_packed, keeps_small, packed_bytes
from ..bridge.fingerprints import model_fingerprint, model_name, part_fingerprint
from ..bridge.info import CARD
from ..bridge.levels import Level, levels_of, one_step, student_level
from ..bridge.progress import shown
from ..bridge.prompts import encode_each
from ..charts.losses import loss_chart
from ..oracles.base import Oracle as OracleBase
from ..precision import name_of
from ..training.account import REWARD, Job
from ..training.album import Album
from ..training.baseline import Baseline
from ..training.finetune import card, check, finetune
from ..training.finetune_options import FinetuneExtras, FinetuneOptions
from ..training.finetune_task import ONE_STEP, Settings, Task
from ..training.forecast import Forecast, finetune_passes, held, learning, looking
from ..training.lora import Adapters, adaptable, checkpoint_blocks, in_half, lora_state_dict, switched
from ..training.options import NODE, chosen, given
from ..training.progress import Progress
from . import folders, types
from .folders import gather_prompts
from .runs import NodeRun
from .schema import inputs_of, quality, read
from .types import CATEGORY, Oracle

TUNED = "tuned"
SHOWN, SEEDS = 2, 4  # prompts and pictures of each that are drawn along the run


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
                Oracle.Input("oracle", tooltip="What judges. One without a gradient teaches by diffusion_nft."),
                io.Combo.Input(
                    "prompts", options=folders.prompt_files(), default=folders.BUNDLED,
                    tooltip="What is drawn while it learns: a .txt (one prompt a line) or .csv in ComfyUI's input folder, or "
                    "the bundled prompts of the tiny world.",
                ),  # fmt: skip
                io.String.Input(
                    "text", multiline=True, default="", tooltip="Prompts, one a line. If there are any, no file is read."
                ),
                *inputs_of(FinetuneOptions),
                quality(),
                *inputs_of(FinetuneExtras),
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
        cls, prompts: Any = None, name: Any = None, algorithm: Any = None, divergence: Any = None, strength: Any = None,
        precision: Any = None, scheduler: Any = None, preset: Any = None, quality: Any = None, optimiser: Any = None,
    ) -> bool | str:  # fmt: skip
        """Combos of V3 nodes are not checked by ComfyUI; of quality anything is taken, see ``settings_of``."""
        wrong = folders.check_run(name, "model", prompts)
        return wrong or types.check_combos(
            algorithm=algorithm, divergence=divergence, strength=strength, training_precision=precision, scheduler=scheduler,
            preset=preset, **types.without_nodes_texts(optimiser=optimiser),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, oracle: OracleBase, prompts: str, text: str, **widgets: Any
    ) -> io.NodeOutput:
        options, extras = read(FinetuneOptions, widgets), read(FinetuneExtras, widgets)
        lines = gather_prompts(prompts, text, options.max_prompts)
        parts = {"clip": part_fingerprint(clip), "vae": part_fingerprint(vae)}
        run = _Run(model, oracle, lines, options, extras, parts)
        encoded = encode_each(clip, lines)
        with bridge.training():
            run.take_account(model.model, encoded, vae)
            run.prepare(encoded, vae)
            run.foresee(run.forecast())
            return run.finish(*run.tune(options.save_every))


class _Run(NodeRun):
    """One fine-tuning of a ComfyUI model."""

    def __init__(
        self, model: Any, oracle: OracleBase, lines: list[str], options: FinetuneOptions, extras: FinetuneExtras,
        parts: dict[str, str],
    ) -> None:  # fmt: skip
        """What can be refused before anything is computed or written.

        Raises:
            ValueError: Model, oracle and settings don't fit, or another run has this name.
        """
        self.model, self.oracle, self.lines, self.options = model, oracle, lines, options
        last = max(options.count // 3, 1)
        direct = options.algorithm == "direct" or (options.algorithm in ONE_STEP and options.steps == 1)
        learns = given(extras, NODE, Settings)
        self.settings = Settings(**given(options, NODE, Settings), **learns, last=last, pool=options.base_draws)
        self.card = {key: value for key, value in model.attachments.get(CARD, {}).items() if key in ("preset", "sigmas")}
        check(self.settings, 1 if direct else options.steps, oracle.differentiable)
        self.drawn = student_level(model, options) if direct else Level(model)
        self.process = one_step(model, self.drawn.sigma) if direct else levels_of(model, options)
        adaptable(model.model.diffusion_model)
        check_packed(model.model)
        size = options.width, options.height
        self.shape = bridge.latent_shape(model, size)
        self.fingerprint, self.dtype = model_fingerprint(model), bridge.training_dtype(options.precision)
        drawn = {"model": self.fingerprint, "oracle": oracle.fingerprint(), "prompts": lines, **parts}
        self.task_facts: dict[str, Any] = {**drawn, "size": size, "precision": options.precision}
        recipe = chosen(options, "name", "rank", "precision", "gradient_checkpointing", "steps", "scheduler")
        facts: dict[str, Any] = {**recipe, "size": size, **asdict(self.settings), **drawn}
        if direct:
            facts["level"] = self.task_facts["level"] = self.drawn.sigma
            self.card |= {"preset": self.drawn.preset} if self.drawn.preset else {}
        super().__init__(options.name, "model", "loras", facts, ("part", "gradient_checkpointing"))

    def take_account(self, base: Any, encoded: list[Any], vae: Any) -> None:
        """Whether the run fits the card; see ``fitting``."""
        options, settings = self.options, self.settings
        job = Job(
            REWARD, options.width, options.height, settings.part or settings.batch, options.rank,
            options.gradient_checkpointing, False, keeps_small(base), settings.optimiser, name_of(self.dtype),
            packed=bool(packed_bytes(base)),
        )  # fmt: skip
        self.fitting(NetworkSketch(base, longest(encoded), vae, held([self.oracle.network], [])), job)

    def prepare(self, encoded: list[Any], vae: Any) -> None:
        """Make the network that learns; ``encoded`` are the prompts' conditionings."""
        base, decode = bridge.copy_network(self.drawn.model, self.dtype, True), bridge.Decoder(self.model, vae)
        conditions = bridge.Conditions(base, encoded, self.shape)
        device, self.patchers = bridge.place([base, decode.network, self.oracle.network])
        adapters = Adapters(base.diffusion_model, (TUNED,), self.options.rank, self.settings.seed)
        if self.options.gradient_checkpointing:
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
            facts=self.task_facts, drawn_at_once=drawn, judged_at_once=min(judged, self.oracle.batch),
        )  # fmt: skip

    def forecast(self) -> Forecast:
        """What the run will take, by one pass of the network, and one of the oracle."""
        settings, task = self.settings, self.task
        count = settings.part or settings.batch
        x, rows = torch.randn(count, *self.shape, device=task.device), torch.zeros(count, dtype=torch.long)
        sigma = torch.full((count,), float(bridge.noise_levels(self.model)[1][-1]), device=x.device)
        looks, learns = finetune_passes(settings.algorithm, task.process.steps, settings.count or task.process.steps)
        learn, kept = learning(lambda latents: task.tuned(latents, sigma, task.labels(rows)), x)
        look = looking(lambda: task.base(x, sigma, task.labels(rows)))
        seconds = learns * learn + looks * look + looking(lambda: task.reward(x, rows))
        rounds = settings.rounds if settings.algorithm == "weighted_regression" else 1
        pictures, before = settings.updates * settings.batch, settings.pool * task.prompts * rounds
        memory = held([patcher.model for patcher in self.patchers], list(self.lora.parameters())) + kept
        return Forecast(pictures + before, (seconds * pictures + look * task.process.steps * before) / count, memory)

    def tune(self, save_every: int) -> tuple[dict[str, Tensor], Baseline]:
        """Tune, or go on; the LoRA's moving average, and what the base earned."""
        total = self.settings.updates

        def work(progress: Progress) -> tuple[dict[str, Tensor], Baseline]:
            album = Album(self.folder)
            if not album.has_begun():
                album.add(0, *self._page())

            def look(step: int, _average: Any) -> Any:
                if step % save_every and step != total:
                    return None
                latents = album.add(step, *self._page())
                return lambda: bridge.preview(self.model, self.model.model.process_latent_in(latents))

            progress.look = look
            ema, base = finetune(
                self.task, self.settings, self.folder, watch=progress.watch, save_every=save_every, drawing=progress.drawing
            )
            return ema.shadow, base

        preview = lambda latents: bridge.preview(self.model, latents)  # noqa: E731
        return self.follow(work, total, max(1, min(10, total // 50)), preview=preview)

    def _page(self) -> tuple[Tensor, Tensor, list[float]]:
        """Pictures [prompts, seeds, H, W, 3] by the network as it is now, their latents, and their rewards."""
        rows = torch.arange(min(SHOWN, len(self.lines))).repeat_interleave(SEEDS)
        latents = self.task.draw(rows, torch.Generator().manual_seed(self.settings.seed))
        with torch.no_grad():
            pictures = torch.cat([self.decode(part) for part in latents.split(self.task.judged_at_once)])
            rewards = self.oracle.reward(pictures, [self.lines[int(i)] for i in rows]).tolist()
        shown = self.model.model.process_latent_out(latents.float().cpu())
        return pictures.float().cpu().unflatten(0, (-1, SEEDS)), shown.unflatten(0, (-1, SEEDS)), rewards

    def finish(self, average: dict[str, Tensor], base: Baseline) -> io.NodeOutput:
        """Save the LoRA with its card, and hand the tuned model out."""
        about = card(self.settings, base, model_name(self.model), self.oracle.name)
        about |= {"teacher_fingerprint": self.fingerprint, **self.card}
        tensors = lora_state_dict(in_half(average), self.lora.names)
        self.save(tensors, about)
        tuned = bridge.with_lora(self.model, dict(tensors))
        tuned.set_attachments(CARD, about)
        text = report_text(base, self.folder.losses(), self.task)
        result = shown(f"Saved {self.target.file.name}. {self.foreseen}\n{text}")
        return io.NodeOutput(tuned, self.name, self.target.file.name, text, ui=result)


def report_text(base: Baseline, log: list[dict[str, Any]], task: Task) -> str:
    """What the strength is in all units, and what came of it."""
    summary = base.summary()
    moved = summary["target_kl"]
    rewards = [float(entry["reward"]) for entry in log[-max(len(log) // 10, 1) :] if "reward" in entry]
    learned = f"; while it learned, at the end: {sum(rewards) / len(rewards):.4g}" if rewards else ""  # its log may be gone
    lines = [
        f"alpha {summary['alpha']:.4g} ({base.name}; like {summary['alpha_as_kl']:.4g} of kl for small changes)",
        f"the optimal law moves by {moved:.3g} nats a picture ({moved / math.prod(task.shape):.2g} a latent "
        f"value), and its mean score is {summary['target_reward']:.4g}",
        f"the model as it was: {summary['base_reward']:.4g}{learned}",
    ]
    if summary["ess"] < 8:
        lines.append("few base pictures carry the estimate: raise base_draws, or lower the strength")
    if (share := task.process.realised_share()) < 0.98 and task.process.steps > 1:
        lines.append(f"the levels start at little noise: about {share:.0%} of the change can be reached")
    return "\n".join(lines)


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
        album = Album(folder)
        entries, log, pages = album.entries(), folder.losses(), album.pages()
        if not entries or not pages:
            raise ValueError(f"There is no run '{run}' in output/apprentice/training; run Reward Finetune first.")
        first = entries[0]["spread"] or 1.0
        points = [{"pictures": e["step"], "shown": e["reward"], "variety": e["spread"] / first} for e in entries]
        batch = max(log[-1]["pictures"] // max(log[-1]["step"], 1), 1) if log else 1
        learned = [{**entry, "pictures": entry["pictures"] / batch} for entry in log]
        titles = {
            "reward": "reward of the pictures that it learned from", "kl": "KL of the path to the model's own, nats a picture",
            "shown": "reward of the pictures shown", "variety": "variety of the pictures shown; 1 is the model as it was",
        }  # fmt: skip
        pictures = torch.from_numpy(np.stack(pages)).float() / 255
        table = ["| step | reward | variety |", "| ---: | ---: | ---: |"]
        table += [f"| {e['step']} | {e['reward']:.4g} | {e['spread'] / first:.3f} |" for e in entries]
        return io.NodeOutput(loss_chart([*learned, *points], titles), pictures, "\n".join(table))

