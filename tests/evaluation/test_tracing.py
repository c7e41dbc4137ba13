"""Causal traces equal their slow twin: one restoration at a time, by plain hooks on whole passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from palimpsest.errors import ModelError, NonFiniteError, RequestError, ScoreError, UnknownNameError
from palimpsest.evaluation import statements
from palimpsest.evaluation.traced import ROLES, role_of, window_around
from palimpsest.evaluation.tracing import embedding_spread, noise_of, trace
from palimpsest.network.model import FAMILIES, EditableModel
from palimpsest.network.restoring import KINDS, module_of
from palimpsest.network.tokens import encode_target
from palimpsest.types import EditRequest, EvalCase, unspaced
from tests.tiny import tiny_model

ATTENTION = ("self_attn", "attn", "attention")
PROMPT, SUBJECT = "The mother tongue of {} is", "Danielle Darrieux"
LAYERS, WINDOW = 4, 3

Change = Callable[[torch.Tensor], torch.Tensor]


def known(model: EditableModel, tokens: int = 2, count: int = 1) -> list[EvalCase]:
    """Facts that a random model answers rightly: it is asked what it says, in so many tokens."""
    found: list[EvalCase] = []
    for prompt in (
        PROMPT,
        "Where does {} live? She lives in",
        "The field of {} and the piano is",
        "In {} is",
    ):
        for subject in (SUBJECT, "Anna Berg", "Marie Curie", "Xu Ω", "France"):
            request = EditRequest(prompt, subject, "unlike")
            ids = model.encode(request.text)
            with torch.no_grad():
                for _ in range(tokens):
                    ids.append(int(model.net(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            said = model.tokenizer.decode(ids[-tokens:])
            text = said[1:] if said.startswith(" ") else unspaced(said)
            if said.strip() and encode_target(model.tokenizer, text, request.text) == ids[-tokens:]:
                found.append(EvalCase(f"{prompt}/{subject}", request, text))
            if len(found) == count:
                return found
    raise AssertionError("the random model says nothing that can be tokenised again")


@contextmanager
def hooked(modules: Sequence[tuple[torch.nn.Module, Change]]) -> Iterator[None]:
    """Outputs of modules, changed in every pass."""

    def hook(change: Change) -> Any:
        def after(_: torch.nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        return after

    with ExitStack() as stack:
        for module, change in modules:
            stack.callback(module.register_forward_hook(hook(change)).remove)
        yield


class Twin:
    """A fact under noise, of which single outputs are put back in whole passes over the whole text."""

    def __init__(self, model: EditableModel, fact: statements.Statement, noise: torch.Tensor) -> None:
        self.model, self.fact, self.noise = model, fact, noise

    def module(self, kind: str, layer: int) -> torch.nn.Module:
        whole = self.model.net.get_submodule(self.model.family.layers)[layer]
        if kind == "state":
            return whole
        if kind == "mlp":
            return self.model.projection(layer)
        (name,) = [name for name in ATTENTION if hasattr(whole, name)]
        return whole.get_submodule(name)

    def probability(self) -> float:
        """Of the answer, token after token."""
        ids, p = list(self.fact.ids), 1.0
        for token in self.fact.answer:
            with torch.no_grad():
                p *= float(self.model.net(input_ids=torch.tensor([ids])).logits[0, -1].softmax(0)[token])
            ids.append(token)
        return p

    def outputs(self, kind: str, layer: int) -> torch.Tensor:
        """Outputs of the clean run at the prompt's tokens (t, d_v)."""
        found: list[torch.Tensor] = []

        def keep(output: torch.Tensor) -> torch.Tensor:
            found.append(output.reshape(-1, output.shape[-1]))  # OPT's maps see no sequences
            return output

        with hooked([(self.module(kind, layer), keep)]), torch.no_grad():
            self.model.net(input_ids=torch.tensor([list(self.fact.ids)]))
        return found[0]

    def corrupted(self, draw: int) -> tuple[torch.nn.Module, Change]:
        def add(embedded: torch.Tensor) -> torch.Tensor:
            embedded = embedded.clone()
            embedded[0, self.fact.first : self.fact.last + 1] += self.noise[draw]
            return embedded

        return self.model.net.get_input_embeddings(), add

    def restored(self, kind: str, layers: Sequence[int], token: int, draw: int) -> float:
        """Probability of the answer with one token's output restored at some layers."""

        def put(own: torch.Tensor) -> Change:
            def change(output: torch.Tensor) -> torch.Tensor:
                output = output.clone()
                output.view(-1, output.shape[-1])[token] = own[token]
                return output

            return change

        places = [(self.module(kind, layer), put(self.outputs(kind, layer))) for layer in layers]
        with hooked([self.corrupted(draw), *places]):
            return self.probability()

    def effect(self, kind: str, layers: Sequence[int], token: int) -> float:
        draws = range(len(self.noise))
        return sum(
            self.restored(kind, layers, token, i) - self.restored(kind, [], token, i) for i in draws
        ) / len(draws)


