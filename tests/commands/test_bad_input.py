"""Bad input to every command is one message with the cause, status 2, and nothing changed on disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palimpsest.cache import digest
from palimpsest.workbench.folder import SUM
from tests.commands.rooms import enter, make_room, run, snapshot

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")

LONG = "x" * 252
EDIT = "edit facts.jsonl --model base --out out"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return make_room(tmp_path_factory.mktemp("room") / "room", patch)


@pytest.fixture
def room(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "room"
    shutil.copytree(made, folder)
    settings = folder / "config/models/tiny.yaml"
    settings.write_text(settings.read_text().replace(str(made), str(folder)))
    enter(folder, monkeypatch)
    return folder


def refused(room: Path, arguments: list[str], message: str, status: int = 2) -> None:
    """The command ends with one message, and every file is as it was."""
    before = snapshot(room)
    result = run(*arguments)
    assert result.exit_code == status, (result.output, result.exception)
    said = " ".join(result.stderr.replace("│", " ").split())  # typer puts its own messages into a box
    assert message in said, result.stderr
    assert "Traceback" not in result.output
    assert snapshot(room) == before


COMMANDS = [
    ("edit facts.jsonl --model base --out /", "/ is the root of the file system; choose a folder in it"),
    (
        "edit facts.jsonl --model base --out .",
        "exists and holds no edited model; choose a folder that does not",
    ),
    ("edit facts.jsonl --model base --out ..", "exists and holds no edited model"),
    (
        f"edit facts.jsonl --model base --out {LONG}",
        "has 252 bytes, and 200 is the most; choose a shorter one",
    ),
    (f"edit facts.jsonl --model base --out deep/{LONG}", "has 252 bytes, and 200 is the most"),
    ("edit facts.jsonl --model base --out base", "base exists and holds no edited model"),
    ("edit facts.jsonl --model base --out facts.jsonl", "facts.jsonl exists and holds no edited model"),
    (
        "edit facts.jsonl --model base --out a\0b",
        "Invalid value for '--out': Value error, embedded null byte",
    ),
    (
        "edit facts.jsonl --model other --out edited",
        "edited was made from base, not from other; leave the model",
    ),
    (
        "edit facts.jsonl --sequence plain_aligned --out edited",
        "was made with another sequence or other sett",
    ),
    ("edit . --model base --out out", ".: cannot be read (Is a directory); check the path"),
    (
        "edit absent --model base --out out",
        "absent: cannot be read (No such file or directory); check the path",
    ),
    (f"edit {LONG}{LONG} --model base --out out", "cannot be read (File name too long)"),
    ("edit a\udcffb --model base --out out", "cannot be read (No such file or directory)"),
    ("edit base/model.safetensors --model base --out out", "not UTF-8 text"),
    (f"{EDIT} --device foo", "device 'foo' cannot be used here: Expected one of cpu, cuda"),
    (f"{EDIT} --device cuda", "device 'cuda' cannot be used here"),
    (f"{EDIT} --device cuda:99", "device 'cuda:99' cannot be used here"),
    (
        f"{EDIT} --device meta",
        "device 'meta' holds no numbers, so nothing can be computed on it. Choose one of",
    ),
    (f"{EDIT} --device cpu:x", "device 'cpu:x' cannot be used here"),
    (f"{EDIT} --sequence memit", "unknown sequence 'memit'; choose one of: "),
    (f"{EDIT} --sequence memit_naive", "with retain='none' the weights are not those of a ledger"),
    (f"{EDIT} --settings nobody", "unknown model with settings in "),
    (f"{EDIT} --settings nobody", "name one with --settings"),
    (f"{EDIT} --batch 0", "Invalid value for '--batch': Input should be greater than or equal to 1"),
    (f"{EDIT} --batch -1", "Invalid value for '--batch'"),
    (f"{EDIT} --batch many", "Invalid value for '--batch': Input should be a valid integer"),
    (f"{EDIT} --nonsense", "No such option: --nonsense"),
    ("edit facts.jsonl --out out --model ", "the model's name is empty; leave it out for the default"),
    ("edit facts.jsonl --out edited --model ", "the model's name is empty; leave it out for the default"),
    ("edit facts.jsonl", "Missing option '--out'."),
    ("edit", "Missing argument 'facts'."),
    ("undo", "Missing argument 'folder'."),
    ("undo edited", "say which facts to forget: their ids, or all of them, and not both"),
    ("undo edited 0 --all", "say which facts to forget"),
    ("undo edited nobody", "no fact 'nobody' among the 3 that are held; nothing was forgotten"),
    ("undo edited 0 0", "'0'"),
    ("undo edited \udcff", "no fact '\\udcff' among the 3"),
    ("undo absent 0", "absent holds no edited model (it has no palimpsest.json)"),
    ("undo base 0", "base holds no edited model (it has no palimpsest.json)"),
    ("undo facts.jsonl 0", "facts.jsonl holds no edited model"),
    ("undo . 0", "holds no edited model"),
    ("undo / 0", "/ is the root of the file system"),
    ("undo edited 0 --device meta", "device 'meta' holds no numbers"),
    (f"undo {LONG} 0", "has 252 bytes"),
    ("diagnose", "Missing option '--edit'."),
    ("diagnose --edit absent", "absent holds no edited model"),
    ("diagnose --edit facts.jsonl", "facts.jsonl holds no edit that can be read"),
    ("diagnose --edit base/model.safetensors", "holds no edit that can be read"),
    ("diagnose --edit edited --samples 0", "samples is 0"),
    ("diagnose --edit edited --samples -3", "samples is -3"),
    ("diagnose --edit edited --tokens 0", "tokens"),
    ("diagnose --edit edited --limit 0", "limit is 0; diagnose at least 1 fact"),
    ("diagnose --edit edited --wordings absent", "absent: cannot be read"),
    ("diagnose --edit edited --wordings facts.jsonl", "field 'wordings' is missing"),
    ("diagnose --edit edited --device foo", "device 'foo' cannot be used here"),
    ("evaluate", "Missing argument 'model'."),
    ("evaluate base", "Missing argument 'facts'."),
    ("evaluate  facts.jsonl", "unknown model ''; choose one of: "),
    ("evaluate base absent", "absent: cannot be read"),
    ("evaluate base config", "config: cannot be read (Is a directory)"),
    ("evaluate base facts.jsonl --limit 0", "Invalid value for '--limit'"),
    ("evaluate base facts.jsonl --device cuda:99", "device 'cuda:99' cannot be used here"),
    ("evaluate facts.jsonl facts.jsonl", "facts.jsonl is a file; give the folder with config.json"),
    ("evaluate base facts.jsonl --csv facts.jsonl/x.csv", "room/facts.jsonl: [Errno 17] File exists: "),
    ("evaluate base facts.jsonl --json facts.jsonl/x.json", "room/facts.jsonl: [Errno 17] File exists: "),
    ("compare base", "Missing argument 'second'."),
    ("compare base absent", "model 'absent': no folder of that name"),
    ("compare absent base", "model 'absent': no folder of that name"),
    ("compare base edited --facts absent", "absent: cannot be read"),
    ("compare base edited --json facts.jsonl/x.json", "room/facts.jsonl: [Errno 17] File exists: "),
    ("nonsense", "No such command 'nonsense'."),
    ("--nonsense", "No such option: --nonsense"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_refuses(room: Path, arguments: str, message: str) -> None:
    refused(room, arguments.split(" "), message)


MODELS = [
    (" ", "unknown model ' '"),
    ("a/b/c", "unknown model 'a/b/c'"),
    ("/no/such", "unknown model '/no/such'"),
    (LONG, "unknown model 'xxx"),
    (
        "no/such",
        "model 'no/such': no folder of that name, the cache of the hub does not hold it, and the hub",
    ),
    ("smollm2-135", "did you mean smollm2-135m?"),
    ("facts.jsonl", "facts.jsonl is a file; give the folder with config.json, weights and tokenizer"),
    ("config", "it has no config.json but sequences.yaml"),
    ("edited/ledgers", "it has no config.json but layer-0.safetensors"),
]


@pytest.mark.parametrize(("name", "message"), MODELS, ids=range(len(MODELS)))
def test_a_name_that_is_no_model(room: Path, name: str, message: str) -> None:
    refused(room, ["edit", "facts.jsonl", "--model", name, "--out", "out"], message)
    refused(room, ["evaluate", name, "facts.jsonl"], message)


def described(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Damage to the description of an edited folder, whose checksum fits."""

    def damage(room: Path) -> None:
        path = room / "edited/palimpsest.json"
        content = json.loads(path.read_text())
        del content[SUM]
        changed = change(content)
        path.write_text(json.dumps(changed | {SUM: digest(changed)}))

    return damage


