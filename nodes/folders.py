"""Where calibrations and controllers lie, and whether somebody else has changed them since ComfyUI last looked."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths

from ..gate import calibration
from ..gate.calibrate import BUNDLED as BUNDLED_PROMPTS
from ..gate.calibrate import clean_prompts, read_prompts
from ..samplers.presets import AUTO
from ..training.run_folder import RunFolder
from ..training.target import Target
from ..weights import catalogue
from ..weights.checkpoints import PICKLED
from ..world.weights import CLIPS_FOLDER, CRITICS_FOLDER, EDM_FOLDER

CALIBRATIONS = "calibrations"
ORACLES = "oracles"
EDM = "edm"
CRITICS, TEACHERS, CLIPS = "promptkd", "promptkd_teachers", "promptkd_clips"
BUNDLED = "bundled"
_OWN_BYTES = 200  # of a name; leaves room in 255 for what is written after it

# Path -> (digest of the content that we know, how often it was found changed).
_SEEN: dict[Path, tuple[str, int]] = {}

folder_paths.add_model_folder_path(CALIBRATIONS, str(Path(folder_paths.models_dir) / CALIBRATIONS))
folder_paths.folder_names_and_paths[CALIBRATIONS][1].add(".json")
folder_paths.add_model_folder_path(ORACLES, str(Path(folder_paths.models_dir) / ORACLES))
folder_paths.folder_names_and_paths[ORACLES][1].update({".safetensors", *PICKLED})
folder_paths.add_model_folder_path(EDM, str(Path(folder_paths.models_dir) / EDM))
folder_paths.add_model_folder_path(EDM, str(EDM_FOLDER))
folder_paths.folder_names_and_paths[EDM][1].update({".safetensors", ".pkl"})
for _kind in (CRITICS, TEACHERS, CLIPS):
    folder_paths.add_model_folder_path(_kind, str(Path(folder_paths.models_dir) / _kind))
folder_paths.add_model_folder_path(CLIPS, str(CLIPS_FOLDER))
folder_paths.add_model_folder_path(CRITICS, str(CRITICS_FOLDER))
folder_paths.folder_names_and_paths[CRITICS][1].update({".safetensors", ".tar"})
folder_paths.folder_names_and_paths[TEACHERS][1].update({".safetensors", ".tar"})
folder_paths.folder_names_and_paths[CLIPS][1].update({".safetensors", *PICKLED})


def check_name(name: str, what: str) -> str:
    """``name`` without blanks around it and without ".json", if it can be a file's name everywhere.

    Raises:
        ValueError: It can't.
    """
    plain = name.strip().removesuffix(".json")
    if not re.fullmatch(r"\w[\w .()+-]{0,99}", plain) or plain.endswith("."):
        raise ValueError(f"The {what}'s name '{name}' can't be a file name; take letters, digits, '-', '_' and blanks.")
    if len(plain.encode()) > _OWN_BYTES:
        raise ValueError(f"The {what}'s name '{name}' has {len(plain.encode())} bytes; take a name of at most {_OWN_BYTES}.")
    return plain


def calibration_file(name: str) -> Path:
    """Where a calibration of that name is saved: models/calibrations/<name>.json."""
    return Path(folder_paths.get_folder_paths(CALIBRATIONS)[0]) / f"{check_name(name, 'calibration')}.json"


def controller_file(name: str) -> Path:
    """Where a controller of that name remembers: output/apprentice/controllers/<name>.json."""
    folder = Path(folder_paths.get_output_directory()) / "apprentice" / "controllers"
    return folder / f"{check_name(name, 'controller')}.json"


def gains_file() -> Path:
    """Where it is remembered what teachers made of drafts: output/apprentice/gains.json."""
    return Path(folder_paths.get_output_directory()) / "apprentice" / "gains.json"


def run_folder(name: str) -> RunFolder:
    """Where a training run of that name is kept, so that it can be resumed: output/apprentice/training/<name>."""
    return RunFolder(Path(folder_paths.get_output_directory()) / "apprentice" / "training" / name)


def made_file(kind: str, name: str, what: str) -> Path:
    """Where a node saves what it made: ``<name>.safetensors`` in the model folder of that kind.

    Of several folders the one that is called like the kind, in ComfyUI's own models folder if it is among them: the first of
    "diffusion_models" is models/unet.

    Raises:
        ValueError: It can't be a file's name.
    """
    listed = [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
    default = Path(folder_paths.models_dir) / kind
    folder = default if default in listed else next((folder for folder in listed if folder.name == kind), listed[0])
    return folder / f"{check_name(name, what)}.safetensors"


def check_target(target: Target, kind: str) -> None:
    """Whether a run may write there, and no file of that name in another folder of that kind comes first or is hidden.

    Raises:
        ValueError: There is a file that it didn't make.
    """
    for folder in folder_paths.get_folder_paths(kind):
        replace(target, file=Path(folder) / target.file.name).check(taken=lambda name: run_folder(name).path.exists())


def lines_of(text: str) -> tuple[str, ...]:
    """The lines of a text widget that aren't blank."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def known_calibrations() -> dict[str, Path]:
    """All calibrations by name: those that were saved, then those that ship."""
    saved = {
        path.stem: path
        for folder in reversed(folder_paths.get_folder_paths(CALIBRATIONS))
        for path in sorted(Path(folder).glob("*.json"))
    }
    return saved | {name: path for name, path in calibration.shipped().items() if name not in saved}


