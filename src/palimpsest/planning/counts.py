"""Operations of a page's work, from the shape of a model.

Operations are multiply-adds, counted as in `palimpsest.studies.cost`. A fact is one of mean length: its
prompt has PROMPT tokens, of which SUBJECT lie before the subject's last one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from palimpsest.algebra.projector import LARGE
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.named_sequences import configurations
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.planning.work import TOGETHER, Run, Work
from palimpsest.studies.cost import (
    Asked,
    Positions,
    Shape,
    behind,
    evaluation_work,
    keys_work,
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

ACTIVATIONS, FEWEST_POSITIONS = 2**29, 64
"""Bytes of activations of a chunk of facts whose values are optimised together, and the positions from which
it is worth a core of its own, as in `palimpsest.memory.optimisation`."""

EARLY, EASY = 0.65, 0.5
"""Share of the steps that a fact takes where it is done at a loss of EASY or more, or may take more than
LONG: 13 of 20 in the record of page 01, 53 of 80 in that of page 09. In the regimes of the papers, with a
limit of 0.05 and few steps, next to no fact is done early."""

LONG = 40
"""See EARLY."""

STAGES = ("values", "keys", "solve", "statistics", "projector", "evaluation", "other")


@dataclass(frozen=True)
class Method:
    """Settings that count.

    Attributes:
        layers: edited layers.
        steps: of the value optimisation, at most.
        stop_below: loss at which a fact is done.
        contexts: sampled prefixes, beside the empty one.
        length: tokens of each.
        tokens: behind each second moment.
    """

    layers: tuple[int, ...]
    steps: int = 20
    contexts: int = 5
    length: int = 10
    tokens: int = 100_000
    stop_below: float = 0.0

    @classmethod
    def of(cls, editor: WeightEditor) -> "Method":
        """Those of an editor; an editor without such settings optimises no values."""
        targets = getattr(editor, "targets", None) or TargetSettings(steps=1)
        contexts = getattr(editor, "contexts", None) or ContextSettings(count=0)
        tokens = int(getattr(editor, "statistics_tokens", 0))
        stop = float(targets.stop_below)
        return cls(tuple(editor.layers), targets.steps, contexts.count, contexts.length, tokens, stop)

    def changed(self, work: Work) -> "Method":
        """With what a page sets for itself, and steps as they are usually taken."""
        contexts = self.contexts if work.contexts is None else work.contexts
        steps = self.steps if work.steps is None else work.steps
        if self.stop_below >= EASY or steps > LONG:
            steps = ceil(EARLY * steps)
        return replace(self, contexts=contexts, steps=steps)


@dataclass(frozen=True)
class Operations:
    """Work of a page by stage.

    Attributes:
        model: stage -> multiply-adds in the model's dtype.
        exact: stage -> multiply-adds in float64.
        moved: stage -> bytes of weights that are read again and again, for a few tokens each time.
        waits: stage -> seconds that no size of the model changes.
    """

    model: Mapping[str, int] = field(default_factory=dict)
    exact: Mapping[str, int] = field(default_factory=dict)
    moved: Mapping[str, int] = field(default_factory=dict)
    waits: Mapping[str, float] = field(default_factory=dict)


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


def rows_of(work: Work) -> dict[str, Mapping[str, Any]]:
    """Settings of each sequence that a page runs; an editor alone keeps nothing."""
    known = configurations() if work.runs else {}
    alone = {"retain": ""}
    return {run.sequence: known.get(run.sequence, alone | {"host": run.sequence}) for run in work.runs}


def solve_work(shape: Shape, run: Run, row: Mapping[str, Any]) -> int:
    """Multiply-adds of the steps of a run at one layer, with its second moment factored where it has one.

    Args:
        shape: of the model.
        run: the run.
        row: settings of its sequence, from `rows_of`.
    """
    kept = row.get("retain") == "all" or run.sequence == "alphaedit_plus"
    sizes = [min(run.batch, run.facts - start) for start in range(0, run.facts, run.batch)]
    steps = sum(step_work(shape, i * run.batch if kept else 0, size) for i, size in enumerate(sizes))
    moment = row["host"] == "memit" or "preserve_weight" in row
    factored = 0 if not moment else 1 if kept else len(sizes)
    if row.get("anchor") == "start":  # directions of the moment enter each step as facts
        steps += len(sizes) * (int(EIGH * shape.d_k**3) + step_work(shape, shape.d_k, shape.d_k))
    return steps + factored * shape.d_k**3 // 6


def projector_work(shape: Shape) -> int:
    """Multiply-adds of one layer's projector."""
    wide = shape.d_k >= LARGE
    return LEADING * shape.d_k**2 if wide else int(EIGH * shape.d_k**3)


