"""Snapshots of EDM, SiD and SiD-LSG are read as data: bit for bit where they are honest, not at all where they are not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import pickletools
import random
import runpy
import struct
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_apprentice.files import UnsafeCheckpoint
from comfyui_apprentice.weights.edm_pickle import read_edm, read_snapshot, snapshot_metadata
from comfyui_apprentice.weights.stored_tensors import Tensors
from gguf_files import write
from safetensors.torch import load_file, save_file
from torch import nn

GOLDENS = Path(__file__).parents[1] / "data" / "sid"
GOLDEN = GOLDENS / "tiny_edm_snapshot.pkl"

CONFIG = {
    **{"img_resolution": 8, "img_channels": 3, "label_dim": 10, "augment_dim": 9, "model_type": "SongUNet"},
    **{"embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1},
    **{"resample_filter": [1, 1], "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]},
    **{"dropout": 0.13, "use_fp16": False, "_class_name": "EDMPrecond"},
}

TRAP = "from pathlib import Path\nPath('PWND').touch()\n"
"""A module's source that leaves a trace where it runs."""


# Honest files


class EasyDict(dict):
    """Stands for dnnlib.util.EasyDict, and is pickled under its name."""

    __module__ = "dnnlib.util"


class Saved:
    """Pickled as torch_utils.persistence pickles an object."""

    def __init__(self, class_name: str, state: Any, **changes: Any) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": TRAP, "class_name": class_name, "state": state, **changes}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def module(name: str, parameters: Any = (), buffers: Any = (), modules: Any = (), **state: Any) -> Saved:
    own = {"_parameters": dict(parameters), "_buffers": dict(buffers), "_modules": dict(modules)}
    hooks = {"_forward_hooks": OrderedDict(), "_non_persistent_buffers_set": set()}
    return Saved(name, {"training": False, **own, **hooks, "_init_args": (), "_init_kwargs": {}, **state})


