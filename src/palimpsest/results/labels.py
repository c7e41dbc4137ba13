"""Badges of verdicts as HTML: a coloured label in words.

The colours stand in the style of each badge, so that it looks the same in Jupyter and in the book; the label
itself is always written out, so that no meaning rests on a colour.
"""

import html

from palimpsest.results.rules import OWN_DATA, UNTESTED

COLOURS: dict[str, tuple[str, str]] = {
    "verified numerically": ("#00517a", "#ffffff"),
    "reproduced": ("#00664b", "#ffffff"),
    "direction only": ("#8fd1b8", "#10241c"),
    "wrong as printed": ("#9a3412", "#ffffff"),
    "biased": ("#7d3363", "#ffffff"),
    "opposite here": ("#f0954f", "#241202"),
    "absent here": ("#f2c14e", "#241a02"),
    "undecided": ("#f6ec9c", "#242102"),
    UNTESTED: ("#d3d7dd", "#1b1b1b"),
    OWN_DATA: ("#c9d8f0", "#10182a"),
    "not run": ("#ffffff", "#3d3d3d"),
}
"""Label -> colours of its ground and its letters."""

_SHAPE = "border:1px solid #8a8a8a;border-radius:0.35em;padding:0.1em 0.5em;font-weight:600"


def colours(label: str) -> str:
    """The colours of a label as a style of HTML, for the style sheet of the book and for what has none."""
    ground, ink = COLOURS[label]
    return f"--ground:{ground};--ink:{ink};background:{ground};color:{ink}"


def badge(label: str, text: str = "", link: str = "") -> str:
    """A badge, with another text or a link if these are given."""
    inside, style = html.escape(text or label), f"{colours(label)};{_SHAPE}"
    if link:
        return f'<a class="verdict" style="{style}" href="{html.escape(link)}">{inside}</a>'
    return f'<span class="verdict" style="{style}">{inside}</span>'
