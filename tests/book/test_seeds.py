"""Runs for several seeds: where they go, and how the verdicts show their spread."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book import runner
from palimpsest.book.claim_details import detail
from palimpsest.book.profiles import find_notebook, load_profile, own_seed, seed_folder
from palimpsest.book.runner import Run
from palimpsest.book.seeds import seeds_with_results, spread
from palimpsest.errors import UnknownNameError
from palimpsest.results.claims import Claim, Verdict, load_claims, load_records, verdict
from tests.clone import make_clone
from tests.results.made_up import LEMMAS, record

NOTEBOOK = "03_alphaedit_plus_lemmas"


@pytest.fixture(scope="module")
def claim() -> Claim:
    return next(claim for claim in load_claims().claims if claim.id == "P01")


def judged(claim: Claim, root: Path) -> Verdict:
    return verdict(claim, load_records(root, "laptop"), "laptop")


def test_values_stand_by_seed_with_mean_and_range(claim: Claim, tmp_path: Path) -> None:
    record(tmp_path, "laptop", NOTEBOOK, LEMMAS | {"p01_residual_error": 1e-12})
    chosen = judged(claim, tmp_path)
    assert spread(claim, chosen, tmp_path) == ""
    for seed, value in ((7, 3e-12), (11, 0.5)):
        record(tmp_path / "laptop", f"seed-{seed}", NOTEBOOK, LEMMAS | {"p01_residual_error": value})
    record(tmp_path / "laptop", "seed-draft", NOTEBOOK, LEMMAS)
    assert seeds_with_results(tmp_path / "laptop", NOTEBOOK) == [7, 11]
    text = spread(claim, chosen, tmp_path)
    own = own_seed(load_profile("laptop"), find_notebook(NOTEBOOK))
    head = re.search(r"\| value \|.*", text)
    assert head is not None
    assert head[0] == f"| value | seed {own} | seed 7 | seed 11 | mean | range |"
    row = next(line for line in text.splitlines() if "`p01_residual_error`" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 6
    assert cells[5].split(" to ") == [cells[1], cells[3]]
    assert cells[4] not in cells[1:4]
    labels = next(line for line in text.splitlines() if line.startswith("| verdict |"))
    assert labels.count(chosen.label) == 2, "the third seed has another verdict"
    assert text in detail(claim, [chosen], seeds=text)


def test_a_claim_without_seeds_is_shown_as_before(claim: Claim, tmp_path: Path) -> None:
    record(tmp_path, "laptop", NOTEBOOK, LEMMAS)
    chosen = judged(claim, tmp_path)
    assert detail(claim, [chosen]) == detail(claim, [chosen], seeds=spread(claim, chosen, tmp_path))


def test_a_run_for_a_seed_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = make_clone(tmp_path / "clone", monkeypatch)
    seen: dict[str, object] = {}

    def run(name: str, profile: str, overrides: object, **options: object) -> Run:
        seen.update(options, overrides=overrides)
        return Run(tmp_path, 0.0, True)

    monkeypatch.setattr(runner, "run_notebook", run)
    commands = CliRunner()
    assert commands.invoke(cli.app, ["run", "01_tiny", "--profile", "laptop", "--seed", "5"]).exit_code == 0
    assert (seen["overrides"], seen["folder"]) == ({"seed": 5}, clone.root / "results/laptop/seed-5")
    commands.invoke(cli.app, ["run", "01_tiny", "--profile", "laptop", "--seed", "2"])
    assert seen["folder"] == clone.root / "results/laptop", "the profile's own seed is the profile's result"
    both = commands.invoke(cli.app, ["run", "01_tiny", "--seed", "5", "-p", "rate=2"])
    assert both.exit_code == 2
    assert "with -p rate it is none; give -p seed=5 instead" in both.stderr
    text = clone.notebook.read_text()
    clone.notebook.write_text(text.replace("seed: int = 1", "seeds: int = 1"))
    with pytest.raises(UnknownNameError, match="unknown parameter of 01_tiny 'seed'; choose one of: careful"):
        seed_folder(load_profile("smoke"), clone.notebook, 5)
