"""What a service tells Prometheus."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from .jobs import Picture
    from .serving import Service

_SECONDS = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
_SCORES = (*(i / 2 for i in range(-12, 13)), *range(7, 40, 3))


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        counter = lambda name, says, *labels: Counter(f"apprentice_{name}", says, labels, registry=self.registry)  # noqa: E731
        self.statuses = counter("requests", "Requests, by what was answered.", "status")
        self.refused = counter("refused", "Requests not taken on, by the reason.", "reason")
        self.pictures = counter("pictures", "Pictures answered, by what became of them.", "decision")
        self.late = counter("late_pictures", "Pictures answered after their deadline.")
        self.drafts = counter("drafts_judged", "Drafts judged, by the gate's word.", "passed")
        self.evaluations = counter("evaluations", "Network evaluations spent on pictures that were answered.")
        self.scores = Histogram(
            "apprentice_draft_score", "The oracle's scores of drafts.", buckets=_SCORES, registry=self.registry
        )
        self.latency = Histogram(
            "apprentice_picture_seconds", "From request to picture.", buckets=_SECONDS, registry=self.registry
        )
        for name, says, value in (
            ("queue_pictures", "Pictures that wait to be drafted.", service.waiting),
            ("teacher_queue_pictures", "Pictures that wait for the teacher, or are with it.", lambda: service.in_answer),
            ("reject_share_now", "The share of drafts that may go to the teacher now.", lambda: service.gate.target),
            ("reject_share_most", "The share that the workflow asks for.", lambda: service.gate.share),
            ("threshold", "What the next draft must reach.", lambda: service.gate.state.threshold()),
            ("jobs_open", "Jobs that are not over.", lambda: sum(not job.over for job in list(service.jobs.values()))),
            ("workers_replaced", "Workers that broke and were replaced.", lambda: service.engine.replaced),
            ("ready", "1 while requests are taken on.", lambda: float(service.ready and not service.draining)),
        ):  # fmt: skip
            Gauge(f"apprentice_{name}", says, registry=self.registry).set_function(value)

    def judged(self, score: float, passed: bool) -> None:
        """A draft."""
        self.drafts.labels("yes" if passed else "no").inc()
        if math.isfinite(score):
            self.scores.observe(score)

    def answered(self, picture: Picture, seconds: float, late: bool) -> None:
        """A picture is there, or can't be."""
        self.pictures.labels(picture.decision).inc()
        self.latency.observe(seconds)
        self.late.inc(late)
        if picture.judgement is not None and picture.judgement.nfe is not None:
            self.evaluations.inc(picture.judgement.nfe)

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self.registry)
