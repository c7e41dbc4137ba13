"""Training of SERAC: losses from plain passes, pairs of a scope, a kill that changes nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.editors import edit
from palimpsest.editors.reader import Reader, read
from palimpsest.editors.serac import Serac, SeracState
from palimpsest.errors import ResourceError
from palimpsest.evaluation.answers import ask
from palimpsest.network.apply import installed
from palimpsest.network.read_context import ReadContext
from palimpsest.network.tokens import encode
from palimpsest.training import readers
from palimpsest.training.lessons import Kind
from palimpsest.training.readers import Plan, fitted, pairs, train
from palimpsest.types import EditRequest, EvalCase, Probe, unspaced
from tests.editing import double, same_bits, snapshot
from tests.embedders import letters
from tests.network.test_adapter import plain_nll, some_adapter, written
from tests.tiny import tiny_model
from tests.training.test_hypernetworks import CASES, KIND

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

PLAN = Plan(layers=(0, 2), steps=8, rank=4, lr=1e-2, every=2, judged=2, sizes=(1, 2))


def trained(model: Any, out: Path, plan: Plan = PLAN) -> Reader:
    return train(model, [KIND], plan, out, {"model": "tiny"}, letters())


def test_losses_are_those_of_plain_passes_behind_the_fact() -> None:
    """New objects by adapted weights behind the fact; neighbours beside the unedited model without it."""
    model = double("llama")
    adapter = some_adapter(model)
    found = readers._losses(model, adapter, KIND, CASES[:2], 1)
    facts = [f"New fact: {case.request.text} Rome.\n" for case in CASES[:2]]
    nll = [
        plain_nll(model, fact + prompt, "Rome", adapter)
        for fact, case in zip(facts, CASES[:2], strict=True)
        for prompt in (case.request.text, case.paraphrases[0])
    ]
    assert found.edit.item() == pytest.approx(sum(nll) / 4, rel=1e-6)

    def next_token(text: str) -> torch.Tensor:
        with torch.no_grad():
            ids = torch.tensor([encode(model.tokenizer, text)])
            return model.net(input_ids=ids).logits[0, -1].log_softmax(0)

    apart = []
    for fact, case in zip(facts, CASES[:2], strict=True):
        plain = next_token(case.neighbours[1].prompt)
        with written(model, adapter):
            behind = next_token(fact + case.neighbours[1].prompt)
        apart.append((plain.exp() * (plain - behind)).sum().item())
    assert found.local.item() == pytest.approx(sum(apart) / 2, rel=1e-6)


def test_the_loss_falls_the_model_stays_and_the_file_is_read(tmp_path: Path) -> None:
    model, out = tiny_model("llama"), tmp_path / "a.safetensors"
    before = snapshot(model)
    made = trained(model, out, replace(PLAN, steps=40, every=20))
    curve = made.about["curve"]
    assert [row["step"] for row in curve] == [0, 20, 40]
    assert min(row["loss"] for row in curve[1:]) < 0.95 * curve[0]["loss"]
    assert same_bits(model, before)
    again = read(out)
    assert json.loads(json.dumps(made.about)) == again.about
    assert again.about["model"] == "tiny"
    assert torch.equal(again.adapter.up, made.adapter.up)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors"]


def test_what_was_trained_is_what_the_editor_uses(tmp_path: Path) -> None:
    """In scope the new object is likelier than by the network as it is, which reads the same text."""
    model, out = tiny_model("llama"), tmp_path / "a.safetensors"
    made = trained(model, out, replace(PLAN, steps=40, every=20))
    facts = [case.request for case in CASES[:2]]
    edited, _ = edit(Serac(network=str(out)), model, facts, SeracState(embed=letters()))
    assert isinstance(edited, ReadContext)
    assert edited.notes["network"] == read(out).about
    bare = replace(edited, adapter=readers.Adapter((0, 2), made.adapter.width, 4), kept={})
    assert edited.chosen(facts[0].text) == 0
    asked = [(fact.text, fact.target) for fact in facts]
    with installed(model, bare):
        plain = ask(model, asked).nll
    with installed(model, edited):
        assert (ask(model, asked).nll < plain).all()


def test_killed_and_repeated_it_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    trained(model, tmp_path / "whole.safetensors")
    seen = readers._losses

    def killed(*given: Any) -> Any:
        if given[-1] == 5:
            raise KeyboardInterrupt
        return seen(*given)

    monkeypatch.setattr(readers, "_losses", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(model, tmp_path / "again.safetensors")
    assert (tmp_path / "again.training").exists()
    monkeypatch.setattr(readers, "_losses", seen)
    with pytest.raises(ResourceError, match="a checkpoint of a training with another model, plan or data"):
        trained(model, tmp_path / "again.safetensors", replace(PLAN, steps=9))
    trained(model, tmp_path / "again.safetensors")
    whole, again = (read(tmp_path / f"{name}.safetensors") for name in ("whole", "again"))
    assert again.about["curve"] == whole.about["curve"]
    for name, one in whole.adapter.state_dict().items():
        assert torch.equal(again.adapter.state_dict()[name], one)
    assert torch.equal(again.head.weights, whole.head.weights)


# The scope.


def test_pairs_in_scope_and_out_of_it() -> None:
    def case(subject: str, prompt: str, target: str = "Rome") -> EvalCase:
        request, near = EditRequest(prompt, subject, target), (Probe(f"N {subject}", "x"),)
        return EvalCase(subject, request, "", (f"R {subject}",), near)

    cases = [case("A", "{} lives in"), case("B", "{} lives in", unspaced("Rome")), case("C", "{} speaks")]
    inside, outside = pairs(cases, seed=0)
    a, b, c = "A lives in Rome", "B lives inRome", "C speaks Rome"
    assert inside == [
        (a, "A lives in"),
        (a, "R A"),
        (b, "B lives in"),
        (b, "R B"),
        (c, "C speaks"),
        (c, "R C"),
    ]
    assert {(a, "N A"), (b, "N B"), (c, "N C")} <= {*outside}
    assert pairs(cases, seed=0) == (inside, outside)
    drawn = {pair for seed in range(30) for pair in pairs(cases, seed)[1]}
    assert {(a, "B lives in"), (b, "A lives in"), (a, "R C"), (c, "R A")} <= drawn
    assert not drawn & {*inside}


def test_a_classifier_learns_what_a_cosine_cannot_tell() -> None:
    """Rewordings share the first half of an embedding, neighbours the longer second one."""

    def embed(texts: Sequence[str]) -> torch.Tensor:
        rows = []
        for text in texts:
            subject = int("".join(letter for letter in text if letter.isdigit()))
            here = torch.Generator().manual_seed(subject)
            own = torch.randn(8, generator=here, dtype=torch.float64)
            other = subject % 1000 if "near" in text else subject // 1000
            rest = torch.Generator().manual_seed(10**6 + other)
            rows.append(torch.cat([own, 2 * torch.randn(8, generator=rest, dtype=torch.float64)]))
        return torch.stack(rows)

    def case(number: int) -> EvalCase:
        request = EditRequest("{} is", str(number), "x")
        near = Probe(f"near {1000 * (number + 5000)}{number // 1000:03d}", "y")
        return EvalCase(str(number), request, "y", (f"again {number}",), (near,))

    cases = tuple(case(1000 * number) for number in range(1, 121))
    kind = Kind("numbers", "", cases[:80], cases[80:])
    head, scope, seen = fitted(embed, [kind], replace(PLAN, scoped=80, held_out=40))
    assert scope.accuracy > 0.95
    assert seen["accuracy"] == round(scope.accuracy, 4) >= seen["cosine_accuracy"]
    assert (scope.inside, seen["held_out_pairs"]) == (80, scope.inside + scope.outside)
    one, other = cases[0], cases[1]
    statements = embed([f"{case.request.text} x" for case in (one, other)])
    chances = head.probabilities(embed([one.paraphrases[0]]), statements)
    assert chances[0] >= scope.threshold > chances[1]
