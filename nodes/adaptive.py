"""The whole method in one node, which expands into the very graph that an artist would wire."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import GraphBuilder

from ..gate.overrides import read_overrides
from . import folders, types
from .types import CATEGORY, Calibration, Oracle, Source, Verdict

# Links are passed on as they are, so that the inner nodes are cached like those of a hand-wired graph; and lazily, so that only
# the inner nodes ask for what is before them: what the teacher needs, when the teacher is needed, and with --cache-none nothing
# once for this node and once more for them.
_LINK = {"rawLink": True, "lazy": True}
_BY_HAND = ("overrides", "stop_after_judging")


def _prompt() -> io.String.Input:
    prompt = io.String.Input(
        "prompt",
        multiline=True,
        default="",
        tooltip="What the pictures should show, for the oracle: one for all, or a list with one a picture.",
    )
    prompt.extra_dict = dict(_LINK)  # a list, too, goes on to the judge as it is, instead of running this node many times
    return prompt


class ApprenticeSampler(io.ComfyNode):
    """Student, judge, teacher and keep-better."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeSampler",
            display_name="Apprentice Sampler",
            category=CATEGORY,
            description="The student drafts, the oracle judges, the teacher improves only the weak ones, and the better of the "
            "two is kept. The same as the single nodes wired together.",
            enable_expand=True,
            inputs=[
                io.Model.Input("student", extra_dict=_LINK, tooltip="The fast model."),
                io.Model.Input("teacher", extra_dict=_LINK, tooltip="The slow model; loaded only if it is needed."),
                io.Vae.Input("vae", extra_dict=_LINK, tooltip="The student's VAE."),
                Oracle.Input("oracle", extra_dict=_LINK, tooltip="Who judges."),
                io.Conditioning.Input("positive", extra_dict=_LINK, tooltip="What to draw."),
                io.Conditioning.Input("negative", extra_dict=_LINK, tooltip="What to avoid."),
                _prompt(),
                io.Latent.Input("latent_image", extra_dict=_LINK, tooltip="Empty, or an encoded picture to edit."),
                types.seed("Decides all noise. The teacher regenerates with the same noise, and refines with seed + 1."),
                types.preset(),
                types.student_steps("steps"),
                types.cfg("cfg", 1.0, "student"),
                types.denoise(),
                types.threshold(),
                types.value(),
                types.strategy(),
                types.rollback(),
                types.teacher_steps("teacher_steps"),
                types.cfg("teacher_cfg", 2.0, "teacher"),
                types.sampler_name(),
                types.scheduler(),
                types.margin(),
                Calibration.Input(
                    "calibration", optional=True, extra_dict=_LINK, tooltip="For percentile, expected gain and guaranteed."
                ),
                io.Conditioning.Input(
                    "teacher_positive", optional=True, extra_dict=_LINK,
                    tooltip="What to draw, where the teacher has another CLIP or another ControlNet.",
                ),  # fmt: skip
                io.Conditioning.Input("teacher_negative", optional=True, extra_dict=_LINK, tooltip="Likewise."),
                io.Vae.Input(
                    "teacher_vae", optional=True, extra_dict=_LINK,
                    tooltip="The teacher's VAE, where it belongs to another family than the student.",
                ),  # fmt: skip
                types.controller(),
                types.confidence(),
                types.look(),
                *types.connected(who="student", extra=_LINK),
                *types.connected("teacher_", "teacher", lazy=True, extra=_LINK),
                types.overrides(),
                types.stop_after_judging(),
                io.Float.Input(
                    "explore", default=0.0, min=0.0, max=100000.0, step=0.5, optional=True,
                    tooltip="0: one draft a picture, then the gate. More: network evaluations a picture, teacher included, that "
                    "Explore spends where they pay, on more drafts or the teacher; threshold and value then say nothing.",
                ),  # fmt: skip
                types.variety(optional=True),
                Source.Input(
                    "second_source", optional=True, extra_dict=_LINK,
                    tooltip="For explore: another student beside the first; two see more than one.",
                ),  # fmt: skip
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="The final latents."),
                io.Image.Output("images", display_name="IMAGE", tooltip="The final pictures."),
                Verdict.Output("verdict", display_name="verdict", tooltip="What became of each picture."),
                io.Image.Output("report", display_name="report", tooltip="The contact sheet."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, preset: Any = None, threshold: Any = None, strategy: Any = None, sampler_name: Any = None, scheduler: Any = None,
        look: Any = None, overrides: Any = None, input_types: Any = None,
    ) -> bool | str:  # fmt: skip
        """Combos of V3 nodes are not checked by ComfyUI."""
        checked = types.check_inputs(
            cls, input_types, preset=preset, threshold=threshold, strategy=strategy, sampler_name=sampler_name,
            scheduler=scheduler, look=look,
        )  # fmt: skip
        return types.check_overrides(overrides) if checked is True else checked

    @classmethod
    def fingerprint_inputs(cls, threshold: Any = None, controller: Any = "default", **_: Any) -> int:
        """As the judge's: a controller's file that somebody deleted or edited is looked at again."""
        if threshold != "running" or not isinstance(controller, str):
            return 0
        return folders.generation(folders.controller_file(controller))

    @classmethod
    def check_lazy_status(cls, **_: Any) -> list[str]:
        """Nothing: the inner nodes ask for what they need."""
        return []

    @classmethod
    def execute(
        cls, student: Any, vae: Any, oracle: Any, positive: Any, negative: Any, prompt: Any, latent_image: Any, seed: int,
        preset: str, steps: int, cfg: float, denoise: float, threshold: str, value: float, strategy: str, rollback: float,
        teacher_steps: int, teacher_cfg: float, sampler_name: str, scheduler: str, margin: float, teacher: Any = None,
        calibration: Any = None, teacher_positive: Any = None, teacher_negative: Any = None, teacher_vae: Any = None,
        controller: str = "default", confidence: float = 0.9, look: str = types.FULL_DECODE, overrides: str = "",
        stop_after_judging: bool = False, explore: float = 0.0, variety: float = 0.0, second_source: Any = None, **given: Any,
    ) -> io.NodeOutput:  # fmt: skip
        g = GraphBuilder()
        students = {name: link for name, link in given.items() if not name.startswith("teacher_")}
        teachers = {name.removeprefix("teacher_"): link for name, link in given.items() if name not in students}
        # Only where it matters, so that for the other modes the judge is the same node, in the same cache, whatever it says.
        modes: dict[str, dict[str, Any]] = {"running": {"controller": controller}, "guaranteed": {"confidence": confidence}}
        extra = modes.get(threshold, {})
        if read_overrides(overrides):
            extra["overrides"] = overrides
        if stop_after_judging:
            extra["stop_after_judging"] = True
        if strategy == "regenerate" and "noise" in students:
            teachers.setdefault("noise", students["noise"])
        drafting = {"positive": positive, "negative": negative, "preset": preset, "steps": steps, "cfg": cfg}
        drafting |= {"model": student, "sampler_name": sampler_name, "scheduler": scheduler, **_connected(**students)}

        def cost() -> Any:
            """What the teacher spends on a picture, by the student's noise levels: the teacher need not be loaded to know."""
            return g.node(
                "ApprenticeTeacherCost", model=student, strategy=strategy, rollback=rollback, steps=teacher_steps,
                cfg=teacher_cfg, sampler_name=sampler_name, scheduler=scheduler,
                **_connected(**{name: link for name, link in teachers.items() if name != "noise"}),
            ).out(0)  # fmt: skip

        def decoded(samples: Any) -> Any:
            """What the judges see."""
            if look == types.FAST_DECODE:
                return g.node("ApprenticeFastDecode", model=student, samples=samples).out(0)
            return g.node("VAEDecode", samples=samples, vae=vae).out(0)

        if explore > 0:
            source = g.node("ApprenticeSource", **_source(drafting), **_connected(calibration=calibration)).out(0)
            searched = g.node(
                "ApprenticeExplore", oracle=oracle, vae=vae, source_1=source, prompt=prompt, latent_image=latent_image, seed=seed,
                spend="budget", value=explore, most=4 * explore, variety=variety, denoise=denoise, look=look, teacher_nfe=cost(),
                **_connected(source_2=second_source), **{name: extra[name] for name in _BY_HAND if name in extra},
            )  # fmt: skip
            drafts, draft_images, verdict = (searched.out(place) for place in range(3))
        else:
            drafts = g.node(
                "ApprenticeStudentSampler", **drafting, latent_image=latent_image, seed=seed, denoise=denoise
            ).out(0)  # fmt: skip
            draft_images = decoded(drafts)
            if threshold == "budget" or stop_after_judging:
                extra["teacher_nfe"] = cost()
            verdict = g.node(
                "ApprenticeJudge", oracle=oracle, images=draft_images, prompt=prompt, threshold=threshold, value=value,
                drafts=drafts, **_connected(calibration=calibration), **extra,
            ).out(0)  # fmt: skip
        improved = g.node(
            "ApprenticeTeacher", verdict=verdict, drafts=drafts, model=teacher, positive=teacher_positive or positive,
            negative=teacher_negative or negative, strategy=strategy, rollback=rollback, steps=teacher_steps,
            cfg=teacher_cfg, sampler_name=sampler_name, scheduler=scheduler,
            seed=seed if strategy == "regenerate" else (seed + 1) % 2**64,
            **_connected(vae=vae if teacher_vae else None, teacher_vae=teacher_vae, **teachers),
        ).out(0)  # fmt: skip
        better = g.node(
            "ApprenticeKeepBetter", oracle=oracle, verdict=verdict, drafts=drafts, improved=improved, margin=margin,
            draft_images=draft_images, improved_images=decoded(improved),
            **_connected(vae=None if look == types.FAST_DECODE else vae),
        )  # fmt: skip
        images = better.out(1)
        if look == types.FAST_DECODE:
            images = g.node("VAEDecode", samples=better.out(0), vae=vae).out(0)
        report = g.node("ApprenticeReport", verdict=better.out(2), images=images, draft_images=draft_images)
        return io.NodeOutput(better.out(0), images, better.out(2), report.out(0), expand=g.finalize())


def _source(drafting: dict[str, Any]) -> dict[str, Any]:
    """A student sampler's inputs as a source's.

    Raises:
        ValueError: A NOISE is connected.
    """
    if "noise" in drafting:
        raise ValueError("With explore each draft has noise by a seed of its own: take noise off, or set explore to 0.")
    return drafting


def _connected(**links: Any) -> dict[str, Any]:
    return {name: link for name, link in links.items() if link is not None}
