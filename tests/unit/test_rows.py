"""Rows of a batch need torch alone: the rest is held by tests/families/test_rows.py, with ComfyUI's own classes."""

from __future__ import annotations

import subprocess
import sys

import torch
from comfyui_apprentice.bridge.rows import take_conditioning, take_latent, take_mask, take_rows


def test_nothing_of_comfyui_is_imported() -> None:
    code = "import sys, comfyui_apprentice.bridge.rows; print('comfy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_rows_begin_anew_and_one_holds_for_all() -> None:
    value = torch.arange(2)[:, None]
    assert take_rows(value, [3, 0, 2], 4).flatten().tolist() == [1, 0, 0]
    assert take_rows(value, [0, 1, 2, 3], 4) is value  # the whole batch is ComfyUI's affair
    one = torch.zeros(1, 5)
    assert take_rows(one, [2], 4) is one and take_rows(3.5, [2], 4) == 3.5


def test_a_mask_of_frames_is_for_every_video() -> None:
    frames = torch.rand(3, 1, 4, 4)
    assert take_mask(frames, [1], 3, ndim=5) is frames
    assert torch.equal(take_mask(frames, [1], 3), frames[[1]])
    assert torch.equal(take_mask(frames.reshape(1, 1, 3, 4, 4), [1], 3), frames[[1]])


def test_part_of_a_latent_keeps_its_places() -> None:
    latent = {"samples": torch.rand(3, 4, 2, 2), "batch_index": [5, 6, 9], "noise_mask": None, "type": "audio"}
    part = take_latent(latent, [2, 0])
    assert part["batch_index"] == [9, 5] and part["type"] == "audio" and torch.equal(part["samples"], latent["samples"][[2, 0]])


def test_the_whole_conditioning_is_the_same_object() -> None:
    conditioning = [[torch.rand(2, 3, 4), {"pooled_output": torch.rand(2, 4)}]]
    assert take_conditioning(conditioning, [0, 1, 2], 3) is conditioning
    taken = take_conditioning(conditioning, [2, 1], 3)
    assert torch.equal(taken[0][0], conditioning[0][0][[0, 1]]) and conditioning[0][0].shape == (2, 3, 4)
