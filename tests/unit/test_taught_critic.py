"""Critics that learn more than published: blocks of the tower, odds of the prompt's class, from words, with some held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import CLASSES, Colours, clip
from colours import WORDS as TOKENIZER
from comfyui_apprentice.benchmarks.promptkd_gate import cascaded, rejected
from comfyui_apprentice.files import UnsafeCheckpoint
from comfyui_apprentice.networks.prompted_clip import PromptedClip, last_blocks
from comfyui_apprentice.oracles.promptkd import Critic, PromptKDOracle, load_critic, log_odds, save_critic, tower_hash
from comfyui_apprentice.training import critic as critics
from comfyui_apprentice.training import promptkd
from comfyui_apprentice.training.domain_data import FixedPictures, captions
from comfyui_apprentice.training.held_out import split
from comfyui_apprentice.training.loop import Watch
from comfyui_apprentice.training.promptkd_runs import ODDS, SINCE, WORDS, Settings, distil
from comfyui_apprentice.training.run_folder import RunFolder
from comfyui_apprentice.training.word_start import begin_as_the_small_clip, side_by_side
from comfyui_apprentice.world.recipe.critic import Mirrored
from comfyui_apprentice.world.weights import CRITICS_FOLDER
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

TAUGHT = Settings(
    epochs=4, batch=8, learning_rate=1e-3, warmup_epochs=0, seed=1, blocks=1, tower_rate=1e-3, target=ODDS, start=WORDS,
    held_out=0.25,
)  # fmt: skip


def prompts(count: int) -> list[str]:
    return [f"a {CLASSES[i % 3]} thing" for i in range(count)]


def make(folder: Path, settings: Settings = TAUGHT, count: int = 32, **more: Any) -> Critic:
    own = more.pop("own", promptkd.own_of(prompts(count), CLASSES))
    return critics.make_critic(
        "colours", critics.load_teacher(clip("large")), clip("small"), CLASSES, Colours(count), settings, RunFolder(folder),
        own=own, **more,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- numbers


def test_log_odds_are_those_of_the_softmax_and_go_on_where_it_is_one() -> None:
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 2, 2])
    own = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(log_odds(logits, labels), own.logit())
    sure = torch.tensor([[40.0, 0.0], [60.0, 0.0]])
    assert (sure.softmax(1)[:, 0] == 1).all() and log_odds(sure, torch.zeros(2, dtype=torch.long)).tolist() == [40, 60]


def test_the_loss_is_hubers_on_the_odds_and_a_share_of_the_published_one() -> None:
    ours, labels = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    theirs = torch.tensor([[1.0, 0.0], [0.0, 11.0]])  # log-odds 2 below ours, and 10 above
    missed = ((2 / 5) ** 2 / 2 + (10 / 5 - 0.5)) / 2
    view = promptkd.kd_loss(ours, theirs, weight=1.0) * 2
    torch.testing.assert_close(promptkd.odds_loss(ours, theirs, labels, weight=4.0), 4 / 2 * (missed + 0.3 * view))
    torch.testing.assert_close(promptkd.odds_loss(theirs, theirs, labels), torch.tensor(0.0))
    other = promptkd.odds_loss(theirs, theirs, labels, log_odds(theirs, labels) + 2.0, weight=2.0)
    torch.testing.assert_close(other, torch.tensor((2 / 5) ** 2 / 2))


def test_another_judges_scores_become_odds_in_their_order() -> None:
    odds = promptkd.as_odds(torch.tensor([20.0, 24.0, 22.0]))
    assert odds.argsort().tolist() == [0, 2, 1]
    assert float(odds.mean()) == pytest.approx(0, abs=1e-5) and float(odds.std(correction=0)) == pytest.approx(5)
    with pytest.raises(ValueError, match="same score"):
        promptkd.as_odds(torch.ones(3))


def test_a_cascade_asks_only_about_what_is_near_the_threshold() -> None:
    light, heavy = np.arange(10.0), np.arange(10.0)[::-1]
    assert rejected(light).tolist() == [True] * 5 + [False] * 5
    # Asked are the four in the middle, of which the heavy judge likes the last two least.
    assert cascaded(light, heavy, asked=0.4).tolist() == [True] * 3 + [False] * 2 + [True] * 2 + [False] * 3
    assert cascaded(light, heavy, asked=0.0).tolist() == rejected(light).tolist()
    assert cascaded(light, heavy, asked=1.0).tolist() == rejected(heavy).tolist()


# ----------------------------------------------------------------------------------------------------- what learns


def test_the_last_blocks_are_those_before_the_output() -> None:
    visual = clip("small").network.visual
    assert last_blocks(visual, 0) == ()
    parts = {name.rpartition("resblocks.")[2].split(".")[0] for name in last_blocks(visual, 1)}
    assert parts == {"2", "ln_post", "proj"}
    assert last_blocks(visual, 3) == last_blocks(visual, 99) == tuple(name for name, _ in visual.named_parameters())


def test_only_the_blocks_that_were_asked_for_change(tmp_path: Path) -> None:
    before = dict(clip("small").network.visual.named_parameters())
    after = dict(make(tmp_path, replace(TAUGHT, held_out=0.0)).network.student.visual.named_parameters())
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == set(last_blocks(clip("small").network.visual, 1))
    assert not any(value.requires_grad for value in after.values())


def test_a_student_from_words_begins_as_the_plain_small_clip() -> None:
    small = clip("small")
    text = torch.nn.functional.normalize(torch.randn(3, 96, generator=torch.Generator().manual_seed(0)), dim=1)
    plain = PromptedClip(clip("small").network, None, None, TOKENIZER)
    words = promptkd.frozen_text_features(plain, CLASSES, small.templates)
    student = critics.fresh_student(small, 96 + 64, 0, count=0)
    pixels = Colours(12).pixels
    with torch.no_grad():
        begin_as_the_small_clip(student, student.tower_features(pixels), 96)
        ours = student.eval().logits(student(pixels), side_by_side(text, words))
        theirs = plain.scale * plain.encode_pictures(pixels) @ words.T
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_a_critic_learns_the_order_that_another_judge_gives(tmp_path: Path) -> None:
    """Scores that neither CLIP would give: by how strong the colour is."""
    pictures, scores = Colours(24), torch.arange(24.0).flip(0)
    pictures.pixels *= (0.1 + scores / 24)[:, None, None, None]
    text = torch.nn.functional.normalize(torch.randn(3, 96, generator=torch.Generator().manual_seed(0)), dim=1)
    settings = Settings(epochs=60, weight=10.0, tower_rate=2e-3, warmup_epochs=0, blocks=3, target=ODDS)
    own = promptkd.own_of(["a red thing"] * 24, CLASSES, scores.tolist())
    student = critics.fresh_student(clip("small"), 96, 0, blocks=3).eval()
    found = []
    for _ in range(2):
        with torch.no_grad():
            odds = log_odds(student.logits(student(pictures.pixels), text), own.labels)
        found.append(np.corrcoef(odds, scores)[0, 1])
        distil(student, lambda x, _i, _e: torch.zeros(len(x), 3), text, pictures, settings, RunFolder(tmp_path), own=own)
    assert found[1] > 0.8 > found[0]


def test_settings_that_need_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't learn in fp16"):
        make(tmp_path, replace(TAUGHT, precision="fp16"))
    with pytest.raises(ValueError, match="every picture needs one"):
        make(tmp_path, own=None)
    with pytest.raises(ValueError, match="names none of the 3 classes"):
        promptkd.own_of(["a yellow one"], CLASSES)


# ------------------------------------------------------------------------------------------------------------ runs


def test_a_stopped_run_with_everything_on_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole, asked = make(tmp_path / "whole"), iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", watch=Watch(interrupted=lambda: next(asked) == 4))
    resumed = make(tmp_path / "cut")
    for (name, a), b in zip(whole.network.state_dict().items(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_is_held_out_stops_the_run_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    """At a rate that ruins everything nothing gets better than the start, which is kept; and the run ends after three epochs."""
    ruinous = replace(TAUGHT, epochs=12, learning_rate=0.5, tower_rate=0.1, blocks=3)
    assert ruinous.patience == 3
    ended: list[int] = []
    made = make(tmp_path, ruinous, after_epoch=lambda epoch, _student, _text: ended.append(epoch))
    assert ended == [1, 2, 3]
    log = RunFolder(tmp_path).losses()
    assert log[-1]["step"] == 3 * 3 and log[-1]["held_out"] > 0
    assert tower_hash(made.network.student.visual) == made.base_hash == tower_hash(clip("small").network.visual)
    seen = list(ended)
    make(tmp_path, ruinous, after_epoch=lambda epoch, _student, _text: ended.append(epoch))
    assert ended == seen  # it is at its end


def test_held_out_pictures_are_the_same_every_time_and_none_is_learned_from() -> None:
    learning, held = split(40, 0.25, seed=3)
    assert len(held) == 10 and sorted(learning + held) == list(range(40)) and split(40, 0.25, 3) == (learning, held)
    assert split(40, 0.0, 3) == (list(range(40)), [])
    with pytest.raises(ValueError, match="holds out 0"):
        split(4, 0.1, 0)


def test_a_run_without_the_new_settings_is_the_run_that_it_was_and_with_them_another(tmp_path: Path) -> None:
    pictures, run = FixedPictures([torch.zeros(1, 64, 64, 3)], 64), RunFolder(tmp_path / "old")
    before = critics.facts_of(Settings(), clip("small"), CLASSES, pictures)
    run.claim({key: value for key, value in before.items() if key not in SINCE})  # as versions without them wrote it
    run.check(before)
    changed = {"blocks": 1, "tower_rate": 1e-3, "target": ODDS, "start": WORDS, "held_out": 0.25}
    for name, value in changed.items():
        after = critics.facts_of(replace(Settings(), **{name: value}), clip("small"), CLASSES, pictures)
        with pytest.raises(ValueError, match=f"another {name}"):
            run.check(after)
        other = RunFolder(tmp_path / name)
        other.claim(after)
        with pytest.raises(ValueError, match=f"another {name}"):
            other.check(before)


# ----------------------------------------------------------------------------------------------------------- files


def test_a_taught_critic_comes_back_from_its_file_to_the_bit(tmp_path: Path) -> None:
    made, path = make(tmp_path / "run"), tmp_path / "colours.safetensors"
    save_critic(made, path)
    pixels, back = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1)), load_critic(path, clip("small").network)
    assert torch.equal(back.probabilities(pixels), made.probabilities(pixels))
    ours, theirs = (PromptKDOracle(critic, "log-odds").score(pixels, prompts(3)) for critic in (back, made))
    assert torch.equal(ours, theirs)
    save_critic(back, tmp_path / "again.safetensors")
    once, twice = load_file(path), load_file(tmp_path / "again.safetensors")
    assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)
    assert back.base_hash == tower_hash(clip("small").network.visual)


def test_a_taught_critic_is_of_a_kind_that_older_versions_refuse_and_a_plain_one_is_not(tmp_path: Path) -> None:
    kinds = []
    for blocks in (0, 1):
        save_critic(make(tmp_path / str(blocks), replace(TAUGHT, blocks=blocks, start="random")), tmp_path / "c.safetensors")
        with safe_open(tmp_path / "c.safetensors", "pt") as file:
            kinds.append(file.metadata()["apprentice"])
            assert ("tower.proj" in file.keys()) == bool(blocks)  # noqa: SIM118
    assert kinds == ["promptkd-student", "promptkd-student-taught-tower"]


@pytest.mark.parametrize("change", ["shape", "name"])
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "c.safetensors"
    save_critic(make(tmp_path / "run"), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    block = tensors.pop("tower.proj")
    tensors |= {"tower.proj": block[:1].clone()} if change == "shape" else {"tower.projector": block}
    save_file(tensors, path, metadata)
    network = clip("small").network
    before = {key: value.clone() for key, value in network.visual.state_dict().items()}
    with pytest.raises(UnsafeCheckpoint, match="blocks that don't fit"):
        load_critic(path, network)
    assert all(torch.equal(v, before[k]) for k, v in network.visual.state_dict().items())


def test_prompts_lie_beside_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" a red thing\n", encoding="utf-8")
    assert captions([tmp_path / "a.png"]) == ["a red thing"]
    with pytest.raises(ValueError, match=r"b.jpg has no prompt: .*b.txt"):
        captions([tmp_path / "a.png", tmp_path / "b.jpg"])


def test_mirror_images_come_after_their_drafts() -> None:
    drafts = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    domain: Sequence[Any] | Any = Mirrored(drafts, 64)
    assert len(domain) == 6
    batch: Tensor = domain.batch([1, 4], 0)
    torch.testing.assert_close(batch[0].flip(2), batch[1])
    torch.testing.assert_close(batch[:1], FixedPictures([drafts[1:2].float() / 255], 64).pixels)


def test_the_shipped_critic_is_read() -> None:
    from comfyui_apprentice.oracles.clip_files import load_clip
    from comfyui_apprentice.world.weights import CLIPS_FOLDER

    small = load_clip(CLIPS_FOLDER / "tiny world small.safetensors")
    critic = load_critic(CRITICS_FOLDER / "tiny world critic.safetensors", small.network)
    assert len(critic.classes) == 187
