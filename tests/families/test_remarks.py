"""An oracle asked about what it can't judge says so wherever it is asked: without a prompt, or pictures of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

import folder_paths  # noqa: E402
from comfyui_apprentice.bridge import tiny_world as loader  # noqa: E402
from comfyui_apprentice.bridge.drafts import draw_drafts  # noqa: E402  # noqa: E402
from comfyui_apprentice.bridge.drawing import Drawing  # noqa: E402  # noqa: E402
from comfyui_apprentice.bridge.info import Info, with_info  # noqa: E402  # noqa: E402
from comfyui_apprentice.bridge.prompts import join  # noqa: E402
from comfyui_apprentice.nodes import judge as judging  # noqa: E402
from comfyui_apprentice.nodes.calibrate import ApprenticeCalibrate  # noqa: E402
from comfyui_apprentice.nodes.judge import ApprenticeJudge, ApprenticeKeepBetter  # noqa: E402
from comfyui_apprentice.nodes.oracles import ApprenticeBestOf, ApprenticeOracleCompare, ApprenticeScore  # noqa: E402
from comfyui_apprentice.nodes.start import ApprenticeTiltedStart  # noqa: E402
from comfyui_apprentice.oracles.ensemble import Ensemble, Member  # noqa: E402
from comfyui_apprentice.oracles.tiny import is_icon  # noqa: E402
from comfyui_apprentice.world.domain import domain_pictures  # noqa: E402
from families import executing  # noqa: E402
from families.judges import Brightness  # noqa: E402

LINES = ["glossy red heart on blue", "flat cat face on yellow", "alien on white", "robot on green"]


def strange(count: int = 64) -> dict[str, torch.Tensor]:
    """Pictures [N, 64, 64, 3] that are no icons: noise, one colour, a gradient, and photographs' kind of clouds."""
    rng = torch.Generator().manual_seed(0)
    way = torch.linspace(0, 1, 64)
    distance = (torch.fft.fftfreq(64)[:, None] ** 2 + torch.fft.fftfreq(64)[None] ** 2).clamp(min=1e-4).sqrt()
    clouds = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, 3, 64, 64, generator=rng)) / distance**1.2).real
    low, high = clouds.amin((-1, -2), keepdim=True), clouds.amax((-1, -2), keepdim=True)
    return {
        "noise": torch.rand(count, 64, 64, 3, generator=rng),
        "one colour": torch.rand(count, 1, 1, 3, generator=rng).expand(-1, 64, 64, -1),
        "gradient": (way[None, :, None, None] * torch.rand(count, 1, 1, 3, generator=rng) + way[None, None, :, None]) / 2,
        "photograph": ((clouds - low) / (high - low)).movedim(1, -1),
    }


@pytest.mark.parametrize("kind", ["noise", "one colour", "gradient", "photograph"])
def test_what_is_no_icon_is_known_for_it(kind: str) -> None:
    assert sum(is_icon(picture) for picture in strange()[kind]) <= 1


def test_icons_and_drafts_of_icons_are_known_for_icons() -> None:
    """By another vendor and larger, too; and of a student's one step."""
    clip, vae = loader.load_clip(), loader.load_vae()
    encode = lambda line: clip.encode_from_tokens_scheduled(clip.tokenize(line))  # noqa: E731
    with torch.inference_mode():
        drafts = draw_drafts(
            loader.load_student("consistency"), join([encode(line) for line in LINES * 8]), encode(""),
            {"samples": torch.zeros(32, 32, 8, 8)}, "tiny-world", Drawing(1, 1.0, "euler", "simple", 3),
        )  # fmt: skip
        pictures = vae.decode(drafts["samples"])
    assert all(is_icon(picture) for picture in pictures)
    icons = domain_pictures(True, 1)[0][:100]
    assert all(is_icon(picture) for picture in icons)
    large = torch.nn.functional.interpolate(icons[:8].movedim(-1, 1), (200, 300), mode="bicubic").movedim(1, -1).clamp(0, 1)
    assert all(is_icon(picture) for picture in large)


def ask(node: str, oracle: Any, pictures: torch.Tensor, prompt: str) -> str:
    """What a node says of an oracle's answer to one prompt for all."""
    images, prompts = [pictures], [prompt]
    if node == "judge":
        return str(ApprenticeJudge.execute([oracle], images, prompts, ["absolute"], [0.0])[0].note)
    if node == "score":
        return str(ApprenticeScore.execute([oracle], images, prompts)[1])
    if node == "compare":
        return str(ApprenticeOracleCompare.execute([oracle], [Brightness()], images, prompts)[1])
    if node == "keep":  # whose drafts another oracle judged, which reads no prompts
        first = Brightness()
        first.reads_prompts = False
        verdict = ApprenticeJudge.execute([first], images, prompts, ["absolute"], [9.0])[0]
        drafts, improved = ({"samples": torch.full((len(pictures), 4, 8, 8), value)} for value in (0.0, 1.0))
        return str(ApprenticeKeepBetter.execute(oracle, verdict, drafts, improved, pictures, 0.0, pictures)[2].note)
    return str(ApprenticeBestOf.execute([oracle], images, prompts, [1], [False], ["best first"]).ui["apprentice_text"])


