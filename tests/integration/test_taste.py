"""From clicks on the board to an oracle of the artist's own, in a real ComfyUI."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import requests
import torch
from harness import ANSWER_SECONDS, Comfy, GraphError
from PIL import Image
from worlds import World

PROMPTS = [f"{thing} on {ground}" for thing in ("red heart", "crab", "pizza", "blue square") for ground in
           ("blue", "green", "white", "gray")]  # fmt: skip


def ask(comfy: Comfy, method: str, route: str, **more: Any) -> requests.Response:
    return requests.request(method, f"{comfy.url}/apprentice/taste{route}", timeout=ANSWER_SECONDS, **more)


def warmth(comfy: Comfy, file: dict[str, Any]) -> float:
    """What this artist likes: red over blue."""
    answer = requests.get(f"{comfy.url}/view", {k: file[k] for k in ("filename", "subfolder", "type")}, timeout=ANSWER_SECONDS)
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"), dtype=float)
    return float((pixels[..., 0] - pixels[..., 2]).mean())


@pytest.fixture(scope="module")
def clicked(comfy: Comfy) -> list[dict[str, Any]]:
    """Sixteen pairs of draft and improvement, shown by a run, and each clicked; the pictures as the board has them."""
    world = World(PROMPTS, oracle="world")
    world.sampler("taste", threshold="worst share", value=1.0, margin=-1e6)
    run = comfy.run(world.g)
    boards = [out["apprentice_board"][0] for out in run.outputs.values() if "apprentice_board" in out]
    pictures = next(board["pictures"] for board in boards if board["stage"] == "improved")
    for number, p in enumerate(pictures):
        first, second = sorted(("draft", "improved"), key=lambda side: -warmth(comfy, p[side]))
        names = {"draft": p["key"], "improved": p["improved_key"]}
        answer = ask(comfy, "POST", "/warm/clicks", json={"better": names[first], "worse": names[second]})
        assert answer.json() == {"clicks": number + 1, "pictures": 2 * number + 2}
    return pictures


def judged(comfy: Comfy, node: str, **inputs: Any) -> Any:
    world = World(PROMPTS, oracle="world")
    taste = world.g.add(node, "taste_node", oracle=world.oracle, **inputs)
    images = world.g.add("VAEDecode", samples=world.g.add("EmptyLatentImage", width=64, height=64, batch_size=16), vae=world.vae)
    world.g.add("PreviewAny", source=taste[2])
    judge = world.g.add(
        "ApprenticeJudge", "judge", oracle=taste[0], images=images, prompt=world.list, threshold="absolute", value=taste[1]
    )
    world.g.add("PreviewAny", source=judge[1])
    return comfy.run(world.g)


def test_clicks_become_an_oracle_that_judges_and_a_file_that_is_loaded_again(comfy: Comfy, clicked: list[Any]) -> None:
    run = judged(comfy, "ApprenticeTaste", taste="warm", save_as="warm")
    said = run.outputs["taste_node"]["apprentice_text"][0]
    assert said.startswith("16 clicks. Of clicks that it had not seen")
    assert "taste 'warm'" in run.outputs["judge"]["apprentice_text"][0]
    assert (comfy.base / "models" / "tastes" / "warm.safetensors").exists()
    file = comfy.base / "user" / "default" / "apprentice" / "taste" / "warm.jsonl"
    assert file.read_text().count('"kind": "features"') == 32, "worked out once"
    assert {"taste_node", "judge"} <= judged(comfy, "ApprenticeTaste", taste="warm", save_as="warm").cached, "nothing is new"
    again = judged(comfy, "ApprenticeLoadTaste", name="warm.safetensors")
    scores = [[p["score"] for p in r.outputs["judge"]["apprentice_board"][0]["pictures"]] for r in (run, again)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert file.read_text().count('"kind": "features"') == 32


def said_by_wire(comfy: Comfy) -> str:
    world = World(PROMPTS[:1], oracle="world")
    name = world.g.add("PrimitiveString", value="warm")
    world.g.add("PreviewAny", source=world.g.add("ApprenticeTaste", "wired", oracle=world.oracle, taste=name)[2])
    return str(comfy.run(world.g).outputs["wired"]["apprentice_text"][0])


def test_a_file_with_features_of_another_length_is_worked_out_anew(comfy: Comfy, clicked: list[Any]) -> None:
    file = comfy.base / "user" / "default" / "apprentice" / "taste" / "warm.jsonl"
    judged(comfy, "ApprenticeTaste", taste="warm")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    next(line for line in lines if line["kind"] == "features")["values"] = "AACAPwAAgD8="  # 1, 1
    file.with_name("strange.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert judged(comfy, "ApprenticeTaste", taste="strange").outputs["taste_node"]["apprentice_text"][0].startswith("16 clicks")


def test_one_click_more_makes_another_taste_and_undo_takes_it_back(comfy: Comfy, clicked: list[Any]) -> None:
    body = {"better": clicked[0]["improved_key"], "worse": clicked[0]["key"]}
    assert ask(comfy, "POST", "/warm/clicks", json=body).json()["clicks"] == 17
    assert ask(comfy, "GET", "").json()["names"]["warm"] == {"clicks": 17, "pictures": 32}
    assert judged(comfy, "ApprenticeTaste", taste="warm").outputs["taste_node"]["apprentice_text"][0].startswith("17 clicks")
    assert said_by_wire(comfy).startswith("17 clicks")
    assert ask(comfy, "POST", "/warm/undo").json()["clicks"] == 16
    assert said_by_wire(comfy).startswith("16 clicks"), "where the name comes over a wire, too"


LOOK: dict[str, Any] = {
    "name": "warm look", "rank": 4, "beta": 100.0, "updates": 6, "batch_pairs": 4, "at_once": 2, "width": 0, "height": 0,
    "steps": 1, "scheduler": "karras", "own_noise": True, "learning_rate": 1e-3, "precision": "fp32",
    "gradient_checkpointing": True, "first_seed": 0, "save_every": 3,
}  # fmt: skip


def look(comfy: Comfy, stock: str = "", **changes: Any) -> Any:
    """The student's LoRA from the warm clicks, or ``stock``'s by the stock loader; what it draws is kept as made, or stock."""
    world = World(PROMPTS, oracle="world")
    made = world.g.add(
        "ApprenticeTasteFinetune", "look", model=world.student, clip=world.clip, vae=world.vae,
        **{"taste": "warm", **LOOK, **changes},
    )[0] if not stock else world.g.add(
        "LoraLoaderModelOnly", model=world.student, lora_name=stock, strength_model=1.0
    )  # fmt: skip
    text = world.g.add("CLIPTextEncode", clip=world.clip, text=PROMPTS[0])
    for name, model in (("stock" if stock else "made", made), ("before", world.student)):
        latent = world.g.add("EmptyLatentImage", width=64, height=64, batch_size=2)
        drawn = world.g.add(
            "KSampler", model=model, positive=text, negative=text, latent_image=latent, seed=1, steps=1, cfg=1.0,
            sampler_name="euler", scheduler="karras", denoise=1.0,
        )  # fmt: skip
        world.g.add("TestSave", f"save {name}", name=name, latent=drawn)
    return comfy.run(world.g)


def test_clicks_alone_make_a_lora_with_the_noise_that_each_draft_was_drawn_from(comfy: Comfy, clicked: list[Any]) -> None:
    lines = [json.loads(line) for line in
             (comfy.base / "user" / "default" / "apprentice" / "taste" / "warm.jsonl").read_text().splitlines()]  # fmt: skip
    kept = [line for line in lines if line["kind"] == "picture"]
    assert len(kept) == 32 and all("origin" in line for line in kept)
    drafts, improved = ([line["origin"] for line in kept if line["improved"] is side] for side in (False, True))
    assert sorted(origin["place"] for origin in drafts) == list(range(16)) and len({o["seed"] for o in drafts}) == 1
    assert all(origin["seed"] is None for origin in improved), "a refinement has no noise of its own"
    run = look(comfy)
    said = run.outputs["look"]["apprentice_text"][0]
    assert said.startswith("Saved warm look.safetensors.") and "16 clicks on 32 pictures of 16 prompts" in said
    assert "latents of 32 pictures were kept" in said and "the own noise of 16" in said
    look(comfy, "warm look.safetensors")
    drawn = {key: comfy.tensors(key)["latent"] for key in ("made", "stock", "before")}
    assert torch.equal(drawn["made"], drawn["stock"]) and not torch.equal(drawn["made"], drawn["before"])
    with pytest.raises(GraphError, match="was begun with another updates"):
        look(comfy, updates=7)
    with pytest.raises(GraphError, match="There are 0 clicks under the name 'nobody', and it takes 8"):
        look(comfy, taste="nobody")


def test_the_file_is_handed_out_and_deleted(comfy: Comfy, clicked: list[Any]) -> None:
    ask(comfy, "POST", "/gone/clicks", json={"better": clicked[0]["key"], "worse": clicked[0]["improved_key"]})
    lines = [json.loads(line) for line in ask(comfy, "GET", "/gone/file").text.splitlines()]
    assert [line["kind"] for line in lines] == ["picture", "picture", "click"]
    assert ask(comfy, "DELETE", "/gone").json() == {"deleted": True}
    assert "There are no clicks" in ask(comfy, "GET", "/gone/file").json()["error"]
    assert "gone" not in ask(comfy, "GET", "").json()["names"]


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [("/warm/clicks", {"better": "0" * 16, "worse": "1" * 16}, "not there any more; run the graph again"),
     ("/warm/clicks", {"better": "../x", "worse": 3}, "two different pictures"),
     ("/warm/clicks", [1], "a JSON object"), ("/warm/clicks", "[" * 4000, "a JSON object"),
     ("/warm/clicks", {"better": "a" * 9000}, "too long"),
     ("/..%2F..%2Fevil/clicks", {"better": "0" * 16, "worse": "1" * 16}, "can't be a file name")],
)  # fmt: skip
def test_what_is_no_click_is_answered_in_a_sentence(comfy: Comfy, route: str, body: Any, words: str) -> None:
    answer = ask(comfy, "POST", route, **({"data": body} if isinstance(body, str) else {"json": body}))
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_a_taste_without_clicks_and_one_of_another_oracle_are_refused_in_a_sentence(comfy: Comfy, clicked: list[Any]) -> None:
    with pytest.raises(GraphError, match="There are no clicks under the name 'nobody'"):
        judged(comfy, "ApprenticeTaste", taste="nobody")
    judged(comfy, "ApprenticeTaste", taste="warm", save_as="warm")
    world = World(PROMPTS[:1], oracle="TestPromptOracle")
    taste = world.g.add("ApprenticeLoadTaste", name="warm.safetensors", oracle=world.oracle)
    world.g.add("PreviewAny", source=taste[2])
    with pytest.raises(GraphError, match="was learned on tiny world oracle, and features_from is prompt oracle"):
        comfy.run(world.g)
