"""``apprentice bench promptkd``: its own domain, and the paper's protocols on folders of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.benchmarks import promptkd as bench
from comfyui_apprentice.benchmarks import promptkd_few as few
from comfyui_apprentice.benchmarks import promptkd_gate as gate
from comfyui_apprentice.benchmarks.promptkd_data import harmonic
from comfyui_apprentice.cli import app
from comfyui_apprentice.world.domain import domain_names, domain_pictures
from comfyui_apprentice.world.weights import CLIPS_FOLDER
from PIL import Image
from typer.testing import CliRunner

CLIPS = [
    "--teacher", str(CLIPS_FOLDER / "tiny world large.safetensors"), "--student", str(CLIPS_FOLDER / "tiny world "
    "small.safetensors"),
]  # fmt: skip


@pytest.fixture(scope="module")
def icons() -> bench.Icons:
    return bench.Icons()


def test_no_test_picture_is_a_training_picture(icons: bench.Icons) -> None:
    seen = {row.numpy().tobytes() for row in icons.train.pixels}
    assert not any(row.numpy().tobytes() in seen for row in icons.test)
    assert len(icons.train) == 12 * len(icons.names) and len(icons.test) == 8 * len(icons.names)


def test_the_teacher_learns_from_base_classes_only(icons: bench.Icons) -> None:
    rows = icons.few(2, seed=1)
    assert len(rows) == 2 * icons.base and int(icons.train_labels[rows].max()) < icons.base
    assert not torch.equal(rows, icons.few(2, seed=2))


def test_decisions_are_the_same_as_ones_own(icons: bench.Icons) -> None:
    """The large CLIP against itself decides alike, and against scores without meaning as often as chance."""
    own = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    other = torch.rand(4000, generator=torch.Generator().manual_seed(1))
    assert bench.alike(own, own * 3 - 1) == [1.0] * 9
    chance = [s * s + (1 - s) * (1 - s) for s in (i / 10 for i in range(1, 10))]
    assert bench.alike(own, other) == pytest.approx(chance, abs=0.03)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A data set in a folder: four classes of icons."""
    for part in ("train", "test"):
        pictures, labels = domain_pictures(train=part == "train", backgrounds=1)
        for label in range(4):
            for n, row in enumerate((labels == label).nonzero()[:2, 0].tolist()):
                path = tmp_path / part / domain_names()[label] / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pictures[row] * 255).byte().numpy()).save(path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["bench", "promptkd", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_base_to_novel_on_a_folder_reports_the_last_epoch_and_apart_the_best(photos: Path) -> None:
    figures = photos / "figures.json"
    said = run("--data", str(photos), *CLIPS, "--shots", "2", "--seeds", "2", "--epochs", "3", "--json", str(figures))
    rows = {row["model"]: row for row in json.loads(figures.read_text())["rows"]}
    assert list(rows) == [
        "small, zero-shot", "large, teacher", "small, distilled: last epoch",
        "small, distilled: best epoch on the test split, as the official code reports",
    ]  # fmt: skip
    assert {"base", "novel", "harmonic mean"} <= rows["small, zero-shot"].keys()
    last, best = (float(str(row["base"]).split()[0]) for row in list(rows.values())[2:])
    assert last <= best
    assert "small, zero-shot" in said


def test_cross_dataset_reports_one_accuracy_over_all_classes(photos: Path) -> None:
    figures = photos / "figures.json"
    options = ["--shots", "0", "--seeds", "1", "--epochs", "2", "--across", "--depth", "3"]
    run("--data", str(photos), *CLIPS, *options, "--json", str(figures))
    found = json.loads(figures.read_text())
    assert found["claims"].keys() == {"all_classes"}
    assert 0 <= found["claims"]["all_classes"]["value"] <= 100


def test_what_is_missing_is_told(photos: Path) -> None:
    assert "give --teacher and --student" in " ".join(run("--data", str(photos), code=2).replace("│", " ").split())
    said = " ".join(run("--data", str(photos), "--dataset", "dtd", *CLIPS, code=2).replace("│", " ").split())
    assert "is missing; lay dtd out" in said


def test_the_harmonic_mean_is_of_base_and_novel() -> None:
    assert harmonic({"base": 86.96, "novel": 80.73})["harmonic mean"] == pytest.approx(83.73, abs=0.005)
    assert harmonic({"all classes": 3.0}) == {"all classes": 3.0}


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path: Path) -> None:
    taken: list[int] = []

    def measure() -> dict[str, object]:
        taken.append(1)
        return {"claims": {"a": bench.Claim(1.0, 0.5, 2.0)}, "rows": [{"b": 1}]}

    first, again = (bench.kept(tmp_path / "part.json", measure) for _ in range(2))
    assert first == again == {"claims": {"a": {"value": 1.0, "lo": 0.5, "hi": 2.0}}, "rows": [{"b": 1}]} and taken == [1]


def test_what_a_gate_loses_is_a_part_of_the_other_ones_gain() -> None:
    theirs, ours = np.array([1.0, 3.0, 2.0]), np.array([0.9, 2.7, 1.8])
    claim = gate.lost(ours, theirs)
    assert (claim.value, claim.lo, claim.hi) == pytest.approx((0.1, 0.1, 0.1))
    assert gate.by_prompt(np.array([1.0, 2.0, 3.0, 6.0]), 2).tolist() == [2.0, 4.0]


def test_few_pictures_are_others_for_every_seed_and_gains_are_over_the_plain_clip() -> None:
    assert few.chosen(5, 100, 0) == few.chosen(5, 100, 0) != few.chosen(5, 100, 1)
    claim, rows = few.gain([{"harmonic mean": 38.0}, {"harmonic mean": 40.0}], {"harmonic mean": 36.0})
    assert claim.value == 3.0 and [row["gain"] for row in rows] == [2.0, 4.0]
