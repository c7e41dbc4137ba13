"""Figures and tables: fixed colours, published values read as printed, nothing computed."""

import matplotlib as mpl
import pandas as pd
import pytest

from palimpsest import report
from palimpsest.errors import DataError, UnknownNameError

mpl.use("agg")


@pytest.fixture
def ax():
    report.use_style()
    figure, axes = report.plt.subplots()
    yield axes
    report.plt.close(figure)


SCORES = pd.DataFrame(
    {
        "method": ["unedited", "memit", "unedited", "memit"],
        "metric": ["efficacy", "efficacy", "specificity", "specificity"],
        "value": [0.0, 97.84, 75.6, 73.25],
        "low": [0.0, 93.13, 70.0, None],
        "high": [2.0, 99.4, 80.0, None],
    }
)


def test_every_method_has_a_colour_of_its_own():
    assert len(set(report.METHOD_COLOURS.values())) == len(report.METHOD_COLOURS)
    assert not set(report.METHOD_COLOURS.values()) & set(report.SPARE_COLOURS)
    assert set(report.METHOD_COLOURS) <= set(report.METHOD_NAMES)


def test_colours_do_not_depend_on_order_and_known_ones_never_move():
    first = report.method_colours(["zeta", "memit", "eta"])
    second = report.method_colours(["eta", "zeta", "memit"])
    assert first == second
    assert first["memit"] == report.METHOD_COLOURS["memit"]
    assert (first["eta"], first["zeta"]) == report.SPARE_COLOURS[:2]


def test_too_many_new_methods_are_refused():
    with pytest.raises(DataError, match=r"7 methods without a colour .* add them to METHOD_COLOURS"):
        report.method_colours([f"new{i}" for i in range(7)])


def test_published_reads_the_printed_numbers():
    rows = report.published("alphaedit", 1, model="LLaMA3-8B", dataset="CounterFact", method="AlphaEdit")
    efficacy = rows[rows["metric"] == "Efficacy"].iloc[0]
    assert (efficacy["value"], efficacy["spread"], efficacy["printed"]) == (98.9, 0.1, "98.90")


def test_published_filters_by_several_values():
    rows = report.published("alphaedit", 1, dataset="ZsRE", method=["ROME", "MEMIT"], model="GPT-J")
    assert sorted(rows["method"].unique()) == ["MEMIT", "ROME"]
    assert len(rows) == 6


def test_published_reads_figures_and_settings():
    assert len(report.published("labyrinth", "figures")) > 0
    layers = report.published("alphaedit", "hyperparameters", model="GPT2-XL", metric="edited_layer")
    assert layers["value"].tolist() == [13, 14, 15, 16, 17]


def test_unknown_tables_and_columns_name_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"unknown published table 'alphaedit_table9'.*alphaedit_table1"
    ):
        report.published("alphaedit", 9)
    with pytest.raises(UnknownNameError, match="'colour'; choose one of: dataset"):
        report.published("alphaedit", 1, colour="red")
    with pytest.raises(DataError, match=r"no row with method = 'memit'; choose from: AlphaEdit, FT"):
        report.published("alphaedit", 1, method="memit")


def test_published_names_become_ours():
    ours = report.as_ours(report.published("alphaedit", 1, model="GPT-J", dataset="CounterFact"))
    assert {"unedited", "rome", "memit", "alphaedit"} <= set(ours["method"])
    assert {"efficacy", "generalisation", "specificity"} <= set(ours["metric"])
    zsre = report.as_ours(report.published("alphaedit", 1, model="GPT-J", dataset="ZsRE"))
    assert set(zsre["metric"]) == {"efficacy_tokens", "generalisation_tokens", "specificity_tokens"}
    plus = report.as_ours(report.published("alphaedit_plus", 1))
    assert "alphaedit_plus" in set(plus["method"])


