"""In-context editing: what is shown, what it leaves alone, and how its text reaches every question."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.editors import Ike, IkeState, Prepared, State, edit, editor_for
from palimpsest.editors.ike import Demonstration, nearness
from palimpsest.errors import DataError, ModelError, ProfileError, RequestError
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.memory.keys import subject_hidden
from palimpsest.network.apply import PromptContext, WeightDelta, commit, installed
from palimpsest.network.model import EditableModel, fingerprint, generate, read_weight
from palimpsest.network.sampling import passages, sample
from palimpsest.network.tokens import encode
from palimpsest.studies.demonstrations import demonstrations
from palimpsest.types import EditRequest, EvalCase, Probe, unspaced
from tests.editing import CONTEXTS, REQUESTS, every_kind, same_bits, snapshot
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def fact(index: int, subject: str = "") -> EditRequest:
    return EditRequest("{} lives in", subject or f"Person {index}", "Rome", id=f"shown {index}")


POOL = tuple(
    Demonstration(fact(i), f"The home of Person {i} is", Probe(f"Other {i} lives in", "Paris"))
    for i in range(6)
)


def embed(texts: Sequence[str]) -> Float64[Tensor, "n d"]:
    """Vectors drawn from the text alone."""
    seeds = [zlib.crc32(text.encode()) for text in texts]
    rows = [torch.randn(8, generator=torch.Generator().manual_seed(seed)).double() for seed in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, 8).double()


READY = IkeState(Prepared(CONTEXTS), demonstrations=POOL, embed=embed)


def about(request: EditRequest, near: Sequence[float]) -> Any:
    """An embedder that puts the pool's facts at given cosines from one fact."""
    place = {f"{one.request.text} {one.request.target}": c for one, c in zip(POOL, near, strict=True)}

    def vectors(texts: Sequence[str]) -> Float64[Tensor, "n d"]:
        cosines = [place.get(text, 1.0) for text in texts]
        rows = [[3 * c, 3 * (1 - c**2) ** 0.5] for c in cosines]  # of any length: only directions count
        return torch.tensor(rows, dtype=torch.float64)

    return vectors


@every_kind
def test_contract(kind: str) -> None:
    """The part of the editors' contract that needs no weight: bit-exact, deterministic, for this model."""
    model = tiny_model(kind, bos=kind == "llama")
    before = snapshot(model)
    made, state = edit(Ike(count=2), model, REQUESTS[:1], READY)
    assert isinstance(made, PromptContext)
    assert same_bits(model, before)
    assert made.base == fingerprint(model)
    assert made.norm() == 0
    assert made.notes["facts"] == 1
    json.dumps(made.notes, allow_nan=False)
    assert state.prepared == Prepared(CONTEXTS)
    again, _ = edit(Ike(count=2), model, REQUESTS[:1], state)
    assert again == made
    with installed(model, made) as inside:
        assert inside is model
        assert same_bits(model, before)
        assert fingerprint(model) != made.base  # so that nothing asked in here is taken from a cache
    assert (model.context, fingerprint(model)) == ("", made.base)
    with pytest.raises(ZeroDivisionError), installed(model, made):
        raise ZeroDivisionError
    assert model.context == ""


def test_what_is_shown() -> None:
    """The nearest demonstration last, the kinds by rank, then the new fact."""
    request = EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English")
    state = replace(READY, embed=about(request, (0.1, 0.9, -1.0, 0.5, 0.2, 0.3)))
    made, _ = edit(Ike(count=3, kinds=("copy", "update", "retain")), tiny_model("llama"), [request], state)
    assert made.text == (  # type: ignore[union-attr]
        "New fact: Person 5 lives in Rome.\nOther 5 lives in Paris.\n\n"
        "New fact: Person 3 lives in Rome.\nThe home of Person 3 is Rome.\n\n"
        "New fact: Person 1 lives in Rome.\nPerson 1 lives in Rome.\n\n"
        "New fact: The mother tongue of Danielle Darrieux is English.\n"
    )
    assert made.notes["demonstrations"] == ["shown 1", "shown 3", "shown 5"]


