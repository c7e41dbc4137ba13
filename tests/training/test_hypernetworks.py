"""Training of hypernetworks: losses from plain passes, a loss that falls, a kill that changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from palimpsest.cache import SUM
from palimpsest.editors.hypernetwork import Hypernetwork, read
from palimpsest.errors import DataError, NonFiniteError, ResourceError
from palimpsest.network.model import fingerprint, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.training import hypernetworks, runs
from palimpsest.training.hypernetworks import Plan, train
from palimpsest.training.lessons import Draw, Kind
from palimpsest.types import EditRequest, EvalCase, Probe
from tests.disk import flip
from tests.editing import double, same_bits, snapshot
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

NAMES = ("Anna Berg", "Xu Ω", "Danielle Darrieux", "France", "Seattle", "Rome")
CASES = tuple(
    EvalCase(
        name,
        EditRequest("{} lives in", name, "Rome" if name != "Rome" else "Paris"),
        "Seattle, in the north",
        (f"The city of {name} is",),
        (Probe("The capital of France is the city of", "Paris"), Probe("The city is", "old")),
    )
    for name in NAMES
)
KIND = Kind("homes", "", CASES[:4], CASES[4:])
PLAN = Plan(layers=(0, 2), steps=8, rank=4, lr=1e-2, every=2, judged=2, calibration=3, sizes=(1, 2))


def nll(model: Any, prompt: str, target: str) -> float:
    ids, tokens = encode(model.tokenizer, prompt), encode_target(model.tokenizer, target, prompt)
    with torch.no_grad():
        log_p = model.net(input_ids=torch.tensor([ids + tokens[:-1]])).logits[0].log_softmax(1)
    return -sum(log_p[len(ids) - 1 + i, token].item() for i, token in enumerate(tokens)) / len(tokens)


def test_losses_are_those_of_plain_passes_with_the_update_written_into_the_weights() -> None:
    model = double("llama")
    generator = torch.Generator().manual_seed(0)
    updates = {
        layer: 0.1 * torch.randn(read_weight(model, layer).shape, generator=generator, dtype=torch.float64)
        for layer in (0, 2)
    }
    draw = Draw(model, CASES[:2], 1, beside_true=True)
    found = draw.losses(updates)
    others = [torch.tensor([encode(model.tokenizer, case.neighbours[1].prompt)]) for case in CASES[:2]]
    with torch.no_grad():
        before = [model.net(input_ids=ids).logits[0, -1].log_softmax(0) for ids in others]
        for layer, delta in updates.items():
            model.projection(layer).weight += delta
        after = [model.net(input_ids=ids).logits[0, -1].log_softmax(0) for ids in others]
    prompts = [prompt for case in CASES[:2] for prompt in (case.request.text, case.paraphrases[0])]
    new = [nll(model, prompt, "Rome") for prompt in prompts]
    true = [nll(model, prompt, "Seattle, in the north") for prompt in prompts]
    assert found.edit.item() == pytest.approx(sum(new) / 4, rel=1e-9)
    wanted = [(a.exp() * (a - b)).sum().item() for a, b in zip(before, after, strict=True)]
    assert found.local.item() == pytest.approx(sum(wanted) / 2, rel=1e-9)
    for wording in (0, 1):
        pairs = zip(new[wording::2], true[wording::2], strict=True)
        assert draw.more_likely(found, wording) == sum(a < b for a, b in pairs) / 2


def test_the_loss_falls_and_the_model_stays(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    network = train(model, [KIND], replace(PLAN, steps=40, every=20), tmp_path / "a.safetensors")
    curve = network.about["curve"]
    assert [row["step"] for row in curve] == [0, 20, 40]
    assert min(row["loss"] for row in curve[1:]) < 0.95 * curve[0]["loss"]
    assert same_bits(model, before)
    assert json.loads(json.dumps(network.about)) == read(tmp_path / "a.safetensors").about
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors"]


def test_killed_and_repeated_it_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    whole = train(model, [KIND], PLAN, tmp_path / "whole.safetensors")
    seen = hypernetworks._losses

    def killed(*given: Any) -> Any:
        if given[-1] == 5:
            raise KeyboardInterrupt
        return seen(*given)

    monkeypatch.setattr(hypernetworks, "_losses", killed)
    with pytest.raises(KeyboardInterrupt):
        train(model, [KIND], PLAN, tmp_path / "again.safetensors")
    assert (tmp_path / "again.training").exists()
    steps: list[int] = []
    monkeypatch.setattr(hypernetworks, "_losses", lambda *given: steps.append(given[-1]) or seen(*given))
    again = train(model, [KIND], PLAN, tmp_path / "again.safetensors")
    assert steps == [4, 5, 6, 7]
    assert again.about["curve"] == whole.about["curve"]
    for name, one in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], one)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tiny_model("llama"), tmp_path / "a.safetensors"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Hypernetwork, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(model, [KIND], PLAN, out)
    with pytest.raises(ResourceError, match="a checkpoint of a training with another model, plan or data"):
        train(model, [KIND], replace(PLAN, steps=9), out)
    halfway = out.with_suffix(".training")
    tensors = load_file(halfway)
    with safe_open(halfway, "pt") as handle:
        head = {name: text for name, text in handle.metadata().items() if name != SUM}

    def torn() -> None:
        halfway.write_bytes(b"torn")

    def odd() -> None:
        save_file(tensors | {"network.left": torch.zeros(3)}, halfway, head)

    def without(name: str) -> None:
        save_file({key: one for key, one in tensors.items() if key != name}, halfway, head)

    def told(**others: str) -> None:
        save_file(tensors, halfway, head | others)

    faults: list[Callable[[], object]] = [
        torn,
        odd,
        lambda: flip(halfway),
        lambda: without("network.left"),
        lambda: without("best.left"),
        lambda: save_file(tensors | {"adam.x": torch.zeros(1)}, halfway, head),
        lambda: save_file(tensors, halfway),
        lambda: save_file(tensors, halfway, {"mark": head["mark"]}),
        lambda: told(step="many"),
        lambda: told(curve="3"),
        lambda: told(curve="[" * 100_000),
    ]
    whole = halfway.read_bytes()
    for damage in faults:
        halfway.write_bytes(whole)
        damage()
        with pytest.raises(ResourceError, match=r"(?s)no readable checkpoint .*; remove it to begin anew"):
            train(model, [KIND], PLAN, out)
    told()  # one of an earlier version, without a checksum
    monkeypatch.undo()
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    train(model, [KIND], PLAN, out)
    assert not halfway.exists()


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"at step \d+; lower the learning rate. The last checkpoint"):
        train(tiny_model("llama"), [KIND], replace(PLAN, lr=1e4, steps=30), tmp_path / "a.safetensors")


def test_shares_of_what_no_fact_has_are_left_out(tmp_path: Path) -> None:
    """Without a true object, or without a rewording, there is nothing to compare, which is no share of 0."""
    untrue = tuple(replace(case, target_true="") for case in CASES)
    unworded = tuple(replace(case, paraphrases=()) for case in CASES)
    for cases, names in ((untrue, set()), (unworded, {"own"}), (CASES, {"own", "reworded"})):
        kind = Kind("homes", "", cases[:4], cases[4:])
        made = train(tiny_model("llama"), [kind], replace(PLAN, steps=1), tmp_path / "a.safetensors")
        for row in made.about["curve"]:
            assert row.keys() & {"own", "reworded"} == names


def test_a_judged_loss_that_is_not_finite_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the smallest for good, as nothing is less than NaN."""
    seen = hypernetworks._judged

    def lost(*given: Any) -> Any:
        return ({**row, "edit": float("nan")} for row in seen(*given))

    monkeypatch.setattr(hypernetworks, "_judged", lost)
    with pytest.raises(NonFiniteError, match="the loss is nan at step 0; lower the learning rate"):
        train(tiny_model("llama"), [KIND], PLAN, tmp_path / "a.safetensors")


