"""AlphaEdit+ against AlphaEdit, its published formula and the ledger; its score, remarks and errors."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from palimpsest.algebra.admission import Candidates, admit
from palimpsest.algebra.conflict import conflict_weights
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares, solve, with_past
from palimpsest.algebra.spectrum import eigendirections
from palimpsest.editors import AlphaEdit, AlphaEditPlus, PlusState, Prepared, alphaedit_plus, edit
from palimpsest.editors.alphaedit import AlphaEditState
from palimpsest.editors.alphaedit_plus import Perturbation, Smoothing, _Step
from palimpsest.errors import ProfileError
from palimpsest.memory.keys import subject_hidden, subject_keys
from palimpsest.memory.settings import TargetSettings
from palimpsest.memory.values import optimise_targets
from palimpsest.network.apply import commit, installed
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EditRequest
from tests.editing import CONTEXTS, REQUESTS, double, every_kind, same_bits, snapshot, stub_texts
from tests.problems import error, gaussian
from tests.tiny import tiny_model

LAYERS = (0, 1, 2)
TOKENS = 1500
VALUES = TargetSettings(steps=6, lr=0.3)
COMMON: dict[str, Any] = {
    "layers": LAYERS,
    "ridge": 1.0,
    "rule": "energy",
    "threshold": 0.5,
    "statistics_tokens": TOKENS,
    "targets": VALUES,
}
PLAIN: dict[str, Any] = COMMON | {
    "perturbation": None,
    "weighting": False,
    "smoothing": None,
    "past_weight": 1.0,
}
START = Prepared(CONTEXTS)
BATCHES = [REQUESTS[:2], REQUESTS[2:], [EditRequest(REQUESTS[0].prompt, REQUESTS[0].subject, "French")]]


@pytest.fixture(autouse=True)
def _texts(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)


def constant(model: EditableModel, requests: Sequence[EditRequest]) -> float:
    """Every candidate is as good as the other."""
    return 1.0


# As functions of tensors: one layer, whose weight is given instead of read from the model.

BYSTANDER = tiny_model("llama")


def updated(
    patch: pytest.MonkeyPatch, editor: AlphaEditPlus, drawn: "Drawn", at: PlusState
) -> tuple[Tensor, _Step]:
    patch.setattr(alphaedit_plus, "read_weight", lambda model, layer: drawn.weight)
    patch.setattr(alphaedit_plus, "write_weight", lambda model, layer, new: None)
    patch.setattr(alphaedit_plus, "restored", lambda model, layers: nullcontext())
    step = _Step(editor, BYSTANDER, REQUESTS[:1], at)
    return step.update(0, drawn.keys, drawn.residual).delta, step


class Drawn(NamedTuple):
    """One layer before a step. The state is made outside the strategy: checking its types draws at random."""

    projector: Projector
    past: Tensor
    pool: Candidates
    weight: Tensor
    keys: Tensor
    residual: Tensor

    def state(self, score: alphaedit_plus.Score = constant) -> PlusState:
        at = Prepared(projectors={0: self.projector})
        return PlusState(at, {0: self.past}, score=score, candidates={0: self.pool})

    def beside_past(self, past: Tensor | None = None) -> LeastSquares:
        alone = LeastSquares(self.keys, self.residual, ridge=0.5, projector=self.projector)
        return with_past(alone, self.past if past is None else past)


@st.composite
def layers(draw: st.DrawFn, conflict: float = 0.0) -> Drawn:
    """A weight, keys and a residual that meet Lemma 4's conditions, but for the conflict."""
    d_k, d_v, seed = draw(st.integers(6, 20)), draw(st.integers(1, 5)), draw(st.integers(0, 2**20))
    held = draw(st.integers(1, d_k - 4))
    new, old = draw(st.integers(1, 8)), draw(st.integers(0, 8))
    frame = torch.linalg.qr(gaussian(seed, d_k, d_k)).Q
    inner = held + (d_k - held) // 2
    preserved = frame[:, :held] @ gaussian(seed + 1, held, held + 3)
    keys = frame[:, held:inner] @ gaussian(seed + 2, inner - held, new)
    past = frame[:, inner:] @ gaussian(seed + 3, d_k - inner, old)
    if conflict:
        keys = keys + conflict * frame[:, :held] @ gaussian(seed + 4, held, new)
    spectrum, vectors = eigendirections(preserved @ preserved.T)
    pool = Candidates(vectors[:, :held], spectrum[:held])
    return Drawn(
        Projector(basis=frame[:, held:]),
        past,
        pool,
        gaussian(seed + 5, d_v, d_k),
        keys,
        gaussian(seed + 6, d_v, new),
    )


