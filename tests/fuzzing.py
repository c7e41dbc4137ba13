"""Damage to the content of files, as hypothesis draws it: to bytes, and to what JSON and YAML hold."""

from typing import Any

from hypothesis import strategies as st

ODD = st.sampled_from(
    [
        *(None, True, False, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", " ", "{}", "\ud800", "\0"),
        *("x" * 3000, "../..", "\u202e", [], {}, [[]], {"": None}, [None], "!!python/object:os.system"),
    ]
)
VALUES = st.one_of(
    ODD, st.text(max_size=8), st.lists(ODD, max_size=2), st.dictionaries(st.text(max_size=4), ODD)
)


@st.composite
def bytes_near(draw: st.DrawFn, content: bytes) -> bytes:
    """A content cut, flipped, doubled or filled somewhere; or no likeness of it at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(("cut", "drop", "double", "fill", "flip")))
        if kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[to:]
        elif kind == "double":
            content = content[:to] + content[at:]
        elif kind == "fill":
            content = content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
        elif at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
    return content


@st.composite
def values_near(draw: st.DrawFn, content: Any) -> Any:
    """A nested value in which some members are others, missing, or more than they should be."""
    for _ in range(draw(st.integers(1, 3))):
        content = _changed(draw, content, 0)
    return content


def _changed(draw: st.DrawFn, value: Any, depth: int) -> Any:
    """One change, at the top or somewhere below."""
    inner = isinstance(value, dict | list) and len(value) > 0
    if not inner or (depth and draw(st.integers(0, 3)) == 0):
        return draw(VALUES)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, kind = draw(st.sampled_from(keys)), draw(st.sampled_from(("below", "below", "gone", "more")))
    made = dict(value) if isinstance(value, dict) else list(value)
    if kind == "gone":
        del made[key]
    elif kind == "below":
        made[key] = _changed(draw, value[key], depth + 1)
    elif isinstance(made, dict):
        made[draw(st.text(max_size=4))] = draw(VALUES)
    else:
        made.insert(key, draw(VALUES))
    return made
