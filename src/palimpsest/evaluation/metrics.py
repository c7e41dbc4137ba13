"""Metrics of knowledge editing, one function per formula, on plain tensors and without a model.

A target of several tokens is scored with teacher forcing: token j is predicted from the prompt and the
target's tokens before j. ``nll`` is the mean over the target's tokens of -log p, in nats. Formulas return one
number per question (prompt and target); a case's value is the mean over its prompts, a table's the mean over
cases.

METRICS names the combinations of prompts and formula that papers print. Neighbourhood prompts are always
scored against the neighbour's own true object, so specificity is higher when neighbours do not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palimpsest.errors import ScoreError

Prompts = Literal["request", "paraphrases", "neighbours"]
Form = Literal["success", "accuracy", "token_accuracy"]


@dataclass(frozen=True)
class Metric:
    """A formula applied to one kind of prompt.

    Attributes:
        prompts: ``request`` and ``paraphrases`` are scored for the new object, ``neighbours`` for their own
            true object.
        form: name of the formula below; success also needs the object that should be less probable: the true
            one for request and paraphrases, the new one for neighbours.
        higher_is_better: whether a good edit has a high value.
    """

    prompts: Prompts
    form: Form
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {
    "efficacy": Metric("request", "success"),
    "generalisation": Metric("paraphrases", "success"),
    "specificity": Metric("neighbours", "success"),
    "efficacy_accuracy": Metric("request", "accuracy"),
    "generalisation_accuracy": Metric("paraphrases", "accuracy"),
    "specificity_accuracy": Metric("neighbours", "accuracy"),
    "efficacy_tokens": Metric("request", "token_accuracy"),
    "generalisation_tokens": Metric("paraphrases", "token_accuracy"),
    "specificity_tokens": Metric("neighbours", "token_accuracy"),
}

SCORES = ("efficacy", "generalisation", "specificity")
"""The three metrics that are averaged into a Score."""

COUNTERFACT_METRICS = tuple(name for name, metric in METRICS.items() if metric.form != "token_accuracy")
"""The success metrics, printed by papers on CounterFact as Efficacy, Generalization and Specificity, and the
argmax metrics, which reproductions sometimes print under the same names."""

ZSRE_METRICS = tuple(name for name, metric in METRICS.items() if metric.form == "token_accuracy")
"""The metrics printed on ZsRE. ``specificity_tokens`` scores the neighbour's gold answer, as the code of ROME
and its descendants does; it is low when the unedited model does not know that answer. Agreement with the
unedited model's own prediction, which EasyEdit calls locality, is a different quantity and not comparable."""


def mean_nll(token_nll: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Mean negative log-likelihood per target token, (1/T) Σ_j -log p(token_j | prompt, tokens before j).

    Source: CounterFact evaluation of ROME (Meng et al. 2022) and MEMIT (2023). Range [0, ∞) nats; lower means
    the target is more probable. Example: two tokens with p = 1/2 and 1/8 give (ln 2 + ln 8) / 2 = ln 4.

    Args:
        token_nll: -log p of each target token (n, t); entries where ``mask`` is False are ignored.
        mask: True at tokens of the target (n, t).
    """
    return torch.where(mask, token_nll, 0).sum(1) / mask.sum(1)


def success(nll_preferred: Float[Tensor, " n"], nll_other: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 where the preferred target has the lower mean NLL per token, else 0; a tie gives 0.

    Source: efficacy, paraphrase and neighbourhood success (ES, PS, NS) of Meng et al. (2022); Eff., Gen. and
    Spe. of AlphaEdit (Fang et al. 2025) on CounterFact. Range {0, 1}, higher is better. As the NLL is a mean
    over tokens, long targets are not at a disadvantage. Example: NLL 1.0 against 1.5 gives 1; 1.0 against
    1.0 gives 0.
    """
    return (nll_preferred < nll_other).double()


def probability_difference(
    nll_preferred: Float[Tensor, " n"], nll_other: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Margin of success: exp(-NLL) of the preferred target minus that of the other.

    exp(-NLL) is the geometric mean of the target's token probabilities. Source: efficacy, paraphrase and
    neighbourhood magnitude (EM, PM, NM) of Meng et al. (2022). Range (-1, 1), higher is better.
    Example: NLL ln 2 against ln 4 gives 1/2 - 1/4 = 0.25.
    """
    return torch.exp(-nll_preferred) - torch.exp(-nll_other)


def accuracy(hits: Bool[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """1 where every token of the target is the most probable one at its position, else 0.

    Source: the argmax fields of MEMIT's CounterFact evaluation. Range {0, 1}, higher is better.
    Example: hits of 3 tokens out of 3 give 1, of 2 out of 3 give 0.

    Args:
        hits: whether the target token has the highest logit (n, t); ignored where ``mask`` is False.
        mask: True at tokens of the target (n, t).
    """
    return (hits | ~mask).all(1).double()


def token_accuracy(hits: Bool[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Share of the target's tokens that are the most probable one at their position.

    Source: ZsRE evaluation of Mitchell et al. (2022, MEND) and MEMIT. Range [0, 1], higher is better, and
    never below ``accuracy``. Example: hits of 2 tokens out of 3 give 2/3. Arguments as in ``accuracy``.
    """
    return (hits & mask).sum(1).double() / mask.sum(1)


def harmonic_mean_score(scores: Sequence[float]) -> float:
    """Harmonic mean k / Σ 1/score of k scores; 0 if any score is 0.

    Source: Score S of Meng et al. (2022), over ES, PS and NS. Range and unit are those of the scores, higher
    is better. Example: 100, 100 and 25 give 3 / (0.01 + 0.01 + 0.04) = 50.

    Raises:
        ScoreError: if there are no scores, or one is negative or not finite.
    """
    values = _scores(scores)
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def arithmetic_mean_score(scores: Sequence[float]) -> float:
    """Arithmetic mean Σ score / k of k scores; at least the harmonic mean, and equal to it if all are equal.

    Source: some papers print it as overall score under the name of the harmonic mean. Range and unit are
    those of the scores, higher is better. Example: 100, 100 and 25 give 75.

    Raises:
        ScoreError: if there are no scores, or one is negative or not finite.
    """
    values = _scores(scores)
    return sum(values) / len(values)


def _scores(scores: Sequence[float]) -> list[float]:
    values = [float(score) for score in scores]
    if not values or not all(0 <= value < float("inf") for value in values):
        raise ScoreError(
            f"a mean score needs one or more finite scores of 0 or more, got {values}; "
            "pass efficacy, generalisation and specificity in one unit"
        )
    return values
