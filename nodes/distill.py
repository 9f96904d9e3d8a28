"""Students made from the artist's own teacher: Score identity Distillation in the graph."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge import training as bridge
from ..bridge.fast_decode import fast_decode
from ..bridge.fingerprints import model_fingerprint, model_name, part_fingerprint
from ..bridge.info import CARD
from ..bridge.pixels import to_pixels
from ..bridge.progress import show_text
from ..charts.losses import loss_chart
from ..files import save_safetensors_atomically
from ..samplers.edm import sid_sigmas
from ..samplers.presets import CUSTOM
from ..samplers.schedules import INIT_SIGMA, INIT_TIMESTEP, rollback_sigma
from ..training.distill import Settings, Task, card, distil
from ..training.loop import Ema, Means, Watch, read_log
from ..training.lora import Adapters, adaptable, checkpoint_blocks, in_half, lora_state_dict
from ..training.run_folder import Differences, RunFolder
from ..training.sid import EdmLevels, TimestepLevels, add_noise, edm_weight, epsilon_weight
from ..training.sid_iteration import Players
from ..training.target import Target
from . import folders, types
from .folders import gather_prompts
from .types import CATEGORY

LORA, FULL = "LoRA", "full copy"
PANELS = {"generator": "generator's loss", "fake": "fake score network's loss"}
PREVIEWED = 4  # pictures in a preview


@dataclass(frozen=True)
class Recipe:
    """What the node is told beside the numbers of SiD."""

    name: str
    method: str
    rank: int
    precision: str
    gradient_checkpointing: bool
    size: tuple[int, int]
    init_timestep: int
    init_sigma: float

    @property
    def folder(self) -> RunFolder:
        """Where the run is kept, so that it can be resumed: output/apprentice/training/<name>."""
        return folders.run_folder(folders.check_name(self.name, "student"))

    @property
    def file(self) -> Path:
        """What the run makes: in models/loras or models/diffusion_models, where the stock loaders look."""
        return folders.made_file(self.kind, self.name, "student")

    @property
    def kind(self) -> str:
        """Of models, in ComfyUI's words."""
        return "loras" if self.method == LORA else "diffusion_models"


