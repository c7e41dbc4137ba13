"""Training of the hypernetworks of MEND and InstructEdit, with progress, curves and resumption.

Each step draws facts of one kind, takes the update that the network makes of their gradients, and minimises

    w · (NLL of the new objects) + KL(unedited ‖ edited) of prompts about others

with Adam over the network's parameters. Kinds take turns, sizes of batches too, so that a draw follows from
the seed and the number of its step alone: killed, the training goes on where its last checkpoint was, to the
same bits. What is kept in the end is the checkpoint with the smallest loss on single validation facts.

Source: Mitchell et al., ICLR 2022, Algorithm 1 and Eq. 4.
"""

import json
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.editors.hypernetwork import Hypernetwork
from palimpsest.editors.ultraedit import Running, features
from palimpsest.errors import NonFiniteError, ResourceError
from palimpsest.files import locked, replacing
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.training.lessons import Draw, Kind, Losses
from palimpsest.types import EvalCase

SILENT = 60.0
"""Seconds between lines on standard error where no bar is shown, as in a log."""


@dataclass(frozen=True)
class Plan:
    """How a hypernetwork is trained.

    Attributes:
        layers: edited layers, ascending.
        steps: of Adam.
        rank: of the network's maps.
        lr: Adam's learning rate for the maps; that of log η is a hundred times as large.
        edit_weight: w; 0.1 is published, for trainings a hundred times as long.
        sizes: facts in a step, in turns.
        every: steps from checkpoint to checkpoint, and from one point of the curves to the next.
        judged: validation facts of each kind, each edited alone, for a point of the curves.
        calibration: training facts of each kind from which features are normalised.
        clip: largest norm of the gradient of all parameters together.
        seed: of the order of the facts and of the network.
    """

    layers: tuple[int, ...]
    steps: int = 1000
    rank: int = 128
    lr: float = 1e-3
    edit_weight: float = 1.0
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    every: int = 100
    judged: int = 20
    calibration: int = 64
    clip: float = 100.0
    seed: int = 0


@dataclass
class _Run:
    """A training under way: network, optimiser, and what was seen."""

    network: Hypernetwork
    adam: torch.optim.Optimizer
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def train(
    model: EditableModel, kinds: Sequence[Kind], plan: Plan, out: Path, about: Mapping[str, Any] | None = None
) -> Hypernetwork:
    """Train a hypernetwork, or go on with one, and write it.

    Args:
        model: the unedited model.
        kinds: cases to learn from.
        plan: see `Plan`.
        out: the network's file; checkpoints stand beside it until the end, under the ending ``.training``.
        about: of the data, for the network's ``about``.

    Returns:
        The network of the best checkpoint. Its ``about`` holds the plan, seconds and a point of the curves
        for each checkpoint: the losses, and the share of validation facts whose new object became likelier
        than the true one, in their own words and reworded; a share is left out where no fact has both
        objects in those words.

    Raises:
        ResourceError: if the checkpoint is of another training, or a file cannot be read or written.
        NonFiniteError: if a loss becomes NaN or infinite; the last checkpoint stays.
    """
    mark = cache.digest([fingerprint(model), asdict(plan), about, [asdict(kind) for kind in kinds]])
    halfway = out.with_suffix(".training")
    with locked(out):
        run = _begin(model, kinds, plan)
        if halfway.exists():
            _restore(run, halfway, mark)
        _go_on(model, kinds, plan, run, lambda: _keep(run, halfway, mark))
        run.network.load_state_dict(run.best)
        run.network.about = {
            **(about or {}),
            "plan": asdict(plan),
            "seconds": round(run.seconds),
            "curve": run.curve,
        }
        run.network.save(out, fingerprint(model))
        halfway.unlink()
    return run.network


