"""Check of the built book: every page is opened from disk in a headless browser, and faults are reported.

Faults are remote requests, console errors, broken links and anchors, formulas, MyST roles and Python objects
left as raw text, images that do not load or have no description, pages and cells wider than the window, pale
texts, pages of results without an answer or the verdicts of their claims, or with more code than text, a
search without results and a filter without effect. Pages are opened at the width of a screen and of a phone,
and screenshots in light and dark mode are kept.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as BrowserTimeout
from tqdm import tqdm

from palimpsest import paths
from palimpsest.book.build import html_dir
from palimpsest.errors import BookError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NOT_RUN = (
    "NOT RUN: no browser found; install Debian's or Ubuntu's package 'chromium' "
    "(apt-get install chromium) or Google Chrome, and run 'make test' again"
)
SCHEMES = ("light", "dark")
WIDTHS = (1400, 390)
"""Of the window in pixels: a screen, and a phone."""
SEARCH_WORD = "edit"
MOST_CODE = 0.35
"""Largest share of code among the visible words of a page of results."""
CONTRAST = 4.5
"""Least contrast of a text with what it stands on (WCAG 2, level AA)."""

QUESTIONS = Path(__file__).with_suffix(".js")
"""What is asked of a page, in JavaScript."""

_REDIRECT = re.compile(r'http-equiv="refresh"[^>]*url=([^">]+)', re.IGNORECASE)
RAW = {
    "raw TeX": re.compile(r"\\[a-zA-Z]{2,}|\\[()\[\]]|\$\$|\$[^\s$][^$\n]{0,80}\$"),
    "raw MyST": re.compile(r"\{[a-z]+(:[a-z]+)?\}`|:::\{|```|^\([\w-]+\)=$", re.MULTILINE),
    "raw table": re.compile(r"\|:?-{2,}:?\|"),
    "raw object": re.compile(r"\b(Interval|Judgement|Verdict)\(\w+="),
}


@dataclass
class Report:
    """Result of the check.

    Attributes:
        faults: descriptions of faults.
        anchors: URL of a page -> its anchors.
        links: URL of a page -> targets of its links.
    """

    faults: list[str] = field(default_factory=list)
    anchors: dict[str, set[str]] = field(default_factory=dict)
    links: dict[str, set[str]] = field(default_factory=dict)


def find_browser() -> str | None:
    """Path of the first suitable browser on PATH, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def check(html: Path, browser: str, screenshots: Path) -> Report:
    """Visit every page in both colour schemes, then check all links between the pages.

    Args:
        html: folder of the built book.
        browser: path of the executable.
        screenshots: folder for the screenshots; it is emptied first.
    """
    report = Report()
    shutil.rmtree(screenshots, ignore_errors=True)
    pages = real_pages(html, report)
    for scheme in SCHEMES:
        with _tab(browser, scheme, report) as tab:
            for path in tqdm(pages, desc=f"looking, {scheme}", unit="page", disable=None, leave=False):
                name = path.relative_to(html).as_posix()
                picture = name.removesuffix(".html").replace("/", "__")
                tab.set_viewport_size({"width": WIDTHS[0], "height": 900})
                _visit(tab, path, f"{name} ({scheme})", scheme, report)
                tab.screenshot(path=screenshots / scheme / f"{picture}.png", full_page=True)
                tab.set_viewport_size({"width": WIDTHS[1], "height": 844})
                wider = tab.evaluate("palimpsestCheck.wider()")
                report.faults += too_wide(wider, f"{name} ({scheme}, {WIDTHS[1]} px)")
                tab.screenshot(path=screenshots / scheme / f"{picture}__phone.png")
            _search(tab, html, scheme, report)
            _filter(tab, html, scheme, report)
    report.faults += broken_links(report)
    return report


def real_pages(html: Path, report: Report) -> list[Path]:
    """All pages except redirects, whose targets are added to the links of the report."""
    pages = []
    for path in sorted(html.rglob("*.html")):
        leads_to = _REDIRECT.search(path.read_text("utf-8"))
        if leads_to:
            report.links[path.as_uri()] = {(path.parent / leads_to.group(1)).as_uri()}
        elif "_static" not in path.parts:
            pages.append(path)
    return pages


@contextmanager
def _tab(browser: str, scheme: Any, report: Report) -> Iterator[Page]:
    """A browser tab that adds remote requests and errors to the report."""
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=browser, args=list(FLAGS))
        context = running.new_context(color_scheme=scheme)
        context.add_init_script(path=QUESTIONS)
        tab = context.new_page()

        def note(wrong: bool, kind: str, text: str) -> None:
            if wrong:
                report.faults.append(f"{Path(tab.url).name} ({scheme}): {kind}: {text}")

        tab.on("request", lambda r: note(not is_local(r.url), "remote request", r.url))
        tab.on("console", lambda m: note(m.type == "error", "console error", m.text))
        tab.on("pageerror", lambda e: note(True, "page error", str(e)))
        yield tab
        running.close()


