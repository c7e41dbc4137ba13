"""Sentences with recorded values: what a page says in words, as rich text in Jupyter and in the book."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palimpsest.errors import UnknownNameError

Entry = Mapping[str, Any]
"""One value of a record: value, low, high, unit, over, n."""

BARE = "value"
"""After a colon in a template: the value without its interval."""

# What a formula has in braces, which stays; or a name in braces, unless it is a role, which a tick follows.
_FIELD = re.compile(r"(\\[A-Za-z]+(?:\{[^{}]*\})*|[_^]\{[^{}]*\})|\{([a-z]\w*)(?::([^{}`]*))?\}(?!`)")


class Markdown(str):
    """A text that Jupyter and the book render as Markdown."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


_INLINE = re.compile(r"([\\`*_\[\]<>~$&{}^])")
_FIRST = re.compile(r"^(\s*\d*)([-+.):%#(=])")
"""What begins a list, a heading, a comment, a label or a directive where a paragraph begins."""


def plain(text: str) -> str:
    """Escape what Markdown, MyST and HTML take for markup, so that a text is shown as it is.

    Bars are left to `palimpsest.results.tables`, which escapes them in cells.
    """
    return _FIRST.sub(r"\1\\\2", _INLINE.sub(r"\\\1", text))


def _number(value: float, unit: str, largest: float) -> str:
    """A number, in the style that suits the largest of those beside it."""
    if unit == "count":
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
    if unit in ("percent", "seconds"):
        return f"{value:.1f}"
    if 1e3 <= largest < 1e6:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.3f}" if largest == 0 or 1e-2 <= largest < 1e3 else f"{value:.2e}"


def readable(entry: Entry) -> str:
    """Text of a stored value as shown on a page, for example ``97.8 [93.1, 99.4]``.

    Args:
        entry: one of the ``values`` of a record: value, low, high and unit.
    """
    value = entry["value"]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    ends = [] if entry.get("low") is None else [entry["low"], entry["high"]]
    largest = max(abs(number) for number in (value, *ends))
    text, *brackets = (_number(number, entry["unit"], largest) for number in (value, *ends))
    return f"{text} [{', '.join(brackets)}]" if brackets else text


def filled(
    template: str,
    values: Mapping[str, Entry],
    words: Mapping[str, object] | None = None,
    literal: Callable[[str], str] = plain,
) -> str:
    """A text with values in place of the names in braces.

    ``{gain}`` becomes the value with its interval, ``{gain:value}`` the value alone, and ``{gain:.3g}`` the
    number in that format. Braces of formulas and roles stay. A recorded text is shown as it is, on one line,
    whatever markup it seems to hold.

    Args:
        template: the text, as Markdown.
        values: of a record.
        words: further names; these may hold numbers, or texts, which are Markdown as the template is.
        literal: makes markup of a recorded text.

    Raises:
        UnknownNameError: if a name is neither recorded nor among the words.
    """
    words = words or {}

    def text(found: re.Match[str]) -> str:
        if found[1]:
            return found[1]
        name, form = found[2], found[3] or ""
        if name in words:
            word = words[name]
            return format(word, form or ("," if type(word) is int else ""))
        if name not in values:
            raise UnknownNameError("value", name, sorted({*values, *words}))
        value = values[name]["value"]
        if form in ("", BARE):
            shown = readable({**values[name], "low": None} if form else values[name])
        else:
            shown = format(value, form)
        return literal(" ".join(shown.split())) if isinstance(value, str) else shown

    return _FIELD.sub(text, template)


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names as listed in a sentence, ``a, b and c``; the text ``none`` if there are no names."""
    *first, last = names or [none]
    return " and ".join([", ".join(first), last] if first else [last])


def which(names: Sequence[str], everything: Sequence[str], kind: str = "") -> str:
    """Which of some things are meant, as the end of a sentence: none, one, some or all of them.

    ``which(["a"], ["a", "b", "c"], "runs")`` reads "a alone of 3 runs"; with all three names it reads "all 3
    runs", and without any "none of 3 runs".

    Args:
        names: those that are meant.
        everything: all of them.
        kind: what they are, in the plural.
    """
    count = f"{len(everything)} {kind}".strip()
    if not names:
        return f"none of {count}" if len(everything) != 1 else f"not {everything[0]}"
    if len(names) == len(everything):
        return f"all {count}" if len(names) > 2 else " and ".join(names)
    if len(names) == 1:
        return f"{names[0]} alone of {count}"
    return f"{listed(names)}, {len(names)} of {count}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: ``1 fact``, ``2 facts``.

    Args:
        number: how many.
        one: the noun in the singular.
        many: the noun in the plural, if it is not the singular with an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
