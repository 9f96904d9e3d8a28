"""What training nodes hand out and write: clean networks, the right level, their own files alone, memory that ComfyUI counts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.training.lora import Adapters, checkpoint_blocks, untrained

FULL = {"method": "full copy", "gradient_checkpointing": True}


@pytest.fixture(autouse=True)
def folder() -> Any:
    with training.folders() as folder:
        yield folder


def marks(network: torch.nn.Module) -> list[str]:
    """Modules of a network that are not as their class made them."""
    return [name for name, m in network.named_modules() if "forward" in m.__dict__ or m._forward_hooks]


# --------------------------------------------------------------------------------------------- clean networks (13)


def test_what_a_training_node_hands_out_is_every_other_s_input(folder: Path) -> None:
    """SiD Distill (full copy) -> Reward Finetune -> SiD Distill -> SiD Distill (full copy) -> sampler -> file."""
    import comfy.utils

    student = training.distil(tiny.model("sdxl"), "sdxl", "a", **FULL).result[0]
    assert marks(student.model.diffusion_model) == []
    tuned, _run, file, _report = training.tune(student, "sdxl", "b").result
    assert training.lora_wrong(student, tuned, "sdxl", folder / "loras" / file) == ""
    again, _curve, _samples, file = training.distil(tuned, "sdxl", "c").result
    assert training.lora_wrong(tuned, again, "sdxl", folder / "loras" / file) == ""
    whole, _curve, _samples, file = training.distil(again, "sdxl", "d", **FULL).result
    fresh = tiny.model("sdxl", seed=5)
    fresh.model.load_model_weights(comfy.utils.load_torch_file(str(folder / "diffusion_models" / file)), "")
    assert torch.equal(training.drawn(whole, "sdxl"), training.drawn(fresh, "sdxl"))
    for made in (tuned, again, whole):
        assert marks(made.model.diffusion_model) == []


def test_a_deep_copy_of_what_was_handed_out_runs_its_own_blocks() -> None:
    made = training.distil(tiny.model("flux"), "flux", **FULL).result[0]
    network = made.model.diffusion_model
    twin, ran = copy.deepcopy(network), []
    for name, module in (("old", network), ("new", twin)):
        module.double_blocks[0].register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    made.model.diffusion_model = twin
    training.drawn(made, "flux")
    assert set(ran) == {"new"}


def test_what_training_puts_on_a_network_comes_off_and_what_others_put_there_stays() -> None:
    network = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.ModuleList())
    block = torch.nn.TransformerEncoderLayer(4, 1, 4)
    network.append(block)
    theirs = block.forward = lambda x: x  # type: ignore[method-assign,assignment]
    foreign = block.linear1.register_forward_hook(lambda *_: None)
    adapters = Adapters(network, ("a",), 1)
    assert checkpoint_blocks(network, adapters) > 0 and len(marks(network)) > 2
    untrained(network)
    assert block.forward is theirs and list(block.linear1._forward_hooks) == [foreign.id]
    assert marks(network) == ["2", "2.linear1"]


# ------------------------------------------------------------------------------------------ a start without score (16)


def test_tilted_start_passes_over_drafts_without_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_apprentice.nodes import start

    model, latent, scores = tiny.model("sdxl"), tiny.empty("sdxl", 2), iter([[float("nan"), 1.0], [2.0, float("nan")]])
    monkeypatch.setattr(start, "score", lambda *_: next(scores))
    monkeypatch.setattr(start, "to_pixels", lambda vae, samples: samples)
    text = tiny.text("sdxl", 1)
    with torch.inference_mode():
        noise, report = start.ApprenticeTiltedStart.execute(
            [model], [text], [text], [latent], [None], [training.Red()], [""], [2], [1.0], [5], ["custom"], [1], [1.0],
            ["euler"], ["simple"],
        ).result  # fmt: skip
    stock = [start.batch_noise(latent, seed) for seed in (5, 6)]
    assert torch.equal(noise.noise, torch.stack([stock[1][0], stock[0][1]]))
    assert "2 of 4 drafts have no score (NaN) and were passed over." in report and "| nan |" not in report


def test_sid_distill_takes_its_own_least_half_life() -> None:
    training.distil(tiny.model("flux"), "flux", ema_half_life=0.0, pictures=2)


# ------------------------------------------------------------------------------------- the level of direct tuning (14)


def direct(model: Any, preset: str = "auto") -> Any:
    """The level at which Reward Finetune would tune, and its process."""
    from comfyui_apprentice.nodes.finetune import Recipe, one_step, student_level

    level = student_level(model, Recipe("a", 2, "fp32", True, (64, 64), 4, "normal"), preset)
    return level, one_step(level.model, level.sigma).b.tolist()


def test_direct_tunes_the_bundled_sid_student_at_its_own_level() -> None:
    from comfyui_apprentice.nodes.edm import ApprenticeLoadEDM
    from comfyui_apprentice.world import loader

    student = ApprenticeLoadEDM.execute("coloured digits SiD student.safetensors").result[0]
    assert direct(student)[1] == [2.5, 0.0]
    assert [direct(loader.load_student(name))[1] for name in loader.students()] == [[80.0, 0.0]] * 2
    with pytest.raises(ValueError, match="'auto' needs a model with a card"):
        direct(ApprenticeLoadEDM.execute("coloured digits teacher.safetensors").result[0])


def test_the_preset_decides_the_level_where_there_is_no_card() -> None:
    from comfyui_apprentice.samplers.schedules import timestep_sigma

    model = tiny.model("sdxl")
    sampling = model.get_model_object("model_sampling")
    with pytest.raises(ValueError, match="'auto' needs a model with a card"):
        direct(model)
    for preset, timestep, scaled in (("sid-lsg", 625, False), ("dmd2-1step/t399", 399, True), ("sdxl-turbo", 999, False)):
        level, levels = direct(model, preset)
        sigma = timestep_sigma(timestep, sampling)
        assert levels == [pytest.approx(sigma), 0.0]
        assert level.scale == pytest.approx((1 + sigma**2) ** 0.5 / sigma if scaled else 1.0)
    assert direct(model, "custom")[1] == [pytest.approx(float(sampling.sigma_max)), 0.0]
    assert direct(model, "sdxl-lightning-1step/x0")[0].model is not model, "its network's output is the picture"


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_direct_tunes_what_sid_distill_made_at_the_level_it_was_made_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the tuned student still draws with its preset, and is tuned again at the same level."""
    import json

    from comfyui_apprentice.samplers.comfy import CARD
    from comfyui_apprentice.training import control

    seen: list[float] = []
    real = control.direct_step
    monkeypatch.setattr(control, "direct_step", lambda problem, *a: seen.append(float(problem.process.b[0])) or real(problem, *a))
    student = training.distil(tiny.model(name), name).result[0]
    card = student.attachments[CARD]
    tuned = training.tune(student, name, "b", algorithm="direct", updates=1).result[0]
    training.tune(tuned, name, "c", algorithm="direct", updates=1)
    assert len(seen) == 2 and seen == [pytest.approx(json.loads(card["sigmas"])[0])] * 2
    assert {key: tuned.attachments[CARD][key] for key in ("preset", "sigmas")} == {key: card[key] for key in ("preset", "sigmas")}


