"""The page in a real browser: the tests drive it by mouse and keyboard, and look at what it shows."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from services.kit import http_server
from services.traces.page.server import Page
from services.traces.store import Span, Trace
from tests.browser import PHONE, TEXTS, Tab, chromium, colours, tab
from tests.made_traces import MARKUP, REGISTRY, MadeSource, Spans, hostile, large, pull

pytestmark = pytest.mark.once

SLOW, QUICK, FAILED, BUSYBOX, HOSTILE, LARGE = (letter * 32 for letter in "abc9de")
NOW = time.time_ns()


SEEN = "document.dispatchEvent(new Event('visibilitychange'))"
"""As if the page came to the front: it asks again at once."""


@functools.cache
def traces() -> tuple[Trace, ...]:
    minute = 60 * 10**9
    return (
        pull(SLOW, NOW - minute, rate=9.0),
        pull(QUICK, NOW - 9 * minute, rate=90.0),
        pull(FAILED, NOW - 20 * minute, image=f"{REGISTRY}/team/broken:2", outcome="failed"),
        pull(BUSYBOX, NOW - 30 * minute, image="docker.io/library/busybox:latest", layers=(2.1,), rate=30.0),
        hostile(HOSTILE, NOW - 40 * minute),
        large(LARGE, NOW - 50 * minute, 200),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser() -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def source() -> MadeSource:
    found = MadeSource()
    await found.keep(*traces())
    return found


@pytest_asyncio.fixture(loop_scope="session")
async def base(source: MadeSource) -> AsyncIterator[str]:
    async with http_server.serving("127.0.0.1:0", Page(source).answer) as server:
        yield f"http://{server.address}"


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Any, base: str) -> AsyncIterator[Tab]:
    async with tab(browser, base) as opened:
        yield opened


def row(name: str) -> str:
    return f'.row[aria-label^="{name}"]'


# ------------------------------------------------------------------ the list


async def test_the_list_shows_traces_and_filters_them(page: Tab) -> None:
    """By text, operation, outcome and time; the address says so, and Back and a copied address show the same."""
    await page.open("")
    await page.until("document.querySelectorAll('.traces tbody tr').length === 5")
    await page.page.get_by_label("Operation").select_option("all")
    await page.until("document.querySelectorAll('.traces tbody tr').length === 6")
    first = (await page.texts(".traces tbody tr"))[0]
    assert f"{REGISTRY}/team/app:1.4" in first
    assert "of" in first
    await page.page.get_by_role("searchbox").fill("busybox")
    await page.until("document.querySelectorAll('.traces tbody tr').length === 1")
    assert "image=busybox" in page.page.url
    await page.page.get_by_role("searchbox").fill("")
    await page.page.get_by_label("Failed only").check()
    await page.until("document.querySelector('.count').textContent === '2 traces'")
    assert "broken:2" in (await page.texts(".traces tbody tr"))[0]
    await page.page.reload()
    await page.until("document.querySelector('.count').textContent === '2 traces'")
    assert await page.page.get_by_label("Failed only").is_checked()
    await page.page.get_by_label("Failed only").uncheck()
    await page.page.get_by_label("Operation").select_option("import")
    await page.until("document.querySelector('.count').textContent === '1 trace'")
    await page.page.get_by_label("Operation").select_option("")
    await page.page.get_by_label("Time it took").select_option("60")
    await page.until("document.querySelector('.count').textContent === '1 trace'")
    assert "large:1" in (await page.texts(".traces tbody tr"))[0]
    await page.page.get_by_role("searchbox").fill("nothing like this")
    await page.until("document.querySelector('.count').textContent === 'No trace is like this.'")


async def test_the_list_says_where_the_time_went(page: Tab) -> None:
    """Each bar has the colours of its causes; the greatest stands beside it, with the sentence as its title."""
    await page.open("?image=team/app")
    await page.until("document.querySelectorAll('.mostly .swatch').length === 2")
    first = page.page.locator(".traces tbody tr").first
    assert re.fullmatch(r"network [0-9]+ %", await first.locator(".mostly").inner_text())
    assert "waiting for bytes" in (await first.locator(".took").get_attribute("title"))
    widths = await first.locator(".bar i").evaluate_all(
        "(all) => all.map((each) => each.getBoundingClientRect().width)"
    )
    assert widths[0] == max(widths)
    slow, quick = await page.page.locator(".bar > span").evaluate_all(
        "(all) => all.map((each) => each.getBoundingClientRect().width)"
    )
    assert slow > 4 * quick


async def test_a_row_leads_to_its_trace_and_back(page: Tab) -> None:
    """Back shows the list with its filter."""
    await page.open("?image=busybox")
    await page.page.get_by_role("link", name="busybox:latest").click()
    await page.until("document.querySelector('.sentence')")
    assert f"/trace/{BUSYBOX}" in page.page.url
    await page.page.go_back()
    await page.until("document.querySelector('.count')?.textContent === '1 trace'")


async def test_what_comes_new_is_shown_without_taking_the_focus(page: Tab, source: MadeSource) -> None:
    """The list asks again by itself."""
    await page.open("")
    await page.page.get_by_role("link", name="busybox:latest").focus()
    await source.keep(pull("f" * 32, time.time_ns(), image="new:1", layers=(1.0,)))
    await page.page.evaluate(SEEN)
    await page.until("document.querySelectorAll('.traces tbody tr').length === 6")
    assert "busybox" in await page.page.evaluate("document.activeElement.textContent")


async def test_a_service_that_is_away_is_told_and_found_again(browser: Any, source: MadeSource) -> None:
    """The page says so, and goes on when it is back."""
    async with http_server.serving("127.0.0.1:0", Page(source).answer) as server:
        address = server.address
        own = await browser.new_context()
        opened = Tab(await own.new_page(), f"http://{address}")
        await opened.open("")
        await opened.until("document.querySelectorAll('.traces tbody tr').length === 5")
    await opened.page.evaluate(SEEN)
    await opened.until("!document.getElementById('notice').hidden")
    assert "does not answer" in await opened.page.locator("#notice").inner_text()
    async with http_server.serving(address, Page(source).answer):
        await opened.page.evaluate(SEEN)
        await opened.until("document.getElementById('notice').hidden")
        await own.close()


# ------------------------------------------------------------------ a trace


async def test_the_verdict_stands_above_the_waterfall(page: Tab) -> None:
    """In one sentence, with the causes as a bar and as a table that adds up to the whole."""
    await page.open(f"trace/{SLOW}")
    await page.until("document.querySelector('.sentence')")
    (sentence,) = await page.texts(".sentence")
    assert re.match(r"[0-9.]+ of [0-9.]+ s: waiting for bytes of layer", sentence)
    assert REGISTRY in sentence
    rows = await page.texts(".reasons tr")
    assert rows[0].startswith("network")
    widths = await page.page.evaluate(
        "[...document.querySelectorAll('.verdict .causes i')].map((each) => each.getBoundingClientRect().width)"
    )
    assert widths[0] == max(widths)
    assert (await page.page.title()).startswith("pull")


async def test_bars_stand_where_their_spans_are(page: Tab) -> None:
    """The root's fills the lane; a later span's begins later, by as much as it did."""
    await page.open(f"trace/{SLOW}")
    await page.until("document.querySelector('.row')")
    lane = await page.page.locator(".row .lane").first.bounding_box()
    spans = {
        span["name"]: span
        for span in (await page.page.evaluate(f"fetch('api/traces/{SLOW}').then((answer) => answer.json())"))["spans"]
    }
    whole = await page.page.locator(".row .bar").first.bounding_box()
    assert whole["width"] == pytest.approx(lane["width"], abs=lane["width"] * 0.01)
    box = await page.page.locator(f"{row('registry.auth')} .bar").bounding_box()
    scale = lane["width"] / (spans["events.publish"]["start"] + spans["events.publish"]["length"])
    assert box["x"] - lane["x"] == pytest.approx(spans["registry.auth"]["start"] * scale, abs=2)


async def test_keys_walk_open_and_close_the_tree(page: Tab) -> None:
    """As in other trees: down, right into it, left out of it, and left again closes it."""
    await page.open(f"trace/{SLOW}")
    tree = page.page.get_by_role("tree", name="Spans")
    await tree.focus()

    async def here() -> str:
        label: str = await page.page.evaluate(
            "document.getElementById(document.querySelector('.rows').getAttribute('aria-activedescendant')).getAttribute('aria-label')"
        )
        return label.split(maxsplit=1)[0]

    assert await here() == "Transfer.Transfer"
    await page.page.keyboard.press("ArrowRight")
    assert await here() == "images.pull"
    await page.page.keyboard.press("ArrowDown")
    assert await here() == "registry.resolve"
    assert await page.page.locator(row("registry.dns")).count() == 1
    await page.page.keyboard.press("ArrowLeft")
    assert await page.page.locator(row("registry.resolve")).get_attribute("aria-expanded") == "false"
    assert await page.page.locator(row("registry.dns")).count() == 0
    await page.page.keyboard.press("ArrowRight")
    await page.page.keyboard.press("ArrowRight")
    assert await here() == "registry.request"
    await page.page.keyboard.press("ArrowLeft")
    await page.page.keyboard.press("ArrowLeft")
    assert await here() == "registry.resolve"
    await page.page.keyboard.press("End")
    last = await here()
    await page.page.keyboard.press("ArrowDown")
    assert await here() == last
    assert await page.page.locator(".row.here").evaluate(
        "(each) => { const box = each.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"
    )
    await page.page.keyboard.press("Home")
    assert await here() == "Transfer.Transfer"


async def test_keys_zoom_and_the_address_remembers(page: Tab) -> None:
    """Enter shows the focused span alone; 0 shows all again. A reload shows the same part and span."""
    await page.open(f"trace/{SLOW}")
    await page.page.get_by_role("tree").focus()
    for _ in range(2):
        await page.page.keyboard.press("ArrowDown")
    await page.page.keyboard.press("Enter")
    await page.until("location.hash.includes('to=')")
    await page.until("location.hash.includes('span=')")
    width = "document.querySelector('.row[aria-label^=\"registry.resolve\"] .bar').getBoundingClientRect().width / document.querySelector('.lane').clientWidth"
    assert 0.8 < await page.page.evaluate(width) < 0.95
    ticks = await page.texts(".ticks span")
    await page.page.reload()
    await page.until("document.querySelector('.row.here')")
    assert await page.texts(".ticks span") == ticks
    assert "registry.resolve" in (await page.page.locator(".row.here").get_attribute("aria-label"))
    await page.page.keyboard.press("-")
    await page.until(f"{width} < 0.5")
    await page.page.keyboard.press("0")
    await page.until("!location.hash.includes('to=')")


async def test_a_mouse_zooms_by_dragging_and_by_the_wheel(page: Tab) -> None:
    """What was between the two ends fills the lane; with Ctrl the wheel zooms where the mouse is."""
    await page.open(f"trace/{SLOW}")
    await page.until("document.querySelector('.row')")
    lane = await page.page.locator(".row .lane").nth(1).bounding_box()
    mouse = page.page.mouse
    await mouse.move(lane["x"] + lane["width"] * 0.25, lane["y"] + 8)
    await mouse.down()
    await mouse.move(lane["x"] + lane["width"] * 0.5, lane["y"] + 8, steps=4)
    assert await page.page.locator(".brush").is_visible()
    await mouse.up()
    found = await page.until(
        "(() => { const values = new URLSearchParams(location.hash.split('?')[1]); return values.get('to') && [Number(values.get('from')), Number(values.get('to'))]; })()"
    )
    whole = await page.page.evaluate(
        f"fetch('api/traces/{SLOW}').then((answer) => answer.json()).then((found) => Math.max(...found.spans.map((each) => each.start + each.length)) / 1e6)"
    )
    assert found[0] == pytest.approx(whole * 0.25, rel=0.05)
    assert found[1] == pytest.approx(whole * 0.5, rel=0.05)
    assert await page.page.locator(".overview .window").is_visible()
    await page.page.get_by_role("button", name="Fit all of the time").click()
    await page.until("!location.hash.includes('to=')")
    await mouse.move(lane["x"] + lane["width"] * 0.5, lane["y"] + 8)
    before = await page.page.evaluate("scrollY")
    await page.page.keyboard.down("Control")
    await mouse.wheel(0, -300)
    await page.page.keyboard.up("Control")
    await page.until("location.hash.includes('to=')")
    assert await page.page.evaluate("scrollY") == before
    await page.page.get_by_role("button", name="Fit all of the time").click()
    await page.page.get_by_role("button", name="Zoom in").click()
    await page.until("location.hash.includes('to=')")


async def test_pointing_at_a_span_shows_it_in_the_panel(page: Tab) -> None:
    """All attributes, how long it took, what it waits for; a link leads to the span that held it."""
    await page.open(f"trace/{SLOW}?show=waits&q=layer%206%20from")
    panel = page.page.get_by_role("complementary", name="The span")
    await page.until("document.querySelector('.row')")
    waits = page.page.locator(row("wait.bytes")).first
    await waits.hover()
    text = await panel.inner_text()
    assert "wait.bytes" in text
    assert "snapshots" in text
    assert f"bytes of layer 6 from {REGISTRY}" in text
    assert "repeating-linear-gradient" in await waits.locator(".bar").evaluate(
        "(each) => getComputedStyle(each).backgroundImage"
    )
    await waits.click()
    await panel.get_by_role("button", name="registry.fetch").click()
    await page.until(
        "document.querySelector('.row.here').getAttribute('aria-label').startsWith('registry.fetch, layer') || document.querySelector('.row.here').getAttribute('aria-label').startsWith('registry.fetch')"
    )
    assert await panel.get_by_role("heading", name="registry.fetch").count() == 1
    assert await page.page.get_by_role("button", name="All", exact=True).get_attribute("aria-pressed") == "true"


async def test_a_workers_time_is_shown_as_it_measured_it(page: Tab) -> None:
    """On a processor, without one, the disk, without bytes."""
    await page.open(f"trace/{SLOW}")
    await page.until("document.querySelector('.row')")
    await page.page.locator(row("diff.unpack")).first.click()
    text = await page.page.get_by_role("complementary", name="The span").inner_text()
    for part in ("on a processor", "no processor free", "the disk", "no bytes"):
        assert part in text


async def test_the_critical_path_is_a_line_through_the_bars(page: Tab) -> None:
    """It is drawn where the path's spans are; the button leaves only them, and N walks along it in order."""
    await page.open(f"trace/{SLOW}")
    await page.page.get_by_role("button", name="Critical path").click()
    await page.until("document.querySelector('.path .line')")
    labels = await page.page.evaluate(
        "[...document.querySelectorAll('.row')].map((each) => each.getAttribute('aria-label'))"
    )
    assert any("registry.transfer" in label for label in labels)
    assert not any("layer 5" in label for label in labels if label.startswith("diff.unpack"))
    await page.page.get_by_role("tree").focus()
    starts = []
    for _ in range(6):
        await page.page.keyboard.press("n")
        label = await page.page.locator(".row.here").get_attribute("aria-label")
        assert "on the critical path" in label
        starts.append(label)
    assert len(set(starts)) > 3


