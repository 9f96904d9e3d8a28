"""PromptKD's networks, losses and steps, against numbers made with the authors' code and against closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.networks.prompted_clip import Projector, PromptedClip, PromptedStudent, PromptTokens
from comfyui_apprentice.oracles.tokenizers import open_clip_tokens
from comfyui_apprentice.training import promptkd, promptkd_runs
from comfyui_apprentice.training.loop import Watch
from comfyui_apprentice.training.run_folder import RunFolder
from golden_clips import CLASSES, clip, golden
from torch import Tensor

PLACEHOLDER = "a photo of a"


def tokens_of(weights: dict[str, Tensor], first: str, later: str, depth: int) -> PromptTokens:
    return PromptTokens([weights[first].float(), *(weights[later.format(i)].float() for i in range(1, depth))])


@pytest.fixture(scope="module")
def common() -> dict[str, Tensor]:
    return golden("stage2_common")


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return golden("stage2_forward")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return golden("inputs")


def make_teacher() -> PromptedClip:
    weights = golden("teacher_prompts")
    picture = tokens_of(weights, "image_encoder.VPT", "image_encoder.transformer.resblocks.{}.VPT_shallow", 4)
    text = tokens_of(weights, "prompt_learner.ctx", "text_encoder.transformer.resblocks.{}.VPT_shallow", 3)
    return PromptedClip(clip("teacher"), picture, text, open_clip_tokens)


def make_student(common: dict[str, Tensor], run: str = "student_init", depth: int = 3) -> PromptedStudent:
    weights = {k.removeprefix(f"{run}/"): v for k, v in common.items() if k.startswith(f"{run}/")}
    small = clip("student")
    tokens = tokens_of(weights, "image_encoder.VPT", "image_encoder.transformer.resblocks.{}.VPT_shallow", depth)
    projector = Projector(32, 48)
    projector.load_state_dict(
        {k.removeprefix("VPT_image_trans."): v for k, v in weights.items() if k.startswith("VPT_image_trans.")}, strict=False
    )
    return PromptedStudent(small.visual, tokens, projector, small.logit_scale)


class Fixed:
    """Pictures that are there already."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int], epoch: int) -> Tensor:
        return self.pixels[list(indices)]


# ------------------------------------------------------------------------------------------------------ networks


