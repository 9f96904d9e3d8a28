"""``apprentice models``: the only part of the pack that touches the network, and only when asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..weights.catalogue import ModelFile
    from ..weights.download import Pulled

models = typer.Typer(no_args_is_help=True, help="The weights of the published oracles: list, pull, verify.")

Folder = Annotated[Path | None, typer.Option("--folder", help="Where the weights go, if not into a ComfyUI.")]
ComfyUI = Annotated[Path | None, typer.Option("--comfyui", envvar="COMFYUI_PATH", help="The ComfyUI to put them into.")]


@models.command("list")
def list_(comfyui: ComfyUI = None, folder: Folder = None) -> None:
    """Each file with its size and licence, and whether it is here (by size; `verify` reads the content)."""
    from ..weights.catalogue import FILES, size_text

    place = _place(comfyui, folder) if comfyui or folder else None
    rows: list[tuple[str, ...]] = [("FILE", "SIZE", "NEEDED BY", "LICENCE", "STATE")]
    for file in FILES:
        rows.append((file.local, size_text(file), ", ".join(file.oracles), file.licence, _state(file, place)))
    typer.echo(_columns(rows))
    if place is None:
        typer.echo("\nTo see which are here, add --comfyui PATH, set COMFYUI_PATH, or add --folder PATH.")


@models.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(help="Oracles, as `list` names them under NEEDED BY.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All oracles.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are not the pinned ones.")] = False,
    comfyui: ComfyUI = None,
    folder: Folder = None,
) -> None:
    """Fetch what the oracles NAMES need, verified; run it again after an interruption and it goes on from there."""
    from ..weights.download import DownloadError
    from ..weights.download import pull as fetch

    files, place = _chosen(names or [], everything), _place(comfyui, folder)
    _tell_sizes(files, place)
    failed = False
    for file in files:
        try:
            with _bar(file.local) as progress:
                pulled = fetch(file, place, progress=progress, force=force)
        except DownloadError as error:
            typer.echo(str(error), err=True)
            failed = True
        except KeyboardInterrupt:
            typer.echo(f"\nStopped; run the same command again and {file.local} goes on from here.", err=True)
            raise typer.Exit(130) from None
        else:
            _tell(file, pulled)
    if failed:
        raise typer.Exit(1)


@models.command()
def verify(comfyui: ComfyUI = None, folder: Folder = None) -> None:
    """Read every file that is here and compare its SHA-256 with the pinned one."""
    from ..weights.download import DownloadError
    from ..weights.download import verify as check

    try:
        states = check(_place(comfyui, folder))
    except DownloadError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(_columns([("FILE", "STATE"), *states.items()]))
    if "wrong" in states.values():
        typer.echo("\nA wrong file is not the published one: move it away if it is yours, or pull it with --force.", err=True)
        raise typer.Exit(1)


def _place(comfyui: Path | None, folder: Path | None) -> Path:
    if folder:
        return folder
    if not comfyui:
        raise typer.BadParameter("Say where the weights go: --comfyui PATH, COMFYUI_PATH, or --folder PATH.")
    if not comfyui.is_dir():
        raise typer.BadParameter(f"There is no ComfyUI at {comfyui}.")
    return comfyui / "models" / "oracles"


def _chosen(names: list[str], everything: bool) -> tuple[ModelFile, ...]:
    from ..weights.catalogue import FILES, files_of

    if everything == bool(names):
        raise typer.BadParameter("Name the oracles to fetch (see apprentice models list), or say --all.")
    if everything:
        return FILES
    try:
        return tuple(dict.fromkeys(file for name in names for file in files_of(name)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _state(file: ModelFile, place: Path | None) -> str:
    from ..weights.download import DownloadError, quick_state

    if place is None:
        return "?"
    try:
        return quick_state(file, place)
    except DownloadError as error:
        raise typer.BadParameter(str(error)) from error


def _tell_sizes(files: tuple[ModelFile, ...], place: Path) -> None:
    """What is about to be fetched, before the first byte: each file's size, what lies here of it, and the room there is."""
    from ..files import free_space, human_size
    from ..weights.catalogue import size_text
    from ..weights.download import started

    rows = [(file, started(file, place)) for file in files if not (place / file.local).exists()]
    if not rows:
        return
    left = sum(max((file.size or file.rough_size or 0) - here, 0) for file, here in rows)
    typer.echo(f"To fetch into {place}: {human_size(left)}; {human_size(free_space(place))} are free there.")
    for file, here in rows:
        typer.echo(f"  {file.local}, {size_text(file)}{f', of which {human_size(here)} are here' if here else ''}")


def _tell(file: ModelFile, pulled: Pulled) -> None:
    typer.echo(f"{pulled.path}: {'fetched and verified' if pulled.fetched else 'here already, verified'}")
    if pulled.pinned:
        typer.echo(
            f"  {file.local} had no known hash: it was checked against the hash that the hub declares, and is pinned from now on "
            f"(commit {pulled.pinned.revision}, SHA-256 {pulled.pinned.sha256})."
        )


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar that appears with the first report; it gets the bytes that are here and the bytes in all."""
    from ..files import human_size

    with ExitStack() as stack:
        bars: list[Any] = []
        shown = 0

        def report(done: int, total: int | None) -> None:
            nonlocal shown
            if not bars:
                bars.append(stack.enter_context(typer.progressbar(length=total or 0, label=label, show_eta=True)))
            bars[0].label = f"{label} {human_size(done)}{f' of {human_size(total)}' if total else ''}"
            bars[0].update(done - shown)
            shown = done

        yield report


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
