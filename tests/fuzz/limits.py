"""A child of this process that may take so much memory and time, and what it says."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from comfyui_apprentice.files import UnreadableFile

MEMORY = 2 << 30
SECONDS = 10.0


def limit_memory(nbytes: int = MEMORY) -> None:
    """From now on this process gets at most so much more address space than it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + nbytes, taken + nbytes))


def limit_seconds(seconds: float = SECONDS) -> None:
    """From now on this process gets so many seconds of computing; then the system ends it, wherever it is. 0: no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def without_room(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that of an allocator."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error) or "Cannot allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def fork(work: Callable[[], str], nbytes: int = MEMORY, seconds: float = SECONDS) -> tuple[str, int]:
    """What ``work`` returns in a child within these limits, and the signal that ended the child (0: none did)."""
    get, put = os.pipe()
    if (child := os.fork()) == 0:
        try:
            limit_memory(nbytes)
            limit_seconds(seconds)
            told = work()
        except BaseException:
            told = f"! {traceback.format_exc()}"
        with os.fdopen(put, "wb") as pipe:
            pipe.write(told.encode())
        os._exit(0)
    os.close(put)
    with os.fdopen(get, "rb") as pipe:
        answer = pipe.read().decode()
    return answer, os.waitpid(child, 0)[1] & 127


def refusal(read: Callable[[], object]) -> str:
    """The sentence with which ``read`` refuses a file, within the limits; empty where it doesn't.

    Raises:
        AssertionError: It fails in another way, or takes too much.
    """

    def work() -> str:
        try:
            read()
        except UnreadableFile as error:
            return f"! {error!r} for want of memory" if without_room(error) else str(error)
        return ""

    told, killed = fork(work)
    assert not killed, f"it took more than {SECONDS} seconds" if killed == signal.SIGPROF else signal.Signals(killed).name
    assert not told.startswith("!"), told
    return told
