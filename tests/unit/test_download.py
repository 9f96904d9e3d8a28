"""Downloads, against an imitation of the hub on loopback: whole, interrupted, wrong, unpinned, and every kind of no."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from comfyui_apprentice.cli.models import models
from comfyui_apprentice.oracles.registry import KINDS
from comfyui_apprentice.weights import catalogue, download
from comfyui_apprentice.weights.catalogue import FILES, ModelFile, files_of, human_size, markdown_table
from comfyui_apprentice.weights.download import LOCK, DownloadError, part_of, pin_of, pull, quick_state, verify
from hub import COMMIT, CONTENT, FILE, OTHER, SHA, UNPINNED, Hub, imitation
from typer.testing import CliRunner

pytest.importorskip("huggingface_hub")

@pytest.fixture
def hub() -> Iterator[Hub]:
    with imitation() as hub:
        yield hub


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches any other machine; pauses between retries take no time; pieces are small, so that some arrive."""
    from huggingface_hub import constants, file_download

    connect = socket.socket.connect

    def guarded(self, address):
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1"), f"a test wants to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None, time=lambda: 0.0))


def refused(file: ModelFile, folder: Path, endpoint: str, **options: bool) -> str:
    with pytest.raises(DownloadError) as caught:
        pull(file, folder, endpoint, **options)
    text = str(caught.value)
    assert text.endswith((".", ")")) and "\n" not in text and "Traceback" not in text
    return text


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_pinned_file_arrives_whole_and_under_its_name(hub, tmp_path):
    reports: list[tuple[int, int | None]] = []
    pulled = pull(FILE, tmp_path / "models" / "oracles", hub.endpoint, progress=lambda *report: reports.append(report))
    assert pulled.fetched
    assert pulled.pinned is None
    assert pulled.path.read_bytes() == CONTENT
    assert leftovers(pulled.path.parent) == ["judge.safetensors"]
    assert reports[0] == (0, len(CONTENT))
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert reports == sorted(reports)
    assert hub.ranges() == [None]


def test_a_file_that_is_there_is_not_fetched_again(hub, tmp_path):
    pull(FILE, tmp_path, hub.endpoint)
    hub.log.clear()
    assert not pull(FILE, tmp_path, hub.endpoint).fetched
    assert hub.log == []


def test_a_short_break_heals_within_one_pull(hub, tmp_path):
    hub.breaks = [70_000]
    assert pull(FILE, tmp_path, hub.endpoint).path.read_bytes() == CONTENT
    first, second = hub.ranges()
    assert first is None
    assert 60_000 < int(second.removeprefix("bytes=").removesuffix("-")) <= 70_000


def test_an_interrupted_transfer_goes_on_where_it_stopped(hub, tmp_path):
    hub.breaks = [120_000]

    def out_of_order_afterwards(done: int, total: int | None) -> None:
        hub.down = 503 if done else 0

    with pytest.raises(DownloadError, match=r"goes on from the 1\d\d kB that are here"):
        pull(FILE, tmp_path, hub.endpoint, progress=out_of_order_afterwards)
    (part,) = leftovers(tmp_path)
    kept = (tmp_path / part).stat().st_size
    assert 110_000 < kept <= 120_000
    assert quick_state(FILE, tmp_path) == "unfinished"

    hub.down = 0
    hub.log.clear()
    assert pull(FILE, tmp_path, hub.endpoint).path.read_bytes() == CONTENT
    assert hub.ranges() == [f"bytes={kept}-"]
    assert leftovers(tmp_path) == ["judge.safetensors"]


def test_stopping_by_hand_keeps_what_is_here(hub, tmp_path):
    def stop(done: int, total: int | None) -> None:
        if done > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(FILE, tmp_path, hub.endpoint, progress=stop)
    (part,) = leftovers(tmp_path)
    assert (tmp_path / part).stat().st_size > 50_000
    hub.log.clear()
    assert pull(FILE, tmp_path, hub.endpoint).path.read_bytes() == CONTENT
    assert hub.ranges() == [f"bytes={(50_000 // 1024 + 1) * 1024}-"]


