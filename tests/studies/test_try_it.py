"""One fact of one's own: what it changes, that it comes back, and the fields for it."""

from typing import Any

import matplotlib.pyplot as plt
import pytest

from palimpsest.editors.base import Prepared
from palimpsest.network.model import fingerprint
from palimpsest.results import records
from palimpsest.results.prose import Markdown
from palimpsest.studies import try_it
from palimpsest.studies.try_it import KINDS, MOMENTS, playground, tried_figure, try_fact
from palimpsest.types import EditRequest
from tests.editing import small, stub_texts
from tests.tiny import tiny_model

FACT = EditRequest("the dog of {} is", "old king", "red")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trial on a tiny model, whose methods have no settings on file."""
    real = try_it.edit
    prepared = Prepared(contexts=("",))
    monkeypatch.setattr(try_it, "edit", lambda name, model, facts: real(small(name), model, facts, prepared))
    stub_texts(monkeypatch)
    model = tiny_model("llama")
    before = fingerprint(model)
    rows = try_fact(model, FACT, "blue", ["old king has a dog that is"], ["the dog of a bird is"])
    assert fingerprint(model) == before
    return rows


def test_the_new_object_gains_and_everything_comes_back(tried: Any) -> None:
    assert list(dict.fromkeys(tried["moment"])) == list(MOMENTS)
    assert list(dict.fromkeys(tried["kind"])) == list(KINDS)
    fact = tried[tried["kind"] == KINDS[0]].set_index("moment")
    assert fact.loc["edited", "new"] > fact.loc["before", "new"]
    for column in ("new", "old", "says"):
        before, undone = (tried[tried["moment"] == m][column].tolist() for m in ("before", "undone"))
        assert before == undone
    assert tried["new"].between(0, 100).all()


def test_the_figure_has_a_bar_for_every_prompt_moment_and_object(tried: Any) -> None:
    figure = tried_figure(tried, "red", "blue")
    assert [len(ax.patches) for ax in figure.axes] == [9, 9]
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "probability of “red”",
        "probability of “blue”",
    ]
    plt.close(figure)


@pytest.mark.parametrize("name", [records.STAGING, records.RECORDS])
def test_where_nobody_can_type_there_is_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "somewhere")
    shown = playground(tiny_model("llama"), FACT, "blue")
    assert isinstance(shown, Markdown)
    assert "Jupyter Lab" in shown


def fields(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in (records.STAGING, records.RECORDS):
        monkeypatch.delenv(name, raising=False)
    return playground(tiny_model("llama"), FACT, "blue", ["a wording"], ["one", "two"])


def test_a_click_tries_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(try_it, "_tried", lambda model, typed, editor: calls.append((typed, editor)))
    box = fields(monkeypatch)
    assert [box.children[place].value for place in (4, 5)] == ["a wording", "one\ntwo"]
    box.children[1].value = "young king"
    box.children[4].value = "one\ntwo"
    button = box.children[6]
    button.click()
    ((typed, editor),) = calls
    assert editor == "memit"
    assert (typed["prompt"], typed["subject"], typed["target"]) == (FACT.prompt, "young king", "red")
    assert typed["wordings"] == "one\ntwo"
    assert not button.disabled


def test_what_cannot_be_tried_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    typed = {"prompt": "the dog is", "subject": "old king", "target": "red", "old": "blue"}
    try_it._tried(tiny_model("llama"), {**typed, "wordings": "", "neighbours": ""}, "memit")
    assert "subject 'old king' occurs 0 times in prompt" in capsys.readouterr().out
