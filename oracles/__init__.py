"""Who judges: one file an oracle, thresholds, and calibration. ``oracles.load(name, weights)`` gives any of them."""

from __future__ import annotations

from .registry import load

__all__ = ["load"]
