"""The answer block: question, answer and verdicts of a page, the same words everywhere."""

import re
from pathlib import Path

import pytest
import yaml

from palimpsest.errors import UnknownNameError
from palimpsest.files import as_json
from palimpsest.results.answers import answer
from palimpsest.results.records import Results

QUESTION = "Does it grow?"
CLAIM = {
    "id": "X01",
    "paper": "one",
    "place": "Sec. 1",
    "kind": "Q",
    "statement": "The vector grows <much> with every edit.",
    "notebook": "01_page",
    "rule": {"kind": "effect", "value": "gain", "direction": "positive", "worth": 1.0},
    "paper_ran": "a large model, 2,000 edits.",
}
PARTS = {
    "kind": "parts",
    "parts": [
        {
            "name": f"part {n}",
            "rule": {"kind": "effect", "value": f"gain{n}", "direction": "positive", "worth": 1.0},
        }
        for n in range(3)
    ],
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALIMPSEST_ROOT", str(tmp_path))
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "config" / "profiles").mkdir(parents=True)
    write(tmp_path, CLAIM)
    return tmp_path


def write(root: Path, *claims: dict[str, object]) -> None:
    (root / "data").mkdir(exist_ok=True)
    content = {"papers": [{"id": "one", "title": "One"}], "claims": list(claims)}
    (root / "data" / "claims.yaml").write_text(yaml.safe_dump(content))


def run(profile: str = "laptop", gain: float = 3.0, names: tuple[str, ...] = ("gain",)) -> Results:
    results = Results("01_page", profile=profile, parameters={})
    results.describe(model={"name": "tiny"}, seed=5)
    for name in names:
        results.value(name, gain, gain - 1, gain + 1, unit="percent", over="cases", n=9)
    return results


def test_it_holds_question_answer_verdict_number_and_size(root: Path) -> None:
    made = answer(run(), QUESTION, "It grows by {gain} {how}.", how="a step")
    html = made._repr_html_()
    plain = re.sub(r"<[^>]+>", " ", html)
    for text in (
        QUESTION,
        "It grows by 3.0 [2.0, 4.0] a step.",
        "X01 direction only",
        "The vector grows &lt;much&gt; with every edit.",
        "Found: 3 [2, 4] over 9 cases",
        "In the paper: a large model, 2,000 edits.",
        "Run: profile laptop, tiny, seed 5.",
    ):
        assert text in plain
        if "&lt;" not in text and "In the paper" not in text and "Found" not in text:
            assert text in repr(made)


def test_a_run_at_smoke_size_is_not_judged(root: Path) -> None:
    html = answer(run("smoke"), QUESTION, "It grows by {gain}.")._repr_html_()
    assert "nothing is judged by it" in html
    assert "X01" not in html


def test_a_long_record_that_decides_says_so(root: Path) -> None:
    write(root, {**CLAIM, "profile": "long"})
    long = root / "results" / "long" / "01_page.json"
    long.parent.mkdir(parents=True)
    long.write_bytes(as_json(run("long", gain=-3.0).as_dict()))
    html = answer(run(), QUESTION, "It grows.")._repr_html_()
    assert "X01 opposite here" in html
    assert "(profile long)" in html


def test_many_parts_are_counted_and_folded(root: Path) -> None:
    write(root, {**CLAIM, "rule": PARTS})
    html = answer(run(names=("gain0", "gain1", "gain2")), QUESTION, "It grows.")._repr_html_()
    assert "Found, part by part: 3 direction only." in html
    assert "<summary>the 3 parts</summary>" in html
    assert html.count("<li>part ") == 3


def test_a_name_that_is_not_recorded_is_an_error(root: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown value 'gian'"):
        answer(run(), QUESTION, "It is {gian}.")
