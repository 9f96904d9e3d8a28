"""A share of one picture: of those judged before it, or of the calibration; and what a share of any batch is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

import folder_paths  # noqa: E402
from comfyui_apprentice.charts.contact_sheet import contact_sheet  # noqa: E402
from comfyui_apprentice.gate.calibration import Calibration  # noqa: E402
from comfyui_apprentice.gate.decision import gate_scores  # noqa: E402
from comfyui_apprentice.gate.thresholds import budget  # noqa: E402
from comfyui_apprentice.gate.verdict import Verdict, summary  # noqa: E402
from comfyui_apprentice.nodes.judge import ApprenticeJudge  # noqa: E402
from families.judges import Brightness  # noqa: E402

KNOWN = Calibration(tuple(i / 100 for i in range(100)), "brightness", "brightness", prompts=("a",) * 100)


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / "apprentice" / "controllers"


def judged(values: list[float], mode: str, value: float, oracle: Any = None, **more: Any) -> Verdict:
    images = torch.tensor(values)[:, None, None, None].expand(-1, 8, 8, 3).contiguous()
    found: Verdict = ApprenticeJudge.execute([oracle or Brightness()], [images], ["a"], [mode], [value], **more)[0]
    return found


@pytest.mark.parametrize(
    ("mode", "value", "share"), [("worst share", 0.3, 0.3), ("worst share", 0.5, 0.5), ("percentile", 20, 0.2)]
)
def test_of_single_pictures_the_worst_are_rejected(mode: str, value: float, share: float, output: Path) -> None:
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist()
    verdicts = [judged([score], mode, value) for score in scores]
    rejected = [bool(verdict.rejected) for verdict in verdicts]
    assert abs(sum(rejected) / 200 - share) < 0.05
    worst = sorted(range(200), key=lambda i: scores[i])[: round(200 * share)]
    assert sum(rejected[i] for i in worst) > 0.75 * len(worst)
    assert f"it is {share:g} of the single pictures judged so far" in verdicts[-1].note
    assert [file.name for file in output.glob("[!.]*")] == ["alone-brightne.json"]


def test_of_a_calibration_the_share_is_its_percentile(output: Path) -> None:
    for score, accepted in ((0.29, False), (0.31, True)):
        verdict = judged([score], "worst share", 0.3, calibration=[KNOWN])
        assert bool(verdict.rejected) != accepted and "it is 0.3 of the calibration's scores" in verdict.note
    assert not output.exists()
    assert judged([0.5], "percentile", 30, calibration=[KNOWN]).note == ""


def test_nobody_and_everybody_are_as_they_were(output: Path) -> None:
    assert judged([0.1], "worst share", 0).rejected == [] and judged([0.1], "worst share", 1).rejected == [0]
    assert not output.exists()


def test_where_nothing_can_be_compared_all_or_nothing_is_explained(output: Path) -> None:
    """An oracle whose scores mean something else for every prompt, without this prompt's baseline."""
    oracle = Brightness()
    oracle.comparable_across_prompts = False
    for share, word in ((0.5, "rejects"), (0.3, "accepts")):
        verdict = judged([0.1], "worst share", share, oracle)
        assert f"{share} {word} it" in verdict.note and "running" in verdict.note
        assert summary(verdict).startswith("1 picture: ")
        assert contact_sheet(verdict, torch.zeros(1, 8, 8, 3)).isfinite().all()
    assert not output.exists()
    other = Calibration((0.1, 0.2), "brightness", "brightness", prompts=("b", "b"))
    assert "accepts it" in judged([0.1], "worst share", 0.3, oracle, calibration=[other]).note


def test_what_a_share_of_a_batch_is_is_said_where_it_is_no_whole_number() -> None:
    assert judged([0.1, 0.2, 0.3, 0.4], "worst share", 0.3).note == "0.3 of 4 pictures is 1, to the nearest count."
    ten = judged([i / 10 for i in range(10)], "worst share", 0.7)
    assert ten.note == "" and len(ten.rejected) == 7
    assert gate_scores([0.1, 0.2], "worst share", 0.5).accepted == (False, True)


def test_a_budget_for_one_picture_is_explained() -> None:
    assert "take running with 0.25" in budget([0.1], 14.0, 4.0, 40.0).note
    assert "running" not in budget([0.1, 0.2], 14.0, 4.0, 40.0).note
