"""The command line. An expected error is one message on standard error with exit status 2, a stop has 130."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from palimpsest.commands import batches, doctor, edits, fetching, models, planning, search, stats, training
from palimpsest.commands.shared import Anyway, NoWait, OneMessage, waiting
from palimpsest.errors import NotebookError

app = typer.Typer(
    cls=OneMessage,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Profile = Annotated[str, typer.Option(help="Name of a file in config/profiles.")]
Gpu = Annotated[str | None, typer.Option(help="Value of CUDA_VISIBLE_DEVICES for this run, for example 0.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Sequential knowledge editing of language models, reproduced."""


edit = app.command()(edits.edit)
join = app.command()(edits.join)
undo = app.command()(edits.undo)
replace = app.command()(edits.replace)
diagnose = app.command()(edits.diagnose)
evaluate = app.command()(models.evaluate)
compare = app.command()(models.compare)
trace = app.command()(search.trace)
tune = app.command()(search.tune)
train = app.command()(training.train)
check_up = app.command()(doctor.doctor)
plan = app.command()(planning.plan)
sum_moments = app.command()(stats.stats)
run_batch = app.command()(batches.batch)
fetch = app.command()(fetching.fetch)


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="Name of a notebook, or a path to one.")],
    profile: Profile = "smoke",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Overrides the profile."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Another seed than the profile's; kept beside it.", show_default=False)
    ] = None,
    gpu: Gpu = None,
    no_wait: NoWait = False,
    anyway: Anyway = False,
) -> None:
    """Execute one notebook; its result replaces the earlier one only if it succeeds.

    With -p the result goes to a folder of its own in build/runs, because it is not a run of the profile. With
    --seed it is a run of the profile for that seed: it goes to seed-N in the profile's results, and the
    verdicts give the spread. Before a page runs on a GPU, its plan is compared with the GPU's memory. Exit
    status 2 means that the same command fails again, 75 that memory, the GPU or the kernel was lost, 69 that
    the memory of the GPU does not suffice.
    """
    from palimpsest.book import runner

    overrides, folder = _overrides(notebook, parameter or []), None
    if seed is not None:
        overrides, folder = _of_seed(notebook, profile, overrides, seed)
    wait = waiting(no_wait)
    check = None if anyway else planning.fits(gpu)
    done = runner.run_notebook(notebook, profile, overrides, gpu=gpu, folder=folder, wait=wait, check=check)
    state = "changed" if done.changed else "same as before"
    typer.echo(f"{done.notebook} ({state}, {done.seconds:.0f} s)")


def _of_seed(
    notebook: str, profile: str, overrides: dict[str, Any], seed: int
) -> tuple[dict[str, Any], Path]:
    """What a run of a profile for one seed overrides, and where its result goes."""
    from palimpsest.book.profiles import SEED, find_notebook, load_profile, seed_folder
    from palimpsest.errors import ProfileError

    if overrides:
        raise ProfileError(
            f"--seed keeps a run of profile {profile}, and with -p {', '.join(overrides)} it is none; "
            f"give -p {SEED}={seed} instead, whose result goes to build/runs"
        )
    return {SEED: seed}, seed_folder(load_profile(profile), find_notebook(notebook), seed)


def _overrides(notebook: str, texts: list[str]) -> dict[str, Any]:
    """Values given as NAME=VALUE, in the types the notebook declares."""
    from palimpsest.book.parameters import parsed, read_parameters
    from palimpsest.book.profiles import find_notebook
    from palimpsest.errors import ProfileError, UnknownNameError

    path = find_notebook(notebook)
    declared = read_parameters(path)
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ProfileError(f"-p {text}: write NAME=VALUE, for example -p seed=1")
        if name not in declared:
            raise UnknownNameError(f"parameter of {path.stem}", name, list(declared))
        values[name] = parsed(declared[name], value)
    return values


@app.command()
def run_all(
    profile: Profile = "laptop",
    force: Annotated[bool, typer.Option("--force", help="Run fresh ones too.")] = False,
    gpu: Gpu = None,
    jobs: Annotated[int, typer.Option(min=1, help="Notebooks at once, sharing the cores.")] = 1,
    anyway: Anyway = False,
) -> None:
    """Run every notebook whose result is stale; after an interruption the same command continues."""
    from palimpsest.book import runner

    runner.run_all(profile, force=force, gpu=gpu, jobs=jobs, anyway=anyway)


