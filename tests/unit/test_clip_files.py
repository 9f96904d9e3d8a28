"""CLIPs from files: the towers and the tokenizer that the file was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from comfyui_apprentice.networks.tiny_text import Vocabulary, WordTokenizer
from comfyui_apprentice.oracles.clip_files import load_clip
from comfyui_apprentice.world.weights import clip_config, make_clip
from safetensors.torch import save_file

VISION = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "head_width": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 1}


def saved(network: Any, path: Path, metadata: dict[str, str] | None = None, **more: torch.Tensor) -> Path:
    save_file({**{k: v.contiguous() for k, v in network.state_dict().items()}, **more}, path, metadata)
    return path


def make(quick_gelu: bool = False) -> Any:
    torch.manual_seed(0)
    return open_clip.CLIP(32, VISION, TEXT, quick_gelu=quick_gelu).eval()


@torch.no_grad()
@pytest.mark.parametrize("openai", [False, True])
def test_a_file_gives_the_towers_it_was_saved_from(tmp_path: Path, openai: bool) -> None:
    network, pixels = make(quick_gelu=openai), torch.randn(2, 3, 32, 32)
    sizes = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
    found = load_clip(saved(network, tmp_path / "clip.safetensors", **(sizes if openai else {})))
    torch.testing.assert_close(found.network.encode_image(pixels), network.encode_image(pixels), atol=1e-5, rtol=1e-5)
    texts = ["a red heart", "zebra"]
    ids = open_clip.tokenizer.SimpleTokenizer()(texts)
    assert torch.equal(found.tokenizer(texts), ids)
    torch.testing.assert_close(found.network.encode_text(ids), network.encode_text(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_metadata_say_what_weights_cannot(tmp_path: Path) -> None:
    words = WordTokenizer(Vocabulary(["heart", "red"]))
    torch.manual_seed(1)
    network = make_clip("small", len(words)).eval()
    metadata = {"open_clip": json.dumps(clip_config("small", len(words))), "words": json.dumps(["heart", "red"])}
    found = load_clip(saved(network, tmp_path / "clip.safetensors", metadata))
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(found.network.encode_image(pixels), network.encode_image(pixels), atol=1e-5, rtol=1e-5)
    assert found.tokenizer(["red hearts"])[0, :4].tolist() == [1, 5, 4, 6]


def test_the_end_token_is_the_highest_where_clip_reads_the_text_out() -> None:
    ids = WordTokenizer(Vocabulary(["heart", "red"]))(["red heart", "unknown"])
    assert ids.max() == 6
    assert ids.argmax(1).tolist() == [3, 2]


def test_another_network_is_refused_in_words(tmp_path: Path) -> None:
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="not a CLIP with a ViT and a text tower"):
        load_clip(tmp_path / "half.safetensors")