def network(model: Saved | None = None, name: str = "EDMPrecond", **state: Any) -> Saved:
    model = model or module("Linear", {"weight": nn.Parameter(torch.ones(2, 3)), "bias": None})
    return module(name, modules={"model": model}, **{"_init_kwargs": {"img_resolution": 8}, **state})


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """Whatever a test reads: it imports nothing, calls nothing of the authors' code, and leaves nothing behind."""
    calls: list[Any] = []
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = lambda meta: calls.append(meta)
    persistence._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    persistence._reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = EasyDict
    for name, fake in [("torch_utils.persistence", persistence), ("dnnlib.util", util)]:
        monkeypatch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
        monkeypatch.setitem(sys.modules, name, fake)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "hostile_module.py").write_text(TRAP + "anything = print\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    yield
    assert not calls
    assert [path.name for path in Path().iterdir() if "PWND" in path.name] == []
    assert "hostile_module" not in sys.modules


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network-snapshot.pkl"


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        assert torch.equal(actual[key], value), key


def expected_weights() -> dict[str, torch.Tensor]:
    prefix = "state_dict."
    held = load_file(GOLDENS / "tiny_edm_snapshot_expected.safetensors")
    return {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}


def sentence(path: Path, read: Any = read_snapshot) -> str:
    with pytest.raises(UnsafeCheckpoint) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 400
    return text


def test_a_snapshot_of_the_authors_code_is_read_bit_for_bit():
    config, weights = read_snapshot(GOLDEN)
    assert config == CONFIG
    expected = expected_weights()
    assert_same({key: weights[key] for key in expected}, expected)
    assert len(weights) == len(expected)
    assert "model.enc.4x4_down.conv0.resample_filter" in weights
    assert not any(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_gives_the_same(path, protocol):
    buffers = {"freqs": torch.ones(2).half(), "late": torch.ones(1)}
    norm = module("GroupNorm", {"weight": nn.Parameter(torch.arange(3.0))}, buffers)
    norm.meta["state"].update(_non_persistent_buffers_set={"late"}, skip_scale=np.sqrt(0.5), nothing=None)
    path.write_bytes(pickle.dumps({"ema": network(norm), "loss_fn": Saved("EDMLoss", {"P_mean": -1.2})}, protocol))
    config, weights = read_snapshot(path)
    assert config == {"img_resolution": 8, "_class_name": "EDMPrecond"}
    assert_same(weights, {"model.weight": torch.arange(3.0), "model.freqs": torch.ones(2).half()})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int64", "bool"])
def test_weights_keep_their_dtype_and_their_views(path, dtype):
    storage = torch.arange(24).to(getattr(torch, dtype))
    views = {"turned": storage.view(4, 6).t(), "part": storage[3:9], "empty": storage[:0], "one": storage[5]}
    path.write_bytes(pickle.dumps({"ema": network(module("Block", buffers=views))}))
    _, weights = read_snapshot(path)
    assert_same(weights, {f"model.{key}": value for key, value in views.items()})


def test_tied_weights_share_their_memory_as_they_did(path):
    tied = nn.Parameter(torch.ones(2))
    path.write_bytes(pickle.dumps({"ema": network(module("Block", {"a": tied, "b": tied}))}))
    _, weights = read_snapshot(path)
    assert weights["model.a"].data_ptr() == weights["model.b"].data_ptr()


@pytest.mark.parametrize("name", ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_settings_given_in_order_get_their_names(path, name):
    path.write_bytes(pickle.dumps({"ema": network(name=name, _init_args=(16, 3), _init_kwargs=EasyDict(use_fp16=True))}))
    assert read_snapshot(path)[0] == {"img_resolution": 16, "img_channels": 3, "use_fp16": True, "_class_name": name}


def test_settings_come_out_as_json(path):
    odd = {"tuple": (1, 2), "easy": EasyDict(a=None), "numpy": np.float64(0.5), "count": np.int32(3), "yes": np.bool_(True)}
    path.write_bytes(pickle.dumps({"ema": network(_init_kwargs={**odd, "sigma_max": float("inf")})}))
    expected = {"tuple": [1, 2], "easy": {"a": None}, "numpy": 0.5, "count": 3, "yes": True, "sigma_max": float("inf")}
    config, _ = read_snapshot(path)
    assert config == {**expected, "_class_name": "EDMPrecond"}
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("key", ["ema", "G", "net"])
def test_the_averaged_network_is_preferred_and_the_rest_is_left_in_the_file(path, key, monkeypatch):
    other = network(module("Linear", {"weight": nn.Parameter(torch.zeros(5))}))
    keys = ["ema", "G", "net"]
    held = {name: network() if name == key else other for name in reversed(keys[keys.index(key) :])}
    path.write_bytes(pickle.dumps({**held, "augment_pipe": None, "optimizer": other, "table": np.arange(3.0)}))
    made: list[Any] = []
    elements = Tensors._elements
    monkeypatch.setattr(Tensors, "_elements", lambda self, storage: (made.append(storage), elements(self, storage))[1])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("PyTorch's own reader saw it"))
    assert_same(read_snapshot(path)[1], {"model.weight": torch.ones(2, 3)})
    assert len(made) == 1


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_diffusers_unet_is_read_bit_for_bit(path, protocol):
    unet = tiny_unet().half()
    path.write_bytes(pickle.dumps({"ema": unet}, protocol))
    config, weights = read_snapshot(path)
    assert_same(weights, unet.state_dict())
    made_with = {key: value for key, value in unet.config.items() if key != "_use_default_values"}
    assert config == {**json.loads(json.dumps(made_with)), "_class_name": "UNet2DConditionModel"}
    type(unet).from_config(config).load_state_dict(weights)


def tiny_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=8, cross_attention_dim=8, **sizes, **blocks)


@pytest.mark.parametrize("zipped", [False, True])
def test_both_of_torchs_formats_may_hold_a_tensors_memory(path, zipped):
    path.write_bytes(snapshot_of(tensor(storage(saved(torch.arange(4.0), zipped)), size=(4,), stride=(1,))))
    assert_same(read_snapshot(path)[1], {"w": torch.arange(4.0)})


# Files that are something else


@pytest.mark.parametrize(("value", "words"), [
    ([1, 2], "holds no dictionary"),
    (7, "holds no dictionary"),
    ({}, "but nothing"),
    ({"ema": None, "epoch": 3, "state": {}}, "but ema, epoch, state"),
    ({"ema": {"weight": torch.ones(2)}}, "something else where the network should be"),
    ({"ema": torch.ones(2)}, "something else where the network should be"),
    ({"ema": Saved("Generator", {})}, "holds a Generator"),
    ({"ema": nn.Linear(2, 2)}, "holds a Linear"),
    ({"ema": Saved("UNet2DConditionModel", {})}, "holds a UNet2DConditionModel"),
    ({"ema": network(_init_kwargs=None)}, "without its _init_kwargs"),
    ({"ema": network(_init_args=None)}, "does not record"),
    ({"ema": network(_init_args=tuple(range(9)))}, "does not record"),
    ({"ema": network(_init_args=(8,))}, "two values of img_resolution"),
    ({"ema": network(_init_kwargs={"layer": nn.Linear(1, 1)})}, "layer that is no setting"),
    ({"ema": network(_init_kwargs={"table": np.arange(3)})}, "table that is no setting"),
    ({"ema": network(_init_kwargs={"size": 1 << 80})}, "size that is no setting"),
    ({"ema": network(_init_kwargs={"text": "x" * 2000})}, "no network needs"),
    ({"ema": network(_parameters=None)}, "without its _parameters"),
    ({"ema": network(_modules=[1])}, "without its _modules"),
    ({"ema": network(_non_persistent_buffers_set=[1])}, "which of its buffers"),
    ({"ema": network(module("Linear", {"weight": 3.0}))}, "where its tensor model.weight should be"),
    ({"ema": network(module("Linear", modules={"inner": torch.ones(1)}))}, "where its module model.inner should be"),
    ({"ema": network(module("Linear", {"a\nb": torch.ones(1)}))}, "no network needs (model.a?b)"),
    ({"ema": network(module("Linear", {"a": torch.ones(1)}, {"a": torch.ones(1)}, {}))}, None),
    ({"ema": network(module("Linear"))}, "without weights"),
    ({"ema": Saved("EDMPrecond", {}, version=7)}, "another version"),
    ({"ema": Saved("EDMPrecond", {}, type="module")}, "did not write"),
    ({"ema": Saved("EDMPrecond", {}, module_src=b"")}, "another version"),
    ({"ema": Saved("EDMPrecond", None)}, "without state"),
    ({"ema": network(table={(1, 2): 3})}, "whose keys are not names"),
    ({"ema": network(table={3})}, "whose keys are not names"),
    ({"ema": network(number=1 + 2j)}, "builtins.complex"),
    ({"ema": network(size=torch.Size([1]))}, "torch.Size"),
    ({"ema": network(sparse=torch.eye(2).to_sparse())}, "torch._utils._rebuild_sparse_tensor"),
    ({"ema": network(meta=torch.ones(2, device="meta"))}, "torch._utils._rebuild_meta_tensor_no_storage"),
])  # fmt: skip
def test_what_is_no_such_network_is_refused(path, value, words):
    path.write_bytes(pickle.dumps(value))
    if words is None:  # one name for a parameter and a buffer: the buffer wins, as in torch
        assert list(read_snapshot(path)[1]) == ["model.a"]
    else:
        assert words in sentence(path)


def test_two_tensors_of_one_full_name_are_refused(path):
    inner = module("Linear", {"weight": torch.ones(1)})
    path.write_bytes(pickle.dumps({"ema": network(module("Block", {"inner.weight": torch.ones(1)}, modules={"inner": inner}))}))
    assert "two tensors called model.inner.weight" in sentence(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_pytorchs_own_is_called_one(path, zipped):
    torch.save({"ema": {"weight": torch.ones(2)}}, path, _use_new_zipfile_serialization=zipped)
    assert "is a PyTorch checkpoint (rename it to .pt" in sentence(path)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty"),
    (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
    (b"Entry not found", "is cut short or damaged, or no pickle"),
    (b"\x80\x04", "is cut short or damaged"),
    (b"\x80\x63}.", "unknown protocol"),
    (b"\0" * 100, "is cut short or damaged"),
])  # fmt: skip
def test_what_failed_downloads_leave_behind_gets_its_own_sentence(path, content, words):
    path.write_bytes(content)
    assert words in sentence(path)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99999])
