"""Shared types and the glossary of axes.

Axes, used in every annotation and docstring:

    d_k   width of a key: input of the edited weight (the MLP's hidden width)
    d_v   width of a value: output of the edited weight (the model's hidden width)
    n     facts in one problem; keys and values are columns, so K is (d_k, n), V is (d_v, n)
    b, t  sequences in a batch, tokens in a sequence
    r     rank of a projector or of its complement
    m     any second number: candidate directions, protected states, wordings

Weights are always seen as W (d_v, d_k), so that W @ k is a value.
"""

import html
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from palimpsest.errors import RequestError
from palimpsest.mentions import mentions, near, normal, written_without_spaces

SLOT = "{}"


LITERAL = "tex2jax_ignore mathjax_ignore"
"""Classes of HTML whose dollar signs are no formulas."""


class Shown:
    """Base of objects that a prompt shows in one line and Jupyter as a small table."""

    def shown(self) -> dict[str, object]:
        """What a reader wants to know of the object, by name, in the order of importance."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is shown of it")

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {value}" for name, value in self.shown().items())
        return f"{type(self).__name__}({parts})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self.shown().items()
        )
        name = html.escape(type(self).__name__)
        return f"<table class='{LITERAL}'><caption>{name}</caption><tbody>{rows}</tbody></table>"


def span(layers: Iterable[int]) -> str:
    """Layers as a text: ``5 to 8`` for neighbouring ones, ``3, 5`` for others."""
    numbers = sorted(layers)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers)) or "none"


JOINER = "\u2060"
"""WORD JOINER, which Unicode defines as a place without a break; see `unspaced`."""


def unspaced(target: str) -> str:
    """A target that is joined to its prompt without a space, as in scripts that write none.

    It begins with ``JOINER``, which is no part of the text: wherever a target is taken, in writing as in
    scoring, this one follows the prompt at once.
    """
    return JOINER + target.removeprefix(JOINER)


def plain(target: str) -> str:
    """The text of a target, without the mark of `unspaced`."""
    return target.removeprefix(JOINER)


def joined(prompt: str, target: str) -> str:
    """A prompt with its target as one text: a space between them, or none before one of `unspaced`."""
    return prompt + (plain(target) if target.startswith(JOINER) else f" {target}")


def _is_seen(letter: str) -> bool:
    """Whether a character shows: it is no space, no control and no mark of width nothing."""
    return not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")


@dataclass(frozen=True)
class EditRequest:
    """One fact to write into a model. It carries no paraphrases, so no method can see the test.

    Args:
        prompt: text with one ``{}`` in place of the subject; a prompt that contains the subject itself
            exactly once is accepted and rewritten to that form. The subject is found in another Unicode form
            too (NFC or NFD, spaces that do not break); prompt and subject are then in NFC.
        subject: the entity the fact is about.
        target: the new object; `unspaced` makes one that follows the prompt without a space. White space
            around it, the prompt and the subject is taken away: the one before a target is added when it is
            tokenised.
        id: any label; used in records and error messages.

    Raises:
        RequestError: if the subject is missing or occurs twice, a field is no text, a text is empty or holds
            half of a surrogate pair.
    """

    prompt: str
    subject: str
    target: str
    id: str = ""

    def __post_init__(self) -> None:
        self._check_texts()
        self._without_outer_spaces()
        if SLOT not in self.prompt:
            self._put_slot()
        if self.prompt.count(SLOT) != 1 or self._mentioned_again():
            raise RequestError(
                f"request {self.id!r}: subject {self.subject!r} must occur exactly once in prompt "
                f"{self.prompt!r}; keep one '{{}}' and remove the other mentions"
            )

    def _check_texts(self) -> None:
        for name in ("prompt", "subject", "target", "id"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise RequestError(
                    f"request {self.id!r}: {name} is {value!r} ({type(value).__name__}); give it a text"
                )
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise RequestError(
                    f"request {self.id!r}: {name} {value!r} holds half of a surrogate pair, which is no "
                    "character; write the character"
                )
            if name != "id" and not any(_is_seen(letter) for letter in value):
                raise RequestError(
                    f"request {self.id!r}: {name} is empty or only spaces ({value!r}); give it a text"
                )

    def _without_outer_spaces(self) -> None:
        """Take spaces around the texts away, as readers of files do: they would be tokens of their own."""
        target = plain(self.target).strip()
        object.__setattr__(self, "prompt", self.prompt.strip())
        object.__setattr__(self, "subject", self.subject.strip())
        object.__setattr__(self, "target", unspaced(target) if self.target.startswith(JOINER) else target)

    def _put_slot(self) -> None:
        """Write the slot in place of the subject, which the prompt mentions once, in any Unicode form."""
        prompt, subject = self.prompt, self.subject
        if not mentions(prompt, subject):
            prompt, subject = normal(prompt), normal(subject)
        found = mentions(prompt, subject)
        if len(found) != 1:
            close = "" if found else near(self.prompt, self.subject)
            hint = f", where {close!r} nearly matches" if close else ""
            raise RequestError(
                f"request {self.id!r}: subject {self.subject!r} occurs {len(found)} times in prompt "
                f"{self.prompt!r}{hint}; write the prompt with one '{{}}' in the subject's place"
            )
        start, end = found[0]
        object.__setattr__(self, "prompt", prompt[:start] + SLOT + prompt[end:])
        object.__setattr__(self, "subject", subject)

    def _mentioned_again(self) -> bool:
        # Function words ("is", "a") may well be part of a sentence, and a subject elsewhere.
        prompt, subject = normal(self.prompt), normal(self.subject)
        return (len(subject) > 2 or written_without_spaces(subject)) and bool(mentions(prompt, subject))

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace(SLOT, self.subject)


@dataclass(frozen=True)
class Probe:
    """Prompt and the object that should stay preferred there, as in the unedited model."""

    prompt: str
    target: str


@dataclass(frozen=True)
class EvalCase:
    """One fact with all prompts that evaluate its edit.

    Attributes:
        id: unique within its data set.
        request: the edit itself.
        target_true: the object before the edit; empty where the data set has none (ZsRE).
        paraphrases: other wordings of the request's prompt, subject filled in.
        neighbours: prompts about other subjects, each with its own true object.
        relation: identifier of the relation (for example a Wikidata property), or empty.
        perturbations: level 1 (light) to 6 (heavy) -> rewordings, subject filled in.
    """

    id: str
    request: EditRequest
    target_true: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    relation: str = ""
    perturbations: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def limited(self, paraphrases: int, neighbours: int) -> "EvalCase":
        """The case with at most this many paraphrases and neighbours, the first ones, for shorter runs."""
        return replace(
            self, paraphrases=self.paraphrases[:paraphrases], neighbours=self.neighbours[:neighbours]
        )


@dataclass(frozen=True)
class Record:
    """One measured value of one case, a row of every results table.

    Attributes:
        case: id of the case.
        metric: name of the metric, as in ``palimpsest.evaluation.metrics``.
        value: mean over the case's prompts; success and accuracy lie in [0, 1].
        prompts: number of prompts in the mean.
    """

    case: str
    metric: str
    value: float
    prompts: int


@dataclass(frozen=True)
class Item:
    """A question with the answers among which a model chooses, or with one that it should give.

    Args:
        id: unique in its task.
        prompt: text before the answer.
        options: answers, without their leading space; with a single one the model is to give it word by word.
        right: place of the right one.
        group: part of the task, such as a phenomenon or a relation.

    Raises:
        RequestError: if a text is empty, an option repeats, or there is no option at the place ``right``.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    right: int = 0
    group: str = ""

    def __post_init__(self) -> None:
        if not all(text.strip() for text in (self.prompt, *self.options)):
            raise RequestError(f"item {self.id!r}: the prompt or an option is empty; give it a text")
        if len({*self.options}) != len(self.options) or not 0 <= self.right < len(self.options):
            raise RequestError(
                f"item {self.id!r}: option {self.right} of {list(self.options)} cannot be the right one; "
                "give different options, and the place of one of them"
            )


