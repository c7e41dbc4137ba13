import shutil
from pathlib import Path

import nbformat
import pytest

from palimpsest.book import assemble as assembly
from palimpsest.book import browser_check
from palimpsest.book.assemble import assemble, banner, provenance_box
from palimpsest.book.browser_check import Report, broken_links, check, find_browser, is_local, raw_markup
from palimpsest.book.build import build
from palimpsest.book.offline import source
from palimpsest.book.profiles import load_profile
from palimpsest.errors import BookError
from tests.clone import Clone, make_clone

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    monkeypatch.setattr(assembly, "generators", lambda *_: [])
    return make_clone(tmp_path / "clone", monkeypatch)


def page(clone: Clone) -> nbformat.NotebookNode:
    return nbformat.read(clone.root / "book/_pages/01_tiny.ipynb", as_version=4)


def test_what_was_not_run_gets_a_stub_that_keeps_its_label(clone: Clone) -> None:
    assemble("laptop")
    text = (clone.root / "book/_pages/01_tiny.md").read_text()
    assert text.startswith("(tiny)=\n# A tiny result: not run yet in this profile\n")
    assert "make book PROFILE=laptop" in text


def test_a_page_names_its_profile_between_title_and_text(clone: Clone) -> None:
    clone.pretend_run()
    assert [path.name for path in assemble("laptop")] == ["01_tiny.ipynb"]
    cells = page(clone).cells
    assert [cell.id for cell in cells[:4]] == ["title", "verdict-strip", "after-title", "banner"]
    assert cells[0].source == "(tiny)=\n# A tiny result"
    assert cells[2].source == "What is twice a number?"
    assert "Profile laptop: tiny" in cells[3].source
    assert "a test of the machinery" in cells[3].source
    assert "Stale" not in cells[3].source


def test_a_stale_page_says_so_and_why(clone: Clone) -> None:
    clone.pretend_run()
    clone.write_toy("FACTOR = 2.0", "FACTOR = 3.0")
    assemble("laptop")
    text = page(clone).cells[3].source
    assert "{admonition} Stale" in text
    assert "changed since the run: code (toy.FACTOR)" in text


def test_a_page_shows_the_present_prose(clone: Clone) -> None:
    clone.pretend_run()
    clone.write_notebook(prose="Corrected words.")
    assemble("laptop")
    assert page(clone).cells[2].source == "Corrected words."
    assert "Stale" not in page(clone).cells[3].source


def test_the_box_at_the_end_says_how_it_was_made(clone: Clone) -> None:
    clone.pretend_run()
    assemble("laptop")
    box = page(clone).cells[-1].source
    assert box.startswith("````{admonition} Provenance\n:class: note dropdown")
    for row in (
        "| parameters | seed = 2, odd\\_name = a\\|b |",
        "| model | name = tiny, sha256 = 0123456789ab |",
        "| dtype | float32 |",
        "| code revision | abc |",
        "| wall time | 1,234 s |",
        "| peak memory | 2,048 MiB |",
    ):
        assert row in box


def test_the_box_names_the_revision_that_a_result_was_confirmed_with(clone: Clone) -> None:
    clone.pretend_run(confirmed=[{"revision": "def"}])
    assemble("laptop")
    text = "made with abc, confirmed at smoke size with def"
    assert f"| confirmed | {text} |" in page(clone).cells[-1].source


def test_a_run_without_a_record_still_has_a_box(clone: Clone) -> None:
    box = provenance_box({}, {}, load_profile("laptop"))
    assert "| model | name = tiny |" in box
    assert "| code revision | unknown |" in box


def test_other_profiles_stand_beside_but_not_smoke(clone: Clone) -> None:
    clone.pretend_run()
    clone.pretend_run("gpu-big", doubled=400.0)
    clone.pretend_run("smoke", doubled=1.0)
    assemble("laptop")
    text = page(clone).cells[3].source
    assert "Also run in: gpu-big" in text
    assert "| value | laptop | gpu-big |" in text
    assert "| doubled | 4 \\[3, 5\\] | 400 \\[399, 401\\] |" in text


def test_pages_of_an_earlier_build_are_removed(clone: Clone) -> None:
    assemble("laptop")
    clone.pretend_run()
    assemble("laptop")
    assert [path.name for path in (clone.root / "book/_pages").iterdir()] == ["01_tiny.ipynb"]


def test_the_generated_pages_are_those_of_the_contents() -> None:
    names = [out.name for _, out in assembly.generators(Path(), "laptop")]
    contents = (ROOT / "book/_toc.yml").read_text() + "\n"
    assert {"figures.md", "verdicts.md", "audit.md", "licences.md", "api.md"} < set(names)
    assert [name for name in names if f"_generated/{Path(name).stem}\n" not in contents] == []


def test_a_banner_without_a_reason_is_not_stale(clone: Clone) -> None:
    assert "Stale" not in banner(load_profile("laptop"), None)
    assert "To read" not in banner(load_profile("laptop"), None)
    assert "To read: 4 min." in banner(load_profile("laptop"), None, minutes=4)


def test_a_page_that_older_code_has_drawn_says_how_to_draw_it(clone: Clone) -> None:
    clone.pretend_run()
    assemble("laptop")
    assert "`palimpsest render 01_tiny --profile laptop` draws the page again" in page(clone).cells[3].source


# The build


