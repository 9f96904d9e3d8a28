"""The Draft Board in a real Chromium: on the front end of 0.3.75 with LiteGraph's nodes, and on a newer one with Vue's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser.page import PAGE_MILLISECONDS, queue_and_wait
from harness import ROOT
from playwright.sync_api import Locator, Page

WORKFLOW = ROOT / "example_workflows" / "adaptive-modular.json"
# The ids of the nodes in it.
STUDENT, JUDGE, TEACHER, KEEP = "ApprenticeStudentSampler", "ApprenticeJudge", "ApprenticeTeacher", "ApprenticeKeepBetter"
COMPLAINTS: list[str] = []
"""What the browser's console says of this pack."""


@pytest.fixture(scope="module", autouse=True)
def example(page: Page, front_end_name: str) -> Iterator[None]:
    """The single nodes' example is opened; on the newer front end with Vue's nodes, which other files find switched off."""
    switch = "(vue) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    page.on("console", lambda message: "extensions/apprentice" in message.text and COMPLAINTS.append(message.text))
    page.evaluate(switch, front_end_name != "stock")
    load(page, json.loads(WORKFLOW.read_text()))
    yield
    page.evaluate(switch, False)


def load(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_function(f"() => window.app.graph._nodes.length === {len(workflow['nodes'])}", timeout=PAGE_MILLISECONDS)
    page.wait_for_timeout(500)


def board(page: Page, kind: str) -> Locator:
    """The board of a node, in the middle of the window."""
    page.evaluate(
        """(kind) => { const n = window.app.graph._nodes.find((n) => n.comfyClass === kind), c = window.app.canvas;
           const w = n.widgets.find((w) => w.name === "apprentice_board");
           c.ds.scale = 1; c.ds.offset = [500 - n.pos[0], 250 - n.pos[1] - (w.y ?? w.last_y ?? n.size[1] - 400)];
           w.element.dataset.of = kind; c.setDirty(true, true); }""",
        kind,
    )
    page.wait_for_timeout(400)
    found = page.locator(f".ab-board[data-of={kind}]")
    y = found.bounding_box()["y"]
    page.evaluate("(y) => { window.app.canvas.ds.offset[1] += 250 - y; window.app.canvas.setDirty(true, true); }", y)
    page.wait_for_timeout(400)
    return found


def widgets(page: Page, kind: str = JUDGE) -> dict[str, Any]:
    return dict(
        page.evaluate(
            "(kind) => Object.fromEntries(window.app.graph._nodes.find((n) => n.comfyClass === kind).widgets.map("
            "(w) => [w.name, w.value]))",
            kind,
        )
    )


def prompt(page: Page) -> dict[str, Any]:
    """What would be queued, by kind of our nodes."""
    output = page.evaluate("() => window.app.graphToPrompt().then((p) => p.output)")
    return {node["class_type"]: node["inputs"] for node in output.values() if node["class_type"].startswith("Apprentice")}


def ids(entry: dict[str, Any]) -> dict[str, str]:
    return {node["class_type"]: key for key, node in entry["prompt"][2].items()}


def cached(entry: dict[str, Any]) -> set[str]:
    return {node for kind, data in entry["status"]["messages"] if kind == "execution_cached" for node in data["nodes"]}


def states(shown: Locator) -> list[str]:
    return [str(card.get_attribute("data-state")) for card in shown.locator(".ab-card").all()]


def test_it_fills_while_it_runs_and_stays_when_the_job_ends(page: Page) -> None:
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => window.seen.push(
           [...document.querySelectorAll(".ab-card")].map((c) => c.dataset.state))).observe(document.body,
           {subtree: true, childList: true}); }"""
    )
    assert queue_and_wait(page)["status"]["status_str"] == "success"
    page.wait_for_timeout(1500)
    seen = page.evaluate("() => window.seen")
    assert any("waiting" in states for states in seen), "pictures are there before their decisions"
    shown = board(page, KEEP)
    assert states(shown).count("improved") + states(shown).count("draft kept") == states(board(page, JUDGE)).count("rejected") > 0
    sources = page.evaluate("() => [...document.querySelectorAll('.ab-picture')].map((i) => [i.complete, i.naturalWidth])")
    assert sources and all(complete and width == 64 for complete, width in sources)
    said = page.locator(".apprentice-text")
    assert any("refined" in text or "regenerated" in text for text in said.all_inner_texts()), "the teacher's result stays"
    for text in said.all():
        assert text.evaluate("(e) => e.scrollWidth <= e.clientWidth"), "nothing is cut off at the side"


def test_dragging_the_threshold_writes_the_widgets_and_says_what_it_costs(page: Page) -> None:
    shown = board(page, JUDGE)
    line, plot = shown.locator(".ab-line"), shown.locator(".ab-plot").bounding_box()
    box = line.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 25)
    page.mouse.down()
    page.mouse.move(plot["x"] + plot["width"] * 0.97, box["y"] + 25, steps=4)
    assert "8 of 8 to the teacher" in shown.locator(".ab-say").inner_text(), "said while it is dragged"
    before = widgets(page)
    page.mouse.up()
    after = widgets(page)
    assert after["threshold"] == before["threshold"] == "budget" and after["value"] > before["value"]
    said = shown.locator(".ab-say").inner_text()
    assert f"{after['value']:.3g}"[:3] in said and "evaluations a picture" in said and "Queue to apply" in said
    assert prompt(page)[JUDGE]["value"] == after["value"]
    assert shown.locator(".ab-line").evaluate("(e) => e === document.activeElement"), "the keyboard can go on"
    page.keyboard.press("Home")
    assert "0 of 8 to the teacher" in shown.locator(".ab-line").get_attribute("aria-valuetext")


def test_a_choice_by_hand_is_honoured_by_the_next_run_and_only_the_teacher_draws(page: Page) -> None:
    shown = board(page, JUDGE)
    shown.locator(".ab-thumb").nth(1).click(modifiers=["Shift"])
    shown.locator(".ab-thumb").nth(2).click()
    shown.locator(".ab-thumb").nth(2).click()
    assert shown.locator(".ab-reset").inner_text() == "Reset 1 by hand", "a second click gives it back to the gate"
    assert list(json.loads(prompt(page)[JUDGE]["overrides"])["by"].values()) == ["teacher"]
    entry = queue_and_wait(page)
    node = ids(entry)
    assert node[STUDENT] in cached(entry) and node[JUDGE] not in cached(entry) and node[TEACHER] not in cached(entry)
    page.wait_for_timeout(800)
    pictures = entry["outputs"][node[JUDGE]]["apprentice_board"][0]["pictures"]
    assert [p["decision"] for p in pictures].count("rejected") == 1 and pictures[1]["override"] == "teacher"
    assert "by hand" in shown.locator(".ab-say").inner_text()


def test_all_of_it_goes_by_keyboard_and_is_named_for_a_screen_reader(page: Page) -> None:
    shown = board(page, JUDGE)
    shown.locator(".ab-thumb").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")  # back to the gate; and the node is still there
    assert widgets(page)["overrides"] == ""
    page.keyboard.press("ArrowRight")
    page.keyboard.press("a")
    chosen = page.evaluate("() => document.activeElement")
    assert chosen is not None and list(json.loads(widgets(page)["overrides"])["by"].values()) == ["accept"]
    label = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert label.startswith("Picture 3: score ") and "by hand" in label
    page.keyboard.press("o")
    assert "seed" in page.locator("dialog.ab-viewer .ab-caption").inner_text()
    page.keyboard.press("Escape")
    page.locator("dialog.ab-viewer").wait_for(state="detached")
    shown.locator(".ab-reset").focus()
    page.keyboard.press("Enter")
    assert widgets(page)["overrides"] == ""
    nameless = shown.evaluate(
        "(e) => [...e.querySelectorAll('button, input, [role=slider]')].filter((b) => !(b.getAttribute('aria-label')"
        " || b.textContent.trim() || b.closest('label')))"
    )
    assert nameless == []


def test_it_stops_after_judging_and_goes_on_when_the_stop_is_taken_away(page: Page) -> None:
    shown = board(page, JUDGE)
    shown.locator(".ab-line").focus()
    page.keyboard.press("End")
    shown.locator(".ab-stop").check()
    entry = queue_and_wait(page)
    node = ids(entry)
    assert entry["status"]["status_str"] == "success" and node[KEEP] not in entry["outputs"]
    page.wait_for_timeout(800)
    assert "Stopped after judging" in shown.locator(".ab-say").inner_text()
    shown.locator(".ab-stop").uncheck()
    assert node[KEEP] in queue_and_wait(page)["outputs"]


def test_undo_leaves_the_board_and_a_run_out_of_the_cache_fills_it(page: Page) -> None:
    shown = board(page, JUDGE)
    before = widgets(page)["value"]
    shown.locator(".ab-line").focus()
    page.keyboard.press("Home")
    assert widgets(page)["value"] != before
    page.mouse.click(60, 700)
    page.wait_for_timeout(400)
    page.keyboard.press("Control+z")
    page.wait_for_timeout(1000)
    assert widgets(page)["value"] == before and len(states(board(page, JUDGE))) == 8
    load(page, page.evaluate("() => window.app.graph.serialize()"))  # as after the page was loaded again
    assert len(states(board(page, JUDGE))) == len(states(board(page, KEEP))) == 0
    entry = queue_and_wait(page)
    assert {ids(entry)[JUDGE], ids(entry)[KEEP]} <= cached(entry), "the server says nothing of it"
    page.wait_for_timeout(1000)
    assert len(states(board(page, JUDGE))) == len(states(board(page, KEEP))) == 8


def test_a_taste_is_taught_click_by_click_while_the_next_batch_is_drawn(page: Page) -> None:
    shown = board(page, KEEP)
    shown.locator(".ab-to-taste").click()
    shown.locator(".ab-name").fill("in the browser")
    shown.locator(".ab-name").press("Enter")
    page.wait_for_timeout(300)
    left = """() => document.querySelector(".ab-contender").dispatchEvent(
        new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}))"""
    page.evaluate(f"() => {{ for (const press of [{left}, {left}, {left}]) press(); }}")
    page.get_by_text("1 clicks on 2 pictures").wait_for()
    assert "2 of " in shown.locator(".ab-prompt").inner_text(), "a key that is held down is one click, and shows the next pair"
    page.keyboard.press("ArrowDown")
    number = page.evaluate(
        "() => { const w = window.app.graph._nodes.find((n) => n.comfyClass === 'ApprenticeStudentSampler').widgets"
        ".find((w) => w.name === 'seed'); return w.value += 1; }"
    )
    assert number and queue_and_wait(page)["status"]["status_str"] == "success"
    assert "3 of " in shown.locator(".ab-prompt").inner_text(), "the run leaves the pairs alone"
    shown.get_by_text("Undo").click()
    page.get_by_text("0 clicks").wait_for()
    assert "1 of " in shown.locator(".ab-prompt").inner_text(), "back at the pair that was clicked"
    shown.get_by_text("Back to the board").click()
    assert len(states(shown)) == 8


def test_before_and_after_lie_under_one_slider(page: Page) -> None:
    shown = board(page, KEEP)
    compared = shown.locator(".ab-card:has(.ab-other)").first
    compared.hover()
    compared.locator(".ab-zoom").click()
    slider = page.locator("dialog.ab-viewer .ab-compare")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("dialog.ab-viewer .ab-after").evaluate("(e) => getComputedStyle(e).clipPath").endswith("100%)")
    page.keyboard.press("Escape")


def test_saved_files_hold_what_they_held_and_old_ones_open_right(page: Page) -> None:
    saved = page.evaluate("() => window.app.graph.serialize()")
    judge = next(n for n in saved["nodes"] if n["type"] == JUDGE)
    before = prompt(page)
    load(page, saved)
    assert prompt(page) == before
    old = json.loads(json.dumps(saved))
    kept = len(judge["widgets_values"]) - 2  # as version 0.4.0 saved it: without the two new widgets, with the progress text
    for node in old["nodes"]:
        if node["type"] == JUDGE:
            node["widgets_values"] = [*judge["widgets_values"][:kept], "8 pictures: 4 accepted, 4 rejected; tiny world oracle."]
    load(page, old)
    opened = prompt(page)[JUDGE]
    assert opened["overrides"] == "" and opened["stop_after_judging"] is False
    assert {k: v for k, v in opened.items() if k not in ("overrides", "stop_after_judging")} == {
        k: v for k, v in before[JUDGE].items() if k not in ("overrides", "stop_after_judging")
    }


def test_another_kind_of_threshold_does_not_keep_a_number_of_another_unit(page: Page) -> None:
    page.evaluate(
        """() => { const n = window.app.graph._nodes.find((n) => n.comfyClass === "ApprenticeJudge");
           const w = n.widgets.find((w) => w.name === "threshold"); w.value = "percentile"; w.callback?.("percentile"); }"""
    )
    assert widgets(page)["value"] == 30


def test_a_number_that_comes_over_a_wire_is_not_moved_nor_mistaken_for_the_widgets(page: Page) -> None:
    load(page, json.loads(WORKFLOW.read_text()))
    page.evaluate(
        """() => { const g = window.app.graph, n = g._nodes.find((n) => n.comfyClass === "ApprenticeJudge");
           const f = LiteGraph.createNode("PrimitiveFloat"); g.add(f); f.widgets[0].value = 10;
           f.connect(0, n, n.inputs.findIndex((i) => i.name === "value")); }"""
    )
    assert queue_and_wait(page)["status"]["status_str"] == "success"
    page.wait_for_timeout(800)
    shown = board(page, JUDGE)
    assert widgets(page)["value"] == 18 and "budget 10;" in shown.locator(".ab-say").inner_text()
    assert shown.locator("[data-pending]").count() == 0 and shown.locator(".ab-line").get_attribute("role") == "img"


def test_in_a_subgraph_the_board_fills_too(page: Page) -> None:
    load(page, json.loads(WORKFLOW.read_text()))
    page.evaluate(
        """() => { const g = window.app.graph;
           const inside = g._nodes.filter((n) => n.type.startsWith("Apprentice") && n.type !== "ApprenticeTinyWorld");
           g.convertToSubgraph(new Set(inside)); }"""
    )
    assert queue_and_wait(page)["status"]["status_str"] == "success"
    page.wait_for_timeout(800)
    filled = """() => window.app.graph._nodes.filter((n) => n.subgraph).flatMap((n) => n.subgraph._nodes)
        .filter((n) => n.comfyClass === "ApprenticeJudge").map((n) => n.widgets.find((w) => w.name === "apprentice_board")
        .element.querySelectorAll(".ab-card").length)"""
    assert page.evaluate(filled) == [8]


def test_the_better_picture_is_clicked_and_the_clicks_are_counted_copied_and_forgotten(page: Page) -> None:
    load(page, json.loads(WORKFLOW.read_text()))
    page.evaluate("() => window.app.extensionManager.setting.set('Apprentice.Taste.Name', 'browser')")
    assert queue_and_wait(page)["status"]["status_str"] == "success"
    page.wait_for_timeout(800)
    shown = board(page, KEEP)
    shown.locator(".ab-to-taste").click()
    said = shown.locator(".ab-foot .ab-say")
    for count, key in enumerate(("ArrowLeft", "ArrowRight"), 1):
        shown.locator(".ab-contender").first.focus()
        page.keyboard.press(key)
        page.wait_for_function(f"() => document.body.innerText.includes('{count} click')", timeout=PAGE_MILLISECONDS)
    assert said.inner_text() == "2 clicks on 4 pictures"
    with page.expect_download() as download:
        shown.get_by_text("Copy").click()
    assert download.value.path().read_text().count('"kind": "click"') == 2
    page.once("dialog", lambda dialog: dialog.accept())
    shown.get_by_text("Forget").click()
    page.wait_for_function("() => document.body.innerText.includes('0 clicks')", timeout=PAGE_MILLISECONDS)
    assert "browser" not in page.evaluate("() => fetch('/apprentice/taste').then((r) => r.json())")["names"]


def test_the_browser_has_nothing_to_complain_of(page: Page) -> None:
    assert COMPLAINTS == []
