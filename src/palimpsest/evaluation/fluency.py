"""Metrics of generated text: n-gram entropy (fluency) and TF-IDF similarity (consistency).

Both use words only. High fluency means that a text does not repeat itself, not that it makes sense; high
consistency means that it uses the words of the references. Units are bits and a cosine; the papers print both
times 100.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer

from palimpsest.errors import ScoreError

_WORD = re.compile(r"\w+|[^\w\s]")


def fluency(text: str) -> float:
    """Weighted mean of bigram and trigram entropy, (2/3 H₂ + 4/3 H₃) / 2, in bits.

    H_n = -Σ_g f(g) log₂ f(g), with f the share of n-gram g among those of the text. Source:
    ``n_gram_entropy`` in ROME's released evaluation, kept by MEMIT and AlphaEdit, called fluency or GE.
    AlphaEdit (Eq. 22) and the Labyrinth (Eq. 36) print it without the factor 1/2 and with a minus sign before
    the first sum only; values of about 620 (times 100) for texts of 100 tokens agree with the code, not with
    the printed formula.

    Range [0, log₂ m) for m words; higher is less repetitive, and longer texts can reach higher values. Words
    and single punctuation marks are found by a regular expression where the released code uses nltk, so
    contractions are split differently ("don", "'", "t" instead of "do", "n't"). A text of two words or fewer
    has fluency 0.

    Example: "a b a b a" has bigrams ab, ba twice each and trigrams aba twice, bab once: H₂ = 1,
    H₃ = log₂ 3 - 2/3 = 0.918, fluency (0.667 + 1.224) / 2 = 0.946.
    """
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams that occurred in it before, 1 − distinct / all.

    Range [0, 1); 0 for a text that never says n words twice, near 1 for one that says the same again and
    again. Words are those of `fluency`; a text of fewer than n words has repetition 0.

    Source: seq-rep-n of Welleck et al., Neural Text Generation with Unlikelihood Training (2020), Eq. 10, of
    words instead of tokens.

    Raises:
        ScoreError: if n is less than 1.
    """
    if n < 1:
        raise ScoreError(f"n is {n}; an n-gram has 1 word or more")
    words = _WORD.findall(text)
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values())


def term_weights(corpus: Sequence[str]) -> TfidfVectorizer:
    """Inverse document frequencies of a corpus, each text being one document, for `consistency`.

    scikit-learn's defaults, as in the released code: words of two or more characters in lower case,
    idf = 1 + ln((1 + documents) / (1 + documents with the word)), vectors of norm 1.

    Raises:
        ScoreError: if the corpus holds no word.
    """
    try:
        return TfidfVectorizer().fit(corpus)
    except ValueError as error:
        raise ScoreError(
            f"term weights need a corpus with words, got {len(corpus)} texts without; pass reference texts"
        ) from error


def consistency(
    generated: Sequence[str], references: Sequence[str], weights: TfidfVectorizer | None = None
) -> float:
    """Cosine of the TF-IDF vectors of the joined generated texts and the joined reference texts.

    Source: reference score (RS) of ROME (Meng et al. 2022), Consis. of AlphaEdit; the papers print it times
    100. Range [0, 1], higher is closer. Generated texts without any word of the weights' vocabulary, empty
    ones included, give 0 (the released code: NaN). The level depends on references and weights: compare only
    scores with the same ones.

    Example: with equal weights "red car" against "red bike" is 1/2, "red car" against "blue bike" 0.

    Args:
        generated: texts of the model; their order does not matter.
        references: texts to compare with; their order does not matter.
        weights: from `term_weights`; default those of the references, each being one document.

    Raises:
        ScoreError: if the references hold no word that has a weight.
    """
    weights = weights or term_weights(references)
    found, wanted = weights.transform([" ".join(generated), " ".join(references)]).toarray()
    if not wanted.any():
        raise ScoreError(
            f"{len(references)} reference texts hold no word that has a weight; pass texts to compare with"
        )
    return min(1.0, float(found @ wanted))
