"""The pack's icon and banner in the registry: ``python scripts/make_banner.py`` draws both as SVG, and as PNG and JPEG with Chromium.

Each card is one landscape. A weak draft is the same drawing, bent and grey; the teacher's is whole, with more in it.
"""

from __future__ import annotations

import io
import os
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
NIGHT, PANEL, LINE = "#12141f", "#1c2030", "#343a52"
GREEN, AMBER, RED, INK, SOFT = "#46d19a", "#ffb454", "#ff6b6b", "#f4f6ff", "#a9b1cc"
FONT = "font-family='Inter, Segoe UI, Helvetica Neue, DejaVu Sans, sans-serif'"
WEAK = """<filter id='weak' x='-10%' y='-10%' width='120%' height='120%'>
<feTurbulence type='fractalNoise' baseFrequency='.022' numOctaves='2' seed='7'/>
<feDisplacementMap in='SourceGraphic' scale='46' xChannelSelector='R' yChannelSelector='G'/>
<feGaussianBlur stdDeviation='1.6'/><feColorMatrix type='saturate' values='.35'/></filter>"""
SHADOW = "<filter id='shadow' x='-20%' y='-20%' width='140%' height='150%'><feDropShadow dy='10' stdDeviation='14' flood-opacity='.45'/></filter>"


@dataclass(frozen=True)
class Scene:
    """A landscape: colours of the sky from top to horizon, of the sun and of the hills from far to near, and its shape."""

    sky: tuple[str, str]
    sun: str
    hills: tuple[str, str, str]
    seed: int


SCENES = (
    Scene(("#23345f", "#ff9e7a"), "#ffe3a8", ("#7a5c8f", "#4a4374", "#292b52"), 1),
    Scene(("#3f7bd6", "#cfeaff"), "#fff6d0", ("#7fb98f", "#4e9a72", "#2b6b58"), 2),
    Scene(("#171b3d", "#5a5fb0"), "#eef1ff", ("#3f4688", "#2b3066", "#1a1d45"), 3),
    Scene(("#f2994a", "#f9e0a2"), "#fff3cf", ("#d97b4f", "#a9553f", "#6e3637"), 4),
    Scene(("#1d6b74", "#b9f0d0"), "#fdfbe3", ("#5fb6a0", "#2f8c82", "#175a5f"), 5),
    Scene(("#6a2c70", "#f08a8d"), "#ffd9b8", ("#b5566f", "#7c3a63", "#45214c"), 6),
)


def hill(rng: random.Random, size: float, base: float, height: float) -> str:
    """A ridge over the whole width, as a path; ``base`` and ``height`` are parts of ``size``."""
    points = [(size * i / 4, size * (base - height * rng.random())) for i in range(5)]
    path = f"M0,{size} L0,{points[0][1]:.0f}"
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        middle = (x0 + x1) / 2
        path += f" C{middle:.0f},{y0:.0f} {middle:.0f},{y1:.0f} {x1:.0f},{y1:.0f}"
    return f"{path} L{size},{size} Z"


def landscape(scene: Scene, size: float, name: str, rich: bool = False) -> str:
    """A scene in a square at the origin; ``rich`` adds what only the teacher draws: stars, birds and trees."""
    rng = random.Random(scene.seed)
    x, y = size * (0.25 + 0.5 * rng.random()), size * (0.26 + 0.16 * rng.random())
    parts = [
        f"<linearGradient id='{name}' x2='0' y2='1'><stop stop-color='{scene.sky[0]}'/><stop offset='.75' stop-color='{scene.sky[1]}'/></linearGradient>",
        f"<rect width='{size}' height='{size}' fill='url(#{name})'/>",
        f"<circle cx='{x:.0f}' cy='{y:.0f}' r='{size * 0.2:.0f}' fill='{scene.sun}' opacity='.25'/>",
        f"<circle cx='{x:.0f}' cy='{y:.0f}' r='{size * 0.12:.0f}' fill='{scene.sun}'/>",
    ]
    for colour, base, height in zip(scene.hills, (0.72, 0.84, 0.96), (0.26, 0.2, 0.14), strict=True):
        parts.append(f"<path d='{hill(rng, size, base, height)}' fill='{colour}'/>")
    if rich:
        parts += [f"<circle cx='{size * rng.random():.0f}' cy='{size * 0.4 * rng.random():.0f}' r='{size * 0.008:.1f}' fill='#fff' opacity='.8'/>" for _ in range(9)]
        for i in range(7):
            left, foot, tall = size * (0.06 + 0.145 * i), size * (0.97 - 0.02 * (i % 3)), size * (0.12 + 0.07 * rng.random())
            parts.append(f"<path d='M{left:.0f},{foot - tall:.0f} l{tall * 0.28:.0f},{tall:.0f} h{-tall * 0.56:.0f} Z' fill='{scene.hills[2]}' stroke='{scene.hills[1]}' stroke-width='{size * 0.006:.1f}'/>")
    return "".join(parts)