async def test_searching_finds_spans_by_name_and_attribute(page: Tab) -> None:
    """What they are part of is shown with them; / begins a search."""
    await page.open(f"trace/{SLOW}")
    await page.until("document.querySelector('.row')")
    await page.page.get_by_role("tree").focus()
    await page.page.keyboard.press("/")
    await page.page.keyboard.type("b3c1")
    await page.until("document.querySelector('.tools [role=status]').textContent.startsWith('1 span')")
    labels = await page.page.evaluate(
        "[...document.querySelectorAll('.row')].map((each) => each.getAttribute('aria-label').split(' ')[0])"
    )
    assert labels == ["Transfer.Transfer", "images.pull", "registry.resolve", "registry.request"]
    await page.page.get_by_role("searchbox").fill("no such span")
    await page.page.get_by_text("No span is like this.").wait_for()


async def test_a_call_through_processes_is_one_row(page: Tab) -> None:
    """It names them all, and its bar has a part for each."""
    await page.open(f"trace/{SLOW}")
    await page.until("document.querySelector('.row')")
    label = await page.page.locator(row("Transfer.Transfer")).get_attribute("aria-label")
    assert "gateway → images" in label
    assert await page.page.locator(f"{row('Transfer.Transfer')} .bar").count() == 3


async def test_the_legend_singles_out_a_process(page: Tab) -> None:
    """Its button is pressed; rows of others fade."""
    await page.open(f"trace/{SLOW}")
    await page.page.get_by_role("button", name="snapshots").click()
    assert await page.page.get_by_role("button", name="snapshots").get_attribute("aria-pressed") == "true"
    assert "faint" in await page.page.locator(row("images.pull")).get_attribute("class")
    assert "faint" not in await page.page.locator(row("diff.apply")).first.get_attribute("class")


