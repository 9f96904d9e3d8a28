"""The oracle and the file that a taste becomes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.files import UnreadableFile, save_safetensors_atomically
from comfyui_apprentice.oracles.base import Oracle
from comfyui_apprentice.oracles.taste import Source, TasteFile, TasteOracle


class Colours(Oracle):
    """Features are the mean colour; the score is how red."""

    name, differentiable, has_features, reads_prompts = "colours", True, True, False

    def __init__(self, gain: float = 1.0) -> None:
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.network.weight.data.fill_(gain)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.weight[0, 0] * images.mean((1, 2))

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.features(images)[:, 0]


def taste_of(features: Oracle, judge: Oracle, published: float = 0.5) -> TasteFile:
    weight = torch.tensor([0.0, 2.0, -1.0])
    return TasteFile(weight, published, 0.25, 0.5, 1.5, Source.of(features), Source.of(judge), "words")


def pictures(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 4, 4, 3, generator=torch.Generator().manual_seed(0))


def test_the_score_is_the_head_on_features_and_the_judges_part() -> None:
    eye, judge = Colours(), Colours(3.0)
    oracle = TasteOracle(taste_of(eye, judge), eye, judge)
    x = pictures()
    mean = x.mean((1, 2))
    expected = 2 * mean[:, 1] - mean[:, 2] + 0.5 * (3 * mean[:, 0] - 0.25) / 0.5
    assert torch.allclose(oracle.score(x, ["a"] * 3), expected, atol=1e-6)
    assert oracle.differentiable and not oracle.reads_prompts and not oracle.has_features
    x.requires_grad_(True)
    oracle.reward(x, ["a"] * 3).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_a_judge_without_a_say_is_not_asked_nor_loaded() -> None:
    eye = Colours()
    oracle = TasteOracle(taste_of(eye, eye, published=0.0), eye, None)
    assert oracle.judge is None and len(oracle.network.residents()) == 2
    with pytest.raises(ValueError, match="leans on colours as well"):
        TasteOracle(taste_of(eye, eye), eye, None)


def test_the_file_gives_the_same_oracle_again(tmp_path: Path) -> None:
    eye, path = Colours(), tmp_path / "mine.safetensors"
    content = taste_of(eye, eye)
    content.save(path)
    again = TasteFile.load(path)
    first, second = TasteOracle(content, eye, eye), TasteOracle(again, eye, eye)
    assert torch.equal(first.score(pictures(), ["a"] * 3), second.score(pictures(), ["a"] * 3))
    assert first.fingerprint() == second.fingerprint() != eye.fingerprint() and again.about == "words"
    assert TasteOracle(taste_of(eye, eye, published=0.6), eye, eye).fingerprint() != first.fingerprint()


def test_weights_of_another_number_than_there_are_features_are_refused_in_a_sentence() -> None:
    eye = Colours()
    oracle = TasteOracle(TasteFile(torch.ones(7), 0.0, 0.0, 1.0, 0.0, Source.of(eye), Source.of(eye)), eye, None)
    with pytest.raises(ValueError, match="weighs 7 features of a picture, and colours shows 3"):
        oracle.score(pictures(), ["a"] * 3)


def test_a_taste_without_a_threshold_is_kept_so(tmp_path: Path) -> None:
    eye, path = Colours(), tmp_path / "mine.safetensors"
    TasteFile(torch.ones(3), 0.0, 0.0, 1.0, math.nan, Source.of(eye), Source.of(eye)).save(path)
    assert math.isnan(TasteFile.load(path).threshold)


def test_other_oracles_than_it_was_learned_on_are_named() -> None:
    eye, other = Colours(), Colours(2.0)
    with pytest.raises(ValueError, match="learned on colours, and features_from is colours; connect colours there"):
        TasteOracle(taste_of(eye, eye), other, eye)
    with pytest.raises(ValueError, match="and oracle is colours"):
        TasteOracle(taste_of(eye, eye), eye, other)


def test_an_oracle_that_shows_no_features_says_which_do() -> None:
    class Blind(Colours):
        has_features = False
        features = Oracle.features

    with pytest.raises(ValueError, match="colours shows no features of pictures; take a CLIP"):
        Blind().features(pictures())


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [({"x": torch.zeros(1)}, {}, "is no taste"),
     ({"taste.weight": torch.zeros(2, 2), "taste.numbers": torch.ones(4)}, None, "damaged"),
     ({"taste.weight": torch.ones(2), "taste.numbers": torch.zeros(4)}, None, "damaged"),
     ({"taste.weight": torch.tensor([math.inf]), "taste.numbers": torch.ones(4)}, None, "damaged"),
     ({"taste.weight": torch.ones(2), "taste.numbers": torch.tensor([0.0, math.nan, 1, 0])}, None, "damaged"),
     ({"taste.weight": torch.ones(2), "taste.numbers": torch.ones(3)}, None, "damaged")],
)  # fmt: skip
def test_strangers_files_are_refused_in_a_sentence(tmp_path: Path, tensors, metadata, words: str) -> None:
    path = tmp_path / "strange.safetensors"
    save_safetensors_atomically(tensors, path, {"kind": "apprentice-taste"} if metadata is None else metadata)
    with pytest.raises(UnreadableFile, match=words):
        TasteFile.load(path)
