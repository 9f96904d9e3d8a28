"""Files that somebody damaged or made up are read or refused, and nothing else happens: up to a hundred of each kind."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the limits are Linux's", allow_module_level=True)

from comfyui_apprentice.files import UnreadableFile

from . import __main__ as command
from .kinds import Kind


def refuse(told: str) -> None:
    raise UnreadableFile(told)


def forever() -> None:
    while True:
        pass


@pytest.mark.parametrize(("does", "words"), [
    (lambda: None, ""),
    (lambda: refuse("a.bin is no such file."), ""),
    (lambda: refuse("It is no such file."), "no sentence that names it"),
    (lambda: refuse("a.bin is no such file"), "no sentence that names it"),
    (lambda: {}["a"], "KeyError"),
    (lambda: sys.exit(3), "SystemExit"),
    (lambda: bytearray(3 << 30), "MemoryError"),
    (forever, "more than"),
    (lambda: os.kill(os.getpid(), 9), "signal 9"),
    (lambda: Path("/tmp/elsewhere").write_bytes(b""), "opened"),
    (lambda: Path("/root/elsewhere").read_bytes(), "opened"),
    (lambda: Path("here").touch(), "left ['here'] behind"),
    (lambda: Path("/tmp/elsewhere").mkdir(), "os.mkdir"),
    (lambda: socket.socket(), "socket."),
    (lambda: os.system("true"), "os.system"),
    (lambda: pickle.loads(pickle.dumps(print)), "pickle.find_class"),
])  # fmt: skip
def test_the_fuzzer_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: Callable[[], object], words: str) -> None:
    monkeypatch.setattr(command, "SECONDS", 0.3)
    calls: list[Path] = []

    def read(path: Path) -> None:
        calls.append(path)  # the first is the honest one, outside of the child
        if len(calls) > 1:
            does()

    faults = command.fuzz(Kind("a.bin", lambda: b"abc", read, lambda rng, held: held), 0, 1, tmp_path)
    assert (not faults) if not words else words in faults[0]
    assert [path.name for path in tmp_path.iterdir()] == (["0-a.bin"] if words else [])
    assert not Path("/tmp/elsewhere").exists()


def test_a_hundred_files_of_each_kind_do_no_harm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command, in this process, which has what it imports: each kind is read in forks of it."""
    monkeypatch.setattr(sys, "argv", ["tests.fuzz", "--count", "100"])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code, told = command.main(), capsys.readouterr().out
    assert code == 0 and "No faults." in told, told
