"""Sampling against a plain twin without batches, padding or cache, and the draw against its distribution."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.network import sampling
from palimpsest.network.model import FAMILIES, EditableModel, generate, read_weight, write_weight
from palimpsest.network.sampling import draw, passages, sample
from palimpsest.network.tokens import encode
from tests.editing import KINDS
from tests.problems import gaussian
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [
    "The mother tongue of Danielle Darrieux is",
    "Anna",
    "Where does Anna Berg live? She lives in the city of",
    "Ω, in the north of",
    "The capital of France",
    "Anna",
]


def plain(model: EditableModel, prompt: str, uniform: Tensor, top_k: int, top_p: float, heat: float) -> str:
    """The twin: one prompt, whole forward passes, a loop over the candidates."""
    start = encode(model.tokenizer, prompt)
    ids = list(start)
    for u in uniform.tolist():
        with torch.no_grad():
            logits = model.net(input_ids=torch.tensor([ids])).logits[0, -1].double()
        p, order = (logits / heat).softmax(0).sort(descending=True)
        kept, held = [], 0.0
        for probability, token in list(zip(p.tolist(), order.tolist(), strict=True))[:top_k]:
            if held / float(p[:top_k].sum()) >= top_p:
                break
            kept.append((probability, token))
            held += probability
        rest, left = u * held, iter(kept)
        while rest >= 0:
            probability, token = next(left)
            rest -= probability
        if token == model.tokenizer.eos_token_id:
            break
        ids.append(token)
    return str(model.tokenizer.decode(ids[len(start) :], skip_special_tokens=True))


@pytest.mark.slow
@pytest.mark.parametrize("bos", [False, True], ids=["", "bos"])
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("top_k", "top_p", "heat"), [(5, 1.0, 1.0), (400, 0.7, 1.3), (20, 0.9, 0.7)])
def test_sample_equals_the_plain_twin(kind: str, bos: bool, top_k: int, top_p: float, heat: float) -> None:
    model = tiny_model(kind, seed=2, bos=bos)
    got = sample(model, PROMPTS, 12, top_k, seed=4, top_p=top_p, temperature=heat)
    noise = sampling._uniforms(PROMPTS, [12] * len(PROMPTS), 4)
    expected = [plain(model, prompt, u, top_k, top_p, heat) for prompt, u in zip(PROMPTS, noise, strict=True)]
    assert got == expected
    assert len(set(got)) == len(got), "every prompt has its own text, the repeated one included"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_company(kind: str) -> None:
    model = tiny_model(kind, seed=2)
    whole = sample(model, PROMPTS, 10, seed=1)
    for batch_size in (1, 2, 5):
        assert sample(model, PROMPTS, 10, seed=1, batch_size=batch_size) == whole
    distinct = PROMPTS[:5]
    assert sample(model, distinct[::-1], 10, seed=1) == whole[:5][::-1]
    assert [sample(model, [prompt], 10, seed=1)[0] for prompt in distinct] == whole[:5]


def test_a_repeated_prompt_has_samples_of_its_own_and_more_of_them_change_none() -> None:
    model = tiny_model("llama", seed=2)
    few, many = sample(model, ["Anna"] * 3, 10), sample(model, ["Anna"] * 8, 10)
    assert many[:3] == few
    assert len(set(many)) == 8


def test_a_repeated_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2", seed=2)
    seen: list[int] = []
    step = sampling._step

    def noting(model: EditableModel, ids: Tensor, *rest: object) -> object:
        seen.append(len(ids))
        return step(model, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(
        sampling,
        "_step",
        lambda model, ids, *rest: (seen.append(ids.shape[0]), step(model, ids, *rest))[1],
    )
    sample(model, ["Anna"] * 4 + ["Rome"] * 3, 2)
    assert seen == [2, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_end_leave_the_others_as_they_are(kind: str) -> None:
    model = tiny_model(kind, seed=2)
    rows = [encode(model.tokenizer, prompt) for prompt in 4 * PROMPTS]
    noise = sampling._uniforms(4 * PROMPTS, [20] * len(rows), 3)
    choice = sampling._Choice(20, 1.0, 1.0)
    model.tokenizer = deepcopy(model.tokenizer)
    model.tokenizer.eos_token = None
    long = sampling._continue(model, rows, noise, choice)
    end = long[0][4]
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    short = sampling._continue(model, rows, noise, choice)
    assert short == [ids[: ids.index(end)] if end in ids else ids for ids in long]
    assert 1 < sum(end in ids for ids in long) < len(rows), "some rows end early and some do not"


def test_names_decide_the_random_numbers() -> None:
    model = tiny_model("llama", seed=2)
    alone = sample(model, ["Rome", "Anna", "Anna"], 10, seed=1)
    named = sample(model, ["Anna", "Rome", "Rome"], 10, seed=1, names=["Rome", "Anna", "Anna"])
    back = sample(model, ["Rome", "Anna", "Anna"], 10, seed=1, names=["Rome", "Anna", "Anna"])
    assert back == alone
    noise = sampling._uniforms(["Rome", "Anna", "Anna"], [10] * 3, 1)
    asked = zip(["Anna", "Rome", "Rome"], noise, strict=True)
    twin = [plain(model, prompt, u, 5, 1.0, 1.0) for prompt, u in asked]
    assert named == twin
    with pytest.raises(ScoreError, match="2 prompts have 1 names; give each prompt its own, or none"):
        sample(model, ["Anna", "Rome"], names=["Anna"])


def test_fewer_tokens_are_the_start_of_more() -> None:
    model = tiny_model("gpt2", seed=2)
    for short, long in zip(sample(model, PROMPTS, 5), sample(model, PROMPTS, 12), strict=True):
        assert long.startswith(short.rstrip("\ufffd"))
        assert len(long) > len(short)


def test_seeded_and_apart_from_the_global_state() -> None:
    model = tiny_model("llama", seed=2)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = sample(model, PROMPTS, 10, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert sample(model, PROMPTS, 10, seed=1) == first
    others = sample(model, PROMPTS, 10, seed=2)
    assert all(a != b for a, b in zip(first, others, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_one_candidate_is_the_greedy_text(kind: str) -> None:
    model = tiny_model(kind, seed=2)
    for prompt, text in zip(PROMPTS, sample(model, PROMPTS, 10, top_k=1), strict=True):
        assert prompt + text == generate(model, prompt, 10)
    assert sample(model, PROMPTS, 10, top_k=None, top_p=1e-9) == sample(model, PROMPTS, 10, top_k=1)


def test_passages_are_prompt_and_continuation_of_one_length_together() -> None:
    model = tiny_model("llama", seed=2)
    lengths = [len(encode(model.tokenizer, prompt)) for prompt in PROMPTS]
    texts = passages(model, PROMPTS, length=40, seed=3)
    for prompt, length, text in list(zip(PROMPTS, lengths, texts, strict=True))[:5]:
        assert text == prompt + sample(model, [prompt], 40 - length, seed=3)[0]
    assert texts[5].startswith("Anna")
    assert texts[5] != texts[1]
    assert max(lengths) - min(lengths) > 5, "rows of one batch should stop at different steps"


def test_a_text_ends_at_the_end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=2)
    end = model.tokenizer.eos_token_id
    word = encode(model.tokenizer, " Paris")
    steps = iter([[word[0], end], [end], [0]])
    monkeypatch.setattr(sampling, "draw", lambda *_: torch.tensor(next(steps)))
    first = model.tokenizer.decode(word[:1])
    assert sample(model, ["Anna", "Rome"], 3) == [first, ""]
    assert next(steps) == [0], "a row that has ended leaves; once all have, nothing more is drawn"


def test_no_prompts_no_texts() -> None:
    assert sample(tiny_model("llama"), []) == []
    assert passages(tiny_model("llama"), []) == []


GRID = 2000


def shares(logits: Tensor, top_k: int | None = None, top_p: float = 1.0, heat: float = 1.0) -> Tensor:
    """How often each token is drawn over an even grid of u: its probability, to 1 / GRID."""
    u = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    drawn = draw(logits.expand(GRID, -1), u, top_k, top_p, heat)
    return torch.bincount(drawn, minlength=logits.shape[0]).double() / GRID


@given(
    st.integers(2, 30),
    st.integers(0, 999),
    st.none() | st.integers(1, 40),
    st.floats(0.3, 3),
    st.floats(0.05, 1),
)
def test_draw_follows_the_cut_distribution(
    size: int, seed: int, top_k: int | None, heat: float, top_p: float
) -> None:
    logits = gaussian(seed, size, 1)[:, 0]
    p = (logits / heat).softmax(0)
    order = p.argsort(descending=True)[: top_k or size]
    p = torch.zeros_like(p).index_copy(0, order, p[order] / p[order].sum())
    fewest = 1
    while float(p[order[:fewest]].sum()) < top_p - 1e-12:
        fewest += 1
    expected = torch.zeros_like(p)
    expected[order[:fewest]] = p[order[:fewest]] / p[order[:fewest]].sum()
    assert float((shares(logits, top_k, top_p, heat) - expected).abs().max()) <= 1.001 / GRID


@given(st.integers(0, 999), st.floats(0.05, 0.999), st.floats(0.5, 2))
def test_sorting_the_likeliest_draws_what_a_full_sort_draws(seed: int, top_p: float, heat: float) -> None:
    logits = gaussian(seed, 6, 5000).float() * torch.tensor([0.01, 0.5, 1, 2, 4, 8])[:, None]
    u = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(draw(logits, u, None, top_p, heat), draw(logits, u, 5000, top_p, heat))


@given(st.integers(2, 12), st.integers(0, 999), st.floats(0, 1, exclude_max=True), st.randoms())
def test_order_of_the_vocabulary_does_not_matter(size: int, seed: int, u: float, chooser: object) -> None:
    logits = gaussian(seed, size, 1)[:, 0]
    places = torch.tensor(chooser.sample(range(size), size))  # type: ignore[attr-defined]
    at = torch.tensor([u], dtype=torch.float64)
    assert places[draw(logits[places][None], at, 5, 0.9)] == draw(logits[None], at, 5, 0.9)


def test_draw_by_hand() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, -1)
    u = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, u).tolist() == [1, 1, 2, 2, 0, 0]
    assert draw(logits, u, top_k=2).tolist() == [1, 1, 1, 2, 2, 2]  # 0.5 / 0.8 = 0.625
    assert draw(logits, u, top_p=0.6).tolist() == [1, 1, 1, 2, 2, 2]
    assert draw(logits, u, top_p=0.49).tolist() == [1] * 6
    # squares of the probabilities: 25, 9 and 4 of 38
    assert draw(logits, u, temperature=0.5).tolist() == [1, 1, 1, 2, 2, 0]


def test_the_edge_between_two_tokens_belongs_to_the_second() -> None:
    edge = torch.tensor([0.0, 0.49, 0.5, 0.51], dtype=torch.float64)
    first, same, second, after = draw(torch.zeros(4, 2), edge).tolist()
    assert first == same != second == after


@given(st.integers(1, 40), st.integers(0, 999), st.floats(0.05, 1))
def test_the_largest_u_stays_within_what_is_kept(size: int, seed: int, top_p: float) -> None:
    """u < 1 times a total is less than the total also in floating point."""
    logits = gaussian(seed, 1, size)
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    drawn = int(draw(logits, last, top_p=top_p))
    assert shares(logits[0], top_p=top_p)[drawn] > 0 or logits[0].softmax(0)[drawn] < 1 / GRID


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-1e30, 5.0, -1e30]]).expand(3, -1)
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, u).tolist() == [1, 1, 1]


def test_numbers_without_sense() -> None:
    model = tiny_model("llama")
    for options in ({"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}, {"batch_size": 0}):
        with pytest.raises(
            ScoreError, match=r"cannot sample with _Choice\(.*; batch size and top_k are 1 or"
        ):
            sample(model, ["Anna"], 3, **options)  # type: ignore[arg-type]


def test_prompts_that_cannot_be_continued() -> None:
    model = tiny_model("llama")
    length = len(encode(model.tokenizer, PROMPTS[0]))
    with pytest.raises(ScoreError, match="prompt '' gives no token, so nothing can be continued; give it"):
        sample(model, ["Anna", ""])
    with pytest.raises(
        ScoreError, match=rf"Darrieux is' of {length} tokens leaves -1 to sample; ask for more"
    ):
        passages(model, PROMPTS[:1], length=length - 1)
    with pytest.raises(
        ScoreError, match=rf"of {length} tokens and 250 new ones exceed the context of tiny-ll"
    ):
        sample(model, PROMPTS[:1], 250)
    assert sample(model, PROMPTS[:1], 256 - length)


@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_model_still_writes_and_nan_is_named(kind: str) -> None:
    model = tiny_model(kind, seed=2)
    write_weight(model, 1, 1e12 * read_weight(model, 1))
    assert len(sample(model, PROMPTS, 5)) == len(PROMPTS)
    write_weight(model, 1, torch.full_like(read_weight(model, 1), float("inf")))
    with pytest.raises(NonFiniteError, match=rf"tiny-{kind}-2 gives NaN while sampling: .* undo the last"):
        sample(model, PROMPTS, 5)


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_continues_with_a_space() -> None:
    from palimpsest.network.model import load

    model = load("smollm2-135m")
    assert sample(model, ["The capital of France is"], 1, top_k=1) == [" Paris"]
