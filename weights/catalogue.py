"""Which files the published oracles need: where they come from, how big they are, and what they must hash to.

Every number was read off a public source; none is a guess. A number nobody could show is ``None``, and the first pull finds
it out, says so, and writes it down (see ``download``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from ..files import human_size

HUB = "https://huggingface.co"
GITHUB = "https://github.com"
_NOT_HERE = " (not here: apprentice models pull "


@dataclass(frozen=True)
class ModelFile:
    """One file of weights (or its configuration).

    Attributes:
        oracles: Names of the oracles that need it; what people type after ``apprentice models pull``.
        local: Its name in ComfyUI's ``models/oracles``.
        repo: Owner and name of the repository.
        filename: Its name in the repository.
        licence: Of the weights, as their publisher states it.
        revision: The commit, 40 hex digits; None: not known yet.
        sha256: 64 hex digits; None: not known yet.
        size: In bytes; None: not known yet.
        rough_size: In bytes, as published, where ``size`` is None; for the table and for people only.
        host: Whose repository it is.
    """

    oracles: tuple[str, ...]
    local: str
    repo: str
    filename: str
    licence: str
    revision: str | None = None
    sha256: str | None = None
    size: int | None = None
    rough_size: int | None = None
    host: Literal["huggingface", "github"] = "huggingface"

    @property
    def page(self) -> str:
        """The repository's page, for people."""
        return f"{GITHUB if self.host == 'github' else HUB}/{self.repo}"

    def github_url(self, endpoint: str | None = None) -> str:
        """Where GitHub (or ``endpoint``) redirects from to the file."""
        return f"{endpoint or GITHUB}/{self.repo}/raw/{self.revision}/{quote(self.filename)}"


FILES: tuple[ModelFile, ...] = (
    ModelFile(
        oracles=("imagereward",),
        local="ImageReward.pt",
        repo="THUDM/ImageReward",
        filename="ImageReward.pt",
        licence="Apache-2.0",
        revision="5736be03b2652728fb87788c9797b0570450ab72",
        sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
        rough_size=1_790_000_000,
    ),
    ModelFile(
        oracles=("imagereward",),
        local="ImageReward_med_config.json",
        repo="THUDM/ImageReward",
        filename="med_config.json",
        licence="Apache-2.0",
        revision="5736be03b2652728fb87788c9797b0570450ab72",
        sha256="d8b5029cc3c0124313d17009d043f0701bbe497f3721fa4ceb818720fe665326",
        size=485,
    ),
    ModelFile(
        oracles=("pickscore",),
        local="PickScore_v1.safetensors",
        repo="yuvalkirstain/PickScore_v1",
        filename="model.safetensors",
        licence="not stated (its code: MIT)",
        revision="a4e4367c6dfa7288a00c550414478f865b875800",
        rough_size=3_940_000_000,
    ),
    ModelFile(
        oracles=("hpsv2",),
        local="HPS_v2_compressed.pt",
        repo="xswu/HPSv2",
        filename="HPS_v2_compressed.pt",
        licence="Apache-2.0",
        revision="697403c78157020a1ae59d23f111aa58ced35b0a",
        rough_size=1_900_000_000,
    ),
    ModelFile(
        oracles=("hpsv2.1",),
        local="HPS_v2.1_compressed.pt",
        repo="xswu/HPSv2",
        filename="HPS_v2.1_compressed.pt",
        licence="Apache-2.0",
        revision="697403c78157020a1ae59d23f111aa58ced35b0a",
        sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
        size=1_972_490_005,
    ),
    ModelFile(
        oracles=("hpsv3",),
        local="HPSv3.safetensors",
        repo="MizzenAI/HPSv3",
        filename="HPSv3.safetensors",
        licence="Apache-2.0",
        revision="4f81e3e09edd82fe3c5f636444c721b592a735ca",
        rough_size=17_000_000_000,
    ),
    ModelFile(
        oracles=("hpsv3",),
        local="HPSv3_tokenizer.json",
        repo="Qwen/Qwen2-VL-7B-Instruct",
        filename="tokenizer.json",
        licence="Apache-2.0",
        revision="eed13092ef92e448dd6875b2a00151bd3f7db0ac",
        sha256="cb63a0a23eef3d5b01063a9880a1925a65aaf4d1591d519910ee3527852950a0",
        size=7_029_741,
    ),
    ModelFile(
        oracles=("aesthetic-v1",),
        local="sa_0_4_vit_l_14_linear.pth",
        repo="LAION-AI/aesthetic-predictor",
        filename="sa_0_4_vit_l_14_linear.pth",
        licence="MIT",
        revision="6d122adad522ab246644d9dc1c6d7a3810ee255f",
        sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        size=4_071,
        host="github",
    ),
    ModelFile(
        oracles=("aesthetic-v2",),
        local="sac+logos+ava1-l14-linearMSE.pth",
        repo="christophschuhmann/improved-aesthetic-predictor",
        filename="sac+logos+ava1-l14-linearMSE.pth",
        licence="Apache-2.0",
        revision="6934dd81792f086e613a121dbce43082cb8be85e",
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        size=3_714_759,
        host="github",
    ),
    ModelFile(
        oracles=("aesthetic-v1", "aesthetic-v2"),
        local="clip-vit-large-patch14.safetensors",
        repo="openai/clip-vit-large-patch14",
        filename="model.safetensors",
        licence="not stated (its code: MIT)",
        revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
        sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        size=1_710_540_580,
    ),
    ModelFile(
        oracles=("clip-score",),
        local="CLIP-ViT-B-32-laion2B-s34B-b79K.safetensors",
        repo="laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        filename="open_clip_model.safetensors",
        licence="MIT",
        revision="1a25a446712ba5ee05982a381eed697ef9b435cf",
        sha256="ac4f8c4b88af6d963118cbf40ad93176d092abbedfcb752601ae1866352656e6",
        size=605_143_316,
    ),
    ModelFile(
        oracles=("clip-score-h14",),
        local="CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        filename="open_clip_model.safetensors",
        licence="MIT",
        revision="1c2b8495b28150b8a4922ee1c8edee224c284c0c",
        sha256="0084e75319a50ad85ef45377bad5bc38f2f58824459eb690048d51c9f8863be5",
        size=3_944_517_836,
    ),
    ModelFile(
        oracles=("clip-iqa",),
        local="CLIP-RN50-openai.safetensors",
        repo="timm/resnet50_clip.openai",
        filename="open_clip_model.safetensors",
        licence="MIT",
        revision="ec3d92cf63a5f9d591f0d611b736895966c73076",
        sha256="da0baa37fb2211eee5729ab69ed587eb10d48f5b7076ceeed01552fc3d4cb4ee",
        size=408_291_932,
    ),
)


