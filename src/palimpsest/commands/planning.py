"""The command that says what a profile will take."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Pages = Annotated[
    list[str] | None,
    typer.Option("--pages", help="Names of notebooks, also several with commas; all by default."),
]


def plan(
    profile: Annotated[str, typer.Argument(help="Name of a file in config/profiles.")],
    pages: Pages = None,
    json: Annotated[bool, typer.Option("--json", help="For a scheduler: bytes and seconds.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=10, help="That the probe may take.")] = 10.0,
    device: Annotated[
        str | None,
        typer.Option(help="Plan for this device of this machine, not the profile's.", show_default=False),
    ] = None,
) -> None:
    """Say what a profile will take: bytes to fetch, disk, memory, and time by stage of each page.

    Sizes follow from the shape of the model and the profile's device, so any machine can tell them. Times
    follow from counts of operations and a probe of this machine, so ask on the one that is to run it; runs of
    this profile on record correct them.

    Example: palimpsest plan gpu-gpt2-xl
    Example: palimpsest plan laptop --pages 06_alignment,07_drift --json
    """
    from palimpsest.book.profiles import find_notebook, known_notebooks, load_profile
    from palimpsest.files import as_json
    from palimpsest.planning.plan import plan as planned
    from palimpsest.planning.report import report

    load_profile(profile)
    names = [find_notebook(name).stem for text in pages or () for name in text.split(",") if name]
    made = planned(profile, names or known_notebooks(), seconds, device)
    typer.echo(as_json(made.as_dict()).decode() if json else report(made), nl=not json)


def fits(gpu: str | None) -> Callable[[Path, Mapping[str, Any]], None]:
    """A check that refuses a page whose plan exceeds the memory of its GPU.

    Args:
        gpu: what CUDA_VISIBLE_DEVICES is set to for the run; as it is set here if None.

    Returns:
        For `palimpsest.book.runner.run_notebook`; it raises a FullGpuError.
    """

    def check(source: Path, parameters: Mapping[str, Any]) -> None:
        from palimpsest.book.gpus import room_of

        room = room_of(str(parameters.get("device", "cpu")), gpu)
        if room:
            from palimpsest.planning.fits import check_fits

            check_fits(source, parameters, room)

    return check
