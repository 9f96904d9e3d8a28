"""PromptKD's critic: its file, and its verdicts as an oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.files import UnsafeCheckpoint
from comfyui_apprentice.networks.prompted_clip import Projector, PromptedStudent, PromptTokens
from comfyui_apprentice.oracles.preprocess import normalise
from comfyui_apprentice.oracles.promptkd import Critic, CriticNetwork, PromptKDOracle, load_critic, save_critic, tower_hash
from comfyui_apprentice.world.weights import make_clip
from safetensors.torch import load_file, save_file
from torch import Tensor

CLASSES = ("cat", "black cat", "hot_dog", "dog")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_clip(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make_clip("small", 20).eval()


def make_critic() -> Critic:
    clip = small_clip()
    projector = Projector(64, 48).reset(rng(1))
    projector.conv1[1].running_mean.normal_(generator=rng(2))
    student = PromptedStudent(clip.visual, PromptTokens.random(3, 4, 64, rng(3)), projector, torch.tensor(4.0))
    text = torch.nn.functional.normalize(torch.randn(4, 48, generator=rng(4)), dim=1)
    return Critic("pets", CriticNetwork(student, text), CLASSES, ("a picture of a {}",), "small", tower_hash(clip.visual))


def pictures(count: int = 3, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(count, height, width, 3, generator=rng(5))


def test_a_critic_comes_back_from_its_file_to_the_bit(tmp_path: Path) -> None:
    critic, path = make_critic(), tmp_path / "pets.safetensors"
    save_critic(critic, path, {"made": "today"})
    back = load_critic(path, small_clip())
    assert torch.equal(back.probabilities(pictures()), critic.probabilities(pictures()))
    assert (back.classes, back.texts, back.base, back.name) == (CLASSES, critic.texts, "small", "pets")
    assert PromptKDOracle(back).fingerprint() == PromptKDOracle(critic).fingerprint()


def test_a_critic_on_another_clip_is_refused(tmp_path: Path) -> None:
    save_critic(make_critic(), tmp_path / "pets.safetensors")
    with pytest.raises(ValueError, match="made from 'small'"):
        load_critic(tmp_path / "pets.safetensors", small_clip(seed=1))


@pytest.mark.parametrize("lost", ["tokens.1", "projector.conv1.1.running_var", "text_features", "logit_scale"])
def test_a_file_without_a_part_is_refused_and_nothing_is_random(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "pets.safetensors"
    save_critic(make_critic(), path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[lost]
    save_file(tensors, path, metadata)
    with pytest.raises(UnsafeCheckpoint, match="lacks a part"):
        load_critic(path, small_clip())


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsafeCheckpoint, match="not a critic"):
        load_critic(tmp_path / "other.safetensors", small_clip())


def test_probabilities_are_the_softmax_of_scaled_cosines() -> None:
    critic, images = make_critic(), pictures()
    with torch.no_grad():
        features = critic.network.student(normalise((images * 255).round().movedim(-1, 1) / 255))
        expected = (torch.tensor(4.0).exp() * features @ critic.network.text_features.T).softmax(1)
    torch.testing.assert_close(critic.probabilities(images), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        PromptKDOracle(critic, class_name="dog").score(images, ["any"]), expected[:, 3], atol=1e-5, rtol=1e-4
    )


def test_pictures_of_any_size_are_judged_and_none_looks_at_another() -> None:
    critic = make_critic()
    for height, width in ((64, 64), (65, 130), (40, 30), (512, 16)):
        images = pictures(3, height, width)
        whole = critic.probabilities(images)
        assert whole.shape == (3, 4)
        torch.testing.assert_close(whole[1:2], critic.probabilities(images[1:2]), atol=1e-6, rtol=1e-5)
    assert critic.probabilities(pictures(0)).shape == (0, 4)


def test_the_prompts_class_is_the_longest_name_in_it() -> None:
    critic = make_critic()
    assert critic.find_class("A Black Cat, sitting") == 1
    assert critic.find_class("one cat on black") == 0
    assert critic.find_class("hot dog on a plate") == 2
    with pytest.raises(ValueError, match="names none of the 4 classes"):
        critic.find_class("concatenate")


def test_each_picture_is_judged_by_its_own_prompts_class() -> None:
    critic, images = make_critic(), pictures()
    scores = PromptKDOracle(critic, "logit").score(images, ["dog", "a cat", "hot dog"])
    with torch.no_grad():
        logits = critic.network.logits(images)
    torch.testing.assert_close(scores, torch.stack([logits[0, 3], logits[1, 0], logits[2, 2]]))


def test_only_scores_that_mean_the_same_for_every_prompt_say_so() -> None:
    critic = make_critic()
    assert PromptKDOracle(critic).comparable_across_prompts
    assert PromptKDOracle(critic, "logit", "dog").comparable_across_prompts
    assert not PromptKDOracle(critic, "logit").comparable_across_prompts
    assert not PromptKDOracle(critic, "cosine", encode=lambda texts: torch.eye(48)[: len(texts)]).comparable_across_prompts


def test_a_cosine_is_to_the_prompt_itself() -> None:
    critic, images = make_critic(), pictures()
    oracle = PromptKDOracle(critic, "cosine", encode=lambda texts: torch.eye(48)[[len(t) for t in texts]])
    with torch.no_grad():
        features = critic.network.features(images)
    torch.testing.assert_close(
        oracle.score(images, ["a", "bb", "a"]), torch.stack([features[0, 1], features[1, 2], features[2, 1]])
    )
    with pytest.raises(ValueError, match="teacher's text tower"):
        PromptKDOracle(critic, "cosine")


def test_the_critic_can_be_climbed() -> None:
    images = pictures(1).requires_grad_()
    PromptKDOracle(make_critic(), "logit", "dog").reward(images, ["dog"]).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


def test_new_words_replace_the_old() -> None:
    critic = make_critic()
    text = torch.nn.functional.normalize(torch.randn(2, 48, generator=rng(9)), dim=1)
    other = critic.with_classes(["fish", "bird"], text)
    assert other.probabilities(pictures()).shape == (3, 2)
    assert critic.probabilities(pictures()).shape == (3, 4)
    assert PromptKDOracle(other).fingerprint() != PromptKDOracle(critic).fingerprint()
    with pytest.raises(ValueError, match="another teacher"):
        critic.with_classes(["fish"], torch.zeros(1, 32))
    with pytest.raises(ValueError, match="each once"):
        critic.with_classes(["fish", "fish"], text)
