"""From CLIPs, a folder of pictures and a list of words to a critic: PromptKD's two stages with files around them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..files import UnsafeCheckpoint, reading, save_safetensors_atomically
from ..networks.limits import refuse_hollow
from ..networks.prompted_clip import CONTEXT, Projector, PromptedClip, PromptedStudent, PromptTokens, last_blocks, text_tower
from ..oracles.clip_files import ClipFile
from ..oracles.promptkd import Critic, CriticNetwork, tower_hash
from ..weights.checkpoints import read_metadata, read_weights
from ..weights.promptkd_checkpoint import OfficialCheckpoint, is_official_name, kind_of
from . import promptkd, promptkd_runs
from .domain_data import DomainPictures, FixedPictures
from .loop import Watch
from .processes import Processes
from .run_folder import RunFolder
from .templates import TEMPLATES
from .word_start import begin_as_the_small_clip, side_by_side

TEACHER = "promptkd-teacher"
DEPTH = 9  # blocks with learned tokens in the published runs; 3 where a student is distilled across data sets


@dataclass(frozen=True)
class Teacher:
    """A large CLIP with or without learned tokens, and what texts it wants.

    Attributes:
        placeholder: The words whose places learned text tokens take.
        templates: What a plain teacher's class names are put into.
    """

    name: str
    clip: PromptedClip
    placeholder: str
    templates: tuple[str, ...]

    def features(self, names: Sequence[str]) -> Tensor:
        """Unit text features [C, D] of class names."""
        return promptkd.class_features(self.clip, names, self.placeholder, self.templates)

    @property
    def texts(self) -> tuple[str, ...]:
        """What is encoded for class names."""
        return (f"{self.placeholder} {{}}.",) if self.clip.text_tokens is not None else self.templates


def templates_of(clip: ClipFile) -> tuple[str, ...]:
    """The sentences that a CLIP's class names are put into: its own, or PromptSRC's sixty."""
    return clip.templates or TEMPLATES


def placeholder_of(clip: ClipFile) -> str:
    """What learned text tokens begin as: "a photo of a", or what the CLIP was trained to hear before a name."""
    return templates_of(clip)[0].partition("{}")[0].strip()


def fresh_tokens(
    clip: ClipFile, seed: int, depth: int = DEPTH, count: int = CONTEXT
) -> tuple[PromptTokens, PromptTokens]:
    """Tokens for both towers as PromptSRC begins: the text tower's first are the words of ``placeholder_of``, others are drawn.

    Raises:
        ValueError: The placeholder isn't of ``count`` tokens.
    """
    generator, visual, text = torch.Generator().manual_seed(seed), clip.network.visual, text_tower(clip.network)
    placeholder = placeholder_of(clip)
    picture_depth, text_depth = (min(depth, len(tower.transformer.resblocks)) for tower in (visual, text))
    ids, empty = clip.tokenizer([placeholder, ""])
    used = int((ids != 0).sum() - (empty != 0).sum())
    if used != count:
        raise ValueError(f"'{placeholder}' is {used} tokens, and {count} are wanted; choose another number.")
    words = text.token_embedding.weight.detach()[ids[1 : 1 + count]].float()
    drawn = PromptTokens.random(text_depth, count, words.shape[1], generator)
    pictures = PromptTokens.random(picture_depth, count, visual.conv1.out_channels, generator)
    return pictures, PromptTokens([words, *list(drawn.blocks)[1:]])


def fresh_student(
    clip: ClipFile, outside: int, seed: int, depth: int = DEPTH, count: int = CONTEXT, blocks: int = 0
) -> PromptedStudent:
    """A student as PromptKD begins, on a small CLIP, for a teacher with ``outside`` features; its last ``blocks`` learn too."""
    generator, visual = torch.Generator().manual_seed(seed), clip.network.visual
    tokens = PromptTokens.random(min(depth, len(visual.transformer.resblocks)), count, visual.conv1.out_channels, generator)
    projector = Projector(int(visual.output_dim), outside).reset(generator)
    return PromptedStudent(visual, tokens, projector, clip.network.logit_scale, last_blocks(visual, blocks))


# ------------------------------------------------------------------------------------------------ teacher's tokens


def save_tokens(teacher: Teacher, path: str | os.PathLike[str], about: dict[str, str] | None = None) -> None:
    """Write a teacher's learned tokens, atomically; its towers stay where they are."""
    clip = teacher.clip
    towers = {"picture": clip.picture_tokens, "text": clip.text_tokens}
    tensors = {
        f"{name}.{i}": block.detach().cpu().contiguous()
        for name, tokens in towers.items() if tokens is not None for i, block in enumerate(tokens.blocks)
    }  # fmt: skip
    metadata = {
        "apprentice": TEACHER, "placeholder": teacher.placeholder, "base": teacher.name,
        "base_sha256": tower_hash(clip.clip.visual), **(about or {}),
    }  # fmt: skip
    save_safetensors_atomically(tensors, path, metadata)


