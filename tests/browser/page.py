"""A real Chromium on a running ComfyUI."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, sync_playwright

# Generous: for a slow machine beside other work. They end what hangs, and judge nothing.
PAGE_MILLISECONDS = 300_000.0
"""Until the page, or something on it, is there."""
RUN_SECONDS = 900.0
"""Until a workflow has run."""

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

FEW_FRAMES = """
    window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 100);
    window.cancelAnimationFrame = clearTimeout;
"""
"""The canvas is painted ten times a second: without a GPU, sixty take a whole core."""


@contextmanager
def open_page(url: str, chromium: str | None = None) -> Iterator[Page]:
    """ComfyUI's page, loaded and empty."""
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium or None, headless=True, args=FLAGS, viewport={"width": 1600, "height": 900}
        )
        page = context.pages[0] if context.pages else context.new_page()
        page.add_init_script(FEW_FRAMES)
        page.goto(url)
        page.wait_for_function("() => window.app && window.app.graph && window.app.canvas", timeout=PAGE_MILLISECONDS)
        page.locator("[data-testid=queue-button]").first.wait_for(timeout=PAGE_MILLISECONDS)
        page.wait_for_timeout(500)  # dialogs that open by themselves
        try:
            yield page
        finally:
            context.close()


def queue_and_wait(page: Page, seconds: float = RUN_SECONDS) -> dict[str, Any]:
    """Click the queue button and wait for the newest history entry."""
    before = _history(page)
    close_messages(page)
    page.locator("[data-testid=queue-button]").first.click()
    for _ in range(int(seconds * 2)):
        page.wait_for_timeout(500)
        now = _history(page)
        new = [now[key] for key in now if key not in before]
        if new:
            return dict(new[0])
    raise TimeoutError("The workflow did not finish.")


def close_messages(page: Page) -> list[str]:
    """Close the messages that lie over the menu, as a user would, and tell what they said."""
    said = [message.inner_text() for message in page.locator(".p-toast-message").all()]
    for button in page.locator(".p-toast-close-button").all():
        if button.is_visible():
            button.click()
    page.wait_for_timeout(500)
    return said


def _history(page: Page) -> dict[str, Any]:
    return dict(page.evaluate("() => fetch('/history').then((r) => r.json())"))
