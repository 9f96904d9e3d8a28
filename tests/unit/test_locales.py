"""Every text of a node is there in every language, and none is of a node as it was."""

from __future__ import annotations

import json
import re

import pytest
from make_locales import ROOT, TARGET, TRANSLATIONS, as_text, texts_of, translated

LANGUAGES = ["de", "fr", "ja", "zh"]
# What a reader types or looks for: files, commands, tokens.
LITERAL = re.compile(r"(?:models|output|input)/[\w/<>]+|'[^']*[a-z]'(?!\w)|%date:[^%]+%|\{\}|<name>")


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_languages_are_those_that_are_promised() -> None:
    assert list(TRANSLATIONS) == LANGUAGES
    assert sorted(path.name for path in (ROOT / "locales").iterdir()) == sorted([*LANGUAGES, "en"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_missing_and_nothing_is_stale(language: str) -> None:
    wanted, memory = set(texts_of(read(TARGET))), read(TRANSLATIONS[language])
    assert wanted - memory.keys() == set(), "write their translations into scripts/translations"
    assert memory.keys() - wanted == set(), "no node says these any more"
    assert all(text.strip() for text in memory.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_file_that_comfyui_reads_is_made_of_them(language: str) -> None:
    made = (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    assert made == as_text(translated(read(TARGET), read(TRANSLATIONS[language]))), "run python scripts/make_locales.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_files_commands_and_tokens_are_not_translated(language: str) -> None:
    lost = {
        text: part for text, other in read(TRANSLATIONS[language]).items() for part in LITERAL.findall(text) if part not in other
    }
    assert lost == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_most_sentences_are_translated(language: str) -> None:
    """A name may be the same word; a sentence is not."""
    same = [text for text, other in read(TRANSLATIONS[language]).items() if text == other and len(text.split()) > 3]
    assert same == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_nodes_inputs_keep_names_of_their_own(language: str) -> None:
    for node, texts in read(ROOT / "locales" / language / "nodeDefs.json").items():
        for part in ("inputs", "outputs"):
            names = [each["name"] for each in texts.get(part, {}).values()]
            english = [each["name"] for each in read(TARGET)[node].get(part, {}).values()]
            assert len(set(names)) == len(set(english)), f"{node}: {names}"
