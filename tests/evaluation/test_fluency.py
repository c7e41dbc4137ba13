"""Entropy of n-grams and TF-IDF cosine against numbers worked out by hand, and their ranges."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import ScoreError
from palimpsest.evaluation.fluency import consistency, fluency, repetition, term_weights

WORDS = st.lists(st.sampled_from(["rome", "paris", "the", "of", "is", "in", ",", "."]), max_size=40)


def test_fluency_by_hand() -> None:
    # bigrams ab ba ab ba: one bit; trigrams aba bab aba: log2 3 - 2/3
    assert fluency("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * (math.log2(3) - 2 / 3)) / 2)
    # four words: three bigrams and two trigrams, all different
    assert fluency("a b c d") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * 1) / 2)
    # trigrams weigh twice as much as bigrams: bigrams aa, ab, ba once or twice, trigrams all different
    bigrams = 2 * (2 / 5) * math.log2(5 / 2) + (1 / 5) * math.log2(5)  # aa aa ab bb bb
    trigrams = 4 * (1 / 4) * math.log2(4)  # aaa aab abb bbb
    assert fluency("a a a b b b") == pytest.approx(bigrams / 3 + 2 * trigrams / 3)


@pytest.mark.parametrize("text", ["", " \n", "word", "two words", "no no no no no no no"])
def test_texts_without_any_choice_have_no_entropy(text: str) -> None:
    assert fluency(text) == 0.0


def test_punctuation_counts_and_spaces_do_not() -> None:
    assert fluency("a, b") == fluency("a , b") == fluency("a  ,\nb")
    assert fluency("a, b, c") > fluency("a b c")
    assert fluency("don't stop now") == fluency("don ' t stop now")


def test_case_matters_as_in_the_released_code() -> None:
    assert fluency("A b a b") > fluency("a b a b")


@given(WORDS)
def test_fluency_is_the_formula_and_within_its_range(words: list[str]) -> None:
    entropies = []
    for n in (2, 3):
        counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        shares = [count / sum(counts.values()) for count in counts.values()]
        entropies.append(-sum(share * math.log2(share) for share in shares))
    got = fluency(" ".join(words))
    assert got == pytest.approx((2 / 3 * entropies[0] + 4 / 3 * entropies[1]) / 2)
    assert 0 <= got <= math.log2(max(len(words), 1))


@given(WORDS, st.randoms())
def test_other_names_for_the_words_change_nothing(words: list[str], chooser: random.Random) -> None:
    names = [f"w{i}" for i in range(8)]
    chooser.shuffle(names)
    named = dict(zip(["rome", "paris", "the", "of", "is", "in", ",", "."], names, strict=True))
    assert fluency(" ".join(named[word] for word in words)) == pytest.approx(fluency(" ".join(words)))
    assert fluency(" ".join(words[::-1])) == pytest.approx(fluency(" ".join(words)))


def test_distinct_words_reach_the_top_and_repetition_falls_from_it() -> None:
    distinct = " ".join(f"w{i}" for i in range(82))
    top = (2 / 3 * math.log2(81) + 4 / 3 * math.log2(80)) / 2
    assert fluency(distinct) == pytest.approx(top)
    assert 6.2 < top < 6.4  # printed values of about 620 are this, not twice this
    parts = [" ".join(f"w{i % period}" for i in range(82)) for period in (1, 2, 5, 20, 82)]
    scores = [fluency(part) for part in parts]
    assert scores == sorted(scores)
    assert len(set(scores)) == 5


EVEN = ["red car", "red bike", "blue car", "blue bike"]  # every word in two of four documents


def test_consistency_by_hand() -> None:
    weights = term_weights(EVEN)
    assert consistency(["red car"], ["red bike"], weights) == pytest.approx(1 / 2)
    assert consistency(["red car"], ["blue bike"], weights) == 0
    assert consistency(["red red car"], ["red bike"], weights) == pytest.approx(2 / math.sqrt(5 * 2))
    assert consistency(["Red", "CAR!"], ["car, red"], weights) == pytest.approx(1)


def test_rare_words_weigh_more() -> None:
    """By hand: idf of a word in 4 and in 1 of 4 documents is 1 and 1 + ln(5 / 2)."""
    weights = term_weights(["the rome", "the", "the", "the"])
    rare = 1 + math.log(5 / 2)
    expected = rare / math.sqrt(1 + rare**2)
    assert consistency(["rome"], ["the rome"], weights) == pytest.approx(expected)
    assert consistency(["the"], ["the rome"], weights) == pytest.approx(expected / rare)


def test_weights_of_the_references_themselves_by_default() -> None:
    references = ["the rome", "the", "the", "the"]
    assert consistency(["rome"], references) == consistency(["rome"], references, term_weights(references))
    assert consistency(["rome"], references) != consistency(["rome"], references, term_weights(["rome the"]))


def test_generated_texts_without_known_words_give_zero() -> None:
    for generated in ([], [""], ["?!", " "], ["green boat"]):
        assert consistency(generated, ["red car"], term_weights(EVEN)) == 0.0


def test_references_without_words_are_refused() -> None:
    with pytest.raises(ScoreError, match="1 reference texts hold no word that has a weight; pass texts to"):
        consistency(["red"], ["green boat"], term_weights(EVEN))
    with pytest.raises(ScoreError, match="term weights need a corpus with words, got 2 texts without; pass"):
        term_weights(["", "?"])
    with pytest.raises(ScoreError, match="got 0 texts without; pass reference texts"):
        consistency(["red"], [])


TEXTS = st.lists(st.sampled_from([*EVEN, "green", "car car red"]), min_size=1, max_size=5)


@given(TEXTS, TEXTS, st.randoms())
def test_range_symmetry_and_order(one: list[str], other: list[str], chooser: random.Random) -> None:
    weights = term_weights([*EVEN, "green"])
    got = consistency(one, other, weights)
    assert 0 <= got <= 1
    assert consistency(other, one, weights) == pytest.approx(got)
    assert consistency(one, one, weights) == pytest.approx(1)
    shuffled = chooser.sample(one, len(one)), chooser.sample(other, len(other))
    assert consistency(*shuffled, weights) == pytest.approx(got)
    assert consistency(one * 3, other, weights) == pytest.approx(got), "length alone does not matter"


def test_repetition_by_hand() -> None:
    # abab baba abab baba: two of four were there before
    assert repetition("a b a b a b a") == 0.5
    assert repetition("a b c d e") == 0
    assert repetition("a a a a a a a a", 1) == pytest.approx(7 / 8)
    assert repetition("a b c") == 0  # no four words


@given(st.integers(1, 5), st.integers(5, 20))
def test_what_is_said_twice_is_repeated_but_for_the_seam(n: int, m: int) -> None:
    words = [f"w{i}" for i in range(m)]
    assert repetition(" ".join(words), n) == 0
    # m − n + 1 n-grams come back; the n − 1 that span the seam are new
    assert repetition(" ".join(words * 2), n) == pytest.approx((m - n + 1) / (2 * m - n + 1))


def test_a_gram_has_a_word() -> None:
    with pytest.raises(ScoreError, match="n is 0"):
        repetition("a", 0)
