"""The page in a headless Chromium: Debian's package, driven by playwright. CI has neither: marked slow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("playwright.sync_api", reason="type: pip install playwright")

from playwright.sync_api import sync_playwright

from o1_retriever import Index
from o1_retriever.documents import Document
from o1_retriever_server import create_app
from tests.support.adapters import METADATA, QUERY, TEXTS, THOUGHT, calibrated, small_embedder
from tests.support.http_server import ThreadServer, serving
from tests.support.reports import riddles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="type: apt-get install chromium"),
]
HOSTILE = (
    "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'> mirror "
    '<a href="javascript:window.harmed = 1">blank</a> ' + "bathroom " * 80
)
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    documents = [Document(id=name, text=text, metadata=METADATA[name]) for name, text in TEXTS.items()]
    documents.append(
        Document(
            id="<b>hostile</b>", text=HOSTILE, metadata={"title": "<img src=x onerror='window.harmed = 1'>"}
        )
    )
    reports = tmp_path_factory.mktemp("reports")
    riddles(reports, "mirror <script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'> {n}")
    with Index(tmp_path_factory.mktemp("page"), small_embedder()) as index:
        index.add(documents)
        made = create_app(small_embedder(), {"facts": index}, name="small", reports=[reports])
        with serving(made) as running:
            yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, server: ThreadServer) -> Iterator[Any]:
    opened = browser.new_page(viewport=DESK)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(server.url)
    opened.wait_for_selector("#serves:text-is('small')")
    yield opened
    opened.close()
    assert said == []


def ask(page: Any, query: str = QUERY) -> None:
    page.fill("#query", query)
    page.press("#query", "Enter")
    page.wait_for_selector("#with li", state="attached")


def picture(page: Any, name: str) -> None:
    """Kept for a person to look at where $O1_PICTURES names a folder."""
    if folder := os.environ.get("O1_PICTURES"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_a_search_shows_thoughts_and_what_they_moved(page: Any) -> None:
    ask(page)
    assert [THOUGHT in each for each in page.locator("#thoughts li").all_inner_texts()] == [True, True]
    assert "vapour" in page.locator("#with li h3").first.inner_text()
    assert (
        "new" in page.locator("#with .change").first.inner_text() or "▲" in page.locator("#with").inner_text()
    )
    assert page.locator("#without li").count() == 5
    assert "Thinking moved" in page.inner_text("#verdict")
    assert page.locator("#with mark.thought").count() > 0
    assert "Thinking" in page.inner_text("#timings")
    picture(page, "search")


def test_hostile_documents_are_shown_and_do_nothing(page: Any) -> None:
    ask(page)
    assert "<script>window.harmed" in page.inner_text("#with")
    assert page.locator("#rankings script, #rankings img, #rankings a, #rankings b").count() == 0
    assert page.evaluate("window.harmed") is None
    more = page.locator("#with button").first
    assert more.get_attribute("aria-expanded") == "false"
    more.click()
    assert more.get_attribute("aria-expanded") == "true"


def test_the_link_holds_the_state(page: Any, browser: Any) -> None:
    page.click("#options summary")
    page.fill("[name=k]", "2")
    page.select_option("[name=thinking]", "never")
    page.fill("[name=where]", '{"topic": "home"}')
    ask(page)
    assert page.locator("#with li").count() == 2
    assert page.is_hidden("#thinking")
    other = browser.new_page()
    other.goto(page.url)
    other.wait_for_selector("#with li")
    assert other.input_value("#query") == QUERY
    assert other.locator("#with li h3").all_inner_texts() == page.locator("#with li h3").all_inner_texts()
    other.close()


def test_a_thought_of_ones_own(page: Any) -> None:
    page.click("#options summary")
    page.fill("[name=thoughts]", "Yeast makes dough rise.")
    ask(page, "Why?")
    assert page.locator("#thoughts li").all_inner_texts() == ["Yeast makes dough rise."]
    assert "bread" in page.locator("#with li h3").first.inner_text()


def test_a_picture_of_the_vectors(page: Any) -> None:
    page.click("#to-audit")
    assert "Ask a question above" in page.inner_text("#map-said")
    ask(page)
    page.wait_for_selector("#plane .mean")
    assert page.locator("#plane :is(circle, rect, path)").count() == 1 + 2 + 1 + 5
    assert page.locator("#map-key li").count() == 1 + 2 + 5
    assert "%" in page.inner_text("#map-said")
    assert page.locator("#map script, #map img").count() == 0
    assert "view=audit" in page.url
    picture(page, "map")
    page.reload()
    page.wait_for_selector("#plane .mean")


def test_the_audit_of_a_report(page: Any) -> None:
    page.click("#to-audit")
    page.wait_for_selector("#reports table")
    assert page.get_attribute("#to-audit", "aria-current") == "page"
    assert page.is_hidden("#results")
    assert "it is what they say that helps" in page.inner_text("#reports .verdict")
    table = page.locator("#reports table").first
    assert table.locator("tbody tr").count() == 5
    assert table.locator("svg.whisker.good").count() == 5
    assert "<script>window.harmed" in page.inner_text("#reports")
    assert page.locator("#reports script, #reports img").count() == 0
    assert page.evaluate("window.harmed") is None
    picture(page, "audit")
    page.locator("#reports button").first.click()
    page.wait_for_selector("#with li")
    assert page.get_attribute("#to-search", "aria-current") == "page"
    assert page.input_value("#query").startswith("mirror <script>")
    page.go_back()
    page.wait_for_selector("#reports table")


def test_what_is_not_likely_relevant_is_left_out(page: Any, server: ThreadServer) -> None:
    page.click("#options summary")
    page.fill("[name=min_relevance]", "0.5")
    right = "document.querySelector({!r}).getBoundingClientRect().right"
    for name in ("k", "min_relevance", "where"):
        assert page.evaluate(right.format(f"[name={name}]")) <= page.evaluate(right.format("#ask"))
    with calibrated(server.service.retrievers["facts"].index):
        ask(page)
        assert "% likely" in page.locator("#with .score").first.inner_text()
        assert page.locator("#with li").count() < 5
        assert "min_relevance=0.5" in page.url
        page.fill("[name=min_relevance]", "1")
        page.press("#query", "Enter")
        page.wait_for_selector("#verdict:has-text('No passage is likely enough')")
        picture(page, "unlikely")


def test_what_is_wrong_is_said(page: Any) -> None:
    page.click("#options summary")
    page.fill("[name=where]", "{topic")
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert "The filter is not JSON" in page.inner_text("#problem")


def test_a_keyboard_is_enough(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("Tell me of dew and the mirror")
    page.keyboard.press("Enter")
    page.wait_for_selector("#with li")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    assert page.input_value("#query") == "Tell me of dew and the mirror"
    fields = "[...document.querySelectorAll('input, select, textarea')]"
    assert page.evaluate(f"{fields}.filter((each) => !each.labels.length).length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_in_both_schemes(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(PHONE)
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert dark is (scheme == "dark")
    picture(page, f"phone-{scheme}")
    page.click("#to-audit")
    page.wait_for_selector("#plane .mean")
    page.wait_for_selector("#reports table")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, f"phone-behind-{scheme}")


def test_examples_run_from_the_page_of_the_api(page: Any, server: ThreadServer) -> None:
    page.goto(f"{server.url}/docs")
    page.wait_for_selector("#operations section")
    first = page.locator("#operations div").filter(has=page.locator("textarea")).first
    first.locator("button").click()
    first.locator("pre:not(:empty)").wait_for()
    assert '"thoughts"' in first.locator("pre").inner_text()
    picture(page, "api")
