"""Bulk drawing without a model: what is read, what is kept, what a stop or a bad prompt costs, and how workflows are filled."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from comfyui_apprentice.bulk.folder import Folder
from comfyui_apprentice.bulk.items import Item, batches, read_items
from comfyui_apprentice.bulk.job import Drawn, Job, PictureError, file_of, finish, run
from comfyui_apprentice.bulk.manifest import LINES, Manifest
from comfyui_apprentice.bulk.pool import NoWorkersError, Pool
from comfyui_apprentice.bulk.workflow import Policy, Template
from comfyui_apprentice.cli import app
from comfyui_apprentice.cli.draw import tiny_world
from comfyui_apprentice.gate.story import read_story
from drawing import FACTS, items, stopping, toy
from typer.testing import CliRunner


def drawn(
    folder: Path, draw: Callable[..., Drawn], count: int = 7, stop_after: int = 10**6, sheet: int = 0, at_once: int = 1
) -> dict[int, object]:
    """Run a job of batches of three, which stops when so many are done; the manifest's records."""
    manifest, (counted, stopped) = Manifest(folder, FACTS), stopping(draw, stop_after)
    with manifest.held():
        run(Job(items(count), 3, 3, sheet), counted, manifest, lambda *_: None, stopped, at_once)
    return dict(manifest.records)


# ---------------------------------------------------------------------------------------------------------- what is read


def test_prompts_come_from_lines_tables_and_json_lines(tmp_path: Path) -> None:
    for name, text in {
        "a.txt": "a cat\n\na dog\n", "a.csv": "id,caption\n1,a cat\n2,a dog\n",
        "a.jsonl": '{"prompt": "a cat", "id": 1}\n"a dog"\n\n{"caption": "a\\ncat"}\n',
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert [item.prompt for item in read_items(tmp_path / name)] == ["a cat", "a dog"], name
    twice = read_items(tmp_path / "a.txt", count=2)
    assert [(item.number, item.prompt) for item in twice] == [(0, "a cat"), (1, "a dog"), (2, "a cat"), (3, "a dog")]
    assert len(read_items(tmp_path / "a.txt", limit=1)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "has no prompts"), ("{", "Line 1 of 'a.jsonl' is not JSON"), ('{"x": 1}', "no text called caption, prompt or text"),
     ("[1]", "no text called")],
)  # fmt: skip
def test_json_lines_without_prompts_are_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_items(tmp_path / "a.jsonl")


# ---------------------------------------------------------------------------------------------------------- what is kept


def test_a_stopped_job_goes_on_to_the_same_manifest_and_pictures(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "whole", toy())
    assert list(whole) == list(range(7))
    calls: list[list[str]] = []
    assert len(drawn(tmp_path / "stopped", toy(calls=calls), stop_after=3)) == 3
    assert drawn(tmp_path / "stopped", toy(calls=calls)) == whole
    assert len(calls) == 3  # no batch twice
    for number in whole:
        assert (tmp_path / "stopped" / file_of(number)).read_bytes() == (tmp_path / "whole" / file_of(number)).read_bytes()
    assert read_story(tmp_path / "whole" / file_of(4))["seed"] == 6


def test_a_line_that_a_power_cut_tore_is_drawn_again_and_only_that(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "job", toy())
    lines = (tmp_path / "job" / LINES).read_bytes()
    (tmp_path / "job" / LINES).write_bytes(lines[:-10])
    before = {number: (tmp_path / "job" / file_of(number)).stat().st_mtime_ns for number in range(6)}
    assert drawn(tmp_path / "job", toy()) == whole
    assert (tmp_path / "job" / LINES).read_bytes() == lines
    assert before == {number: (tmp_path / "job" / file_of(number)).stat().st_mtime_ns for number in range(6)}


def test_a_folder_of_another_job_or_of_something_else_is_left_alone(tmp_path: Path) -> None:
    drawn(tmp_path / "job", toy())
    with pytest.raises(ValueError, match=r"another job \(seed was 3 and is 4\)"):
        Manifest(tmp_path / "job", {"seed": 4})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="is not empty"):
        Manifest(tmp_path / "mine", FACTS)
    held = Manifest(tmp_path / "job", FACTS)
    with held.held(), pytest.raises(ValueError, match="at work in"), Manifest(tmp_path / "job", FACTS).held():
        pass