# ------------------------------------------------------------------------------------------------ own files alone (A1)


@pytest.mark.parametrize(("call", "kind", "changes"), [
    (training.distil, "loras", {}), (training.distil, "diffusion_models", FULL), (training.tune, "loras", {}),
])  # fmt: skip
def test_a_file_that_this_run_did_not_make_is_refused_before_training(
    call: Any, kind: str, changes: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = tiny.model("flux"), folder / kind / "a.safetensors"
    call(model, "flux", "a", **changes)
    made = file.stat().st_mtime_ns
    call(model, "flux", "a", **changes)  # its own
    assert file.stat().st_mtime_ns > made
    theirs = folder / kind / "b.safetensors"
    theirs.write_bytes(b"the artist's own")
    monkeypatch.setattr(training.Encoder, "encode_from_tokens_scheduled", lambda *_: pytest.fail("it began"))
    with pytest.raises(ValueError, match=f"{kind}/b.safetensors is there already, .* such as 'b 2'"):
        call(model, "flux", "b", **changes)
    assert theirs.read_bytes() == b"the artist's own" and not (folder / "apprentice" / "training" / "b").exists()


def test_a_file_that_comes_while_a_run_learns_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_apprentice.nodes import distill

    theirs, real = folder / "loras" / "a.safetensors", distill.distil
    monkeypatch.setattr(distill, "distil", lambda *a, **k: theirs.write_bytes(b"late") and real(*a, **k))
    with pytest.raises(ValueError, match="such as 'a 2'"):
        training.distil(tiny.model("flux"), "flux", "a")
    assert theirs.read_bytes() == b"late"
    theirs.unlink()
    monkeypatch.setattr(distill, "distil", real)
    training.distil(tiny.model("flux"), "flux", "a")
    assert theirs.exists(), "nothing is lost: the run is kept"


def test_promptkd_s_nodes_overwrite_nothing(folder: Path) -> None:
    from comfyui_apprentice.nodes import folders, promptkd

    for kind, what in ((folders.CRITICS, "critic"), (folders.TEACHERS, "teacher")):
        file = folders.made_file(kind, "zz theirs", what)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"theirs")
        try:
            with pytest.raises(ValueError, match=f"{kind}/zz theirs.safetensors is there already"):
                promptkd._Run("zz theirs", what, "fp32").target(kind, {})
        finally:
            file.unlink()


