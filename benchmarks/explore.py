"""Is it worth spending where it pays? Explore beside everything else at equal cost, on prompts that training never showed.

Four pictures of each prompt are wanted. All are drawn once (``explore_pictures``); policies then choose among them by the gate's
oracle, and the judge, which no policy saw, measures. What Explore is told beforehand (calibrations, what variety is worth) comes
from training prompts. Intervals are by prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..gate.selection import best_together, choose_together, newcomers_levels
from ..samplers.beliefs import fit_gain
from ..samplers.explore import Search, Source, Teacher
from ..world.recipe.concepts import held_out_prompts, training_prompts
from ..world.recipe.frechet import frechet, reference
from .explore_pictures import CHUNK, PLACES, REDRAWN, SPOILED, STUDENTS, Pool, pools
from .figures import Array, Claim, Figures, bootstrap, jackknife_ratio, print_claims, print_table, spread

BUDGET = 12.0  # average evaluations a picture
BATCH = 4  # prompts that an artist draws together
BUDGETS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
VARIETIES = (0.0, 5.0, 10.0, 12.5, 15.0, 17.5, 20.0)
MORE_VARIETY = 1.05  # than adaptive collaboration's, on training prompts: what the setting is chosen for
BOTH = ("consistency", "SiD")
TWO_STEPS = "consistency, 2 steps"
Fixed = Sequence[tuple[str, int]]
"""Sources and how many drafts of each."""


@dataclass(frozen=True)
class Kept:
    """What a policy ended with: judge's scores [prompts, places], features [prompts, places, D], mean evaluations a picture."""

    quality: Array
    features: Array
    gate: Array
    nfe: float

    @property
    def scores(self) -> Array:
        """The judge's, by prompt."""
        return np.asarray(self.quality.mean(1))

    def spread(self, index: Array | slice = slice(None)) -> float:
        """Mean of 1 - cosine between the judge's features of two pictures of one prompt."""
        return spread(self.features[index])

    def distance(self, index: Array) -> float:
        """Frechet distance to the real pictures."""
        return frechet(self.features[index].reshape(-1, self.features.shape[-1]), *reference())


def _kept(pool_rows: Sequence[tuple[Array, Array, Array]], nfe: float) -> Kept:
    quality, features, gate = (np.asarray(part) for part in zip(*pool_rows, strict=True))
    shape = (-1, PLACES)
    return Kept(quality.reshape(shape), features.reshape(*shape, features.shape[-1]), gate.reshape(shape), nfe)


def _picture(pool: Pool, row: int, number: int) -> tuple[Array, Array, Array]:
    return pool.quality[row, number], pool.features[row, number], pool.gate[row, number]


# ---------------------------------------------------------------------------------------------------------- policies


def best_of(drawn: dict[str, Pool], fixed: Fixed, variety: float | None = None) -> Kept:
    """Of a fixed number of drafts each picture's best; with ``variety`` a prompt's pictures are chosen together from all."""
    rows = len(drawn[fixed[0][0]].gate)
    candidates = [[(name, row, n) for name, count in fixed for n in range(count)] for row in range(rows)]
    nfe = sum(drawn[name].nfe * count for name, count in fixed)
    chosen: list[tuple[str, int, int]] = []
    for first in range(0, rows, PLACES):
        if variety is None:
            chosen += [max(own, key=lambda c: drawn[c[0]].gate[c[1], c[2]]) for own in candidates[first : first + PLACES]]
            continue
        together = [c for own in candidates[first : first + PLACES] for c in own]
        scores = [float(drawn[name].gate[row, n]) for name, row, n in together]
        seen = np.stack([drawn[name].seen[row, n] for name, row, n in together])
        chosen += [together[i] for i in best_together(scores, seen, PLACES, variety)]
    return _kept([_picture(drawn[name], row, n) for name, row, n in chosen], nfe)


