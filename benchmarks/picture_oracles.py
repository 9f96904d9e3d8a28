"""Do oracles know a picture's own prompt from another's? On the pictures of ComfyUI's workflow templates; nothing is fetched.

Published oracles are measured where their files are (a ComfyUI's ``models/oracles``); the tiny world's are there always, know
nothing but icons, and show what guessing looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..gate.selection import agreement
from ..oracles.base import Oracle
from ..oracles.registry import KINDS, load
from ..weights.catalogue import files_of, oracle_of
from ..world.weights import load_oracle
from .adaptive import mean_of
from .figures import Array, Figures, print_table
from .template_pictures import Pair, pairs

OTHERS = 8  # prompts of other pictures that each own prompt is compared with


def judges(models: Path | None) -> dict[str, Callable[[], Oracle]]:
    """The oracles that are here, by name, each read when it is asked for: the tiny world's, and published files in ``models``.

    Raises:
        FileNotFoundError: ``models`` is no folder.
    """
    found: dict[str, Callable[[], Oracle]] = {f"tiny world {name}": partial(load_oracle, name) for name in ("oracle", "judge")}
    if models is not None and not models.is_dir():
        raise FileNotFoundError(f"There is no folder '{models.name}'; --models takes a ComfyUI's models/oracles.")
    for file in sorted(models.iterdir()) if models else ():
        kind = oracle_of(file.name)
        if kind in KINDS and files_of(kind)[0].local == file.name:
            found[KINDS[kind].title] = partial(load, kind, file, **_companions(kind, file.parent))
    return found


def _companions(kind: str, folder: Path) -> dict[str, Any]:
    """What stands beside some files."""
    names = {file.local for file in files_of(kind)[1:]}
    if kind.startswith("aesthetic"):
        return {"clip": next(folder / name for name in sorted(names) if name.endswith(".safetensors"))}
    return {"tokenizer": next(folder / name for name in sorted(names) if "tokenizer" in name)} if kind == "hpsv3" else {}


def scores(oracle: Oracle, shown: Sequence[Pair], others: int) -> Array:
    """[pictures, 1 + others]: what each picture scores with its own prompt, then with those of the pictures after it."""
    rows = []
    for i, pair in enumerate(shown):
        prompts = [shown[(i + k) % len(shown)].prompt for k in range(others + 1)]
        if oracle.reads_prompts:
            rows.append(oracle.score(pair.image().expand(len(prompts), -1, -1, -1), prompts).double().numpy())
        else:
            rows.append(np.repeat(oracle.score(pair.image(), prompts[:1]).double().numpy(), len(prompts)))
    return np.stack(rows)


def won(own: Array, other: Array) -> Array:
    """How often the own one scores higher, by row [N]; ties count half."""
    return ((own > other) + 0.5 * (own == other)).mean(1)  # type: ignore[no-any-return]


def by_prompt(values: Array) -> Array:
    """Share of other prompts, by picture [N], that a picture scores lower with than with its own. 0.5 is guessing."""
    return won(values[:, :1], values[:, 1:])


def by_picture(values: Array) -> Array:
    """Share of other pictures, by prompt [N], that score lower with it than its own. 0.5 is guessing.

    ``values[i, k]`` is picture i with prompt i + k, so prompt j is with picture j - k at ``values[j - k, k]``.
    """
    others = np.stack([np.roll(values[:, k], k) for k in range(1, values.shape[1])], axis=1)
    return won(values[:, :1], others)


def run(
    quick: bool = False, models: Path | None = None, packages: Path | None = None, say: Callable[[str], None] = print
) -> Figures:
    """Measure, print the tables and the claims.

    Args:
        models: A folder of published oracles.
        packages: A ``site-packages`` with ComfyUI's templates, in place of this Python's.

    Raises:
        FileNotFoundError: There are no templates, or no such folder.
    """
    shown, others = pairs(packages), 2 if quick else OTHERS
    figures = Figures("picture-oracles", {"pictures": len(shown), "others": others})
    own: dict[str, Array] = {}
    for name, read in judges(models).items():
        say(f"{name}: {len(shown)} pictures, {others + 1} prompts each")
        oracle = read()
        values = scores(oracle, shown, others)
        own[name] = values[:, 0]
        figures.rows.append({"oracle": name, **_row(figures, name, oracle, values)})
    print_table(figures.rows)
    correlations = [
        {"oracles": f"{a}, {b}", "Spearman": round(agreement(own[a].tolist(), own[b].tolist()).spearman, 3)}
        for a, b in combinations(own, 2)
    ]
    figures.findings["correlations"] = correlations
    print()
    print_table(correlations)
    return figures


def _row(figures: Figures, name: str, oracle: Oracle, values: Array) -> dict[str, Any]:
    if not oracle.reads_prompts:
        return {"own prompt": "doesn't read it", "own picture": "doesn't read it"}
    cells = {}
    for title, of in (("own prompt", by_prompt), ("own picture", by_picture)):
        claim = mean_of(of(values))
        figures.claims[f"{title.replace(' ', '_')}_{name.lower().replace(' ', '_')}"] = claim
        cells[title] = str(claim)
    return cells
