"""What a search did, for people: how much was spent on whom, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..samplers.explore import Search


def in_words(search: Search, names: Sequence[str]) -> str:
    """The search in two sentences: what was drawn by whom, at which price, and what the teacher is for."""
    if not len(search.groups):
        return ""
    counts = Counter(t.source for t in search.tries)
    drawn = ", ".join(f"{counts[s]} by {names[s]}" for s in sorted(counts))
    average = float(search.spent.mean())
    words = f"Explored: {drawn}; {average:.4g} evaluations a picture at a price of {search.price:.3g} an evaluation."
    teacher = search.teacher
    if teacher is None:
        return words
    rows = search.for_teacher()
    if teacher.gain is None:
        return f"{words} What the teacher adds isn't known yet: {len(rows)} of the weakest go to it, to learn it."
    return f"{words} The teacher is worth its {teacher.cost:g} evaluations for {len(rows)} of {len(search.groups)}."


def order_of_evaluation(search: Search, names: Sequence[str], prompts: Sequence[str]) -> str:
    """A Markdown table, a line a picture: its drafts in the order they were tried, each with its score and the index that it was
    opened for, what they cost, what is in hand, and the indices at the end."""
    lines = [
        "| picture | tried (score, index) | evaluations | kept | indices now | teacher | prompt |",
        "| --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    if not len(search.groups):
        return "\n".join(lines)
    indices, answered = search.indices(), set(search.for_teacher())
    for row in range(len(search.groups)):
        tried = " > ".join(
            f"{names[t.source]} {t.score:.4g} ({'new' if np.isinf(t.index) else f'{t.index:.4g}'})"
            for t in search.tries if t.row == row
        )  # fmt: skip
        now = ", ".join("closed" if np.isneginf(z) else f"{z:.4g}" for z in indices[row])
        origin = search.tries[int(search.held[row])].row
        kept = f"{search.in_hand[row]:.4g}{f' (tried for {origin})' * (origin != row)}"
        prompt = " ".join(prompts[row].split()).replace("|", "/")
        lines.append(
            f"| {row} | {tried} | {search.spent[row]:g} | {kept} | {now} | {'yes' if row in answered else ''} "
            f"| {prompt} |"
        )
    prices = dict.fromkeys(f"{t.price:.3g}" for t in search.tries)
    told = f"Prices, round by round: {', '.join(prices)}." if len(prices) > 1 else f"Price: {search.price:.3g} an evaluation."
    return "\n".join([*lines, "", f"{told} A draft is opened while its source's index exceeds what is kept (Weitzman 1979)."])
