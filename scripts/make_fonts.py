"""Write ``charts/fonts``: Noto fonts (SIL Open Font License) cut down to what a line of a prompt needs.

``npm pack @expo-google-fonts/noto-sans`` and so on, each unpacked into a folder of its own within FOLDER;
``python scripts/make_fonts.py FOLDER`` (needs fonttools).
"""

from __future__ import annotations

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib.scaleUpem import scale_upem

TARGET = Path(__file__).resolve().parents[1] / "charts" / "fonts"
# What each file keeps. Chinese, Japanese and Korean are megabytes each, and come from the system's fonts.
FONTS = {
    "NotoSans": "U+20-7E,U+A0-37F,U+384-52F,U+1E00-1EFF,U+2000-2027,U+202F-205F,U+2070-209F,U+20A0-20BF,U+2100-214F,U+2C60-2C7F,"
    "U+FFFD",
    "NotoSansArabic": "U+20-22,U+28-29,U+2E,U+3A,U+600-6FF,U+750-77F,U+FB50-FBFF,U+FC5E-FC63,U+FE70-FEFC",
    "NotoSansHebrew": "U+20-22,U+28-29,U+2E,U+3A,U+591-5F4,U+FB1D-FB4F",
    "NotoSansDevanagari": "U+20-22,U+28-29,U+2E,U+3A,U+900-97F,U+200C-200D,U+25CC",
    "NotoSansBengali": "U+20-22,U+28-29,U+2E,U+3A,U+980-9FF,U+964-965,U+200C-200D,U+25CC",
    "NotoSansTamil": "U+20-22,U+28-29,U+2E,U+3A,U+B80-BFF,U+200C-200D,U+25CC",
    "NotoSansThai": "U+20-22,U+28-29,U+2E,U+3A,U+E00-E7F,U+25CC",
    "NotoSansGeorgian": "U+10A0-10FF",
    "NotoSansArmenian": "U+530-58F",
    "NotoSansMath": "U+2190-21FF,U+2200-22FF,U+2500-257F,U+25A0-25FF",
    "NotoSansSymbols2": "U+2605-2606,U+2660-2667,U+2669-266F,U+2713-2718,U+2726-2727,U+2764",
    "NotoSansJP": "U+3000-303F,U+3040-30FF,U+FF00-FFEF",
    "NotoEmoji": "*",
}  # fmt: skip
PLAIN = ["ccmp", "locl", "mark", "mkmk"]
LAYOUT = {"NotoSans": PLAIN, "NotoSansJP": PLAIN, "NotoSansMath": PLAIN, "NotoSansSymbols2": PLAIN, "NotoEmoji": []}


def main() -> None:
    """All files; what is there already is written anew."""
    source = Path(sys.argv[1])
    for name, letters in FONTS.items():
        options = subset.Options(hinting=False, desubroutinize=True, notdef_outline=True, name_IDs=[0, 1, 2, 3, 4, 5, 6, 13, 14])
        options.layout_features = LAYOUT.get(name, ["*"])
        font = subset.load_font(str(next(source.glob(f"*/package/400Regular/{name}_400Regular.ttf"))), options)
        cutter = subset.Subsetter(options)
        codes = font.getBestCmap() if letters == "*" else subset.parse_unicodes(letters.replace("U+", ""))
        cutter.populate(unicodes=codes)
        cutter.subset(font)
        if name == "NotoEmoji":  # half the bytes, and at 14 pixels nobody sees it
            scale_upem(font, 256)
        subset.save_font(font, str(TARGET / f"{name}.ttf"), options)


if __name__ == "__main__":
    main()
