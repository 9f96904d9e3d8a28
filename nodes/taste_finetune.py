"""A LoRA from clicks on the Draft Board, without any oracle (Diffusion-DPO, arXiv 2311.12908; own noise, arXiv 2605.09433)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge import taste_clicks
from ..bridge import training as bridge
from ..bridge.clicked_pictures import clicked_shape, preferences_of
from ..bridge.copies import check_packed
from ..bridge.fingerprints import model_fingerprint, model_name, part_fingerprint
from ..bridge.info import CARD
from ..bridge.latents import family
from ..bridge.levels import Level, levels_of, one_step, student_level
from ..bridge.progress import shown
from ..bridge.prompts import encode_each
from ..charts.losses import loss_chart
from ..training.clicks import Clicks
from ..training.forecast import Forecast, held, learning, looking
from ..training.lora import Adapters, adaptable, checkpoint_blocks, in_half, lora_state_dict, switched
from ..training.options import NODE, chosen, given
from ..training.preference import Player, PreferenceSettings, prefer
from ..training.preference_options import PreferenceOptions
from ..training.progress import Progress
from . import folders, types
from .runs import NodeRun
from .schema import inputs_of, read
from .types import CATEGORY

LEAST_CLICKS = 8  # below them a look is a guess
TUNED = "tuned"


class ApprenticeTasteFinetune(io.ComfyNode):
    """A LoRA from clicks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeTasteFinetune",
            display_name="Taste Finetune",
            category=CATEGORY,
            description="Teaches your model what you clicked on the Draft Board: it learns to draw more like the better of each "
            "two. No oracle is asked. Saved as a LoRA that the stock loader takes. Cancel it whenever you like: with the same "
            "name it goes on where it was.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="What is tuned: the model that drew the pictures, or another of its family."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE: pictures whose latents were not kept are encoded."),
                io.String.Input("taste", default="my taste", tooltip="The name under which you clicked on the Draft Board."),
                *inputs_of(PreferenceOptions),
            ],
            outputs=[
                io.Model.Output("tuned_model", display_name="tuned", tooltip="The model with the LoRA at strength 1."),
                io.Image.Output("curve", display_name="curve", tooltip="The loss, and how often it agrees with the clicks."),
                io.String.Output("file", display_name="file", tooltip="The LoRA, as the stock loader lists it."),
                io.String.Output("report", display_name="report", tooltip="From how many clicks, and what came of it."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, taste: Any = None, name: Any = None, precision: Any = None, scheduler: Any = None, preset: Any = None
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI; what is connected has no value yet."""
        try:
            for value, what in ((taste, "taste"), (name, "model")):
                if isinstance(value, str):
                    folders.check_name(value, what)
        except ValueError as error:
            return str(error)
        return types.check_combos(training_precision=precision, scheduler=scheduler, preset=preset)

    @classmethod
    def fingerprint_inputs(cls, taste: Any = None, **_: Any) -> str:
        """More clicks make another look."""
        names = [taste] if isinstance(taste, str) else taste_clicks.names()
        return " ".join(taste_clicks.click_file(name).state() for name in names)

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, taste: str, **widgets: Any) -> io.NodeOutput:
        options = read(PreferenceOptions, widgets)
        file = taste_clicks.click_file(folders.check_name(taste, "taste"))
        clicks = file.read()
        if len(clicks.pairs) < LEAST_CLICKS:
            raise ValueError(
                f"There are {len(clicks.pairs)} clicks under the name '{taste}', and it takes {LEAST_CLICKS}: choose 'Teach a "
                "taste' on the Draft Board, and click the better of two."
            )
        parts = {"clip": part_fingerprint(clip), "vae": part_fingerprint(vae), "clicks": file.state()}
        run = _Run(model, clicks, options, parts)
        encoded = encode_each(clip, run.lines)
        with bridge.training():
            run.prepare(encoded, vae)
            run.foresee(run.forecast())
            return run.finish(run.tune(options.save_every))


class _Run(NodeRun):
    """One learning from clicks."""

    def __init__(self, model: Any, clicks: Clicks, options: PreferenceOptions, parts: dict[str, str]) -> None:
        """What can be refused before anything is computed or written.

        Raises:
            ValueError: Model and settings don't fit, or another run has this name.
        """
        self.model, self.clicks, self.options = model, clicks, options
        self.settings, once = PreferenceSettings(**given(options, NODE, PreferenceSettings)), options.steps == 1
        self.lines = list(dict.fromkeys(clicks.pictures[key].prompt for key in clicks.clicked))
        self.card = {key: value for key, value in model.attachments.get(CARD, {}).items() if key in ("preset", "sigmas")}
        self.drawn = student_level(model, options) if once else Level(model)
        self.process = one_step(model, self.drawn.sigma) if once else levels_of(model, options)
        adaptable(model.model.diffusion_model)
        check_packed(model.model)
        self.shape = clicked_shape(model, clicks, (options.width, options.height))
        self.fingerprint, self.dtype = model_fingerprint(model), bridge.training_dtype(options.precision)
        if once:
            parts = {**parts, "level": str(self.drawn.sigma)}
            self.card |= {"preset": self.drawn.preset} if self.drawn.preset else {}
        recipe = chosen(options, "name", "rank", "precision", "gradient_checkpointing", "steps", "scheduler")
        facts: dict[str, Any] = {**recipe, **asdict(self.settings), "shape": list(self.shape), "model": self.fingerprint, **parts}
        super().__init__(options.name, "model", "loras", facts, ("part", "gradient_checkpointing"))

    def prepare(self, encoded: list[Any], vae: Any) -> None:
        """Make the pictures latents, and the network that learns; ``encoded`` are the prompts' conditionings."""
        self.given = preferences_of(self.model, vae, self.clicks, self.shape, self.lines)
        base = bridge.copy_network(self.drawn.model, self.dtype)
        conditions = bridge.Conditions(base, encoded, self.shape)
        device, self.patchers = bridge.place([base])
        adapters = Adapters(base.diffusion_model, (TUNED,), self.options.rank, self.settings.seed)
        if self.options.gradient_checkpointing:
            checkpoint_blocks(base.diffusion_model, adapters)
        self.lora, denoise, rows = adapters.of[TUNED], bridge.denoiser(base, self.dtype, conditions), self.given.rows

        def of(name: str | None) -> Any:
            network = switched(denoise, adapters, name)
            return lambda x, sigma, which: network(x, sigma, rows[which])

        self.player = Player(of(None), of(TUNED), self.lora, self.process, float(self.given.pictures.std()), device)

    def forecast(self) -> Forecast:
        """What the run will take, by a pass of the network with gradient and one without."""
        settings, count = self.settings, 2 * (self.settings.part or self.settings.batch)
        x, which = torch.randn(count, *self.shape, device=self.player.device), torch.zeros(count, dtype=torch.long)
        time = self.process.times[0].float().to(x.device).expand(count)
        learn, kept = learning(lambda latents: self.player.tuned(latents, time, which), x)
        seconds = learn + looking(lambda: self.player.base(x, time, which))
        pictures = 2 * settings.updates * settings.batch
        memory = held([patcher.model for patcher in self.patchers], list(self.lora.parameters())) + kept
        return Forecast(pictures, seconds * pictures / count, memory)

    def tune(self, save_every: int) -> dict[str, Tensor]:
        """Learn, or go on; the LoRA's moving average."""
        total = self.settings.updates

        def work(progress: Progress) -> dict[str, Tensor]:
            return prefer(
                self.player, self.given, self.settings, self.folder, watch=progress.watch, save_every=save_every
            ).shadow  # fmt: skip

        return self.follow(work, total, max(1, min(10, total // 50)))

    def finish(self, average: dict[str, Tensor]) -> io.NodeOutput:
        """Save the LoRA with its card, and hand the tuned model out."""
        about = {"apprentice": "taste", "teacher": model_name(self.model), "teacher_fingerprint": self.fingerprint}
        about |= {**self.card, **{key: str(value) for key, value in asdict(self.settings).items()}}
        about["clicks"] = str(len(self.given.pairs))
        tensors = lora_state_dict(in_half(average), self.lora.names)
        self.save(tensors, about)
        tuned = bridge.with_lora(self.model, dict(tensors))
        tuned.set_attachments(CARD, about)
        log, text = self.folder.losses(), self._report()
        titles = {"loss": "loss", "agreement": "pairs whose better picture it now likes better than before"}
        curve = loss_chart(log, titles)
        result = shown(f"Saved {self.target.file.name}. {self.foreseen}\n{text}")
        return io.NodeOutput(tuned, curve, self.target.file.name, text, ui=result)

    def _report(self) -> str:
        given, log = self.given, self.folder.losses()
        origins = [self.clicks.pictures[key].origin for key in self.clicks.clicked]
        kept = sum(origin is not None and origin.fits(family(self.model), self.shape) for origin in origins)
        agreed = [float(entry["agreement"]) for entry in log[-max(len(log) // 10, 1) :] if "agreement" in entry]
        learned = f"; at the end it agreed with {sum(agreed) / len(agreed):.0%} of the clicks that it saw" if agreed else ""
        noise = f"the own noise of {given.known}" if self.settings.own_noise else "fresh noise for all"
        return (
            f"{len(given.pairs)} clicks on {len(given.pictures)} pictures of {len(self.lines)} prompts{learned}\n"
            f"latents of {kept} pictures were kept, the others are encoded from small pictures; {noise}"
        )
