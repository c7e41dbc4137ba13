"""Training of the hypernetworks of MEND and InstructEdit, with progress, curves and resumption.

Each step draws facts of one kind, takes the update that the network makes of their gradients, and minimises

    w · (NLL of the new objects) + KL(unedited ‖ edited) of prompts about others

with Adam over the network's parameters. Kinds take turns, sizes of batches too; steps, curves and resumption
are those of `palimpsest.training.runs`.

Source: Mitchell et al., ICLR 2022, Algorithm 1 and Eq. 4.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from palimpsest import cache
from palimpsest.editors.hypernetwork import Hypernetwork
from palimpsest.editors.ultraedit import Running, features
from palimpsest.files import locked
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.training import runs
from palimpsest.training.lessons import Draw, Kind, Losses
from palimpsest.types import EvalCase


@dataclass(frozen=True)
class Plan(runs.Plan):
    """How a hypernetwork is trained; the learning rate of log η is a hundred times ``lr``.

    ``edit_weight`` is 0.1 as published, for trainings a hundred times as long.

    Attributes:
        calibration: training facts of each kind from which features are normalised.
    """

    calibration: int = 64


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
        network, run = _begin(model, kinds, plan)
        runs.restore(run, halfway, mark)
        losses, judged = partial(_losses, model, network), partial(_judged, model, network, plan)
        runs.go_on(run, kinds, plan, losses, judged, lambda: runs.keep(run, halfway, mark))
        network.load_state_dict(run.best)
        network.about = runs.history(run, plan, about)
        network.save(out, fingerprint(model))
        halfway.unlink()
    return network


def _begin(model: EditableModel, kinds: Sequence[Kind], plan: Plan) -> tuple[Hypernetwork, runs.Run]:
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
    return network, runs.Run(network, adam)


def _losses(
    model: EditableModel, network: Hypernetwork, kind: Kind, cases: Sequence[EvalCase], turn: int
) -> Losses:
    requests = [case.request for case in cases]
    read, _ = features(model, requests, network.layers, (kind.instruction,), len(requests))
    updates = {layer: network.update(layer, *both) for layer, both in read.items()}
    return Draw(model, cases, turn).losses(updates)


def _judged(
    model: EditableModel, network: Hypernetwork, plan: Plan, kind: Kind
) -> Iterator[Mapping[str, float]]:
    for turn, case in enumerate(kind.validation[: plan.judged]):
        with torch.no_grad():
            read = _read(model, network, kind, case)
            updates = {layer: network.update(layer, *both) for layer, both in read.items()}
            draw = Draw(model, [case], turn, beside_true=True)
            found = draw.losses(updates)
        yield dict(runs.told(draw, found))


def _read(model: EditableModel, network: Hypernetwork, kind: Kind, case: EvalCase) -> Any:
    with torch.enable_grad():
        return features(model, [case.request], network.layers, (kind.instruction,), 1)[0]
