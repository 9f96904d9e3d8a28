"""Small files that ask for much: each is refused within two gigabytes and ten seconds, by a sentence that names it."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from comfyui_apprentice.cli.calibrate import read_graph
from comfyui_apprentice.files import UnreadableFile
from comfyui_apprentice.gate import calibration, controller
from comfyui_apprentice.gate.calibrate import read_prompts
from comfyui_apprentice.networks.diffusers_unet import find_files, structure
from comfyui_apprentice.networks.diffusers_unet import read_json as read_config
from comfyui_apprentice.networks.edm import restore_edm
from comfyui_apprentice.oracles import load
from comfyui_apprentice.oracles.clip_files import load_clip
from comfyui_apprentice.oracles.hpsv3 import _tokenizer
from comfyui_apprentice.oracles.promptkd import base_of, load_critic
from comfyui_apprentice.training.domain_data import read_picture, read_split_file
from comfyui_apprentice.weights.checkpoints import read_metadata, read_weights, to_safetensors
from comfyui_apprentice.weights.edm_pickle import read_edm, read_snapshot
from comfyui_apprentice.weights.promptkd_checkpoint import OfficialCheckpoint, read_official
from comfyui_apprentice.weights.torch_archive import is_script
from comfyui_apprentice.world.weights import CLIPS_FOLDER, CRITICS_FOLDER, EDM_FOLDER
from fuzz.limits import refusal
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CLIP = CLIPS_FOLDER / "tiny world small.safetensors"
CRITIC = CRITICS_FOLDER / "tiny world critic.safetensors"
EDM = EDM_FOLDER / "coloured digits teacher.safetensors"


def archive(path: Path, pickled: bytes, packing: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    """A checkpoint of PyTorch's whose pickle is ours."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/data.pkl", pickled, packing)
        made.writestr("a/version", "3\n")
        for name, content in more.items():
            made.writestr(f"a/{name.replace('_', '/')}", content)
    return path


def changed(source: Path, path: Path, tensors: dict[str, Any] | None = None, **metadata: str) -> Path:
    """A safetensors file with other tensors and metadata."""
    with safe_open(source, "pt") as opened:
        about = opened.metadata() or {}
    save_file({**load_file(source), **(tensors or {})}, path, about | metadata)
    return path


def refused(path: Path, read: Callable[[Path], object], largest: int = 1 << 20) -> str:
    assert path.stat().st_size <= largest
    told = refusal(lambda: read(path))
    assert path.name in told and told.endswith(".") and "\n" not in told
    return told


# ------------------------------------------------------------------------------------------- pickles and archives


@pytest.mark.parametrize("protocol", ["zip", "legacy", "tar", "bare", "snapshot"])
def test_nested_tuples_of_750_bytes_are_not_hashed(tmp_path: Path, protocol: str) -> None:
    twice = b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, 120))
    nested = b"\x80\x02}(t" + twice + b"Ns."
    header = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    if protocol == "legacy":
        (tmp_path / "a.pt").write_bytes(header + nested)
    elif protocol in ("bare", "snapshot"):
        (tmp_path / "a.pt").write_bytes(nested)
    else:
        archive(tmp_path / "a.pt", nested)
    assert (tmp_path / "a.pt").stat().st_size < 1000
    read: dict[str, Callable[[Path], object]] = {"tar": read_official, "snapshot": read_snapshot}
    refused(tmp_path / "a.pt", read.get(protocol, read_weights))


def script(levels: int, leaf: bytes = b"}") -> bytes:
    """A module that holds the one before twice, and so on."""
    made = b"\x80\x02c__torch__\nM\n)\x81" + leaf + b"bq\x00"
    for _ in range(levels):
        made += b"c__torch__\nM\n)\x81}(X\1\0\0\0ah\0X\1\0\0\0bh\0ubq\x00"
    return made + b"."