def card(scene: Scene, size: float, at: tuple[float, float], name: str, frame: str = LINE, weak: bool = False, rich: bool = False) -> str:
    """A landscape in a rounded frame."""
    radius = size * 0.11
    look = " filter='url(#weak)'" if weak else ""
    return (
        f"<g transform='translate({at[0]:.0f},{at[1]:.0f})'><clipPath id='clip-{name}'><rect width='{size}' height='{size}' rx='{radius:.0f}'/></clipPath>"
        f"<g filter='url(#shadow)'><g clip-path='url(#clip-{name})'><g{look}>{landscape(scene, size, name, rich)}</g></g></g>"
        f"<rect width='{size}' height='{size}' rx='{radius:.0f}' fill='none' stroke='{frame}' stroke-width='{size * 0.028:.1f}'/></g>"
    )


def badge(x: float, y: float, size: float, colour: str, sign: str) -> str:
    """A round sign: a tick for what passed, a cross for what did not, a spark for what the teacher drew."""
    marks = {
        "tick": f"<path d='M{-size * 0.42},0 l{size * 0.3},{size * 0.32} l{size * 0.54},{-size * 0.62}'/>",
        "cross": f"<path d='M{-size * 0.34},{-size * 0.34} L{size * 0.34},{size * 0.34} M{size * 0.34},{-size * 0.34} L{-size * 0.34},{size * 0.34}'/>",
        "spark": f"<path d='M0,{-size * 0.6} Q{size * 0.1},{-size * 0.1} {size * 0.6},0 Q{size * 0.1},{size * 0.1} 0,{size * 0.6} Q{-size * 0.1},{size * 0.1} {-size * 0.6},0 Q{-size * 0.1},{-size * 0.1} 0,{-size * 0.6} Z' fill='{NIGHT}' stroke='none'/>",
    }
    return (
        f"<g transform='translate({x:.0f},{y:.0f})'><circle r='{size}' fill='{colour}' stroke='{NIGHT}' stroke-width='{size * 0.22:.1f}'/>"
        f"<g fill='none' stroke='{NIGHT}' stroke-width='{size * 0.24:.1f}' stroke-linecap='round' stroke-linejoin='round'>{marks[sign]}</g></g>"
    )


def svg(width: int, height: int, body: str) -> str:
    """A whole picture."""
    ground = f"<radialGradient id='ground' cx='.75' cy='.35' r='.9'><stop stop-color='#2a3154'/><stop offset='1' stop-color='{NIGHT}'/></radialGradient>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'><defs>{ground}{WEAK}{SHADOW}</defs>{body}</svg>\n"


