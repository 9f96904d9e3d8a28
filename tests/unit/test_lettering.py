"""Text in any script: nothing is a blank or an empty box, lines fit, and it is quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comfyui_apprentice.charts import lettering
from PIL import Image, ImageDraw

PROMPTS = {
    "French": "crème brûlée, café à Łódź",
    "Greek": "κόκκινη γάτα",
    "Russian": "рыжий кот",
    "Vietnamese": "con mèo đỏ ngồi trên thảm",
    "Arabic": "قطة حمراء على سجادة",
    "Persian": "گربه قرمز چاق",
    "Hebrew": "חתול אדום",
    "Hindi": "एक लाल बिल्ली",
    "Bengali": "ছবি আঁকা বিড়াল",
    "Tamil": "சிவப்பு பூனை",
    "Thai": "แมวสีแดง",
    "kana": "ネコがすわっている",
    "emoji": "🐈 🎨 ❤️ 👍🏽 👩‍🚀 ☀ ★",
    "signs": "(cat:1.3) → ≥ ✓ ♥ €",
}


def drawn(text: str, size: int = 15) -> np.ndarray:
    picture = Image.new("RGB", (600, 40), (255, 255, 255))
    lettering.write(ImageDraw.Draw(picture), (4, 4), text, (0, 0, 0), size)
    return np.asarray(picture.convert("L"))


@pytest.mark.parametrize("language", PROMPTS)
def test_the_fonts_that_ship_have_the_script(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "system_fonts", tuple)
    lettering.runs.cache_clear()
    runs = lettering.runs(PROMPTS[language])
    assert all(run.font is not None for run in runs), [run.text for run in runs if run.font is None]
    assert (drawn(PROMPTS[language]) < 128).sum() > 50


def test_letters_without_a_font_show_their_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "system_fonts", tuple)
    lettering.runs.cache_clear()
    assert [run.font for run in lettering.runs("猫坐")] == [None]
    assert not np.array_equal(drawn("猫"), drawn("坐")), "another letter looks the same"
    assert "Noto Sans CJK" in lettering.missing_letters(["a cat", "猫"]) and not lettering.missing_letters(["a cat"])
    lettering.runs.cache_clear()


def test_a_font_of_the_system_is_taken_where_ours_lack_the_letter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = tmp_path / "NotoSansCJK-Regular.ttc"
    stand_in.write_bytes((lettering.FONTS / "NotoSansGeorgian.ttf").read_bytes())
    (tmp_path / "msyh.ttc").write_bytes(b"no font at all")
    monkeypatch.setattr(lettering, "_font_folders", lambda: [tmp_path])
    monkeypatch.setattr(lettering, "SHIPPED", lettering.SHIPPED[:1])
    for cache in (lettering.runs, lettering.system_fonts):
        cache.cache_clear()
    assert [run.font for run in lettering.runs("ქართული")] == [stand_in]
    for cache in (lettering.runs, lettering.system_fonts):
        cache.cache_clear()


@pytest.mark.parametrize("text", [*PROMPTS.values(), "猫" * 300, "x" * 10000, "many words " * 1000])
def test_every_line_fits(text: str) -> None:
    for line in lettering.wrapped(text * 3, 150, 13, 3):
        assert 0 < lettering.width_of(line, 13) <= 150
    assert lettering.shortened(text * 3, 150, 13).endswith("…")
    assert lettering.shortened("short", 150, 13) == "short"


def test_no_word_is_lost_between_lines() -> None:
    text = "a fluffy cat asleep on a windowsill, golden hour, shallow depth of field"
    lines = lettering.wrapped(text, 140, 14)
    assert " ".join(lines) == text and len(lines) > 2


def test_a_cut_leaves_marks_with_their_letters() -> None:
    text = "e\u0301" * 200
    assert lettering.shortened("🐈" + text, 100, 14).removesuffix("…")[-1] != "e"


def test_right_to_left_words_stand_in_their_order_within_a_line() -> None:
    line = [run.text.strip() for run in lettering.runs("a red חתול sits") if run.text.strip()]
    assert line == ["a red", "חתול", "sits"]
    line = [run.text.strip() for run in lettering.runs("חתול red אדום") if run.text.strip()]
    assert line == ["אדום", "red", "חתול"]


def test_without_raqm_arabic_is_joined_and_turned() -> None:
    # Unicode's forms: seen initial, lam with alef final, meem isolated; the last letter first.
    assert [f"{ord(letter):X}" for letter in lettering.turned("سلام")] == ["FEE1", "FEFC", "FEB3"]
    assert lettering.turned("אבג") == "גבא"


def test_without_raqm_every_script_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "shapes", lambda: False)
    for cache in (lettering.opened, lettering.covers, lettering.runs):
        cache.cache_clear()
    for prompt in PROMPTS.values():
        assert all(run.font for run in lettering.runs(prompt)) and (drawn(prompt) < 128).sum() > 50
    for cache in (lettering.opened, lettering.covers, lettering.runs):
        cache.cache_clear()


def test_the_fonts_are_small_and_their_licence_is_with_them() -> None:
    assert sum(file.stat().st_size for file in lettering.FONTS.iterdir()) < 1_550_000
    assert "SIL OPEN FONT LICENSE" in (lettering.FONTS / "OFL.txt").read_text(encoding="utf-8")
    assert {path.name for path in lettering.SHIPPED} == {path.name for path in lettering.FONTS.glob("*.ttf")}
