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

    student = training.distil(tiny.model("flux"), "flux", "a", **FULL).result[0]
    assert marks(student.model.diffusion_model) == []
    tuned, _run, file, _report = training.tune(student, "flux", "b").result
    assert training.lora_wrong(student, tuned, "flux", folder / "loras" / file) == ""
    again, _curve, _samples, file = training.distil(tuned, "flux", "c").result
    assert training.lora_wrong(tuned, again, "flux", folder / "loras" / file) == ""
    whole, _curve, _samples, file = training.distil(again, "flux", "d", **FULL).result
    fresh = tiny.model("flux", seed=5)
    fresh.model.load_model_weights(comfy.utils.load_torch_file(str(folder / "diffusion_models" / file)), "")
    assert torch.equal(training.drawn(whole, "flux"), training.drawn(fresh, "flux"))
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
    from comfyui_apprentice.nodes.finetune import one_step, student_level
    from comfyui_apprentice.training.finetune_options import FinetuneOptions

    level = student_level(model, FinetuneOptions(scheduler="normal", preset=preset))
    return level, one_step(level.model, level.sigma).b.tolist()


def test_direct_tunes_the_bundled_sid_student_at_its_own_level() -> None:
    from comfyui_apprentice.bridge import tiny_world as loader
    from comfyui_apprentice.nodes.edm import ApprenticeLoadEDM

    student = ApprenticeLoadEDM.execute("coloured digits SiD student.safetensors").result[0]
    assert direct(student)[1] == [2.5, 0.0]
    assert [direct(loader.load_student(name))[1] for name in loader.students()] == [[80.0, 0.0]] * 2
    with pytest.raises(ValueError, match="'auto' can't tell what the student was made as"):
        direct(ApprenticeLoadEDM.execute("coloured digits teacher.safetensors").result[0])


def test_the_preset_decides_the_level_where_there_is_no_card() -> None:
    from comfyui_apprentice.samplers.schedules import timestep_sigma

    model = tiny.model("sdxl")
    sampling = model.get_model_object("model_sampling")
    with pytest.raises(ValueError, match="'auto' can't tell what the student was made as"):
        direct(model)
    cases = ("sid-lsg", 625, False), ("dmd2-1step/t399", 399, True), ("sdxl-turbo/trailing", 999, False)
    for preset, timestep, scaled in cases:
        level, levels = direct(model, preset)
        sigma = timestep_sigma(timestep, sampling)
        assert levels == [pytest.approx(sigma), 0.0]
        assert level.scale == pytest.approx((1 + sigma**2) ** 0.5 / sigma if scaled else 1.0)
    assert direct(model, "custom")[1] == [pytest.approx(float(sampling.sigma_max)), 0.0]
    assert direct(model, "sdxl-lightning-1step/x0")[0].model is not model, "its network's output is the picture"


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_direct_tunes_what_sid_distill_made_at_the_level_it_was_made_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the tuned student still draws with its preset, and is tuned again at the same level."""
    import json

    from comfyui_apprentice.bridge.info import CARD
    from comfyui_apprentice.training import control_losses

    seen: list[float] = []
    real = control_losses.direct_step
    spy = lambda problem, *a: seen.append(float(problem.process.b[0])) or real(problem, *a)  # noqa: E731
    monkeypatch.setattr(control_losses, "direct_step", spy)
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


def test_a_file_of_that_name_in_another_folder_is_neither_hidden_nor_first(tmp_path: Path, folder: Path) -> None:
    import folder_paths

    (tmp_path / "a.safetensors").write_bytes(b"theirs")
    own, kinds = folder_paths.folder_names_and_paths["loras"]
    for listed in ([str(tmp_path), *own], [*own, str(tmp_path)]):
        folder_paths.folder_names_and_paths["loras"] = (listed, kinds)
        with pytest.raises(ValueError, match="such as 'a 2'"):
            training.distil(tiny.model("flux"), "flux", "a")


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
    from comfyui_apprentice.nodes import folders
    from comfyui_apprentice.nodes.runs import NodeRun

    for kind, what in ((folders.CRITICS, "critic"), (folders.TEACHERS, "teacher")):
        file = folders.made_file(kind, "zz theirs", what)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"theirs")
        try:
            with pytest.raises(ValueError, match=f"{kind}/zz theirs.safetensors is there already"):
                NodeRun("zz theirs", what, kind, {})
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
    (training.distil, {"generator_rate": 1e30}), (training.distil, {"fake_rate": 1e30}),
    (training.distil, {"generator_rate": 1e30, **FULL}),
    (training.tune, {"learning_rate": 1e30, "algorithm": "path_kl"}), (training.tune, {"learning_rate": 1e30, "updates": 1}),
])  # fmt: skip
def test_a_run_that_turns_nan_stops_and_writes_nothing(
    call: Any, changes: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyui_apprentice.nodes.guard.check_numbers", lambda *_: None)  # which lets no such number through
    with pytest.raises(FloatingPointError, match=r"lower the learning rates?[.,]"):
        call(tiny.model("flux"), "flux", "a", **changes)
    assert not list(folder.glob("*/a.safetensors"))
    kept = folder / "apprentice" / "training" / "a" / "checkpoint.pt"
    assert not kept.exists() or all(v.isfinite().all() for v in torch.load(kept, weights_only=True)["ema"].values())


# --------------------------------------------------------------------------------------------- one owner of memory (15)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules that somebody other than ComfyUI's memory management put on a device."""
    import sys

    found: list[str] = []
    real = torch.nn.Module.to

    def recording(module: torch.nn.Module, *given: Any, **named: Any) -> Any:
        asked = [v for v in (*given, *named.values()) if isinstance(v, str | torch.device)]
        caller = sys._getframe(1).f_code.co_filename
        if asked and not caller.endswith("model_patcher.py"):
            found.append(f"{type(module).__name__} by {Path(caller).name}")
        return real(module, *given, **named)

    monkeypatch.setattr(torch.nn.Module, "to", recording)
    return found


