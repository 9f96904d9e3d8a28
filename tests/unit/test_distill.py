"""A whole distillation of an EDM network: its parts, its resuming to the bit, its files, and its command."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from comfyui_apprentice.cli import app
from comfyui_apprentice.networks.edm import build_edm
from comfyui_apprentice.training import distill, edm_task
from comfyui_apprentice.training.distill import Settings, Task, distil, left_out
from comfyui_apprentice.training.edm_task import EDM_PRESETS, RealPictures, build_network, fit_settings, sample
from comfyui_apprentice.training.loop import Schedule, Watch
from comfyui_apprentice.training.run_folder import RunFolder
from comfyui_apprentice.training.variety import ANCHOR, CONSISTENCY, OFF
from comfyui_apprentice.weights.checkpoints import read_metadata, sha256
from comfyui_apprentice.weights.edm_pickle import read_edm
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

DATA = Path(__file__).parents[1] / "data"
TEACHER = DATA / "sid" / "tiny_edm_snapshot.pkl"  # 8x8 RGB, ten classes, augmentation labels, dropout 0.13
TINY = read_edm(TEACHER)
SHORT = Settings(pictures=24, batch=4, fake_rate=1e-3, generator_rate=1e-3, augment=0.5, steps=2, ema_half_life=10, decay=0.5)

# The undistilled generator has 3.40; the student after 150 iterations 0.50, 0.50 and 0.46 with three seeds: a seventh of it.
DIGITS_ITERATIONS, DIGITS_FACTOR = 40, 3.0


def config(**changes: Any) -> dict[str, Any]:
    return {**TINY[0], **changes}


def random_teacher(**changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A network that was never trained, whose last layers are not as good as zero, as they are when training begins."""
    torch.manual_seed(1)
    network = build_edm(config(**changes))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return config(**changes), network.state_dict()


def stop_after(steps: int) -> Callable[[], bool]:
    """An ``interrupted`` for runs whose batch is one part: it is asked before every iteration, and after it."""
    asked = iter(range(10_000))
    return lambda: next(asked) == 2 * steps - 1