async def test_a_large_trace_stays_quick(page: Tab, source: MadeSource) -> None:
    """Of 5,000 spans only what is seen is drawn; short ones are folded, and a fold opens."""
    whole = large("6" * 32, NOW)
    await source.keep(whole)
    await page.open(f"trace/{whole.id}")
    await page.until("document.querySelector('.row')")
    assert await page.page.locator(".row").count() < 80
    height = await page.page.locator(".rows").evaluate("(each) => each.clientHeight")
    assert height > 5_000
    await page.page.get_by_role("tree").focus()
    await page.page.keyboard.press("End")
    assert await page.page.locator(".row").count() < 80
    assert await page.page.locator(".row.here").get_attribute("aria-posinset") == await page.page.locator(
        ".row.here"
    ).get_attribute("aria-setsize")
    fold = page.page.locator(".row.fold").first
    before = int(await page.page.locator(".row").first.get_attribute("aria-setsize"))
    await fold.click()
    await page.until("(before) => Number(document.querySelector('.row').getAttribute('aria-setsize')) > before", before)
    took = await page.page.evaluate(
        """async () => {
          const tree = document.querySelector(".rows");
          const times = [];
          for (const key of ["+", "+", "a", "d", "-", "-", "PageUp", "PageUp", "Home"]) {
            const begun = performance.now();
            tree.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
            await new Promise(requestAnimationFrame);
            times.push(performance.now() - begun);
          }
          return times.sort((a, b) => a - b)[4];
        }"""
    )
    assert took < 250, f"the median step took {took} ms"


