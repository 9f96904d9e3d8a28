"""EDM networks and SiD's sampler in a real ComfyUI, against the network called directly."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from comfyui_apprentice.networks.class_names import CIFAR10
from comfyui_apprentice.networks.edm import EDMPrecond, build_edm
from comfyui_apprentice.networks.preconditioning import karras_sigmas
from comfyui_apprentice.weights.edm_pickle import read_edm, snapshot_metadata
from harness import ANSWER_SECONDS, Comfy, Graph, GraphError, Node
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parents[1] / "data" / "sid"
SNAPSHOT = "tiny_edm_snapshot.pkl"
UNCONDITIONAL = {
    "_class_name": "EDMPrecond", "img_resolution": 16, "img_channels": 3, "label_dim": 0, "augment_dim": 9,
    "model_type": "SongUNet", "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1], "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
}  # fmt: skip
THOUSAND = {
    "_class_name": "EDMPrecond", "img_resolution": 16, "img_channels": 3, "label_dim": 1000, "use_fp16": True,
    "model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def files(comfy: Comfy) -> None:
    """A snapshot, two converted networks and two files that must be refused, in models/edm."""
    folder = comfy.base / "models" / "edm"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SNAPSHOT, "evil.pkl"):
        shutil.copy(DATA / name, folder)
    torch.manual_seed(0)
    for name, config in (("uncond", UNCONDITIONAL), ("thousand", THOUSAND)):
        weights = {k: torch.randn_like(v) * 0.1 if v.ndim > 1 else v for k, v in build_edm(config).state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors", snapshot_metadata(config))
    (folder / "broken.safetensors").write_bytes(b"not weights at all")
    requests.get(f"{comfy.url}/object_info/ApprenticeLoadEDM", timeout=ANSWER_SECONDS)


def network(comfy: Comfy, name: str) -> EDMPrecond:
    config, weights = read_edm(comfy.base / "models" / "edm" / name)
    net = build_edm(config).eval()
    net.load_state_dict(weights, strict=True)
    return net


def load(graph: Graph, name: str = SNAPSHOT, **options: Any) -> Node:
    return graph.add("ApprenticeLoadEDM", f"load{len(graph.nodes)}", network=name, **options)


def sid(graph: Graph, loaded: Node, name: str, **options: Any) -> Node:
    """SiD Sampler on what the loader gives, saved under ``name``."""
    inputs = {"model": loaded[0], "positive": loaded[1], "latent_image": loaded[4], "seed": 5, "steps": 1, **options}
    node = graph.add("ApprenticeSiDSampler", name, **inputs)
    graph.add("TestSave", f"save_{name}", name=name, latent=node[0])
    return node


def noise(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed))


def one_hot(*labels: int, classes: int = 10) -> torch.Tensor:
    return torch.eye(classes)[list(labels)]


def test_one_step_is_the_network_at_noise_level_2_5(comfy: Comfy) -> None:
    graph = Graph()
    loaded = load(graph, batch_size=12)
    drawn = sid(graph, loaded, "one")
    graph.add("TestSave", "save_vae", name="vae", image=graph.add("VAEDecode", samples=drawn[0], vae=loaded[3]))
    graph.add("TestSave", "save_grid", name="grid", image=drawn[1])
    graph.add("PreviewAny", "names", source=loaded[5])
    run = comfy.run(graph)
    latent = comfy.tensors("one")["latent"]
    with torch.no_grad():
        expected = network(comfy, SNAPSHOT)(2.5 * noise(5, (12, 3, 8, 8)), torch.tensor(2.5), one_hot(*range(10), 0, 1))
    torch.testing.assert_close(latent, expected, rtol=0, atol=5e-6)
    assert run.outputs["names"]["text"] == [*CIFAR10, *CIFAR10[:2]]
    image, grid = comfy.tensors("vae")["image"], comfy.tensors("grid")["image"]
    torch.testing.assert_close(image, ((latent + 1) / 2).clamp(0, 1).movedim(1, -1), rtol=0, atol=1e-6)
    assert grid.shape == (1, 24, 32, 3)
    torch.testing.assert_close(grid[0, 8:16, 8:16], image[5], rtol=0, atol=1e-6)


def test_stock_sampling_gives_the_numbers_of_the_authors_code(comfy: Comfy) -> None:
    """G = D(2.5 z, 2.5, labels) of the golden file: Euler from 2.5 to 0 over the golden z, without noise of ComfyUI's."""
    golden = load_file(DATA / "tiny_edm_snapshot_expected.safetensors")
    graph = Graph()
    (comfy.base / "output").mkdir(exist_ok=True)
    for row, label in enumerate(golden["labels"].argmax(1).tolist()):
        save_file({"latent": 2.5 * golden["z"][row : row + 1]}, comfy.base / "output" / f"golden_z{row}.safetensors")
        loaded = load(graph, label="by number", class_number=label)
        drawn = graph.add(
            "SamplerCustom", model=loaded[0], add_noise=False, noise_seed=0, cfg=1.0, positive=loaded[1], negative=loaded[2],
            sampler=graph.add("KSamplerSelect", sampler_name="euler"), sigmas=graph.add("TestManualSigmas", sigmas="2.5, 0"),
            latent_image=graph.add("TestLoadLatent", name=f"golden_z{row}"),
        )  # fmt: skip
        graph.add("TestSave", name=f"golden{row}", latent=drawn)
    comfy.run(graph)
    drawn = torch.cat([comfy.tensors(f"golden{row}")["latent"] for row in range(3)])
    torch.testing.assert_close(drawn.double(), golden["G_f64"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["uncond.safetensors", "thousand.safetensors"])
def test_ncsnpp_and_adm_networks_draw_too(comfy: Comfy, name: str) -> None:
    graph = Graph()
    sid(graph, load(graph, name, label="random", label_seed=3, batch_size=2), "net")
    comfy.run(graph)
    net = network(comfy, name)
    labels = one_hot(*(random.Random(f"3 {i}").randrange(1000) for i in range(2)), classes=1000) if net.label_dim else None
    with torch.no_grad():
        expected = net(2.5 * noise(5, (2, 3, 16, 16)), torch.tensor(2.5), labels)
    torch.testing.assert_close(comfy.tensors("net")["latent"], expected, rtol=1e-5, atol=2e-5)


def test_a_stock_ksampler_is_eulers_method_on_the_network(comfy: Comfy) -> None:
    """At CFG 1 and, between the class and none, at CFG 3."""
    graph = Graph()
    loaded = load(graph, label="by number", class_number=7, batch_size=2)
    stock = {"seed": 3, "steps": 5, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0, "latent_image": loaded[4]}
    for cfg in (1.0, 3.0):
        node = graph.add("KSampler", model=loaded[0], positive=loaded[1], negative=loaded[2], cfg=cfg, **stock)
        graph.add("TestSave", f"save{cfg}", name=f"euler{cfg}", latent=node)
    comfy.run(graph)
    net, sigmas = network(comfy, SNAPSHOT), karras_sigmas(5, 0.002, 80.0)
    for cfg in (1.0, 3.0):
        # ComfyUI starts at sqrt(1 + sigma^2), not sigma: a difference of 0.01 %.
        x = noise(3, (2, 3, 8, 8)) * (1 + sigmas[0] ** 2).sqrt()
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            with torch.no_grad():
                given, none = (net(x, sigma, labels) for labels in (one_hot(7), None))
            x = x + (following - sigma) * (x - none - cfg * (given - none)) / sigma
        torch.testing.assert_close(comfy.tensors(f"euler{cfg}")["latent"], x, rtol=0, atol=5e-5)


def test_sampler_custom_and_previews_run_on_it(comfy: Comfy) -> None:
    graph = Graph()
    loaded = load(graph, label="CIFAR-10 7: horse", batch_size=2)
    node = graph.add(
        "SamplerCustom", model=loaded[0], add_noise=True, noise_seed=3, cfg=1.0, positive=loaded[1], negative=loaded[2],
        sampler=graph.add("KSamplerSelect", sampler_name="heun"), latent_image=loaded[4],
        sigmas=graph.add("KarrasScheduler", steps=4, sigma_max=80.0, sigma_min=0.002, rho=7.0),
    )  # fmt: skip
    graph.add("TestSave", name="custom", latent=node)
    run = comfy.run(graph)
    assert comfy.tensors("custom")["latent"].isfinite().all()
    assert run.binaries > 0


def test_few_steps_renoise_with_each_pictures_own_noise(comfy: Comfy) -> None:
    """D(D(...) + sigma_i n_i) at levels 2.5, 1.67, 0.83; and a picture out of the middle of the batch, alone, is the same."""
    graph = Graph()
    loaded = load(graph, label="by number", class_number=4, batch_size=5)
    sid(graph, loaded, "whole", steps=3)
    sid(graph, loaded, "part", steps=3, latent_image=graph.add("LatentFromBatch", samples=loaded[4], batch_index=2, length=2))
    comfy.run(graph)
    drawn, net = torch.zeros(5, 3, 8, 8), network(comfy, SNAPSHOT)
    for i, sigma in enumerate((2.5, 2.5 * 2 / 3, 2.5 / 3)):
        with torch.no_grad():
            drawn = net(drawn + sigma * noise(5 + i, drawn.shape), torch.tensor(sigma), one_hot(4))
    whole = comfy.tensors("whole")["latent"]
    torch.testing.assert_close(whole, drawn, rtol=0, atol=1e-5)
    torch.testing.assert_close(comfy.tensors("part")["latent"], whole[2:4], rtol=0, atol=1e-5)


def test_drafts_of_the_sampler_are_judged_and_improved(comfy: Comfy) -> None:
    """By the stock-sampled network itself as the teacher; names of classes are the prompts."""
    graph = Graph()
    loaded = load(graph, batch_size=3)
    drafts = sid(graph, loaded, "drafts")
    images = graph.add("VAEDecode", samples=drafts, vae=loaded[3])
    oracle = graph.add("TestPromptOracle")
    judge = graph.add(
        "ApprenticeJudge", oracle=oracle, images=images, prompt="0.1", drafts=drafts, threshold="absolute", value=0.5,
        teacher_nfe=8.0,
    )  # fmt: skip
    better = graph.add(
        "ApprenticeTeacher", verdict=judge[0], drafts=drafts, model=loaded[0], positive=loaded[1], negative=loaded[2],
        strategy="refine", rollback=0.6, steps=6, cfg=1.0, sampler_name="dpmpp_2m", scheduler="karras", seed=1,
    )  # fmt: skip
    graph.add("TestSave", name="better", latent=better)
    comfy.run(graph)
    assert (comfy.tensors("better")["latent"] - comfy.tensors("drafts")["latent"]).abs().mean((1, 2, 3)).min() > 1e-3


def stable_diffusion(graph: Graph, count: int = 2) -> dict[str, Any]:
    checkpoint = graph.add("CheckpointLoaderSimple", "sd", ckpt_name="mini_sd15.safetensors")
    return {
        "model": checkpoint[0], "positive": graph.add("CLIPTextEncode", clip=checkpoint[1], text="crab")[0],
        "latent_image": graph.add("EmptyLatentImage", width=64, height=64, batch_size=count)[0],
    }  # fmt: skip


def test_stable_diffusion_is_the_sid_lsg_preset_to_the_bit(comfy: Comfy, models: Path) -> None:
    """In one step; further steps renoise with noise of their own, where ComfyUI 0.3.75 would take the first step's again."""
    graph = Graph()
    inputs = stable_diffusion(graph)
    ours = graph.add("ApprenticeSiDSampler", "ours", seed=9, steps=1, **inputs)
    theirs = graph.add(
        "ApprenticeStudentSampler", "theirs", seed=9, steps=1, preset="sid-lsg", cfg=1.0, denoise=1.0,
        negative=inputs["positive"], **inputs,
    )  # fmt: skip
    for name, node in (("ours", ours), ("theirs", theirs)):
        graph.add("TestSave", f"save_{name}", name=f"lsg_{name}", latent=node)
    graph.add("TestCountModel", "counted", model=inputs["model"], name="sd")
    graph.add("TestSave", "save_few", name="lsg_few", latent=graph.add(
        "ApprenticeSiDSampler", "few", seed=9, steps=4, **{**inputs, "model": ["counted", 0]}
    ))  # fmt: skip
    comfy.counts()
    comfy.run(graph)
    assert torch.equal(comfy.tensors("lsg_ours")["latent"], comfy.tensors("lsg_theirs")["latent"])
    assert not torch.allclose(comfy.tensors("lsg_ours")["latent"], comfy.tensors("lsg_few")["latent"], atol=0.1)
    assert comfy.counts() == {"sd": 8}, "one evaluation a picture and step"


def test_the_grid_of_stable_diffusion_needs_its_vae(comfy: Comfy, models: Path) -> None:
    graph = Graph()
    drawn = graph.add("ApprenticeSiDSampler", "drawn", seed=9, steps=1, **stable_diffusion(graph, 3))
    graph.add("TestSave", "latents", name="lsg_latents", latent=drawn[0])
    assert comfy.run(graph).status["status_str"] == "success"
    graph.add("TestSave", "grid", name="lsg_grid", image=drawn[1])
    run = comfy.run(graph)
    assert any("connect the model's VAE" in str(event) for event in run.events)
    graph.nodes["drawn"]["inputs"] |= {"vae": ["sd", 2], "columns": 3}
    comfy.run(graph)
    assert comfy.tensors("lsg_grid")["image"].shape == (1, 64, 192, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "evil.pkl"}, "evil.pkl .* not loaded"),
        ({"network": "broken.safetensors"}, "broken.safetensors"),
        ({"network": "missing.pkl"}, "There is no file 'missing.pkl'"),
        ({"label": "dinosaur"}, "label is 'dinosaur'"),
        ({"label": "ImageNet 3: tiger shark"}, "knows 10 classes"),
        ({"label": "by number", "class_number": 10}, "there is no class 10"),
        ({"network": "uncond.safetensors", "label": "by number"}, "knows no classes"),
    ],
)
def test_wrong_files_and_labels_are_one_sentence(comfy: Comfy, options: dict[str, Any], message: str) -> None:
    graph = Graph()
    sid(graph, graph.add("ApprenticeLoadEDM", **{"network": SNAPSHOT, **options}), "never")
    with pytest.raises(GraphError, match=message):
        comfy.run(graph)
    assert not list(comfy.base.rglob("PWND_*")) and not list(Path.cwd().glob("PWND_*"))


