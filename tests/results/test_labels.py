"""Badges of verdicts: readable colours, one for each label, and nothing left unescaped."""

import pytest

from palimpsest.results.labels import COLOURS, badge
from palimpsest.results.rules import LABELS, UNTESTED


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("label", LABELS)
def test_every_label_has_a_colour_on_which_it_can_be_read(label: str) -> None:
    lighter, darker = sorted(map(luminance, COLOURS[label]), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_no_two_labels_have_the_same_colour() -> None:
    grounds = {ground for ground, _ in COLOURS.values()}
    assert len(grounds) == len(COLOURS) == len(LABELS)


def test_a_badge_says_its_label_in_its_colours_and_escapes_what_it_says() -> None:
    shown = badge("not run")
    assert shown.startswith('<span class="verdict" style="--ground:#ffffff;--ink:#3d3d3d;')
    assert shown.endswith(">not run</span>")
    assert "&lt;b&gt;" in badge("not run", "<b>")
    linked = badge(UNTESTED, link="a.html#b")
    assert linked.startswith('<a class="verdict"')
    assert 'href="a.html#b"' in linked