class Tall(training.Red):
    """An oracle whose network is no single layer, as a ViT's with its own parameters."""

    def __init__(self, name: str = "tall") -> None:
        super().__init__()
        self.name = name
        with torch.inference_mode(False):
            self.network = torch.nn.Sequential(self.network, torch.nn.Linear(1, 1))
            self.network.register_parameter("position", torch.nn.Parameter(torch.zeros(1)))


def owners() -> list[int]:
    """Of what ComfyUI has loaded, each weight as often as somebody owns it."""
    import comfy.model_management

    return [id(p) for loaded in comfy.model_management.current_loaded_models for p in loaded.model.model.parameters()]


def test_an_oracle_in_an_ensemble_keeps_its_own_patcher() -> None:
    import comfy.model_management
    from comfyui_apprentice.bridge.memory import on_device, patchers_of
    from comfyui_apprentice.oracles.ensemble import Ensemble, Member

    a, b, pixels = Tall("a"), Tall("b"), torch.rand(2, 4, 4, 3)
    inner = Ensemble([Member(a, 1.0, 0.0, 1.0, 0.0), Member(b, 1.0, 0.0, 1.0, 0.0)])
    both = Ensemble([Member(inner, 1.0, 0.0, 1.0, 0.0), Member(a, 1.0, 0.0, 1.0, 0.0)])
    comfy.model_management.unload_all_models()
    with torch.inference_mode():
        for oracle in (a, both, b, inner):
            with on_device(oracle.network):
                assert torch.isfinite(oracle.score(pixels, [""])).all()
    assert patchers_of(both.network) == patchers_of(inner.network) == [*patchers_of(a.network), *patchers_of(b.network)]
    assert len(owners()) == len(set(owners())) == 8


def test_critics_of_other_words_share_one_patcher() -> None:
    from comfyui_apprentice.bridge.memory import on_device, patchers_of
    from comfyui_apprentice.nodes.critics import ApprenticeLoadPromptKD

    with torch.inference_mode():
        critic = ApprenticeLoadPromptKD.execute("tiny world critic.safetensors", "auto").result[0]
        other = critic.with_classes(["a", "b"], critic.network.text_features[:2])
        assert patchers_of(critic.network) == patchers_of(other.network)
        with on_device(other.network):
            shown = other.probabilities(torch.rand(1, 64, 64, 3))
    assert shown.shape == (1, 2)


