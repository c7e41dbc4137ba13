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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot be read as a table \(No columns to parse from file\); restore the file"),
        (b"\xff\xfe\x00", r"cannot be read as a table \(.*decode"),
        (b'a,b\n"1', r"cannot be read as a table \(.*EOF inside string"),
        (b"a,b\n1,2,3\n1,2,3,4\n", r"cannot be read as a table \(.*Expected 3 fields in line 3"),
        (b"paper,value\nx,1\n", r"has no column 'spread', but \['paper', 'value'\]"),
        (b"[" * 100_000, "has no column 'value', but"),
    ],
)
def test_damaged_tables_are_named(content, message, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "published"
    folder.mkdir(parents=True)
    (folder / "x_table1.csv").write_bytes(content)
    monkeypatch.setattr("palimpsest.paths.root", lambda: tmp_path)
    with pytest.raises(DataError, match=message):
        published("x", 1)


def test_numbers_that_are_none_are_nan(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "published"
    folder.mkdir(parents=True)
    (folder / "x_table1.csv").write_text("value,spread\nNaN,inf\ntext,1e999\n")
    monkeypatch.setattr("palimpsest.paths.root", lambda: tmp_path)
    rows = published("x", 1)
    assert rows["value"].isna().all()
    assert rows["printed"].tolist() == ["NaN", "text"]
