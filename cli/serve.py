"""``apprentice serve``: the cascade as a service with an HTTP API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .draw import tiny_world
from .running import stop_signals, told_in_words


def serve(
    workflow: Annotated[
        Path | None, typer.Option(help="Your workflow in API format: your models, oracle and gate. Left out: the tiny world.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; other than this machine's own wants a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 8000,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds to an answer, where a request says nothing.")] = 10.0,
    budget: Annotated[float | None, typer.Option(min=0, help="Network evaluations a picture on average, at most.")] = None,
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of drafts for the teacher, at most; as the workflow's threshold says.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 4,
    workers: Annotated[str, typer.Option(help="At most so many, and each one's part of a GPU: student=2,teacher=3x0.5.")] = "",
    together: Annotated[bool, typer.Option("--together", help="As many ComfyUIs as students, each for all three.")] = False,
    token_file: Annotated[Path | None, typer.Option(help="A file with the token that clients must show.")] = None,
    max_prompts: Annotated[int, typer.Option(min=1, help="Of a request.")] = 16,
    max_body: Annotated[int, typer.Option(min=256, help="Bytes of a request.")] = 65536,
    rate: Annotated[int, typer.Option(min=0, help="Requests a minute of a client's address; 0 for no bound.")] = 60,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait.")] = 256,
    keep: Annotated[float, typer.Option(min=0, help="Seconds that a job is remembered after its end.")] = 600.0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for what was begun, when the service is stopped.")] = 60.0,
    ray: Annotated[str, typer.Option(help="local, auto, or a cluster's address.")] = "local",
    comfyui: Annotated[Path | None, typer.Option(help="ComfyUI's folder; $COMFYUI_PATH.")] = None,
    flags: Annotated[str, typer.Option(help="ComfyUI's own options, such as '--lowvram'.")] = "",
) -> None:
    """Serve pictures over HTTP: POST /v1/pictures; /docs tells the rest. docs/serving.md

    Under load fewer drafts go to the teacher, so that the deadline holds. Ctrl-C or SIGTERM ends it, when what was begun is done.
    """
    with told_in_words():
        try:
            from ..fleet.guard import Rules, check_host
            from ..fleet.jobs import Limits
            from ..fleet.ray_pools import read_shares
            from ..fleet.serving_ray import Served, bounds_of, on_ray_serve
        except ModuleNotFoundError as error:
            raise ValueError(f"'{error.name}' is missing: pip install 'ray[default,serve]'.") from error
        import torch

        from ..bridge.headless import home
        from ..bulk.workflow import read_workflow

        token = token_file.read_text(encoding="utf-8").strip() if token_file else ""
        if token_file and not token:
            raise ValueError(f"The token file '{token_file.name}' is empty.")
        check_host(host, token)
        graph = tiny_world() if workflow is None else read_workflow(workflow)
        most, average = bounds_of(graph, share, budget)
        served = Served(
            graph, batch, read_shares(workers, torch.cuda.is_available()), home(comfyui), tuple(flags.split()),
            Limits(most, deadline, average, queue, keep), Rules(token, max_prompts, max_body, rate), together, ray,
        )  # fmt: skip
        served.template()  # what can't be filled in is told at once
        typer.echo("Loading models…", err=True)
        with on_ray_serve(served, host, port, stop_signals, drain) as stopped:
            typer.echo(f"Serving on http://{host}:{port}; http://{host}:{port}/docs tells what can be asked.", err=True)
            while not stopped():
                time.sleep(0.1)
            typer.echo("Finishing what was begun…", err=True)
