"""Every kind of file that the pack reads: an honest one, and what reads it."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from comfyui_apprentice.benchmarks.data_sets import read_split_file
from comfyui_apprentice.cli.calibrate import read_graph
from comfyui_apprentice.gate import calibration, controller, gains
from comfyui_apprentice.gate.calibrate import read_prompts
from comfyui_apprentice.networks import diffusers_unet, edm
from comfyui_apprentice.networks.prompted_clip import Projector, PromptedStudent, PromptTokens
from comfyui_apprentice.oracles import load
from comfyui_apprentice.oracles.clip_files import ClipFile, load_clip
from comfyui_apprentice.oracles.hpsv3 import _tokenizer
from comfyui_apprentice.oracles.promptkd import Critic, CriticNetwork, load_critic, save_critic, tower_hash
from comfyui_apprentice.training.critic import load_teacher, save_tokens
from comfyui_apprentice.training.domain_data import read_picture
from comfyui_apprentice.weights.checkpoints import read_metadata, read_weights, to_safetensors
from comfyui_apprentice.weights.edm_pickle import read_edm
from comfyui_apprentice.weights.gguf import read_gguf_header
from comfyui_apprentice.weights.promptkd_checkpoint import read_official
from comfyui_apprentice.weights.torch_archive import read_tree
from PIL import Image
from safetensors.torch import save

from . import mutations
from .mutations import Change

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: What the file is called, which messages must contain.
        make: An honest one.
        read: What users do with it; it may write beside it.
        change: How it is spoiled.
        share: How many of it, to one of the others: dear ones fewer.
    """

    name: str
    make: Callable[[], bytes]
    read: Callable[[Path], object]
    change: Change
    share: float = 1.0


def _safetensors(tensors: Any, metadata: dict[str, str] | None = None) -> bytes:
    return save({key: value.detach().contiguous().clone() for key, value in tensors.items()}, metadata)


def _torchs(value: Any, zipped: bool = True) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, _use_new_zipfile_serialization=zipped)
    return held.getvalue()


def _gguf() -> bytes:
    """A header with two facts and a tensor of 64 x 3072."""
    words = [struct.pack("<Q", len(word)) + word for word in (b"general.architecture", b"flux", b"list", b"img_in.weight")]
    facts = words[0] + struct.pack("<I", 8) + words[1] + words[2] + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + facts + words[3] + struct.pack("<IQQIQ", 2, 64, 3072, 8, 0)


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tied = torch.randn(3, 5)
    return {"a.weight": tied, "a.bias": torch.randn(3).half(), "b.weight": tied, "steps": torch.tensor(7), "c": tied.t()}


def _trained() -> dict[str, Any]:
    optimiser = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    return {"state_dict": _weights(), "optimizer": optimiser.state_dict(), "epoch": 3, "args": ["a", (1, 2.5)]}


def _script() -> bytes:
    held = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))), held)
    return held.getvalue()


def _convert(path: Path) -> None:
    to_safetensors(path, path.with_name("converted.safetensors"))


# ----------------------------------------------------------------------------------------------------------- CLIPs

_CLIP = {
    "embed_dim": 16, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 8, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip


@cache
def _clip() -> Any:
    torch.manual_seed(0)
    return open_clip.CLIP(**_CLIP)


def _clip_file() -> bytes:
    about = {"open_clip": json.dumps(_CLIP), "words": '["red", "heart"]', "templates": '["a {}"]'}
    return _safetensors(_clip().state_dict(), about)


def _hf_clip() -> bytes:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 8, "max_position_embeddings": 16, "projection_dim": 16}
    vision = {**sizes, "image_size": 16, "patch_size": 8, "projection_dim": 16}
    return _safetensors(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).state_dict())


