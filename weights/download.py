"""Fetching weights, by explicit command only: pinned, verified, resumed where it stopped. No node imports this.

A file is fetched to a part beside its place, hashed, and only then renamed: under its final name there is never half a file.
What the catalogue can't pin is pinned by the first pull, in ``apprentice-lock.json`` beside the weights, and held to ever after.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

from ..files import free_space, human_size, read_json, write_atomically
from .catalogue import FILES, ModelFile
from .checkpoints import sha256

LOCK = "apprentice-lock.json"
SPARE = 64 * 2**20
"""Bytes that a download leaves free on the disk."""

_CUT_OFF = {"TransportError", "RequestException", "TimeoutError"}

Progress = Callable[[int, int | None], object]
"""Called with the bytes that are here and the bytes in all (None: not known)."""


class DownloadError(RuntimeError):
    """A download that didn't work; the message is one sentence for people."""


@dataclass(frozen=True)
class Pin:
    """What a file must be: commit (40 hex digits), SHA-256 (64 hex digits) and size in bytes; None: not known."""

    revision: str | None
    sha256: str | None
    size: int | None


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        path: Where the file is.
        fetched: False: it was there already.
        pinned: The pin that this pull wrote into the lock file, since nothing had pinned the file before; else None.
    """

    path: Path
    fetched: bool
    pinned: Pin | None = None


State = Literal["right", "wrong", "missing", "unfinished", "not pinned", "here"]


@dataclass(frozen=True)
class _Remote:
    """A file on a server: where, at which commit, how big, and the digest that it must have."""

    url: str
    headers: dict[str, str]
    revision: str
    size: int | None
    digest: str


def pull(
    file: ModelFile, folder: Path, endpoint: str | None = None, progress: Progress | None = None, force: bool = False
) -> Pulled:
    """Fetch ``file`` into ``folder``, or find that it is there; a later call goes on where an interrupted one stopped.

    Args:
        file: From the catalogue.
        folder: ComfyUI's ``models/oracles``; made if need be.
        endpoint: Another server than Hugging Face's (or GitHub's) own.
        progress: Told how far the transfer is.
        force: Replace a file that is there and isn't the pinned one.

    Raises:
        DownloadError: It didn't work; the message says why and what to do.
    """
    target, pin = folder / file.local, pin_of(file, folder)
    if target.exists() and not force and pin.sha256:
        if sha256(target) == pin.sha256:
            return Pulled(target, fetched=False)
        raise DownloadError(
            f"{target} is not the pinned {file.local}: move it away if it is yours, or add --force to replace it."
        )
    with _plainly(file, None):
        folder.mkdir(parents=True, exist_ok=True)
        remote = _locate(file, pin, endpoint)
    if target.exists() and _digest(target, remote.digest) == remote.digest:
        return Pulled(target, fetched=False, pinned=_record(file, folder, remote, target))
    if target.exists() and not force:
        raise DownloadError(
            f"{target} is not the {file.local} in {file.repo}: move it away if it is yours, or add --force to replace it."
        )
    part = part_of(file, folder, remote.digest)
    with _plainly(file, part):
        _transfer_patiently(remote, part, progress)
        _require_digest(file, part, remote.digest)
        _sync(part)
        os.replace(part, target)
    return Pulled(target, fetched=True, pinned=_record(file, folder, remote, target))


def verify(
    folder: Path, files: tuple[ModelFile, ...] = FILES, progress: Callable[[int], object] | None = None
) -> dict[str, State]:
    """State of each of ``files`` in ``folder`` by its SHA-256, under its local name; reads every byte of what is there.

    Raises:
        DownloadError: The lock file is damaged.
    """
    states: dict[str, State] = {}
    for file in files:
        state, expected = quick_state(file, folder), pin_of(file, folder).sha256
        if state == "here":
            actual = sha256(folder / file.local, progress) if expected else None
            state = "not pinned" if not expected else "right" if actual == expected else "wrong"
        states[file.local] = state
    return states


def quick_state(file: ModelFile, folder: Path) -> State:
    """State of ``file`` in ``folder`` by its size alone, at once; ``here`` says that the content wasn't looked at.

    Raises:
        DownloadError: The lock file is damaged.
    """
    target, size = folder / file.local, pin_of(file, folder).size
    if not target.is_file():
        return "unfinished" if any(folder.glob(f".{_glob_safe(file.local)}.*.part")) else "missing"
    return "wrong" if size is not None and target.stat().st_size != size else "here"


def pin_of(file: ModelFile, folder: Path) -> Pin:
    """What ``file`` must be: the catalogue's word, and where that is silent the lock file's in ``folder``.

    Raises:
        DownloadError: The lock file is damaged.
    """
    locked = _read_lock(folder).get(file.local, {})
    if locked.get("repo") != file.repo or locked.get("filename") != file.filename:
        locked = {}
    return Pin(
        file.revision or locked.get("revision"),
        file.sha256 or locked.get("sha256"),
        file.size if file.size is not None else locked.get("size"),
    )


def part_of(file: ModelFile, folder: Path, digest: str) -> Path:
    """Where the unfinished download lies. The digest in its name keeps parts of different versions apart."""
    return folder / f".{file.local}.{digest[:12]}.part"


def started(file: ModelFile, folder: Path) -> int:
    """Bytes of ``file`` that an interrupted pull left in ``folder``, and that the next one goes on from."""
    return max((part.stat().st_size for part in folder.glob(f".{_glob_safe(file.local)}.*.part")), default=0)


def _locate(file: ModelFile, pin: Pin, endpoint: str | None) -> _Remote:
    """Where ``file`` is to be had, once the server has confirmed what the pin says."""
    if file.host == "github":
        if not (pin.revision and pin.sha256):
            raise DownloadError(f"{file.local} cannot be fetched: GitHub declares no hash, so its entry must have a pin.")
        return _Remote(file.github_url(endpoint), {}, pin.revision, pin.size, pin.sha256)
    hub = _hub()
    # Only the commit of "main" is taken from the first answer: the second one is for that very commit.
    revision = pin.revision or _ask(hub, file, "main", endpoint).commit_hash
    metadata = _ask(hub, file, revision, endpoint)
    if not metadata.commit_hash or (pin.revision and metadata.commit_hash != pin.revision):
        raise DownloadError(
            f"{_host(metadata.location)} does not serve {file.local} at the pinned commit: check the endpoint (HF_ENDPOINT)."
        )
    declared = metadata.etag or ""
    if pin.sha256 and len(declared) == 64 and declared != pin.sha256:
        raise DownloadError(
            f"{file.repo} now declares another SHA-256 for {file.filename} ({declared[:8]}…) than the pinned one "
            f"({pin.sha256[:8]}…), so nothing was fetched: please report this to the Apprentice authors."
        )
    if not pin.sha256 and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", declared):
        raise DownloadError(
            f"{file.local} cannot be fetched: it is not pinned yet, and the server declares no hash to check it by."
        )
    on_hub = _host(metadata.location) == _host(hub.hf_hub_url(file.repo, file.filename, endpoint=endpoint))
    headers = hub.utils.build_hf_headers(token=None if on_hub else False)  # the token is for the hub, not for its storage
    return _Remote(metadata.location, headers, metadata.commit_hash, metadata.size or pin.size, pin.sha256 or declared)


def _ask(hub: ModuleType, file: ModelFile, revision: str, endpoint: str | None) -> Any:
    return hub.get_hf_file_metadata(hub.hf_hub_url(file.repo, file.filename, revision=revision, endpoint=endpoint))


def _transfer_patiently(remote: _Remote, part: Path, progress: Progress | None) -> None:
    """Transfer, and begin again where it was cut off, as long as something arrives in between."""
    while True:
        before = _length(part)
        try:
            return _transfer(remote, part, progress)
        except Exception as error:
            if not _kinds(error) & _CUT_OFF or _length(part) == before:
                raise


def _transfer(remote: _Remote, part: Path, progress: Progress | None) -> None:
    """Bring ``part`` to its full size, asking only for what is missing."""
    have = _length(part)
    if remote.size is not None and have > remote.size:
        part.unlink()
        have = 0
    _require_space(part, have, remote.size)
    hub = _hub()
    from huggingface_hub.file_download import http_get

    # hf_hub_download itself starts afresh after an interruption since huggingface_hub 2; the function below it resumes.
    with _quiet(hub), _Part(part, progress, remote.size) as file:
        http_get(
            remote.url,
            file,
            resume_size=have,
            headers={**remote.headers, "Accept-Encoding": "identity"},
            expected_size=remote.size,
            displayed_filename=part.name,
        )


class _Part(io.BufferedWriter):
    """A file that is written at its end and tells how long it is."""

    def __init__(self, path: Path, progress: Progress | None, total: int | None) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._report = progress or (lambda done, total: None)
        self._total = total
        self._report(self.tell(), total)

    def write(self, data: Any, /) -> int:
        """Write ``data``, and report."""
        written = super().write(data)
        self._report(self.tell(), self._total)
        return written


@contextmanager
def _quiet(hub: ModuleType) -> Iterator[None]:
    """Without huggingface_hub's own progress bars: ``progress`` shows one."""
    if hub.utils.are_progress_bars_disabled():
        yield
        return
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()