@pytest.mark.parametrize("shape", ["deep", "roots", "times"])
async def test_whatever_somebody_sends_is_shown(page: Tab, source: MadeSource, shape: str) -> None:
    """Spans one inside the other, thousands of roots of hundreds of processes, and times without sense."""
    made = Spans("7" * 32, NOW if shape != "times" else 0)
    above: Span | None = None
    for n in range(3_000 if shape != "times" else 1):
        made.add(above, f"span.{n}", f"p{n % 300 if shape == 'roots' else 0}", n * 0.1, 2_000 - n * 0.1)
        above = made.spans[-1] if shape == "deep" else None
    if shape == "times":
        first = made.spans[0]
        made.spans += [replace(first, id="8" * 16, start=(1 << 64) - 1, end=0), replace(first, id="9" * 16, name="")]
    await source.keep(made.made())
    await page.open(f"trace/{made.trace}")
    await page.until("document.querySelector('.row')")
    assert await page.page.locator(".row").count() < 80
    assert len(await page.texts(".legend button")) <= 16
    await page.page.get_by_role("tree").focus()
    for key in ("End", "Enter", "n", "0", "Home", "ArrowLeft", "ArrowRight"):
        await page.page.keyboard.press(key)
    assert await page.page.locator(".row.here").count() == 1