def test_a_full_copy_goes_to_the_folder_that_the_tooltip_names(tmp_path: Path) -> None:
    """The first folder of that kind is models/unet in ComfyUI."""
    import folder_paths
    from comfyui_apprentice.nodes.folders import made_file

    before = folder_paths.folder_names_and_paths["diffusion_models"]
    try:
        own, theirs = Path(folder_paths.models_dir) / "diffusion_models", tmp_path / "diffusion_models"
        for listed, expected in (
            ([tmp_path / "unet", own], own), ([tmp_path / "unet", theirs, own], own), ([tmp_path / "unet", theirs], theirs),
            ([tmp_path / "unet"], tmp_path / "unet"),
        ):  # fmt: skip
            folder_paths.folder_names_and_paths["diffusion_models"] = ([str(path) for path in listed], before[1])
            file = made_file("diffusion_models", "a", "student")
            assert file.parent == expected and str(file.parent) in folder_paths.get_folder_paths("diffusion_models")
            assert file.suffix in folder_paths.folder_names_and_paths["diffusion_models"][1]
    finally:
        folder_paths.folder_names_and_paths["diffusion_models"] = before


# ------------------------------------------------------------------------------------------- runs that turn NaN (A3)


@pytest.mark.parametrize(("call", "changes"), [
    (training.distil, {"generator_rate": float("nan")}), (training.distil, {"fake_rate": float("nan")}),
    (training.distil, {"kappa4": float("nan")}), (training.distil, {"generator_rate": float("nan"), **FULL}),
    (training.tune, {"learning_rate": 1e30, "algorithm": "path_kl"}), (training.tune, {"learning_rate": 1e30, "updates": 1}),
    (training.tune, {"algorithm": "weighted_regression", "learning_rate": float("inf"), "updates": 1}),
])  # fmt: skip
def test_a_run_that_turns_nan_stops_and_writes_nothing(call: Any, changes: dict[str, Any], folder: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"lower the learning rates?\."):
        call(tiny.model("flux"), "flux", "a", **changes)
    assert not list(folder.glob("*/a.safetensors"))
    kept = folder / "apprentice" / "training" / "a" / "checkpoint.pt"
    assert not kept.exists() or all(v.isfinite().all() for v in torch.load(kept, weights_only=True)["ema"].values())
