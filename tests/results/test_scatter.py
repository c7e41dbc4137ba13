"""Points before and after with their marginals: what is drawn, and what is refused."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from palimpsest.errors import DataError
from palimpsest.results import figures
from palimpsest.results.display import _faults
from palimpsest.results.scatter import before_and_after

mpl.use("agg")
COLOURS = {"unedited": "#7F7F7F", "edited": "#0072B2"}


@pytest.fixture
def figure():
    figures.use_style()
    made = figures.plt.figure(figsize=(6.2, 3.4))
    yield made
    figures.plt.close(made)


def points(away: float = 3.0, n: int = 20) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    rows = []
    for panel in ("naive", "aligned"):
        for moment in COLOURS:
            shift = away * (panel == "naive" and moment == "edited")
            part = pd.DataFrame(draw.standard_normal((n, 2)) + shift, columns=["x", "y"])
            rows.append(part.assign(panel=panel, moment=moment))
    return pd.concat(rows, ignore_index=True)


def test_every_point_is_drawn_once_in_its_panel_and_colour(figure):
    frame = points()
    drawn = before_and_after(figure, frame, COLOURS)
    assert list(drawn) == ["naive", "aligned"]
    for panel, axes in drawn.items():
        for spots, (moment, colour) in zip(axes.collections, COLOURS.items(), strict=True):
            of = frame[frame["panel"].eq(panel) & frame["moment"].eq(moment)]
            assert spots.get_offsets().data.tolist() == of[["x", "y"]].to_numpy().tolist()
            assert mpl.colors.to_hex(spots.get_facecolor()[0]) == colour.lower()
    limits = {(axes.get_xlim(), axes.get_ylim()) for axes in drawn.values()}
    assert len(limits) == 1
    (low, high), _ = limits.pop()
    assert low < frame["x"].min() < frame["x"].max() < high


def test_a_curve_lies_where_its_points_do(figure):
    before_and_after(figure, points(), COLOURS)
    top = next(axes for axes in figure.axes if axes.get_title(loc="left"))
    peaks = [line.get_xdata()[line.get_ydata().argmax()] for line in top.lines]
    assert peaks[1] - peaks[0] == pytest.approx(3, abs=1)
    assert len(top.lines) == 2
    assert not top.axison


def test_a_phone_can_show_two_panels(figure):
    before_and_after(figure, points(), COLOURS)
    figure.canvas.draw()
    assert _faults(figure) == []


def test_points_that_are_all_alike_or_few_have_no_curve(figure):
    drawn = before_and_after(figure, points(n=2).assign(x=1.0), COLOURS)
    assert [len(axes.lines) for axes in figure.axes] == [0] * 6
    assert drawn["naive"].get_xlim() == (0, 2)


def test_missing_columns_colours_and_points_are_named(figure):
    with pytest.raises(DataError, match="the frame lacks y"):
        before_and_after(figure, points().drop(columns="y"), COLOURS)
    with pytest.raises(DataError, match="no colour for edited; give every moment one"):
        before_and_after(figure, points(), {"unedited": "#7F7F7F"})
    with pytest.raises(DataError, match="no colour for any point: there is none"):
        before_and_after(figure, points().iloc[:0], COLOURS)
