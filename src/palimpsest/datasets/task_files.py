"""The papers' tasks of general ability, GLUE and MMLU, read from a folder of JSON or JSON-lines files.

The records are carried by no file of this project; a folder holds them, one file a task. Prompts are those of
the evaluation code that MEMIT's descendants share (``glue_eval`` in the release of AlphaEdit), in which

    the first ten records are kept for examples, and the next hundred are asked without any;
    an answer is right if a greedy continuation holds its word, or, in a second reading, if it is more
    probable than the others by the mean over its tokens;
    F1 is scikit-learn's, weighted by class, and a continuation without an answer is a class of its own.

Two things differ here. In GLUE's RTE the label 0 means entailment, which the released code reads as "False":
its RTE scores are those of the reversed answers (0.28 and 0.23 are printed for unedited models). And its
prompt of CoLA ends with a space, which splits the answer's first token; it is left out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.datasets.files import given_place, load_records, member
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.types import Item, Task

ENDINGS = (".jsonl", ".json")
EXAMPLES = 10
"""Records at the head of a file that are never asked: examples come from them."""
ITEMS = 100
"""Records asked, by default, as in the released code."""


@dataclass(frozen=True)
class Form:
    """Form of one task's records and prompts.

    Attributes:
        files: names of its file without ending; before any of them may stand ``glue_``.
        fields: texts of a record that the prompt uses.
        prompt: with the fields in braces.
        label: field that holds the answer.
        answers: its values -> the words that say so, in the order of the options.
        choices: field with a list of texts that the prompt uses as A, B and so on.
        group: field that names a part of the task.
    """

    files: tuple[str, ...]
    fields: tuple[str, ...]
    prompt: str
    label: str
    answers: Mapping[Any, str]
    choices: str = ""
    group: str = ""


_TRUE_FALSE = {"entailment": "True", "not_entailment": "False"}
FORMS: dict[str, Form] = {
    "sst": Form(
        ("sst2", "sst"),
        ("sentence",),
        "Review :{sentence}\nSentiment :",
        "label",
        {0: "negative", 1: "positive"},
    ),
    "mrpc": Form(
        ("mrpc",),
        ("sentence1", "sentence2"),
        "Are the sentences paraphrases of each other.\nSentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Answer:",
        "label",
        {0: "No", 1: "Yes"},
    ),
    "cola": Form(
        ("cola",),
        ("sentence",),
        "Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer:",
        "label",
        {0: "No", 1: "Yes"},
    ),
    "rte": Form(
        ("rte",),
        ("sentence1", "sentence2"),
        "{sentence1}\nquestion: {sentence2} True or False?\nanswer:",
        "label",
        {0: "True", 1: "False"},
    ),
    "nli": Form(
        ("nli",),
        ("sentence1", "sentence2"),
        "{sentence1} entails the {sentence2} True or False? Answer:",
        "label",
        _TRUE_FALSE,
    ),
    "mmlu": Form(
        ("mmlu",),
        ("question",),
        "Question: {question}\n(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}\nAnswer:",
        "answer",
        {0: "A", 1: "B", 2: "C", 3: "D"},
        choices="choices",
        group="subject",
    ),
}
"""The six tasks that the papers plot, by the names under which they plot them."""


def load_tasks(
    folder: str | Path, names: Collection[str] = (), count: int = ITEMS, shots: int = 0
) -> tuple[Task, ...]:
    """Tasks of a folder, in the order of ``FORMS``.

    Args:
        folder: with files such as ``glue_sst2.jsonl`` or ``mmlu.json``, a record a line or in one list; other
            files are left alone. It is found as `palimpsest.datasets.files.given_place` does.
        names: tasks to read; by default all that the folder holds.
        count: most items of each, after the first ``EXAMPLES`` records.
        shots: worked examples before each question, at most ``EXAMPLES``.

    Raises:
        UnknownNameError: if a task does not exist.
        DataError: if the folder or a task's file is missing, a record is malformed (the message names line
            and field), a file holds too few of them, or there are more shots than examples.
    """
    for name in names:
        if name not in FORMS:
            raise UnknownNameError("task", name, list(FORMS))
    where = given_place(folder)
    found = {name: file for name, form in FORMS.items() if (file := _file(where, form)) is not None}
    missing = [name for name in names if name not in found] if names else [] if found else list(FORMS)
    if missing:
        raise DataError(
            f"{folder}: no file of {', '.join(missing)}; give it a name such as "
            f"glue_{FORMS[missing[0]].files[0]}.jsonl, ending in {' or '.join(ENDINGS)} "
            "(a pickle is not read: it can run code)"
        )
    if not 0 <= shots <= EXAMPLES or count < 1:
        raise DataError(f"{shots} shots and {count} items; give 0 to {EXAMPLES} shots, and one item or more")
    return tuple(_task(name, found[name], count, shots) for name in found if not names or name in names)


def _file(folder: Path, form: Form) -> Path | None:
    stems = [prefix + stem for stem in form.files for prefix in ("", "glue_")]
    places = (folder / f"{stem}{ending}" for stem in stems for ending in ENDINGS)
    return next((place for place in places if place.is_file()), None)


def _task(name: str, file: Path, count: int, shots: int) -> Task:
    form = FORMS[name]
    items = load_records(file, lambda record, index: _item(form, record, index))
    if len(items) <= EXAMPLES:
        raise DataError(f"{file}: {len(items)} records; {EXAMPLES} are kept for examples, so give more")
    before = "".join(f"{item.prompt} {item.options[item.right]}\n" for item in items[:shots])
    asked = [
        Item(item.id, before + item.prompt, item.options, item.right, item.group)
        for item in items[EXAMPLES : EXAMPLES + count]
    ]
    about = f"{len(asked)} records of {file.name}, {shots or 'no'} examples before each"
    return Task(name, tuple(asked), 1 / len(form.answers), about=about)


def _item(form: Form, record: Mapping[str, Any], index: int) -> Item:
    texts = {field: _text(record, field) for field in form.fields}
    if form.choices:
        texts |= dict(zip(form.answers.values(), _texts(record, form), strict=True))
    label, known = member(record, form.label), list(form.answers)
    if isinstance(label, bool) or label not in known:
        raise DataError(f"field {form.label!r} must be one of {known}, not {label!r}")
    group = _text(record, form.group) if form.group in record else ""
    return Item(
        str(index), form.prompt.format(**texts), tuple(form.answers.values()), known.index(label), group
    )


def _text(record: Mapping[str, Any], field: str) -> str:
    """A text as it stands, with its outer spaces, as the released code uses it."""
    value = member(record, field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field {field!r} must be a text, not {value!r}")
    return value


def _texts(record: Mapping[str, Any], form: Form) -> Sequence[str]:
    value = member(record, form.choices)
    if not isinstance(value, list) or len(value) != len(form.answers):
        raise DataError(f"field {form.choices!r} must be a list of {len(form.answers)} texts, not {value!r}")
    return [str(text) for text in value]
