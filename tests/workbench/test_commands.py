"""Facts written into a model and taken out again: exact, whatever came in between; also as commands."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.network.model import read_weight, write_weight
from palimpsest.workbench.commands import edit_folder
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.steps import anew
from tests.editing import KINDS, double, same_bits, snapshot
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR, Killed, differing, facts, files_of, gap, told

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread", "no_texts")


# Exactness


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_of_200_forgotten_is_as_if_never_told(kind: str) -> None:
    every = facts(200)
    others = [fact for fact in every if fact.id != "17"]
    for make in (double, tiny_model):
        undone, never = told(make(kind), every, 20), EditedModel(make(kind), EDITOR)
        never.edit(others[:19], 20)  # the batch that lacks it; all other batches are as before
        never.edit(others[19:], 20)
        assert gap(undone, never) > 1e-4
        undone.forget(["17"])
        assert list(undone.facts) == list(never.facts)
        assert gap(undone, never) <= (1e-9 if make is double else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_facts_written_one_by_one_leave_no_bit_behind(
    kind: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, in another order, and with nothing taken from the cache of values."""
    undone = told(tiny_model(kind), facts(12), 1)
    undone.forget(["3", "7"])
    monkeypatch.setenv("PALIMPSEST_CACHE", str(own_cache / "fresh"))
    never = told(tiny_model(kind), [fact for fact in reversed(facts(12)) if fact.id not in ("3", "7")], 1)
    assert differing(undone.model, never.model) == 0
    never.forget(["0"])
    assert differing(undone.model, never.model) > 0


def test_facts_before_a_batch_that_fails_are_as_if_written_alone() -> None:
    """The weights are those of the ledger of the facts held, bit by bit, also after an error midway."""
    some, calls = facts(6), [0]

    def stop() -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt

    stopped, wanted = EditedModel(tiny_model("llama"), EDITOR), told(tiny_model("llama"), some[:4], 2)
    with pytest.raises(KeyboardInterrupt):
        stopped.edit(some, 2, stop)
    assert list(stopped.facts) == [fact.id for fact in some[:4]]
    assert differing(stopped.model, wanted.model) == 0
    stopped.edit(some[4:], 2)  # and it goes on
    assert differing(stopped.model, told(tiny_model("llama"), some, 2).model) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_everything_forgotten_is_the_unedited_model_bit_by_bit(kind: str) -> None:
    model = tiny_model(kind)
    write_weight(model, 1, torch.where(read_weight(model, 1).abs() < 0.01, -0.0, read_weight(model, 1)))
    before = snapshot(model)
    done = told(model, facts(5))
    assert not same_bits(model, before)
    assert not done.is_unedited
    done.forget(["3", "0"])
    done.forget(list(done.facts))
    assert same_bits(model, before)  # negative zeros too
    assert done.is_unedited
    assert len(done) == 0
    done.edit(facts(5)[:2])  # and it goes on from nothing
    assert not done.is_unedited


POOL = facts(8)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 7), max_size=4)), max_size=6))
def test_only_the_facts_that_are_held_matter(history: list[tuple[bool, list[int]]]) -> None:
    done = EditedModel(double("llama"), EDITOR)
    for forget, chosen in history:
        wanted = dict.fromkeys(str(i) for i in chosen)
        if forget:
            done.forget([name for name in wanted if name in done.facts])
        else:
            done.edit([POOL[int(name)] for name in wanted if name not in done.facts], batch=2)
    plain = told(double("llama"), [POOL[int(name)] for name in sorted(done.facts)], 8)
    assert set(done.facts) == set(plain.facts)
    if done.facts:
        assert gap(done, plain) <= 1e-9
    else:
        assert done.is_unedited


def test_the_order_of_batches_leaves_no_trace() -> None:
    """The same batches in another order end at the same bits."""
    parts = [facts(9)[i : i + 3] for i in (0, 3, 6)]
    first, second = (EditedModel(tiny_model("llama"), EDITOR) for _ in range(2))
    for i in (0, 1, 2):
        first.edit(parts[i])
    for i in (2, 0, 1):
        second.edit(parts[i])
    assert list(first.facts) != list(second.facts)
    assert differing(first.model, second.model) == 0


