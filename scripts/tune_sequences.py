"""Choose the settings of every method of the AlphaSet tables on validation facts, six candidates for each.

    python scripts/tune_sequences.py --model smollm2-135m

The three hard sets are built from the validation split, which no notebook scores, and written one after the
other in batches; no fact is in two of them. A candidate's score is the mean of efficacy, generalisation and
specificity of all edits that stand at the end (the Score of the paper's tables), in percent. Each method is
searched over six values of what it holds back with: the weight of C₀, the ridge, or for AlphaEdit+ ridge and
weight of past keys. Equal scores are decided by the smaller change of the weights. All candidates go to
config/models/<model>.alphaset.csv; the best are copied into the section ``alphaset`` of
config/models/<model>.yaml by hand, and a test checks that they agree.
"""

from dataclasses import replace
from typing import Annotated, Any

import pandas as pd
import typer

import palimpsest as pl
from palimpsest.datasets import load_facts
from palimpsest.editors import AlphaEditPlus
from palimpsest.editors.named_sequences import configuration, tuned
from palimpsest.editors.settings import models_dir
from palimpsest.evaluation.drift import reference
from palimpsest.files import replacing
from palimpsest.studies.five_sets import base_facts, standing, stream_of
from palimpsest.studies.stream import SCORES, score_columns

WEIGHTS: list[dict[str, Any]] = [{"preserve_weight": w} for w in (30, 100, 300, 1000, 3000, 10000)]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "memit_naive": WEIGHTS,
    "rect_naive": WEIGHTS,
    "prune_naive": WEIGHTS,
    "alphaedit_aligned": [{"ridge": ridge} for ridge in (0.3, 1, 3, 10, 30, 100)],
    "alphaedit_plus": [{"ridge": r, "past_weight": w} for r in (1, 3, 10) for w in (10, 100)],
    "memit_aligned": WEIGHTS,
}


def main(
    model: Annotated[str, typer.Option(help="model with a settings file")] = "smollm2-135m",
    base: Annotated[int, typer.Option(help="validation facts that the sets are made from")] = 120,
    hard: Annotated[int, typer.Option(help="hard members of each set")] = 4,
    others: Annotated[int, typer.Option(help="other members of each set")] = 16,
    batch: Annotated[int, typer.Option(help="facts in a step")] = 10,
    contexts: Annotated[int, typer.Option(help="sampled prefixes beside the empty one")] = 1,
    seed: Annotated[int, typer.Option(help="of the facts and of the draw")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    only: Annotated[str | None, typer.Option(help="one method; the others' rows stay")] = None,
) -> None:
    """Score every candidate on the validation sets and write the table."""
    net = pl.load(model, device=device)
    host = configuration("alphaedit_aligned", net.name)
    host = replace(host, contexts=replace(host.contexts, count=contexts))
    facts = base_facts(net, load_facts(), host, base, hard, seed, split="validation")
    sets = list(facts.hard_sets(hard, others, batch, seed, apart=True).values())
    values, text = facts.values_for(sets), reference(net, 512, 128)
    stream = stream_of(facts, sets, values, text, batch, paraphrases=2, neighbours=5)
    standing_ids = standing(sets)
    path = models_dir() / f"{model}.alphaset.csv"
    rows: list[dict[str, Any]] = []
    if only is not None:
        known = pd.read_csv(path)
        rows += [dict(row) for _, row in known[known["method"] != only].astype(object).iterrows()]
    for name in CANDIDATES if only is None else [only]:
        for candidate in CANDIDATES[name]:
            method = tuned(name, net.name, contexts=host.contexts, **candidate)
            method = replace(method, optimised="once") if isinstance(method, AlphaEditPlus) else method
            found = stream.outcome(method)
            asked = score_columns(found).loc[standing_ids]
            norm = found[found["metric"].eq("total_norm")]["value"].iloc[-1]
            row: dict[str, Any] = {"method": name, **{f"setting_{k}": v for k, v in candidate.items()}}
            row |= {metric: round(float(asked[metric].mean()), 2) for metric in (*SCORES, "score")}
            row["weights_moved"] = round(float(norm), 4)
            print(row, flush=True)
            rows.append(row | {"facts": len(standing_ids), "seed": seed})
            with replacing(path) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)


if __name__ == "__main__":
    typer.run(main)
