"""Lists, wires and other packs: samplers that come later, values over a link, lists of batches."""

from __future__ import annotations

import asyncio
import inspect
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from comfyui_apprentice import comfy_entrypoint  # noqa: E402
from comfyui_apprentice.bridge.info import Info, with_info  # noqa: E402
from comfyui_apprentice.charts.pictures import save_picture  # noqa: E402
from comfyui_apprentice.nodes import folders, types  # noqa: E402
from comfyui_apprentice.nodes.judge import ApprenticeJudge  # noqa: E402
from comfyui_apprentice.nodes.oracles import ApprenticeBestOf, ApprenticeScore  # noqa: E402
from comfyui_apprentice.nodes.report import ApprenticeSaveImages, fill_tokens  # noqa: E402
from comfyui_apprentice.nodes.sample import ApprenticeStudentSampler  # noqa: E402
from comfyui_apprentice.oracles.aesthetic import Aesthetic  # noqa: E402
from comfyui_apprentice.oracles.clip_iqa import ClipIqa  # noqa: E402
from families import judges  # noqa: E402

NODES = asyncio.run(asyncio.run(comfy_entrypoint()).get_node_list())
CHECKED = [node for node in NODES if "validate_inputs" in vars(node)]


@pytest.mark.parametrize("node", CHECKED, ids=lambda node: node.__name__)
def test_what_is_connected_or_missing_has_no_value_yet_and_is_not_checked(node: Any) -> None:
    names = list(inspect.signature(node.validate_inputs).parameters)
    assert names and node.validate_inputs() is True
    for none in (None, [None]) if node.GET_SCHEMA().is_input_list else (None,):
        assert node.validate_inputs(**dict.fromkeys(names, none)) is True
    for name in set(names) - {"filename_prefix", "input_types", "quality"}:
        assert isinstance(node.validate_inputs(**{name: "{no such thing/:"}), str), f"{name} is not checked"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_fingerprint_is_made_without_values(node: Any) -> None:
    if "fingerprint_inputs" in vars(node):
        names = [p.name for p in inspect.signature(node.fingerprint_inputs).parameters.values() if p.kind != p.VAR_KEYWORD]
        node.fingerprint_inputs()
        node.fingerprint_inputs(**dict.fromkeys(names))


@pytest.mark.parametrize(("name", "known"), [("sampler_name", "SAMPLER_NAMES"), ("scheduler", "SCHEDULER_NAMES")])
def test_samplers_and_schedulers_of_packs_that_load_later_are_known(name: str, known: str, monkeypatch: Any) -> None:
    assert "added later" in str(types.check_combos(**{name: "added later"})) and name in str(types.check_combos(**{name: "x"}))
    monkeypatch.setattr(comfy.samplers, known, [*getattr(comfy.samplers, known), "added later"])
    assert types.check_combos(**{name: "added later"}) is True
    inputs = {item.id: item for item in ApprenticeStudentSampler.define_schema().inputs}
    assert "added later" in inputs[name].options


NOW = time.struct_time((2026, 3, 4, 5, 6, 7, 0, 0, 0))


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("%date:yyyy-MM-dd%/a", "2026-03-04/a"),
        ("%date:d.M.yy hh:mm:ss%", "4.3.26 05_06_07"),
        ("a:b", "a_b"),
        ("%width%_%batch_num%", "%width%_%batch_num%"),
        ("%KSampler.seed%", "42"),
        ("%My loader.name%", "sub_model.safetensors"),
        ("%Renamed.seed%", "43"),
        ("%KSampler.model% %None.seed%", "%KSampler.model% %None.seed%"),
    ],
)
def test_tokens_of_the_front_end_are_filled_in(prefix: str, expected: str) -> None:
    prompt = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 42, "model": ["2", 0]}},
        "2": {"class_type": "Loader", "inputs": {"name": "sub/model.safetensors"}, "_meta": {"title": "My loader"}},
        "3": {"class_type": "Other", "inputs": {"seed": 43}},
    }
    workflow = {"workflow": {"nodes": [{"id": 3, "properties": {"Node name for S&R": "Renamed"}}]}}
    assert fill_tokens(prefix, prompt, workflow, NOW) == expected