def twin_of(model: EditableModel, fact: EvalCase | EditRequest, samples: int, seed: int) -> Twin:
    (one,) = statements.statements(model, [fact], "")
    return Twin(model, one, noise_of(model, one, samples, seed, 3 * embedding_spread(model, [one])))


FEW = [("llama", False), ("gpt2", True)]
"""Compared in `make check`; the other families, each with and without a first token, in the full run."""

_REST = [(kind, bos) for kind in FAMILIES for bos in (False, True) if (kind, bos) not in FEW]


@pytest.mark.parametrize(
    ("kind", "bos"), [*FEW, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in _REST)]
)
def test_restorations_computed_together_equal_those_one_by_one(kind: str, bos: bool) -> None:
    model = tiny_model(kind, bos=bos)
    (fact,) = known(model, tokens=2)
    found = trace(model, [fact], window=WINDOW, samples=2, seed=5, rows=3)
    twin = twin_of(model, fact, 2, 5)
    clean = twin.probability()
    assert found.facts["clean"][0] == pytest.approx(clean, rel=1e-5)
    seen = found.effects.set_index(["kind", "layer", "token"])["effect"]
    for what in KINDS:
        for layer in (0, 2):
            at = [layer] if what == "state" else list(window_around(layer, WINDOW, LAYERS))
            for token in (twin.fact.first, twin.fact.last, twin.fact.last + 1, len(twin.fact.ids) - 1):
                assert seen[what, layer, token] == pytest.approx(
                    twin.effect(what, at, token), abs=1e-5 * clean
                )
    assert seen.abs().max() > 1e-3 * clean  # a hundred times what may differ
    for token in range(twin.fact.first):
        assert twin.effect("state", [1], token) == pytest.approx(
            0, abs=1e-5 * clean
        )  # which the trace leaves out


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def some(model: EditableModel) -> list[EvalCase]:
    return known(model, tokens=1, count=3)


def test_the_last_state_restores_the_answer_whole(model: EditableModel, some: list[EvalCase]) -> None:
    """At the last token and layer a state decides the answer alone: its effect is the total effect."""
    found = trace(model, some, kinds=["state"], samples=2, seed=1)
    last = found.effects[found.effects["role"].eq("last") & found.effects["layer"].eq(LAYERS - 1)]
    total = found.facts.set_index("case")["total"]
    for row in last.itertuples():
        assert row.effect == pytest.approx(total[row.case], abs=1e-6)
    others = found.effects[~found.effects["role"].eq("last") & found.effects["layer"].eq(LAYERS - 1)]
    assert others["effect"].abs().max() < 1e-6


def test_a_fact_does_not_depend_on_the_others_nor_on_how_rows_are_cut(
    model: EditableModel, some: list[EvalCase]
) -> None:
    spread = embedding_spread(model, statements.statements(model, some, ""))
    whole = trace(model, some, samples=3, seed=2)
    assert whole.spread == spread
    again = trace(model, some, samples=3, seed=2, rows=1)
    assert (whole.effects["effect"] - again.effects["effect"]).abs().max() < 1e-6
    assert trace(model, some, samples=3, seed=2).effects.equals(whole.effects)
    assert not trace(model, some, samples=3, seed=3).effects["effect"].equals(whole.effects["effect"])


def test_half_precision_follows_full(some: list[EvalCase]) -> None:
    half, full = tiny_model("gpt2"), tiny_model("gpt2")
    half.net.to(torch.bfloat16)
    request = some[0].request
    a, b = (trace(m, request.text, request.subject, samples=2) for m in (half, full))
    assert a.facts["clean"].item() == pytest.approx(b.facts["clean"].item(), abs=0.1)
    assert a.effects["effect"].notna().all()


def test_means_and_intervals_are_over_facts(model: EditableModel, some: list[EvalCase]) -> None:
    found = trace(model, some, kinds=["mlp"], window=2, samples=1)
    means = found.by_role().set_index(["role", "layer"])
    own = found.effects[found.effects["role"].eq("subject_last") & found.effects["layer"].eq(1)]
    row = means.loc["subject_last", 1]
    assert (row["mean"], row["n"]) == (pytest.approx(own["effect"].mean()), 3)
    assert row["low"] <= row["mean"] <= row["high"]
    best = means.loc["subject_last"]["mean"].idxmax()
    assert found.suggested() == tuple(window_around(int(best), 2, LAYERS))
    alone = trace(model, some[:1], kinds=["mlp"], samples=1).by_role()
    assert alone[["low", "high"]].isna().all().all()
    assert alone["n"].eq(1).all()


def test_roles_follow_the_prompt() -> None:
    names = [role_of(token, 0, 2, 7) for token in range(7)]
    wanted = [
        "subject_first",
        "subject_middle",
        "subject_last",
        "after_first",
        *["after_further"] * 2,
        "last",
    ]
    assert names == wanted
    assert [role_of(token, 0, 0, 3) for token in range(3)] == ["subject_last", "after_first", "last"]
    assert set(names) == set(ROLES)