def icon() -> str:
    """Four pictures; three passed, and the teacher drew the fourth again."""
    size, gap, edge = 142.0, 22.0, 47.0
    body = "<rect width='400' height='400' rx='88' fill='url(#ground)'/>"
    for i, scene in enumerate((SCENES[1], SCENES[3], SCENES[4], SCENES[0])):
        at = (edge + (i % 2) * (size + gap), edge + (i // 2) * (size + gap))
        last = i == 3
        body += card(scene, size, at, f"i{i}", AMBER if last else "#ffffff55", rich=last)
        body += badge(at[0] + size - 14, at[1] + size - 14, 27, AMBER if last else GREEN, "spark" if last else "tick")
    return svg(400, 400, body)


def pill(x: float, y: float, text: str, colour: str) -> str:
    """A score."""
    return f"<g transform='translate({x:.0f},{y:.0f})'><rect width='92' height='42' rx='21' fill='{NIGHT}' opacity='.88'/><text x='46' y='30' {FONT} font-size='26' font-weight='600' text-anchor='middle' fill='{colour}'>{text}</text></g>"


def histogram(x: float, y: float, width: float, height: float) -> str:
    """Scores as bars, the weak ones red, and the threshold as a line with its handle."""
    bars = (1, 2, 3, 5, 8, 12, 17, 21, 23, 20, 15, 10, 6, 3, 2)
    step, cut = width / len(bars), 4
    parts = []
    for i, value in enumerate(bars):
        tall = height * value / max(bars)
        parts.append(f"<rect x='{x + i * step + 4:.0f}' y='{y + height - tall:.0f}' width='{step - 8:.0f}' height='{tall:.0f}' rx='5' fill='{RED if i < cut else GREEN}' opacity='.85'/>")
    at = x + cut * step
    parts.append(f"<path d='M{at:.0f},{y - 14:.0f} V{y + height + 8:.0f}' stroke='{AMBER}' stroke-width='5' stroke-linecap='round'/><circle cx='{at:.0f}' cy='{y - 14:.0f}' r='13' fill='{AMBER}'/>")
    parts.append(f"<path d='M{x:.0f},{y + height + 8:.0f} h{width:.0f}' stroke='{LINE}' stroke-width='3'/>")
    return "".join(parts)


def banner() -> str:
    """The loop: drafts with their scores, the threshold, and the weak one drawn again."""
    body = "<rect width='2100' height='900' fill='url(#ground)'/>"
    body += f"<text x='118' y='330' {FONT} font-size='122' font-weight='700' fill='{INK}' letter-spacing='-3'>Apprentice</text>"
    lines = ("A fast student draws,", "an oracle judges each picture,", "and the slow teacher is called")
    for i, line in enumerate((*lines, "only for the weak ones.")):
        body += f"<text x='124' y='{432 + 62 * i}' {FONT} font-size='46' fill='{AMBER if i == 3 else SOFT}'>{line}</text>"
    body += f"<text x='124' y='770' {FONT} font-size='30' fill='{SOFT}' opacity='.8'>for ComfyUI</text>"
    drafts = ((SCENES[1], "0.82"), (SCENES[3], "0.91"), (SCENES[0], "0.17"), (SCENES[4], "0.77"))
    size = 250.0
    for i, (scene, score) in enumerate(drafts):
        x, weak = 960 + i * (size + 24), score < "0.5"
        body += card(scene, size, (x, 110), f"d{i}", RED if weak else GREEN, weak=weak)
        body += pill(x + 14, 110 + size - 56, score, RED if weak else GREEN)
        body += badge(x + size - 12, 122, 27, RED if weak else GREEN, "cross" if weak else "tick")
    x = 960 + 2 * (size + 24)
    body += f"<path d='M{x + size / 2:.0f},378 v66 m-18,-20 l18,20 l18,-20' fill='none' stroke='{AMBER}' stroke-width='7' stroke-linecap='round' stroke-linejoin='round'/>"
    body += card(SCENES[0], 330, (x - 40, 462), "teacher", AMBER, rich=True)
    body += pill(x - 24, 462 + 330 - 58, "0.94", AMBER) + badge(x + 290 - 14, 478, 32, AMBER, "spark")
    body += histogram(960, 540, 440, 232)
    return svg(2100, 900, body)


def main() -> None:
    """Write both into docs/images."""
    pictures = {"icon": (400, 400, icon()), "banner": (2100, 900, banner())}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=os.environ["APPRENTICE_CHROMIUM"], args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height, drawing) in pictures.items():
            (IMAGES / f"{name}.svg").write_text(drawing, encoding="utf-8")
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_content(f"<body style='margin:0'>{drawing}</body>")
            picture = Image.open(io.BytesIO(page.screenshot(omit_background=True)))
            if name == "icon":
                picture.save(IMAGES / "icon.png", optimize=True)
            else:
                picture.convert("RGB").save(IMAGES / "banner.jpg", quality=90)
        browser.close()


if __name__ == "__main__":
    main()