def oracle_files() -> list[str]:
    """Weights in the ``oracles`` model folders."""
    return list(folder_paths.get_filename_list(ORACLES))


def oracle_choices() -> list[str]:
    """``oracle_files``, and then the published oracles that could be fetched."""
    files = oracle_files()
    return [*files, *catalogue.offers(_bare(files))]


def oracle_file(name: str) -> Path | None:
    """Where the weights of an entry of ``oracle_choices`` are; None where they aren't."""
    oracle = catalogue.offered(name)
    wanted = catalogue.files_of(oracle)[0].local if oracle else name
    listed = next((file for file in oracle_files() if oracle and Path(file).name == wanted), wanted)
    return model_file(listed, ORACLES)


def missing_oracle(name: str, clip: str) -> str:
    """What to say where an entry of ``oracle_choices`` can't be loaded for want of a file; nothing where it can.

    Args:
        clip: The CLIP that was chosen for a head that stands on one.
    """
    path = oracle_file(name)
    file = path.name if path else Path(name).name
    oracle = catalogue.offered(name) or catalogue.oracle_of(file)
    here = _bare(clip_files()) | ({file} if path else set())  # ComfyUI's lists may be a moment old
    lacking = catalogue.missing(oracle, here) if oracle else []
    if path is None and not oracle:
        return f"There is no file '{name}' in models/oracles; 'apprentice models list' shows which can be fetched."
    if path is None or (lacking and clip == AUTO):
        what = f"There is no file '{lacking[0].local if lacking else name}' in models/oracles"
        return f"{what}: {catalogue.fetching(oracle, lacking or catalogue.files_of(oracle))}; then queue again."
    return ""


def _bare(files: list[str]) -> set[str]:
    return {Path(file).name for file in files}


def edm_files() -> list[str]:
    """Networks in the ``edm`` model folders."""
    return list(folder_paths.get_filename_list(EDM))


def clip_files() -> list[str]:
    """CLIPs that an aesthetic head can stand on: in ``oracles`` and in ``clip_vision``."""
    return [*oracle_files(), *(f for f in folder_paths.get_filename_list("clip_vision") if f not in oracle_files())]


def critic_files() -> list[str]:
    """PromptKD's students in the ``promptkd`` model folders."""
    return list(folder_paths.get_filename_list(CRITICS))


def teacher_files() -> list[str]:
    """Learned tokens of PromptKD's teachers in the ``promptkd_teachers`` model folders."""
    return list(folder_paths.get_filename_list(TEACHERS))