# ------------------------------------------------------------------ comparison, live, node


async def test_two_traces_are_chosen_and_compared(page: Tab) -> None:
    """The difference is told, and the rows say where it is."""
    await page.open("?image=team/app")
    await page.until("document.querySelectorAll('.traces tbody tr').length === 2")
    boxes = page.page.locator(".traces tbody input")
    await boxes.nth(1).check()
    await boxes.nth(0).check()
    await page.page.get_by_role("link", name="Compare").click()
    await page.until("document.querySelector('.sentence')")
    assert f"compare/{QUICK}/{SLOW}" in page.page.url
    assert "longer" in (await page.texts(".sentence"))[0]
    widths = await page.page.evaluate(
        "[...document.querySelectorAll('.strip')].map((strip) => [...strip.children].reduce((sum, each) => sum + each.getBoundingClientRect().width, 0) / strip.clientWidth)"
    )
    assert widths[1] == pytest.approx(1, abs=0.02)
    assert widths[0] < 0.4
    assert "+" in (await page.texts("tfoot td"))[3]
    await page.page.get_by_role("region", name="B").get_by_role("link").click()
    await page.page.get_by_role("link", name="Compare with the pull before").click()
    await page.until("location.hash.startsWith('#/compare/')")
    assert f"compare/{QUICK}/{SLOW}" in page.page.url