def _begin(model: EditableModel, kinds: Sequence[Kind], plan: Plan) -> _Run:
    d_v, d_k = read_weight(model, plan.layers[0]).shape
    network = Hypernetwork(plan.layers, (d_v, d_k), plan.rank, seed=plan.seed).to(model.device)
    seen = Running()
    for kind in kinds:
        requests = [case.request for case in kind.training[: plan.calibration]]
        for both in features(model, requests, plan.layers, (kind.instruction,), 16)[0].values():
            seen = seen.after(torch.cat([part.cpu() for part in both], 1))
    network.normalise_by(seen)
    rates = [network.log_rate]
    maps = [one for name, one in network.named_parameters() if name != "log_rate"]
    adam = torch.optim.Adam([{"params": maps, "lr": plan.lr}, {"params": rates, "lr": 100 * plan.lr}])
    return _Run(network, adam)


def _go_on(model: EditableModel, kinds: Sequence[Kind], plan: Plan, run: _Run, keep: Any) -> None:
    parameters, told = list(run.network.parameters()), time.monotonic()
    with tqdm(total=plan.steps, initial=run.step, desc="training", unit="step") as bar:
        while run.step < plan.steps or not run.best:
            begun = time.monotonic()
            if run.step % plan.every == 0 and not any(row["step"] == run.step for row in run.curve):
                _judge(model, kinds, plan, run)
            if run.step < plan.steps:
                kind, cases = _drawn(kinds, plan, run.step)
                losses = _losses(model, run.network, kind, cases, run.step)
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
                _judge(model, kinds, plan, run)
            run.seconds += time.monotonic() - begun
            if run.step % plan.every == 0 or run.step == plan.steps:
                keep()


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the loss is {loss} at step {step}; lower the learning rate. The last checkpoint is kept"
        )


def _drawn(kinds: Sequence[Kind], plan: Plan, step: int) -> tuple[Kind, list[EvalCase]]:
    """The facts of a step; distinct prompts only, as one batch can hold a prompt once."""
    kind = kinds[step % len(kinds)]
    size = plan.sizes[step // len(kinds) % len(plan.sizes)]
    chosen = random.Random(f"{plan.seed} {step}").sample(kind.training, min(size, len(kind.training)))
    return kind, list({case.request.text: case for case in chosen}.values())


def _losses(
    model: EditableModel, network: Hypernetwork, kind: Kind, cases: Sequence[EvalCase], turn: int
) -> Losses:
    requests = [case.request for case in cases]
    read, _ = features(model, requests, network.layers, (kind.instruction,), len(requests))
    updates = {layer: network.update(layer, *both) for layer, both in read.items()}
    return Draw(model, cases, turn).losses(updates)


def _judge(model: EditableModel, kinds: Sequence[Kind], plan: Plan, run: _Run) -> None:
    """A point of the curves, and the parameters kept if its loss is the smallest so far."""
    rows = [dict(row) for kind in kinds for row in _judged(model, run.network, kind, plan)]
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


def _judged(
    model: EditableModel, network: Hypernetwork, kind: Kind, plan: Plan
) -> Iterator[Mapping[str, float]]:
    for turn, case in enumerate(kind.validation[: plan.judged]):
        with torch.no_grad():
            read = _read(model, network, kind, case)
            updates = {layer: network.update(layer, *both) for layer, both in read.items()}
            draw = Draw(model, [case], turn, beside_true=True)
            found = draw.losses(updates)
        yield {
            "edit": float(found.edit),
            "local": float(found.local),
            "own": draw.more_likely(found, 0),
            "reworded": draw.more_likely(found, 1),
        }


def _read(model: EditableModel, network: Hypernetwork, kind: Kind, case: EvalCase) -> Any:
    with torch.enable_grad():
        return features(model, [case.request], network.layers, (kind.instruction,), 1)[0]


def _keep(run: _Run, path: Path, mark: str) -> None:
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


def _restore(run: _Run, path: Path, mark: str) -> None:
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


def _take(run: _Run, head: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
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