def test_a_network_is_whole_on_a_device_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has room for half of it. ComfyUI would leave the rest on the CPU, where plain torch layers are not cast."""
    import comfy.model_management as management
    from comfyui_apprentice.bridge.memory import on_device, patchers_of

    oracle, room = Tall(), [1e12]
    (patcher,) = patchers_of(oracle.network)
    patcher.load_device = torch.device("meta")
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    free = lambda dev=None, torch_free_too=False: (room[0], room[0]) if torch_free_too else room[0]  # noqa: E731
    monkeypatch.setattr(management, "get_free_memory", free)
    room[0] = patcher.model_size() / 2
    with pytest.raises(ValueError, match=r"must be on one device whole .* are free: choose fp16"), \
         on_device(oracle.network):  # fmt: skip
        pass
    assert {p.device.type for p in oracle.network.parameters()} == {"cpu"}
    room[0] = 1e12
    with on_device(oracle.network):
        assert {p.device.type for p in oracle.network.parameters()} == {"meta"}
    assert patcher.partially_unload(torch.device("cpu"), 1) == 0
    management.current_loaded_models.clear()


def test_a_copy_is_placed_whole_or_refused_though_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ComfyUI notes of a loaded model is not true of its copy."""
    import comfy.model_management as management
    from comfyui_apprentice.bridge import training as comfy_train

    model, room = tiny.model("flux"), [1.0]
    with torch.inference_mode(False):
        base = comfy_train.copy_network(model, torch.float32)
        free = lambda dev=None, torch_free_too=False: (room[0], room[0]) if torch_free_too else room[0]  # noqa: E731
        monkeypatch.setattr(management, "get_free_memory", free)
        monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("meta"))
        with pytest.raises(ValueError, match="must be on one device whole"):
            comfy_train.place([base])
        room[0] = 1e12
        comfy_train.place([base])
    assert {p.device.type for p in base.diffusion_model.parameters()} == {"meta"}
    assert {p.device.type for p in model.model.diffusion_model.parameters()} == {"cpu"}
    management.current_loaded_models.clear()


@pytest.mark.parametrize("call", [training.distil, lambda *a: training.distil(*a, **FULL), training.tune])
def test_training_moves_nothing_by_itself(call: Any, moved: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And while it learns each network has one owner, the oracle and the VAE too."""
    from comfyui_apprentice.training import loop

    seen: list[list[int]] = []
    real = loop.run
    for module in ("finetune", "distill"):
        monkeypatch.setattr(f"comfyui_apprentice.training.{module}.run", lambda *a, **k: seen.append(owners()) or real(*a, **k))
    call(tiny.model("flux"), "flux")
    assert moved == [] and len(seen) == 1 and len(seen[0]) == len(set(seen[0])) > 0


def test_while_it_tunes_comfyui_counts_network_vae_and_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management
    from comfyui_apprentice.nodes import finetune

    held: list[set[str]] = []
    real = finetune.finetune

    def watching(*given: Any, **named: Any) -> Any:
        loaded = comfy.model_management.current_loaded_models
        held.append({type(m).__name__ for entry in loaded for m in entry.model.model.modules()})
        return real(*given, **named)

    monkeypatch.setattr(finetune, "finetune", watching)
    training.tune(tiny.model("flux"), "flux")
    assert {"Flux", "Decoder", "Linear"} <= held[0] and comfy.model_management.current_loaded_models == []


def test_an_oracle_in_fp16_that_judged_can_still_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded, cast and moved by nodes, in inference mode."""
    from comfyui_apprentice.bridge.memory import on_device
    from comfyui_apprentice.nodes import oracles

    monkeypatch.setattr(oracles.folders, "model_file", lambda *_: Path("x"))
    monkeypatch.setattr(oracles, "_load", lambda *_: Tall())
    with torch.inference_mode():
        oracle = oracles.ApprenticeLoadOracle.execute("x", precision="fp16").result[0]
        with on_device(oracle.network):
            pass
    assert not any(p.is_inference() for p in oracle.network.parameters()) and oracle.dtype == torch.float16
    x = torch.rand(1, 4, 4, 3, dtype=torch.float16, requires_grad=True)
    oracle.reward(x, [""]).sum().backward()
    assert x.grad is not None


def test_what_was_made_in_inference_mode_can_teach_once_it_is_placed() -> None:
    from comfyui_apprentice.bridge import training as comfy_train

    with torch.inference_mode():
        network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    with comfy_train.training():
        comfy_train.place([network])
        x = torch.rand(3, 2, requires_grad=True)
        network(x).sum().backward()
    assert x.grad is not None


def test_the_copy_that_learns_is_made_weight_by_weight() -> None:
    """Straight to the CPU, so that no device holds the network twice while it is copied."""
    from comfyui_apprentice.bridge.copies import copied

    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    network.tied = network[0]
    made = copied(network, torch.bfloat16)
    assert made.tied is made[0] and made[0].weight.dtype == torch.bfloat16 and made[1].num_batches_tracked.dtype == torch.long
    assert not any(p.requires_grad for p in made.parameters())
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in made.parameters()}


