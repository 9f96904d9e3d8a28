"""From CLIPs, pictures and words to a critic: both stages with their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colours import CLASSES, WORDS, Colours, clip
from comfyui_apprentice.benchmarks.promptkd_data import accuracy
from comfyui_apprentice.files import UnsafeCheckpoint
from comfyui_apprentice.networks.prompted_clip import PromptedClip
from comfyui_apprentice.oracles.promptkd import CriticNetwork, load_critic, save_critic
from comfyui_apprentice.training import critic as critics
from comfyui_apprentice.training.promptkd import frozen_text_features
from comfyui_apprentice.training.promptkd_runs import Settings, SourceSettings
from comfyui_apprentice.training.run_folder import RunFolder


def make(folder: Path, pictures: Colours, sources: Sequence[str] | None = None) -> critics.Critic:
    teacher = critics.load_teacher(clip("large"))
    settings = Settings(epochs=3, batch=6, weight=10, seed=1)
    return critics.make_critic("colours", teacher, clip("small"), CLASSES, pictures, settings, RunFolder(folder), sources=sources)


def test_a_critic_learns_the_teachers_view_and_travels(tmp_path: Path) -> None:
    pictures = Colours(24)
    made = make(tmp_path / "run", pictures)
    save_critic(made, tmp_path / "colours.safetensors")
    back = load_critic(tmp_path / "colours.safetensors", clip("small").network)
    assert (back.classes, back.texts, back.base) == (("red", "green", "blue"), ("a picture of a {}",), "the small one")
    teacher = critics.load_teacher(clip("large"))
    text = teacher.features(CLASSES)
    torch.testing.assert_close(back.network.text_features, text)
    # An untrained teacher knows nothing of colours, but its view of these pictures is what the student must come to share.
    with torch.no_grad():
        theirs = (teacher.clip.scale * teacher.clip.encode_pictures(pictures.pixels) @ text.T).softmax(1)
        ours = back.network.student.logits(back.network.student(pictures.pixels), text).softmax(1)
        fresh = critics.fresh_student(clip("small"), 96, 1).eval()
        before = fresh.logits(fresh(pictures.pixels), text).softmax(1)
    assert (ours - theirs).abs().mean() < 0.5 * (before - theirs).abs().mean()


def test_stored_features_change_nothing_and_are_computed_once(tmp_path: Path) -> None:
    plain, stored = make(tmp_path / "a", Colours(24)), make(tmp_path / "b", Colours(24), [str(i) for i in range(24)])
    for a, b in zip(plain.network.student.learned(), stored.network.student.learned(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    teacher, pictures = critics.load_teacher(clip("large")).clip, Colours(24)
    file, sources = tmp_path / "b" / "features.safetensors", [str(i) for i in range(24)]
    critics.stored_features(teacher, pictures, file, sources)
    assert pictures.drawn == 0
    critics.stored_features(teacher, pictures, file, ["another", *sources[1:]])
    assert pictures.drawn == 24
    file.write_bytes(b"torn")
    critics.stored_features(teacher, pictures, file, sources)
    assert pictures.drawn == 48


def test_learned_tokens_begin_as_the_placeholders_words() -> None:
    large = clip("large")
    pictures, text = critics.fresh_tokens(large, 0)
    words = large.network.token_embedding.weight[WORDS(["a picture of a"])[0, 1:5]]
    assert torch.equal(text.blocks[0].detach(), words)
    assert (pictures.depth, text.depth) == (6, 2)  # no deeper than the towers
    with pytest.raises(ValueError, match="is 2 tokens, and 4 are wanted"):
        critics.fresh_tokens(replace(large, templates=("a picture {}",)), 0)


def test_a_fresh_prompted_teacher_says_what_the_plain_one_says_of_texts_at_depth_one() -> None:
    large = clip("large")
    names = ["red", "blue"]
    plain = frozen_text_features(PromptedClip(clip("large").network, None, None, WORDS), names, ["a picture of a {}."])
    _pictures, text = critics.fresh_tokens(large, 0, depth=1)
    teacher = critics.Teacher("t", PromptedClip(large.network, None, text, WORDS), "a picture of a", ())
    torch.testing.assert_close(teacher.features(names), plain, atol=1e-5, rtol=1e-4)


def test_a_teachers_tokens_come_back_from_their_file(tmp_path: Path) -> None:
    large = clip("large")
    tokens = critics.fresh_tokens(large, 3)
    teacher = critics.Teacher("t", PromptedClip(large.network, *tokens, WORDS), "a picture of a", large.templates)
    critics.save_tokens(teacher, tmp_path / "t.safetensors")
    back = critics.load_teacher(clip("large"), tmp_path / "t.safetensors")
    assert back.placeholder == "a picture of a"
    pixels = Colours(3).pixels
    torch.testing.assert_close(back.clip.encode_pictures(pixels), teacher.clip.encode_pictures(pixels))
    with pytest.raises(ValueError, match="choose the CLIP that it was trained on"):
        critics.load_teacher(clip("small"), tmp_path / "t.safetensors")
    save_critic(make(tmp_path / "run", Colours(6)), tmp_path / "critic.safetensors")
    with pytest.raises(UnsafeCheckpoint, match="doesn't hold a PromptKD teacher's tokens"):
        critics.load_teacher(clip("large"), tmp_path / "critic.safetensors")


def test_a_teacher_learns_the_classes_of_a_few_pictures(tmp_path: Path) -> None:
    pictures = Colours(12)
    settings = SourceSettings(
        epochs=20, batch=4, learning_rate=0.1, gaussian_mean=19, text_weight=0, picture_weight=0, warmup_epochs=0
    )
    teacher = critics.make_teacher(clip("large"), CLASSES, pictures, pictures.labels.tolist(), settings, RunFolder(tmp_path))
    text = teacher.features(CLASSES)
    with torch.no_grad():
        learned = (teacher.clip.encode_pictures(pictures.pixels) @ text.T).argmax(1)
        with teacher.clip.frozen():
            names = frozen_text_features(teacher.clip, CLASSES, teacher.templates)
            plain = (teacher.clip.encode_pictures(pictures.pixels) @ names.T).argmax(1)
    right = [(found == pictures.labels).float().mean().item() for found in (learned, plain)]
    assert right[0] > 0.9 > right[1]
    assert teacher.texts == ("a picture of a {}.",)


def test_accuracy_is_sought_among_the_classes_that_count(tmp_path: Path) -> None:
    network: CriticNetwork = make(tmp_path, Colours(12)).network
    pictures = Colours(12)
    with torch.no_grad():
        logits = network.student.logits(network.student(pictures.pixels), network.text_features)
    chosen = [0, 2]
    student, text = network.student, network.text_features
    rows = torch.isin(pictures.labels, torch.tensor(chosen))
    expected = (torch.tensor(chosen)[logits[rows][:, chosen].argmax(1)] == pictures.labels[rows]).float().mean().item()
    assert accuracy(student, text, [(pictures.pixels, pictures.labels)], chosen) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no pictures"):
        accuracy(student, text, [], chosen)


def test_one_class_or_the_same_twice_is_refused(tmp_path: Path) -> None:
    teacher = critics.load_teacher(clip("large"))
    for classes in (["red"], ["red", "red"]):
        with pytest.raises(ValueError, match="two names or more, each once"):
            critics.make_critic("c", teacher, clip("small"), classes, Colours(6), Settings(), RunFolder(tmp_path))
