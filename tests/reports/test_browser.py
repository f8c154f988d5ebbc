"""Pages in a real browser: nothing is logged, nothing is fetched, nothing is wider than a phone."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from ssmdiag.reports import Settings, render
from tests.browser import REQUIRED, Browser, browsing, find_browser
from tests.reports.example_diagnoses import diagnosis, layer, remembering
from tests.reports.test_page import PAGED, Case

PAGED = (
    PAGED
    | {
        "deep": Case(
            diagnosis(*(remembering(layer(i, half_life=2 * 1.2**i)) for i in range(64)), context_length=4096), None
        ),  # type: ignore[arg-type]
        "never decays": Case(
            diagnosis(replace(layer(0), histogram=(*layer(0).histogram[:-1], 4)), context_length=2048), None
        ),  # type: ignore[arg-type]
        "wide names": Case(diagnosis(*(replace(layer(0), name=one * 60) for one in "xWi表"), context_length=512), None),  # type: ignore[arg-type]
        "long names": Case(diagnosis(*(remembering(layer(10**60 + i)) for i in range(3)), context_length=512), None),  # type: ignore[arg-type]
    }
)
WIDER = (
    "[...document.querySelectorAll('body *')]"
    ".filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)"
    ".map(e => e.outerHTML.slice(0, 80))"
)
"""What sticks out to the right, but for what scrolls in a box of its own."""

COLLIDING = """[...document.querySelectorAll('svg')].flatMap(picture => {
  const said = [...picture.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()])
  const ground = picture.getBoundingClientRect()
  const out = said.filter(([, a]) => a.left < ground.left - 1 || a.right > ground.right + 1).map(([word]) => word)
  const over = ([, a], [, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4
  return [...out, ...said.flatMap((a, k) => said.slice(k + 1).filter(b => over(a, b)).map(b => a[0] + ' / ' + b[0]))]
})"""
"""Words of pictures that leave them, or lie on each other."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with browsing(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_a_browser_that_is_required_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(REQUIRED, raising=False)
    assert find_browser() is None
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(LookupError):
        find_browser()


@pytest.mark.one_in(9)
@pytest.mark.parametrize("case", PAGED)
def test_a_page_is_quiet_and_fits(case: str, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGED[case].page().document())
    shots = os.environ.get("SSMDIAG_SCREENSHOTS")
    for width in (320, 390, 1280):
        for dark in (False, True):
            browser.open(file, width=width, dark=dark)
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value(WIDER) == []
            assert browser.value(COLLIDING) == []
            ground = browser.value("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
            assert browser.value("document.compatMode") == "CSS1Compat"
            assert browser.value("document.querySelectorAll('svg').length") == len(PAGED[case].page().pictures)
            if shots and width != 320:
                browser.picture(Path(shots) / f"{case.replace(' ', '-')}-{width}-{'dark' if dark else 'light'}.png")
            assert browser.complaints() == []
            assert browser.asked_for() == []


def test_a_page_is_printed_light_and_every_table_whole(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGED["deep"].page().document())
    browser.open(file, width=760, dark=True, media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value(
        "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX == 'visible')"
    )
    printed = browser.ask("Page.printToPDF", printBackground=False)["data"]
    assert len(printed) > 10_000


def test_a_picture_is_a_file_that_a_browser_shows(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "picture.svg"
    file.write_text(render([PAGED["deep"].result], "svg", Settings()))
    browser.open(file, width=960)
    assert browser.value("document.documentElement.localName") == "svg"
    assert browser.value("getComputedStyle(document.querySelector('.ground')).fill") == "rgb(255, 255, 255)"
    assert browser.complaints() == []


def test_what_a_page_would_fetch_or_run_is_seen_and_refused(browser: Browser, tmp_path: Path) -> None:
    spoilt = PAGED["diagnosis"].page().document().replace("</main>", "<script>document.title='x'</script></main>")
    file = tmp_path / "spoilt.html"
    file.write_text(spoilt.replace("</main>", "<img src='http://127.0.0.1:9/a.png'></main>"))
    browser.open(file, width=390)
    assert browser.value("document.title") != "x"
    assert browser.complaints()
    file.write_text(file.read_text().replace("Content-Security-Policy", "X-None"))
    browser.open(file, width=390)
    assert browser.value("document.title") == "x"
    assert browser.asked_for() == ["http://127.0.0.1:9/a.png"]
