"""The command that runs a matrix of profiles, seeds and pages on a node with GPUs or on a cluster."""

from pathlib import Path
from typing import Annotated

import typer


def batch(
    profile: Annotated[str, typer.Option(help="Where: node, slurm or kubernetes.")] = "node",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is due, and run nothing.")] = False,
    matrix: Annotated[
        Path | None, typer.Option(help="Default config/batch.yaml.", show_default=False)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="A further argument of Snakemake, as --option=--quiet.", show_default=False),
    ] = None,
) -> None:
    """Run what is due of a matrix of models, seeds and pages; the same command goes on with what is left.

    A run that fails is not tried again in this batch and leaves the others alone; one that lost its memory,
    GPU or node is. Needs the extra batch (Snakemake).

    Example: palimpsest batch --dry-run
    Example: palimpsest batch --profile slurm
    """
    from palimpsest.batch.engine import run_batch
    from palimpsest.batch.matrix import load_matrix

    run_batch(load_matrix(matrix), profile, dry=dry_run, extra=option or [])
