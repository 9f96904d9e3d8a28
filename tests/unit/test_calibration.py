"""Calibrations: the file, what it refuses, the published percentiles, and the loop that makes them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.charts.calibration import chart
from comfyui_apprentice.gate.calibrate import BUNDLED, Task, calibrate, clean_prompts, read_prompts, tasks_left
from comfyui_apprentice.gate.calibration import Baseline, Calibration, Maker, differences, load, report, save, shipped
from comfyui_apprentice.gate.decision import gate_scores
from comfyui_apprentice.gate.first_step import correlation, expected_best, pays_from, told
from comfyui_apprentice.world.recipe.concepts import held_out_prompts
from make_prompts import bundled_prompts

NAN = math.nan
STUDENT, TEACHER = Maker("Tiny", "aaaa"), Maker("Tiny", "bbbb", "regenerate, 20 steps")
BLANK = Calibration(
    (), "ffff", "tiny CLIP", student=STUDENT, schedule="tiny-world, lcm at 80 2 0, CFG 1", name="mine",
    settings={"size": "64x64", "negative_prompt": ""},
)  # fmt: skip
FULL = replace(
    BLANK, scores=(0.1, NAN, 0.3, 0.5), prompts=("cat", "dög", "cat", "dög"), teacher_scores=(0.4, 0.2, NAN, 0.1), teacher=TEACHER
)
LCM = [-0.6084, -0.1657, 0.1546, 0.3832, 0.6154, 0.8390, 1.0873, 1.3283, 1.6417]
TURBO = [-0.3076, 0.1240, 0.4178, 0.6708, 0.9034, 1.1335, 1.3630, 1.5732, 1.7677]


# ------------------------------------------------------------------------------------------------------ the file


def same(a: Calibration, b: Calibration) -> bool:
    return repr(a) == repr(b)  # NaN is not equal to itself


@pytest.mark.parametrize(
    "calibration",
    [FULL, BLANK, replace(FULL, teacher_scores=(), teacher=Maker()), replace(FULL, first_scores=(0.2, NAN, 0.1, 0.4))],
)  # fmt: skip
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, calibration: Calibration) -> None:
    save(calibration, tmp_path / "mine.json")
    assert same(load(tmp_path / "mine.json"), calibration)


def test_the_file_tells_people_what_it_holds(tmp_path: Path) -> None:
    many = replace(BLANK, scores=tuple(i / 100 for i in range(101)), prompts=tuple(f"p{i // 2}" for i in range(101)))
    save(many, tmp_path / "mine.json")
    content = json.loads((tmp_path / "mine.json").read_text())
    assert (content["format"], content["version"], content["count"]) == ("apprentice-calibration", 1, 101)
    assert content["quantiles"] == {str(k): pytest.approx(k / 100) for k in range(10, 100, 10)}
    assert content["oracle"] == {"name": "tiny CLIP", "fingerprint": "ffff"}
    assert content["baselines"]["p3"] == {"drafts": 2, "mean": pytest.approx(0.065), "teacher_mean": None}
    assert "p50" not in content["baselines"], "one draft is no baseline"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: '{"format": "apprentice', "'mine.json' is damaged: it is no valid JSON .*; delete it and calibrate again"),
        (lambda c: "", "is no valid JSON"),
        (lambda c: "[]", "its format should be 'apprentice-calibration'"),
        (lambda c: json.dumps({**c, "format": "workflow"}), "is another kind of file"),
        (lambda c: json.dumps({**c, "version": 2}), r"written by a newer Apprentice \(version 2, this one reads up to 1\)"),
        (lambda c: json.dumps({**c, "version": "1"}), "its version should be a number from 1, not '1'"),
        (lambda c: json.dumps({k: v for k, v in c.items() if k != "drafts"}), "it has no 'drafts'"),
        (lambda c: json.dumps({k: v for k, v in c.items() if k != "schedule"}), "it has no 'schedule'"),
        (lambda c: json.dumps({**c, "count": 9}), "count is 9, but there are 4 drafts"),
        (lambda c: json.dumps({**c, "drafts": [{"prompt": "a", "score": "x"}], "count": 1}), "'x' is no number"),
        (lambda c: json.dumps({**c, "drafts": [{"prompt": 3, "score": 1}], "count": 1}), "3 should be a text"),
        (lambda c: json.dumps({**c, "drafts": c["drafts"][:1] + [{"prompt": "a", "score": 1}], "count": 2}),
         "1 of 2 drafts have a teacher_score"),
        (lambda c: json.dumps({**c, "drafts": [], "count": 0, "quantiles": {"10": 2.0, "20": 1.0}}), "quantiles don't rise"),
        (lambda c: json.dumps({**c, "oracle": "tiny"}), "an entry is not as it should be"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "mine.json"
    save(FULL, path)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file 'none\.json'"):
        load(tmp_path / "none.json")


def test_saving_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    save(FULL, path)
    with pytest.raises(TypeError):
        save(replace(FULL, settings={"size": object()}), path)
    assert same(load(path), FULL) and [p.name for p in tmp_path.iterdir()] == ["mine.json"]


# -------------------------------------------------------------------------------------------- what it tells


def test_baselines_and_pairs() -> None:
    assert FULL.baselines() == {"cat": Baseline(2, 0.2, 0.4)}, "the dog has one score that is a number"
    assert FULL.pairs() == ([0.1, 0.5], [0.4, 0.1]), "one pair a prompt, the first whose draft has a score"
    with pytest.raises(ValueError, match="has no pictures of a teacher"):
        BLANK.pairs()


@pytest.mark.parametrize(
    ("scores", "k", "expected"), [((3.0,), 50, 3.0), ((2.0,) * 9, 10, 2.0), ((1.0, NAN, 3.0), 50, 2.0), ((0.0, 1.0), 25, 0.25)]
)
def test_percentiles_of_one_constant_and_broken_scores(scores: tuple[float, ...], k: float, expected: float) -> None:
    assert replace(BLANK, scores=scores).percentile(k) == (expected, "")


def test_a_percentile_of_no_score_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="no finite score to take a percentile of"):
        replace(BLANK, scores=(NAN,)).percentile(50)
    assert replace(BLANK, scores=(NAN,)).quantiles() == {}


def test_the_report_and_the_chart_show_every_kind() -> None:
    assert "4 drafts of 2 prompts, scored by tiny CLIP" in report(FULL) and "Of 2 pairs" in report(FULL)
    assert "not numbers, and are left out: 1." in report(FULL)
    published = load(shipped()["lcm-sdxl-imagereward"])
    assert "published percentiles for LCM-SDXL with ImageReward" in report(published) and "Schedule" not in report(published)
    pictures = [chart(c) for c in (FULL, BLANK, published, replace(BLANK, scores=(1.0,)), replace(BLANK, scores=(NAN,)))]
    assert {tuple(p.shape) for p in pictures} == {(1, 320, 720, 3)}
    assert not torch.equal(pictures[0], pictures[1]) and all(p.min() >= 0 and p.max() <= 1 for p in pictures)


# ------------------------------------------------------------------------------------------------- published


@pytest.mark.parametrize(("name", "scores"), [("lcm-sdxl-imagereward", LCM), ("sdxl-turbo-imagereward", TURBO)])
def test_the_official_percentiles_ship(name: str, scores: list[float]) -> None:
    calibration = load(shipped()[name])
    assert [calibration.percentile(10 * (i + 1))[0] for i in range(9)] == scores
    gate = gate_scores([scores[2], scores[2] - 1e-6], "percentile", 30, calibration)
    assert gate.threshold == scores[2] and gate.accepted == (True, False) and gate.note == ""


def test_published_percentiles_are_straight_between_and_say_where_they_end() -> None:
    calibration = load(shipped()["lcm-sdxl-imagereward"])
    assert calibration.percentile(25)[0] == pytest.approx((-0.1657 + 0.1546) / 2)
    assert calibration.percentile(5)[0] == LCM[0] and calibration.percentile(95)[0] == LCM[-1]
    gate = gate_scores([-0.7], "percentile", 5, calibration)
    assert gate.accepted == (False,) and "reach from 10 to 90, so 5 was taken as 10" in gate.note
    assert gate_scores([-9.0], "percentile", 0, calibration).accepted == (True,)
    assert gate_scores([9.0], "percentile", 100, calibration).accepted == (False,)
    with pytest.raises(ValueError, match="from 0 to 100"):
        gate_scores([9.0], "percentile", 101, calibration)


def test_published_percentiles_hold_for_their_oracle_whatever_its_version_is_called() -> None:
    calibration = load(shipped()["sdxl-turbo-imagereward"])
    for name in ("ImageReward", "ImageReward v1.0", "image_reward-1.0"):
        calibration.require_oracle("1234", name)
    for name in ("PickScore", "ImageReward + PickScore", ""):
        with pytest.raises(ValueError, match="holds for the oracle ImageReward, but the judge uses"):
            calibration.require_oracle("1234", name)
    calibration.require_student("any", "any")
    with pytest.raises(ValueError, match="consists of published percentiles"):
        calibration.joined(replace(calibration, published=()))


# ------------------------------------------------------------------------------------------------ who made it


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"oracle": "eeee"}, "another oracle (tiny CLIP ffff; now tiny CLIP eeee)"),
        ({"student": Maker("Tiny", "cccc")}, "another student (Tiny aaaa; now Tiny cccc)"),
        ({"schedule": "other"}, "another schedule (tiny-world, lcm at 80 2 0, CFG 1; now other)"),
        ({"teacher": TEACHER}, "another teacher (none; now Tiny bbbb, regenerate, 20 steps)"),
        ({"settings": {"size": "128x64", "negative_prompt": ""}}, "another size (64x64; now 128x64)"),
    ],
)
def test_drafts_of_another_making_are_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match="choose another name") as error:
        BLANK.joined(replace(BLANK, **change))
    assert named in str(error.value) and differences(BLANK, replace(BLANK, **change)) == [named]


def test_the_judges_student_and_schedule_are_compared_where_they_are_known() -> None:
    BLANK.require_student("aaaa", BLANK.schedule)
    BLANK.require_student("", "")
    with pytest.raises(ValueError, match=r"another student \(Tiny aaaa; these drafts are by cccc\)"):
        BLANK.require_student("cccc", BLANK.schedule)
    with pytest.raises(ValueError, match="another schedule"):
        BLANK.require_student("aaaa", "tiny-world, lcm at 80 0, CFG 1")


# --------------------------------------------------------------------------------------------------- the loop


class Artist:
    """Draws a picture that is a number, which depends on the noise (drafts held, place in the batch) and the prompt."""

    def __init__(self, stop_after: int | None = None, teacher: bool = False) -> None:
        self.stop_after, self.teacher, self.calls = stop_after, teacher, 0

    def __call__(self, tasks: Sequence[Task], held: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.calls == self.stop_after:
            raise InterruptedError("stopped")
        self.calls += 1
        values = [held + place + len(task.prompt) / 100 for place, task in enumerate(tasks)]
        images = torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)
        return images, images + 0.5 if self.teacher else None


def number_of(images: torch.Tensor, prompts: list[str]) -> list[float]:
    assert len(images) == len(prompts)
    return [float(value) for value in images.flatten()]


PROMPTS = [f"prompt {'x' * i}" for i in range(7)]


def test_a_stopped_calibration_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = calibrate(Artist(), number_of, PROMPTS, tmp_path / "whole.json", BLANK, batch=2, drafts_per_prompt=2)
    path = tmp_path / "stopped.json"
    with pytest.raises(InterruptedError):
        calibrate(Artist(stop_after=3), number_of, PROMPTS, path, BLANK, batch=2, drafts_per_prompt=2)
    assert len(load(path)) == 6
    rest = Artist()
    resumed = calibrate(rest, number_of, PROMPTS, path, BLANK, batch=2, drafts_per_prompt=2)
    assert rest.calls == 4 and same(resumed, whole) and same(load(path), whole)
    assert whole.prompts == (*PROMPTS, *PROMPTS), "every prompt once before any comes twice"


def test_more_prompts_and_more_drafts_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    first = calibrate(Artist(), number_of, PROMPTS[:3], path, BLANK)
    more = calibrate(Artist(), number_of, PROMPTS[:5], path, BLANK)
    assert more.scores[:3] == first.scores and more.prompts == tuple(PROMPTS[:5])
    nothing = Artist()
    assert same(calibrate(nothing, number_of, PROMPTS[:2], path, BLANK), more) and nothing.calls == 0
    twice = calibrate(Artist(), number_of, PROMPTS[:5], path, BLANK, drafts_per_prompt=2)
    assert twice.scores[:5] == more.scores and set(twice.baselines()) == set(PROMPTS[:5])


def test_interrupting_keeps_what_there_is_and_progress_counts_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = tmp_path / "mine.json"
    part = calibrate(
        Artist(), number_of, PROMPTS, path, BLANK, batch=2, progress=lambda *n: told.append(n), interrupted=lambda: len(told) == 2
    )
    assert len(part) == 4 and told == [(2, 7), (4, 7)] and same(load(path), part)
    calibrate(Artist(), number_of, PROMPTS, path, BLANK, batch=2, progress=lambda *n: told.append(n))
    assert told[2:] == [(6, 7), (7, 7)]


def test_going_on_with_another_student_or_oracle_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    calibrate(Artist(), number_of, PROMPTS[:2], path, BLANK)
    content, artist = path.read_bytes(), Artist()
    for other in (replace(BLANK, student=Maker("Tiny", "cccc")), replace(BLANK, oracle="eeee"), replace(BLANK, teacher=TEACHER)):
        with pytest.raises(ValueError, match=r"another (student|oracle|teacher)"):
            calibrate(artist, number_of, PROMPTS, path, other)
    assert artist.calls == 0 and path.read_bytes() == content


def test_pairs_with_the_teacher_and_broken_scores_are_kept(tmp_path: Path) -> None:
    def nan_for_first(images: torch.Tensor, prompts: list[str]) -> list[float]:
        return [NAN, *number_of(images, prompts)[1:]]

    blank = replace(BLANK, teacher=TEACHER)
    made = calibrate(Artist(teacher=True), nan_for_first, PROMPTS[:3], tmp_path / "p.json", blank)
    assert same(load(tmp_path / "p.json"), made) and math.isnan(made.scores[0])
    drafts, teachers = made.pairs()
    assert len(drafts) == 2 and [t - d for d, t in zip(drafts, teachers, strict=True)] == pytest.approx([0.5, 0.5])


def test_nothing_to_draw_and_wrong_counts_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are no prompts to calibrate on"):
        calibrate(Artist(), number_of, [], tmp_path / "p.json", BLANK)
    with pytest.raises(ValueError, match="at least one draft a prompt"):
        calibrate(Artist(), number_of, PROMPTS, tmp_path / "p.json", BLANK, drafts_per_prompt=0)
    with pytest.raises(ValueError, match="7 drafts were asked for, but 1 came back"):
        calibrate(Artist(), lambda images, prompts: [1.0], PROMPTS, tmp_path / "p.json", BLANK)
    assert not (tmp_path / "p.json").exists()


def test_tasks_left_counts_repeated_prompts_once() -> None:
    assert tasks_left(None, ["a", "b", "a"], 2) == [Task("a", 0), Task("b", 0), Task("a", 1), Task("b", 1)]
    assert tasks_left(replace(BLANK, scores=(1.0, 2.0), prompts=("b", "c")), ["a", "b"], 1) == [Task("a", 0)]


# ---------------------------------------------------------------------------------------------------- prompts


def test_prompts_from_text_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa cat\r\n\r\n  a dög \na cat\nthird\n".encode())
    assert read_prompts(file) == ["a cat", "a dög", "third"] and read_prompts(file, 2) == ["a cat", "a dög"]


@pytest.mark.parametrize("heading", ["caption", "Prompt", " TEXT "])
def test_prompts_from_a_csv_column(tmp_path: Path, heading: str) -> None:
    file = tmp_path / "p.CSV"
    file.write_text(f'id,{heading}\n1,"a cat, ""sitting"""\n2,"two\nlines"\n3\n4,\n', encoding="utf-8-sig")
    assert read_prompts(file) == ['a cat, "sitting"', "two lines"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"id,title\n1,x\n", "needs a column called caption, prompt or text in its first line, which has 'id', 'title'"),
        ("p.csv", b"", "which has nothing"),
        ("p.txt", b" \n\n", "has no prompts: write one a line"),
        ("p.txt", b"\xff\xfe\x00a", "is not text in UTF-8"),
        ("none.txt", None, "There is no prompt file 'none.txt'"),
    ],
)
def test_unusable_prompt_files_are_one_sentence(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_the_bundled_prompts_are_200_that_training_has_shown() -> None:
    prompts = read_prompts(BUNDLED)
    assert prompts == bundled_prompts(), "run: python scripts/make_prompts.py"
    assert len(prompts) == 200 and not set(prompts) & {prompt.text() for prompt in held_out_prompts()}
    assert clean_prompts(prompts) == prompts


# ------------------------------------------------------------------------------------------------------ the first step


def test_the_expected_best_of_normals_is_the_tables() -> None:
    """Harter 1961, "Expected values of normal order statistics", table 1."""
    assert [round(expected_best(n), 3) for n in (1, 2, 3, 5, 10)] == [0.0, 0.564, 0.846, 1.163, 1.539]


def test_a_look_after_the_first_step_pays_for_many_steps_and_a_high_correlation_alone() -> None:
    assert math.isinf(pays_from(1)) and math.isinf(pays_from(2))
    assert pays_from(4) == pytest.approx(0.5642 / 1.0294, abs=1e-3)
    rng = np.random.default_rng(0)
    gains = []
    for r in (pays_from(4) - 0.2, pays_from(4) + 0.2):
        first = rng.normal(size=(40_000, 4))
        last = r * first + math.sqrt(1 - r * r) * rng.normal(size=first.shape)
        gains.append(last[np.arange(len(last)), first.argmax(1)].mean() - rng.normal(size=(40_000, 2)).max(1).mean())
    assert gains[0] < 0 < gains[1]


def test_the_correlation_of_first_and_last_step_is_among_drafts_of_one_prompt() -> None:
    rng = np.random.default_rng(1)
    level = np.repeat(10 * rng.normal(size=300), 4)
    first = rng.normal(size=1200)
    last = 0.5 * first + math.sqrt(0.75) * rng.normal(size=1200)
    prompts = [str(i // 4) for i in range(1200)]
    assert correlation(list(first + level), list(last + level), prompts) == pytest.approx(0.5, abs=0.06)
    assert "it doesn't pay (with 4 steps from r = 0.55)" in told(list(first + level), list(last + level), prompts, 4)
    assert "never pays" in told(list(first), list(last), prompts, 2)
    assert "nothing is known" in told([1.0, 1.0], [2.0, 2.0], ["a", "b"], 4)
