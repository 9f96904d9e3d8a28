"""A batch taken apart by its verdict and put together again, with ComfyUI's own nodes in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import Comfy, GraphError, Node
from worlds import World

PROMPTS = ["0.9 red heart on blue", "0.1 pizza on green", "0.8 blue square", "0.2 crab"]


class Taken(World):
    """Drafts, a judge, the batch taken apart, and the rejected redrawn and inverted by stock nodes."""

    def __init__(self, seed: int, threshold: float, **judge: Any) -> None:
        super().__init__(PROMPTS)
        g = self.g
        self.drafts = g.add(
            "ApprenticeStudentSampler", "drafts", model=self.student, positive=self.positive, negative=self.negative,
            latent_image=self.latent, seed=seed, preset="auto", steps=1, cfg=1.0, denoise=1.0,
        )  # fmt: skip
        self.images = g.add("VAEDecode", "pictures", samples=self.drafts, vae=self.vae)
        self.judge = g.add(
            "ApprenticeJudge", "judge", oracle=self.oracle, images=self.images, prompt=self.list, threshold="absolute",
            value=threshold, drafts=self.drafts, **judge,
        )  # fmt: skip
        self.split = g.add("ApprenticeSplit", "split", verdict=self.judge, images=self.images, latents=self.drafts)
        self.inverted = g.add("ImageInvert", "invert", image=self.split[2])
        g.add("PreviewImage", "look", images=self.inverted)
        again = g.add("ApprenticePrompts", "again", clip=self.clip, text=self.split[4])
        self.redrawn = self.redraw("redrawn", again[0], self.split[3])

    def redraw(self, name: str, positive: Any, latent: Any) -> Node:
        return self.g.add(
            "KSampler", name, model=self.student, positive=positive, negative=self.negative, latent_image=latent, seed=5, steps=2,
            cfg=1.0, sampler_name="euler", scheduler="karras", denoise=0.5,
        )  # fmt: skip

    def merged(self, **changes: Any) -> Node:
        links = {
            "verdict": self.judge, "images": self.images, "rejected": self.inverted, "latents": self.drafts,
            "rejected_latents": self.redrawn, **changes,
        }  # fmt: skip
        node = self.g.add("ApprenticeMerge", "merge", **links)
        self.save("merged", image=node[0], latent=node[1])
        self.save("before", image=self.images, latent=self.drafts)
        return node


def test_rejected_pictures_go_their_own_way_and_come_back_into_their_places(comfy: Comfy) -> None:
    world = Taken(41, 0.5)
    world.merged()
    world.save("accepted", image=world.split[0], latent=world.split[1])
    world.save("whole", latent=world.redraw("all", world.positive, world.drafts))
    world.g.add("TestSave", "places", name="places", text=world.split[6])
    run = comfy.run(world.g)
    before, merged, accepted, whole = (comfy.tensors(name) for name in ("before", "merged", "accepted", "whole"))
    assert torch.equal(accepted["image"], before["image"][[0, 2]]) and torch.equal(accepted["latent"], before["latent"][[0, 2]])
    assert torch.equal(merged["image"][[0, 2]], before["image"][[0, 2]])
    torch.testing.assert_close(merged["image"][[1, 3]], 1 - before["image"][[1, 3]])
    # Places and prompts went along: each was redrawn with its own noise and text, as in the whole batch.
    torch.testing.assert_close(merged["latent"][[1, 3]], whole["latent"][[1, 3]], rtol=1e-4, atol=1e-4)
    assert torch.equal(merged["latent"][[0, 2]], before["latent"][[0, 2]])
    assert run.outputs["split"]["apprentice_text"] == ["2 accepted, 2 rejected"]
    assert run.outputs["places"]["text"] == ["1, 3"]


def test_with_nothing_rejected_nothing_after_it_runs_and_the_batch_passes(comfy: Comfy) -> None:
    world = Taken(42, -1.0)
    world.merged()
    run = comfy.run(world.g)
    assert torch.equal(comfy.tensors("merged")["image"], comfy.tensors("before")["image"])
    assert torch.equal(comfy.tensors("merged")["latent"], comfy.tensors("before")["latent"])
    assert "look" not in run.outputs and "redrawn" not in run.executed


def test_with_all_rejected_what_comes_after_the_accepted_is_skipped(comfy: Comfy) -> None:
    world = Taken(43, 2.0)
    world.merged()
    world.g.add("PreviewImage", "passed", images=world.split[0])
    run = comfy.run(world.g)
    assert "passed" not in run.outputs and len(run.outputs["look"]["images"]) == 4
    torch.testing.assert_close(comfy.tensors("merged")["image"], 1 - comfy.tensors("before")["image"])


def test_a_stop_after_judging_holds_for_ones_own_nodes_too(comfy: Comfy) -> None:
    world = Taken(44, 0.5, stop_after_judging=True)
    world.merged()
    world.g.add("PreviewImage", "passed", images=world.split[0])
    run = comfy.run(world.g)
    assert "passed" in run.outputs and not {"look", "save_merged"} & set(run.outputs) and "redrawn" not in run.executed


@pytest.mark.parametrize(
    ("change", "message"),
    [("images", "2 pictures were rejected, but 4 came back"), ("scaled", "64 x 64 x 3 and the rejected came back as 96 x 96")],
)
def test_what_cannot_be_put_back_is_one_sentence(comfy: Comfy, change: str, message: str) -> None:
    world = Taken(45, 0.5)
    scaled = world.g.add(
        "ImageScale", "scaled", image=world.inverted, upscale_method="bilinear", width=96, height=96, crop="disabled"
    )
    world.merged(rejected=world.images if change == "images" else scaled)
    with pytest.raises(GraphError, match=message):
        comfy.run(world.g)