def test_foreign_latents_and_conditionings_are_one_sentence(comfy: Comfy, models: Path) -> None:
    graph = Graph()
    loaded, other = load(graph, batch_size=1), load(graph, "thousand.safetensors", batch_size=1)
    sd = stable_diffusion(graph)
    cases = {
        "multiple of 2": {"latent_image": graph.add("EmptyChromaRadianceLatentImage", width=17, height=16, batch_size=1)},
        "1000 numbers": {"positive": other[1]},
        "768 numbers": {"positive": sd["positive"]},
        "4 channels": {"latent_image": graph.add("ApprenticeSiDSampler", "sd_drawn", seed=1, steps=1, **sd)},
    }
    for name, (message, changes) in enumerate(cases.items()):
        part = Graph()
        part.nodes = dict(graph.nodes)
        sid(part, loaded, f"wrong{name}", **changes)
        with pytest.raises(GraphError, match=message):
            comfy.run(part)


def test_other_multiples_of_the_coarsest_grid_and_editing_run(comfy: Comfy) -> None:
    graph = Graph()
    loaded = load(graph, label="none")
    wide = graph.add("EmptyImage", width=12, height=10, batch_size=2, color=255)
    sid(graph, loaded, "edited", latent_image=graph.add("VAEEncode", pixels=wide, vae=loaded[3]))
    comfy.run(graph)
    drawn = comfy.tensors("edited")["latent"]
    blue = torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
    with torch.no_grad():
        x = blue + 2.5 * noise(5, (2, 3, 10, 12))
        torch.testing.assert_close(drawn, network(comfy, SNAPSHOT)(x, torch.tensor(2.5)), rtol=0, atol=5e-6)