def test_the_published_mixture() -> None:
    """Of eight in a row one copies, three update and four retain."""
    kinds = list(Ike().kinds)
    assert [kinds.count(kind) for kind in ("copy", "update", "retain")] == [1, 3, 4]
    assert Ike().count == 32


def test_several_facts_share_their_demonstrations() -> None:
    """Nearest to any of them; all facts are stated."""
    model = tiny_model("llama")
    made, _ = edit(Ike(count=2, kinds=("copy",)), model, REQUESTS[:2], READY)
    statements = [f"{request.text} {request.target}" for request in REQUESTS[:2]]
    pool = [f"{one.request.text} {one.request.target}" for one in POOL]
    unit = [torch.nn.functional.normalize(embed(texts), dim=1) for texts in (pool, statements)]
    best = (unit[0] @ unit[1].T).max(1).values.argsort(descending=True)[:2].tolist()
    assert made.notes["demonstrations"] == [f"shown {i}" for i in best]
    assert all(f"New fact: {statement}.\n" in made.text for statement in statements)  # type: ignore[union-attr]


def test_equally_near_ones_keep_their_order_and_nothing_is_near_to_nothing() -> None:
    state = replace(READY, embed=lambda texts: torch.ones(len(texts), 4, dtype=torch.float64))
    made, _ = edit(Ike(count=3), tiny_model("llama"), REQUESTS[:1], state)
    assert made.notes["demonstrations"] == ["shown 0", "shown 1", "shown 2"]
    near = nearness(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, -1.0]]), torch.tensor([[5.0, 0.0]]))
    assert near.tolist() == [0, 1, 0]


