"""What trained editors learn from: cases of several kinds, and the losses of one draw of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.network.activations import run_body
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode, encode_target, pad
from palimpsest.network.wraps import changed
from palimpsest.types import EvalCase


@dataclass(frozen=True)
class Kind:
    """Cases of one kind of request.

    Attributes:
        name: of the kind, for curves and messages.
        instruction: text before a fact while its gradient is taken; empty for MEND and SERAC.
        training: to learn from, at least one.
        validation: to choose among checkpoints by, at least one.

    Raises:
        DataError: if a part is empty, or no case has a neighbour.
    """

    name: str
    instruction: str
    training: tuple[EvalCase, ...]
    validation: tuple[EvalCase, ...]

    def __post_init__(self) -> None:
        for part in ("training", "validation"):
            cases: tuple[EvalCase, ...] = getattr(self, part)
            if not any(case.neighbours for case in cases):
                raise DataError(
                    f"{self.name}: none of the {len(cases)} {part} cases has a prompt about another subject, "
                    "by which is seen what an edit should leave alone; give a file whose cases have some"
                )


@dataclass(frozen=True)
class Losses:
    """Losses of one draw with an update in force.

    Attributes:
        edit: NLL of the new objects, nats a token, mean over own prompts and rewordings.
        local: KL(unedited ‖ edited) of the next token behind prompts about others, nats, mean.
        answers: NLL of each answer, nats a token, in the order of `Draw.answers`.
    """

    edit: Tensor
    local: Tensor
    answers: Tensor


class Draw:
    """Cases with one rewording and one neighbour each, as one padded batch.

    Args:
        model: unedited; it stays so.
        cases: n facts.
        turn: number of the draw; which rewording and neighbour of a case are taken turns with it.
        beside_true: also read the true objects, for `more_likely`.
        read: (case, prompt) -> ids of the prompt once the case is edited; None for those of the prompt alone.

    Attributes:
        answers: (index of the case, 0 for its own prompt or 1 for a rewording, whether the object is the new
            one) of each answer.
    """

    def __init__(
        self,
        model: EditableModel,
        cases: Sequence[EvalCase],
        turn: int,
        beside_true: bool = False,
        read: Callable[[EvalCase, str], list[int]] | None = None,
    ) -> None:
        self.model = model
        read = read or (lambda _, prompt: encode(model.tokenizer, prompt))
        self.answers: list[tuple[int, int, bool]] = []
        rows: list[list[int]] = []
        labels: list[tuple[int, int, int, float]] = []
        for index, case in enumerate(cases):
            objects = [case.request.target] + [case.target_true] * (beside_true and bool(case.target_true))
            for wording, prompt in enumerate(_wordings(case, turn)):
                for target in objects:
                    ids = read(case, prompt)
                    tokens = encode_target(model.tokenizer, target, prompt)
                    labels += [
                        (len(rows), len(ids) - 1 + i, token, 1 / len(tokens))
                        for i, token in enumerate(tokens)
                    ]
                    self.answers.append((index, wording, target is objects[0]))
                    rows.append(ids + tokens[:-1])
        beside = [(one, one.neighbours[turn % len(one.neighbours)].prompt) for one in cases if one.neighbours]
        others = [read(*pair) for pair in beside]
        self._batch = pad(model.tokenizer, rows + others).to(model.device)
        row, position, token_, weight = zip(*labels, strict=True)
        self._row, self._position, self._token = (
            torch.tensor(numbers, device=model.device) for numbers in (row, position, token_)
        )
        self._weight = torch.tensor(weight, device=model.device)
        new = torch.tensor([is_new for _, _, is_new in self.answers], device=model.device)
        self._share = new / new.sum()
        self._others = torch.arange(len(rows), len(rows) + len(others), device=model.device)
        self._ends = torch.tensor([len(ids) - 1 for ids in others], device=model.device, dtype=torch.long)
        self._before = self._unedited([encode(model.tokenizer, prompt) for _, prompt in beside])

    def losses(self, updates: Mapping[int, Float[Tensor, "d_v d_k"]]) -> Losses:
        """Losses with updates of weights in force, differentiable in them."""
        return self.losses_in(_added(self.model, updates))

    def losses_in(self, edited: AbstractContextManager[None]) -> Losses:
        """Losses inside a block in which the edit is in force, differentiable in what it adds."""
        with edited:
            hidden = run_body(self.model, self._batch, use_cache=False).last_hidden_state
        log_p = self._log_p(hidden[self._row, self._position])
        picked = -log_p.gather(1, self._token[:, None])[:, 0] * self._weight
        answers = picked.new_zeros(len(self.answers)).index_add(0, self._row, picked)
        edit = (answers * self._share).sum()
        if not len(self._others):
            return Losses(edit, edit.new_zeros(()), answers)
        after = self._log_p(hidden[self._others, self._ends])
        return Losses(edit, (self._before.exp() * (self._before - after)).sum(1).mean(), answers)

    def more_likely(self, losses: Losses, wording: int) -> float:
        """Share of cases whose new object is likelier than the true one; NaN where no case has both.

        Args:
            losses: of this draw, which must have been made with ``beside_true``.
            wording: 0 for own prompts, 1 for rewordings.
        """
        found = dict(zip(self.answers, losses.answers.tolist(), strict=True))
        pairs = [
            (value, found[index, wording, False])
            for (index, at, is_new), value in found.items()
            if at == wording and is_new and (index, wording, False) in found
        ]
        return sum(new < true for new, true in pairs) / len(pairs) if pairs else float("nan")

    def _unedited(self, others: Sequence[Sequence[int]]) -> Tensor:
        if not others:
            return torch.empty(0)
        with torch.no_grad():
            batch = pad(self.model.tokenizer, others).to(self.model.device)
            hidden = run_body(self.model, batch, use_cache=False).last_hidden_state
            ends = torch.tensor([len(ids) - 1 for ids in others], device=self.model.device)
            return self._log_p(hidden[torch.arange(len(others), device=self.model.device), ends])

    def _log_p(self, hidden: Tensor) -> Tensor:
        logits = logits_of(self.model, hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)


def _wordings(case: EvalCase, turn: int) -> list[str]:
    """A case's own prompt, and one rewording if it has any."""
    others = case.paraphrases
    return [case.request.text] + ([others[turn % len(others)]] if others else [])


@contextmanager
def _added(model: EditableModel, updates: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside the block the maps of the layers return W k + Δ k."""
    with ExitStack() as stack:
        for layer, delta in updates.items():
            part = delta.T  # bound as a default, for each layer its own

            def add(keys: Tensor, outputs: Tensor, part: Tensor = part) -> Tensor:
                return outputs + (keys.to(part) @ part).to(outputs)

            stack.enter_context(changed(model, layer, "map", add))
        yield
