"""Nodes for tests, loaded into the real ComfyUI beside the pack: probes, and parts that fail on purpose."""

from __future__ import annotations

import gc
import json
import os
import sys
import urllib.request
from pathlib import Path

import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import execution
import folder_paths
import torch
from aiohttp import web
from safetensors.torch import load_file, save_file
from server import PromptServer

import nodes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import offline
from counting import COUNTS, CountModel

offline.block()
gc.freeze()  # what has been imported is no garbage: ComfyUI collects often, and each time Python would look through it all


@PromptServer.instance.routes.get("/apprentice_test/refused")
async def refused(_request):
    """Addresses outside of this machine that something asked for."""
    return web.json_response(offline.REFUSED)


@PromptServer.instance.routes.post("/apprentice_test/counts")
async def counts(_request):
    """What was counted since the last call."""
    found = dict(COUNTS)
    COUNTS.clear()
    return web.json_response(found)


@PromptServer.instance.routes.post("/apprentice_test/validate")
async def validate(request):
    """What ComfyUI has against a prompt before it runs; null where it takes it."""
    taken, error, _, nodes_errors = await execution.validate_prompt("validated", await request.json(), None)
    return web.json_response(None if taken and not nodes_errors else {"error": error, "nodes": nodes_errors}, dumps=_plainly)


def _plainly(value):
    return json.dumps(value, default=str)


@PromptServer.instance.routes.post("/apprentice_test/cancel")
async def cancel(request):
    """Press cancel once the next prompt's bar (of ``total``) has come to ``value``, after ``layers`` more of ComfyUI's layers.

    At a place, not at a time, so that it is the same on every machine.
    """
    asked = await request.json()
    left = {"layers": int(asked["layers"]), "armed": False}
    update, every_op = comfy.utils.ProgressBar.update_absolute, comfy.ops.run_every_op

    def press():
        comfy.utils.ProgressBar.update_absolute, comfy.ops.run_every_op = update, every_op
        pressed = urllib.request.Request(f"http://127.0.0.1:{PromptServer.instance.port}/interrupt", b"")
        urllib.request.urlopen(pressed, timeout=60).close()

    def updated(bar, value, *rest):
        update(bar, value, *rest)
        meant = not asked.get("total") or rest[:1] == (asked["total"],)
        left["armed"] = left["armed"] or (meant and value >= int(asked["value"]))
        if left["armed"] and not left["layers"]:
            press()

    def op():
        if left["armed"]:
            left["layers"] -= 1
            if left["layers"] <= 0:
                press()
        every_op()

    comfy.utils.ProgressBar.update_absolute, comfy.ops.run_every_op = updated, op
    return web.json_response({})


class TestBoomModel:
    """A loader that must not run."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"why": ("STRING", {"default": "boom"})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", "test"

    def load(self, why):
        """Raise."""
        COUNTS["boom"] += 1
        raise RuntimeError(why)


class TestCountModel(CountModel):
    """As the tests' graphs name it."""


class TestSave:
    """Saves tensors exactly."""

    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"name": ("STRING", {"default": "x"})},
            "optional": {"latent": ("LATENT",), "image": ("IMAGE",), "verdict": ("VERDICT",), "text": ("STRING",)},
        }
    )
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "save", "test", True

    def save(self, name, latent=None, image=None, verdict=None, text=None):
        """Write what came as safetensors; verdicts and texts go into the answer."""
        tensors = {}
        if latent is not None:
            tensors["latent"] = latent["samples"].detach().contiguous().clone()
        if image is not None:
            tensors["image"] = image.detach().contiguous().clone()
        if tensors:
            os.makedirs(folder_paths.get_output_directory(), exist_ok=True)
            save_file(tensors, os.path.join(folder_paths.get_output_directory(), f"{name}.safetensors"))
        ui = {"saved": [name]}
        if verdict is not None:
            ui["verdict"] = [
                {
                    "index": j.index, "score": str(j.score), "accepted": j.accepted, "decision": j.decision, "nfe": j.nfe,
                    "seed": j.seed, "threshold": str(j.threshold), "prompt": j.prompt,
                }
                for j in verdict
            ]  # fmt: skip
            ui["note"] = [verdict.note]
        if text is not None:
            ui["text"] = [text]
        return {"ui": ui}


