"""Nothing is fetched because a file or a workflow says so."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import offline
import open_clip
import pytest
import torch
from comfyui_apprentice import oracles
from comfyui_apprentice.oracles.towers import open_clip_config, plain_sizes

NAMED = {
    "timm_model_name": "hf-hub:somebody/something", "timm_model_pretrained": True, "hf_model_name": "roberta-base",
    "hf_tokenizer_name": "local-dir:/etc", "hf_model_pretrained": True, "act_kwargs": {}, "norm_kwargs": {"eps": 1},
}  # fmt: skip


def tiny() -> Any:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)


def test_other_machines_cannot_be_reached_in_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "REFUSED", refused := list[str]())
    with pytest.raises(ConnectionRefusedError, match="no network"):
        socket.getaddrinfo("huggingface.co", 443)
    with pytest.raises(ConnectionRefusedError, match="no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert refused == ["huggingface.co", "192.0.2.1"]


@pytest.mark.parametrize("part", ["vision_cfg", "text_cfg"])
@pytest.mark.parametrize("name", NAMED)
def test_a_file_cannot_name_what_is_fetched(name: str, part: str) -> None:
    weights = tiny().state_dict()
    config = open_clip_config(weights)
    config[part] = {**config[part], name: NAMED[name]}
    with pytest.raises(ValueError, match=f"says '{name}' of its network, which is no size"):
        oracles.load("clip-score", weights, config=config)


@pytest.mark.parametrize(
    "config", [{"layers": "12"}, {"pool_type": "hub"}, {"layers": [1, "x"]}, {"vision_cfg": 3}, [1], {"anything": 1}]
)
def test_a_configuration_is_sizes_alone(config: Any) -> None:
    with pytest.raises(ValueError, match="the file says"):
        plain_sizes(config, "the file")


def test_sizes_pass() -> None:
    vision = {"layers": [3, 4, 6, 3], "patch_size": None}
    whole = {"embed_dim": 512, "quick_gelu": True, "vision_cfg": vision, "text_cfg": {"heads": 8}}
    assert plain_sizes(whole, "the file") == whole


def test_models_whose_texts_are_read_from_the_hub_are_refused_by_name() -> None:
    hub = [
        name for name in open_clip.list_models()
        if {"hf_model_name", "hf_tokenizer_name"} & open_clip.get_model_config(name)["text_cfg"].keys()
    ]  # fmt: skip
    assert len(hub) >= 10 and "roberta-ViT-B-32" in hub
    for name in hub:
        with pytest.raises(ValueError, match="from Hugging Face's hub"):
            oracles.load("clip-score", {"logit_scale": torch.zeros(())}, model=name)


def test_a_clip_s_metadata_are_a_stranger_s(tmp_path: Path) -> None:
    import json

    from comfyui_apprentice.files import save_safetensors_atomically
    from comfyui_apprentice.oracles.clip_files import load_clip

    weights = tiny().state_dict()
    config = open_clip_config(weights)
    config["vision_cfg"]["timm_model_name"] = "hf-hub:somebody/something"
    save_safetensors_atomically(weights, tmp_path / "clip.safetensors", {"open_clip": json.dumps(config)})
    with pytest.raises(ValueError, match=r"clip.safetensors says 'timm_model_name'"):
        load_clip(tmp_path / "clip.safetensors")