def load_teacher(
    clip: ClipFile, tokens: str | os.PathLike[str] | None = None, templates: tuple[str, ...] = ()
) -> Teacher:
    """A teacher: a CLIP with the tokens in a file that ``save_tokens`` wrote, or that PromptKD's authors did, or without.

    Args:
        templates: For a plain one; see ``templates_of`` for what is taken otherwise.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It doesn't hold a teacher's tokens.
        ValueError: They belong to another CLIP.
    """
    templates = templates or templates_of(clip)
    if tokens is None:
        return Teacher(clip.name, PromptedClip(clip.network, None, None, clip.tokenizer), placeholder_of(clip), templates)
    file = Path(tokens)
    with reading(file.name, "choose another file"):
        return _load_tokens(file, clip, templates)


def _load_tokens(file: Path, clip: ClipFile, templates: tuple[str, ...]) -> Teacher:
    about, tensors = read_metadata(file), read_weights(file)
    refuse_hollow(tensors, file.name)
    if is_official_name(file) or "promptkd" in about:
        return _official_teacher(clip, OfficialCheckpoint(kind_of(tensors, file.name), tensors, file.name))
    if about.get("apprentice") != TEACHER or not {"base", "base_sha256", "placeholder"} <= about.keys():
        raise UnsafeCheckpoint(f"{file.name} doesn't hold a PromptKD teacher's tokens; choose another file.")
    if (tower := tower_hash(clip.network.visual)) != about["base_sha256"]:
        raise ValueError(
            f"{file.name} belongs to '{about['base']}' (picture tower {about['base_sha256'][:8]}), and {clip.name} is another "
            f"model ({tower[:8]}); choose the CLIP that it was trained on."
        )
    picture, text = (_tokens(tensors, tower, file.name) for tower in ("picture", "text"))
    return Teacher(clip.name, PromptedClip(clip.network, picture, text, clip.tokenizer), about["placeholder"], templates)


def _official_teacher(clip: ClipFile, checkpoint: OfficialCheckpoint) -> Teacher:
    if checkpoint.kind != "teacher":
        raise UnsafeCheckpoint(f"{checkpoint.name} is a student, and a teacher is wanted; choose another file.")
    _check_tower(clip, checkpoint)
    tokens = checkpoint.tokens("image"), checkpoint.tokens("text")
    return Teacher(clip.name, PromptedClip(clip.network, *tokens, clip.tokenizer), placeholder_of(clip), templates_of(clip))


def official_critic(clip: ClipFile, checkpoint: OfficialCheckpoint, teacher: Teacher, classes: Sequence[str]) -> Critic:
    """A student of PromptKD's authors as a critic; its file doesn't hold the text features, so its teacher makes them.

    Raises:
        UnsafeCheckpoint: It isn't a student's, or it is incomplete.
        ValueError: It belongs to another CLIP or teacher.
    """
    with reading(checkpoint.name, "choose another file"):
        return _official_critic(clip, checkpoint, teacher, classes)


