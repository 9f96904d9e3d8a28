"""``apprentice draw --ray`` on a real Ray: what workers draw is what one process draws, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from comfyui_apprentice.benchmarks.draw import in_one_process
from comfyui_apprentice.bridge.headless import Headless, home
from comfyui_apprentice.bulk.folder import Folder
from comfyui_apprentice.bulk.items import Item
from comfyui_apprentice.bulk.job import Draw, Job, run
from comfyui_apprentice.bulk.manifest import LINES, Manifest, Record
from comfyui_apprentice.bulk.workflow import Policy, Template
from comfyui_apprentice.charts.pictures import read_picture
from comfyui_apprentice.cli.draw import _drawer, tiny_world
from comfyui_apprentice.fleet.ray_pools import RayLine, Share, comfyui_engine, read_shares
from ray_toys import IS_NAN, KILLS, RAISES, Toy, drawn, line, template

TESTS = Path(__file__).parents[1]
SECONDS = 300.0  # ends what hangs


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray that the tests of this file share; workers find what lies in tests/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # or it leaves one in the home of who runs the tests
        RayLine("local", template(), {}, list)
        import ray

        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Record]:
    """What one process makes of the toys' job."""
    folder = tmp_path_factory.mktemp("alone")
    return drawn(folder / "job", in_one_process(Toy(folder / "log").run, template()), 1)


def workflows(folder: Path, prompts: Sequence[str]) -> Path:
    """A folder with a toy's workflow for each prompt."""
    folder.mkdir()
    for number, prompt in enumerate(prompts):
        (folder / f"{number}.json").write_text(json.dumps(template().filled([prompt], 10 * number)))
    return folder


def done(log: Path) -> list[str]:
    """The stages that were done, with their seeds."""
    return sorted(line.rpartition(" ")[0] for line in log.read_text().splitlines())


def test_any_number_of_workers_does_every_share_once_though_one_is_killed(
    cluster: str, expected: dict[int, Record], tmp_path: Path
) -> None:
    workers = line(tmp_path / "log", 1)
    assert drawn(tmp_path / "one", workers.draw, workers.at_once) == expected
    once = done(tmp_path / "log")
    assert len(once) == len(set(once)) == 14  # seven batches, drafted and judged
    workers.pools["student"].most = 2
    (tmp_path / "log").unlink()
    found = drawn(tmp_path / "two", workers.draw, 3, {7: KILLS})
    assert [number for number in expected if found[number] != expected[number]] == [7]  # by its prompt alone:
    assert replace(found[7], prompt="prompt 7") == expected[7]
    assert done(tmp_path / "log") == once and workers.pools["student"].replaced == 1
    poisoned = drawn(tmp_path / "poison", workers.draw, 3, {4: RAISES, 11: IS_NAN})
    assert poisoned[4].error == "no tokens for it" and "NaN" in poisoned[11].error
    assert [number for number in expected if poisoned[number] != expected[number]] == [4, 11]
    workers.template = folder = Folder(workflows(tmp_path / "workflows", ["a", RAISES, "b"]), template())
    jobs = []
    for name, draw in (("there", workers.draw), ("here", in_one_process(Toy(tmp_path / "log").run, folder))):
        jobs.append(Manifest(tmp_path / name, folder.facts))
        with jobs[-1].held():
            run(Job(folder.items, 8), draw, jobs[-1], lambda *_: None, at_once=2)
    assert jobs[0].records == jobs[1].records
    assert [jobs[0].records[number].error for number in range(3)] == ["", "no tokens for it", ""]
    workers.close()


def test_a_command_that_was_killed_goes_on_to_the_same_manifest_and_leaves_no_worker(
    cluster: str, expected: dict[int, Record], tmp_path: Path
) -> None:
    log, lines = tmp_path / "log", tmp_path / "job" / LINES
    command = [sys.executable, str(TESTS / "ray_toys.py"), str(tmp_path / "job"), str(log), cluster]
    with subprocess.Popen(command) as killed:
        until(lambda: killed.poll() is not None or (lines.exists() and lines.read_text().count("\n") >= 3))
        killed.send_signal(signal.SIGKILL)
    worker = int(log.read_text().split()[-1])
    there = lines.read_text().count("\n")
    assert killed.returncode == -signal.SIGKILL and 3 <= there < len(expected)
    assert drawn(tmp_path / "job", in_one_process(Toy(log).run, template()), 1) == expected
    until(lambda: not psutil.pid_exists(worker))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.05)


def test_students_judges_and_teachers_make_the_manifest_and_pictures_of_one_process(cluster: str, tmp_path: Path) -> None:
    template = Template(tiny_world(), 2, Policy())
    words = ["glossy red heart on blue", "flat cat face on yellow", "pizza on white", "green leaf on black"]
    here = Headless(home(), packs=False)
    there = RayLine("local", template, read_shares("", gpus=False), partial(comfyui_engine, home(), []))
    there.pools["judge"] = there.pools["student"]  # one ComfyUI less to start

    def job(name: str, draw: Draw, at_once: int) -> Manifest:
        manifest = Manifest(tmp_path / name, {})
        with manifest.held():
            items = [Item(i, text) for i, text in enumerate(words)]
            assert run(Job(items, 2, 11), draw, manifest, lambda *_: None, at_once=at_once)
        return manifest

    one, many = job("one", _drawer(here, template), 1), job("many", there.draw, there.at_once)
    there.close()
    assert len({record.decision for record in one.records.values()}) > 1  # the teacher has had its turn
    for number, record in one.records.items():
        same = many.records[number]
        assert (same.score, same.draft_score) == pytest.approx((record.score, record.draft_score), abs=1e-4)
        for name in ("file", "prompt", "decision", "seed", "place", "nfe", "oracle", "error"):
            assert getattr(same, name) == getattr(record, name)
        pictures = [read_picture(manifest.folder / record.file) for manifest in (one, many)]
        assert torch.allclose(*pictures, atol=1.01 / 255)


def test_workers_that_would_wait_for_ever_are_refused_in_a_sentence(cluster: str) -> None:
    with pytest.raises(ValueError, match=r"take 2 GPUs together, and Ray has 0: ask for fewer"):
        RayLine("local", template(), {"student": Share(2, 1.0)}, list)
