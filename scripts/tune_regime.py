"""Choose the strength of every arm of the page on alignment in one regime, three candidates for each.

    python scripts/tune_regime.py --regime binding_clamp_4

Facts come from the validation split, which no notebook scores, in one order. A candidate multiplies what an
arm holds back with: its ridge, or the weight of C₀ where it has none. Its score weighs memory and language:
the efficacy of all facts written, in percent, less 100 times the logarithm of perplexity over the unedited
model's, so that one percent of perplexity is worth one point. Equal scores are decided by generalisation. All
candidates go to config/models/<model>.<regime>.csv; runs are kept in the cache, so that an interrupted search
goes on where it stopped. The best are copied by hand into the third part of the run descriptions (``runs``)
of the page.
"""

from typing import Annotated, Any

import pandas as pd
import typer

import palimpsest as pl
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.editors.named_sequences import sequence_of
from palimpsest.editors.settings import models_dir
from palimpsest.evaluation.drift import reference
from palimpsest.files import replacing
from palimpsest.studies.checkpoints import Checkpoints, checkpoints
from palimpsest.studies.contrasts import Contrasts

FACTORS = (1, 10, 100)
ARMS = [f"{part}_{how}" for part in ("plain", "alphaedit", "memit", "both") for how in ("naive", "aligned")]


def main(
    regime: Annotated[str, typer.Option(help="row of regimes in the model's settings")],
    model: Annotated[str, typer.Option(help="model with a settings file")] = "smollm2-135m",
    facts: Annotated[int, typer.Option(help="validation facts written")] = 60,
    batch: Annotated[int, typer.Option(help="facts in a step")] = 10,
    tokens: Annotated[int, typer.Option(help="held-out tokens read at the end")] = 1024,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    only: Annotated[str | None, typer.Option(help="one arm; the others' rows stay")] = None,
) -> None:
    """Score every candidate on validation facts and write the table."""
    net = pl.load(model, device=device)
    drawn = counterfact_style(load_facts(), seed=0, split="validation")[:facts]
    cases, text = [case.limited(2, 1) for case in drawn], reference(net, tokens, 128)
    ask = Checkpoints(batch=batch, at=(facts,), sample=60)
    path = models_dir() / f"{model}.{regime}.csv"
    rows: list[dict[str, Any]] = []
    if only is not None and path.exists():
        known = pd.read_csv(path)
        rows += [dict(row) for _, row in known[known["arm"] != only].astype(object).iterrows()]
    for arm in ARMS if only is None else [only]:
        for factor in FACTORS:
            editor = sequence_of(f"{arm} each_step {factor:g}", net.name, regime=regime)
            made = Contrasts(checkpoints(net, editor, cases, ask, text).assign(run=arm, order=0))
            found = {
                name: round(made.contrast(name, [(1, arm)], facts)[0].mean, 4)
                for name in ("efficacy", "generalisation", "specificity", "perplexity")
            }
            log = float(made.items(arm, "perplexity", facts).mean())
            row = {"arm": arm, "factor": factor, **found}
            rows.append(row | {"score": round(found["efficacy"] - 100 * log, 2), "facts": facts})
            print(rows[-1], flush=True)
            with replacing(path) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)


if __name__ == "__main__":
    typer.run(main)
