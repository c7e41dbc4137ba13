"""The commands that write facts into a model, take them out again, and measure how stable they are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palimpsest.commands.shared import UNSAID, Device, NoWait, readable, waiting, writable
from palimpsest.errors import RequestError

if TYPE_CHECKING:
    from palimpsest.types import EditRequest, EvalCase
    from palimpsest.workbench.report import EditReport

Require = Annotated[
    bool, typer.Option("--require", help="Exit with status 3 if the model does not say a fact.")
]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="File to write it to as JSON.", show_default=False, callback=writable),
]

Part = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the facts.", show_default=False),
]


def edit(
    facts: Annotated[
        Path, typer.Argument(help="Facts: JSON, JSON lines or CSV, also .gz.", callback=readable)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; an edited one is continued.")],
    model: Annotated[
        str | None, typer.Option(help="Name, folder or hub id; default smollm2-135m.", show_default=False)
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(help="Row of config/sequences.yaml; default memit_aligned.", show_default=False),
    ] = None,
    settings: Annotated[
        str | None, typer.Option(help="Use the settings of this model in config/models.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Facts whose values are optimised together.")] = 1,
    json: Json = None,
    require: Require = False,
    until_said: Annotated[
        bool, typer.Option("--until-said", help="Optimise harder values for facts that it does not say.")
    ] = False,
    shard: Part = None,
    device: Device = "cpu",
    no_wait: NoWait = False,
) -> None:
    """Write facts into a model, save it as a folder, and ask the edited model about each of them.

    Keys and values are read on the unedited model and computed once, so that they depend on each fact alone
    and undo is exact: bit by bit, or, with a batch above 1, up to rounding in the optimisation of the values.
    After an interruption the same command continues; facts that are already in the folder are skipped.

    A fact is said if its new object is the model's first answer. With --until-said the values of facts that
    are not said are optimised with more steps, to a lower loss and with a larger clamp, in three levels, up
    to four times the steps, a tenth of the loss and four times the clamp; what this costs on neighbours and
    control prompts is printed.

    Many facts can be written on several machines: with --shard each writes its part of the file to a folder
    of its own, and `palimpsest join` makes one of them.

    Example: palimpsest edit facts.jsonl --out edited --require
    """
    from palimpsest.datasets.any_format import load_cases_of
    from palimpsest.workbench.commands import edit_and_report

    cases = _part(load_cases_of(facts).cases, shard)
    done, report = edit_and_report(
        cases,
        out,
        model,
        sequence,
        settings=settings,
        batch=batch,
        device=device,
        wait=waiting(no_wait),
        until_said=until_said,
    )
    _said(
        report, json, f"{out}: {len(done)} facts in layers {', '.join(map(str, done.editor.layers))}", require
    )


def _part(cases: list["EvalCase"], shard: str | None) -> list["EvalCase"]:
    """The facts of a shard; all where none is named.

    Raises:
        ShardError: if it is not written as I/N.
        RequestError: if there are fewer facts than shards.
    """
    if shard is None:
        return cases
    from palimpsest.memory.shard_files import Shard
    from palimpsest.workbench.joining import part_of

    part = Shard.parsed(shard)
    return part_of(cases, part.number, part.of)


def join(
    facts: Annotated[Path, typer.Argument(help="All facts, as given to edit.", callback=readable)],
    shards: Annotated[list[Path], typer.Argument(help="Folders of palimpsest edit.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    device: Device = "cpu",
    no_wait: NoWait = False,
) -> None:
    """Join folders that were edited with parts of some facts, as on several machines, into one with all.

    The result is what one edit with all facts gives: bit by bit where values were optimised alone (--batch 1)
    with the same bits. Shards of another model, other settings or other second moments are refused, and so
    are a fact that is in none of them, in two, or not in the file. The shards are only read.

    Example: palimpsest edit facts.jsonl --shard 1/2 --out part-1
    Example: palimpsest edit facts.jsonl --shard 2/2 --out part-2
    Example: palimpsest join facts.jsonl part-1 part-2 --out joined
    """
    from palimpsest.datasets.any_format import load_cases_of
    from palimpsest.workbench.joining import join_folders

    requests = [case.request for case in load_cases_of(facts).cases]
    done = join_folders(requests, shards, out, device=device, wait=waiting(no_wait))
    typer.echo(f"{out}: {len(done)} facts in layers {', '.join(map(str, done.editor.layers))}")


def _said(report: "EditReport", json: Path | None, last: str, require: bool) -> None:
    """Print a report with a last line, and write it if asked for; end with status 3 if that is required."""
    typer.echo(f"{report}\n")
    if json is not None:
        report.write(json)
    typer.echo(last)
    if require and report.unsaid:
        raise typer.Exit(UNSAID)


def undo(
    folder: Annotated[Path, typer.Argument(help="What palimpsest edit wrote.")],
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of facts; the filled prompt if none.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget all facts.")] = False,
    device: Device = "cpu",
    no_wait: NoWait = False,
) -> None:
    """Remove facts from an edited folder: its weights become those of a model edited without them.

    Example: palimpsest undo edited pompidou
    """
    from palimpsest.workbench.commands import undo as take_out

    done = take_out(folder, ids or [], everything=everything, device=device, wait=waiting(no_wait))
    same = f"; every weight is that of {done.base['name']}" if done.is_unedited else ""
    typer.echo(f"{folder}: {len(done)} facts left{same}")


def replace(
    folder: Annotated[Path, typer.Argument(help="What palimpsest edit wrote.")],
    id: Annotated[str, typer.Argument(help="Id of the fact; the filled prompt if it has none.")],
    new: Annotated[str | None, typer.Argument(help="The new object.", show_default=False)] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            help="File with one fact, instead of a new object.", show_default=False, callback=readable
        ),
    ] = None,
    json: Json = None,
    require: Require = False,
    device: Device = "cpu",
    no_wait: NoWait = False,
) -> None:
    """Give a fact of an edited folder a new object, or another prompt too, and ask the model about it.

    The weights are, bit by bit, those after undo of the old fact and edit of the new one, and undo takes out
    the new one as any other. The fact keeps its id. After an interruption the same command does what is
    missing.

    Example: palimpsest replace edited pompidou German
    """
    from palimpsest.workbench.commands import replace_fact

    wanted = _wanted(id, new, request)
    done, report = replace_fact(folder, id, wanted, device=device, wait=waiting(no_wait))
    _said(report, json, f"{folder}: {len(done)} facts, {id} replaced", require)


def _wanted(name: str, new: str | None, request: Path | None) -> "str | EditRequest":
    """The new object, or the one fact of a file."""
    from palimpsest.datasets.any_format import load_cases_of

    if new is not None and request is None:
        return new
    if new is not None or request is None:
        raise RequestError("give the new object, or a file with --request, and not both")
    found = [case.request for case in load_cases_of(request).cases]
    if len(found) != 1:
        raise RequestError(
            f"{request} holds {len(found)} facts; give a file with the one that {name!r} becomes"
        )
    if found[0].id not in (name, found[0].text):
        raise RequestError(
            f"{request} has a fact with id {found[0].id!r}, and {name!r} is to be replaced; a fact keeps its "
            "id, so leave it out of the file, or give the same one"
        )
    return found[0]


def diagnose(
    edit: Annotated[
        Path, typer.Option(help="Folder of palimpsest edit, or file of save_edit.", callback=readable)
    ],
    wordings: Annotated[
        Path | None,
        typer.Option(
            help="Facts with a member wordings; default the six levels of the fact set.", callback=readable
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV to write; default <edit>.uncertainty.csv.", show_default=False, callback=writable
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The unedited model; default the edit's own.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses to each wording.")] = 5,
    tokens: Annotated[int, typer.Option(help="Tokens of each response, at most.")] = 32,
    embedder: Annotated[str, typer.Option(help="Sentence embedder: minilm, or a folder.")] = "minilm",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="The first so many facts; default all.", show_default=False)
    ] = None,
    device: Device = "cpu",
) -> None:
    """Measure how stable edited facts are under rewording: uncertainty before and after, with intervals.

    The unedited and the edited model answer the same wordings with the same random numbers. After an
    interruption the same command continues.
    """
    from palimpsest.evaluation.responses import Decoding
    from palimpsest.workbench.diagnosis import diagnose_on_disk

    decoding = Decoding(samples, tokens, seed=seed)
    done = diagnose_on_disk(edit, out, model, wordings, embedder, decoding, limit, device, typer.echo)
    typer.echo(f"{done}\n{done.path}")
