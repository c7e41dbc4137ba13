"""Find an editor's settings for a model on validation facts, every editor over the same number of settings.

    python scripts/tune_editors.py --model smollm2-135m

Facts come from the validation split of the project's own set, which no notebook scores; they are facts whose
true object the model prefers. One batch is edited with each candidate, and the candidate with the highest
harmonic mean of efficacy, generalisation and specificity is chosen. All candidates and their scores are
written to config/models/<model>.search.csv; the chosen settings are copied into config/models/<model>.yaml by
hand, and a test checks that they agree. How values are optimised (layers, steps, learning rate, clamp) is not
searched.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import palimpsest as pl
from palimpsest.cache import replacing
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.editors.base import State
from palimpsest.evaluate import first_known, records_frame
from palimpsest.metrics import harmonic_mean_score
from palimpsest.model import EditableModel
from palimpsest.settings import models_dir
from palimpsest.types import EvalCase

CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "memit": [{"preserve_weight": weight} for weight in (3, 30, 100, 300, 1000, 3000)],
    "alphaedit": [
        {"rule": "absolute", "threshold": threshold, "ridge": ridge}
        for threshold in (0.02, 0.05)
        for ridge in (0.1, 1, 10)
    ],
    "rome": [{"layers": [layer], "ridge": ridge} for layer in (3, 5, 8) for ridge in (0.0, 0.1)],
}


def score(
    model: EditableModel, cases: list[EvalCase], editor: str, candidate: dict[str, Any], state: State
) -> tuple[dict[str, Any], State]:
    """One candidate's scores in percent, and the state with what the next one can share."""
    made = pl.editor_for(editor, model.name, **candidate)
    edit, after = made.edit(model, [case.request for case in cases], replace(state, projectors={}, past={}))
    with pl.installed(model, edit):
        frame = records_frame(pl.evaluate(model, cases, ("efficacy", "generalisation", "specificity")))
    means = {str(name): float(value) for name, value in frame.groupby("metric")["value"].mean().items()}
    row: dict[str, Any] = {"editor": editor, **{f"setting_{k}": str(v) for k, v in candidate.items()}}
    row |= {name: round(100 * value, 2) for name, value in means.items()}
    row["score"] = round(100 * harmonic_mean_score(list(means.values())), 2)
    return row | {"norm": round(edit.norm(), 3)}, after


def main(
    model: Annotated[str, typer.Option(help="model with a settings file")] = "smollm2-135m",
    facts: Annotated[int, typer.Option(help="validation facts in the batch")] = 60,
    seed: Annotated[int, typer.Option(help="draws the facts")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="CSV to write")] = None,
) -> None:
    """Score every candidate of every editor on validation facts and write the table."""
    net = pl.load(model, device=device)
    drawn = counterfact_style(load_facts(), seed=seed, split="validation")
    cases = first_known(net, drawn, facts)
    rows: list[dict[str, Any]] = []
    state = State()
    for editor, candidates in CANDIDATES.items():
        for candidate in candidates:
            row, state = score(net, cases, editor, candidate, state)
            print(row, flush=True)
            rows.append(row | {"facts": facts, "seed": seed})
    path = out or models_dir() / f"{model}.search.csv"
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    best = pd.DataFrame(rows).sort_values("score").groupby("editor").tail(1)
    print(best.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