def adaptive(drawn: dict[str, Pool], fixed: Fixed, budget: float) -> Kept:
    """Algorithm 1 on the best of ``fixed`` drafts: what the budget leaves regenerates the worst, and the better is kept."""
    drafts, teacher = best_of(drawn, fixed), drawn[REDRAWN]
    gate, count = drafts.gate.ravel(), drafts.gate.size
    share = min(1.0, max(0.0, (budget - drafts.nfe) / teacher.nfe))
    worst = np.argsort(gate, kind="stable")[: round(share * count)]
    rows = [(q, f, g) for q, f, g in zip(drafts.quality.ravel(), drafts.features.reshape(count, -1), gate, strict=True)]
    for row in worst:
        if teacher.gate[row, 0] > gate[row]:
            rows[row] = _picture(teacher, int(row), 0)
    return _kept(rows, drafts.nfe + share * teacher.nfe)


@dataclass(frozen=True)
class Knowledge:
    """What training prompts told: scores of each source by prompt, and pairs of draft and teacher's answer."""

    scores: dict[str, dict[str, list[float]]]
    pairs: tuple[list[float], list[float]]

    @classmethod
    def of(cls, drawn: dict[str, Pool], student: str = BOTH[0], drafts: int = 4) -> Knowledge:
        """From ``drafts`` drafts a place of training prompts."""
        prompts = range(len(drawn[student].gate) // PLACES)
        scores = {
            name: {str(p): pool.gate[p * PLACES : (p + 1) * PLACES, :drafts].ravel().tolist() for p in prompts}
            for name, pool in drawn.items()
        }  # fmt: skip
        return cls(scores, (drawn[student].gate[:, 0].tolist(), drawn[REDRAWN].gate[:, 0].tolist()))


def explored(
    drawn: dict[str, Pool], names: Sequence[str], known: Knowledge | None, *, budget: float | None = None,
    price: float | None = None, variety: float = 0.0, teacher: bool = False,
) -> Kept:  # fmt: skip
    """Explore over batches of a few prompts, as an artist draws them."""
    rows, spent = list[tuple[Array, Array, Array]](), 0.0
    for first in range(0, len(drawn[names[0]].gate), BATCH * PLACES):
        part, cost = _batch(drawn, names, known, first, budget, price, variety, teacher)
        rows, spent = rows + part, spent + cost
    return _kept(rows, spent / len(rows))


def _batch(
    drawn: dict[str, Pool], names: Sequence[str], known: Knowledge | None, first: int, budget: float | None, price: float | None,
    variety: float, teacher: bool,
) -> tuple[list[tuple[Array, Array, Array]], float]:  # fmt: skip
    rows = range(first, min(first + BATCH * PLACES, len(drawn[names[0]].gate)))
    sources = [Source(drawn[n].nfe, n, drawn[n].gate.shape[1], known.scores[n] if known else {}) for n in names]

    def told(candidates: Sequence[int]) -> tuple[list[float], Array]:
        tries = [search.tries[i] for i in candidates]
        seen = np.stack([drawn[names[t.source]].seen[first + t.row, t.number] for t in tries])
        return [t.score for t in tries], 1 - seen @ seen.T

    def choose(candidates: Sequence[int], count: int) -> list[int]:
        return [candidates[i] for i in choose_together(*told(candidates), count, variety)]

    def levels(candidates: Sequence[int], kept: Sequence[int]) -> list[float]:
        return newcomers_levels(*told(candidates), [candidates.index(i) for i in kept], variety)

    search = Search(
        sources, [i // PLACES for i in range(len(rows))], budget=budget, price=price, choose=choose if variety else None,
        levels=levels if variety else None,
        teacher=Teacher(drawn[REDRAWN].nfe, fit_gain(*known.pairs)) if teacher and known else None,
    )  # fmt: skip
    while tries := search.wanted():
        search.tell(tries, [float(drawn[names[t.source]].gate[first + t.row, t.number]) for t in tries])
    held = [search.tries[i] for i in search.held]
    kept = [_picture(drawn[names[t.source]], first + t.row, t.number) for t in held]
    answered = search.for_teacher()
    for row in answered:
        answer = _picture(drawn[REDRAWN], first + row, 0)
        kept[row] = answer if answer[2] > kept[row][2] else kept[row]
    return kept, float(search.spent.sum()) + len(answered) * drawn[REDRAWN].nfe


# ------------------------------------------------------------------------------------------------------------ claims


def minus(a: Kept, b: Kept) -> Claim:
    """The judge's mean score of ``a`` less that of ``b``."""
    gap = a.scores - b.scores
    return bootstrap(lambda index: float(gap[index].mean()), len(gap))


def nfe_ratio(curve: Sequence[Kept], other: Kept) -> Claim:
    """The cost at which ``curve`` (rising in cost) first is as good as ``other``, over the cost of that; linear in between.

    Where it never is, its dearest point counts, and the ratio is a lower bound.
    """
    costs, scores = np.array([kept.nfe for kept in curve]), np.stack([kept.scores for kept in curve])

    def ratio(index: Array) -> float:
        levels, target = np.maximum.accumulate(scores[:, index].mean(1)), other.scores[index].mean()
        if target >= levels[-1]:
            return float(costs[-1] / other.nfe)
        at = int(np.argmax(levels >= target))
        if at == 0:
            return float(costs[0] / other.nfe)
        part = (target - levels[at - 1]) / (levels[at] - levels[at - 1])
        return float((costs[at - 1] + part * (costs[at] - costs[at - 1])) / other.nfe)

    return bootstrap(ratio, scores.shape[1])


def best_fixed(drawn: dict[str, Pool], names: Sequence[str], budget: float) -> Fixed:
    """The best fixed number of drafts over all sources, of those that cost ``budget``: by the judge, on training prompts."""
    options: list[Fixed] = [[(name, int(budget // drawn[name].nfe))] for name in names]
    cheap = [name for name in names if drawn[name].nfe == 1]
    if len(cheap) > 1:
        options.append([(name, int(budget // len(cheap))) for name in cheap])
    there = [o for o in options if all(0 < count <= drawn[name].gate.shape[1] for name, count in o)]
    return max(there, key=lambda fixed: best_of(drawn, fixed).quality.mean())


def fixed_variety(drawn: dict[str, Pool], known: Knowledge, wanted: float) -> float:
    """The least variety at which Explore's pictures differ by ``wanted`` on training prompts."""
    for variety in VARIETIES:
        if explored(drawn, BOTH, known, budget=BUDGET, variety=variety).spread() >= wanted:
            return variety
    return VARIETIES[-1]


# --------------------------------------------------------------------------------------------------------------- all


def run(
    quick: bool = False, plot: Path | None = None, say: Callable[[str], None] = print, work: Path | None = None
) -> Figures:
    """Measure, print the tables and the claims, draw the plot.

    Args:
        work: Keeps the drawn pictures' scores; a stopped benchmark goes on with what is there.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        taught = pools([p.text() for p in training_prompts(16 if quick else 64, seed=77)], 90_000, folder, say)
        held = [p.text() for p in held_out_prompts()][: 32 if quick else None]
        drawn = pools(held, 10_000, folder, say, (*STUDENTS, REDRAWN))
        far = pools(held[:CHUNK], 10_000, folder, say, (SPOILED, REDRAWN))
    return compare(taught, drawn, far, plot, say)


def compare(
    taught: dict[str, Pool], drawn: dict[str, Pool], behind: dict[str, Pool], plot: Path | None, say: Callable[[str], None]
) -> Figures:
    """Every policy on the same pictures.

    Args:
        behind: Pictures of a student far behind its teacher.
    """
    known = Knowledge.of(taught)
    usual = [(TWO_STEPS, 1)]
    variety = fixed_variety(taught, known, MORE_VARIETY * adaptive(taught, usual, BUDGET).spread())
    opponent = best_fixed(taught, (*BOTH, TWO_STEPS), BUDGET)
    say(f"variety {variety:g}; best fixed: {opponent}")
    price = _price(taught, known)
    table = methods(drawn, known, variety, price)
    curve = [explored(drawn, BOTH, known, budget=budget) for budget in BUDGETS]
    plain, varied, old = table[EXPLORE], table[VARIED], table[ADAPTIVE]
    best, count = best_of(drawn, opponent), len(plain.quality)
    figures = Figures("explore", {
        "prompts": count, "pictures a prompt": PLACES, "budget": BUDGET, "variety": variety, "best fixed": opponent,
        "training prompts": len(taught[BOTH[0]].gate) // PLACES, "prompts in a batch": BATCH, "price": price,
    })  # fmt: skip
    figures.rows = [row(name, kept) for name, kept in table.items()]
    figures.claims = {
        "explore_minus_best_of_n": minus(plain, best),
        "explore_minus_adaptive": minus(varied, old),
        "explore_diversity_to_adaptive": bootstrap(lambda i: varied.spread(i) / old.spread(i), count),
        "explore_frechet_to_adaptive": jackknife_ratio(varied.distance, old.distance, count),
        "explore_nfe_ratio_to_best_of_n": nfe_ratio(curve, best),
        "explore_nfe_ratio_to_best_of_one_student": nfe_ratio(curve, best_of(drawn, [(BOTH[0], int(BUDGET))])),
        "explore_without_variety_minus_adaptive": minus(plain, old),
    }
    far = far_teacher(taught, behind)
    figures.claims |= far.claims
    figures.findings = {
        "curve": [{"nfe": kept.nfe, "judge": float(kept.quality.mean())} for kept in curve],
        "best of n": [_point(drawn, [(BOTH[0], n)]) for n in (1, 2, 4, 6, 8, 12)],
        "best of n of two": [_point(drawn, [(name, n // 2) for name in BOTH]) for n in (2, 4, 6, 8, 12)],
        "variety": [_frontier(explored(drawn, BOTH, known, budget=BUDGET, variety=v), v) for v in VARIETIES],
        "a teacher far ahead": far.rows,
    }  # fmt: skip
    report(figures)
    if plot:
        draw_plot(figures, plot)
        say(f"plot: {plot}")
    return figures


ADAPTIVE = "adaptive: one draft, the worst regenerated, better kept"
EXPLORE, VARIED = "Explore, two students", "Explore, with variety"


def _price(taught: dict[str, Pool], known: Knowledge) -> float:
    """The price at which Explore spends half the budget, on training prompts: found by trying."""
    prices = [0.02, 0.05, 0.1, 0.2, 0.4]
    costs = [explored(taught, BOTH, known, price=price).nfe for price in prices]
    return prices[int(np.argmin(np.abs(np.array(costs) - BUDGET / 2)))]


def methods(drawn: dict[str, Pool], known: Knowledge, variety: float, price: float) -> dict[str, Kept]:
    """The table's rows."""
    one, two = BOTH[0], [(name, 6) for name in BOTH]
    return {
        "student, one draft of two steps": best_of(drawn, [(TWO_STEPS, 1)]),
        ADAPTIVE: adaptive(drawn, [(TWO_STEPS, 1)], BUDGET),
        "teacher": best_of(drawn, [(REDRAWN, 1)]),
        "best of 6 two-step drafts": best_of(drawn, [(TWO_STEPS, 6)]),
        "best of 6 one-step drafts": best_of(drawn, [(one, 6)]),
        "best of 12 one-step drafts": best_of(drawn, [(one, 12)]),
        "best of 4, then the worst regenerated": adaptive(drawn, [(one, 4)], 8.0),
        "best of 12, half from each of two students": best_of(drawn, two),
        "the best 4 of a prompt's 48": best_of(drawn, two, 0.0),
        "chosen together from a prompt's 48": best_of(drawn, two, variety),
        **{f"Explore, one student, {b:g}": explored(drawn, [one], known, budget=b) for b in (4.0, 8.0, 12.0)},
        **{f"Explore, two students, {b:g}": explored(drawn, BOTH, known, budget=b) for b in (4.0, 6.0)},
        EXPLORE: explored(drawn, BOTH, known, budget=BUDGET),
        "Explore, two students, no calibration": explored(drawn, BOTH, None, budget=BUDGET),
        f"Explore, two students, price {price:g}": explored(drawn, BOTH, known, price=price),
        "Explore, two students, then the teacher": explored(drawn, BOTH, known, budget=BUDGET, teacher=True),
        VARIED: explored(drawn, BOTH, known, budget=BUDGET, variety=variety),
        "Explore, with variety, 6": explored(drawn, BOTH, known, budget=6.0, variety=variety),
    }  # fmt: skip


@dataclass(frozen=True)
class Far:
    """A world in which the teacher is far ahead of the student."""

    rows: list[dict[str, Any]]
    claims: dict[str, Claim]


def far_teacher(taught: dict[str, Pool], drawn: dict[str, Pool]) -> Far:
    """The same with a student that was spoiled: best-of-N, adaptive, and Explore with the teacher in reach."""
    known = Knowledge.of(taught, SPOILED)
    table = {
        "spoiled student": best_of(drawn, [(SPOILED, 1)]),
        "best of 12": best_of(drawn, [(SPOILED, 12)]),
        "adaptive": adaptive(drawn, [(SPOILED, 1)], BUDGET),
        "Explore, no teacher": explored(drawn, [SPOILED], known, budget=BUDGET),
        "Explore, then the teacher": explored(drawn, [SPOILED], known, budget=BUDGET, teacher=True),
        "Explore, then the teacher, 20": explored(drawn, [SPOILED], known, budget=20.0, teacher=True),
        "teacher": best_of(drawn, [(REDRAWN, 1)]),
    }  # fmt: skip
    mine = table["Explore, then the teacher"]
    claims = {
        "far_explore_minus_best_of_n": minus(mine, table["best of 12"]),
        "far_explore_minus_adaptive": minus(mine, table["adaptive"]),
    }  # fmt: skip
    return Far([row(name, kept) for name, kept in table.items()], claims)


def row(name: str, kept: Kept) -> dict[str, Any]:
    """One line of the table."""
    claim = bootstrap(lambda index: float(kept.scores[index].mean()), len(kept.scores))
    return {
        "policy": name, "NFE": round(kept.nfe, 1), "judge": claim.value, "95 %": f"{claim.lo:.2f} to {claim.hi:.2f}",
        "oracle": float(kept.gate.mean()), "diversity": kept.spread(),
    }  # fmt: skip


def _point(drawn: dict[str, Pool], fixed: Fixed) -> dict[str, float]:
    kept = best_of(drawn, fixed)
    return {"nfe": kept.nfe, "judge": float(kept.quality.mean())}


def _frontier(kept: Kept, variety: float) -> dict[str, float]:
    return {"variety": variety, "judge": float(kept.quality.mean()), "diversity": kept.spread()}


def report(figures: Figures) -> None:
    """Print the tables and the claims."""
    print_table(figures.rows)
    print("\na student far behind its teacher:")
    print_table(figures.findings["a teacher far ahead"])
    print()
    print_claims(figures.claims)


def draw_plot(figures: Figures, path: Path) -> None:
    """Left: the judge's score over cost. Right: over variety, at the budget."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found, rows = figures.findings, {line["policy"]: line for line in figures.rows}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    left.margins(x=0.06)
    for name, colour in (("best of n", "#d08030"), ("best of n of two", "#a0522d"), ("curve", "#346eb4")):
        label = {"curve": "Explore, two students", "best of n": "best of n", "best of n of two": "best of n, two students"}[name]
        _line(left, found[name], "nfe", colour, label)
    for name, mark, label in ((ADAPTIVE, "s", "adaptive"), ("teacher", "^", "teacher")):
        left.plot(rows[name]["NFE"], rows[name]["judge"], mark, color="#555", label=label)
        right.plot(rows[name]["diversity"], rows[name]["judge"], mark, color="#555", label=label)
    left.set(xlabel="network evaluations a picture", ylabel="judge's score")
    frontier = found["variety"]
    _line(right, frontier, "diversity", "#346eb4", "Explore")
    for point in frontier[::2]:
        place = point["diversity"], point["judge"]
        right.annotate(f"{point['variety']:g}", place, textcoords="offset points", xytext=(5, 4), fontsize=8)
    right.set(xlabel=f"diversity of a prompt's pictures, at {figures.settings['budget']:g} evaluations")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center right" if axis is left else "upper right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line(axis: Any, points: Sequence[dict[str, float]], key: str, colour: str, label: str) -> None:
    axis.plot([p[key] for p in points], [p["judge"] for p in points], "o-", color=colour, label=label, markersize=4)
