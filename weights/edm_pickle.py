"""Snapshots of EDM, SiD and SiD-LSG (``network-snapshot-*.pkl``), read as data.

Such a file is a pickle of ``dict(ema=net, ...)``: an EDM network saved by ``torch_utils.persistence`` with its own source code
(NVlabs/edm, mingyuanzhou/SiD), or a diffusers ``UNet2DConditionModel`` (mingyuanzhou/SiD-LSG). Unpickling would run that code
and whatever else the file asks for. Here nothing is unpickled: ``stack_machine`` makes inert records of it, ``stored_tensors``
checks its tensors, and one ``Budget`` counts steps and bytes, as the limits below do parts and settings, so that a small file
cannot unfold into a big one.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import UnsafeCheckpoint, parse_json, read_safetensors, refuse_impostors
from ..networks.limits import LONGEST_NAME, MOST_NESTED, MOST_PARTS, MOST_SETTINGS
from .budget import Budget, Refused
from .gguf import is_gguf
from .kinds import kind_of
from .stack_machine import (
    BUILTINS,
    NUMPY,
    ORDERED_DICT,
    VALUES,
    Blob,
    Dictionary,
    Machine,
    Name,
    NumpyArray,
    Object,
    Table,
    bare,
    new_object,
    shown,
)
from .stored_tensors import LEGACY_MAGIC, TENSORS, Storage, Tensors, View, nested_storage
from .zip_directory import ZIP

Snapshot = tuple[dict[str, Any], dict[str, Tensor]]
"""What made a network, with its class under ``_class_name``; its state dict under its authors' names."""

UNET = "UNet2DConditionModel"

_COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16")
_ARGUMENTS = {
    "EDMPrecond": (*_COMMON, "sigma_min", "sigma_max", "sigma_data", "model_type"),
    "VPPrecond": (*_COMMON, "beta_d", "beta_min", "M", "epsilon_t", "model_type"),
    "VEPrecond": (*_COMMON, "sigma_min", "sigma_max", "model_type"),
    "iDDPMPrecond": (*_COMMON, "C_1", "C_2", "M", "model_type"),
}
"""The networks of NVlabs/edm, with the names of their constructor's arguments in order."""

_NETWORKS = ("ema", "G", "net")
_CONFIGS = {"edm": "edm_config", "diffusers": "diffusers_config"}
_UNCONFIGURED = ("_use_default_values", "_ignore_files")  # diffusers leaves them out of config.json as well

_LARGEST_INTEGER = 1 << 63


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """The network in an EDM, SiD or SiD-LSG pickle: ``ema``, or else ``G`` or ``net``. Nothing in the file is ever run.

    The configuration holds the constructor's arguments, and under ``_class_name`` which network they are for: ``EDMPrecond`` (or
    ``VPPrecond``, ``VEPrecond``, ``iDDPMPrecond``), or diffusers' ``UNet2DConditionModel``. All of it is plain JSON.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't such a snapshot, it is damaged, or it asks for more than a snapshot needs.
    """
    file = Path(path)
    refuse_impostors(file)
    if is_gguf(file):
        raise UnsafeCheckpoint(_another(file.name, "a GGUF file"))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            budget = Budget(len(data))
            return _network(_unpacked(data, budget), Tensors(file, budget, mapped=False))  # networks keep them
        except Refused as refused:
            raise UnsafeCheckpoint(
                f"{file.name} {refused}, so it was not loaded: use a snapshot as the EDM, SiD or SiD-LSG code saves it (.pkl), "
                f"or what apprentice convert makes of one."
            ) from refused
        except MemoryError:
            raise
        except Exception as error:  # a torn or made-up pickle fails in as many ways as there are operations
            raise UnsafeCheckpoint(f"{file.name} is cut short or damaged, or no pickle: delete it and fetch it again.") from error


def read_edm(path: str | os.PathLike[str]) -> Snapshot:
    """The network in a snapshot, or in what ``apprentice convert`` made of one (``.safetensors``); see ``read_snapshot``.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It is neither, or it is damaged.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        return read_snapshot(file)
    refuse_impostors(file)
    tensors, metadata = read_safetensors(file, "convert it again")
    if not metadata.keys() & set(_CONFIGS.values()) and (kind := kind_of(tensors)):
        raise UnsafeCheckpoint(_another(file.name, kind))
    return _recorded_config(metadata, file.name), tensors


def _another(name: str, kind: str) -> str:
    return f"{name} is {kind}, no EDM network: give a snapshot (.pkl), or what apprentice convert made of one."


def snapshot_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """What a converted snapshot says about itself: its ``kind``, and ``config`` as JSON under that kind's own key."""
    kind = "diffusers" if config["_class_name"] == UNET else "edm"
    return {"kind": kind, _CONFIGS[kind]: json.dumps(config)}


