"""Facts to trace as token ids: where their subjects are, which can be traced, and why others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import RequestError, ScoreError
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.metrics import accuracy
from palimpsest.network.activations import capture
from palimpsest.network.head import final_states, logits_of
from palimpsest.network.model import EditableModel, Site
from palimpsest.network.tokens import Batch, encode, encode_target
from palimpsest.types import SLOT, EditRequest, EvalCase

NOT_SAID = "the model does not answer it rightly"
AT_START = "its subject begins at the first token, to which all others attend, so noise there is no control"


@dataclass(frozen=True)
class Statement:
    """A prompt as token ids, with its subject and its answer.

    Attributes:
        id: of the fact.
        request: prompt and subject.
        ids: of the prompt, with the model's own first token.
        first: position of the subject's first token.
        last: position of the subject's last token.
        answer: ids that follow the prompt.
        text: the answer, as a target.
        own: whether the answer is the model's own, so that it need not be asked.
    """

    id: str
    request: EditRequest
    ids: tuple[int, ...]
    first: int
    last: int
    answer: tuple[int, ...]
    text: str
    own: bool = False

    @property
    def subject(self) -> list[int]:
        """Ids of the subject's tokens."""
        return list(self.ids[self.first : self.last + 1])


def statements(
    model: EditableModel, facts: str | Sequence[EvalCase | EditRequest], subject: str
) -> list[Statement]:
    """Facts as token ids; arguments and errors as `palimpsest.evaluation.tracing.trace`."""
    if isinstance(facts, str):
        if not subject:
            raise RequestError(f"prompt {facts!r} is given without its subject; pass subject=")
        request = EditRequest(facts, subject, "?", facts)  # the model gives the answer
        return [_statement(model, request, request.id, "")]
    if not facts:
        raise ScoreError("no facts were given; pass at least one")
    found = []
    for one in facts:
        request = one.request if isinstance(one, EvalCase) else one
        answer = one.target_true if isinstance(one, EvalCase) and one.target_true else request.target
        found.append(_statement(model, request, one.id or request.text, answer))
    ids = [one.id for one in found]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ScoreError(f"{len(twice)} ids of facts repeat, for example {twice[0]!r}; give each its own")
    return found


def _statement(model: EditableModel, request: EditRequest, name: str, answer: str) -> Statement:
    """Ids of a fact; without an answer, that which the model gives."""
    tokenizer, before = model.tokenizer, model.before(request.text)
    text = before + request.text
    ids = encode(tokenizer, text)
    start = len(before) + request.prompt.index(SLOT)
    end = start + len(request.subject)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    own = [at for at, (a, b) in enumerate(offsets) if a < end and b > start]
    if not own:
        raise RequestError(f"the subject {request.subject!r} has no token in {text!r}; check its characters")
    if answer:
        target = encode_target(tokenizer, answer, text)
    else:
        batch = Batch(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)).to(model.device)
        last = Site(model.n_layers - 1, "hidden")
        target = [int(logits(model, capture(model, batch, [last])[last][:, -1])[0].argmax())]
    model.require_room(text, len(ids) + len(target))
    shown = answer or str(tokenizer.decode(target)).strip()
    return Statement(name, request, tuple(ids), own[0], own[-1], tuple(target), shown, not answer)


def traceable(
    model: EditableModel, facts: Sequence[Statement], most: int | None
) -> tuple[list[Statement], dict[str, str]]:
    """The facts that are traced, and why others are not; those behind the last one needed are in neither."""
    pairs = [(one.request.text, one.text) for one in facts]
    kept: list[Statement] = []
    left_out: dict[str, str] = {}
    step = len(facts) if most is None else max(2 * most, 16)
    for start in range(0, len(facts), step):
        answers = ask(model, pairs[start : start + step])
        right = accuracy(answers.hits, answers.mask).bool().tolist()
        for one, said in zip(facts[start : start + step], right, strict=True):
            if most is not None and len(kept) == most:
                return kept, left_out
            if one.first == 0:
                left_out[one.id] = AT_START
            elif not (said or one.own):
                left_out[one.id] = NOT_SAID
            else:
                kept.append(one)
    if kept:
        return kept, left_out
    reasons = "; ".join(f"{list(left_out.values()).count(why)}: {why}" for why in {*left_out.values()})
    raise ScoreError(
        f"none of {len(facts)} facts can be traced in {model.name} ({reasons}); give facts that it knows, in "
        "prompts with words before the subject"
    )


def logits(model: EditableModel, hidden: Tensor) -> Float[Tensor, "..."]:
    """Logits in float32 from the last layer's output."""
    return logits_of(model, final_states(model, hidden)).float()
