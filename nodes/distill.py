"""Students made from the artist's own teacher: Score identity Distillation in the graph."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge import training as bridge
from ..bridge.account import NetworkSketch, longest
from ..bridge.copies import keeps_small, packed_bytes
from ..bridge.fast_decode import fast_decode
from ..bridge.fingerprints import model_fingerprint, model_name, part_fingerprint
from ..bridge.info import CARD
from ..bridge.pixels import to_pixels
from ..bridge.progress import show_text, shown
from ..bridge.prompts import encode_each
from ..bridge.tilt import Pleased, check_oracle
from ..bridge.transplant import Models, levels_of, load_onto, made_lora, named
from ..charts.losses import loss_chart
from ..oracles.base import Oracle as OracleBase
from ..precision import name_of
from ..samplers.edm import sid_sigmas
from ..samplers.presets import CUSTOM
from ..samplers.schedules import INIT_SIGMA, INIT_TIMESTEP, rollback_sigma
from ..training.account import SID_FULL, SID_LORA, Job
from ..training.distill import Settings, Task, card, distil, left_out
from ..training.forecast import Forecast, held, learning, looking, sid_passes, variety_passes
from ..training.lora import Adapters, checkpoint_blocks, in_half, switched
from ..training.optimisers import check_optimiser
from ..training.options import NODE, chosen, given
from ..training.progress import Progress
from ..training.recompute import apart
from ..training.sid import EdmLevels, TimestepLevels, add_noise, edm_weight, epsilon_weight
from ..training.sid_iteration import Players
from ..training.sid_options import LORA, SidExtras, SidOptions
from ..training.variety import OFF, karras_path
from . import folders, types
from .folders import gather_prompts
from .runs import NodeRun
from .schema import before, inputs_of, quality, read
from .types import CATEGORY, Oracle

PANELS = {"generator": "generator's loss", "fake": "fake score network's loss"}
PREVIEWED = 4  # pictures in a preview


class ApprenticeSiDDistill(io.ComfyNode):
    """A one-step student, from a teacher and prompts alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSiDDistill",
            display_name="SiD Distill",
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
                *inputs_of(SidOptions),
                io.Model.Input(
                    "student", optional=True,
                    tooltip="What to begin with instead of the teacher: a few-step model of the same kind (Turbo, Lightning, "
                    "schnell, Z-Image-Turbo), or a checkpoint with a speed LoRA such as LCM's on it; without LoRAs of your own. "
                    "It saves most of the way. A LoRA begins at what makes it fast, a full copy at its weights.",
                ),  # fmt: skip
                io.Vae.Input("vae", optional=True, tooltip="Decodes the samples; without it they are small previews."),
                quality(
                    "sid_quality", " keep my look: with student connected, your checkpoint's look at that student's speed, in an "
                    "evening: a LoRA of 4 steps from 6,000 pictures.",
                ),
                io.Model.Input(
                    "base", optional=True,
                    tooltip="For a LoRA: the plain model that student was made of, where that isn't the checkpoint of model "
                    "(SDXL base beside an SDXL finetune of yours). Not needed where student is a checkpoint with a speed LoRA.",
                ),
                *before(
                    "price", inputs_of(SidExtras),
                    Oracle.Input(
                        "oracle", optional=True,
                        tooltip="What the student shall please while it learns, at the price below; needs a gradient, and vae.",
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("distilled", display_name="student", tooltip="The student, for SiD Sampler or Student Sampler."),
                io.Image.Output("curve", display_name="loss curve", tooltip="Both losses over the images seen."),
                io.Image.Output("samples", display_name="samples", tooltip="What the student draws of the first prompts."),
                io.String.Output("file", display_name="file", tooltip="The file that was saved, as the stock loader lists it."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, prompts: Any = None, name: Any = None, method: Any = None, precision: Any = None, quality: Any = None,
        made_for: Any = None, variety: Any = None, optimiser: Any = None,
    ) -> bool | str:  # fmt: skip
        """Combos of V3 nodes are not checked by ComfyUI; of quality anything is taken, see ``settings_of``."""
        wrong = folders.check_run(name, "student", prompts)
        late = types.without_nodes_texts(made_for=made_for, variety=variety, optimiser=optimiser)
        return wrong or types.check_combos(method=method, training_precision=precision, **late)

    @classmethod
    def execute(
        cls, model: Any, clip: Any, prompts: str, text: str, student: Any = None, vae: Any = None, base: Any = None,
        oracle: OracleBase | None = None, **widgets: Any,
    ) -> io.NodeOutput:  # fmt: skip
        options, extras, lines = read(SidOptions, widgets), read(SidExtras, widgets), gather_prompts(prompts, text, 0)
        texts = {"prompts": lines, "clip": part_fingerprint(clip)}
        models = Models(model, student, base)
        models.check_look(widgets.get("quality"))
        run = _Run(models, vae, options, extras, texts, oracle)
        encoded = encode_each(clip, ["", *lines])
        with bridge.training():
            run.take_account(model.model, encoded)
            run.prepare(encoded)
            run.foresee(run.forecast())
            average = run.train(options.save_every)
            with torch.inference_mode():
                return run.finish(average)


class _Run(NodeRun):
    """One distillation of ComfyUI models."""

    def __init__(
        self, models: Models, vae: Any, options: SidOptions, extras: SidExtras, texts: dict[str, Any],
        oracle: OracleBase | None = None,
    ) -> None:  # fmt: skip
        """What can be refused before anything is computed or written.

        Raises:
            ValueError: The models can't be distilled so, or another run has this name.
        """
        self.teacher, self.start, self.vae, self.options = models.teacher, models.start, vae, options
        self.oracle, self.lines, self.extras = oracle, texts["prompts"], extras
        check_oracle(oracle, vae)
        eps = 1e-6 if options.precision == "fp16" else 1e-8
        self.settings = settings = Settings(
            **given(options, NODE, Settings), **given(extras, NODE, Settings), generator_scale=1.0, eps=eps
        )
        check_optimiser(settings.optimiser)
        models.check(options.method == LORA, extras.made_for)
        self.warm = models.transplant() if options.method == LORA else None
        self.dtype = bridge.training_dtype(options.precision)
        self.noise_kind, self.levels = bridge.noise_levels(self.teacher)
        size = options.width, options.height
        self.shape = bridge.latent_shape(self.teacher, size)
        self._sigmas(settings.steps)
        self.models = model_fingerprint(self.teacher), model_fingerprint(self.start)
        names = "name", "method", "rank", "precision", "gradient_checkpointing", "init_timestep", "init_sigma"
        facts = {**chosen(options, *names), "size": size, **asdict(settings), "models": self.models, **texts}
        facts |= self._pleasing() | (self.warm.facts() if self.warm else {})
        kind = "loras" if options.method == LORA else "diffusion_models"
        # Rates are constant, so that a run may be made longer.
        super().__init__(options.name, "student", kind, facts, ("part", "gradient_checkpointing", "pictures"))

    def _pleasing(self) -> dict[str, Any]:
        """What the student shall please, as facts."""
        if self.oracle is None:
            return {}
        return {"oracle": self.oracle.fingerprint(), "vae": part_fingerprint(self.vae), "price": self.extras.price}

    def take_account(self, base: Any, encoded: list[Any]) -> None:
        """Whether the run fits the card, and how; see ``fitting``."""
        options, settings = self.options, self.settings
        method = SID_LORA if options.method == LORA else SID_FULL
        guided = settings.kappa1 != 1, settings.kappa2 != 1, settings.kappa4 != 1
        job = Job(
            method, options.width, options.height, settings.part or settings.batch, options.rank,
            options.gradient_checkpointing, False, keeps_small(base), settings.optimiser, name_of(self.dtype), guided,
            settings.variety != OFF, self.oracle is not None, bool(packed_bytes(base)),
        )  # fmt: skip
        judge = held([self.oracle.network], []) if self.oracle is not None else 0
        self.job = self.fitting(NetworkSketch(base, longest(encoded), self.vae, judge), job)

    def prepare(self, encoded: list[Any]) -> None:
        """Make the networks that learn; ``encoded`` are the prompts' conditionings, the empty one first."""
        self.generator_base, self.adapters, self.task = self._task(encoded)

    # ------------------------------------------------------------------------------------------------ networks

    def _task(self, encoded: list[Any]) -> tuple[Any, Adapters | None, Task]:
        base = bridge.copy_network(self.teacher, self.dtype, frozen=self.options.method == LORA)
        prompts = bridge.Conditions(base, encoded, self.shape)
        judge = self.oracle
        self.pleased = None if judge is None else Pleased(self.teacher, self.vae, judge, self.lines, self.extras.price)
        judges = self.pleased.networks if self.pleased else []
        if self.options.method == LORA:
            device, self.patchers = bridge.place([base, *judges])
            adapters = Adapters(base.diffusion_model, ("generator", "fake"), self.options.rank, self.settings.seed)
            if self.options.gradient_checkpointing:
                checkpoint_blocks(base.diffusion_model, adapters)
            if self.warm and not self.folder.checkpoint.exists():
                show_text(f"The rank holds {self.warm.begin(adapters.of['generator']):.0%} of what makes the student fast.")
            generator, fake = adapters.of["generator"], adapters.of["fake"]
            denoise = bridge.denoiser(base, self.dtype, prompts)
            denoisers = [switched(denoise, adapters, name) for name in (None, "fake", "generator")]
            return base, adapters, self._assemble(base, len(prompts) - 1, denoisers, generator, fake, device)
        student_base, fake_base = bridge.copy_network(self.start, torch.float32), bridge.another(base)
        fake_base.diffusion_model.to(torch.float32).dtype = torch.float32
        for trained in (student_base, fake_base):
            if self.options.gradient_checkpointing:
                checkpoint_blocks(trained.diffusion_model)
        device, self.patchers = bridge.place([base, fake_base, student_base, *judges])
        denoisers = [bridge.denoiser(b, self.dtype, prompts) for b in (base, fake_base, student_base)]
        networks = student_base.diffusion_model, fake_base.diffusion_model
        return student_base, None, self._assemble(base, len(prompts) - 1, denoisers, *networks, device)

    def _assemble(
        self, base: Any, count: int, denoisers: list[Any], generator: Any, fake: Any, device: torch.device
    ) -> Task:
        """The task for ``count`` prompts, numbered from 1; 0 is the empty one."""
        if self.job.apart:
            denoisers = [apart(denoise) for denoise in denoisers]
        players = Players(denoisers[0], denoisers[1], denoisers[2], list(fake.parameters()), list(generator.parameters()))
        guided = {self.settings.kappa1, self.settings.kappa2, self.settings.kappa4} != {1.0}

        def draw_labels(rng: torch.Generator, batch: int) -> tuple[Any, Any]:
            return torch.randint(count, (batch,), generator=rng) + 1, torch.zeros(batch, dtype=torch.long) if guided else None

        self.first = torch.arange(1, 1 + min(count, PREVIEWED))
        edm = self.noise_kind == "edm"
        return Task(
            players, generator, fake, self.shape, draw_labels, self._sigmas,
            levels=EdmLevels() if edm else TimestepLevels(self.levels, len(self.levels) // 50, len(self.levels) * 49 // 50),
            weight=edm_weight if edm else epsilon_weight,
            noising=bridge.mix(base) if self.noise_kind == "flow" else add_noise, device=device, path=self._path,
            tilt=self.pleased.tilt if self.pleased else None,
        )  # fmt: skip

    def _sigmas(self, steps: int) -> tuple[float, ...]:
        """Where the student is called. Flow models, Cascade: from noise alone, in even steps of time (SiD has none for them)."""
        if self.warm and self.warm.preset:
            return levels_of(self.warm.preset, self.teacher, steps, (self.options.width, self.options.height))
        if self.noise_kind not in ("discrete", "edm"):
            return self._even(steps)
        sampling = self.teacher.get_model_object("model_sampling")
        return tuple(sid_sigmas(sampling, steps, self.options.init_sigma, self.options.init_timestep)[:-1].tolist())

    def _even(self, steps: int) -> tuple[float, ...]:
        sampling = self.teacher.get_model_object("model_sampling")
        return tuple(rollback_sigma(1 - i / steps, sampling) for i in range(steps))

    def _path(self, first: float, steps: int) -> tuple[float, ...]:
        """Along which levels the teacher goes: of flow models and Cascade in even steps of time, else as EDM spaces them.

        A preset that the student is called by has its own number of steps, fewer than the teacher's here.
        """
        if self.noise_kind not in ("discrete", "edm"):
            return (first, *(level for level in self._even(steps) if level < first), 0.0)
        sampling = self.teacher.get_model_object("model_sampling")
        return karras_path(first, steps, float(sampling.sigma_min))

    # ----------------------------------------------------------------------------------------------------- run

    def forecast(self) -> Forecast:
        """What the run will take, by one pass of the student's network."""
        settings, players = self.settings, self.task.players
        count = settings.part or settings.batch
        z = torch.randn(count, *self.shape, device=self.task.device)
        sigma, labels = torch.full((count,), self._sigmas(1)[0], device=z.device), torch.ones(count, dtype=torch.long)
        kinds = sid_passes(settings.kappa1, settings.kappa2, settings.kappa4), variety_passes(settings.variety, settings.kappa4)
        looks, learns = (sum(passes) for passes in zip(*kinds, strict=True))
        seconds, kept = learning(lambda x: players.generator(x, sigma, labels), z)
        seconds = learns * seconds + looks * looking(lambda: players.generator(z, sigma, labels))
        if (pleased := self.pleased) is not None:
            judging, more = learning(lambda latents: pleased.reward(latents, labels), z)
            seconds, kept = seconds + judging, kept + more
        pictures = settings.schedule.steps * settings.batch
        learned = [*players.fake_parameters, *players.generator_parameters]
        return Forecast(pictures, seconds * pictures / count, held([p.model for p in self.patchers], learned) + kept)

    def train(self, save_every: int) -> dict[str, Tensor]:
        """Distil, or go on; the student's moving average."""
        total = self.settings.schedule.steps

        def look(step: int, _average: Any) -> Any:
            return (lambda: bridge.preview(self.teacher, self._drawn())) if step % save_every == 0 else None

        def work(progress: Progress) -> dict[str, Tensor]:
            return distil(self.task, self.settings, self.folder, watch=progress.watch, save_every=save_every).shadow

        return self.follow(work, total, max(1, min(25, total // 100)), look=look)

    def finish(self, average: dict[str, Tensor]) -> io.NodeOutput:
        """Save the student and hand it out, with its curve and samples."""
        self.task.generator.load_state_dict(average)
        student = self._save(average)
        losses = self.folder.losses()
        curve = loss_chart(losses, PANELS)
        latents = self.teacher.model.process_latent_out(self._drawn()).float()  # as ComfyUI has them
        samples = to_pixels(self.vae, latents) if self.vae is not None else fast_decode(self.teacher, {"samples": latents})
        images = self.settings.schedule.steps * self.settings.batch
        result = shown(f"Saved {self.target.file.name} after {images:,} images. {left_out(losses)}{self.foreseen}")
        return io.NodeOutput(student, curve, samples.reshape(-1, *samples.shape[-3:]), self.target.file.name, ui=result)

    def _drawn(self) -> Tensor:
        """What the student draws of the first prompts from fixed noise."""
        rng = torch.Generator().manual_seed(self.settings.seed)
        z = torch.randn(len(self.first), *self.shape, generator=rng).to(self.task.device)
        drawn: Tensor = self.task.draw(z, self.first).cpu()
        return drawn

    def _save(self, average: dict[str, Tensor]) -> Any:
        """Write the student with its card, and return it as a MODEL that carries the card."""
        about = card(
            self.settings, model_name(self.teacher), self.models[0], preset=self._preset(), weights=self.options.method,
            rank=self.options.rank, starts_from=self.models[1], sigmas=json.dumps(self._sigmas(self.settings.steps)),
        )  # fmt: skip
        if self.oracle is not None:
            about |= {"oracle": self.oracle.name, "price": f"{self.extras.price:g}"}
        if self.adapters is not None:
            names, extras = self.adapters.of["generator"].names, self.extras
            onto, tensors = made_lora(extras.made_for, self.teacher, self.start, average, names, self.options.rank)
            student = bridge.with_lora(onto, dict(tensors))
            about |= load_onto(extras.made_for, self.teacher, self.start)
        else:
            network, half = self.generator_base.diffusion_model.requires_grad_(False), in_half(average)
            network.load_state_dict(half)  # rounded as in the file, so that both draw the same
            student = bridge.with_weights(self.start, network)
            tensors = self.start.model.model_config.process_unet_state_dict_for_saving(half)
            tensors = {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items()}
        self.save(tensors, about)
        student.set_attachments(CARD, about)
        return student

    def _preset(self) -> str:
        """With which preset Student Sampler draws as the student was trained."""
        if self.warm and self.warm.preset:
            return named(self.warm.preset, self.settings.steps)
        if self.noise_kind == "discrete":
            return "sid-lsg" if self.options.init_timestep == INIT_TIMESTEP else CUSTOM
        return "sid-edm" if self.noise_kind == "edm" and self.options.init_sigma == INIT_SIGMA else CUSTOM
