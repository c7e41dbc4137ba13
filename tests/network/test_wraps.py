"""Wrapped layers: packed passes are whole ones, every bit comes back, and nothing is taken for another."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import ModelError, NonFiniteError, ShapeError, SiteError
from palimpsest.evaluation.answers import ask
from palimpsest.network.activations import capture
from palimpsest.network.apply import PromptContext, WeightDelta, commit, installed
from palimpsest.network.codebook import Codebook
from palimpsest.network.model import EditableModel, Site, fingerprint, generate, read_weight
from palimpsest.network.packed import pack
from palimpsest.network.sampling import sample
from palimpsest.network.tokens import encode
from palimpsest.network.wraps import AddedBlocks, LayerWrap, Replaced, Wrap
from tests.editing import double, every_family, same_bits, snapshot
from tests.tiny import tiny_model
from tests.wraps import ACTS, PLACES, plain_greedy, plain_nll, wrap

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

EDITED = ("The capital of France is", "The mother tongue of Anna Berg is", "Anna Berg lives")
PAIRS = [
    *((prompt, "Paris, in the north") for prompt in EDITED),
    ("The capital of France", "is Rome"),  # goes on through an edited prompt
    ("The capital of France is the city of", "Rome"),  # has one inside
    ("The capital of Italy is", "Rome"),
    ("Anna Berg lives in Seattle and", "plays the piano"),
    ("Xu Ω", "Rome"),
]
UNTOUCHED = [5, 7]
"""Pairs in which no token is that of an edited prompt's end."""

every_act = pytest.mark.parametrize("act", ACTS)
every_place = pytest.mark.parametrize("at", PLACES)


