"""Files that are written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from comfyui_apprentice.files import save_safetensors_atomically, write_atomically


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_saved_files_have_the_user_s_umask_not_0600(tmp_path: Path, umask: int) -> None:
    def private(part: Path) -> None:
        part.unlink(missing_ok=True)
        part.touch(0o600)

    before = os.umask(umask)
    try:
        save_safetensors_atomically({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
        write_atomically(tmp_path / "b", private)
        write_atomically(tmp_path / "c", lambda part: torch.save({}, part))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}
