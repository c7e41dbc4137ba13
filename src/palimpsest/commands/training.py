"""The command that trains what trained editors learn beforehand."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from palimpsest.commands.shared import Device

if TYPE_CHECKING:  # what a command needs is loaded when it runs
    from palimpsest.training.lessons import Kind
    from palimpsest.training.table import Training
    from palimpsest.types import EvalCase

Trained = Literal["mend", "instruct_edit", "serac"]
Rate = Annotated[
    float | None,
    typer.Option(help="Adam's learning rate; default 0.001, of serac 0.002.", show_default=False),
]


def train(
    kind: Annotated[Trained, typer.Argument(help="Editor that is trained.")],
    model: Annotated[str, typer.Argument(help="Name, folder or hub id; unedited.")],
    data: Annotated[
        list[Path], typer.Option(help="Facts with rewordings and neighbours, in any format; may be repeated.")
    ],
    instruction: Annotated[
        list[str] | None,
        typer.Option(help="For instruct_edit: one for each --data, in order.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Regular expression of the prompts that are read; one for each --data, in order.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Layers that change, as 27-29; default those on file.", show_default=False)
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 1000,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the maps; default 128, of serac 8.", show_default=False)
    ] = None,
    lr: Rate = None,
    edit_weight: Annotated[float, typer.Option(min=0, help="Of facts beside neighbours in the loss.")] = 1.0,
    every: Annotated[int, typer.Option(min=1, help="Steps from checkpoint to checkpoint.")] = 100,
    judged: Annotated[int, typer.Option(min=1, help="Validation facts a file, for the curve.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the order of the facts and of the network.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="File; default in the cache, where the editor looks.", show_default=False),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Train what MEND, InstructEdit or SERAC learns beforehand.

    SERAC learns which prompts a fact answers, and how the model reads it before them. Facts about subjects
    of the project's own set are left out; the others are divided by their subjects into a training, a
    validation and a test part. Killed, the same command goes on from its last checkpoint.

    Example: palimpsest train mend smollm2-135m --data facts.jsonl --steps 2
    """
    from palimpsest.editors.mend import network_file
    from palimpsest.memory.shard_files import layers_of
    from palimpsest.network.model import fingerprint, load
    from palimpsest.training.table import TRAININGS

    net, training = load(model, device=device), TRAININGS[kind]
    kinds, sources = _kinds(kind, training, data, instruction or [], only or [])
    chosen = tuple(layers_of(layers)) if layers else training.layers(net)
    own = _given(rank=rank, lr=lr)
    plan = training.plan(chosen, steps, edit_weight=edit_weight, every=every, judged=judged, seed=seed, **own)
    place = out or network_file(fingerprint(net), kind)
    found = training.train(net, kinds, plan, place, {"model": net.name, "data": sources})
    typer.echo(f"{place}: {steps} steps, {_best(found.about['curve'])}")
    if out is not None or training.file(net) != place:
        typer.echo(f"{kind} looks elsewhere first; to use this one, give the editor network={str(place)!r}")


def _given(**options: Any) -> dict[str, Any]:
    """Options that were given; a training has its own defaults for others."""
    return {name: value for name, value in options.items() if value is not None}


def _best(curve: Sequence[Mapping[str, float]]) -> str:
    """The point of the curves that was kept."""
    best = min(curve, key=lambda row: row["loss"])
    return f"the best after {best['step']}; {_preferred(best)}"


def _preferred(point: Mapping[str, float]) -> str:
    """What a point of the curves says of the new objects beside the true ones."""
    if "own" not in point:
        return "no validation fact names its true object, with which the new one could be compared"
    reworded = f", and {100 * point['reworded']:.0f} % reworded" if "reworded" in point else ""
    return (
        f"of validation facts edited one at a time, {100 * point['own']:.0f} % prefer the new object to the "
        f"true one in their own words{reworded}"
    )


def _kinds(
    kind: str, training: "Training", data: list[Path], instructions: list[str], patterns: list[str]
) -> tuple[list["Kind"], list[Any]]:
    """A kind of request for each file, and where its cases come from."""
    from palimpsest.datasets import load_facts
    from palimpsest.datasets.any_format import load_cases_of
    from palimpsest.datasets.training import training_split
    from palimpsest.errors import DataError
    from palimpsest.training.lessons import Kind

    wanted = len(data) if training.instructed else 0
    if len(instructions) != wanted:
        raise DataError(
            f"{len(instructions)} instructions were given for {len(data)} files; {kind} needs "
            f"{'one for each --data, in order' if wanted else 'none'}"
        )
    if len(patterns) not in (0, len(data)):
        raise DataError(
            f"{len(patterns)} patterns were given for {len(data)} files; give one --only for each --data, in "
            "order, or none"
        )
    facts, kinds, sources = load_facts(), [], []
    told = instructions or [""] * len(data)
    for path, instruction, pattern in zip(data, told, patterns or [""] * len(data), strict=True):
        loaded = load_cases_of(path, strict=False)  # a prompt asked twice is learnt once
        split = training_split(_matching(loaded.cases, pattern, path), facts)
        kinds.append(
            Kind(" ".join(filter(None, (path.name, pattern))), instruction, split.training, split.validation)
        )
        sources.append(
            {
                "file": path.name,
                "sha256": loaded.sha256,
                "instruction": instruction,
                "only": pattern,
                "training": len(split.training),
                "validation": len(split.validation),
                "test": len(split.test),
                "left_out": split.left_out,
                "rejected": len(loaded.rejected),
            }
        )
    return kinds, sources


def _matching(cases: Sequence["EvalCase"], pattern: str, path: Path) -> list["EvalCase"]:
    """The cases of a file whose prompts, with ``{}`` for the subject, have a match of a pattern."""
    from palimpsest.errors import DataError

    try:
        found = [case for case in cases if re.search(pattern, case.request.prompt)]
    except re.error as error:
        raise DataError(f"--only {pattern!r}: no regular expression ({error})") from error
    if not found:
        raise DataError(f"--only {pattern!r}: matches no prompt of the {len(cases)} facts in {path}")
    return found
