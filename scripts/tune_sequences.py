"""Choose the settings of every method of the AlphaSet tables on validation facts, six candidates for each.

    python scripts/tune_sequences.py --model smollm2-135m

The three hard sets are built from the validation split, which no notebook scores, and written one after the
other in batches, in the regime of the tables and with values computed at each step; no fact is in two of
them. A candidate's score is the mean of efficacy, generalisation and specificity by tokens of all edits that
stand at the end (the kind of Score that the paper's tables print), in percent. Each method is searched over
six values of what it holds back with: the weight of C₀, the ridge, or for AlphaEdit+ ridge and weight of past
keys. Equal scores are decided by the smaller change of the weights.

Before that, two thresholds of AlphaEdit+ are read off the same facts (``--thresholds`` prints them alone): τ,
the quantile `HARD_SHARE` of their residual norms, so that as many facts count as hard as the sets hold; and
ε, the drop of the objective for a direction at which a search by gain admits the share `ADMITTED` of the
protected directions for the first batch, median over layers. They go to the regime in
config/models/<model>.yaml by hand.

Every candidate is a row of config/models/<model>.alphaset.csv as soon as it is done, and a candidate that has
a row is not run again. The best are copied into the section ``alphaset`` of config/models/<model>.yaml by
hand, and a test checks that they agree.
"""

from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

import palimpsest as pl
from palimpsest.algebra.projector import projectors
from palimpsest.datasets import AlphaSet, load_facts
from palimpsest.editors.named_sequences import configuration, configurations, tuned
from palimpsest.editors.settings import models_dir
from palimpsest.evaluation.drift import reference
from palimpsest.evaluation.metrics import ZSRE_METRICS
from palimpsest.files import replacing
from palimpsest.studies.five_sets import Base, base_facts, standing, stream_of
from palimpsest.studies.stream import score_columns

WEIGHTS: list[dict[str, Any]] = [{"preserve_weight": w} for w in (30, 100, 300, 1000, 3000, 10000)]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "memit_naive": WEIGHTS,
    "rect_naive": WEIGHTS,
    "alphaedit_aligned": [{"ridge": ridge} for ridge in (0.1, 0.3, 1, 3, 10, 30)],
    "alphaedit_plus": [{"ridge": r, "past_weight": w} for r in (0.3, 1, 3) for w in (10, 100)],
    "memit_aligned": WEIGHTS,
}
HARD_SHARE = 0.8
ADMITTED = 0.5


def main(
    model: Annotated[str, typer.Option(help="model with a settings file")] = "smollm2-135m",
    regime: Annotated[str, typer.Option(help="row of regimes in that file")] = "alphaset",
    base: Annotated[int, typer.Option(help="validation facts that the sets are made from")] = 120,
    hard: Annotated[int, typer.Option(help="hard members of each set")] = 4,
    others: Annotated[int, typer.Option(help="other members of each set")] = 16,
    batch: Annotated[int, typer.Option(help="facts in a step")] = 15,
    seed: Annotated[int, typer.Option(help="of the facts and of the draw")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    thresholds: Annotated[bool, typer.Option(help="only read the two thresholds off the facts")] = False,
) -> None:
    """Score every candidate on the validation sets and write the table."""
    net = pl.load(model, device=device)
    host = configuration("alphaedit_aligned", net.name, regime, values="each_step")
    facts = base_facts(net, load_facts(), host, base, max(hard, 20), seed, split="validation")
    sets = list(facts.hard_sets(hard, others, batch, seed, apart=True).values())
    print(_thresholds(facts, sets, batch), flush=True)
    if thresholds:
        return
    stream = stream_of(facts, sets, None, reference(net, 512, 128), batch, 1, 1, ZSRE_METRICS)
    standing_ids = standing(sets)
    path = models_dir() / f"{model}.alphaset.csv"
    rows: list[Any] = pd.read_csv(path).astype(object).to_dict("records") if path.exists() else []
    for name, candidate in ((method, one) for method, tried in CANDIDATES.items() for one in tried):
        asked = {f"setting_{key}": value for key, value in candidate.items()}
        if any(row["method"] == name and asked.items() <= row.items() for row in rows):
            continue
        when = {"values": "each_step"} if name in configurations() else {}
        found = stream.outcome(tuned(name, net.name, regime, **when, **candidate))
        scored = score_columns(found, ZSRE_METRICS).loc[standing_ids]
        norm = found[found["metric"].eq("total_norm")]["value"].iloc[-1]
        row: dict[str, Any] = {"method": name, **asked}
        row |= {metric: round(float(scored[metric].mean()), 2) for metric in (*ZSRE_METRICS, "score")}
        row |= {"weights_moved": round(float(norm), 4), "facts": len(standing_ids), "seed": seed}
        print(row, flush=True)
        rows.append(row)
        with replacing(path) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def _thresholds(base: Base, sets: list[AlphaSet], batch: int) -> dict[str, float]:
    """The two thresholds of AlphaEdit+, by the name of their part."""
    cases = [case for one in sets for case in one.cases]
    values = base.values_for(sets)
    lengths = base.measured(cases, values)["inconsistency"]
    editor, net = base.editor, base.model
    requests = [case.request for case in cases[:batch]]
    wanted = values.of(net, requests, editor.layers[-1], editor.targets, base.contexts).values.double()
    residual = wanted - pl.subject_hidden(net, requests, editor.layers[-1]).double()
    moments = pl.key_statistics(net, editor.layers, editor.statistics_tokens)
    kept = projectors(moments, editor.rule or "absolute", editor.threshold)
    drops = []
    for place, layer in enumerate(editor.layers):
        keys = pl.subject_keys(net, requests, layer, base.contexts).double()
        share = residual / (len(editor.layers) - place)
        problem = pl.LeastSquares(keys, share, ridge=editor.ridge, projector=kept[layer])
        pool = pl.candidates(moments[layer], kept[layer])
        found = pl.admit(problem, pool, threshold=0, order="gain")
        relative = (found.gains / found.objective_path[:-1]).numpy()
        drops.append(float(relative[round(ADMITTED * len(relative)) - 1]))
        print(f"layer {layer}: {len(pool)} directions, drops {np.quantile(relative, [0, 0.5, 1])}")
    return {
        "smoothing.threshold": round(float(np.quantile(lengths, HARD_SHARE)), 1),
        "perturbation.threshold": float(f"{np.median(drops):.2g}"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