def test_attributes_of_a_script_of_1300_bytes_are_not_walked_without_end(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", script(30), code_x=b"")
    assert path.stat().st_size < 1_800 and is_script(path)
    assert "steps" in refused(path, read_weights)


def test_headers_of_22_kilobytes_share_one_budget(tmp_path: Path) -> None:
    """Each of 1,500 calls reads the same header of 4 kB, which costs nothing to name again."""
    held = io.BytesIO()
    torch.save(torch.ones(1).untyped_storage(), held, _use_new_zipfile_serialization=False)
    typed = held.getvalue().replace(b"ctorch.storage\nUntypedStorage\n", b"ctorch\nByteStorage\n")
    magic, fourth = typed.index(b"\x80\x02}q\x00(X\x10"), typed.index(b"\x80\x02(X\x07\0\0\0storage")
    header = typed[:fourth] + b"\x80\x02" + b"N" * (4_096 - len(typed)) + typed[fourth + 2 :]
    assert magic < fourth and len(header) < 4_100
    text = header.decode("latin-1").encode()
    named = b"X" + struct.pack("<I", len(text)) + text + b"X\6\0\0\0latin1\x86q\x01c_codecs\nencode\nq\x02"
    call = b"h\x03h\x02h\x01R\x85R"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + named + b"ctorch.storage\n_load_from_bytes\nq\x03" + call * 1_500 + b".")
    assert (tmp_path / "a.pkl").stat().st_size < 22_500
    assert "takes more steps than any network" in refused(tmp_path / "a.pkl", read_snapshot)


def test_deflated_data_pkl_of_3_megabytes_is_not_unpacked(tmp_path: Path) -> None:
    """Three gigabytes fit into them; PyTorch never packs what it saves."""
    torch.save({"a": torch.ones(2)}, tmp_path / "honest.pt")
    with zipfile.ZipFile(tmp_path / "honest.pt") as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED)
    for read in (read_weights, read_official):
        assert "did not write" in refused(tmp_path / "a.pt", read)
    inner = (tmp_path / "a.pt").read_bytes()
    held = b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(inner)) + inner + b"tR."
    (tmp_path / "a.pkl").write_bytes(b"\x80\x03" + held)
    assert "did not write" in refused(tmp_path / "a.pkl", read_snapshot)


def test_zero_strides_of_568_bytes_are_not_converted(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(1 << 15, 1 << 15)}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(1).expand(1 << 15, 1 << 15)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for name in ("a.pt", "b.pt"):
        told = refused(tmp_path / name, lambda path: to_safetensors(path, tmp_path / "out.safetensors"))
        assert "reaches past its memory" in told
    assert not (tmp_path / "out.safetensors").exists()


def test_one_memory_under_many_names_is_not_converted(tmp_path: Path) -> None:
    torch.save(dict.fromkeys(map(str, range(20_000)), torch.zeros(50_000)), tmp_path / "a.pt")
    told = refused(tmp_path / "a.pt", lambda path: to_safetensors(path, tmp_path / "out.safetensors"), 5 << 20)
    assert "more memory than the file has" in told


# -------------------------------------------------------------------------------------------------- configurations


def edm(path: Path, **changes: Any) -> Path:
    with safe_open(EDM, "pt") as opened:
        config = json.loads(opened.metadata()["edm_config"])
    return changed(EDM, path, edm_config=json.dumps({**config, **changes}))


@pytest.mark.parametrize("changes", [
    {"num_blocks": 10**9}, {"num_blocks": 10**7}, {"channel_mult": [1] * 4, "img_resolution": 2**40}, {"model_channels": 10**7},
    {"img_resolution": 10**6, "channel_mult": [1]}, {"label_dim": 10**9}, {"channel_mult_emb": 10**9},
])  # fmt: skip
def test_num_blocks_and_sizes_of_an_edm_network_are_those_of_its_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(edm(tmp_path / "a.safetensors", **changes), lambda path: restore_edm(*read_edm(path), path.name), 50 << 20)


UNET = {
    "sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": 8, "layers_per_block": 1, "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


@pytest.mark.parametrize("changes", [
    {"layers_per_block": 10**9}, {"layers_per_block": [10**7, 1]}, {"transformer_layers_per_block": 10**8},
    {"down_block_types": ["CrossAttnDownBlock2D"] * 40_000, "up_block_types": ["CrossAttnUpBlock2D"] * 40_000,
     "block_out_channels": [32] * 40_000},
])  # fmt: skip
def test_layers_per_block_of_a_config_are_those_of_its_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNET | changes))
    refused(tmp_path / "config.json", lambda path: structure({}, read_config(path.read_bytes(), path.name), path.name), 5 << 20)


