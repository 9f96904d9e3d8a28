"""A critic that knows the artist's own subject: PromptKD's two stages in the graph (arXiv 2403.02781)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge import training as bridge
from ..bridge.progress import show_text
from ..charts.losses import loss_chart
from ..oracles.clip_files import ClipFile, load_clip
from ..oracles.promptkd import Critic as CriticData
from ..oracles.promptkd import save_critic, tower_hash
from ..training import critic as critics
from ..training.critic import Teacher
from ..training.domain_data import DomainPictures, FixedPictures, Item, few_shot, labelled_folder, pictures_in
from ..training.loop import Means, Watch, read_log
from ..training.promptkd import Settings, SourceSettings
from ..training.run_folder import RunFolder
from ..training.target import Target
from ..world.domain import domain_names, domain_pictures
from . import folders, types
from .distill import Claim, Clock
from .types import CATEGORY, Critic, PromptKDTeacher

NONE, ICONS = "none", "built-in icons"
LARGE, SMALL = "tiny world large.safetensors", "tiny world small.safetensors"
SENTENCE = "Sentences with {} where a name goes, one a line"


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
                io.String.Input(
                    "name", default="my teacher",
                    tooltip="Where tokens are learned: name of the file in models/promptkd_teachers, and of the run to resume.",
                ),  # fmt: skip
                io.Int.Input("shots", default=16, min=1, max=100000, tooltip="Pictures of every class, at most."),
                io.Int.Input("epochs", default=20, min=2, max=10000, tooltip="How often each is seen; 20 in the published runs."),
                io.Int.Input("batch_size", default=4, min=1, max=4096, tooltip="Pictures a step; 4 in the published runs."),
                _rate(0.0025),
                _precision(),
                io.Int.Input("first_seed", default=0, min=0, max=0xFFFFFFFF, tooltip="Decides all randomness of the run."),
                io.String.Input(
                    "templates", multiline=True, default="", optional=True,
                    tooltip=f"{SENTENCE}. For a CLIP without tokens; empty: the CLIP's own, or sixty that suit photos.",
                ),  # fmt: skip
            ],
            outputs=[
                PromptKDTeacher.Output("teacher", display_name="teacher", tooltip="For PromptKD Distill and Domain Text."),
                io.Image.Output("curve", display_name="loss curve", tooltip="Where something was learned: its losses."),
                io.String.Output("report", display_name="report", tooltip="What it is, and what it learned."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, clip: Any = None, tokens: Any = None, labelled: Any = None, name: Any = None, precision: Any = None
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
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
    def execute(
        cls,
        clip: str,
        tokens: str,
        labelled: str,
        name: str,
        shots: int,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        precision: str,
        first_seed: int,
        templates: str = "",
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            large = _load(clip)
            if labelled == NONE:
                path = folders.model_file(tokens, folders.TEACHERS) if tokens != NONE else None
                teacher = critics.load_teacher(large, path, folders.lines_of(templates))
                return io.NodeOutput(teacher, loss_chart([], {"loss": "nothing was learned"}), _about(teacher))
            run = _Run(name, "teacher", precision)
            settings = SourceSettings(
                epochs=epochs, batch=batch_size, learning_rate=learning_rate, precision=run.precision, seed=first_seed,
                gaussian_mean=0.75 * epochs,
            )  # fmt: skip
            classes, pictures, labels = _labelled(labelled, shots, first_seed, large.picture_size)
            facts = {
                "kind": "teacher", **asdict(settings), "clip": tower_hash(large.network.visual), "classes": classes,
                "pictures": critics.digest(pictures.sources()),
            }  # fmt: skip
            target = run.target(folders.TEACHERS, facts)
            run.claim = Claim(run.folder, facts, ())
            run.place([large.network])
            teacher = run.go(
                settings.schedule(len(pictures)).steps, settings.batch,
                lambda watch, every: critics.make_teacher(
                    large, classes, pictures, labels, settings, run.folder.path, save_every=every, watch=watch
                ),
            )  # fmt: skip
            folders.check_target(target, folders.TEACHERS)
            about = {"classes": str(len(classes)), "pictures": str(len(pictures)), **target.about}
            critics.save_tokens(teacher, target.file, about)
        text = f"Saved {target.file.name}: {_about(teacher)} Learned {len(classes)} classes from {len(pictures)} pictures."
        show_text(text)
        titles = {"loss": "all losses", "cross_entropy": "cross entropy: how well the classes are told apart"}
        return io.NodeOutput(teacher, loss_chart(read_log(run.folder.log), titles), text)


class ApprenticePromptKDDistill(io.ComfyNode):
    """A small critic that sees a domain as the teacher does, from pictures without labels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticePromptKDDistill",
            display_name="PromptKD Distill (make a critic)",
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
                io.String.Input(
                    "name", default="my critic", tooltip="Name of the file in models/promptkd, and of the run that is resumed."
                ),
                io.Int.Input("epochs", default=20, min=2, max=100000, tooltip="How often each is seen; the first warms up."),
                io.Int.Input("batch_size", default=8, min=2, max=4096, tooltip="Pictures a step; 8 in the published runs."),
                _rate(0.005),
                io.Float.Input(
                    "weight", default=1000.0, min=0.001, max=1e6, step=10.0, round=0.001,
                    tooltip="Factor of the loss, which is a mean over classes too: with few classes it pulls hard. 1000 as "
                    "published; 200 there for small or fine-grained domains. Lower it if the curve jumps.",
                ),  # fmt: skip
                io.Float.Input(
                    "temperature", default=1.0, min=0.01, max=100.0, step=0.1, round=0.01,
                    tooltip="Of both models' probabilities; 1 as published. Higher: more say to classes that are unlikely.",
                ),  # fmt: skip
                io.Boolean.Input(
                    "augment", default=False,
                    tooltip="Random crops and mirrorings, as published: better from few photos, but the teacher must look at "
                    "each in every epoch. Off: it looks once, and its view is kept on disk. For folders only.",
                ),  # fmt: skip
                io.Int.Input("depth", default=9, min=1, max=100, tooltip="Blocks of the small CLIP that get prompt tokens."),
                _precision(),
                io.Int.Input("first_seed", default=0, min=0, max=0xFFFFFFFF, tooltip="Decides all randomness of the run."),
                io.Image.Input("images", optional=True, tooltip="More pictures of your subject, such as a batch that was drawn."),
            ],
            outputs=[
                Critic.Output("critic", display_name="critic", tooltip="For Classify, Sort by Class and PromptKD Oracle."),
                io.Image.Output("curve", display_name="loss curve", tooltip="The loss over the pictures seen."),
                io.String.Output("file", display_name="file", tooltip="The file that was saved, as Load PromptKD lists it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, clip: Any = None, pictures: Any = None, name: Any = None, precision: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return _wrong(clip, pictures, name, precision)

    @classmethod
    def fingerprint_inputs(cls, clip: Any = None, pictures: Any = None, **_: Any) -> str:
        """Another file under the same name, or other pictures in the folder, make another critic."""
        return f"{_clip_stamp(clip)} {_folder_stamp(pictures)}"

    @classmethod
    def execute(
        cls,
        teacher: Teacher,
        clip: str,
        pictures: str,
        classes: str,
        name: str,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        weight: float,
        temperature: float,
        augment: bool,
        depth: int,
        precision: str,
        first_seed: int,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            run = _Run(name, "critic", precision)
            settings = Settings(
                epochs=epochs, batch=batch_size, learning_rate=learning_rate, temperature=temperature, weight=weight,
                precision=run.precision, seed=first_seed,
            )  # fmt: skip
            small, words = _load(clip), folders.lines_of(classes) or (domain_names() if pictures == ICONS else ())
            domain = _domain(pictures, images, teacher.clip.picture_size, augment, first_seed)
            facts = {
                "kind": "critic", **asdict(settings), "depth": depth, "clip": tower_hash(small.network.visual),
                "teacher": critics.fingerprint(teacher), "classes": words, "pictures": critics.digest(domain.sources()),
                "augment": augment,
            }  # fmt: skip
            target = run.target(folders.CRITICS, facts)
            run.claim = Claim(run.folder, facts, ())
            run.place([teacher.clip, small.network])
            critic: CriticData = run.go(
                settings.schedule(len(domain)).steps, settings.batch,
                lambda watch, every: critics.make_critic(
                    run.name, teacher, small, words, domain, settings, run.folder.path, depth=depth,
                    sources=None if augment else domain.sources(), save_every=every, watch=watch,
                ),
            )  # fmt: skip
            folders.check_target(target, folders.CRITICS)
            about = {"teacher": teacher.name, "pictures": str(len(domain)), "epochs": str(epochs), **target.about}
            save_critic(critic, target.file, about)
        show_text(f"Saved {target.file.name}: {len(words)} classes from {len(domain)} pictures without labels.")
        curve = loss_chart(read_log(run.folder.log), {"loss": "divergence from the teacher's view, times the weight"})
        return io.NodeOutput(critic, curve, target.file.name)


def _rate(default: float) -> io.Float.Input:
    return io.Float.Input(
        "learning_rate", default=default, min=1e-7, max=10.0, step=0.0001, round=1e-7,
        tooltip=f"Highest learning rate; {default:g} in the published runs. It falls as a cosine after a slow first epoch.",
    )  # fmt: skip


def _precision() -> io.Combo.Input:
    return io.Combo.Input(
        "precision", options=types.COMBOS["training_precision"], default="auto",
        tooltip="auto: bfloat16 where the GPU or CPU has it natively, float32 elsewhere.",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- inputs


def _wrong(clip: Any, folder: Any, name: Any, precision: Any) -> bool | str:
    if isinstance(clip, str) and folders.whole_clip(clip) is None:
        return f"There is no file '{clip}' in models/promptkd_clips, models/oracles or models/clip_vision; choose a CLIP."
    if isinstance(folder, str) and folder not in (NONE, ICONS, *folders.picture_folders()):
        return f"There is no folder '{folder}' in ComfyUI's input folder; choose one of those listed."
    try:
        folders.check_name(name if isinstance(name, str) else "linked", "run")
    except ValueError as error:
        return str(error)
    return types.check_combos(training_precision=precision)


def _clip_stamp(clip: str | None) -> str:
    return folders.stamp(clip, folders.CLIPS, folders.ORACLES, "clip_vision")


def _folder_stamp(folder: str | None) -> str:
    """Changes with the files in a folder of pictures."""
    if folder is None or folder in (NONE, ICONS):
        return str(folder)
    try:
        found = [(str(p), p.stat().st_mtime_ns) for p in pictures_in(folders.picture_folder(folder))]
    except (ValueError, OSError) as error:  # it is told when the node runs
        return str(error)
    return str(hash(tuple(found)))


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


@dataclass
class _Run:
    """A run under a name: its folder, its device, its progress."""

    asked: str
    what: str
    asked_precision: str
    before: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    claim: Claim = field(init=False)

    @property
    def name(self) -> str:
        """The name, if it can be a file's."""
        return folders.check_name(self.asked, self.what)

    @property
    def folder(self) -> RunFolder:
        """Where the run is kept: output/apprentice/training/<name>."""
        return folders.run_folder(self.name)

    def target(self, kind: str, facts: dict[str, Any]) -> Target:
        """The file that is made, in the model folder ``kind``.

        Raises:
            ValueError: There is one that this run did not make.
        """
        target = Target.of(folders.made_file(kind, self.name, self.what), facts)
        folders.check_target(target, kind)
        return target

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        dtype = bridge.training_dtype(self.asked_precision)
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]

    def place(self, networks: list[torch.nn.Module]) -> None:
        """Everything onto the computing device, where ComfyUI makes room first; until ``go`` ends, however it ends."""
        dtype = torch.float16 if self.precision == "fp16" else torch.float32
        values = [value for network in networks for value in (*network.parameters(), *network.buffers())]
        self.before = [(value, value.data) for value in values]
        for network in networks:
            network.to(dtype)
        _device, self.patchers = bridge.place(networks)

    def _take_back(self, made: Any) -> None:
        """Off the device; the CLIPs as they were, to the bit."""
        comfy.model_management.unload_all_models()
        for value, data in self.before:
            value.data = data
        if made is not None:  # with what was learned
            (made.clip if isinstance(made, Teacher) else made.network).to("cpu", torch.float32)

    def go(self, steps: int, batch: int, work: Callable[[Watch, int], Any]) -> Any:
        """``work`` with a progress bar, a log, and cancelling that saves first."""
        bar, clock, every = bridge.Bar(steps), Clock(steps), max(25, steps // 20)

        def after_step(step: int, _ema: Any) -> None:
            bar.show(step)
            clock.step(step)

        def report(step: int, pictures: int, means: Means) -> None:
            loss = f"loss {means['loss']:.4g}, " if "loss" in means else ""
            show_text(f"{step} of {steps} steps, {pictures:,} pictures seen, {loss}{clock.left(step)}")

        watch = Watch(
            report, max(1, min(25, steps // 100)), self.folder.log, bar.interrupted, (bridge.Cancelled,), after_step=after_step,
            say=show_text,
        )  # fmt: skip
        made = None
        try:
            with self.claim.held():
                made = work(watch, every)
        except KeyboardInterrupt:
            bar.stop()
        finally:
            self._take_back(made)
        return made