def test_a_part_that_is_whole_already_is_only_verified(hub, tmp_path):
    part_of(FILE, tmp_path, SHA).write_bytes(CONTENT)
    assert pull(FILE, tmp_path, hub.endpoint).path.read_bytes() == CONTENT
    assert hub.ranges() == []


def test_a_wrong_file_is_deleted_and_said_so(hub, tmp_path):
    hub.stored = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    text = refused(FILE, tmp_path, hub.endpoint)
    assert "is not the pinned file" in text
    assert "was deleted" in text
    assert leftovers(tmp_path) == []


def test_a_part_with_a_flipped_bit_is_found_out(hub, tmp_path):
    part_of(FILE, tmp_path, SHA).write_bytes(b"\0" * 100_000)
    assert "was deleted" in refused(FILE, tmp_path, hub.endpoint)
    assert pull(FILE, tmp_path, hub.endpoint).path.read_bytes() == CONTENT


def test_a_hub_that_declares_another_file_is_not_even_asked_for_it(hub, tmp_path):
    hub.content = b"another"
    assert "declares another SHA-256" in refused(FILE, tmp_path, hub.endpoint)
    assert hub.ranges() == []


def test_a_server_that_ignores_the_commit_is_refused(hub, tmp_path):
    hub.commit = OTHER
    hub.has = lambda path: True
    assert "at the pinned commit" in refused(FILE, tmp_path, hub.endpoint)
    assert hub.ranges() == []


