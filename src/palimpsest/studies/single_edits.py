"""Single edits: facts written one at a time into the unedited model, with scores and stability of each.

One arm is one way to change the model: an editor, a control edit, or no edit. For every fact of an arm the
edit is installed, the fact is scored, responses to its wordings are sampled
(`palimpsest.evaluation.responses`), and the weights are restored. A fact's outcome is cached on disk under
the hash of everything it depends on: an interrupted study continues with the next fact and repeats no edit.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import DataError, ResourceError
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.metrics import SCORES
from palimpsest.evaluation.responses import Decoding, Wordings, drawn
from palimpsest.evaluation.stability import Measured, measured
from palimpsest.network.apply import Edit, installed
from palimpsest.network.embedder import Embedder
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.paths import cache_dir
from palimpsest.types import EditRequest, EvalCase

REVISION = 1
"""Part of the cache key; increase it when the code gives different outcomes for the same arm."""


@dataclass(frozen=True)
class Arm:
    """One way to change the model for one fact.

    Attributes:
        settings: everything the edit depends on besides model and request, as JSON values; part of the cache
            key.
        make: request -> edit of the unedited model, or None for no edit.
    """

    settings: Mapping[str, object]
    make: Callable[[EditRequest], Edit | None]


@dataclass(frozen=True)
class Outcome:
    """Results of one arm.

    Attributes:
        said: case id -> responses, embeddings and their uncertainty.
        scores: one row per case and metric, columns case, metric, value (in [0, 1]).
        norms: case id -> ‖ΔW‖ of all layers together (Frobenius); 0 if no weight changes.
    """

    said: Mapping[str, Measured]
    scores: pd.DataFrame
    norms: Mapping[str, float]


@dataclass(frozen=True)
class SingleEdits:
    """Facts to write one at a time, and how each edited model is evaluated.

    Attributes:
        model: the unedited model; every arm restores it bit by bit.
        cases: the facts, with unique ids.
        wordings: case id -> two or more wordings, subject filled in.
        embed: from `palimpsest.network.embedder.embedder`.
        metrics: scores of the case itself, see `palimpsest.evaluation.metrics`.

    Raises:
        DataError: if a case has no wordings, or two cases have the same id.
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
        """Number of facts of an arm that are not cached yet."""
        return sum(not path.exists() for path in self._places(arm, decoding).values())

    def outcome(self, arm: Arm, decoding: Decoding, name: str = "facts") -> Outcome:
        """Write each fact alone, evaluate, and restore the weights; cached facts are read from disk.

        Args:
            arm: how the model is changed.
            decoding: settings of sampling; use the same in all arms that are compared.
            name: label of the progress bar.

        Raises:
            ResourceError: if a stored outcome is damaged or cannot be written.
            As the arm's ``make``, `palimpsest.evaluation.evaluate.evaluate` and
            `palimpsest.evaluation.responses.drawn`; the model is restored, and finished facts are cached.
        """
        places = self._places(arm, decoding)
        said, rows, norms = {}, [], {}
        for case in tqdm(self.cases, desc=name, unit="fact"):
            path = places[case.id]
            make = partial(self._text_of, case, arm, decoding)
            cache.keep(path, make, lambda text, temporary: temporary.write_text(text, encoding="utf-8"))
            norm, scores, texts = _read(path)
            said[case.id] = measured(self.wordings[case.id], texts, self.embed)
            rows += [{"case": case.id, "metric": metric, "value": value} for metric, value in scores.items()]
            norms[case.id] = norm
        return Outcome(said, pd.DataFrame(rows, columns=["case", "metric", "value"]), norms)

    def _text_of(self, case: EvalCase, arm: Arm, decoding: Decoding) -> str:
        return json.dumps(self._one(case, arm, decoding), ensure_ascii=False)

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
        folder, found = cache_dir() / "singles", {}
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
    """Share of a fact's responses, over all wordings, that contain a text as whole words.

    A coarse automatic substitute for judging answers: any mention counts as an answer, and synonyms are
    missed. Case is ignored.

    Args:
        said: case id -> responses.
        wanted: case id -> the object to look for.

    Returns:
        Case id -> share, in [0, 1].

    Raises:
        DataError: if a case has no text to look for.
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