def test_a_truncated_snapshot_is_called_cut_short(path, share):
    whole = GOLDEN.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cut short or damaged" in sentence(path)


def test_a_missing_file_is_named(path):
    for read in (read_snapshot, read_edm):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*network-snapshot\.pkl\."):
            read(path)


# Hostile files: what the operations below spell out, no pickler would write


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return (b"\x8a" + bytes([len(data)]) if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data))) + data


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(values: Any) -> bytes:
    return row(*map(number, values))


def named(name: str) -> bytes:
    place, _, last = name.rpartition(" ")
    return text(place) + text(last) + b"\x93"


def call(name: str, *arguments: bytes) -> bytes:
    return named(name) + row(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(held: bytes) -> bytes:
    return call("torch.storage _load_from_bytes", data(held))


def tensor(memory: bytes, offset: int = 0, size: Any = (2,), stride: Any = (1,), flags: bytes = b"\x89}") -> bytes:
    return call("torch._utils _rebuild_tensor_v2", memory, number(offset), numbers(size), numbers(stride), flags)


def saved(value: Any, zipped: bool = False) -> bytes:
    """What torch writes for the memory of a tensor, or for anything else."""
    held = io.BytesIO()
    if isinstance(value, torch.Tensor):
        value = torch.storage.TypedStorage(wrap_storage=value.untyped_storage(), dtype=value.dtype, _internal=True)
    torch.save(value, held, _use_new_zipfile_serialization=zipped)
    return held.getvalue()


def persistent(name: str, **state: bytes) -> bytes:
    own = mapping(**{"_parameters": b"}", "_buffers": b"}", "_modules": b"}", "_init_args": b")", "_init_kwargs": b"}", **state})
    meta = {"type": text("class"), "version": b"K\x06", "module_src": text(TRAP), "class_name": text(name), "state": own}
    return call("torch_utils.persistence _reconstruct_persistent_obj", mapping(**meta))


def snapshot_of(weight: bytes | None = None, **state: bytes) -> bytes:
    """A snapshot whose network has one tensor, ``w``."""
    weight = tensor(storage(saved(torch.ones(4)))) if weight is None else weight
    return b"\x80\x04" + mapping(ema=persistent("EDMPrecond", **{"_parameters": mapping(w=weight), **state})) + b"."


def test_the_tests_own_operations_make_an_honest_snapshot(path):
    path.write_bytes(snapshot_of())
    assert_same(read_snapshot(path)[1], {"w": torch.ones(2)})


@pytest.mark.parametrize(("name", "words"), [
    ("evil.pkl", "asks for posix.system"),
    ("bad_oob_tensor.pkl", "reaches past its memory (to 1002, of 4 elements)"),
])  # fmt: skip
def test_the_hostile_goldens_are_refused(name, words):
    assert words in sentence(GOLDENS / name)


@pytest.mark.parametrize(("where", "protocol"), [
    ("root", 0), ("ema", 1), ("beside", 2), ("deep", 3), ("setting", 4), ("state", 5), ("source", 2), ("buffer", 4),
])  # fmt: skip
def test_a_command_is_not_run_wherever_it_is(path, protocol, where):
    class Hostile:
        def __reduce__(self):
            return os.system, ("touch PWND",)

    deep: Any = Hostile()
    for _ in range(50):
        deep = {"a": [(deep,)]}
    held: Any = {
        "root": Hostile(),
        "ema": {"ema": Hostile()},
        "beside": {"ema": network(), "loss_fn": Hostile()},
        "deep": {"ema": network(), "loss_fn": deep},
        "setting": {"ema": network(_init_kwargs={"img_resolution": Hostile()})},
        "state": {"ema": network(unused=Hostile())},
        "source": {"ema": Saved("EDMPrecond", {}, module_src=Hostile())},
        "buffer": {"ema": network(_buffers={"x": Hostile()})},
    }[where]
    path.write_bytes(pickle.dumps(held, protocol))
    assert ".system, which no network needs and which could run code" in sentence(path)


def test_the_traps_of_these_tests_work():
    """A general unpickler walks into them."""
    ran = b"\x80\x04" + named("hostile_module anything") + b"."
    pickle.loads(ran)
    assert Path("PWND").exists()
    Path("PWND").unlink()
    del sys.modules["hostile_module"]
    Path("trap.py").write_text(TRAP)
    runpy.run_path("trap.py")
    Path("PWND").unlink()
    pickle.loads((GOLDENS / "evil.pkl").read_bytes())
    Path("PWND_pwned").unlink()


@pytest.mark.parametrize("name", [
    "hostile_module anything",
    "posix system",
    "nt system",
    "builtins eval",
    "builtins getattr",
    "builtins dict",
    "__builtin__ eval",
    "functools partial",
    "torch load",
    "torch FloatStorage",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_tensor_v2.__globals__.__getitem__",
    "torch.storage io.open",
    "torch.nn.modules.linear Linear.__init__",
    "torch.nn.modules.linear Bilinear",
    "torch.nn.modules.container torch.load",
    "torch.jit load",
    "collections OrderedDict.__init__",
    "collections OrderedDict ",
    "Collections OrderedDict",
    " OrderedDict",
    "collections ",
    "numpy.core.multiarray fromfile",
    "numpy.core.multiarray scalar.__class__",
    "dnnlib.util open_url",
    "torch_utils.persistence _src_to_module",
    "diffusers.models.attention_processor LoRAAttnProcessor",
    "copyreg add_extension",
    "_codecs decode",
    "a\nb c",
    "\ud800 x",
])  # fmt: skip
def test_only_names_of_the_table_may_be_asked_for(path, name):
    for asked in (named(name), call(name, text("touch PWND"))):
        path.write_bytes(snapshot_of(unused=asked))
        assert "asks for " in sentence(path)
    place, _, last = name.rpartition(" ")
    if "\n" not in name and name.isprintable() and last and place:
        path.write_bytes(snapshot_of(unused=b"c" + place.encode() + b"\n" + last.encode() + b"\n"))
        assert "asks for " in sentence(path)


@pytest.mark.parametrize("operations", [
    b"K\x01K\x02\x93",
    b")" + text("OrderedDict") + b"\x93",
    text("collections") + b"]\x93",
])  # fmt: skip
def test_a_name_is_a_text(path, operations):
    path.write_bytes(snapshot_of(unused=operations))
    assert "asks for " in sentence(path)


@pytest.mark.parametrize(("operation", "operations"), [
    ("INST", b"(" + text("touch PWND") + b"iposix\nsystem\n"),
    ("OBJ", b"(" + named("collections OrderedDict") + b"o"),
    ("NEWOBJ_EX", named("torch.nn.modules.linear Linear") + b")}\x92"),
    ("EXT1", b"\x82\x01"),
    ("EXT2", b"\x83\x01\x00"),
    ("EXT4", b"\x84\x01\x00\x00\x00"),
    ("PERSID", b"Pstorage\n"),
    ("NEXT_BUFFER", b"\x97"),
    ("READONLY_BUFFER", b"N\x98"),
    ("BYTEARRAY8", b"\x96" + struct.pack("<Q", 1) + b"x"),
    ("DUP", b"N2"),
    ("POP", b"NN0"),
    ("POP_MARK", b"N(1"),
    ("STRING", b"S'touch'\n"),
    ("SHORT_BINSTRING", b"U\x01x"),
])  # fmt: skip
def test_operations_that_no_snapshot_needs_are_refused(path, operation, operations):
    path.write_bytes(snapshot_of(unused=operations))
    assert f"uses the pickle operation {operation}," in sentence(path)


LINEAR = "torch.nn.modules.linear Linear"
MADE = named(LINEAR) + b")\x81"
F8 = call("numpy dtype", text("f8"), b"\x89", b"\x88")
ONES = saved(torch.ones(4))


@pytest.mark.parametrize("operations", [
    call("collections OrderedDict", b"]"),
    call("collections OrderedDict", mapping(a=b"N")),
    call("diffusers.configuration_utils FrozenDict", b"}"),
    call("torch_utils.persistence _reconstruct_persistent_obj"),
    call("torch_utils.persistence _reconstruct_persistent_obj", b"N"),
    call("torch_utils.persistence _reconstruct_persistent_obj", b"}"),
    call("torch.storage _load_from_bytes"),
    call("torch.storage _load_from_bytes", text("x")),
    call("torch._utils _rebuild_tensor_v2"),
    call("torch._utils _rebuild_tensor_v2", *([b"N"] * 6)),
    call("torch._utils _rebuild_tensor_v2", storage(ONES), b"K\x00", b"](K\x01e", b"](K\x01e", b"\x89", b"}"),
    call("torch._utils _rebuild_parameter", storage(ONES), b"\x88", b"}"),
    call("torch._utils _rebuild_parameter", tensor(storage(ONES)), b"K\x01", b"}"),
    call("torch._utils _rebuild_parameter", tensor(storage(ONES)), b"\x88", mapping(hook=named(LINEAR))),
    call("numpy dtype", b"N", b"\x89", b"\x88"),
    call("numpy ndarray", b")"),
    call("numpy.core.multiarray scalar", F8),
    call("numpy.core.multiarray scalar", F8, data(b"\0" * 9)),
    call("numpy.core.multiarray scalar", call("numpy dtype", text("O8"), b"\x89", b"\x88"), data(b"\0" * 8)),
    call("numpy.core.multiarray scalar", text("f8"), data(b"\0" * 8)),
    call("numpy.core.multiarray _reconstruct", named(LINEAR), numbers([0]), data(b"b")),
    call("numpy.core.multiarray _reconstruct", named("numpy ndarray"), numbers([1 << 40]), data(b"b")),
    call("builtins set", mapping(a=b"N")),
    call("builtins set", b"](" + b")" + b"e"),
    call("_codecs encode", text("x"), text("rot13")),
    call("_codecs encode", text("PK\x03\x04"), text("latin1")),
    call("copyreg _reconstructor", named(LINEAR), named(LINEAR), b"N"),
    call("copyreg _reconstructor", named("builtins object"), named("builtins object"), b"N"),
    call(LINEAR, b"K\x01", b"K\x01"),
    named("collections OrderedDict") + b"]R",
    MADE + b")R",
    b"NNR",
    named(LINEAR) + b"K\x01\x85\x81",
    named("collections OrderedDict") + b")\x81",
    b"N)\x81",
    b"}}b",
    named(LINEAR) + mapping(forward=b"N") + b"b",
    tensor(storage(ONES)) + b"}b",
    MADE + b"N}\x86b",
    MADE + mapping(a=b"N") + b"b" + mapping(a=b"N") + b"b",
    F8 + b"}b",
    b"NK\x01a",
    b"]" + text("a") + b"Ns",
    b"}(" + text("a") + b"u",
    b"}]Ns",
    b"}" + data(b"a") + b"Ns",
    b"\x8f()\x90",
    b"N" + number(1 << 40_000) + b"s",
    row(storage(ONES)) + b"Q",
])  # fmt: skip
def test_operations_on_what_they_do_not_fit_are_refused(path, operations):
    path.write_bytes(snapshot_of(unused=operations))
    assert "so it was not loaded" in sentence(path)


@pytest.mark.parametrize("operation", [b"h\x63", b"j\xff\xff\xff\xff", *b"t|u|\x87|R||\x94".split(b"|")])
def test_a_stack_or_memo_that_lacks_what_it_needs_is_damage(path, operation):
    path.write_bytes(b"\x80\x04" + operation + b".")
    assert "cut short or damaged" in sentence(path)


BIG = 1 << 62


@pytest.mark.parametrize(("offset", "size", "stride"), [
    (0, (5,), (1,)),
    (4, (1,), (1,)),
    (5, (0,), (1,)),
    (0, (2, 3), (2, 1)),
    (0, (1 << 40,), (0,)),
    (0, (BIG, BIG), (BIG, BIG)),
    (1 << 64, (1,), (1,)),
    (0, (2,), (1 << 64,)),
    (0, (1 << 40_000,) * 9, (1,) * 9),
    (-1, (1,), (1,)),
    (0, (-2, -2), (1, 1)),
    (3, (2,), (-1,)),
    (0, (2,), (1, 1)),
    (0, (1,) * 100, (1,) * 100),
])  # fmt: skip
def test_a_view_past_its_memory_is_refused_before_anything_is_made(path, offset, size, stride, monkeypatch):
    monkeypatch.setattr(Tensors, "take", lambda *_: pytest.fail("it was loaded"))
    view = tensor(storage(ONES), offset, size, stride)
    for held in (snapshot_of(view), snapshot_of(unused=view)):
        path.write_bytes(held)
        assert "has a tensor " in sentence(path)


def test_a_views_numbers_are_integers(path):
    for odd in (b"\x88", b"G" + struct.pack(">d", 1.0), text("1"), b"N"):
        view = call("torch._utils _rebuild_tensor_v2", storage(ONES), b"K\x00", row(odd), numbers([1]), b"\x89", b"}")
        path.write_bytes(snapshot_of(view))
        assert "impossible size" in sentence(path)


def claims(elements: int, held: bytes = b"\0" * 16, length: int | None = None, key: str = "0") -> bytes:
    """A storage in torch's older format that claims ``elements``, and before its bytes ``length``."""
    whole = saved(torch.ones(1))
    start = whole.index(b"\x80\x02(X\x07\x00\x00\x00storage")
    identity = row(text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(elements), b"N")
    length = elements if length is None else length
    listed = b"\x80\x02](" + text(key) + b"e."
    return whole[:start] + b"\x80\x02" + identity + b"Q." + listed + struct.pack("<Q", length % (1 << 64)) + held


@pytest.mark.parametrize("memory", [
    claims(5),
    claims(1 << 40),
    claims(1 << 64),
    claims(-1),
    claims(4, length=5),
    claims(5, length=4),
    claims(4, key="1"),
    claims(4, held=b"\0" * 15),
    claims(4, held=b"\0" * 17),
    ONES[:-1],
    ONES[:10],
    b"",
    ONES + b"\0",
    saved({"a": torch.ones(4)}),
    saved(nn.Linear(1, 1)),
    saved(torch.ones(4)).replace(b"ctorch\nFloatStorage", b"cposix\nsystem\n12345"),
    saved(torch.ones(4)).replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    pickle.dumps(os.system),
    b"cposix\nsystem\n(X\x0a\x00\x00\x00touch PWNDtR.",
    b"chostile_module\nanything\n.",
])  # fmt: skip
def test_a_tensors_memory_must_be_what_it_claims_before_it_is_loaded(path, memory, monkeypatch):
    monkeypatch.setattr(Tensors, "take", lambda *_: pytest.fail("it was loaded"))
    for held in (snapshot_of(tensor(storage(memory), size=(1,))), snapshot_of(unused=storage(memory))):
        path.write_bytes(held)
        sentence(path)


def test_the_tests_own_claim_is_honest_where_it_is_right(path):
    path.write_bytes(snapshot_of(tensor(storage(claims(4)), size=(4,))))
    assert_same(read_snapshot(path)[1], {"w": torch.zeros(4)})


def rezipped(change: Any) -> bytes:
    """A storage in torch's archive format, with one of its entries changed, packed or doubled."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(torch.ones(1000), zipped=True))) as old, zipfile.ZipFile(held, "w") as new:
        for name in old.namelist():
            content, packing = change(name.split("/", 1)[1], old.read(name))
            new.writestr(name, content, packing)
    return held.getvalue()


@pytest.mark.parametrize("change", [
    lambda name, held: (held, zipfile.ZIP_DEFLATED),
    lambda name, held: (held[:-4] if name == "data/0" else held, zipfile.ZIP_STORED),
    lambda name, held: (b"big" if name == "byteorder" else held, zipfile.ZIP_STORED),
    lambda name, held: (held.replace(b"\xe8\x03", b"\xff\xff") if name == "data.pkl" else held, zipfile.ZIP_STORED),
    lambda name, held: (held.replace(b"0", b"7") if name == "data.pkl" else held, zipfile.ZIP_STORED),
    lambda name, held: (pickle.dumps(os.system) if name == "data.pkl" else held, zipfile.ZIP_STORED),
    lambda name, held: (b"\x80\x02}." if name == "data.pkl" else held, zipfile.ZIP_STORED),
])  # fmt: skip
def test_an_archive_within_must_hold_what_it_claims(path, change, monkeypatch):
    path.write_bytes(snapshot_of(tensor(storage(rezipped(lambda _, held: (held, zipfile.ZIP_STORED))), size=(1000,))))
    assert_same(read_snapshot(path)[1], {"w": torch.ones(1000)})
    monkeypatch.setattr(Tensors, "take", lambda *_: pytest.fail("it was loaded"))
    path.write_bytes(snapshot_of(tensor(storage(rezipped(change)), size=(1000,))))
    sentence(path)
    path.write_bytes(snapshot_of(tensor(storage(rezipped(change)[:-30]), size=(1000,))))
    sentence(path)


def laughs(start: bytes, level: bytes, then: bytes = b"") -> bytes:
    """A list in which each item holds the one before several times over (@), and ``then``, of the last."""
    items = [start, *(level.replace(b"@", b"j" + struct.pack("<I", index)) for index in range(60))]
    return b"(" + b"".join(item + b"\x94" for item in items) + then.replace(b"@", b"j" + struct.pack("<I", 60)) + b"l"


@pytest.mark.parametrize(("operations", "words"), [
    (snapshot_of(_init_kwargs=mapping(a=laughs(b"]", b"](@@@@@@@@e"))), "more than a configuration"),
    (snapshot_of(_init_kwargs=mapping(a=laughs(b")", b"@@@@\x86\x86\x86"))), "more than a configuration"),
    (snapshot_of(_init_kwargs=b"}\x94" + text("a") + b"h\x00s"), "more than a configuration"),
    (snapshot_of(unused=laughs(b")", b"@@@\x87", b"}@Ns")), "keys are not names"),
    (snapshot_of(unused=laughs(b")", b"@@@\x87", b"\x8f(@\x90")), "keys are not names"),
    (snapshot_of(unused=laughs(b")", b"@@@\x87", call("collections OrderedDict", b"@"))), "that it does not take"),
])  # fmt: skip
def test_settings_that_unfold_without_end_are_refused(path, operations, words):
    path.write_bytes(operations)
    assert words in sentence(path)


def test_modules_that_unfold_without_end_are_refused(path):
    block = module("Block", {"weight": torch.ones(1)})
    for _ in range(40):
        block = module("Block", modules={"a": block, "b": block})
    path.write_bytes(pickle.dumps({"ema": network(block)}))
    assert "never ends" in sentence(path)
    temporary = dict.fromkeys(map(str, range(9)), torch.ones(1))
    hollow = module("Block", buffers=temporary, _non_persistent_buffers_set=set(temporary))
    for _ in range(40):
        hollow = module(
            "Block", buffers=temporary, modules={"a": hollow, "b": hollow}, _non_persistent_buffers_set=set(temporary)
        )
    path.write_bytes(pickle.dumps({"ema": network(hollow)}))
    assert "never ends" in sentence(path)


def test_a_module_within_itself_is_refused(path):
    block = module("Block")
    block.meta["state"]["_modules"]["again"] = nn.Identity()
    block.meta["state"]["_modules"]["again"]._modules["again"] = block.meta["state"]["_modules"]["again"]
    path.write_bytes(pickle.dumps({"ema": network(block)}))
    assert "no network needs" in sentence(path)


def test_one_list_makes_one_set(path):
    members = b"](" + b"".join(text(f"a{index}") for index in range(1000)) + b"e\x94"
    again = named("builtins set") + b"h\x00\x85R"
    path.write_bytes(snapshot_of(unused=b"(" + members + again * 100_000 + b"l"))
    tracemalloc.start()
    read_snapshot(path)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_one_tensor_under_many_names_does_not_unfold(path):
    weight = torch.ones(10_000)
    path.write_bytes(pickle.dumps({"ema": network(module("Block", {f"w{index}": weight for index in range(1000)}))}))
    assert "far more memory than the file has" in sentence(path)


def test_one_memory_read_many_times_does_not_unfold(path):
    """Protocol 2 writes bytes as text, which costs nothing to name again and a copy to read."""
    memory = call("torch.storage _load_from_bytes", call("_codecs encode", b"h\x00", text("latin1")))
    for count, refused in [(3, False), (100, True)]:
        weights = mapping(**{f"w{index}": tensor(memory) for index in range(count)})
        held = text(saved(torch.zeros(100_000)).decode("latin-1")) + b"\x94"
        path.write_bytes(snapshot_of(_parameters=weights).replace(b"\x80\x04}(", b"\x80\x04}(" + text("held") + held))
        if refused:
            assert "far more memory than the file has" in sentence(path)
        else:
            assert_same(read_snapshot(path)[1], {f"w{index}": torch.zeros(2) for index in range(count)})


@pytest.mark.parametrize("nested", [b"]" * 200_000 + b"a" * 199_999, b"N" + b"\x85" * 200_000, b"(" * 200_000])
def test_deep_nesting_is_no_trouble(path, nested):
    path.write_bytes(b"\x80\x04" + nested + b".")
    sentence(path)
    path.write_bytes(b"\x80\x04}" + text("ema") + nested + b"s.")
    sentence(path)


def test_a_pickle_of_too_many_steps_is_refused(path):
    path.write_bytes(b"\x80\x04" + b"N" * 1_000_001 + b".")
    assert "more steps than any network" in sentence(path)


@pytest.mark.parametrize("operations", [
    b"\x8e" + struct.pack("<Q", 1 << 60) + b"x",
    b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x",
    b"B\xff\xff\xff\xffx",
    b"\x8b\xff\xff\xff\x7fx",
    b"\x95" + struct.pack("<Q", (1 << 64) - 1) + b"\x8e" + struct.pack("<Q", 1 << 40),
    b"Nr\xff\xff\xff\xff",
    b"Np99999999999999999999\n",
    b"I" + b"9" * 100_000 + b"\n",
    b"I1e9\n",
])  # fmt: skip
def test_sizes_that_the_file_only_claims_are_not_believed(path, operations):
    path.write_bytes(b"\x80\x04" + operations)
    assert "cut short or damaged" in sentence(path)


def test_damage_anywhere_is_refused_or_harmless(path):
    generator, whole = random.Random(0), GOLDEN.read_bytes()
    places = [place for _, _, place in pickletools.genops(whole)]
    for _ in range(150):
        torn = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            torn[generator.choice(places) + generator.randint(0, 2)] = generator.randrange(256)
        path.write_bytes(torn)
        with contextlib.suppress(UnsafeCheckpoint):
            read_snapshot(path)


# Converted files


def converted(folder: Path, **metadata: str) -> Path:
    save_file({"w": torch.ones(2)}, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


def test_a_converted_snapshot_gives_its_network_back(tmp_path):
    config, weights = read_edm(GOLDEN)
    save_file(weights, tmp_path / "a.safetensors", snapshot_metadata(config))
    again, same = read_edm(tmp_path / "a.safetensors")
    assert again == config
    assert_same({key: same[key] for key in weights}, weights)


def test_the_metadata_tell_the_two_kinds_apart():
    assert snapshot_metadata(CONFIG) == {"kind": "edm", "edm_config": json.dumps(CONFIG)}
    assert snapshot_metadata({"_class_name": "UNet2DConditionModel"}) == {
        "kind": "diffusers",
        "diffusers_config": '{"_class_name": "UNet2DConditionModel"}',
    }


@pytest.mark.parametrize(("metadata", "words"), [
    ({}, "has no edm_config or diffusers_config in its metadata"),
    ({"format": "pt"}, "has no edm_config or diffusers_config in its metadata"),
    ({"edm_config": "{"}, "is no valid JSON"),
    ({"edm_config": "[" * 100_000}, "is nested too deep"),
    ({"edm_config": "[]"}, "neither EDM's nor SiD's"),
    ({"edm_config": "{}"}, "neither EDM's nor SiD's"),
    ({"edm_config": '{"_class_name": ["EDMPrecond"]}'}, "neither EDM's nor SiD's"),
    ({"diffusers_config": '{"_class_name": "AutoencoderKL"}'}, "neither EDM's nor SiD's"),
])  # fmt: skip
def test_a_converted_file_must_say_what_it_is(tmp_path, metadata, words):
    text = sentence(converted(tmp_path, **metadata), read_edm)
    assert words in text
    assert "apprentice convert" in text


def test_a_torn_converted_file_is_called_so(tmp_path):
    path = converted(tmp_path, **snapshot_metadata(CONFIG))
    path.write_bytes(path.read_bytes()[:-3])
    assert "cut short or damaged" in sentence(path, read_edm)
    path.write_bytes(GOLDEN.read_bytes())
    assert "no safetensors file" in sentence(path, read_edm)


def test_other_kinds_of_files_are_named(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "look.safetensors")
    write(tmp_path / "flux.gguf", "flux", {"img_in.weight": (4, 4)})
    for name, kind in (("look.safetensors", "a LoRA"), ("flux.gguf", "a GGUF file")):
        with pytest.raises(UnsafeCheckpoint, match=f"{name} is {kind}, no EDM network: give a snapshot"):
            read_edm(tmp_path / name)