def most_positions(shape: Shape, layer: int, item: int) -> int:
    """Moving positions of a chunk, at most; ``item`` is the size of a number in bytes."""
    each = (20 * shape.d_v + 6 * shape.d_k) * item * max(shape.layers - 1 - layer, 1)
    return max(ACTIVATIONS // each, FEWEST_POSITIONS)


def chunks_of(shape: Shape, method: Method, facts: int, item: int) -> int:
    """Chunks that some facts are cut into whose values are optimised together, as in the library."""
    positions = min(facts, TOGETHER) * mean_fact(method).moving.run
    count = ceil(positions / most_positions(shape, method.layers[-1], item))
    return count + count % 2 if positions >= 2 * FEWEST_POSITIONS else count


def _values(shape: Shape, work: Work, method: Method, item: int, cores: int) -> tuple[int, int]:
    """Multiply-adds of values, with those that idle cores could do meanwhile, and bytes of weights read."""
    each = values_work(shape, mean_fact(method), method.layers[-1], method.steps)
    above = (shape.layers - 1 - method.layers[-1]) * shape.layer * item
    work_done, moved = 0.0, 0
    for size, facts in work.optimised.items():
        chunks = chunks_of(shape, method, size, item)
        work_done += facts * each * cores / min(chunks, cores)
        moved += ceil(facts / min(size, TOGETHER)) * chunks * (2 * method.steps - 1) * above
    return int(work_done), moved


def operations(shape: Shape, work: Work, method: Method, item: int, cores: int = 1) -> Operations:
    """Multiply-adds of a page by stage.

    Args:
        shape: of the model.
        work: of the page.
        method: settings that its edits have.
        item: bytes of a weight of the model.
        cores: that work side by side, each on its own facts; 1 on a GPU.
    """
    method = method.changed(work)
    at, last = mean_fact(method), method.layers[-1]
    layers = len(method.layers) if work.layers is None else work.layers
    tokens = (method.tokens if work.tokens is None else work.tokens) if layers else 0
    windows = tokens * (WINDOW + 1) // 2
    prompt = behind(0, PROMPT, heads=1) + behind(PROMPT, PROMPT + 2 * (TARGET - 1), heads=2 * (TARGET - 1))
    read = Positions(work.read, work.read * (WINDOW + 1) // 2, work.read)
    sampled = Positions(work.sampled, work.sampled * PROMPT, work.sampled)
    written = sum(run.facts for run in work.runs)
    asked = work.asked + work.by_layer * shape.layers
    rows, runs = rows_of(work), Counter(work.runs)
    solved = sum(times * solve_work(shape, run, rows[run.sequence]) for run, times in runs.items())
    values, moved = _values(shape, work, method, item, cores)
    evaluated = asked * evaluation_work(shape, prompt) + evaluation_work(shape, read + sampled)
    return Operations(
        model={
            "values": values,
            "keys": written * len(method.layers) * keys_work(shape, at, last),
            "statistics": Positions(tokens, windows).forward(shape, last + 1),
            "evaluation": evaluated,
        },
        exact={
            "solve": len(method.layers) * solved,
            "statistics": layers * tokens * shape.d_k**2 // 2,
            "projector": layers * projector_work(shape) if work.projected else 0,
            "other": work.exact + sum(n * svd_work(shape, keys) for keys, n in work.decomposed.items()),
        },
        moved={"values": moved, "evaluation": work.drawn * shape.weights * item},
        waits={"other": work.waits},
    )


def svd_work(shape: Shape, keys: int) -> int:
    """Multiply-adds of a thin singular value decomposition of keys (Golub & Van Loan, 4th ed., 8.6.3)."""
    long, short = max(shape.d_k, keys), min(shape.d_k, keys)
    return 3 * long * short**2 + 10 * short**3