def every_part(tau: float = 1e6, **options: Any) -> AlphaEditPlus:
    settings = {"perturbation": Perturbation(block=1), "smoothing": Smoothing(threshold=tau)} | options
    return AlphaEditPlus(layers=(0,), ridge=0.5, **settings)


@given(layers(), st.sampled_from([1.0, 100.0]))
def test_lemma_4(drawn: Drawn, beta: float) -> None:
    """No conflict with K0 nor with past keys, and small residuals: AlphaEdit+ is AlphaEdit, whatever β."""
    with pytest.MonkeyPatch.context() as patch:
        delta, step = updated(patch, every_part(past_weight=beta), drawn, drawn.state())
    assert error(delta, solve(drawn.beside_past()).delta) < 1e-10
    assert step.notes["admitted"] == {0: 0}
    assert step.notes["hard"] == {0: 0}


@given(layers(conflict=1.0))
def test_lemma_4_needs_its_conditions(drawn: Drawn) -> None:
    """Negative control: with keys that reach into span(K0) directions are admitted and the update differs."""
    editor = every_part(perturbation=Perturbation(threshold=0.0, block=1))
    with pytest.MonkeyPatch.context() as patch:
        delta, _ = updated(patch, editor, drawn, drawn.state())
    inside = drawn.projector.apply(delta.T).T
    assert error(inside, delta) > 1e-6


@given(layers(conflict=1.0), st.booleans())
def test_the_update_is_the_published_system(drawn: Drawn, grows: bool) -> None:
    """Eq. 18 by a general solve: (P_mod(KKᵀ + βK_pΛK_pᵀ) + λI) Δᵀ = P_mod K R_tᵀ."""
    keys, residual = drawn.keys, drawn.residual
    tau = float(residual.norm(dim=0).median()) * 0.999
    editor = every_part(tau, past_weight=3.0, past_weight_grows=grows)
    best = 7  # the candidate that the score prefers
    calls: list[int] = []

    def score(*_: Any) -> float:
        calls.append(0)
        return float(len(calls) - 1 == best)

    with pytest.MonkeyPatch.context() as patch:
        delta, step = updated(patch, editor, drawn, drawn.state(score))
    past = drawn.past * (3.0 * conflict_weights(drawn.past, keys)).sqrt()
    found = admit(drawn.beside_past(past), drawn.pool, 3e-4)
    p = found.projector.apply(torch.eye(len(keys), dtype=torch.float64))
    c = 0.5 + best / 20
    aimed = torch.where(residual.norm(dim=0) > tau, c * residual, residual)
    system = p @ (keys @ keys.T + past @ past.T) + 0.5 * torch.eye(len(p), dtype=p.dtype)
    assert error(delta, torch.linalg.solve(system, p @ keys @ aimed.T).T) < 1e-8
    assert step.notes["scale"] == {0: c}
    assert len(calls) == 11


