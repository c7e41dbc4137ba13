"""Shards of facts that were edited apart and joined: the model of one edit, and what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.editors.sequential import Sequential
from palimpsest.errors import (
    LedgerError,
    ModelError,
    PalimpsestError,
    RequestError,
    ResourceError,
    SequenceError,
)
from palimpsest.memory.moments import SecondMoment, key_statistics
from palimpsest.network.model import load
from palimpsest.types import EditRequest
from palimpsest.workbench import folder as files
from palimpsest.workbench.commands import edit_folder
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.joining import join_folders, part_of
from tests.commands.rooms import run, write
from tests.workbench.edits import (
    EDITOR,
    LAYERS,
    Killed,
    differing,
    facts,
    files_of,
    gap,
    tiny_folder,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread", "module_cache", "no_texts")
FACTS = facts(6)


def shard(
    base: Path, out: Path, some: list[EditRequest], editor: Sequential = EDITOR, batch: int = 1
) -> Path:
    edit_folder(some, out, str(base), editor, batch=batch)
    return out


@pytest.fixture
def parts(base: Path, tmp_path: Path) -> list[Path]:
    """Facts 0, 1 and 2 to 5 in three folders, out of order."""
    cut = [FACTS[2:], FACTS[:1], FACTS[1:2]]
    return [shard(base, tmp_path / f"part-{number}", some) for number, some in enumerate(cut)]


def test_joined_shards_are_one_edit_bit_by_bit(base: Path, parts: list[Path], tmp_path: Path) -> None:
    before = [files_of(part) for part in parts]
    joined = join_folders(FACTS, parts, tmp_path / "joined")
    shard(base, tmp_path / "whole", FACTS)
    whole = EditedModel.open(tmp_path / "whole")
    assert differing(joined.model, whole.model) == 0
    assert list(joined.facts) == list(whole.facts) == [str(i) for i in range(6)]
    assert [files_of(part) for part in parts] == before
    again = EditedModel.open(tmp_path / "joined")
    assert differing(again.model, whole.model) == 0
    assert again.base["fingerprint"] == whole.base["fingerprint"]


def test_a_joined_model_forgets_and_goes_on(base: Path, parts: list[Path], tmp_path: Path) -> None:
    join_folders(FACTS, parts, tmp_path / "joined")
    more = facts(8)
    edit_folder(more, tmp_path / "joined")
    opened = EditedModel.open(tmp_path / "joined")
    assert len(opened) == 8
    opened.forget([str(i) for i in range(1, 8)])
    assert differing(opened.model, EditedModel.open(parts[1]).model) == 0
    opened.forget(["0"])
    unedited = load(base)
    assert all(torch.equal(a, b) for a, b in zip(weights(opened.model), weights(unedited), strict=True))
    assert opened.is_unedited


def test_more_facts_than_directions_are_joined(base: Path, tmp_path: Path) -> None:
    """The keys of the tiny model are 64 wide: the joined ledgers are kept as sums over the facts."""
    many = facts(70)
    cut = [shard(base, tmp_path / f"part-{i}", part_of(many, i, 2), batch=35) for i in (1, 2)]
    joined = join_folders(many, cut, tmp_path / "joined")
    whole = shard(base, tmp_path / "whole", many, batch=35)
    assert gap(joined, EditedModel.open(whole)) < 1e-9


def test_parts_of_facts() -> None:
    many = list(range(11))
    for of in range(1, 12):
        cut = [part_of(many, number, of) for number in range(1, of + 1)]
        assert list(chain(*cut)) == many
        assert max(map(len, cut)) - min(map(len, cut)) <= 1
    with pytest.raises(RequestError, match="11 facts cannot fill 12 shards; give at most 11"):
        part_of(many, 1, 12)


def other_model(base: Path, tmp_path: Path) -> Path:
    other = tiny_folder(tmp_path / "another")
    model = load(other)
    with torch.no_grad():
        next(model.net.parameters()).mul_(1.5)
    model.net.save_pretrained(other)
    return shard(other, tmp_path / "odd", FACTS[2:])


def other_settings(base: Path, tmp_path: Path) -> Path:
    return shard(base, tmp_path / "odd", FACTS[2:], replace(EDITOR, preserve_weight=30.0))


def overlapping(base: Path, tmp_path: Path) -> Path:
    return shard(base, tmp_path / "odd", FACTS[1:])


def foreign(base: Path, tmp_path: Path) -> Path:
    return shard(base, tmp_path / "odd", facts(7)[2:])


def another_fact(base: Path, tmp_path: Path) -> Path:
    return shard(base, tmp_path / "odd", [*FACTS[2:5], replace(FACTS[5], target="other")])


def missing(base: Path, tmp_path: Path) -> Path:
    return shard(base, tmp_path / "odd", FACTS[5:])


def no_folder(base: Path, tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


def unedited(base: Path, tmp_path: Path) -> Path:
    return base


def damaged(base: Path, tmp_path: Path) -> Path:
    made = shard(base, tmp_path / "odd", FACTS[2:])
    path = files.ledger_path(made, LAYERS[1])
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    return made


def killed(*_: object) -> None:
    raise Killed


def unfinished(base: Path, tmp_path: Path) -> Path:
    made = shard(base, tmp_path / "odd", FACTS[2:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EditedModel, "save", killed)
        with pytest.raises(Killed):
            shard(base, made, FACTS[2:])
    return made


CASES: list[tuple[Callable[[Path, Path], Path], type[PalimpsestError], str]] = [
    (
        other_model,
        ModelError,
        r"odd was made from .*another in float32, and .*part-1 from .*base in float32, whose",
    ),
    (
        other_settings,
        SequenceError,
        r"odd was made with other settings than .*part-1; make all shards with one",
    ),
    (overlapping, LedgerError, r"odd has 1 facts \('1'\) that .*part-2 has too; give each fact to one shard"),
    (
        foreign,
        LedgerError,
        r"fact '6' of .*odd, .* is not among the facts that the shards are to hold together",
    ),
    (
        another_fact,
        LedgerError,
        r"fact '5' of .*odd, .* -> 'other', is another one there that the shards are to",
    ),
    (
        missing,
        LedgerError,
        r"3 facts \('2', '3', '4'\) in none of the 3 shards; name the shard that has them",
    ),
    (no_folder, LedgerError, r"nowhere holds no edited model"),
    (unedited, LedgerError, r"base holds no edited model"),
    (damaged, ResourceError, r"ledger file .*odd.*layer-1.* is damaged"),
    (unfinished, SequenceError, r"an edit of .*odd was interrupted; finish it with the same command first"),
]


@pytest.mark.parametrize(("make", "kind", "message"), CASES)
def test_shards_that_do_not_belong_together(
    make: Callable[[Path, Path], Path],
    kind: type[PalimpsestError],
    message: str,
    base: Path,
    tmp_path: Path,
) -> None:
    good = [shard(base, tmp_path / f"part-{i}", FACTS[i - 1 : i]) for i in (1, 2)]
    with pytest.raises(kind, match=message):
        join_folders(FACTS, [*good, make(base, tmp_path)], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    assert not (tmp_path / ".joined.palimpsest").exists()


def test_other_second_moments_are_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another machine may sum them, whose cache was not shared."""
    good = shard(base, tmp_path / "part-1", FACTS[:3])
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "another cache"))

    def rounded(*asked: Any) -> dict[int, SecondMoment]:
        found = key_statistics(*asked)
        return {
            layer: SecondMoment(moment.total * (1 + 1e-12), moment.count, moment.source)
            for layer, moment in found.items()
        }

    monkeypatch.setattr("palimpsest.editors.base.key_statistics", rounded)
    odd = shard(base, tmp_path / "part-2", FACTS[3:])
    with pytest.raises(
        LedgerError, match=r"layer 0: shard 1 has another second moment .*, shard 1 is .*part-2\)"
    ):
        join_folders(FACTS, [good, odd], tmp_path / "joined")


def test_a_shard_twice_and_a_folder_that_exists(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"the shard .*part-1 is given twice; give each once"):
        join_folders(FACTS, [*parts, parts[1]], tmp_path / "joined")
    for there in (parts[0], tmp_path):
        with pytest.raises(ResourceError, match="exists; choose a folder that does not exist yet"):
            join_folders(FACTS, parts, there)
    shutil.rmtree(parts[2])
    with pytest.raises(LedgerError, match=r"part-2 holds no edited model"):
        join_folders(FACTS, parts, tmp_path / "joined")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("half", "shard 'half': write number/of, for example 2/8"),
        ("3/2", "shard 3/2: the first number goes from 1 to the second, as in 2/8"),
        ("1/7", "6 facts cannot fill 7 shards; give at most 6"),
    ],
)
def test_a_shard_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "facts.jsonl", FACTS)
    done = run("edit", tmp_path / "facts.jsonl", "--shard", text, "--out", tmp_path / "part")
    assert (done.exit_code, done.stderr) == (2, f"palimpsest: {message}\n")
    assert not (tmp_path / "part").exists()
