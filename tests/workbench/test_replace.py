"""A fact replaced in one step: the bits of undo and edit, also on disk, after a death, and as a command."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from palimpsest.commands.shared import UNSAID
from palimpsest.errors import LedgerError, RequestError
from palimpsest.types import EditRequest
from palimpsest.workbench.commands import replace_fact
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.work import Work
from tests.commands.rooms import make_room, run
from tests.commands.rooms import snapshot as files_of
from tests.editing import same_bits, snapshot, stub_texts
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR, Killed, differing, facts, tiny_folder, told, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture(autouse=True)
def _texts(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)


def same_ledgers(a: EditedModel, b: EditedModel) -> bool:
    """Whether ledgers hold the same bits in the same order, and the models the same weights."""
    pairs = [(a.ledgers[layer], b.ledgers[layer]) for layer in EDITOR.layers]
    bits = [torch.equal(x, y) for p, q in pairs for x, y in ((p.keys, q.keys), (p.values, q.values))]
    return all(bits) and all(p.ids == q.ids for p, q in pairs) and differing(a.model, b.model) == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_replaced_fact_has_the_bits_of_one_written_anew(kind: str) -> None:
    """Those of forget and edit, and those of a model that was told the new fact and never the old one."""
    some = facts(4)
    new = EditRequest(some[1].prompt, some[1].subject, "other", "1")
    done, steps, never = (EditedModel(tiny_model(kind), EDITOR) for _ in range(3))
    for edited in (done, steps):
        edited.edit(some)
    done.replace("1", "other")
    steps.forget(["1"])
    steps.edit([new])
    never.edit([new, *(fact for fact in reversed(some) if fact.id != "1")])
    assert done.facts == steps.facts
    assert done.facts["1"] == new
    assert same_ledgers(done, steps)
    assert same_ledgers(done, never)
    done.forget(["1"])
    steps.forget(["1"])
    assert same_ledgers(done, steps)


def test_a_whole_request_keeps_the_id() -> None:
    done = told(tiny_model("llama"), facts(2))
    done.replace("0", EditRequest("{} was born in", "Anna Berg", "Rome", "something"))
    assert done.facts["0"] == EditRequest("{} was born in", "Anna Berg", "Rome", "0")
    assert list(done.facts) == ["1", "0"]


@pytest.mark.usefixtures("unchecked")
def test_an_error_leaves_the_old_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    done = told(tiny_model("llama"), facts(3))
    before, held, losses = snapshot(done.model), dict(done.facts), dict(done.losses)
    ledgers = {layer: (ledger.values, ledger.ids) for layer, ledger in done.ledgers.items()}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    cases = [
        ("10", "x", LedgerError, "no fact '10' among the 3 that are held; nothing was replaced"),
        ("1", "", RequestError, "target is empty"),
        ("1", 7, RequestError, r"target is 7 \(int\); give it a text"),
        ("1", facts(3)[2], RequestError, "facts '2' and '1' both ask"),
        ("1", "word " * 300 + "x", RequestError, "and the context of tiny-llama-0 holds 256"),
    ]
    for name, new, error, message in cases:
        with pytest.raises(error, match=message):
            done.replace(name, new)
    with monkeypatch.context() as patched:
        patched.setattr(EditedModel, "_take_in", stop)
        with pytest.raises(KeyboardInterrupt):
            done.replace("1", "x")
    assert same_bits(done.model, before)
    assert (done.facts, done.losses) == (held, losses)
    for layer, ledger in done.ledgers.items():
        assert torch.equal(ledger.values, ledgers[layer][0])
        assert ledger.ids == ledgers[layer][1]
    done.replace("1", "x")  # and it goes on


def test_values_have_no_trace_of_what_came_before() -> None:
    """Bit by bit in float64, so that a run that goes on after a death ends where another one does."""
    whole, alone = told(tiny_model("llama"), facts(5), 1), told(tiny_model("llama"), facts(5)[3:4], 1)
    for layer in EDITOR.layers:
        column = whole.ledgers[layer].ids.index("3")
        assert torch.equal(whole.ledgers[layer].values[:, column], alone.ledgers[layer].values[:, 0])


@pytest.mark.parametrize("cut", [1, 3])
def test_killed_and_resumed_no_value_is_an_ulp_off(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, calls, checkpoint = tiny_folder(tmp_path / "base"), list[Path](), EditedModel.checkpoint

    def dying(edited: EditedModel, folder: Path) -> None:
        checkpoint(edited, folder)
        calls.append(folder)
        if len(calls) == cut:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(EditedModel, "checkpoint", dying)
        with pytest.raises(Killed):
            written(base, tmp_path / "out", 4, batch=1)
    resumed, straight = (written(base, tmp_path / name, 4, batch=1) for name in ("out", "straight"))
    assert same_ledgers(resumed, straight)
    opened = [EditedModel.open(tmp_path / name) for name in ("out", "straight")]
    assert same_ledgers(*opened)


def test_killed_and_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the folder is complete, and between its moves."""
    base, out, finish = tiny_folder(tmp_path / "base"), tmp_path / "out", Work.finish
    written(base, out, 3)
    wanted = told(tiny_model("llama"), facts(3), 3)
    wanted.replace("1", "other")

    def before(work: Work, task: str) -> None:
        raise Killed

    def after(work: Work, task: str) -> None:
        finish(work, task)
        raise Killed

    def between(work: Work, task: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed()))
            finish(work, task)

    for death, name in ((before, "other"), (between, "third"), (after, "other")):
        with monkeypatch.context() as patched:
            patched.setattr(Work, "finish", death)
            patched.setattr(Work, "abandon", lambda work: None)  # as nothing runs after a kill
            with pytest.raises(Killed):
                replace_fact(out, "1", name)
        done, report = replace_fact(out, "1", name)
        assert [row.target for row in report.facts] == [name]
        assert done.facts["1"].target == name
        assert [path.name for path in tmp_path.glob("*out*")] == ["out"]
    assert same_ledgers(EditedModel.open(out), wanted)
    stands = {path: path.stat().st_ino for path in out.rglob("*")}
    replace_fact(out, "1", "other")  # nothing to do, nothing written
    assert {path: path.stat().st_ino for path in out.rglob("*")} == stands


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_room(tmp_path_factory.mktemp("room") / "room", patch)