def test_kinds_take_turns_and_a_draw_follows_from_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Kind("questions", "Answer: ", CASES[:4], CASES[4:])
    plan = replace(PLAN, sizes=(1, 3))
    drawn = [runs.drawn([KIND, questions], plan, step) for step in range(8)]
    assert [kind.name for kind, _ in drawn] == ["homes", "questions"] * 4
    assert [len(cases) for _, cases in drawn] == [1, 1, 3, 3] * 2
    assert drawn == [runs.drawn([KIND, questions], plan, step) for step in range(8)]
    assert {case.id for _, cases in drawn for case in cases} <= {case.id for case in KIND.training}


def test_a_kind_needs_neighbours_in_both_parts() -> None:
    bare = tuple(replace(case, neighbours=()) for case in CASES)
    with pytest.raises(DataError, match="homes: none of the 2 validation cases has a prompt about another"):
        Kind("homes", "", CASES[:4], bare[4:])
    with pytest.raises(DataError, match="none of the 0 training cases"):
        Kind("homes", "", (), CASES)


def test_the_network_is_for_the_model_it_was_trained_on(tmp_path: Path) -> None:
    from palimpsest.editors.hypernetwork import base_of

    model = tiny_model("gpt2")
    train(model, [KIND], replace(PLAN, steps=1), tmp_path / "a.safetensors")
    assert base_of(tmp_path / "a.safetensors") == fingerprint(model)