def test_a_damaged_manifest_is_told_and_not_overwritten(tmp_path: Path) -> None:
    drawn(tmp_path / "job", toy())
    (tmp_path / "job" / LINES).write_text('{"number": "x"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        drawn(tmp_path / "job", toy())
    assert (tmp_path / "job" / LINES).read_text(encoding="utf-8") == '{"number": "x"}\n'


def test_bad_prompts_are_marked_and_the_others_are_as_without_them(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "whole", toy())
    marked = drawn(tmp_path / "marked", toy(bad=["prompt 1", "prompt 2"], nan=["prompt 4"]))
    assert {number for number in whole if marked[number] == whole[number]} == {0, 3, 5, 6}
    assert [marked[number].error for number in (1, 2)] == ["no tokens for prompt 1", "no tokens for prompt 2"]  # type: ignore[attr-defined]
    assert "NaN" in marked[4].error and marked[4].file == "" and marked[4].decision == "failed"  # type: ignore[attr-defined]
    assert not (tmp_path / "marked" / file_of(4)).exists()


def test_a_model_that_draws_nothing_at_all_stops_the_job_and_keeps_what_is_done(tmp_path: Path) -> None:
    drawn(tmp_path / "job", toy(), stop_after=3)

    def broken(part: Sequence[Item], seed: int) -> Drawn:
        raise PictureError("out of memory")

    with pytest.raises(PictureError, match="out of memory"):
        drawn(tmp_path / "job", broken)
    assert len((tmp_path / "job" / LINES).read_text(encoding="utf-8").splitlines()) == 3


def test_sheets_come_when_they_are_full(tmp_path: Path) -> None:
    drawn(tmp_path / "job", toy(), stop_after=3, sheet=4)
    assert not (tmp_path / "job" / "sheets").exists()
    drawn(tmp_path / "job", toy(), sheet=4)
    assert sorted(path.name for path in (tmp_path / "job" / "sheets").iterdir()) == ["0000000.png", "0000004.png"]


def test_the_table_is_the_manifest(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    manifest = Manifest(tmp_path / "job", FACTS)
    with manifest.held():
        run(Job(items(4), 3, 2**64 - 1), toy(bad=["prompt 1"]), manifest, lambda *_: None)
        rows = parquet.read_table(manifest.as_table()).to_pylist()
    assert rows == [json.loads(line) for line in (tmp_path / "job" / LINES).read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------------------- workers


class GoneError(Exception):
    """A worker is no longer there."""


def test_several_batches_at_once_make_the_same_manifest(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "one", toy(), count=20)
    assert drawn(tmp_path / "four", toy(), count=20, at_once=4) == whole


def test_the_next_batch_is_begun_before_the_last_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Event()

    def draw(part: Sequence[Item], seed: int) -> Drawn:
        if part[0].number == 3:
            second.set()
        return toy()(part, seed)

    def written(*given: object) -> None:
        assert second.wait(10)
        finish(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("comfyui_apprentice.bulk.job.finish", written)
    assert len(drawn(tmp_path / "job", draw)) == 7


def test_what_others_are_at_is_kept_when_a_batch_stops_the_job(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def draw(part: Sequence[Item], seed: int) -> Drawn:
        if part[0].prompt in ("prompt 0", "prompt 3"):
            both.wait(10)
        if seed == 3:
            raise PictureError("out of memory")
        return toy()(part, seed)

    with pytest.raises(PictureError, match="out of memory"):
        drawn(tmp_path / "job", draw, at_once=2)
    lines = (tmp_path / "job" / LINES).read_text(encoding="utf-8").splitlines()
    assert {3, 4, 5} <= {json.loads(line)["number"] for line in lines}


def test_a_broken_worker_is_replaced_and_its_work_done_again_once() -> None:
    made, done = itertools.count(), list[tuple[int, int]]()
    pool = Pool(lambda: next(made), 2, broken=(GoneError,))

    def work(worker: int, task: int) -> int:
        if worker == 0:
            raise GoneError("killed")
        done.append((worker, task))
        return task * 2

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda task: pool.run(lambda worker: work(worker, task)), range(8)))
    assert results == [task * 2 for task in range(8)] and sorted(task for _, task in done) == list(range(8))
    assert pool.replaced == 1 and 2 <= next(made) <= 3


def test_work_that_breaks_every_worker_is_given_up_in_a_sentence() -> None:
    def work(worker: int) -> None:
        raise GoneError("killed")

    with pytest.raises(NoWorkersError, match="4 workers broke over the same pictures; the last said: killed"):
        Pool(lambda: 0, 2, broken=(GoneError,)).run(work)


def test_workers_are_made_when_needed_never_more_than_allowed_and_sent_away_when_idle() -> None:
    made, ended, most = itertools.count(), list[int](), [0]
    pool = Pool(lambda: next(made), 3, end=ended.append, idle=0.05)
    pool.run(lambda worker: worker)
    busy, lock = 0, threading.Lock()

    def work(worker: int) -> None:
        nonlocal busy
        with lock:
            busy += 1
            most[0] = max(most[0], busy)
        time.sleep(0.02)
        with lock:
            busy -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: pool.run(work), range(12)))
    assert most[0] == 3 and next(made) == 3
    time.sleep(0.1)
    pool.run(lambda worker: worker)
    assert len(ended) == 2
    pool.close()
    assert sorted(ended) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------ workflows


def folder_of(path: Path, graphs: dict[str, object]) -> Folder:
    path.mkdir()
    for name, graph in graphs.items():
        (path / f"{name}.json").write_text(json.dumps(graph), encoding="utf-8")
    return Folder(path, Template(tiny_world(), 1, Policy()))


def test_a_workflow_says_how_many_pictures_it_makes(tmp_path: Path) -> None:
    template = Template(tiny_world(), 1, Policy())
    shared, repeated, huge = (template.filled(["a", "b", "c"], 1) for _ in range(3))
    shared["number"] = {"class_type": "PrimitiveInt", "inputs": {"value": 4}}
    shared["latent"]["inputs"]["batch_size"] = ["number", 0]
    repeated["again"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["latent", 0], "amount": 2}}
    repeated["sampler"]["inputs"]["latent_image"] = ["again", 0]
    huge["latent"]["inputs"]["batch_size"] = 10**9
    graphs = {"a": template.filled(["a", "b", "c"], 1), "b": shared, "c": repeated, "d": hand_wired(), "e": huge}
    folder = folder_of(tmp_path / "in", graphs)
    counts = [sum(item.workflow == f"{name}.json" for item in folder.items) for name in graphs]
    assert counts == [3, 4, 6, 1, 1] and [len(part) for part in batches(folder.items, 2)] == counts


