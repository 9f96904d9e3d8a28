"""Pictures with prompts out of ComfyUI's templates, and what oracles make of them; on a copy of three (MIT: LICENSE there)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import golden_weights
import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import picture_oracles
from comfyui_apprentice.benchmarks.picture_oracles import by_picture, by_prompt, judges, run, scores
from comfyui_apprentice.benchmarks.template_pictures import CHECKED, folders, pairs, prompts_of
from comfyui_apprentice.oracles.base import Oracle
from harness import ROOT
from torch import Tensor, nn

COPY = ROOT / "tests" / "data" / "templates"
NAMES = ["flux1_krea_dev", "flux_schnell_full_text_to_image", "image2image"]


def test_the_pairs_are_those_that_were_looked_at() -> None:
    found = pairs(COPY)
    assert [pair.name for pair in found] == NAMES
    assert [pair.prompt.split(",")[0] for pair in found] == [
        "Highly realistic portrait of a Nordic woman with blonde hair and blue eyes",
        "Create a 3D - styled image: A cute", "Use clouds to represent a woman's profile",
    ]  # fmt: skip
    assert [tuple(pair.image().shape) for pair in found] == [(1, 400, 400, 3), (1, 400, 400, 3), (1, 300, 300, 3)]
    # White clouds in a blue sky; a light green ground.
    assert found[2].image()[0, 10, 10].argmax() == 2 and found[1].image()[0, 10, 10].min() > 0.8


def test_another_picture_or_another_prompt_is_no_pair_any_more(tmp_path: Path) -> None:
    shutil.copytree(COPY, tmp_path / "packages")
    (folder,) = folders(tmp_path / "packages")
    shutil.copy(folder / "flux1_krea_dev-1.webp", folder / "image2image-1.webp")
    workflow = (folder / "flux_schnell_full_text_to_image.json").read_text(encoding="utf-8")
    (folder / "flux_schnell_full_text_to_image.json").write_text(workflow.replace("retro", "modern"), encoding="utf-8")
    assert [pair.name for pair in pairs(tmp_path / "packages")] == ["flux1_krea_dev"]
    with pytest.raises(FileNotFoundError, match="pip install comfyui-workflow-templates"):
        pairs(tmp_path)


def test_the_list_holds_no_thumbnail_that_shows_something_else() -> None:
    """Looked at: statues above a prompt for a bottle, an interior, a dog, a man with a red tree's prompt."""
    listed = json.loads(CHECKED.read_text())
    assert len(listed) == 92 and not {"flux_schnell", "sdxl_simple_example", "sdxlturbo_example", "hidream_i1_full"} & set(listed)
    assert (folders(COPY)[0] / "flux_schnell.json").exists() and "flux_schnell" not in [pair.name for pair in pairs(COPY)]


Slots = dict[str, tuple[str, int | None]]


def node(key: int, kind: str, inputs: Slots, values: list[Any], out: str = "", **more: Any) -> dict[str, Any]:
    slots = [{"name": name, "type": of, "link": link} for name, (of, link) in inputs.items()]
    return {"id": key, "type": kind, "inputs": slots, "outputs": [{"type": out}], "widgets_values": values, **more}


def test_a_prompt_is_found_through_conditioning_nodes_and_never_a_negative_one() -> None:
    graph = {
        "nodes": [
            node(1, "CLIPTextEncode", {"clip": ("CLIP", None)}, ["a red fox"], "CONDITIONING"),
            node(2, "CLIPTextEncode", {"clip": ("CLIP", None)}, ["blurry and ugly, bad"], "CONDITIONING"),
            node(3, "FluxGuidance", {"conditioning": ("CONDITIONING", 10)}, [3.5], "CONDITIONING"),
            node(4, "KSampler", {"positive": ("CONDITIONING", 11), "negative": ("CONDITIONING", 12)}, [], "LATENT"),
            node(5, "CLIPTextEncode", {"clip": ("CLIP", None)}, ["switched off"], "CONDITIONING"),
            node(6, "KSampler", {"positive": ("CONDITIONING", 13)}, [], "LATENT", mode=4),
        ],
        "links": [[10, 1, 0, 3, 0, "CONDITIONING"], [11, 3, 0, 4, 0, "CONDITIONING"], [12, 2, 0, 4, 1, "CONDITIONING"],
                  [13, 5, 0, 6, 0, "CONDITIONING"]],
    }  # fmt: skip
    assert prompts_of(graph) == ["a red fox"]
    graph["nodes"].append(node(7, "ServiceImageNode", {}, ["a blue bird in a tree", 3, "auto"], "IMAGE"))
    assert prompts_of(graph) == ["a red fox", "a blue bird in a tree"]