def names() -> list[str]:
    """The names of all oracles that need files, in the catalogue's order."""
    return list(dict.fromkeys(oracle for file in FILES for oracle in file.oracles))


def files_of(oracle: str) -> list[ModelFile]:
    """What ``oracle`` needs.

    Raises:
        ValueError: There is no such name; the message lists those there are.
    """
    files = [file for file in FILES if oracle in file.oracles]
    if not files:
        raise ValueError(f"There is no oracle called {oracle!r}: choose among {', '.join(names())}.")
    return files


def missing(oracle: str, present: Collection[str]) -> list[ModelFile]:
    """What ``oracle`` needs beside the files called ``present``. Configurations aren't counted: oracles do without."""
    return [file for file in files_of(oracle) if file.local not in present and not file.local.endswith(".json")]


def fetching(oracle: str, files: Sequence[ModelFile]) -> str:
    """How ``files`` of an oracle are fetched, as the middle of a sentence for people."""
    size = human_size(sum(file.size or file.rough_size or 0 for file in files))
    about = "" if all(file.size for file in files) else "about "
    return f"'apprentice models pull {oracle}' in a terminal fetches {about}{size}"


def offers(present: Collection[str]) -> dict[str, str]:
    """The oracles that could be had but aren't here: how a list of files shows one -> its name."""
    return {f"{name}{_NOT_HERE}{name})": name for name in names() if missing(name, present)}


def offered(entry: str) -> str:
    """The oracle that an entry of ``offers`` stands for, also once it has been fetched; "" for any other entry."""
    name = entry.partition(_NOT_HERE)[0]
    return name if name != entry and name in names() else ""


def oracle_of(local: str) -> str:
    """The first oracle that needs the file of that name; "" where none does."""
    return next((file.oracles[0] for file in FILES if file.local == local), "")


def size_text(file: ModelFile) -> str:
    """The size for people; "about" where nobody has shown the exact one."""
    if file.size is not None:
        return human_size(file.size)
    return f"about {human_size(file.rough_size)}" if file.rough_size else "not known"


def markdown_table() -> str:
    """The table of ``docs/models.md``: which files, sizes and licences, and how each is pinned."""
    rows = [
        "| file | needed by | size | licence | from | pinned by |",
        "| --- | --- | ---: | --- | --- | --- |",
    ]
    for file in FILES:
        oracles = ", ".join(f"`{name}`" for name in file.oracles)
        cells = (f"`{file.local}`", oracles, size_text(file), file.licence, f"[{file.repo}]({file.page})", _pin_text(file))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _pin_text(file: ModelFile) -> str:
    commit = f"commit `{file.revision[:8]}`" if file.revision else "the commit of the first pull"
    content = f"SHA-256 `{file.sha256[:8]}…`" if file.sha256 else "SHA-256 of the first pull"
    return f"{commit}, {content}"
