"""EDM's pixel-space networks, and SiD's one-step drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bridge.edm import draw_sid, draws_pixels, empty_latent, load_edm, network_of, pixel_vae, pixels
from ..bridge.info import CARD
from ..bridge.pixels import to_pixels
from ..bridge.progress import shown
from ..files import parse_texts
from ..networks import class_names
from ..samplers.edm import MOST_STEPS, sid_levels, tile
from ..samplers.schedules import INIT_SIGMA, INIT_TIMESTEP, sampling_kind
from ..weights.checkpoints import read_metadata
from . import folders, types
from .types import CATEGORY


class ApprenticeLoadEDM(io.ComfyNode):
    """An EDM or SiD network as a native MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeLoadEDM",
            display_name="Load EDM Network",
            category=CATEGORY,
            description="A pixel-space network of EDM, SiD or SiDA, from a file in models/edm: .pkl as its authors publish it, "
            "read as data and never unpickled, or .safetensors from 'apprentice convert'. SiD Sampler and the stock samplers "
            "draw with it.",
            inputs=[
                io.Combo.Input(
                    "network", options=folders.edm_files(),
                    tooltip="A file in models/edm: network-snapshot-….pkl, or what 'apprentice convert' made of it.",
                ),
                io.Combo.Input(
                    "label", options=class_names.label_choices(), default=class_names.IN_TURN, optional=True,
                    tooltip="Which classes to draw. each in turn: picture 0 is of class 0, picture 1 of class 1, and so on. "
                    "random: by label_seed. by number: class_number. none: no class. Or one class by its name.",
                ),
                io.Int.Input(
                    "class_number", default=0, min=0, max=999999, optional=True,
                    tooltip="For by number: the class, counted from 0. For networks whose classes have no names here.",
                ),
                io.Int.Input(
                    "label_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, optional=True,
                    tooltip="For random: decides the classes. Picture i keeps its class in a bigger batch.",
                ),
                io.Int.Input(
                    "batch_size", default=16, min=1, max=4096, optional=True,
                    tooltip="How many pictures the empty latent and the class conditioning are for.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="Students for SiD Sampler, teachers for stock samplers."),
                io.Conditioning.Output("class_conditioning", display_name="class", tooltip="The chosen classes: the positive."),
                io.Conditioning.Output(
                    "unconditional", display_name="no class",
                    tooltip="No class: the negative of a stock sampler, for guidance between classes and none.",
                ),
                io.Vae.Output("vae", display_name="VAE", tooltip="Changes nothing: these networks draw pixels. For VAE Decode."),
                io.Latent.Output("latent", display_name="LATENT", tooltip="An empty batch in the network's size."),
                io.String.Output(
                    "names", display_name="names", is_output_list=True,
                    tooltip="The class of each picture in words; a prompt for oracles.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, network: Any = None, label: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        if folders.is_missing(network, folders.EDM):
            return f"There is no file '{network}' in models/edm; put a snapshot (.pkl) or its converted .safetensors there."
        if isinstance(label, str) and not class_names.is_choice(label):
            return f"label is '{label}', which is neither 'each in turn', 'random', 'by number' or 'none', nor a class."
        return True

    @classmethod
    def fingerprint_inputs(cls, network: Any = None, **_: Any) -> str:
        """Another file under the same name is another network."""
        return folders.stamp(network, folders.EDM)

    @classmethod
    def execute(
        cls, network: str, label: str = class_names.IN_TURN, class_number: int = 0, label_seed: int = 0, batch_size: int = 16,
    ) -> io.NodeOutput:  # fmt: skip
        path = folders.model_file(network, folders.EDM)
        if path is None:
            raise ValueError(f"There is no file '{network}' in models/edm.")
        model = load_edm(path)
        if "preset" in (about := read_metadata(path)):
            model.set_attachments(CARD, about)
        classes = network_of(model).label_dim
        labels = class_names.choose_labels(label, class_number, label_seed, batch_size, classes)
        return io.NodeOutput(
            model,
            class_conditioning(labels, classes),
            class_conditioning([None], classes),
            pixel_vae(),
            empty_latent(model, batch_size),
            _names(path, labels, classes),
            ui=shown(_summary(model, path)),
        )


def _names(path: Path, labels: list[int | None], classes: int) -> list[str]:
    """Each picture's class in words: the file's own, where it names its classes, or those that are widely known."""
    names = parse_texts(read_metadata(path).get("class_names", "[]"), f"The metadata class_names of {path.name}")
    return [
        names[which] if which is not None and len(names) == classes else class_names.class_name(which, classes)
        for which in labels
    ]


def class_conditioning(labels: list[int | None], classes: int) -> list[list[Any]]:
    """A CONDITIONING with a label vector for each picture, or one vector where all are the same."""
    same = labels[:1] if len(set(labels)) == 1 else labels
    return [[class_names.one_hot(same, classes)[:, None], {}]]


def _summary(model: Any, path: Path) -> str:
    network = network_of(model)
    size = sum(p.numel() for p in network.parameters()) / 1e6
    classes = f"{network.label_dim} classes" if network.label_dim else "no classes"
    return f"{path.name}: {network.img_resolution}x{network.img_resolution}, {classes}, {size:.1f} M parameters"


class ApprenticeSiDSampler(io.ComfyNode):
    """SiD's generator: one network evaluation a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSiDSampler",
            display_name="SiD Sampler",
            category=CATEGORY,
            description="Draws with a student of Score identity Distillation in one step, or in a few with fresh noise between "
            "them: SiD and SiDA (EDM networks) from noise level 2.5, SiD-LSG (Stable Diffusion 1.5, 2.1) from timestep 625.",
            inputs=[
                io.Model.Input("model", tooltip="The student: of Load EDM Network, or a SiD-LSG model of Stable Diffusion."),
                io.Conditioning.Input(
                    "positive", tooltip="Classes of Load EDM Network, or a prompt. There is no negative: guidance is trained in."
                ),
                io.Latent.Input("latent_image", tooltip="An empty latent, or an encoded picture to edit; masks are kept."),
                types.seed("Decides the noise. The same seed gives the same pictures."),
                io.Int.Input(
                    "steps", default=1, min=1, max=MOST_STEPS,
                    tooltip="1 is what nearly all of these students were trained for. More: renoise and denoise again, at levels "
                    "that fall evenly.",
                ),
                io.Float.Input(
                    "init_sigma", default=INIT_SIGMA, min=0.01, max=80.0, step=0.1, round=0.001, optional=True,
                    tooltip="For EDM networks: the noise level to start from; 2.5 for the published students.",
                ),
                io.Int.Input(
                    "init_timestep", default=INIT_TIMESTEP, min=1, max=999, optional=True,
                    tooltip="For Stable Diffusion: the timestep to start from; 625 for the published students.",
                ),
                io.Vae.Input(
                    "vae", optional=True,
                    tooltip="Only for the grid, and only for Stable Diffusion: the model's VAE. EDM networks draw pixels.",
                ),
                io.Int.Input(
                    "columns", default=0, min=0, max=256, optional=True,
                    tooltip="Pictures in a row of the grid; 0 makes it about square.",
                ),
            ],
            outputs=[
                io.Latent.Output("samples", display_name="LATENT", tooltip="The pictures; drafts for Judge and Teacher."),
                io.Image.Output("grid", display_name="grid", tooltip="All in one picture; Stable Diffusion needs vae."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, positive: Any, latent_image: dict[str, Any], seed: int, steps: int, init_sigma: float = INIT_SIGMA,
        init_timestep: int = INIT_TIMESTEP, vae: Any = None, columns: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        drawn = draw_sid(model, positive, latent_image, seed, steps, init_sigma, init_timestep)
        result = shown(_levels_in_words(model, steps, init_sigma, init_timestep))
        return io.NodeOutput(drawn, _grid(model, drawn, vae, columns), ui=result)


def _levels_in_words(model: Any, steps: int, init_sigma: float, init_timestep: int) -> str:
    sampling = model.get_model_object("model_sampling")
    levels = sid_levels(sampling, steps, init_sigma, init_timestep)
    what = "timestep" if sampling_kind(sampling) == "discrete" else "noise level"
    return f"{what} " + ", ".join(f"{level:g}" for level in levels)


def _grid(model: Any, drawn: dict[str, Any], vae: Any, columns: int) -> Any:
    """The grid; where it can't be made, whoever wants it is told why, and the latents go on."""
    if vae is not None:
        return tile(to_pixels(vae, drawn["samples"]), columns)
    if draws_pixels(model):
        return tile(pixels(drawn["samples"]), columns)
    return ExecutionBlocker("The grid of SiD Sampler needs a VAE with this model: connect the model's VAE to vae.")