def test_the_command_reports_as_edit_does(room: Path) -> None:
    done = run("replace", "edited", "1", "Rome", "--json", "report.json", "--require")
    content = json.loads((room / "report.json").read_text())
    (fact,) = content["facts"]
    assert (fact["id"], fact["target"], content["of"]) == ("1", "Rome", 1)
    assert done.exit_code == (0 if fact["said"] else UNSAID), done.output
    assert done.stdout.splitlines()[0].startswith("fact")
    assert done.stdout.splitlines()[-1] == "edited: 3 facts, 1 replaced"
    (room / "one.jsonl").write_text('{"prompt": "{} was born in", "subject": "Anna Berg", "target": "Rome"}')
    assert run("replace", "edited", "1", "--request", "one.jsonl").exit_code == 0
    assert EditedModel.open(room / "edited").facts["1"].text == "Anna Berg was born in"
    assert run("undo", "edited", "--all").stdout.strip().endswith("every weight is that of base")


def test_what_the_command_refuses(room: Path) -> None:
    line = '{{"id": "{}", "prompt": "{{}} was born in", "subject": "Anna Berg", "target": "Rome"}}\n'
    (room / "odd.jsonl").write_text(line.format("odd"))
    (room / "two.jsonl").write_text(line.format("a") + line.format("b").replace("Anna", "Anne"))
    run("edit", "facts.jsonl", "--out", "edited", "--model", "base")
    before = files_of(room)
    cases = [
        ("edited 1", "give the new object, or a file with --request, and not both"),
        ("edited 1 x --request odd.jsonl", "and not both"),
        ("edited 1 --request odd.jsonl", "has a fact with id 'odd', and '1' is to be replaced; a fact keeps"),
        ("edited 1 --request two.jsonl", "holds 2 facts; give a file with the one that '1' becomes"),
        ("edited 1 --request absent", "absent: cannot be read"),
        ("edited one x", "no fact 'one' among the 3 that are held; nothing was replaced"),
        ("absent 1 x", "absent holds no edited model"),
        ("base 1 x", "base holds no edited model"),
    ]
    for arguments, message in cases:
        done = run("replace", *arguments.split())
        assert done.exit_code == 2, done.output
        assert message in done.stderr, done.stderr
        assert files_of(room) == before


def test_an_unknown_id_names_those_that_are_like_it() -> None:
    edited = EditedModel(tiny_model("llama"), EDITOR)
    names = ("Pompidou", "pompidou-2", "japan")
    edited.edit([EditRequest(f.prompt, f.subject, f.target, n) for f, n in zip(facts(3), names, strict=True)])
    for act in (lambda: edited.forget(["pompidu"]), lambda: edited.replace("pompidu", "x")):
        with pytest.raises(LedgerError, match=r"Did you mean 'Pompidou' or 'pompidou-2'\? The ids are"):
            act()
    with pytest.raises(LedgerError, match=r"nothing was forgotten\. The ids are"):
        edited.forget(["zzz"])