@pytest.mark.slow
def test_a_warning_fails_the_build_and_a_clean_page_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assembly, "generators", lambda *_: [])
    clone = make_clone(tmp_path / "clone", monkeypatch, whole=True)
    config = (ROOT / "_config.yml").read_text()
    (clone.root / "_config.yml").write_text(config)
    shutil.copytree(ROOT / "book/static", clone.root / "book/static")
    (clone.root / "book/_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (clone.root / "book/references.bib").touch()
    intro = clone.root / "book/intro.md"
    intro.write_text("# Intro\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(BookError, match="the warnings above count as errors"):
        build("laptop")
    assert "undefined label: 'nowhere'" in capsys.readouterr().err
    intro.write_text("# Intro\n\nFormula $x$.\n")
    index = build("laptop")
    html = index.parent / "book" / "intro.html"
    assert "thebe" not in html.read_text().lower()
    assert (index.parent / "_static/mathjax/tex-svg.js").stat().st_size == source().stat().st_size


# The browser check


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("all is well, 3 < 4 and 5 USD", []),
        ("left over: \\frac{a}{b}", ["raw TeX: '\\\\frac'"]),
        ("left over: $x + y$ here", ["raw TeX: '$x + y$'"]),
        ("{cite:t}`someone`", ["raw MyST: '{cite:t}`'"]),
        ("(label)=", ["raw MyST: '(label)='"]),
        ("| method | value | |:--|--:| | MEMIT | 1 |", ["raw table: '|:--|'"]),
        ("Interval(mean=0.27, low=0.1, high=0.4)", ["raw object: 'Interval(mean='"]),
    ],
)
def test_markup_that_reached_the_reader(text: str, faults: list[str]) -> None:
    assert raw_markup(text) == faults


def test_links_are_followed_to_file_and_anchor(tmp_path: Path) -> None:
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    one.touch()
    two.touch()
    links = {
        f"{two.as_uri()}#there",
        f"{two.as_uri()}#absent",
        (tmp_path / "three.html").as_uri(),
        "https://example.org/#x",
    }
    report = Report(links={one.as_uri(): links}, anchors={one.as_uri(): set(), two.as_uri(): {"there"}})
    assert broken_links(report) == [
        f"one.html: link to a missing file: {(tmp_path / 'three.html').as_uri()}",
        f"one.html: link to a missing anchor: {two.as_uri()}#absent",
    ]


def test_what_counts_as_leaving_the_disk() -> None:
    urls = ["file:///a", "data:image/png;base64,", "https://a.b/c", "//a.b/c", "ws://a"]
    assert [is_local(url) for url in urls] == [True, True, False, False, False]


BROKEN_PAGE = """<html data-theme="light"><body><p id="a">$$ x $$</p><a href="#b">b</a><img src="no.png">
<figure><img alt="_images/x.png" src="data:,"></figure><p style="width: 1000px">wide</p>
<article class="bd-article"><p style="color: #999">pale words</p></article>
<script>console.error("planted"); fetch("http://127.0.0.1:9/x").catch(() => 0); undefinedName;</script>"""

RESULT = """<html data-theme="light"><body><article class="bd-article">two words
<div class="cell" style="width: 900px; overflow: hidden"><div class="cell_input"><pre>x = 1</pre></div></div>
<details><summary></summary><div class="cell_input"><pre>folded words do not count</pre></div></details>
"""


@pytest.mark.slow
@pytest.mark.skipif(
    find_browser() is None, reason="no browser; runs where chromium or Google Chrome is installed"
)
def test_the_check_finds_planted_faults(tmp_path: Path) -> None:
    html = tmp_path / "html"
    html.mkdir()
    (html / "page.html").write_text(BROKEN_PAGE)
    (html / "book" / "_generated").mkdir(parents=True)
    (html / "book" / "_generated" / "verdicts.html").write_text('<table class="claims"><tbody><tr><td>P01')
    (html / "_pages").mkdir()
    (html / "_pages" / "result.html").write_text(RESULT)
    (html / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=gone.html" />')
    (html / "search.html").write_text('<html data-theme="light"><div id="search-results">')
    browser = find_browser()
    assert browser
    faults = "\n".join(check(html, browser, tmp_path / "shots").faults)
    for planted in (
        "page.html (light): remote request: http://127.0.0.1:9/x",
        "page.html (light): console error: planted",
        "page.html (light): page error: undefinedName is not defined",
        "page.html (light): picture does not load",
        "page.html (light): raw TeX",
        "page.html (dark): the page's theme is 'light'",
        "page.html: link to a missing anchor",
        "index.html: link to a missing file",
        "search.html (light): finds nothing for 'edit'",
        "page.html (light): picture without a description: data:,",
        "page.html (light, 390 px): ",
        "verdicts.html (dark): the filter of the claims does not work",
        "_pages/result.html (dark): a page of results without the verdicts of its claims",
        "_pages/result.html (light): a page of results without its answer",
        "_pages/result.html (dark): 60% of the visible words are code, more than 35%",
        "_pages/result.html (light, 390 px): ",
        'page.html (light): too pale: p. "pale words" 2.85',
    ):
        assert planted in faults
    assert (tmp_path / "shots/dark/page.png").is_file()
    assert (tmp_path / "shots/light/page__phone.png").is_file()


def test_the_check_needs_a_book(clone: Clone) -> None:
    with pytest.raises(BookError, match="holds no book; build it with 'make html PROFILE=laptop'"):
        browser_check.main("laptop")


def test_a_page_about_formulas_names_no_model_in_its_banner() -> None:
    record = {"facts": {"model": {"name": "none, random problems"}}}
    text = banner(load_profile("laptop"), None, record)
    assert "no language model (random problems)" in text
    assert "smollm2" not in text
    assert "smollm2" in banner(load_profile("laptop"), None, {"facts": {"model": {"name": "smollm2-135m"}}})