def saved(folder: RunFolder) -> dict[str, Any]:
    return torch.load(folder.checkpoint, weights_only=True)


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Equal to the bit, tensors and containers alike."""
    if isinstance(first, Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_same(value, second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, value in enumerate(first):
            assert_same(value, second[number], f"{where}.{number}")
    else:
        assert first == second, where


# -------------------------------------------------------------------------------------------------- the loop


def test_a_resumed_distillation_is_one_never_stopped_to_the_bit(tmp_path: Path) -> None:
    """Both networks, both optimisers, the average and the sums of the log; with dropout, augmentation and two steps."""
    whole = distil(edm_task.edm_task(TINY), SHORT, RunFolder(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        distil(edm_task.edm_task(TINY), SHORT, RunFolder(tmp_path / "part"), watch=Watch(interrupted=stop_after(3)))
    assert saved(RunFolder(tmp_path / "part"))["step"] == 3
    torch.manual_seed(99)
    resumed = distil(edm_task.edm_task(TINY), SHORT, RunFolder(tmp_path / "part"))
    assert_same(whole.shadow, resumed.shadow)
    assert_same(saved(RunFolder(tmp_path / "whole")), saved(RunFolder(tmp_path / "part")))
    assert any(not torch.equal(value.float(), TINY[1][key].float()) for key, value in whole.shadow.items())


@pytest.mark.parametrize("kind", [ANCHOR, CONSISTENCY])
def test_a_run_that_keeps_its_variety_resumes_to_the_bit_and_its_parts_change_nothing(kind: str, tmp_path: Path) -> None:
    settings = replace(SHORT, pictures=12, augment=0.0, variety=kind)
    whole = distil(edm_task.edm_task(TINY, dropout=0.0), settings, RunFolder(tmp_path / "whole"))
    stopped = Watch(interrupted=stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        distil(edm_task.edm_task(TINY, dropout=0.0), settings, RunFolder(tmp_path / "part"), watch=stopped)
    assert_same(whole.shadow, distil(edm_task.edm_task(TINY, dropout=0.0), settings, RunFolder(tmp_path / "part")).shadow)
    assert_same(saved(RunFolder(tmp_path / "whole")), saved(RunFolder(tmp_path / "part")))
    parts = distil(edm_task.edm_task(TINY, dropout=0.0), replace(settings, part=2), RunFolder(tmp_path / "parts"))
    off = distil(edm_task.edm_task(TINY, dropout=0.0), replace(settings, variety=OFF), RunFolder(tmp_path / "off"))
    assert _apart(whole.shadow, parts.shadow) < 0.1 * _apart(whole.shadow, off.shadow)


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[key] - b[key]).square().sum()) for key in a if not key.endswith("qkv.bias")) ** 0.5


def test_a_run_stopped_while_it_counts_its_parts_has_changed_nothing_of_that_iteration(tmp_path: Path) -> None:
    settings = replace(SHORT, part=1)
    asked = iter(range(10_000))
    with pytest.raises(KeyboardInterrupt):
        distil(edm_task.edm_task(TINY), settings, RunFolder(tmp_path / "a"), watch=Watch(interrupted=lambda: next(asked) == 7))
    assert saved(RunFolder(tmp_path / "a"))["step"] == 1  # four parts and the end of the first iteration, two parts of the second
    resumed = distil(edm_task.edm_task(TINY), settings, RunFolder(tmp_path / "a"))
    assert_same(distil(edm_task.edm_task(TINY), settings, RunFolder(tmp_path / "b")).shadow, resumed.shadow)


def test_parts_change_memory_and_not_the_result(tmp_path: Path) -> None:
    """To rounding; but for key biases, whose true gradient is zero, so that Adam makes full steps of rounding noise."""
    found = []
    for part in (0, 3):
        settings = replace(SHORT, pictures=8, part=part, steps=1)
        found.append(distil(edm_task.edm_task(TINY, dropout=0.0), settings, RunFolder(tmp_path / str(part))).shadow)
    for key, value in found[0].items():
        if not key.endswith("qkv.bias"):
            assert torch.allclose(value, found[1][key], atol=3e-5), key


def test_pictures_with_nan_are_counted_in_the_log_and_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    task = edm_task.edm_task(TINY)
    good = task.players.generator

    def bad(x: Tensor, sigma: Tensor, labels: Any) -> Tensor:
        images = good(x, sigma, labels)
        return torch.where((torch.arange(len(x)) == 1).view(-1, 1, 1, 1) & (len(x) == 4), images * float("nan"), images)

    task.players.generator = bad
    watch = Watch(report_every=2, say=told.append)
    shadow = distil(task, replace(SHORT, pictures=8), RunFolder(tmp_path / "a"), watch=watch).shadow
    losses = RunFolder(tmp_path / "a").losses()
    assert [entry["dropped"] for entry in losses] == [2.0]  # one in each half of an iteration
    assert all(value.isfinite().all() for value in shadow.values())
    assert sum("left out" in sentence for sentence in told) == 1
    assert left_out(losses) == "4 pictures had no finite loss (NaN) and were left out. " and left_out([]) == ""


def test_a_half_without_any_finite_picture_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    task = edm_task.edm_task(TINY)
    teacher = task.players.teacher
    task.players.teacher = lambda x, sigma, labels: teacher(x, sigma, labels) * math.nan
    with pytest.raises(FloatingPointError, match="compute in another precision, bf16 or fp32, since it is so from the start"):
        distil(task, SHORT, RunFolder(tmp_path / "a"))


def test_dropout_is_on_in_a_network_where_it_learns_and_only_there(tmp_path: Path) -> None:
    """As in the official loop: the other two networks of each half only draw or judge."""
    seen: list[tuple[str, bool]] = []
    task = edm_task.edm_task(TINY)
    for name in ("teacher", "fake", "generator"):
        call = getattr(task.players, name)

        def told(x: Tensor, sigma: Tensor, labels: Any, name: str = name, call: Any = call) -> Tensor:
            drawn = call(x, sigma, labels)
            network = {"fake": task.fake, "generator": task.generator}.get(name)
            seen.append((name, network is not None and all(module.training for module in network.modules())))
            return drawn

        setattr(task.players, name, told)
    distil(task, replace(SHORT, pictures=8, steps=1), RunFolder(tmp_path / "a"))
    once = [("generator", False), ("fake", True), ("generator", True), ("fake", False), ("teacher", False)]
    assert seen == once * 2


def test_dropout_of_one_s_own_replaces_the_configuration_s() -> None:
    with_its_own, without = (build_network(TINY, dropout=d).train() for d in (None, 0.0))
    x, sigma = torch.zeros(1, 3, 8, 8), torch.ones(1)
    assert not torch.equal(with_its_own(x, sigma), with_its_own(x, sigma))
    assert torch.equal(without(x, sigma), without(x, sigma))


# --------------------------------------------------------------------------------------------------- the task


def test_classes_are_one_hot_even_and_a_function_of_the_seed() -> None:
    labels, empty = edm_task.edm_task(TINY).labels(torch.Generator().manual_seed(3), 5000)
    assert empty is None and labels.shape == (5000, 10) and labels.sum(1).eq(1).all()
    assert labels.mean(0).sub(0.1).abs().max() < 0.02
    assert torch.equal(labels, edm_task.draw_classes(torch.Generator().manual_seed(3), 5000, 10))
    assert edm_task.draw_classes(torch.Generator(), 5, 0) is None


def test_the_three_networks_begin_alike_and_share_nothing(tmp_path: Path) -> None:
    task = edm_task.edm_task(TINY)
    for key, value in task.generator.state_dict().items():
        other = task.fake.state_dict()[key]
        assert torch.equal(value, other) and value.data_ptr() != other.data_ptr()
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.ones(2, 1, 1, 1), torch.eye(10)[:2]
    before = task.players.teacher(x, sigma, labels)
    distil(task, replace(SHORT, pictures=8), RunFolder(tmp_path / "a"))
    assert torch.equal(before, task.players.teacher(x, sigma, labels))


def test_labels_are_never_dropped_whatever_the_configuration_says() -> None:
    assert edm_task.edm_task(random_teacher(label_dropout=0.5)).generator.model.label_dropout == 0


def test_only_networks_that_can_be_told_of_augmentation_get_it() -> None:
    settings = Settings(augment=0.12)
    assert fit_settings(settings, config()).augment == 0.12
    assert fit_settings(settings, config(augment_dim=0)).augment == 0
    assert fit_settings(settings, {k: v for k, v in config().items() if k != "augment_dim"}).augment == 0
    assert fit_settings(settings, config(), "fp16").eps == 1e-6


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_bfloat16_computes_almost_the_same_and_keeps_weights_and_pictures_in_float32(model_type: str, tmp_path: Path) -> None:
    changes = {"model_type": model_type, "model_channels": 64 if model_type == "DhariwalUNet" else 8}
    kept = ("img_resolution", "img_channels", "label_dim", "augment_dim", "channel_mult", "num_blocks", "attn_resolutions")
    plain = {key: TINY[0][key] for key in kept} | changes
    torch.manual_seed(0)
    network = build_edm(plain)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    teacher = plain, network.state_dict()
    x, labels = torch.randn(2, 3, 8, 8), torch.eye(10)[:2]
    full, low = (edm_task.edm_task(teacher, precision=p, dropout=0.0) for p in ("fp32", "bf16"))
    exact, near = (task.draw(x, labels) for task in (full, low))
    assert near.dtype == torch.float32
    assert 0 < (exact - near).abs().max() < 0.05 * exact.abs().max()
    shadow = distil(low, replace(SHORT, pictures=8, steps=1), RunFolder(tmp_path / "a")).shadow
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in shadow.values())


def test_few_steps_start_at_the_same_level_and_fall_evenly() -> None:
    task = edm_task.edm_task(TINY)
    assert task.sigmas(1) == (2.5,)
    assert task.sigmas(4) == (2.5, 1.875, 1.25, 0.625)


def test_other_networks_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"a\.pkl holds a U-Net of Stable Diffusion"):
        build_network(({"_class_name": "UNet2DConditionModel"}, {}), "a.pkl")
    with pytest.raises(ValueError, match="only EDMPrecond can be built"):
        build_network((config(_class_name="VPPrecond"), {}))
    with pytest.raises(ValueError, match="don't fit the network"):
        build_network((config(model_channels=16), TINY[1]))
    with pytest.raises(ValueError, match="fp16 needs an NVIDIA GPU"):
        edm_task.edm_task(TINY, precision="fp16")


# ---------------------------------------------------------------------------------------------- real pictures


def pictures(folder: Path, mode: str = "RGB") -> Path:
    (folder / "below").mkdir(parents=True)
    Image.new(mode, (8, 8), "white").save(folder / "a.png")
    Image.new(mode, (20, 12), "black").save(folder / "below" / "b.JPG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_real_pictures_are_read_at_the_network_s_size_and_range(tmp_path: Path) -> None:
    for channels, mode in ((3, "RGB"), (1, "L")):
        real = RealPictures(pictures(tmp_path / mode, mode), channels, 8)
        assert len(real.files) == 2
        drawn = real(torch.Generator().manual_seed(0), 20)
        assert drawn.shape == (20, channels, 8, 8)
        assert {round(value, 3) for value in drawn.unique().tolist()} == {-1.0, 1.0}


def test_the_adversarial_loss_trains_with_real_pictures(tmp_path: Path) -> None:
    task = edm_task.edm_task(random_teacher(label_dim=0), real=pictures(tmp_path / "real"))
    settings = replace(SHORT, pictures=8, steps=1, augment=0.0)
    shadow = distil(task, replace(settings, adversarial=0.01), RunFolder(tmp_path / "a")).shadow
    plain = distil(edm_task.edm_task(random_teacher(label_dim=0)), settings, RunFolder(tmp_path / "b")).shadow
    assert all(value.isfinite().all() for value in shadow.values())
    assert any((value - plain[key]).abs().max() > 1e-4 for key, value in shadow.items())


def test_real_pictures_that_cannot_serve_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="draws by class"):
        RealPictures(pictures(tmp_path / "a"), 3, 8, classes=10)
    with pytest.raises(ValueError, match="no folder"):
        RealPictures(tmp_path / "nowhere", 3, 8)
    (tmp_path / "a" / "a.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"a\.png is missing, no picture"):
        RealPictures(tmp_path / "a", 3, 8)(torch.Generator().manual_seed(0), 20)


# ------------------------------------------------------------------------------------------------ the command


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["distill", "sid", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


OPTIONS = ("--pictures", 24, "--batch", 4, "--lr", 1e-3, "--glr", 1e-3, "--device", "cpu", "--samples-every", 0)


def test_the_student_s_file_holds_its_network_and_its_card(tmp_path: Path) -> None:
    out = tmp_path / "student.safetensors"
    said = run(TEACHER, "--out", out, *OPTIONS, "--seed", 3, "--alpha", 1.0)
    assert "student.safetensors: a student of tiny_edm_snapshot.pkl after 24 pictures" in said
    made, weights = read_edm(out)
    assert made == TINY[0]
    build_network((made, weights), out.name)  # as strictly as Load EDM Network does
    expected = distil(
        edm_task.edm_task(TINY),
        replace(SHORT, augment=0.12, steps=1, seed=3, alpha=1.0, decay=0.0, ema_half_life=500_000), RunFolder(tmp_path / "a"),
    ).shadow  # fmt: skip
    assert_same(expected, weights)
    card = read_metadata(out)
    assert card["teacher"] == "tiny_edm_snapshot.pkl" and card["teacher_fingerprint"] == sha256(TEACHER)
    assert (card["kind"], card["preset"], card["images_seen"], card["steps"]) == ("edm", "sid-edm", "24", "1")
    assert json.loads(card["settings"])["alpha"] == 1.0
    assert str(tmp_path) not in json.dumps(card)
    assert not list(tmp_path.rglob("*.part"))


def test_the_command_begins_at_a_student_and_refuses_one_of_another_kind(tmp_path: Path) -> None:
    first, out = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    run(TEACHER, "--out", first, *OPTIONS)
    run(TEACHER, "--out", out, *OPTIONS, "--student", first)
    settings = replace(SHORT, augment=0.12, steps=1, decay=0.0, ema_half_life=500_000, alpha=1.2)
    task = edm_task.edm_task(TINY, start=read_edm(first))
    assert_same(task.generator.state_dict(), read_edm(first)[1])
    assert_same(task.fake.state_dict(), edm_task.edm_task(TINY).fake.state_dict())
    assert_same(distil(task, settings, RunFolder(tmp_path / "a")).shadow, read_edm(out)[1])
    with pytest.raises(ValueError, match="The student has other layers than the teacher"):
        edm_task.edm_task(TINY, start=random_teacher(model_channels=16))
    said = run(TEACHER, "--out", out, *OPTIONS, code=2)  # another run
    assert "take another name" in said or "begun with another" in said


def test_ctrl_c_saves_says_how_to_go_on_and_the_same_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(TEACHER, "--out", tmp_path / "whole.safetensors", *OPTIONS)
    calls, iterate = [], distill.iterate

    def pressed(*arguments: Any, **named: Any) -> Any:
        result = iterate(*arguments, **named)
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(distill, "iterate", pressed)
    out = tmp_path / "part.safetensors"
    said = run(TEACHER, "--out", out, *OPTIONS, code=130)
    assert "Stopped: 8 of 24 pictures are saved" in said and "The same command goes on" in said
    assert signal.getsignal(signal.SIGINT) is before
    assert not out.exists()
    said = run(TEACHER, "--out", out, *OPTIONS)
    assert len(calls) == 6
    assert_same(read_edm(tmp_path / "whole.safetensors")[1], read_edm(out)[1])
    logs = [[(e["step"], e["fake"], e["generator"]) for e in RunFolder(tmp_path / f"{name}.run").losses()]
            for name in ("whole", "part")]  # fmt: skip
    assert logs[0] == logs[1] and len(logs[0]) == 1


def test_a_finished_run_says_so_and_is_trained_on_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    run(TEACHER, "--out", out, *OPTIONS)
    before = out.read_bytes()
    assert "is finished after 24 pictures" in run(TEACHER, "--out", out, *OPTIONS)
    more = ("--pictures", 32, *OPTIONS[2:])
    said = run(TEACHER, "--out", out, *more, "--alpha", 1.0, code=2)
    assert "this run did not make it: take another name, such as 'a 2', or add --force to overwrite it" in said
    assert "seen 24 pictures already" in run(TEACHER, "--out", out, "--pictures", 8, *OPTIONS[2:], code=2)
    assert out.read_bytes() == before
    run(TEACHER, "--out", out, *more)
    whole = tmp_path / "b.safetensors"
    run(TEACHER, "--out", whole, *more)
    assert_same(read_edm(out)[1], read_edm(whole)[1])


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    out, work = tmp_path / "a.safetensors", tmp_path / "work"
    run(TEACHER, "--out", out, *OPTIONS, "--work", work)
    before = (work / "checkpoint.pt").read_bytes()
    for changed, words in ((("--alpha", 1.0), "alpha was 1.2 and is 1.0"), (("--dropout", 0), "dropout was None and is 0.0")):
        said = run(TEACHER, "--out", out, *OPTIONS, "--work", work, *changed, "--pictures", 48, "--force", code=2)
        assert "The run 'work' was begun with another" in said and words in said
    assert (work / "checkpoint.pt").read_bytes() == before
    (work / "checkpoint.pt").write_bytes(b"torn")
    assert "is damaged" in run(TEACHER, "--out", out, *OPTIONS, "--work", work, code=2)


def test_samples_are_of_the_same_noise_and_show_the_average(tmp_path: Path) -> None:
    run(TEACHER, "--out", tmp_path / "a.safetensors", *OPTIONS[:-1], 3)
    grids = sorted((tmp_path / "a.run").glob("samples-*.png"))
    assert [int(grid.stem.split("-")[1]) for grid in grids] == [0, 12, 24]
    first, last = (
        torch.frombuffer(bytearray(Image.open(grids[i]).tobytes()), dtype=torch.uint8).view(64, 64, 3) for i in (0, -1)
    )
    task = edm_task.edm_task(TINY)
    z = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))[10]
    for weights, grid in ((TINY[1], first), (read_edm(tmp_path / "a.safetensors")[1], last)):
        drawn = sample(task, weights, z[None], torch.eye(10)[:1])[0].movedim(0, -1)  # place 10: class 0, second row
        assert torch.equal(((drawn + 1) * 127.5).round().clamp(0, 255).byte(), grid[8:16, 16:24])
    assert not torch.equal(first, last)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "a.pt"), "must end in .safetensors"),
        (("--out", "a.safetensors", "--preset", "sd15"), "no preset 'sd15' for EDM networks"),
        (("--out", "a.safetensors", "--precision", "fp16"), "fp16 needs an NVIDIA GPU"),
        (("--out", "a.safetensors", "--adversarial", 0.1), "--real and --adversarial go together"),
        (("--out", "a.safetensors", "--real", "."), "draws by class"),
        (("--out", "a.safetensors", "--lr", 0), "fake_rate must be more than 0"),
    ],
)
def test_options_that_do_not_suit_are_refused_in_a_sentence(
    arguments: tuple[object, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in run(TEACHER, "--device", "cpu", *arguments, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_is_missing_or_no_teacher_is_refused(tmp_path: Path) -> None:
    assert "There is no file" in run(tmp_path / "a.pkl", "--out", tmp_path / "b.safetensors", code=2)
    (tmp_path / "a.pkl").write_bytes(b"<html>")
    assert "is a web page" in run(tmp_path / "a.pkl", "--out", tmp_path / "b.safetensors", code=2)
    plain = DATA / "digits_teacher.safetensors"
    said = run(plain, "--out", tmp_path / "b.safetensors", "--augment", 0.1, "--device", "cpu", code=2)
    assert "was trained without EDM's augmentation" in said


def test_a_loss_that_is_no_longer_finite_ends_the_run_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "iterate", lambda *_, **__: distill_iteration(float("inf")))
    said = run(TEACHER, "--out", tmp_path / "a.safetensors", *OPTIONS, code=1)
    assert "lower the learning rate" in said and not (tmp_path / "a.safetensors").exists()


def distill_iteration(loss: float) -> Any:
    from comfyui_apprentice.training.sid_iteration import Iteration

    return Iteration(loss, 0.0, 0, 0)


def test_help_tells_every_preset_s_published_distance_as_the_paper_s() -> None:
    command: Any = typer.main.get_command(app)
    text = next(p.help for p in command.commands["distill"].commands["sid"].params if p.name == "preset")
    assert "The paper's FIDs, not measured here" in text
    for name, preset in EDM_PRESETS.items():
        assert f"{name} {preset.fid:.3f}" in text
    assert len(EDM_PRESETS) == 5


def test_presets_set_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def look(task: Task, settings: Settings, *_: Any, **__: Any) -> Any:
        seen.append(settings)
        raise ValueError("seen enough")

    monkeypatch.setattr(distill, "distil", look)
    run(TEACHER, "--out", tmp_path / "a.safetensors", "--preset", "ffhq64", "--batch", 8, "--device", "cpu", code=2)
    published = EDM_PRESETS["ffhq64"].settings
    assert seen == [replace(published, batch=8, eps=1e-8)]  # in float32, which Adam's usual eps suits
    assert RunFolder(tmp_path / "a.run").pictures_seen(8) == 0


# ------------------------------------------------------------------------------------------------- the digits


@pytest.mark.parametrize("classes", [True, False])
def test_the_digits_recipe_makes_a_teacher_that_is_read_again(classes: bool, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from comfyui_apprentice.benchmarks import digits

    made = digits.train_teacher(RunFolder(tmp_path / "a"), classes, schedule=Schedule(pictures=32, batch=16, learning_rate=1e-3))
    digits.save_teacher(made, tmp_path / "a.safetensors")
    network = build_network(read_edm(tmp_path / "a.safetensors"))
    assert network.label_dim == (10 if classes else 0)
    assert digits.one_step(network, 4).shape == digits.many_steps(network, 4, steps=2).shape == (4, 1, 8, 8)


def test_the_pixel_distance_is_zero_for_the_digits_themselves_and_a_shift_s_square_beyond() -> None:
    pytest.importorskip("sklearn")
    from comfyui_apprentice.benchmarks import digits

    pictures, labels = digits.digits()
    assert pictures.shape == (1797, 1, 8, 8) and (pictures.min(), pictures.max()) == (-1, 1)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.pixel_distance(pictures) == pytest.approx(0, abs=1e-6)
    inner = pictures * 0.5  # nothing is clamped then
    mean = pictures.double().mean(0)
    spread = pictures.double().flatten(1).var(0).sum()
    assert digits.pixel_distance(inner) == pytest.approx(((mean / 2) ** 2).sum().item() + spread.item() / 4, rel=1e-6)
    assert 0.2 < digits.floor() < 0.35


def test_a_digits_teacher_distilled_in_seconds_draws_in_one_step_at_a_fraction_of_the_distance(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from comfyui_apprentice.benchmarks import digits

    teacher = read_edm(digits.TEACHER_FILE)
    settings = digits.settings_of(DIGITS_ITERATIONS, batch=64, alpha=1.0)
    found = digits.measure(teacher, digits.distil_digits(teacher, RunFolder(tmp_path / "a"), settings), drawn=2000)
    assert found.undistilled == pytest.approx(3.40, abs=0.05)
    assert found.factor > DIGITS_FACTOR
