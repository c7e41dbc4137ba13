"""The course that all trainings share: steps of Adam, a held-out curve, checkpoints and resumption.

A step follows from the seed and its number alone: killed, a training goes on where its last checkpoint was,
to the same bits. What is kept in the end is the checkpoint with the smallest loss on validation facts.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import NonFiniteError, ResourceError
from palimpsest.files import replacing
from palimpsest.training.lessons import Draw, Kind, Losses
from palimpsest.types import EvalCase

SILENT = 60.0
"""Seconds between lines on standard error where no bar is shown, as in a log."""


@dataclass(frozen=True)
class Plan:
    """How something is trained.

    Attributes:
        layers: layers that it changes, ascending.
        steps: of Adam.
        rank: of its maps.
        lr: Adam's learning rate.
        edit_weight: w, of the new objects beside prompts about others in the loss.
        sizes: facts in a step, in turns.
        every: steps from checkpoint to checkpoint, and from one point of the curves to the next.
        judged: validation facts of each kind, each edited alone, for a point of the curves.
        clip: largest norm of the gradient of all parameters together.
        seed: of the order of the facts and of the parameters.
    """

    layers: tuple[int, ...]
    steps: int = 1000
    rank: int = 128
    lr: float = 1e-3
    edit_weight: float = 1.0
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    every: int = 100
    judged: int = 20
    clip: float = 100.0
    seed: int = 0


@dataclass
class Run:
    """A training under way: parameters, optimiser, and what was seen."""

    network: nn.Module
    adam: torch.optim.Optimizer
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


Step = Callable[[Kind, Sequence[EvalCase], int], Losses]
"""(kind, facts, number of the step) -> their losses, differentiable in the parameters."""

Judge = Callable[[Kind], Iterable[Mapping[str, float]]]
"""Kind -> for each of its judged validation facts, edited alone, `told`."""


def go_on(
    run: Run, kinds: Sequence[Kind], plan: Plan, losses_of: Step, judge: Judge, keep: Callable[[], None]
) -> None:
    """Train until all steps are done.

    Args:
        run: changed in place.
        kinds: cases to learn from, in turns.
        plan: see `Plan`.
        losses_of: of a step.
        judge: of a point of the curves.
        keep: writes a checkpoint.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite.
    """
    parameters, told = list(run.network.parameters()), time.monotonic()
    with tqdm(total=plan.steps, initial=run.step, desc="training", unit="step") as bar:
        while run.step < plan.steps or not run.best:
            begun = time.monotonic()
            if run.step % plan.every == 0 and not any(row["step"] == run.step for row in run.curve):
                _judge(run, kinds, plan, judge)
            if run.step < plan.steps:
                losses = losses_of(*drawn(kinds, plan, run.step), run.step)
                loss = plan.edit_weight * losses.edit + losses.local
                _require_finite(loss.item(), run.step)
                run.adam.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, plan.clip)
                run.adam.step()
                run.step += 1
                bar.update()
                shown = {"edit": f"{losses.edit.item():.2f}", "local": f"{losses.local.item():.3f}"}
                bar.set_postfix(shown)
                if bar.disable and time.monotonic() - told >= SILENT:  # a log
                    told, rest = time.monotonic(), ", ".join(map(" ".join, shown.items()))
                    tqdm.write(f"training: step {run.step} of {plan.steps}, {rest}", file=sys.stderr)
            if run.step == plan.steps:
                _judge(run, kinds, plan, judge)
            run.seconds += time.monotonic() - begun
            if run.step % plan.every == 0 or run.step == plan.steps:
                keep()


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the loss is {loss} at step {step}; lower the learning rate. The last checkpoint is kept"
        )


def drawn(kinds: Sequence[Kind], plan: Plan, step: int) -> tuple[Kind, list[EvalCase]]:
    """The facts of a step; distinct prompts only, as one batch can hold a prompt once."""
    kind = kinds[step % len(kinds)]
    size = plan.sizes[step // len(kinds) % len(plan.sizes)]
    chosen = random.Random(f"{plan.seed} {step}").sample(kind.training, min(size, len(kind.training)))
    return kind, list({case.request.text: case for case in chosen}.values())


def _judge(run: Run, kinds: Sequence[Kind], plan: Plan, judge: Judge) -> None:
    """A point of the curves, and the parameters kept if its loss is the smallest so far."""
    rows = [dict(row) for kind in kinds for row in judge(kind)]
    mean = {name: fmean(row[name] for row in rows) for name in ("edit", "local")}
    _require_finite(plan.edit_weight * mean["edit"] + mean["local"], run.step)
    for name in ("own", "reworded"):
        if shares := [row[name] for row in rows if row[name] == row[name]]:
            mean[name] = fmean(shares)
    point = {"step": run.step, **{name: round(value, 4) for name, value in mean.items()}}
    point["loss"] = round(plan.edit_weight * mean["edit"] + mean["local"], 5)
    if all(point["loss"] < row["loss"] for row in run.curve):
        run.best = {name: one.detach().clone() for name, one in run.network.state_dict().items()}
    run.curve.append(point)


def told(draw: Draw, found: Losses) -> Iterator[tuple[str, float]]:
    """Losses of one validation fact, and whether its new object is likelier; see `Draw.more_likely`."""
    yield "edit", float(found.edit)
    yield "local", float(found.local)
    yield "own", draw.more_likely(found, 0)
    yield "reworded", draw.more_likely(found, 1)


def history(run: Run, plan: Plan, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where what was trained comes from: the data, the plan, seconds and the curves; JSON-able."""
    return {**(about or {}), "plan": asdict(plan), "seconds": round(run.seconds), "curve": run.curve}


