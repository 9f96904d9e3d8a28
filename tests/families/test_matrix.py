"""The table of ``apprentice bench families``: every check, on every family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from comfyui_apprentice.benchmarks import families
from comfyui_apprentice.benchmarks import tiny_families as tiny

# Which families have what others lack; a newer ComfyUI may give it to more.
HAVE = {"references": ("flux", "flux2", "qwen", "schnell"), "other families": families.PAIRED}


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """No other file finds these models held."""
    yield
    families.case_of.cache_clear()


@pytest.mark.parametrize("check", families.CHECKS)
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_check_holds_in_every_family(name: str, check: str) -> None:
    found = families.checked(families.case_of(name), check)
    assert found == "" or (found == families.NOTHING and name not in HAVE.get(check, tiny.FAMILIES))


def test_the_checks_notice_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of another seed, and rows of another picture."""
    from comfyui_apprentice.bridge import drafts, teacher

    real = teacher.sample_rows

    def patch(function: Any) -> None:
        for module in (drafts, teacher):
            monkeypatch.setattr(module, "sample_rows", function)

    patch(lambda *given, **named: real(*given, **{**named, "noise": -named["noise"]}))
    by_noise = ("gate open", "gate shut", "one of three", "refined", "masked")
    case = families.Case("sdxl")
    assert all(families.checked(case, check) for check in by_noise)
    first = lambda model, latent, rows, **named: real(model, latent, [0] * len(rows), **named)  # noqa: E731
    patch(first)
    assert "off by" in families.checked(families.Case("sdxl"), "one of three")