@every_family
@every_act
@every_place
def test_packed_answers_are_those_of_whole_passes(kind: str, act: str, at: str) -> None:
    """Rows that share beginnings with and without edited tokens in them, in one batch and in several."""
    model = double(kind, bos=kind == "llama")
    edit = wrap(model, EDITED, act, at)  # type: ignore[arg-type]
    bare, wanted = ask(model, PAIRS), plain_nll(model, [edit], PAIRS)
    with installed(model, edit):
        for batch_size in (64, 3):
            found = ask(model, PAIRS, batch_size)
            torch.testing.assert_close(found.nll, wanted, rtol=1e-5, atol=1e-5)
    moved = (found.nll - bare.nll).abs()
    assert moved[UNTOUCHED].max() < 1e-9
    assert moved[[i for i in range(len(PAIRS)) if i not in UNTOUCHED]].min() > 1e-4  # ten times the tolerance


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@every_act
@every_place
def test_both_ways_of_storing_a_weight(kind: str, act: str, at: str) -> None:
    model = double(kind)
    edit = wrap(model, EDITED, act, at)  # type: ignore[arg-type]
    with installed(model, edit):
        found = ask(model, PAIRS)
    torch.testing.assert_close(found.nll, plain_nll(model, [edit], PAIRS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sampling_from_a_cache_is_a_whole_pass_for_each_token(kind: str) -> None:
    """Also where a token that the model itself says is wrapped: its own continuation is an entry."""
    model = double(kind)
    edit, prompts = wrap(model, EDITED), [EDITED[0], EDITED[1], "Xu Ω"]
    ids = encode(model.tokenizer, "Xu Ω")
    with torch.no_grad():
        for _ in range(2):
            ids.append(int(model.net(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    said = capture(model, pack([ids]), [Site(1)])[Site(1)][0, -1:]
    book = Codebook(torch.cat([edit.book.keys, said]), edit.book.radii[[0, 1, 2, 2]], (*EDITED, "said"))
    assert isinstance(edit.act, Replaced)
    edit = replace(edit, book=book, act=Replaced(torch.cat([edit.act.values, -3 * edit.act.values[:1]])))
    wanted = [plain_greedy(model, [edit], prompt, 5) for prompt in prompts]
    with installed(model, edit):
        assert sample(model, prompts, tokens=5, top_k=1) == wanted
        assert [generate(model, prompt, 5).removeprefix(prompt) for prompt in prompts] == wanted
    bare = sample(model, prompts, tokens=5, top_k=1)
    assert [one == other for one, other in zip(bare, wanted, strict=True)] == [False] * 3


@pytest.mark.parametrize("batch_size", [64, 2])
def test_behind_a_context_that_is_read_once(batch_size: int) -> None:
    """The context's own tokens are wrapped too."""
    model = double("llama", bos=True)
    text = "The capital of France is Rome. "
    keys = [EDITED[0], text + EDITED[1]]
    edit = wrap(model, keys)
    context = PromptContext(text)
    with installed(model, context), installed(model, edit):
        found = ask(model, PAIRS, batch_size)
    torch.testing.assert_close(found.nll, plain_nll(model, [edit], PAIRS, text), rtol=1e-5, atol=1e-5)
    with installed(model, edit), installed(model, context):
        assert torch.equal(ask(model, PAIRS, batch_size).nll, found.nll)


def test_two_wraps_in_force_act_one_after_the_other() -> None:
    """At one layer, where the later one sees what the earlier gives, and at two."""
    for layers, places in [((1, 1), ("map", "map")), ((1, 1), ("map", "layer")), ((0, 2), ("layer", "map"))]:
        model = double("llama")
        first = wrap(model, EDITED[:2], "replaced", places[0], layers[0], base=fingerprint(model))  # type: ignore[arg-type]
        with installed(model, first):
            second = wrap(
                model,
                EDITED[1:],
                "added_blocks",
                places[1],  # type: ignore[arg-type]
                layers[1],
                seed=1,
                base=fingerprint(model),
            )
            with installed(model, second):
                found = ask(model, PAIRS)
            alone = ask(model, PAIRS)
        wanted = plain_nll(model, [first, second], PAIRS)
        torch.testing.assert_close(found.nll, wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found.nll, alone.nll, rtol=1e-3)
        with pytest.raises(ModelError, match="or for another context"), installed(model, second):
            raise AssertionError("it was made with the first in force")


def test_on_edited_weights() -> None:
    """A wrap made on them, inside and after; and an edit of weights that was made in the wrapped model."""
    model = double("llama")
    start = snapshot(model)
    step = torch.full(read_weight(model, 1).shape, 0.01, dtype=torch.float64)
    with installed(model, WeightDelta({1: step}, fingerprint(model))):
        edit = wrap(model, EDITED, base=fingerprint(model))
        with installed(model, edit):
            found = ask(model, PAIRS)
        torch.testing.assert_close(found.nll, plain_nll(model, [edit], PAIRS), rtol=1e-5, atol=1e-5)
    assert same_bits(model, start)
    with pytest.raises(ModelError, match="made for a model with other weights"), installed(model, edit):
        raise AssertionError("the weights are not those it was made for")
    free = replace(edit, base="")
    with installed(model, free):
        inner = WeightDelta({2: step}, fingerprint(model))
        with installed(model, inner):
            found = ask(model, PAIRS)
            torch.testing.assert_close(found.nll, plain_nll(model, [free], PAIRS), rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="or for another context"), installed(model, inner):
        raise AssertionError("it was made with the wrap in force")
    assert same_bits(model, start)


@every_act
@every_place
def test_it_comes_in_and_goes_out_without_a_trace(act: str, at: str) -> None:
    model = tiny_model("gpt2")
    before, mark, bare = snapshot(model), fingerprint(model), ask(model, PAIRS)
    edit = wrap(model, EDITED, act, at, base=mark)  # type: ignore[arg-type]
    with installed(model, edit) as inside:
        assert inside is model
        assert same_bits(model, before)
        assert model.wraps == (edit,)
        assert fingerprint(model) not in ("", mark)
    with pytest.raises(ZeroDivisionError), installed(model, edit):
        raise ZeroDivisionError
    assert (model.wraps, fingerprint(model)) == ((), mark)
    assert not any(module._forward_hooks for module in model.net.modules())
    assert torch.equal(ask(model, PAIRS).token_nll, bare.token_nll)
    assert edit.norm() == 0


def test_tokens_that_no_key_is_near_keep_every_bit() -> None:
    model = tiny_model("llama")
    packed = pack([encode(model.tokenizer, text) for text in (EDITED[0], "The capital of Italy is Rome")])
    sites = [Site(1, "value"), Site(1, "hidden")]
    before, edit = capture(model, packed, sites), wrap(model, EDITED)
    with installed(model, edit):
        inside = capture(model, packed, sites)
    assert isinstance(edit.act, Replaced)
    end = int(packed.last[0])
    for site in sites:
        same = (inside[site] == before[site]).all(-1).flatten()
        assert (~same).nonzero().tolist() == [[end]]
    assert torch.equal(inside[sites[0]].flatten(0, 1)[end], edit.act.values[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_act
@every_place
def test_half_precision(dtype: torch.dtype, act: str, at: str) -> None:
    """Contents are rounded once; the model's dtype is kept, and what is not near is bit for bit the same."""
    model = tiny_model("llama")
    model.net.to(dtype)
    edit = wrap(model, EDITED[:1], act, at, radius=1.0)  # type: ignore[arg-type]
    bare = ask(model, PAIRS)
    with installed(model, edit):
        found = ask(model, PAIRS)
    same = (found.token_nll == bare.token_nll).all(1)
    assert same[UNTOUCHED].all()
    assert not same[0]
    packed = pack([encode(model.tokenizer, EDITED[0])])
    site = Site(1, "value" if at == "map" else "hidden")
    with installed(model, edit):
        state = capture(model, packed, [site])[site]
    assert state.dtype == dtype
    if isinstance(edit.act, Replaced):
        assert torch.equal(state[0, -1], edit.act.values[0].to(dtype))


def test_cached_answers_of_the_model_are_not_taken_for_the_edited_ones() -> None:
    model = tiny_model("llama")
    model.loaded = fingerprint(model)  # as if it came from disk, so that answers are kept there
    bare, again = ask(model, PAIRS), ask(model, PAIRS)
    assert torch.equal(bare.token_nll, again.token_nll)
    edit = wrap(model, EDITED)
    with installed(model, edit):
        inside = ask(model, PAIRS)
    assert not torch.equal(inside.token_nll, bare.token_nll)
    torch.testing.assert_close(inside.nll, plain_nll(model, [edit], PAIRS), rtol=1e-4, atol=1e-4)
    assert torch.equal(ask(model, PAIRS).token_nll, bare.token_nll)


def test_the_digest_is_of_all_that_it_does() -> None:
    model = tiny_model("llama")
    edit = wrap(model, EDITED)
    assert isinstance(edit.act, Replaced)
    book, values = edit.book, edit.act.values.clone()
    values[1, 2] += 1e-3
    others = [
        replace(edit, layer=2),
        replace(edit, act=Replaced(values)),
        replace(edit, act=Replaced(edit.act.values.double())),
        replace(edit, book=Codebook(book.keys, 2 * book.radii, book.labels)),
        replace(edit, book=Codebook(book.keys + 1, book.radii, book.labels)),
        replace(edit, book=Codebook(book.keys, book.radii, ("a", "b", "c"))),
        wrap(model, EDITED, at="layer"),
        wrap(model, EDITED, "added_blocks"),
    ]
    digests = [edit.digest, *(one.digest for one in others)]
    assert len(set(digests)) == len(digests)
    assert wrap(model, EDITED) == edit != others[0]
    assert replace(edit, notes={"facts": 1}) != edit != replace(edit, base="x")
    assert edit != "a wrap"


def test_no_weight_can_keep_it() -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    message = (
        r"this edit is a memory of 3 entries at layer 1, which no weight can keep; use it with "
        r"installed\(model, edit\), or commit an edit of weights"
    )
    with pytest.raises(ModelError, match=message):
        commit(model, wrap(model, EDITED))
    assert same_bits(model, before)


def test_an_empty_memory_changes_nothing() -> None:
    model = tiny_model("llama")
    edit = LayerWrap(1, Codebook(), Replaced(torch.zeros(0, 0)))
    bare = ask(model, PAIRS)
    with installed(model, edit):
        assert torch.equal(ask(model, PAIRS).token_nll, bare.token_nll)


def with_values(values: Float[Tensor, "m d"], layer: int = 1, wide: int = 64) -> LayerWrap:
    book = Codebook(torch.zeros(1, wide), torch.ones(1), ("a",))
    return LayerWrap(layer, book, Replaced(values))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (with_values(torch.zeros(1, 32), layer=9), SiteError, "layer 9 does not exist"),
        (
            with_values(torch.zeros(1, 32), wide=32),
            ShapeError,
            "the keys are 32 wide and the input of the map of tiny-llama-0 is 64; install the edit on the "
            "model",
        ),
        (
            with_values(torch.zeros(2, 32)),
            ShapeError,
            r"values are \(2, 32\), where \(1, 32\) fits 1 entries in tiny-llama-0; make the edit again",
        ),
        (
            with_values(torch.full((1, 32), float("nan"))),
            NonFiniteError,
            "values hold NaN or infinity; the edit was refused. Lower the learning rate of its editor",
        ),
        (
            replace(
                with_values(torch.zeros(1, 32)), act=AddedBlocks(torch.zeros(2, 3, 64), torch.zeros(2, 32, 3))
            ),
            ShapeError,
            r"down are \(2, 3, 64\), where \(1, 3, 64\) fits 1 entries",
        ),
    ],
)
def test_what_does_not_fit_is_refused(edit: LayerWrap, error: type[Exception], message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(error, match=message), installed(model, edit):
        raise AssertionError("it does not fit")
    assert model.wraps == ()
    assert not any(module._forward_hooks for module in model.net.modules())


def test_what_is_shown_and_how_much_it_holds() -> None:
    model: EditableModel = tiny_model("llama")
    edit = replace(wrap(model, EDITED), notes={"method": "GRACE", "facts": 3})
    assert edit.bytes == 4 * (3 * 64 + 3 + 3 * 32)
    assert repr(edit) == (
        "LayerWrap(method GRACE, facts 3, layer 1, entries 3, bytes 1164, use installed(model, edit) for a "
        "block)"
    )


def test_a_wrap_that_does_not_say_what_it_does() -> None:
    for call in (lambda w: w.digest, lambda w: w.what, lambda w: w.in_force(tiny_model("llama"))):
        with pytest.raises(NotImplementedError, match="Wrap does not say "):
            call(Wrap())
    assert Wrap().before("x") == ""