NODES = ["judge", "score", "compare", "keep", "best"]


@pytest.mark.parametrize("node", NODES)
def test_an_empty_prompt_is_said_wherever_an_oracle_is_asked(node: str) -> None:
    pictures = domain_pictures(True, 1)[0][:2]
    oracle = Brightness()
    assert "The prompt is empty: brightness scores how well" in ask(node, oracle, pictures, " \n")
    assert "empty" not in ask(node, oracle, pictures, "a")
    oracle.reads_prompts = False
    if node != "compare":  # whose second oracle reads them
        assert "empty" not in ask(node, oracle, pictures, "")


@pytest.mark.parametrize("node", NODES)
def test_the_tiny_worlds_oracle_says_which_pictures_it_knows_nothing_of(node: str) -> None:
    icon, photograph = domain_pictures(True, 1)[0][:1], strange(1)["photograph"]
    oracle = loader.load_world_oracle()
    said = ask(node, oracle, torch.cat([icon, photograph]), "red heart")
    assert "1 of 2 pictures are no icon on a plain background" in said
    assert "no icon" not in ask(node, oracle, torch.cat([icon, icon]), "red heart")
    both = Ensemble([Member(oracle, 1.0, 0.0, 1.0, 0.0), Member(Brightness(), 1.0, 0.0, 1.0, 0.0)])
    assert "1 of 2 pictures are no icon" in ask(node, both, torch.cat([icon, photograph]), "red heart")


def test_the_all_in_one_node_tilted_start_and_calibrate_say_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from families.test_cache_modes import graph, node

    executing.register()
    prompt = graph(0.5, True)
    prompt["end"]["inputs"]["prompt"] = "  "
    prompt["said"] = node("Keep", name="said", value=["end", 2])
    executing.run(prompt)
    assert executing.Keep.kept["said"][0].note.count("The prompt is empty") == 1

    latent, oracle = {"samples": torch.zeros(1, 32, 8, 8)}, Brightness()
    with torch.inference_mode():
        text = loader.load_clip().encode_from_tokens_scheduled(loader.load_clip().tokenize("red heart"))
        report = ApprenticeTiltedStart.execute(
            [loader.load_student("consistency")], [text], [text], [latent], [loader.load_vae()], [oracle], [""], [2], [1.0],
            [0], ["tiny-world"], [1], [1.0],
        )[1]  # fmt: skip
    assert report.count("The prompt is empty") == 1

    monkeypatch.setattr(oracle, "doubts", lambda pictures: f"{len(pictures)} strange ones.", raising=False)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr("comfyui_apprentice.nodes.folders.calibration_file", lambda name: tmp_path / f"{name}.json")
    with torch.inference_mode():
        words = ApprenticeCalibrate.execute(
            loader.load_student("consistency"), loader.load_clip(), loader.load_vae(), oracle, "", "red heart\nrobot", "few", 2,
            1, 2, 64, 64, 0, "tiny-world", 1, 1.0,
        )[1]  # fmt: skip
    assert words.count("2 strange ones.") == 1


def test_oracles_are_compared_on_pictures_of_different_sizes() -> None:
    images = [torch.full((2, 8, 8, 3), 0.1), torch.full((1, 8, 16, 3), 0.9), torch.full((1, 12, 8, 1), 0.5)]
    images[0][1] += 0.2
    chart, text, spearman = ApprenticeOracleCompare.execute([Brightness()], [Brightness()], images, ["a"]).result
    assert spearman == pytest.approx(1) and "on 4 pictures" in text and chart.shape[0] == 1


def test_drafts_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of latents is found by all their bytes, which takes its time for large batches."""
    latents = []
    for value in (0.1, 0.2):
        samples = torch.full((1, 4, 2, 2), value)
        latents.append(with_info({}, samples, Info((4.0,), 7, samples, 1.0, "SD15", "", "s", "x")))
    asked: list[int] = []
    inner = judging.info_of
    monkeypatch.setattr(judging, "info_of", lambda latent: asked.append(id(latent)) or inner(latent))
    verdict = ApprenticeJudge.execute(
        [Brightness()], [torch.zeros(1, 8, 8, 3)] * 2, ["a"], ["absolute"], [0.0], drafts=latents
    )[0]
    assert asked == [id(latent) for latent in latents] and [j.seed for j in verdict] == [7, 7]
