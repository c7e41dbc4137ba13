"""How a carried result stands to the sources, and how it says so."""

import importlib.metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book.confirm import confirm
from palimpsest.book.provenance import (
    UNKNOWN,
    code_revision,
    in_history,
    other_versions,
    read_provenance,
    record_hashes,
    versions,
)
from palimpsest.book.staleness import NOTEBOOK, Inputs
from palimpsest.book.standing import NOT_RUN, Standing, changed_definitions, stale, standing
from palimpsest.errors import NotebookError
from tests.clone import DATA, Clone, make_clone


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.fixture
def ran(clone: Clone) -> Clone:
    """With a result of the laptop profile, never executed."""
    clone.pretend_run(versions=versions())
    return clone


def shown() -> str:
    return str(standing("01_tiny", "laptop"))


def test_a_result_of_the_present_sources_is_up_to_date(ran: Clone) -> None:
    assert standing("01_tiny", "laptop") == Standing("fresh")
    assert (shown(), stale("01_tiny", "laptop")) == ("up to date", None)


def test_a_result_may_lie_in_another_folder(ran: Clone) -> None:
    folder = ran.root / "build" / "elsewhere"
    assert standing("01_tiny", "laptop", folder).kind == "not run"
    folder.mkdir(parents=True)
    for name, content in ran.results().items():
        (folder / name).write_bytes(content)
    assert standing(ran.notebook, "laptop", folder).kind == "fresh"


@pytest.mark.parametrize("missing", ["01_tiny.provenance.json", "01_tiny.json"])
def test_a_result_without_provenance_or_record_was_not_run(ran: Clone, missing: str) -> None:
    (ran.root / "results/laptop" / missing).unlink()
    assert standing("01_tiny", "laptop") == Standing("not run", NOT_RUN)
    assert (shown(), stale("01_tiny", "laptop")) == ("not run", "not run yet in this profile")


def test_a_record_that_is_not_the_one_vouched_for_is_named(ran: Clone) -> None:
    folder = ran.root / "results" / "laptop"
    ran.write_provenance({**ran.provenance(), "records": record_hashes("01_tiny", folder)})
    assert shown() == "up to date"
    (folder / "01_tiny.json").write_bytes((folder / "01_tiny.json").read_bytes() + b"\n")
    (folder / "01_tiny.extra.parquet").touch()
    assert shown() == (
        "stale (01_tiny.extra.parquet, 01_tiny.json: not what the run wrote; take it back from the history, "
        "or run the page)"
    )
    with pytest.raises(NotebookError, match=r"01_tiny\.json: not what the run wrote, so nothing to confirm"):
        confirm("01_tiny", "laptop")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"text"', "\x00"])
def test_a_damaged_provenance_is_none(ran: Clone, content: str) -> None:
    (ran.root / "results/laptop/01_tiny.provenance.json").write_text(content)
    assert read_provenance("01_tiny", ran.root / "results/laptop") == {}
    assert shown() == "not run"


@pytest.mark.parametrize(
    ("content", "scheme"), [({"content_hash": "a", "inputs": {}}, 1), ({"scheme": 3, "content_hash": "a"}, 3)]
)
def test_a_provenance_of_another_scheme_is_said_to_be_so(
    ran: Clone, content: dict[str, object], scheme: int
) -> None:
    ran.write_provenance(content)
    assert shown() == (
        f"stale (its provenance is of scheme {scheme} and hashes of today's scheme 2 cannot be compared "
        "with it)"
    )


def test_what_changed_is_named(ran: Clone) -> None:
    ran.write_toy("x - 1", "x - 2")
    assert standing("01_tiny", "laptop").changed == ("toy.thorough",)
    assert shown() == "stale (changed since the run: code (toy.thorough))"
    ran.write_notebook(
        work="from palimpsest.toy import doubled\nfrom palimpsest.results.records import Results"
    )
    assert NOTEBOOK in standing("01_tiny", "laptop").changed
    assert "toy.thorough (gone)" in standing("01_tiny", "laptop").changed


def test_each_kind_of_input_that_changed_is_named(ran: Clone) -> None:
    (ran.root / DATA).write_text("a,b,d\n")
    ran.write_profile("laptop", notebooks={"01_tiny": {"seed": 3}})
    (ran.root / "results/long").mkdir()
    (ran.root / "results/long/01_tiny.rows.parquet").touch()
    assert shown() == "stale (changed since the run: parameters, data, long records)"