async def test_live_shows_what_is_under_way(page: Tab, source: MadeSource) -> None:
    """Each operation with the place where it stands and what it waits for; it is gone when it has ended."""
    await page.open("live")
    await page.page.get_by_text("Nothing is under way").wait_for()
    now = time.time_ns()
    running = pull("f" * 32, now - 4 * 10**9, rate=3.0)
    source.running(*(span for span in running.spans if span.start < now < span.end))
    await page.page.get_by_text("1 operation").wait_for()
    text = await page.page.locator(".operation").first.inner_text()
    assert "Pull" in text
    assert f"bytes of layer 3 from {REGISTRY}" in text
    assert "held by registry.fetch of layer 3" in text
    await page.page.get_by_role("link", name="app:1.4").click()
    await page.page.get_by_text("Still under way").wait_for()
    await source.keep(running)
    source.running()
    await page.page.get_by_role("button", name="Ask again").click()
    await page.page.get_by_text("Still under way").wait_for(state="detached")
    await page.page.go_back()
    await page.page.get_by_text("Nothing is under way").wait_for()


async def test_the_node_shows_its_processes_and_registries(page: Tab, source: MadeSource) -> None:
    """What cannot be asked is told above."""
    await page.open("node")
    table = page.page.get_by_role("table", name="Processes")
    assert "serves" in await table.get_by_role("row").nth(1).inner_text()
    assert "dead" in await page.page.get_by_role("table", name="Registries").inner_text()
    rows = page.page.get_by_role("table", name="Shadow of content").get_by_role("row")
    assert (await rows.nth(1).inner_text()).split()[:6] == ["Content/Status", "41", "0", "20", "20", "1"]
    assert "status.total differs in 20 calls" in (await page.texts(".difference"))[0]
    assert await page.page.locator(".difference a").get_attribute("href") == f"#/trace/{SLOW}"
    source.trouble = "the gateway does not answer"
    await page.page.evaluate(SEEN)
    await page.page.get_by_text("the gateway does not answer").wait_for()


# ------------------------------------------------------------------ for everybody


@pytest.mark.parametrize(
    "place",
    [
        "?operation=all",
        f"trace/{HOSTILE}",
        f"trace/{HOSTILE}?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E",
        f"compare/{HOSTILE}/{SLOW}",
        "live",
        "node",
        "trace/%3Cimg%20src=x%20onerror=alert(1)%3E",
    ],
)
async def test_names_are_text_and_never_markup(browser: Any, base: str, source: MadeSource, place: str) -> None:
    """Names of images, labels, processes and errors, and the address, may hold anything."""
    now = time.time_ns()
    source.running(*hostile("5" * 32, now - 10**9).spans)
    own = await browser.new_context()
    opened = Tab(await own.new_page(), base)
    asked: list[str] = []
    opened.page.on("request", lambda request: asked.append(request.url))
    opened.page.on("dialog", lambda dialog: asked.append(f"a dialog: {dialog.message}"))
    await opened.open(place)
    await opened.until("document.querySelector('tbody tr, .row, .sentence, #notice:not([hidden])')")
    if "%3C" not in place or "?" in place:
        await opened.until("(markup) => document.body.textContent.includes(markup)", MARKUP)
    if await opened.page.locator(".row").count():
        await opened.page.locator(".row").first.hover()
        await opened.page.locator(".row").first.click()
    assert await opened.page.locator("main img, main script, main iframe").count() == 0
    assert "injected" not in (await opened.page.title()).split(" – ", maxsplit=1)[0].replace(MARKUP, "")
    hrefs = await opened.page.evaluate("[...document.querySelectorAll('a[href]')].map((each) => each.href)")
    assert all(href.startswith(f"{base}/#") for href in hrefs), hrefs
    assert all(each.startswith(f"{base}/") for each in asked), asked
    assert not any("Content Security Policy" in each or "Trusted" in each for each in opened.wrong), opened.wrong
    await own.close()


