"""``apprentice inspect``: what a saved picture says of itself."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    pictures: Annotated[list[Path], typer.Argument(help="PNGs that Save Images (with verdict) wrote.")],
    json: Annotated[bool, typer.Option("--json", help="As JSON: a list with one table a picture.")] = False,
) -> None:
    """Score, decision, seed, evaluations, models and hashes of PICTURES, as they were saved in them."""
    from ..files import UnreadableFile
    from ..gate.story import in_words, read_story

    stories: list[dict[str, Any]] = []
    silent = False
    for path in pictures:
        try:
            stories.append({"file": str(path), **read_story(path)})
        except UnreadableFile as error:
            typer.echo(str(error), err=True)
            silent = True
        except FileNotFoundError:
            typer.echo(f"There is no file {path}.", err=True)
            silent = True
    if json:
        typer.echo(json_text.dumps(stories, indent=2))
    else:
        texts = [f"{story['file']}\n" + "\n".join(f"  {k:<12} {v}" for k, v in in_words(story)) for story in stories]
        typer.echo("\n\n".join(texts))
    if silent:
        raise typer.Exit(1)