def _official_critic(clip: ClipFile, checkpoint: OfficialCheckpoint, teacher: Teacher, classes: Sequence[str]) -> Critic:
    _check_tower(clip, checkpoint)
    tokens, projector, text = checkpoint.tokens("image"), checkpoint.projector(), teacher.features(classes)
    if tokens is None:
        raise UnsafeCheckpoint(f"{checkpoint.name} has no prompt tokens; choose another file.")
    if projector.conv1[3].out_channels != text.shape[1]:
        raise ValueError(
            f"{checkpoint.name} speaks to a teacher with {projector.conv1[3].out_channels} features, and {teacher.name} has "
            f"{text.shape[1]}; choose the teacher that it was distilled from."
        )
    scale = checkpoint.tensors.get("logit_scale", clip.network.logit_scale).float()
    student = PromptedStudent(clip.network.visual, tokens, projector, scale)
    base = tower_hash(student.visual)
    return Critic(checkpoint.name, CriticNetwork(student, text), tuple(classes), teacher.texts, clip.name, base)


def _check_tower(clip: ClipFile, checkpoint: OfficialCheckpoint) -> None:
    """Official files bring the whole picture tower: it must be ours.

    Raises:
        ValueError: It is another.
    """
    theirs, ours = checkpoint.tower("image"), {f"visual.{k}": v for k, v in clip.network.visual.state_dict().items()}
    for key, value in theirs.items():
        if key not in ours or ours[key].shape != value.shape or not torch.equal(ours[key].half(), value.half()):
            raise ValueError(f"{checkpoint.name} was trained on another CLIP than {clip.name} ({key} differs); choose that one.")


def _tokens(tensors: dict[str, Tensor], tower: str, name: str) -> PromptTokens | None:
    depth = sum(key.startswith(f"{tower}.") for key in tensors)
    missing = [i for i in range(depth) if f"{tower}.{i}" not in tensors]
    if missing:
        raise UnsafeCheckpoint(f"{name} lacks the tokens of the {tower} tower's block {missing[0]}: make it again.")
    return PromptTokens([tensors[f"{tower}.{i}"].float() for i in range(depth)]) if depth else None


# ------------------------------------------------------------------------------------------------ stored features