def whole_clips() -> list[str]:
    """CLIPs with both towers may lie in ``promptkd_clips`` (with the built-in ones), ``oracles`` and ``clip_vision``."""
    pulled = list(folder_paths.get_filename_list(CLIPS))
    return [*pulled, *(f for f in clip_files() if f not in pulled)]


def whole_clip(name: str) -> Path | None:
    """Where a CLIP of ``whole_clips`` is."""
    return model_file(name, CLIPS, ORACLES, "clip_vision")


def picture_folders() -> list[str]:
    """The folders below ComfyUI's input folder."""
    return sorted(folder_paths.get_input_subfolders())


def picture_folder(name: str) -> Path:
    """One of them, whole.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in picture_folders():
        raise ValueError(f"There is no folder '{name}' in ComfyUI's input folder; choose one of those listed.")
    return Path(folder_paths.get_input_directory()) / name


def model_file(name: str, *kinds: str) -> Path | None:
    """The full path of a file in the model folders ``kinds``, or None."""
    for kind in kinds:
        if path := folder_paths.get_full_path(kind, name):
            return Path(path)
    return None


def is_missing(name: Any, *kinds: str) -> bool:
    """For ``validate_inputs``: whether a file is named that isn't there. What is connected has no value yet (None)."""
    return isinstance(name, str) and model_file(name, *kinds) is None


def stamp(name: str | None, *kinds: str) -> str:
    """For ``fingerprint_inputs`` of a loader: another file under the same name is another input."""
    path = model_file(name, *kinds) if isinstance(name, str) else None  # what is connected has no value yet
    return stamp_of(path) or str(name)


def stamp_of(path: Path | None) -> str:
    """The file as it is now; "" where there is none."""
    return f"{path} {path.stat().st_mtime_ns}" if path else ""


def prompt_files() -> list[str]:
    """The bundled prompts, then the .txt and .csv files in ComfyUI's input folder."""
    folder = Path(folder_paths.get_input_directory())
    files = [path.name for path in folder.glob("*") if path.suffix.lower() in (".txt", ".csv")]
    return [BUNDLED, *sorted(files)]


def missing_prompts(choice: str) -> str:
    """What to say of a prompt file that isn't there; nothing of one that is."""
    listed = choice in prompt_files()
    return "" if listed else f"There is no prompt file '{choice}' in ComfyUI's input folder; choose one of those listed."


def check_run(name: Any, what: str, prompts: Any) -> str:
    """``validate_inputs`` of a node that draws on many prompts and saves under a name: what is wrong, or nothing.

    An input that is connected has no value yet.
    """
    try:
        check_name(name if isinstance(name, str) else "linked", what)
    except ValueError as error:
        return str(error)
    return missing_prompts(prompts) if isinstance(prompts, str) else ""


def digest(path: Path) -> str:
    """The file's content in short; empty where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def generation(path: Path) -> int:
    """How often the file was changed or deleted by somebody other than the node that writes it, while ComfyUI ran.

    For ``fingerprint_inputs`` of a node that remembers in a file: what the node itself wrote must not make it run again,
    but whoever edits or deletes the file wants to see the effect.
    """
    content, count = _SEEN.get(path, (digest(path), 0))
    if digest(path) != content:
        count += 1
    _SEEN[path] = (digest(path), count)
    return count


def written(path: Path) -> None:
    """Tell ``generation`` that the file's content is our own."""
    _SEEN[path] = (digest(path), _SEEN.get(path, ("", 0))[1])


def gather_prompts(choice: str, text: str, limit: int) -> list[str]:
    """The typed prompts, or else those of the chosen file.

    Raises:
        ValueError: The file is not there or has no prompts.
    """
    if text.strip():
        return clean_prompts(text.splitlines(), limit)
    if wrong := missing_prompts(choice):
        raise ValueError(wrong)
    return read_prompts(prompt_path(choice), limit)


def prompt_path(choice: str) -> Path:
    """The file of prompts that is called so."""
    return BUNDLED_PROMPTS if choice == BUNDLED else Path(folder_paths.get_input_directory()) / choice