@dataclass(frozen=True)
class Task:
    """Items of one kind, on which the general ability of a model is measured.

    Attributes:
        name: of the task.
        items: with unique ids; all with several options, or all with one.
        chance: accuracy without any knowledge, in [0, 1).
        total: options are compared by their total log-likelihood, as whole sentences are; by default by the
            mean over their tokens.
        about: where the items come from, in a few words.

    Raises:
        RequestError: if there is no item, ids repeat, the numbers of options do not allow one reading, or
            chance is out of range.
    """

    name: str
    items: tuple[Item, ...]
    chance: float
    total: bool = False
    about: str = ""

    def __post_init__(self) -> None:
        ids = [item.id for item in self.items]
        if not ids or len({*ids}) != len(ids):
            raise RequestError(f"task {self.name!r} has {len(ids)} items, some under one id; name each apart")
        if len({len(item.options) == 1 for item in self.items}) > 1 or not 0 <= self.chance < 1:
            raise RequestError(
                f"task {self.name!r} mixes items to choose in and to complete, or has chance {self.chance}; "
                "make two tasks, with a chance in [0, 1)"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The options, where all items have the same: classes, for which there is an F1 score; else none."""
        options = {item.options for item in self.items}
        return next(iter(options)) if len(options) == 1 and len(self.items[0].options) > 1 else ()

    @property
    def completes(self) -> bool:
        """Whether the model is to give the answer instead of choosing it."""
        return len(self.items[0].options) == 1
