"""The command that downloads what is needed, on a machine with a network."""

from typing import Annotated

import typer


def fetch(
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Also the model of this profile; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Download and verify the embedded model and texts; needed once.

    With --profile also the profile's model, from the hub into its cache (HF_HOME): its size is said
    beforehand, an interrupted download goes on, and machines that share the cache then need no network.

    Example: palimpsest fetch --profile gpu-gpt2-xl
    """
    from palimpsest import resources
    from palimpsest.network.embedded import unpacked_model

    resources.fetch_all()
    unpacked_model()
    if profile:
        _fetch_models(profile)


def _fetch_models(profiles: list[str]) -> None:
    from pathlib import Path

    from palimpsest.book.profiles import load_profile
    from palimpsest.network.fetching import fetch_model
    from palimpsest.network.sources import EMBEDDED

    for name in dict.fromkeys(load_profile(profile).model for profile in profiles):
        if name == EMBEDDED or Path(name).exists():
            typer.echo(f"{name} is here already")
        else:
            fetch_model(name, typer.echo)
