"""Lines of text in any script, in the fonts that ship (``charts/fonts``); Chinese, Japanese and Korean in the system's.

A letter that no font here has is drawn as browsers draw it: a box with its code. Where Pillow has no Raqm (most Windows
builds), Arabic letters are joined here, and lines that run from right to left are turned.
"""

from __future__ import annotations

import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import environ, walk
from pathlib import Path
from typing import Literal

from PIL import ImageDraw, ImageFont, features

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont

FONTS = Path(__file__).parent / "fonts"
LATIN = FONTS / "NotoSans.ttf"
_SCRIPTS = ("Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai", "Georgian", "Armenian", "Math", "Symbols2", "JP")
EMOJI = FONTS / "NotoEmoji.ttf"
SHIPPED = (LATIN, *(FONTS / f"NotoSans{script}.ttf" for script in _SCRIPTS), EMOJI)
# What systems call their fonts for Chinese, Japanese and Korean; the first that is there.
_SYSTEM = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSans-Regular.ttc", "NotoSansSC-Regular.otf", "PingFang.ttc",
    "msyh.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "YuGothM.ttc", "meiryo.ttc", "msgothic.ttc", "malgun.ttf",
    "AppleSDGothicNeo.ttc", "simsun.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "Arial Unicode.ttf",
    "unifont.ttf", "unifont.otf",
)  # fmt: skip
_SLIMMEST = 0.15  # of the size: no more letters than this allows can fit a line, so a long prompt isn't measured whole
_UNSEEN = {0x200D, 0xFEFF, *range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xFE00, 0xFE10)}
_UNSEEN |= {*range(0x1F3FB, 0x1F400)}  # colours of skin: the emoji here have one colour


@dataclass(frozen=True)
class Run:
    """Letters of one font and direction; ``font`` is None where there is none for them."""

    text: str
    font: Path | None
    backwards: bool

    def length(self, size: int) -> float:
        """In pixels."""
        if self.font is None:
            return len(self.text) * _box(size)
        letters, direction = _laid(self)
        return opened(self.font, size).getlength(letters, direction=direction)


def font(size: int) -> Font:
    """The font of numbers and English words."""
    return opened(LATIN, size)


@lru_cache(maxsize=64)
def opened(path: Path, size: int) -> Font:
    """A font at a size, in the layout that this Pillow has."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.RAQM if shapes() else ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def shapes() -> bool:
    """Whether Pillow joins, reorders and turns letters itself."""
    return bool(features.check("raqm"))


def write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: Colour, size: int) -> None:
    """One line, its top left at ``place``; a line is 1.4 times ``size`` high."""
    x, baseline = place[0], place[1] + 1.05 * size
    for run in runs(text):
        if run.font is not None:
            letters, direction = _laid(run)
            pen.text((x, baseline), letters, colour, opened(run.font, size), anchor="ls", direction=direction)
        else:
            for i, letter in enumerate(run.text):
                _write_code(pen, x + i * _box(size), baseline, letter, colour, size)
        x += run.length(size)


def width_of(text: str, size: int) -> float:
    """The length of one line in pixels."""
    return sum(run.length(size) for run in runs(text))


def shortened(text: str, width: float, size: int) -> str:
    """``text`` in one line of at most ``width`` pixels, with "…" where something was left out."""
    return next(iter(wrapped(text, width, size, 1)), "")


def wrapped(text: str, width: float, size: int, most: int = 1000) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, ``most`` of them, with "…" where something was left out.

    It takes no longer for a prompt of 10,000 letters than for one that fits.
    """
    reach = int(width / (_SLIMMEST * size)) + 1
    rest, lines = " ".join(text.split()), list[str]()
    while rest and len(lines) < most:
        head = rest[:reach]
        fits = bisect_right(range(1, len(head) + 1), width, key=lambda n: width_of(head[:n].rstrip(), size))
        if fits < len(rest):
            last = len(lines) == most - 1
            fits = _cut(head, max(fits, 1), words=not last)
            if last:
                while fits > 1 and width_of(head[:fits].rstrip() + "…", size) > width:
                    fits = _cut(head, fits - 1, words=False)
                return [*lines, head[:fits].rstrip() + "…"]
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    return lines


def _cut(text: str, place: int, words: bool) -> int:
    """The last place up to ``place`` where a line may end: between words if there is one, never before a mark of a letter."""
    if words and (blank := text.rfind(" ", 1, place + 1)) > 0:
        return blank
    cut = place
    while cut > 1 and cut < len(text) and (unicodedata.category(text[cut])[0] == "M" or ord(text[cut]) in _UNSEEN):
        cut -= 1
    return cut


def missing_letters(texts: Iterable[str]) -> str:
    """What to say where letters are drawn as codes; nothing where all are drawn."""
    if all(run.font for text in texts for run in runs(text[:300])):
        return ""
    return "Boxes hold the codes of letters that no font on this machine has; install one that has them, such as Noto Sans CJK."


# ------------------------------------------------------------------------------------------------------------- runs


@lru_cache(maxsize=4096)
def runs(text: str) -> tuple[Run, ...]:
    """The runs of a line as they are drawn from left to right (roughly by Unicode's bidirectional algorithm)."""
    pieces: list[tuple[str, Path | None]] = []
    for letter in unicodedata.normalize("NFC", text):
        if ord(letter) in _UNSEEN or (unicodedata.category(letter) == "Cc"):
            continue
        before = pieces[-1] if pieces else ("", LATIN)
        face = before[1] if before[1] and covers(before[1], letter) else _font_for(letter)
        if pieces and face == before[1]:
            pieces[-1] = (before[0] + letter, face)
        else:
            pieces.append((letter, face))
    return tuple(_ordered([run for piece in pieces for run in _split_blanks(*piece)]))


