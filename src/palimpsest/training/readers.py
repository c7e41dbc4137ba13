"""Training of what SERAC learns: which prompts a fact answers, and how the network reads it before them.

The two parts are trained apart, as in the paper. The scope classifier is a logistic regression on embeddings
of statement and prompt (`palimpsest.network.read_context.features`). In scope are a fact's own prompt and its
rewordings; out of scope its neighbours, the prompt of a like fact about another subject, and a rewording of
any other fact. Its penalty and its threshold are chosen on validation facts.

The counterfactual model is the network with an adapter. With the fact's statement before every prompt, Adam
minimises

    w · (NLL of the new objects) + KL(unedited, without it ‖ adapted, behind it) of prompts about others

over the adapter's matrices, so that a fact is answered and one that was retrieved wrongly does little harm.
Steps, curves and resumption are those of `palimpsest.training.runs`.

Source: Mitchell et al., ICML 2022, Sec. 3.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from palimpsest import cache
from palimpsest.editors.ike import FACT
from palimpsest.editors.reader import Reader, Scope
from palimpsest.editors.serac import Pair, best_cut
from palimpsest.files import locked
from palimpsest.network.adapter import Adapter, MarkingTokenizer, mark_of
from palimpsest.network.chosen import Embed
from palimpsest.network.embedder import embedder
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.network.read_context import ScopeHead, features
from palimpsest.network.tokens import encode
from palimpsest.training import runs
from palimpsest.training.lessons import Draw, Kind, Losses
from palimpsest.types import EvalCase, joined

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse weights C of the classifier's penalty, among which validation facts choose."""


@dataclass(frozen=True)
class Plan(runs.Plan):
    """How a scope classifier and an adapter are trained; steps, rates and sizes are the adapter's.

    Attributes:
        scoped: training facts of each kind whose pairs the classifier is fitted on.
        held_out: validation facts of each kind whose pairs choose its penalty and threshold.
    """

    rank: int = 8
    lr: float = 2e-3
    sizes: tuple[int, ...] = (4,)
    scoped: int = 1000
    held_out: int = 300


def train(
    model: EditableModel,
    kinds: Sequence[Kind],
    plan: Plan,
    out: Path,
    about: Mapping[str, Any] | None = None,
    embed: Embed | None = None,
) -> Reader:
    """Train classifier and adapter, or go on with them, and write them to one file.

    Args:
        model: the unedited model.
        kinds: cases to learn from.
        plan: see `Plan`.
        out: the file; checkpoints stand beside it until the end, under the ending ``.training``.
        about: of the data, for the ``about`` of what is written.
        embed: the sentence embedder; None for the embedded one. The editor needs the same.

    Returns:
        What was trained. Its ``about`` holds what `palimpsest.training.hypernetworks.train` tells, and under
        ``scope`` the numbers of the classifier beside those of a threshold of the cosine on the same pairs.

    Raises:
        ResourceError: if the checkpoint is of another training, or a file cannot be read or written.
        NonFiniteError: if a loss becomes NaN or infinite; the last checkpoint stays.
    """
    embed = embed or embedder()
    mark = cache.digest([fingerprint(model), asdict(plan), about, [asdict(kind) for kind in kinds]])
    halfway = out.with_suffix(".training")
    with locked(out):
        d_v, d_k = read_weight(model, plan.layers[0]).shape
        adapter = Adapter(plan.layers, (d_v, d_k), plan.rank, plan.seed).to(model.device)
        run = runs.Run(adapter, torch.optim.Adam(adapter.parameters(), lr=plan.lr))
        runs.restore(run, halfway, mark)
        losses, judged = partial(_losses, model, adapter), partial(_judged, model, adapter, plan)
        runs.go_on(run, kinds, plan, losses, judged, lambda: runs.keep(run, halfway, mark))
        adapter.load_state_dict(run.best)
        head, scope, seen = fitted(embed, kinds, plan)
        found = Reader(head, scope, adapter, runs.history(run, plan, about) | {"scope": seen})
        found.save(out, fingerprint(model))
        halfway.unlink()
    return found


def _losses(
    model: EditableModel, adapter: Adapter, kind: Kind, cases: Sequence[EvalCase], turn: int
) -> Losses:
    return _draw(model, cases, turn).losses_in(adapter.in_force(model, mark_of(model)))


def _judged(model: EditableModel, adapter: Adapter, plan: Plan, kind: Kind) -> Iterator[Mapping[str, float]]:
    for turn, case in enumerate(kind.validation[: plan.judged]):
        with torch.no_grad():
            draw = _draw(model, [case], turn, beside_true=True)
            found = draw.losses_in(adapter.in_force(model, mark_of(model)))
        yield dict(runs.told(draw, found))