def test_equal_scores_leave_the_residual_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, residual, nothing = gaussian(1, 6, 3), gaussian(2, 2, 3), torch.zeros(6, 0, dtype=torch.float64)
    drawn = Drawn(
        Projector.identity(6),
        nothing,
        Candidates(nothing, torch.zeros(0, dtype=torch.float64)),
        gaussian(3, 2, 6),
        keys,
        residual,
    )
    delta, step = updated(monkeypatch, every_part(0.0, perturbation=None), drawn, drawn.state())
    assert step.notes["scale"] == {0: 1.0}
    assert step.notes["hard"] == {0: 3}
    plain = LeastSquares(keys, residual, ridge=0.5, projector=drawn.projector)
    assert error(delta, solve(plain).delta) < 1e-12


# On models.


def sequence(
    editor: AlphaEdit, model: EditableModel, batches: Sequence[Sequence[EditRequest]]
) -> tuple[dict[int, Tensor], AlphaEditState]:
    """Weights of the layers after a sequence, and its state; the model keeps the edits."""
    state = editor.begin(START)
    for batch in batches:
        made, state = edit(editor, model, batch, state)
        commit(model, made)
    assert isinstance(state, AlphaEditState)
    return {layer: read_weight(model, layer).clone() for layer in LAYERS}, state


