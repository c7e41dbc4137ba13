"""Badges of verdicts, the strip at a page's head, the map, and the sections of the verdicts page."""

import re
from xml.etree import ElementTree

from palimpsest.book import badges
from palimpsest.book.claim_details import detail
from palimpsest.results.claims import (
    PUBLISHED,
    Awaited,
    Changed,
    Claim,
    Verdict,
    headline,
    judged,
    load_claims,
)
from palimpsest.results.effects import Effect, Parts
from palimpsest.results.labels import badge
from palimpsest.results.reservations import AS_PUBLISHED
from palimpsest.results.rules import OWN_DATA, UNTESTED, Judgement

CLAIMS = load_claims()
FOUND = judged(CLAIMS)


def test_the_strip_links_every_claim_of_a_page() -> None:
    tested = [claim for claim in CLAIMS.claims if claim.notebook == "05_memorize_the_latest"]
    shown = badges.strip(tested, FOUND)
    assert shown.count("href=") == len(tested) > 1
    for claim in tested:
        assert f'href="../_generated/verdicts.html#claim-{claim.id.lower()}"' in shown
        assert f"{claim.id} {headline(claim, FOUND[claim.id]).label}".replace("'", "&#x27;") in shown


def test_a_page_without_claims_says_so() -> None:
    assert "No claim of a paper is tested here" in badges.strip([], FOUND)


def test_the_map_has_a_square_for_every_claim() -> None:
    shown = badges.claims_map(CLAIMS, FOUND)
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", shown, re.DOTALL)[0])  # type: ignore[index]
    links = [element.attrib["href"] for element in svg.iter("a")]
    assert links == [f"{badges.VERDICTS}#claim-{claim.id.lower()}" for claim in CLAIMS.claims]
    boxes = [(float(r.attrib["x"]), float(r.attrib["y"])) for r in svg.iter("rect")]
    assert len(set(boxes)) == len(links)
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    assert all(x + badges.SIDE <= width and y + badges.SIDE <= height for x, y in boxes)
    assert str(next(title.text for title in svg.iter("title"))).startswith("P01: ")


PART = {"name": "the first <effect>", "rule": Effect(value="a", direction="positive", worth=1)}
CLAIM = Claim(
    id="P01",
    paper="alphaedit_plus",
    place="Table 1",
    kind="N",
    statement="Something rises & something falls.",
    notebook="03_alphaedit_plus_lemmas",
    rule=Parts(parts=[PART, PART | {"name": "the second"}], shows=("b",)),
    paper_ran="one model.",
    awaits=Awaited(page="16", what="the paper's regime"),
    changed=[Changed(date="2026-01-02", why="a limit had no source")],
)
ENTRY = {"value": 2.0, "low": 1.0, "high": 3.0, "unit": "percent", "over": "cases", "n": 30}


def told(**fields: object) -> str:
    given = {"claim": "P01", "label": "undecided", "profile": "laptop", "reason": "because"}
    return detail(CLAIM, [Verdict(**{**given, **fields})])  # type: ignore[arg-type]


def test_a_record_that_is_older_than_its_sources_is_called_so() -> None:
    item = Verdict("P01", "undecided", "long", "because")
    said = "The record of the profile long is older than its sources."
    assert said in detail(CLAIM, [item], older=True)
    assert said not in detail(CLAIM, [item])


def test_a_section_says_what_was_claimed_found_and_changed() -> None:
    text = told(values={"a": ENTRY, "b": ENTRY}, parts=(("the first <effect>", Judgement("undecided", "2")),))
    assert '<details class="claim" id="claim-p01"><summary>P01 <span class="verdict' in text
    assert "Something rises &amp; something falls." in text
    assert "Table 1; published numbers, page {doc}`03 <../_pages/03_alphaedit_plus_lemmas>`." in text
    assert "*Undecided* (profile laptop): each part is judged alone." in text
    assert r"| the first \<effect\> |" in text
    assert "In the paper: one model." in text
    assert r"Recorded: `b` 2\.0 \[1.0, 3.0\] over 30 cases." in text
    assert "Changed on 2026-01-02, after its run: a limit had no source." in text
    assert text.rstrip().endswith("</details>\n```")


def test_a_section_of_one_effect_gives_its_reason() -> None:
    assert "*Undecided* (profile laptop): because." in told()
    assert "(profile" not in told(profile=PUBLISHED)
    assert "Recorded" not in told()


def test_what_is_awaited_is_said_before_the_parts() -> None:
    parts = (("one", Judgement("undecided", "x")),)
    text = told(label=UNTESTED, reason="still to come on page 16: it; so far: one: undecided, x", parts=parts)
    assert "*Not tested in the paper's regime* (profile laptop): still to come on page 16: it." in text


def test_a_part_that_is_as_large_as_published_on_other_data_has_the_colours_of_such_data() -> None:
    """As in the carried record of A09; no label of its own exists for it."""
    found = Judgement(AS_PUBLISHED, "1 [0.5, 1.5]")
    claim = load_claims().claims[0]
    verdict = Verdict(claim.id, OWN_DATA, "laptop", "made up", {}, (("a part", found),))
    told = detail(claim, [verdict])
    assert badge(OWN_DATA, AS_PUBLISHED) in told