def _require_space(part: Path, have: int, size: int | None) -> None:
    free, needed = free_space(part.parent), (size or 0) - have
    if needed + SPARE > free:
        raise DownloadError(
            f"The disk is too full: {human_size(needed)} are still to be fetched and {human_size(free)} are free at "
            f"{part.parent}; make room and run the same command again."
        )


def _require_digest(file: ModelFile, part: Path, digest: str) -> None:
    """Delete ``part`` unless it has that digest."""
    actual = _digest(part, digest)
    if actual != digest:
        part.unlink()
        raise DownloadError(
            f"What arrived for {file.local} is not the pinned file (hash {actual[:8]}… instead of {digest[:8]}…) and was "
            f"deleted: try again, and if it happens twice, report it to the Apprentice authors."
        )


def _sync(path: Path) -> None:
    """Have the disk hold what was written, so that a power cut after the renaming finds it whole."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _digest(path: Path, like: str) -> str:
    """Digest of a file, of the kind that ``like`` is: SHA-256, or (40 digits) what git calls the file's content."""
    if len(like) == 64:
        return sha256(path)
    content = path.read_bytes()  # files outside Git LFS are small
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _record(file: ModelFile, folder: Path, remote: _Remote, target: Path) -> Pin | None:
    """Write a file's pin into the lock file; returns it if nothing pinned the file before."""
    before = pin_of(file, folder)
    if before.revision and before.sha256 and before.size is not None:
        return None
    content = before.sha256 or (remote.digest if len(remote.digest) == 64 else sha256(target))
    pin = Pin(before.revision or remote.revision, content, target.stat().st_size)
    lock = _read_lock(folder)
    lock[file.local] = {"repo": file.repo, "filename": file.filename, **asdict(pin)}
    text = json.dumps({"format": 1, "files": dict(sorted(lock.items()))}, indent=2) + "\n"
    write_atomically(folder / LOCK, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return None if before.sha256 else pin


def _read_lock(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / LOCK
    if not path.exists():
        return {}
    try:
        return dict(read_json(path)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{path} is damaged: restore it, or delete it to pin the files anew.") from error


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise DownloadError(
            "Downloads need huggingface_hub: run pip install huggingface_hub in ComfyUI's Python and try again."
        ) from error
    return huggingface_hub


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _glob_safe(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


@contextmanager
def _plainly(file: ModelFile, part: Path | None) -> Iterator[None]:
    """Turn what goes wrong inside into one sentence; what nobody foresaw goes through."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        sentence = _sentence(error, file, part)
        if sentence is None:
            raise
        raise DownloadError(sentence) from error


def _kinds(error: Exception) -> set[str]:
    """Names of an error's classes. By name, since each major version of huggingface_hub has another HTTP library under it."""
    return {kind.__name__ for kind in type(error).__mro__}


def _sentence(error: Exception, file: ModelFile, part: Path | None) -> str | None:
    kinds = _kinds(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    kept = _kept(part)
    where = f"{file.filename} of {file.page}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk ran full while {file.local} was being fetched: make room and run the same command again{kept}."
    if "OfflineModeIsEnabled" in kinds:
        return f"{file.local} was not fetched because HF_HUB_OFFLINE is set: unset it and run the same command again."
    # During the transfer these mean that the storage's signed address has expired.
    if "GatedRepoError" in kinds or (status in (401, 403) and part is None):
        return f"{file.page} is gated, private or gone: accept its terms there, log in (hf auth login) and try again."
    if kinds & {"EntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError"} or status == 404:
        return f"{where} is not there any more at the pinned commit: please report this to the Apprentice authors."
    if status is not None:
        return f"The server answered {status} when asked for {where}: run the same command again{kept}."
    if kinds & {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"}:
        return f"The server of {where} cannot be reached: check the network connection and run the same command again{kept}."
    if kinds & _CUT_OFF or "Consistency check failed" in str(error):
        return f"The transfer of {file.local} was interrupted: run the same command again{kept}."
    if isinstance(error, OSError) and error.strerror:
        return f"{file.local} could not be written to {error.filename or 'its folder'}: {error.strerror}."
    return None


def _kept(part: Path | None) -> str:
    """What a later call can build on."""
    if part is None or not _length(part):
        return ""
    return f", which goes on from the {human_size(_length(part))} that are here ({part.name})"


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
