"""What a prompt and Jupyter show of models, edits, states and evaluations: one line, and a small table."""

import pytest
import torch

from palimpsest.editors import EDITORS
from palimpsest.editors.base import Prepared, State
from palimpsest.editors.sequential import SequenceState
from palimpsest.evaluation.evaluate import Evaluation
from palimpsest.network.apply import PromptContext, WeightDelta
from palimpsest.types import Record, Shown, span
from tests.tiny import tiny_model

MATRIX = torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((), "none"),
        ((3,), "3"),
        ((3, 5), "3, 5"),
        ((4, 3), "3, 4"),
        ((3, 4, 5), "3 to 5"),
        ((1, 2, 4), "1, 2, 4"),
    ],
)
def test_layers_as_a_text(layers: tuple[int, ...], text: str) -> None:
    assert span(layers) == text


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (
            WeightDelta({3: MATRIX, 4: MATRIX, 5: MATRIX}, "base", {"method": "Memit", "facts": 2}),
            "WeightDelta(method Memit, facts 2, layers 3 to 5, norm 3, "
            "use installed(model, edit) for a block, commit(model, edit) to keep)",
        ),
        (
            PromptContext("A text. ", "", {"facts": 1}),
            "PromptContext(facts 1, text 8 characters before every prompt, "
            "use installed(model, edit) for a block)",
        ),
        (
            Prepared(("", "a"), {1: MATRIX}),
            "Prepared(contexts 2, moments of layers 1, projectors of layers none)",
        ),
        (
            SequenceState(weights={0: MATRIX, 2: MATRIX}, steps=4),
            "SequenceState(ledgers layers none, unedited layers none, weights layers 0, 2, steps 4, "
            "contexts 0, moments of layers none, projectors of layers none)",
        ),
        (
            Evaluation([Record("a", "efficacy", 1.0, 1), Record("b", "efficacy", 0.0, 1)]),
            "Evaluation(efficacy 0.500 over 2 cases)",
        ),
    ],
)
def test_one_line(made: Shown, line: str) -> None:
    assert repr(made) == line


@pytest.mark.parametrize("name", EDITORS)
def test_no_state_prints_its_tensors(name: str) -> None:
    kept = EDITORS[name].editor.keeps
    state = kept(Prepared(("",), {0: torch.zeros(200, 200, dtype=torch.float64)}))
    assert isinstance(state, State)
    assert repr(state).startswith(f"{kept.__name__}(")
    assert "tensor" not in repr(state)
    assert len(repr(state)) < 250


def test_a_model_says_its_size_and_its_context() -> None:
    model = tiny_model("llama")
    assert repr(model).startswith("EditableModel(name tiny-llama")
    assert "float32 on cpu" in repr(model)
    assert "context" not in repr(model)
    model.context = "before "
    assert "context 7 characters" in repr(model)


def test_jupyter_shows_a_table_in_which_nothing_is_left_unescaped() -> None:
    html = WeightDelta({}, "", {"method": "<b>"})._repr_html_()
    assert "<th>method</th><td>&lt;b&gt;</td>" in html
    assert html.startswith("<table class='tex2jax_ignore mathjax_ignore'><caption>WeightDelta</caption>")
    with pytest.raises(NotImplementedError, match="Shown does not say what is shown of it"):
        repr(Shown())
