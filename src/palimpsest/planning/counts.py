"""Operations and memory of a page's work, from the shape of a model.

Operations are multiply-adds, counted as in `palimpsest.studies.cost`. A fact is one of mean length: its
prompt has PROMPT tokens, of which SUBJECT lie before the subject's last one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from palimpsest.algebra.projector import LARGE
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.named_sequences import configurations
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.planning.work import Run, Work
from palimpsest.studies.cost import (
    FLOAT64,
    Asked,
    Positions,
    Shape,
    activation_bytes,
    behind,
    evaluation_work,
    keys_work,
    ledger_bytes,
    step_work,
    values_work,
)

PROMPT, SUBJECT, TARGET = 12, 7, 1
"""Tokens of a mean fact: of its prompt, before its subject's last, and of an object. Means of 200 facts of
the project's own set under the embedded model's tokenizer are 11.9, 6.8 and 1.1."""

ESSENCE = 2
"""Tokens behind the subject in the prompt of the KL term, "{} is a"."""

WINDOW = 256
"""Tokens of a window of text, as in `palimpsest.memory.moments`."""

LEADING = 2000
"""Multiply-adds of that for each number of the moment: 7.3 s for d_k = 14,336 at 5.1e10 a second, in
``results/bench.json``."""

EIGH = 9 / 2
"""Multiply-adds, in d_k³, of all eigenvectors of a symmetric matrix (Golub & Van Loan, 4th ed., 8.3)."""

STAGES = ("values", "keys", "solve", "statistics", "projector", "evaluation")


@dataclass(frozen=True)
class Method:
    """Settings that count.

    Attributes:
        layers: edited layers.
        steps: of the value optimisation.
        contexts: sampled prefixes, beside the empty one.
        length: tokens of each.
        tokens: behind each second moment.
    """

    layers: tuple[int, ...]
    steps: int = 20
    contexts: int = 5
    length: int = 10
    tokens: int = 100_000

    @classmethod
    def of(cls, editor: WeightEditor) -> "Method":
        """Those of an editor; an editor without such settings optimises no values."""
        targets = getattr(editor, "targets", None) or TargetSettings(steps=1)
        contexts = getattr(editor, "contexts", None) or ContextSettings(count=0)
        tokens = int(getattr(editor, "statistics_tokens", 0))
        return cls(tuple(editor.layers), targets.steps, contexts.count, contexts.length, tokens)


@dataclass(frozen=True)
class Operations:
    """Work of a page by stage.

    Attributes:
        model: stage -> multiply-adds in the model's dtype.
        exact: stage -> multiply-adds in float64.
        moved: stage -> bytes of weights that are read again and again, one token at a time.
    """

    model: Mapping[str, int] = field(default_factory=dict)
    exact: Mapping[str, int] = field(default_factory=dict)
    moved: Mapping[str, int] = field(default_factory=dict)


def mean_fact(method: Method) -> Asked:
    """Positions of one fact of mean length, in every context of a method."""
    prefixes = [0] + [method.length] * method.contexts
    rows = [(start + SUBJECT, start + PROMPT + TARGET - 1) for start in prefixes]
    ends = [end for end, _ in rows]
    rows.append((SUBJECT, SUBJECT + 1 + ESSENCE))
    heads = len(prefixes) * TARGET + 1

    def total(parts: list[Positions]) -> Positions:
        return sum(parts[1:], parts[0])

    return Asked(
        facts=1,
        whole=total([behind(0, length) for _, length in rows]),
        fixed=total([behind(0, end) for end, _ in rows]),
        moving=total([behind(end, length) for end, length in rows]) + Positions(heads=heads),
        own_pairs=sum(behind(0, length - end).pairs for end, length in rows),
        subjects=total([behind(0, end + 1) for end in ends]),
    )


def solve_work(shape: Shape, run: Run) -> int:
    """Multiply-adds of the steps of a run at one layer, with its second moment factored where it has one."""
    row = configurations().get(run.sequence, {"host": run.sequence, "retain": "none"})
    kept = row.get("retain") == "all" or run.sequence == "alphaedit_plus"
    sizes = [min(run.batch, run.facts - start) for start in range(0, run.facts, run.batch)]
    steps = sum(step_work(shape, i * run.batch if kept else 0, size) for i, size in enumerate(sizes))
    moment = row["host"] == "memit" or "preserve_weight" in row
    factored = 0 if not moment else 1 if kept else len(sizes)
    return steps + factored * shape.d_k**3 // 6


def projector_work(shape: Shape) -> int:
    """Multiply-adds of one layer's projector."""
    wide = shape.d_k >= LARGE
    return LEADING * shape.d_k**2 if wide else int(EIGH * shape.d_k**3)


def operations(shape: Shape, work: Work, method: Method, weight_bytes: int) -> Operations:
    """Multiply-adds of a page by stage.

    Args:
        shape: of the model.
        work: of the page.
        method: settings that its edits have.
        weight_bytes: of one weight of the model.
    """
    at, last = mean_fact(method), method.layers[-1]
    layers = len(method.layers) if work.layers is None else work.layers
    tokens = (method.tokens if work.tokens is None else work.tokens) if layers else 0
    windows = tokens * (WINDOW + 1) // 2
    prompt = behind(0, PROMPT, heads=1) + behind(PROMPT, PROMPT + 2 * (TARGET - 1), heads=2 * (TARGET - 1))
    read = Positions(work.read, work.read * (WINDOW + 1) // 2, work.read)
    steps = work.steps or method.steps
    written = sum(run.facts for run in work.runs)
    asked = work.asked + work.by_layer * shape.layers
    return Operations(
        model={
            "values": work.values * values_work(shape, at, last, steps),
            "keys": written * len(method.layers) * keys_work(shape, at, last),
            "statistics": Positions(tokens, windows).forward(shape, last + 1),
            "evaluation": asked * evaluation_work(shape, prompt) + evaluation_work(shape, read),
        },
        exact={
            "solve": len(method.layers) * sum(solve_work(shape, run) for run in work.runs),
            "statistics": layers * tokens * shape.d_k**2 // 2,
            "projector": layers * projector_work(shape) if work.projected else 0,
        },
        moved={"evaluation": work.drawn * shape.weights * weight_bytes},
    )


def memory(shape: Shape, work: Work, method: Method, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that a page holds at its fullest, by part.

    Args:
        shape: of the model.
        work: of the page.
        method: settings that its edits have.
        dtype: of the model's weights.

    Returns:
        ``weights``, ``moments`` of the layers that the page looks at, ``projectors`` at most, ``ledgers`` of
        the longest run, ``activations`` of a chunk of values, and ``factors``: what the decomposition or the
        factorisation of one layer's moment takes besides.
    """
    layers = len(method.layers) if work.layers is None else work.layers
    square = shape.d_k * shape.d_k * FLOAT64
    held = max((run.facts for run in work.runs), default=0)
    copies = 1 if shape.d_k >= LARGE else 3  # eigenvectors and the workspace of LAPACK
    return {
        "weights": shape.weights * dtype.itemsize,
        "moments": layers * square,
        "projectors": layers * square // 2 if work.projected else 0,
        "ledgers": len(method.layers) * ledger_bytes(shape, held, dtype) if held else 0,
        "activations": activation_bytes(shape, method.layers[-1], dtype) if work.values else 0,
        "factors": copies * square if layers else 0,
    }