def test_names_are_measured_in_bytes_before_work_starts(tmp_path: Path) -> None:
    for room, form in ((244, "{}"), (255, "{}/a")):
        assert ApprenticeSaveImages.validate_inputs(form.format("x" * room)) is True
        assert "bytes" in str(ApprenticeSaveImages.validate_inputs(form.format("é" * (room // 2 + 1))))
    for token in ("%date:yyyy-MM-dd%", "%year%-%month%-%day%"):  # ten bytes
        assert ApprenticeSaveImages.validate_inputs("é" * 117 + token) is True
        assert "bytes" in str(ApprenticeSaveImages.validate_inputs(f"{'é' * 118}{token}"))
    assert "bytes" in str(ApprenticeSaveImages.validate_inputs("%KSampler.seed%" + "é" * 123))
    with pytest.raises(ValueError, match="bytes"):
        folders.check_name("猫" * 67, "run")
    assert folders.check_name("猫" * 66, "run")
    save_picture(torch.zeros(8, 8, 3), tmp_path / ("é" * 122 + "_00001_.png"), {})
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("prefix", "folder", "name"),
    [
        ("a/b_%width%x%height%_%batch_num%", "a", "b_8x6_{i}_0000{n}_.png"),
        ("%Text.text%/b", "猫" * 85, "b_0000{n}_.png"),
        ("x%Text.text%", "", "x" + "猫" * 81 + "_0000{n}_.png"),
        ("%batch_num%%Text.text%", "", "猫" * 81 + "_0000{n}_.png"),
    ],
)
def test_pictures_are_saved_whatever_a_token_turns_out_to_be(
    prefix: str, folder: str, name: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """A widget's text is known only when all is drawn; what is too long is cut, and a second run overwrites nothing."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    prompt = {"1": {"class_type": "Text", "inputs": {"text": "猫" * 300}}}
    hidden = SimpleNamespace(prompt=prompt, extra_pnginfo=None)
    save = type("Save", (ApprenticeSaveImages,), {"hidden": hidden})
    assert save.validate_inputs(prefix) is True
    verdict = ApprenticeJudge.execute([Brightness()], [grey([0.1, 0.2], 6)], ["a"], ["absolute"], [0.0])[0]
    save.execute(grey([0.1, 0.2], 6), verdict, prefix)
    expected = sorted(name.format(i=i, n=i + 1) for i in range(2))
    assert sorted(file.name for file in (tmp_path / folder).iterdir()) == expected
    save.execute(grey([0.1, 0.2], 6), verdict, prefix)
    assert len(list((tmp_path / folder).iterdir())) == 4


class Brightness(judges.Brightness):
    """That, and the length of the prompt that it was asked with."""

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return super().reward(images, prompts) + torch.tensor([float(len(prompt)) for prompt in prompts])


def grey(values: list[float], height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, height, width, 3).contiguous()


def drafts(values: list[float], nfe: float, seed: int, student: str = "s") -> dict[str, Any]:
    samples = torch.tensor(values)[:, None, None, None].expand(-1, 4, 2, 2).contiguous()
    return with_info({}, samples, Info((nfe,) * len(values), seed, samples, 1.0, "SD15", "", student, "x"))


def test_a_judge_joins_a_list_of_drafts() -> None:
    latents = [drafts([0.1, 0.5], 4.0, 7), drafts([0.3], 8.0, 9)]
    images = [grey([0.1, 0.5]), grey([0.3], 8, 16)]
    verdict = ApprenticeJudge.execute([Brightness()], images, ["a", "b", "c"], ["absolute"], [1.2], drafts=latents)[0]
    assert [round(j.score, 4) for j in verdict] == [1.1, 1.5, 1.3] and verdict.rejected == [0]
    assert [j.nfe for j in verdict] == [4.0, 4.0, 8.0] and [j.seed for j in verdict] == [7, 7, 9]
    with pytest.raises(ValueError, match="different students"):
        ApprenticeJudge.execute(
            [Brightness()], images, ["a"], ["absolute"], [1.2], drafts=[latents[0], drafts([0.3], 8.0, 9, "other")]
        )


def test_pictures_of_different_sizes_are_scored_each_alone() -> None:
    images = [grey([0.1, 0.5]), grey([0.3], 8, 16), grey([0.2])]
    scores = ApprenticeScore.execute([Brightness()], images, ["", "ab", "", ""])[0]
    assert scores == pytest.approx([0.1, 2.5, 0.3, 0.2])


def test_the_best_of_a_list_of_batches() -> None:
    images, latents = [grey([0.1, 0.5]), grey([0.3], 8, 16), grey([0.9])], [drafts([0.1, 0.5], 4.0, 7), drafts([0.3], 8.0, 9)]
    latents.append({"samples": torch.full((1, 4, 2, 2), 0.9)})
    masks = [grey([0.1, 0.5])[..., 0], grey([0.3], 8, 16)[..., 0], grey([0.9])[..., 0]]
    best, latent, mask, _, scores, rows = ApprenticeBestOf.execute(
        [Brightness()], images, [""], [2], [False], ["best first"], latents, masks
    ).result
    assert rows == [3, 1] and scores == pytest.approx([0.9, 0.5])
    assert torch.equal(best, grey([0.9, 0.5])) and torch.equal(mask, best[..., 0])
    assert latent["samples"][:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.5]) and latent["batch_index"] == [0, 1]
    with pytest.raises(ValueError, match="different sizes"):
        ApprenticeBestOf.execute([Brightness()], images, [""], [3], [False], ["best first"])
    with pytest.raises(ValueError, match="3 latents for 4 pictures"):
        ApprenticeBestOf.execute([Brightness()], images, [""], [1], [False], ["best first"], latents[:2])


def test_an_oracle_asked_nothing_says_so() -> None:
    oracle, images = Brightness(), [grey([0.1, 0.2])]
    assert "The prompt is empty" in ApprenticeJudge.execute([oracle], images, [" "], ["absolute"], [0.0])[0].note
    assert "1 of 2 prompts" in ApprenticeScore.execute([oracle], images, ["a", ""])[1]
    assert "empty" not in ApprenticeScore.execute([oracle], images, ["a"])[1]
    oracle.reads_prompts = False
    assert "empty" not in ApprenticeScore.execute([oracle], images, [""])[1]
    assert not Aesthetic.reads_prompts and not ClipIqa.reads_prompts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_in_half_precision_are_judged(dtype: torch.dtype) -> None:
    """As ComfyUI hands them out with --fp16-intermediates."""
    images = grey([0.25, 0.5]).to(dtype)
    verdict = ApprenticeJudge.execute([Brightness()], [images], ["a", "b"], ["absolute"], [1.4])[0]
    assert [round(j.score, 4) for j in verdict] == [1.25, 1.5] and verdict.rejected == [0]