def clip(path: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The small CLIP with another configuration: ``vision_layers`` stands for ``vision_cfg``'s ``layers``."""
    with safe_open(CLIP, "pt") as opened:
        config = json.loads(opened.metadata()["open_clip"])
    for key, value in changes.items():
        part, _, name = key.partition("_")
        config[f"{part}_cfg"][name] = value
    return changed(CLIP, path, tensors, open_clip=json.dumps(config))


@pytest.mark.parametrize("changes", [
    {"vision_layers": 10**9}, {"text_layers": 10**7}, {"vision_layers": [10**8] * 4}, {"text_vocab_size": 10**9},
    {"text_context_length": 10**6}, {"text_width": 10**6}, {"vision_image_size": 10**6}, {"vision_mlp_ratio": 1e9},
])  # fmt: skip
def test_layers_and_sizes_of_a_clips_configuration_are_those_of_its_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(clip(tmp_path / "a.safetensors", **changes), load_clip, 5 << 20)


# ------------------------------------------------------------------------------------------------------- weights


def plain_clip(path: Path, **tensors: torch.Tensor) -> Path:
    """A CLIP whose sizes are read off its weights."""
    vision = {"image_size": 16, "patch_size": 8, "width": 128, "layers": 1, "head_width": 64}
    text = {"context_length": 16, "vocab_size": 64, "width": 128, "heads": 2, "layers": 1}
    network = open_clip.CLIP(32, vision, text)
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(weights | {key.replace("__", "."): value for key, value in tensors.items()}, path)
    return path


def test_layers_counted_from_names_of_empty_tensors_are_not_built(tmp_path: Path) -> None:
    layers = {f"transformer__resblocks__{i}__x": torch.zeros(0) for i in range(3_000)}
    refused(plain_clip(tmp_path / "a.safetensors", **layers), load_clip, 5 << 20)


@pytest.mark.parametrize("tensors", [
    {"positional_embedding": torch.zeros(1 << 20, 0)}, {"token_embedding__weight": torch.zeros(1 << 30, 0)},
    {"ln_final__weight": torch.zeros(1 << 20, 0)}, {"visual__conv1__weight": torch.zeros(1 << 20, 3, 0, 8)},
])  # fmt: skip
def test_zero_sized_shapes_size_no_network(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    assert "which is empty" in refused(plain_clip(tmp_path / "a.safetensors", **tensors), load_clip, 5 << 20)


def test_vocabulary_sizes_are_compared_before_anything_is_built(tmp_path: Path) -> None:
    wide = {"ln_final__weight": torch.zeros(60_000), "token_embedding__weight": torch.zeros(60_000, 1)}
    refused(plain_clip(tmp_path / "a.safetensors", **wide), load_clip, 5 << 20)


def test_the_mask_of_a_long_context_is_not_made(tmp_path: Path) -> None:
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 40_000, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in open_clip.CLIP(16, vision, text).state_dict().items()}
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    assert "GB beside its weights" in refused(tmp_path / "a.safetensors", load_clip, 5 << 20)


@pytest.mark.parametrize("shape", [(1 << 20, 0, 1, 1), (100_000, 1, 1, 1)])
def test_projector_sizes_are_compared_before_it_is_built(tmp_path: Path, shape: tuple[int, ...]) -> None:
    wide = {"projector.conv1.0.weight": torch.zeros(shape)}
    refused(changed(CRITIC, tmp_path / "a.safetensors", wide), lambda path: load_critic(path, load_clip(CLIP).network), 5 << 20)
    theirs = {f"VPT_image_trans.{key}": value for key, value in {"conv1.0.weight": torch.zeros(shape)}.items()}
    assert "a.pt" in refusal(lambda: OfficialCheckpoint("student", theirs, "a.pt").projector())


def test_a_block_of_a_high_number_is_missing_others(tmp_path: Path) -> None:
    block = f"image_encoder.transformer.resblocks.{10**12}.VPT_shallow"
    torch.save({"state_dict": {block: torch.zeros(1, 1), "image_encoder.VPT": torch.zeros(1, 1)}}, tmp_path / "a.pth.tar")
    assert "block 1:" in refused(tmp_path / "a.pth.tar", lambda path: read_official(path).tokens("image"))


def test_names_of_a_million_dots_are_refused(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(1), "down_blocks.0." + "." * 1_000_000: torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", partial(load, "clip-score"), 5 << 20)


# ------------------------------------------------------------------------------------------- one class of exception

DEEP = "[" * 100_000


def short(value: Any) -> str | None:
    return str(value)[:12] if isinstance(value, str | bytes) else None


@pytest.mark.parametrize(("name", "content", "read"), [
    ("a.pt", b"PK\3\4" + b"\0" * 100, read_weights),
    ("a.pt", b"PK\3\4" + b"\0" * 100 + b"PK\5\6" + b"\xff" * 18, read_weights),
    ("a.pth.tar", b"PK\3\4" + b"\0" * 100 + b"PK\5\6" + b"\xff" * 18, read_official),
    ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", load_clip),
    ("a.safetensors", b"\xff" * 64, read_metadata),
    ("a.json", DEEP.encode(), calibration.load),
    ("a.json", DEEP.encode(), controller.load),
    ("a.json", b"\xff\xfe\x00", calibration.load),
    ("a.json", b'{"format": "apprentice-controller", "version": ' + DEEP.encode() + b"]" * 100_000 + b"}", controller.load),
    ("a.json", DEEP.encode(), lambda path: read_graph(path, {})),
    ("a.json", DEEP.encode(), lambda path: read_split_file(path, path.parent)),
    ("a.json", b"{}", lambda path: read_split_file(path, path.parent)),
    ("a.json", DEEP.encode(), lambda path: read_config(path.read_bytes(), path.name)),
    ("a.json", b'{"model": {"type": "BPE"', lambda path: _tokenizer(str(path))),
    ("a.csv", b'prompt\n"' + b"x" * 140_000, read_prompts),
    ("a.csv", b"prompt\n\xff", read_prompts),
    ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, read_picture),
], ids=short)  # fmt: skip
def test_what_is_unreadable_ends_in_one_class(tmp_path: Path, name: str, content: bytes, read: Any) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, read)


