"""Facts in any format of the field, recognised by the fields of each record.

    this project's    prompt, subject, target; id, target_true, paraphrases, neighbours
    CounterFact       requested_rewrite.{prompt, subject, target_new.str, target_true.str}
    ZsRE (MEND)       src, subject, alt, answers, rephrase, loc, loc_ans
    EasyEdit          prompt, subject, target_new, ground_truth, rephrase_prompt, locality_prompt,
                      locality_ground_truth; or its ``locality`` with lists of prompts and answers
    KnowEdit          as EasyEdit, with ``locality`` by kind, and answers as lists of aliases

Only prompt, subject and new object are required; paraphrases and neighbours are read where a record has them.
Benchmarks with harder questions are named and left to `palimpsest.datasets.load_any_set`.
``space: false`` joins the objects of a record to their prompts without a space.

Sources: the released files of Meng et al. 2022, Mitchell et al. 2022, Wang et al. 2023 (EasyEdit) and Zhang
et al. 2024 (KnowEdit).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palimpsest.datasets.files import Loaded, load_cases, member, refusal, text_member
from palimpsest.datasets.set_formats import more_than_facts
from palimpsest.datasets.zsre import LOCALITY_HEAD
from palimpsest.errors import DataError
from palimpsest.files import special
from palimpsest.types import EditRequest, EvalCase, Probe, unspaced

FALSE = ("false", "no", "0")
"""What a CSV file may write for ``space: false``."""


@dataclass(frozen=True)
class Form:
    """Where a format keeps what a case is made of; dots separate nested fields.

    Attributes:
        name: of the format.
        tells: a record that has all of these fields is of this format.
        prompt, subject, target: required fields.
        true: field of the true object: a text, or a list of accepted ones of which the first is taken.
        label: field of the id; the filled prompt serves if there is none.
        paraphrases: fields of other wordings: a text, or a list of texts.
        neighbours: pairs of fields: a prompt, or a list of prompts, and the object or objects after it.
    """

    name: str
    tells: tuple[str, ...]
    prompt: str
    subject: str
    target: str
    true: str
    label: str = "id"
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()


_EASYEDIT = Form(
    name="EasyEdit or KnowEdit",
    tells=("prompt", "target_new"),
    prompt="prompt",
    subject="subject",
    target="target_new",
    true="ground_truth",
    label="case_id",
    paraphrases=("rephrase_prompt", "rephrase"),
    neighbours=(("locality_prompt", "locality_ground_truth"),),
)

FORMS = (
    Form(
        name="CounterFact",
        tells=("requested_rewrite",),
        prompt="requested_rewrite.prompt",
        subject="requested_rewrite.subject",
        target="requested_rewrite.target_new.str",
        true="requested_rewrite.target_true.str",
        label="case_id",
        paraphrases=("paraphrase_prompts",),
        neighbours=(("neighborhood_prompts", "requested_rewrite.target_true.str"),),
    ),
    Form(
        name="ZsRE in MEND's form",
        tells=("src",),
        prompt="src",
        subject="subject",
        target="alt",
        true="answers",
        label="case_id",
        paraphrases=("rephrase",),
        neighbours=(("loc", "loc_ans"),),
    ),
    _EASYEDIT,
    Form(
        name="this project's",
        tells=("prompt",),
        prompt="prompt",
        subject="subject",
        target="target",
        true="target_true",
        paraphrases=("paraphrases",),
        neighbours=(("neighbours.prompt", "neighbours.target"),),
    ),
)


def load_cases_of(path: str | Path, strict: bool = True) -> Loaded:
    """Read facts from a file of any format that `palimpsest.datasets.reading` and FORMS know.

    Args:
        path: the file.
        strict: raise an error for malformed records; otherwise they are listed in ``Loaded.rejected``.

    Raises:
        DataError: if the file cannot be read or holds no fact, or (strict) if records are malformed or repeat
            an id or a prompt with its subject; the message lists them.
    """
    asked: set[str] = set()
    read_as: set[str] = set()

    def parse(record: Mapping[str, Any], _: int) -> EvalCase:
        try:
            read_as.add(form_of(record).name)
            case = parse_case(record)
        except RecursionError:
            raise DataError("its brackets are nested too deeply") from None
        if case.request.text in asked:
            raise DataError(f"{case.request.text!r} is asked a second time; keep one target for it")
        asked.add(case.request.text)
        return case

    if kind := special(path):
        raise DataError(f"{path}: is {kind} and no file; write what it gives to a file, and read that")
    loaded = load_cases(path, parse, strict=False)
    if loaded.rejected and strict:
        form = " and ".join(sorted(read_as))
        raise refusal(path, loaded.rejected, "correct the file; nothing was edited", form)
    if not loaded.cases:
        raise DataError(
            f"{path}: holds no fact; write one JSON object with prompt, subject and target per line"
        )
    return loaded


def form_of(record: Mapping[str, Any]) -> Form:
    """The format of a record.

    Raises:
        DataError: if it is of none, or of a benchmark with harder questions; the message names that, or the
            fields it has and those it would need.
    """
    if harder := more_than_facts(record):
        raise DataError(
            f"a record of {harder}, which is more than one plain fact; read the file with "
            "palimpsest.datasets.load_any_set"
        )
    for form in FORMS:
        if all(name in record for name in form.tells):
            return form
    known = "; ".join(f"{', '.join(form.tells)} ({form.name})" for form in FORMS)
    raise DataError(
        f"a record of no known format: it has {', '.join(map(repr, list(record)[:6])) or 'no fields'}; "
        f"a format is told by {known}"
    )


def parse_case(record: Mapping[str, Any]) -> EvalCase:
    """The case of a record of any format, with an id.

    Raises:
        DataError, RequestError: if the record is malformed, with the field and the reason.
    """
    form = form_of(record)
    label = form.label if form.label in record else "id"
    name = record.get(label, "")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"field {label!r} must be a text or a whole number, not {name!r}")
    joined = _joined(record)
    prompt, subject, target = (
        text_member(record, field) for field in (form.prompt, form.subject, form.target)
    )
    request = EditRequest(prompt, subject, joined(target), str(name).strip())
    request = request if request.id else replace(request, id=request.text)
    true = [joined(text) for text in _texts(record, form.true)][:1]
    if true == [request.target]:
        raise DataError(f"fields {form.target!r} and {form.true!r} are the same, {target!r}")
    return EvalCase(
        id=request.id,
        request=request,
        target_true="".join(true),
        paraphrases=tuple(text for field in form.paraphrases for text in _texts(record, field)),
        neighbours=tuple(
            Probe(_question(prompt), joined(answer)) for prompt, answer in _neighbours(record, form)
        ),
        relation=str(_at(record, "requested_rewrite.relation_id") or record.get("relation_id") or ""),
    )


def _joined(record: Mapping[str, Any]) -> Any:
    """What makes an object of a record a target: joined with a space, or, where asked, without."""
    space = record.get("space", True)
    if isinstance(space, str) and space.strip().casefold() in FALSE:
        space = False
    if space not in (True, False, "true", "yes", "1"):
        raise DataError(f"field 'space' must be true or false, not {space!r}")
    return str if space else unspaced


def _neighbours(record: Mapping[str, Any], form: Form) -> Iterator[tuple[str, str]]:
    """Prompts about other subjects with their objects; those without an object are left out."""
    for at, answer in form.neighbours:
        yield from _pairs(_at(record, at), _at(record, answer), at)
    held = record.get("neighbours" if form.tells == ("prompt",) else "locality")
    yield from _nested(held)


def _nested(held: Any) -> Iterator[tuple[str, str]]:
    """Pairs of ``locality``, at any depth: mappings with a prompt and its answer, in lists and by kind."""
    if isinstance(held, Mapping):
        answer = next((held[name] for name in ("ground_truth", "target", "answer") if name in held), None)
        if "prompt" in held and answer is not None:
            yield from _pairs(held["prompt"], answer, "locality")
        else:
            for inner in held.values():
                yield from _nested(inner)
    elif isinstance(held, list):
        for inner in held:
            yield from _nested(inner)


def _pairs(prompts: Any, answers: Any, field: str) -> Iterator[tuple[str, str]]:
    if prompts is None or answers is None:
        return
    if isinstance(prompts, str):
        prompts, answers = [prompts], [answers]
    elif isinstance(answers, str) and isinstance(prompts, list):
        answers = [answers] * len(prompts)
    if not isinstance(prompts, list) or not isinstance(answers, list):
        raise DataError(
            f"field {field!r} must be a text or a list of texts, not {prompts!r} with answers {answers!r}"
        )
    if len(prompts) != len(answers):
        raise DataError(f"field {field!r} has {len(prompts)} prompts and {len(answers)} answers")
    for prompt, answer in zip(prompts, answers, strict=True):
        text = _first(answer)
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"field {field!r} must be a list of texts, not {prompts!r}")
        if text:
            yield prompt.strip(), text


def _first(answer: Any) -> str:
    """The first text of an answer: a text, a list of aliases, or a list of such lists."""
    while isinstance(answer, list) and answer:
        answer = answer[0]
    return answer.strip() if isinstance(answer, str) else ""


def _texts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Texts of an optional field: one, or a list.

    Raises:
        DataError: if it holds something else.
    """
    value = _at(record, field)
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"field {field!r} must be a text or a list of texts, not {value!r}")
    return tuple(text.strip() for text in texts if text.strip())


def _at(record: Mapping[str, Any], field: str) -> Any:
    """An optional field, None if it is missing."""
    try:
        return member(record, field)
    except DataError:
        return None


def _question(prompt: str) -> str:
    """A prompt; MEND's mark of a question from Natural Questions is replaced by a question mark."""
    if not prompt.startswith(LOCALITY_HEAD):
        return prompt
    return prompt.removeprefix(LOCALITY_HEAD).removesuffix("?") + "?"
