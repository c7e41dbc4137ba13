"""Published numbers: read as printed."""

import pytest

from palimpsest.errors import DataError, UnknownNameError
from palimpsest.results.published import as_ours, published


def test_published_reads_the_printed_numbers():
    rows = published("alphaedit", 1, model="LLaMA3-8B", dataset="CounterFact", method="AlphaEdit")
    efficacy = rows[rows["metric"] == "Efficacy"].iloc[0]
    assert (efficacy["value"], efficacy["spread"], efficacy["printed"]) == (98.9, 0.1, "98.90")


def test_published_filters_by_several_values():
    rows = published("alphaedit", 1, dataset="ZsRE", method=["ROME", "MEMIT"], model="GPT-J")
    assert sorted(rows["method"].unique()) == ["MEMIT", "ROME"]
    assert len(rows) == 6


def test_published_reads_figures_and_settings():
    assert len(published("labyrinth", "figures")) > 0
    layers = published("alphaedit", "hyperparameters", model="GPT2-XL", metric="edited_layer")
    assert layers["value"].tolist() == [13, 14, 15, 16, 17]


def test_unknown_tables_and_columns_name_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"unknown published table 'alphaedit_table9'.*alphaedit_table1"
    ):
        published("alphaedit", 9)
    with pytest.raises(UnknownNameError, match="'colour'; choose one of: dataset"):
        published("alphaedit", 1, colour="red")
    with pytest.raises(DataError, match=r"no row with method = 'memit'; choose from: AlphaEdit, FT"):
        published("alphaedit", 1, method="memit")


def test_published_names_become_ours():
    ours = as_ours(published("alphaedit", 1, model="GPT-J", dataset="CounterFact"))
    assert {"unedited", "rome", "memit", "alphaedit"} <= set(ours["method"])
    assert {"efficacy", "generalisation", "specificity"} <= set(ours["metric"])
    zsre = as_ours(published("alphaedit", 1, model="GPT-J", dataset="ZsRE"))
    assert set(zsre["metric"]) == {"efficacy_tokens", "generalisation_tokens", "specificity_tokens"}
    plus = as_ours(published("alphaedit_plus", 1))
    assert "alphaedit_plus" in set(plus["method"])
