"""Explore on ComfyUI's models: drafts where they pay, judged as they come, the best kept together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..gate.selection import choose_together, newcomers_levels
from ..oracles.base import Oracle
from ..oracles.cascade import Cascade
from ..samplers.explore import Search, Teacher, Try
from ..samplers.explore import Source as Offer
from .fast_decode import fast_decode
from .guiders import step_cache
from .info import Info, mark_of, with_info
from .latents import family
from .pixels import as_pictures, decode, to_latents
from .progress import show_text, step_reports
from .prompts import for_rows
from .rows import Conditioning, Latent
from .scoring import cascaded, picture_keys, score, seen_of
from .sources import Draft, Easel, ModelSource, PictureSource, Source, draft_seed, joined

UNFORETOLD = 32  # evaluations a picture that the progress bar is of, where nobody set a budget


@dataclass(frozen=True)
class Terms:
    """What the artist sets. One of ``budget`` and ``price``; see ``samplers.explore.Search``."""

    seed: int = 0
    denoise: float = 1.0
    budget: float | None = None
    price: float | None = None
    most: float = 0.0
    variety: float = 0.0
    fast: bool = False


@dataclass(frozen=True)
class Explored:
    """What came out, a row a picture.

    Attributes:
        latent: With what later nodes need to know of it.
        images: [B, H, W, 3] as the VAE shows them; finished pictures as they were given, but for their size.
        search: Tries, scores, costs.
        seeds: Of what was kept.
        keys: Sixteen hex digits a picture, for the artist's word about it.
        names: Of the sources.
        asked: Which of what was kept a cascade's heavy oracle has scored.
        note: What to say of the models.
    """

    latent: Latent
    images: Tensor
    search: Search
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    names: tuple[str, ...]
    asked: tuple[int, ...] = ()
    note: str = ""


Watch = Callable[[Search, Sequence[int], Tensor], None]
"""Told after each round: the search, the pictures that have something new in hand, and these [R, H, W, 3]."""


class Explorer:
    """One run over a batch.

    Args:
        sources: By their sockets, from 0.
        vae: Shows the drafts to the oracle, and the artist.
        prompts: One a picture.

    Raises:
        ValueError: No source, sources of different latent spaces, videos, a budget below one draft, variety without features, or
            what a source itself can't do.
    """

    def __init__(
        self, sources: dict[int, Source], oracle: Oracle, vae: Any, prompts: list[str], latent: Latent, terms: Terms,
        teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        self.oracle, self.vae, self.prompts, self.terms = oracle, vae, prompts, terms
        self.places = list(sources)
        self._digests: dict[tuple[int, int], tuple[str, Conditioning]] = {}
        self.easels = {
            place: Easel(source, place, latent, terms.seed, terms.denoise)
            for place, source in sources.items() if isinstance(source, ModelSource)
        }  # fmt: skip
        self.finished = {place: source for place, source in sources.items() if isinstance(source, PictureSource)}
        self.latent = next(iter(self.easels.values())).plan.latent if self.easels else latent
        self.total = len(self.latent["samples"])
        _same_space(self.easels)
        if self.latent["samples"].ndim == 5 and self.latent["samples"].shape[2] > 1:
            raise ValueError("Explore judges pictures, and these latents are videos: take Student Sampler and Judge.")
        self.names = tuple(_name(sources[place], place, self.easels.get(place)) for place in self.places)
        offers = [self._offer(place) for place in self.places]
        self.search = Search(
            offers, self._groups(), budget=terms.budget, price=terms.price, most=terms.most,
            comparable=oracle.comparable_across_prompts, teacher=teacher, choose=self._choose if terms.variety else None,
            levels=self._levels if terms.variety else None,
        )  # fmt: skip
        if terms.variety and self.finished and self.easels and not oracle.has_features:
            raise ValueError(
                f"{oracle.name} shows no features to tell finished pictures and drafts apart by: set variety to 0, or take a "
                "CLIP, PickScore, HPSv2 or an aesthetic predictor."
            )
        self.features: list[Tensor] = []  # of each try, where variety counts
        self.drafts: list[Draft | None] = []  # of each try; None of a finished picture
        self.asked: set[int] = set()  # tries that a cascade's heavy oracle has scored
        self.size: tuple[int, int] | None = None

    # ------------------------------------------------------------------------------------------------------- the run

    def run(self, watch: Watch | None = None) -> Explored:
        """Draw until no draft is worth its price any more, and keep the best."""
        bar, rounds = comfy.utils.ProgressBar(1000), 0
        while tries := self.search.wanted():
            comfy.model_management.throw_exception_if_processing_interrupted()
            before, rounds = self.search.held.copy(), rounds + 1
            show_text(f"round {rounds}: {len(tries)} of {self.total} pictures are worth another draft")
            ordered, pictures = self._round(tries, bar)
            scores = self._scores(ordered, pictures)
            first = len(self.search.tries)
            self.search.tell(ordered, scores)
            if watch is not None:
                new = [row for row in range(self.total) if self.search.held[row] != before[row]]
                fresh = [row for row in new if self.search.held[row] >= first]
                watch(self.search, fresh, pictures[[int(self.search.held[row]) - first for row in fresh]])
        return self._explored()

    def _round(self, tries: Sequence[Try], bar: Any) -> tuple[list[Try], Tensor]:
        """The tries by source, and their pictures."""
        ordered, pictures = list[Try](), list[Tensor]()
        for number, place in enumerate(self.places):
            own = sorted((t for t in tries if t.source == number), key=lambda t: t.row)
            if not own:
                continue
            if place in self.easels:
                easel = self.easels[place]
                drafts = easel.draw(own, self._callback(easel, bar, len(own)))
                shown = self._look(easel, joined(drafts))
                self.drafts += drafts
            else:
                shown = self.finished[place].pictures(own, self.total, self._size())
                self.drafts += [None] * len(own)
            if self.terms.variety:
                self.features += list(self._features(own, shown))
            ordered += own
            pictures.append(shown)
        if len({picture.shape[1:] for picture in pictures}) > 1:
            raise ValueError("The sources' pictures differ in size: let all of them draw the same size, or take another VAE.")
        return ordered, torch.cat(pictures)

    def _scores(self, tries: Sequence[Try], pictures: Tensor) -> list[float]:
        """What the oracle says of the round's pictures. A cascade's threshold is what each must beat."""
        prompts = [self.prompts[t.row] for t in tries]
        if not isinstance(self.oracle, Cascade):
            return score(self.oracle, pictures, prompts)
        beaten = [float(self.search.level[t.row]) for t in tries]
        levels = [level if math.isfinite(level) else self.oracle.threshold for level in beaten]
        judged = cascaded(self.oracle, [pictures], prompts, lambda _scores: levels)
        self.asked |= {len(self.search.tries) + place for place in judged.asked}
        return judged.scores

    def _look(self, easel: Easel, samples: Tensor) -> Tensor:
        """What the oracle sees of drafts [R, C, ...]: [R, H, W, 3]."""
        latent = {"samples": samples}
        shown = fast_decode(easel.source.model, latent) if self.terms.fast else decode(self.vae, latent)
        self.size = (int(shown.shape[1]), int(shown.shape[2]))
        return as_pictures(shown)

    def _size(self) -> tuple[int, int]:
        """Height and width of the batch's pictures: a model's, or those of the first finished ones where no model draws."""
        if self.size is None and not self.easels:
            self.size = tuple(next(iter(self.finished.values())).images.shape[1:3])  # type: ignore[assignment]
        if self.size is None:
            self.size = tuple(decode(self.vae, {"samples": self.latent["samples"][:1]}).shape[1:3])  # type: ignore[assignment]
            assert self.size is not None
        return self.size

    def _callback(self, easel: Easel, bar: Any, pictures: int) -> Any:
        """ComfyUI's preview callback: a bar over all that is expected to be spent, stopped within a step."""
        cost = self.search.costs[self.places.index(easel.place)] * pictures
        spent, expected = float(self.search.spent.sum()), (self.terms.budget or UNFORETOLD) * self.total

        def report(step: int, total: int, preview: Any) -> None:
            bar.update_absolute(min(999, round(1000 * (spent + cost * step / total) / max(expected, 1.0))), 1000, preview)

        return step_reports(easel.plan.model, report)

    # ---------------------------------------------------------------------------------------------------- what counts

    def _offer(self, place: int) -> Offer:
        if place in self.finished:
            source = self.finished[place]
            return Offer(source.cost, self.names[self.places.index(place)], source.drafts(self.total))
        easel, scores = self.easels[place], dict[str, list[float]]()
        if (calibration := easel.source.calibration) is not None:
            if calibration.oracle != self.oracle.fingerprint():
                calibration.require_oracle(*self.oracle.unit())
            calibration.require_student(easel.plan.student, easel.plan.schedule)
            for prompt, score in zip(calibration.prompts, calibration.scores, strict=False):
                scores.setdefault(prompt, []).append(score)
        return Offer(easel.plan.evaluations(), self.names[self.places.index(place)], None, scores)

    def _groups(self) -> list[int]:
        """Of each picture, who may be exchanged for it: the same prompt, drawn over the same, told the same."""
        groups: list[int] = []
        leaders: list[int] = []
        for row in range(self.total):
            found = next((i for i, leader in enumerate(leaders) if self._exchangeable(leader, row)), len(leaders))
            leaders += [row] * (found == len(leaders))
            groups.append(found)
        self._digests.clear()
        return groups

    def _exchangeable(self, a: int, b: int) -> bool:
        samples, mask = self.latent["samples"], self.latent.get("noise_mask")
        if self.prompts[a] != self.prompts[b] or not torch.equal(samples[a], samples[b]):
            return False
        if mask is not None and mask.ndim > 2 and len(mask) > 1 and not torch.equal(mask[a % len(mask)], mask[b % len(mask)]):
            return False
        said = [words for easel in self.easels.values() for words in easel.words]
        return all(self._told(words, a) == self._told(words, b) for words in said)

    def _told(self, words: Conditioning, row: int) -> str:
        """A digest of what a conditioning tells picture ``row``."""
        if (id(words), row) not in self._digests:
            digest, told = hashlib.sha256(), for_rows(words, [row], self.total, self.latent["samples"].ndim, {})
            _digest(digest, told, 0)
            self._digests[id(words), row] = digest.hexdigest(), told  # held, so that no other object can take an identity in it
        return self._digests[id(words), row][0]

    def _features(self, tries: Sequence[Try], pictures: Tensor) -> Tensor:
        """What distances are between: the oracle's unit features [R, D], or else the latents."""
        drawn = [draft for draft in self.drafts[-len(tries) :] if draft is not None]
        return seen_of(self.oracle, [pictures], [{"samples": joined(drawn)}] if drawn else [])

    def _choose(self, candidates: Sequence[int], count: int) -> list[int]:
        chosen = choose_together(*self._scores_and_distances(candidates), count, self.terms.variety)
        return [candidates[i] for i in chosen]

    def _levels(self, candidates: Sequence[int], kept: Sequence[int]) -> list[float]:
        places = [candidates.index(i) for i in kept]
        return newcomers_levels(*self._scores_and_distances(candidates), places, self.terms.variety)

    def _scores_and_distances(self, candidates: Sequence[int]) -> tuple[list[float], Any]:
        seen = torch.stack([self.features[i] for i in candidates])
        return [self.search.tries[i].score for i in candidates], (1 - seen @ seen.T).numpy()

    # ------------------------------------------------------------------------------------------------------- the end

    def _explored(self) -> Explored:
        held = [self.search.tries[i] for i in self.search.held]
        drafts = [self.drafts[i] for i in self.search.held]
        samples, images = self._kept(held, drafts)
        seeds = tuple(draft_seed(self.terms.seed, self.places[t.source], t.number) for t in held)
        latent = with_info(self.latent, samples, self._info())
        keys = tuple(self._key(t, seed, images[row]) for row, (t, seed) in enumerate(zip(held, seeds, strict=True)))
        asked = tuple(row for row in range(self.total) if int(self.search.held[row]) in self.asked)
        return Explored(latent, images, self.search, seeds, keys, self.names, asked, self._note())

    def _note(self) -> str:
        caches = {self.names[self.places.index(place)]: step_cache(easel.plan.model) for place, easel in self.easels.items()}
        return " ".join(
            f"{name} draws with {cache}, which skips steps by the batch: its drafts depend on which were drawn together."
            for name, cache in caches.items() if cache
        )  # fmt: skip

    def _kept(self, held: Sequence[Try], drafts: Sequence[Draft | None]) -> tuple[Tensor, Tensor]:
        """Latents and pictures of what is in hand: drafts as the VAE shows them, finished pictures as the VAE encodes them."""
        rows = [row for row, draft in enumerate(drafts) if draft is not None]
        others = [row for row, draft in enumerate(drafts) if draft is None]
        parts: dict[int, tuple[Tensor, Tensor]] = {}
        if rows:
            samples = joined([draft for draft in drafts if draft is not None])
            shown = decode(self.vae, {"samples": samples})
            parts |= {row: (samples[i], shown[i]) for i, row in enumerate(rows)}
        for row in others:
            picture = self.finished[self.places[held[row].source]].pictures([held[row]], self.total, self._size())
            parts[row] = to_latents(self.vae, picture)[0].to(comfy.model_management.intermediate_device()), picture[0]
        if not parts:
            return self.latent["samples"], torch.zeros(0, 64, 64, 3)  # of no picture
        return torch.stack([parts[row][0] for row in range(self.total)]), torch.stack(
            [as_pictures(parts[row][1][None])[0] for row in range(self.total)]
        )

    def _info(self) -> Info:
        nfe = self._spent()
        plans = [easel.plan for easel in self.easels.values()]
        if not plans:
            return Info(nfe, self.terms.seed, torch.zeros_like(self.latent["samples"]), 1.0, "")
        info = plans[0].info(nfe, self.terms.seed)
        if len(plans) + len(self.finished) == 1:
            return info
        schedule = "; ".join(f"{plan.student} {plan.schedule}" for plan in plans)
        student = hashlib.sha256(repr([*((p.student, p.schedule) for p in plans), *self.names]).encode()).hexdigest()[:16]
        return replace(info, student=student, schedule=f"the best of several: {schedule}")

    def _spent(self) -> tuple[float, ...]:
        """What each picture's drafts really cost."""
        spent = [0.0] * self.total
        for opened, draft in zip(self.search.tries, self.drafts, strict=True):
            spent[opened.row] += draft.nfe if draft is not None else float(self.search.costs[opened.source])
        return tuple(spent)

    def _key(self, kept: Try, seed: int, picture: Tensor) -> str:
        """The name of a draft, by what it is made from; of a finished picture, by its pixels. As ``board.draft_keys``."""
        place = (self.latent.get("batch_index") or range(self.total))[kept.row]
        easel, over = self.easels.get(self.places[kept.source]), self.latent["samples"][kept.row]
        if easel is None:
            return picture_keys([picture], [self.prompts[kept.row]], self.oracle.fingerprint())[0]
        who = (easel.plan.student, easel.plan.schedule, mark_of(over) if over.any() else "")
        fact = (*who, seed, place, self.prompts[kept.row], tuple(over.shape), self.terms.denoise)
        return hashlib.sha256(repr(fact).encode()).hexdigest()[:16]