def test_promptkd_leaves_the_clips_as_they_were(moved: list[str], folder: Path) -> None:
    """Computed in float16 on a device, and back: to the bit, and counted by ComfyUI meanwhile."""
    from types import SimpleNamespace

    from comfyui_apprentice.nodes.promptkd import _go
    from comfyui_apprentice.nodes.runs import NodeRun
    from comfyui_apprentice.training.promptkd_runs import Settings

    run, network, made = NodeRun("a", "critic", "loras", {}), torch.nn.Linear(3, 3), torch.nn.Linear(2, 2).half()
    before = network.weight.detach().clone()

    def work(*_: Any) -> Any:
        assert network.weight.dtype == torch.float16 and id(network.weight) in owners() and moved == []
        return SimpleNamespace(network=made)

    with torch.inference_mode(False):
        _go(run, [network], Settings(precision="fp16"), 8, work)
    assert torch.equal(network.weight, before) and made.weight.dtype == torch.float32 and owners() == []


# ------------------------------------------------------------------------------------------------- base pictures (18)


def test_base_pictures_come_in_batches_with_bar_estimate_and_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_apprentice.nodes import finetune

    shown: list[tuple[Any, ...]] = []
    said: list[str] = []
    sizes: list[int] = []
    monkeypatch.setattr(finetune.bridge, "preview", lambda model, latents: ("preview", tuple(latents.shape)))
    monkeypatch.setattr(finetune.bridge, "show_text", said.append)

    class Bar:
        def __init__(self, total: int) -> None: ...

        def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
            shown.append((value, total, preview))

    monkeypatch.setattr(finetune.bridge.comfy.utils, "ProgressBar", Bar)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: sizes.append(len(given[0])) if type(module).__name__ == "Flux" else None
    )
    with hook:
        training.tune(tiny.model("flux"), "flux", strength="target KL", value=0.01, at_once=1, updates=1, regressed_steps=1)
    total = 2 * 8 * (len({value for value, whole, _ in shown if whole > 1}) // 2)
    base = [entry for entry in shown if entry[1] == total]
    assert [entry[0] for entry in base] == list(range(8, total + 1, 8)) and all(e[2] == ("preview", (8, 16, 8, 8)) for e in base)
    assert shown[-1][:2] == (1, 1) and sizes.count(8) >= len(base)
    lines = [line for line in said if line.startswith("Pictures of the model as it is: ")]
    assert f"{total} of {total} evaluations" in lines[-1] and "left" in lines[-1]


def test_cancelling_while_base_pictures_are_drawn_takes_a_step(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from comfyui_apprentice.nodes import finetune

    calls: list[int] = []
    monkeypatch.setattr(finetune.bridge.NodeScreen, "bar", lambda self, *_, **__: calls.append(1))
    monkeypatch.setattr(finetune.bridge.NodeScreen, "interrupted", lambda self: len(calls) >= 2)
    with pytest.raises(finetune.bridge.Cancelled):
        training.tune(tiny.model("flux"), "flux", strength="target KL", value=0.01)
    assert len(calls) == 2 and not list(folder.glob("loras/*"))


def test_batches_fit_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from comfyui_apprentice.bridge import training as comfy_train

    base = SimpleNamespace(memory_required=lambda shape: shape[0] * 1000 * shape[-1])
    vae = SimpleNamespace(memory_used_decode=lambda shape, dtype: shape[0] * 10_000 * shape[-1])
    for free, expected in ((1e9, (32, 32)), (100_000, (8, 1)), (30_000, (2, 1)), (0, (1, 1))):
        monkeypatch.setattr(comfy_train.comfy.model_management, "get_free_memory", lambda *_, free=free: free)
        assert comfy_train.at_once(base, vae, (4, 8, 8), torch.device("cpu")) == expected


def test_the_default_number_of_base_pictures_is_a_matter_of_minutes() -> None:
    from comfyui_apprentice.nodes.finetune import ApprenticeRewardFinetune

    inputs = {i.id: i for i in ApprenticeRewardFinetune.define_schema().inputs}
    assert inputs["max_prompts"].default * inputs["base_draws"].default * inputs["steps"].default < 10_000


def test_the_preset_is_a_socket() -> None:
    """A widget would take the text that saved workflows hold behind the others: what the node said of its run."""
    from comfyui_apprentice.nodes.finetune import ApprenticeRewardFinetune

    *_, preset, quality, optimiser = ApprenticeRewardFinetune.define_schema().inputs
    assert preset.id == "preset" and preset.force_input
    # The widgets behind it take any text for "as set", and for "adam".
    assert optimiser.id == "optimiser" and ApprenticeRewardFinetune.validate_inputs(optimiser="Saved my model.") is True
    assert quality.id == "quality" and ApprenticeRewardFinetune.validate_inputs(quality="Saved my model.safetensors.") is True
    assert "preset is 'magic'" in ApprenticeRewardFinetune.validate_inputs(preset="magic")


# ---------------------------------------------------------------------------------------- only the rejected (17)


def test_keep_better_decodes_the_rejected_alone() -> None:
    """One of four: with a VAE the other three never go through it."""
    from types import SimpleNamespace

    from comfyui_apprentice.gate.decision import judge
    from comfyui_apprentice.gate.thresholds import Gate
    from comfyui_apprentice.nodes.judge import ApprenticeKeepBetter

    drafts, better = torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2)
    better[2, 0] = 1.0  # red
    oracle, seen = training.Red(), list[int]()
    gate, scores = Gate(0.5, (True, True, False, True)), [1.0, 1.0, 0.0, 1.0]
    verdict = judge(
        gate, scores, ["a"] * 4, oracle="red", fingerprint=oracle.fingerprint(), mode="absolute", value=0.5
    )
    assert verdict.rejected == [2]
    vae = SimpleNamespace(decode=lambda x: seen.append(len(x)) or x.movedim(1, -1))
    images = drafts.movedim(1, -1)
    latent, shown, _after = ApprenticeKeepBetter.execute(
        oracle, verdict, {"samples": drafts}, {"samples": better}, images, 0.0, None, vae
    ).result
    assert seen == [1] and torch.equal(latent["samples"], better) and torch.equal(shown, better.movedim(1, -1))
    whole = ApprenticeKeepBetter.execute(
        oracle, verdict, {"samples": drafts}, {"samples": better}, images, 0.0, better.movedim(1, -1)
    ).result
    assert torch.equal(whole[1], shown)
    ask = ApprenticeKeepBetter.check_lazy_status
    asked = [ask(verdict, None), ask(verdict, None, vae=None), ask(verdict, None, vae=vae)]
    assert asked == [["improved_images"], ["vae"], []]
