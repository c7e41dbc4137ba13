"""Long runs: what the plan stands for, how they stand, and in which order they are made."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from palimpsest import paths
from palimpsest.book import arm_runs
from palimpsest.book.arm_runs import ArmStanding, run_arms
from palimpsest.book.arms import ARMS, Arm, plan
from palimpsest.book.profiles import find_notebook, load_profile, parameters_for, results_of
from palimpsest.book.standing import Standing
from palimpsest.editors.named_sequences import changed, sequence_of
from palimpsest.errors import ProfileError, UnknownNameError

BLOCK: dict[str, Any] = {
    "page": "05_memorize_the_latest",
    "about": "a few runs",
    "regime": "llama3_step",
    "runs": ["memit_aligned each_step 1", "latest_full once 2"],
    "changes": [[], ["ridge=2"]],
    "orders": [0, 1],
    "hours": 0.5,
    "priority": 2,
}


def arm(**changes: Any) -> Arm:
    given = {"page": "05_x", "about": "a run", "regime": "r", "run": "s once 1", "changes": (), "order": 0}
    return Arm(**(given | {"hours": 1.0, "priority": 1} | changes))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own with nothing but a plan."""
    (tmp_path / "config").mkdir()
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path / "config" / "arms.yaml"


def write(file: Path, *blocks: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump({"notebook": "15_long_run", "model": "m", "arms": list(blocks)}))


def test_original_data_is_part_of_the_name(own: Path) -> None:
    write(own, BLOCK | {"data": "counterfact.json"}, BLOCK)
    names = [one.name for one in plan().arms()]
    assert len(set(names)) == len(names) == 16
    assert "llama3_step-latest_full-once-2-counterfact-order-1" in names
    assert {one.parameters().get("data") for one in plan().arms()} == {None, "counterfact.json"}


def test_a_block_stands_for_every_run_change_and_order(own: Path) -> None:
    write(own, BLOCK, BLOCK | {"priority": 1, "runs": ["memit_naive once 1"], "changes": [[]], "orders": [3]})
    found = plan().arms()
    assert len(found) == 2 * 2 * 2 + 1
    assert found[0].parameters() == {
        "regime": "llama3_step",
        "run": "memit_naive once 1",
        "changes": [],
        "order": 3,
    }
    assert found[0].profile == "arms.05_memorize_the_latest.llama3_step-memit_naive-once-1-order-3"
    assert {one.name for one in found if one.changes} == {
        f"llama3_step-{run}-ridge_2-order-{order}"
        for run in ("memit_aligned-each_step-1", "latest_full-once-2")
        for order in (0, 1)
    }


def test_sizes_of_a_block_replace_those_of_all_arms(own: Path) -> None:
    own.write_text(
        yaml.safe_dump(
            {"notebook": "15_long_run", "model": "m", "parameters": {"facts": 9, "batch": 3}}
            | {"arms": [BLOCK | {"sizes": {"facts": 6}}]}
        )
    )
    known = plan()
    parameters = load_profile(known.arms()[0].profile).notebooks["15_long_run"]
    assert (parameters["facts"], parameters["batch"], parameters["regime"]) == (6, 3, "llama3_step")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("notebook: x", "model: Field required"),
        (
            yaml.safe_dump({"notebook": "x", "model": "m", "arms": [BLOCK | {"hours": 0}]}),
            "hours: .* greater than 0",
        ),
        (
            yaml.safe_dump({"notebook": "x", "model": "m", "arms": [BLOCK | {"ordres": [0]}]}),
            "ordres: Extra inputs",
        ),
    ],
)
def test_a_malformed_plan_is_an_error(own: Path, content: str, message: str) -> None:
    own.write_text(content)
    with pytest.raises(ProfileError, match=message):
        plan()


def test_a_missing_plan_is_an_error(own: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        plan()


def test_no_run_is_planned_twice(own: Path) -> None:
    write(own, BLOCK, BLOCK)
    with pytest.raises(ProfileError, match="twice; keep one row of each"):
        plan().arms()


def test_an_unknown_run_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"arms\.05_memorize_the_latest\.llama3_step"):
        load_profile("arms.05_memorize_the_latest.llama3_stop")


def test_every_planned_run_has_its_notebook_page_sequence_and_regime() -> None:
    known = plan()
    source = find_notebook(known.notebook)
    for one in known.arms():
        assert find_notebook(one.page)
        profile = load_profile(one.profile)
        parameters = parameters_for(profile, source)
        assert parameters["profile"] == one.profile
        assert parameters["order"] == one.order
        assert results_of(one.profile) == paths.results_root() / ARMS / one.page / one.name
        made = changed(sequence_of(one.run, known.model, regime=one.regime), one.changes)
        assert made.layers == (4, 5, 6, 7, 8)
        assert parameters["facts"] % parameters["batch"] == 0


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[ArmStanding]:
    """Runs of one, two and three hours, of which the first is made."""
    stale, fresh = Standing("stale", "code"), Standing("fresh")
    found = [
        ArmStanding(arm(order=0), fresh, 1.0),
        ArmStanding(arm(order=1, hours=3), stale, 2.0),
        ArmStanding(arm(order=2, hours=3), Standing("not run"), None),
        ArmStanding(arm(order=3, hours=0.5, priority=2), Standing("not run"), None),
    ]
    monkeypatch.setattr(arm_runs, "standings", lambda page="": found)
    return found


def test_what_is_missing_or_stale_is_made_in_order(planned: list[ArmStanding]) -> None:
    made: list[int] = []
    codes = run_arms(lambda one: made.append(one.order) or one.order)  # type: ignore[func-returns-value]
    assert made == [1, 2, 3]
    assert [code for _, code in codes] == [1, 2, 3]


@pytest.mark.parametrize(("minutes", "orders"), [(29, []), (60, [3]), (125, [1, 3]), (185, [1, 2, 3])])
def test_none_is_begun_that_would_end_too_late(
    planned: list[ArmStanding], minutes: float, orders: list[int]
) -> None:
    """A run that was made before is expected to take as long as it took."""
    assert [one.order for one, _ in run_arms(lambda _: 0, minutes=minutes)] == orders


def test_all_are_made_once_by_several_workers(planned: list[ArmStanding]) -> None:
    assert sorted(one.order for one, _ in run_arms(lambda _: 0, jobs=3)) == [1, 2, 3]


def test_a_run_says_how_it_stands(planned: list[ArmStanding]) -> None:
    assert str(planned[0]) == "1  05_x  r-s-once-1-order-0: 1.00 h, up to date"
    assert str(planned[1]) == "1  05_x  r-s-once-1-order-1: 2.00 h, stale (code)"
    assert str(planned[2]) == "1  05_x  r-s-once-1-order-2: 3 h predicted, not run"


def test_all_planned_runs_have_a_standing() -> None:
    found = arm_runs.standings()
    assert [one.arm for one in found] == plan().arms()
    assert arm_runs.standings("00_try_it") == []
