"""Hidden states at two places against a plain pass over one prompt at a time; and their comparison."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.errors import NonFiniteError, ScoreError, SiteError, UnknownNameError
from palimpsest.evaluation import representation as module
from palimpsest.evaluation.representation import PLACES, representation_shift, representations
from palimpsest.evaluation.shift import SHIFT_MEASURES, Shift
from palimpsest.network.apply import PromptContext, WeightDelta, installed
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.tokens import encode_around_subject
from tests.editing import KINDS, REQUESTS
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")

LAYER = 1


def noise(model: EditableModel, size: float, layer: int = LAYER) -> WeightDelta:
    shape, generator = read_weight(model, layer).shape, torch.Generator().manual_seed(7)
    return WeightDelta({layer: size * torch.randn(shape, generator=generator, dtype=torch.float64)})


@pytest.mark.parametrize("layer", [LAYER, 3])
@pytest.mark.parametrize("bos", [False, True], ids=["", "bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_each_prompt_alone(
    kind: str, bos: bool, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 3)
    model = tiny_model(kind, seed=3, bos=bos)
    found = representations(model, REQUESTS, layer)
    assert found.subject.dtype == found.prompt.dtype == np.float64
    for row, request in enumerate(REQUESTS):
        ids, subject = encode_around_subject(model.tokenizer, request.prompt, request.subject)
        with torch.no_grad():
            out = model.net(input_ids=torch.tensor([ids]), output_hidden_states=True)
        hidden = out.hidden_states[layer + 1][0] if layer < 3 else None
        if hidden is not None:  # transformers norms the last layer's output before it hands it out
            np.testing.assert_allclose(found.subject[row], hidden[subject].numpy(), atol=2e-5)
        norm = model.net.get_submodule(model.family.norm)
        with torch.no_grad():
            last = norm(torch.from_numpy(found.prompt[row]).float())
        np.testing.assert_allclose(last.numpy(), out.hidden_states[-1][0, -1].numpy(), atol=2e-4)
    assert found.at("prompt") is found.prompt


def test_a_second_reading_of_the_same_weights_comes_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=3)
    first = representations(model, REQUESTS, LAYER)
    with installed(model, noise(model, 0.1)):
        other = representations(model, REQUESTS, LAYER)
    monkeypatch.setattr(module, "_read", lambda *_: pytest.fail("read again"))
    again = representations(model, REQUESTS, LAYER)
    for place in PLACES:
        assert np.array_equal(first.at(place), again.at(place))
        assert not np.array_equal(first.at(place), other.at(place))


def test_a_context_stands_before_every_prompt() -> None:
    model = tiny_model("llama", seed=3)
    bare = representations(model, REQUESTS, LAYER)
    with installed(model, PromptContext("Anna Berg plays the piano. ")):
        behind = representations(model, REQUESTS, LAYER)
    assert (np.abs(bare.subject - behind.subject).max(1) > 1e-3).all()


def test_an_edit_above_the_layer_leaves_the_subject_and_moves_the_prompt() -> None:
    model = tiny_model("llama", seed=3)
    before = representations(model, REQUESTS, LAYER)
    with installed(model, noise(model, 0.5, layer=2)):
        after = representations(model, REQUESTS, LAYER)
    told = {place: representation_shift(before, after, place, 0, 20, 5) for place in PLACES}
    subject, prompt = (told[place].set_index("measure")["value"] for place in PLACES)
    same = {"d1": 100, "d2": 100, "h": 0, "cka": 1, "mmd": 0, "moved": 0, "turned": 0}
    assert subject[list(same)].to_dict() == pytest.approx(same, abs=1e-12)
    assert prompt["moved"] > 0.1


def test_the_table_holds_every_measure_with_interval_and_control() -> None:
    model = tiny_model("gpt2", seed=3)
    before = representations(model, REQUESTS, LAYER)
    with installed(model, noise(model, 0.3)):
        after = representations(model, REQUESTS, LAYER)
    table = representation_shift(before, after, "subject", seed=1, resamples=30, draws=20)
    assert table["measure"].tolist() == list(SHIFT_MEASURES)
    shift = Shift.between(before.subject, after.subject)
    for row in table.itertuples():
        interval, null = shift.interval(row.measure, 1, 30), shift.control(row.measure, 1, 20)
        assert (row.value, row.low, row.high) == (interval.mean, interval.low, interval.high)
        assert (row.control, row.control_low, row.control_high) == (null.mean, null.low, null.high)
        assert (row.same, row.unit, row.n) == (*SHIFT_MEASURES[row.measure][2:0:-1], len(REQUESTS))


def test_one_prompt_has_values_and_no_interval() -> None:
    model = tiny_model("llama", seed=3)
    one = representations(model, REQUESTS[:1], LAYER)
    table = representation_shift(one, one, draws=5)
    assert table["value"].tolist() == pytest.approx([100, 100, 0, 100, 1, 0, 0, 0], abs=1e-12)
    assert table["low"].isna().all()


def test_readings_of_other_prompts_or_layers_are_refused() -> None:
    model = tiny_model("llama", seed=3)
    first = representations(model, REQUESTS, LAYER)
    with pytest.raises(ScoreError, match="4 prompts at layer 1 and of 2 at layer 1, which differ"):
        representation_shift(first, representations(model, REQUESTS[:2], LAYER))
    with pytest.raises(ScoreError, match="read the same prompts at the same layer"):
        representation_shift(first, replace(first, layer=2))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_place_is_named() -> None:
    found = representations(tiny_model("llama", seed=3), REQUESTS[:1], LAYER)
    with pytest.raises(UnknownNameError, match="unknown place 'middle'; choose one of: prompt, subject"):
        found.at("middle")  # type: ignore[arg-type]


def test_no_prompt_no_layer_and_states_that_are_not_finite_are_named(own_cache: Path) -> None:
    model = tiny_model("gpt2", seed=3)
    with pytest.raises(ScoreError, match="at least one prompt"):
        representations(model, [], LAYER)
    with pytest.raises(SiteError):
        representations(model, REQUESTS, 9)
    with (
        installed(model, noise(model, 1e20)),
        pytest.raises(NonFiniteError, match=r"NaN or infinity at the prompt of 4 of 4 prompts: its we"),
    ):
        representations(model, REQUESTS, LAYER)
    assert not list(own_cache.glob("representations/*"))