def _recorded_config(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    keys = " or ".join(_CONFIGS.values())
    text = next((metadata[key] for key in _CONFIGS.values() if key in metadata), None)
    again = "run apprentice convert on the authors' snapshot (.pkl), which records it"
    if text is None:
        raise UnsafeCheckpoint(f"{name} has no {keys} in its metadata to say which network its weights are for: {again}.")
    config = parse_json(text, f"The {keys} metadata of {name}", again)
    if not isinstance(config, dict) or config.get("_class_name") not in (UNET, *_ARGUMENTS):
        raise UnsafeCheckpoint(f"{name} has {keys} metadata for a network that is neither EDM's nor SiD's: {again}.")
    return config


# What the records mean


def _unpacked(data: mmap.mmap, budget: Budget) -> Any:
    """What the file's pickle holds, as records."""
    is_torchs = "is a PyTorch checkpoint (rename it to .pt for apprentice convert)"
    if data[:4] == ZIP:
        raise Refused(is_torchs)
    storages: dict[Blob, Storage] = {}

    def load_from_bytes(blob: Any) -> Storage:
        if not isinstance(blob, Blob):
            raise Refused("has something else where a tensor's memory should be")
        if blob not in storages:
            storages[blob] = nested_storage(blob, budget)
        return storages[blob]

    contents = Machine(data, {**_NAMES, ("torch.storage", "_load_from_bytes"): load_from_bytes}, budget).run()
    if contents == LEGACY_MAGIC:  # a bare pickle before all else marks torch's older format
        raise Refused(is_torchs)
    return contents


def _network(contents: Any, tensors: Tensors) -> Snapshot:
    """The configuration and the tensors of the network in ``contents``, a file's dictionary."""
    contents = bare(contents)
    if not isinstance(contents, dict):
        raise Refused("holds no dictionary of networks")
    net = next((contents[key] for key in _NETWORKS if contents.get(key) is not None), None)
    if net is None:
        keys = ", ".join(shown(key) for key in itertools.islice(contents, 5)) or "nothing"
        raise Refused(f"holds no network under {', '.join(_NETWORKS)}, but {keys}")
    if not isinstance(net, Object):
        raise Refused("holds something else where the network should be")
    return _config(net), _state_dict(net, tensors)


def _config(net: Object) -> dict[str, Any]:
    """What made ``net``, as plain JSON."""
    if net.persistent and net.name in _ARGUMENTS:
        settings = _init_arguments(net)
    elif not net.persistent and net.name == UNET:
        settings = {key: value for key, value in _dict(net, "_internal_dict").items() if key not in _UNCONFIGURED}
    else:
        raise Refused(f"holds a {shown(net.name)}, not one of {', '.join(_ARGUMENTS)} or {UNET}")
    return _plain({**settings, "_class_name": net.name}, "its configuration", itertools.count())


def _init_arguments(net: Object) -> dict[str, Any]:
    """The arguments that ``net`` was constructed with, by name, as ``torch_utils.persistence`` recorded them."""
    given, named, names = net.state.get("_init_args"), _dict(net, "_init_kwargs"), _ARGUMENTS[net.name]
    if not isinstance(given, tuple) or len(given) > len(names):
        raise Refused("does not record what its network was made with")
    positional = dict(zip(names, given, strict=False))
    if twice := positional.keys() & named.keys():
        raise Refused(f"records two values of {', '.join(sorted(twice))}")
    return positional | named


def _plain(value: Any, what: str, count: Iterator[int], depth: int = 0) -> Any:
    """``value`` in JSON's own types; ``count`` bounds how often a container may unfold."""
    if next(count) > MOST_SETTINGS or depth > MOST_NESTED:
        raise Refused(f"has more than a configuration in {what}")
    value = bare(value)
    if isinstance(value, dict):
        return {_short(key): _plain(item, shown(key), count, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what, count, depth + 1) for item in value]
    if isinstance(value, str):
        return _short(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
        return value
    raise Refused(f"has something in {what} that is no setting")


def _state_dict(net: Object, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors that ``net.state_dict()`` would give, in its order."""
    views: dict[str, View] = {}
    for key, view in _named_views(net):
        if key in views:
            raise Refused(f"has two tensors called {shown(key)}")
        views[key] = view
    if not views:
        raise Refused("holds a network without weights")
    return {key: tensors.take(view) for key, view in views.items()}


def _named_views(net: Object) -> Iterator[tuple[str, View]]:
    """Parameters and persistent buffers of ``net`` and of all its modules, depth first."""
    waiting, parts = [("", net)], 0
    while waiting:
        prefix, module = waiting.pop()
        parameters, buffers, modules = (_dict(module, key) for key in ("_parameters", "_buffers", "_modules"))
        parts += 1 + len(parameters) + len(buffers) + len(modules)
        if parts > MOST_PARTS:
            raise Refused("holds a network that never ends")
        yield from _children(parameters | _persistent(buffers, module), prefix, View, "tensor")
        waiting += [(f"{name}.", child) for name, child in _children(modules, prefix, Object, "module")][::-1]


def _children(items: Mapping[str, Any], prefix: str, kind: type, what: str) -> Iterator[tuple[str, Any]]:
    """``items`` by their full names; None stands for an absent one, as in torch."""
    for name, item in items.items():
        if item is None:
            continue
        if not isinstance(item, kind):
            raise Refused(f"has something else where its {what} {shown(prefix + name)} should be")
        yield _short(prefix + name), item


def _persistent(buffers: Mapping[str, Any], module: Object) -> dict[str, Any]:
    left_out = module.state.get("_non_persistent_buffers_set", set())
    if not isinstance(left_out, set):
        raise Refused(f"has a {shown(module.name)} that does not say which of its buffers are temporary")
    return {name: buffer for name, buffer in buffers.items() if name not in left_out}


def _dict(record: Object, key: str) -> dict[str, Any]:
    """The dictionary at ``key`` of an object's state."""
    value = bare(record.state.get(key))
    if not isinstance(value, dict):
        raise Refused(f"has a {shown(record.name)} without its {key}")
    return value


def _short(text: str) -> str:
    if len(text) > LONGEST_NAME or not text.isprintable():
        raise Refused(f"has a text that no network needs ({shown(text)})")
    return text


# What the names stand for


def _reconstruct_persistent_obj(meta: Any) -> Object:
    """``meta`` brings its class as source code (``module_src``), which is left alone."""
    meta = bare(meta)
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise Refused("has an object that torch_utils.persistence did not write")
    version, source, state = meta.get("version"), meta.get("module_src"), bare(meta.get("state"))
    if version != 6 or not isinstance(source, str):
        raise Refused("has an object of another version of torch_utils.persistence than 6")
    if not isinstance(state, dict):
        raise Refused("has an object without state")
    return Object(meta["class_name"], True, state)


def _numpy_array(kind: Any, shape: Any, code: Any) -> NumpyArray:
    if not isinstance(kind, Name) or kind.name != "ndarray" or shape != (0,):
        raise Refused("has an array that NumPy did not write")
    return NumpyArray()


def _frozen_dict() -> Dictionary:
    return Dictionary()


def _reconstructor(kind: Any, base: Any, state: Any) -> Object | Dictionary:
    """How protocols before 2 make an object."""
    if not isinstance(kind, Name) or not isinstance(base, Name) or base.name != "object" or state is not None:
        raise Refused("has an object that Python did not write")
    return new_object(kind, _CLASSES)


_UNET_BLOCKS = "CrossAttnDownBlock2D CrossAttnUpBlock2D DownBlock2D UNetMidBlock2DCrossAttn UpBlock2D"
_CLASSES: Table = {
    (module, name): Dictionary if name == "EasyDict" else Object
    for module, names in {
        "dnnlib.util": "EasyDict",
        "torch.nn.modules.activation": "GELU Mish ReLU SiLU",
        "torch.nn.modules.container": "ModuleDict ModuleList Sequential",
        "torch.nn.modules.conv": "Conv2d",
        "torch.nn.modules.dropout": "Dropout",
        "torch.nn.modules.linear": "Identity Linear",
        "torch.nn.modules.normalization": "GroupNorm LayerNorm",
        "torch.nn.modules.sparse": "Embedding",
        "diffusers.models.activations": "ApproximateGELU GEGLU GELU",
        "diffusers.models.attention": "BasicTransformerBlock FeedForward",
        "diffusers.models.attention_processor": "Attention AttnProcessor AttnProcessor2_0 XFormersAttnProcessor",
        "diffusers.models.downsampling": "Downsample2D",
        "diffusers.models.embeddings": "TimestepEmbedding Timesteps",
        "diffusers.models.lora": "LoRACompatibleConv LoRACompatibleLinear",
        "diffusers.models.resnet": "Downsample2D ResnetBlock2D Upsample2D",
        "diffusers.models.transformer_2d": "Transformer2DModel",
        "diffusers.models.transformers.transformer_2d": "Transformer2DModel",
        "diffusers.models.unet_2d_blocks": _UNET_BLOCKS,
        "diffusers.models.unets.unet_2d_blocks": _UNET_BLOCKS,
        "diffusers.models.unet_2d_condition": UNET,
        "diffusers.models.unets.unet_2d_condition": UNET,
        "diffusers.models.upsampling": "Upsample2D",
    }.items()
    for name in names.split()
}
"""Of what there may be objects. Modules moved between versions of diffusers."""

_NAMES: Table = {
    **_CLASSES,
    **TENSORS,
    **VALUES,
    **ORDERED_DICT,
    ("diffusers.configuration_utils", "FrozenDict"): _frozen_dict,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct_persistent_obj,
    ("numpy", "ndarray"): None,
    **{(module, "_reconstruct"): _numpy_array for module in NUMPY},
    **{(module, "object"): None for module in BUILTINS},
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
}
"""All that a snapshot may name."""
