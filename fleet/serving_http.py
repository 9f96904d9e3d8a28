"""The service over HTTP: what may be asked, by whom and how often, and how it is answered. FastAPI writes the OpenAPI page."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from starlette.exceptions import HTTPException

from .. import __version__
from ..bulk.manifest import finite
from .guard import Guard, Rules, not_now, refusal
from .jobs import FAILURE, Job, Picture, RefusedError
from .serving import SEEDS, Service

LONGEST = 2000  # letters of a prompt
Prompt = Annotated[str, Field(min_length=1, max_length=LONGEST)]


# ------------------------------------------------------------------------------------------------------ what is said


class Wanted(BaseModel):
    """A request for pictures."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"prompt": "glossy red heart on blue"}]})
    prompt: Prompt | None = Field(None, description="What the picture shall show.")
    prompts: list[Prompt] | None = Field(None, description="The same for several pictures.", min_length=1)
    seed: int | None = Field(
        None, ge=0, lt=SEEDS, strict=True,
        description="Decides the noise, with the picture's place among the request's: such a request is drawn by itself.",
    )  # fmt: skip
    wait: bool = Field(True, description="Answer with the pictures; false: at once, with a job to ask for.")
    deadline: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds; the service's own where nothing is said."
    )
    budget: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Network evaluations a picture on average; the service's own bounds it, too."
    )

    @field_validator("prompt", "prompts")
    @classmethod
    def _in_words(cls, given: str | list[str] | None) -> str | list[str] | None:
        texts = [given] if isinstance(given, str) else given or []
        plain = [" ".join(text.split()) for text in texts]
        if any(not text or len(text) > LONGEST or not text.isprintable() for text in plain):
            raise ValueError(f"a prompt is a text of 1 to {LONGEST} letters that can be printed")
        return plain[0] if isinstance(given, str) else plain if given else None

    @model_validator(mode="after")
    def _one_of_both(self) -> Wanted:
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give either 'prompt' or 'prompts'")
        return self

    @property
    def texts(self) -> list[str]:
        """All prompts."""
        return [self.prompt] if self.prompt is not None else self.prompts or []


class Shown(BaseModel):
    """A picture with its verdict."""

    number: int
    prompt: str
    decision: str = Field(description="accepted, improved, draft kept, failed; empty while it is drawn.")
    score: float | None = None
    draft_score: float | None = None
    threshold: float | None = None
    evaluations: float | None = None
    seed: int | None = Field(default=None, description="With the place in the batch it names the noise.")
    place: int | None = None
    error: str = ""
    url: str | None = None
    png: str | None = Field(default=None, description="The file in base64.")


class Answer(BaseModel):
    """A job, with what is there of it."""

    id: str
    status: str = Field(description="queued, drawing, done, failed (no picture could be drawn), or cancelled.")
    late: bool = Field(description="Whether its deadline has passed.")
    seconds: float = Field(description="Since it was asked for, until it was over.")
    pictures: list[Shown]


class Problem(BaseModel):
    """What went wrong, in a sentence."""

    error: str


def answer_of(service: Service, job: Job, files: bool) -> Answer:
    """What people are told of a job; ``files``: with the pictures themselves."""
    end = job.ended if job.over else service.clock()
    return Answer(
        id=job.id, status=job.state, late=end > job.due, seconds=round(end - job.begun, 3),
        pictures=[_shown(job, picture, files) for picture in job.pictures],
    )  # fmt: skip


def _shown(job: Job, picture: Picture, file: bool) -> Shown:
    shown = Shown(number=picture.number, prompt=picture.prompt, decision=picture.decision, error=picture.error)
    if (judgement := picture.judgement) is None:
        return shown
    of = lambda value: None if value is None else finite(value)  # noqa: E731
    known: dict[str, Any] = {
        "score": of(judgement.score), "draft_score": of(judgement.draft_score), "threshold": of(judgement.threshold),
        "evaluations": of(judgement.nfe), "seed": picture.seed, "place": judgement.index,
    }  # fmt: skip
    if picture.png:
        known["url"] = f"/v1/jobs/{job.id}/pictures/{picture.number}.png"
        known["png"] = base64.b64encode(picture.png).decode() if file else None
    return shown.model_copy(update=known)


# ------------------------------------------------------------------------------------------------------ the application


