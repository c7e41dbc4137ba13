"""Perturbation levels: distances by hand and by their axioms, and every template of the fact set measured."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.datasets.facts import LEVELS, FactSet
from palimpsest.datasets.levels import (
    CRITERIA,
    Criterion,
    edit_distance,
    level_table,
    level_wordings,
    shared_words,
)
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase
from tests.embedders import letters

SUBJECTS = 2
WORDS = st.text("abc ", max_size=9)
PUBLISHED = Path(__file__).parents[2] / "data/published/uncertainty_hyperparameters.csv"


@pytest.fixture(scope="module")
def facts() -> FactSet:
    return load_facts()


@pytest.fixture(scope="module")
def table(facts: FactSet) -> pd.DataFrame:
    return level_table(facts, letters(), SUBJECTS)


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("a", "a", 0)]
)
def test_edit_distance_by_hand(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric_within_its_bounds(a: str, b: str, c: str) -> None:
    between = edit_distance(a, b)
    assert between == edit_distance(b, a)
    assert (between == 0) == (a == b)
    assert between <= edit_distance(a, c) + edit_distance(c, b)
    assert abs(len(a) - len(b)) <= between <= max(len(a), len(b))
    assert edit_distance(a + c, b + c) == edit_distance(c + a, c + b) == between


@given(WORDS, WORDS)
def test_edit_distance_equals_its_recursion(a: str, b: str) -> None:
    def plain(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(plain(i - 1, j) + 1, plain(i, j - 1) + 1, plain(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert edit_distance(a[:5], b[:5]) == plain(len(a[:5]), len(b[:5]))


def test_shared_words_by_hand() -> None:
    assert shared_words("The cat sat.", "the CAT ran") == 2 / 4
    assert shared_words("a b", "b, a!") == 1
    assert shared_words("a", "b") == 0
    assert shared_words("", "?") == 1


def test_the_criteria_are_the_published_ones() -> None:
    rows = pd.read_csv(PUBLISHED)
    rows = rows[rows["table"] == "D.2.2"]
    assert len(rows) == 12
    for row in rows.itertuples():
        level, end = str(row.setting).removeprefix("perturbation level ").split(";")
        criterion, side = CRITERIA[int(level)], ["minimum", "maximum"].index(end)
        ours = {
            "levenshtein_share": 100 * criterion.edits[side],
            "jaccard": criterion.words[side],
            "semantic_similarity": criterion.similarity,
        }
        assert ours[str(row.metric)] == pytest.approx(row.value), row


def test_bounds_include_their_ends() -> None:
    criterion = Criterion((0.1, 0.25), (0.7, 0.9), 0.9)
    assert all(criterion.met(0.1, 0.9, 0.9).values())
    assert criterion.met(0.09, 0.91, 0.89) == {
        "edits_met": False,
        "words_met": False,
        "similarity_met": False,
    }
    assert all(Criterion().met(9.0, 0.0, -1.0).values())


def test_every_template_of_every_level_has_a_row(facts: FactSet, table: pd.DataFrame) -> None:
    wanted = [
        (relation.id, form, level, template)
        for relation in facts.relations.values()
        for form, levels in (
            ("statement", relation.perturbations),
            ("question", relation.question_perturbations),
        )
        for level, templates in levels.items()
        for template in templates
    ]
    columns = ["relation", "form", "level", "template"]
    assert list(table[columns].itertuples(index=False, name=None)) == wanted
    assert table.groupby(["form", "level"]).size().eq(len(facts.relations)).all()
    row, subjects = table.iloc[0], [f.subject for f in facts.facts if f.relation == wanted[0][0]][:SUBJECTS]
    filled = [(row["base"].replace("{}", s), row["template"].replace("{}", s)) for s in subjects]
    shares = [edit_distance(base, text) / len(base) for base, text in filled]
    assert row["edits"] == pytest.approx(sum(shares) / SUBJECTS)
    assert row["words"] == pytest.approx(sum(shared_words(*pair) for pair in filled) / SUBJECTS)
    vectors = [letters()(list(pair)) for pair in filled]
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in vectors]
    assert row["similarity"] == pytest.approx(sum(cosines) / SUBJECTS)


def test_rewording_grows_with_the_level(table: pd.DataFrame) -> None:
    means = table.groupby(["form", "level"])[["edits", "words"]].mean()
    for form in ("statement", "question"):
        assert means.loc[(form, 1), "edits"] < means.loc[(form, 2), "edits"] < means.loc[(form, 5), "edits"]
        words = means.loc[form, "words"]
        assert words.loc[[1, 2]].min() > words.loc[[3, 4, 5, 6]].max()


def test_a_case_gives_one_wording_of_each_level(facts: FactSet) -> None:
    cases = counterfact_style(facts, 5)
    found = level_wordings(cases)
    assert list(found) == [case.id for case in cases]
    for case in cases:
        assert list(found[case.id]) == [case.perturbations[level][0] for level in LEVELS]
        assert len(set(found[case.id])) == 6


def test_what_cannot_be_measured_or_reworded(facts: FactSet) -> None:
    with pytest.raises(DataError, match="0 subjects were asked for; a template needs at least 1"):
        level_table(facts, letters(), subjects=0)
    request = EditRequest("{} is in", "Rome", "Spain")
    case = EvalCase("7", request, "Italy", perturbations=dict.fromkeys((1, 2, 4, 5), ("x",)))
    with pytest.raises(DataError, match="case '7' has no wording of level 3, 6; use cases of the project's"):
        level_wordings([case])


@pytest.mark.model
@pytest.mark.slow
def test_later_levels_move_away_in_meaning_too(facts: FactSet) -> None:
    from palimpsest.network.embedder import embedder

    table = level_table(facts, embedder(), subjects=1)
    means = table.groupby("level")["similarity"].mean()
    assert means[1] > means[4] > means[6] > 0.4