def test_table_shows_intervals_and_published_values_as_printed():
    printed = pd.DataFrame(
        {
            "method": ["memit"],
            "metric": ["efficacy"],
            "value": [65.65],
            "spread": [0.47],
            "printed": ["65.65"],
        }
    )
    lines = report.score_table(SCORES, printed, source="AlphaEdit, Table 1").splitlines()
    assert lines[0] == "| method | efficacy | specificity | efficacy, AlphaEdit, Table 1 |"
    assert lines[2] == "| unedited | 0.0 [0.0, 2.0] | 75.6 [70.0, 80.0] |  |"
    assert lines[3] == "| MEMIT | 97.8 [93.1, 99.4] | 73.2 | 65.65 ± 0.47 |"


def test_table_renders_as_markdown():
    table = report.score_table(SCORES)
    assert table._repr_markdown_() == str(table)


def test_a_table_of_texts():
    table = report.markdown_table(["name", "value"], [["a|b", "1\n2"], ["c", ""]])
    assert table.splitlines() == ["| name | value |", "|:---|---:|", "| a/b | 1 2 |", "| c |  |"]
    words = report.markdown_table(["name", "said", "then"], [], align="left")
    assert words.splitlines()[1] == "|:---|:---|:---|"


def test_a_row_that_does_not_fit_its_table_is_shown():
    with pytest.raises(DataError, match=r"a row of 1 cells under 2 columns: \['lonely'\]; fill it up"):
        report.markdown_table(["name", "value"], [["lonely"]])


def test_a_score_given_twice_is_refused():
    with pytest.raises(DataError, match=r"method = memit, metric = efficacy is given twice"):
        report.score_table(pd.concat([SCORES, SCORES.iloc[[1]]]))


def test_missing_columns_are_named(ax):
    with pytest.raises(DataError, match=r"the frame lacks value; it has method, metric, low, high"):
        report.bars_with_intervals(ax, SCORES.drop(columns="value"))


def test_bars_keep_their_colours_and_places(ax):
    places = report.bars_with_intervals(ax, SCORES)
    assert places["efficacy", "unedited"] == pytest.approx(-0.2)
    assert places["specificity", "memit"] == pytest.approx(1.2)
    heights = {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in ax.patches}
    assert heights[round(places["efficacy", "memit"], 6)] == 97.84
    drawn = {mpl.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches}
    assert drawn == {report.METHOD_COLOURS[name].upper() for name in ("unedited", "memit")}
    assert [text.get_text() for text in ax.get_xticklabels()] == ["efficacy", "specificity"]


def test_published_marker_is_one_shape_and_one_legend_entry(ax):
    report.published_marker(ax, 0, 65.65, 0.47)
    report.published_marker(ax, [1, 2], [51.6, 50.0])
    assert ax.get_legend_handles_labels()[1] == ["published"]
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [len(line.get_xdata()) for line in diamonds] == [1, 2]


def test_lines_follow_the_data_sorted_by_x(ax):
    frame = pd.DataFrame({"edits": [100, 10, 1], "value": [3.0, 2.0, 1.0], "method": "memit"})
    report.lines(ax, frame, "edits")
    assert ax.lines[0].get_xdata().tolist() == [1, 10, 100]
    assert ax.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert ax.get_xlabel() == "edits"
    assert not ax.collections


def test_lines_draw_a_band_only_with_an_interval(ax):
    frame = pd.DataFrame({"edits": [1, 2], "value": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]})
    report.lines(ax, frame.assign(method="memit"), "edits")
    assert len(ax.collections) == 1


def test_style_is_compact_and_repeatable():
    mpl.rcParams["font.size"] = 40
    report.use_style()
    assert (mpl.rcParams["font.size"], mpl.rcParams["savefig.dpi"]) == (10, 110)


@pytest.mark.parametrize(
    ("names", "text"),
    [((), "none"), (("a",), "a"), (("a", "b"), "a and b"), (("a", "b", "c"), "a, b and c")],
)
def test_names_are_listed_as_a_sentence_does(names: tuple[str, ...], text: str) -> None:
    assert report.listed(names) == text