def _split_blanks(text: str, face: Path | None) -> Iterator[Run]:
    """A piece; the blanks behind letters that run backwards belong to what follows them."""
    backwards = _direction(text) == "R"
    body = text.rstrip() if backwards else text
    if body:
        yield Run(body, face, backwards)
    if len(body) < len(text):
        yield Run(text[len(body) :], LATIN, False)


def _direction(text: str) -> str:
    """That of the first letter that has one: "L", "R", or "" for none."""
    kinds = (unicodedata.bidirectional(letter) for letter in text)
    return next(("R" if kind in ("R", "AL") else "L" for kind in kinds if kind in ("L", "R", "AL")), "")


def _ordered(line: Sequence[Run]) -> list[Run]:
    """Runs of the line's own direction in order, and each stretch of the other in its own."""
    own = next((direction for run in line if (direction := _direction(run.text))), "L")
    stretches: list[list[Run]] = []
    for run in line:
        direction = _direction(run.text)
        if direction not in ("", own) and stretches and _direction(stretches[-1][0].text) == direction:
            stretches[-1].append(run)
        else:
            stretches.append([run])
    if own == "R":
        return [run for stretch in reversed(stretches) for run in stretch]
    return [run for stretch in stretches for run in (reversed(stretch) if stretch[0].backwards else stretch)]


def _font_for(letter: str) -> Path | None:
    shipped = next((path for path in SHIPPED if covers(path, letter)), None)
    return shipped or next((path for path in system_fonts() if covers(path, letter)), None)


@lru_cache(maxsize=16384)
def covers(path: Path, letter: str) -> bool:
    """Whether a font has a letter: what it draws is not what it draws in place of a letter that doesn't exist."""
    if path == EMOJI and letter < "\x80":  # its digits and blanks are for the keys of keyboards
        return False
    face = opened(path, 16)
    return bool(_drawn(face, letter) != _drawn(face, "\U0010fffe"))


def _drawn(face: Font, letter: str) -> tuple[float, bytes]:
    return face.getlength(letter), bytes(face.getmask(letter))


@lru_cache(maxsize=1)
def system_fonts() -> tuple[Path, ...]:
    """This machine's fonts for Chinese, Japanese and Korean; looked for when a letter first needs one."""
    at = {file: Path(folder) / file for place in _font_folders() for folder, _, files in walk(place) for file in files}
    readable = []
    for name in _SYSTEM:
        if name in at:
            try:
                opened(at[name], 16)
            except OSError:
                continue
            readable.append(at[name])
    return tuple(readable)


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        local = Path(environ.get("LOCALAPPDATA", home)) / "Microsoft" / "Windows" / "Fonts"
        return [Path(environ.get("WINDIR", "C:/Windows")) / "Fonts", local]
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    shared = environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [home / ".fonts", home / ".local/share/fonts", *(Path(folder) / "fonts" for folder in shared.split(":"))]


# ----------------------------------------------------------------------------------------------------------- letters


def _box(size: int) -> float:
    return 1.35 * size


def _write_code(pen: ImageDraw.ImageDraw, x: float, baseline: float, letter: str, colour: Colour, size: int) -> None:
    """A letter's code in a box, two lines of it."""
    code = f"{ord(letter):04X}"
    half = (len(code) + 1) // 2
    face = opened(LATIN, max(7, round(0.6 * size)) if half == 2 else max(6, round(0.42 * size)))
    top, side = baseline - 1.05 * size, _box(size) - 2
    pen.rectangle((x + 0.5, top, x + side, top + 1.35 * size), outline=colour)
    for row, digits in enumerate((code[:half], code[half:])):
        pen.text((x + 0.5 + side / 2, top + size * (0.37 + 0.62 * row)), digits, colour, face, anchor="mm")


def _laid(run: Run) -> tuple[str, Literal["rtl", "ltr"] | None]:
    """What Pillow is handed: the letters, and the direction where it knows directions."""
    if shapes():
        return run.text, "rtl" if run.backwards else "ltr"
    return (turned(run.text) if run.backwards else run.text), None


def turned(text: str) -> str:
    """Letters that run from right to left, as a layout that knows nothing of it must be given them; vowel marks are left out."""
    joined = joined_arabic([letter for letter in text if unicodedata.category(letter) != "Mn"])
    return "".join(reversed(joined))


def joined_arabic(letters: Sequence[str]) -> list[str]:
    """Arabic letters in the form that they have between their neighbours: Unicode's presentation forms."""
    forms, units, skip = _arabic_forms(), [], False
    for here, following in zip(letters, [*letters[1:], ""], strict=True):
        if skip:
            skip = False
            continue
        skip = here + following in forms
        units.append(here + following if skip else here)
    shaped = []
    for i, unit in enumerate(units):
        own = forms.get(unit, {})
        joins = i > 0 and "initial" in forms.get(units[i - 1], {}) and "final" in own
        after = i + 1 < len(units) and "initial" in own and "final" in forms.get(units[i + 1], {})
        form = ("medial" if after else "final") if joins else ("initial" if after else "isolated")
        shaped.append(own.get(form, unit))
    return shaped


@lru_cache(maxsize=1)
def _arabic_forms() -> dict[str, dict[str, str]]:
    """Letter, or lam with alef -> its forms by name."""
    forms: dict[str, dict[str, str]] = {}
    for code in (*range(0xFB50, 0xFBB2), *range(0xFBD3, 0xFC00), *range(0xFE80, 0xFEFD)):
        kind, _, letters = unicodedata.decomposition(chr(code)).partition("> ")
        whole = "".join(chr(int(part, 16)) for part in letters.split())
        if len(whole) == 1 or whole[:1] == "\u0644":
            forms.setdefault(whole, {})[kind.strip("<")] = chr(code)
    return forms