def test_a_lora_on_the_network_loads_with_the_stock_loader(comfy: Comfy) -> None:
    folder = comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    net = network(comfy, SNAPSHOT)
    key = "model.enc.8x8_block0.affine.weight"
    weight = net.state_dict()[key]
    torch.manual_seed(1)
    up, down = torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1])
    stem = f"diffusion_model.{key.removesuffix('.weight')}"
    save_file({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, folder / "edm.safetensors")
    graph = Graph()
    loaded = load(graph, batch_size=2)
    patched = graph.add("LoraLoaderModelOnly", model=loaded[0], lora_name="edm.safetensors", strength_model=0.5)
    sid(graph, loaded, "lora", model=patched[0])
    sid(graph, loaded, "plain")
    comfy.run(graph)
    z = 2.5 * noise(5, (2, 3, 8, 8))
    with torch.no_grad():
        plain = net(z, torch.tensor(2.5), one_hot(0, 1))
        weight += 0.5 * up @ down
        torch.testing.assert_close(comfy.tensors("lora")["latent"], net(z, torch.tensor(2.5), one_hot(0, 1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(comfy.tensors("plain")["latent"], plain, rtol=0, atol=5e-6)
    assert not torch.allclose(comfy.tensors("lora")["latent"], plain, atol=1e-3)


def test_a_flow_model_is_refused(comfy: Comfy, models: Path) -> None:
    graph = Graph()
    inputs = stable_diffusion(graph)
    inputs["model"] = graph.add("ModelSamplingSD3", model=inputs["model"], shift=3.0)[0]
    graph.add("TestSave", name="flow", latent=graph.add("ApprenticeSiDSampler", seed=1, steps=1, **inputs))
    with pytest.raises(GraphError, match="flow model"):
        comfy.run(graph)


def test_another_file_under_the_same_name_is_another_network(comfy: Comfy) -> None:
    path = comfy.base / "models" / "edm" / "changing.safetensors"
    shutil.copy(path.with_name("uncond.safetensors"), path)
    graph = Graph()
    sid(graph, load(graph, "changing.safetensors", batch_size=2), "before")
    comfy.run(graph)
    config, weights = read_edm(path)
    save_file({k: v * 1.5 if v.ndim > 1 else v for k, v in weights.items()}, path, snapshot_metadata(config))
    again = Graph()
    sid(again, load(again, "changing.safetensors", batch_size=2), "after")
    comfy.run(again)
    assert not torch.allclose(comfy.tensors("before")["latent"], comfy.tensors("after")["latent"], atol=1e-3)
