"""Which files a run may write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfyui_apprentice.files import save_safetensors_atomically
from comfyui_apprentice.training.target import Target

FACTS = {"rank": 4, "size": (8, 8), "pictures": 100}


def test_a_run_overwrites_its_own_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "loras" / "mine.safetensors"
    target = Target.of(file, FACTS, ("pictures",))
    target.check()  # nothing is there
    save_safetensors_atomically({"a": torch.zeros(1)}, file, target.about)
    target.check()
    Target.of(file, {**FACTS, "pictures": 200, "size": [8, 8]}, ("pictures",)).check()  # the same run, longer
    with pytest.raises(ValueError, match=r"^loras/mine.safetensors is there already, and this run did not make it: .*'mine 2'.$"):
        Target.of(file, {**FACTS, "rank": 8}, ("pictures",)).check()


@pytest.mark.parametrize("content", [b"", b"<html>", b"x" * 100, b"\xff" * 8])
def test_whatever_cannot_be_read_is_somebody_s(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="did not make it"):
        Target.of(file, FACTS).check()
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="did not make it"):
        Target.of(file, FACTS).check()


def test_the_name_that_is_proposed_is_free(tmp_path: Path) -> None:
    for name in ("mine", "mine 2"):
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(ValueError, match="such as 'mine 4', or else"):
        Target.of(tmp_path / "mine.safetensors", FACTS).check(lambda name: name == "mine 3", ", or else")
