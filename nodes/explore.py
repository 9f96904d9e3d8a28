"""Explore: drafts where they pay, from several sources, under one budget or price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..bridge.board import JUDGED, Board, number, pictures_of
from ..bridge.drawing import Drawing
from ..bridge.explore import Explored, Explorer, Terms
from ..bridge.fingerprints import model_fingerprint
from ..bridge.pixels import as_rgb
from ..bridge.progress import shown
from ..bridge.sources import ModelSource, PictureSource
from ..gate.calibration import Calibration as CalibrationData
from ..gate.decision import judge
from ..gate.explored import in_words, order_of_evaluation
from ..gate.gains import lesson_of, pairs_of
from ..gate.overrides import read_overrides
from ..gate.thresholds import Gate
from ..gate.verdict import Verdict as VerdictData
from ..gate.verdict import summary
from ..oracles.base import Oracle as OracleBase
from ..oracles.base import one_prompt_each, remarks
from ..samplers.beliefs import FEWEST_PAIRS, fit_gain
from ..samplers.explore import BUDGET, PRICE, Search, Teacher
from . import folders, types
from .types import CATEGORY, Calibration, Oracle, Source, Verdict

SOCKETS = 4


class ApprenticeSource(io.ComfyNode):
    """A model as a source of drafts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSource",
            display_name="Source of Drafts",
            category=CATEGORY,
            description="A student (or a teacher) that Explore may ask for drafts, as often as they pay: with what it draws, "
            "and how. It draws nothing by itself.",
            inputs=[
                io.Model.Input("model", tooltip="A Turbo, LCM, Lightning or Hyper model, a student of your own, or any other."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", tooltip="What to avoid; without effect at CFG 1."),
                types.preset(),
                types.student_steps(),
                types.cfg("cfg", 1.0, "model"),
                types.sampler_name(optional=True),
                types.scheduler(optional=True),
                Calibration.Input(
                    "calibration", optional=True,
                    tooltip="This student's scores on many prompts, best with several drafts a prompt (Calibrate). Without one, "
                    "what its drafts are like is learned from the batch.",
                ),  # fmt: skip
                io.String.Input("name", default="", optional=True, tooltip="What reports call it; empty: by its preset."),
                *types.connected()[:3],
            ],
            outputs=[Source.Output("source", display_name="source", tooltip="For Explore.")],
        )

    @classmethod
    def validate_inputs(
        cls, preset: Any = None, sampler_name: Any = None, scheduler: Any = None, input_types: Any = None
    ) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return types.check_inputs(cls, input_types, preset=preset, sampler_name=sampler_name, scheduler=scheduler)

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, preset: str, steps: int, cfg: float, sampler_name: str = "dpmpp_2m",
        scheduler: str = "karras", calibration: CalibrationData | None = None, name: str = "", **given: Any,
    ) -> io.NodeOutput:  # fmt: skip
        drawing = Drawing(steps, cfg, sampler_name, scheduler, 0).connected(**given)
        return io.NodeOutput(ModelSource(model, positive, negative, preset, drawing, calibration, name))