def written(content: bytes) -> Callable[[Path], None]:
    return lambda room: (room / "edited/palimpsest.json").write_bytes(content) and None


DAMAGED = [
    written(b"{}"),
    written(b"[]"),
    written(b"null"),
    written(b""),
    written(b"\xff\xfe{"),
    written(b"[" * 100_000),
    written(b'{"format": ' + b"9" * 5000 + b"}"),
    described(lambda about: about | {"facts": None}),
    described(lambda about: about | {"facts": [None]}),
    described(lambda about: about | {"facts": [{"prompt": "{} is", "subject": "x"}]}),
    described(lambda about: about | {"facts": [{"prompt": "", "subject": "x", "target": "y"}]}),
    described(lambda about: about | {"base": about["base"] | {"dtype": "float99"}}),
    described(lambda about: about | {"base": about["base"] | {"dtype": "nn"}}),
    described(lambda about: about | {"base": {}}),
    described(lambda about: about | {"base": None}),
    described(lambda about: about | {"editor": {}}),
    described(lambda about: about | {"editor": about["editor"] | {"layers": []}}),
    described(lambda about: about | {"steps": "many"}),
    described(lambda about: about | {"unedited": {"x": "y"}}),
    described(lambda about: about | {"more": 1}),
    described(lambda about: {name: value for name, value in about.items() if name != "contexts"}),
]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_description(room: Path, damage: Callable[[Path], None]) -> None:
    damage(room)
    for arguments in ("undo edited 0", "edit facts.jsonl --out edited", "diagnose --edit edited"):
        refused(room, arguments.split(), "is damaged")


def test_prompts_longer_than_the_context(room: Path) -> None:
    long = {"id": "long", "prompt": "word " * 300 + "{} is", "subject": "Anna", "target": "Rome"}
    target = {"id": "long", "prompt": "{} is", "subject": "Anna", "target": "Rome " * 300 + "x"}
    for record in (long, target):
        (room / "long.jsonl").write_text(json.dumps(record))
        refused(
            room,
            ["edit", "long.jsonl", "--model", "base", "--out", "out"],
            "and the context of base holds 256; shor",
        )
        refused(room, ["edit", "long.jsonl", "--out", "edited"], "request 'long': ")
        refused(room, ["evaluate", "base", "long.jsonl"], "and the context of base holds 256; shorten it")
