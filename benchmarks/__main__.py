"""The command line: ``python -m benchmarks [STAGE ...] [--quick]``."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import inputs
from benchmarks.contest import DisagreementError, Row, decide
from benchmarks.machine import about
from benchmarks.stages import STAGES, Stage
from palimpsest import paths
from palimpsest.cache import empty
from palimpsest.errors import PalimpsestError, UnknownNameError
from palimpsest.files import as_json, write_atomically

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def results_file() -> Path:
    """``results/bench.json`` of the repository."""
    return paths.results_root() / "bench.json"


@app.command()
def main(
    stages: Annotated[list[str] | None, typer.Argument(help="Names of stages; default all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes on a random model.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads; default all cores, with --quick one.", show_default=False),
    ] = None,
) -> None:
    """Time the library's paths against their twins; all stages at full size write results/bench.json."""
    # Handing tiny products to several threads takes far longer than the products.
    torch.set_num_threads(threads or (1 if quick else inputs.cores()))
    try:
        rows = run(stages or list(STAGES), quick)
    except (DisagreementError, PalimpsestError) as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise typer.Exit(1) from None
    if not stages and not quick:
        write_atomically(results_file(), as_json(table(rows)))
        typer.echo(f"written: {results_file()}")


def run(names: list[str], quick: bool) -> list[Row]:
    """Run stages one after the other, each printed when it is done.

    Raises:
        UnknownNameError: if there is no stage of a name; none is run.
        DisagreementError: if paths and twins gave different results, after the last stage; names the stages.
    """
    for name in names:
        if name not in STAGES:
            raise UnknownNameError("stage", name, list(STAGES))
    rows, refused = [], []
    with ExitStack() as stack:
        if quick:
            stack.enter_context(empty())  # nothing of a random model stays in the cache
        given = inputs.quick() if quick else inputs.full()
        for name in names:
            typer.echo(f"{name} ...")
            try:
                row = decide(name, STAGES[name].contest(given), lambda text: typer.echo(f"  {text}"))
            except DisagreementError as error:  # the other stages are still worth their time
                refused.append(str(error))
                continue
            rows.append(row)
            typer.echo(printed(row, STAGES[name]))
    if refused:
        raise DisagreementError("\n".join(refused))
    return rows


def table(rows: list[Row]) -> dict[str, Any]:
    """What ``results/bench.json`` holds: the machine, the bars and the rows."""
    bars = {
        name: {"ratio": stage.ratio, "share_of_limit": stage.share, "peak_mb": stage.peak_mb}
        for name, stage in STAGES.items()
    }
    return {"about": about() | {"bars": bars}, "rows": [row.rounded() for row in rows]}


def printed(row: Row, stage: Stage) -> str:
    """A row in words, with the bar beside each number that has one."""
    parts = [f"  {row.sizes}", f"  {row.ours_s:.3g} s, {row.peak_mb:.0f} MB"]
    if row.twin_s is not None:
        parts[1] += f"; twin {row.twin_s:.3g} s"
    if row.ratio is not None:
        parts.append(_against("ratio", row.ratio, stage.ratio, row.ratio >= (stage.ratio or 0)))
    if row.share_of_limit is not None:
        met = row.share_of_limit >= (stage.share or 0)
        parts.append(_against("share of the limit", row.share_of_limit, stage.share, met))
    if stage.peak_mb is not None:
        parts.append(_against("peak MB", row.peak_mb, stage.peak_mb, row.peak_mb <= stage.peak_mb))
    return "\n".join(parts)


def _against(name: str, value: float, bar: float | None, met: bool) -> str:
    asked = "" if bar is None else f" (bar {bar:.3g}, {'met' if met else 'MISSED'})"
    return f"  {name} {value:.3g}{asked}"


if __name__ == "__main__":
    app()
