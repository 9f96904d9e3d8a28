"""The example workflow in a real Chromium, with the front end of 0.3.75 and a newer one."""

from __future__ import annotations

import json
from pathlib import Path

from browser.page import PAGE_MILLISECONDS, close_messages, queue_and_wait
from comfyui_apprentice.cli import app
from harness import ROOT, Comfy
from PIL import Image
from playwright.sync_api import Page
from typer.testing import CliRunner


def load(page, path: Path) -> None:
    """Open a workflow file as a user does."""
    page.evaluate("() => window.app.graph.clear()")  # so that its nodes are not mistaken for those of the one before
    page.locator("#comfy-file-input").set_input_files(str(path))
    wait_for_nodes(page, len(json.loads(path.read_text())["nodes"]))
    page.wait_for_timeout(500)  # messages, if there are any


def wait_for_nodes(page, count: int) -> None:
    page.wait_for_function(f"() => window.app.graph._nodes.length === {count}", timeout=PAGE_MILLISECONDS)


def test_a_new_user_s_first_ten_minutes(page: Page, front_end: Comfy) -> None:
    """Step by step as ``docs/first-ten-minutes.md`` has it, from where the pack is installed."""
    page.set_default_timeout(PAGE_MILLISECONDS)
    page.evaluate("() => window.app.graph.clear()")
    page.wait_for_timeout(700)
    help_is_found_by_searching(page)
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_test_id("template-workflows-content").wait_for()  # "apprentice" and a search stand elsewhere too
    picture = page.get_by_test_id("template-workflow-1-start-here").locator("img").first
    for _ in range(3):  # a click before the list is there chooses nothing
        page.get_by_text("apprentice", exact=True).last.click()
        page.get_by_placeholder("Search").last.fill("start")
        page.wait_for_timeout(5000 if picture.count() == 0 else 500)
        if picture.count():
            break
    picture.click()
    wait_for_nodes(page, 7)
    assert queue_and_wait(page)["status"]["status_str"] == "success"
    cards = page.locator(".ab-card")
    page.wait_for_function("() => document.querySelectorAll('.ab-card .ab-other').length", timeout=PAGE_MILLISECONDS)
    states = [card.get_attribute("data-state") for card in cards.all()]
    weak = next(i for i, state in enumerate(states) if state in ("improved", "draft kept"))
    assert states.count("accepted") == 2 and len(states) == 4
    good = states.index("accepted")
    cards.nth(good).locator(".ab-thumb").click(modifiers=["Shift"])
    cards.nth(weak).locator(".ab-thumb").click()
    assert page.locator(".ab-reset").inner_text() == "Reset 2 by hand"
    page.evaluate("() => window.app.canvas.deselectAll()")  # the newer front end's side panel showed the node's widgets
    page.wait_for_timeout(500)
    wide, zoom = page.locator(".ab-board").bounding_box()["width"], page.evaluate("() => window.app.canvas.ds.scale")
    assert wide / zoom > 360, "the board is as wide as its node again"
    assert "2 of 4 to the teacher" in page.locator(".ab-say").inner_text()
    assert queue_and_wait(page)["status"]["status_str"] == "success"
    page.wait_for_timeout(1000)
    assert [cards.nth(i).locator(".ab-mark").inner_text()[0] for i in (good, weak)] == ["✎", "✎"]
    saved = sorted((front_end.base / "output" / "apprentice").glob("start_*.png"))
    chosen = [json.loads(Image.open(path).text["apprentice"])["override"] for path in saved[-4:]]
    assert (chosen[good], chosen[weak], sorted(chosen)) == ("teacher", "accept", ["", "", "accept", "teacher"])
    told = CliRunner().invoke(app, ["inspect", str(saved[-4 + good])])
    assert told.exit_code == 0 and "sent to the teacher by hand" in told.output, told.output
    page.evaluate("() => window.app.graph.clear()")
    page.locator("#comfy-file-input").set_input_files(str(saved[-1]))
    wait_for_nodes(page, 7)
    page.wait_for_function("() => document.querySelector('.ab-reset')?.textContent === 'Reset 2 by hand'")