async def test_the_policy_stops_what_would_be_injected_all_the_same(page: Tab) -> None:
    """If code of the page ever made markup of a text, the browser would refuse."""
    await page.open("")
    await page.until("document.querySelector('tbody tr')")
    refused = await page.page.evaluate(
        """() => {
          try { document.body.innerHTML = "<img src=x onerror=alert(1)>"; return false; } catch (error) { return String(error).includes("TrustedHTML"); }
        }"""
    )
    assert refused
    page.wrong.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", ["", f"trace/{SLOW}", f"compare/{QUICK}/{SLOW}", "node"])
async def test_texts_have_enough_contrast(browser: Any, base: str, place: str, scheme: str) -> None:
    """WCAG's AA: 4.5, and 3 for large texts, by the colours that the browser computes."""
    async with tab(browser, base, color_scheme=scheme) as opened:
        await opened.open(place)
        await opened.until("document.querySelector('tbody tr, .row')")
        if "trace/" in place:
            await opened.page.get_by_role("tree").focus()
        found = list(colours(await opened.page.evaluate(TEXTS)))
        assert len(found) > 15
        weak = [(text, round(ratio, 2)) for text, ratio, is_large in found if ratio < (3 if is_large else 4.5)]
        assert not weak
        back = await opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"[0-9]+", back)[0]) < 60) == (scheme == "dark")


@pytest.mark.parametrize("place", ["", f"trace/{SLOW}", f"trace/{HOSTILE}", f"compare/{QUICK}/{SLOW}", "live", "node"])
async def test_a_phone_needs_no_sideways_scrolling(browser: Any, base: str, place: str) -> None:
    """Nothing is wider than the screen, and what one touches is large enough."""
    async with tab(browser, base, viewport=PHONE, has_touch=True, is_mobile=True) as opened:
        await opened.open(place)
        await opened.until("document.querySelector('tbody tr, .row, .count:not(:empty)')")
        assert await opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        small = await opened.page.evaluate(
            "[...document.querySelectorAll('button, select, input[type=search], .action')].filter((each) => each.getBoundingClientRect().width && each.getBoundingClientRect().height < 24).map((each) => each.outerHTML)"
        )
        assert not small
        if f"trace/{SLOW}" in place:
            await opened.page.locator(".row").nth(1).tap()
            panel = opened.page.get_by_role("complementary", name="The span")
            assert "images.pull" in await panel.inner_text()
            await panel.get_by_role("button", name="Close").tap()
            assert not await panel.is_visible()


async def test_everything_is_reached_by_the_keyboard(page: Tab) -> None:
    """Tab comes to all that can be done, each with a name and a visible focus."""
    await page.open(f"trace/{SLOW}")
    await page.until("document.querySelector('.before a')")
    seen = []
    for _ in range(40):
        await page.page.keyboard.press("Tab")
        one = await page.page.evaluate(
            """() => {
              const each = document.activeElement;
              if (each === document.body) return null;
              const name = each.getAttribute("aria-label") || each.textContent.trim() || (each.labels && each.labels[0] && each.labels[0].textContent.trim());
              return [each.tagName, name, getComputedStyle(each).outlineStyle !== "none"];
            }"""
        )
        if one is None:
            break
        seen.append(one)
    assert all(name and visible for _, name, visible in seen), seen
    names = [name for _, name, _ in seen]
    for wanted in ("To the content", "Traces", "Critical path", "Find in spans", "Zoom in", "Spans", "images"):
        assert wanted in names, names