class ApprenticePictureSource(io.ComfyNode):
    """Finished pictures as a source of drafts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticePictureSource",
            display_name="Finished Pictures (source)",
            category=CATEGORY,
            description="Pictures of anything's making as a source for Explore: a GAN, an autoregressive model, another pack, "
            "last week's folder. The teacher can refine them through its VAE.",
            inputs=[
                io.Image.Input(
                    "images", tooltip="One for each picture of the batch, or several: all first ones, then all second ones. They "
                    "are scaled to the batch's size and cropped about the middle.",
                ),  # fmt: skip
                io.Float.Input(
                    "cost", default=0.0, min=0.0, max=100000.0, step=0.5,
                    tooltip="What one of them is taken to cost, in network evaluations: 0 for what is there anyway.",
                ),  # fmt: skip
                io.String.Input("name", default="", optional=True, tooltip="What reports call them."),
            ],
            outputs=[Source.Output("source", display_name="source", tooltip="For Explore.")],
        )

    @classmethod
    def execute(cls, images: Tensor, cost: float, name: str = "") -> io.NodeOutput:
        return io.NodeOutput(PictureSource(images, cost, name))


class ApprenticeExplore(io.ComfyNode):
    """Drafts until the next one isn't worth its price."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeExplore",
            display_name="Explore",
            category=CATEGORY,
            description="Draws drafts where they pay: again for the pictures that may still win, from the source that promises "
            "most for its cost, until the next draft isn't worth its price. The best are kept; pictures whose best draft stays "
            "weak go to the teacher.",
            is_input_list=True,
            inputs=[
                Oracle.Input("oracle", tooltip="Who judges."),
                io.Vae.Input("vae", tooltip="The students' VAE: shows the drafts to the oracle."),
                Source.Input("source_1", tooltip="Who draws. Its first draft is Student Sampler's, to the bit."),
                io.String.Input(
                    "prompt", multiline=True, default="",
                    tooltip="What the pictures should show: one for all, or a list with one a picture. Pictures of one prompt "
                    "share what is learned, and the best of all their drafts.",
                ),  # fmt: skip
                io.Latent.Input("latent_image", tooltip="Empty, or an encoded picture to edit; masks are kept."),
                types.seed("Decides all noise. Each draft has a seed of its own, by this one, its source and its number."),
                types.spend(),
                io.Float.Input(
                    "value", default=8.0, min=0.0, max=100000.0, step=0.1, round=0.000001,
                    tooltip="For budget: network evaluations a picture, on average over the batch. For price: how much score one "
                    "evaluation must promise to bring.",
                ),  # fmt: skip
                io.Float.Input(
                    "most", default=32.0, min=0.0, max=100000.0, step=1.0,
                    tooltip="Network evaluations that a single picture's drafts may take at most; 0 for no limit, which a price "
                    "doesn't allow.",
                ),  # fmt: skip
                types.variety(),
                types.denoise(),
                *(
                    Source.Input(f"source_{place}", optional=True, tooltip="Another one who draws: a second student sees more.")
                    for place in range(2, SOCKETS + 1)
                ),
                io.Float.Input(
                    "teacher_nfe", default=0.0, min=0.0, max=100000.0, step=1.0, optional=True,
                    tooltip="What the teacher spends on a picture, from Teacher Cost; 0 where no teacher follows. What "
                    "calling it is worth is learned from what Keep Better has compared.",
                ),  # fmt: skip
                types.look(),
                types.overrides(),
                types.stop_after_judging(),
            ],
            outputs=[
                io.Latent.Output("drafts", display_name="drafts", tooltip="The best drafts; a LATENT that any stock node takes."),
                io.Image.Output("images", display_name="IMAGE", tooltip="Their pictures."),
                Verdict.Output("verdict", display_name="verdict", tooltip="Which of them the teacher should answer."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was tried in which order, at what index, cost and price."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, spend: Any = None, look: Any = None, overrides: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        spend, look, overrides = (v[0] if isinstance(v, list) else v for v in (spend, look, overrides))
        checked = types.check_combos(spend=spend, look=look)
        return types.check_overrides(overrides) if checked is True else checked

    @classmethod
    def execute(
        cls, oracle: list[OracleBase], vae: list[Any], source_1: list[Any], prompt: list[str], latent_image: list[dict[str, Any]],
        seed: list[int], spend: list[str], value: list[float], most: list[float], variety: list[float], denoise: list[float],
        teacher_nfe: Sequence[float] = (0.0,), look: Sequence[str] = (types.FULL_DECODE,), overrides: Sequence[str] = ("",),
        stop_after_judging: Sequence[bool] = (False,), **more: list[Any],
    ) -> io.NodeOutput:  # fmt: skip
        _single(latent_image=latent_image, seed=seed, source_1=source_1, **more)
        sources = {0: source_1[0], **{int(name.removeprefix("source_")) - 1: given[0] for name, given in sorted(more.items())}}
        sources = {place: source for place, source in sources.items() if source is not None}
        total = len(latent_image[0]["samples"])
        prompts = one_prompt_each(prompt, total)
        terms = Terms(
            seed[0], denoise[0], variety=variety[0], most=_most(spend[0], most[0]), fast=look[0] == types.FAST_DECODE,
            **({"budget": value[0]} if spend[0] == BUDGET else {"price": _price(value[0])}),
        )  # fmt: skip
        students = [source for source in sources.values() if isinstance(source, ModelSource)]
        drawn_by = "-".join(model_fingerprint(source.drawing.model(source.model)) for source in students)
        lesson = lesson_of(oracle[0].fingerprint(), drawn_by, teacher_nfe[0])
        teacher = _teacher(teacher_nfe[0], lesson, students)
        if teacher is not None:
            teacher = _as_before(source_1[0], (id(latent_image[0]), lesson, terms, tuple(prompts)), teacher)
        explorer = Explorer(sources, oracle[0], vae[0], prompts, latent_image[0], terms, teacher)
        board = Board(JUDGED, total)
        explored = explorer.run(lambda search, rows, pictures: _watch(board, explorer, search, rows, pictures))
        verdict = _verdict(explored, oracle[0], prompts, spend[0], value[0], overrides[0], stop_after_judging[0])
        verdict = replace(verdict, lesson=lesson if teacher else "")
        board = Board(JUDGED, total)  # which saves the last as it did the first
        files = [board.save(picture) for picture in explored.images]
        board.remember(explored.keys, list(explored.images), prompts, [j.score for j in verdict], oracle[0].fingerprint())
        passes = [j.accepted if not j.override else j.score >= j.threshold for j in verdict]
        rows = [{**row, "draft": file} for row, file in zip(pictures_of(verdict, passes), files, strict=True)]
        spent = float(explored.search.spent.mean()) if total else None
        content = board.whole(verdict, rows, costs={"student": spent, "teacher": teacher_nfe[0] or None}, calibration=None)
        report = order_of_evaluation(explored.search, explored.names, prompts)
        return io.NodeOutput(explored.latent, explored.images, verdict, report, ui=shown(summary(verdict), board=content))


def _single(**given: list[Any]) -> None:
    """Refuse lists.

    Raises:
        ValueError: There is one.
    """
    for name, values in given.items():
        if len(values) > 1:
            raise ValueError(
                f"Explore draws one batch at a time, and {name} is a list of {len(values)}: join them, texts with Prompts, "
                "latents and pictures as a batch."
            )


def _most(spend: str, most: float) -> float:
    """The limit of a single picture.

    Raises:
        ValueError: There is none, and no budget either.
    """
    if spend == PRICE and most <= 0:
        raise ValueError("With a price and no limit a picture could be drawn forever: set most to what one may cost at most.")
    return most


def _price(value: float) -> float:
    if value <= 0:
        raise ValueError("A price of 0 makes every draft worth it: set how much score an evaluation must bring, or a budget.")
    return value


def _teacher(cost: float, lesson: str, students: Sequence[ModelSource]) -> Teacher | None:
    """The teacher that follows, with what pairs have told of it: Keep Better's, or those of a calibration."""
    if cost <= 0:
        return None
    drafts, answers = pairs_of(folders.gains_file(), lesson)
    if len(drafts) < FEWEST_PAIRS:
        taught = next((s.calibration for s in students if s.calibration is not None and s.calibration.teacher_scores), None)
        drafts, answers = taught.pairs() if taught is not None else (drafts, answers)
    return Teacher(cost, fit_gain(drafts, answers))


# What was known of the teacher when this was explored last: a word on the Draft Board decides about the pictures that are shown,
# and what their comparison has taught since waits for the next ones.
_KNOWN: WeakKeyDictionary[Any, tuple[Any, Teacher]] = WeakKeyDictionary()


def _as_before(source: Any, terms: Any, teacher: Teacher) -> Teacher:
    """``teacher``, or for the same terms as last time what was known of it then."""
    before = _KNOWN.get(source)
    if before is None or before[0] != terms:
        before = _KNOWN[source] = (terms, teacher)
    return before[1]


def _watch(board: Board, explorer: Explorer, search: Search, rows: Sequence[int], pictures: Tensor) -> None:
    """Show what is newly in hand."""
    board.tell(
        {
            "index": row, "prompt": explorer.prompts[row], "draft": board.save(picture),
            "score": number(search.tries[int(search.held[row])].score),
        }
        for row, picture in zip(rows, pictures, strict=True)
    )  # fmt: skip


def _verdict(
    explored: Explored, oracle: OracleBase, prompts: list[str], spend: str, value: float, overrides: str, stop: bool
) -> VerdictData:
    """Which pictures the teacher should answer, as a verdict that Teacher and Keep Better take."""
    search = explored.search
    rows = set(search.for_teacher())
    scores = [search.tries[i].score for i in search.held]
    level = search.teachers_level()
    images = as_rgb([explored.images])
    gate = Gate(
        level, tuple(row not in rows for row in range(len(scores))),
        " ".join(f"{in_words(search, explored.names)} {explored.note} {remarks(oracle, images, prompts)}".split()),
        tuple([level] * len(scores)),
    )  # fmt: skip
    info = explored.latent["apprentice"]
    verdict = judge(
        gate, scores, prompts, oracle=oracle.name, fingerprint=oracle.fingerprint(), mode=f"explore, {spend}", value=value,
        seeds=explored.seeds, nfe=info.nfe, keys=explored.keys, overrides=read_overrides(overrides), stopped=stop,
    )  # fmt: skip
    return replace(verdict, student=info.student, asked=explored.asked)


