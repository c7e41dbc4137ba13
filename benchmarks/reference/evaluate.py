"""Twin of `palimpsest.evaluation.evaluate`: one prompt and one target at a time, logits at all positions."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode_target
from palimpsest.types import EvalCase

METRICS = (
    "efficacy",
    "generalisation",
    "specificity",
    "efficacy_accuracy",
    "generalisation_accuracy",
    "specificity_accuracy",
)


def scored(model: EditableModel, prompt: str, target: str) -> tuple[float, bool]:
    """Mean NLL of the target's tokens after the prompt, and whether each is the most probable one."""
    ids, wanted = model.encode(prompt), encode_target(model.tokenizer, target)
    with torch.no_grad():
        logits = model.net(input_ids=torch.tensor([ids + wanted[:-1]])).logits[0]  # (t, vocabulary)
    log_p = logits.log_softmax(1)
    at = range(len(ids) - 1, len(ids) - 1 + len(wanted))
    nll = -sum(float(log_p[i, token]) for i, token in zip(at, wanted, strict=True)) / len(wanted)
    return nll, all(int(logits[i].argmax()) == token for i, token in zip(at, wanted, strict=True))


def scores(model: EditableModel, cases: Sequence[EvalCase]) -> tuple[Tensor, Tensor]:
    """Scores of cases that have prompts of every kind.

    Returns:
        Values of METRICS (metrics, cases), and the NLL of each case's request: the new object's and the true
        one's (2, cases); float64.
    """
    values, losses = [], []
    for case in cases:
        new, true = case.request.target, case.target_true
        request = _asked(model, [case.request.text], [new], [true])
        paraphrases = _asked(
            model, case.paraphrases, [new] * len(case.paraphrases), [true] * len(case.paraphrases)
        )
        neighbours = _asked(
            model,
            [probe.prompt for probe in case.neighbours],
            [probe.target for probe in case.neighbours],
            [new] * len(case.neighbours),
        )
        kinds = (request, paraphrases, neighbours)
        values.append([_mean(a < b for a, b, _ in kind) for kind in kinds])
        values[-1] += [_mean(hit for _, _, hit in kind) for kind in kinds]
        losses.append(request[0][:2])
    return torch.tensor(values, dtype=torch.float64).T, torch.tensor(losses, dtype=torch.float64).T


def _asked(
    model: EditableModel, prompts: Sequence[str], wanted: Sequence[str], others: Sequence[str]
) -> list[tuple[float, float, bool]]:
    """For each prompt the NLL of the wanted and of the other target, and whether the wanted one is argmax."""
    found = []
    for prompt, target, other in zip(prompts, wanted, others, strict=True):
        nll, hit = scored(model, prompt, target)
        found.append((nll, scored(model, prompt, other)[0], hit))
    return found


def _mean(values: Iterable[bool]) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
