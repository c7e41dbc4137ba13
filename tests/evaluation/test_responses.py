"""Responses: drawn by the fact alone, kept fact by fact, and their cost said beforehand."""

from pathlib import Path

import pytest

from palimpsest.cache import seal_of
from palimpsest.errors import ResourceError, ScoreError
from palimpsest.evaluation import responses
from palimpsest.evaluation.responses import Cost, Decoding, cost
from palimpsest.network import sampling
from palimpsest.network.model import read_weight, write_weight
from palimpsest.network.sampling import sample
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

WORDINGS = {
    "anna": ["Anna Berg was born in", "The city of Anna is", "Where does Anna live? In"],
    "space": ["The Space Needle is in", "In the north is"],
    "rome": ["The capital of Italy is", "Rome is", "Marie Curie plays"],
}
SMALL = Decoding(samples=3, tokens=6, seed=2, batch_size=10)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "responses").glob("*.json"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_are_those_of_sample_wording_by_wording(kind: str) -> None:
    model = tiny_model(kind, seed=2)
    found = responses.responses(model, WORDINGS, SMALL)
    assert list(found) == list(WORDINGS)
    for fact, own in WORDINGS.items():
        assert len(found[fact]) == len(own)
        for wording, texts in zip(own, found[fact], strict=True):
            names = [f"{fact}\n{wording}"] * 3
            assert list(texts) == sample(model, [wording] * 3, 6, None, 2, top_p=0.9, names=names)
            assert len(set(texts)) == 3


def test_a_fact_alone_in_other_company_or_in_other_batches_says_the_same(own_cache: Path) -> None:
    model = tiny_model("llama", seed=2)
    whole = responses.responses(model, WORDINGS, SMALL)
    for path in files(own_cache):
        path.unlink()
    alone = {f: responses.responses(model, {f: w}, Decoding(3, 6, seed=2))[f] for f, w in WORDINGS.items()}
    assert alone == whole
    assert len(files(own_cache)) == 3


def test_what_is_drawn_is_what_would_be_kept(own_cache: Path) -> None:
    model = tiny_model("llama", seed=2)
    found = dict(responses.drawn(model, WORDINGS, SMALL))
    assert not files(own_cache)
    assert found == responses.responses(model, WORDINGS, SMALL)
    with pytest.raises(ScoreError, match="fact 'a' has 1 wordings"):
        list(responses.drawn(model, {"a": ["one"]}, SMALL))


def test_an_interrupted_run_goes_on_with_the_next_fact(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", seed=2)
    asked: list[set[str]] = []

    def dying(model, prompts, *rest, **options):  # type: ignore[no-untyped-def]
        asked.append(set(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sample(model, prompts, *rest, **options)

    monkeypatch.setattr(responses, "sample", dying)
    with pytest.raises(KeyboardInterrupt):
        responses.responses(model, WORDINGS, SMALL)
    assert len(files(own_cache)) == 1
    done = responses.responses(model, WORDINGS, SMALL)
    assert asked == [
        set(WORDINGS["anna"]),
        set(WORDINGS["space"]),
        *({*WORDINGS[f]} for f in ("space", "rome")),
    ]
    monkeypatch.setenv("PALIMPSEST_CACHE", str(own_cache / "other"))
    assert responses.responses(model, WORDINGS, SMALL) == done
    assert responses.responses(model, WORDINGS, SMALL) == done
    assert len(asked) == 7, "what is on disk is not asked again"


def test_everything_that_decides_a_text_is_in_its_key(own_cache: Path) -> None:
    model = tiny_model("llama", seed=2)
    one = {"anna": WORDINGS["anna"]}
    for decoding in (SMALL, *(Decoding(3, 6, **{"seed": 2} | o) for o in ({"seed": 3}, {"top_p": 0.5}))):
        responses.responses(model, one, decoding)
    for decoding in (Decoding(4, 6, seed=2), Decoding(3, 7, seed=2), Decoding(3, 6, 0.9, 2.0, 2)):
        responses.responses(model, one, decoding)
    responses.responses(model, {"berg": WORDINGS["anna"]}, SMALL)
    responses.responses(model, {"anna": WORDINGS["anna"][::-1]}, SMALL)
    write_weight(model, 1, 1.01 * read_weight(model, 1))
    responses.responses(model, one, SMALL)
    assert len(files(own_cache)) == 9
    responses.responses(model, one, Decoding(3, 6, seed=2, batch_size=1))
    assert len(files(own_cache)) == 9


def test_another_model_is_drawn_with_the_same_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    uniforms = sampling._uniforms
    monkeypatch.setattr(sampling, "_uniforms", lambda *a: drawn.append(uniforms(*a)) or drawn[-1])
    said = [responses.responses(tiny_model("llama", seed), WORDINGS, SMALL) for seed in (2, 3)]
    half = len(drawn) // 2
    flat = [[row.tolist() for call in calls for row in call] for calls in (drawn[:half], drawn[half:])]
    assert flat[0] == flat[1]
    assert said[0] != said[1]


def test_the_cost_counts_what_is_not_on_disk_and_asks_for_nothing(own_cache: Path) -> None:
    model = tiny_model("llama", seed=2)
    before = cost(model, WORDINGS, SMALL)
    assert (before.facts, before.on_disk, before.texts, before.tokens) == (3, 0, 24, 144)
    assert 0 < before.seconds < 60
    assert files(own_cache) == []
    assert str(before).startswith("3 facts: 24 texts of at most 6 tokens, about 0.")
    responses.responses(model, {"space": WORDINGS["space"]}, SMALL)
    part = cost(model, WORDINGS, SMALL)
    assert (part.on_disk, part.texts) == (1, 18)
    assert str(part).startswith("3 facts, 1 of them on disk: 18 texts of at most 6 tokens, about ")
    responses.responses(model, WORDINGS, SMALL)
    assert cost(model, WORDINGS, SMALL) == Cost(3, 3, 0, 0, 0.0)
    assert str(cost(model, WORDINGS, SMALL)) == "3 facts, all on disk"
    assert part + Cost(3, 3, 0, 0, 0.0) == Cost(6, 4, 18, 108, part.seconds)
    assert cost(model, WORDINGS, Decoding(2, 1)).seconds > 0


def test_no_facts_no_texts() -> None:
    model = tiny_model("llama")
    assert responses.responses(model, {}) == {}
    assert cost(model, {}).texts == 0


@pytest.mark.parametrize("options", [{"samples": 1}, {"samples": 0}])
def test_too_few_samples(options: dict[str, int]) -> None:
    with pytest.raises(ScoreError, match=r"samples is \d; one response to a wording shows no scatter, so"):
        Decoding(**options)


@pytest.mark.parametrize(
    "options", [{"tokens": 0}, {"batch_size": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0}]
)
def test_decodings_without_sense(options: dict[str, float]) -> None:
    with pytest.raises(ScoreError, match=r"cannot draw responses with Decoding\(.*temperature is above 0"):
        Decoding(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [[], ["Rome is"], ["Rome is", "Rome is"]])
def test_too_few_wordings(own: list[str]) -> None:
    with pytest.raises(
        ScoreError, match=r"fact 'rome' has . wordings, . of them different; uncertainty need"
    ):
        responses.responses(tiny_model("llama"), {"rome": own})


def test_a_changed_file_is_asked_again_with_a_line_saying_so(
    own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it can still be read: other texts would pass for the model's."""
    model = tiny_model("llama", seed=2)
    said = responses.responses(model, WORDINGS, SMALL)
    for content in ("{", "3", files(own_cache)[0].read_text().replace("a", "b")):
        changed = files(own_cache)[0]
        changed.write_text(content)
        assert responses.responses(model, WORDINGS, SMALL) == said
        assert f"palimpsest: cache file {changed} is not as it was written" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "3", "[3]"])
def test_a_damaged_file_without_a_checksum_is_named(own_cache: Path, content: str) -> None:
    model = tiny_model("llama", seed=2)
    responses.responses(model, WORDINGS, SMALL)
    damaged = files(own_cache)[0]
    damaged.write_text(content)
    seal_of(damaged).unlink()
    with pytest.raises(ResourceError, match=rf"{damaged} is damaged \(.*\); delete it and it will be"):
        responses.responses(model, WORDINGS, SMALL)