def _file(save_to: Callable[[Path], object]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_to(Path(folder) / "a")
        return (Path(folder) / "a").read_bytes()


def _critic() -> bytes:
    tokens = PromptTokens.random(1, 2, 32, torch.Generator().manual_seed(0))
    student = PromptedStudent(_fresh(), tokens, Projector(16, 8), torch.tensor(4.0))
    made = Critic("a", CriticNetwork(student, torch.eye(2, 8)), ("cat", "dog"), ("a {}",), "small", tower_hash(_clip().visual))
    return _file(lambda path: save_critic(made, path))


def _fresh() -> Any:
    import copy

    return copy.deepcopy(_clip().visual)


def _teacher() -> bytes:
    from comfyui_apprentice.networks.prompted_clip import PromptedClip
    from comfyui_apprentice.training.critic import Teacher

    tokens = PromptTokens.random(1, 2, 32, torch.Generator().manual_seed(0))
    base = open_clip.CLIP(**_CLIP)
    base.load_state_dict(_clip().state_dict())
    teacher = Teacher("a", PromptedClip(base, tokens, None, len), placeholder="a photo of a", templates=("a {}",))
    return _file(lambda path: save_tokens(teacher, path))


def _aesthetic() -> bytes:
    head = {f"layers.{i}.{kind}": torch.zeros((n, m) if kind == "weight" else (n,))
            for i, n, m in ((0, 8, 16), (2, 8, 8), (4, 8, 8), (6, 8, 8), (7, 1, 8)) for kind in ("weight", "bias")}  # fmt: skip
    visual = {f"visual.{key}": value for key, value in _clip().visual.state_dict().items()}
    return _safetensors({**head, **visual})


def _read_official(path: Path) -> None:
    found = read_official(path)
    found.tokens("image"), found.tokens("text"), found.tower()
    if found.kind == "student":
        found.projector()


# ------------------------------------------------------------------------------------------------------------ U-Nets

_UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 8,
    "layers_per_block": 1, "block_out_channels": [32, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "transformer_layers_per_block": [1, 1],
}  # fmt: skip


@cache
def _unet() -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = diffusers_unet.build_skeleton(_UNET, "a").to_empty(device="cpu").state_dict()
    return {key: torch.zeros_like(value, dtype=torch.float16) for key, value in made.items()}


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


def _read_config(path: Path) -> object:
    return diffusers_unet.structure(_shapes(_unet()), diffusers_unet.read_json(path.read_bytes(), path.name), path.name)


def _read_unet(path: Path) -> object:
    weights = read_weights(path)
    config = read_metadata(path).get(diffusers_unet.METADATA_CONFIG)
    parsed = diffusers_unet.read_json(config, path.name) if config else None
    return diffusers_unet.is_unet(weights) and diffusers_unet.structure(_shapes(weights), parsed, path.name)


def _read_index(path: Path) -> object:
    for name in ("config.json", "b.safetensors", "d.bin"):
        (path.parent / name).touch()
    return diffusers_unet.find_files(path.parent)


# -------------------------------------------------------------------------------------------------------------- texts


def _picture() -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (16, 8), "red").save(held, "PNG")
    return held.getvalue()


def _calibration() -> bytes:
    made = calibration.Calibration((1.0, 0.5, float("nan")), "0" * 8, "a", ("x", "x", "y"), (2.0, 1.0, 1.0), name="a")
    return _file(lambda path: calibration.save(made, path))


def _gains() -> bytes:
    return _file(lambda path: gains.remember(path, "a-b-8", "teacher", {"x": (1.0, 2.0), "y": (0.5, 0.0)}))


def _controller() -> bytes:
    return _file(lambda path: controller.FileController(path).judge([1.0, 0.5], ["a", "b"], 0.3))


_WORDS = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
    "post_processor": None, "decoder": None,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}  # fmt: skip


def _read_tokenizer(path: Path) -> object:
    _tokenizer.cache_clear()
    return _tokenizer(str(path))