def test_a_prompt_that_comes_into_a_subgraph_is_found_on_the_node_that_holds_it() -> None:
    link = lambda key, a, b: {"id": key, "origin_id": a, "origin_slot": 0, "target_id": b, "target_slot": 0}  # noqa: E731
    inner = {
        "id": "abc", "inputs": [{"name": "text"}],
        "nodes": [
            node(1, "CLIPTextEncode", {"text": ("STRING", 20)}, ["an old one inside"], "CONDITIONING"),
            node(2, "KSampler", {"positive": ("CONDITIONING", 21)}, [], "LATENT"),
        ],
        "links": [link(20, -10, 1), link(21, 1, 2)],
    }  # fmt: skip
    holder = node(9, "abc", {}, [4, "a green tree"], "LATENT", properties={"proxyWidgets": [["-1", "steps"], ["-1", "text"]]})
    assert prompts_of({"nodes": [holder], "links": [], "definitions": {"subgraphs": [inner]}}) == ["a green tree"]
    newer = {**holder, "widgets_values": [], "properties": {"proxyWidgets": [["1", "text"]]}}  # the value stays inside
    assert prompts_of({"nodes": [newer], "links": [], "definitions": {"subgraphs": [inner]}}) == ["an old one inside"]
    wired = [
        node(8, "PrimitiveStringMultiline", {}, ["a white horse"], "STRING"),
        node(9, "CLIPTextEncode", {"text": ("STRING", 30)}, [""], "CONDITIONING"),
        node(7, "KSampler", {"positive": ("CONDITIONING", 31)}, [], "LATENT"),
    ]
    links = [[30, 8, 0, 9, 0, "STRING"], [31, 9, 0, 7, 0, "CONDITIONING"]]
    assert prompts_of({"nodes": wired, "links": links}) == ["a white horse"]


class Knowing(Oracle):
    """Knows one prompt of each picture, by its brightness."""

    name = "knowing"

    def __init__(self, answers: dict[float, str], reads: bool = True) -> None:
        self.network, self.answers, self.reads_prompts = nn.Linear(1, 1), answers, reads

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        known = [self.answers[round(float(image.mean()), 4)] for image in images]
        return torch.tensor([float(a == p) for a, p in zip(known, prompts, strict=True)])


def test_who_knows_every_prompt_wins_always_and_who_knows_one_wins_with_that_one() -> None:
    shown = pairs(COPY)
    bright = [round(float(pair.image().mean()), 4) for pair in shown]
    all_known = scores(Knowing({b: pair.prompt for b, pair in zip(bright, shown, strict=True)}), shown, 2)
    assert by_prompt(all_known).tolist() == by_picture(all_known).tolist() == [1, 1, 1]
    wrong = scores(Knowing(dict.fromkeys(bright, shown[0].prompt)), shown, 2)  # takes everything for the first one's prompt
    assert by_prompt(wrong).tolist() == [1, 0.25, 0.25] and by_picture(wrong).tolist() == [0.5, 0.5, 0.5]


def test_own_pictures_are_compared_under_the_same_prompt() -> None:
    """By hand: picture i with prompt i + k; prompt 0 is with picture 2 at k = 1 and with picture 1 at k = 2."""
    values = np.array([[5.0, 1, 2], [3.0, 9, 6], [4.0, 7, 0]])
    assert by_picture(values).tolist() == [((5 > 7) + (5 > 6)) / 2, ((3 > 1) + (3 > 0)) / 2, ((4 > 9) + (4 > 2)) / 2]
    assert by_prompt(values).tolist() == [1, 0, 0.5]


def test_the_table_has_the_tiny_world_and_published_files_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = json.loads((ROOT / "tests" / "data" / "oracles" / "keys.json").read_text())
    torch.save(golden_weights.weights("hpsv2_tiny/", keys["hpsv2_tiny"]), tmp_path / "HPS_v2_compressed.pt")
    (tmp_path / "notes.txt").write_text("nothing of ours")
    assert list(judges(None)) == ["tiny world oracle", "tiny world judge"]
    assert list(judges(tmp_path)) == ["tiny world oracle", "tiny world judge", "HPSv2"]
    with pytest.raises(FileNotFoundError, match="--models takes a ComfyUI's models/oracles"):
        judges(tmp_path / "nowhere")
    blind = Knowing({round(float(pair.image().mean()), 4): "" for pair in pairs(COPY)}, reads=False)
    monkeypatch.setattr(picture_oracles, "judges", lambda models: {**judges(models), "blind": lambda: blind})
    figures = run(True, tmp_path, COPY, say=lambda _: None)
    assert [row["oracle"] for row in figures.rows] == ["tiny world oracle", "tiny world judge", "HPSv2", "blind"]
    assert figures.rows[-1]["own prompt"] == "doesn't read it" and len(figures.findings["correlations"]) == 6
    assert 0 <= figures.claims["own_prompt_hpsv2"].value <= 1 and figures.settings == {"pictures": 3, "others": 2}
