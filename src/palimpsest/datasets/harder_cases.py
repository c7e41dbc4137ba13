"""Cases that ask for more than the edited fact: questions of several hops, ripple tests, and long texts.

Sources: Zhong et al. 2023 (MQuAKE), Cohen et al. 2024 (RippleEdits), Rosati et al. 2024 (LEME).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from palimpsest.errors import RequestError
from palimpsest.types import EditRequest, Probe, joined

CRITERIA = (
    "logical_generalisation",
    "compositionality_1",
    "compositionality_2",
    "subject_aliasing",
    "preservation",
    "relation_specificity",
)
"""The six criteria of RippleEdits. Its files call preservation ``Forgetfulness``."""

REASONING = "reasoning"
"""Criterion of KnowEdit, which does not tell the two kinds of composition apart."""

Triple = tuple[str, str, str]
"""Subject, relation and object, by name."""


@dataclass(frozen=True)
class Query:
    """A prompt and the answers to it that are right.

    Attributes:
        prompt: a question, or a statement without its end.
        answers: groups of texts; of each group one has to be in the answer, its first being the usual name.

    Raises:
        RequestError: if the prompt is blank, there is no group, or a group has no text or a blank one.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        texts = [text for group in self.answers for text in group]
        if not all(text.strip() for text in (self.prompt, *texts)) or not all((*self.answers, self.answers)):
            raise RequestError(
                f"query {self.prompt!r} has the answers {self.answers!r}; give it a text and one or more "
                "groups of accepted texts, none of them blank"
            )


@dataclass(frozen=True)
class Hop:
    """One fact of a chain, as a question and as a statement to complete.

    Attributes:
        question: about this fact alone.
        cloze: the same as a statement that ends before the answer.
        answer: the object.
        aliases: other accepted names of it.
    """

    question: str
    cloze: str
    answer: str
    aliases: tuple[str, ...] = ()

    @property
    def query(self) -> Query:
        """The question with its accepted answers."""
        return Query(self.question, ((self.answer, *self.aliases),))


@dataclass(frozen=True)
class HopEdit:
    """An edit of one hop.

    Attributes:
        request: the edit.
        target_true: the object before it.
        question: that asks for the edited fact, subject filled in.
        relation: identifier of the relation, for example a Wikidata property.
    """

    request: EditRequest
    target_true: str
    question: str
    relation: str = ""

    @property
    def query(self) -> Query:
        """The statement that was edited, with the new object."""
        return Query(self.request.text, ((self.request.target,),))


@dataclass(frozen=True)
class MultiHopCase:
    """Edits of facts in a chain, and questions whose answer changes with them.

    Attributes:
        id: unique within its data set.
        edits: of one or more facts of the chain.
        questions: wordings of one question about the end of the chain; MQuAKE has three.
        answer: before the edits.
        aliases: other accepted names of it.
        new_answer: after the edits.
        new_aliases: other accepted names of it.
        hops: the facts of the chain before the edits, from its head.
        new_hops: after the edits.
        triples: the facts of ``hops`` by name, if known.
        new_triples: those of ``new_hops``.
        extended: further answers accepted before the edits (MQuAKE-T).

    Raises:
        RequestError: if there is no edit, question or hop, or two edits give a fact an object.
    """

    id: str
    edits: tuple[HopEdit, ...]
    questions: tuple[str, ...]
    answer: str
    new_answer: str
    hops: tuple[Hop, ...]
    new_hops: tuple[Hop, ...]
    aliases: tuple[str, ...] = ()
    new_aliases: tuple[str, ...] = ()
    triples: tuple[Triple, ...] = ()
    new_triples: tuple[Triple, ...] = ()
    extended: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("edits", "questions", "hops", "new_hops")}
        lacking = [name for name, part in parts.items() if not part]
        if lacking:
            raise RequestError(
                f"multi-hop case {self.id!r} has no {' and no '.join(lacking)}; give the facts of its chain "
                "before and after the edits, the edits, and one or more questions"
            )
        seen: dict[tuple[str, str], str] = {}
        for edit in self.edits:
            request = edit.request
            for fact in {(request.subject, edit.relation or request.prompt), (request.text, "")}:
                if fact in seen:
                    raise RequestError(
                        f"multi-hop case {self.id!r} edits the answer of {request.text!r} twice, to "
                        f"{seen[fact]!r} and to {request.target!r}; keep one edit of it"
                    )
                seen[fact] = request.target

    @property
    def before(self) -> tuple[Query, ...]:
        """The questions with the answers accepted before the edits."""
        return tuple(Query(q, ((self.answer, *self.aliases, *self.extended),)) for q in self.questions)

    @property
    def after(self) -> tuple[Query, ...]:
        """The questions with the answers accepted after the edits."""
        return tuple(Query(q, ((self.new_answer, *self.new_aliases),)) for q in self.questions)