def test_a_full_disk_is_noticed_before_the_transfer(hub, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    text = refused(FILE, tmp_path, hub.endpoint)
    assert "The disk is too full: 200 kB are still to be fetched and 50 kB are free" in text
    assert hub.ranges() == []


def test_what_is_here_already_needs_no_room(hub, tmp_path, monkeypatch):
    part_of(FILE, tmp_path, SHA).write_bytes(CONTENT[:150_000])
    usage = shutil._ntuple_diskusage(10**9, 10**9, 60_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(download, "SPARE", 0)
    assert pull(FILE, tmp_path, hub.endpoint).path.read_bytes() == CONTENT


def test_a_disk_that_fills_up_on_the_way_loses_nothing(hub, tmp_path, monkeypatch):
    write = download._Part.write

    def full(self, data):
        if self.tell() > 80_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(download._Part, "write", full)
    text = refused(FILE, tmp_path, hub.endpoint)
    assert "The disk ran full" in text
    assert "goes on from the 8" in text
    assert not (tmp_path / FILE.local).exists()
    monkeypatch.setattr(download._Part, "write", write)
    assert pull(FILE, tmp_path, hub.endpoint).path.read_bytes() == CONTENT
    assert int(hub.ranges()[-1].removeprefix("bytes=").removesuffix("-")) > 80_000


def test_a_file_missing_from_the_repository_is_named(hub, tmp_path):
    missing = replace(FILE, filename="elsewhere.safetensors")
    text = refused(missing, tmp_path, hub.endpoint)
    assert "elsewhere.safetensors of https://huggingface.co/owner/judge is not there any more" in text
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("status", "words"), [
    ((401, "GatedRepo"), "accept its terms there, log in"),
    ((403, ""), "accept its terms there, log in"),
    ((401, "RepoNotFound"), "gated, private or gone"),
    ((404, "RevisionNotFound"), "is not there any more at the pinned commit"),
    ((500, ""), "The server answered 500"),
])  # fmt: skip
def test_every_no_of_the_hub_is_explained(hub, tmp_path, status, words):
    hub.status = status
    assert words in refused(FILE, tmp_path, hub.endpoint)


def test_an_expired_address_of_the_storage_is_not_called_gated(hub, tmp_path):
    hub.down = 403
    assert "The server answered 403" in refused(FILE, tmp_path, hub.endpoint)


def test_no_network_is_said_plainly(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert "cannot be reached: check the network connection" in refused(FILE, tmp_path, nobody)


def test_offline_mode_is_respected(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(FILE, tmp_path, hub.endpoint)
    assert hub.log == []


def test_without_huggingface_hub_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refused(FILE, tmp_path, "http://127.0.0.1:9")


def test_an_unpinned_file_is_pinned_by_the_first_pull_and_held_to_it(hub, tmp_path):
    pinned = pull(UNPINNED, tmp_path, hub.endpoint).pinned
    assert pinned == download.Pin(COMMIT, SHA, len(CONTENT))
    assert json.loads((tmp_path / LOCK).read_text())["files"]["judge.safetensors"] == {
        "repo": "owner/judge", "filename": "model.safetensors", "revision": COMMIT, "sha256": SHA, "size": len(CONTENT),
    }  # fmt: skip
    assert verify(tmp_path, (UNPINNED,)) == {"judge.safetensors": "right"}

    hub.content = hub.stored = b"replaced by somebody"  # main moves on
    hub.commit = OTHER
    (tmp_path / UNPINNED.local).unlink()
    assert "is not there any more at the pinned commit" in refused(UNPINNED, tmp_path, hub.endpoint)
    hub.commit = COMMIT  # the same commit with another content: history was rewritten
    assert "declares another SHA-256" in refused(UNPINNED, tmp_path, hub.endpoint)


def test_a_pinned_commit_without_a_hash_is_asked_for_by_commit(hub, tmp_path):
    half = replace(UNPINNED, revision=COMMIT)
    assert pull(half, tmp_path, hub.endpoint).pinned == download.Pin(COMMIT, SHA, len(CONTENT))
    assert not any("/main/" in path for _, _, path, _ in hub.log)


def test_a_first_pull_believes_the_declared_hash_not_the_bytes(hub, tmp_path):
    hub.stored = CONTENT[::-1]
    assert "was deleted" in refused(UNPINNED, tmp_path, hub.endpoint)
    assert leftovers(tmp_path) == []


def test_an_unpinned_file_whose_hash_nobody_declares_is_not_fetched(hub, tmp_path):
    hub.declares = False
    assert "declares no hash" in refused(UNPINNED, tmp_path, hub.endpoint)
    assert hub.ranges() == []


def test_a_small_file_outside_lfs_is_checked_by_gits_own_hash(hub, tmp_path):
    hub.lfs, hub.content, hub.stored = False, b'{"a": 1}', b'{"a": 1}'
    assert pull(UNPINNED, tmp_path, hub.endpoint).pinned.sha256 == hashlib.sha256(hub.content).hexdigest()
    (tmp_path / UNPINNED.local).unlink()
    (tmp_path / LOCK).unlink()
    hub.stored = b'{"a": 2}'
    assert "was deleted" in refused(UNPINNED, tmp_path, hub.endpoint)


def test_a_file_that_is_there_unpinned_is_pinned_if_it_is_the_hubs(hub, tmp_path):
    (tmp_path / UNPINNED.local).write_bytes(CONTENT)
    assert verify(tmp_path, (UNPINNED,)) == {"judge.safetensors": "not pinned"}
    pulled = pull(UNPINNED, tmp_path, hub.endpoint)
    assert not pulled.fetched
    assert pulled.pinned.sha256 == SHA
    assert hub.ranges() == []


@pytest.mark.parametrize("file", [FILE, UNPINNED])
def test_somebodys_own_file_is_never_overwritten_unasked(hub, tmp_path, file):
    (tmp_path / file.local).write_bytes(b"mine")
    assert "move it away if it is yours" in refused(file, tmp_path, hub.endpoint)
    assert (tmp_path / file.local).read_bytes() == b"mine"
    assert pull(file, tmp_path, hub.endpoint, force=True).path.read_bytes() == CONTENT


def test_a_forced_pull_that_fails_keeps_the_old_file(hub, tmp_path):
    (tmp_path / FILE.local).write_bytes(b"mine")
    hub.stored = CONTENT[::-1]
    assert "was deleted" in refused(FILE, tmp_path, hub.endpoint, force=True)
    assert (tmp_path / FILE.local).read_bytes() == b"mine"


def test_a_file_on_github_goes_the_same_way(hub, tmp_path):
    head = replace(FILE, host="github", repo="owner/heads", filename="a+b.pth", local="a+b.pth")
    hub.breaks = [50_000]
    assert pull(head, tmp_path, hub.endpoint).path.read_bytes() == CONTENT
    assert [(role, method) for role, method, _, _ in hub.log] == 2 * [("hub", "GET"), ("storage", "GET")]
    (tmp_path / "a+b.pth").unlink()
    assert "is not there any more" in refused(replace(head, filename="gone.pth"), tmp_path, hub.endpoint)
    assert "must have a pin" in refused(replace(head, sha256=None), tmp_path, hub.endpoint)


def test_a_damaged_lock_file_is_not_ignored(hub, tmp_path):
    (tmp_path / LOCK).write_text("{")
    assert "is damaged" in refused(UNPINNED, tmp_path, hub.endpoint)


def test_the_lock_of_another_repository_does_not_count(hub, tmp_path):
    pull(UNPINNED, tmp_path, hub.endpoint)
    assert pin_of(replace(UNPINNED, repo="someone/else"), tmp_path) == download.Pin(None, None, None)


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub, tmp_path, monkeypatch):
    seen: list[tuple[str, str | None]] = []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    answer = BaseHTTPRequestHandler.parse_request

    def spy(self):
        result = answer(self)
        seen.append((self.command, self.headers.get("Authorization")))
        return result

    monkeypatch.setattr(BaseHTTPRequestHandler, "parse_request", spy)
    pull(FILE, tmp_path, hub.endpoint)
    assert hub.ranges() == [None]
    assert ("HEAD", "Bearer hf_secret") in seen
    assert seen[-1] == ("GET", None)


def test_verify_reads_the_content(hub, tmp_path):
    other = replace(FILE, local="other.safetensors")
    pull(FILE, tmp_path, hub.endpoint)
    assert verify(tmp_path, (FILE, other)) == {"judge.safetensors": "right", "other.safetensors": "missing"}
    (tmp_path / FILE.local).write_bytes(CONTENT[::-1])
    assert quick_state(FILE, tmp_path) == "here"
    assert verify(tmp_path, (FILE,)) == {"judge.safetensors": "wrong"}
    (tmp_path / FILE.local).write_bytes(CONTENT[:-1])
    assert quick_state(FILE, tmp_path) == "wrong"


def test_every_entry_of_the_catalogue_is_well_formed():
    assert len({file.local for file in FILES}) == len(FILES)
    for file in FILES:
        for digits, length in ((file.revision, 40), (file.sha256, 64)):
            assert digits is None or (len(digits) == length and set(digits) <= set("0123456789abcdef"))
        assert (file.size is None) != (file.rough_size is None)
        assert file.host != "github" or (file.revision and file.sha256 and file.size)
        assert file.licence
        assert Path(file.local).name == file.local
    with pytest.raises(ValueError, match="choose among imagereward, pickscore"):
        files_of("nothing")


def test_an_oracle_brings_all_its_files():
    assert {file.local for file in files_of("aesthetic-v2")} == {
        "sac+logos+ava1-l14-linearMSE.pth", "clip-vit-large-patch14.safetensors",
    }  # fmt: skip
    assert catalogue.files_of("aesthetic-v1")[0].github_url() == (
        "https://github.com/LAION-AI/aesthetic-predictor/raw/6d122adad522ab246644d9dc1c6d7a3810ee255f/"
        "sa_0_4_vit_l_14_linear.pth"
    )
    assert "sac%2Blogos%2Bava1" in files_of("aesthetic-v2")[0].github_url()


def test_every_oracle_has_its_files_under_its_own_name():
    assert set(KINDS) <= set(catalogue.names())


def test_the_table_has_a_row_for_every_file():
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + len(FILES)
    assert all(line.count("|") == 7 for line in lines)
    assert all(f"`{file.local}`" in line for file, line in zip(FILES, lines[2:], strict=True))


@pytest.mark.parametrize(("size", "text"), [(485, "485 bytes"), (3_714_759, "3.71 MB"), (1_972_490_005, "1.97 GB")])
def test_sizes_are_for_people(size, text):
    assert human_size(size) == text


@pytest.fixture
def shop(hub, monkeypatch) -> Hub:
    """The command, with a catalogue of one oracle of two files, on the imitation."""
    files = (FILE, replace(UNPINNED, local="second.safetensors"))
    monkeypatch.setattr(catalogue, "FILES", files)
    fetch = download.pull
    monkeypatch.setattr(download, "pull", lambda file, folder, **options: fetch(file, folder, hub.endpoint, **options))
    monkeypatch.setattr(download.verify, "__defaults__", (files, None))
    return hub


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(models, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def test_the_command_puts_weights_into_comfyui(shop, tmp_path):
    text = run("pull", "judge", "--comfyui", tmp_path)
    assert "judge.safetensors: fetched and verified" in text
    assert f"is pinned from now on (commit {COMMIT}, SHA-256 {SHA})" in text
    place = tmp_path / "models" / "oracles"
    assert leftovers(place) == [LOCK, "judge.safetensors", "second.safetensors"]
    assert "here already, verified" in run("pull", "--all", "--folder", place)
    assert run("list", "--folder", place).count("here") == 2
    assert run("verify", "--folder", place).count("right") == 2
    (place / FILE.local).write_bytes(CONTENT[::-1])
    assert "judge.safetensors wrong" in run("verify", "--folder", place, code=1)


def test_one_failed_file_does_not_stop_the_others(shop, tmp_path):
    (tmp_path / FILE.local).write_bytes(b"mine")
    text = run("pull", "--all", "--folder", tmp_path, code=1)
    assert "move it away if it is yours" in text
    assert (tmp_path / "second.safetensors").read_bytes() == CONTENT


def test_sizes_and_room_are_told_before_the_first_byte(shop, tmp_path, monkeypatch):
    part_of(FILE, tmp_path, SHA).write_bytes(CONTENT[:150_000])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 52 * 10**9))
    early: list[str] = []
    monkeypatch.setattr(typer, "echo", lambda text="", **_: early.append(str(text)) if not shop.log else None)
    run("pull", "judge", "--folder", tmp_path)
    assert early == [
        f"To fetch into {tmp_path}: 250 kB; 52 GB are free there.",
        "  judge.safetensors, 200 kB, of which 150 kB are here", "  second.safetensors, about 200 kB",
    ]  # fmt: skip
    early.clear()
    shop.log.clear()
    run("pull", "judge", "--folder", tmp_path)
    assert not any("To fetch" in text for text in early), "they are there"


def test_a_bar_shows_how_much_is_here(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{type(typer.progressbar(length=1)).__module__}.isatty", lambda stream: True)
    shop.piece, shop.pause = 50_000, 0.02
    text = run("pull", "judge", "--folder", tmp_path)
    assert "judge.safetensors" in text and "100%" in text and "200 kB of 200 kB" in text
    assert re.search(r"1\d\d kB of 200 kB", text), text


def test_the_command_says_what_it_needs(shop, tmp_path):
    assert "Say where the weights go" in run("pull", "judge", code=2)
    assert "There is no ComfyUI at" in run("verify", "--comfyui", tmp_path / "nowhere", code=2)
    assert "Name the oracles to fetch" in run("pull", "--folder", tmp_path, code=2)
    assert "choose among judge" in run("pull", "nobody", "--folder", tmp_path, code=2)
    assert "add --comfyui PATH" in run("list")
