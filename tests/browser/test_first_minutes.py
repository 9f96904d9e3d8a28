"""docs/first-ten-minutes.md in the newer front end: from a search for "judge" to a saved picture with a choice by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from browser.page import PAGE_MILLISECONDS, open_page, queue_and_wait
from comfyui_apprentice.cli import app
from harness import comfyui
from PIL import Image
from typer.testing import CliRunner

SAMPLER = "window.app.graph._nodes.find((n) => n.comfyClass === 'ApprenticeSampler')"


def test_a_new_users_first_minutes_end_in_a_saved_picture_with_a_choice(tmp_path: Path) -> None:
    front_end = os.environ.get("APPRENTICE_FRONT_ENDS", "")
    if not front_end:
        pytest.fail("APPRENTICE_FRONT_ENDS is not set; run bash test.sh, which fetches the newer front end.")
    chromium = os.environ.get("APPRENTICE_CHROMIUM")
    with comfyui(tmp_path, "--front-end-root", front_end) as server, open_page(server.url, chromium) as page:
        page.evaluate("() => window.app.graph.clear()")
        page.mouse.dblclick(700, 500)  # step 2
        page.wait_for_timeout(1500)
        page.keyboard.type("judge")
        page.get_by_text("Scores every picture with the oracle").first.wait_for(timeout=PAGE_MILLISECONDS)
        page.keyboard.press("Enter")
        page.wait_for_function("() => window.app.graph._nodes.some((n) => n.comfyClass === 'ApprenticeJudge')")
        page.keyboard.press("Escape")
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")  # step 3
        page.get_by_text("apprentice", exact=True).first.click()
        page.locator("[data-testid=template-workflow-1-start-here]").first.click()
        page.wait_for_function(f"() => {SAMPLER} !== undefined", timeout=PAGE_MILLISECONDS)
        page.wait_for_timeout(1500)
        assert queue_and_wait(page)["status"]["status_str"] == "success"  # step 4
        page.wait_for_timeout(800)
        board = page.locator(".ab-board").first
        states = [card.get_attribute("data-state") for card in board.locator(".ab-card").all()]
        assert "accepted" in states and "improved" in states
        # Step 6, as whoever sees the board at another zoom does: by the keyboard.
        board.locator(".ab-thumb").nth(states.index("accepted")).focus()
        page.keyboard.press("t")
        entry = queue_and_wait(page)
        saved = next(output["images"] for output in entry["outputs"].values() if len(output.get("images", [])) == len(states))
        file = tmp_path / "output" / saved[states.index("accepted")]["subfolder"] / saved[states.index("accepted")]["filename"]
        with Image.open(file) as picture:  # step 8
            story = json.loads(picture.text["apprentice"])
        assert story["override"] == "teacher" and story["decision"] in ("improved", "draft kept")
        told = CliRunner().invoke(app, ["inspect", str(file)])
        assert told.exit_code == 0 and "hand" in told.output, told.output
