"""The service without a model: who is admitted, who goes to the teacher, what HTTP answers, and what kills and load cost."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("fastapi")
from comfyui_apprentice.benchmarks import serve as load
from comfyui_apprentice.benchmarks.serve_engine import DRAFT_COST, GoneError, Sleeper, Sleeping, Takes
from comfyui_apprentice.bulk.items import Item
from comfyui_apprentice.cli import app as command
from comfyui_apprentice.cli.draw import tiny_world
from comfyui_apprentice.fleet.guard import Rules, check_host
from comfyui_apprentice.fleet.jobs import Job, Limits, RefusedError
from comfyui_apprentice.fleet.pace import Pace
from comfyui_apprentice.fleet.serving import Service
from comfyui_apprentice.fleet.serving_http import make_app
from comfyui_apprentice.fleet.serving_ray import bounds_of
from comfyui_apprentice.gate.by_load import ByLoad
from fastapi.testclient import TestClient
from harness import ROOT
from PIL import Image
from typer.testing import CliRunner

QUICK = Takes((0.004, 0.001), (0.001, 0.0005), (0.005, 0.002))
TOKEN = "a-token-that-nobody-guesses"

# ------------------------------------------------------------------------------------------------------- the controller


def rejected_at(load: float, share: float = 0.3, drafts: int = 3000) -> tuple[float, float, ByLoad]:
    """Share rejected, and their mean score, at ``load`` times the drafts that a teacher, one a second, bears at ``share``."""
    gate, rng, now, waiting = ByLoad(share, 20.0), np.random.default_rng(0), 0.0, 0.0
    gone = []
    for score in rng.standard_normal(drafts).tolist():
        step = share / load
        now, waiting = now + step, max(0.0, waiting - step)
        gate.follow(now, 1.0, waiting)
        if not gate.judge(score)[0]:
            gone.append(score)
            waiting += 1
        assert waiting < 25, "more than the teacher answers within the horizon"
    return len(gone) / drafts, float(np.mean(gone)), gate


def test_without_load_the_share_is_the_workflow_s_and_under_load_what_the_teacher_can_bear() -> None:
    share, score, gate = rejected_at(0.5)
    assert share == pytest.approx(0.3, abs=0.01) and gate.target == 0.3
    burdened, worse, gate = rejected_at(3.0)
    assert burdened == pytest.approx(0.1, abs=0.02) and 0 < gate.target < 0.2
    assert worse < score - 0.4  # the worst drafts still go


def test_a_share_that_stays_does_not_follow_and_a_draft_s_own_budget_bounds_it() -> None:
    gate = ByLoad(0.5, 0.0)
    for score in np.random.default_rng(1).standard_normal(200).tolist():
        gate.follow(1.0, 0.0, 1e9)
        gate.judge(score)
    assert gate.target == 0.5
    assert [gate.judge(score, 0.0)[0] for score in (-9.0,) * 5] != [gate.judge(score)[0] for score in (-9.0,) * 5]


def test_pace_tells_what_a_batch_shares_from_what_each_picture_takes() -> None:
    pace = Pace(2)
    assert pace.seconds(4) == 0 and pace.rate(4) == float("inf") and Pace(0).rate(1) == 0
    pace.tell(2, 0.5)
    assert pace.seconds(4) == pytest.approx(1.0)  # no better is known
    for size in (1, 2, 4):
        pace.tell(size, 0.1 + 0.2 * size)
    assert pace.seconds(4) == pytest.approx(0.9) and pace.rate(4) == pytest.approx(2 * 4 / 0.9)


# ------------------------------------------------------------------------------------------------------------ admission


def idle(limits: Limits, **made: object) -> tuple[Service, list[float]]:
    """A service that is ready and does nothing, with a clock that is set by hand; four drafts take a second."""
    clock = [100.0]
    service = Service(Sleeping(QUICK, (1, 1, 1)), limits, clock=lambda: clock[0], **made)  # type: ignore[arg-type]
    service.ready, service.costs, service.engine.drafters = True, (2.0, 18.0), 1
    for size in (1, 4):
        service.drafting.tell(size, 0.2 + 0.2 * size)
        service.teaching.tell(size, 0.5 + 0.5 * size)
    return service, clock


def test_what_cannot_be_drafted_in_time_is_refused_and_told_when_to_come_back() -> None:
    service, _ = idle(Limits(0.3, deadline=5.0))
    for _ in range(4):
        service.admit(["a"] * 4)
    with pytest.raises(RefusedError, match=r"can't meet a deadline of 5 seconds now") as refused:
        service.admit(["a"] * 4)
    assert refused.value.reason == "deadline" and 0 < refused.value.retry <= 2
    service.admit(["a"] * 4, deadline=60.0)
    with pytest.raises(RefusedError, match="wait already"):
        idle(Limits(0.3, 1e6, queue=7))[0].admit(["a"] * 8)


def test_a_service_that_drains_or_loads_takes_nothing_on() -> None:
    service, _ = idle(Limits(0.3))
    service.draining = True
    with pytest.raises(RefusedError, match="going down"):
        service.admit(["a"])
    service.draining = service.ready = False
    with pytest.raises(RefusedError, match="loading its models"):
        service.admit(["a"])


def test_budgets_bound_the_share_and_one_below_a_draft_s_cost_is_refused() -> None:
    service, _ = idle(Limits(0.3, budget=6.5))
    assert service.share_of(None) == pytest.approx(0.25) and service.share_of(100) == pytest.approx(0.25)
    assert service.share_of(3.8) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="A draft alone costs 2 evaluations; a budget of 1 is too small"):
        service.share_of(1.0)


def test_a_draft_that_the_teacher_cannot_answer_in_time_is_kept() -> None:
    service, clock = idle(Limits(1.0, deadline=10.0))
    drafts = service.engine.draft([Item(0, "a")], 0)
    job = service.admit(["a"])
    assert not service._judged(job, drafts.verdict.judgements[0], clock[0]).accepted
    assert service._judged(job, drafts.verdict.judgements[0], job.due - 0.5).accepted
    service.in_answer = 30
    assert service._judged(job, drafts.verdict.judgements[0], clock[0]).accepted


def test_old_jobs_are_forgotten_and_where_memory_is_short_earlier() -> None:
    service, clock = idle(Limits(0.3, keep=60.0, memory=3000))
    old, running = service.admit(["a"], key="k", asked="x"), service.admit(["b"])
    service._end(old, "done")
    clock[0] += 61
    service.admit(["c"])
    assert old.id not in service.jobs and running.id in service.jobs and service.asked == {}
    for _ in range(4):
        clock[0] += 2
        service._end(service.admit(["d"]), "done")
    assert sum(job.over for job in service.jobs.values()) < 4


def test_pictures_without_a_seed_share_a_batch_and_a_request_with_one_has_its_own() -> None:
    async def parts() -> list[tuple[list[str], int]]:
        service, _ = idle(Limits(0.3, deadline=1e6))
        service.admit(["a"])
        service.admit(["s", "t", "u", "v", "w"], seed=7)
        service.cancel(service.admit(["gone"]))
        service.admit(["b", "c", "d", "e"])
        return [([p.prompt for _, p in part], seed) for part, seed in [await service._next() for _ in range(4)]]

    found = asyncio.run(parts())
    assert [prompts for prompts, _ in found] == [["a", "b", "c", "d"], ["s", "t", "u", "v"], ["w"], ["e"]]
    assert [seed for _, seed in found[1:3]] == [7, 11]  # as `apprentice draw` counts


def test_events_that_come_while_others_are_told_are_told_too() -> None:
    async def events() -> list[tuple[int, str]]:
        service, _ = idle(Limits(0.3))
        job = service.admit(["a"])
        followed = service.followed(job)
        found = [(await anext(followed))[:2]]
        job.tell("picture")
        service._end(job, "done")
        return found + [event[:2] async for event in followed]

    assert asyncio.run(events()) == [(1, "queued"), (2, "picture"), (3, "done")]


# ----------------------------------------------------------------------------------------------------------------- HTTP


@contextmanager
def served(limits: Limits | None = None, rules: Rules | None = None, engine: Sleeping | None = None) -> Iterator[TestClient]:
    service = Service(engine or Sleeping(QUICK), limits or Limits(0.3, 5.0))
    headers = {"Authorization": f"Bearer {rules.token}"} if rules and rules.token else {}
    with TestClient(make_app(service, rules or Rules(rate=0)), base_url="http://127.0.0.1", headers=headers) as client:
        client.service = service  # type: ignore[attr-defined]
        while not service.ready and not service.failure:
            time.sleep(0.005)
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served() as client:
        yield client


def test_one_prompt_is_answered_with_its_picture_and_verdict(client: TestClient) -> None:
    answer = client.post("/v1/pictures", json={"prompt": " a\ncat ", "seed": 3}).json()
    (picture,) = answer["pictures"]
    assert answer["status"] == "done" and picture["prompt"] == "a cat" and (picture["seed"], picture["place"]) == (3, 0)
    image = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
    assert image.size == (8, 8) and json.loads(image.info["apprentice"])["prompt"] == "a cat"
    assert client.get(picture["url"]).content == base64.b64decode(picture["png"])
    again = client.post("/v1/pictures", json={"prompt": "a cat", "seed": 3}).json()["pictures"][0]
    assert len({p["score"] if p["draft_score"] is None else p["draft_score"] for p in (picture, again)}) == 1


def test_a_job_tells_its_progress_and_keeps_its_pictures(client: TestClient) -> None:
    told = client.post("/v1/pictures", json={"prompts": ["a", "b", "c"], "wait": False})
    assert told.status_code == 202
    where = told.headers["location"]
    events = client.get(f"{where}/events").text
    assert [line[7:] for line in events.splitlines() if line.startswith("event: ")] == ["queued", *["picture"] * 3, "done"]
    later = client.get(f"{where}/events", headers={"Last-Event-ID": "3"}).text
    assert later == events[events.index("id: 4"):]
    job = client.get(where).json()
    assert job["status"] == "done" and all(p["url"] and p["png"] is None and p["decision"] for p in job["pictures"])
    assert client.get(f"{where}/pictures/2.png").headers["content-type"] == "image/png"
    assert client.get(f"{where}/pictures/3.png").status_code == client.get("/v1/jobs/nobody").status_code == 404


def test_a_prompt_that_cannot_be_drawn_is_told_and_stops_nobody_else(client: TestClient) -> None:
    answer = client.post("/v1/pictures", json={"prompts": ["a", "poison", "b"]})
    assert answer.status_code == 200
    assert [p["error"] for p in answer.json()["pictures"]] == ["", "CLIP: no words for poison.", ""]
    alone = client.post("/v1/pictures", json={"prompt": "poison"})
    assert (alone.status_code, alone.json()) == (500, {"error": "CLIP: no words for poison."})


@pytest.mark.parametrize(
    ("body", "says"),
    [({}, "give either 'prompt' or 'prompts'"), ({"prompt": 3}, "prompt: "), ({"prompt": "a", "sead": 3}, "sead: "),
     ({"prompt": " "}, "1 to 2000 letters"), ({"prompt": "a" * 2001}, "2000 characters"),
     ({"prompt": "\u0000"}, "can be printed"),
     ({"prompt": "a", "seed": -1}, "seed: "), ({"prompt": "a", "seed": 2**53}, "seed: "), ({"prompts": []}, "prompts: "),
     ({"prompts": ["a"] * 17}, "at most 16"), ({"prompt": "a", "deadline": 0}, "deadline: "),
     ({"prompt": "a", "budget": 1}, "draft alone"),
     ({"prompt": "a", "deadline": 1e9}, "at most 3600 seconds"), ([], "The request doesn't fit")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(client: TestClient, body: object, says: str) -> None:
    answer = client.post("/v1/pictures", json=body)
    assert answer.status_code == 422 and set(answer.json()) == {"error"}
    assert says in answer.json()["error"] and answer.json()["error"].endswith(".")


def test_nan_and_what_is_no_json_are_refused(client: TestClient) -> None:
    for content in (b"{", b'{"prompt": "a", "deadline": NaN}', b"\xff", b"[" * 20_000):
        answer = client.post("/v1/pictures", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422 and answer.json()["error"], content[:20]


def test_the_same_key_is_drawn_once_and_another_request_under_it_is_refused(client: TestClient) -> None:
    drawn = client.service.engine.drawn  # type: ignore[attr-defined]
    ask = lambda prompt: client.post("/v1/pictures", json={"prompt": prompt}, headers={"Idempotency-Key": "k1"})  # noqa: E731
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, ["only once"] * 4))
    assert len({json.dumps(answer.json()["pictures"]) for answer in answers}) == 1 and drawn.count("only once") == 1
    assert ask("another").status_code == 422 and "another" not in drawn


def test_health_and_metrics_tell_what_has_happened(client: TestClient) -> None:
    client.post("/v1/pictures", json={"prompt": "a"})
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
    figures = {name: float(value) for name, value in lines}
    assert figures["apprentice_evaluations_total"] >= DRAFT_COST and figures["apprentice_ready"] == 1
    answered = sum(value for name, value in figures.items() if name.startswith("apprentice_pictures_total"))
    assert answered == figures["apprentice_picture_seconds_count"] > 0
    assert figures["apprentice_reject_share_now"] <= figures["apprentice_reject_share_most"] == 0.3


def test_the_openapi_page_names_every_way_and_every_answer(client: TestClient) -> None:
    page = client.get("/openapi.json").json()
    assert page["openapi"].startswith("3.1") and {
        "/v1/pictures", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/events", "/v1/jobs/{job_id}/pictures/{number}.png",
        "/healthz", "/readyz", "/metrics",
    } == set(page["paths"])  # fmt: skip
    assert {"200", "202", "401", "413", "422", "429", "503"} <= set(page["paths"]["/v1/pictures"]["post"]["responses"])
    assert "HTTPValidationError" not in json.dumps(page["paths"])
    names = {ref.rsplit("/", 1)[1] for ref in json.dumps(page).split('"') if ref.startswith("#/components/schemas/")}
    assert names <= set(page["components"]["schemas"])


def test_a_token_is_wanted_everywhere_but_for_health_and_the_api_s_page() -> None:
    with served(rules=Rules(TOKEN, rate=0)) as client:
        assert client.post("/v1/pictures", json={"prompt": "a"}).status_code == 200
        for shown in ("", "Bearer ", f"Bearer {TOKEN}x", TOKEN, "Bearer \u00e4"):
            for method, path in (("POST", "/v1/pictures"), ("GET", "/metrics"), ("GET", "/v1/jobs/x"), ("GET", "/nowhere")):
                answer = client.request(method, path, headers={"Authorization": shown.encode("latin-1")})
                assert answer.status_code == 401 and "Bearer" in answer.headers["www-authenticate"]
            assert client.get("/healthz", headers={"Authorization": shown.encode("latin-1")}).status_code == 200


def test_a_page_elsewhere_whose_name_leads_here_is_refused(client: TestClient) -> None:
    assert client.get("/metrics", headers={"Host": "evil.example:8000"}).status_code == 403
    assert client.get("/metrics", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.post("/v1/pictures", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}).status_code == 422


def test_large_bodies_are_refused_whether_or_not_they_say_how_large(client: TestClient) -> None:
    assert client.post("/v1/pictures", content=b" " * 65537).status_code == 413
    assert client.post("/v1/pictures", content=(b" " * 1000 for _ in range(100))).status_code == 413


def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    with served(rules=Rules(rate=3)) as client:
        statuses = [client.post("/v1/pictures", json={"prompt": "a"}).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert 1 <= int(client.post("/v1/pictures", json={"prompt": "a"}).headers["retry-after"]) <= 20
        assert client.get("/metrics").status_code == 200


def test_a_cancelled_job_is_not_drawn() -> None:
    class Held(Sleeping):
        go = threading.Event()

        def draft(self, part, seed):
            assert part[0].prompt not in "abcde" or self.go.wait(60)
            return super().draft(part, seed)

    with served(Limits(0.0, 60.0), engine=Held(QUICK, (1, 1, 1), batch=1)) as client:  # two are drafted at a time
        jobs = [client.post("/v1/pictures", json={"prompt": p, "wait": False}).json()["id"] for p in "abcde"]
        assert client.delete(f"/v1/jobs/{jobs[-1]}").json()["status"] == "cancelled"
        Held.go.set()
        assert client.get(f"/v1/jobs/{jobs[-1]}").status_code == 404
        assert all("event: done" in client.get(f"/v1/jobs/{job}/events").text for job in jobs[:-1])
        assert {"a", "b", "c", "d"} <= set(client.service.engine.drawn)  # type: ignore[attr-defined]
        assert "e" not in client.service.engine.drawn  # type: ignore[attr-defined]


def test_draining_ends_what_was_begun_and_takes_nothing_new() -> None:
    with served(Limits(0.3, 60.0), engine=Sleeping(Takes((0.1, 0.0), (0.001, 0.0), (0.05, 0.0)), batch=1)) as client:
        jobs = [client.post("/v1/pictures", json={"prompt": p, "wait": False}).json()["id"] for p in "abcd"]
        service: Service = client.service  # type: ignore[attr-defined]
        ended = threading.Thread(target=lambda: asyncio.run(service.drain()))
        ended.start()
        while not service.draining:
            time.sleep(0.005)
        assert client.get("/readyz").status_code == client.post("/v1/pictures", json={"prompt": "e"}).status_code == 503
        ended.join(10)
        assert [client.get(f"/v1/jobs/{job}").json()["status"] for job in jobs] == ["done"] * 4


def test_a_workflow_that_cannot_be_drawn_is_told_by_readiness() -> None:
    class Broken(Sleeping):
        def draft(self, part, seed):
            return super().draft([Item(0, "poison")], seed)

    with served(engine=Broken(QUICK)) as client:
        assert client.get("/readyz").json() == {"error": "CLIP: no words for poison."}
        assert client.post("/v1/pictures", json={"prompt": "a"}).status_code == 503


def test_where_the_teacher_fails_the_draft_is_delivered() -> None:
    class Tired(Sleeping):
        answers = 0

        def teach(self, drafts, verdict):
            self.answers += 1
            if self.answers > 3:  # after the first ones, which are timed
                raise RuntimeError("out of memory at /secret/place")
            return super().teach(drafts, verdict)

    with served(Limits(1.0, 30.0), engine=Tired(QUICK)) as client:
        answer = client.post("/v1/pictures", json={"prompts": ["a", "b", "c", "d"] * 4}).json()
        assert {p["decision"] for p in answer["pictures"]} == {"draft kept"} and all(p["png"] for p in answer["pictures"])
        assert "secret" not in json.dumps(answer) and client.service.in_answer == 0  # type: ignore[attr-defined]


def test_an_error_without_a_sentence_for_people_is_not_told() -> None:
    class Broken(Sleeping):
        def draft(self, part, seed):
            if any(item.prompt == "boom" for item in part):
                raise RuntimeError("at /secret/place")
            return super().draft(part, seed)

    with served(engine=Broken(QUICK)) as client:
        answer = client.post("/v1/pictures", json={"prompt": "boom"})
        assert answer.status_code == 500 and "its log says what" in answer.json()["error"]
        assert client.post("/v1/pictures", json={"prompt": "a"}).status_code == 200


# ------------------------------------------------------------------------------------------------------------ kills, load


class Mortal(Sleeper):
    """A worker that dies within its ``left``-th work."""

    def __init__(self, left: int) -> None:
        self.left = left

    def work(self, seconds: float) -> None:
        self.left -= 1
        super().work(seconds)
        if self.left < 0:
            raise GoneError("killed")


def test_under_kills_every_request_is_answered_once() -> None:
    lives = np.random.default_rng(0)
    engine = Sleeping(QUICK, (2, 1, 2), make=lambda: Mortal(int(lives.integers(4, 12))))
    with served(Limits(0.4, 30.0), engine=engine) as client, ThreadPoolExecutor(12) as threads:
        ask = lambda n: client.post("/v1/pictures", json={"prompts": [f"p{n}", f"q{n}"]})  # noqa: E731
        answers = list(threads.map(ask, range(60)))
        service: Service = client.service  # type: ignore[attr-defined]
        assert engine.replaced >= 5
        assert [a.status_code for a in answers] == [200] * 60
        told = [p["prompt"] for a in answers for p in a.json()["pictures"] if p["png"]]
        assert told == [text for n in range(60) for text in (f"p{n}", f"q{n}")]
        jobs: list[Job] = list(service.jobs.values())
        assert len(jobs) == 60 and all([e for e, _ in job.events].count("picture") == 2 for job in jobs)
        assert service.in_draft == service.in_answer == service.waiting() == 0
        assert any(p["decision"] == "improved" for a in answers for p in a.json()["pictures"])


def test_the_claims_are_those_of_the_runs_that_were_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "serve.json").read_text(encoding="utf-8"))
    again = load.claims(measured["rows"])
    assert {name: claim.value for name, claim in again.items()} == {n: c["value"] for n, c in measured["claims"].items()}
    assert again["serve_miss_rate"].hi < again["serve_miss_rate_fixed"].lo and again["serve_lost_or_doubled"].value == 0
    assert [row["policy"] for row in measured["rows"]] == [run.policy for run in load.runs(False, load.SEEDS)]


# -------------------------------------------------------------------------------------------------------------- command


def test_others_are_let_in_with_a_token_alone() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.3.0.1"):
        check_host(host, "")
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(ValueError, match="--token-file"):
            check_host(host, "")
        check_host(host, TOKEN)
    with pytest.raises(ValueError, match="16 letters or more"):
        check_host("0.0.0.0", "short")


def test_the_share_is_that_of_the_workflow_s_threshold() -> None:
    graph = tiny_world()
    assert bounds_of(graph, None, 12.0) == (0.3, 12.0)
    gate = graph["sampler"]["inputs"]
    for mode, value, found in (("percentile", 25, (0.25, None)), ("budget", 8, (None, 8)), ("running", 0.2, (0.2, None))):
        gate |= {"threshold": mode, "value": value}
        assert bounds_of(graph, None, None) == found
    gate |= {"threshold": "absolute"}
    with pytest.raises(ValueError, match="give one with --share"):
        bounds_of(graph, None, None)
    assert bounds_of(graph, 0.1, None) == (0.1, None)


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--host", "0.0.0.0"], "--token-file"), (["--budget", "nan"], "--budget"), (["--workers", "cook=1"], "kinds are"),
     (["--workflow", "nowhere.json"], "nowhere.json"), (["--token-file", "nowhere"], "nowhere")],
)  # fmt: skip
def test_the_command_refuses_in_a_sentence_before_anything_is_loaded(options: list[str], says: str) -> None:
    told = CliRunner().invoke(command, ["serve", *options], env={"COLUMNS": "400"})
    assert told.exit_code == 2 and says in told.output
