"""Critics in a real ComfyUI: made from folders and from batches, loaded, sorting, naming, judging, and learning new words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Comfy, Graph, GraphError, Node
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

LARGE, SMALL = "tiny world large.safetensors", "tiny world small.safetensors"
COLOURS = {"red heart": (230, 40, 40), "blue circle": (50, 90, 230), "yellow star": (250, 220, 60)}
TEACHER: dict[str, Any] = {
    "clip": LARGE, "tokens": "none", "labelled": "none", "name": "t", "shots": 2, "epochs": 2, "batch_size": 4,
    "learning_rate": 0.0025, "precision": "fp32", "first_seed": 0,
}  # fmt: skip
DISTIL: dict[str, Any] = {
    "clip": SMALL, "pictures": "none", "classes": "\n".join(COLOURS), "name": "c", "epochs": 2, "batch_size": 8,
    "learning_rate": 0.005, "weight": 100.0, "temperature": 1.0, "augment": False, "depth": 9, "precision": "fp32",
    "first_seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def domain(comfy: Comfy) -> Path:
    """A folder with a subfolder a class in ComfyUI's input folder; pictures of several sizes."""
    folder = comfy.base / "input" / "things"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(6):
            shade = tuple(max(0, c - 8 * i) for c in colour)
            Image.new("RGB", (64 + 10 * i, 64), shade).save(folder / name / f"{i}.png")
    return folder


def teacher(g: Graph, **changes: Any) -> Node:
    return g.add("ApprenticePromptKDTeacher", "teacher", **{**TEACHER, **changes})


def distil(g: Graph, teach: Node, **changes: Any) -> Node:
    return g.add("ApprenticePromptKDDistill", "distil", teacher=teach[0], **{**DISTIL, **changes})


def student_pictures(g: Graph, prompts: str) -> tuple[Node, Node, Node]:
    """Pictures of the tiny world, their latents and their prompts."""
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    lines = g.add("ApprenticePrompts", "lines", clip=world[2], text=prompts)
    latent = g.add("EmptyLatentImage", "latent", width=64, height=64, batch_size=lines[2])
    drafts = g.add(
        "ApprenticeStudentSampler", "drafts", model=world[1], positive=lines[0], negative=lines[0], latent_image=latent[0],
        seed=1, preset="tiny-world", steps=2, cfg=1.0, denoise=1.0, sampler_name="lcm", scheduler="normal",
    )  # fmt: skip
    return g.add("VAEDecode", "pictures", samples=drafts[0], vae=world[3]), drafts, lines