def is_local(url: str) -> bool:
    """Whether a request needs no network."""
    return urlparse(url).scheme in ("file", "data", "blob", "about")


def _visit(tab: Page, path: Path, where: str, scheme: str, report: Report) -> None:
    tab.goto(path.as_uri())
    tab.evaluate("palimpsestCheck.settled()")
    facts = tab.evaluate("palimpsestCheck.facts()")
    report.anchors[path.as_uri()] = set(facts["ids"])
    report.links.setdefault(path.as_uri(), set()).update(facts["links"])
    report.faults += [f"{where}: picture does not load: {source}" for source in facts["broken"]]
    report.faults += [f"{where}: picture without a description: {source}" for source in facts["undescribed"]]
    report.faults += too_wide(facts["wider"], where)
    if path.parent.name == "_pages" and not facts["strips"]:
        report.faults.append(f"{where}: a page of results without the verdicts of its claims")
    if path.parent.name == "_pages" and not facts["answers"]:
        report.faults.append(f"{where}: a page of results without its answer")
    share = tab.evaluate("palimpsestCheck.codeShare()") if path.parent.name == "_pages" else 0
    if share > MOST_CODE:
        report.faults.append(f"{where}: {share:.0%} of the visible words are code, more than {MOST_CODE:.0%}")
    report.faults += [
        f"{where}: too pale: {text}" for text in tab.evaluate(f"palimpsestCheck.pale({CONTRAST})")
    ]
    report.faults += [f"{where}: MathJax cannot read: {text}" for text in facts["math"]]
    report.faults += [f"{where}: {fault}" for fault in raw_markup(tab.evaluate("palimpsestCheck.text()"))]
    if facts["theme"] != scheme:
        report.faults.append(f"{where}: the page's theme is {facts['theme']!r}")


def too_wide(pixels: int, where: str) -> list[str]:
    """Fault of a page that is wider than its window by so many pixels."""
    return [f"{where}: {pixels} pixels wider than the window"] if pixels > 0 else []


def raw_markup(text: str) -> list[str]:
    """Faults of a page's text: formulas, roles and tables left as raw markup."""
    return [f"{kind}: {found[0]!r}" for kind, rule in RAW.items() if (found := rule.search(text))]


def _search(tab: Page, html: Path, scheme: str, report: Report) -> None:
    tab.goto(f"{(html / 'search.html').as_uri()}?q={SEARCH_WORD}")
    try:
        tab.wait_for_selector("#search-results li a", timeout=10_000)
    except BrowserTimeout:
        report.faults.append(f"search.html ({scheme}): finds nothing for {SEARCH_WORD!r}")


def _filter(tab: Page, html: Path, scheme: str, report: Report) -> None:
    """Whether the table of claims can be filtered, where there is one."""
    page = html / "book" / "_generated" / "verdicts.html"
    if not page.is_file():
        return
    tab.goto(page.as_uri())
    every = tab.evaluate("palimpsestCheck.claims()")
    button = tab.query_selector(".claims-filter button")
    if button is not None:
        button.click()
    if button is None or not 0 < tab.evaluate("palimpsestCheck.claims()") < every:
        report.faults.append(f"verdicts.html ({scheme}): the filter of the claims does not work")


def broken_links(report: Report) -> list[str]:
    """Faults of the links between pages: missing files or anchors."""
    faults = []
    for page, links in sorted(report.links.items()):
        for link in sorted(links):
            target, anchor = urldefrag(link)
            target = target.split("?")[0]
            if not target.startswith("file:"):
                continue
            if not Path(unquote(urlparse(target).path)).is_file():
                faults.append(f"{Path(page).name}: link to a missing file: {link}")
            elif anchor and unquote(anchor) not in report.anchors.get(target, {unquote(anchor)}):
                faults.append(f"{Path(page).name}: link to a missing anchor: {link}")
    return faults


def main(profile: str) -> int:
    """Check the book of a profile; returns 0 if it passed, 1 if not, and 3 if there is no browser.

    Raises:
        BookError: if the book has not been built.
    """
    html = html_dir(profile)
    if not (html / "index.html").is_file():
        raise BookError(f"{html} holds no book; build it with 'make html PROFILE={profile}'")
    browser = find_browser()
    if browser is None:
        print(NOT_RUN)
        return 3
    screenshots = paths.build_dir() / "screenshots" / profile
    report = check(html, browser, screenshots)
    faults = sorted(set(report.faults))
    print(*faults, f"screenshots are in {screenshots}", sep="\n")
    verdict = "failed" if faults else "passed"
    print(f"{verdict}: {len(report.anchors)} pages in light and dark, {len(faults)} faults")
    return 1 if faults else 0