@app.command()
def arms(
    make: Annotated[bool, typer.Option("--run", help="Make what is missing or stale.")] = False,
    page: Annotated[str, typer.Option(help="Only those of this notebook.")] = "",
    minutes: Annotated[float | None, typer.Option(min=0, help="Begin none that would end later.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, sharing the cores.")] = 1,
) -> None:
    """List the long runs of config/arms.yaml and how they stand, or make those that are missing."""
    from palimpsest.book.arm_runs import run_arms, standings
    from palimpsest.book.arms import Arm, plan
    from palimpsest.book.execution import in_own_process

    if not make:
        found = standings(page)
        for one in found:
            typer.echo(str(one))
        left = [one.expected for one in found if not one.done]
        made_of = f"{len(found) - len(left)} of {len(found)} long runs are made"
        typer.echo(f"{made_of}, {sum(left):.1f} core-hours left")
        return

    def run_one(arm: Arm) -> int:
        typer.echo(f"{arm.page}: {arm.name} ({arm.about})")
        command = [sys.executable, "-m", "palimpsest.cli", "run", plan().notebook, "--profile", arm.profile]
        return in_own_process(command, jobs)

    made = run_arms(run_one, page, minutes, jobs)
    failed = [arm.name for arm, code in made if code]
    typer.echo(f"{len(made)} long runs made, {len(failed)} failed")
    if failed:
        raise NotebookError(
            f"failed: {', '.join(failed)}; the messages are above; mend the cause and run the same command "
            "again"
        )


@app.command()
def parameters(
    notebook: Annotated[str, typer.Argument(help="Name of a notebook, or a path to one.")],
    profile: Profile = "smoke",
) -> None:
    """Print a notebook's parameters under a profile, as YAML for papermill's -f."""
    from palimpsest.book.profiles import find_notebook, load_profile, parameters_for

    values = parameters_for(load_profile(profile), find_notebook(notebook))
    yaml.safe_dump(values, sys.stdout, sort_keys=False, allow_unicode=True)


@app.command()
def status(
    profile: Profile = "laptop",
    seed: Annotated[int | None, typer.Option(help="Of its runs for this seed.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a list with an entry each.")] = False,
) -> None:
    """Say of each notebook whether its result is fresh, confirmed or stale, and what has changed."""
    from palimpsest.book.status import entries, shown

    found = entries(profile, seed)
    typer.echo(shown(found) if as_json else "\n".join(f"{one.notebook}: {one.standing}" for one in found))


@app.command()
def confirm(
    pages: Annotated[list[str] | None, typer.Argument(help="Names of notebooks; all by default.")] = None,
    profile: Profile = "laptop",
    jobs: Annotated[int, typer.Option(min=1, help="Pages at once.")] = 1,
) -> None:
    """Carry stale results over a change of code that leaves the values of their small runs as they were."""
    from palimpsest.book.confirm import confirm_all

    for line in confirm_all(pages or None, profile, jobs):
        typer.echo(line)


@app.command()
def render(
    pages: Annotated[list[str] | None, typer.Argument(help="Names of notebooks; all by default.")] = None,
    profile: Profile = "laptop",
    jobs: Annotated[int, typer.Option(min=1, help="Pages at once.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for copies to look at; results are left alone.", show_default=False),
    ] = None,
) -> None:
    """Draw figures, tables and sentences again from the carried records, where their code has changed."""
    from palimpsest.book.render import render_all

    for line in render_all(pages or None, profile, jobs, out):
        typer.echo(line)


@app.command()
def check_notebooks(
    pages: Annotated[list[str] | None, typer.Argument(help="Names of notebooks; all by default.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Notebooks at once, sharing the cores.")] = 1,
    accept: Annotated[
        bool, typer.Option("--accept", help="Carry the new values from now on instead of comparing them.")
    ] = False,
) -> None:
    """Execute notebooks once, by nbval at smoke size, and compare their values with those carried."""
    from palimpsest.book.smoke import check_notebooks as check

    check(pages or None, jobs=jobs, accept=accept)


@app.command()
def new_result(
    name: Annotated[str, typer.Argument(help="Of its notebook, 23_my_result; or without the number.")],
    title: Annotated[str, typer.Argument(help="Of its page, one line.")],
    question: Annotated[str, typer.Option(help="What the page asks, one plain sentence.")] = "What is found?",
) -> None:
    """Make the skeleton of a result: notebook, place in the book, a test, and the text of its claim's row.

    What exists is never overwritten. The skeleton runs; replace its measurement by yours.

    Example: palimpsest new-result my_result "My result" --question "Does it gain?"
    """
    from palimpsest.book.new_result import new_result as make

    typer.echo(str(make(name, title, question)))


@app.command()
def book(profile: Profile = "laptop") -> None:
    """Build the HTML book from the records of a profile; runs no notebook."""
    from palimpsest.book import build

    typer.echo(build.build(profile))


@app.command()
def crate(
    profile: Profile = "laptop",
    out: Annotated[
        Path | None,
        typer.Option(help="New folder, or new .zip file; by default in build/crate.", show_default=False),
    ] = None,
) -> None:
    """Write the results of a profile as an RO-Crate: records, notebooks, provenance, claims and verdicts."""
    from palimpsest.book.crate import write_crate

    typer.echo(write_crate(profile, out))


@app.command()
def check_book(profile: Profile = "laptop") -> None:
    """Open every page of the built book in a headless browser and report faults."""
    from palimpsest.book import browser_check

    raise typer.Exit(browser_check.main(profile))


if __name__ == "__main__":
    app()
