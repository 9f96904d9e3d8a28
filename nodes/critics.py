"""What a critic that PromptKD made is good for: naming pictures, sorting them, judging them; and teaching it new words."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..bridge.latents import latents_of
from ..bridge.memory import on_device
from ..bridge.pixels import as_pictures
from ..bridge.progress import shown
from ..oracles.clip_files import load_clip
from ..oracles.promptkd import Critic as CriticData
from ..oracles.promptkd import PromptKDOracle, base_of, load_critic
from ..samplers.presets import AUTO
from ..training import critic as critics
from ..training.critic import Teacher
from ..weights.checkpoints import read_metadata
from ..weights.promptkd_checkpoint import read_official
from . import folders, types
from .types import CATEGORY, Critic, Oracle, PromptKDTeacher


class ApprenticeLoadPromptKD(io.ComfyNode):
    """A critic from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeLoadPromptKD",
            display_name="Load PromptKD",
            category=CATEGORY,
            description="A critic that PromptKD Distill made, from models/promptkd, on the small CLIP that it was made from. A "
            "student of PromptKD's authors loads as well, with its teacher and its class names.",
            inputs=[
                io.Combo.Input("file", options=folders.critic_files(), tooltip="The critic, in models/promptkd."),
                io.Combo.Input(
                    "clip", options=[AUTO, *folders.whole_clips()], default=AUTO,
                    tooltip="The small CLIP that it was made from; auto finds it by the name that is in the critic's file.",
                ),  # fmt: skip
                PromptKDTeacher.Input(
                    "teacher", optional=True, tooltip="For a student of PromptKD's authors: the teacher that it was distilled "
                    "from."
                ),
                io.String.Input(
                    "classes", multiline=True, default="", optional=True,
                    tooltip="For a student of PromptKD's authors: the class names, one a line.",
                ),  # fmt: skip
            ],
            outputs=[
                Critic.Output("critic", display_name="critic", tooltip="For Classify, Sort by Class and PromptKD Oracle."),
                io.String.Output("classes_known", display_name="classes", tooltip="The words that it knows, one a line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: Any = None, clip: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        if folders.is_missing(file, folders.CRITICS):
            return f"There is no file '{file}' in models/promptkd; make a critic with PromptKD Distill."
        if clip != AUTO and isinstance(clip, str) and folders.whole_clip(clip) is None:
            return f"There is no file '{clip}' in models/promptkd_clips, models/oracles or models/clip_vision; choose a CLIP."
        return True

    @classmethod
    def fingerprint_inputs(cls, file: Any = None, clip: Any = None, **_: Any) -> str:
        """Another file under the same name is another critic."""
        return f"{folders.stamp(file, folders.CRITICS)} {folders.stamp(clip, folders.CLIPS, folders.ORACLES, 'clip_vision')}"

    @classmethod
    def execute(cls, file: str, clip: str, teacher: Teacher | None = None, classes: str = "") -> io.NodeOutput:
        path = folders.model_file(file, folders.CRITICS)
        if path is None:
            raise ValueError(f"There is no file '{file}' in models/promptkd; make a critic with PromptKD Distill.")
        with torch.inference_mode(False):
            official = "promptkd" in read_metadata(path) or path.suffix == ".tar"
            base = _clip_of("" if official else base_of(path), clip, file)
            if official:
                words = folders.lines_of(classes)
                if teacher is None or not words:
                    raise ValueError(
                        f"{file} is a student of PromptKD's authors, which holds no words: connect its teacher, and give the "
                        f"classes."
                    )
                critic = critics.official_critic(load_clip(base), read_official(path), teacher, words)
            else:
                critic = load_critic(path, load_clip(base).network)
        result = shown(f"{critic.name}: {len(critic.classes)} classes, on {critic.base}")
        return io.NodeOutput(critic, "\n".join(critic.classes), ui=result)


def _clip_of(base: str, clip: str, file: str) -> Any:
    """The path of the small CLIP.

    Raises:
        ValueError: It isn't there.
    """
    names = [name for name in folders.whole_clips() if name.rpartition(".")[0].rpartition("/")[2] == base]
    path = folders.whole_clip(clip if clip != AUTO else names[0]) if clip != AUTO or names else None
    if path is None:
        what = f"'{base}', the CLIP that {file} was made from, is not in models/promptkd_clips" if base else "auto finds no CLIP"
        raise ValueError(f"{what}: choose it under clip.")
    return path


class ApprenticeClassify(io.ComfyNode):
    """What pictures show, in the critic's words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeClassify",
            display_name="Classify",
            category=CATEGORY,
            description="What every picture shows, in the critic's words: the likeliest names with their probabilities.",
            inputs=[
                Critic.Input("critic", tooltip="From PromptKD Distill or Load PromptKD."),
                io.Image.Input("images", tooltip="Pictures of any size. Each is looked at by itself."),
                io.Int.Input("top", default=3, min=1, max=100, tooltip="How many names a picture the table shows."),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="A table: for every picture the likeliest names."),
                io.String.Output("names", display_name="names", is_output_list=True, tooltip="Each picture's likeliest name."),
                io.Float.Output(
                    "probabilities", display_name="probabilities", is_output_list=True, tooltip="How likely it is, 0 to 1."
                ),
            ],
        )

    @classmethod
    def execute(cls, critic: CriticData, images: Tensor, top: int) -> io.NodeOutput:
        probabilities = _probabilities(critic, images)
        best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        rows = [
            ", ".join(f"{critic.classes[i]} {100 * p:.0f} %" for p, i in zip(values, places, strict=True))
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        text = "\n".join(["| picture | shows |", "| --- | --- |", *(f"| {i} | {row} |" for i, row in enumerate(rows))])
        result = shown("\n".join(row.partition(",")[0] for row in rows[:8]) + ("\n…" if len(rows) > 8 else ""))
        names = [critic.classes[i] for i in best.indices[:, 0].tolist()]
        return io.NodeOutput(text, names, best.values[:, 0].tolist(), ui=result)


def _probabilities(critic: CriticData, images: Tensor) -> Tensor:
    """[B, C] of pictures [B, H, W, C]."""
    with on_device(critic.network):
        return critic.probabilities(as_pictures(images))


class ApprenticeSort(io.ComfyNode):
    """A batch taken apart by what it shows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSort",
            display_name="Sort by Class",
            category=CATEGORY,
            description="Takes a batch apart by what its pictures show: lists with one batch for every class that occurs. "
            "Connect names to Save Image's filename_prefix and each class is saved under its name. Latents stay in step.",
            inputs=[
                Critic.Input("critic", tooltip="From PromptKD Distill or Load PromptKD."),
                io.Image.Input("images", tooltip="Pictures of any size. Each is looked at by itself."),
                io.String.Input(
                    "classes", multiline=True, default="",
                    tooltip="The classes that count, one a line, in the order of the lists; the others go to rest. Empty: all "
                    "that the critic knows.",
                ),  # fmt: skip
                io.Float.Input(
                    "min_probability", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="How sure the critic must be; pictures that it is less sure of go to rest.",
                ),  # fmt: skip
                io.Latent.Input("latents", optional=True, tooltip="The pictures' latents, kept in step."),
            ],
            outputs=[
                io.Image.Output("sorted_images", display_name="images", is_output_list=True, tooltip="One batch a class."),
                io.Latent.Output("sorted_latents", display_name="latents", is_output_list=True, tooltip="Their latents."),
                io.String.Output("names", display_name="names", is_output_list=True, tooltip="The class of each batch."),
                io.String.Output(
                    "indices", display_name="indices", is_output_list=True, tooltip="Old places of each batch's pictures, from 0."
                ),
                io.Image.Output("rest_images", display_name="rest", tooltip="Pictures of other classes, or too unsure ones."),
                io.Latent.Output("rest_latents", display_name="rest latents", tooltip="Their latents, where given."),
            ],
        )

    @classmethod
    def execute(
        cls, critic: CriticData, images: Tensor, classes: str, min_probability: float, latents: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        groups, rest = sort_rows(_probabilities(critic, images), wanted_classes(critic, classes), min_probability)
        names = [critic.classes[i] for i in groups]
        counts = [f"{name}: {len(rows)}" for name, rows in zip(names, groups.values(), strict=True)]

        def latent(rows: list[int]) -> Any:
            return latents_of(latents, rows, len(images)) if latents else None

        # Nothing that comes after runs where there is nothing to run on.
        nothing = ExecutionBlocker(None)
        parts = list(groups.values())
        return io.NodeOutput(
            [images[rows] for rows in parts] or [nothing],
            [latent(rows) for rows in parts] or [nothing],
            names or [nothing],
            [", ".join(map(str, rows)) for rows in parts] or [nothing],
            images[rest] if rest else nothing,
            latent(rest) if rest else nothing,
            ui=shown("\n".join([*counts, f"rest: {len(rest)}"])),
        )


def wanted_classes(critic: CriticData, text: str) -> list[int]:
    """The classes that ``text`` lists, one a line; all where it is empty.

    Raises:
        ValueError: The critic doesn't know one.
    """
    lines = folders.lines_of(text)
    if unknown := [line for line in lines if line not in critic.classes]:
        raise ValueError(
            f"{critic.name} doesn't know '{unknown[0]}'; it knows: {', '.join(critic.classes[:20])}"
            f"{', …' if len(critic.classes) > 20 else ''}. Domain Text teaches it new words."
        )
    return [critic.classes.index(line) for line in dict.fromkeys(lines)] or list(range(len(critic.classes)))


def sort_rows(probabilities: Tensor, wanted: list[int], least: float) -> tuple[dict[int, list[int]], list[int]]:
    """Rows by their likeliest class, in the order of ``wanted``, and the rows left over; in the batch's order each."""
    values, best = probabilities.max(dim=1)
    groups: dict[int, list[int]] = {i: [] for i in wanted}
    rest: list[int] = []
    for row, (value, label) in enumerate(zip(values.tolist(), best.tolist(), strict=True)):
        (groups[label] if label in groups and value >= least else rest).append(row)
    return {i: rows for i, rows in groups.items() if rows}, rest


class ApprenticePromptKDOracle(io.ComfyNode):
    """A critic as a judge."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticePromptKDOracle",
            display_name="PromptKD Oracle",
            category=CATEGORY,
            description="A critic as an oracle, for Judge and all the others: it scores how surely a picture shows a class, or "
            "the class that its prompt names.",
            inputs=[
                Critic.Input("critic", tooltip="From PromptKD Distill or Load PromptKD."),
                io.Combo.Input(
                    "measure", options=types.COMBOS["measure"], default="probability",
                    tooltip="probability: of the class among all that the critic knows, 0 to 1. logit: of the class by itself. "
                    "cosine: to the prompt as free text, which needs the teacher.",
                ),  # fmt: skip
                io.String.Input(
                    "class_name", default="",
                    tooltip="The class that is judged. Empty: the one that each picture's prompt names; prompts that name none "
                    "are an error.",
                ),  # fmt: skip
                PromptKDTeacher.Input("teacher", optional=True, tooltip="For cosine: whose text tower reads the prompts."),
            ],
            outputs=[Oracle.Output("oracle", display_name="oracle", tooltip="For Judge, Keep Better, Score and the rest.")],
        )

    @classmethod
    def validate_inputs(cls, measure: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return types.check_combos(measure=measure)

    @classmethod
    def execute(
        cls, critic: CriticData, measure: str, class_name: str, teacher: Teacher | None = None
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            encode = None if teacher is None else _reader(critic, teacher)
            oracle = PromptKDOracle(critic, measure, class_name.strip(), encode)
        return io.NodeOutput(oracle, ui=shown(oracle.name))


def _reader(critic: CriticData, teacher: Teacher) -> Any:
    """Texts to the features [N, D] that the critic's pictures are compared with."""
    _check_space(critic, teacher)
    return lambda texts: teacher.features(texts)


def _check_space(critic: CriticData, teacher: Teacher) -> None:
    """Whether ``teacher`` can be the one that ``critic`` was distilled from.

    Raises:
        ValueError: Its features of the critic's own words are others.
    """
    features = critic.network.text_features.cpu()
    if not critic.network.student.tokens.count:
        raise ValueError(
            f"{critic.name} compares with the words of both CLIPs, as it was distilled with start 'words', and takes no others "
            f"later: distil it with these words among its classes."
        )
    if teacher.clip.embed == features.shape[1]:
        some = teacher.features(critic.classes[:4]).cpu()
        if (some * features[:4]).sum(1).min() > 0.999:  # half precision differs by less
            return
    raise ValueError(
        f"{teacher.name} reads the words of {critic.name} otherwise than the teacher that it was distilled from; connect that "
        f"one, with the same tokens and templates."
    )


class ApprenticeDomainText(io.ComfyNode):
    """New words for a critic."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeDomainText",
            display_name="Domain Text",
            category=CATEGORY,
            description="Teaches a critic other words without training: its teacher reads them once, and the critic compares "
            "pictures with them from then on. Words close to those that it was distilled with work best.",
            inputs=[
                Critic.Input("critic", tooltip="From PromptKD Distill or Load PromptKD."),
                PromptKDTeacher.Input("teacher", tooltip="The teacher that it was distilled from, with the same tokens."),
                io.String.Input("classes", multiline=True, default="", tooltip="The words, one a line."),
                io.Boolean.Input("keep", default=True, tooltip="On: the new words join the old ones. Off: they replace them."),
            ],
            outputs=[Critic.Output("new_critic", display_name="critic", tooltip="The same critic with these words.")],
        )

    @classmethod
    def execute(cls, critic: CriticData, teacher: Teacher, classes: str, keep: bool) -> io.NodeOutput:
        with torch.inference_mode(False):
            _check_space(critic, teacher)
            old = critic.classes if keep else ()
            new = [line for line in dict.fromkeys(folders.lines_of(classes)) if line not in old]
            if not new:
                raise ValueError("There are no new words; give one a line.")
            features = critic.network.text_features.cpu()[: len(old)]
            critic_with_new = critic.with_classes((*old, *new), torch.cat([features, teacher.features(new).cpu()]))
        return io.NodeOutput(critic_with_new, ui=shown(f"{len(critic_with_new.classes)} classes"))
