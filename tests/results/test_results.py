"""The carried laptop results: what the pages say of them is recomputed here from the records."""

import json
from pathlib import Path

import pandas as pd
import pytest

from palimpsest.paths import notebooks_dir, results_dir, results_root
from palimpsest.results.claims import load_claims, load_records, verdict
from palimpsest.results.published import published

NOTEBOOKS = sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
LAPTOP = results_dir("laptop")
KINDS = ("aligned", "naive")


def values(notebook: str) -> dict[str, dict[str, float]]:
    return json.loads((LAPTOP / f"{notebook}.json").read_text("utf-8"))["values"]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_has_carried_results(notebook: str) -> None:
    for ending in ("ipynb", "json", "provenance.json"):
        assert (LAPTOP / f"{notebook}.{ending}").is_file()
    assert json.loads((LAPTOP / f"{notebook}.json").read_text("utf-8"))["profile"] == "laptop"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_intervals_hold_their_value_and_say_what_they_are_over(notebook: str) -> None:
    for name, entry in values(notebook).items():
        if entry["low"] is not None:
            assert entry["low"] <= entry["value"] <= entry["high"], name
            assert entry["over"] in ("cases", "seeds"), name


def test_one_edit_flips_its_fact_and_comes_out_without_a_trace() -> None:
    found = values("01_one_edit")
    assert found["margin_before"]["value"] < 0 < found["margin_after"]["value"]
    assert found["weights_changed"]["value"] == 0
    assert found["said_undone"]["value"] == found["said_before"]["value"] != found["said_after"]["value"]


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_a_batch_of_a_hundred_known_facts_is_stored(method: str) -> None:
    found = values("14_comparison")
    assert found["facts"]["value"] == 100
    assert found[f"efficacy_{method}"]["value"] >= 95
    assert found[f"generalisation_{method}"]["value"] >= 85
    lost = found["specificity_unedited"]["value"] - found[f"specificity_{method}"]["value"]
    assert lost == pytest.approx(found[f"{method}_specificity_lost"]["value"], abs=1e-3)


LEMMAS = {
    "P01": "verified numerically",
    "P01b": "wrong as printed",
    "P02": "wrong as printed",
    "P03": "verified numerically",
    "P03b": "wrong as printed",
    "P04": "verified numerically",
    "P05": "verified numerically",
    "P06": "wrong as printed",
    "P07": "wrong as printed",
    "L02": "verified numerically",
    "L03": "verified numerically",
    "L04": "verified numerically",
    "L05": "verified numerically",
    "L06": "verified numerically",
    "L07": "wrong as printed",
}


@pytest.mark.parametrize(("claim", "label"), LEMMAS.items())
def test_the_verdicts_on_lemmas_and_propositions_follow_from_the_records(claim: str, label: str) -> None:
    rows = {row.id: row for row in load_claims().claims}
    assert verdict(rows[claim], load_records(results_root(), "laptop")).label == label


def test_drift_is_judged_by_the_runs_that_are_hardest_for_the_claim() -> None:
    found = {name: entry["value"] for name, entry in values("07_drift").items()}
    ends = {name: value for name, value in found.items() if not name.startswith(("l13_", "l15_", "gentle_"))}
    ratio = {kind: [v for n, v in ends.items() if n.endswith(f"_{kind}_perplexity_ratio")] for kind in KINDS}
    agreement = [value for name, value in ends.items() if name.endswith("_aligned_agreement")]
    assert all(len(ratio[kind]) > 1 for kind in KINDS)
    assert found["l13_aligned_perplexity_ratio"] == max(ratio["aligned"])
    assert found["l13_naive_perplexity_ratio"] == min(ratio["naive"])
    assert found["l13_aligned_agreement"] == min(agreement)


OWN_QUANTITY = {"alphaset1": "conflict_preserved", "alphaset2": "conflict_past", "alphaset3": "inconsistency"}


@pytest.mark.parametrize(("name", "quantity"), OWN_QUANTITY.items())
def test_what_the_alphaset_page_says_follows_from_its_edits(name: str, quantity: str) -> None:
    found = values("11_building_alphaset")
    edits = pd.read_parquet(LAPTOP / "11_building_alphaset.edits.parquet")
    bins = pd.read_parquet(LAPTOP / "11_building_alphaset.bins.parquet")
    means = edits.groupby(["seed", "set"])[quantity].mean().unstack()
    title = next(column for column in means if column.lower() == name)
    places = (means.gt(means[title], axis=0)).sum(axis=1) + 1
    assert places.max() == found[f"p09_{name}_place"]["value"]
    own = edits[edits["set"].eq(title) & edits["score"].notna() & edits["role"].ne("superseded")]
    ends = bins[bins["set"].eq(title) & bins["quantity"].eq(quantity)].iloc[[0, -1]]
    low, high = (own[own[quantity].between(*row)]["score"].mean() for row in ends[["from", "to"]].to_numpy())
    assert low - high == pytest.approx(found[f"p08_{name}_drop"]["value"], abs=1e-3)
    gaps = own.groupby(["seed", "role"])["score"].mean().unstack()
    gap = (gaps["hard"] - gaps["other"]).mean()
    assert gap == pytest.approx(found[f"{name}_hard_minus_others_score"]["value"], abs=1e-3)


def test_the_alphaset_claim_is_judged_by_its_least_favourable_set() -> None:
    found = values("11_building_alphaset")
    falls = published("alphaedit_plus", "figures", metric="Score_decrease").set_index("dataset")["value"]
    shares = {name: found[f"p08_{name.lower()}_drop"]["value"] / fall for name, fall in falls.items()}
    assert found["p08_smallest_share"]["value"] == pytest.approx(min(shares.values()), abs=1e-4)
    assert found["p08_judged_by"]["value"] == min(shares, key=lambda name: shares[name])


def test_carried_tables_are_not_pickles() -> None:
    endings = {path.suffix for path in Path(LAPTOP).iterdir()}
    assert endings <= {".ipynb", ".json", ".parquet", ".png"}
