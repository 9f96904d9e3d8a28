"""Training on one card: the account beside what is held, bases of 8 bits, one frozen base, encoders put away, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from comfyui_apprentice.benchmarks import family_training as training
from comfyui_apprentice.benchmarks import memory, memory_targets, true_sizes
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.bridge import training as bridge
from comfyui_apprentice.bridge.account import NetworkSketch
from comfyui_apprentice.bridge.copies import FP8, copy_network
from comfyui_apprentice.bridge.fingerprints import model_fingerprint
from comfyui_apprentice.bridge.sketches import conditioning_of, header, sketched
from comfyui_apprentice.cli import app
from comfyui_apprentice.nodes import distill, runs
from comfyui_apprentice.training.account import GIB, SID_FULL, SID_LORA, Job, account
from comfyui_apprentice.training.lora import Adapters, adaptable, switched
from comfyui_apprentice.training.recompute import apart
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

FAMILIES = [name for name in tiny.FAMILIES if name not in ("sdxl-v", "schnell", "wan22")]  # which are as their neighbours


@pytest.fixture(autouse=True)
def folder() -> Any:
    with training.folders() as folder:
        yield folder


def side_of(name: str, model: Any) -> int:
    from comfyui_apprentice.bridge.latents import pixels_per_latent

    return tiny.FAMILIES[name].side * pixels_per_latent(model.model.latent_format)


# ---------------------------------------------------------------------------------------------- account and measure


@pytest.mark.parametrize(("name", "way"), [("flux", "blocks again"), ("qwen", "pass by pass")])
def test_an_iteration_holds_what_is_accounted(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the allocator's own report; ``apprentice bench memory`` does it for more networks."""
    import comfy.ldm.modules.attention as attention

    for module in ("flux.math", "qwen_image.model"):
        found = __import__(f"comfy.ldm.{module}", fromlist=["x"])
        for at in ("optimized_attention", "optimized_attention_masked"):
            if hasattr(found, at):
                monkeypatch.setattr(found, at, attention.attention_pytorch)
    job = Job(width=160, height=160, part=1, rank=4, dtype="fp32", **memory.WAYS[way])
    texts = [tiny.text(name, 1, 12, seed) for seed in range(2)]
    accounted, measured = memory.iteration(memory.wider(name), job, texts, "it")
    assert 0.85 < accounted / measured < 1.15


@pytest.mark.parametrize("name", ["sdxl", "flux", "zimage", "qwen", "wan21"])
def test_every_family_can_be_accounted(name: str) -> None:
    model = tiny.model(name)
    side = side_of(name, model)
    sketch, job = NetworkSketch(model.model, tiny.text(name)), Job(width=side, height=side, rank=2)
    found = sketch.passed(job, 1, True)
    assert 0 < found.kept < found.peak
    weights = sum(p.numel() for p in model.model.diffusion_model.parameters())
    assert weights <= sketch.weights(job) / 2 < 1.2 * weights + 200_000  # buffers count
    assert len(sketch.learned(job)) == 2 * len(adaptable(model.model.diffusion_model))


@pytest.mark.parametrize("name", ["SDXL", "Z-Image", "Flux dev", "Qwen-Image"])
def test_true_sizes_are_the_published_ones(name: str) -> None:
    base = true_sizes.base_of(name)
    count = sum(parameter.numel() for parameter in base.diffusion_model.parameters())
    assert all(parameter.is_meta for parameter in base.diffusion_model.parameters())
    assert count / 1e9 == pytest.approx(true_sizes.NETWORKS[name].parameters, rel=0.005)


# ----------------------------------------------------------------------------------------------------------- 8 bits


def in_8_bits(name: str) -> Any:
    """A MODEL as ComfyUI loads one with the weight_dtype fp8_e4m3fn."""
    model = tiny.model(name)
    for module in model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module, "comfy_cast_weights"):
            module.weight = torch.nn.Parameter(module.weight.detach().to(FP8[0]), requires_grad=False)
            module.comfy_cast_weights = True
    return model