def test_workflows_stop_the_job_only_where_nothing_at_all_can_be_drawn(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", {"a": tiny_world(), "b": tiny_world()})

    def run_with(working: bool, name: str) -> list[str]:
        def draw(part: Sequence[Item], seed: int) -> Drawn:
            if part[0].workflow == "a.json" or not working:
                raise PictureError("out of memory")
            return toy()(part, seed)

        manifest = Manifest(tmp_path / name, folder.facts)
        with manifest.held():
            run(Job(folder.items, 8), draw, manifest, lambda *_: None)
        return [record.error for record in manifest.records.values()]

    assert run_with(True, "one") == ["out of memory", ""]
    with pytest.raises(PictureError, match="out of memory"):
        run_with(False, "two")


def test_a_workflow_that_makes_another_number_of_pictures_is_marked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", {"a": tiny_world()})
    manifest = Manifest(tmp_path / "job", folder.facts)

    def draw(part: Sequence[Item], seed: int) -> Drawn:
        return toy()([*part, *part] if part[0].workflow else part, seed)

    with manifest.held():
        run(Job(folder.items, 8), draw, manifest, lambda *_: None)
    assert "2 pictures came, not 1" in manifest.records[0].error


def test_a_folder_is_drawn_as_it_stands_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no workflow in"):
        folder_of(tmp_path / "in", {})
    refused = CliRunner().invoke(app, ["draw", str(tmp_path / "in"), "--out", str(tmp_path / "job"), "--seed", "4"])
    assert refused.exit_code == 2 and "--seed" in refused.output and not (tmp_path / "job").exists()


def hand_wired() -> dict[str, dict[str, object]]:
    """Single nodes, with a stock text encoder and a latent without a batch size."""
    return {
        "clip": {"class_type": "CLIPLoader", "inputs": {}},
        "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a cat"}},
        "ugly": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "ugly"}},
        "guided": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["words", 0], "guidance": 3.5}},
        "photo": {"class_type": "VAEEncode", "inputs": {}},
        "draft": {"class_type": "ApprenticeStudentSampler", "inputs": {
            "positive": ["guided", 0], "negative": ["ugly", 0], "latent_image": ["photo", 0], "seed": 5}},
        "seen": {"class_type": "VAEDecode", "inputs": {"samples": ["draft", 0]}},
        "judge": {"class_type": "ApprenticeJudge", "inputs": {
            "images": ["seen", 0], "prompt": "a cat", "threshold": "absolute", "value": 1.0}},
        "teacher": {"class_type": "ApprenticeTeacher", "inputs": {
            "verdict": ["judge", 0], "positive": ["words", 0], "seed": 6}},
    }  # fmt: skip


