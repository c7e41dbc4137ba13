"""Where a text mentions a name: as whole words, in any script, whatever its Unicode form."""

import re
import unicodedata

SPACES = re.compile("[\u00a0\u2007\u202f]")
"""Spaces at which no line is broken; they count as spaces."""

JOINED_SCRIPTS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff"
    "\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]"
)
"""Letters of scripts that write words without spaces between them, or with particles attached to them: Thai,
Lao, Tibetan, Burmese, Khmer, Chinese, Japanese and Korean."""

ALIKE = str.maketrans("‘’‛`´“”„‟–—‑−", "'''''\"\"\"\"----")
"""Quotes and dashes that are often written for each other."""


def normal(text: str) -> str:
    """The text in Unicode's composed form (NFC), with ordinary spaces for those that do not break."""
    return SPACES.sub(" ", unicodedata.normalize("NFC", text))


def mentions(text: str, name: str) -> list[tuple[int, int]]:
    """Start and end of each mention of a name in a text, as whole words.

    A mention ends where a word ends. In scripts without spaces between words this cannot be told, so that
    every occurrence is a mention there.
    """
    found, at = [], text.find(name)
    while at >= 0 and name:
        end = at + len(name)
        whole = _parts(text[at - 1 : at], name[0]) and _parts(text[end : end + 1], name[-1])
        if whole and not unicodedata.category(text[end : end + 1] or " ").startswith("M"):
            found.append((at, end))
            at = text.find(name, end)
        else:
            at = text.find(name, at + 1)
    return found


def written_without_spaces(text: str) -> bool:
    """Whether a text has letters of a script that does not put spaces between words."""
    return JOINED_SCRIPTS.search(text) is not None


def near(text: str, name: str) -> str:
    """The first part of a text that is the name but for case, accents, spaces, quotes or dashes; or ""."""
    folded, places = _folded(text)
    wanted = _folded(name)[0].strip()
    at = folded.find(wanted)
    return text[places[at] : places[at + len(wanted) - 1] + 1] if wanted and at >= 0 else ""


def _parts(outside: str, inside: str) -> bool:
    """Whether a word may end between a letter of the name and the one outside."""
    word = outside.isalnum() or outside == "_"
    return not word or bool(JOINED_SCRIPTS.match(outside) or JOINED_SCRIPTS.match(inside))


def _folded(text: str) -> tuple[str, list[int]]:
    """Text without case and accents, with single spaces, and the place in the text of each of its letters."""
    letters: list[str] = []
    places: list[int] = []
    for place, letter in enumerate(text):
        for part in unicodedata.normalize("NFKD", letter.translate(ALIKE)).casefold():
            part = " " if part.isspace() else part
            again = part == " " and letters[-1:] == [" "]
            if not again and not unicodedata.combining(part):
                letters.append(part)
                places.append(place)
    return "".join(letters), places