def gradients(base: Any, name: str) -> list[Tensor]:
    """Of a loss with respect to the latent and to a LoRA."""
    shape = tuple(tiny.empty(name)["samples"].shape[1:])
    adapters = Adapters(base.diffusion_model, ("one",), 2)
    for up in adapters.of["one"].up:
        torch.nn.init.normal_(up, std=0.1, generator=torch.Generator().manual_seed(1))
    denoise = switched(
        bridge.denoiser(base, torch.float32, bridge.Conditions(base, [tiny.text(name)], shape)), adapters, "one"
    )
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (denoise(x, torch.full((2, *[1] * len(shape)), 0.7), torch.zeros(2, dtype=torch.long)) ** 2).sum().backward()
    return [x.grad, *(p.grad for p in adapters.of["one"].parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_of_8_bits_stays_so_and_has_the_gradients_of_the_one_that_is_cast(name: str) -> None:
    model = in_8_bits(name)
    with bridge.training():
        kept, cast = copy_network(model, torch.float32, frozen=True), copy_network(model, torch.float32)
        small = [p for p in kept.diffusion_model.parameters() if p.dtype in FP8]
        assert small and not any(p.dtype in FP8 for p in cast.diffusion_model.parameters())
        bytes_kept, bytes_cast = (
            sum(p.numel() * p.element_size() for p in base.diffusion_model.parameters()) for base in (kept, cast)
        )
        assert bytes_kept == bytes_cast - 3 * sum(p.numel() for p in small)
        pairs = list(zip(gradients(kept, name), gradients(cast, name), strict=True))
    assert len(pairs) > 5 and all(torch.equal(a, b) for a, b in pairs)


def test_a_layer_of_8_bits_keeps_no_cast_weight_for_the_way_back() -> None:
    model = in_8_bits("flux")
    side = side_of("flux", model)
    sketch = NetworkSketch(model.model, tiny.text("flux"))
    one, plain = (Job(width=side, height=side, rank=2, dtype="fp32", checkpointing=False, fp8=fp8) for fp8 in (True, False))
    assert sketch.passed(one, 1, False).kept == NetworkSketch(tiny.model("flux").model, tiny.text("flux")).passed(
        plain, 1, False
    ).kept  # fmt: skip


def test_sid_of_a_base_of_8_bits_makes_a_lora_that_the_stock_loader_takes(folder: Path) -> None:
    model = in_8_bits("qwen")
    made, _curve, _samples, file = training.distil(model, "qwen").result
    assert training.lora_wrong(model, made, "qwen", folder / "loras" / file) == ""


# ---------------------------------------------------------------------------------------------- one base, put away


@pytest.mark.parametrize("name", FAMILIES)
def test_teacher_student_and_fake_score_share_one_frozen_base(name: str) -> None:
    model = tiny.model(name)
    side = side_of(name, model)
    with bridge.training():
        job = Job(width=side, height=side, rank=2, dtype="fp32")
        run = memory.node_run(model, job, [tiny.text(name), tiny.text(name, seed=1)], "it")
        (patcher,) = run.patchers
        network = patcher.model.diffusion_model
        used: dict[str, set[int]] = {}
        for player in ("teacher", "fake", "generator"):
            seen = used[player] = set()
            hooks = [
                module.register_forward_pre_hook(lambda m, _, seen=seen: seen.update(p.data_ptr() for p in m.parameters(False)))
                for module in network.modules()
            ]
            x, level = torch.zeros(1, *run.shape), torch.ones(1, *[1] * len(run.shape))
            with torch.no_grad():
                getattr(run.task.players, player)(x, level, torch.ones(1).long())
            for hook in hooks:
                hook.remove()
        assert used["teacher"] and used["teacher"] == used["fake"] == used["generator"]
        learned = {p.data_ptr() for p in (*run.task.players.fake_parameters, *run.task.players.generator_parameters)}
        assert not learned & used["teacher"] and not any(p.requires_grad for p in network.parameters())


def test_text_encoders_are_put_away_before_anything_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each text is encoded once."""
    import comfy.model_management as management
    import comfy.model_patcher

    encoder = comfy.model_patcher.ModelPatcher(torch.nn.Linear(4, 4), torch.device("cpu"), torch.device("cpu"))
    encoded, there = [], []
    real, step = training.Encoder.encode_from_tokens_scheduled, torch.optim.Adam.step

    def encode(self: Any, line: str) -> Any:
        management.load_models_gpu([encoder])
        encoded.append(line)
        return real(self, line)

    def look(self: Any, *given: Any) -> Any:
        there.append([loaded.model for loaded in management.current_loaded_models])
        return step(self, *given)

    monkeypatch.setattr(training.Encoder, "encode_from_tokens_scheduled", encode)
    monkeypatch.setattr(torch.optim.Adam, "step", look)
    training.distil(tiny.model("flux"), "flux")
    assert sorted(encoded) == sorted(["", *training.LINES]) and len(there) >= 2
    assert all(len(loaded) == 1 and encoder not in loaded for loaded in there)


# ---------------------------------------------------------------------------------------------- nodes, before they start


def test_a_run_that_can_t_fit_is_refused_with_what_to_turn_down_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "room", lambda: GIB // 2)
    for train in (training.distil, training.tune):
        with pytest.raises(ValueError, match=r"needs about 0\.8 GiB, and 0\.5 GiB are free; with all turned down"):
            train(tiny.model("flux"), "flux")
    assert not (folder / "apprentice").exists()


@pytest.mark.parametrize(("method", "kind"), [("LoRA", "loras"), ("full copy", "diffusion_models")])
def test_a_run_that_fits_pass_by_pass_goes_so_and_says_its_account(
    method: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils

    model = tiny.model("qwen")
    side = side_of("qwen", model)
    kept = "adam" if method == "LoRA" else "adafactor"  # Adam's own work on a whole copy is more than this network's passes
    job = Job(SID_LORA if method == "LoRA" else SID_FULL, side, side, part=2, rank=2, dtype="fp32", optimiser=kept)
    sketch = NetworkSketch(model.model, tiny.text("qwen", 1, 30))
    whole, less = (account(sketch, replace(job, apart=way)).total for way in (False, True))
    assert less < whole
    plain = training.distil(model, "qwen", "plain", pictures=2, method=method, optimiser=kept).result[3]
    passes: list[int] = []
    monkeypatch.setattr(distill, "apart", lambda denoise: lambda *given: passes.append(1) or apart(denoise)(*given))
    monkeypatch.setattr(runs, "room", lambda: (whole + less) // 2)
    made = training.distil(tiny.model("qwen"), "qwen", "apart", pictures=2, method=method, optimiser=kept)
    assert "pass by pass" in str(made.ui) and "that are free" in str(made.ui) and passes
    tensors = [comfy.utils.load_torch_file(str(folder / kind / file)) for file in (plain, made.result[3])]
    learned = [torch.cat([v.float().flatten() for k, v in file.items() if "lora_up" in k or kind != "loras"]) for file in tensors]
    near = (learned[0] - learned[1]).abs() < 2e-5  # one step of Adam is the gradient's sign, which is rounding's where it is 0
    assert near.float().mean() > 0.95 and learned[0].abs().max() > 1e-4


def test_a_full_copy_is_accounted_too() -> None:
    model = tiny.model("flux")
    side = side_of("flux", model)
    found = account(NetworkSketch(model.model, tiny.text("flux")), Job(SID_FULL, side, side, dtype="fp32"))
    numbers = sum(p.numel() for p in model.model.diffusion_model.parameters())
    assert found.parts["student and fake score (fp32)"] == 8 * numbers


def test_what_can_t_be_accounted_is_trained_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that look at values, as HiDream's experts do, don't run without any."""
    monkeypatch.setattr(runs, "room", lambda: 64 * GIB)
    file = training.distil(tiny.model("hidream"), "hidream").result[3]
    assert (folder / "loras" / file).exists()


# ------------------------------------------------------------------------------------------------------ the command


def saved(name: str, folder: Path) -> Path:
    model = tiny.model(name)
    tensors = model.model.model_config.process_unet_state_dict_for_saving(model.model.diffusion_model.state_dict())
    file = folder / f"{name}.safetensors"
    save_file({key: value.to(torch.bfloat16).contiguous().clone() for key, value in tensors.items()}, file)
    return file


def test_a_header_is_enough_to_know_the_network(folder: Path) -> None:
    file = saved("qwen", folder)
    tensors, packed = header(file)
    assert not packed
    base, small = sketched(tensors, file.name)
    assert type(base).__name__ == "QwenImage" and not small
    assert all(p.is_meta for p in base.diffusion_model.parameters())
    with pytest.raises(ValueError, match="holds no diffusion network that ComfyUI knows"):
        sketched({"nothing.weight": torch.empty(3, device="meta")}, "nothing.safetensors")
    with pytest.raises(ValueError, match="holds no diffusion network that ComfyUI knows"):  # one of several files, or a stub
        sketched({"joint_blocks.0.context_block.attn.qkv.weight": torch.empty(4, 4, device="meta")}, "00001-of-00002.safetensors")


def test_a_gguf_file_is_accounted_as_large_as_it_is_and_its_full_copy_refused(folder: Path) -> None:
    base = true_sizes.base_of("Flux dev", depth=1, depth_single_blocks=1)
    shapes = {key: tuple(value.shape) for key, value in base.diffusion_model.state_dict().items()}
    file = gguf_files.write(folder / "flux-Q4.gguf", "flux", shapes, nbytes=GIB // 4)
    asked = ["plan", str(file), "--width", "256", "--height", "256", "--rank", "16", "--card", "24"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    (step,) = json.loads(done.stdout)["steps"]
    assert step["parts"]["base (GGUF, frozen)"] == GIB // 4
    assert "can't learn themselves" in " ".join(CliRunner().invoke(app, [*asked, "--method", "sid-full"]).output.split())
    other = gguf_files.write(folder / "t5.gguf", "t5", {"enc.blk.0.attn_q.weight": (4096, 4096)})
    assert "t5.gguf is a text encoder" in CliRunner().invoke(app, ["plan", str(other)]).output


@pytest.mark.parametrize(("names", "said"), [
    ({"a.lora_up.weight": torch.bfloat16}, "x.safetensors is a LoRA, no diffusion network"),
    ({"decoder.conv_in.weight": torch.bfloat16}, "x.safetensors is a VAE, no diffusion network"),
    ({"double_blocks.0.img_attn.qkv.weight": torch.uint8}, "packed in whole numbers, and nothing can be trained over them"),
    ({"blocks.0.qkv.qweight": torch.int8, "blocks.0.qkv.wscales": torch.bfloat16}, "for Nunchaku"),
])  # fmt: skip
def test_what_is_no_network_to_train_is_named(names: dict[str, torch.dtype], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sketched({key: torch.empty(8, 8, dtype=dtype, device="meta") for key, dtype in names.items()}, "x.safetensors")


def test_a_unet_in_diffusers_layout_is_known_and_a_folder_is_refused(folder: Path) -> None:
    from comfy.utils import unet_to_diffusers

    base = true_sizes.base_of("SDXL")
    values, names = base.diffusion_model.state_dict(), unet_to_diffusers(base.model_config.unet_config)
    found, _small = sketched({theirs: values[ours] for theirs, ours in names.items() if ours in values}, "unet.safetensors")
    assert type(found).__name__ == "SDXL"
    with pytest.raises(ValueError, match="is a folder: give one file"):
        header(folder)


def test_an_oracle_beside_sid_is_accounted_and_a_file_that_isn_t_there_is_named(folder: Path) -> None:
    file = sparse(true_sizes.base_of("Flux dev", depth=1, depth_single_blocks=1), folder / "flux.safetensors")
    asked = ["plan", str(file), "--width", "256", "--height", "256", "--rank", "16", "--json", "--oracle"]
    parts = json.loads(CliRunner().invoke(app, [*asked, str(file)]).stdout)["steps"][0]["parts"]
    assert parts["VAE and oracle"] == file.stat().st_size
    for missing in (folder / "none.safetensors", folder):
        assert "There is no file" in CliRunner().invoke(app, [*asked, str(missing)]).output


# --------------------------------------------------------------------------------------------------------- packed weights


class Packed(torch.Tensor):
    """A weight as ComfyUI-GGUF packs it: bytes, and a name for how."""

    tensor_type = 8


def pack(model: Any, kind: type[Tensor] = Packed) -> Any:
    """A model one of whose weights is bytes that nobody can read."""
    layer = next(layer for layer in adaptable(model.model.diffusion_model).values())
    bytes_ = torch.zeros(layer.weight.shape, dtype=torch.uint8)
    del layer.weight
    layer.weight = bytes_.as_subclass(kind)
    layer._parameters["weight"] = layer.__dict__.pop("weight")
    return model


def test_packed_weights_learn_as_no_full_copy_and_are_not_compared(folder: Path) -> None:
    for said, changes in (("can't learn themselves", {"method": "full copy"}), ("can't be compared", {"made_for": "base"})):
        with pytest.raises(ValueError, match=said):
            training.distil(pack(tiny.model("flux")), "flux", **changes)
    assert not (folder / "apprentice").exists()


def test_packed_weights_that_a_copy_would_lose_are_refused_before_anything(folder: Path) -> None:
    for train in (training.distil, training.tune):
        with pytest.raises(ValueError, match="packed in 4 or 8 bits"):
            train(pack(tiny.model("flux"), Tensor), "flux")
    assert not (folder / "apprentice").exists()


def test_packed_weights_are_accounted_as_they_lie_and_their_layers_as_unpacked() -> None:
    model, plain = pack(tiny.model("flux")), tiny.model("flux")
    side = side_of("flux", plain)
    packed, whole = (NetworkSketch(m.model, tiny.text("flux")) for m in (model, plain))
    job = Job(width=side, height=side, rank=2, dtype="fp32")
    assert packed.weights(job) == sum(p.nbytes for p in model.model.diffusion_model.parameters()) < whole.weights(job)
    assert packed.learned(job) == whole.learned(job)
    assert packed.passed(job, 1, True).peak > whole.passed(job, 1, True).peak


def test_a_weight_that_a_network_names_and_hasn_t_is_no_part_of_its_fingerprint() -> None:
    """ComfyUI-GGUF's state has one more, for the memory of the largest."""
    model = tiny.model("flux")
    before = model_fingerprint(model.clone())
    layer = next(iter(adaptable(model.model.diffusion_model).values()))
    layer._register_state_dict_hook(lambda _layer, state, prefix, _: state.update({f"{prefix}temp.weight": torch.empty(1)}))
    other = model.clone()
    other.add_patches({}, 0.0)  # another set of patches: looked at anew
    assert len(model_fingerprint(other)) == len(before) == 16 and any("temp" in key for key in model.model.state_dict())


def test_texts_are_as_wide_as_the_network_reads_them() -> None:
    widths = {name: conditioning_of(true_sizes.base_of(name), 77)[0] for name in ("SDXL", "Flux dev", "Z-Image")}
    assert {name: given[0].shape[2] for name, given in widths.items()} == {"SDXL": 2048, "Flux dev": 4096, "Z-Image": 2560}
    assert {name: given[1]["pooled_output"].shape[1] for name, given in widths.items()} == {
        "SDXL": 1280, "Flux dev": 768, "Z-Image": 1,
    }  # fmt: skip


def test_the_command_says_what_a_file_takes_and_what_to_turn_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of true size, all of zeros, of which the disk has next to nothing."""
    file = sparse(true_sizes.base_of("Flux dev", depth=1, depth_single_blocks=1), folder / "flux.safetensors")
    asked = ["plan", str(file), "--width", "256", "--height", "256", "--rank", "16", "--at-once", "2"]
    done = CliRunner().invoke(app, [*asked, "--card", "1.5", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["steps"][0]["parts"]["base (bf16, frozen)"] == pytest.approx(file.stat().st_size, rel=1e-3)
    assert [step["change"] for step in found["steps"]][:2] == ["as asked", "at_once 1"]
    words = CliRunner().invoke(app, [*asked, "--card", "24"])
    assert "it fits." in words.stdout and "LoRAs of student and fake score, rank 16 (fp32)" in words.stdout
    monkeypatch.delenv("COMFYUI_PATH")
    assert "--comfyui" in CliRunner().invoke(app, [*asked, "--card", "24"]).output


def sparse(base: Any, file: Path) -> Path:
    """A file with the names and shapes of a network's weights in bfloat16, and nothing written where they would be."""
    entries, at = {}, 0
    for key, value in base.diffusion_model.state_dict().items():
        size = 2 * value.numel()
        entries[key] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)
    return file


def test_the_gpu_benchmark_runs_small_on_a_cpu_and_asks_for_a_gpu_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = memory_targets.run_on_gpu(True, lambda _: None, ["Qwen-Image"], iterations=1)
    assert 0.85 < found.rows[0]["ratio"] < 1.15 and found.rows[0]["seconds an iteration"] > 0
    with pytest.raises(ValueError, match="need an NVIDIA GPU"):
        memory_targets.run_on_gpu(False, lambda _: None)


def test_a_cpu_has_no_end_to_its_room() -> None:
    from comfyui_apprentice.bridge.memory import room

    assert room() is None