@torch.no_grad()
def test_the_teachers_towers_give_the_authors_features(inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    teacher = make_teacher()
    pooled = teacher.clip.encode_image(inputs["train_images"][0])
    torch.testing.assert_close(pooled, expected["visual/teacher/pooled_proj"], atol=1e-5, rtol=1e-5)
    ids = open_clip_tokens(teacher.class_texts(CLASSES, PLACEHOLDER))
    assert torch.equal(ids, golden("stage2_common")["text/tokenized_prompts"])
    torch.testing.assert_close(teacher.clip.encode_text(ids), expected["text/features_raw"], atol=1e-5, rtol=1e-5)
    features = promptkd.text_features_of(teacher, ids, at_once=3)
    torch.testing.assert_close(features, expected["text/features_normalized"], atol=1e-5, rtol=1e-5)
    logits = promptkd.teacher_logits_of(teacher, inputs["train_images"][0], features)
    torch.testing.assert_close(logits, expected["teacher/logits_train_batch0"], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_every_block_of_the_students_tower_sees_the_authors_tokens(
    inputs: dict[str, Tensor], common: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    student, seen = make_student(common), {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: seen.__setitem__(name, output)

    student.visual.ln_pre.register_forward_hook(keep("ln_pre_out"))
    for i, block in enumerate(student.visual.transformer.resblocks):
        block.register_forward_hook(keep(f"block{i}_out"))
    pooled = student.visual(inputs["train_images"][0])
    torch.testing.assert_close(pooled, expected["visual/student/pooled_proj"], atol=1e-5, rtol=1e-5)
    for name, value in seen.items():
        torch.testing.assert_close(value[:2], expected[f"visual/student/{name}"], atol=1e-5, rtol=1e-5)
    assert set(seen) == {"ln_pre_out", "block0_out", "block1_out", "block2_out", "block3_out"}


@torch.no_grad()
def test_the_students_features_and_logits_are_the_authors_in_training_and_evaluation(
    inputs: dict[str, Tensor], common: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    student, text = make_student(common), expected["text/features_normalized"]
    features = student.eval()(inputs["train_images"][0])
    torch.testing.assert_close(features, expected["student/features_normalized_evalBN_init"], atol=1e-5, rtol=1e-5)
    logits = student.logits(features, text)
    torch.testing.assert_close(logits, expected["student/logits_evalBN_init"], atol=2e-5, rtol=1e-5)
    features = student.train()(inputs["train_images"][0])
    torch.testing.assert_close(features, expected["student/features_normalized_trainBN"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(student.logits(features, text), expected["student/logits_trainBN"], atol=2e-5, rtol=1e-5)
    norm = student.projector.conv1[1]
    torch.testing.assert_close(norm.running_mean, expected["student/bn_running_mean_after1"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(norm.running_var, expected["student/bn_running_var_after1"], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_without_its_tokens_the_model_is_open_clips_own(inputs: dict[str, Tensor]) -> None:
    pixels, teacher, plain = inputs["test_images"], make_teacher(), clip("teacher")
    ids = open_clip_tokens(["a photo of a forest."])
    assert not torch.allclose(teacher.clip.encode_image(pixels), plain.encode_image(pixels))
    with teacher.frozen():
        assert torch.equal(teacher.clip.encode_image(pixels), plain.encode_image(pixels))
        assert torch.equal(teacher.clip.encode_text(ids), plain.encode_text(ids))
    assert not torch.allclose(teacher.clip.encode_text(ids), plain.encode_text(ids))


def test_the_hooks_also_work_where_open_clip_recomputes_its_blocks(inputs: dict[str, Tensor], common: dict[str, Tensor]) -> None:
    student = make_student(common).eval()
    pixels, gradients = inputs["train_images"][0], []
    for recompute in (False, True):
        student.visual.set_grad_checkpointing(recompute)
        student.visual.train(recompute)  # open_clip recomputes in training only
        student.zero_grad()
        student(pixels)[:, 0].sum().backward()
        gradients.append([p.grad.clone() for p in student.tokens.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_tokens_that_do_not_fit_are_refused_in_words() -> None:
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="32 wide, but the picture tower is 64"):
        PromptedClip(clip("student"), PromptTokens.random(2, 4, 32, rng), None, open_clip_tokens)
    with pytest.raises(ValueError, match="for 5 blocks, but the picture tower has 4"):
        PromptedClip(clip("student"), PromptTokens.random(5, 4, 64, rng), None, open_clip_tokens)
    with pytest.raises(ValueError, match="one matrix"):
        PromptTokens([torch.zeros(4, 64), torch.zeros(3, 64)])
    with pytest.raises(ValueError, match="leave no room"):
        PromptedClip(clip("student"), None, PromptTokens.random(1, 76, 64, rng), open_clip_tokens)
    resnet = torch.nn.Module()
    resnet.visual = torch.nn.Identity()
    with pytest.raises(ValueError, match="choose a ViT"):
        PromptedClip(resnet, PromptTokens.random(1, 4, 64, rng), None, open_clip_tokens)


# --------------------------------------------------------------------------------------------------- mathematics


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1000.0), (2.0, 200.0)])
def test_the_loss_is_the_authors(expected: dict[str, Tensor], temperature: float, weight: float) -> None:
    loss = promptkd.kd_loss(expected["student/logits_trainBN"], expected["teacher/logits_train_batch0"], temperature, weight)
    known = expected[f"kd/loss_T{temperature:g}_w{weight:g}"].item()
    assert loss.item() == pytest.approx(known, rel=1e-5)


def test_the_loss_vanishes_only_where_student_and_teacher_agree() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert promptkd.kd_loss(logits + 7, logits).item() == pytest.approx(0, abs=1e-4)
    assert promptkd.kd_loss(-logits, logits).item() > 1


def test_the_sources_losses_are_their_closed_forms_on_two_classes() -> None:
    eye, half = torch.eye(2), torch.full((2, 2), math.sqrt(0.5))
    losses = promptkd.source_losses(eye, eye, half, eye, torch.tensor(math.log(3)), torch.tensor([0, 1]))
    # Prompted: 3/4 on the right class. Frozen: 1/2 on both.
    assert losses.cross_entropy.item() == pytest.approx(math.log(4 / 3))
    assert losses.text.item() == 0
    assert losses.picture.item() == pytest.approx(0.5, abs=1e-6)  # (1 - sqrt(1/2) + sqrt(1/2)) / 2
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # a picture
    assert losses.logits.item() == pytest.approx(2 * divergence / 4, rel=1e-5)
    assert losses.total().item() == pytest.approx(math.log(4 / 3) + 10 * 0.5 + divergence / 2, rel=1e-5)


def test_the_rate_follows_the_authors_table(common: dict[str, Tensor]) -> None:
    rates = [promptkd.epoch_rate(epoch, 20) for epoch in range(20)]
    assert rates == pytest.approx(common["lr_table_20_epochs"].tolist(), rel=1e-9)
    schedule = promptkd_runs.Settings().schedule(pictures=19)
    assert (schedule.steps_an_epoch, schedule.steps) == (2, 40)
    assert [0.005 * schedule.factor(step) for step in (0, 1, 2, 3, 4)] == pytest.approx(
        [rates[0], rates[0], rates[1], rates[1], rates[2]]
    )


def test_the_weights_over_epochs_are_a_gaussian_of_sum_one() -> None:
    weights = promptkd.aggregation_weights(20, mean=15, std=1)
    assert sum(weights) == pytest.approx(1)
    assert weights[14] == max(weights)
    assert weights[15] / weights[14] == pytest.approx(math.exp(-0.5))
    with pytest.raises(ValueError, match="lower its mean"):
        promptkd.aggregation_weights(2, mean=100, std=0.5)


# --------------------------------------------------------------------------------------------------------- steps


def test_a_step_descends_along_the_losss_gradient_and_leaves_the_tower_alone(
    inputs: dict[str, Tensor], common: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    student = make_student(common).train()
    frozen = {k: v.clone() for k, v in student.visual.state_dict().items()}
    before = [p.detach().clone() for p in student.learned()]
    text, target = expected["text/features_normalized"], expected["teacher/logits_train_batch0"]
    optimiser = promptkd.optimiser_for(student.learned())
    first = promptkd.distill_step(student, optimiser, inputs["train_images"][0], target, text)
    assert first == pytest.approx(expected["kd/loss_T1_w1000"].item(), rel=1e-5)
    for parameter, old in zip(student.learned(), before, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.detach(), old - 0.005 * (parameter.grad + 5e-4 * old), atol=1e-7, rtol=1e-5)
    assert all(torch.equal(v, frozen[k]) for k, v in student.visual.state_dict().items())


def test_a_scaled_loss_takes_the_same_step(
    inputs: dict[str, Tensor], common: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    results = []
    for scale in (1.0, 1024.0):
        student = make_student(common).train()
        promptkd.distill_step(
            student, promptkd.optimiser_for(student.learned()), inputs["train_images"][0],
            expected["teacher/logits_train_batch0"], expected["text/features_normalized"], loss_scale=scale,
        )  # fmt: skip
        results.append([p.detach() for p in student.learned()])
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_classes_in_parts_give_the_same_teacher_step(inputs: dict[str, Tensor]) -> None:
    results = []
    for at_once in (64, 2):
        teacher = make_teacher()
        text = promptkd.frozen_text_features(teacher, CLASSES[:4], ["a photo of a {}.", "a drawing of a {}."])
        optimiser = promptkd.optimiser_for(promptkd.learned_tokens(teacher), 0.0025)
        losses = promptkd.teacher_step(
            teacher, optimiser, inputs["stage1_images"][0], inputs["stage1_labels"][0], inputs["stage1_tokenized_prompts"], text,
            classes_at_once=at_once,
        )  # fmt: skip
        assert losses["loss"] == pytest.approx(
            losses["cross_entropy"] + 25 * losses["text"] + 10 * losses["picture"] + losses["logits"], rel=1e-5
        )
        results.append([p.detach() for p in promptkd.learned_tokens(teacher)])
    torch.testing.assert_close(results[0], results[1], atol=1e-7, rtol=1e-5)


def test_templates_are_averaged_before_they_are_normalised() -> None:
    teacher, templates = make_teacher(), ["a photo of a {}.", "a drawing of the {}."]
    plain = clip("teacher")
    with torch.no_grad():
        raw = [plain.encode_text(open_clip_tokens([t.replace("{}", "forest")])) for t in templates]
    mean = torch.nn.functional.normalize((raw[0] + raw[1]) / 2, dim=-1)
    torch.testing.assert_close(promptkd.frozen_text_features(teacher, ["forest"], templates), mean, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="where the name goes"):
        promptkd.frozen_text_features(teacher, ["forest"], ["a photo"])


# --------------------------------------------------------------------------------------------------------- runs


def distil(common: dict[str, Tensor], folder: Path, watch: Watch | None = None, precision: str = "fp32") -> PromptedStudent:
    teacher, student = make_teacher(), make_student(common)
    if precision == "fp16":  # as on a GPU: the frozen towers in half precision, what is learned in single
        teacher.clip.half()
        student.visual.half()
    pixels = golden("inputs")["train_images"].flatten(0, 1)
    text = promptkd.class_features(teacher, CLASSES, PLACEHOLDER, [])
    settings = promptkd_runs.Settings(epochs=6, batch=4, weight=10, precision=precision)
    return promptkd_runs.distil(
        student, lambda pixels, _indices, _epoch: promptkd.teacher_logits_of(teacher, pixels, text), text, Fixed(pixels),
        settings, RunFolder(folder), watch=watch,
    )  # fmt: skip


def test_a_stopped_run_ends_in_the_same_bits(common: dict[str, Tensor], tmp_path: Path) -> None:
    whole = distil(common, tmp_path / "whole")
    steps = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        distil(common, tmp_path / "cut", Watch(interrupted=lambda: next(steps) == 7))
    resumed = distil(common, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.learned(), resumed.learned(), strict=True))
    norms = [student.projector.conv1[1] for student in (whole, resumed)]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)
    assert int(norms[0].num_batches_tracked) == 18


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_student_comes_to_agree_with_the_teacher(common: dict[str, Tensor], tmp_path: Path, precision: str) -> None:
    reports: list[dict[str, float]] = []
    watch = Watch(report=lambda _step, _pictures, means: reports.append(means), report_every=3)
    distil(common, tmp_path, watch, precision)
    assert reports[-1]["loss"] < 0.6 * reports[0]["loss"]


def test_a_pictures_result_does_not_depend_on_its_neighbours(inputs: dict[str, Tensor], common: dict[str, Tensor]) -> None:
    student, pixels = make_student(common).eval(), inputs["test_images"]
    with torch.no_grad():
        torch.testing.assert_close(student(pixels)[2:3], student(pixels[2:3]), atol=1e-6, rtol=1e-5)


def test_the_teachers_stage_lowers_its_loss_and_ends_in_the_mean_over_epochs(inputs: dict[str, Tensor], tmp_path: Path) -> None:
    teacher = make_teacher()
    ids, text = inputs["stage1_tokenized_prompts"], promptkd.frozen_text_features(teacher, CLASSES[:4], ["a photo of a {}."])
    pixels, labels = inputs["stage1_images"].flatten(0, 1), inputs["stage1_labels"].flatten().tolist()
    settings = promptkd_runs.SourceSettings(epochs=8, batch=4, gaussian_mean=6, gaussian_std=1, learning_rate=0.0025)
    kept: list[tuple[float, list[Tensor]]] = []
    reports: list[float] = []

    def keep(step: int, _average: Any) -> None:
        if step % 2 == 0:
            weight = promptkd.aggregation_weights(8, 6, 1)[step // 2 - 1]
            kept.append((weight, [p.detach().clone() for p in promptkd.learned_tokens(teacher)]))

    watch = Watch(report=lambda _s, _p, means: reports.append(means["loss"]), report_every=2, after_step=keep)
    promptkd_runs.train_teacher(teacher, ids, text, Fixed(pixels), labels, settings, RunFolder(tmp_path / "c"), watch=watch)
    assert reports[-1] < reports[0]
    for i, parameter in enumerate(promptkd.learned_tokens(teacher)):
        mean = sum(weight * tokens[i] for weight, tokens in kept)
        torch.testing.assert_close(parameter.detach(), mean, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="every picture needs its class"):
        promptkd_runs.train_teacher(teacher, ids, text, Fixed(pixels), labels[:3], settings, RunFolder(tmp_path / "d"))
