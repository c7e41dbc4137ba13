"""Figures and tables: fixed colours, published values read as printed, nothing computed."""

import matplotlib as mpl
import pandas as pd
import pytest

from palimpsest.errors import DataError
from palimpsest.results import figures
from palimpsest.styles import OKABE_ITO, Style
from tests.results.test_tables import SCORES, STYLES

mpl.use("agg")


@pytest.fixture
def ax():
    figures.use_style()
    figure, axes = figures.plt.subplots()
    yield axes
    figures.plt.close(figure)


def test_spare_colours_and_those_of_lines_are_distinct():
    assert len(set(figures.SPARE_COLOURS)) == len(figures.SPARE_COLOURS)
    assert not set(figures.SPARE_COLOURS) & set(OKABE_ITO.values())
    assert sorted(figures.CYCLE) == sorted(OKABE_ITO.values())


def test_colours_do_not_depend_on_order_and_known_ones_never_move():
    styles = {"zeta": Style("Zeta"), "memit": STYLES["memit"], "eta": Style("Eta")}
    first = figures.colours_of(styles)
    second = figures.colours_of(dict(reversed(styles.items())))
    assert first == second
    assert first["memit"] == STYLES["memit"].colour
    assert (first["eta"], first["zeta"]) == figures.SPARE_COLOURS[:2]


def test_too_many_new_methods_are_refused():
    with pytest.raises(DataError, match=r"7 methods without a colour .* give them a colour in EDITORS"):
        figures.colours_of({f"new{i}": Style(f"New {i}") for i in range(7)})
    assert len(figures.colours_of({f"new{i}": Style(f"New {i}") for i in range(6)})) == 6


def test_missing_columns_are_named(ax):
    with pytest.raises(DataError, match=r"the frame lacks value; it has method, metric, low, high"):
        figures.bars(ax, SCORES.drop(columns="value"), STYLES)


def test_bars_keep_their_colours_and_places(ax):
    places = figures.bars(ax, SCORES, STYLES)
    assert places["efficacy", "unedited"] == pytest.approx(-0.2)
    assert places["specificity", "memit"] == pytest.approx(1.2)
    heights = {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in ax.patches}
    assert heights[round(places["efficacy", "memit"], 6)] == 97.84
    drawn = {mpl.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches}
    assert drawn == {style.colour for style in STYLES.values()}
    assert ax.get_legend_handles_labels()[1] == ["unedited", "MEMIT"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["efficacy", "specificity"]


def test_published_marker_is_one_shape_and_one_legend_entry(ax):
    figures.published_marker(ax, 0, 65.65, 0.47)
    figures.published_marker(ax, [1, 2], [51.6, 50.0])
    assert ax.get_legend_handles_labels()[1] == ["published"]
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [len(line.get_xdata()) for line in diamonds] == [1, 2]


def test_lines_follow_the_data_sorted_by_x(ax):
    frame = pd.DataFrame({"edits": [100, 10, 1], "value": [3.0, 2.0, 1.0], "method": "memit"})
    figures.lines(ax, frame, STYLES, "edits")
    assert (ax.lines[0].get_color(), ax.lines[0].get_label()) == (STYLES["memit"].colour, "MEMIT")
    assert ax.lines[0].get_xdata().tolist() == [1, 10, 100]
    assert ax.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert ax.get_xlabel() == "edits"
    assert not ax.collections


def test_lines_draw_a_band_only_with_an_interval(ax):
    frame = pd.DataFrame({"edits": [1, 2], "value": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]})
    figures.lines(ax, frame.assign(method="memit"), STYLES, "edits")
    assert len(ax.collections) == 1


def test_style_is_compact_and_repeatable():
    mpl.rcParams["font.size"] = 40
    figures.use_style()
    assert (mpl.rcParams["font.size"], mpl.rcParams["savefig.dpi"]) == (10, 110)
