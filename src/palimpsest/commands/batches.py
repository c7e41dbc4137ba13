"""The command that runs a matrix of profiles, seeds and pages on a node with GPUs or on a cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.commands.shared import Anyway, readable
from palimpsest.errors import ModelError


def batch(
    profile: Annotated[str, typer.Option(help="Where: node, slurm or kubernetes.")] = "node",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is due, and run nothing.")] = False,
    matrix: Annotated[
        Path | None, typer.Option(help="Default config/batch.yaml.", show_default=False)
    ] = None,
    plan: Annotated[
        list[Path] | None,
        typer.Option(
            help="What 'palimpsest plan PROFILE --json' printed on a node of the cluster; may be repeated.",
            show_default=False,
        ),
    ] = None,
    anyway: Anyway = False,
    option: Annotated[
        list[str] | None,
        typer.Option(help="A further argument of Snakemake, as --option=--quiet.", show_default=False),
    ] = None,
) -> None:
    """Run what is due of a matrix of models, seeds and pages; the same command goes on with what is left.

    A run that fails is not tried again in this batch and leaves the others alone; one that lost its memory,
    GPU or node, or ran out of time, is. On a cluster jobs ask for memory and time by the plan of their
    profile: the one that is given, or one that is made here. Needs the extra batch (Snakemake).

    Example: palimpsest batch --dry-run
    Example: palimpsest batch --profile slurm --plan plan.json
    """
    from palimpsest.batch.engine import run_batch
    from palimpsest.batch.estimates import Estimates
    from palimpsest.batch.matrix import load_matrix

    for path in plan or ():
        readable(path)
    wanted = load_matrix(matrix)
    estimates = Estimates.read(plan or [], wanted, None if profile == "node" else planned)
    run_batch(wanted, profile, dry=dry_run, extra=option or [], estimates=estimates, anyway=anyway)


SECONDS = 4.0
"""Seconds that the probe of a plan may take."""


def planned(profile: str, pages: Sequence[str]) -> dict[str, Any]:
    """A plan of a profile; where its device is not on this machine, the memory of the host alone."""
    from palimpsest.book.profiles import load_profile
    from palimpsest.network.placement import one_of
    from palimpsest.planning.plan import plan
    from palimpsest.planning.weights import weights_of

    setting = load_profile(profile)
    device = str(setting.defaults.get("device", "cpu"))
    try:
        here = device == "cpu" or one_of(device).type != "cpu"
    except ModelError:
        here = False
    if here:
        return plan(profile, pages, SECONDS).as_dict()
    stored = weights_of(setting.model, device).stored
    return {"profile": profile, "machine": {}, "host_memory_bytes": stored, "pages": []}
