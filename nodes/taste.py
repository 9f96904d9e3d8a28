"""The artist's own oracle, from clicks on the Draft Board."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.v0_0_2 import io
from server import PromptServer

from ..bridge import taste_clicks
from ..bridge.progress import shown
from ..oracles.base import Oracle as OracleBase
from ..oracles.taste import Source, TasteFile, TasteOracle
from ..training.taste import in_words, learn
from . import folders
from .types import CATEGORY, Oracle

TASTES = "tastes"
folder_paths.add_model_folder_path(TASTES, str(Path(folder_paths.models_dir) / TASTES))
folder_paths.folder_names_and_paths[TASTES][1].add(".safetensors")
if getattr(PromptServer, "instance", None) is not None:
    taste_clicks.register(PromptServer.instance.routes, folders.check_name)


def _sources() -> list[Any]:
    return [
        Oracle.Input("oracle", tooltip="The published judge that your taste is mixed with; its picture features teach it, too."),
        Oracle.Input(
            "features_from", optional=True,
            tooltip="Whose picture features teach the taste instead: a CLIP, for instance, where the judge shows none.",
        ),  # fmt: skip
    ]


class ApprenticeTaste(io.ComfyNode):
    """An oracle from clicks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeTaste",
            display_name="Taste (from your clicks)",
            category=CATEGORY,
            description="Learns your own taste from the clicks on the Draft Board: an oracle like any other, mixed with a "
            "published one as far as your clicks don't tell.",
            inputs=[
                *_sources(),
                io.String.Input("taste", default="my taste", tooltip="The name under which you clicked on the Draft Board."),
                io.Float.Input(
                    "mix", default=-1.0, min=-1.0, max=1.0, step=0.05, round=0.001, optional=True,
                    tooltip="The published judge's part of the say, 0-1. -1 takes what the clicks give evidence for.",
                ),  # fmt: skip
                io.String.Input(
                    "save_as", default="", optional=True,
                    tooltip="Save it under this name in models/tastes, to load and to share. Empty saves nothing.",
                ),  # fmt: skip
            ],
            outputs=[
                Oracle.Output("taste_oracle", display_name="oracle", tooltip="Your taste, for Judge, Keep Better and the rest."),
                io.Float.Output(
                    "threshold", display_name="threshold",
                    tooltip="Your own threshold, for Judge's absolute: below it you would rather have the teacher's picture.",
                ),  # fmt: skip
                io.String.Output("report", display_name="report", tooltip="How good it is, and what it is made of."),
            ],
        )

    @classmethod
    def validate_inputs(cls, taste: Any = None, save_as: Any = None) -> bool | str:
        """Names that no file can have are refused before anything runs. What is connected has no value yet."""
        try:
            for name in (taste, save_as):
                if isinstance(name, str) and (name or name is taste):
                    folders.check_name(name, "taste")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, taste: Any = None, **_: Any) -> str:
        """More clicks make another taste."""
        names = [taste] if isinstance(taste, str) else taste_clicks.names()  # what is connected has no value yet: any of them
        return " ".join(taste_clicks.click_file(name).state() for name in names)

    @classmethod
    def execute(
        cls, oracle: OracleBase, taste: str, features_from: OracleBase | None = None, mix: float = -1.0, save_as: str = ""
    ) -> io.NodeOutput:
        name = folders.check_name(taste, "taste")
        file = taste_clicks.click_file(name)
        clicks = file.read()
        if not clicks.pairs:
            raise ValueError(f"There are no clicks under the name '{name}': choose 'Teach a taste' on the Draft Board.")
        eye = features_from or oracle
        features = taste_clicks.features_of(eye, file, clicks)
        keys = list(features)
        row = {key: i for i, key in enumerate(keys)}
        learned = learn(
            np.stack([features[key] for key in keys]), np.array(taste_clicks.scores_of(oracle, clicks, keys)),
            [(row[better], row[worse]) for better, worse in clicks.pairs], [clicks.pictures[key].prompt for key in keys],
            [clicks.pictures[key].improved for key in keys], None if mix < 0 else mix,
        )  # fmt: skip
        words = in_words(learned, clicks.unread)
        content = TasteFile(
            torch.from_numpy(learned.weight).float(), learned.published, learned.mean, learned.std, learned.threshold,
            Source.of(eye), Source.of(oracle), words,
        )  # fmt: skip
        if save_as:
            content.save(Path(folder_paths.get_folder_paths(TASTES)[0]) / f"{folders.check_name(save_as, 'taste')}.safetensors")
        return _given(content, oracle, eye, name)


class ApprenticeLoadTaste(io.ComfyNode):
    """A taste from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApprenticeLoadTaste",
            display_name="Load Taste",
            category=CATEGORY,
            description="A taste that somebody has saved and shared. It needs the oracles that it was learned on.",
            inputs=[
                io.Combo.Input("name", options=folder_paths.get_filename_list(TASTES), tooltip="A file in models/tastes."),
                *_sources(),
            ],
            outputs=[
                Oracle.Output("taste_oracle", display_name="oracle", tooltip="The taste, for Judge, Keep Better and the rest."),
                io.Float.Output("threshold", display_name="threshold", tooltip="Its owner's threshold, for Judge's absolute."),
                io.String.Output("report", display_name="report", tooltip="What it says of itself."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: Any = None) -> bool | str:
        """Combos of V3 nodes are not checked by ComfyUI."""
        missing = folders.is_missing(name, TASTES)
        return f"There is no file '{name}' in models/tastes; save one with Taste, or put it there." if missing else True

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, **_: Any) -> str:
        """Another file under the same name is another taste."""
        return folders.stamp(name, TASTES)

    @classmethod
    def execute(cls, name: str, oracle: OracleBase, features_from: OracleBase | None = None) -> io.NodeOutput:
        path = folders.model_file(name, TASTES)
        if path is None:
            raise ValueError(f"There is no file '{name}' in models/tastes.")
        return _given(TasteFile.load(path), oracle, features_from or oracle, path.stem)


def _given(content: TasteFile, oracle: OracleBase, eye: OracleBase, name: str) -> io.NodeOutput:
    """The outputs. Without a threshold of the artist's own everything passes at 0, an even chance against the average picture."""
    with torch.inference_mode(False):
        taste = TasteOracle(content, eye, oracle, f"taste '{name}'")
    threshold = 0.0 if math.isnan(content.threshold) else content.threshold
    return io.NodeOutput(taste, threshold, content.about, ui=shown(content.about or name))