def _oracle_class():
    """The pack's Oracle base class, from wherever ComfyUI has loaded the pack."""
    return next(c.__mro__[1] for c in _subclasses() if c.__name__ == "TinyWorldOracle")


def _subclasses():
    judge = nodes.NODE_CLASS_MAPPINGS["ApprenticeTinyWorld"]
    loader = sys.modules[judge.__module__].loader
    return [loader.TinyWorldOracle]


class TestPromptOracle:
    """Reads the score out of the prompt ("0.7 red heart", "nan"), and counts how often its network runs."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("ORACLE",), "make", "test"

    def make(self):
        """The oracle."""

        class PromptOracle(_oracle_class()):
            name = "prompt oracle"
            network = torch.nn.Linear(1, 1)

            def reward(self, images, prompts):
                COUNTS["oracle"] += len(images)
                return torch.tensor([float((p.split() or ["0"])[0]) for p in prompts])

        with torch.inference_mode(False):
            PromptOracle.network = torch.nn.Linear(1, 1)
            torch.nn.init.zeros_(PromptOracle.network.weight)
            torch.nn.init.zeros_(PromptOracle.network.bias)
        return (PromptOracle(),)


class TestStackMasks:
    """Masks one after another; the stock nodes have none for that."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"a": ("MASK",), "b": ("MASK",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MASK",), "stack", "test"

    def stack(self, a, b):
        """[N + M, H, W]."""
        return (torch.cat([a, b]),)


class TestLoadLatent:
    """A latent that TestSave saved."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING", {"default": "x"})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "load", "test"

    def load(self, name):
        """The samples alone."""
        path = os.path.join(folder_paths.get_output_directory(), f"{name}.safetensors")
        return ({"samples": load_file(path)["latent"]},)


class TestCalibration:
    """A calibration of an oracle with given scores."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"oracle": ("ORACLE",), "scores": ("STRING", {"default": "0, 1"})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CALIBRATION",), "make", "test"

    def make(self, oracle, scores):
        """The calibration, of the pack's own class."""
        module = sys.modules[nodes.NODE_CLASS_MAPPINGS["ApprenticeCombineOracles"].__module__]
        return (module.CalibrationData(tuple(float(s) for s in scores.split(",")), oracle.fingerprint()),)


class TestManualSigmas:
    """SIGMAS from numbers; ComfyUI 0.3.75 has no such node."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"sigmas": ("STRING", {"default": "1, 0"})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("SIGMAS",), "make", "test"

    def make(self, sigmas):
        """The levels."""
        return (torch.tensor([float(s) for s in sigmas.split(",")]),)


class TestLoadStudents:
    """See students_in_comfy."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"base": ("STRING", {"default": ""})}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "load", "test", True

    def load(self, base):
        """Load, ask, and write down."""
        from students_in_comfy import load_students, models_in

        with models_in(Path(base) / "models"):
            load_students(Path(base))
        return {"ui": {"loaded": [base]}}


class TestTellSigmas:
    """Tells noise levels as numbers."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"sigmas": ("SIGMAS",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "tell", "test", True

    def tell(self, sigmas):
        """The levels, in the answer."""
        return {"ui": {"sigmas": sigmas.tolist()}}


class TestOldChoice:
    """A sampler's and a scheduler's name over old-style wires: ComfyUI's own lists, a list of the pack's own, and "*"."""

    CHOICES = (comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"sampler": ("STRING", {}), "scheduler": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = (*CHOICES, ["euler", "mine"], "*", "STRING"), "give", "test"

    def give(self, sampler, scheduler):
        """The names as they are."""
        return sampler, scheduler, sampler, scheduler, sampler


NODE_CLASS_MAPPINGS = {
    c.__name__: c
    for c in (
        TestBoomModel, TestCalibration, TestCountModel, TestLoadLatent, TestLoadStudents, TestManualSigmas, TestOldChoice,
        TestPromptOracle, TestSave, TestStackMasks, TestTellSigmas,
    )  # fmt: skip
}
