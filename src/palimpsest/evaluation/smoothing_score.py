"""By which wordings AlphaEdit+ chooses how far to smooth, and what each choice gives away of the test.

The editor is handed a function of the model and the requests; here it is made, on the side of the data:

    validation          wordings of the same facts that no score ever asks
    edit_prompts        the prompts the facts are edited with: nothing but the request is needed
    as_published_code   the edit prompts and the paraphrases that are scored afterwards: the test decides.
                        Kept to measure how much that is worth (claim P17)
"""

from collections.abc import Callable, Mapping, Sequence

from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.metrics import token_accuracy
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest, EvalCase

RULES = ("validation", "edit_prompts", "as_published_code")


def score_by(
    rule: str, cases: Sequence[EvalCase] = (), validation: Mapping[str, Sequence[str]] | None = None
) -> Callable[[EditableModel, Sequence[EditRequest]], float]:
    """The score for `palimpsest.editors.PlusState`: share of the targets' tokens that come first, in [0, 1].

    Args:
        rule: one of the three.
        cases: where ``as_published_code`` finds the paraphrases that are scored, by the id of the request.
        validation: id of a request -> wordings for ``validation``, which must not occur among the prompts and
            paraphrases of any case.

    Raises:
        UnknownNameError: if the rule does not exist.
        ScoreError: if ``validation`` has no wordings, or one of them is scored; and, from the function, if a
            request has none.
    """
    if rule not in RULES:
        raise UnknownNameError("selection rule", rule, list(RULES))
    if rule == "edit_prompts":
        return lambda model, requests: _accuracy(model, [(r.text, r.target) for r in requests])
    if rule == "validation":
        wordings = {name: tuple(texts) for name, texts in (validation or {}).items()}
        _refuse_leaks(wordings, cases)
    else:
        wordings = {case.request.id: (case.request.text, *case.paraphrases) for case in cases}

    def score(model: EditableModel, requests: Sequence[EditRequest]) -> float:
        missing = [request.id for request in requests if not wordings.get(request.id)]
        if missing:
            raise ScoreError(
                f"{len(missing)} of {len(requests)} requests have no wordings to choose by, for example "
                f"{missing[0]!r}; give some for every request, or select by 'edit_prompts'"
            )
        return _accuracy(model, [(text, r.target) for r in requests for text in wordings[r.id]])

    return score


def _refuse_leaks(wordings: Mapping[str, Sequence[str]], cases: Sequence[EvalCase]) -> None:
    if not wordings:
        raise ScoreError("selection by 'validation' needs wordings; pass validation={request id: wordings}")
    held = {text for texts in wordings.values() for text in texts}
    for case in cases:
        if leaked := sorted(held & {case.request.text, *case.paraphrases}):
            raise ScoreError(
                f"{leaked[0]!r} is held out for validation and asked in the test of case {case.id!r}; "
                "leave it out of one of them"
            )


def _accuracy(model: EditableModel, pairs: Sequence[tuple[str, str]]) -> float:
    answers = ask(model, pairs)
    return float(token_accuracy(answers.hits, answers.mask).mean())