class ApprenticeSiDDistill(io.ComfyNode):
    """A one-step student, from a teacher and prompts alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSiDDistill",
            display_name="SiD Distill (make a student)",
            category=CATEGORY,
            description="Makes a one-step student of your own model by Score identity Distillation: prompts only, no pictures. "
            "The student is saved as a LoRA or a full copy that the stock loaders take. Cancel it whenever you like: with the "
            "same name it goes on where it was.",
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The teacher, of any family that draws pictures: SD, SDXL, SD3, Flux, Chroma, Z-Image, Qwen-Image, "
                    "Wan, the tiny world's. LoRAs count.",
                ),
                io.Clip.Input("clip", tooltip="The teacher's text encoder."),
                io.Combo.Input(
                    "prompts", options=folders.prompt_files(), default=folders.BUNDLED,
                    tooltip="What the student shall be able to draw: a .txt (one prompt a line) or .csv in ComfyUI's input "
                    "folder, or the 200 bundled prompts of the tiny world. Thousands are better than hundreds.",
                ),  # fmt: skip
                io.String.Input(
                    "text", multiline=True, default="", tooltip="Prompts, one a line. If there are any, no file is read."
                ),
                io.String.Input(
                    "name", default="my student", tooltip="Name of the file that is made, and of the run that is resumed."
                ),
                io.Combo.Input(
                    "method", options=types.COMBOS["method"], default=LORA,
                    tooltip="LoRA: one copy of the teacher in memory, small file, for models/loras. full copy: three copies, for "
                    "models/diffusion_models.",
                ),  # fmt: skip
                io.Int.Input("rank", default=64, min=1, max=1024, tooltip="Rank of the LoRA; without effect on a full copy."),
                io.Int.Input(
                    "pictures", default=20000, min=1, max=1000000000,
                    tooltip="How many the student draws while it learns. The official runs on SD1.5 took 10 million; tens of "
                    "thousands already give a usable student.",
                ),  # fmt: skip
                io.Int.Input("batch_size", default=16, min=1, max=8192, tooltip="Pictures an iteration; the official runs: 512."),
                io.Int.Input(
                    "at_once", default=0, min=0, max=8192,
                    tooltip="Pictures in memory at a time; 0 for the whole batch. Changes memory, not the student.",
                ),  # fmt: skip
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of the pictures that are drawn."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height of them."),
                io.Int.Input(
                    "steps", default=1, min=1, max=4, tooltip="Steps the student shall draw in; above 1 it learns 1 to so many."
                ),
                io.Float.Input(
                    "alpha", default=1.0, min=0.1, max=2.0, step=0.05, round=0.001,
                    tooltip="The loss's alpha: 1.0 in the official runs on Stable Diffusion, 1.2 in most on EDM networks.",
                ),  # fmt: skip
                _kappa("kappa1", 1.5, "the fake score network in its own training"),
                _kappa("kappa2", 1.5, "the fake score network where the student is judged (the paper's kappa2 = kappa3)"),
                _kappa("kappa4", 1.5, "the teacher. 1.5 gave the best FID, 2 to 4.5 follow the prompt more closely"),
                _rate("generator_rate", "student"),
                _rate("fake_rate", "fake score network; as high as the student's or higher"),
                io.Float.Input(
                    "ema_half_life", default=5000.0, min=0.0, max=1e9, step=100.0,
                    tooltip="The student is averaged over about so many pictures, at most a twentieth of those seen.",
                ),  # fmt: skip
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
                io.Int.Input(
                    "save_every", default=50, min=1, max=100000,
                    tooltip="Iterations between saves and previews; what a crash can cost at most.",
                ),  # fmt: skip
                io.Int.Input(
                    "init_timestep", default=INIT_TIMESTEP, min=1, max=999, optional=True,
                    tooltip="Stable Diffusion: the timestep that the student draws from.",
                ),  # fmt: skip
                io.Float.Input(
                    "init_sigma", default=INIT_SIGMA, min=0.01, max=1000.0, step=0.1, round=0.001, optional=True,
                    tooltip="EDM models (the tiny world's): the noise level that the student draws from.",
                ),  # fmt: skip
                io.Model.Input(
                    "student", optional=True,
                    tooltip="For a full copy: a model of the same kind to begin with instead of the teacher, such as a "
                    "consistency student. It saves most of the way.",
                ),  # fmt: skip
                io.Vae.Input("vae", optional=True, tooltip="Decodes the samples; without it they are small previews."),
            ],
            outputs=[
                io.Model.Output("distilled", display_name="student", tooltip="The student, for SiD Sampler or Student Sampler."),
                io.Image.Output("curve", display_name="loss curve", tooltip="Both losses over the images seen."),
                io.Image.Output("samples", display_name="samples", tooltip="What the student draws of the first prompts."),
                io.String.Output("file", display_name="file", tooltip="The file that was saved, as the stock loader lists it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: Any = None, name: Any = None, method: Any = None, precision: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        wrong = folders.check_run(name, "student", prompts)
        return wrong or types.check_combos(method=method, training_precision=precision)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompts: str,
        text: str,
        name: str,
        method: str,
        rank: int,
        pictures: int,
        batch_size: int,
        at_once: int,
        width: int,
        height: int,
        steps: int,
        alpha: float,
        kappa1: float,
        kappa2: float,
        kappa4: float,
        generator_rate: float,
        fake_rate: float,
        ema_half_life: float,
        precision: str,
        gradient_checkpointing: bool,
        first_seed: int,
        save_every: int,
        init_timestep: int = INIT_TIMESTEP,
        init_sigma: float = INIT_SIGMA,
        student: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        recipe = Recipe(
            name, method, rank, precision, gradient_checkpointing, (width, height), init_timestep, init_sigma
        )
        settings = Settings(
            pictures=pictures, batch=batch_size, part=at_once, generator_rate=generator_rate, fake_rate=fake_rate, alpha=alpha,
            kappa1=kappa1, kappa2=kappa2, kappa4=kappa4, steps=steps, generator_scale=1.0, ema_half_life=ema_half_life,
            eps=1e-6 if precision == "fp16" else 1e-8, seed=first_seed,
        )  # fmt: skip
        lines = gather_prompts(prompts, text, 0)
        made = _Run(model, student, vae, recipe, settings, {"prompts": lines, "clip": part_fingerprint(clip)})
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(line)) for line in ["", *lines]]
        with bridge.training():
            made.prepare(encoded)
            with made.claim.held():
                average = made.train(save_every)
            with torch.inference_mode():
                return made.finish(average)


def _kappa(name: str, default: float, who: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=20.0, step=0.1, round=0.01, tooltip=f"Guidance of {who}. 1 is none, and cheaper."
    )


def _rate(name: str, who: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=0.00001, min=1e-9, max=0.1, step=0.000001, round=1e-9,
        tooltip=f"Learning rate of the {who}. A LoRA takes about 1e-5 to 1e-4, a full copy 1e-6.",
    )  # fmt: skip


class _Run:
    """One distillation of ComfyUI models."""

    def __init__(
        self, teacher: Any, student: Any, vae: Any, recipe: Recipe, settings: Settings, texts: dict[str, Any]
    ) -> None:
        """What can be refused before anything is computed or written.

        Raises:
            ValueError: The model can't be distilled so, or another run has this name.
        """
        self.teacher, self.start, self.vae = teacher, student or teacher, vae
        self.recipe, self.settings = recipe, settings
        if recipe.method == LORA and self.start is not self.teacher:
            raise ValueError(
                "A LoRA shares the teacher's weights, so it can't begin with another student; choose the method 'full copy', or "
                "disconnect student."
            )
        if recipe.method == LORA:
            adaptable(teacher.model.diffusion_model)
        self.dtype = bridge.training_dtype(recipe.precision)
        self.kind, self.levels = bridge.noise_levels(teacher)
        self.shape = bridge.latent_shape(teacher, recipe.size)
        self._sigmas(settings.steps)
        self.made = model_fingerprint(teacher), model_fingerprint(self.start)
        # Rates are constant, so that a run may be made longer.
        facts = {**asdict(recipe), **asdict(settings), "models": self.made, **texts}
        free = ("part", "gradient_checkpointing", "pictures")
        self.claim, self.target = Claim(recipe.folder, facts, free), Target.of(recipe.file, facts, free)
        folders.check_target(self.target, self.recipe.kind)

    def prepare(self, encoded: list[Any]) -> None:
        """Make the networks that learn; ``encoded`` are the prompts' conditionings, the empty one first."""
        self.generator_base, self.adapters, self.task = self._task(encoded)

    # ------------------------------------------------------------------------------------------------ networks

    def _task(self, encoded: list[Any]) -> tuple[Any, Adapters | None, Task]:
        base = bridge.copy_network(self.teacher, self.dtype)
        prompts = bridge.Conditions(base, encoded, self.shape)
        if self.recipe.method == LORA:
            device, self.patchers = bridge.place([base])
            adapters = Adapters(base.diffusion_model, ("generator", "fake"), self.recipe.rank, self.settings.seed)
            if self.recipe.gradient_checkpointing:
                checkpoint_blocks(base.diffusion_model, adapters)
            generator, fake = adapters.of["generator"], adapters.of["fake"]
            denoise = bridge.denoiser(base, self.dtype, prompts)
            denoisers = [switched(denoise, adapters, name) for name in (None, "fake", "generator")]
            return base, adapters, self._assemble(base, len(prompts) - 1, denoisers, generator, fake, device)
        own, fake_base = bridge.copy_network(self.start, torch.float32), bridge.another(base)
        fake_base.diffusion_model.to(torch.float32).dtype = torch.float32
        for trained in (own, fake_base):
            if self.recipe.gradient_checkpointing:
                checkpoint_blocks(trained.diffusion_model)
        device, self.patchers = bridge.place([base, fake_base, own])
        denoisers = [bridge.denoiser(b, self.dtype, prompts) for b in (base, fake_base, own)]
        networks = own.diffusion_model, fake_base.diffusion_model
        return own, None, self._assemble(base, len(prompts) - 1, denoisers, *networks, device)

    def _assemble(
        self, base: Any, count: int, denoisers: list[Any], generator: Any, fake: Any, device: torch.device
    ) -> Task:
        """The task for ``count`` prompts, numbered from 1; 0 is the empty one."""
        players = Players(denoisers[0], denoisers[1], denoisers[2], list(fake.parameters()), list(generator.parameters()))
        guided = {self.settings.kappa1, self.settings.kappa2, self.settings.kappa4} != {1.0}

        def draw_labels(rng: torch.Generator, batch: int) -> tuple[Any, Any]:
            return torch.randint(count, (batch,), generator=rng) + 1, torch.zeros(batch, dtype=torch.long) if guided else None

        self.first = torch.arange(1, 1 + min(count, PREVIEWED))
        edm = self.kind == "edm"
        return Task(
            players, generator, fake, self.shape, draw_labels, self._sigmas,
            levels=EdmLevels() if edm else TimestepLevels(self.levels, len(self.levels) // 50, len(self.levels) * 49 // 50),
            weight=edm_weight if edm else epsilon_weight,
            noising=bridge.mix(base) if self.kind == "flow" else add_noise, device=device,
        )  # fmt: skip

    def _sigmas(self, steps: int) -> tuple[float, ...]:
        """Where the student is called. Flow models, Cascade: from noise alone, in even steps of time (SiD has none for them)."""
        sampling = self.teacher.get_model_object("model_sampling")
        if self.kind not in ("discrete", "edm"):
            return tuple(rollback_sigma(1 - i / steps, sampling) for i in range(steps))
        return tuple(sid_sigmas(sampling, steps, self.recipe.init_sigma, self.recipe.init_timestep)[:-1].tolist())

    # ----------------------------------------------------------------------------------------------------- run

    def train(self, save_every: int) -> dict[str, Tensor]:
        """Distil, or go on; the student's moving average."""
        folder, total = self.recipe.folder, self.settings.schedule.steps
        bar, started = bridge.Bar(total), Clock(total)

        def after_step(step: int, _ema: Ema) -> None:
            bar.show(step, (lambda: bridge.preview(self.teacher, self._drawn())) if step % save_every == 0 else None)
            started.step(step)

        def report(step: int, pictures: int, means: Means) -> None:
            show_text(f"{step} of {total} iterations, {pictures:,} images seen, {started.left(step)}")

        watch = Watch(
            report, max(1, min(25, total // 100)), folder.log, bar.interrupted, (bridge.Cancelled,),
            after_step=after_step, say=show_text,
        )  # fmt: skip
        try:
            return distil(self.task, self.settings, folder.checkpoint, watch=watch, save_every=save_every).shadow
        except KeyboardInterrupt:
            bar.stop()

    def finish(self, average: dict[str, Tensor]) -> io.NodeOutput:
        """Save the student and hand it out, with its curve and samples."""
        self.task.generator.load_state_dict(average)
        student = self._save(average)
        curve = loss_chart(read_log(self.recipe.folder.log), PANELS)
        latents = self.teacher.model.process_latent_out(self._drawn()).float()  # as ComfyUI has them
        samples = to_pixels(self.vae, latents) if self.vae is not None else fast_decode(self.teacher, {"samples": latents})
        show_text(f"Saved {self.recipe.file.name} after {self.settings.schedule.steps * self.settings.batch:,} images.")
        return io.NodeOutput(student, curve, samples.reshape(-1, *samples.shape[-3:]), self.recipe.file.name)

    def _drawn(self) -> Tensor:
        """What the student draws of the first prompts from fixed noise."""
        rng = torch.Generator().manual_seed(self.settings.seed)
        z = torch.randn(len(self.first), *self.shape, generator=rng).to(self.task.device)
        drawn: Tensor = self.task.draw(z, self.first).cpu()
        return drawn

    def _save(self, average: dict[str, Tensor]) -> Any:
        """Write the student with its card, and return it as a MODEL that carries the card."""
        about = card(
            self.settings, model_name(self.teacher), self.made[0], preset=self._preset(), weights=self.recipe.method,
            rank=self.recipe.rank, starts_from=self.made[1], sigmas=json.dumps(self._sigmas(self.settings.steps)),
        )  # fmt: skip
        if self.adapters is not None:
            tensors = lora_state_dict(in_half(average), self.adapters.of["generator"].names)
            student = bridge.with_lora(self.teacher, dict(tensors))
        else:
            network, half = self.generator_base.diffusion_model.requires_grad_(False), in_half(average)
            network.load_state_dict(half)  # rounded as in the file, so that both draw the same
            student = bridge.with_weights(self.start, network)
            tensors = self.start.model.model_config.process_unet_state_dict_for_saving(half)
            tensors = {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items()}
        folders.check_target(self.target, self.recipe.kind)
        save_safetensors_atomically(tensors, self.target.file, about | self.target.about)
        student.set_attachments(CARD, about)
        return student

    def _preset(self) -> str:
        """With which preset Student Sampler draws as the student was trained."""
        if self.kind == "discrete":
            return "sid-lsg" if self.recipe.init_timestep == INIT_TIMESTEP else CUSTOM
        return "sid-edm" if self.kind == "edm" and self.recipe.init_sigma == INIT_SIGMA else CUSTOM


def switched(denoise: Callable[..., Tensor], adapters: Adapters, name: str | None) -> Callable[..., Tensor]:
    """``denoise`` with that adapter on, or with none."""

    def with_adapter(x: Tensor, sigma: Tensor, labels: Any) -> Tensor:
        with adapters.on(name):
            return denoise(x, sigma, labels)

    return with_adapter


class Clock:
    """How long a run will still take, from how long it has taken since it began or resumed."""

    def __init__(self, total: int) -> None:
        self.total, self.begun, self.first = total, time.monotonic(), -1

    def step(self, step: int) -> None:
        """One more step is done."""
        if self.first < 0:
            self.begun, self.first = time.monotonic(), step

    def left(self, step: int) -> str:
        """In words."""
        if step <= self.first or self.first < 0:
            return "estimating the time left"
        seconds = (time.monotonic() - self.begun) / (step - self.first) * (self.total - step)
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"about {hours} h {minutes:02d} min left" if hours else f"about {max(minutes, 1)} min left"


class Claim:
    """The folder of a run, looked at before work starts, taken when it does, and held until it ends.

    Args:
        facts: What the run is told.
        free: What changes memory and not the result, or may change while a run goes on.

    Raises:
        ValueError: The run of this name was begun with other settings.
    """

    def __init__(self, folder: RunFolder, facts: dict[str, Any], free: tuple[str, ...]) -> None:
        self.folder, self.facts, self.free = folder, facts, free
        if other := folder.differences(facts, free):
            raise ValueError(self._refusal(other))

    def held(self) -> AbstractContextManager[None]:
        """The folder is this run's; nobody else works in it meanwhile."""
        return self.folder.held(self.facts, self.free, self._refusal)

    def _refusal(self, other: Differences) -> str:
        return (
            f"The run '{self.folder.path.name}' was begun with another {' and '.join(list(other)[:3])}: take another name, or "
            f"delete the folder output/apprentice/training/{self.folder.path.name} to begin anew."
        )