def test_a_folder_becomes_a_critic_that_is_loaded_and_names_pictures(comfy: Comfy, domain: Path) -> None:
    g = Graph()
    distil(g, teacher(g, labelled="things", name="colours teacher"), pictures="things", name="colours", augment=True)
    run = comfy.run(g)
    assert run.status["status_str"] == "success"
    with safe_open(comfy.base / "models" / "promptkd" / "colours.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about["classes"]) == list(COLOURS) and about["pictures"] == "18" and about["base"] == "tiny world small"
    assert (comfy.base / "models" / "promptkd_teachers" / "colours teacher.safetensors").exists()

    g = Graph()
    pictures, _drafts, _lines = student_pictures(g, "red heart\npanda face\npizza")
    loaded = g.add("ApprenticeLoadPromptKD", "load", file="colours.safetensors", clip="auto")
    named = g.add("ApprenticeClassify", "names", critic=loaded[0], images=pictures[0], top=2)
    g.add("TestSave", "text", name="text", text=named[0])
    g.add("TestSave", "known", name="known", text=loaded[1])
    run = comfy.run(g)
    table = run.outputs["text"]["text"][0]
    assert table.count("\n") == 4 and all(any(name in line for name in COLOURS) for line in table.splitlines()[2:])
    assert run.outputs["known"]["text"] == ["\n".join(COLOURS)]


def test_tokens_from_the_file_are_the_teacher_that_learned_them(comfy: Comfy, domain: Path) -> None:
    """Two critics of the same teacher, one fresh and one read from its file, are the same to the bit."""
    weights = []
    for tokens, labelled in (("none", "things"), ("colours teacher again.safetensors", "none")):
        g = Graph()
        name = f"of {tokens[:4]}"
        distil(g, teacher(g, tokens=tokens, labelled=labelled, name="colours teacher again"), pictures="things", name=name)
        comfy.run(g)
        weights.append(load_file(comfy.base / "models" / "promptkd" / f"{name}.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_sorting_keeps_latents_in_step_and_blocks_what_is_empty(comfy: Comfy) -> None:
    g = Graph()
    made = distil(g, teacher(g), pictures="built-in icons", classes="", name="icons", epochs=2)
    pictures, drafts, _lines = student_pictures(g, "pizza on white\npanda face on white\npizza on gray\nred heart on white")
    sort = g.add("ApprenticeSort", "sort", critic=made[0], images=pictures[0], classes="", min_probability=0.0, latents=drafts[0])
    g.add("SaveImage", "files", images=sort[0], filename_prefix=sort[2])
    g.add("TestSave", "rest", name="never", image=sort[4])
    g.add("TestSave", "all", name="all", image=pictures[0], latent=drafts[0])
    g.add("TestSave", "parts", name=sort[2], image=sort[0], latent=sort[1])
    g.add("PreviewAny", "places", source=sort[3])
    run = comfy.run(g)
    everything = comfy.tensors("all")
    found = []
    for name in run.outputs["parts"]["saved"]:
        part = comfy.tensors(name)
        for image, latent in zip(part["image"], part["latent"], strict=True):
            row = next(i for i in range(4) if torch.equal(everything["image"][i], image))
            assert torch.equal(everything["latent"][row], latent)
            found.append(row)
    assert sorted(found) == [0, 1, 2, 3]
    assert "rest" not in run.outputs, "nothing runs after an empty rest"
    assert len(run.outputs["files"]["images"]) == 4
    assert not (comfy.base / "output" / "never.safetensors").exists()


def test_the_oracle_gates_by_the_class_that_the_prompt_names(comfy: Comfy) -> None:
    g = Graph()
    teach = teacher(g)
    made = distil(g, teach, pictures="built-in icons", classes="", name="icons", epochs=2)
    pictures, drafts, lines = student_pictures(g, "pizza on white\npanda face on white\nred heart on gray")
    for measure in ("probability", "logit", "cosine"):
        oracle = g.add("ApprenticePromptKDOracle", f"oracle {measure}", critic=made[0], measure=measure, class_name="",
                       teacher=teach[0])  # fmt: skip
        scored = g.add("ApprenticeScore", f"score {measure}", oracle=oracle[0], images=pictures[0], prompt=lines[1])
        g.add("TestSave", measure, name=measure, text=scored[1])
    judge = g.add("ApprenticeJudge", "judge", oracle=["oracle probability", 0], images=pictures[0], prompt=lines[1],
                  threshold="worst share", value=0.34, drafts=drafts[0], teacher_nfe=8.0)  # fmt: skip
    g.add("TestSave", "verdict", name="verdict", verdict=judge[0])
    run = comfy.run(g)

    def scores(measure: str) -> list[float]:
        return [float(line.split("|")[2]) for line in run.outputs[measure]["text"][0].splitlines()[2:]]

    assert all(0 <= p <= 1 for p in scores("probability")) and all(-1 <= c <= 1 for c in scores("cosine"))
    assert all(abs(logit) > abs(cosine) for logit, cosine in zip(scores("logit"), scores("cosine"), strict=True))
    verdict = run.outputs["verdict"]["verdict"]
    worst = min(range(3), key=lambda i: scores("probability")[i])
    assert [v["accepted"] for v in verdict] == [i != worst for i in range(3)]


def test_a_critic_of_a_judge_whose_tower_learned_gates_in_its_order(comfy: Comfy) -> None:
    """All that came last on the node at once; its file is loaded, and judges in log-odds."""
    g = Graph()
    asked = "pizza on white\npanda face on white\nred heart on gray\npizza on blue\nrainbow on white\nred heart on blue"
    pictures, _drafts, lines = student_pictures(g, asked)
    made = distil(
        g, teacher(g), classes="pizza\npanda face\nred heart\nrainbow", images=pictures[0], name="judged", epochs=3, batch_size=2,
        blocks=3, tower_rate=1e-3, target="odds", start="words", held_out=0.34, prompts=asked, judge=["tiny", 4],
    )  # fmt: skip
    said = []
    for name in ("made", "loaded"):
        if name == "loaded":
            g = Graph()
            pictures, _drafts, lines = student_pictures(g, asked)
            made = g.add("ApprenticeLoadPromptKD", "load", file="judged.safetensors", clip="auto")
        oracle = g.add("ApprenticePromptKDOracle", "oracle", critic=made[0], measure="log-odds", class_name="")
        scored = g.add("ApprenticeScore", "score", oracle=oracle[0], images=pictures[0], prompt=lines[1])
        g.add("TestSave", name, name=name, text=scored[1])
        said.append(comfy.run(g).outputs[name]["text"][0].splitlines()[2:])
    assert said[0] == said[1] and len(said[0]) == 6
    with safe_open(comfy.base / "models" / "promptkd" / "judged.safetensors", "pt") as file:
        assert "tower.proj" in file.keys() and file.metadata()["tokens"] == "none"  # noqa: SIM118


def test_new_words_take_the_place_of_old_ones(comfy: Comfy) -> None:
    g = Graph()
    teach = teacher(g)
    made = distil(g, teach, pictures="built-in icons", classes="", name="icons", epochs=2)
    words = "red heart\npizza\nrainbow"
    more = g.add("ApprenticeDomainText", "more", critic=made[0], teacher=teach[0], classes=words, keep=False)
    pictures, _drafts, _lines = student_pictures(g, "red heart on white\npizza on white")
    named = g.add("ApprenticeClassify", "named", critic=more[0], images=pictures[0], top=5)
    g.add("TestSave", "text", name="text", text=named[0])
    text = comfy.run(g).outputs["text"]["text"][0]
    rows = [line.split("|")[2] for line in text.splitlines()[2:]]
    assert all(row.count("%") == 3 for row in rows)
    assert [row.split()[0] for row in rows] == ["red", "pizza"]


def test_a_cancelled_run_goes_on_where_it_was_and_ends_in_the_same_file(comfy: Comfy, domain: Path) -> None:
    def graph(name: str) -> Graph:
        g = Graph()
        distil(g, teacher(g), pictures="things", name=name, epochs=2, batch_size=4)
        return g

    comfy.run(graph("whole critic"))
    folder = comfy.base / "output" / "apprentice" / "training" / "stopped critic"
    comfy.run_and_cancel(graph("stopped critic"), 3)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 3
    comfy.run(graph("stopped critic"))
    whole, stopped = (load_file(comfy.base / "models" / "promptkd" / f"{n} critic.safetensors") for n in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def _both(g: Graph) -> None:
    distil(g, teacher(g, tokens="colours teacher.safetensors", labelled="things"))


def _other_teacher(g: Graph) -> None:
    made = distil(g, teacher(g), pictures="things", name="refused")
    other = g.add("ApprenticePromptKDTeacher", "other", **{**TEACHER, "templates": "emoji of a {}"})
    g.add("ApprenticeDomainText", "more", critic=made[0], teacher=other[0], classes="x", keep=True)
    g.add("PreviewAny", "show", source=["more", 0])


def _unknown_class(g: Graph) -> None:
    made = distil(g, teacher(g), pictures="things", name="refused")
    pictures, _drafts, _lines = student_pictures(g, "pizza")
    g.add("ApprenticeSort", "sort", critic=made[0], images=pictures[0], classes="unicorn", min_probability=0.0)
    g.add("PreviewImage", "show", images=["sort", 0])


def _idle_judge(g: Graph) -> None:
    world = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
    distil(g, teacher(g), pictures="things", judge=world[4])


def _words_for_words(g: Graph) -> None:
    teach = teacher(g)
    made = distil(g, teach, pictures="things", start="words", name="of words")
    g.add("ApprenticeDomainText", "new", critic=made[0], teacher=teach[0], classes="pizza", keep=True)
    g.add("ApprenticePromptKDOracle", "oracle", critic=["new", 0], measure="logit", class_name="")
    g.add("PreviewAny", "show", source=["oracle", 0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (_both, "read tokens from a file, or learn them"),
        (lambda g: distil(g, teacher(g)), "There are no pictures to learn from; choose a folder, or connect images"),
        (lambda g: distil(g, teacher(g), pictures="nowhere"), "There is no folder 'nowhere'"),
        (lambda g: distil(g, teacher(g), pictures="things", classes="one"), "two names or more"),
        (lambda g: distil(g, teacher(g), pictures="built-in icons", augment=True), "augment works on a folder"),
        (lambda g: distil(g, teacher(g, clip=SMALL), name="../up"), "can't be a file name"),
        (lambda g: distil(g, teacher(g), pictures="things", target="odds"), "has no prompt: write what it was asked to show"),
        (lambda g: distil(g, teacher(g), pictures="things", target="nothing"), "which is not one of: classes, odds"),
        (_idle_judge, "learned by the target 'odds' only"),
        (_words_for_words, "takes no others later"),
        (_other_teacher, "connect that one, with the same tokens and templates"),
        (_unknown_class, "doesn't know 'unicorn'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(
    comfy: Comfy, domain: Path, build: Callable[[Graph], Any], words: str
) -> None:
    g = Graph()
    build(g)
    with pytest.raises(GraphError) as refused:
        comfy.run(g)
    assert words in str(refused.value)
