"""Where the next evaluation pays: Pandora's problem over sources of drafts, for a whole batch. Torch-free; the caller draws.

Every picture of the batch may be tried again, by any source, at the source's cost in network evaluations. A try of source s is
worth it while its reservation value (Weitzman 1979) exceeds the score in hand:

    E[(X_s - z_s)+] = price * cost_s,      open argmax z_s while z_s > score in hand, else stop.

X_s is the predictive of ``samplers.beliefs``, so the rule learns as it draws (cf. arXiv 2510.01394, which stops best-of-N by a
learned reservation value). The artist sets a price, or an average budget from which the price follows: the one at which what is
expected to be spent is what is left. The teacher comes last: where its gain on the draft in hand is worth its cost, and no
student's try is worth more, the picture goes to it (``for_teacher``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .beliefs import Array, Gain, Predictive, Prior, fit_prior, predictive

Scores = dict[str, list[float]]
"""Scores of drafts by prompt."""
Choose = Callable[[Sequence[int], int], list[int]]
"""From candidates (places in ``Search.tries``) and how many are wanted to those that are kept."""
Levels = Callable[[Sequence[int], Sequence[int]], list[float]]
"""From candidates and those kept to the score that another draft would need to take the place of each kept one."""

BUDGET, PRICE = "budget", "price"  # what the artist may set
FAMILIAR = 8  # tries in the batch after which a source without a calibration is no longer tried for its own sake
_BISECTIONS = 20


@dataclass(frozen=True)
class Source:
    """Who can be asked for a draft.

    Attributes:
        cost: Network evaluations a draft.
        name: For people.
        drafts: How many there are for each picture; None where it never runs dry.
        scores: Of its calibration; empty where it is to be learned in the batch.
    """

    cost: float
    name: str = ""
    drafts: int | None = None
    scores: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Teacher:
    """Who may answer a draft at the end; ``gain`` is None where no pairs have told it yet."""

    cost: float
    gain: Gain | None = None


@dataclass(frozen=True)
class Try:
    """One draft: the ``number``-th (from 0) of ``source`` for the picture ``row``.

    Attributes:
        index: The reservation value that it was opened for; infinite for a source that nothing was known of.
        price: Score an evaluation at the time.
        score: What came of it; NaN before, and where the oracle can't tell.
    """

    row: int
    source: int
    number: int
    index: float
    price: float
    score: float = float("nan")


class Search:
    """The state of a batch: ``wanted`` says what to draw next, ``tell`` takes the scores, until nothing is wanted any more.

    Args:
        groups: Of each picture what may be exchanged for it: pictures of one group (one prompt, drawn over the same) share what
            is learned, and the best of all their drafts are kept.
        budget: Average evaluations a picture, teacher included; or
        price: score that an evaluation must bring. One of the two.
        most: Evaluations that a single picture's drafts may take; 0 for no limit. The teacher's come on top.
        comparable: Whether one group's scores say something of another's.
        choose: Which of a group's candidates are kept; the best by score without.
        levels: What another draft must beat, where that isn't the score of what is kept.

    Raises:
        ValueError: There is no source, or not one of budget and price, or the budget doesn't reach for one draft a picture.
    """

    def __init__(
        self, sources: Sequence[Source], groups: Sequence[int], *, budget: float | None = None, price: float | None = None,
        most: float = 0.0, comparable: bool = True, teacher: Teacher | None = None, choose: Choose | None = None,
        levels: Levels | None = None,
    ) -> None:  # fmt: skip
        if not sources or (budget is None) == (price is None):
            raise ValueError("Explore needs a source of drafts, and a budget or a price, one of the two.")
        self.sources, self.groups, self.teacher = list(sources), np.asarray(groups, dtype=np.int64), teacher
        self.costs = np.array([source.cost for source in sources])
        cheapest = float(self.costs.min())
        if budget is not None and budget < cheapest:
            raise ValueError(
                f"A budget of {budget:g} evaluations a picture doesn't reach for one draft, which takes {cheapest:g}: raise it."
            )
        if any(source.cost <= 0 and source.drafts is None for source in sources):
            raise ValueError("A draft that takes no evaluation could be drawn forever: raise the steps or the denoise.")
        self.budget, self.price = budget, price or 0.0
        self.most = max(most, cheapest) if most else np.inf
        self.comparable, self.choose, self.levels = comparable, choose or self._best, levels
        self.level = np.full(len(self.groups), -np.inf)  # of each picture, the score that another draft must beat
        self.tries: list[Try] = []
        self.spent = np.zeros(len(self.groups))
        self.seen = np.zeros((len(self.groups), len(self.sources)), dtype=np.int64)  # drafts of each picture by each source
        self.held = np.full(len(self.groups), -1)  # of each picture, the try that is in hand
        self._learned = 0  # scores of sources without a calibration
        self._fitted: tuple[int, Prior] | None = None  # the prior, after so many

    # --------------------------------------------------------------------------------------------------- what next

    def wanted(self) -> list[Try]:
        """The next round: at most one try a picture. Empty when the batch is done."""
        if len(self.groups) == 0:
            return []
        if not self.tries:
            return self._affordable(self._first())
        if strange := self._affordable(self._strangers()):
            return strange
        belief = self._belief()
        cheaper, self.price = (self.price, self.price) if self.budget is None else self._prices(belief)
        plans = self._plans(belief, self.price)
        going = plans.to_teacher(self._plans(belief, cheaper), np.inf if self.budget is None else self._left())
        wanted = ~going & (plans.index > self.level)
        urgency = np.where(wanted, plans.index - np.where(wanted, self.level, 0.0), -np.inf)
        rows = [int(row) for row in np.argsort(-urgency, kind="stable") if urgency[row] > 0]  # for where the budget ends
        tries = self._affordable([self._try(row, int(plans.source[row]), float(plans.index[row])) for row in rows])
        return tries or self._remainder(belief)

    def tell(self, tries: Sequence[Try], scores: Sequence[float]) -> None:
        """What came of a round."""
        changed = set()
        for opened, score in zip(tries, scores, strict=True):
            self.tries.append(replace(opened, score=float(score)))
            self.spent[opened.row] += self.costs[opened.source]
            self.seen[opened.row, opened.source] += 1
            changed.add(int(self.groups[opened.row]))
            self._learned += not self.sources[opened.source].scores
        for group in changed:
            self._hold(group)

    @property
    def in_hand(self) -> Array:
        """The score of what each picture has [B]; -inf where there is none, or it is no number."""
        scores = np.array([self.tries[i].score if i >= 0 else np.nan for i in self.held])
        return np.where(np.isfinite(scores), scores, -np.inf)

    def for_teacher(self) -> list[int]:
        """The pictures whose draft the teacher should answer, when no more drafts are wanted; those that gain most first."""
        if self.teacher is None or not len(self.groups):
            return []
        left = np.inf if self.budget is None else self.budget * len(self.groups) - self.spent.sum()
        if self.teacher.gain is None:
            rows = np.argsort(self.in_hand, kind="stable")[: self._lessons()].tolist()
        else:
            gain = self._gain()
            rows = [int(r) for r in np.argsort(-gain, kind="stable") if gain[r] > self.price * self.teacher.cost]
        return rows if np.isinf(left) else rows[: int((left + 1e-9) // max(self.teacher.cost, 1e-9))]

    def teachers_level(self) -> float:
        """The score from which on the teacher's answer isn't worth its cost; -inf without a teacher, inf where it always is."""
        teacher = self.teacher
        if teacher is None or teacher.gain is None:
            return -np.inf
        low, high = (teacher.gain.centre + side * 50 * np.sqrt(teacher.gain.variance) for side in (-1, 1))
        ends = teacher.gain.improvement(np.array([low, high])) > self.price * teacher.cost
        if ends[0] == ends[1]:
            return np.inf if ends[0] else -np.inf
        for _ in range(2 * _BISECTIONS):
            middle = (low + high) / 2
            worth = bool(teacher.gain.improvement(np.array([middle]))[0] > self.price * teacher.cost)
            low, high = (middle, high) if worth == ends[0] else (low, middle)
        return float(high)

    # ------------------------------------------------------------------------------------------------------- inside

    def indices(self) -> Array:
        """The reservation values now [B, S], for the report; -inf for what can't be opened."""
        return self._indices(self._belief(), self.price)

    def _first(self) -> list[Try]:
        """Everyone's first draft: by the source that promises most for its cost, or is cheapest where nothing is known."""
        belief = self._belief()
        if self.budget is not None and self._prior().known.any():
            self.price = self._prices(belief)[1]
        indices = self._indices(belief, self.price)
        chosen = np.where(np.isinf(indices).all(1), self.costs.argmin(), indices.argmax(1))
        if self.budget is not None and self.costs[chosen].sum() > self.budget * len(self.groups) + 1e-9:
            chosen[:] = self.costs.argmin()  # everyone gets one
        return [self._try(row, int(s), float(indices[row, s])) for row, s in enumerate(chosen)]

    def _strangers(self) -> list[Try]:
        """Tries of a source that nothing is known of yet, the cheapest first; none of one that would take more than half of the
        budget to know."""
        enough = max(2, min(FAMILIAR, len(self.groups)))
        seen, free = self.seen.sum(0), self._open()
        scored = np.bincount([t.source for t in self.tries if np.isfinite(t.score)], minlength=len(self.sources))
        for s in np.argsort(self.costs, kind="stable"):
            most = 2 * enough  # of which half may come to nothing
            if self.budget is not None and self.costs[s] > self.costs.min():
                most = int(min(most, self.budget * len(self.groups) / 2 // self.costs[s]))
            if self.sources[s].scores or scored[s] >= enough or seen[s] >= most or most < 2:  # one doesn't tell how drafts differ
                continue
            rows = [int(row) for row in np.argsort(self.in_hand, kind="stable") if free[row, s]]
            if rows:
                return [self._try(row, int(s), np.inf) for row in rows[: min(enough - scored[s], most - seen[s])]]
        return []

    def _try(self, row: int, source: int, index: float) -> Try:
        return Try(row, source, int(self.seen[row, source]), index, self.price)

    def _open(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which source has a draft left for which picture, within the picture's limit [B, S]."""
        drafts = np.array([np.inf if source.drafts is None else source.drafts for source in self.sources])
        return (self.seen < drafts) & (self.spent[:, None] + self.costs <= self.most + 1e-9)

    def _remainder(self, belief: Predictive) -> list[Try]:
        """One draft of the picture that gains most for its cost, where the price that spends all on average leaves a little."""
        if self.budget is None:
            return []
        left = self._left() - (self.teacher.cost * len(self.for_teacher()) if self.teacher and self.teacher.gain else 0.0)
        level = np.where(np.isfinite(self.level), self.level, belief.location.min(1))[:, None]
        bears = belief.improvement(level) / np.maximum(self.costs, 1e-9)
        indices = self._indices(belief, self.price)
        bears = np.where((indices > -np.inf) & (self.costs <= left + 1e-9), bears, 0.0)
        row, source = np.unravel_index(int(bears.argmax()), bears.shape)
        return [self._try(int(row), int(source), float(indices[row, source]))] if bears[row, source] > 0 else []

    def _affordable(self, tries: list[Try]) -> list[Try]:
        """As many of the first ones as the budget still pays."""
        if self.budget is None:
            return tries
        left, kept = self._left() + 1e-9, []
        for one in tries:
            if self.costs[one.source] <= left:
                left -= self.costs[one.source]
                kept.append(one)
        return kept

    def _lessons(self) -> int:
        """How many drafts go to a teacher of unknown gain, for it to be known from then on."""
        return max(1, len(self.groups) // FAMILIAR)

    def _left(self) -> float:
        """What the budget has left for drafts; at most half of it is kept for a teacher whose gain is to be learned."""
        assert self.budget is not None
        whole = self.budget * len(self.groups)
        learning = self.tries and self.teacher is not None and self.teacher.gain is None  # everyone's first draft comes first
        kept = self._lessons() * self.teacher.cost if learning and self.teacher else 0.0
        return float(whole - self.spent.sum() - (kept if kept <= whole / 2 else 0.0))

    def _best(self, candidates: Sequence[int], count: int) -> list[int]:
        return sorted(candidates, key=lambda i: (-np.nan_to_num(self.tries[i].score, nan=-np.inf), i))[:count]

    def _hold(self, group: int) -> None:
        """Give the chosen candidates of a group to its pictures: each keeps its own where it can."""
        rows = [int(row) for row in np.flatnonzero(self.groups == group)]
        candidates = [i for i, t in enumerate(self.tries) if self.groups[t.row] == group]
        chosen = self.choose(candidates, len(rows))
        own = {self.tries[i].row: i for i in reversed(chosen)}
        rest = [i for i in chosen if own[self.tries[i].row] != i]
        for row in rows:
            self.held[row] = own[row] if row in own else (rest.pop(0) if rest else -1)
        levels = self.levels(candidates, chosen) if self.levels else [self.tries[i].score for i in chosen]
        by_try = dict(zip(chosen, levels, strict=True))
        for row in rows:
            level = by_try.get(int(self.held[row]), -np.inf)
            self.level[row] = level if np.isfinite(level) else -np.inf

    def _tables(self) -> list[Scores]:
        """The scores to learn each source from: its calibration's, or the batch's own."""
        tables: list[Scores] = [dict(source.scores) for source in self.sources]
        for t in self.tries:
            if not self.sources[t.source].scores:
                tables[t.source].setdefault(f"\0{self.groups[t.row]}", []).append(t.score)
        return tables

    def _prior(self) -> Prior:
        if self._fitted is None or self._fitted[0] != self._learned:
            prior = fit_prior(self._tables())
            self._fitted = self._learned, prior if self.comparable else prior.apart()
        return self._fitted[1]

    def _belief(self) -> Predictive:
        """The predictive of every picture's next draft [B, S]."""
        shape = (int(self.groups.max()) + 1, len(self.sources))
        counts, sums, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for t in self.tries:
            if np.isfinite(t.score):
                place = self.groups[t.row], t.source
                counts[place] += 1
                sums[place] += t.score
        means = sums / np.maximum(counts, 1)
        for t in self.tries:
            if np.isfinite(t.score):
                squares[self.groups[t.row], t.source] += (t.score - means[self.groups[t.row], t.source]) ** 2
        belief = predictive(self._prior(), counts, means, squares)
        return Predictive(belief.location[self.groups], belief.scale[self.groups], belief.dof[self.groups])

    def _indices(self, belief: Predictive, price: float) -> Array:
        known = self._prior().known
        told = known | ~known.any()  # of a source that nobody knows there is nothing to hope for, but where nobody knows any
        return np.where(self._open() & told, belief.reservation(price * self.costs), -np.inf)

    def _gain(self) -> Array:
        """What the teacher is expected to add to each picture [B]; all there is to gain where there is no draft."""
        assert self.teacher is not None and self.teacher.gain is not None
        gain = self.teacher.gain.improvement(np.where(np.isfinite(self.in_hand), self.in_hand, self.teacher.gain.centre))
        return np.where(np.isfinite(self.in_hand), gain, np.inf)

    def _prices(self, belief: Predictive) -> tuple[float, float]:
        """The price at which what is expected to be spent from now on is what is left, as two that are as good as equal: at the
        lower one more would be spent, at the higher one not. 0 where the limits hold anyway."""
        left, learned = self._left(), self.teacher is not None and self.teacher.gain is not None
        if not learned and self._plans(belief, 0.0).total <= left:
            return 0.0, 0.0
        low, high = 1e-6, 1.0
        scale = float(np.max(belief.scale)) / max(float(self.costs.max()), 1e-9)
        while self._plans(belief, high * scale).total > left and high < 1e9:
            high *= 10
        for _ in range(_BISECTIONS):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if self._plans(belief, middle * scale).total > left else (low, middle)
        return low * scale, high * scale

    def _plans(self, belief: Predictive, price: float) -> _Plans:
        """What the rule means to do with each picture at this price, if beliefs stay as they are.

        A picture is tried by its best source until a draft reaches the index z: 1 / P(X > z) tries, within its limit. With x in
        hand that is worth max(x, z). Or it goes to the teacher at once, which is worth x + gain(x) - price cost.
        """
        indices = self._indices(belief, price)
        source, z = indices.argmax(1), indices.max(1)
        rows, costs = np.arange(len(source)), self.costs[source]
        chance = np.where(np.isinf(z), 0.0, belief.chance(np.where(np.isfinite(z), z, 0.0)[:, None])[rows, source])
        drafts = np.array([np.inf if each.drafts is None else each.drafts for each in self.sources])[source]
        most = np.minimum(drafts - self.seen[rows, source], np.floor((self.most - self.spent + 1e-9) / np.maximum(costs, 1e-9)))
        with np.errstate(divide="ignore", invalid="ignore"):
            tries = np.where(chance > 1e-12, -np.expm1(most * np.log1p(-np.minimum(chance, 1 - 1e-12))) / chance, most)
        spending = np.where(z > self.level, costs * tries, 0.0)
        preference = np.full(len(z), -np.inf)
        if self.teacher is not None and self.teacher.gain is not None:
            reachable = np.isfinite(self.in_hand)
            more = np.maximum(z - np.where(reachable, self.level, 0.0), 0.0)  # what trying on is worth
            preference = np.where(reachable, self._gain() - price * self.teacher.cost - more, -np.inf)
        return _Plans(source, z, spending, preference, self.teacher.cost if self.teacher else 0.0)


@dataclass(frozen=True)
class _Plans:
    """Of each picture: its best source and that's index; evaluations that trying on would take; and by how much going to the
    teacher at once is worth more than trying on."""

    source: np.ndarray[Any, np.dtype[np.int64]]
    index: Array
    spending: Array
    preference: Array
    cost: float

    @property
    def total(self) -> float:
        """Evaluations."""
        going = self.preference > 0
        return float(np.where(going, self.cost, self.spending).sum())

    def to_teacher(self, cheaper: _Plans, left: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Who goes to the teacher: whoever is worth more there; and of those who are worth the same here and there, who would go
        at the ``cheaper`` price, as many as ``left`` pays for."""
        going = self.preference > 0
        slack = left - self.total
        for row in np.argsort(-cheaper.preference, kind="stable"):
            more = self.cost - self.spending[row]
            if cheaper.preference[row] > 0 and not going[row] and more <= slack:
                going[row], slack = True, slack - more
        return going