def make_app(service: Service, rules: Rules) -> FastAPI:
    """The application; the service works while it runs."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="Apprentice", version=__version__, lifespan=life, redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if rules.token else [],  # for its page: ``Guard`` has looked before
        responses={
            status: {"model": Problem, "description": says} for status, says in (
                (401, "No token, or another."), (403, "Another host."), (413, "Too many bytes."), (422, "Something doesn't fit."),
            )
        },
        description="A fast student draws, an oracle judges each picture, and the slow teacher is called only for the weak ones.",
    )  # fmt: skip
    app.add_middleware(Guard, service=service, rules=rules)
    app.add_exception_handler(RequestValidationError, lambda _request, error: refusal(422, _sentence(error)))
    app.add_exception_handler(RefusedError, lambda _request, error: not_now(error, service))  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, lambda _request, error: _plain(error))
    _add_pictures(app, service, rules)
    _add_jobs(app, service)
    _add_health(app, service)
    return app


def _plain(error: Any) -> JSONResponse:
    """What FastAPI says by itself: no such way, another method, a body that it can't parse."""
    if error.status_code == 400:
        return refusal(422, "The request is not JSON in UTF-8.")
    return refusal(error.status_code, str(error.detail).rstrip(".") + ".", error.headers)


def _sentence(error: Any) -> str:
    """The first thing that doesn't fit, and where."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "header", "path", "query"))
    what = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}." if where else f"The request doesn't fit: {what}."


_LATER: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (429, 503)}
_NONE: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}


def _add_pictures(app: FastAPI, service: Service, rules: Rules) -> None:
    @app.post(
        "/v1/pictures", response_model=Answer, summary="Draw one picture or several",
        responses={**_LATER, 202: {"model": Answer, "description": "A job to ask for."}, 500: {"model": Problem}},
    )  # fmt: skip
    async def pictures(
        wanted: Wanted, response: Response, idempotency_key: Annotated[str, Header(max_length=200)] = ""
    ) -> Any:
        if len(wanted.texts) > rules.max_prompts:
            return refusal(422, f"prompts: at most {rules.max_prompts} in a request, not {len(wanted.texts)}.")
        if wanted.deadline is not None and wanted.deadline > rules.longest:
            return refusal(422, f"deadline: at most {rules.longest:g} seconds.")
        asked = wanted.model_dump_json(exclude={"wait"})
        try:
            job = service.admit(wanted.texts, wanted.seed, wanted.deadline, wanted.budget, idempotency_key, asked)
        except ValueError as error:
            return refusal(422, f"budget: {error}")
        where = {"Location": f"/v1/jobs/{job.id}"}
        if not wanted.wait:
            return JSONResponse(answer_of(service, job, files=False).model_dump(), 202, where)
        try:
            async for _ in service.followed(job):
                pass
        except asyncio.CancelledError:  # the client has gone; with a key it may come back
            if not idempotency_key:
                service.cancel(job)
            raise
        response.headers.update(where)
        if job.state == FAILURE:
            return refusal(500, job.pictures[0].error, where)
        return answer_of(service, job, files=True)


def _add_jobs(app: FastAPI, service: Service) -> None:
    def found(job_id: str) -> Job:
        if (job := service.jobs.get(job_id)) is None:
            raise HTTPException(404, "There is no such job, or it was forgotten.")
        return job

    @app.get("/v1/jobs/{job_id}", response_model=Answer, summary="How a job stands", responses=_NONE)
    async def job(job_id: str) -> Any:
        return answer_of(service, found(job_id), files=False)

    @app.delete("/v1/jobs/{job_id}", response_model=Answer, summary="Cancel a job, and forget it", responses=_NONE)
    async def cancel(job_id: str) -> Any:
        service.cancel(job := found(job_id))
        return answer_of(service, job, files=False)

    @app.get(
        "/v1/jobs/{job_id}/events", summary="A job's progress, as server-sent events", response_class=StreamingResponse,
        responses={**_NONE, 200: {"content": {"text/event-stream": {}}}},
    )  # fmt: skip
    async def events(job_id: str, last_event_id: Annotated[int, Header(ge=0)] = 0) -> Any:
        followed = service.followed(found(job_id), last_event_id)

        async def lines() -> AsyncIterator[str]:
            async for number, event, data in followed:
                yield f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n" if event else ": waiting\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get(
        "/v1/jobs/{job_id}/pictures/{number}.png", summary="A picture's file", response_class=Response,
        responses={**_NONE, 200: {"content": {"image/png": {}}}},
    )  # fmt: skip
    async def picture(job_id: str, number: int) -> Any:
        pictures = found(job_id).pictures
        if not 0 <= number < len(pictures) or not pictures[number].png:
            raise HTTPException(404, "There is no such picture, or not yet.")
        return Response(pictures[number].png, media_type="image/png", headers={"Cache-Control": "private"})


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Whether requests are taken on", responses={503: {"model": Problem}})
    async def readyz() -> Any:
        if service.ready and not service.draining:
            return {"status": "ready"}
        return refusal(503, service.failure or ("going down" if service.draining else "loading models"))

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