def help_is_found_by_searching(page) -> None:
    """Search, add, open the help panel, see the page with its picture."""
    page.mouse.dblclick(800, 500)
    page.wait_for_timeout(1500)
    page.keyboard.type("judge")
    page.wait_for_timeout(1200)
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    page.mouse.click(800, 500)  # the newer front end lets it hang at the pointer until it is put down
    wait_for_nodes(page, 1)
    page.wait_for_timeout(700)  # until it has been put down
    page.evaluate("() => window.app.canvas.selectNode(window.app.graph._nodes[0])")
    page.locator("[data-testid=info-button]").click()
    page.get_by_role("heading", name="Judge", level=1).wait_for()
    shown = page.get_by_role("img", name="Judge in a graph")
    shown.wait_for()
    size = shown.evaluate("(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight, image.width])")
    assert size[0] > 600 and size[1] > 300 and 150 < size[2] < 600, "as wide as the panel"
    assert page.get_by_role("cell", name="stop_after_judging").is_visible()


def test_example_opens_is_queued_by_a_click_and_shows_its_pictures(page: Page, tmp_path: Path) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    load(page, ROOT / "example_workflows" / "adaptive.json")
    titles = page.evaluate("() => window.app.graph._nodes.map((n) => n.title)")
    missing = page.evaluate("() => window.app.graph._nodes.filter((n) => n.has_errors).map((n) => n.type)")
    assert "Apprentice Sampler" in titles and missing == []
    assert close_messages(page) == [], "the front end has nothing to complain about"
    entry = queue_and_wait(page)
    assert entry["status"]["status_str"] == "success"
    page.wait_for_function(
        "() => window.app.graph._nodes.filter((n) => n.imgs && n.imgs.length).length >= 2", timeout=PAGE_MILLISECONDS
    )
    shown = page.evaluate(
        "() => Object.fromEntries(window.app.graph._nodes.filter((n) => n.imgs).map((n) => [n.type, n.imgs.map("
        "(i) => [i.naturalWidth, i.naturalHeight])]))"
    )
    assert shown["ApprenticeSaveImages"] == [[64, 64]] * 8
    assert shown["SaveImage"][0][0] > 500, "the contact sheet"
    picture = tmp_path / "graph.png"
    page.screenshot(path=str(picture))
    assert picture.stat().st_size > 30_000
    assert [p for p in problems if "apprentice" in p.lower()] == []


def test_workflow_survives_saving_and_loading_in_the_browser(page: Page) -> None:
    load(page, ROOT / "example_workflows" / "adaptive-modular.json")
    prompt = "() => window.app.graphToPrompt().then((p) => p.output)"
    first, nodes = page.evaluate(prompt), page.evaluate("() => window.app.graph._nodes.length")
    page.evaluate("() => window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize())))")
    wait_for_nodes(page, nodes)
    assert page.evaluate(prompt) == first
    assert first["7"]["inputs"]["threshold"] == "budget" and first["8"]["inputs"]["strategy"] == "regenerate"


def test_advanced_widgets_are_folded_until_asked_for_and_titles_fit(page: Page) -> None:
    shown = "(n) => (n.widgets ?? []).filter((w) => n.isWidgetVisible(w) && !w.name.startsWith('apprentice_')).map((w) => w.name)"
    page.evaluate("() => window.app.graph.clear()")
    page.evaluate(
        "() => Object.keys(LiteGraph.registered_node_types).filter((t) => t.startsWith('Apprentice')).forEach((type) => "
        "window.app.graph.add(LiteGraph.createNode(type)))"
    )
    page.wait_for_timeout(500)  # until it is drawn
    made = page.evaluate(
        f"""() => window.app.graph._nodes.map((n) => {{
            const pen = document.createElement('canvas').getContext('2d');
            pen.font = n.titleFontStyle;
            const title = pen.measureText(n.title).width;
            const size = {{ width: n.size[0], height: n.size[1], needs: n.computeSize()[1] }};
            return {{ type: n.type, shown: ({shown})(n), title, ...size }};
        }})"""
    )
    assert len(made) > 30
    for node in made:
        assert len(node["shown"]) <= 8, node
        assert node["width"] >= node["title"] + 36 and node["height"] >= node["needs"], node
    folded = page.evaluate(
        f"""() => {{
            const n = window.app.graph._nodes.find((n) => n.type === 'ApprenticeSampler'), before = n.size[1];
            n.widgets.find((w) => w.name === 'teacher_cfg').value = 33;
            n.toggleAdvanced();
            const saved = n.serialize().widgets_values;
            const all = n.widgets.filter((w) => !w.hidden && !w.name.startsWith('apprentice_')).length;
            return {{ shown: ({shown})(n), all, grown: n.size[1] - before, saved }};
        }}"""
    )
    assert len(folded["shown"]) == folded["all"] > 15 and folded["grown"] > 200
    assert 33 in folded["saved"], "what is folded away is saved like the rest"
