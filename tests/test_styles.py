"""Names and colours of methods: one for each, and none hidden by another."""

import re

import pytest

from palimpsest.editors import EDITORS, style_of
from palimpsest.results.figures import SPARE_COLOURS
from palimpsest.styles import OKABE_ITO, STYLES, Style

ALL = {name: row.style for name, row in EDITORS.items()} | STYLES


def test_no_name_in_code_stands_twice() -> None:
    assert not EDITORS.keys() & STYLES.keys()


def test_every_name_in_print_is_one_method() -> None:
    names = [style.name for style in ALL.values()]
    assert all(name and name == name.strip() for name in names)
    assert len({name.lower() for name in names}) == len(names)


def test_every_colour_is_one_method() -> None:
    """Also beside the spare ones, which go to methods without a colour."""
    colours = [style.colour for style in ALL.values() if style.colour is not None]
    assert len({*colours, *SPARE_COLOURS}) == len(colours) + len(SPARE_COLOURS)


def test_colours_are_hex_codes_that_show_on_white() -> None:
    given = {name: style.colour for name, style in ALL.items() if style.colour is not None}
    assert [name for name, colour in given.items() if not re.fullmatch("#[0-9A-F]{6}", colour)] == []
    for name, colour in given.items():
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.9 * 255, name


def test_the_palette_is_distinct() -> None:
    assert len(set(OKABE_ITO.values())) == len(OKABE_ITO) == 8


@pytest.mark.parametrize(
    ("method", "style"),
    [
        ("alphaedit_plus", Style("AlphaEdit+", "#000000")),
        ("ft_l", Style("FT-L", None)),
        ("ft_m", Style("FT-M", None)),
        ("r_rome", Style("r-ROME", None)),
        ("emmet", Style("EMMET", "#F0E442")),
        ("kn", Style("KN", None)),
        ("rect", Style("RECT", "#009E73")),
        ("unedited", Style("unedited", "#7F7F7F")),
        ("serac", Style("SERAC", None)),
        ("something new", Style("something new", None)),
    ],
)
def test_a_style_is_that_of_the_editor_or_the_treatment_or_a_bare_name(method: str, style: Style) -> None:
    assert style_of(method) == style


def test_every_editor_has_the_style_of_its_row() -> None:
    assert {name: style_of(name) for name in EDITORS} == {name: row.style for name, row in EDITORS.items()}