def test_the_weights_are_those_of_the_ledgers() -> None:
    done = told(tiny_model("llama"), facts(5))
    for layer, ledger in done.ledgers.items():
        assert ledger.ids == tuple(sorted(done.facts))
        assert torch.equal(read_weight(done.model, layer), ledger.weight.float())
        assert torch.equal(anew(ledger).weight, ledger.weight)
    assert repr(done) == (
        "EditedModel(model tiny-llama-0, facts 5, layers 0 to 2, undo forget([id]), with ids from .facts)"
    )


# The command line


@pytest.fixture
def checkout(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose settings know the tiny model."""
    root = tmp_path / "checkout"
    (root / "config/profiles").mkdir(parents=True)
    (root / "config/models").mkdir()
    (root / "pyproject.toml").touch()
    shutil.copyfile(Path(__file__).parents[2] / "config/sequences.yaml", root / "config/sequences.yaml")
    row = {"layers": [0, 1, 2], "preserve_weight": 20.0, "statistics_tokens": 1500}
    row |= {"targets": {"steps": 2, "lr": 0.3}, "contexts": {"count": 0}}
    content = {"also": [str(base)], "editors": {"memit": row, "alphaedit": row}}
    (root / "config/models/tiny.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("PALIMPSEST_ROOT", str(root))
    return root


def command(*arguments: object) -> tuple[int, str]:
    """Exit status, and the last line of what was printed."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    text = (result.stdout if result.exit_code == 0 else result.stderr).strip()
    return result.exit_code, text.splitlines()[-1] if text else ""


def test_edit_and_undo_as_commands(checkout: Path, base: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "facts.jsonl", tmp_path / "out"
    rows = [f'{{"prompt": "{f.prompt}", "subject": "{f.subject}", "target": "{f.target}"}}' for f in facts(3)]
    path.write_text("\n".join(rows))
    assert command("edit", path, "--model", base, "--out", out) == (0, f"{out}: 3 facts in layers 0, 1, 2")
    assert command("edit", path, "--model", base, "--out", out)[0] == 0
    assert command("undo", out, facts(3)[1].text) == (0, f"{out}: 2 facts left")
    assert command("undo", out, "--all") == (0, f"{out}: 0 facts left; every weight is that of {base}")
    assert command("undo", out, "x") == (
        2,
        "palimpsest: no fact 'x' among the 0 that are held; nothing was forgotten. The ids are the keys of "
        "EditedModel.facts, and stand in palimpsest.json",
    )
    status, message = command("edit", path, "--model", base, "--out", tmp_path / "x", "--sequence", "memit")
    assert (status, message[:36]) == (2, "palimpsest: unknown sequence 'memit'")
    arguments = ("--model", checkout, "--settings", "tiny", "--out", tmp_path / "x")
    status, message = command("edit", path, *arguments)
    assert (status, "cannot be used as a causal language model" in message) == (2, True)


def test_the_last_step_of_an_edit_is_repeated_after_a_death(base: Path, tmp_path: Path) -> None:
    """What `finish` changes is saved with the facts of the command, or neither is."""
    out = tmp_path / "out"

    def dying(edited: EditedModel) -> bool:
        edited.forget(["0"])
        raise Killed

    def forgetting(edited: EditedModel) -> bool:
        edited.forget(["0"])
        return True

    with pytest.raises(Killed):
        edit_folder(facts(3), out, str(base), EDITOR, finish=dying)
    assert not out.exists()
    assert list(edit_folder(facts(3), out, str(base), EDITOR, finish=forgetting).facts) == ["1", "2"]
    assert list(EditedModel.open(out).facts) == ["1", "2"]
    before = files_of(out)
    edit_folder(facts(3)[1:], out, finish=lambda edited: False)
    assert files_of(out) == before
    assert list(edit_folder(facts(3), out, finish=forgetting).facts) == ["1", "2"]
