"""How AlphaEdit+ scores its smoothing candidates, and which scores leak the test.

The editor receives a function of model and requests. It is made here, because it may need evaluation data:

    validation          wordings of the same facts that are not used in any evaluation
    edit_prompts        the prompts with which the facts are edited; only the requests are needed
    as_published_code   the edit prompts and the paraphrases that are evaluated afterwards, a test leak; kept
                        to measure how much the leak contributes (claim P17)
"""

from collections.abc import Callable, Mapping, Sequence

from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.metrics import token_accuracy
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest, EvalCase

SELECTIONS = ("validation", "edit_prompts", "as_published_code")


def score_by(
    rule: str, cases: Sequence[EvalCase] = (), validation: Mapping[str, Sequence[str]] | None = None
) -> Callable[[EditableModel, Sequence[EditRequest]], float]:
    """Make the score for `palimpsest.editors.PlusState`: mean token accuracy of the targets, in [0, 1].

    Args:
        rule: one of the three in the module's docstring.
        cases: evaluation cases, found by the id of the request; ``as_published_code`` uses their paraphrases.
        validation: id of a request -> wordings for ``validation``, none of which may occur among the prompts
            and paraphrases of any case.

    Raises:
        UnknownNameError: if the rule does not exist.
        ScoreError: if ``validation`` has no wordings, or one of them occurs in a case; and, from the returned
            function, if a request has no wordings.
    """
    if rule not in SELECTIONS:
        raise UnknownNameError("selection rule", rule, list(SELECTIONS))
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
