"""What the Draft Board in the browser sees of a judge's work: pictures as they are judged, and the whole at the end.

Nothing depends on it: without a browser the same scores, verdicts and pictures come out.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from PIL import Image
from torch import Tensor

from ..gate.calibration import Calibration
from ..gate.thresholds import Gate, quantile
from ..gate.verdict import Verdict, summary
from ..oracles.base import Oracle
from ..oracles.cascade import Cascade
from ..training.click_origins import Origin
from .info import Info, info_of, mark_of
from .origins import origins_of
from .pixels import as_pictures
from .progress import send
from .rows import Latent
from .scoring import Thresholds, cascaded, picture_keys, score_list

EVENT = "apprentice.board"
JUDGED, IMPROVED = "judged", "improved"  # the stages: of Judge, of Keep Better
THUMBNAIL = 256  # pixels of the longer side
_FILES, _REMEMBERED, _QUANTILES = 256, 512, 257  # pictures that get files, pictures kept for clicks, points of a calibration
_FOLDER = "apprentice"  # in ComfyUI's folder for what doesn't last
_PLAIN_INTEGERS = 2**53  # what JavaScript's numbers hold exactly


@dataclass(frozen=True)
class Shown:
    """A picture that a board has shown, as later clicks on it need it.

    Attributes:
        picture: [h, w, 3] of uint8, at most ``THUMBNAIL`` pixels long.
        prompt: What it was asked to show.
        score: The oracle's; NaN where it could not be told.
        oracle: That oracle's fingerprint.
        improved: Whether the teacher made it.
        origin: Its latents, and what names its noise, where that is known.
    """

    picture: np.ndarray
    prompt: str
    score: float
    oracle: str
    improved: bool = False
    origin: Origin | None = None


_SHOWN: OrderedDict[str, Shown] = OrderedDict()


def shown(key: str) -> Shown | None:
    """The picture that a board showed under ``key``; None where that is too long ago."""
    return _SHOWN.get(key)


def draft_keys(drafts: Sequence[Latent], pictures: Sequence[Tensor], prompts: list[str], oracle: str) -> list[str]:
    """Sixteen hex digits a picture: the same student, noise levels, size, seed, place in the batch and prompt have the same ones.

    So they outlive another machine's rounding. Drafts of whom that isn't known go by their pixels and the oracle.
    """
    infos = [info_of(latent) for latent in drafts]
    places = [place for latent in drafts for place in latent.get("batch_index") or range(len(latent["samples"]))]
    if not infos or not all(info and info.student for info in infos) or len(places) != len(pictures):
        return picture_keys(pictures, prompts, oracle)
    origins = [_origin(info) for info, latent in zip(infos, drafts, strict=True) if info for _ in latent["samples"]]
    facts = zip(origins, places, prompts, strict=True)
    names = [hashlib.sha256(repr(fact).encode()).hexdigest()[:16] for fact in facts]
    if len(set(names)) == len(names):
        return names
    # Batches of a list have the same places, and may differ in what was drawn alone: such go by their pixels, too.
    count, pixels = Counter(names), picture_keys(pictures, prompts, oracle)
    return [name if count[name] == 1 else content for name, content in zip(names, pixels, strict=True)]


def _origin(info: Info) -> tuple[Any, ...]:
    """What a batch of drafts shares: all but place and prompt."""
    drawn_over = mark_of(info.source) if info.source.any() else ""
    return info.student, info.schedule, info.seed, tuple(info.source.shape[1:]), info.denoise, drawn_over


class Board:
    """One stage of one node's board.

    Args:
        stage: JUDGED, where drafts are judged, or IMPROVED, where the teacher's pictures are.
        total: Pictures in the batch.
    """

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self._saved = stage, total, 0
        self.note = ""  # of a cascade: what it says of how it scored,
        self.asked: tuple[int, ...] = ()  # and whom its heavy oracle has

    def save(self, image: Tensor) -> dict[str, Any] | None:
        """A picture [H, W, C] in 0..1 as a file that the browser can ask for; None of more than are looked at."""
        self._saved += 1
        return _save(image) if self._saved <= _FILES else None

    def scores(
        self, oracle: Oracle, batches: list[Tensor], prompts: list[str], keys: Sequence[str], rows: Sequence[int],
        thresholds: Thresholds | None = None, asked: Sequence[int] | None = None,
    ) -> tuple[list[float], list[dict[str, Any] | None]]:  # fmt: skip
        """``score_list``, watched: every picture is shown at once, and its score when there is one; and the pictures' files.

        Args:
            batches: Pictures [B, H, W, C], each batch of its own size.
            keys, rows: Name and place of each.
            thresholds: For a cascade: what they must reach.
            asked: For a cascade: whom to ask its heavy oracle about, instead, counted in ``batches``.
        """
        pictures = [picture for batch in batches for picture in batch]
        files = [self.save(picture) for picture in pictures]
        slot = "draft" if self.stage == JUDGED else "improved"

        def tell(start: int, scores: Sequence[float | None]) -> None:
            part = range(start, start + len(scores))
            self.tell(
                {"index": rows[i], "key": keys[i], "prompt": prompts[i], slot: files[i], "score": number(scores[i - start])}
                for i in part
            )

        tell(0, [None] * len(pictures))
        if isinstance(oracle, Cascade):
            found = cascaded(oracle, batches, prompts, thresholds, tell, asked)
            scores, self.note, self.asked = found.scores, found.note, found.asked
        else:
            scores = score_list(oracle, batches, prompts, tell)
        self.remember(keys, pictures, prompts, scores, oracle.fingerprint(), self.stage == IMPROVED)
        return scores, files

    def tell(self, pictures: Iterable[dict[str, Any]]) -> None:
        """Send what there is of some pictures now."""
        send(EVENT, {"stage": self.stage, "total": self.total, "pictures": list(pictures)})

    def remember(
        self, keys: Sequence[str], images: Sequence[Tensor], prompts: Sequence[str], scores: Sequence[float], oracle: str,
        improved: bool = False,
    ) -> None:  # fmt: skip
        """Keep small pictures for later clicks."""
        for key, image, prompt, score in zip(keys, images, prompts, scores, strict=True):
            _SHOWN[key] = Shown(np.asarray(_small(_picture(image))), prompt, score, oracle, improved)
            _SHOWN.move_to_end(key)
        while len(_SHOWN) > _REMEMBERED:
            _SHOWN.popitem(last=False)

    def remember_origins(self, keys: Sequence[str], latents: Iterable[Latent]) -> None:
        """Keep the latents of pictures that were shown, and what names their noise; ``Taste Finetune`` learns from them."""
        origins = [origin for latent in latents for origin in origins_of(latent)]
        if len(origins) == len(keys):
            for key, origin in zip(keys, origins, strict=True):
                if origin is not None and key in _SHOWN:
                    _SHOWN[key] = replace(_SHOWN[key], origin=origin)

    def whole(self, verdict: Verdict, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """All of it, as the node's result.

        Args:
            rows: What ``pictures_of`` gives of each picture, with its files.
            **more: Costs, calibration and so on, by their names on the board.
        """
        thresholds = {j.threshold for j in verdict}
        common = number(thresholds.pop()) if len(thresholds) == 1 else None
        return {
            "stage": self.stage, "mode": verdict.mode, "value": verdict.value, "oracle": verdict.oracle,
            "oracle_id": verdict.fingerprint, "summary": summary(verdict), "note": verdict.note, "threshold": common,
            "stopped": verdict.stopped, "pictures": rows, **more,
        }  # fmt: skip


class ComparingBoard(Board):
    """The board of drafts and what the teacher made of them.

    Args:
        verdict: Of the drafts.
        drafts: Their pictures [B, H, W, C].
    """

    def __init__(self, verdict: Verdict, drafts: Tensor) -> None:
        super().__init__(IMPROVED, len(verdict))
        self.verdict = verdict
        self.rows = pictures_of(verdict, [j.accepted if not j.override else j.score >= j.threshold for j in verdict])
        for row, picture in zip(self.rows, drafts, strict=True):
            row["draft"] = self.save(picture)
        scores = [j.score for j in verdict]
        self.remember([j.key for j in verdict], list(drafts), verdict.prompts, scores, verdict.fingerprint)
        self.tell(self.rows)

    def compare(self, oracle: Oracle, improved: Tensor) -> dict[int, float]:
        """Score the teacher's pictures [R, H, W, C] of the rejected drafts, watched; by their places.

        A cascade compares like with like: its heavy oracle is asked where it has scored the draft. The light one is often wrong
        about draft and improvement in the same direction, and where the heavy one rejected a draft, that is upwards.
        """
        rows = self.verdict.rejected
        self._saved = 0  # of the teacher's pictures, too, as many get files as of the drafts
        prompts = [self.verdict.prompts[row] for row in rows]
        keys = picture_keys(improved, prompts, oracle.fingerprint())
        asked = [place for place, row in enumerate(rows) if row in self.verdict.asked]
        scores, files = self.scores(oracle, [improved], prompts, keys, rows, asked=asked)
        for row, key, file in zip(rows, keys, files, strict=True):
            self.rows[row] |= {"improved": file, "improved_key": key}
        return dict(zip(rows, scores, strict=True))

    def whole_of(self, result: Verdict, costs: dict[str, float | None]) -> dict[str, Any]:
        """All of it, with the verdict after the comparison."""
        kept = ("draft", "improved", "improved_key")
        rows = pictures_of(result, [row["passes"] for row in self.rows])
        rows = [{**new, **{name: old[name] for name in kept}} for new, old in zip(rows, self.rows, strict=True)]
        return self.whole(result, rows, costs=costs, calibration=None)


def pictures_of(verdict: Verdict, passes: Sequence[bool], baselines: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """What the board is told of each picture, without its files."""
    return [
        {
            "index": j.index, "key": j.key, "score": number(j.score), "threshold": number(j.threshold),
            "passes": passes[j.index], "decision": j.decision, "override": j.override, "prompt": j.prompt,
            "seed": j.seed if j.seed is None or j.seed < _PLAIN_INTEGERS else str(j.seed), "nfe": number(j.nfe),
            "draft_score": number(j.draft_score), "baseline": number(baselines[j.index]) if baselines else None,
            "draft": None, "improved": None, "improved_key": "",
        }
        for j in verdict
    ]  # fmt: skip


def baselines_of(gate: Gate, mode: str, value: float, count: int) -> list[float] | None:
    """What "expected gain" measures ``value`` from, a picture; None in other modes."""
    return [gate.threshold_of(i) + value for i in range(count)] if mode == "expected gain" else None


def calibration_of(calibration: Calibration | None) -> dict[str, Any] | None:
    """The calibration's scores as evenly spaced quantiles, for the histogram."""
    if calibration is None:
        return None
    if calibration.published:
        return {"scores": [score for _, score in calibration.published]}
    scores = sorted(score for score in calibration.scores if math.isfinite(score))
    if len(scores) > _QUANTILES:
        scores = [quantile(scores, i / (_QUANTILES - 1)) for i in range(_QUANTILES)]
    return {"scores": scores} if scores else None


