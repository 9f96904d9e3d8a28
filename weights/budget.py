"""What reading a stranger's file may cost: one budget a file, which spans all that is nested in it.

A file's sizes are believed as far as its bytes go. Pickles, archives and headers within them draw on one ``Budget``.
"""

from __future__ import annotations

import time

# Stable Diffusion 1.5 as a snapshot takes 98,000 steps, SDXL 242,000.
MOST_STEPS = 1_000_000
MOST_SECONDS = 60.0  # of one core's time: an honest file takes one or two
MOST_UNFOLDED = 8  # times the file's size; every weight counts twice, a tied one once more for each further name
_SPARE_BYTES = 1 << 20


class Refused(Exception):  # noqa: N818 - it names what happened to the file
    """Why the file isn't read: the middle of a sentence that begins with its name."""


class Budget:
    """What is left to one reader of one file: steps (operations, objects, entries), bytes, and seconds of computing.

    Args:
        file_bytes: The file's size, which justifies what is made of it.
    """

    def __init__(self, file_bytes: int) -> None:
        self.steps = MOST_STEPS
        self.bytes = MOST_UNFOLDED * file_bytes + _SPARE_BYTES
        self.until = time.thread_time() + MOST_SECONDS

    def step(self, count: int = 1) -> None:
        """Spend steps.

        Raises:
            Refused: There are none left, or no time.
        """
        self.steps -= count
        if self.steps < 0:
            raise Refused("takes more steps than any network")
        if self.steps & 1023 == 0 and time.thread_time() > self.until:
            raise Refused("takes longer to read than any network")

    def unfold(self, nbytes: int) -> None:
        """Spend bytes of memory, be they mapped.

        Raises:
            Refused: That many aren't left.
        """
        self.bytes -= nbytes
        if self.bytes < 0:
            raise Refused("would unfold into far more memory than the file has")
