"""Original data by one path: what a file holds is told by its records and its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets import AlphaSet, Member, load_original, original_statements
from palimpsest.errors import DataError
from tests.datasets.alphasets import of_hand
from tests.datasets.originals import original


def question(subject: str, answer: str, **changes: Any) -> dict[str, Any]:
    """A record in MEND's form."""
    record = {
        "subject": subject,
        "src": f"Who made {subject}?",
        "pred": "x",
        "rephrase": f"By whom is {subject}?",
        "alt": "Bruno",
        "answers": [answer],
        "loc": "nq question: who wrote hamlet",
        "loc_ans": "Shakespeare",
        "cond": "x >> y || z",
    }
    return record | changes


def statement(number: int) -> dict[str, Any]:
    """A record of CounterFact."""
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": "{} was made by",
            "subject": f"Tower {number}",
            "target_new": {"str": "Ada"},
            "target_true": {"str": "Eve"},
        },
        "paraphrase_prompts": [f"The maker of Tower {number} is"],
        "neighborhood_prompts": ["Hut was made by"],
    }


def written(folder: Path, **files: Any) -> Path:
    """A folder with JSON files."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_with_every_kind(tmp_path: Path) -> None:
    first = [question("Karlite", "Franz"), question("Hut", "Ada")]
    again = [*first, question("Karlite", "Otto")]
    found = load_original(
        written(
            tmp_path,
            K0=first,
            KP=again,
            my_alphaset3_subset=first,
            zsre_eval=[*first, question("Nowhere", "x", src="Who?")],
            multi_counterfact=[statement(0), statement(1)],
        )
    )
    assert list(found.sets) == ["AlphaSet1", "AlphaSet2", "AlphaSet3"]
    assert [m.role for m in found.sets["AlphaSet2"].members] == ["superseded", "other", "hard"]
    assert [m.supersedes for m in found.sets["AlphaSet2"].members] == ["", "", "AlphaSet2 0"]
    assert [case.request.id for case in found.sets["AlphaSet1"].cases] == ["AlphaSet1 0", "AlphaSet1 1"]
    assert [case.id for case in found.questions] == ["ZsRE 0", "ZsRE 1"]
    assert [case.id for case in found.statements] == ["CounterFact 0", "CounterFact 1"]
    assert found.rejected == 1
    assert len(found.sha256) == 5
    alone = load_original(tmp_path / "K0.json")
    assert (list(alone.sets), alone.questions, alone.statements) == (["AlphaSet1"], [], [])


def test_what_is_no_original_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file with original data; give a JSON or JSON-lines file"):
        load_original(tmp_path)
    with pytest.raises(DataError, match="no file with original data"):
        load_original(tmp_path / "absent.json")
    written(tmp_path, other=[{"prompt": "x", "edit": "y"}])
    with pytest.raises(DataError, match=r"neither 'requested_rewrite'.* nor 'src'.*, but edit, prompt"):
        load_original(tmp_path)
    written(tmp_path, other=[])
    with pytest.raises(DataError, match="holds no record"):
        load_original(tmp_path)
    written(tmp_path, other=[question("Hut", "Ada")], K0=[question("Hut", "Ada")])
    (tmp_path / "other.json").rename(tmp_path / "AlphaSet1.json")
    with pytest.raises(DataError, match="AlphaSet1 was read from another file"):
        load_original(tmp_path)


def test_a_set_in_whole_batches() -> None:
    cases = [of_hand(), of_hand(), of_hand()]
    roles = ("superseded", "other", "hard")
    members = tuple(
        Member(case, role, supersedes="a" if role == "hard" else "")  # type: ignore[arg-type]
        for case, role in zip(cases, roles, strict=True)
    )
    made = AlphaSet("AlphaSet2", members)
    assert made.in_batches(3) == made
    assert [m.role for m in made.in_batches(2).members] == ["other", "other"]  # its rewrite is gone
    with pytest.raises(DataError, match="AlphaSet2: 3 members do not fill a batch of 4; lower batch"):
        made.in_batches(4)


def test_the_original_files() -> None:
    folder = original("zsre_mend_700.json").parent
    questions = load_original(folder / "zsre_mend_700.json").questions
    statements = load_original(original("counterfact_10k.jsonl")).statements
    assert len(questions) > 600
    assert len(statements) == 10_000
    assert len({case.id for case in (*questions, *statements)}) == len(questions) + len(statements)


def test_statements_come_in_an_order_that_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, facts=[statement(number) for number in range(8)], K0=[question("Karlite", "Franz")])
    found, hashes = original_statements(str(tmp_path / "facts.json"), seed=1)
    assert sorted(case.id for case in found) == [f"CounterFact {number}" for number in range(8)]
    assert list(hashes) == ["facts.json"]
    assert original_statements(str(tmp_path / "facts.json"), seed=1)[0] == found
    assert original_statements(str(tmp_path / "facts.json"), seed=2)[0] != found
    monkeypatch.setenv("PALIMPSEST_ORIGINALS", str(tmp_path))
    assert original_statements("facts.json", seed=1)[0] == found


def test_statements_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALIMPSEST_ORIGINALS", raising=False)
    with pytest.raises(DataError, match=r"facts\.json: not found; give its whole path, or its folder"):
        original_statements("facts.json", seed=0)
    written(tmp_path, K0=[question("Karlite", "Franz")])
    monkeypatch.setenv("PALIMPSEST_ORIGINALS", str(tmp_path))
    with pytest.raises(DataError, match="no CounterFact record"):
        original_statements("K0.json", seed=0)
