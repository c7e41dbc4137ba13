"""The commands that prepare the editing of a model: layers that carry facts, and settings that suit it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.commands.edits import Json
from palimpsest.commands.models import Limit
from palimpsest.commands.shared import Device, NoWait, waiting

if TYPE_CHECKING:  # what a command needs is loaded when it runs
    from palimpsest.evaluation.trace_report import TraceReport

Model = Annotated[str, typer.Argument(help="Name, folder or hub id.")]


def trace(
    model: Model,
    facts: Annotated[Path, typer.Argument(help="Facts in any format; the true object is the answer.")],
    window: Annotated[
        int | None,
        typer.Option(help="Layers restored together; default a fifth of them.", show_default=False),
    ] = None,
    noise: Annotated[float, typer.Option(help="In standard deviations of the subjects' embeddings.")] = 3.0,
    samples: Annotated[int, typer.Option(help="Draws of the noise for each fact.")] = 10,
    every: Annotated[int, typer.Option(help="Restore at every so many layers.")] = 1,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="File for a row per fact, kind, layer and token.", show_default=False),
    ] = None,
    json: Json = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG, SVG or PDF of the effects.", show_default=False)
    ] = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of the noise and of the bootstrap.")] = 0,
    device: Device = "cpu",
) -> None:
    """Trace which states carry the facts that a model knows, and suggest layers to edit.

    Noise on the subject makes the model forget the answer; then states of the clean run are put back, one
    token and layer at a time, and MLP and attention outputs in windows of layers. What that returns of the
    answer's probability is the indirect effect (Meng et al. 2022). Suggested are the layers of the window
    whose restored MLP outputs at the last subject token have the highest mean effect.

    Without a true object a fact's target is its answer. Facts that the model answers otherwise, and facts
    whose subject begins the input, are left out.

    Example: palimpsest trace smollm2-135m facts.jsonl --samples 3 --figure trace.png
    """
    from palimpsest.datasets.any_format import load_cases_of
    from palimpsest.evaluation.trace_report import TraceReport, check_picture
    from palimpsest.evaluation.tracing import trace as traced
    from palimpsest.network.model import load

    if figure is not None:
        check_picture(figure)
    cases = load_cases_of(facts).cases[:limit]
    asked: dict[str, Any] = {
        "window": window,
        "noise": noise,
        "samples": samples,
        "seed": seed,
        "every": every,
    }
    edited = published_layers(model)
    report = TraceReport(traced(load(model, device=device), cases, **asked), edited)
    report.write(csv, json)
    if figure is not None:
        _draw(report, figure)
    typer.echo(f"{model} on {len(cases)} facts of {facts}\n\n{report}")


def _draw(report: "TraceReport", path: Path) -> None:
    """Write the heat maps of a trace to a file."""
    from palimpsest.evaluation.traced import ROLES
    from palimpsest.files import replacing
    from palimpsest.results.effect_maps import effect_map
    from palimpsest.results.figures import use_style

    use_style()
    drawn = effect_map(report.trace.by_role(), ROLES, report.edited)
    with replacing(path) as temporary:
        drawn.savefig(temporary, dpi=200)


def published_layers(model: str) -> dict[str, tuple[int, ...]]:
    """Layers to which MEMIT writes by the settings on file: of this model, or of all where it has none."""
    from palimpsest.editors.settings import known_models, layers_on_file

    known = known_models()
    names = [model] if model in known else sorted({path.stem for path in known.values()})
    found = {name: layers_on_file(name, "memit") for name in names}
    return {name: layers for name, layers in found.items() if layers}


def tune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Settings file to write, such as config/models/NAME.yaml.")],
    editors: Annotated[
        str, typer.Option(help="Names with commas between them; default all.", show_default=False)
    ] = "",
    facts: Annotated[
        Path | None,
        typer.Option(help="Validation facts; default those of the project.", show_default=False),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no candidate that would end later.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Facts that every candidate writes.")] = 48,
    settings: Annotated[
        str | None,
        typer.Option(
            help="Model in config/models whose settings hold what is not searched; default the model's own, "
            "derived where it has none.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of the facts and of the bootstrap.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Begin anew, whatever the files hold.")] = False,
    device: Device = "cpu",
    no_wait: NoWait = False,
) -> None:
    """Search settings of the editors for a new model on validation facts, and write them to a file.

    Every editor has six candidates, tried in turns. Each writes one batch of facts that the model knows; its
    score is the worst margin to 95 % efficacy, 85 % generalisation and 5 points of specificity lost. Scores
    are rows of OUT with the ending .search.csv as soon as they are known: killed, the same command goes on.
    What is not searched is as on file for the model or derived for it, with the reasons in the file.
    Facts of a file are not to be used in an evaluation afterwards; those of the project are of its validation
    split.

    Example: palimpsest tune my-gpt2 --out config/models/my-gpt2.yaml --editors memit,rome --minutes 30
    """
    from palimpsest.datasets import counterfact_style, load_cases_of, load_facts
    from palimpsest.network.model import load
    from palimpsest.studies.settings_search import Search, base_of, facts_for, run_search, searched

    names = searched([name.strip() for name in editors.split(",") if name.strip()])
    cases, net = load_cases_of(facts).cases if facts else None, load(model, device=device)
    drawn = cases or counterfact_style(load_facts(), seed=seed, split="validation")
    base = base_of(net, names, out, settings)
    for derived in base.derived.values():
        typer.echo(f"{derived}\n")
    known = facts_for(net, drawn, batch, names, base)
    done = run_search(
        Search(net, known, out, names, base, seed), minutes, replace, waiting(no_wait), typer.echo
    )
    typer.echo(f"\n{done}\n")
    left = len(done.search.planned()) - len(done.rows)
    if left:
        typer.echo(f"{left} candidates are left; the same command goes on")
    written = (
        f"{out}: settings of {len(done.settings())} editors" if done.best else f"{out} is not written yet"
    )
    typer.echo(f"{written}; candidates in {done.search.table}")
