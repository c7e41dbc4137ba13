"""The commands that measure models: how they score on facts, and how two of them differ."""

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.commands.edits import Json
from palimpsest.commands.shared import Device, readable, writable

What = Annotated[
    list[str] | None,
    typer.Option(help="Also ask for ability, drift or representation; may be repeated.", show_default=False),
]
Unedited = Annotated[
    str | None,
    typer.Option(
        help="For drift and representation: the model before editing; an edited folder knows its own.",
        show_default=False,
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(help="For representation: the last edited layer; likewise.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="The first so many facts; default all.", show_default=False)
]


def evaluate(
    model: Annotated[str, typer.Argument(help="Name, folder or hub id; an edited folder too.")],
    facts: Annotated[
        Path, typer.Argument(help="Facts in any format, with or without neighbours.", callback=readable)
    ],
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="File for one row per metric and case.", show_default=False, callback=writable
        ),
    ] = None,
    json: Json = None,
    what: What = None,
    unedited: Unedited = None,
    layer: Layer = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Score a model on facts: efficacy, generalisation and specificity, with intervals over cases.

    Facts are read in the formats of CounterFact, ZsRE (MEND), EasyEdit, KnowEdit and this project, as JSON,
    JSON lines or CSV, also compressed. A fact without paraphrases, neighbours or a true object has no value
    of the metrics that need them. What else an edit changed is asked with --what: general ability on items
    about none of these facts, drift on held-out text, the shift of hidden states of other facts.

    Example: palimpsest evaluate edited facts.jsonl --csv scores.csv --json scores.json
    Example: palimpsest evaluate edited facts.jsonl --what ability --what drift --what representation
    """
    from palimpsest.datasets.any_format import load_cases_of
    from palimpsest.network.model import load
    from palimpsest.workbench.beside_facts import beside_facts, unedited_readings
    from palimpsest.workbench.measurements import known
    from palimpsest.workbench.measuring import measure

    asked = known(what or [])
    cases = load_cases_of(facts).cases[:limit]
    given = unedited_readings(model, asked, cases, unedited, layer, device)
    net = load(model, device=device)
    done = measure(net, cases, seed)
    if asked:
        done = done.with_tables(beside_facts(net, asked, cases, given, seed))
    done.write(csv, json)
    typer.echo(f"{model} on {len(cases)} facts of {facts}\n\n{done}")


def compare(
    first: Annotated[str, typer.Argument(help="Name, folder or hub id.")],
    second: Annotated[str, typer.Argument(help="Another of the same architecture and size.")],
    facts: Annotated[
        Path | None,
        typer.Option(help="Facts to score both on, in any format.", show_default=False, callback=readable),
    ] = None,
    json: Json = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Say how two models differ: which weights, which facts they hold, and how they score.

    Example: palimpsest compare smollm2-135m edited --facts facts.jsonl
    """
    from palimpsest.datasets.any_format import load_cases_of
    from palimpsest.files import as_json, replacing
    from palimpsest.workbench.measuring import compare as compared

    cases = load_cases_of(facts).cases[:limit] if facts else []
    done = compared(first, second, cases, device, seed)
    if json is not None:
        with replacing(json) as temporary:
            temporary.write_bytes(as_json(done.as_dict()))
    typer.echo(str(done))