_WORKFLOW = {
    "1": {"class_type": "ApprenticeCalibrate", "inputs": {"model": ["2", 0], "steps": 4}},
    "2": {"class_type": "X", "inputs": {}},
}
_SPLIT = {"train": [["a/1.jpg", 0, "cat"], ["b/1.jpg", 1, "dog"]], "val": [], "test": [["a/2.jpg", 0, "cat"]]}


KINDS = (
    Kind("weights.safetensors", lambda: _safetensors(_weights(), {"a": "b"}), lambda path: (read_metadata(path), _convert(path)),
         mutations.safetensors),
    Kind("archive.pt", lambda: _torchs(_weights()), _convert, mutations.archived),
    Kind("older.bin", lambda: _torchs(_weights(), zipped=False), _convert, mutations.pickled),
    Kind("trained.ckpt", lambda: _torchs(_trained()), lambda path: (read_tree(path), _convert(path)), mutations.archived),
    Kind("script.pt", _script, _convert, mutations.archived),
    Kind("student.pth.tar", (DATA / "promptkd" / "tiny_student.pth.tar").read_bytes, _read_official, mutations.archived),
    Kind("snapshot.pkl", (DATA / "sid" / "tiny_edm_snapshot.pkl").read_bytes,
         lambda path: edm.restore_edm(*read_edm(path), path.name), mutations.pickled, 0.5),
    Kind("edm.safetensors", lambda: _file(lambda path: to_safetensors(DATA / "sid" / "tiny_edm_snapshot.pkl", path)),
         lambda path: edm.restore_edm(*read_edm(path), path.name), mutations.safetensors, 0.5),
    Kind("config.json", lambda: json.dumps(_UNET).encode(), _read_config, mutations.json_text, 0.3),
    Kind("unet.safetensors", lambda: _safetensors(_unet()), _read_unet, mutations.safetensors),
    Kind("diffusion_pytorch_model.safetensors.index.json", lambda: b'{"weight_map": {"a": "b.safetensors", "c": "d.bin"}}',
         _read_index, mutations.json_text),
    Kind("clip.safetensors", _clip_file, load_clip, mutations.safetensors, 0.5),
    Kind("openai.safetensors", lambda: _safetensors(_clip().state_dict()), load_clip, mutations.safetensors, 0.5),
    Kind("pickscore.safetensors", _hf_clip, lambda path: load("pickscore", path), mutations.safetensors, 0.3),
    Kind("score.safetensors", _hf_clip, lambda path: load("clip-score", path), mutations.safetensors, 0.3),
    Kind("aesthetic.safetensors", _aesthetic, lambda path: load("aesthetic-v2", path), mutations.safetensors, 0.5),
    Kind("critic.safetensors", _critic, lambda path: load_critic(path, _clip()), mutations.safetensors),
    Kind("tokens.safetensors", _teacher, lambda path: load_teacher(ClipFile("a", _clip(), len), path, ("a {}",)),
         mutations.safetensors),
    Kind("calibration.json", _calibration, calibration.load, mutations.json_text),
    Kind("controller.json", _controller, controller.load, mutations.json_text),
    Kind("gains.json", _gains, gains.load, mutations.json_text),
    Kind("tokenizer.json", lambda: json.dumps(_WORDS).encode(), _read_tokenizer, mutations.json_text),
    Kind("workflow.json", lambda: json.dumps(_WORKFLOW).encode(), lambda path: read_graph(path, {}), mutations.json_text),
    Kind("split.json", lambda: json.dumps(_SPLIT).encode(), lambda path: read_split_file(path, path.parent), mutations.json_text),
    Kind("prompts.csv", lambda: b'id,caption\n1,"a red heart, on sand"\n2,a zebra\n', read_prompts, mutations.table),
    Kind("prompts.txt", lambda: "a red heart\nein süßer Hund\n".encode(), read_prompts, mutations.table),
    Kind("flux.gguf", _gguf, read_gguf_header, mutations.raw),
    Kind("picture.png", _picture, read_picture, mutations.raw),
)  # fmt: skip
