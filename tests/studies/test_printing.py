"""Methods in figures and tables of the pages: under their printed names and in their own colours."""

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from palimpsest.editors import EDITORS
from palimpsest.errors import DataError
from palimpsest.results import figures
from palimpsest.results.figures import SPARE_COLOURS
from palimpsest.studies.printing import bars_with_intervals, method_colours, method_name, score_table
from tests.results.test_tables import SCORES

mpl.use("agg")


@pytest.fixture
def ax() -> Iterator[Any]:
    figure, axes = figures.plt.subplots()
    yield axes
    figures.plt.close(figure)


def test_names_in_print() -> None:
    assert [method_name(name) for name in EDITORS] == [row.style.name for row in EDITORS.values()]
    assert [method_name(name) for name in ("rect", "unedited", "new")] == ["RECT", "unedited", "new"]


def test_colours_are_those_of_the_methods_and_spare_ones_for_the_rest() -> None:
    first = method_colours(["zeta", "memit", "eta", "prune"])
    assert first == method_colours(["prune", "eta", "zeta", "memit", "memit"])
    assert (first["memit"], first["prune"]) == ("#0072B2", "#CC79A7")
    assert (first["eta"], first["zeta"]) == SPARE_COLOURS[:2]
    main = [name for name, row in EDITORS.items() if row.style.colour is not None]
    others = [name for name in EDITORS if name not in main][: len(SPARE_COLOURS)]
    assert len(set(method_colours([*main, *others]).values())) == len(main) + len(others)


def test_too_many_new_methods_are_refused() -> None:
    with pytest.raises(DataError, match=r"7 methods without a colour \(new0, .*, new6\) but only 6 spare"):
        method_colours([f"new{i}" for i in range(7)])


def test_a_table_shows_printed_names() -> None:
    published = pd.DataFrame({"method": ["memit"], "metric": ["efficacy"], "value": [65.65]})
    lines = score_table(SCORES, published, digits=2, source="Table 1").splitlines()
    assert lines[0] == "| method | efficacy | specificity | efficacy, Table 1 |"
    assert lines[2] == "| unedited | 0.00 [0.00, 2.00] | 75.60 [70.00, 80.00] |  |"
    assert lines[3] == "| MEMIT | 97.84 [93.13, 99.40] | 73.25 | 65.65 |"


def test_bars_have_printed_names_and_their_methods_colours(ax: Any) -> None:
    """The same places as by hand, and the groups may stand in another column."""
    places = bars_with_intervals(ax, SCORES)
    styled = {name: EDITORS[name].style for name in ("memit",)} | {"unedited": figures.Style("x", "#123456")}
    assert places == figures.bars(figures.plt.subplots()[1], SCORES, styled)
    assert ax.get_legend_handles_labels()[1] == ["unedited", "MEMIT"]
    drawn = [mpl.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert drawn == 2 * ["#7F7F7F"] + 2 * ["#0072B2"]
    renamed = SCORES.rename(columns={"method": "how", "metric": "what"})
    assert bars_with_intervals(ax, renamed, "what", "how") == places


@pytest.mark.parametrize("missing", ["method", "metric", "value"])
def test_a_frame_that_lacks_a_column_is_refused_by_name(ax: Any, missing: str) -> None:
    frame = SCORES.drop(columns=missing)
    for draw in (score_table, lambda given: bars_with_intervals(ax, given)):
        with pytest.raises(DataError, match=f"the frame lacks {missing}; it has"):
            draw(frame)