@pytest.mark.parametrize(
    ("layer", "window", "found"),
    [(17, 10, (12, 21)), (0, 10, (0, 4)), (47, 10, (42, 47)), (3, 3, (2, 4)), (5, 1, (5, 5))],
)
def test_windows_are_those_of_the_released_code(layer: int, window: int, found: tuple[int, int]) -> None:
    layers = window_around(layer, window, 48)
    assert (layers[0], layers[-1]) == found


def test_facts_that_cannot_be_traced_are_left_out_and_named(
    model: EditableModel, some: list[EvalCase]
) -> None:
    wrong = EvalCase("wrong", EditRequest("The capital of {} is", "Italy", "x"), "not what it says")
    first = EvalCase("first", EditRequest("{} lives in", "Anna Berg", "x"), "Rome")
    found = trace(model, [wrong, first, *some], samples=1, every=2, most=2)
    assert found.left_out == {"wrong": statements.NOT_SAID, "first": statements.AT_START}
    assert found.facts["case"].tolist() == [case.id for case in some[:2]]
    assert found.effects["layer"].unique().tolist() == [0, 2]
    with pytest.raises(ScoreError, match=r"none of 2 facts can be traced in tiny-gpt2-0 \(1: .*; 1: "):
        trace(model, [wrong, first])


def test_a_first_token_before_the_text_makes_room_for_a_subject_at_the_start() -> None:
    found = trace(tiny_model("gpt2", bos=True), "Anna Berg lives in", "Anna Berg", samples=1, every=3)
    assert found.effects["token"].min() == 1
    with pytest.raises(ScoreError, match="its subject begins at the first token, to which all others attend"):
        trace(tiny_model("gpt2"), "Anna Berg lives in", "Anna Berg", samples=1)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"window": 5},
            ScoreError,
            "a window of 5 layers does not fit into tiny-gpt2-0, which has 4; choose 1",
        ),
        ({"window": 0}, ScoreError, "a window of 0 layers does not fit"),
        ({"samples": 0}, ScoreError, "samples is 0; it must be 1 or more"),
        ({"every": 0}, ScoreError, "every is 0; it must be 1 or more"),
        ({"most": 0}, ScoreError, "most is 0; it must be 1 or more"),
        ({"rows": 0}, ScoreError, "rows is 0; it must be 1 or more"),
        ({"noise": 0.0}, ScoreError, "noise is 0.0; it must be finite and above 0"),
        ({"noise": float("nan")}, ScoreError, "noise is nan; it must be finite"),
        (
            {"kinds": ["mlps"]},
            UnknownNameError,
            "unknown kind of state 'mlps'; choose one of: attention, mlp",
        ),
        ({"kinds": []}, ScoreError, r"kinds are \[\]; give one or more of state, mlp, attention"),
        ({"kinds": ["mlp", "mlp"]}, ScoreError, "each once"),
        ({"subject": ""}, RequestError, "is given without its subject; pass subject="),
        ({"subject": "Nobody"}, RequestError, "subject 'Nobody' occurs 0 times in prompt"),
    ],
)
def test_bad_input_is_refused(
    model: EditableModel, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        trace(model, "The capital of Anna Berg is", **({"subject": "Anna Berg"} | options))


def test_lists_of_facts_that_cannot_be_used_are_refused(model: EditableModel, some: list[EvalCase]) -> None:
    with pytest.raises(ScoreError, match="no facts were given"):
        trace(model, [])
    with pytest.raises(ScoreError, match="1 ids of facts repeat, for example"):
        trace(model, [some[0], some[0]])
    with pytest.raises(UnknownNameError, match="unknown kind that was traced 'mlp'; choose one of: state"):
        trace(model, some[:1], kinds=["state"], samples=1).suggested()
    ending = trace(model, "The city of Anna Berg", "Anna Berg", kinds=["mlp"], samples=1)
    with pytest.raises(ScoreError, match="no subject is followed by a token of its prompt"):
        ending.suggested()


def test_a_model_that_overflows_is_an_error() -> None:
    broken = tiny_model("gpt2")
    broken.net.get_submodule("lm_head").weight.data.fill_(float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"gives NaN or infinity at 1 of 1 targets, first \('The capital"
    ):
        trace(broken, "The capital of France is", "France", samples=1)
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinity after 'The capital of France is': .*less noise"
    ):
        trace(tiny_model("gpt2"), "The capital of France is", "France", noise=1e38, samples=1)


def test_attention_that_cannot_be_told_is_an_error(model: EditableModel) -> None:
    other = tiny_model("gpt2")
    layer = other.layer(0)
    layer.further = module_of(model, "attention", 0)
    layer.add_module("cross_attn", torch.nn.Identity())
    with pytest.raises(
        ModelError, match=r"has 3 modules that may be its attention, among .*; trace the kinds"
    ):
        trace(other, "The capital of France is", "France", samples=1)
    assert len(trace(other, "The capital of France is", "France", kinds=["mlp"], samples=1).facts) == 1