def _draw(model: EditableModel, cases: Sequence[EvalCase], turn: int, beside_true: bool = False) -> Draw:
    """Cases whose prompts are read behind their facts, as marked tokens."""
    mark = mark_of(model)
    marking = MarkingTokenizer(model.tokenizer, lambda _: True, mark, mark)

    def read(case: EvalCase, prompt: str) -> list[int]:
        return encode(marking, FACT.format(_statement(case)) + prompt)

    return Draw(model, cases, turn, beside_true, read)


def _statement(case: EvalCase) -> str:
    return joined(case.request.text, case.request.target)


# The scope classifier.


def fitted(embed: Embed, kinds: Sequence[Kind], plan: Plan) -> tuple[ScopeHead, Scope, dict[str, Any]]:
    """Fit the classifier on pairs of training facts, and choose penalty and threshold on validation facts.

    Args:
        embed: the sentence embedder.
        kinds: cases, of which ``plan.scoped`` and ``plan.held_out`` each are taken.
        plan: see `Plan`.

    Returns:
        The classifier, its threshold with its accuracy on the validation pairs, and what there is to tell of
        it: numbers of pairs, the penalty, the log loss, and accuracy and threshold of the cosine alone.
    """
    learnt, held = (
        _featured(embed, [pairs(part[:count], plan.seed) for part in parts])
        for parts, count in (
            ([kind.training for kind in kinds], plan.scoped),
            ([kind.validation for kind in kinds], plan.held_out),
        )
    )
    scaler = StandardScaler().fit(learnt[0].numpy())
    rows, truth = scaler.transform(learnt[0].numpy()), learnt[1].numpy()
    asked, known = scaler.transform(held[0].numpy()), held[1].numpy()
    tried: list[tuple[float, float, Any]] = []
    for penalty in PENALTIES:
        one = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000).fit(rows, truth)
        tried.append((float(log_loss(known, one.predict_proba(asked)[:, 1])), penalty, one))
    loss, penalty, best = min(tried, key=lambda entry: entry[:2])
    weights = torch.from_numpy(best.coef_[0] / scaler.scale_).double()
    head = ScopeHead(weights, float(best.intercept_[0] - best.coef_[0] @ (scaler.mean_ / scaler.scale_)))
    scores = torch.sigmoid(held[0] @ head.weights + head.bias)
    scope = best_cut(scores[held[1]], scores[~held[1]])
    cosine = best_cut(held[0][held[1], 0], held[0][~held[1], 0])
    seen = {"pairs": len(truth), "penalty": penalty, "log_loss": round(loss, 4)}
    seen |= {"held_out_pairs": len(known), "accuracy": round(scope.accuracy, 4)}
    seen |= {"cosine_accuracy": round(cosine.accuracy, 4), "cosine_threshold": round(cosine.threshold, 4)}
    return head, scope, seen


def pairs(cases: Sequence[EvalCase], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs of a statement with prompts in its scope, and with prompts out of it.

    Args:
        cases: facts with rewordings and neighbours, of which two each are taken.
        seed: of the other facts.

    Returns:
        In scope: own prompt and rewordings. Out of scope: neighbours, the own prompt of a fact with the same
        prompt and another subject, and the first rewording of any fact about another subject.
    """
    like: dict[str, list[EvalCase]] = defaultdict(list)
    for case in cases:
        like[case.request.prompt].append(case)
    inside, outside, chooser = [], [], random.Random(seed)
    for case in cases:
        statement, subject = _statement(case), case.request.subject
        inside += [(statement, prompt) for prompt in (case.request.text, *case.paraphrases[:2])]
        outside += [(statement, probe.prompt) for probe in case.neighbours[:2]]
        near, far = chooser.choice(like[case.request.prompt]), chooser.choice(cases)
        if near.request.subject != subject:
            outside.append((statement, near.request.text))
        if far.request.subject != subject:
            outside.append((statement, (*far.paraphrases, far.request.text)[0]))
    return inside, outside


def _featured(
    embed: Embed, parts: Sequence[tuple[list[Pair], list[Pair]]]
) -> tuple[Float64[Tensor, "n f"], Tensor]:
    """Features of all pairs, and whether each is in scope (n,)."""
    inside, outside = ([pair for part in parts for pair in part[at]] for at in (0, 1))
    prompts, statements = (embed([pair[at] for pair in (*inside, *outside)]) for at in (1, 0))
    return features(prompts, statements), torch.arange(len(prompts)) < len(inside)
