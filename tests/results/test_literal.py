"""Texts that hold markup are shown as they are: checked on what the book's own parser makes of them."""

import html
import re

import pandas as pd
import pytest
from docutils.core import publish_parts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from myst_parser.docutils_ import Parser

from palimpsest.book.assemble import other_profiles, provenance_box
from palimpsest.book.claim_details import detail
from palimpsest.book.profiles import load_profile
from palimpsest.book.verdicts import _row
from palimpsest.results.claims import Verdict, load_claims
from palimpsest.results.tables import frame_table, plain, table

SPITEFUL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "*a* _b_ **c** __d__ ~~e~~ ^f^",
    "{ref}`claim-P01` {{ substitution }} {eval-rst}",
    "```{raw} html",
    ":::{note}",
    "[a](javascript:alert(1)) ![b](c.png) [d]: e",
    "$x_1$ and $$y$$ and \\alpha",
    "# heading",
    "(label)=",
    "% comment",
    "+++",
    "- item",
    "1. item",
    "---",
    "&lt;b&gt; &amp; &copy;",
    "a | b | c",
    "../../etc/passwd and C:\\temp\\new",
    "<https://example.org> <a@b.c>",
)
EXTENSIONS = ["dollarmath", "amsmath", "substitution", "colon_fence", "html_image", "attrs_inline"]


def rendered(text: str) -> str:
    """HTML of some MyST, as the book's parser makes it."""
    options = {
        "myst_enable_extensions": EXTENSIONS,
        "report_level": 1,
        "halt_level": 5,
        "warning_stream": False,
    }
    return str(publish_parts(text, parser=Parser(), writer_name="html5", settings_overrides=options)["body"])


def shown(markup: str) -> str:
    """What a reader sees of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


@pytest.mark.parametrize("text", SPITEFUL)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    """In a paragraph, at its beginning and inside, and in a table."""
    for markup in (rendered(plain(text)), rendered(f"Before {plain(text)} after")):
        assert re.fullmatch(r"<p>[^<]*</p>\s*", markup)
    assert shown(rendered(plain(text))) == " ".join(text.split())
    cells = re.findall(r"<td>(.*?)</td>", rendered(table(["a", "b"], [[plain(text), "last"]])), re.DOTALL)
    assert [shown(cell) for cell in cells] == [" ".join(text.split()), "last"]
    assert "<" not in "".join(re.findall(r"<td><p>(.*?)</p></td>", "".join(cells)))


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1).filter(str.strip)
)
@example("1) a")
@example("\\")
def test_any_text_is_shown_as_it_is(text: str) -> None:
    line = " ".join(text.split())
    assert shown(rendered(plain(line))) == line
    assert re.fullmatch(r"<p>[^<]*</p>\s*", rendered(plain(line)))


@pytest.mark.parametrize("text", SPITEFUL)
def test_a_fact_in_a_table_of_a_page(text: str) -> None:
    frame = pd.DataFrame({"fact": [text], "value": [0.5]})
    made = rendered(frame_table(frame, {"fact": ("fact", ""), "value": ("p", ".1f")}))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", made, re.DOTALL)
    assert [shown(cell) for cell in cells] == [" ".join(text.split()), "0.5"]


@pytest.mark.parametrize("text", SPITEFUL)
def test_a_claim_and_what_was_found(text: str) -> None:
    claim = next(one for one in load_claims().claims if one.paper_ran and one.rule is not None)
    claim = claim.model_copy(
        update={"statement": text, "place": text, "paper_ran": text, "mathematics": text}
    )
    found = Verdict(claim.id, "reproduced", "laptop", text)
    page = detail(claim, [found])
    line = " ".join(text.split())
    blocks = [part for part in page.split("\n\n") if not part.startswith(("(claim", "```"))]
    body = shown(rendered("\n\n".join(blocks)))
    assert body.count(line) >= 3
    assert shown(_row(claim, "source", "reproduced")).count(line) >= 2
    assert "<script>" not in page + _row(claim, "source", "reproduced")


def test_boxes_of_a_page() -> None:
    setting = load_profile("smoke")
    for text in SPITEFUL:
        box = provenance_box({"parameters": {"data": text}, "facts": {"model": text}}, {}, setting)
        inner = box.split("\n\n", 1)[1].rsplit("\n````", 1)[0]
        assert shown(rendered(inner)).count(" ".join(text.split())) >= 2
        assert "<script>" not in rendered(inner)
    assert other_profiles("no such page", "smoke", {"values": {}}) == ""