def stored_features(
    teacher: PromptedClip, pictures: promptkd_runs.Pictures, path: Path, sources: Sequence[str], at_once: int = 32,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:  # fmt: skip
    """The teacher's unit features [N, D] of pictures that are not augmented: computed once, kept in ``path``.

    Args:
        sources: What tells each picture from any other, such as its file's name, size and time; with the teacher's weights it
            decides whether the file still holds.

    Raises:
        KeyboardInterrupt: ``interrupted`` said so.
    """
    key = _features_key(teacher, sources)
    if (stored := _read_features(path, key)) is not None:
        return stored
    parts = []
    for start in range(0, len(pictures), at_once):
        if interrupted():
            raise KeyboardInterrupt
        indices = range(start, min(start + at_once, len(pictures)))
        with torch.no_grad():
            parts.append(teacher.encode_pictures(pictures.batch(indices, 0).to(teacher.device)).cpu())
    features = torch.cat(parts)
    save_safetensors_atomically({"features": features}, path, {"key": key})
    return features


def _features_key(teacher: PromptedClip, sources: Sequence[str]) -> str:
    return digest([tower_hash(teacher.clip.visual), *_tokens_digest(teacher.picture_tokens), *sources])


def _tokens_digest(tokens: PromptTokens | None) -> list[str]:
    blocks = tokens.blocks if tokens is not None else ()
    return [hashlib.sha256(block.detach().cpu().float().numpy().tobytes()).hexdigest() for block in blocks]


def facts_of(
    settings: promptkd_runs.Settings, clip: ClipFile, classes: Sequence[str], pictures: DomainPictures | FixedPictures,
    teacher: Teacher | None = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """What a run is made of, for its folder; a critic's with its ``teacher`` and ``more``."""
    # Runs of versions that didn't know these hold nothing there, which is None to whoever looks.
    left = [name for name in promptkd_runs.SINCE if getattr(settings, name) == getattr(promptkd_runs.Settings, name)]
    chosen = {name: None if name in left else value for name, value in asdict(settings).items()}
    facts = {**chosen, "clip": tower_hash(clip.network.visual), "classes": classes, **more}
    facts["pictures"] = digest(pictures.sources())
    return facts if teacher is None else {**facts, "teacher": fingerprint(teacher)}


def digest(facts: Sequence[str]) -> str:
    """64 hex digits that change with any of ``facts``."""
    return hashlib.sha256(json.dumps(list(facts)).encode()).hexdigest()


def fingerprint(teacher: Teacher) -> str:
    """64 hex digits that change with a teacher's weights, its tokens, and the texts that it is given."""
    tokens = [*_tokens_digest(teacher.clip.picture_tokens), *_tokens_digest(teacher.clip.text_tokens)]
    return digest([tower_hash(teacher.clip.clip), *tokens, *teacher.texts])


def _read_features(path: Path, key: str) -> Tensor | None:
    """What is stored, if it was stored under this key; a damaged file counts as none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            features: Tensor | None = file.get_tensor("features") if (file.metadata() or {}).get("key") == key else None
            return features
    except Exception:  # whatever is wrong with it, it is computed anew
        return None


# ----------------------------------------------------------------------------------------------------------- run


def make_teacher(
    clip: ClipFile, classes: Sequence[str], pictures: promptkd_runs.Pictures, labels: Sequence[int],
    settings: promptkd_runs.SourceSettings, folder: RunFolder, *, depth: int = DEPTH, save_every: int = 500,
    watch: Watch | None = None, processes: Processes | None = None,
) -> Teacher:  # fmt: skip
    """Learn a teacher's tokens: stage 1 on a few labelled ``pictures``; resumes to the bit.

    Args:
        clip: The large CLIP; it is the teacher's from now on.
        labels: The class of each of ``pictures``.
        folder: Where the checkpoint lies.

    Raises:
        KeyboardInterrupt: It was stopped, and saved.
        FloatingPointError: A loss is no longer finite.
        ValueError: There are no pictures, fewer than two classes, or labels are missing.
    """
    _check_classes(classes)
    device = clip.network.logit_scale.device
    picture, words = (tokens.to(device) for tokens in fresh_tokens(clip, settings.seed, depth))  # the CLIP is there
    prompted = PromptedClip(clip.network, picture, words, clip.tokenizer)
    teacher = Teacher(clip.name, prompted, placeholder_of(clip), templates_of(clip))
    ids = clip.tokenizer(prompted.class_texts(classes, teacher.placeholder)).to(device)
    frozen = promptkd.frozen_text_features(prompted, classes, teacher.templates)
    promptkd_runs.train_teacher(
        prompted, ids, frozen, pictures, labels, settings, folder, save_every=save_every, watch=watch, processes=processes
    )
    return teacher


def make_critic(
    name: str, teacher: Teacher, student: ClipFile, classes: Sequence[str], pictures: promptkd_runs.Pictures,
    settings: promptkd_runs.Settings, folder: RunFolder, *, depth: int = DEPTH, sources: Sequence[str] | None = None,
    save_every: int = 500, watch: Watch | None = None, processes: Processes | None = None,
    after_epoch: Callable[[int, PromptedStudent, Tensor], None] | None = None, own: promptkd.Own | None = None,
) -> Critic:  # fmt: skip
    """Distil a critic: stage 2 on unlabelled ``pictures``; resumes to the bit.

    Args:
        student: The small CLIP; its picture tower is the critic's from now on.
        sources: Given where pictures are not augmented: then the teacher looks at each once (see ``stored_features``).
        folder: Where checkpoint and features lie.
        after_epoch: Called with the number of epochs done, the student as it is then, and the text features.
        own: For the target ``odds``; see ``promptkd.own_of``.

    Raises:
        KeyboardInterrupt: It was stopped, and saved.
        FloatingPointError: The loss is no longer finite.
        ValueError: There are no pictures or no classes, the CLIPs want pictures of different sizes, or a setting needs another.
    """
    _check_classes(classes)
    _check_settings(settings, own, len(pictures))
    text, size, base = teacher.features(classes), teacher.clip.picture_size, tower_hash(student.network.visual)
    own_words = settings.start == promptkd_runs.WORDS
    compared, tokens = (side_by_side(text, _words_of(student, classes)), 0) if own_words else (text, CONTEXT)
    prompted = fresh_student(student, compared.shape[1], settings.seed, depth, tokens, settings.blocks)
    for learned in (prompted.tokens, prompted.projector):  # the CLIP is there
        learned.to(teacher.clip.device)
    if prompted.picture_size != size:
        raise ValueError(
            f"The teacher sees pictures of {size} pixels and the student of {prompted.picture_size}; choose two CLIPs of one "
            "size."
        )
    if own_words:
        some = pictures.batch(range(min(len(pictures), 256)), 0).to(text.device)
        with torch.no_grad():
            begin_as_the_small_clip(prompted, prompted.tower_features(some), text.shape[1])
    logits = _teachers_eye(teacher, text, pictures, folder, sources, watch)
    promptkd_runs.distil(
        prompted, logits, compared, pictures, settings, folder, save_every=save_every, watch=watch, processes=processes,
        after_epoch=after_epoch and (lambda epoch: after_epoch(epoch, prompted, compared)), own=own,
    )  # fmt: skip
    with torch.no_grad():  # as it is saved
        for parameter in prompted.tower().values():
            parameter.copy_(parameter.half())
    return Critic(name, CriticNetwork(prompted, compared), tuple(classes), teacher.texts, student.name, base)


def _words_of(clip: ClipFile, classes: Sequence[str]) -> Tensor:
    """What a small CLIP's own text tower says of the classes, [C, d]."""
    plain = PromptedClip(clip.network, None, None, clip.tokenizer)
    return promptkd.frozen_text_features(plain, classes, templates_of(clip))


def _check_settings(settings: promptkd_runs.Settings, own: promptkd.Own | None, pictures: int) -> None:
    if settings.blocks and settings.precision == "fp16":
        raise ValueError("Blocks of a tower can't learn in fp16, whose steps are too coarse: choose bf16 or fp32, or 0 blocks.")
    if settings.target == promptkd_runs.ODDS and (own is None or len(own.labels) != pictures):
        raise ValueError("To learn the odds of its prompt, every picture needs one: give a prompt for each, or choose 'classes'.")


def _check_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError("A critic tells classes apart: give two names or more, each once.")


def _teachers_eye(
    teacher: Teacher, text: Tensor, pictures: promptkd_runs.Pictures, folder: RunFolder, sources: Sequence[str] | None,
    watch: Watch | None,
) -> Callable[[Tensor, Sequence[int], int], Tensor]:
    """(pixels, indices, epoch) -> the teacher's logits: looked up, or computed where pictures are augmented."""
    if sources is None:
        return lambda pixels, _indices, _epoch: promptkd.teacher_logits_of(teacher.clip, pixels, text)
    stop = watch.interrupted if watch else lambda: False
    features = stored_features(teacher.clip, pictures, folder.features, sources, interrupted=stop)

    def look_up(_pixels: Tensor, indices: Sequence[int], _epoch: int) -> Tensor:
        with torch.no_grad():
            return teacher.clip.scale * features[list(indices)].to(text.device) @ text.T

    return look_up
