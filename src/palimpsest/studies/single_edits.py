"""Facts that are written one at a time, each into the unedited model, and how stable each edited model is.

One arm is one way to change the model: an editor, a null edit, or none. For every fact of an arm the change
is made and installed, the fact's scores are taken, its wordings are answered
(`palimpsest.evaluation.responses`), and the weights are put back. A fact's outcome is kept on disk under the
hash of everything it depends on: an interrupted study goes on with the next fact and makes no edit twice.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import DataError, ResourceError
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.responses import Decoding, Wordings, drawn
from palimpsest.evaluation.stability import Measured, measured
from palimpsest.files import replacing
from palimpsest.network.apply import Edit, installed
from palimpsest.network.embedder import Embedder
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EditRequest, EvalCase

REVISION = 1
"""Part of the cache key; raise it when the same arm gives other outcomes than before."""

SCORES = ("efficacy", "generalisation", "specificity")


@dataclass(frozen=True)
class Arm:
    """One way to change the model for one fact.

    Attributes:
        settings: everything the change depends on beside model and request; JSON-able, part of the cache key.
        make: request -> edit of the unedited model, or None to leave it as it is.
    """

    settings: Mapping[str, object]
    make: Callable[[EditRequest], Edit | None]


@dataclass(frozen=True)
class Outcome:
    """What one arm left.

    Attributes:
        said: case id -> responses, embeddings and their uncertainty.
        scores: a row per case and metric, columns case, metric, value (in [0, 1]).
        norms: case id -> ‖ΔW‖ over all layers together (Frobenius); 0 where no weight changes.
    """

    said: Mapping[str, Measured]
    scores: pd.DataFrame
    norms: Mapping[str, float]


@dataclass(frozen=True)
class SingleEdits:
    """Facts to write one at a time and what is asked afterwards.

    Attributes:
        model: the unedited model; every arm restores it bit by bit.
        cases: the facts, ids unique.
        wordings: case id -> two or more wordings, subject filled in.
        embed: from `palimpsest.network.embedder.embedder`.
        metrics: scores of the case itself, see `palimpsest.evaluation.metrics`.

    Raises:
        DataError: if a case has no wordings, or two have one id.
    """

    model: EditableModel
    cases: Sequence[EvalCase]
    wordings: Wordings
    embed: Embedder
    metrics: tuple[str, ...] = SCORES

    def __post_init__(self) -> None:
        ids = [case.id for case in self.cases]
        odd = [name for name in ids if name not in self.wordings or ids.count(name) > 1]
        if odd:
            raise DataError(
                f"case {odd[0]!r} has no wordings or is given twice; give each of {len(ids)} cases its own "
                "id and two or more wordings under it"
            )

    def missing(self, arm: Arm, decoding: Decoding) -> int:
        """How many facts of an arm are not on disk yet."""
        return sum(not path.exists() for path in self._places(arm, decoding).values())

    def outcome(self, arm: Arm, decoding: Decoding, name: str = "facts") -> Outcome:
        """Write each fact alone, ask, and put the weights back; from disk what was done before.

        Args:
            arm: how the model is changed.
            decoding: how responses are drawn; the same in all arms that are compared.
            name: shown with the progress.

        Raises:
            ResourceError: if a stored outcome is damaged or cannot be written.
            As the arm's ``make``, `palimpsest.evaluation.evaluate.evaluate` and
            `palimpsest.evaluation.responses.drawn`; the model is then as it was, and facts that were done are
            on disk.
        """
        places = self._places(arm, decoding)
        said, rows, norms = {}, [], {}
        for case in tqdm(self.cases, desc=name, unit="fact"):
            path = places[case.id]
            if not path.exists():
                content = json.dumps(self._one(case, arm, decoding), ensure_ascii=False)
                with replacing(path) as temporary:
                    temporary.write_text(content, encoding="utf-8")
            norm, scores, texts = _read(path)
            said[case.id] = measured(self.wordings[case.id], texts, self.embed)
            rows += [{"case": case.id, "metric": metric, "value": value} for metric, value in scores.items()]
            norms[case.id] = norm
        return Outcome(said, pd.DataFrame(rows, columns=["case", "metric", "value"]), norms)

    def _one(self, case: EvalCase, arm: Arm, decoding: Decoding) -> dict[str, object]:
        edit = arm.make(case.request)
        with nullcontext() if edit is None else installed(self.model, edit):
            scores = {one.metric: one.value for one in evaluate(self.model, [case], self.metrics)}
            ((_, texts),) = drawn(self.model, {case.id: self.wordings[case.id]}, decoding)
        return {"norm": 0.0 if edit is None else edit.norm(), "scores": scores, "texts": texts}

    def _places(self, arm: Arm, decoding: Decoding) -> dict[str, Path]:
        how = {name: value for name, value in asdict(decoding).items() if name != "batch_size"}
        common = {
            "revision": REVISION,
            "model": fingerprint(self.model),
            "arm": arm.settings,
            "decoding": how,
            "metrics": self.metrics,
        }
        folder, found = cache.cache_dir() / "singles", {}
        for case in self.cases:
            key = common | {"case": asdict(case), "asked": list(self.wordings[case.id])}
            found[case.id] = folder / f"{cache.digest(key)[:32]}.json"
        return found


def _read(path: Path) -> tuple[float, dict[str, float], tuple[tuple[str, ...], ...]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        texts = tuple(tuple(map(str, own)) for own in found["texts"])
        return float(found["norm"]), {name: float(v) for name, v in found["scores"].items()}, texts
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResourceError(
            f"cache file {path} is damaged ({error!r}); delete it and it will be computed again"
        ) from error


def share_with(said: Mapping[str, Measured], wanted: Mapping[str, str]) -> "pd.Series[float]":
    """Share of a fact's responses, over all wordings, that contain a text as words of their own.

    An automatic stand-in for a judge of answers, and a coarse one: it takes any mention for an answer and
    knows no synonyms. Upper and lower case are the same.

    Args:
        said: case id -> responses.
        wanted: case id -> the object that should be said.

    Returns:
        Case id -> share, in [0, 1].

    Raises:
        DataError: if a case lacks a text to look for.
    """
    lacking = [name for name in said if not wanted.get(name, "").strip()]
    if lacking:
        raise DataError(f"case {lacking[0]!r} has no text to look for in its responses; give its object")
    found = {}
    for name, one in said.items():
        pattern = re.compile(rf"(?<!\w){re.escape(wanted[name])}(?!\w)", re.IGNORECASE)
        texts = [text for own in one.texts for text in own]
        found[name] = sum(bool(pattern.search(text)) for text in texts) / len(texts)
    return pd.Series(found, dtype=float)
