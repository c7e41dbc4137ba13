"""Published numbers that are typed into ``data/claims.yaml``, computed again from the published tables."""

from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
import yaml

from palimpsest import paths
from palimpsest.results.claims import load_claims
from palimpsest.results.effects import Limit, Parts
from palimpsest.results.published import published


def typed(node: Any) -> Iterator[tuple[str, str]]:
    """Name of a value and its published number as it is typed, of every rule that has one."""
    if isinstance(node, dict):
        if "published" in node:
            yield node["value"], node["published"]
        for inner in node.values():
            yield from typed(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from typed(inner)


def rows_of_the_file() -> list[tuple[str, str]]:
    """A value that several claims compare with published numbers of their own comes with the claim's id."""
    text = (paths.root() / "data" / "claims.yaml").read_text("utf-8")
    return [
        (f"{row['id']} {name}" if f"{row['id']} {name}" in COMPUTED else name, number)
        for row in yaml.load(text, yaml.BaseLoader)["claims"]  # texts: 0.30 keeps its last digit
        for name, number in typed(row)
    ]


def mean(paper: str, table: int | str, **filters: Any) -> float:
    """Mean over the models and data sets of the rows that are left; one method and setting."""
    rows = published(paper, table, **filters)
    assert len(rows.groupby(["method", "setting", "metric"])) == 1
    return float(rows["value"].mean())


def fall(dataset: str) -> float:
    return mean("alphaedit_plus", "figures", dataset=dataset, metric="Score_decrease")


def lead(method: str) -> float:
    """Score of AlphaEdit+ less that of another method, mean over models and sets."""
    one, other = (mean("alphaedit_plus", 1, method=of, metric="Score") for of in ("AlphaEdit+", method))
    return one - other


def without(part: str) -> float:
    """AlphaEdit+ with all its parts less without one, mean over both models."""
    full, less = (mean("alphaedit_plus", 3, setting=at, metric="Score") for at in ("full", f"without {part}"))
    return full - less


def runtime_ratio() -> float:
    rows = published("alphaedit_plus", 2, metric="Runtime").pivot(
        index="dataset", columns="method", values="value"
    )
    return float((rows["AlphaEdit+"] / rows["AlphaEdit"]).max())


def gap(table: int, method: str, metric: str, other: str, first: str = "SE;aligned") -> float:
    """One way of editing less another on CounterFact, mean over the models of the table."""
    where = {"dataset": "CounterFact", "method": method, "metric": metric}
    return mean("labyrinth", table, setting=first, **where) - mean("labyrinth", table, setting=other, **where)


def above_zsre(dataset: str, metric: str) -> float:
    """Mean of a set less that of ZsRE."""
    one, other = (mean("alphaedit_plus", 1, dataset=of, metric=metric) for of in (dataset, "ZsRE"))
    return one - other


def clamped(method: str) -> float:
    """Mean norm at a clamp of 0.75 over that at 4."""
    tight, loose = (
        mean("uncertainty", 5, method=method, metric="mean_right_vector_norm", setting=f"single edit;{at}")
        for at in ("clamp=0.75", "clamp=4.0")
    )
    return tight / loose


def rise(method: str, table: int = 3) -> float:
    return mean("uncertainty", table, method=method, metric="delta_U")


def tenth_of_the_sample(metric: str) -> float:
    """Change from the whole sample of K₀ to a tenth on CounterFact, percent, mean over the three models."""
    where = {"dataset": "CounterFact", "metric": metric}
    whole, tenth = (
        published("alphaedit", 6, setting=f"ratio={share}", **where).set_index("model")["value"]
        for share in ("1.0", "0.1")
    )
    return float((100 * (tenth / whole - 1)).mean())


def above(method: str, metric: str) -> float:
    """AlphaEdit less another editor of Table 2 on CounterFact, mean over the models."""
    where = {"dataset": "CounterFact", "metric": metric}
    one, other = (mean("alphaedit", 2, method=of, **where) for of in ("AlphaEdit", method))
    return one - other


def harder(method: str, metric: str, table: int, dataset: str) -> float:
    """AlphaEdit less another editor in Tables 4 or 5, mean over the models."""
    where = {"dataset": dataset, "metric": metric}
    one, other = (mean("alphaedit", table, method=of, **where) for of in ("AlphaEdit", method))
    return one - other


def lead_on(model: str, method: str, metric: str) -> float:
    """AlphaEdit less another editor of Table 3 on CounterFact, for one model."""
    where = {"dataset": "CounterFact", "metric": metric, "model": model}
    one, other = (mean("alphaedit", 3, method=of, **where) for of in ("AlphaEdit", method))
    return one - other


TABLE_3 = {
    f"{claim} above_{method.lower()}_naive_{ours}": partial(lead_on, model, method, theirs)
    for claim, model in (("A10", "Gemma"), ("A10b", "phi-1.5"))
    for method in ("MEMIT", "RECT")
    for ours, theirs in (
        ("efficacy", "Efficacy"),
        ("generalisation", "Generalization"),
        ("specificity", "Specificity"),
    )
}
NAIVE, UNCORRECTED = "SE;naive", "SE;no_error_correction"
COMPUTED = TABLE_3 | {
    "a12_specificity": lambda: tenth_of_the_sample("Specificity"),
    "a12b_specificity": lambda: tenth_of_the_sample("Specificity"),
    "p08_alphaset1_drop": lambda: fall("AlphaSet1"),
    "p08_alphaset2_drop": lambda: fall("AlphaSet2"),
    "p08_alphaset3_drop": lambda: fall("AlphaSet3"),
    "mean_alphaset1_conflict_preserved": lambda: above_zsre("AlphaSet1", "avg_s_K0"),
    "mean_alphaset2_conflict_past": lambda: above_zsre("AlphaSet2", "avg_s_Kp"),
    "p10_gain_memit_naive": lambda: lead("MEMIT"),
    "p10_gain_rect_naive": lambda: lead("RECT"),
    "p10_gain_prune_naive": lambda: lead("PRUNE"),
    "p10_gain_alphaedit_aligned": lambda: lead("AlphaEdit"),
    "p11_largest_ratio": runtime_ratio,
    "p12_without_perturbation": lambda: without("P_tilde"),
    "p12_without_weighting": lambda: without("Lambda_p"),
    "p12_without_smoothing": lambda: without("smoothing"),
    "l08_rect_steps_minus_once_generalisation": lambda: gap(3, "RECT", "Generalization", "OTE;aligned"),
    "l09_memit_aligned_minus_naive_efficacy": lambda: gap(5, "MEMIT", "Efficacy", NAIVE),
    "l09_alphaedit_aligned_minus_naive_efficacy": lambda: gap(5, "AlphaEdit", "Efficacy", NAIVE),
    "l09_rect_aligned_minus_naive_efficacy": lambda: gap(5, "RECT", "Efficacy", NAIVE),
    "l09_prune_aligned_minus_naive_efficacy": lambda: gap(5, "PRUNE", "Efficacy", NAIVE),
    "l09_rect_aligned_minus_uncorrected_generalisation": lambda: gap(
        5, "RECT", "Generalization", UNCORRECTED
    ),
    "l10_aligned_minus_uncorrected_generalisation": lambda: gap(6, "RECT-20%", "Generalization", UNCORRECTED),
    "single_ratio_rome": lambda: clamped("ROME"),
    "single_ratio_memit": lambda: clamped("MEMIT"),
    "single_ratio_alphaedit": lambda: clamped("AlphaEdit"),
    "above_serac_efficacy": lambda: above("SERAC", "Efficacy"),
    "above_serac_generalisation": lambda: above("SERAC", "Generalization"),
    "above_grace_efficacy": lambda: above("GRACE", "Efficacy"),
    "above_grace_generalisation": lambda: above("GRACE", "Generalization"),
    "above_melo_efficacy": lambda: above("MELO", "Efficacy"),
    "above_melo_generalisation": lambda: above("MELO", "Generalization"),
    "above_rome": lambda: rise("ROME"),
    "above_memit": lambda: rise("MEMIT"),
    "above_alphaedit": lambda: rise("AlphaEdit"),
    "above_ft_l": lambda: rise("FT", table=4),
    "above_kn": lambda: rise("KN", table=4),
    "above_mend": lambda: rise("MEND", table=4),
    "above_ike": lambda: rise("IKE", table=4),
    "above_memit_edit_success": lambda: harder("MEMIT", "EditSuccess", 4, "wiki_recent"),
    "above_memit_portability": lambda: harder("MEMIT", "Portability", 4, "wiki_recent"),
    "above_memit_locality": lambda: harder("MEMIT", "Locality", 4, "wiki_recent"),
    "above_memit_multi_hop": lambda: harder("MEMIT", "Multi-hop", 5, "MQuAKE"),
    "above_rect_edit_success": lambda: harder("RECT", "EditSuccess", 4, "wiki_recent"),
    "above_rect_portability": lambda: harder("RECT", "Portability", 4, "wiki_recent"),
    "above_rect_locality": lambda: harder("RECT", "Locality", 4, "wiki_recent"),
    "above_rect_multi_hop": lambda: harder("RECT", "Multi-hop", 5, "MQuAKE"),
}
"""Name of our value -> the published counterpart."""


@pytest.mark.parametrize(("name", "number"), rows_of_the_file(), ids=lambda given: given)
def test_typed_numbers_are_those_of_the_tables(name: str, number: str) -> None:
    exponent = Decimal(number).as_tuple().exponent
    assert isinstance(exponent, int)
    half_of_the_last_digit = 0.5 * 10.0**exponent
    assert COMPUTED[name]() == pytest.approx(float(number), abs=half_of_the_last_digit + 1e-9)


def test_limits_of_ten_thousand_edits_are_the_lowest_that_the_paper_prints() -> None:
    """Those of L15, rounded down: every printed cell reaches them, and the next whole number is missed."""
    (row,) = (claim for claim in load_claims().claims if claim.id == "L15")
    assert isinstance(row.rule, Parts)
    table = published("labyrinth", 10).groupby("metric")["value"].min()
    tasks = published("labyrinth", 11, dataset="AVG").pivot(index="model", columns="setting", values="value")
    kept = 100 * (tasks["SE;aligned;edits=10000"] / tasks["base"]).min()
    lowest = {"efficacy": table["Efficacy"], "generalisation": table["Generalization"], "choice": kept}
    for part in row.rule.parts:
        assert isinstance(part.rule, Limit)
        printed = next(value for name, value in lowest.items() if part.rule.value.endswith(name))
        assert part.rule.at_least == int(printed)