@every_kind
def test_without_its_parts_it_is_alphaedit(kind: str) -> None:
    plus, _ = sequence(AlphaEditPlus(**PLAIN), double(kind), BATCHES)
    plain, _ = sequence(AlphaEdit(**COMMON), double(kind), BATCHES)
    for layer in LAYERS:
        torch.testing.assert_close(plus[layer], plain[layer], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_rewriting_is_the_one_time_edit_with_this_steps_weights(weighted: bool) -> None:
    """As a ledger solves it. Penalising movement is that too, but only while all weights are 1."""
    parts = {"weighting": True, "past_weight": 5.0} if weighted else {}
    editor = AlphaEditPlus(**(PLAIN | parts), past="rewrite")
    model = double("llama")
    unedited = {layer: read_weight(model, layer).clone() for layer in LAYERS}
    before, state = sequence(editor, model, BATCHES[:2])
    made, after = edit(editor, model, BATCHES[2], state)
    penalised, _ = edit(AlphaEditPlus(**(PLAIN | parts)), model, BATCHES[2], state)
    assert isinstance(after, PlusState)
    for layer in LAYERS:
        keys, held = after.past[layer], state.past[layer].shape[1]
        weights = torch.ones(keys.shape[1], dtype=torch.float64)
        if weighted:
            weights[:held] = 5 * conflict_weights(keys[:, :held], keys[:, held:])
        held_on = weights > 0  # the same subject again: its earlier edit may have no weight left
        ledger = EditLedger(unedited[layer], None, 1.0, after.prepared.projectors[layer])
        names = [str(i) for i in range(int(held_on.sum()))]
        ledger.insert(keys[:, held_on], after.values[layer][:, held_on], names, weights[held_on])
        torch.testing.assert_close(before[layer] + made.deltas[layer], ledger.weight, rtol=1e-8, atol=1e-9)
        assert (error(made.deltas[layer], penalised.deltas[layer]) > 1e-3) == weighted


class Recorder:
    """A score that prefers one candidate and keeps the weights it was shown."""

    def __init__(self, best: int) -> None:
        self.best, self.seen = best, list[dict[int, Tensor]]()

    def __call__(self, model: EditableModel, requests: Sequence[EditRequest]) -> float:
        self.seen.append({layer: read_weight(model, layer).clone() for layer in LAYERS})
        return float((len(self.seen) - 1) % 11 == self.best)


SMOOTH = PLAIN | {"smoothing": Smoothing(threshold=0.0)}


@every_kind
def test_the_score_sees_each_candidate_in_the_model(kind: str) -> None:
    """Each layer's candidates run along one line; the one that scored best stays, and no other trace."""
    model, score = double(kind), Recorder(4)
    before = snapshot(model)
    made, _ = edit(AlphaEditPlus(**SMOOTH), model, REQUESTS, PlusState(Prepared(CONTEXTS), score=score))
    assert same_bits(model, before)
    assert made.notes["scale"] == dict.fromkeys(LAYERS, 0.7)
    assert len(score.seen) == 11 * len(LAYERS)
    for place, layer in enumerate(LAYERS):
        shown = [weights[layer] for weights in score.seen[11 * place : 11 * (place + 1)]]
        for t, weight in enumerate(shown):
            torch.testing.assert_close(weight, shown[0] + t / 10 * (shown[10] - shown[0]))
        with installed(model, made):
            torch.testing.assert_close(read_weight(model, layer), shown[4])


@pytest.mark.parametrize(
    ("scores", "stopped"),
    [([0.0, 0.0], 1), ([0.0, 0.1, 0.25, 0.251], 3), ([i / 10 for i in range(11)], 10)],
)
def test_algorithm_1_stops_at_the_first_small_change(scores: list[float], stopped: int) -> None:
    """Candidates run from half the residual up; the one at which the score hardly changed is used."""
    asked = list[int]()

    def score(model: EditableModel, requests: Sequence[EditRequest]) -> float:
        asked.append(1)
        return scores[(len(asked) - 1) % len(scores)]

    how = Smoothing(threshold=0.0, choose="first_stop", tolerance=0.01)
    editor = AlphaEditPlus(**(PLAIN | {"smoothing": how}))
    made, _ = edit(editor, double("llama"), REQUESTS, PlusState(Prepared(CONTEXTS), score=score))
    assert made.notes["scale"] == pytest.approx(dict.fromkeys(LAYERS, 0.5 + stopped / 20))
    assert len(asked) == len(scores) * len(LAYERS)


def test_smoothing_at_the_last_layer_only() -> None:
    model, score = double("llama"), Recorder(0)
    editor = AlphaEditPlus(**(PLAIN | {"smoothing": Smoothing(threshold=0.0, scan="last_layer")}))
    made, _ = edit(editor, model, REQUESTS, PlusState(Prepared(CONTEXTS), score=score))
    assert len(score.seen) == 11
    assert made.notes["scale"] == {0: 1.0, 1: 1.0, 2: 0.5}


def test_the_threshold_of_smoothing_is_for_the_whole_residual() -> None:
    """Not for a layer's share of it: a fact is hard in all layers or in none, as far as they follow."""
    model = double("llama")
    wanted = optimise_targets(model, REQUESTS, LAYERS[-1], VALUES, CONTEXTS)
    lengths = wanted.deltas.norm(dim=0)
    for tau in (float(lengths.mean()), 1.01 * float(lengths.max())):
        editor = AlphaEditPlus(**(PLAIN | {"smoothing": Smoothing(threshold=tau)}))
        made, _ = edit(editor, model, REQUESTS, PlusState(Prepared(CONTEXTS), score=constant))
        assert made.notes["hard"][0] == int((lengths > tau).sum()) < len(REQUESTS)


def test_relaxing_the_projector_admits_directions_of_the_search() -> None:
    model = double("llama")
    editor = AlphaEditPlus(**(PLAIN | {"perturbation": Perturbation(block=2, limit=4)}))
    made, state = edit(editor, model, REQUESTS, START)
    assert isinstance(state, PlusState)
    keys = subject_keys(model, REQUESTS, 0, CONTEXTS).double()
    wanted = optimise_targets(model, REQUESTS, LAYERS[-1], VALUES, CONTEXTS).values
    residual = (wanted - subject_hidden(model, REQUESTS, LAYERS[-1])) / 3
    problem = LeastSquares(keys, residual, ridge=1.0, projector=state.prepared.projectors[0])
    found = admit(problem, state.candidates[0], 3e-4, block=2, limit=4)
    assert 4 == len(found.admitted) == made.notes["admitted"][0] < len(state.candidates[0])
    assert made.notes["largest_eigenvalue"][0] == float(state.candidates[0].eigenvalues[found.admitted].max())
    relaxed = LeastSquares(keys, residual, ridge=1.0, projector=found.projector)
    torch.testing.assert_close(made.deltas[0], solve(relaxed).delta, rtol=1e-8, atol=1e-9)


def test_values_of_the_unedited_model_or_of_the_model_as_it_is() -> None:
    model = double("llama")
    _, state = sequence(AlphaEditPlus(**PLAIN), model, BATCHES[:1])
    assert isinstance(state, PlusState)
    found = [
        edit(AlphaEditPlus(**PLAIN, optimised=how), model, BATCHES[1], state)[0].notes["value_norm"]
        for how in ("each_step", "once")
    ]
    now = optimise_targets(model, BATCHES[1], LAYERS[-1], VALUES, CONTEXTS)
    fresh = optimise_targets(double("llama"), BATCHES[1], LAYERS[-1], VALUES, CONTEXTS)
    assert found == [targets.values.norm(dim=0).tolist() for targets in (now, fresh)]
    assert found[0] != found[1]


def test_the_record_of_an_edit() -> None:
    model = double("llama")
    before, state = sequence(AlphaEditPlus(**PLAIN), model, BATCHES[:1])
    made, _ = edit(AlphaEditPlus(**PLAIN), model, BATCHES[1], state)
    unedited = read_weight(double("llama"), 1)
    assert made.notes["step_norm"][1] == pytest.approx(float(made.deltas[1].norm()))
    moved = before[1] + made.deltas[1] - unedited
    assert made.notes["total_norm"][1] == pytest.approx(float(moved.norm()))
    assert made.notes["weights_norm"][1] == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("parts", "remark"),
    [
        ({"smoothing": Smoothing(threshold=1e6)}, r"layer 0: no residual is longer than 1e\+06: nothing"),
        (
            {"perturbation": Perturbation(threshold=1e6)},
            r"layer 0: threshold 1e\+06 admits 0 of \d+ directions",
        ),
        ({"perturbation": Perturbation(threshold=0)}, r"layer 0: threshold 0 admits (\d+) of \1 directions"),
    ],
)
def test_settings_without_effect_are_remarked(parts: dict[str, Any], remark: str) -> None:
    """And the result is defined: that without the part, or that of AlphaEdit without a projector."""
    model = double("llama")
    start = PlusState(Prepared(CONTEXTS), score=constant)
    made, _ = edit(AlphaEditPlus(**(PLAIN | parts)), model, REQUESTS, start)
    assert any(re.match(remark, text) for text in made.notes["remarks"])
    changes = {"rule": "absolute", "threshold": 1e6} if "(\\d+)" in remark else {}
    plain, _ = edit(AlphaEdit(**(COMMON | changes)), model, REQUESTS, START)
    for layer in LAYERS:
        torch.testing.assert_close(made.deltas[layer], plain.deltas[layer], rtol=1e-7, atol=1e-9)


def test_smoothing_without_a_score() -> None:
    with pytest.raises(
        ProfileError, match=r"smoothing chooses a step length by a score.*or set smoothing=None"
    ):
        edit(AlphaEditPlus(**SMOOTH), double("llama"), REQUESTS, START)


def test_smoothing_needs_a_step() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Smoothing(steps=0)


def test_rewriting_what_was_begun_otherwise() -> None:
    model = double("llama")
    _, state = sequence(AlphaEditPlus(**PLAIN), model, BATCHES[:1])
    with pytest.raises(ProfileError, match=r"needs the values of all past facts.*from the first edit on"):
        edit(AlphaEditPlus(**PLAIN, past="rewrite"), model, BATCHES[1], state)


def test_without_past_keys_earlier_ones_are_forgotten() -> None:
    model = double("llama")
    _, state = sequence(AlphaEditPlus(**PLAIN), model, BATCHES[:1])
    assert state.past
    assert edit(AlphaEditPlus(**PLAIN, keep_past=False), model, BATCHES[1], state)[1].past == {}