def number(value: float | None) -> float | None:
    """A number as every JSON reader takes it."""
    return value if value is not None and math.isfinite(value) else None


def _picture(image: Tensor) -> Image.Image:
    values = (as_pictures(image[None])[0].nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Image.fromarray(values)


def _small(picture: Image.Image) -> Image.Image:
    """``picture`` itself, where it is small already."""
    if max(picture.size) > THUMBNAIL:
        picture = picture.copy()
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture


def _save(image: Tensor) -> dict[str, Any] | None:
    """Small pictures as PNG, large ones as JPEG, with a thumbnail; None where the disk takes no more."""
    picture = _picture(image)
    name = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=12).hexdigest()
    large = max(picture.size) > THUMBNAIL
    file, thumb = (f"{name}.jpg", f"{name}_small.jpg") if large else (f"{name}.png", f"{name}.png")
    folder = Path(folder_paths.get_temp_directory()) / _FOLDER
    try:
        _write(picture, folder / file)
        if large:
            _write(_small(picture), folder / thumb)
    except OSError:
        return None
    width, height = picture.size
    return {"filename": file, "subfolder": _FOLDER, "type": "temp", "width": width, "height": height, "thumb": thumb}


def _write(picture: Image.Image, file: Path) -> None:
    """Whole or not at all; not fsynced, as it needn't outlive ComfyUI."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"part_{file.name}")
        picture.save(part, quality=92) if file.suffix == ".jpg" else picture.save(part, compress_level=1)
        part.replace(file)
