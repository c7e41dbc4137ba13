"""The answer block of a page: question, answer, and the verdict on each claim that the page tests.

It is HTML with its own styles, so that it reads alike in Jupyter, in papermill's copies and in the book.
"""

import html
import re
from collections import Counter
from dataclasses import dataclass

from palimpsest import paths
from palimpsest.results.claims import Claim, Values, Verdict, headline, load_claims, verdict
from palimpsest.results.labels import badge
from palimpsest.results.records import Results, read

LONG = "long"
"""Profile whose records, where they are carried, may decide a claim instead of the run's own."""

SMOKE = "smoke"
"""Profile whose numbers say nothing."""

FEW = 2
"""As many parts of a claim are shown at once; more are folded."""


LITERAL = ("\x02", "\x03")
"""Stand before and after a recorded text in which nobody may look for a formula."""

_UNMARKED = re.compile(f"[{''.join(LITERAL)}]")
_FORMULA = re.compile(r"[$\\]")


@dataclass(frozen=True)
class Answer:
    """What a page found.

    Attributes:
        question: that the page asks, one sentence.
        said: the answer in a sentence or two, with numbers; recorded texts in it stand between `LITERAL`.
        found: claims that the page tests, with their verdicts.
        size: what was run.
    """

    question: str
    said: str
    found: tuple[tuple[Claim, Verdict], ...]
    size: str

    def _repr_html_(self) -> str:
        rows = "".join(_row(claim, verdict) for claim, verdict in self.found)
        size = html.escape(self.size)
        return (
            '<div class="answer mathjax_process" style="border-left:0.3em solid #0072B2;padding:0.2em 1em">'
            f'<p class="answer-question"><em>{html.escape(self.question)}</em></p>'
            f'<p class="answer-said" style="font-size:1.1em">{self._said()}</p>{rows}'
            f'<p class="answer-size" style="font-size:0.9em">{size}</p></div>'
        )

    def __repr__(self) -> str:
        rows = [f"{claim.id} {item.label} ({item.profile}): {item.reason}" for claim, item in self.found]
        return "\n".join([self.question, _UNMARKED.sub("", self.said), *rows, self.size])

    def _said(self) -> str:
        """The answer as HTML."""
        begin, end = LITERAL
        whole = html.escape(self.said).replace(begin, '<span class="mathjax_ignore tex2jax_ignore">')
        return whole.replace(end, "</span>")


def answer(results: Results, question: str, said: str, **words: object) -> Answer:
    """The answer block of a page, to be shown by its last cell.

    Args:
        results: of the page.
        question: the one that stands under the page's title.
        said: the answer, with names of values in braces.
        words: further names in it; formulas may stand in these, and not in recorded texts or parameters.

    Raises:
        UnknownNameError: if a name in ``said`` is neither recorded nor among the words.
    """
    claims = [claim for claim in load_claims().claims if claim.notebook == results.notebook]
    found = tuple((claim, _verdict(claim, results)) for claim in claims) if results.profile != SMOKE else ()
    return Answer(" ".join(question.split()), results.filled(said, words, _literal), found, _size(results))


def _literal(text: str) -> str:
    """A recorded text, marked if it might be read as a formula."""
    begin, end = LITERAL
    text = _UNMARKED.sub("", text)
    return f"{begin}{text}{end}" if _FORMULA.search(text) else text


def _verdict(claim: Claim, results: Results) -> Verdict:
    runs: dict[str, Values] = {results.profile: results.values}
    long = paths.results_dir(LONG) / f"{results.notebook}.json"
    if results.profile != LONG and long.is_file():
        runs[LONG] = read(long)["values"]
    found = [verdict(claim, {results.notebook: values}, profile) for profile, values in runs.items()]
    return headline(claim, found)


def _size(results: Results) -> str:
    if results.profile == SMOKE:
        return "This is a run at smoke size, which shows that the page works; nothing is judged by it."
    model = results.facts.get("model", {}).get("name", "")
    seed = results.facts.get("seed")
    parts = [f"profile {results.profile}", model, "" if seed is None else f"seed {seed}"]
    brackets = any(entry.get("low") is not None for entry in results.values.values())
    size = f"Run: {', '.join(part for part in parts if part)}."
    return f"{size} Brackets are 95 % intervals." if brackets else size


def _row(claim: Claim, item: Verdict) -> str:
    ran = f" In the paper: {_line(claim.paper_ran).rstrip('.')}." if claim.paper_ran else ""
    where = f" (profile {item.profile})" if item.profile == LONG else ""
    shown = badge(item.label, f"{claim.id} {item.label}")
    told = html.escape(f"{where} {_line(claim.statement)} {_reason(item)}.{ran}")
    return f'<div class="answer-claim" style="margin:0.7em 0">{shown}{told}{_parts(item)}</div>'


def _reason(item: Verdict) -> str:
    """What was found; of a statement with several effects, how many parts have which label."""
    if not item.parts:
        return f"Found: {_line(item.reason)}"
    counts = Counter(found.label for _, found in item.parts)
    summary = ", ".join(f"{count} {label}" for label, count in counts.items())
    awaited = item.reason.partition("; so far: ")
    return f"Found, part by part: {summary}" + (f"; {_line(awaited[0])}" if awaited[1] else "")


def _parts(item: Verdict) -> str:
    if not item.parts:
        return ""
    rows = "".join(
        f"<li>{html.escape(f'{name}: {found.label}, {_line(found.reason)}')}</li>"
        for name, found in item.parts
    )
    listed = f'<ul style="margin:0.3em 0">{rows}</ul>'
    if len(item.parts) <= FEW:
        return listed
    return f"<details><summary>the {len(item.parts)} parts</summary>{listed}</details>"


def _line(text: str) -> str:
    return " ".join(text.split())
