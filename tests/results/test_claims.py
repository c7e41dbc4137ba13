"""Claims: the list is complete, and a malformed file says what is wrong with it."""

from string import ascii_lowercase

import pytest
import yaml

from palimpsest import paths
from palimpsest.errors import DataError
from palimpsest.results.claims import PUBLISHED, load_claims, load_records, verdict
from palimpsest.results.printed_audit import load_audit
from palimpsest.results.rules import LABELS, UNTESTED

EXPECTED = {"P": 17, "A": 13, "L": 15, "N": 5, "U": 10, "X": 4}


# The list -------------------------------------------------------------------------------------


def test_every_claim_of_the_list_is_there_once():
    ids = [claim.id for claim in load_claims().claims]
    wanted = [f"{letter}{n:02d}" for letter, count in EXPECTED.items() for n in range(1, count + 1)]
    assert sorted(name for name in ids if len(name) == 3) == sorted(wanted)
    suffixes = {base: sorted(name[3:] for name in ids if name[:3] == base) for base in {n[:3] for n in ids}}
    assert set(suffixes) == set(wanted)
    assert all(["", *ascii_lowercase[1:]][: len(of)] == of for of in suffixes.values())


def test_every_claim_belongs_to_the_source_its_letter_names():
    letters = {
        "alphaedit_plus": "P",
        "alphaedit": "A",
        "labyrinth": "L",
        "null_space_training": "N",
        "uncertainty": "U",
        "between": "X",
    }
    assert all(claim.id[0] == letters[claim.paper] for claim in load_claims().claims)


@pytest.mark.parametrize("claim", load_claims().claims, ids=lambda claim: claim.id)
def test_the_notebook_of_every_claim_exists(claim):
    if claim.notebook is not None:
        assert (paths.notebooks_dir() / f"{claim.notebook}.ipynb").is_file()


@pytest.mark.parametrize("claim", load_claims().claims, ids=lambda claim: claim.id)
def test_every_claim_gets_a_verdict_without_any_result(claim):
    found = verdict(claim, {}, "laptop")
    assert found.reason
    if found.profile == PUBLISHED:
        assert found.label in set(LABELS) - {"not run"}
    else:
        assert found.label == ("not run" if claim.untested is None else UNTESTED)


@pytest.mark.parametrize("claim", load_claims().claims, ids=lambda claim: claim.id)
def test_audit_rows_named_by_a_claim_exist(claim):
    if claim.audit is not None:
        assert claim.audit.pick(load_audit())


def test_no_verdict_is_typed_into_the_file():
    rows = yaml.safe_load((paths.root() / "data" / "claims.yaml").read_text("utf-8"))["claims"]
    assert not [row["id"] for row in rows if {"verdict", "label"} & set(row)]


# Malformed files ------------------------------------------------------------------------------

GOOD = {
    "id": "P01",
    "paper": "one",
    "place": "Eq. 1",
    "kind": "Q",
    "statement": "A statement that is long enough.",
    "not_run": "no notebook yet",
}


EFFECT = {"kind": "effect", "value": "a", "direction": "positive"}
PART = {"name": "one", "rule": EFFECT}


@pytest.fixture
def load(tmp_path):
    def from_rows(*rows):
        path = tmp_path / "claims.yaml"
        papers = [{"id": "one", "title": "One"}]
        path.write_text(yaml.safe_dump({"papers": papers, "claims": list(rows)}), "utf-8")
        return load_claims(path)

    return from_rows


def without(*names):
    return {key: value for key, value in GOOD.items() if key not in names}


def with_rule(**rule):
    return without("not_run") | {"notebook": "03_x", "rule": rule}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without("statement"), r"P01: statement: Field required"),
        (without("id"), r"row 2: id: Field required"),
        (without("not_run"), r"P01: give one of a rule, a reason in not_run, and a reason in untested"),
        (GOOD | {"untested": "another regime"}, r"P01: give one of a rule, a reason in not_run"),
        (with_rule(**EFFECT) | {"untested": "another regime"}, r"P01: give one of a rule"),
        (with_rule(**EFFECT) | {"not_run": "no time"}, r"P01: give one of a rule"),
        (GOOD | {"kind": "T"}, r"P01: a theorem \(kind T\) needs a note under mathematics"),
        (GOOD | {"kind": "Z"}, r"P01: kind: Input should be 'T', 'N' or 'Q'"),
        (GOOD | {"paper": "two"}, r"P01: unknown paper 'two'; choose one"),
        (GOOD | {"id": "P01a"}, r"P01a: id: String should match pattern"),
        (GOOD | {"verdict": "reproduced"}, r"P01: verdict: Extra inputs are not permitted"),
        (with_rule(kind="guess"), r"P01: unknown rule kind 'guess'; choose identity, bound, misprint"),
        (with_rule(kind="identity"), r"P01: rule.identity.values: Field required"),
        (with_rule(kind="identity", values=["a"], slack=1), r"rule.identity.slack: Extra inputs"),
        (
            with_rule(kind="effect", value="a", direction="positive", published=-3.0),
            r"published -3 does not lie on the positive side of 0; correct direction",
        ),
        (with_rule(kind="conditions", limits=[]), r"P01: unknown rule kind 'conditions'; choose"),
        (with_rule(kind="limit", value="a"), r"limit on a: give at_least, at_most or both"),
        (
            with_rule(kind="parts", parts=[PART]),
            r"rule\.parts\.parts: Tuple should have at least 2 items",
        ),
        (
            with_rule(kind="parts", parts=[{"name": "one", "rule": {"kind": "identity", "values": ["a"]}}]),
            r"rule\.parts\.parts\.0\.rule: Input tag 'identity' found",
        ),
        (
            with_rule(**EFFECT),
            r"P01: a rule about an effect needs paper_ran: model and size of the paper's own run",
        ),
        (with_rule(kind="count", value="a", at_least=95), r"P01: a rule about an effect needs paper_ran"),
        (
            with_rule(kind="parts", parts=[PART, PART | {"name": "another"}]),
            r"P01: a rule about an effect needs paper_ran",
        ),
        (GOOD | {"only_there": True}, r"P01: only_there needs the profile whose model the claim is about"),
        (GOOD | {"awaits": {"page": "7", "what": "more edits"}}, r"P01: awaits\.page: String should match"),
        (GOOD | {"changed": [{"date": "soon", "why": "short"}]}, r"P01: changed\.0\.why: String should"),
        (
            with_rule(kind="identity", values=["a"]) | {"notebook": None},
            r"P01: a rule needs the notebook whose values it judges",
        ),
        ("P01", r"row 2: is not a mapping of fields"),
    ],
)
def test_malformed_rows_say_what_is_wrong(load, row, message):
    first = GOOD | {"id": "P09"}
    with pytest.raises(DataError, match=message):
        load(first, row)


