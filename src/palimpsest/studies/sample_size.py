"""How much text a null-space projector needs: what it protects, by the number of tokens it is made from.

The second moment of few tokens holds the same energy in fewer directions. So the projector of a small sample
leaves more directions free, and protects its own tokens better than those of other texts: what counts is the
energy of keys of unseen text that lies in free directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.projector import Projector
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import ScoreError
from palimpsest.memory.moments import SecondMoment
from palimpsest.network.model import EditableModel
from palimpsest.results.intervals import Interval, relative_growth


def let_through(projector: Projector, moment: Float[Tensor, "d_k d_k"]) -> float:
    """Share of the energy of keys with second moment C that a projector lets through, tr(PC)/tr(C)."""
    c = moment.double()
    return float(projector.apply(c).trace() / c.trace())


def protection(
    model: EditableModel,
    editor: Sequential,
    sizes: Sequence[int],
    unseen: Mapping[int, SecondMoment],
) -> pd.DataFrame:
    """What the projectors of an editor protect, by the number of tokens that they are made from.

    Args:
        model: the unedited model.
        editor: a sequence with a rule for projectors.
        sizes: numbers of tokens, each from the start of the same texts, so that samples are nested.
        unseen: layer -> second moment of keys of other texts.

    Returns:
        One row per size and layer: ``tokens``, ``layer``, ``free``, the share of directions that are free,
        ``own``, the share of the sample's own key energy in them, and ``unseen``, that of the other texts.

    Raises:
        ScoreError: if the sequence has no projector.
    """
    if editor.rule is None:
        raise ScoreError("this sequence has no projector; choose one with a rule, such as alphaedit_aligned")
    rows = []
    for tokens in sizes:
        made = replace(editor, statistics_tokens=tokens).prepare(model)
        for layer in editor.layers:
            projector = made.projectors[layer]
            rows.append(
                {
                    "tokens": tokens,
                    "layer": layer,
                    "free": projector.kept / projector.dim,
                    "own": 1 - projector.protected_energy,
                    "unseen": let_through(projector, torch.as_tensor(unseen[layer].value)),
                }
            )
    return pd.DataFrame(rows)


def relative_change(whole: "pd.Series[float]", part: "pd.Series[float]", seed: int) -> Interval:
    """Change of a mean from the whole sample to a part of it, in percent of the former, paired over facts.

    Args:
        whole: score of each fact, by its id, with the whole sample.
        part: the same facts with a part of it.
        seed: of the bootstrap.

    Raises:
        ScoreError: as `palimpsest.results.intervals.relative_growth`.
    """
    found = relative_growth(whole, part, seed)
    return Interval(100 * found.mean, 100 * found.low, 100 * found.high, found.n)