def test_a_hand_wired_workflow_is_filled() -> None:
    template = Template(hand_wired(), 2, Policy("percentile", 30.0, "mine"))
    graph = template.filled(["a dog", "a fox"], 100)
    prompts = template._prompts
    assert graph[prompts] == {"class_type": "ApprenticePrompts", "inputs": {"clip": ["clip", 0], "text": "a dog\na fox"}}
    assert graph["guided"]["inputs"]["conditioning"] == graph["teacher"]["inputs"]["positive"] == [prompts, 0]
    assert graph["ugly"]["inputs"]["text"] == "ugly" and graph["judge"]["inputs"]["prompt"] == [prompts, 1]
    assert (graph["draft"]["inputs"]["seed"], graph["teacher"]["inputs"]["seed"]) == (100, 101)
    repeated = graph["draft"]["inputs"]["latent_image"][0]
    assert graph[repeated] == {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["photo", 0], "amount": 2}}
    gate = graph["judge"]["inputs"]
    assert (gate["threshold"], gate["value"], graph[gate["calibration"][0]]["inputs"]) == ("percentile", 30.0, {"name": "mine"})
    assert template.ends.pictures == ["seen", 0] and template.ends.verdict == ["judge", 0]
    assert template.graph["draft"]["inputs"]["seed"] == 5  # the template itself is not used up


def test_a_workflow_with_prompts_and_a_shared_seed_is_filled() -> None:
    graph = tiny_world()
    graph["number"] = {"class_type": "PrimitiveInt", "inputs": {"value": 1}}
    graph["sampler"]["inputs"]["seed"] = ["number", 0]
    filled = Template(graph, 3, Policy(explore=9.0)).filled(["a", "b", "c"], 77)
    assert filled["number"]["inputs"]["value"] == 77 and filled["sampler"]["inputs"]["explore"] == 9.0
    assert filled["positive"]["inputs"]["text"] == "a\nb\nc" and filled["latent"]["inputs"]["batch_size"] == 3
    assert "apprentice draw: prompts" not in filled


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g.pop("judge"), "no node that gives a verdict"),
        (lambda g: g.update(other=g["judge"]), "2 nodes 'ApprenticeJudge'"),
        (lambda g: g["words"].update(class_type="CLIPTextEncodeFlux"), "connect Prompts"),
        (lambda g: g["draft"]["inputs"].pop("latent_image"), "Nothing is connected to 'latent_image'"),
        (lambda g: g["judge"]["inputs"].pop("images"), "No pictures are connected"),
        (lambda g: g.pop("draft"), "nobody knows its seed"),
    ],
)  # fmt: skip
def test_workflows_that_cannot_be_filled_are_refused_in_a_sentence(change: Callable[..., object], says: str) -> None:
    graph = hand_wired()
    change(graph)
    with pytest.raises(ValueError, match=says):
        Template(graph, 2, Policy())


def test_a_policy_that_no_node_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="no node that takes --explore"):
        Template(hand_wired(), 2, Policy(explore=3.0))