def test_a_well_formed_row_is_accepted(load):
    effect = with_rule(**EFFECT) | {"paper_ran": "GPT-J, 2,000 edits"}
    rows = [
        with_rule(kind="identity", values=["a"]) | {"id": "P02"},
        effect | {"id": "P02b", "awaits": {"page": "07", "what": "more edits"}},
        without("not_run") | {"id": "P02c", "untested": "another regime"},
    ]
    loaded = load(GOOD, *rows)
    assert [item.id for item in loaded.of("one")] == ["P01", "P02", "P02b", "P02c"]


def test_duplicate_ids_are_refused(load):
    with pytest.raises(DataError, match=r"1 problems\nP01: this id is used twice"):
        load(GOOD, GOOD)


def test_every_problem_is_listed(load):
    with pytest.raises(DataError, match="2 problems") as caught:
        load(without("place"), GOOD | {"id": "P02", "paper": "two"})
    assert "P01: place" in str(caught.value)
    assert "P02: unknown paper" in str(caught.value)


def test_a_file_without_the_lists_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("claims: []", "utf-8")
    with pytest.raises(DataError, match="needs the lists 'papers' and 'claims'"):
        load_claims(path)
    with pytest.raises(DataError, match="cannot be read as claims"):
        load_claims(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("notebook", "message"),
    [
        ("03_alphaedit_plus_lemma", "did you mean 03_alphaedit_plus_lemmas?"),
        ("zzz", "choose one of: 00_try_it, 01_one_edit"),
        ("", "unknown notebook ''; choose one of"),
        ("../notebooks/01_one_edit", "did you mean 01_one_edit?"),
    ],
)
def test_an_unknown_notebook_is_refused_in_the_projects_own_file(tmp_path, monkeypatch, notebook, message):
    """Such a claim would stay "not run" for ever, as if nobody had come to it yet."""
    for folder in ("notebooks", "config/profiles", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    for path in (paths.root() / "notebooks").glob("*.ipynb"):
        (tmp_path / "notebooks" / path.name).touch()
    source = (paths.root() / "data/claims.yaml").read_text("utf-8")
    monkeypatch.setenv("PALIMPSEST_ROOT", str(tmp_path))
    (tmp_path / "data/claims.yaml").write_text(source, "utf-8")
    assert load_claims().claims
    wrong = source.replace("notebook: 03_alphaedit_plus_lemmas\n", f"notebook: '{notebook}'\n", 1)
    (tmp_path / "data/claims.yaml").write_text(wrong, "utf-8")
    with pytest.raises(DataError, match=r"1 problems\nP01: unknown notebook") as caught:
        load_claims()
    assert message in str(caught.value)


def test_every_value_that_a_rule_names_is_in_the_carried_record():
    """A misspelt name would read "not run", too."""
    ruled = [claim for claim in load_claims().claims if claim.rule is not None and claim.notebook is not None]
    found = {
        profile: load_records(paths.results_root(), profile)
        for profile in {claim.profile or "laptop" for claim in ruled}
    }
    missing = {}
    for claim in ruled:
        values = found[claim.profile or "laptop"].get(claim.notebook)
        if values is None:  # nothing is recorded yet
            assert claim.awaits is not None or claim.only_there, claim.id
        elif names := set(claim.rule.names()) - set(values):
            missing[claim.id] = sorted(names)
    assert missing == {}


ODD_ROWS = [
    {1: 2},
    {"id": ["P01"]},
    {"id": {}, "paper": []},
    {"paper": {}},
    {"rule": []},
    {"rule": {"kind": []}},
    {"rule": {"kind": {}}},
    [],
    None,
    3,
]


@pytest.mark.parametrize("row", ODD_ROWS, ids=range(len(ODD_ROWS)))
def test_rows_of_any_kind_are_refused_by_name(load, row):
    with pytest.raises(DataError, match="problems"):
        load(row)
