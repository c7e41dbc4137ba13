"""Regimes, their distance, and the published ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import paths
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.results.published import published
from palimpsest.results.regime import (
    NEAR,
    SAME,
    SHARES,
    WORDS,
    Axis,
    Regime,
    apart,
    at_the_clamp,
    distance,
    published_regime,
    published_runs,
)

positive = st.floats(1e-6, 1e6)


@given(st.sampled_from([name for name in WORDS if name not in SHARES]), positive, positive)
def test_numbers_are_near_within_a_factor_whichever_is_larger(name: str, a: float, b: float) -> None:
    axis = Axis(name, a, b)
    assert axis.near == (max(a, b) / min(a, b) <= SAME) == Axis(name, b, a).near


@given(st.sampled_from(SHARES), st.floats(0, 1), st.floats(0, 1))
def test_shares_are_near_by_their_difference(name: str, a: float, b: float) -> None:
    assert Axis(name, a, b).near == (abs(a - b) <= NEAR)


def test_nothing_is_near_to_nothing_only() -> None:
    assert Axis("anchor", 0, 0).near
    assert not Axis("anchor", 0, 1).near


def test_only_numbers_that_both_know_are_compared() -> None:
    ours, theirs = Regime(step=0.1, clamp=0.75, load=0.14), Regime(step=1.0, clamp=0.75, loss=0.05)
    assert [axis.name for axis in apart(ours, theirs)] == ["step"]
    assert distance(ours, theirs) == (
        "Of 2 numbers, 1 lies outside the paper's regime: one step of the optimiser, over the length of the "
        "state 0.1 instead of 1."
    )
    assert distance(ours, ours) == "The run lies in the paper's regime, by 3 numbers."
    assert distance(ours, Regime(loss=0.05)) == "No number of the two regimes is known in both."


def test_a_regime_shows_what_it_knows() -> None:
    assert Regime(load=0.13951).shown() == {WORDS["load"]: "0.14"}
    assert Regime(clamp=4).known() == {"clamp": 4.0}


def test_every_number_of_a_regime_has_a_printed_name() -> None:
    assert list(WORDS) == list(Regime.__dataclass_fields__)


def test_published_loads_are_those_of_the_stated_sizes() -> None:
    facts = published("labyrinth", "hyperparameters", metric="sequential_edits")["value"]
    widths = {"LLaMA3-8B": 14_336, "GPT2-XL": 6_400, "GPT-J": 16_384}
    two, ten = (
        published_regime(name).regime()
        for name in ("labyrinth/LLaMA3-8B", "labyrinth/LLaMA3-8B, 10000 facts")
    )
    assert two.load == pytest.approx(facts.min() / widths["LLaMA3-8B"], abs=5e-4)
    assert ten.load == pytest.approx(facts.max() / widths["LLaMA3-8B"], abs=5e-4)
    for model in ("GPT2-XL", "GPT-J"):
        assert published_regime(f"alphaedit_plus/{model}, AlphaSet1").regime().load == pytest.approx(
            1000 / widths[model], abs=5e-4
        )
    ranks = published("uncertainty", 6, model="LLaMA3-8B", metric="observed_rank")["value"]
    assert two.free_directions == pytest.approx(ranks.mean() / widths["LLaMA3-8B"], abs=5e-4)


def test_published_steps_are_those_of_rate_width_and_the_implied_length() -> None:
    rate = published("labyrinth", "hyperparameters", model="LLaMA3-8B", metric="learning_rate")["value"].iloc[
        0
    ]
    value = published(
        "uncertainty", 5, method="MEMIT", setting="single edit;clamp=4.0", metric="mean_right_vector_norm"
    )
    length = value["value"].iloc[0] / 17**0.5
    step = published_regime("labyrinth/LLaMA3-8B").regime().step
    assert step == pytest.approx(rate * 64 / length, rel=5e-3)
    assert "step" in published_regime("labyrinth/LLaMA3-8B").inferred


def test_an_unknown_run_is_named() -> None:
    with pytest.raises(UnknownNameError, match="labyrinth/LLaMA3-8B"):
        published_regime("labyrinth/LLaMA3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {source: Table 1, numbers: {speed: 1}}", "a: speed: give finite numbers of step"),
        ("a: {source: Table 1, numbers: {load: .inf}}", "a: load: give finite numbers"),
        ("a: {source: Table 1, numbers: {load: 1}, inferred: {step: so}}", "a: step: give"),
        ("a: {numbers: {load: 1}}", "cannot be read as published regimes"),
        ("[a", "cannot be read as published regimes"),
        ("- a", "cannot be read as published regimes"),
    ],
)
def test_a_malformed_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "regimes.yaml").write_text(text)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    with pytest.raises(DataError, match=message):
        published_runs()


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, ""),
        (0.0, "No fact reached the clamp: here it has no effect, whatever its size."),
        (0.374, "37 % of facts reached the clamp."),
        (1.0, "Every fact reached the clamp."),
    ],
)
def test_how_often_the_clamp_acted(share: float | None, said: str) -> None:
    assert at_the_clamp(Regime(clamped=share)) == said
