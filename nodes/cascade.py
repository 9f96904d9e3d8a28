"""Two oracles as one, of which the heavy one is asked only where the light one can't tell."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..bridge.progress import shown
from ..gate.calibration import Calibration as CalibrationData
from ..gate.cascade import GUARANTEED, SHARE, CertifiedBand, Pairs, ShareBand, report
from ..oracles.base import Oracle as OracleBase
from ..oracles.cascade import Cascade, Scale
from ..oracles.deferred import Deferred
from . import types
from .types import CATEGORY, Calibration, Oracle


class ApprenticeCascadeOracle(io.ComfyNode):
    """A light oracle for all, a heavy one for the doubtful."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeCascadeOracle",
            display_name="Cascade Oracle",
            category=CATEGORY,
            description="A light oracle judges every picture, and a heavy one only those near the threshold. With Load Oracle's "
            "on_demand the heavy one's file is not even read while no picture needs it.",
            inputs=[
                Oracle.Input("light", tooltip="The quick judge; sees every picture."),
                Calibration.Input("light_calibration", tooltip="Your student's drafts as the light oracle scores them."),
                Oracle.Input("heavy", tooltip="The good judge, whose scale counts; from Load Oracle with on_demand."),
                Calibration.Input("heavy_calibration", tooltip="The same drafts as the heavy oracle scores them."),
                io.Combo.Input(
                    "band", options=types.COMBOS["band"], default=SHARE,
                    tooltip="Which pictures the heavy oracle sees. share: a part of your student's drafts, those nearest to the "
                    "threshold. guaranteed: as many as it takes to decide nearly always as it would alone.",
                ),  # fmt: skip
                io.Float.Input(
                    "share", default=0.3, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="For share: the part of your student's drafts that the heavy oracle sees (0-1).",
                ),  # fmt: skip
                io.Float.Input(
                    "differing", default=0.05, min=0.0, max=1.0, step=0.01, round=0.001, optional=True,
                    tooltip="For guaranteed: the part of decisions that may differ from the heavy oracle's own (0-1).",
                ),  # fmt: skip
                types.confidence(),
                io.Float.Input(
                    "percentile", default=30.0, min=0.0, max=100.0, step=1.0, round=0.1, optional=True,
                    tooltip="Where the band lies for nodes without a threshold, such as Score and Best of Batch: around this "
                    "percentile of the heavy calibration (0-100). Judge and Keep Better know their thresholds themselves.",
                ),  # fmt: skip
            ],
            outputs=[
                Oracle.Output("oracle", display_name="oracle", tooltip="Both as one, on the heavy oracle's scale."),
                io.Float.Output("threshold", display_name="threshold", tooltip="That percentile, for Judge's absolute."),
                io.String.Output("report", display_name="report", tooltip="Where the band lies, and what it costs and promises."),
            ],
        )

    @classmethod
    def validate_inputs(cls, band: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        return types.check_combos(band=band)

    @classmethod
    def execute(
        cls, light: OracleBase, light_calibration: CalibrationData, heavy: OracleBase, heavy_calibration: CalibrationData,
        band: str, share: float, differing: float = 0.05, confidence: float = 0.9, percentile: float = 30.0,
    ) -> io.NodeOutput:  # fmt: skip
        light_calibration.require_oracle(light.fingerprint(), light.name)
        if not isinstance(heavy, Deferred):  # which says so itself when it is read
            heavy_calibration.require_oracle(heavy.fingerprint(), heavy.name)
        pairs = Pairs.of(light_calibration, heavy_calibration)
        rule = CertifiedBand.of(pairs, differing, confidence) if band == GUARANTEED else ShareBand.of(pairs, share)
        threshold, scale = heavy_calibration.percentile(percentile)[0], Scale.fitted(pairs.light, pairs.heavy)
        cascade = Cascade(light, heavy, scale, rule, threshold, heavy_calibration.oracle, rule.promise)
        text = report(cascade, pairs)
        return io.NodeOutput(cascade, threshold, text, ui=shown(text.splitlines()[-1]))
