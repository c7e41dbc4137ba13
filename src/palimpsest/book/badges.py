"""The verdicts of a page as a strip at its head, and the map of all claims, as HTML."""

import html
import re
from collections.abc import Mapping, Sequence

from palimpsest.results.claims import Claim, Claims, Verdict, headline
from palimpsest.results.labels import badge, colours
from palimpsest.results.rules import LABELS

VERDICTS = "_generated/verdicts.html"
"""Address of the verdicts page inside ``book/``."""
SIDE, GAP, NAME_WIDTH, A_ROW = 34, 4, 208, 12
"""Of the map, in units of its view box: side of a square, gap, width of the names, squares in a row."""


def anchor(claim: str) -> str:
    """Id of a claim's paragraph on the verdicts page."""
    return f"claim-{claim.lower()}"


def raw(markup: str) -> str:
    """HTML as a block of a Markdown page, whose fence is longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", markup)), default=0))
    return f"{fence}{{raw}} html\n{markup}\n{fence}\n"


def labels_of(claims: Sequence[Claim], found: Mapping[str, Sequence[Verdict]]) -> dict[str, str]:
    """Id of each claim -> the label that stands for it."""
    return {claim.id: headline(claim, found[claim.id]).label for claim in claims}


def strip(claims: Sequence[Claim], found: Mapping[str, Sequence[Verdict]]) -> str:
    """The claims of one page with their verdicts, each a link to where it is explained.

    Args:
        claims: that the page tests.
        found: id of a claim -> its verdicts.
    """
    badges = [
        badge(label, f"{name} {label}", f"../{VERDICTS}#{anchor(name)}")
        for name, label in labels_of(claims, found).items()
    ]
    if not badges:
        everything = f'<a href="../{VERDICTS}">all verdicts</a>'
        return raw(f'<p class="verdict-strip">No claim of a paper is tested here; see {everything}.</p>')
    return raw('<p class="verdict-strip">Claims tested here: ' + " ".join(badges) + "</p>")


def claims_map(claims: Claims, found: Mapping[str, Sequence[Verdict]]) -> str:
    """All claims as coloured squares, rows of them for each source, each square a link to its claim.

    Args:
        claims: all claims.
        found: id of a claim -> its verdicts.
    """
    labels = labels_of(claims.claims, found)
    parts, top = [], 0
    for paper in claims.papers:
        group = claims.of(paper.id)
        parts.append(
            f'<text class="map-name" x="0" y="{top + SIDE * 0.65:g}">{html.escape(paper.title)}</text>'
        )
        for place, claim in enumerate(group):
            x = NAME_WIDTH + place % A_ROW * (SIDE + GAP)
            y = top + place // A_ROW * (SIDE + GAP)
            parts.append(_square(claim, labels[claim.id], x, y))
        top += ((len(group) - 1) // A_ROW + 1) * (SIDE + GAP) + 2 * GAP
    width = NAME_WIDTH + A_ROW * (SIDE + GAP)
    svg = (
        f'<svg class="claims-map" viewBox="0 0 {width} {top}" role="img" '
        f'aria-label="All claims by source, coloured by verdict">{"".join(parts)}</svg>'
    )
    return raw(f"{svg}\n{_legend(list(labels.values()))}")


def _square(claim: Claim, label: str, x: int, y: int) -> str:
    look = f'class="verdict" style="{colours(label)}"'
    said = html.escape(f"{claim.id}: {label}. {' '.join(claim.statement.split())}")
    return (
        f'<a href="{VERDICTS}#{anchor(claim.id)}"><title>{said}</title>'
        f'<rect {look} x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" rx="4"/>'
        f'<text {look} x="{x + SIDE / 2:g}" y="{y + SIDE * 0.62:g}">{claim.id}</text></a>'
    )


def _legend(labels: Sequence[str]) -> str:
    shown = [f"{badge(label)} {labels.count(label)}" for label in LABELS if label in labels]
    return '<p class="verdict-strip">' + " ".join(f"<span>{item}</span>" for item in shown) + "</p>"
