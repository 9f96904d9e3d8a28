"""The example workflow in a real Chromium, with the front end of 0.3.75 and a newer one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.page import PAGE_MILLISECONDS, close_messages, open_page, queue_and_wait
from harness import ROOT, Comfy, comfyui

FRONT_ENDS = {"stock": [], "1.58.1": ["--front-end-root", os.environ.get("APPRENTICE_FRONT_ENDS", "")]}


@pytest.fixture(params=FRONT_ENDS, scope="module")
def front_end(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """ComfyUI with one of the front ends."""
    arguments = FRONT_ENDS[request.param]
    if arguments and not arguments[1]:
        pytest.fail("APPRENTICE_FRONT_ENDS is not set; run bash test.sh, which fetches the newer front end.")
    with comfyui(tmp_path_factory.mktemp("browser"), *arguments) as server:
        yield server


def load(page, path: Path) -> None:
    """Open a workflow file as a user does."""
    page.locator("#comfy-file-input").set_input_files(str(path))
    wait_for_nodes(page, len(json.loads(path.read_text())["nodes"]))
    page.wait_for_timeout(500)  # messages, if there are any


def wait_for_nodes(page, count: int) -> None:
    page.wait_for_function(f"() => window.app.graph._nodes.length === {count}", timeout=PAGE_MILLISECONDS)


def test_example_opens_is_queued_by_a_click_and_shows_its_pictures(front_end: Comfy, tmp_path: Path) -> None:
    with open_page(front_end.url, os.environ.get("APPRENTICE_CHROMIUM")) as page:
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


def test_workflow_survives_saving_and_loading_in_the_browser(front_end: Comfy) -> None:
    with open_page(front_end.url, os.environ.get("APPRENTICE_CHROMIUM")) as page:
        load(page, ROOT / "example_workflows" / "adaptive-modular.json")
        prompt = "() => window.app.graphToPrompt().then((p) => p.output)"
        first, nodes = page.evaluate(prompt), page.evaluate("() => window.app.graph._nodes.length")
        page.evaluate("() => window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize())))")
        wait_for_nodes(page, nodes)
        assert page.evaluate(prompt) == first
        assert first["7"]["inputs"]["threshold"] == "budget" and first["8"]["inputs"]["strategy"] == "regenerate"


def test_advanced_widgets_are_folded_until_asked_for_and_titles_fit(front_end: Comfy) -> None:
    shown = "(n) => (n.widgets ?? []).filter((w) => n.isWidgetVisible(w) && !w.name.startsWith('apprentice_')).map((w) => w.name)"
    with open_page(front_end.url, os.environ.get("APPRENTICE_CHROMIUM")) as page:
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


def test_help_panel_shows_a_node_s_page_with_its_picture(front_end: Comfy) -> None:
    with open_page(front_end.url, os.environ.get("APPRENTICE_CHROMIUM")) as page:
        page.evaluate(
            """() => { const graph = window.app.graph, node = LiteGraph.createNode("ApprenticeJudge"); graph.clear();
               graph.add(node); node.pos = [300, 300]; window.app.canvas.selectNode(node); graph.setDirtyCanvas(true, true); }"""
        )
        page.locator("[data-testid=info-button]").click()
        page.get_by_role("heading", name="Judge", level=1).wait_for(timeout=PAGE_MILLISECONDS)
        shown = page.get_by_role("img", name="Judge in a graph")
        shown.wait_for(timeout=PAGE_MILLISECONDS)
        size = shown.evaluate("(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight, image.width])")
        assert size[0] > 600 and size[1] > 300 and 150 < size[2] < 600, "as wide as the panel"
        assert page.get_by_role("cell", name="stop_after_judging").is_visible()
