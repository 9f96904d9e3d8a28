"""A critic that knows the artist's own subject: PromptKD's two stages in the graph (arXiv 2403.02781)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge import training as bridge
from ..bridge.progress import shown
from ..bridge.scoring import score, score_list
from ..charts.losses import loss_chart
from ..oracles.base import Oracle as OracleData
from ..oracles.base import one_prompt_each
from ..oracles.clip_files import ClipFile, load_clip
from ..oracles.promptkd import Critic as CriticData
from ..oracles.promptkd import save_critic
from ..precision import DTYPES
from ..training import critic as critics
from ..training.critic import Teacher
from ..training.domain_data import (
    DomainPictures,
    FixedPictures,
    Item,
    captions,
    few_shot,
    labelled_folder,
    picture,
    pictures_in,
)
from ..training.forecast import Forecast, held, learning, looking
from ..training.loop import Watch
from ..training.options import NODE, given
from ..training.promptkd import Own, own_of
from ..training.promptkd_options import CriticOptions, TeacherOptions, TowerOptions
from ..training.promptkd_runs import ODDS, Settings, SourceSettings
from ..world.domain import domain_names, domain_pictures
from . import folders, types
from .runs import NodeRun
from .schema import inputs_of, quality, read
from .types import CATEGORY, Critic, Oracle, PromptKDTeacher

NONE, ICONS = "none", "built-in icons"
LARGE, SMALL = "tiny world large.safetensors", "tiny world small.safetensors"


class ApprenticePromptKDTeacher(io.ComfyNode):
    """The large CLIP that a critic is distilled from, plain or with prompt tokens that it learned from a few pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticePromptKDTeacher",
            display_name="PromptKD Teacher",
            category=CATEGORY,
            description="The large CLIP that knows best. As it is (zero-shot), or with prompt tokens: learned here from a few "
            "labelled pictures (PromptSRC), or read from a file, be it of this node or of PromptKD's authors.",
            inputs=[
                io.Combo.Input(
                    "clip", options=folders.whole_clips(), default=LARGE,
                    tooltip="A CLIP with both towers, the larger the better, from models/promptkd_clips, models/oracles or "
                    "models/clip_vision. 'tiny world' is built in, for 64x64 icons.",
                ),  # fmt: skip
                io.Combo.Input(
                    "tokens", options=[NONE, *folders.teacher_files()], default=NONE,
                    tooltip="Prompt tokens learned before, from models/promptkd_teachers; the authors' .pth.tar as well.",
                ),  # fmt: skip
                io.Combo.Input(
                    "labelled", options=[NONE, ICONS, *folders.picture_folders()], default=NONE,
                    tooltip="Learn prompt tokens from this folder in ComfyUI's input folder: it has a subfolder of pictures for "
                    "each class, named as the class. none: the CLIP as it is, or the tokens chosen above.",
                ),  # fmt: skip
                *inputs_of(TeacherOptions),
                quality(),
            ],
            outputs=[
                PromptKDTeacher.Output("teacher", display_name="teacher", tooltip="For PromptKD Distill and Domain Text."),
                io.Image.Output("curve", display_name="loss curve", tooltip="Where something was learned: its losses."),
                io.String.Output("report", display_name="report", tooltip="What it is, and what it learned."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, clip: Any = None, tokens: Any = None, labelled: Any = None, name: Any = None, precision: Any = None,
        quality: Any = None,
    ) -> bool | str:  # fmt: skip
        """Combos of V3 nodes are not checked by ComfyUI; of quality anything is taken, see ``settings_of``."""
        if tokens != NONE and folders.is_missing(tokens, folders.TEACHERS):
            return f"There is no file '{tokens}' in models/promptkd_teachers; choose one of those listed."
        if None not in (tokens, labelled) and NONE not in (tokens, labelled):
            return "tokens and labelled are both given: read tokens from a file, or learn them from labelled pictures."
        return _wrong(clip, labelled, name, precision)

    @classmethod
    def fingerprint_inputs(cls, clip: Any = None, tokens: Any = None, labelled: Any = None, **_: Any) -> str:
        """Another file under the same name, or other pictures in the folder, are another teacher."""
        return " ".join((_clip_stamp(clip), folders.stamp(tokens, folders.TEACHERS), _folder_stamp(labelled)))

    @classmethod
    def execute(cls, clip: str, tokens: str, labelled: str, **widgets: Any) -> io.NodeOutput:
        options = read(TeacherOptions, widgets)
        with torch.inference_mode(False):
            large = _load(clip)
            if labelled == NONE:
                path = folders.model_file(tokens, folders.TEACHERS) if tokens != NONE else None
                teacher = critics.load_teacher(large, path, folders.lines_of(options.templates))
                return io.NodeOutput(teacher, loss_chart([], {"loss": "nothing was learned"}), _about(teacher))
            options = replace(options, precision=_precision(options.precision))
            settings = SourceSettings(**given(options, NODE, SourceSettings), gaussian_mean=0.75 * options.epochs)
            classes, pictures, labels = _labelled(labelled, options.shots, options.seed, large.picture_size)
            facts = {"kind": "teacher", **critics.facts_of(settings, large, classes, pictures)}
            run = NodeRun(options.name, "teacher", folders.TEACHERS, facts)
            teacher = _go(
                run, [large.network], settings, len(pictures),
                lambda watch, every: critics.make_teacher(
                    large, classes, pictures, labels, settings, run.folder, save_every=every, watch=watch
                ),
                _forecast([large], settings, len(pictures), names=len(classes)),
            )  # fmt: skip
            run.check_target()
            about = {"classes": str(len(classes)), "pictures": str(len(pictures)), **run.target.about}
            critics.save_tokens(teacher, run.target.file, about)
        learned = f"Learned {len(classes)} classes from {len(pictures)} pictures. {run.foreseen}"
        text = f"Saved {run.target.file.name}: {_about(teacher)} {learned}"
        titles = {"loss": "all losses", "cross_entropy": "cross entropy: how well the classes are told apart"}
        return io.NodeOutput(teacher, loss_chart(run.folder.losses(), titles), text, ui=shown(text))


class ApprenticePromptKDDistill(io.ComfyNode):
    """A small critic that sees a domain as the teacher does, from pictures without labels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticePromptKDDistill",
            display_name="PromptKD Distill",
            category=CATEGORY,
            description="Makes a small, fast critic for your own subject from a folder of pictures and a list of words. The "
            "pictures need no labels: the critic learns to see them as the teacher does. Cancel it whenever you like: with the "
            "same name it goes on where it was.",
            is_output_node=True,
            inputs=[
                PromptKDTeacher.Input("teacher", tooltip="The large CLIP that knows best."),
                io.Combo.Input(
                    "clip", options=folders.whole_clips(), default=SMALL,
                    tooltip="The small CLIP that becomes the critic; it must see pictures of the teacher's size.",
                ),  # fmt: skip
                io.Combo.Input(
                    "pictures", options=[ICONS, NONE, *folders.picture_folders()], default=ICONS,
                    tooltip="A folder in ComfyUI's input folder, with pictures of your subject and no labels; subfolders count. "
                    "Several hundred are needed. 'built-in icons' suit the tiny world; none: only those connected to images.",
                ),  # fmt: skip
                io.String.Input(
                    "classes", multiline=True, default="",
                    tooltip="The words that the critic shall know, one a line: two or more. Empty: the built-in icons' names.",
                ),  # fmt: skip
                *inputs_of(CriticOptions),
                io.Image.Input("images", optional=True, tooltip="More pictures of your subject, such as a batch that was drawn."),
                quality(),
                *inputs_of(TowerOptions),
                io.String.Input(
                    "prompts", multiline=True, default="", optional=True,
                    tooltip="For odds: what each of images was asked to show, one a line. A folder's pictures have theirs beside "
                    "them (a.txt for a.png); those of the built-in icons are their names.",
                ),  # fmt: skip
                Oracle.Input(
                    "judge", optional=True,
                    tooltip="For odds: a judge, such as ImageReward, whose scores are learned in place of the log-odds.",
                ),  # fmt: skip
            ],
            outputs=[
                Critic.Output("critic", display_name="critic", tooltip="For Classify, Sort by Class and PromptKD Oracle."),
                io.Image.Output("curve", display_name="loss curve", tooltip="The loss over the pictures seen."),
                io.String.Output("file", display_name="file", tooltip="The file that was saved, as Load PromptKD lists it."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, clip: Any = None, pictures: Any = None, name: Any = None, precision: Any = None, quality: Any = None,
        target: Any = None, start: Any = None,
    ) -> bool | str:  # fmt: skip
        """Combos of V3 nodes are not checked by ComfyUI; of quality anything is taken, see ``settings_of``."""
        wrong = _wrong(clip, pictures, name, precision)
        return types.check_combos(critic_target=target, critic_start=start) if wrong is True else wrong

    @classmethod
    def fingerprint_inputs(cls, clip: Any = None, pictures: Any = None, **_: Any) -> str:
        """Another file under the same name, or other pictures in the folder, make another critic."""
        return f"{_clip_stamp(clip)} {_folder_stamp(pictures)}"

    @classmethod
    def execute(
        cls, teacher: Teacher, clip: str, pictures: str, classes: str, images: Tensor | None = None, prompts: str = "",
        judge: OracleData | None = None, **widgets: Any,
    ) -> io.NodeOutput:  # fmt: skip
        options, tower = read(CriticOptions, widgets), read(TowerOptions, widgets)
        with torch.inference_mode(False):
            augments = bool(widgets.get("augment")) or pictures not in (NONE, ICONS)  # "paper" augments what can be
            options = replace(options, precision=_precision(options.precision), augment=options.augment and augments)
            settings = Settings(**given(options, NODE, Settings), **given(tower, NODE, Settings))
            augment = options.augment
            small, words = _load(clip), folders.lines_of(classes) or (domain_names() if pictures == ICONS else ())
            domain = _domain(pictures, images, teacher.clip.picture_size, augment, options.seed)
            own, asked = _own(settings, words, pictures, images, prompts, judge, domain)
            facts = critics.facts_of(settings, small, words, domain, teacher, depth=options.depth, augment=augment, **asked)
            run = NodeRun(options.name, "critic", folders.CRITICS, {"kind": "critic", **facts})
            critic: CriticData = _go(
                run, [teacher.clip, small.network], settings, len(domain),
                lambda watch, every: critics.make_critic(
                    run.name, teacher, small, words, domain, settings, run.folder, depth=options.depth,
                    sources=None if augment else domain.sources(), save_every=every, watch=watch, own=own,
                ),
                _forecast([small, teacher.clip], settings, len(domain), looks=settings.epochs if augment else 1),
            )  # fmt: skip
            run.check_target()
            about = {"teacher": teacher.name, "pictures": str(len(domain)), "epochs": str(options.epochs), **run.target.about}
            save_critic(critic, run.target.file, about)
        said = f"{len(words)} classes from {len(domain)} pictures without labels. {run.foreseen}"
        result = shown(f"Saved {run.target.file.name}: {said}")
        curve = loss_chart(run.folder.losses(), {"loss": "divergence from the teacher's view, times the weight"})
        return io.NodeOutput(critic, curve, run.target.file.name, ui=result)


# --------------------------------------------------------------------------------------------------------- inputs


def _wrong(clip: Any, folder: Any, name: Any, precision: Any) -> bool | str:
    if isinstance(clip, str) and folders.whole_clip(clip) is None:
        return f"There is no file '{clip}' in models/promptkd_clips, models/oracles or models/clip_vision; choose a CLIP."
    if isinstance(folder, str) and folder not in (NONE, ICONS, *folders.picture_folders()):
        return f"There is no folder '{folder}' in ComfyUI's input folder; choose one of those listed."
    return folders.check_run(name, "run", None) or types.check_combos(training_precision=precision)


def _clip_stamp(clip: str | None) -> str:
    return folders.stamp(clip, folders.CLIPS, folders.ORACLES, "clip_vision")


def _folder_stamp(folder: str | None) -> str:
    """Changes with the files in a folder of pictures."""
    if folder is None or folder in (NONE, ICONS):
        return str(folder)
    try:
        files = [(str(p), p.stat().st_mtime_ns) for p in pictures_in(folders.picture_folder(folder))]
    except (ValueError, OSError) as error:  # it is told when the node runs
        return str(error)
    return str(hash(tuple(files)))


def _load(clip: str) -> ClipFile:
    """A CLIP of its own, since it will be hooked.

    Raises:
        ValueError: It isn't there, or is none.
    """
    path = folders.whole_clip(clip)
    if path is None:
        raise ValueError(f"There is no file '{clip}' in models/promptkd_clips; choose a CLIP.")
    return load_clip(path)


def _about(teacher: Teacher) -> str:
    learned = teacher.clip.picture_tokens is not None or teacher.clip.text_tokens is not None
    how = "with learned prompt tokens" if learned else f"as it is, with {len(teacher.templates)} sentences a class"
    return f"{teacher.name}, {sum(p.numel() for p in teacher.clip.parameters()) / 1e6:.0f} M parameters, {how}."


def _labelled(folder: str, shots: int, seed: int, size: int) -> tuple[tuple[str, ...], Any, list[int]]:
    """Class names, at most ``shots`` pictures of each, and their labels."""
    if folder == ICONS:
        images, labels = domain_pictures(train=True, backgrounds=1)
        chosen = few_shot([Item(Path(str(i)), int(label), "") for i, label in enumerate(labels)], shots, seed)
        rows = [int(str(item.path)) for item in chosen]
        return domain_names(), FixedPictures([images[rows]], size), labels[rows].tolist()
    classes, items = labelled_folder(folders.picture_folder(folder))
    chosen = few_shot(items, shots, seed)
    return classes, DomainPictures([item.path for item in chosen], size, augment=True, seed=seed), [i.label for i in chosen]


def _own(
    settings: Settings, classes: Sequence[str], folder: str, images: Tensor | None, prompts: str, judge: OracleData | None,
    domain: Any,
) -> tuple[Own | None, dict[str, Any]]:  # fmt: skip
    """What each picture of ``domain`` was asked to show, and how the judge scores it; and what the run is made of by that.

    Raises:
        ValueError: A prompt is missing or names no class, or a judge is there for nothing.
    """
    if settings.target != ODDS:
        if judge is not None:
            raise ValueError("A judge is connected, whose scores are learned by the target 'odds' only: choose it.")
        return None, {"prompts": None, "judge": None}
    if isinstance(domain, DomainPictures):
        asked = captions(domain.paths)
    else:
        asked = [] if images is None else one_prompt_each(list(folders.lines_of(prompts)), len(images))
        if folder == ICONS:
            asked += [domain_names()[i] for i in domain_pictures(train=True, backgrounds=1)[1].tolist()]
    scores = None if judge is None else _scores(judge, asked, folder, images, domain)
    facts = {"prompts": critics.digest(asked), "judge": None if judge is None else judge.fingerprint()}
    return own_of(asked, classes, scores), facts


def _scores(judge: OracleData, prompts: list[str], folder: str, images: Tensor | None, domain: Any) -> list[float]:
    """The judge's of all pictures.

    Raises:
        ValueError: The pictures are augmented.
    """
    if isinstance(domain, DomainPictures):
        if domain.augment:
            raise ValueError("A judge scores whole pictures, not crops: switch augment off.")
        return [score(judge, picture(path), [prompt])[0] for path, prompt in zip(domain.paths, prompts, strict=True)]
    batches = [] if images is None else [images]
    if folder == ICONS:
        batches.append(domain_pictures(train=True, backgrounds=1)[0])
    return score_list(judge, batches, prompts)


def _domain(folder: str, images: Tensor | None, size: int, augment: bool, seed: int) -> Any:
    """The unlabelled pictures.

    Raises:
        ValueError: There are none, or two kinds that can't be mixed.
    """
    if folder not in (NONE, ICONS):
        if images is not None:
            raise ValueError("There is a folder, and images are connected too: put them into the folder, or choose 'none'.")
        return DomainPictures(pictures_in(folders.picture_folder(folder)), size, augment, seed)
    if augment:
        raise ValueError("augment works on a folder of pictures only; switch it off, or save the pictures in a folder.")
    batches = [] if images is None else [images[..., :3].clone().float().cpu()]
    if folder == ICONS:
        batches.append(domain_pictures(train=True, backgrounds=1)[0])
    if not batches:
        raise ValueError("There are no pictures to learn from; choose a folder, or connect images.")
    return FixedPictures(batches, size)


# ------------------------------------------------------------------------------------------------------------ run


def _precision(asked: str) -> str:
    """fp32, bf16 or fp16."""
    dtype = bridge.training_dtype(asked)
    return next(name for name, of_name in DTYPES.items() if of_name == dtype)


def _forecast(clips: list[Any], settings: Settings, pictures: int, looks: int = 0, names: int = 0) -> Callable[[], Forecast]:
    """What a run will take, by a pass of the CLIP that learns, the first of ``clips``.

    Args:
        looks: How often a teacher, the second of them, looks at each picture.
        names: How many are encoded in each step, where text tokens are learned.
    """

    def measured() -> Forecast:
        networks = [getattr(clip, "network", None) or clip.clip for clip in clips]
        visual = networks[0].visual
        like, size, batch = next(visual.parameters()), clips[0].picture_size, settings.batch
        pixels = torch.randn(batch, 3, size, size, device=like.device, dtype=like.dtype)
        step, kept = learning(visual, pixels)
        if names:
            words = clips[0].tokenizer(["a word"] * names).to(like.device)
            step += 3 * looking(lambda: networks[0].encode_text(words))  # there, and back twice as long
        look = looking(lambda: clips[1].encode_pictures(pixels)) if looks else 0.0
        total = settings.schedule(pictures).steps * step + looks * pictures * look / batch
        return Forecast(settings.epochs * pictures, total, held(networks, []) + kept)

    return measured


def _go(
    run: NodeRun, networks: list[Any], settings: Settings, pictures: int, work: Callable[[Watch, int], Any],
    forecast: Callable[[], Forecast] | None = None,
) -> Any:  # fmt: skip
    """``work``, whose networks lie on the computing device until it ends, however it ends; the CLIPs are as they were then."""
    steps = settings.schedule(pictures).steps
    with bridge.borrowed(networks, torch.float16 if settings.precision == "fp16" else torch.float32):
        if forecast:
            run.foresee(forecast())
        learned = run.follow(lambda progress: work(progress.watch, max(25, steps // 20)), steps, max(1, min(25, steps // 100)))
    (learned.clip if isinstance(learned, Teacher) else learned.network).to("cpu", torch.float32)
    return learned
