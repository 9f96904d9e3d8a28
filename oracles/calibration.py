"""CALIBRATION: a student's score distribution on a set of prompts, so that a percentile means the same in every batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """Scores of drafts by one student under one oracle.

    Attributes:
        scores: One a draft.
        oracle: Fingerprint of the oracle that gave them.
    """

    scores: tuple[float, ...]
    oracle: str

    def require_oracle(self, fingerprint: str) -> None:
        """Check that scores of that oracle may be compared with these.

        Raises:
            ValueError: Another oracle gave these scores.
        """
        if fingerprint != self.oracle:
            raise ValueError(
                f"This calibration was made with oracle {self.oracle}, but the judge uses {fingerprint}; calibrate again "
                f"with the judge's oracle."
            )