def test_a_definition_that_only_moved_is_not_named(ran: Clone) -> None:
    thorough = "def thorough(x: float) -> float:\n    return x - 1\n"
    ran.write_toy(thorough, "from palimpsest.toys import thorough\n")
    ran.toy.with_name("toys.py").write_text(thorough)
    assert shown() == "up to date"
    ran.write_toy("FACTOR = 2.0", "FACTOR = 3.0")
    (ran.toy.with_name("toys.py")).unlink()
    assert standing("01_tiny", "laptop").changed == ("toy.FACTOR",)


def test_six_definitions_are_named_and_the_others_counted(ran: Clone) -> None:
    names = [f"A{number}" for number in range(8)]
    ran.write_toy("FACTOR = 2.0", "\n".join([*(f"{n} = 1" for n in names), f"FACTOR = {' + '.join(names)}"]))
    assert shown() == (
        "stale (changed since the run: code (toy.A0, toy.A1, toy.A2, toy.A3, toy.A4, toy.A5 and 3 more))"
    )


def test_a_change_that_no_definition_shows_is_still_a_change(ran: Clone) -> None:
    made = ran.provenance()
    ran.write_provenance(made | {"content_hash": "a"})
    assert shown() == "stale (changed since the run: how the hash is made)"
    ran.write_provenance(made | {"content_hash": "a", "inputs": made["inputs"] | {"code": "a"}})
    assert shown() == "stale (changed since the run: code (what it reaches))"


def test_changed_definitions_come_before_those_that_are_gone() -> None:
    now = Inputs({}, {NOTEBOOK: "1", "a.f": "2", "b.moved": "3", "b.new": "4"}, {})
    made = {NOTEBOOK: "1", "a.f": "1", "a.moved": "3", "a.old": "5"}
    assert changed_definitions(made, now) == ("a.f", "b.new", "a.old (gone)")
    assert changed_definitions(now.definitions, now) == ()


def test_another_version_of_a_decisive_library_is_noted(ran: Clone) -> None:
    made = {"numpy": "1.0", "torch": importlib.metadata.version("torch"), "pandas": "0.1"}
    ran.write_provenance(ran.provenance() | {"versions": made})
    here = importlib.metadata.version("numpy")
    assert shown() == f"up to date (made with another library: numpy 1.0, here {here})"
    assert standing("01_tiny", "laptop").kind == "fresh"
    assert other_versions({}) == ""


def test_a_confirmed_result_names_both_revisions(ran: Clone) -> None:
    here = ran.commit()
    steps = [{"revision": "0" * 12}, {"revision": here}]
    ran.write_provenance(ran.provenance() | {"confirmed": steps, "versions": {"numpy": "1.0"}})
    assert standing("01_tiny", "laptop").kind == "confirmed"
    assert shown().startswith(f"up to date (made with abc, confirmed at smoke size with {here}; made with an")
    assert stale("01_tiny", "laptop") is None


def test_a_confirmation_under_a_revision_that_is_not_in_the_history_is_said_to_be_so(ran: Clone) -> None:
    ran.commit()
    ran.git("checkout", "--quiet", "-b", "aside")
    aside = ran.commit("aside")
    ran.git("checkout", "--quiet", "main")
    ran.commit()
    for revision in (aside, "0123456789ab"):
        ran.write_provenance(ran.provenance() | {"confirmed": [{"revision": revision}]})
        assert shown() == (
            f"up to date (made with abc, confirmed at smoke size with {revision}, "
            "which is not in this history)"
        )


def test_without_git_no_history_is_missed(ran: Clone) -> None:
    ran.write_provenance(ran.provenance() | {"confirmed": [{"revision": "0123456789ab"}]})
    assert (code_revision(), in_history("0123456789ab")) == (UNKNOWN, None)
    assert shown() == "up to date (made with abc, confirmed at smoke size with 0123456789ab)"


def test_without_the_program_git_the_revision_is_unknown(
    ran: Clone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran.commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (code_revision(), in_history("0123456789ab")) == (UNKNOWN, None)


def test_a_revision_says_whether_sources_differ_from_it(ran: Clone) -> None:
    first = ran.commit()
    assert code_revision() == first
    (ran.root / "book" / "intro.md").write_text("# Intro\n")
    assert code_revision() == first
    ran.write_toy("2.0", "3.0")
    assert code_revision() == f"{first}+changes"
    second = ran.commit()
    assert (in_history(first), in_history(f"{second}+changes"), in_history("none")) == (True, True, False)


def test_status_says_how_each_result_stands(ran: Clone) -> None:
    ran.write_toy("2.0", "3.0")
    result = CliRunner().invoke(cli.app, ["status"])
    assert result.stdout == "01_tiny: stale (changed since the run: code (toy.FACTOR))\n"
