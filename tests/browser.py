"""Debian's chromium, headless, for tests that look at pages; playwright drives it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support import eventually_async

PROGRAM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
PHONE = {"width": 390, "height": 844}


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """A browser of playwright's, without a profile. The test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: make .venv/dev")
    if PROGRAM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium-headless-shell")
    # Chromium's sandbox does not start as root; it shows nothing but pages of ours.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=PROGRAM, args=flags)
        try:
            yield browser
        finally:
            await browser.close()


class Tab:
    """A page of the browser, with what went wrong in it. ``page`` is playwright's."""

    def __init__(self, page: Any, base: str) -> None:
        self.page = page
        self.base = base
        self.wrong: list[str] = []
        page.on(
            "console", lambda message: self.wrong.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.set_default_timeout(15_000)

    async def open(self, place: str) -> None:
        """Show a place of the page: what is behind its #."""
        await self.page.goto(f"{self.base}/#/{place}")

    async def until(self, condition: str, argument: object = None) -> Any:
        """Wait until an expression of JavaScript is true, and return its value. (Playwright's wait_for_function needs
        eval, which the page's policy refuses.)
        """
        return await eventually_async(lambda: self.page.evaluate(condition, argument), condition)

    async def texts(self, selector: str) -> list[str]:
        found: list[str] = await self.page.locator(selector).all_inner_texts()
        return found


@contextlib.asynccontextmanager
async def tab(browser: Any, base: str, **context: Any) -> AsyncIterator[Tab]:
    """A tab with a memory of its own. Whatever the page's console says of errors fails the test."""
    own = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    try:
        made = Tab(await own.new_page(), base)
        yield made
        assert not made.wrong, made.wrong
    finally:
        await own.close()


def luminance(colour: tuple[float, float, float]) -> float:
    """WCAG's relative luminance of a colour whose parts are from 0 to 255."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """WCAG's contrast of two colours, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def colours(texts: list[dict[str, Any]]) -> Iterator[tuple[str, float, bool]]:
    """Of what :data:`TEXTS` found: each text, its contrast, and whether it is large."""
    for each in texts:
        yield each["text"], contrast(tuple(each["colour"]), tuple(each["back"])), each["large"]


TEXTS = """() => {
  const parse = (text) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return a ? { rgb: [r, g, b], a: a / 255 } : { rgb: [0, 0, 0], a: 0 };
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    if (!own.length || !box.width || style.visibility === "hidden" || style.clipPath !== "none" || element.closest(".skip")) continue;
    let back = [255, 255, 255];
    for (const each of [...ancestors(element)].reverse()) {
      const { rgb, a } = parse(getComputedStyle(each).backgroundColor);
      back = back.map((part, index) => part * (1 - a) + rgb[index] * a);
    }
    const size = parseFloat(style.fontSize);
    found.push({ text: own[0].data.trim(), colour: parse(style.color).rgb, back, large: size >= 24 || (size >= 18.7 && Number(style.fontWeight) >= 700) });
  }
  return found;
  function* ancestors(element) {
    for (let each = element; each; each = each.parentElement) yield each;
  }
}"""
"""Every text that is seen, with its colour and that of what is behind it."""
