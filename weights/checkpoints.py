"""Reading weights as data: safetensors as they are, PyTorch's own formats without ever running what is inside them.

A general unpickler runs whatever the file says. Nothing here does: a file that isn't plain tensors is refused with one
sentence that says what is wrong and what to do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ..files import UnsafeCheckpoint as UnsafeCheckpoint  # whoever reads weights meets it here
from ..files import opened_safetensors, read_safetensors, refuse_impostors, save_safetensors_atomically
from .edm_pickle import read_snapshot, snapshot_metadata
from .promptkd_checkpoint import is_official_name, kind_of
from .torch_archive import is_script, read_checkpoint, read_script, read_tree

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
"""Names of files that hold a pickle, which is read as data only."""

SNAPSHOT = ".pkl"
"""How the name of an EDM, SiD or SiD-LSG snapshot ends, which holds a whole network."""

_NESTINGS = ("state_dict", "model_state_dict", "model")
_AGAIN = "delete it and fetch the weights again (apprentice models pull)"


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors in ``path``, on the CPU, under their names; memory-mapped where the format allows it.

    A ``.safetensors`` file is read as is. Of a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file the usual wrappings come off:
    ``state_dict``, ``model_state_dict`` or ``model`` around it, ``module.`` before every name. Of a TorchScript archive (OpenAI's
    CLIPs) the parameters and buffers are read, and the program is left alone; of a training checkpoint of Dassl's (``.pth.tar``)
    what lies under ``state_dict``.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't weights, it is damaged, or it holds more than tensors.
    """
    file = Path(path)
    refuse_impostors(file)
    if file.suffix == ".safetensors":
        return read_safetensors(file, _AGAIN)[0]
    if is_official_name(file):
        return read_checkpoint(file)[0]
    if file.suffix in PICKLED and is_script(file):
        return read_script(file)
    if file.suffix in PICKLED:
        return _plain_tensors(read_tree(file), file.name)
    raise UnsafeCheckpoint(f"{file.name} does not look like weights: the name must end in .safetensors, {', '.join(PICKLED)}.")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a ``.safetensors`` file says about itself; empty for every other kind of file.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpoint: It isn't a safetensors file, or it is damaged.
    """
    file = Path(path)
    refuse_impostors(file)
    if file.suffix != ".safetensors":
        return {}
    with opened_safetensors(file, _AGAIN) as opened:
        return dict(opened.metadata() or {})


def to_safetensors(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Write the tensors in ``source`` to ``target`` as safetensors, atomically; returns how many there are.

    Names and dtypes stay. Tensors that share memory are stored twice, since the format has no sharing. The metadata record
    the source's name and SHA-256. Of an EDM, SiD or SiD-LSG snapshot (``.pkl``) they also record which network the tensors are
    for, so that ``read_edm`` can read it again; of PromptKD's checkpoints (``.pth.tar``) whether it is a teacher or a student.

    Raises:
        FileNotFoundError: There is no ``source``.
        UnsafeCheckpoint: ``source`` can't be read as data, or holds tensors that safetensors can't store.
        OSError: ``target`` can't be written.
    """
    file = Path(source)
    metadata = {}
    if file.suffix == SNAPSHOT:
        config, tensors = read_snapshot(file)
        metadata = snapshot_metadata(config)
    else:
        tensors = read_weights(file)
    if is_official_name(file):
        metadata["promptkd"] = kind_of(tensors, file.name)
    metadata |= {"format": "pt", "source": file.name, "source_sha256": sha256(file)}
    try:
        save_safetensors_atomically(_unshared(tensors), target, metadata)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise UnsafeCheckpoint(f"{file.name} holds tensors of a kind that safetensors cannot store ({error}).") from error
    except SafetensorError as error:
        raise OSError(f"{target} could not be written ({error}).") from error
    return len(tensors)


def sha256(path: str | os.PathLike[str], progress: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file, in hex; ``progress`` gets the number of bytes of every piece that was read."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return digest.hexdigest()


def _plain_tensors(value: Any, name: str) -> dict[str, Tensor]:
    """The state dict in ``value``, out of its wrappings and without ``module.`` before the names."""
    while isinstance(value, Mapping):
        inner = next((value[key] for key in _NESTINGS if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            break
        value = inner
    if not isinstance(value, Mapping) or not value:
        raise UnsafeCheckpoint(f"{name} holds no dictionary of tensors: use a file that was saved as a state dict.")
    strangers = [str(key)[:60] for key, item in value.items() if not isinstance(key, str) or not isinstance(item, Tensor)]
    if strangers:
        raise UnsafeCheckpoint(
            f"{name} holds things that are not tensors among its weights ({', '.join(strangers[:3])}): use a file that was saved "
            f"as a state dict alone."
        )
    prefix = "module." if all(key.startswith("module.") for key in value) else ""
    return {key[len(prefix) :]: item.detach() for key, item in value.items()}


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with a copy of each that shares its memory with an earlier one."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        result[key] = value.clone() if memory in seen else value
        seen.add(memory)
    return result