def keep(run: Run, path: Path, mark: str) -> None:
    """Write a checkpoint.

    Args:
        run: as it is.
        path: replaced at once.
        mark: hash of all that the training depends on.
    """
    tensors = {f"network.{name}": one for name, one in run.network.state_dict().items()}
    tensors |= {f"best.{name}": one for name, one in run.best.items()}
    for index, state in run.adam.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": one for name, one in state.items()}
    head = {
        "mark": mark,
        "step": str(run.step),
        "curve": json.dumps(run.curve),
        "seconds": repr(run.seconds),
    }
    plain = {name: one.contiguous().clone() for name, one in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, cache.vouched(plain, head))


def restore(run: Run, path: Path, mark: str) -> None:
    """Bring a run to where a checkpoint is, if there is one.

    Raises:
        ResourceError: if the checkpoint is of another training or cannot be read.
    """
    if not path.exists():
        return
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as handle:
            head = handle.metadata() or {}
        cache.require_sum(tensors, head)
        if (found := head["mark"]) == mark:
            _take(run, head, tensors)
    except cache.UNREADABLE as error:
        raise ResourceError(f"{path}: no readable checkpoint ({error}); remove it to begin anew") from error
    if found != mark:
        raise ResourceError(
            f"{path}: a checkpoint of a training with another model, plan or data; remove it to begin anew, "
            "or repeat the command that made it"
        )


def _take(run: Run, head: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Bring a run to where a checkpoint is."""

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): one for key, one in tensors.items() if key.startswith(name)}

    run.network.load_state_dict(part("best."))  # it fits, or this says so
    run.network.load_state_dict(part("network."))
    run.best = part("best.")
    whole = run.adam.state_dict()
    whole["state"] = {}
    for key, one in part("adam.").items():
        index, name = key.split(".", 1)
        whole["state"].setdefault(int(index), {})[name] = one
    run.adam.load_state_dict(whole)
    run.step, run.seconds = int(head["step"]), float(head["seconds"])
    curve = json.loads(head["curve"])
    run.curve = [{**row, "step": int(row["step"]), "loss": float(row["loss"])} for row in curve]
