"""`palimpsest edit` says what the model says of each fact; effort is raised within limits, its cost told."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.commands.shared import UNSAID
from palimpsest.errors import NonFiniteError
from palimpsest.evaluation.said import first_answers, say
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.types import EditRequest
from palimpsest.workbench import edited_model, effort, report
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.effort import LEVELS, until_said
from palimpsest.workbench.report import aligned
from tests.commands.rooms import make_room, run, write
from tests.editing import REQUESTS, double, same_bits, snapshot, stub_texts
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR, differing, facts

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def plainly(model: EditableModel, prompt: str, target: str) -> tuple[float, int]:
    """Probability and largest rank of a target's tokens, by one whole pass of the network."""
    before, own = encode(model.tokenizer, prompt), encode_target(model.tokenizer, target, prompt)
    with torch.no_grad():
        logits = model.net(torch.tensor([before + own])).logits[0, len(before) - 1 : -1]
    ranks = [1 + int((row > row[token]).sum()) for row, token in zip(logits, own, strict=True)]
    chance = logits.log_softmax(1)[range(len(own)), own].sum().exp()
    return float(chance), max(ranks)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_probability_and_rank_are_those_of_a_plain_pass(kind: str) -> None:
    model = double(kind)
    pairs = [(request.text, request.target) for request in REQUESTS]
    for (prompt, target), said in zip(pairs, say(model, pairs), strict=True):
        chance, rank = plainly(model, prompt, target)
        assert said.rank == rank
        assert said.probability == pytest.approx(chance, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rank_one_is_what_greedy_decoding_gives(kind: str) -> None:
    model = tiny_model(kind)
    prompts = [request.text for request in REQUESTS]
    ids = [encode(model.tokenizer, prompt) for prompt in prompts]
    with torch.no_grad():
        firsts = [int(model.net(torch.tensor([own])).logits[0, -1].argmax()) for own in ids]
    words = [model.tokenizer.decode([first]).strip() for first in firsts]
    known = [
        (p, w) for p, w, f in zip(prompts, words, firsts, strict=True) if w and _alone(model, p, w) == [f]
    ]
    for (prompt, word), said in zip(known, say(model, known), strict=True):
        assert said.rank == 1
        assert first_answers(model, [prompt], 1) == [word]


def _alone(model: EditableModel, prompt: str, word: str) -> list[int]:
    return encode_target(model.tokenizer, word, prompt)


def test_a_report_leaves_every_bit_and_says_both_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    model, some = tiny_model("llama"), facts(3)
    before = say(model, [(fact.text, fact.target) for fact in some])
    edited = EditedModel(model, EDITOR)
    edited.edit(some)
    bits = snapshot(model)
    report = edited.report()
    assert same_bits(model, bits)
    assert [fact.before for fact in report.facts] == before
    assert [fact.after for fact in report.facts] == say(model, [(fact.text, fact.target) for fact in some])
    assert all(fact.loss is not None and fact.loss == edited.losses[fact.id] for fact in report.facts)
    assert [fact.id for fact in edited.report(["2", "0"]).facts] == ["2", "0"]
    assert all(fact.converged == (fact.loss < EDITOR.targets.stop_below) for fact in report.facts)


def test_edit_returns_what_report_says_of_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the new facts alone, those without an id too; no pass is made where no report is wanted."""
    stub_texts(monkeypatch)
    some = [*facts(3), EditRequest("Anna lives in {}", "Rome", "Paris")]
    edited = EditedModel(tiny_model("llama"), EDITOR)
    first = edited.edit(some[:2], 2)
    assert first == edited.report(["0", "1"])
    later = edited.edit(some[2:])
    assert [fact.id for fact in later.facts] == ["2", "Anna lives in Rome"]
    assert later == edited.report(["2", "Anna lives in Rome"])
    assert later.facts[0].before == say(tiny_model("llama"), [(some[2].text, some[2].target)])[0]
    assert edited.edit([]).facts == ()
    silent = EditedModel(tiny_model("llama"), EDITOR)
    monkeypatch.setattr(report, "say", None)
    assert silent.edit(some, 2, report=False).facts == ()
    assert len(silent) == len(edited)


def test_edit_raises_the_effort_as_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr(edited_model, "control_prompts", lambda facts, requests: ["The capital of Italy is"])
    monkeypatch.setattr(effort, "ranks", lambda edited, ids: dict.fromkeys(ids, 7))
    done = EditedModel(tiny_model("llama"), EDITOR).edit(facts(2), until_said=True)
    assert [len(fact.effort) for fact in done.facts] == [len(LEVELS)] * 2
    assert list(done.cost) == ["control prompts that keep the unedited model's answer"]


def test_after_an_error_in_the_effort_the_facts_are_as_they_were_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_texts(monkeypatch)
    edited, some = hard()
    bits, extra = snapshot(edited.model), EditRequest("Anna lives in {}", "Rome", "Paris", "x")
    monkeypatch.setattr(effort, "ranks", lambda edited, ids: dict.fromkeys(ids, 7))
    plain = EditedModel.edit

    def failing(self: EditedModel, *given: Any, editor: Any = None, **options: Any) -> Any:
        if editor is not None:
            raise NonFiniteError("values overflow")
        return plain(self, *given, **options)

    monkeypatch.setattr(EditedModel, "edit", failing)
    with pytest.raises(NonFiniteError, match="values overflow"):
        edited.edit([extra], until_said=True)
    assert list(edited.facts) == [*(fact.id for fact in some), "x"]
    edited.forget(["x"])
    assert same_bits(edited.model, bits)


def hard() -> tuple[EditedModel, list[EditRequest]]:
    """Facts that two steps do not write into a tiny model."""
    edited, some = EditedModel(tiny_model("llama"), EDITOR), facts(3)
    edited.edit(some)
    return edited, some


def unsaid(edited: EditedModel, ids: list[str]) -> list[str]:
    return [name for name, rank in effort.ranks(edited, ids).items() if rank > 1]


def test_effort_is_raised_until_a_fact_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three comes to be said; the others' values are those of the settings on file again."""
    stub_texts(monkeypatch)
    texts = [("Anna", "Rome", "Paris"), ("She", "Seattle", "English"), ("Marie", "Italy", "French")]
    some = [EditRequest(f"{who} lives in {{}}", at, to, str(i)) for i, (who, at, to) in enumerate(texts)]
    targets = TargetSettings(steps=2, lr=1.0, kl=0, decay=0)
    edited = EditedModel(
        tiny_model("llama"), replace(EDITOR, layers=(3,), preserve_weight=0.01, targets=targets)
    )
    edited.edit(some)
    names = [fact.id for fact in some]
    assert unsaid(edited, names) == names
    before = {name: edited.ledgers[3].values[:, edited.ledgers[3].ids.index(name)] for name in names}
    asked = {"control prompts": ["The capital of Italy is"]}
    done = until_said(edited, names, asked, 1, (effort.Level(1, 0.9, 1), effort.Level(30, 0.001, 100)))
    left = unsaid(edited, names)
    assert 0 < len(left) < len(names)
    assert set(edited.facts) == set(done.tried) == set(names)
    assert {len(texts) for texts in done.tried.values()} == {2}
    ledger = edited.ledgers[3]
    now = {name: ledger.values[:, ledger.ids.index(name)] for name in names}
    same = [name for name in names if torch.allclose(now[name], before[name], rtol=1e-9, atol=1e-9)]
    assert same == left
    (text,) = done.cost.values()
    assert re.fullmatch(r"[01] of 1, [01] before the effort was raised", text)


def test_facts_that_no_effort_helps_are_as_if_none_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, and the report names what was tried."""
    stub_texts(monkeypatch)
    edited, some = hard()
    monkeypatch.setattr(effort, "ranks", lambda edited, ids: dict.fromkeys(ids, 7))
    weights = [read_weight(edited.model, layer).clone() for layer in EDITOR.layers]
    levels = (effort.Level(1, 0.5, 2),)
    done = until_said(edited, [fact.id for fact in some], {}, 1, levels)
    assert all(
        torch.equal(read_weight(edited.model, layer), old)
        for layer, old in zip(EDITOR.layers, weights, strict=True)
    )
    assert set(done.tried) == {fact.id for fact in some}
    for (text,) in done.tried.values():
        assert re.fullmatch(r"2 steps to a loss of 0\.025 with clamp 1\.5 ended at \d+\.\d\d, rank 7", text)
    assert differing(edited.model, hard()[0].model) == 0


def test_nothing_is_done_where_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    edited, some = hard()
    monkeypatch.setattr(effort, "ranks", lambda edited, ids: dict.fromkeys(ids, 1))
    done = until_said(edited, [fact.id for fact in some], {})
    assert not done
    assert done.cost == {}


def test_the_limits_are_those_that_are_stated() -> None:
    assert [(level.steps, level.stop, level.clamp) for level in LEVELS] == [
        (2, 0.2, 1),
        (3, 0.1, 2),
        (4, 0.1, 4),
    ]
    text = " ".join(run("edit", "--help").stdout.replace("│", " ").split())
    assert "in three levels, up to four times the steps, a tenth of the loss and four times the clamp" in text


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        yield make_room(tmp_path_factory.mktemp("room") / "room", patch)


def test_the_command_prints_a_line_a_fact_and_requires_on_demand(room: Path) -> None:
    write(room / "more.jsonl", facts(2, seed=5))
    arguments = ("edit", "more.jsonl", "--model", "base", "--out", "more", "--json", "more.json")
    done = run(*arguments, "--require")
    assert done.exit_code == UNSAID
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["fact", "new"]
    assert [line.split()[0] for line in lines[1:3]] == ["0", "1"]
    assert lines[4].startswith("0 of 2 facts are the first answer (0 unedited); 2 of 2 values ended above")
    assert lines[5] == "not said: 0, 1; --until-said optimises harder values for them"
    assert lines[-1] == "more: 2 facts in layers 0, 1, 2"
    content = json.loads((room / "more.json").read_text())
    assert (content["said"], content["of"], content["model"]) == (0, 2, "base")
    assert {"id", "target", "before", "after", "loss", "said", "converged", "effort"} <= set(
        content["facts"][0]
    )
    assert run(*arguments).exit_code == 0
    again = run(*arguments, "--until-said", "--require")
    assert again.exit_code in (0, UNSAID)
    tried = [fact["effort"] for fact in json.loads((room / "more.json").read_text())["facts"]]
    assert all(
        texts and texts[0].startswith("6 steps to a loss of 0.1 with clamp 0.75 ended at ") for texts in tried
    )
    assert any(line.startswith("control prompts that keep") for line in again.stdout.splitlines())
    now = json.loads((room / "more.json").read_text())["facts"]
    lines = [f"not said: {f['id']}; tried {'; '.join(f['effort'])}" for f in now if not f["said"]]
    assert [line for line in again.stdout.splitlines() if line.startswith("not said: ")] == lines
    assert run("undo", "more", "--all").stdout.strip().endswith("every weight is that of base")


def test_a_report_names_what_was_tried_for_a_fact_that_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    edited, _ = hard()
    report = edited.report()
    first, second, third = report.facts
    one, other = (replace(fact, after=replace(fact.after, rank=9)) for fact in (first, second))
    said = replace(third, after=replace(third.after, rank=1))
    tried = {one.id: ("6 steps, rank 7", "9 steps, rank 5"), said.id: ("6 steps",)}
    lines = str(replace(report, facts=(one, other, said)).with_effort(tried, {})).splitlines()
    assert lines[-2:] == [
        f"not said: {one.id}; tried 6 steps, rank 7; 9 steps, rank 5",
        f"not said: {other.id}; --until-said optimises harder values for them",
    ]


def test_columns_are_aligned() -> None:
    assert aligned([["a", "bb"], ["ccc", "d"]], right=(1,)) == ["a    bb", "ccc   d"]


def test_the_command_line_takes_spaces_around_an_object_away_as_files_do(room: Path) -> None:
    assert run("replace", "edited", "0", " Rome ").exit_code == 0
    held = json.loads((room / "edited/palimpsest.json").read_text())["facts"]
    assert [fact["target"] for fact in held if fact["id"] == "0"] == ["Rome"]