def test_a_demonstration_about_an_edited_subject_is_passed_over() -> None:
    own = replace(POOL[0], request=fact(0, "Danielle Darrieux"))
    alike = replace(READY, embed=lambda texts: torch.ones(len(texts), 4, dtype=torch.float64))
    state = replace(alike, demonstrations=(own, *POOL[1:]))
    made, _ = edit(Ike(count=2), tiny_model("llama"), REQUESTS[:1], state)
    assert made.notes["demonstrations"] == ["shown 1", "shown 2"]
    with pytest.raises(
        ProfileError, match="6 demonstrations are to be shown, and the state has 5 about other"
    ):
        edit(Ike(count=6), tiny_model("llama"), REQUESTS[:1], state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "the state has 0 about other subjects and no embedder; pass state=IkeState"),
        (Prepared(CONTEXTS), "the state has 0 about other subjects and no embedder"),
        (replace(READY, embed=None), "the state has 6 about other subjects and no embedder"),
        (replace(READY, demonstrations=POOL[:1]), "the state has 1 about other subjects and an embedder"),
    ],
)
def test_a_state_that_lacks_something(state: State | Prepared | None, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        edit(Ike(count=2), tiny_model("llama"), REQUESTS[:1], state)


def test_without_demonstrations_only_the_fact_is_stated() -> None:
    made, _ = edit(Ike(count=0), tiny_model("llama"), REQUESTS[:1])
    assert made.text == "New fact: The mother tongue of Danielle Darrieux is English.\n"  # type: ignore[union-attr]


def test_targets_without_a_space_follow_their_prompts() -> None:
    model = tiny_model("llama")
    close = replace(REQUESTS[0], target=unspaced(REQUESTS[0].target))
    made, _ = edit(Ike(count=0), model, [close], READY)
    assert made.text == f"New fact: {REQUESTS[0].text}{REQUESTS[0].target}.\n"
    shown = Demonstration(
        replace(fact(0), target=unspaced("Rome")), "The home is", Probe("Other is", unspaced("Paris"))
    )
    said = "New fact: Person 0 lives inRome.\n"
    assert shown.paragraph("copy") == f"{said}Person 0 lives inRome.\n\n"
    assert shown.paragraph("update") == f"{said}The home isRome.\n\n"
    assert shown.paragraph("retain") == f"{said}Other isParis.\n\n"


def test_a_text_that_leaves_no_room() -> None:
    message = (
        r"1 facts behind 6 demonstrations make \d+ tokens of the 256 that tiny-llama-0 can read, and 64 must"
    )
    with pytest.raises(RequestError, match=message):
        edit(Ike(count=6), tiny_model("llama"), REQUESTS[:1], READY)


def test_by_name() -> None:
    assert isinstance(editor_for("ike", "smollm2-135m"), Ike)


# How a context reaches questions: by the same function for all, wherever it comes from.

TEXT = "New fact: Anna Berg lives in Rome. Marie Curie plays the piano.\n"
PAIRS = [
    ("Anna Berg lives in", "Rome"),
    ("Anna Berg lives in", "Seattle, in the north"),
    ("The capital of France is the city of", "Paris"),
    ("Xu Ω", "Rome"),
]


def in_context(model: EditableModel) -> PromptContext:
    return PromptContext(TEXT, fingerprint(model))


@every_kind
@pytest.mark.parametrize("batch_size", [64, 2])
def test_asking_in_a_context_is_asking_the_longer_prompt(kind: str, batch_size: int) -> None:
    """Although the context's tokens are run once a batch and not once a row."""
    model = tiny_model(kind, bos=kind == "llama")
    model.net.double()
    written = ask(model, [(TEXT + prompt, target) for prompt, target in PAIRS])
    bare = ask(model, PAIRS)
    with installed(model, in_context(model)):
        found = ask(model, PAIRS, batch_size)
    torch.testing.assert_close(found.token_nll, written.token_nll, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.hits, written.hits)
    assert not torch.allclose(found.nll, bare.nll, rtol=0.01)
    assert torch.equal(ask(model, PAIRS).token_nll, bare.token_nll)


@pytest.mark.parametrize(
    "targets", [("Seattle, in the north",), ("Seattle, in the north", "Seattle, in Rome")]
)
def test_targets_of_one_prompt_alone_in_their_batch(targets: tuple[str, ...]) -> None:
    """Their rows share more than the context: the prompt, and the first tokens of the targets."""
    model = tiny_model("llama")
    model.net.double()
    prompt = "Anna Berg lives in"
    written = ask(model, [(TEXT + prompt, target) for target in targets])
    with installed(model, in_context(model)):
        found = ask(model, [(prompt, target) for target in targets])
    torch.testing.assert_close(found.token_nll, written.token_nll, rtol=1e-6, atol=1e-6)


@every_kind
def test_sampling_in_a_context_is_sampling_from_the_longer_prompt(kind: str) -> None:
    """Prompts of several lengths in one batch; the likeliest token each time, so that draws do not differ."""
    model = tiny_model(kind, bos=kind == "llama")
    model.net.double()
    prompts = [prompt for prompt, _ in PAIRS]
    written = sample(model, [TEXT + prompt for prompt in prompts], tokens=6, top_k=1)
    bare = sample(model, prompts, tokens=6, top_k=1)
    whole = generate(model, TEXT + prompts[0], 6)
    with installed(model, in_context(model)):
        assert sample(model, prompts, tokens=6, top_k=1) == written != bare
        assert generate(model, prompts[0], 6) == whole.removeprefix(TEXT)
        left = 20 - len(encode(model.tokenizer, prompts[0]))  # a context does not count
        continued = sample(model, prompts[:1], tokens=left, top_k=1)
        assert passages(model, prompts[:1], length=20, top_k=1) == [prompts[0] + continued[0]]


def test_evaluation_needs_not_know() -> None:
    """The records of cases asked in a context are those of cases with the longer prompts."""
    model = tiny_model("llama")
    case = EvalCase(
        id="a",
        request=EditRequest("{} lives in", "Anna Berg", "Rome"),
        target_true="Paris",
        paraphrases=("The home of Anna Berg is",),
        neighbours=(Probe("Marie Curie lives in", "Paris"),),
    )
    longer = EvalCase(
        id="a",
        request=EditRequest(TEXT.replace("Anna Berg", "She") + "{} lives in", "Anna Berg", "Rome"),
        target_true="Paris",
        paraphrases=(TEXT.replace("Anna Berg", "She") + "The home of Anna Berg is",),
        neighbours=(Probe(TEXT.replace("Anna Berg", "She") + "Marie Curie lives in", "Paris"),),
    )
    metrics = ("efficacy", "generalisation", "specificity")
    with installed(model, PromptContext(TEXT.replace("Anna Berg", "She"))):
        assert evaluate(model, [case], metrics) == evaluate_outside(longer, metrics)


def evaluate_outside(case: EvalCase, metrics: Sequence[str]) -> list[Any]:
    return evaluate(tiny_model("llama"), [case], metrics)


def test_what_is_read_for_editing_is_no_prompt() -> None:
    model = tiny_model("llama")
    before = subject_hidden(model, REQUESTS, 2)
    with installed(model, in_context(model)):
        assert torch.equal(subject_hidden(model, REQUESTS, 2), before)


def test_nested_contexts_stand_in_order_and_on_edited_weights() -> None:
    model = tiny_model("llama")
    step = torch.full(read_weight(model, 1).shape, 0.01, dtype=torch.float64)
    with installed(model, WeightDelta({1: step}, fingerprint(model))):
        outer = PromptContext("First. ", fingerprint(model))
        with installed(model, outer):
            with installed(model, PromptContext("Second. ", fingerprint(model))):
                assert model.encode("Third") == encode(model.tokenizer, "First. Second. Third")
            assert model.context == "First. "
            refused = pytest.raises(ModelError, match="or for another context; make the edit again")
            with refused, installed(model, outer):
                raise AssertionError("a context for the model without one was put behind one")
            assert model.context == "First. "


def test_a_context_is_no_weight_to_keep() -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    with pytest.raises(
        ModelError, match="a text before the prompts, which no weight can keep; use it with inst"
    ):
        commit(model, in_context(model))
    assert same_bits(model, before)
    assert model.context == ""


# Demonstrations from cases.


def case(name: str, *paraphrases: str, elsewhere: str = "", subject: str = "") -> EvalCase:
    return EvalCase(
        id=name,
        request=EditRequest("{} lives in", subject or f"Person {name}", "Rome", name),
        target_true="Paris",
        paraphrases=paraphrases,
        neighbours=(Probe(elsewhere, "Paris"),) if elsewhere else (),
    )


def test_demonstrations_give_no_test_away() -> None:
    """What a scored case asks, and what is about its subject, is not shown; other wordings are."""
    asked = [case("x", "Where is Person x? In", "Q1", elsewhere="N1 lives in")]
    asked[0] = replace(asked[0], perturbations={3: ("Q3",)})
    pool = [
        case("a", "Q1", "Q2", elsewhere="N2 lives in"),
        case("b", "Q1", elsewhere="N2 lives in"),
        case("c", "Q2", elsewhere="N1 lives in"),
        case("d", "Q2", elsewhere="N2 lives in", subject="Person x"),
        case("e", "Q3", "Q4", elsewhere="N3 lives in"),
        case("f", "Q2"),
        case("g", elsewhere="N3 lives in"),
    ]
    found = demonstrations(pool, asked)
    shown = [(one.request.id, one.rewording, one.elsewhere.prompt) for one in found]
    assert shown == [("a", "Q2", "N2 lives in"), ("e", "Q4", "N3 lives in")]
    assert [one.request.id for one in demonstrations(pool)] == ["a", "b", "c", "d", "e"]


def test_no_demonstration_left() -> None:
    message = (
        "none of 1 cases can be shown: .* or is asked about in one of 1 tests; take cases of another split"
    )
    with pytest.raises(DataError, match=message):
        demonstrations([case("a", "Q1", elsewhere="N1")], [case("x", "Q1")])
