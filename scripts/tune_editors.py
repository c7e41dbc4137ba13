"""Find an editor's settings for a model on validation facts, every editor over the same number of settings.

    python scripts/tune_editors.py --model smollm2-135m

Facts come from the validation split of the project's own set, which no notebook scores; they are facts whose
true object the model prefers. One batch is edited with each candidate. The score is the worst margin, in
points, to the bar that the comparison page sets: efficacy at least 95, generalisation at least 85, at most 5
points of specificity lost; the candidate with the best worst margin is chosen. All candidates and scores are
written to config/models/<model>.search.csv; the chosen settings are copied into config/models/<model>.yaml
by hand, and a test checks that they agree. How values are optimised (steps, learning rate, clamp) is
the same for all and not searched here. AlphaEdit+ chooses how far to smooth by one paraphrase of each
fact, which is left out of its generalisation; the weights of past keys play no part in a single batch.
Constrained fine-tuning takes what fine-tuning found, and its limit from there; in-context editing writes no
batch and keeps a published number of demonstrations; neither is searched.

The candidates were narrowed by trials by hand before this search, on validation facts too: learning rate,
stopping loss and layers for MEMIT and AlphaEdit, hardly any for ROME. The table does not hold those trials.
"""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import palimpsest as pl
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.editors.base import Prepared
from palimpsest.editors.settings import models_dir
from palimpsest.evaluation.evaluate import first_known
from palimpsest.files import replacing
from palimpsest.studies.tuning import rates, try_settings

CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "memit": [
        {"layers": layers, "preserve_weight": weight}
        for layers in ([4, 5, 6, 7, 8], [3, 4, 5])
        for weight in (100, 300, 1000)
    ],
    "alphaedit": [
        {"layers": layers, "ridge": ridge} for layers in ([4, 5, 6, 7, 8], [3, 4, 5]) for ridge in (1, 3, 10)
    ],
    "alphaedit_plus": [
        {"layers": [3, 4, 5], "ridge": ridge, "perturbation": {"threshold": least, "block": 10}}
        for ridge in (1, 3, 10)
        for least in (3e-4, 6e-4)
    ],
    "rome": [{"layers": [layer], "ridge": ridge} for layer in (5, 8) for ridge in (0.0, 0.03, 0.3)],
    "ft": [{"layers": layers, "lr": lr} for layers in ([5], [3, 4, 5]) for lr in (1e-3, 2e-3, 5e-3)],
}


def main(
    model: Annotated[str, typer.Option(help="model with a settings file")] = "smollm2-135m",
    facts: Annotated[int, typer.Option(help="validation facts in the batch")] = 48,
    seed: Annotated[int, typer.Option(help="draws the facts")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    only: Annotated[str | None, typer.Option(help="one editor; the others' rows stay")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV to write")] = None,
) -> None:
    """Score every candidate of every editor on validation facts and write the table."""
    net = pl.load(model, device=device)
    drawn = counterfact_style(load_facts(), seed=seed, split="validation")
    cases = first_known(net, drawn, facts)
    before = rates(net, cases)
    path = out or models_dir() / f"{model}.search.csv"
    rows: list[dict[str, Any]] = []
    if only is not None:
        known = pd.read_csv(path)
        rows += [dict(row) for _, row in known[known["editor"] != only].astype(object).iterrows()]
    prepared = Prepared()
    for editor in CANDIDATES if only is None else [only]:
        for candidate in CANDIDATES[editor]:
            made = pl.editor_for(editor, net.name, **candidate)
            trial, prepared = try_settings(net, cases, made, prepared, before)
            row: dict[str, Any] = {"editor": editor, **{f"setting_{k}": str(v) for k, v in candidate.items()}}
            rows.append(row | trial.row() | {"facts": facts, "seed": seed})
            print(rows[-1], flush=True)
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    best = pd.DataFrame(rows).sort_values("score").groupby("editor").tail(1)
    print(best.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