def _same_space(easels: dict[int, Easel]) -> None:
    spaces = {place: family(easel.plan.model) for place, easel in easels.items()}
    if len(set(spaces.values())) > 1:
        listed = ", ".join(f"source {place + 1}: {space}" for place, space in spaces.items())
        raise ValueError(
            f"The sources draw in different latent spaces ({listed}): let the others draw by themselves, and connect their "
            "decoded pictures through Finished Pictures."
        )


def _name(source: Source, place: int, easel: Easel | None) -> str:
    if name := " ".join(source.name.replace("|", "/").split()):  # it stands in a table
        return name
    return f"{chr(65 + place)} ({easel.plan.schedule.split(' at ')[0] if easel else 'finished'})"


def _digest(digest: Any, value: Any, depth: int) -> None:
    """Add a conditioning's values: tensors, texts and numbers by content, hints by their picture, other objects by identity."""
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), str(value.dtype))).encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for item in value:
            _digest(digest, item, depth)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _digest(digest, value[key], depth)
    elif isinstance(value, (str, int, float, bool, bytes)) or value is None:
        digest.update(repr(value).encode())
    elif (inner := getattr(value, "__dict__", None)) is not None and depth < 2 and type(value).__module__.startswith("comfy."):
        held = {key: item for key, item in inner.items() if isinstance(item, (Tensor, list, tuple, str, int, float, bool))}
        _digest(digest, held, depth + 1)
        if previous := inner.get("previous_controlnet"):
            _digest(digest, previous, depth)
    else:
        digest.update(str(id(value)).encode())