@dataclass(frozen=True)
class RippleTest:
    """Queries about what follows from an edit, or should not.

    Attributes:
        queries: asked after the edit.
        conditions: asked before it; the test counts only for models that answer all of them.
        every: all queries have to be answered rightly; by default one of them.

    Raises:
        RequestError: if there is no query.
    """

    queries: tuple[Query, ...]
    conditions: tuple[Query, ...] = ()
    every: bool = False

    def __post_init__(self) -> None:
        if not self.queries:
            raise RequestError("a ripple test has no query; give it one or more")


@dataclass(frozen=True)
class RippleCase:
    """One edit with the tests of each criterion.

    Attributes:
        id: unique within its data set.
        request: the edit.
        target_true: the object before the edit; empty if unknown, as in files of recent facts.
        tests: criterion (`CRITERIA` or `REASONING`) -> tests.
        kind: part of the benchmark, for example ``popular`` or ``wiki_recent``.
        relation: name of the relation, or empty.
        paraphrases: other wordings of the edited statement.

    Raises:
        RequestError: if a criterion is unknown.
    """

    id: str
    request: EditRequest
    target_true: str
    tests: Mapping[str, tuple[RippleTest, ...]]
    kind: str = ""
    relation: str = ""
    paraphrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tests) - {*CRITERIA, REASONING})
        if unknown:
            raise RequestError(
                f"ripple case {self.id!r} has tests of {unknown[0]!r}; choose from {', '.join(CRITERIA)} or "
                f"{REASONING}"
            )

    @property
    def query(self) -> Query:
        """The edited statement with its new object."""
        return Query(self.request.text, ((self.request.target,),))


@dataclass(frozen=True)
class Passage:
    """A text that a model is to write about one entity.

    Attributes:
        entity: what it is about.
        prompt: the instruction.
        required: property -> objects that were true before the edit, each of which belongs into the text.
    """

    entity: str
    prompt: str
    required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement to hold against a passage.

    Attributes:
        passage: entity of the passage.
        text: the statement.
        supported: whether the text should support it; otherwise it should not, or should contradict it.
    """

    passage: str
    text: str
    supported: bool


@dataclass(frozen=True)
class LongFormCase:
    """One edit with the texts that are to agree with it, with each other and with all other facts.

    Attributes:
        id: unique within its data set.
        request: the edit.
        target_true: the object before the edit.
        passage: about the subject of the edit.
        related: about entities whose facts depend on the subject.
        relation: identifier of the relation, or empty.
        edited: name of the edited relation among ``passage.required``, or empty if it is not there.
        paraphrases: other wordings of the edited statement.
        neighbours: prompts about other subjects, with their own true objects.
    """

    id: str
    request: EditRequest
    target_true: str
    passage: Passage
    related: tuple[Passage, ...]
    relation: str = ""
    edited: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The checks of LEME: edit consistency of the passages, then factual consistency.

        The new fact should be supported, and the old one not; of a related passage, the new one only if the
        subject is among the objects that it requires. A required fact of the subject that is the edited one,
        by its property or by its object, is left out: it is not true any more.
        """
        request, subject = self.request, self.passage.entity
        found = [Claim(subject, joined(request.text, request.target), True)]
        for passage in (self.passage, *self.related):
            if passage is not self.passage and any(subject in held for held in passage.required.values()):
                found.append(Claim(passage.entity, joined(request.text, request.target), True))
            if self.target_true:
                found.append(Claim(passage.entity, joined(request.text, self.target_true), False))
        for passage, name, value in self._kept():
            found.append(Claim(passage.entity, f"{passage.entity}, {name}: {value}", True))
        return tuple(found)

    @property
    def still_true(self) -> tuple[tuple[Passage, str], ...]:
        """Passages with the objects that each should name and that the edit leaves true."""
        return tuple((passage, value) for passage, _, value in self._kept())

    def _kept(self) -> Iterator[tuple[Passage, str, str]]:
        """Required facts of all passages, without what the edit changes: passage, property and object."""
        for passage in (self.passage, *self.related):
            for name, values in passage.required.items():
                for value in values:
                    stale = name == self.edited or value == self.target_true
                    if passage is not self.passage or not stale:
                        yield passage, name, value
