"""``python -m tests.fuzz``: seeded mutations of one honest file of each kind, each read within two gigabytes and ten seconds.

What may come of one: it is read, or refused by ``UnreadableFile`` with one sentence that names it. Nothing is run, created or
opened elsewhere, and nobody is called.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from comfyui_apprentice.files import UnreadableFile

from .kinds import KINDS, Kind
from .limits import SECONDS, fork, limit_seconds, without_room

sys.dont_write_bytecode = True  # imports that come late must write nothing
_HERE = str(Path(__file__).resolve().parents[2])
_OURS = (sys.prefix, sys.base_prefix, _HERE, "/proc/", "/sys/", "/dev/", "/usr/", "/lib", "/etc/")  # libraries read themselves
_RUNS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pickle.find_class")
_FORBIDDEN = (*_RUNS, "socket.", "urllib.", "ftplib.", "http.client.")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate", "shutil.")
_LONGEST = 500


class _Guard:
    """Hears of everything that Python is about to do; stops what it should not, and remembers it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.watching, self.heard = os.path.realpath(folder), False, list[str]()
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "open":
            path, _mode, flags = arguments
            writes = bool(flags and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if isinstance(path, str | bytes) and not self._allowed(os.fsdecode(path), writes):
                self._stop(f"opened {path!r}")
            return
        paths = [path for path in arguments if isinstance(path, str)]
        changes = event.startswith(_CHANGES) and not all(self._allowed(path, True) for path in paths)
        if changes or event.startswith(_FORBIDDEN):
            self._stop(f"{event} {str(arguments)[:100]}")

    def _stop(self, what: str) -> None:
        self.heard.append(what)  # whatever becomes of the error
        raise PermissionError(what)

    def _allowed(self, path: str, writes: bool) -> bool:
        whole = os.path.realpath(path)
        return whole.startswith(self.folder) or (not writes and whole.startswith(_OURS))


def _trouble(kind: Kind, path: Path, guard: _Guard) -> tuple[str, str]:
    """What came of reading a file: "read", "refused" or "wrong"; and of the last, what is wrong."""
    before = {*os.listdir(path.parent), "converted.safetensors"}
    guard.heard, guard.watching, outcome, wrong = [], True, "read", ""
    try:
        kind.read(path)
    except UnreadableFile as error:
        told, outcome = str(error), "refused"
        if without_room(error):
            wrong = f"it asked for too much memory: {traceback.format_exc()}"
        elif not _is_sentence(told, path):
            wrong = f"it was refused by no sentence that names it: {told[:_LONGEST]!r}"
    except BaseException:
        wrong = traceback.format_exc()
    guard.watching = False
    if guard.heard:
        wrong = f"it {guard.heard[0]}"
    if strangers := set(os.listdir(path.parent)) - before:
        wrong = f"it left {sorted(strangers)} behind"
    return ("wrong", wrong) if wrong else (outcome, "")


def _is_sentence(told: str, path: Path) -> bool:
    """Whether it is one that names the file, or the folder that stands for it."""
    named = any(name in told for name in (path.name, path.parent.name))
    return named and told.endswith(".") and told.isprintable() and len(told) <= _LONGEST


def _spoiled(kind: Kind, seed: int, index: int, honest: bytes) -> bytes:
    return kind.change(Random(f"{kind.name} {seed} {index}"), honest)


def _run(kind: Kind, seed: int, indices: range, folder: Path, kept: Path, honest: bytes) -> str:
    """Read the files in turn; a line for each count and each fault. ``at`` holds the one that is being read."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in Rust tell of their panics
    guard, path, counts, slowest = _Guard(folder), folder / kind.name, Counter[str](), 0.0
    lines = []
    for index in indices:
        (folder.parent / "at").write_text(str(index))
        content = _spoiled(kind, seed, index, honest)
        path.write_bytes(content)
        limit_seconds(SECONDS)
        before = time.process_time()
        outcome, wrong = _trouble(kind, path, guard)
        limit_seconds(0)
        slowest = max(slowest, time.process_time() - before)
        counts[outcome] += 1
        if wrong:
            (kept / f"{index}-{kind.name}").write_bytes(content)
            lines.append(f"fault {index} {wrong}".replace("\n", "\n    "))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return "\n".join([*lines, f"counts {counts['read']} {counts['refused']} {slowest:.2f} {peak:.0f}"])


def fuzz(kind: Kind, seed: int, count: int, kept: Path) -> list[str]:
    """The faults of a kind, after a line that says how it went."""
    honest, faults, start = kind.make(), list[str](), 0
    began = time.process_time() + sum(os.times()[2:4])
    read = refused = 0
    slowest = peak = 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "folder-of-one"
        folder.mkdir()
        (folder / kind.name).write_bytes(honest)
        kind.read(folder / kind.name)  # an honest one is read, and what is imported late is there for all children
        while start < count:
            indices = range(start, count)
            told, killed = fork(lambda: _run(kind, seed, indices, folder, kept, honest), seconds=0)  # noqa: B023 - called at once
            lines = told.split("\n")
            if killed or told.startswith("!"):
                at = int((Path(place) / "at").read_text())
                why = f"more than {SECONDS} seconds" if killed == signal.SIGPROF else f"signal {killed}" if killed else told
                faults.append(f"fault {at} {why}")
                (kept / f"{at}-{kind.name}").write_bytes(_spoiled(kind, seed, at, honest))
                start = at + 1
                continue
            faults += "\n".join(lines[:-1]).split("\nfault ") if lines[:-1] else []
            _, a, b, c, d = lines[-1].split()
            read, refused, slowest, peak, start = read + int(a), refused + int(b), float(c), float(d), count
    spent = time.process_time() + sum(os.times()[2:4]) - began
    print(f"{kind.name:48}{count:7}{read:7}{refused:9}{len(faults):8}{slowest:9.2f} s{peak:7.0f} MB{spent:8.1f} s", flush=True)
    return faults


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", help="some of them (clip.safetensors, archive.pt…); all, if left out")
    parser.add_argument("--count", type=int, default=200, help="files of each kind (200); of dear kinds a share")
    parser.add_argument("--whole", action="store_true", help="as many of the dear kinds as of the others")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other files (0)")
    parser.add_argument("--keep", type=Path, help="where faulty files are kept")
    asked = parser.parse_args()
    if unknown := set(asked.kinds) - {kind.name for kind in KINDS}:
        parser.error(f"there is no kind {', '.join(unknown)}; there are {', '.join(kind.name for kind in KINDS)}")
    torch.set_num_threads(1)
    print(f"{'kind':48}{'files':>7}{'read':>7}{'refused':>9}{'faults':>8}{'slowest':>11}{'peak':>10}{'CPU':>10}")
    kept, faults = asked.keep or Path(tempfile.mkdtemp()), list[str]()
    kept.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        if not asked.kinds or kind.name in asked.kinds:
            count = asked.count if asked.whole else max(int(asked.count * kind.share), 1)
            faults += [f"{kind.name}: {fault}" for fault in fuzz(kind, asked.seed, count, kept)]
    print("\n".join([*faults[:20], f"{len(faults)} faults; the files are in {kept}" if faults else "No faults."]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