@pytest.mark.parametrize(("key", "value"), [
    ("open_clip", "{"), ("open_clip", DEEP), ("open_clip", "[]"), ("templates", "3"), ("words", "[[1]]"),
    ("words", json.dumps([str(i) for i in range(5_000)])),
    ("open_clip", '{"embed_dim": 0, "vision_cfg": {"layers": 0, "heads": 0}, "text_cfg": null}'), ("words", DEEP),
], ids=short)  # fmt: skip
def test_metadata_of_a_clip_that_are_something_else(tmp_path: Path, key: str, value: str) -> None:
    refused(changed(CLIP, tmp_path / "a.safetensors", **{key: value}), load_clip, 5 << 20)


@pytest.mark.parametrize(("key", "value"), [
    ("classes", DEEP), ("classes", "7"), ("texts", "{}"), ("classes", '["a", "a"]'),
], ids=short)  # fmt: skip
def test_metadata_of_a_critic_that_are_something_else(tmp_path: Path, key: str, value: str) -> None:
    path = changed(CRITIC, tmp_path / "a.safetensors", **{key: value})
    refused(path, lambda file: load_critic(file, load_clip(CLIP).network), 5 << 20)


def test_a_damaged_archive_is_no_script(tmp_path: Path) -> None:
    for content in (b"PK\3\4" + b"\xff" * 80, b"PK\3\4" + b"PK\5\6" + b"\0" * 10, b"PK"):
        (tmp_path / "a.pt").write_bytes(content)
        assert not is_script(tmp_path / "a.pt")


def test_a_critics_base_is_asked_of_anything(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    refused(tmp_path / "a.safetensors", base_of)


def test_shards_are_files_of_the_indexs_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for listed in ("a\0b", "x" * 300, "../b", 7):
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": listed}}))
        with pytest.raises(UnreadableFile, match="lists no shards"):
            find_files(tmp_path)


